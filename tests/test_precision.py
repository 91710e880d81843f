"""What `dtype: auto` becomes on which processor, and that equal products are equal bits."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from test_parallel import SETTINGS, arguments, home  # noqa: F401

from kdag.config import precision
from kdag.config.load import load_config
from kdag.config.precision import Processor
from kdag.job import arithmetic
from kdag.job.errors import UserError
from kdag.operate import doctor
from kdag.planning import devices, planner

X86 = "processor\t: 0\nmodel name\t: Some {name}\nflags\t\t: fpu sse2 avx2 {flags}\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {flags}\n"
GPUS = {
    "with bfloat16": Processor("A100", True, {"float16": "GPU", "bfloat16": "GPU"}),
    "without bfloat16": Processor("V100", True, {"float16": "GPU"}),
}


@pytest.mark.parametrize(
    ("cpuinfo", "unit"),
    [
        (X86.format(name="Xeon", flags="avx512f avx512_bf16 amx_bf16 amx_tile"), "AMX"),
        (X86.format(name="EPYC 9004", flags="avx512f avx512_bf16"), "AVX512_BF16"),
        (X86.format(name="EPYC 7003", flags=""), None),
        (X86.format(name="Xeon of 2017", flags="avx512f avx512bw"), None),
        (ARM.format(flags="asimdhp bf16 i8mm"), "BF16"),
        (ARM.format(flags="asimdhp"), None),
        ("model name: Apple M2\nFeatures: bf16\n", "BF16"),
        ("", None),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_if_it_multiplies_it(cpuinfo, unit):
    processor = precision.cpu(cpuinfo, limit="")
    assert processor.units.get("bfloat16") == unit
    assert precision.settle("auto", "evaluation.dtype", processor) == ("bfloat16" if unit else "float32")


def test_a_processor_held_back_to_avx2_is_one():
    newest = X86.format(name="Xeon", flags="avx512_bf16 amx_bf16")
    assert precision.cpu(newest, limit="AVX2").units == {}
    assert precision.cpu(newest, limit="AVX512_CORE_BF16").units["bfloat16"] == "AMX"
    command = "from kdag.config import precision; print(precision.cpu().units.get('bfloat16'))"
    held = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(ROOT / "workflow" / "scripts")}
    said = subprocess.run([sys.executable, "-c", command], env=held, text=True, capture_output=True)
    assert said.stdout.strip() == "None", said.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stage would take the GPU")
def test_a_stage_on_a_processor_held_back_to_avx2_trains_in_float32(home, tmp_path):  # noqa: F811
    """So a better processor shows what most users see; its speed is theirs too (docs/performance.md)."""
    given = arguments(home, tmp_path, SETTINGS | {"dtype": "auto", "epochs": 1}, teacher=False)
    held = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, ROOT / "workflow" / "scripts" / "sft.py", *given]
    done = subprocess.run(command, env=held, text=True, capture_output=True, timeout=300)
    assert "distillation.dtype: auto is float32" in done.stderr, done.stderr
    assert json.loads((tmp_path / "manifest.json").read_text())["dtype"] == "float32"


def test_a_gpu_computes_in_bfloat16_or_else_in_float16():
    assert precision.settle("auto", "distillation.dtype", GPUS["with bfloat16"]) == "bfloat16"
    assert precision.settle("auto", "distillation.dtype", GPUS["without bfloat16"]) == "float16"
    assert precision.settle("float32", "distillation.dtype", GPUS["without bfloat16"]) == "float32"
    with pytest.raises(UserError, match="distillation.dtype: this GPU cannot compute in bfloat16"):
        precision.settle("bfloat16", "distillation.dtype", GPUS["without bfloat16"])


def test_torch_says_what_the_gpu_of_this_process_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "V100")
    for has, chosen in ((False, "float16"), (True, "bfloat16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert precision.settle("auto", "evaluation.dtype") == chosen


def test_what_a_cpu_emulates_is_a_warning_with_the_key_and_the_factor(caplog):
    old = precision.cpu(X86.format(name="EPYC", flags=""), limit="")
    with caplog.at_level(logging.WARNING):
        assert precision.settle("bfloat16", "teacher_cache.dtype", old) == "bfloat16"
        assert precision.settle("float16", "evaluation.dtype", old) == "float16"
        assert precision.settle("float32", "distillation.dtype", old) == "float32"
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "teacher_cache.dtype",
        "evaluation.dtype",
    ]
    assert "25 times as long" in caplog.records[0].message


def test_what_auto_became_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        precision.settle("auto", "evaluation.dtype", precision.cpu(X86.format(name="EPYC", flags=""), ""))
    assert "evaluation.dtype: auto is float32 on Some EPYC (no unit for bfloat16)" in caplog.text


def test_doctor_names_each_key_whose_dtype_this_cpu_emulates():
    old = precision.cpu(X86.format(name="EPYC", flags=""), limit="")
    findings = doctor.arithmetic(old, {"evaluation.dtype": "auto", "strategies.fkl.dtype": "bfloat16"})
    assert [finding.level for finding in findings] == ["ok", "warning"]
    assert "float32 on Some EPYC" in findings[0].found and "strategies.fkl.dtype" in findings[1].do


def test_the_planner_counts_with_what_auto_is_on_a_card(monkeypatch):
    assert [devices.DEVICES[name].dtype("auto") for name in ("H100", "T4")] == ["bfloat16", "float16"]
    for flags, wanted in (("amx_bf16", "bfloat16"), ("", "float32")):
        text = X86.format(name="Xeon", flags=flags)
        monkeypatch.setattr(precision, "described", lambda text=text: text)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        config = load_config(
            {
                "data": {"source": "hub", "id": "a/b"},
                "teacher": {"source": "hub", "id": "a/b"},
                "student": {"derive": {"from": "teacher", "keep_layers": 2}},
                "strategies": {"fkl": {"divergence": "fkl"}},
            }
        )
        planned = planner.with_dtypes(config, devices.DEVICES["cpu"])
        assert planned.evaluation.dtype == planned.teacher_cache.dtype == wanted


def test_equal_products_are_equal_bits_however_many_threads_and_wherever_they_lie():
    """What MKL_CBWR is set for; conftest.py sets it as every stage does."""
    assert arithmetic.recorded() == arithmetic.REPRODUCIBLE
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(70 * 64 + 16, generator=generator)
    head = torch.randn(409, 64, generator=generator)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for offset in (0, 1, 3, 7):
                moved = torch.empty(70 * 64 + 16)[offset : offset + 70 * 64].view(70, 64)
                moved.copy_(memory[: 70 * 64].view(70, 64))
                found.append(moved @ head.T)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)
