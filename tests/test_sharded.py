"""A model shared out among two processes on a CPU: trained as in one, resumed from the parts of both."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from test_parallel import (  # noqa: F401
    LORA,
    SETTINGS,
    arguments,
    check_same,
    finish,
    home,
    saving_each_step,
    start,
)

import distill
import sft
from kdag.config.training import TeacherTraining
from kdag.job import launching
from kdag.job.errors import UserError
from kdag.training import sharding


@pytest.mark.parametrize(
    ("script", "config"),
    [("distill", LORA | {"divergence": "fkl"}), ("sft", SETTINGS | {"tuning": "full"})],
    ids=["fkl-lora", "sft-full"],
)
def test_a_model_in_two_parts_trains_as_one(home, tmp_path, monkeypatch, script, config):  # noqa: F811
    module = {"distill": distill, "sft": sft}[script]
    monkeypatch.setenv(sharding.FORCE, "1")
    given = arguments(home, tmp_path / "two", config, script == "distill")
    two = start(script, *given)
    one = arguments(home, tmp_path / "one", config, script == "distill")
    module.main(module.arguments().parse_args(one))
    assert "shared out among 2 processes" in finish(two)
    check_same(tmp_path / "one", tmp_path / "two")
    saved = json.loads((tmp_path / "two" / "model" / "config.json").read_text())
    assert saved == json.loads((tmp_path / "one" / "model" / "config.json").read_text())


def test_it_goes_on_from_the_parts_of_all_processes(home, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv(sharding.FORCE, "1")
    scripts = saving_each_step(tmp_path / "scripts")
    config = LORA | {"divergence": "fkl"}
    given = arguments(home, tmp_path / "two", config, teacher=True)
    job = start("distill", *given, scripts=scripts)
    for line in job.stdout:
        if "step 3/6" in line:
            break
    job.kill()
    job.wait()
    out = finish(start("distill", *given, scripts=scripts))
    assert re.search(r"going on from .*checkpoint-[2345]\b", out), out
    distill.main(distill.arguments().parse_args(arguments(home, tmp_path / "one", config, teacher=True)))
    check_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("changes", "device", "expected"),
    [
        ({"tuning": "full"}, 20_000, True),  # 16 bytes of each of 1,000 weights, of 70 % of the device
        ({"tuning": "full"}, 25_000, False),
        ({"dtype": "bfloat16"}, 2_500, True),
        ({"dtype": "bfloat16"}, 3_000, False),
        ({"load_in_4bit": True}, 100, False),
    ],
)
def test_only_what_does_not_fit_is_shared_out(tmp_path, monkeypatch, changes, device, expected):
    save_file({"a": torch.zeros(30, 30), "b": torch.zeros(100)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = type("Properties", (), {"total_memory": device})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    settings = TeacherTraining(**changes)
    assert not sharding.wanted(tmp_path, settings)
    monkeypatch.setattr(launching, "processes", lambda: 2)
    assert sharding.wanted(tmp_path, settings) == expected


def test_what_cannot_be_shared_out_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "processes", lambda: 2)
    monkeypatch.setenv(sharding.FORCE, "1")
    with pytest.raises(UserError, match="does not fit on one GPU"):
        sharding.wanted(tmp_path, TeacherTraining(optimizer="adamw_8bit"))
