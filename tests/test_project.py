"""The project's own files agree with each other."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def pins(name: str) -> dict[str, str]:
    """{package: version} of a file of requirements; hashes and markers left aside."""
    lines = (ROOT / "envs" / name).read_text().splitlines()
    return dict(line.split(" ")[0].split("==") for line in lines if re.match(r"\w", line))


def bare(package: str) -> str:
    return re.sub(r"\[.*\]", "", package).lower().replace("_", "-")


def test_environments_hold_the_pins_that_make_installs():
    wanted = pins("requirements.txt")
    environments = sorted((ROOT / "envs").glob("*.yaml"))
    assert len(environments) >= 2
    for file in environments:
        parsed = yaml.safe_load(file.read_text())
        python, pip, packages = parsed["dependencies"]
        assert (python, pip) == ("python=3.11", "pip"), file
        for package, version in (line.split("==") for line in packages["pip"]):
            if package != "vllm":
                assert wanted.get(package, version) == version, f"{file.name}: {package}"


def test_every_pin_is_in_the_constraints():
    constraints = {bare(name): version for name, version in pins("constraints.txt").items()}
    for name in ("requirements.txt", "requirements-test.txt"):
        for package, version in pins(name).items():
            if package != "torch":  # its builds for GPUs and CPUs are other files of one version
                assert constraints[bare(package)] == version, package


@pytest.mark.parametrize(
    "name", ["constraints", "requirements-demo", "requirements-ifbench", "requirements-reasoning"]
)
def test_everything_that_is_installed_has_hashes(name):
    text = re.sub(r"^#.*\n", "", (ROOT / "envs" / f"{name}.txt").read_text(), flags=re.M)
    entries = re.split(r"\n(?=\w)", text.strip())
    assert entries and all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_versions_are_those_that_were_tried_together():
    expected = {
        "torch": "2.13.0",
        "transformers": "5.17.0",
        "datasets": "4.8.5",
        "lm-eval[hf,ifeval]": "0.4.13",
        "snakemake": "9.27.1",
        "peft": "0.21.2",
        "pandas": "3.1.1",
    }
    assert {name: pins("requirements.txt")[name] for name in expected} == expected


def test_rules_name_environments_that_exist():
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for name in re.findall(r'"\.\./\.\./(envs/\S+\.yaml)"', file.read_text()):
            assert (ROOT / name).is_file()


def test_every_rule_that_runs_a_script_names_an_environment_and_a_log():
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"^ *rule ", file.read_text(), flags=re.M)[1:]:
            for directive in (r"conda:", r"log:", r"code=(ancient\()?code\("):
                assert re.search(directive, rule), f"{file.name}: {rule.splitlines()[0]} {directive}"


def test_links_of_the_documentation_lead_somewhere():
    for file in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name}: {target}"


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_chinese_readme_keeps_step():
    """As many headings, level by level; the same commands, links, pictures and figures."""
    texts = [(ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md")]
    for what in (
        r"^(#+) ",
        r"(?ms)^```\w*\n.*?^```",
        r"\]\(((?!README)[^)#]+)\)",
        r"^\| (?:student|teacher).*$",
        r"(?a)(?<![\w.])\d+\.\d+(?!\.?\w)",
    ):
        ours, theirs = (re.findall(what, text, re.M) for text in texts)
        assert sorted(ours) == sorted(theirs), what
    tables = [sum(line.startswith("|") for line in text.splitlines()) for text in texts]
    assert tables[0] == tables[1]
