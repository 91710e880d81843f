"""What the tests and intervals are made of: for each metric, 0 or 1 per item and model.

No task is known here by name. A scores.json says under `metrics` how each of its metrics comes from the
verdicts on its documents, which stand under `prompts`:

    {"metric": name, "value": x, "verdicts": field, "item": "document" | "verdict", "tasks": [...] or null}

An item is a document, right if all of its verdicts are, or each single verdict. A metric without `verdicts`
is a number that no test here can take. tasks: the parts of the task that it is about; null: all of it.
"""

from typing import NamedTuple

import numpy as np

from kdag.job.errors import UserError


class Items(NamedTuple):
    """One metric of one model."""

    values: np.ndarray  # [n] 0.0 or 1.0
    documents: np.ndarray  # [n] the number of each item's document, whose items stand or fall together


def names(scores: dict) -> list[str]:
    """The metrics of a scores.json, in its order."""
    return [entry["metric"] for entry in scores["metrics"]]


def value(scores: dict, metric: str) -> float:
    return next(entry["value"] for entry in scores["metrics"] if entry["metric"] == metric)


def items(scores: dict, entry: dict) -> Items:
    """The items of a metric that has verdicts. entry: of scores["metrics"]."""
    verdicts = [document[entry["verdicts"]] for document in about(scores, entry)]
    if entry["item"] == "document":
        return Items(np.array([all(each) for each in verdicts], dtype=float), np.arange(len(verdicts)))
    sizes = [len(each) for each in verdicts]
    flat = [verdict for each in verdicts for verdict in each]
    return Items(np.array(flat, dtype=float), np.repeat(np.arange(len(sizes)), sizes))


def about(scores: dict, entry: dict) -> list[dict]:
    tasks = entry.get("tasks")
    return [document for document in scores["prompts"] if tasks is None or document["task"] in tasks]


def gather(rows: list[dict], scores: dict[str, dict]) -> dict[str, dict[str, Items]]:
    """{metric: {model id: Items}} of one task. scores: {model id: scores.json}.

    UserError unless all rows were asked the same documents in one order: pairs are made by position.
    """
    models, found = [row["model"] for row in rows], {}
    for entry in scores[models[0]]["metrics"]:
        if not entry.get("verdicts"):
            continue
        asked = {
            model: [(d.get("task"), d["key"], len(d[entry["verdicts"]])) for d in about(scores[model], entry)]
            for model in models
        }
        if other := [model for model in models if asked[model] != asked[models[0]]]:
            raise UserError(
                f"{', '.join(other)}: scored on other prompts than {models[0]}; nothing can be paired"
            )
        found[entry["metric"]] = {model: items(scores[model], entry) for model in models}
    return found


def tested(
    rows: list[dict], scores: dict[str, dict], tasks: dict[str, dict], primary: str
) -> dict[str, dict[str, Items]]:
    """`gather` of IFEval and of the task whose metric is `primary`. UserError if nothing is called so.

    scores: IFEval's, {model id: scores.json}; tasks: {task: the same} of further tasks.
    """
    found = gather(rows, scores)
    if primary in found:
        return found
    others = {task: gather(rows, tasks[task]) for task in tasks}
    for measures in others.values():
        if primary in measures:
            return found | measures
    known = [*found, *(metric for measures in others.values() for metric in measures)]
    raise UserError(
        f"statistics.primary: no metric {primary!r} whose items are right or wrong; there are "
        f"{', '.join(known)}. Once it is mended, the same command makes the table and nothing else"
    )
