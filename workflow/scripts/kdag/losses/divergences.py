"""The divergences by name, each a file in the folder divergences/ next to this module.

This module is also the package of those files, so that none has to be listed or imported here: a new
divergence is a new file, and a job depends on the file of its own divergence alone.
"""

import importlib
from functools import partial
from pathlib import Path

from kdag.losses.base import Divergence

FOLDER = Path(__file__).with_suffix("")
__path__ = [str(FOLDER)]
NAMES = tuple(sorted(file.stem.replace("_", "-") for file in FOLDER.glob("[a-z]*.py")))


def load(name: str) -> Divergence:
    """The divergence `name`; ValueError if there is no such file."""
    if name not in NAMES:
        raise ValueError(f"unknown divergence {name!r}; known: {', '.join(NAMES)}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    # By name, so that this is no import to whoever asks what a job's result depends on: the ranges of
    # parameters decide whether a value is refused, and a job is given every value.
    ranges = importlib.import_module("kdag.losses.parameters")
    optional = ("gradient", "whole_teacher", "linear_in_teacher")
    own = {part: getattr(module, part) for part in optional if hasattr(module, part)}
    return Divergence(name, module.value, resolve=partial(ranges.resolve, name), **own)
