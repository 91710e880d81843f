"""A step's rows in passes of at most so many tokens: the same rows, the same loss, the same gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import cache, frame, job, run, tokenizer, trained  # noqa: F401

from kdag.losses.divergences import NAMES
from kdag.losses.divergences import load as divergence
from kdag.models import head
from kdag.teacher.live import LiveTeacher
from kdag.training import batches, train
from kdag.training.batches import EpochSampler
from kdag.training.trainer import DistillTrainer

STEP = {"batch_size": 1, "gradient_accumulation": 8, "max_grad_norm": 0.5}
TOKENS = 300  # rows have 50 to 80, so passes have several


def figures(log) -> np.ndarray:
    return np.array([[entry[key] for key in ("loss", "ce", "grad_norm")] for entry in log])


def same(log, other) -> None:
    assert np.allclose(figures(log), figures(other), rtol=1e-6, atol=1e-6)
    assert [entry["answer_tokens"] for entry in log] == [entry["answer_tokens"] for entry in other]


@pytest.fixture
def passes(monkeypatch):
    """(rows, tokens of the longest) of every forward pass."""
    seen, real = [], head.hidden_states

    def counted(model, ids, mask):
        if model.training:
            seen.append(tuple(ids.shape))
        return real(model, ids, mask)

    monkeypatch.setattr(head, "hidden_states", counted)
    return seen


@pytest.mark.parametrize("name", [None, *NAMES])
def test_every_loss_is_that_of_single_rows(name, tiny_models, frame, cache, tmp_path, passes):  # noqa: F811
    objective = {"divergence": divergence(name) if name else None, "kl_weight": 0.5 if name else 0.0}
    seen = cache if name else None
    expected, log = run(tiny_models, frame, seen, tmp_path / "a", job(**STEP), **objective)
    assert all(rows == 1 for rows, _ in passes)
    passes.clear()
    model, other = run(
        tiny_models, frame, seen, tmp_path / "b", job(**STEP, tokens_per_pass=TOKENS), **objective
    )
    assert max(rows for rows, _ in passes) > 2
    assert all(rows == 1 or rows * longest <= TOKENS for rows, longest in passes)
    same(log, other)
    assert torch.allclose(trained(model), trained(expected), rtol=1e-4, atol=1e-5)


def test_batch_size_and_accumulation_of_one_product_are_one_training(
    tiny_models,
    frame,  # noqa: F811
    cache,  # noqa: F811
    tmp_path,
):
    """To the byte, where both sort a step's rows."""
    logs = [
        run(tiny_models, frame, cache, tmp_path / str(rows), job(
            batch_size=rows, gradient_accumulation=8 // rows, tokens_per_pass=TOKENS
        ))[1]
        for rows in (2, 8)
    ]  # fmt: skip
    assert logs[0] == logs[1]


def test_a_live_teacher_and_whole_steps(tiny_models, frame, cache, tmp_path, passes):  # noqa: F811
    from kdag.files.manifest import write_manifest

    home = tmp_path / "teacher"
    home.mkdir()
    (home / "model").symlink_to(tiny_models / "teacher")
    written = {"stage": "test", "params": {}, "inputs": {}, "outputs": [home / "model"]}
    write_manifest(home / "manifest.json", **written)
    live = LiveTeacher(home / "manifest.json", "float32", 400)
    _, log = run(tiny_models, frame, cache, tmp_path / "a", job(**STEP))
    passes.clear()
    _, other = run(tiny_models, frame, live, tmp_path / "b", job(**STEP, tokens_per_pass=10_000))
    assert len(passes) == len(other) == 3, "a pass for each step"
    same(log, other)


def test_out_of_memory_halves_the_tokens(tiny_models, frame, cache, tmp_path, monkeypatch):  # noqa: F811
    _, expected = run(tiny_models, frame, cache, tmp_path / "a", job(**STEP))
    real = DistillTrainer.losses

    def small(self, inputs, num_items):
        if inputs["input_ids"].numel() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(self, inputs, num_items)

    monkeypatch.setattr(DistillTrainer, "losses", small)
    _, log = run(tiny_models, frame, cache, tmp_path / "b", job(**STEP, tokens_per_pass=10_000))
    same(expected, log)
    assert log[-1]["tokens_per_pass"] <= 312


def test_out_of_memory_turns_checkpointing_on_first(
    tiny_models,
    frame,  # noqa: F811
    cache,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
):
    """As on a GPU: no activation is computed twice until one does not fit."""
    _, expected = run(tiny_models, frame, cache, tmp_path / "a", job(**STEP))
    monkeypatch.setattr(train, "checkpoints", lambda *_: False)
    real, saving = DistillTrainer.losses, []

    def small(self, inputs, num_items):
        saving.append(head.base_model(self.model).is_gradient_checkpointing)
        if len(saving) > 1 and not saving[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(self, inputs, num_items)

    monkeypatch.setattr(DistillTrainer, "losses", small)
    settings = job(**STEP, tokens_per_pass=TOKENS, gradient_checkpointing="auto")
    _, log = run(tiny_models, frame, cache, tmp_path / "b", settings)
    same(expected, log)
    assert saving[:2] == [False, False] and all(saving[2:])
    assert "gradient checkpointing is on from here" in caplog.text
    assert {entry["tokens_per_pass"] for entry in log} == {TOKENS}


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, tokens=st.integers(1, 120))
def test_pieces_have_every_row_once_with_what_is_its_own(lengths, tokens):
    rows = [
        {
            "input_ids": np.full(length, number),
            "targets": np.where(np.arange(length) < length // 2, -100, number),
            "row": number,
            "teacher": {"hidden": torch.full((length - length // 2, 3), float(number))},
        }
        for number, length in enumerate(lengths)
    ]
    batch = batches.collate(rows)
    pieces = batches.split_by_tokens(batch, tokens)
    assert sorted(row for piece in pieces for row in piece["rows"].tolist()) == list(range(len(rows)))
    for piece in [*pieces, *batches.split(batch, 3)]:
        many, longest = piece["input_ids"].shape
        assert longest == piece["attention_mask"].sum(1).max()
        owners = piece["rows"][:, None].expand(-1, longest)[piece["labels"] != -100]
        assert torch.equal(piece["labels"][piece["labels"] != -100], owners)
        assert torch.equal(piece["teacher"]["hidden"][:, 0].long(), owners)
    assert all(len(p["rows"]) == 1 or p["input_ids"].numel() <= tokens for p in pieces)
    nothing = batches.nothing_to_learn(batch)
    assert nothing["input_ids"].shape == (1, 1) and not (nothing["labels"] != -100).any()
    assert nothing["teacher"]["hidden"].shape == (0, 3)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_step_has_the_same_rows_however_it_is_cut_and_shared(processes):
    lengths = np.arange(1, 61)
    whole = list(EpochSampler(lengths, 1, 0, lambda: 0, 1, 12))
    shared = list(EpochSampler(lengths, 12 // processes, 0, lambda: 0, processes, processes))
    for first in range(0, 60, 12):
        assert set(whole[first : first + 12]) == set(shared[first : first + 12])
        shares = [shared[first + p * 12 // processes :][: 12 // processes] for p in range(processes)]
        tokens = [sum(int(lengths[row]) for row in share) for share in shares]
        assert max(tokens) - min(tokens) <= 60, "each process has as many long rows as the others"


def test_adapters_take_what_comes_in_as_it_is(tiny_models, frame, cache, tmp_path, monkeypatch):  # noqa: F811
    """To the bit what PEFT's cast to float32 gives, which autocast turns back at once."""
    from peft.tuners.lora import LoraLayer

    changes = {"dtype": "bfloat16", "tokens_per_pass": TOKENS}
    model, log = run(tiny_models, frame, cache, tmp_path / "a", job(**changes))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert layers and not any(layer.cast_input_dtype_enabled for layer in layers)
    monkeypatch.setattr(
        LoraLayer, "cast_input_dtype_enabled", property(lambda _: True, lambda _, value: None), False
    )
    other, cast = run(tiny_models, frame, cache, tmp_path / "b", job(**changes))
    assert next(m for m in other.modules() if isinstance(m, LoraLayer)).cast_input_dtype_enabled
    assert log == cast and torch.equal(trained(model), trained(other))
