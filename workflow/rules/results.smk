# Needs: the scores of every model and the fidelity of every student.
# Gives: report/: the table and the evidence behind it, and one page that shows all of it; next to every
#        trained model its card, README.md.


rule aggregate:
    input:
        code=code("aggregate"),
        scores=expand("<results>/eval/{model}/scores.json", model=MODELS),
        fidelity=expand(
            "<results>/eval/{model}/fidelity.json",
            model=COMPARED,
        ),
        tasks=expand("<results>/eval/{model}/{task}/scores.json", model=MODELS, task=TASKS),
        manifests=[f"{model_home(model)}/manifest.json" for model in MODELS],
    output:
        markdown=report("<results>/report/table.md", caption="../report/table.rst", category="Report"),
        csv=report("<results>/report/table.csv", caption="../report/table.rst", category="Report"),
        latex="<results>/report/table.tex",
        intervals="<results>/report/intervals.csv",
        comparisons="<results>/report/comparisons.csv",
        seeds="<results>/report/seeds.csv",
        verdict="<results>/report/verdict.md",
        notes="<results>/report/notes.md",
        fidelity="<results>/report/fidelity.csv",
        closeness="<results>/report/closeness.csv",
        budget="<results>/report/budget.csv",
        tasks="<results>/report/tasks.csv",
    log:
        "<logs>/aggregate.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    params:
        config=params("aggregate"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --scores {input.scores:q}"
        " --manifests {input.manifests:q} --fidelity {input.fidelity:q} --tasks {input.tasks:q} --table {output.markdown:q} --csv {output.csv:q}"
        " --latex {output.latex:q} --intervals {output.intervals:q} --comparisons {output.comparisons:q}"
        " --seeds {output.seeds:q} --verdict {output.verdict:q} --notes {output.notes:q} --fidelity-csv {output.fidelity:q}"
        " --closeness {output.closeness:q} --budget-csv {output.budget:q} --tasks-csv {output.tasks:q}"
        " --log-file {log:q}"


rule write_report:
    input:
        code=code("write_report"),
        template=shipped("report/index.html.j2"),
        scores=expand("<results>/eval/{model}/scores.json", model=MODELS),
        samples=expand("<results>/eval/{model}/samples.jsonl", model=MODELS),
        fidelity=expand("<results>/eval/{model}/fidelity.json", model=COMPARED),
        training=[f"{model_home(model)}/training.jsonl" for model in TRAINED],
        manifests=[f"{model_home(model)}/manifest.json" for model in TRAINED],
        intervals="<results>/report/intervals.csv",
        comparisons="<results>/report/comparisons.csv",
        tasks="<results>/report/tasks.csv",
        closeness="<results>/report/closeness.csv",
        budget="<results>/report/budget.csv",
        verdict="<results>/report/verdict.md",
        notes="<results>/report/notes.md",
    output:
        html=report("<results>/report/index.html", caption="../report/index.rst", category="Report"),
        plan="<results>/report/plan.json",
    log:
        "<logs>/write_report.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    params:
        config=params("write_report"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --template {input.template:q}"
        " --scores {input.scores:q} --fidelity {input.fidelity:q} --training {input.training:q}"
        " --manifests {input.manifests:q} --intervals {input.intervals:q}"
        " --comparisons {input.comparisons:q} --tasks {input.tasks:q} --closeness {input.closeness:q} --budget {input.budget:q} --verdict {input.verdict:q} --notes {input.notes:q}"
        " --plan {output.plan:q} --output {output.html:q} --log-file {log:q}"


rule write_cards:
    input:
        code=code("write_cards"),
        template=shipped("report/model_card.md.j2"),
        data="<results>/data/manifest.json",
        scores=expand("<results>/eval/{model}/scores.json", model=MODELS),
        fidelity=expand(
            "<results>/eval/{model}/fidelity.json",
            model=[model for model in STUDENTS if model in COMPARED],
        ),
        manifests=[f"{model_home(model)}/manifest.json" for model in MODELS],
        intervals="<results>/report/intervals.csv",
    output:
        [f"{model_home(model)}/README.md" for model in TRAINED],
    log:
        "<logs>/write_cards.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    params:
        config=params("write_cards"),
    shell:
        "python {input.code[0]:q} --config {params.config:q} --data {input.data:q} --output {output:q} --log-file {log:q}"
