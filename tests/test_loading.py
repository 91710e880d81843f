"""Weights are hashed while they load: damage is the same one line as if they had been hashed before."""

import hashlib
import shutil
import threading

import pytest
import torch
import transformers
from test_security import payload  # noqa: F401, a fixture

from kdag.files import manifest
from kdag.files.manifest import write_manifest
from kdag.job.errors import UserError
from kdag.models import load
from kdag.teacher.live import LiveTeacher

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_models, tmp_path):
    """A model next to the manifest of the stage that made it."""
    made = shutil.copytree(tiny_models / "student", tmp_path / "model")
    write_manifest(tmp_path / "manifest.json", stage="sft", params={}, inputs={}, outputs=[made])
    return made


@pytest.fixture
def opened(monkeypatch):
    """The folders that from_pretrained was asked for."""
    asked, real = [], transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(directory, **how):
        asked.append(directory)
        return real(directory, **how)

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    return asked


def change(file, place: int):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def refused(folder):
    with pytest.raises(UserError) as error:
        load.load_model(folder, "float32")
    said = str(error.value)
    assert "\n" not in said and "snakemake" in said
    return said


def test_a_whole_model_loads_and_each_file_is_hashed_once(folder, tiny_models, monkeypatch):
    hashed = []

    def sha256_file(file):
        hashed.append((file.name, threading.current_thread() is threading.main_thread()))
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr(manifest, "sha256_file", sha256_file)
    model = load.load_model(folder, "float32")
    plain = load.load_model(tiny_models / "student", "float32")
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), plain.parameters(), strict=True))
    names = sorted(file.name for file in folder.iterdir())
    assert sorted(name for name, _ in hashed) == names
    assert [name for name, at_once in hashed if not at_once] == [WEIGHTS]


def test_a_live_teacher_is_hashed_once(folder, monkeypatch):
    hashed, real = [], manifest.sha256_file
    monkeypatch.setattr(manifest, "sha256_file", lambda file: hashed.append(file.name) or real(file))
    LiveTeacher(folder.parent / "manifest.json", "float32", 400)
    assert hashed.count(WEIGHTS) == 1


def test_the_weights_are_loaded_while_they_are_hashed(folder, monkeypatch):
    """The thread goes on only once loading has begun; one after the other would never end."""
    begun, whole = threading.Event(), load.whole

    def loading(*args):
        begun.set()
        return whole(*args)

    def sha256_file(file):
        assert file.name != WEIGHTS or begun.wait(30)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr(load, "whole", loading)
    monkeypatch.setattr(manifest, "sha256_file", sha256_file)
    load.load_model(folder, "float32")


def test_a_changed_weight_is_refused_though_it_loads(folder, opened):
    change(folder / WEIGHTS, -5)
    assert f"{folder / WEIGHTS} has another SHA-256 than when it was written. " in refused(folder)
    assert opened == [folder]


@pytest.mark.parametrize("place", [1, 9])
def test_damage_that_the_loader_stumbles_over_is_still_called_damage(folder, opened, place):
    """In the length of the header, and in the header."""
    change(folder / WEIGHTS, place)
    with pytest.raises(Exception, match="eader|JSON|expected"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert f"{folder / WEIGHTS} has another SHA-256 than when it was written. " in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "pytorch_model.bin"])
def test_what_is_no_safetensors_file_is_checked_before_anything_is_opened(folder, opened, payload, name):  # noqa: F811
    content, acted = payload
    (folder / "pytorch_model.bin").write_bytes(b"of the stage")
    where = folder.parent / "manifest.json"
    write_manifest(where, stage="sft", params={}, inputs={}, outputs=[folder])
    file = folder / name
    file.write_bytes(content[: file.stat().st_size].ljust(file.stat().st_size, b" "))
    assert f"{file} has another SHA-256 than when it was written. " in refused(folder)
    assert not opened and not acted()


def test_a_file_of_another_size_is_not_opened(folder, opened):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-7])
    assert f"has {len(whole) - 7} bytes instead of {len(whole)}. " in refused(folder)
    (folder / WEIGHTS).unlink()
    assert f"{folder / WEIGHTS} is missing. " in refused(folder)
    assert not opened


def test_an_error_of_loading_stays_what_it_is_when_the_files_are_whole(folder, monkeypatch):
    def from_pretrained(directory, **how):
        raise ValueError("of the loader")

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match="no model can be loaded: of the loader"):
        load.load_model(folder, "float32")


def test_a_disk_that_fails_while_hashing_is_not_passed_over(folder, monkeypatch):
    real = manifest.sha256_file

    def sha256_file(file):
        if file.name == WEIGHTS:
            raise OSError(5, "Input/output error")
        return real(file)

    monkeypatch.setattr(manifest, "sha256_file", sha256_file)
    with pytest.raises(OSError, match="Input/output error"):
        load.load_model(folder, "float32")
