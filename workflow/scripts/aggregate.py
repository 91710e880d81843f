"""Put the scores of all models into one table, after making sure that they were measured alike."""

import json
from pathlib import Path

from kdag.files.atomic import write_text
from kdag.files.manifest import read_manifest
from kdag.files.records import recorded
from kdag.files.seals import check_source, read_sealed
from kdag.job import cli
from kdag.report import answers, budget, closeness, comparisons, measures, table
from kdag.report import settings as different
from kdag.report.verdict import verdict


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="rows, tasks and statistics")
    parser.add_argument("--scores", type=Path, nargs="+", required=True, help="eval/<model>/scores.json")
    parser.add_argument("--manifests", type=Path, nargs="+", required=True, help="manifest.json of each row")
    parser.add_argument("--fidelity", type=Path, nargs="*", default=[], help="eval/<model>/fidelity.json")
    parser.add_argument("--tasks", type=Path, nargs="*", default=[], help="eval/<model>/<task>/scores.json")
    parser.add_argument("--table", type=Path, required=True, help="table.md, written")
    parser.add_argument("--csv", type=Path, required=True, help="table.csv, written")
    parser.add_argument("--latex", type=Path, required=True, help="table.tex, written")
    parser.add_argument("--intervals", type=Path, required=True, help="intervals.csv, written")
    parser.add_argument("--comparisons", type=Path, required=True, help="comparisons.csv, written")
    parser.add_argument("--seeds", type=Path, required=True, help="seeds.csv, written")
    parser.add_argument("--verdict", type=Path, required=True, help="verdict.md, written")
    parser.add_argument(
        "--notes", type=Path, required=True, help="notes.md, written: answers that went wrong"
    )
    parser.add_argument("--fidelity-csv", type=Path, required=True, help="fidelity.csv, written")
    parser.add_argument("--closeness", type=Path, required=True, help="closeness.csv, written")
    parser.add_argument("--budget-csv", type=Path, required=True, help="budget.csv, written")
    parser.add_argument("--tasks-csv", type=Path, required=True, help="tasks.csv, written")
    return parser


def main(args):
    rows = args.config["rows"]
    manifests = dict(zip([row["model"] for row in rows], args.manifests, strict=True))

    def read(path, model):
        result = read_sealed(path)
        check_source(path, result["inputs"], "model", manifests[model])
        return result

    scores = {path.parent.name: read(path, path.parent.name) for path in args.scores}
    fidelity = {path.parent.name: read(path, path.parent.name) for path in args.fidelity}
    table.refuse_mixture(rows, scores)
    tasks = {
        task: {
            path.parents[1].name: read(path, path.parents[1].name)
            for path in args.tasks
            if path.parent.name == task
        }
        for task in args.config["tasks"]
    }
    settings = args.config["statistics"]
    primary, resampling = settings["primary"], {key: settings[key] for key in ("draws", "seed")}
    further = table.task_table(rows, tasks)
    items = measures.tested(rows, scores, tasks, primary)
    accuracies = table.accuracy_table(rows, scores)
    accuracies = accuracies.assign(**table.further(rows, further, lambda cell: cell["value"]))
    measured = table.fidelity_table(rows, fidelity)
    write_text(args.csv, accuracies.to_csv(index=False))
    write_text(args.tasks_csv, further.to_csv(index=False))
    write_text(args.fidelity_csv, measured.to_csv(index=False))
    cells = comparisons.intervals(rows, items, **resampling)
    tests = comparisons.compare(
        rows, items, settings["family"], primary=primary, alpha=settings["alpha"], **resampling
    )
    spread = comparisons.over_seeds(rows, items)
    trained = {model: read_manifest(path) for model, path in manifests.items()}
    budgets = budget.budget_table(rows, trained)
    uneven = [budget.sentence(budgets, budget.equal(trained)), different.sentence(rows, trained)]
    family, by_row = settings["fidelity_family"] if fidelity else [], closeness.rows_of(fidelity)
    near = closeness.compare(rows, by_row, family, settings["alpha"])
    close = closeness.words(near, settings["alpha"], table.taught(rows), closeness.asked(fidelity))
    said = [verdict(tests, settings["alpha"]).strip(), close, *uneven]
    words = "\n\n".join(part for part in said if part) + "\n"
    write_text(args.closeness, near.to_csv(index=False))
    write_text(args.budget_csv, budgets.to_csv(index=False))
    write_text(args.intervals, cells.to_csv(index=False))
    write_text(args.comparisons, tests.to_csv(index=False))
    write_text(args.seeds, spread.to_csv(index=False))
    write_text(args.verdict, words)
    write_text(args.latex, table.latex(rows, accuracies, measures.names(scores[rows[0]["model"]])))
    notes = answers.notes(rows, scores, primary, items[primary], **resampling)
    write_text(args.notes, "".join(f"{note}\n\n" for note in notes))
    text = table.markdown(
        rows, accuracies, cells, spread, measured, words, scores, further, tasks, notes, primary, budgets
    )
    write_text(args.table, text)


if __name__ == "__main__":
    cli.run(recorded(main), arguments())
