# Needs: a server that answers (teacher.source: server), the student's tokenizer, the encoded rows, the prompts.
# Gives: what teacher.smk gives, of a teacher that is asked and not trained: teacher/ (its manifest: who answers),
# cache/ (its likeliest tokens), answers/<hash>/, and eval/teacher/.
# These rules touch the network, and run where Snakemake runs, like those that fetch. How the server is reached
# (address, patience, the name of the variable with its key) is a resource, since it changes no result.


def reached():
    return {
        "url": CONFIG.teacher.url,
        "key": CONFIG.teacher.key or "",
        "timeout": CONFIG.teacher.timeout,
        "retries": CONFIG.teacher.retries,
        "parallel": CONFIG.teacher.parallel,
    }


rule meet_teacher:
    input:
        code=code("meet_teacher"),
        student=f"{STUDENT}/manifest.json",
        model=ancient(f"{STUDENT}/model"),
    output:
        manifest="<results>/teacher/manifest.json",
    log:
        "<logs>/meet_teacher.log",
    localrule: True
    conda:
        "../../envs/train.yaml"
    resources:
        **reached(),
    params:
        config=params("meet_teacher"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --url {resources.url:q} --key {resources.key:q}"
        " --timeout {resources.timeout} --retries {resources.retries} --parallel {resources.parallel}"
        " --model {input.model:q} --manifest {output.manifest:q} --log-file {log:q}"


if CONFIG.teacher.logprobs:

    rule cache_teacher:
        input:
            code=code("ask_logprobs"),
            data="<results>/data/manifest.json",
            train="<results>/data/train.parquet",
            heldout="<results>/data/heldout.parquet",
            teacher="<results>/teacher/manifest.json",
            model=ancient(f"{STUDENT}/model"),
        output:
            **{part: directory(f"<results>/cache/{part}") for part in CACHED},
            head="<results>/cache/head.safetensors",
            manifest="<results>/cache/manifest.json",
        log:
            "<logs>/cache_teacher.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        resources:
            **reached(),
        params:
            config=params("cache_teacher"),
            parts=CACHED,
        shell:
            "python {input.code[0]:q} --name cache_teacher --config {params.config:q}"
            " --url {resources.url:q} --key {resources.key:q} --timeout {resources.timeout}"
            " --retries {resources.retries} --parallel {resources.parallel}"
            " --teacher {input.teacher:q} --model {input.model:q} --parts {params.parts} --train {input.train:q}"
            " --heldout {input.heldout:q} --manifest {output.manifest:q} --log-file {log:q}"


if ANSWER_SETS:

    rule answer_teacher:
        input:
            code=code("ask_answers"),
            chat=CHAT,
            data="<results>/data/manifest.json",
            train="<results>/data/train.parquet",
            teacher="<results>/teacher/manifest.json",
            model=ancient(f"{STUDENT}/model"),
        output:
            train="<results>/answers/{answers}/train.parquet",
            manifest="<results>/answers/{answers}/manifest.json",
        log:
            "<logs>/answer_teacher/{answers}.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        resources:
            **reached(),
        params:
            config=lambda wildcards: canonical_json(ANSWER_SETS[wildcards.answers]),
        shell:
            "python {input.code[0]:q} --name answer_teacher --config {params.config:q}"
            " --url {resources.url:q} --key {resources.key:q} --timeout {resources.timeout}"
            " --retries {resources.retries} --parallel {resources.parallel}"
            " --teacher {input.teacher:q} --model {input.model:q} --chat {input.chat:q} --train {input.train:q}"
            " --output {output.train:q} --manifest {output.manifest:q} --log-file {log:q}"

    rule cache_answers:
        input:
            code=code("ask_logprobs"),
            data="<results>/answers/{answers}/manifest.json",
            train="<results>/answers/{answers}/train.parquet",
            teacher="<results>/teacher/manifest.json",
            model=ancient(f"{STUDENT}/model"),
        output:
            train=directory("<results>/answers/{answers}/cache/train"),
            head="<results>/answers/{answers}/cache/head.safetensors",
            manifest="<results>/answers/{answers}/cache/manifest.json",
        log:
            "<logs>/cache_answers/{answers}.log",
        localrule: True
        conda:
            "../../envs/train.yaml"
        resources:
            **reached(),
        params:
            config=params("cache_teacher"),
        shell:
            "python {input.code[0]:q} --name cache_answers --config {params.config:q}"
            " --url {resources.url:q} --key {resources.key:q} --timeout {resources.timeout}"
            " --retries {resources.retries} --parallel {resources.parallel}"
            " --teacher {input.teacher:q} --model {input.model:q} --parts train --train {input.train:q}"
            " --manifest {output.manifest:q} --log-file {log:q}"


# What `generate` and `evaluate_task` do for the models that lie here.
ruleorder: ask_prompts > generate
ruleorder: ask_task > evaluate_task


rule ask_prompts:
    input:
        code=code("ask_prompts"),
        chat=CHAT,
        prompts="<results>/data/prompts.jsonl",
        teacher="<results>/teacher/manifest.json",
        model=ancient(f"{STUDENT}/model"),
    output:
        samples=f"<results>/eval/{TEACHER_TRAINED}/samples.jsonl",
        settings=f"<results>/eval/{TEACHER_TRAINED}/generation.json",
    log:
        "<logs>/ask_prompts.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    resources:
        **reached(),
    params:
        config=params("ask_prompts"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --url {resources.url:q} --key {resources.key:q}"
        " --timeout {resources.timeout} --retries {resources.retries} --parallel {resources.parallel}"
        " --teacher {input.teacher:q} --model {input.model:q} --chat {input.chat:q} --prompts {input.prompts:q}"
        " --output {output.samples:q} --settings {output.settings:q} --log-file {log:q}"


rule ask_task:
    input:
        code=code("ask_task"),
        chat=CHAT,
        own=task_code,
        fetched=lambda wildcards: f"{task_home(wildcards.task)}/manifest.json",
        task=ancient(lambda wildcards: f"{task_home(wildcards.task)}/task"),
        teacher="<results>/teacher/manifest.json",
        model=ancient(f"{STUDENT}/model"),
    output:
        samples=f"<results>/eval/{TEACHER_TRAINED}/{{task}}/samples.jsonl",
        scores=f"<results>/eval/{TEACHER_TRAINED}/{{task}}/scores.json",
    log:
        "<logs>/ask_task/{task}.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    resources:
        **reached(),
    params:
        config=params("ask_task"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --url {resources.url:q} --key {resources.key:q}"
        " --timeout {resources.timeout} --retries {resources.retries} --parallel {resources.parallel}"
        " --teacher {input.teacher:q} --model {input.model:q} --chat {input.chat:q} --task {input.task:q}"
        " --fetched {input.fetched:q} --output {output.samples:q} --scores {output.scores:q} --log-file {log:q}"
