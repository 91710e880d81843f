# Needs: the scores of every model and the fidelity of every student.
# Gives: report/: the table, as Markdown and CSV.


rule aggregate:
    input:
        code=code("aggregate"),
        scores=expand("<results>/eval/{model}/scores.json", model=MODELS),
        fidelity=expand(
            "<results>/eval/{model}/fidelity.json",
            model=["student-untrained", *STUDENTS],
        ),
    output:
        markdown="<results>/report/table.md",
        csv="<results>/report/table.csv",
        fidelity="<results>/report/fidelity.csv",
    log:
        "<logs>/aggregate.log",
    localrule: True
    conda:
        "../../envs/eval.yaml"
    params:
        config=params("aggregate"),
    shell:
        "python {input.code[0]} --config {params.config:q} --scores {input.scores:q}"
        " --fidelity {input.fidelity:q} --table {output.markdown:q} --csv {output.csv:q}"
        " --fidelity-csv {output.fidelity:q} 2>&1 | tee {log:q}"
