# Needs: a model (any row of the table), the prompts; for fidelity, the teacher's cache of held-out rows.
# Gives: eval/<model>/: samples.jsonl (answers), scores.json (IFEval), fidelity.json (students), and the
#        same of further tasks in <task>/.


ANSWERS = f"../../envs/{'vllm' if CONFIG.evaluation.backend == 'vllm' else 'eval'}.yaml"


rule generate:
    input:
        code=code("generate"),
        chat=chat_of,
        prompts="<results>/data/prompts.jsonl",
        manifest=lambda wildcards: f"{model_home(wildcards.model)}/manifest.json",
        model=ancient(lambda wildcards: f"{model_home(wildcards.model)}/model"),
    output:
        samples="<results>/eval/{model}/samples.jsonl",
        settings="<results>/eval/{model}/generation.json",
    log:
        "<logs>/generate/{model}.log",
    benchmark:
        "<benchmarks>/generate/{model}.tsv"
    conda:
        ANSWERS
    threads: 8
    resources:
        **needs("generate"),
    params:
        config=params("generate"),
    shell:
        "python {input.code[0]:q} --name generate/{wildcards.model}"
        " --gpus {resources.gpu} --planned {resources.planned}"
        " --config {params.config:q} --model {input.model:q} --chat {input.chat:q} --prompts {input.prompts:q}"
        " --output {output.samples:q} --settings {output.settings:q} --log-file {log:q}"


rule score:
    input:
        code=code("score_ifeval"),
        prompts="<results>/data/prompts.jsonl",
        nltk=f"{NLTK}.json",
        nltk_data=ancient(NLTK),
        samples="<results>/eval/{model}/samples.jsonl",
        settings="<results>/eval/{model}/generation.json",
    output:
        scores="<results>/eval/{model}/scores.json",
    log:
        "<logs>/score/{model}.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    shell:
        "python {input.code[0]:q} --name score/{wildcards.model} --prompts {input.prompts:q}"
        " --responses {input.samples:q} --generation {input.settings:q} --nltk-data {input.nltk_data:q}"
        " --output {output.scores:q} --log-file {log:q}"


if FIRST in ALIGNED:

    rule measure_likelihood:
        input:
            code=code("measure_likelihood"),
            data="<results>/data/manifest.json",
            heldout="<results>/data/heldout.parquet",
            rows=f"{ROWS[FIRST]}/manifest.json",
            aligned=f"{ROWS[FIRST]}/heldout.parquet",
            cache="<results>/cache/manifest.json",
            states=ancient("<results>/cache/heldout"),
            manifest=lambda wildcards: f"{model_home(wildcards.model)}/manifest.json",
            model=ancient(lambda wildcards: f"{model_home(wildcards.model)}/model"),
        output:
            fidelity="<results>/eval/{model}/fidelity.json",
        log:
            "<logs>/measure_likelihood/{model}.log",
        benchmark:
            "<benchmarks>/measure_likelihood/{model}.tsv"
        conda:
            "../../envs/train.yaml"
        threads: 8
        resources:
            **needs("measure_fidelity"),
        params:
            config=params("measure_likelihood"),
        shell:
            "python {input.code[0]:q} --name likelihood/{wildcards.model}"
            " --gpus {resources.gpu} --planned {resources.planned}"
            " --config {params.config:q} --model {input.model:q} --heldout {input.heldout:q}"
            " --aligned {input.aligned:q} --cache {input.cache:q} --output {output.fidelity:q} --log-file {log:q}"

else:

    rule measure_fidelity:
        input:
            code=code("measure_fidelity"),
            data="<results>/data/manifest.json",
            heldout="<results>/data/heldout.parquet",
            cache="<results>/cache/manifest.json",
            states=ancient("<results>/cache/heldout"),
            base=f"{STUDENT}/manifest.json",
            untrained=ancient(f"{STUDENT}/model"),
            manifest=lambda wildcards: f"{model_home(wildcards.model)}/manifest.json",
            model=ancient(lambda wildcards: f"{model_home(wildcards.model)}/model"),
        output:
            fidelity="<results>/eval/{model}/fidelity.json",
        log:
            "<logs>/measure_fidelity/{model}.log",
        benchmark:
            "<benchmarks>/measure_fidelity/{model}.tsv"
        conda:
            "../../envs/train.yaml"
        threads: 8
        resources:
            **needs("measure_fidelity", ["model", "untrained"]),
        params:
            config=params("measure_fidelity"),
        shell:
            "python {input.code[0]:q} --name fidelity/{wildcards.model}"
            " --gpus {resources.gpu} --planned {resources.planned}"
            " --config {params.config:q} --model {input.model:q} --untrained {input.untrained:q}"
            " --heldout {input.heldout:q} --cache {input.cache:q} --output {output.fidelity:q} --log-file {log:q}"


rule evaluate_task:
    input:
        code=code("evaluate_task"),
        chat=chat_of,
        own=task_code,
        fetched=lambda wildcards: f"{task_home(wildcards.task)}/manifest.json",
        task=ancient(lambda wildcards: f"{task_home(wildcards.task)}/task"),
        manifest=lambda wildcards: f"{model_home(wildcards.model)}/manifest.json",
        model=ancient(lambda wildcards: f"{model_home(wildcards.model)}/model"),
    output:
        samples="<results>/eval/{model}/{task}/samples.jsonl",
        scores="<results>/eval/{model}/{task}/scores.json",
    log:
        "<logs>/evaluate_task/{model}-{task}.log",
    benchmark:
        "<benchmarks>/evaluate_task/{model}-{task}.tsv"
    conda:
        ANSWERS
    threads: 8
    resources:
        **needs("generate") | UNPLANNED,
    params:
        config=params("evaluate_task"),
    shell:
        "python {input.code[0]:q} --name {wildcards.task}/{wildcards.model}"
        " --gpus {resources.gpu} --planned {resources.planned}"
        " --config {params.config:q} --model {input.model:q} --chat {input.chat:q} --task {input.task:q}"
        " --fetched {input.fetched:q} --output {output.samples:q} --scores {output.scores:q} --log-file {log:q}"
