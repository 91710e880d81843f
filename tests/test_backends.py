"""Which backend trains and why, its few own lines, and what happens when memory or numbers run out."""

import importlib.metadata
import importlib.util
import logging
import math
import sys
import types

import pytest
import torch
from test_training import DATA, cache, frame, job, run, tokenizer, trained  # noqa: F401

from kdag.job.errors import UserError
from kdag.losses.divergences import load as divergence
from kdag.models import load
from kdag.teacher.cache import TeacherCache
from kdag.training import backends, batches, checkpoints, train

has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None


# --- which one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("installed", "asked", "gpu", "processes", "reason"),
    [
        (None, ["lora"], True, 1, "not installed"),
        ("2026.10.7", ["lora"], False, 1, "needs a GPU"),
        ("2026.10.9", ["lora"], True, 2, "several processes"),
        ("2026.10.9", ["full"], True, 1, "tuning: full"),
        ("2026.10.9", ["lora", True], True, 1, "the teacher is online"),
        ("2026.6.1", ["lora"], True, 1, "unsloth 2026.6.1 trains without a causal mask"),
    ],
)
def test_without_unsloth_a_line_says_why(monkeypatch, caplog, installed, asked, gpu, processes, reason):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with caplog.at_level(logging.INFO):
        assert backends.start("auto", *asked) == "transformers"
        assert backends.start("unsloth", *asked) == "transformers"
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING"]
    assert all(reason in r.message for r in caplog.records)


def test_transformers_is_taken_without_a_word(caplog):
    with caplog.at_level(logging.INFO):
        assert backends.start("transformers") == "transformers"
    assert not caplog.records


@pytest.fixture
def unsloth(monkeypatch):
    """A stand-in with Unsloth's interface that does what it does with transformers and peft."""
    calls = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(model_name, dtype, **settings):
            calls["load"] = settings
            return load.load_model(model_name, str(dtype).removeprefix("torch.")), None

        @staticmethod
        def get_peft_model(model, use_gradient_checkpointing, random_state, **settings):
            from peft import LoraConfig, get_peft_model

            calls["adapters"] = settings
            return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))

    module = types.ModuleType("unsloth")
    module.FastLanguageModel, module.__version__ = FastLanguageModel, "of the test"
    module.__spec__ = importlib.util.spec_from_loader("unsloth", loader=None)
    monkeypatch.setitem(sys.modules, "unsloth", module)
    return calls


def test_unsloth_shares_the_path_and_gives_the_same_losses(
    unsloth,
    tiny_models,
    frame,  # noqa: F811
    cache,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    _, expected = run(tiny_models, frame, cache, tmp_path / "a")
    settings = job()
    monkeypatch.setattr(backends, "why_not_unsloth", lambda *_: None)
    backend = backends.start("auto")
    assert backend == "unsloth"
    longest = max(map(len, frame["input_ids"]))
    model = backends.load(tiny_models / "student", settings, backend, longest)
    from test_training import DATA

    from kdag.teacher.cache import TeacherCache

    seen = TeacherCache(cache, "train", frame, DATA)
    objective = train.Objective(divergence("fkl"), {}, 0.5, 2.0)
    _, log = train.train(
        model,
        frame,
        settings=settings,
        objective=objective,
        teacher=seen,
        vocabulary=seen.head.shape[0],
        work=tmp_path / "b",
        backend=backend,
    )
    assert [entry["loss"] for entry in log] == pytest.approx([entry["loss"] for entry in expected], rel=1e-5)
    assert unsloth["load"]["use_exact_model_name"] and unsloth["load"]["load_in_4bit"] is False
    assert unsloth["load"]["max_seq_length"] == longest
    assert unsloth["adapters"]["target_modules"] == backends.LINEAR_LAYERS


def test_eight_bit_optimiser_and_four_bits_name_what_is_missing(monkeypatch, tiny_models):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="adamw_8bit needs the package bitsandbytes"):
        backends.optimizer(job(optimizer="adamw_8bit"))
    with pytest.raises(UserError, match="load_in_4bit needs the package bitsandbytes"):
        backends.load(tiny_models / "student", job(load_in_4bit=True), "transformers", 10)
    with pytest.raises(ValueError, match="cannot be trained"):
        job(load_in_4bit=True, tuning="full")


@pytest.mark.skipif(not has_bitsandbytes, reason="the package bitsandbytes is not installed")
def test_four_bits_train_and_merge_into_the_weights_as_they_were(
    tiny_models,
    frame,  # noqa: F811
    cache,  # noqa: F811
    tmp_path,
):
    wide = tiny_models / "teacher"  # a block of four-bit weights is 64 long, as wide as this model
    settings = job(load_in_4bit=True)
    model = backends.load(wide, settings, "transformers", 100)
    assert type(model.base_model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    vocabulary = len(load.load_tokenizer(wide))
    model, log = train.train(
        model,
        frame,
        settings=settings,
        objective=train.Objective(divergence("fkl"), {}, 0.5, 2.0),
        teacher=TeacherCache(cache, "train", frame, DATA),
        vocabulary=vocabulary,
        work=tmp_path / "work",
    )
    assert all(math.isfinite(entry["ce"]) for entry in log) and log[-1]["ce"] < log[0]["ce"]
    tokenizer = load.load_tokenizer(wide)  # noqa: F811
    train.save_trained(model, tokenizer, tmp_path / "model", "float32", wide)
    merged, base = (
        dict(load.load_model(folder, "float32").named_parameters()) for folder in (tmp_path / "model", wide)
    )
    for name, weight in merged.items():
        moved = torch.linalg.matrix_rank(weight - base[name], atol=1e-5) if weight.ndim == 2 else 0
        assert moved <= settings.lora_rank, f"{name} is not its own weight and an adapter"
    assert any(not torch.equal(weight, base[name]) for name, weight in merged.items())


# --- memory ---------------------------------------------------------------------------------------


def test_splitting_a_batch_loses_nothing():
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate((5, 3, 7)):
        targets = torch.full((length,), -100)
        targets[-2:] = number
        hidden = torch.randn(2, 4, generator=generator)
        rows.append(
            {
                "input_ids": torch.arange(length).numpy(),
                "targets": targets.numpy(),
                "row": number,
                "teacher": {"hidden": hidden},
            }
        )
    whole = batches.collate(rows)
    pieces = batches.split(whole, 2)
    assert [piece["rows"].tolist() for piece in pieces] == [[0, 1], [2]]
    assert [piece["input_ids"].shape for piece in pieces] == [(2, 5), (1, 7)]
    assert torch.equal(torch.cat([p["teacher"]["hidden"] for p in pieces]), whole["teacher"]["hidden"])
    assert sum(int((p["labels"] != -100).sum()) for p in pieces) == 6
    assert len(batches.split(whole, 8)) == 3


def out_of_memory_above(rows, monkeypatch):
    """Passes of more than `rows` rows run out of memory; the fourth pass, amid a step, is the first to."""
    real, passes = train.DistillTrainer.losses, []

    def losses(self, inputs, num_items):
        passes.append(len(inputs["input_ids"]))
        if len(passes) > 3 and passes[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(self, inputs, num_items)

    monkeypatch.setattr(train.DistillTrainer, "losses", losses)
    return passes


def test_out_of_memory_halves_the_pass_and_not_the_step(
    tiny_models,
    frame,  # noqa: F811
    cache,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
):
    settings = job(batch_size=4, gradient_accumulation=2)
    model, expected = run(tiny_models, frame, cache, tmp_path / "a", settings)
    before = trained(model)
    passes = out_of_memory_above(1, monkeypatch)
    model, log = run(tiny_models, frame, cache, tmp_path / "b", settings)
    assert max(passes[8:]) == 1
    assert torch.allclose(trained(model), before, atol=1e-5)
    assert [entry["ce"] for entry in log] == pytest.approx([entry["ce"] for entry in expected], rel=1e-4)
    assert [entry["answer_tokens"] for entry in log] == [entry["answer_tokens"] for entry in expected]
    assert log[-1]["parts"] == 4 and "parts" not in log[0]
    assert "begins again with 2 rows per pass" in caplog.text and "with 1 rows per pass" in caplog.text


def test_out_of_memory_with_one_row_names_the_keys(
    tiny_models,
    frame,  # noqa: F811
    cache,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(UserError, match="out of memory with 1 rows per pass.*gradient_checkpointing"):
        run(tiny_models, frame, cache, tmp_path, job(batch_size=1))


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_loss_stops_before_anything_is_saved(
    tiny_models,
    frame,  # noqa: F811
    cache,  # noqa: F811
    tmp_path,
    monkeypatch,
    value,
):
    real, passes = train.DistillTrainer.losses, []

    def losses(self, inputs, num_items):
        passes.append(inputs["rows"].tolist())
        loss, metrics = real(self, inputs, num_items)
        return (loss * value if len(passes) == 3 else loss), metrics

    monkeypatch.setattr(train.DistillTrainer, "losses", losses)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    settings = job(batch_size=4, gradient_accumulation=2)
    with pytest.raises(UserError, match=r"step 2: (loss|grad_norm) is (nan|inf) \(fkl\)") as error:
        run(tiny_models, frame, cache, tmp_path, settings)
    rows = sorted(passes[2] + passes[3])
    assert str(rows) in str(error.value)
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_tensorboard_curves_lie_where_they_are_wanted(tiny_models, frame, tmp_path):  # noqa: F811
    train.train(
        load.load_model(tiny_models / "student", "float32"),
        frame,
        settings=job(),
        objective=train.Objective(),
        teacher=None,
        vocabulary=len(load.load_tokenizer(tiny_models / "student")),
        work=tmp_path / ".checkpoints",
        tensorboard=tmp_path / "tensorboard",
    )
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
