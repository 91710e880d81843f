"""Questions of reasoning-gym as a task: each answer is right or wrong, as the generator itself says.

What is judged of an answer: what stands in its last <answer> block, or else its last line that is not empty,
without a full stop. Right is a score of 1, so an answer that is right in part is wrong.
"""

import importlib.metadata
import re
from pathlib import Path

from kdag.data import generated
from kdag.files.atomic import write_json
from kdag.files.readers import rows as read_rows
from kdag.files.reading import read_json

BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
METRIC = "acc"


def fetch(settings: dict, folder: Path) -> None:
    """Which questions are asked: none that the training rows ask too."""
    trained = (
        generated.hashes(read_rows(Path(settings["apart_from"]))) if settings.get("apart_from") else set()
    )
    generator = generator_of(settings)
    items = list(generated.different(generator, settings["items"], trained))
    write_json(
        folder / "items.json",
        {
            "generator": generated.NAME,
            "version": importlib.metadata.version(generated.NAME),
            "left_out": items[-1]["index"] + 1 - len(items),
            "items": [{"index": item["index"], "question": item["question"]} for item in items],
        },
    )


def generator_of(settings: dict):
    size = generated.LONG * settings["items"]
    return generated.load(settings["dataset"] or settings["name"], settings["seed"], size, settings["config"])


def judged(answer: str) -> str:
    """What of an answer is judged."""
    if blocks := BLOCK.findall(answer):
        return blocks[-1].strip()
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    return lines[-1].removesuffix(".").strip() if lines else ""


def process_results(entry: dict, generator, results: list[str]) -> dict:
    """lm-eval's hook: 1 for a right answer, 0 for any other."""
    return {METRIC: float(generator.score_answer(answer=judged(results[0]), entry=entry) >= 1)}


def specification(settings: dict, folder: Path) -> dict:
    """The task for lm-eval."""
    import datasets

    generator, fetched = generator_of(settings), read_json(folder / "items.json")
    indices = [item["index"] for item in fetched["items"]]
    rows = datasets.Dataset.from_list(
        [{"row": row, "prompt": item["question"]} for row, item in enumerate(fetched["items"])]
    )
    return {
        "task": settings["name"],
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": 0,
        "num_fewshot": 0,
        "generation_kwargs": {"until": [], "do_sample": False},
        "process_results": lambda doc, results: process_results(
            generator[indices[doc["row"]]], generator, results
        ),
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": fetched["version"]},
    }
