"""Questions of reasoning-gym, as many as are wanted, each with an answer that its generator can check."""

import itertools
from collections.abc import Iterator

from kdag.files.hashes import sha256_text
from kdag.job.errors import UserError

NAME = "reasoning-gym"
INSTALL = "pip install reasoning-gym"
LONG = 10  # so many questions are looked through for each that is wanted, at most


def load(dataset: str, seed: int, size: int, config: dict):
    """A generator with `size` questions; UserError if it is not known or its settings are wrong."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise UserError(f"{NAME}: the package is needed: {INSTALL}") from error
    if dataset not in DATASETS:
        from kdag.config.section import suggestion

        raise UserError(f"{NAME} has no generator {dataset!r}{suggestion(dataset, DATASETS)}")
    try:
        return reasoning_gym.create_dataset(dataset, seed=seed, size=size, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"{NAME}, {dataset}: {error or 'its settings are not valid'}") from error


def rows(dataset: str, seed: int, count: int, config: dict) -> Iterator[dict]:
    """Different questions with their answers, as rows to train on."""
    for entry in different(load(dataset, seed, LONG * count, config), count, set()):
        yield {"instruction": entry["question"], "input": "", "output": str(entry["answer"])}


def different(generator, count: int, known: set[str]) -> Iterator[dict]:
    """The first `count` entries that ask what neither an earlier one nor `known` (hashes) asks.

    Each has its place in the generator besides, `index`.
    """
    known, found = set(known), 0
    for index in range(len(generator)):
        entry = generator[index]
        asked = question_hash(entry["question"])
        if asked not in known:
            known.add(asked)
            yield entry | {"index": index}
            found += 1
            if found == count:
                return
    raise UserError(
        f"{NAME}: only {found} different questions among {len(generator)}, {count} are needed; harder "
        "settings have more"
    )


def question_hash(question: str) -> str:
    """The same for questions that differ in white space alone."""
    return sha256_text(" ".join(question.split()))


def hashes(found) -> set[str]:
    """Of rows that may have a question."""
    return {question_hash(row["instruction"]) for row in itertools.chain(found) if row.get("instruction")}
