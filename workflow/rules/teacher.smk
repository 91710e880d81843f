# Needs: the fetched teacher, the encoded rows.
# Gives: teacher/ (the fine-tuned teacher) and cache/ (what it thinks at every answer position).


rule sft_teacher:
    input:
        code=code("sft"),
        data="<results>/data/manifest.json",
        train="<results>/data/train.parquet",
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
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        **needs("sft_teacher"),
    params:
        config=params("sft_teacher"),
    shell:
        "python {input.code[0]} --name sft_teacher --config {params.config:q} --model {input.model:q}"
        " --train {input.train:q} --output {output.model:q} --log {output.log:q}"
        " --manifest {output.manifest:q} 2>&1 | tee {log:q}"


rule cache_teacher:
    input:
        code=code("cache_teacher"),
        data="<results>/data/manifest.json",
        train="<results>/data/train.parquet",
        heldout="<results>/data/heldout.parquet",
        teacher="<results>/teacher/manifest.json",
        model=ancient("<results>/teacher/model"),
    output:
        parts=[directory(f"<results>/cache/{part}") for part in CACHED],
        head="<results>/cache/head.safetensors",
        manifest="<results>/cache/manifest.json",
    log:
        "<logs>/cache_teacher.log",
    benchmark:
        "<benchmarks>/cache_teacher.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        **needs("cache_teacher"),
    params:
        config=params("cache_teacher"),
        parts=CACHED,
    shell:
        "python {input.code[0]} --name cache_teacher --config {params.config:q} --model {input.model:q}"
        " --parts {params.parts} --train {input.train:q} --heldout {input.heldout:q}"
        " --manifest {output.manifest:q}"
        " 2>&1 | tee {log:q}"
