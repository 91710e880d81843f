# Needs: the sources that the configuration names.
# Gives: resources/ (models, data sets, prompts, NLTK's data), the student's start, data/ of the experiment.
# The fetch rules are the only ones that touch the network; they run where Snakemake runs.


if not SERVER:

    rule fetch_teacher:
        input:
            code=code("fetch_model"),
            files=local_files(CONFIG.teacher),
        output:
            model=directory(f"{TEACHER}/model"),
            manifest=f"{TEACHER}/manifest.json",
        log:
            "<logs>/fetch_teacher.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            config=params("fetch_teacher"),
        shell:
            "python {input.code[0]:q} --config {params.config:q} --output {output.model:q}"
            " --manifest {output.manifest:q} --log-file {log:q}"


if set(FURTHER.values()) - {TEACHER, STUDENT}:

    rule fetch_further_teacher:
        input:
            code=code("fetch_model"),
            files=lambda wildcards: local_files(CONFIG.teachers[further_at(wildcards.source)]),
        output:
            model=directory("resources/models/{source}/model"),
            manifest="resources/models/{source}/manifest.json",
        log:
            "<logs>/fetch_further_teacher/{source}.log",
        wildcard_constraints:
            source="|".join(
                re.escape(Path(home).name) for home in sorted(set(FURTHER.values()) - {TEACHER, STUDENT})
            ),
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            config=lambda wildcards: canonical_json(
                stage_params(CONFIG, "fetch_teacher", teacher=further_at(wildcards.source))
            ),
        shell:
            "python {input.code[0]:q} --config {params.config:q} --output {output.model:q}"
            " --manifest {output.manifest:q} --log-file {log:q}"


if PUBLISHED:

    rule fetch_published:
        input:
            code=code("fetch_published"),
            files=lambda wildcards: published_files(CONFIG.teachers[further_at(wildcards.source)]),
        output:
            files=directory("resources/logprobs/{source}/files"),
            manifest="resources/logprobs/{source}/manifest.json",
        log:
            "<logs>/fetch_published/{source}.log",
        wildcard_constraints:
            source="|".join(re.escape(Path(home).name) for home in PUBLISHED.values()),
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            config=lambda wildcards: canonical_json(
                stage_params(CONFIG, "fetch_published", teacher=further_at(wildcards.source))
            ),
        shell:
            "python {input.code[0]:q} --config {params.config:q} --output {output.files:q}"
            " --manifest {output.manifest:q} --log-file {log:q}"


if CONFIG.student.derive:

    rule derive_student:
        input:
            code=code("derive_student"),
            teacher=f"{TEACHER}/manifest.json",
            model=ancient(f"{TEACHER}/model"),
        output:
            model=directory(f"{STUDENT}/model"),
            manifest=f"{STUDENT}/manifest.json",
        log:
            "<logs>/derive_student.log",
        conda:
            "../../envs/train.yaml"
        resources:
            **needs("derive_student"),
        params:
            config=params("derive_student"),
        shell:
            "python {input.code[0]:q} --config {params.config:q} --teacher {input.model:q}"
            " --output {output.model:q} --manifest {output.manifest:q} --log-file {log:q}"

elif STUDENT != TEACHER:

    rule fetch_student:
        input:
            code=code("fetch_model"),
            files=local_files(CONFIG.student),
        output:
            model=directory(f"{STUDENT}/model"),
            manifest=f"{STUDENT}/manifest.json",
        log:
            "<logs>/fetch_student.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            config=params("fetch_student"),
        shell:
            "python {input.code[0]:q} --config {params.config:q} --output {output.model:q}"
            " --manifest {output.manifest:q} --log-file {log:q}"


rule fetch_dataset:
    input:
        code=code("fetch_dataset"),
        files=local_files(CONFIG.data),
    output:
        rows=f"{DATASET}/rows.jsonl",
        manifest=f"{DATASET}/manifest.json",
    log:
        "<logs>/fetch_dataset.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        config=params("fetch_dataset"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --output {output.rows:q}"
        " --manifest {output.manifest:q} --log-file {log:q}"


rule fetch_prompts:
    input:
        code=code("fetch_dataset"),
        files=local_files(CONFIG.evaluation.prompts),
    output:
        rows=f"{PROMPTS}/rows.jsonl",
        manifest=f"{PROMPTS}/manifest.json",
    log:
        "<logs>/fetch_prompts.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        config=params("fetch_prompts"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --output {output.rows:q}"
        " --manifest {output.manifest:q} --log-file {log:q}"


rule fetch_nltk_data:
    input:
        code=code("fetch_nltk_data"),
    output:
        data=directory(NLTK),
        manifest=f"{NLTK}.json",
    log:
        "<logs>/fetch_nltk_data.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    shell:
        "python {input.code[0]:q} --output {output.data:q} --manifest {output.manifest:q} --log-file {log:q}"


rule fetch_task:
    input:
        code=code("fetch_task"),
        own=task_code,
        files=lambda wildcards: task_files(wildcards.task),
        trained=lambda wildcards: trained_questions(wildcards.task),
    output:
        task=directory("resources/tasks/{task}-{hash}/task"),
        manifest="resources/tasks/{task}-{hash}/manifest.json",
    log:
        "<logs>/fetch_task/{task}-{hash}.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    params:
        config=params("fetch_task"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --apart-from {input.trained:q}"
        " --output {output.task:q} --manifest {output.manifest:q} --log-file {log:q}"


rule settle_chat:
    input:
        code=code("settle_chat"),
        template=local_template(CONFIG.chat),
        teacher=f"{SPOKEN}/manifest.json",
        teacher_model=ancient(f"{SPOKEN}/model"),
        student=f"{STUDENT}/manifest.json",
        student_model=ancient(f"{STUDENT}/model"),
        others=[f"{home}/manifest.json" for home in SHARING],
        further=ancient([f"{home}/model" for home in SHARING]),
    output:
        chat=CHAT,
    log:
        "<logs>/settle_chat.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        config=params("settle_chat"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --teacher {input.teacher_model:q}"
        " --student {input.student_model:q} --further {input.further:q}"
        " --output {output.chat:q} --log-file {log:q}"


rule subset:
    input:
        code=code("subset"),
        rows=f"{DATASET}/rows.jsonl",
        chat=CHAT,
        teacher=f"{SPOKEN}/manifest.json",
        teacher_model=ancient(f"{SPOKEN}/model"),
        student=f"{STUDENT}/manifest.json",
        student_model=ancient(f"{STUDENT}/model"),
        others=[f"{home}/manifest.json" for home in SHARING],
        further=ancient([f"{home}/model" for home in SHARING]),
    output:
        train="<results>/data/train.parquet",
        heldout="<results>/data/heldout.parquet",
        manifest="<results>/data/manifest.json",
    log:
        "<logs>/subset.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    params:
        config=params("subset"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --rows {input.rows:q} --chat {input.chat:q}"
        " --models {input.student_model:q} {input.teacher_model:q} {input.further:q}"
        " --train {output.train:q} --heldout {output.heldout:q} --manifest {output.manifest:q}"
        " --log-file {log:q}"


for name in ALIGNED:

    rule:
        name:
            f"align_rows_{re.sub(r'[^A-Za-z0-9]', '_', name)}"
        input:
            code=code("align_rows"),
            template=local_template(CONFIG.chat),
            rows=f"{DATASET}/rows.jsonl",
            chat=CHAT,
            data="<results>/data/manifest.json",
            train="<results>/data/train.parquet",
            heldout="<results>/data/heldout.parquet",
            student=f"{STUDENT}/manifest.json",
            student_model=ancient(f"{STUDENT}/model"),
            teacher=f"{({FIRST: TEACHER} | FURTHER)[name]}/manifest.json",
            teacher_model=ancient(f"{({FIRST: TEACHER} | FURTHER)[name]}/model"),
        output:
            chat=f"{ROWS[name]}/chat.json",
            common=f"{ROWS[name]}/common.parquet",
            train=f"{ROWS[name]}/train.parquet",
            heldout=f"{ROWS[name]}/heldout.parquet",
            manifest=f"{ROWS[name]}/manifest.json",
        log:
            f"<logs>/align_rows/{name}.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            config=canonical_json(stage_params(CONFIG, "align_rows", teacher=name)),
        shell:
            "python {input.code[0]:q} --config {params.config:q} --rows {input.rows:q} --chat {input.chat:q}"
            " --train {input.train:q} --heldout {input.heldout:q}"
            " --student {input.student_model:q} --teacher {input.teacher_model:q}"
            " --output {output.manifest:q} --log-file {log:q}"


for column, strategy in ROUTED.items():

    rule:
        name:
            f"route_rows_{re.sub(r'[^A-Za-z0-9]', '_', column)}"
        input:
            code=code("route_rows"),
            rows=f"{DATASET}/rows.jsonl",
            data="<results>/data/manifest.json",
            train="<results>/data/train.parquet",
        output:
            f"<results>/data/routes-{column}.json",
        log:
            f"<logs>/route_rows/{column}.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            config=canonical_json(stage_params(CONFIG, "route_rows", strategy=strategy)),
        shell:
            "python {input.code[0]:q} --config {params.config:q} --rows {input.rows:q} --train {input.train:q}"
            " --output {output:q} --log-file {log:q}"


rule select_prompts:
    input:
        code=code("select_prompts"),
        rows=f"{PROMPTS}/rows.jsonl",
        nltk=f"{NLTK}.json",
        nltk_data=ancient(NLTK),
    output:
        prompts="<results>/data/prompts.jsonl",
    log:
        "<logs>/select_prompts.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    params:
        config=params("select_prompts"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --input {input.rows:q}"
        " --nltk-data {input.nltk_data:q} --output {output.prompts:q} --log-file {log:q}"
