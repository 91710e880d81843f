"""The table of a run that stopped: the rows that are there, and every other one marked, with its reason.

The workflow's `onerror` writes it where `aggregate` could not run, which needs every row.
"""

from pathlib import Path

from kdag.config.experiment import Config
from kdag.config.roster import table_rows
from kdag.files.atomic import write_text
from kdag.files.seals import read_sealed
from kdag.operate import status
from kdag.report import measures, table

MISSING = "missing"


def write_table(dag, config: Config, logs: list[str]) -> str | None:
    """Write report/table.md and return it; None where the table is whole or no row is there.

    dag: Snakemake's, which knows what is up to date. logs: the run's log files. What `aggregate` left next to
    the table earlier is removed, as it would be when that starts: it belongs to other rows, and without it
    the next run is sure to make the table anew.
    """
    aggregate = next((job for job in dag.jobs if job.rule.name == "aggregate"), None)
    if aggregate is None or dag.noneedrun_finished(aggregate):
        return None
    texts = {Path(log).name: Path(log).read_text(encoding="utf-8", errors="replace") for log in logs}
    why = missing_rows(dag, {job for name, text in texts.items() for job in status.run(name, text).failed})
    rows = table_rows(config)
    there = [row["model"] for row in rows if row["model"] not in why]
    if not why or not there:
        return None
    folder = Path("results", config.experiment, "eval")
    scores = {model: read_sealed(folder / model / "scores.json") for model in there}
    table.refuse_mixture([row for row in rows if row["model"] in scores], scores)
    text = markdown(rows, scores, why)
    for file in aggregate.output:
        Path(file).unlink(missing_ok=True)
    write_text(Path(aggregate.output.markdown), text)
    return text


def missing_rows(dag, failed: set[str]) -> dict[str, str]:
    """{model id: why it has no scores}. failed: the logs of the jobs that failed in this run."""
    why = {}
    for job in dag.jobs:
        if job.rule.name != "score" or dag.noneedrun_finished(job):
            continue
        before = [job, *dag.bfs(dag.dependencies, job)]
        stopped = [j for j in before if not dag.noneedrun_finished(j) and failed.intersection(j.log)]
        why[job.wildcards.model] = " and ".join(map(reason, dict.fromkeys(stopped))) or "not reached"
    return why


def reason(job) -> str:
    name = " ".join([job.rule.name, *job.wildcards])
    told = status.complaint(job.log[0])
    what = f"failed: {told}" if told else f"stopped after `{status.last_line(job.log[0])}`"
    return f"`{name}` {what} ({job.log[0]})"


def markdown(rows: list[dict], scores: dict[str, dict], why: dict[str, str]) -> str:
    """rows: all of `roster.table_rows`; scores: of those that are there; why: of the others."""
    first = next(iter(scores.values()))
    metrics = measures.names(first)
    lines = [["model", *metrics], ["---"] + ["---:"] * len(metrics)]
    for row in rows:
        found = scores.get(row["model"])
        cells = [f"{measures.value(found, metric):.4f}" if found else MISSING for metric in metrics]
        lines.append([row["label"], *cells])
    return "\n".join(
        [
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            f"**Incomplete: {len(why)} of {len(rows)} rows are missing.** The verdict, the comparisons and "
            "the page need every row; index.html, if it is there, shows an earlier run. Run the same command "
            "again, once what failed is mended: what is finished stays.",
            "",
            *(f"- {row['label']}: {why[row['model']]}" for row in rows if row["model"] in why),
            "",
            f"{first['n_prompts']} prompts, {first['n_instructions']} instructions, the same for every row.",
            "",
        ]
    )
