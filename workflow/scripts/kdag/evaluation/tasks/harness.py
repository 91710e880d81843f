"""Further tasks beside IFEval: any that lm-eval knows by name, the user's own, and IFBench.

A task is fetched once, with everything its prompts are built from, into a folder of its own; a job per
model then answers and scores it there, offline, under the settings of every other row.
"""

import logging
import os
from pathlib import Path

from kdag.evaluation.tasks import ifbench
from kdag.files.atomic import write_jsonl
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
    if settings["name"] == ifbench.NAME or settings["name"] in own.all_tasks:
        return own
    return TaskManager(include_path=settings["path"])


def specification(settings: dict, folder: Path):
    """What lm-eval loads: the task's name, or the whole of a task that it does not know."""
    if settings["name"] != ifbench.NAME:
        return settings["name"]
    docs = ifbench.documents(settings["limit"])
    return ifbench.task(docs, Path(folder) / "nltk_data")


def load(settings: dict, folder: Path) -> tuple:
    """(task manager, specification, {name: loaded task}). UserError with near names for an unknown one."""
    from kdag.config.section import suggestion

    index = manager(settings)
    if settings["name"] != ifbench.NAME and settings["name"] not in index.all_tasks:
        raise UserError(
            f"evaluation.tasks: lm-eval knows no task {settings['name']!r}"
            f"{near(suggestion(settings['name'], index.all_tasks))}"
        )
    wanted = specification(settings, folder)
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
    if settings["name"] == ifbench.NAME:
        docs = ifbench.documents(settings["limit"])
        ifbench.fetch_nltk_data(folder / "nltk_data")
        ifbench.check(docs, folder / "nltk_data")
        write_jsonl(folder / "prompts.jsonl", docs)
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
            "prompt": s["arguments"][0][0],
            **{k: s[k] for k in ("doc_id", "target", "filtered_resps")},
        }
        for name, answered in sorted(results["samples"].items())
        for s in sorted(answered, key=lambda s: s["doc_id"])
    ]
    # A group has scores of its own; of a tag there are only its tasks'.
    shown = results.get("groups") or results["results"]
    scores = {
        "task": settings["name"],
        "metrics": {name: metrics(values) for name, values in sorted(shown.items())},
        "measured": {
            "tasks": expected,
            "n": {name: n["effective"] for name, n in sorted(results["n-samples"].items())},
            "num_fewshot": dict(sorted(results["n-shot"].items())),
            "chat_template": settings["chat_template"],
            **lm.settings(),
        },
    }
    for name, values in scores["metrics"].items():
        logging.info("%s: %s", name, ", ".join(f"{m} {v['value']:.4f}" for m, v in values.items()))
    return scores, samples


def metrics(values: dict) -> dict[str, dict]:
    """lm-eval's {"acc,none": x, "acc_stderr,none": y, ...} as {"acc": {"value": x, "stderr": y}}.

    A filter other than none is part of the name. stderr: null where lm-eval has none.
    """
    found = {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if metric.endswith("_stderr") or not chosen or isinstance(value, str | bool):
            continue
        error = values.get(f"{metric}_stderr,{chosen}")
        name = metric if chosen == "none" else f"{metric}_{chosen}"
        found[name] = {"value": float(value), "stderr": error if isinstance(error, float) else None}
    return dict(sorted(found.items()))
