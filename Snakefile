# kdag: which way of distilling a large language model into a small one works?
#
#   data ─► teacher ─► cache ─► students (one per strategy and seed) ─► evaluation ─► table
#
# config.yaml is the experiment; workflow/rules holds one file per room of the house above.
from snakemake.utils import min_version

min_version("9.14")


if not workflow.overwrite_configfiles:  # a --configfile is the whole configuration, on a node too

    configfile: "config.yaml"


include: "workflow/rules/common.smk"


pathvars:
    results=f"results/{CONFIG.experiment}",
    logs=f"results/{CONFIG.experiment}/logs",
    benchmarks=f"results/{CONFIG.experiment}/benchmarks",


wildcard_constraints:
    strategy="|".join(map(re.escape, CONFIG.strategies)),
    seed=r"\d+",
    model="|".join(map(re.escape, MODELS)),
    hash="[0-9a-f]{8}",
    teacher="|".join(map(re.escape, FURTHER)) or "(?!)",
    answers="|".join(ANSWER_SETS) or "(?!)",


include: "workflow/rules/data.smk"
include: "workflow/rules/server.smk" if SERVER else "workflow/rules/teacher.smk"
include: "workflow/rules/students.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/results.smk"


rule all:
    default_target: True
    input:
        rules.aggregate.output,
        rules.write_report.output,
        rules.write_cards.output,
        expand(
            "<results>/eval/{model}/{file}",
            model=MODELS,
            file=["samples.jsonl", "scores.json"],
        ),


onsuccess:
    table = Path(f"results/{CONFIG.experiment}/report/table.md")
    if table.is_file():
        print(f"\n{table}\n\n{table.read_text()}")


onerror:
    from kdag.operate import incomplete

    if text := incomplete.write_table(workflow.dag, CONFIG, log):
        print(f"\nresults/{CONFIG.experiment}/report/table.md\n\n{text}")
