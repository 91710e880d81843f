"""Which of our files a script runs: what Snakemake compares, and what the record of a job holds.

Not what only talks (kdag/job): an edit there changes no result.
"""

import ast
import functools
import os
import sys
from pathlib import Path

from kdag.files.hashes import sha256_file, sha256_json

SCRIPTS = Path(__file__).resolve().parents[2]
TALK = SCRIPTS / "kdag" / "job"
PLUGINS = (SCRIPTS / "kdag" / "losses" / "divergences", SCRIPTS / "kdag" / "evaluation" / "tasks")


def files_of(script: Path) -> list[Path]:
    """The script itself first, then every module of ours that it imports, wherever in it, and so on."""
    files, todo = [], [Path(script)]
    while todo:
        file = todo.pop(0)
        if file in files or not file.is_file() or file.parent == TALK:
            continue
        files.append(file)
        todo += imported(file)
    return files


@functools.cache
def imported(file: Path) -> list[Path]:
    """The modules that a file imports, if they are ours; scripts share most of them."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    paths = [SCRIPTS.joinpath(*name.split(".")).with_suffix(".py") for name in dict.fromkeys(found)]
    return [path for path in paths if path.is_file()]


def chosen() -> list[Path]:
    """What this process has imported because a name in the configuration said so, and what that imports."""
    loaded = [Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
    plugins = [file for file in loaded if file.parent in PLUGINS and file.name != "__init__.py"]
    return [file for plugin in plugins for file in files_of(plugin)]


def fingerprint(files) -> str:
    """One hash of the content of files below SCRIPTS, in whatever order and from wherever they are named."""
    whole = {Path(file).resolve() for file in files}
    return sha256_json({os.path.relpath(file, SCRIPTS): sha256_file(file) for file in whole})
