"""Fetching from a hub: the real clients against one that serves a folder (hub.py)."""

import json
import os
import subprocess
import sys

import hub
import pytest
import tiny
import yaml
from conftest import ROOT
from test_published import SETTINGS, V, captured, check_rows, frame_of, write

from kdag.teacher.published import Published


@pytest.fixture
def fetch(tmp_path):
    """fetch(script, **source) -> (the process, its folder, what the hub was asked)."""
    served = tmp_path / "hub"

    def run(script: str, **source):
        out = tmp_path / "fetched"
        out.mkdir()
        whole = {"source": "hub", "revision": None, "path": None, "package": None, "file": None, **source}
        with hub.serving(served) as (address, asked):
            away = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
            command = [sys.executable, ROOT / "workflow" / "scripts" / f"{script}.py"]
            command += ["--config", json.dumps(whole), "--manifest", out / "manifest.json"]
            done = subprocess.run(
                [*map(str, command), "--output", str(out / "made")],
                env={**os.environ, **away, "HF_HOME": str(tmp_path / "home")},
                capture_output=True,
                text=True,
                timeout=300,
            )
        return done, out, asked

    run.served = served
    return run


@pytest.fixture
def teacher(fetch, tiny_models):
    folder = fetch.served / "models" / "some" / "teacher"
    folder.parent.mkdir(parents=True)
    folder.mkdir()
    for file in (tiny_models / "teacher").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def weights(asked: list[str]) -> list[str]:
    return [line for line in asked if line.startswith("GET") and line.endswith(".safetensors")]


def test_a_model_and_nothing_besides(fetch, teacher):
    """Its merged weights, not the adapter that was left next to them nor a second copy."""
    (teacher / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    for name in ("adapter_model.safetensors", "consolidated.safetensors", "pytorch_model.bin"):
        (teacher / name).write_bytes(b"1")
    done, out, asked = fetch("fetch_model", id="some/teacher")
    assert done.returncode == 0, done.stderr
    assert len(weights(asked)) == 1
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["revision"] == hub.SHA
    names = {name.removeprefix("made/") for name in manifest["files"]}
    assert "model.safetensors" in names and not any("adapter" in n or "consolidated" in n for n in names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "stored quantised (awq)"),
        ({"auto_map": {"AutoModel": "code.py"}, "model_type": "unheard_of"}, "asks for code of its own"),
    ],
)
def test_what_config_json_refuses_costs_no_download_of_weights(fetch, teacher, change, said):
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | change))
    done, _, asked = fetch("fetch_model", id="some/teacher")
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1]
    assert not weights(asked)


def test_an_adapter_alone(fetch, teacher):
    (teacher / "model.safetensors").unlink()
    (teacher / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    (teacher / "adapter_model.safetensors").write_bytes(b"1")
    done, _, asked = fetch("fetch_model", id="some/teacher")
    assert done.returncode == 1 and "an adapter without the model" in done.stderr.splitlines()[-1]
    assert not weights(asked)


def test_of_a_data_set_only_the_rows_that_are_wanted(fetch):
    """A named configuration in two files: the second is never asked for."""
    folder = fetch.served / "datasets" / "some" / "rows"
    (folder / "short").mkdir(parents=True)
    rows = tiny.rows(600)
    tiny.write_jsonl(folder / "short" / "train-00000.jsonl", rows[:300])
    tiny.write_jsonl(folder / "short" / "train-00001.jsonl", rows[300:])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: short\n  data_files:\n  - split: train\n    path: short/*.jsonl\n---\n"
    )
    done, out, asked = fetch("fetch_dataset", id="some/rows", name="short", split="train", rows=40)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in (out / "made").read_text().splitlines()] == rows[:40]
    assert not [line for line in asked if line.startswith("GET") and "00001" in line]


def test_a_split_that_is_not_there_is_one_line(fetch):
    folder = fetch.served / "datasets" / "some" / "rows"
    folder.mkdir(parents=True)
    tiny.write_jsonl(folder / "train.jsonl", tiny.rows(3))
    done, _, _ = fetch("fetch_dataset", id="some/rows", split="validation", rows=3)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "validation" in last and "cannot be fetched" in last


def test_of_published_log_probs_only_the_files_that_are_named(fetch):
    """A data set's first file, and the settings that it was written with."""
    folder = fetch.served / "datasets" / "some" / "logits"
    write(folder / "data", captured(frame_of()), settings=None, name="train-0.parquet")
    write(folder / "data", captured(frame_of(1)), settings=None, name="train-1.parquet")
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(SETTINGS))
    (folder / "README.md").write_text("none of it")
    done, out, asked = fetch("fetch_published", id="some/logits", files="data/train-0*")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["revision"] == hub.SHA
    assert {name.removeprefix("made/") for name in manifest["files"]} == {
        "data/train-0.parquet",
        "compression_config.yaml",
    }
    assert not any("train-1" in line for line in asked if line.startswith("GET"))
    check_rows(Published(out / "made").of_rows(frame_of(), V), frame_of())
