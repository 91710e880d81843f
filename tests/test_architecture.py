"""The arrows of docs/architecture.md: which package may import which, and that nobody imports in a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = ROOT / "workflow" / "scripts"
# From the bottom up; packages of one line may not import each other.
LAYERS = [
    ("job",),
    ("files",),
    ("losses",),
    ("config",),
    ("data", "models"),
    ("teacher",),
    ("training", "evaluation"),
    ("report", "planning"),
    ("operate",),
]
HEIGHT = {package: height for height, layer in enumerate(LAYERS) for package in layer}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def is_module(name: str) -> bool:
    return SCRIPTS.joinpath(*name.split(".")).with_suffix(".py").is_file()


def imported(file: Path) -> set[str]:
    """Modules and packages that a file imports, wherever in it, by their full names."""
    found = set()
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full[name] if is_module(full[name]) else node.module for name in full}
    return found


def ours() -> dict[str, set[str]]:
    files = [file for file in (SCRIPTS / "kdag").rglob("*.py") if file.name != "__init__.py"]
    names = {".".join(file.relative_to(SCRIPTS).with_suffix("").parts): file for file in files}
    return {name: {n for n in imported(file) if n.startswith("kdag")} for name, file in names.items()}


def package(name: str) -> str:
    return name.split(".")[1]


def test_imports_run_downward():
    assert {package(name) for name in ours()} == set(HEIGHT)
    wrong = [
        f"{name} imports {other}"
        for name, others in ours().items()
        for other in others
        if package(other) != package(name) and HEIGHT[package(other)] >= HEIGHT[package(name)]
    ]
    assert not wrong


def test_there_is_no_circle():
    graph, done = ours(), set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_losses_import_torch_and_themselves_alone():
    standard = {"collections", "dataclasses", "functools", "importlib", "logging", "math", "pathlib"}
    for file in (SCRIPTS / "kdag" / "losses").rglob("*.py"):
        for name in imported(file):
            assert name.startswith("kdag.losses") or name.split(".")[0] in {"torch", *standard}, (file, name)


def test_the_configuration_is_read_without_torch():
    """Every call of snakemake reads it; torch would take a second of each."""
    asked = "import sys; import kdag.config.load, kdag.config.stages; sys.exit('torch' in sys.modules)"
    assert not subprocess.run([sys.executable, "-c", asked], cwd=SCRIPTS).returncode


def test_no_script_imports_a_script():
    scripts = {file.stem for file in SCRIPTS.glob("*.py")}
    for file in SCRIPTS.rglob("*.py"):
        assert not imported(file) & scripts, file


def test_package_files_are_empty():
    """What a job depends on is found by imports; a package's own file would be imported unseen."""
    for file in (SCRIPTS / "kdag").rglob("__init__.py"):
        assert not file.read_text(), file


@pytest.mark.parametrize("file", sorted((SCRIPTS / "kdag" / "job").glob("*.py")), ids=lambda file: file.stem)
def test_what_only_talks_writes_no_result(file):
    """job/ is no input of a result, so it must not be able to make one: it opens locks alone for writing,
    and imports no package that does."""
    tree = parse(file)
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert not called & {"write_text", "write_bytes", "write_json", "save_file", "dump", "rename"}
    assert ("open" in called) <= (file.stem in ("gpu_lease", "lock"))
    assert all(package(name) == "job" for name in imported(file) if name.startswith("kdag"))
