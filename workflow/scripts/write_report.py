"""Write report/index.html: the experiment on one page that works offline and without a script."""

import json
import logging
from pathlib import Path

import pandas as pd
import yaml

from kdag.config.experiment import Config
from kdag.config.roster import TEACHER, is_trained
from kdag.config.section import checked
from kdag.config.stages import shown
from kdag.config.teacher import SERVER
from kdag.files.atomic import write_json, write_text
from kdag.files.manifest import read_manifest
from kdag.files.reading import read_json, read_jsonl
from kdag.files.records import recorded
from kdag.files.seals import check_source, read_sealed
from kdag.job import cli
from kdag.job.errors import UserError
from kdag.planning import devices, planner
from kdag.planning.expected import counted
from kdag.planning.shapes import Shape
from kdag.report import page, table


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="rows and resolved configuration")
    parser.add_argument("--template", type=Path, required=True, help="index.html.j2")
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="eval/<model>/scores.json")
    parser.add_argument("--fidelity", type=Path, nargs="*", default=[], help="eval/<model>/fidelity.json")
    parser.add_argument("--training", type=Path, nargs="+", required=True, help="training.jsonl of each")
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="manifest.json of each")
    parser.add_argument("--intervals", type=Path, required=True)
    parser.add_argument("--comparisons", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.csv")
    parser.add_argument("--closeness", type=Path, required=True, help="closeness.csv")
    parser.add_argument("--budget", type=Path, required=True, help="budget.csv")
    parser.add_argument("--verdict", type=Path, required=True)
    parser.add_argument("--notes", type=Path, required=True, help="notes.md of the table")
    parser.add_argument("--plan", type=Path, required=True, help="plan.json, written: what was predicted")
    parser.add_argument("--output", type=Path, required=True, help="index.html, written")
    return parser


def main(args):
    rows, configuration = args.config["rows"], args.config["configuration"]
    scores = {path.parent.name: read_sealed(path) for path in args.scores}
    for path in args.scores:
        if inputs := scores[path.parent.name]["inputs"]:
            check_source(path, inputs, "samples", path.with_name("samples.jsonl"))
    for path in args.scores:
        check_source(path, scores[path.parent.name]["inputs"], "samples", path.with_name("samples.jsonl"))
    manifest = read_manifest(args.manifests[0], ("device", "processor", "dtype"))
    labels = {row["model"]: row["label"] for row in rows}
    asked = configuration["teacher"]["source"] == SERVER
    trained = [
        row["model"] for row in rows if is_trained(row["model"]) and not (asked and row["model"] == TEACHER)
    ]
    statistics = configuration["statistics"]
    # Snakemake writes the benchmarks when a job is done; a stage that ran by hand has none.
    results = args.output.parents[1]
    benchmarks = sorted((results / "benchmarks").rglob("*.tsv"))
    plan = predicted(configuration, args.manifests, results)
    write_json(args.plan, plan)
    html = page.render(
        args.template,
        experiment=configuration["experiment"],
        rows=rows,
        scores=scores,
        samples={path.parent.name: read_jsonl(path.with_name("samples.jsonl")) for path in args.scores},
        fidelity={path.parent.name: read_sealed(path) for path in args.fidelity},
        logs={labels[model]: read_jsonl(path) for model, path in zip(trained, args.training, strict=True)},
        cells=pd.read_csv(args.intervals),
        comparisons=pd.read_csv(args.comparisons),
        tasks=pd.read_csv(args.tasks),
        closeness=pd.read_csv(args.closeness).to_dict("records"),
        budget=page.budgets(pd.read_csv(args.budget), results / "benchmarks"),
        verdict=page.blocks(args.verdict.read_text(encoding="utf-8")),
        notes=args.notes.read_text(encoding="utf-8").split("\n\n")[:-1],
        primary=statistics["primary"],
        alpha=statistics["alpha"],
        costs=page.costs(
            {str(p.relative_to(results / "benchmarks"))[:-4]: p for p in benchmarks}, plan["stages"]
        ),
        device=plan["device"],
        generation=json.dumps(
            scores[table.answered_here(rows, scores)]["generation"], indent=2, sort_keys=True
        ),
        teacher=table.taught(rows),
        server=table.server_words(rows, scores, len(args.fidelity)).replace("`", ""),
        configuration=yaml.safe_dump(shown(configuration), sort_keys=False),
        versions=json.dumps(
            {key: manifest[key] for key in ("device", "processor", "dtype")} | manifest["versions"], indent=2
        ),
    )
    write_text(args.output, html)
    logging.info("%s, %.1f MB", args.output, args.output.stat().st_size / 1e6)


def predicted(raw: dict, manifests: list[Path], results: Path) -> dict:
    """What `make plan` would have said of this experiment on this machine; no stages where it knows neither
    the device nor the architecture."""
    config = checked(Config, raw)
    name = read_manifest(manifests[0], ("device",))["device"]
    if config.teacher.source == SERVER:
        logging.info("no prediction to compare with: the planner does not know what a server takes")
        return {"device": name, "stages": []}
    try:
        device = devices.of_device(name)
        teacher, student, *_ = (
            Shape.from_config(read_json(path.parent / "model" / "config.json")) for path in manifests
        )
    except UserError as error:
        logging.info("no prediction to compare with: %s", error)
        return {"device": name, "stages": []}
    tokens = counted(config, results.parent)
    return {"device": device.name, "stages": planner.plan(config, teacher, student, device, tokens)}


if __name__ == "__main__":
    cli.run(recorded(main), arguments())
