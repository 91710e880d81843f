"""The planner: exact weight counts, what takes more and what less, the command, and the demo's memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import yaml

from kdag.config.load import load_config
from kdag.config.stages import source_name, stage_params
from kdag.config.training import Training
from kdag.files.hashes import sha256_json
from kdag.job.errors import UserError
from kdag.planning import devices, expected, needs, planner
from kdag.planning.devices import GIB
from kdag.planning.shapes import Shape

ROOT = Path(__file__).parents[1]
QWEN_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
QWEN_3B = QWEN_7B | {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
SMOL = {  # the demo's teacher, SmolLM2-135M-Instruct
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
# max_rss in MiB, the largest job of each stage of a finished `make demo` on two cores.
DEMO_MIB = {
    "sft_teacher": 2895,
    "cache_teacher": 1253,
    "sft_student": 2853,
    "distill": 2924,
    "generate": 1343,
    "measure_fidelity": 1239,
}
STAGES = tuple(DEMO_MIB)
DEMO_ROWS = {
    "train": {"rows": 192, "tokens": 23613, "answer_tokens": 13396},
    "heldout": {"rows": 48, "tokens": 5936, "answer_tokens": 3395},
}


def experiment(**changes):
    raw = yaml.safe_load((ROOT / "config.yaml").read_text())
    for path, value in changes.items():
        section, _, key = path.rpartition("__")
        (raw[section] if section else raw)[key] = value
    return load_config(raw)


def planned(device="H200", teacher=QWEN_7B, student=QWEN_3B, memory=None, **changes):
    config = experiment(**changes)
    shapes = Shape.from_config(teacher), Shape.from_config(student)
    tokens = planner.default_tokens(config)
    entries = planner.plan(config, *shapes, devices.of_name(device, memory), tokens)
    return {entry["stage"]: entry for entry in entries}


@pytest.mark.parametrize("raw, count", [(QWEN_7B, 7_615_616_512), (QWEN_3B, 3_085_938_688)])
def test_weights_of_published_models(raw, count):
    assert Shape.from_config(raw).parameters == count


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2"},
        {"model_type": "qwen2", "tie_word_embeddings": True},
        {"model_type": "qwen3", "head_dim": 48},
        {"model_type": "qwen3", "attention_bias": True},
        {"model_type": "llama"},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 24},
        {"model_type": "mistral"},
        {"model_type": "gemma"},
        {"model_type": "gemma2"},
        {"model_type": "gemma3_text"},
        {"model_type": "smollm3"},
        {"model_type": "phi3"},
        {"model_type": "olmo2"},
        {"model_type": "granite"},
        {"model_type": "mixtral", "num_local_experts": 4},
        {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_weights_are_those_of_transformers(changes):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 200,
        **changes,
    }
    settings = {key: value for key, value in raw.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(raw["model_type"], **settings, pad_token_id=0)
        )
    model.tie_weights()
    assert Shape.from_config(raw).parameters == sum(p.numel() for p in model.parameters())


def test_adapters_are_those_of_peft():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in SMOL.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings))
        for targets in ("all-linear", ["q_proj", "v_proj"]):
            lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=targets)
            wrapped = get_peft_model(model, lora)
            trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
            assert Shape.from_config(SMOL).adapters(8, targets) == trained
            model = wrapped.unload()


@pytest.mark.parametrize(
    "raw, words",
    [
        ({"model_type": "mamba"}, "model_type mamba cannot be planned: its config.json has no hidden_size"),
        ({}, "its config.json has no hidden_size"),
        ({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}, "num_hidden_layers"),
    ],
)
def test_other_models_are_refused_in_one_line(raw, words):
    with pytest.raises(UserError, match=words) as error:
        Shape.from_config(raw)
    assert "\n" not in str(error.value)


def test_derived_student_has_fewer_layers():
    teacher = Shape.from_config(SMOL)
    student = teacher.with_layers(24)
    per_layer = (teacher.matrices // 30) + 2 * 576
    assert teacher.parameters - student.parameters == 6 * per_layer
    assert student.head == teacher.head


@pytest.mark.parametrize("again", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("device", ["H200", "cpu"])
def test_activations_are_those_that_autograd_keeps(monkeypatch, tuning, again, device):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import saved

    hidden, heads, kv, size, mlp = shape = saved.SHAPES[-1]
    on_cpu = device == "cpu"
    raw = QWEN_3B | {"hidden_size": hidden, "num_attention_heads": heads, "head_dim": size}
    raw |= {"num_key_value_heads": kv, "intermediate_size": mlp, "num_hidden_layers": 8}
    settings = experiment(distillation__dtype="bfloat16").distillation.model_copy(
        update={"tuning": tuning, "gradient_checkpointing": again, "batch_size": 4, "tokens_per_pass": 4000}
    )
    tokens = planner.default_tokens(experiment(), longest=1000)
    layers = Shape.from_config(raw), Shape.from_config(raw).with_layers(7)
    eight, seven = (needs.training(s, settings, tokens, devices.DEVICES[device]) for s in layers)
    said = (eight.transient - seven.transient) / 4000
    rank = 14 * settings.lora_rank if tuning == "lora" and not again else 0  # which the planner leaves out
    measured = saved.per_token(shape, tuning, again, on_cpu) - rank
    assert said == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("epochs", [1, 3, 0.5, 2.3])
@pytest.mark.parametrize("rows, batch, accumulation", [(192, 4, 2), (1000, 1, 32), (193, 4, 7), (3, 8, 4)])
def test_steps_are_rounded_as_the_trainer_rounds_them(tmp_path, rows, batch, accumulation, epochs):
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=epochs, gradient_accumulation_steps=accumulation, use_cpu=True
    )
    trainer = SimpleNamespace(
        get_total_train_batch_size=lambda _: batch * accumulation,
        get_sp_size=lambda: 1,
        num_examples=lambda _: rows,
    )
    *_, most = Trainer.set_initial_training_values(trainer, arguments, DataLoader(range(rows), batch))
    settings = Training(epochs=epochs, batch_size=batch, gradient_accumulation=accumulation)
    assert planner.steps(settings, rows) == most


DERIVED = {"derive": {"from": "teacher", "keep_layers": 24}}


def test_a_student_cut_from_its_teacher_with_few_steps_is_warned_of_and_another_is_not():
    few = experiment(student=DERIVED, data__train_rows=192)
    said, do = planner.too_few_steps(few, 192)
    assert "get 18 optimiser steps each" in said
    for key in ("distillation.epochs", "data.train_rows", "distillation.gradient_accumulation"):
        assert key in do
    assert planner.too_few_steps(few, 384) is None, "36 are enough"
    assert planner.too_few_steps(experiment(data__train_rows=192), 192) is None


def test_strategies_with_steps_of_their_own_are_named():
    strategies = {"fkl": {"divergence": "fkl"}, "long": {"divergence": "rkl", "epochs": 9}}
    said, _ = planner.too_few_steps(experiment(student=DERIVED, strategies=strategies), 192)
    assert "get 18 optimiser steps for sft, fkl;" in said and "long" not in said


def test_every_stage_and_its_jobs():
    plan = planned(seeds=[0, 1, 2])
    jobs = {stage: entry["jobs"] for stage, entry in plan.items()}
    assert jobs == {
        "sft_teacher": 1,
        "cache_teacher": 1,
        "sft_student": 3,
        "distill": 12,
        "generate": 18,
        "measure_fidelity": 16,
    }
    assert planned(teacher_cache__shards=8)["cache_teacher"]["jobs"] == 8


def test_default_experiment_fits_one_large_card():
    for entry in planned().values():
        assert entry["too_large"] is None
        assert 0 < entry["hours"] < 10 and entry["gpu_bytes"] < 141 * GIB
        assert entry["gpu_bytes"] > 2 * entry["parameters"]


def test_answers_to_the_training_prompts_are_planned():
    """One set for all who sample alike, states where they are read, a student's own in its training."""
    fixed = {"fkl": {"divergence": "fkl"}, "seqkd": {"method": "seqkd"}}
    both = planned(strategies=fixed | {"seqfkl": {"answers": "teacher", "divergence": "fkl"}})
    assert "cache_answers" not in planned(strategies=fixed)
    assert both["answer_teacher"]["jobs"] == both["cache_answers"]["jobs"] == 1
    assert both["distill"]["jobs"] == 3 and "distill_on_policy" not in both
    own = {"opd": {"answers": "student", "divergence": "rkl"}, "half": {"method": "gkd"}}
    plan = planned(strategies=fixed | own)
    alone = plan["distill_on_policy"]
    assert alone["jobs"] == 2 and alone["hours"] > plan["distill"]["hours"]
    offline = planned(strategies={"rkl": {"divergence": "rkl", "online": True}})["distill"]
    whole, half = (
        planned(strategies={"x": {"answers": answers, "divergence": "rkl"}})["distill_on_policy"]
        for answers in ("student", {"student": 0.5, "dataset": 0.5})
    )
    sampled = whole["hours"] - offline["hours"]
    assert half["hours"] - offline["hours"] == pytest.approx(sampled / 2)
    longer = planned(strategies=own, sampling__max_new_tokens=2048)["distill_on_policy"]
    assert longer["hours"] > alone["hours"] and longer["gpu_bytes"] >= alone["gpu_bytes"]
    cramped = planned(strategies=fixed, memory=25)["answer_teacher"]
    assert cramped["too_large"] == "sampling.batch_size"


def test_the_memory_of_a_job_is_that_of_its_kind():
    small = {"divergence": "fkl", "gradient_checkpointing": True}
    plan = planned(strategies={"small": small, "large": {"divergence": "fkl"}})
    of = plan["distill"]["gpu_bytes_of"]
    assert of["small"] < of["large"] / 3 and plan["distill"]["gpu_bytes"] == of["large"]
    assert plan["generate"]["gpu_bytes_of"]["student"] < plan["generate"]["gpu_bytes_of"]["teacher"]
    assert planned("cpu")["distill"]["gpu_bytes_of"]["fkl"] == 0
    assert expected.gpu_mb(plan["distill"], "small") == -(-of["small"] // 2**20)
    assert expected.gpu_mb(plan["distill"], "nobody") == expected.gpu_mb(plan["distill"], "large")
    assert expected.gpu_mb(None) > max(device.memory * 1024 for device in devices.DEVICES.values())


def test_more_rows_take_more_hours_and_disk():
    few, many = planned(), planned(data__train_rows=100_000)
    for stage in ("sft_teacher", "cache_teacher", "sft_student", "distill"):
        assert many[stage]["hours"] > 5 * few[stage]["hours"]
    assert many["cache_teacher"]["disk_bytes"] > 50 * 0.9e9
    # 2 d + 4 bytes per answer token, and the head
    rows = (100_000 + 100) * 146
    assert many["cache_teacher"]["disk_bytes"] == pytest.approx(rows * (2 * 3584 + 4) + 2 * 152064 * 3584)


@pytest.mark.parametrize(
    "stage, less, more",
    [
        (
            "sft_teacher",
            {"teacher_training__gradient_checkpointing": True},
            {"teacher_training__gradient_checkpointing": False},
        ),
        ("sft_teacher", {"teacher_training__load_in_4bit": True}, {}),
        ("sft_teacher", {}, {"teacher_training__tuning": "full"}),
        (
            "sft_teacher",
            {"teacher_training__tokens_per_pass": 512},
            {"teacher_training__tokens_per_pass": 9000},
        ),
        ("sft_student", {"data__max_tokens": 512, "distillation__tokens_per_pass": 512}, {}),
        ("distill", {"distillation__tokens_per_pass": 2048}, {"distillation__tokens_per_pass": 9000}),
        ("distill", {}, {"distillation__lora_rank": 128}),
        ("distill", {}, {"teacher__online": True}),
        (
            "distill",
            {"distillation__tuning": "full", "distillation__optimizer": "adamw_8bit"},
            {"distillation__tuning": "full"},
        ),
        ("cache_teacher", {"teacher_cache__batch_tokens": 512}, {}),
        ("generate", {"evaluation__batch_size": 4}, {"evaluation__batch_size": 128}),
        ("generate", {"evaluation__dtype": "bfloat16"}, {"evaluation__dtype": "float32"}),
        ("measure_fidelity", {"evaluation__dtype": "bfloat16"}, {"evaluation__dtype": "float32"}),
    ],
)
@pytest.mark.parametrize("device", ["H200", "cpu"])
def test_what_takes_more_memory(stage, less, more, device):
    field = "host_bytes" if device == "cpu" else "gpu_bytes"
    assert planned(device, **less)[stage][field] < planned(device, **more)[stage][field]


def test_faster_cards_take_less_time_and_checkpointing_more():
    slow, fast = planned("T4", data__train_rows=10_000), planned("H200", data__train_rows=10_000)
    assert all(slow[stage]["hours"] >= fast[stage]["hours"] for stage in slow)
    assert slow["cache_teacher"]["hours"] > 5 * fast["cache_teacher"]["hours"]
    without = planned(distillation__gradient_checkpointing=False)
    checkpointed = planned(distillation__gradient_checkpointing=True)
    assert without["distill"]["hours"] < checkpointed["distill"]["hours"]
    assert planned()["distill"]["hours"] == without["distill"]["hours"], "auto, where it fits"


@pytest.mark.parametrize(
    "stage, key, device, changes",
    [
        ("sft_teacher", "teacher_training.tuning", "H100", {"teacher_training__tuning": "full"}),
        ("sft_teacher", "teacher_training.load_in_4bit", "T4", {}),
        ("generate", "evaluation.batch_size", "RTX-3090", {"evaluation__batch_size": 256}),
        ("cache_teacher", "resources.gpus.cache_teacher", "T4", {"memory": 12}),
        ("cache_teacher", "teacher.id", "T4", {"memory": 1}),
        (
            "cache_teacher",
            "teacher_cache.batch_tokens",
            "H200",
            {"memory": 16, "teacher_cache__batch_tokens": 32768},
        ),
        (
            "distill",
            "strategies.wide.tokens_per_pass",
            "RTX-3090",
            {"strategies": {"wide": {"divergence": "fkl", "batch_size": 64, "tokens_per_pass": 60_000}}},
        ),
        (
            "sft_student",
            "distillation.gradient_checkpointing",
            "RTX-3090",
            {"distillation__gradient_checkpointing": False, "distillation__batch_size": 8},
        ),
    ],
)
def test_what_does_not_fit_names_its_key(stage, key, device, changes):
    assert planned(device, **changes)[stage]["too_large"] == key


def test_devices_have_every_number():
    for name, device in devices.DEVICES.items():
        assert name == device.name and min(device.memory, device.bandwidth, device.rate) > 0
        assert all(len(line) < 98 for line in devices.assumptions(device))


def measured_demo() -> dict:
    """The demo as it was when its memory was measured: in bfloat16, on 192 rows and 24 layers."""
    raw = yaml.safe_load((ROOT / "experiments" / "demo.yaml").read_text())
    raw["data"]["train_rows"] = 192
    raw["student"]["derive"]["keep_layers"] = 24
    for section in ("teacher_training", "teacher_cache", "distillation", "evaluation"):
        raw[section] = raw.get(section, {}) | {"dtype": "bfloat16"}
    for section in ("teacher_training", "distillation"):
        raw[section] |= {"batch_size": 4, "gradient_accumulation": 2}
    return raw


def test_demo_s_memory_within_a_quarter():
    config = load_config(measured_demo())
    teacher = Shape.from_config(SMOL)
    tokens = planner.default_tokens(config, DEMO_ROWS, longest=199)
    tokens |= {"prompts": 64, "longest_prompt": 92}
    plan = planner.plan(config, teacher, teacher.with_layers(24), devices.DEVICES["cpu"], tokens)
    for entry in plan:
        assert entry["host_bytes"] / 2**20 == pytest.approx(DEMO_MIB[entry["stage"]], rel=0.25), entry
        assert entry["gpu_bytes"] == entry["gpu_hours"] == 0


# VmHWM in MiB of sft.py alone on the demo's teacher and rows, one thread: no number was fitted to these.
@pytest.mark.parametrize(
    "changes, mib",
    [
        ({"gradient_checkpointing": True}, 2315),
        ({"batch_size": 1, "gradient_accumulation": 8}, 2377),
        ({"batch_size": 8, "gradient_accumulation": 1}, 3853),
        ({"tuning": "full"}, 5417),
    ],
)
def test_memory_of_other_settings_within_a_quarter(changes, mib):
    raw = measured_demo()
    raw["teacher_training"] |= changes
    config = load_config(raw)
    tokens = planner.default_tokens(config, DEMO_ROWS, longest=199)
    teacher = Shape.from_config(SMOL)
    plan = planner.plan(config, teacher, teacher.with_layers(24), devices.DEVICES["cpu"], tokens)
    assert plan[0]["host_bytes"] / 2**20 == pytest.approx(mib, rel=0.25)


def test_products_are_compiled_once_per_shape_on_a_cpu_and_in_two_bytes():
    cpu, gpu = devices.DEVICES["cpu"], devices.DEVICES["H200"]
    few, many = (devices.device_bytes(cpu, 0, 0, count) for count in (0, 10**6))
    assert many - few == 2**30
    assert devices.device_bytes(gpu, 0, 0, 10**6) == devices.device_bytes(gpu, 0, 0)


def test_several_gpus_divide_what_does_not_fit_and_spreading_takes_no_less_time():
    one, four = (planned("A100-40GB", resources__gpus=dict.fromkeys(STAGES, n)) for n in (1, 4))
    for stage in ("cache_teacher", "generate", "measure_fidelity"):
        assert four[stage]["gpu_bytes"] < one[stage]["gpu_bytes"]
        assert four[stage]["hours"] == one[stage]["hours"]
        assert four[stage]["gpu_hours"] == 4 * one[stage]["gpu_hours"]
    # 7B with adapters fits: every process has the whole model, and works.
    assert four["sft_teacher"]["gpu_bytes"] == one["sft_teacher"]["gpu_bytes"]
    assert four["sft_teacher"]["hours"] < one["sft_teacher"]["hours"]
    full = {"distillation__tuning": "full", "resources__gpus": {"distill": 4}}
    assert planned("A100-40GB", **full)["distill"]["too_large"] is None
    assert planned("A100-40GB", **full | {"resources__gpus": {}})["distill"]["too_large"]


def test_sources_lie_where_the_workflow_puts_them():
    source = stage_params(experiment(), "fetch_teacher")
    assert source_name(source) == f"Qwen2.5-7B-Instruct-{sha256_json(source)[:8]}"


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / "workflow" / "scripts" / "plan.py", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def tiny_experiment(tmp_path):
    """The tiny experiment as far as a plan sees it: two config.json, no weights."""
    for side, hidden in (("teacher", 64), ("student", 32)):
        (tmp_path / side).mkdir()
        raw = SMOL | {"hidden_size": hidden, "num_attention_heads": 4, "num_key_value_heads": 2}
        (tmp_path / side / "config.json").write_text(json.dumps(raw))
    tiny.write_jsonl(tmp_path / "rows.jsonl", tiny.rows(40))
    tiny.write_jsonl(tmp_path / "prompts.jsonl", tiny.prompts())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny.configuration(tmp_path)))
    return tmp_path


def test_command(tiny_experiment):
    done = command(tiny_experiment, "--device", "cpu", "--output", "plan.json")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    written = json.loads((tiny_experiment / "plan.json").read_text())
    assert [entry["stage"] for entry in written["stages"]] == list(DEMO_MIB)
    assert written["tokens"]["prompts"] == 4
    assert written["total"]["jobs"] == 1 + 1 + 1 + 4 + 8 + 6
    assert "assumed" in done.stdout


def test_command_warns_of_a_derived_student_with_few_steps(tiny_experiment):
    assert "warning" not in command(tiny_experiment, "--device", "cpu").stdout
    raw = yaml.safe_load((tiny_experiment / "config.yaml").read_text()) | {"student": DERIVED}
    (tiny_experiment / "config.yaml").write_text(yaml.safe_dump(raw))
    said = command(tiny_experiment, "--device", "cpu").stdout
    assert max(map(len, said.splitlines())) <= 100
    assert "warning: students cut from their teacher get 3 optimiser steps each" in said


def test_command_reads_the_rows_of_a_finished_subset(tiny_experiment):
    config = load_config(yaml.safe_load((tiny_experiment / "config.yaml").read_text()))
    data = tiny_experiment / "results" / "tiny" / "data"
    data.mkdir(parents=True)
    manifest = {"params": stage_params(config, "subset"), "report": DEMO_ROWS}
    (data / "manifest.json").write_text(json.dumps(manifest))
    done = command(tiny_experiment, "--device", "T4")
    assert "rows: 192 of 123 tokens, 70 of them answer, as counted" in done.stdout
    manifest["params"]["max_tokens"] = 999
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert "as counted" not in command(tiny_experiment, "--device", "T4").stdout


def test_command_says_what_is_missing(tiny_experiment):
    done = command(tiny_experiment, "--config", ROOT / "config.yaml")
    assert done.returncode == 1
    assert "--teacher-config" in done.stderr and "Traceback" not in done.stderr
    given = "--teacher-config", "teacher/config.json", "--student-config", "student/config.json"
    assert command(tiny_experiment, "--config", ROOT / "config.yaml", *given).returncode == 0
    done = command(tiny_experiment, "--memory", "0.1")
    assert done.returncode == 0 and "and H200 has 0.1: change " in done.stdout
