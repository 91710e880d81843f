# Needs: the untrained student, the encoded rows; for distilling, the teacher's cache or the teacher.
# Gives: students/<strategy>/seed<k>/, one trained student each; `sft` is the one without a teacher.


rule sft_student:
    input:
        code=code("sft"),
        chat=CHAT,
        data="<results>/data/manifest.json",
        train="<results>/data/train.parquet",
        base=f"{STUDENT}/manifest.json",
        model=ancient(f"{STUDENT}/model"),
    output:
        model=directory("<results>/students/sft/seed{seed}/model"),
        log="<results>/students/sft/seed{seed}/training.jsonl",
        manifest="<results>/students/sft/seed{seed}/manifest.json",
    log:
        "<logs>/sft_student/seed{seed}.log",
    benchmark:
        "<benchmarks>/sft_student/seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        **needs("sft_student"),
    params:
        config=params("sft_student"),
    shell:
        "python {input.code[0]:q} --name sft/seed{wildcards.seed}"
        " --gpus {resources.gpu} --planned {resources.planned} --tensorboard {resources.tensorboard}"
        " --config {params.config:q} --model {input.model:q} --chat {input.chat:q} --train {input.train:q}"
        " --output {output.model:q} --log {output.log:q} --manifest {output.manifest:q} --log-file {log:q}"


rule distill:
    input:
        code=code("distill"),
        chat=CHAT,
        divergence=divergence_code,
        data=rows_files("manifest.json"),
        train=rows_files("train.parquet"),
        base=f"{STUDENT}/manifest.json",
        model=ancient(f"{STUDENT}/model"),
        teacher=seen(cached="manifest.json", live="manifest.json"),
        trained=ancient(trained_teacher),
        states=ancient(seen(cached="train", live="model")),
        reference=reference,
        routes=routes,
    output:
        model=directory("<results>/students/{strategy}/seed{seed}/model"),
        log="<results>/students/{strategy}/seed{seed}/training.jsonl",
        manifest="<results>/students/{strategy}/seed{seed}/manifest.json",
    log:
        "<logs>/distill/{strategy}-seed{seed}.log",
    benchmark:
        "<benchmarks>/distill/{strategy}-seed{seed}.tsv"
    wildcard_constraints:
        strategy="|".join(map(re.escape, [name for name in FIXED if name not in ACROSS])) or "(?!)",
    conda:
        "../../envs/train.yaml"
    threads: 8
    resources:
        **needs("distill"),
    params:
        config=params("distill"),
    shell:
        "python {input.code[0]:q} --name {wildcards.strategy}/seed{wildcards.seed}"
        " --gpus {resources.gpu} --planned {resources.planned} --tensorboard {resources.tensorboard}"
        " --config {params.config:q} --model {input.model:q} --chat {input.chat:q} --train {input.train:q}"
        " --teacher {input.teacher:q} --expect-teacher {input.trained:q} --reference {input.reference:q}"
        " --routes {input.routes:q}"
        " --output {output.model:q} --log {output.log:q} --manifest {output.manifest:q} --log-file {log:q}"


if ACROSS:

    use rule distill as distill_across with:
        input:
            code=code("distill_across"),
            chat=CHAT,
            divergence=divergence_code,
            data=rows_across("manifest.json"),
            train=rows_across("train.parquet"),
            base=f"{STUDENT}/manifest.json",
            model=ancient(f"{STUDENT}/model"),
            teacher=seen(cached="manifest.json"),
            trained=ancient(trained_teacher),
            states=ancient(seen(cached="train")),
            reference=reference,
            routes=[],
        wildcard_constraints:
            strategy="|".join(map(re.escape, ACROSS)),


if ON_POLICY:

    use rule distill as distill_on_policy with:
        input:
            code=code("distill_on_policy"),
            chat=CHAT,
            divergence=divergence_code,
            data=rows_files("manifest.json"),
            train=rows_files("train.parquet"),
            base=f"{STUDENT}/manifest.json",
            model=ancient(f"{STUDENT}/model"),
            teacher=seen(live="manifest.json"),
            trained=[],
            states=ancient(seen(live="model")),
            reference=reference,
            routes=[],
            heldout=adaptive_rows,  # next to the reference
        output:
            model=directory("<results>/students/{strategy}/seed{seed}/model"),
            log="<results>/students/{strategy}/seed{seed}/training.jsonl",
            answers="<results>/students/{strategy}/seed{seed}/answers.jsonl",
            manifest="<results>/students/{strategy}/seed{seed}/manifest.json",
        wildcard_constraints:
            strategy="|".join(map(re.escape, ON_POLICY)),
        resources:
            **needs("distill", ["model", "states"], plan="distill_on_policy"),
