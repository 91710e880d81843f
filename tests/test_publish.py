"""The model card and what is put on a hub: whole, of this configuration, and without a secret or a folder."""

import json
import logging
import sys

import pytest
import tiny
import yaml

import publish
from kdag.config.load import load_config
from kdag.config.metrics import IFEVAL
from kdag.config.stages import stage_params
from kdag.files.atomic import write_json
from kdag.files.manifest import write_manifest
from kdag.files.seals import write_sealed
from kdag.job import cli

TOKEN = "hf_abcdefghijklmnop"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_scores(folder, accuracy: float) -> None:
    counts = {"n_prompts": 64, "n_instructions": 88, "generation": {"decoding": "greedy", "dtype": "float32"}}
    metrics = [{"metric": metric, "value": accuracy} for metric in IFEVAL]
    write_sealed(folder / "scores.json", {"metrics": metrics} | counts)


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """A results folder with small fake files: what a run leaves behind, as far as a card reads it."""
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "prompts.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "teacher").mkdir()
    raw = tiny.configuration(tmp_path) | {"student": {"source": "hub", "id": "someone/small"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    config = load_config(raw)
    source = stage_params(config, "fetch_student")
    write_json(tmp_path / "resources/models/small-1/manifest.json", {"params": source, "revision": COMMIT})
    results = tmp_path / "results" / "tiny"
    report = {"train": {"rows": 24, "answer_tokens": 300}}
    data = results / "data" / "manifest.json"
    write_manifest(data, stage="subset", params={}, inputs={}, outputs=[], report=report)
    home = results / "students" / "skewed-fkl" / "seed0"
    (home / "model" / "adapter").mkdir(parents=True)
    files = {
        "config.json": "{}",
        "model.safetensors": "weights",
        ".snakemake_timestamp": "",
        "adapter/README.md": "[More Information Needed]",
        "adapter/adapter_model.safetensors": "few weights",
        "adapter/adapter_config.json": json.dumps({"r": 4, "base_model_name_or_path": str(tmp_path)}),
    }
    for name, text in files.items():
        (home / "model" / name).write_text(text)
    (home / "training.jsonl").write_text("{}\n")
    params = stage_params(config, "distill", "skewed-fkl", 0)
    outputs = [home / "model", home / "training.jsonl"]
    write_manifest(home / "manifest.json", stage="distill", params=params, inputs={}, outputs=outputs)
    write_scores(results / "eval" / "skewed-fkl-seed0", 0.25)
    write_scores(results / "eval" / "student-untrained", 0.125)
    (results / "report").mkdir()
    lines = ["model,metric,accuracy,low,high,correct,n"]
    lines += [f"skewed-fkl-seed0,{metric},0.25,0.16,0.37,16,64" for metric in IFEVAL]
    lines += [f"student-untrained,{metric},0.5,0.4,0.6,32,64" for metric in IFEVAL]  # of an older run
    (results / "report" / "intervals.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-home"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    return results


@pytest.fixture
def call(monkeypatch, capsys):
    """publish.py with these arguments: (exit status, what it printed)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["publish.py", *arguments])
        handlers = logging.getLogger().handlers[:]
        try:
            cli.run(publish.main, publish.arguments(), network=True)
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        finally:
            logging.getLogger().handlers[:] = handlers
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_dry_run_shows_files_sizes_and_card(experiment, call, tmp_path):
    code, said = call(
        "--model", "skewed-fkl-seed0", "--repo", "me/mine", "--licence", "apache-2.0", "--dry-run"
    )
    assert code == 0 and "nothing was uploaded: a dry run" in said
    folder = experiment / "publish" / "skewed-fkl-seed0"
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    adapter = {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"}
    assert names == {"README.md", "config.json", "model.safetensors", "training.jsonl"} | adapter
    assert all(f"  {name}\n" in said for name in names)
    assert (folder / "model.safetensors").is_symlink()
    assert (folder / "model.safetensors").read_text() == "weights"
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings == {"r": 4, "base_model_name_or_path": "someone/small"}
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == "someone/small" and head["license"] == "apache-2.0"
    assert "Distilled with D = `skewed-fkl` (skew_lambda 0.1) on the data set's answers;" in card
    assert "loss per answer token: 0.5 CE + 0.5 T² D" in card
    assert f"[someone/small](https://huggingface.co/someone/small) at `{COMMIT}`" in card
    assert "`rows.jsonl` (not from a hub), 24 rows with 300 answer tokens" in card
    assert "| student - skewed-fkl | 25.0 % [16.0, 37.0] |" in card
    assert "| student, untrained | 12.5 % |" in card, "an interval of another value is not shown"
    assert str(tmp_path) not in card and "More Information Needed" not in card


def test_a_model_without_scores_says_so(experiment, call):
    for file in (experiment / "eval").rglob("scores.json"):
        file.unlink()
    assert "Not evaluated yet." in call("--model", "skewed-fkl-seed0", "--dry-run")[1]


def test_without_a_token_nothing_is_uploaded(experiment, call):
    code, said = call("--model", "skewed-fkl-seed0", "--repo", "me/mine")
    assert code == 0 and "nothing was uploaded: no token" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "klf-seed0"], "no trained model is called 'klf-seed0'; there are teacher, sft-seed0"),
        (["--model", "../../x"], "no trained model is called '../../x'"),
        (["--model", "rkl-seed0"], "students/rkl/seed0/manifest.json is not there"),
        (["--model", "skewed-fkl-seed0", "--repo", "a b; rm -rf"], "REPO: owner/name is needed"),
        (["--model", "skewed-fkl-seed0", "--repo", "mine"], "REPO: owner/name is needed, got 'mine'"),
        (["--model", "skewed-fkl-seed0", "--config", "gone.yaml"], "gone.yaml: no such file"),
    ],
)
def test_refusals(experiment, call, arguments, message):
    code, said = call(*arguments)
    assert code == 1 and message in said and "Traceback" not in said


def test_a_damaged_model_and_one_of_another_configuration_are_refused(experiment, call, tmp_path):
    raw = yaml.safe_load((tmp_path / "config.yaml").read_text())
    raw["strategies"]["skewed-fkl"]["temperature"] = 4
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(raw))
    code, said = call("--model", "skewed-fkl-seed0", "--config", "other.yaml")
    assert code == 1 and "trained with temperature 2.0, the configuration says 4.0" in said
    (experiment / "students" / "skewed-fkl" / "seed0" / "model" / "model.safetensors").write_text("weighty")
    code, said = call("--model", "skewed-fkl-seed0")
    assert code == 1 and "model.safetensors has another SHA-256" in said


class Api:
    """A hub that takes everything, or refuses with a message that holds the token."""

    refuse = False
    calls = []

    def __init__(self, token):
        assert token == TOKEN

    def create_repo(self, repo, **options):
        if self.refuse:
            raise OSError(f"401 for Bearer {TOKEN}\nmore")
        self.calls.append((repo, options))

    def upload_folder(self, **options):
        self.calls.append(options)
        return "https://hub/commit/1"


def test_upload_with_a_token_which_is_never_shown(experiment, call, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    code, said = call("--model", "skewed-fkl-seed0", "--repo", "me/mine")
    assert code == 0 and "uploaded: https://hub/commit/1" in said and TOKEN not in said
    assert Api.calls[0] == ("me/mine", {"private": True, "exist_ok": True})
    monkeypatch.setattr(Api, "refuse", True)
    code, said = call("--model", "skewed-fkl-seed0", "--repo", "me/mine")
    assert code == 1 and "error: me/mine cannot be uploaded: 401 for Bearer <token>\n" in said
    written = "".join(f.read_text() for f in experiment.rglob("*") if f.is_file())
    assert TOKEN not in said + written
