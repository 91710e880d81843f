# Needs: the fetched models, the encoded rows.
# Gives: check/ (both models went through what follows, for a step), teacher/ (the fine-tuned teacher) and
# cache/ (what it thinks at every answer position), written by one job, or by teacher_cache.shards jobs side
# by side and put together without a second copy. For strategies that learn from the teacher's answers:
# answers/<hash of how they are sampled>/ and the cache of them in it.


# Runs when the teacher's training will, and never by itself: a training that waits for it must not run again
# for it, and behind an `ancient` input Snakemake would not see what else has changed. So code and student are
# `ancient`, and the parameters are not tracked: those that the teacher is tried with are in the output's name.
rule check_models:
    input:
        code=ancient(code("check_models")),
        divergence=ancient(code("kdag/losses/divergences/fkl")),
        chat=CHAT,
        data="<results>/data/manifest.json",
        train="<results>/data/train.parquet",
        own=OWN,
        teacher=f"{TEACHER}/manifest.json",
        teacher_model=ancient(f"{TEACHER}/model"),
        student=ancient(f"{STUDENT}/manifest.json"),
        student_model=ancient(f"{STUDENT}/model"),
    output:
        CHECKED,
    log:
        "<logs>/check_models.log",
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        **needs("check_models", ["teacher_model", "student_model"], max),
    params:
        config=lambda wildcards, input: params("check_models")(wildcards),
    shell:
        "python {input.code[0]:q} --gpus {resources.gpu} --config {params.config:q}"
        " --teacher {input.teacher_model:q} --student {input.student_model:q} --train {input.train:q}"
        " --chat {input.chat:q} --own {input.own:q} --output {output:q} --log-file {log:q}"


rule sft_teacher:
    input:
        code=code("sft"),
        checked=[] if OUTPUT_CACHE else CHECKED,  # a student is no part of what is shared
        chat=f"{ROWS[FIRST]}/chat.json",
        data=f"{ROWS[FIRST]}/manifest.json",
        train=f"{ROWS[FIRST]}/train.parquet",
        base=f"{TEACHER}/manifest.json",
        model=ancient(f"{TEACHER}/model"),
    output:
        model=directory("<results>/teacher/model"),
        log="<results>/teacher/training.jsonl",
        manifest="<results>/teacher/manifest.json",
    log:
        "<logs>/sft_teacher.log",
    benchmark:
        "<benchmarks>/sft_teacher.tsv"
    cache: OUTPUT_CACHE
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        **needs("sft_teacher"),
    params:
        config=params("sft_teacher"),
    shell:
        "python {input.code[0]:q} --name sft_teacher"
        " --gpus {resources.gpu} --planned {resources.planned} --tensorboard {resources.tensorboard} --config {params.config:q}"
        " --model {input.model:q} --chat {input.chat:q} --train {input.train:q} --output {output.model:q} --log {output.log:q}"
        " --manifest {output.manifest:q} --log-file {log:q}"


if FURTHER:

    use rule sft_teacher as sft_further_teacher with:
        input:
            code=code("sft"),
            checked=[] if OUTPUT_CACHE else CHECKED,
            chat=lambda wildcards: f"{ROWS[wildcards.teacher]}/chat.json",
            data=lambda wildcards: f"{ROWS[wildcards.teacher]}/manifest.json",
            train=lambda wildcards: f"{ROWS[wildcards.teacher]}/train.parquet",
            base=lambda wildcards: f"{FURTHER[wildcards.teacher]}/manifest.json",
            model=ancient(lambda wildcards: f"{FURTHER[wildcards.teacher]}/model"),
        output:
            model=directory("<results>/teachers/{teacher}/model"),
            log="<results>/teachers/{teacher}/training.jsonl",
            manifest="<results>/teachers/{teacher}/manifest.json",
        log:
            "<logs>/sft_further_teacher/{teacher}.log",
        benchmark:
            "<benchmarks>/sft_further_teacher/{teacher}.tsv"
        resources:
            **needs("sft_teacher") | UNPLANNED,

    rule cache_further_teacher:
        input:
            code=code("cache_teacher"),
            data=lambda wildcards: f"{ROWS[wildcards.teacher]}/manifest.json",
            train=lambda wildcards: f"{ROWS[wildcards.teacher]}/train.parquet",
            teacher="<results>/teachers/{teacher}/manifest.json",
            model=ancient("<results>/teachers/{teacher}/model"),
        output:
            train=directory("<results>/teachers/{teacher}/cache/train"),
            head="<results>/teachers/{teacher}/cache/head.safetensors",
            manifest="<results>/teachers/{teacher}/cache/manifest.json",
        log:
            "<logs>/cache_further_teacher/{teacher}.log",
        benchmark:
            "<benchmarks>/cache_further_teacher/{teacher}.tsv"
        conda:
            "../../envs/train.yaml"
        threads: 8
        resources:
            **needs("cache_teacher") | UNPLANNED,
        params:
            config=params("cache_teacher"),
        shell:
            "python {input.code[0]:q} --name cache_teacher/{wildcards.teacher}"
            " --gpus {resources.gpu} --planned {resources.planned} --config {params.config:q}"
            " --model {input.model:q} --parts train --train {input.train:q}"
            " --manifest {output.manifest:q} --log-file {log:q}"


if PUBLISHED:

    # First of what can run: rows that the published set lacks are a mistake of the configuration.
    rule cache_published:
        input:
            code=code("cache_published"),
            data="<results>/data/manifest.json",
            train="<results>/data/train.parquet",
            fetched=lambda wildcards: f"{PUBLISHED[wildcards.teacher]}/manifest.json",
            files=ancient(lambda wildcards: f"{PUBLISHED[wildcards.teacher]}/files"),
        output:
            train=directory("<results>/teachers/{teacher}/cache/train"),
            head="<results>/teachers/{teacher}/cache/head.safetensors",
            manifest="<results>/teachers/{teacher}/cache/manifest.json",
        log:
            "<logs>/cache_published/{teacher}.log",
        wildcard_constraints:
            teacher="|".join(map(re.escape, PUBLISHED)),
        priority: 1
        localrule: True
        conda:
            "../../envs/train.yaml"
        params:
            config=params("cache_published"),
        shell:
            "python {input.code[0]:q} --name cache_published/{wildcards.teacher} --config {params.config:q}"
            " --published {input.files:q} --train {input.train:q}"
            " --manifest {output.manifest:q} --log-file {log:q}"


if CONFIG.teacher_cache.shards == 1:

    rule cache_teacher:
        input:
            code=code("cache_teacher"),
            data=f"{ROWS[FIRST]}/manifest.json",
            train=f"{ROWS[FIRST]}/train.parquet",
            heldout=f"{ROWS[FIRST]}/heldout.parquet",
            teacher="<results>/teacher/manifest.json",
            model=ancient("<results>/teacher/model"),
        output:
            **{part: directory(f"<results>/cache/{part}") for part in CACHED},
            head="<results>/cache/head.safetensors",
            manifest="<results>/cache/manifest.json",
        log:
            "<logs>/cache_teacher.log",
        benchmark:
            "<benchmarks>/cache_teacher.tsv"
        cache: OUTPUT_CACHE
        conda:
            "../../envs/train.yaml"
        threads: 8
        resources:
            **needs("cache_teacher"),
        params:
            config=params("cache_teacher"),
            parts=CACHED,
        shell:
            "python {input.code[0]:q} --name cache_teacher"
            " --gpus {resources.gpu} --planned {resources.planned} --config {params.config:q}"
            " --model {input.model:q} --parts {params.parts} --train {input.train:q}"
            " --heldout {input.heldout:q} --manifest {output.manifest:q} --log-file {log:q}"

else:

    SHARES = expand(
        "<results>/cache-shards/{share}-of-{shares}",
        share=range(CONFIG.teacher_cache.shards),
        shares=CONFIG.teacher_cache.shards,
    )

    rule cache_shard:
        input:
            code=code("cache_teacher"),
            data=f"{ROWS[FIRST]}/manifest.json",
            train=f"{ROWS[FIRST]}/train.parquet",
            heldout=f"{ROWS[FIRST]}/heldout.parquet",
            teacher="<results>/teacher/manifest.json",
            model=ancient("<results>/teacher/model"),
        output:
            files=directory("<results>/cache-shards/{share}-of-{shares}/files"),
            manifest="<results>/cache-shards/{share}-of-{shares}/manifest.json",
        log:
            "<logs>/cache_shard/{share}-of-{shares}.log",
        benchmark:
            "<benchmarks>/cache_shard/{share}-of-{shares}.tsv"
        conda:
            "../../envs/train.yaml"
        threads: 8
        resources:
            **needs("cache_teacher"),
        params:
            config=params("cache_teacher"),
            parts=CACHED,
        shell:
            "python {input.code[0]:q} --name cache/{wildcards.share}-of-{wildcards.shares}"
            " --gpus {resources.gpu} --planned {resources.planned}"
            " --config {params.config:q} --model {input.model:q}"
            " --parts {params.parts} --train {input.train:q} --heldout {input.heldout:q}"
            " --share {wildcards.share}/{wildcards.shares} --files {output.files:q}"
            " --manifest {output.manifest:q} --log-file {log:q}"

    rule gather_cache:
        input:
            code=code("gather_cache"),
            shares=[f"{share}/manifest.json" for share in SHARES],
            files=ancient([f"{share}/files" for share in SHARES]),
        output:
            **{part: directory(f"<results>/cache/{part}") for part in CACHED},
            head="<results>/cache/head.safetensors",
            manifest="<results>/cache/manifest.json",
        log:
            "<logs>/gather_cache.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        shell:
            "python {input.code[0]:q} --shares {input.shares:q} --manifest {output.manifest:q}"
            " --log-file {log:q}"


if ANSWER_SETS:

    rule answer_teacher:
        input:
            code=code("answer_teacher"),
            chat=CHAT,
            data="<results>/data/manifest.json",
            train="<results>/data/train.parquet",
            own=OWN,
            student=[f"{STUDENT}/manifest.json"] if OWN else [],
            student_model=ancient([f"{STUDENT}/model"] if OWN else []),
            teacher="<results>/teacher/manifest.json",
            model=ancient("<results>/teacher/model"),
        output:
            train="<results>/answers/{answers}/train.parquet",
            manifest="<results>/answers/{answers}/manifest.json",
        log:
            "<logs>/answer_teacher/{answers}.log",
        benchmark:
            "<benchmarks>/answer_teacher/{answers}.tsv"
        conda:
            "../../envs/train.yaml"
        threads: 8
        resources:
            **needs("answer_teacher"),
        params:
            config=lambda wildcards: canonical_json(ANSWER_SETS[wildcards.answers]),
        shell:
            "python {input.code[0]:q} --name answer_teacher"
            " --gpus {resources.gpu} --planned {resources.planned} --config {params.config:q}"
            " --model {input.model:q} --chat {input.chat:q} --train {input.train:q}"
            " --own {input.own:q} {input.student_model:q}"
            " --output {output.train:q} --manifest {output.manifest:q} --log-file {log:q}"

    rule cache_answers:
        input:
            code=code("cache_teacher"),
            data="<results>/answers/{answers}/manifest.json",
            train="<results>/answers/{answers}/train.parquet",
            teacher="<results>/teacher/manifest.json",
            model=ancient("<results>/teacher/model"),
        output:
            train=directory("<results>/answers/{answers}/cache/train"),
            head="<results>/answers/{answers}/cache/head.safetensors",
            manifest="<results>/answers/{answers}/cache/manifest.json",
        log:
            "<logs>/cache_answers/{answers}.log",
        benchmark:
            "<benchmarks>/cache_answers/{answers}.tsv"
        conda:
            "../../envs/train.yaml"
        threads: 8
        resources:
            **needs("cache_teacher"),
        params:
            config=params("cache_teacher"),
        shell:
            "python {input.code[0]:q} --name cache_answers"
            " --gpus {resources.gpu} --planned {resources.planned} --config {params.config:q}"
            " --model {input.model:q} --parts train --train {input.train:q}"
            " --manifest {output.manifest:q} --log-file {log:q}"
