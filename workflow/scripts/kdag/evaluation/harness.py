"""Further tasks next to IFEval: any that lm-eval knows, the user's own, and those of evaluation/tasks.

A task is fetched once, with everything its prompts are built from, into a folder of its own; a job per
model then answers and scores it there, offline, under the settings of every other row.

A task written here is a file, evaluation/tasks/<name>.py, with two functions:
    fetch(settings, folder)           put into `folder` what it needs; UserError if it cannot be scored
    specification(settings, folder)   what lm-eval loads: a task's dict, as its YAML would say it
"""

import importlib
import importlib.util
import logging
import os
from pathlib import Path

from kdag.data.template import unmarked
from kdag.files.hashes import sha256_json
from kdag.job.errors import UserError

# The seeds of lm-eval's few-shot examples and bootstrap, as in its own command line.
SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}
BOOTSTRAP = 1000  # draws, for the errors of metrics that are no means


def use_folder(folder: Path) -> None:
    """Let everything that the hub's libraries store lie in `folder`. Before they are imported."""
    folder = Path(folder).resolve()
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    os.environ["HF_HUB_CACHE"] = str(folder / "hub")


def manager(settings: dict):
    """lm-eval's index of tasks; of the user's folder alone where the task is there, or a task of ours."""
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=settings["path"], include_defaults=False)
    if written_here(settings) or settings["name"] in own.all_tasks:
        return own
    return TaskManager(include_path=settings["path"])


def written_here(settings: dict):
    """The module of a task that is written here, or of its generator; None for any other."""
    name = (settings.get("generator") or settings["name"]).replace("-", "_")
    module = f"kdag.evaluation.tasks.{name}"
    if not name.isidentifier() or importlib.util.find_spec(module) is None:
        return None
    found = importlib.import_module(module)
    return found if hasattr(found, "specification") else None


def load(settings: dict, folder: Path) -> tuple:
    """(task manager, specification, {name: loaded task}). UserError with near names for an unknown one."""
    from kdag.config.section import suggestion

    index, own = manager(settings), written_here(settings)
    if not own and settings["name"] not in index.all_tasks:
        raise UserError(
            f"evaluation.tasks: lm-eval knows no task {settings['name']!r}"
            f"{near(suggestion(settings['name'], index.all_tasks))}"
        )
    wanted = own.specification(settings, Path(folder)) if own else settings["name"]
    try:
        loaded = index.load([wanted])
    except (OSError, ValueError, ConnectionError) as error:
        raise UserError(f"task {settings['name']} cannot be loaded: {error}") from error
    if sampled := [n for n, task in loaded["tasks"].items() if samples_tokens(task)]:
        raise UserError(
            f"task {sampled[0]} samples its answers at random; every row here is answered greedily"
        )
    return index, wanted, loaded["tasks"]


def near(hint: str) -> str:
    return hint if "did you mean" in hint else "; `lm-eval ls tasks` lists them"


def samples_tokens(task) -> bool:
    return bool((task.get_config("generation_kwargs") or {}).get("do_sample"))


def described(tasks: dict) -> dict:
    """{task: version and hash of its documents}: what is the same for every row, or shares no table."""
    return {
        name: {
            "version": str(task.VERSION if task.VERSION is not None else task.config.metadata["version"]),
            "documents": len(list(task.eval_docs)),
            "documents_sha256": sha256_json([str(document) for document in task.eval_docs]),
        }
        for name, task in sorted(tasks.items())
    }


def fetch(settings: dict, folder: Path) -> dict:
    """Everything the task needs, into `folder`; what `described` says of it."""
    if own := written_here(settings):
        own.fetch(settings, Path(folder))
    _, _, tasks = load(settings, folder)
    return described(tasks)


def evaluate(lm, settings: dict, folder: Path, expected: dict) -> tuple[dict, list[dict]]:
    """(scores of one model, its samples). lm: generation.GreedyLM; expected: what `fetch` returned."""
    from lm_eval import simple_evaluate

    index, wanted, tasks = load(settings, folder)
    found = described(tasks)
    if found != expected:
        raise UserError(
            f"the documents of task {settings['name']} are not those that were fetched; delete {folder} "
            "and run snakemake again"
        )
    del tasks
    results = simple_evaluate(
        model=lm,
        tasks=[wanted],
        task_manager=index,
        num_fewshot=settings["num_fewshot"],
        limit=settings["limit"],
        apply_chat_template=settings["chat_template"],
        bootstrap_iters=BOOTSTRAP,
        log_samples=True,
        **SEEDS,
    )
    samples = [
        {
            "task": name,
            "prompt": unmarked(s["arguments"][0][0]),
            **{k: s[k] for k in ("doc_id", "target", "filtered_resps")},
        }
        for name, answered in sorted(results["samples"].items())
        for s in sorted(answered, key=lambda s: s["doc_id"])
    ]
    documents = judged(results["samples"])
    scores = {
        "task": settings["name"],
        "metrics": metrics(results, documents),
        "prompts": documents,
        "measured": {
            "tasks": expected,
            "n": {name: n["effective"] for name, n in sorted(results["n-samples"].items())},
            "num_fewshot": dict(sorted(results["n-shot"].items())),
            "chat_template": settings["chat_template"],
            **lm.settings(),
        },
    }
    for entry in scores["metrics"]:
        logging.info("%s %.4f", entry["metric"], entry["value"])
    return scores, samples


def metrics(results: dict, documents: list[dict]) -> list[dict]:
    """Every metric of the task, of its group or its parts, as report/measures.py reads them.

    One whose value is the mean of what each document got, right or wrong, says where those verdicts stand.
    """
    # A group has scores of its own; of a tag there are only its tasks'.
    shown, sizes = results.get("groups") or results["results"], results["n-samples"]
    found = []
    for name, values in sorted(shown.items()):
        parts = leaves(name, results.get("group_subtasks", {}))
        for key, value in sorted(values.items()):
            metric, _, chosen = key.partition(",")
            if metric.endswith("_stderr") or not chosen or isinstance(value, str | bool):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            field = field_of(metric, chosen)
            entry = {
                "metric": f"{name}_{field}",
                "value": float(value),
                "stderr": error if isinstance(error, float) else None,
                "n": sum(sizes[part]["effective"] for part in parts),
            }
            found.append(entry | from_verdicts(documents, parts, field, float(value)))
    return found


def field_of(metric: str, chosen: str) -> str:
    """A metric's name; lm-eval's filter is part of it, unless it is `none`."""
    return metric if chosen == "none" else f"{metric}_{chosen}"


def leaves(name: str, groups: dict[str, list[str]]) -> list[str]:
    """The tasks of a group, however deep; a task is its own."""
    inside = groups.get(name) or []
    return [leaf for part in inside for leaf in leaves(part, groups)] if inside else [name]


def judged(samples: dict[str, list[dict]]) -> list[dict]:
    """{"task", "key", field: [true or false, ...]} of every document, for each metric that judged it so.

    samples: lm-eval's, which have a line per document and filter.
    """
    found = {}
    for task, answered in sorted(samples.items()):
        for sample in sorted(answered, key=lambda sample: sample["doc_id"]):
            document = found.setdefault((task, sample["doc_id"]), {"task": task, "key": sample["doc_id"]})
            for metric in sample["metrics"]:
                if (verdicts := as_verdicts(sample[metric])) is not None:
                    document[field_of(metric, sample["filter"])] = verdicts
    return list(found.values())


def as_verdicts(value) -> list[bool] | None:
    """What a metric says of one document as a list of right and wrong; None if it says something else."""
    values = value if isinstance(value, list) else [value]
    if not values or any(not isinstance(each, bool | int | float) or each not in (0, 1) for each in values):
        return None
    return [bool(each) for each in values]


def from_verdicts(documents: list[dict], parts: list[str], field: str, value: float) -> dict:
    """Where a metric's items are; nothing if its value is not the mean of what the documents got."""
    verdicts = [document.get(field) for document in documents if document["task"] in parts]
    if not verdicts or None in verdicts:
        return {}
    flat = [each for every in verdicts for each in every]
    if abs(sum(flat) / len(flat) - value) > 1e-9:
        return {}
    item = "document" if len(flat) == len(verdicts) else "verdict"
    return {"verdicts": field, "item": item, "tasks": parts}
