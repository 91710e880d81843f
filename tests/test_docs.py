"""What the pages under docs/ show is true: their code runs, and nothing they ought to list is missing."""

import re
import sys

import pytest
import torch
import yaml
from conftest import ROOT

from kdag.losses import divergences
from kdag.losses.fused import distill_loss
from kdag.losses.parameters import PARAMETERS, SPANS

DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


@pytest.fixture
def hellinger(monkeypatch, tmp_path):
    """The divergence that how-to.md adds, for the length of a test, in a folder of its own."""
    function, line, test = (b for b in blocks("how-to.md", "python") if "hellinger" in b)
    (tmp_path / "hellinger.py").write_text(function)
    monkeypatch.setattr(divergences, "__path__", [*divergences.__path__, str(tmp_path)])
    monkeypatch.setattr(divergences, "NAMES", (*divergences.NAMES, "hellinger"))
    monkeypatch.setitem(PARAMETERS, "hellinger", eval(f"{{{line}}}")["hellinger"])
    names = {"torch": torch, "pytest": pytest, "DIVERGENCES": {"hellinger": divergences.load("hellinger")}}
    exec(test, names)
    yield names["test_hellinger_by_hand"]
    del sys.modules["kdag.losses.divergences.hellinger"]


def test_strategy_of_the_how_to_and_its_test(hellinger):
    hellinger()
    torch.manual_seed(0)
    hidden = torch.randn(5, 4, requires_grad=True)
    loss, _ = distill_loss(
        *(hidden, torch.randn(7, 4), torch.randn(5, 3), torch.randn(7, 3), torch.arange(5)),
        **{
            "divergence": divergences.load("hellinger"),
            "divergence_params": {},
            "kl_weight": 0.5,
            "temperature": 2.0,
        },
    )
    loss.backward()
    assert loss > 0 and hidden.grad.isfinite().all() and hidden.grad.abs().sum() > 0
    far = torch.tensor([[0.0, -2e4]], requires_grad=True)
    divergences.load("hellinger")(far, far.detach().flip(1)).sum().backward()
    assert far.grad.isfinite().all()


def test_strategies_page_has_every_divergence_with_its_range_and_default():
    page = (DOCS / "strategies.md").read_text().split("## The ten")[1].split("## Another tokenizer")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.M)) == set(PARAMETERS)
    for name, ranges in PARAMETERS.items():
        line = re.search(rf"^\| `{name}` \|.*$", page, re.M)[0]
        for parameter, range_ in ranges.items():
            assert f"`{parameter}` {range_}, {range_.default:g}" in line, name


def test_strategies_page_has_every_loss_across_tokenizers():
    page = (DOCS / "strategies.md").read_text().split("## Another tokenizer")[1].split("\n\n**Does")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, re.M)) == {*SPANS, "alignment"}
    assert f"1/`tau` (default {SPANS['span-likelihood']['tau'].default:g})" in page


def test_yaml_of_the_how_to_is_yaml():
    for block in blocks("how-to.md", "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


def test_task_of_the_how_to_is_one_that_lm_eval_reads(tmp_path, monkeypatch):
    from kdag.evaluation import harness

    (block,) = (b for b in blocks("how-to.md", "yaml") if "doc_to_text" in b)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "capitals.yaml").write_text(block)
    (folder / "capitals.jsonl").write_text('{"country": "France", "capital": "Paris"}\n')
    monkeypatch.chdir(tmp_path)
    settings = {
        "name": "capitals",
        "path": "tasks",
        "limit": None,
        "num_fewshot": None,
        "chat_template": True,
    }
    described = harness.fetch(settings, tmp_path)
    assert described["capitals"]["documents"] == 1


def test_task_of_the_how_to_that_is_a_program(tmp_path, monkeypatch):
    from kdag.evaluation import harness, tasks

    (block,) = (b for b in blocks("how-to.md", "python") if "def specification" in b)
    (tmp_path / "backwards.py").write_text(block)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    settings = {"name": "backwards", "path": None, "limit": 3}
    folder = tmp_path / "task"
    folder.mkdir()
    described = harness.fetch(settings, folder)
    assert described["backwards"]["documents"] == 3
    _, _, loaded = harness.load(settings, folder)
    document = next(iter(loaded["backwards"].test_docs()))
    assert loaded["backwards"].doc_to_text(document).startswith("Spell teacher backwards")
    assert loaded["backwards"].doc_to_target(document) == "rehcaet"
    del sys.modules["kdag.evaluation.tasks.backwards"]
