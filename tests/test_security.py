"""No pickle is read, no model's code run, no text of a configuration taken for a command, no token told."""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import yaml
from conftest import ROOT, Project

from kdag.files.atomic import write_json
from kdag.files.manifest import hash_files
from kdag.job import lines
from kdag.job.errors import UserError
from kdag.models import files

SCRIPTS = ROOT / "workflow" / "scripts"
FORBIDDEN = (
    r"\bpickle\b\.",
    r"torch\.load\((?!.*weights_only=True)",
    r"np\.load\(",
    r"shell=True",
    r"os\.system\(",
    r"yaml\.(unsafe_|full_)?load\(",
    r"(?<![.\w])(eval|exec)\(",
    r"trust_remote_code=(?!False)",
    r"weights_only=False",
)


class Payload:
    """Unpickled, it makes a file: what a bad pickle does, without the harm."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture
def payload(tmp_path):
    """(bytes of a file as torch.save writes it that acts, whether it has acted)."""
    import torch

    mark, file = tmp_path / "pwned", io.BytesIO()
    torch.save({"state": Payload(mark)}, file)
    return file.getvalue(), mark.exists


def test_the_payload_would_act(payload):
    import torch

    content, acted = payload
    torch.load(io.BytesIO(content), weights_only=False)
    assert acted()


@pytest.mark.parametrize("file", sorted(SCRIPTS.rglob("*.py")), ids=lambda file: file.name)
def test_code_holds_none_of_these(file):
    code = "\n".join(line.split("  # ")[0] for line in file.read_text().splitlines())
    assert not [pattern for pattern in FORBIDDEN if re.search(pattern, code)]


def test_every_shell_argument_is_quoted():
    """Our own scripts, numbers and wildcards (letters, digits, '.', '_', '-') are all that is not."""
    plain = re.compile(r"input\.code\[0\]|params\.parts|(wildcards|resources)\.\w+")
    for file in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        shells = re.findall(r"^ *shell:\n((?: +\".*\"\n)+)", file.read_text(), re.M)
        for argument in re.findall(r"(?<!\{)\{([^{}]+)\}", "".join(shells)):
            assert argument.endswith(":q") or plain.fullmatch(argument), f"{file.name}: {{{argument}}}"


def test_path_with_shell_characters_is_only_a_path(tmp_path):
    """Through the real rule and shell, as a data file's name."""
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    name = "a b; touch pwned $(touch pwned2) `touch pwned3` 'q\" & touch pwned4 #.jsonl"
    tiny.write_jsonl(project.folder / "tiny" / name, tiny.rows(40))
    raw = yaml.safe_load((project.folder / "config.yaml").read_text())
    raw["data"]["path"] = f"tiny/{name}"
    (project.folder / "config.yaml").write_text(yaml.safe_dump(raw))
    done = project.snakemake("--until", "fetch_dataset")
    assert "rule fetch_dataset" in done.stderr
    assert not list(project.folder.rglob("pwned*"))
    (rows,) = (project.folder / "resources" / "datasets").glob("a-b-touch-pwned-*/rows.jsonl")
    assert len(rows.read_text().splitlines()) == 40


def test_pickled_weights_are_refused_before_they_are_opened(tiny_models, tmp_path, payload):
    from kdag.models import load

    content, acted = payload
    folder = shutil.copytree(tiny_models / "student", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle, which can run code and is not read"):
        files.check(folder)
    with pytest.raises(UserError, match="no model can be loaded"):
        load.load_model(folder, "float32")
    assert not acted()


def test_code_beside_a_model_is_neither_fetched_nor_run(tiny_models, tmp_path):
    """A model directory with Python files: what is linked into resources/ holds none of them."""
    import fetch_model

    folder = shutil.copytree(tiny_models / "student", tmp_path / "model")
    mark = tmp_path / "pwned"
    (folder / "tokenization_own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        kinds = {"AutoTokenizer": ["tokenization_own.Own", None], "AutoConfig": "tokenization_own.Own"}
        (folder / name).write_text(json.dumps(settings | {"auto_map": kinds}))
    source = {"source": "path", "path": str(folder)}
    made = SimpleNamespace(
        config=source, output=tmp_path / "out" / "model", manifest=tmp_path / "out" / "m.json"
    )
    fetch_model.main(made)
    assert not list(made.output.glob("*.py"))
    from kdag.models import load

    assert len(load.load_tokenizer(made.output)) == len(load.load_tokenizer(tiny_models / "student"))
    assert not mark.exists()


@pytest.fixture(scope="module")
def interrupted(tiny_models, tmp_path_factory):
    """(a function that trains two steps and dies after the first, or goes on; its checkpoint)."""
    from kdag.config.training import TeacherTraining
    from kdag.data import rows
    from kdag.models import load
    from kdag.training import checkpoints, train

    folder = tmp_path_factory.mktemp("interrupted")
    tokenizer = load.load_tokenizer(tiny_models / "student")
    tiny.encoded(tiny.rows(10), tokenizer, folder, train_rows=8, heldout_rows=2)
    frame = rows.read_rows(folder / "train.parquet")
    short = {"dtype": "float32", "batch_size": 2, "gradient_accumulation": 1, "gradient_checkpointing": False}
    work = folder / "work"

    def trained():
        return train.train(
            load.load_model(tiny_models / "student", "float32"),
            frame,
            settings=TeacherTraining(**short),
            objective=train.Objective(),
            teacher=None,
            vocabulary=len(tokenizer),
            work=work,
        )

    patch = pytest.MonkeyPatch()
    patch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    losses, calls = train.DistillTrainer.compute_loss, []

    def dies(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return losses(self, *args, **kwargs)

    patch.setattr(train.DistillTrainer, "compute_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        trained()
    patch.undo()
    return trained, checkpoints.last_checkpoint(work)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_bad_pickle_in_a_checkpoint_never_acts(interrupted, payload, name):
    """Even under a true seal, by one who can write into results/: refused in one line, which names it."""
    train, checkpoint = interrupted
    content, acted = payload
    folder = Path(checkpoint)
    kept = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(content)
        write_json(
            folder / "seal.json", {k: v for k, v in hash_files(folder, [folder]).items() if "seal" not in k}
        )
        with pytest.raises(UserError, match="holds more than tensors.*Delete it") as refused:
            train()
        assert str(folder) in str(refused.value) and len(str(refused.value).splitlines()) == 1
        assert not acted()
    finally:
        (folder / name).write_bytes(kept)
        write_json(
            folder / "seal.json", {k: v for k, v in hash_files(folder, [folder]).items() if "seal" not in k}
        )


def test_changed_checkpoint_without_its_seal_is_left_alone(interrupted, payload, caplog):
    """Who changes a file and not the seal: the checkpoint is not used, and training begins anew."""
    train, checkpoint = interrupted
    content, acted = payload
    (Path(checkpoint) / "optimizer.pt").write_bytes(content)
    with caplog.at_level(logging.INFO):
        train()
    assert "is damaged and is not used" in caplog.text and "going on from" not in caplog.text
    assert not acted()


@pytest.mark.parametrize("script", ["fetch_model", "fetch_dataset", "fetch_published"])
def test_token_reaches_no_log_and_no_manifest(tmp_path, script):
    source = {"source": "hub", "id": "someone/something", "revision": None, "split": "train", "files": "*"}
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--config", json.dumps(source)]
    command += ["--output", str(tmp_path / "out"), "--manifest", str(tmp_path / "manifest.json")]
    command += ["--log-file", str(tmp_path / "fetch.log")]
    environment = {
        "HF_TOKEN": "hf_secretsecretsecret",
        "HF_ENDPOINT": "http://someone:wordofmine@127.0.0.1:9",
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        command, env={**os.environ, **environment}, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 1 and "cannot be fetched from the hub" in done.stderr
    written = [file.read_text() for file in tmp_path.iterdir()]
    for secret in ("hf_secret", "wordofmine"):
        assert not any(secret in text for text in (done.stdout, done.stderr, *written))
    assert not [file.name for file in tmp_path.iterdir() if file.name not in ("fetch.log", f".lock-{script}")]


def test_a_line_of_a_log_is_no_command_to_a_terminal(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "0123456789")
    said = lines.clean("\x1b[2Jhttps://a:b@c/d 0123456789\n\ttoken hf_abcdefghijklmnopqrst\x9b1m")
    assert said == "\\x1b[2Jhttps://***@c/d ***\n\ttoken ***\\x9b1m"
