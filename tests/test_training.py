"""Models, the teacher's cache and the Trainer, on the tiny pair."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

from kdag.config.sources import Derive
from kdag.config.training import DistillationJob
from kdag.config.training import TeacherCache as TeacherCacheSettings
from kdag.data import rows
from kdag.files.manifest import write_manifest
from kdag.job.errors import UserError
from kdag.losses.divergences import load as divergence
from kdag.models import derive, load
from kdag.models.head import check_head, head_weight
from kdag.teacher.cache import TeacherCache, answer_states, write_head, write_part
from kdag.teacher.live import LiveTeacher
from kdag.teacher.writing import encoder
from kdag.training import checkpoints, train
from kdag.training.batches import EpochSampler, Rows, collate

DATA = {"vocabulary_hash": "of a vocabulary", "template_hash": "of a template"}


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return load.load_tokenizer(tiny_models / "student")


@pytest.fixture(scope="module")
def frame(tokenizer, tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("frame")
    tiny.encoded(tiny.rows(26), tokenizer, folder, train_rows=24, heldout_rows=2)
    return rows.read_rows(folder / "train.parquet")


def write_cache(folder, frame, model, vocabulary, dtype="float32", rows_per_shard=10, **changes) -> Path:
    settings = TeacherCacheSettings(dtype=dtype, **changes)
    head = head_weight(model, vocabulary).detach()
    write_part(
        model,
        frame,
        folder / "train",
        unit="rows",
        batch_tokens=500,
        rows_per_shard=rows_per_shard,
        encode=encoder(settings.store, head, settings),
    )
    write_head(model, vocabulary, folder / "head.safetensors", dtype)
    manifest = folder / "manifest.json"
    write_manifest(
        manifest,
        stage="cache_teacher",
        params={},
        inputs={"teacher": "of a teacher"},
        outputs=[folder / "train", folder / "head.safetensors"],
        **DATA,
        store={"train": settings.store},
        parameters={"train": settings.parameters()},
        row_hashes={"train": frame["row_hash"].tolist()},
    )
    return manifest


@pytest.fixture(scope="module")
def cache(tiny_models, tokenizer, frame, tmp_path_factory) -> Path:
    model = load.load_model(tiny_models / "teacher", "float32", whole_rows=True)
    return write_cache(tmp_path_factory.mktemp("cache"), frame, model, len(tokenizer))


def job(**changes) -> DistillationJob:
    settings = {
        "divergence": "fkl",
        "dtype": "float32",
        "epochs": 1,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "learning_rate": 1e-3,
        "lora_rank": 4,
        "gradient_checkpointing": False,
        "schedule": "constant",
        "warmup_ratio": 0.0,
    }
    return DistillationJob(**settings | changes)


def run(tiny_models, frame, cache, work, settings=None, **objective):
    settings = settings or job()
    vocabulary = len(load.load_tokenizer(tiny_models / "student"))
    return train.train(
        load.load_model(tiny_models / "student", "float32", whole_rows=True),
        frame,
        settings=settings,
        objective=train.Objective(
            **{"divergence": divergence("fkl"), "kl_weight": 0.5, "temperature": 2.0, **objective}
        ),
        teacher=TeacherCache(cache, "train", frame, DATA) if isinstance(cache, Path) else cache,
        vocabulary=vocabulary,
        work=work,
    )


def trained(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def test_hidden_states_and_head_give_the_models_own_logits(tiny_models, tokenizer):
    for name in ("teacher", "student"):
        model = load.load_model(tiny_models / name, "float32")
        check_head(model, len(tokenizer))
        assert head_weight(model, len(tokenizer)).shape[0] == len(tokenizer)
        assert model.get_output_embeddings().weight.shape[0] > len(tokenizer)


@pytest.mark.parametrize("fault", ["scaled", "short"])
def test_head_that_is_not_known_is_refused(tiny_models, tokenizer, fault):
    model = load.load_model(tiny_models / "teacher", "float32")
    vocabulary = len(tokenizer)
    head = model.get_output_embeddings()
    if fault == "scaled":
        head.register_forward_hook(lambda _, __, logits: 5 * torch.tanh(logits / 5))
    else:
        vocabulary = head.weight.shape[0] + 1
    with pytest.raises(UserError, match="head"):
        check_head(model, vocabulary)


def test_missing_weights_are_refused(tiny_models, tmp_path):
    from safetensors.torch import load_file, save_file

    model = load.load_model(tiny_models / "teacher", "float32")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="weights are missing"):
        load.load_model(tmp_path, "float32")


def test_kept_layers_are_evenly_spaced_and_end_to_end(tiny_models):
    model = load.load_model(tiny_models / "teacher", "float32")
    layers = list(model.model.layers)
    derive.keep_layers(model, Derive(keep_layers=3).kept(4))
    assert list(model.model.layers) == [layers[0], layers[2], layers[3]]
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).shape[0] == 1


def test_dropped_layers_are_those_and_no_others(tiny_models):
    model = load.load_model(tiny_models / "teacher", "float32")
    layers = list(model.model.layers)
    derive.keep_layers(model, Derive(drop_layers=[2, 1]).kept(4))
    assert list(model.model.layers) == [layers[0], layers[3]] and model.config.num_hidden_layers == 2
    with pytest.raises(UserError, match="drop_layers is .4.; the teacher has the layers 0 to 3"):
        Derive(drop_layers=[4]).kept(4)
    with pytest.raises(UserError, match="drop_layers"):
        Derive(drop_layers=[0, 1, 2, 3]).kept(4)
    for both in ({}, {"keep_layers": 2, "drop_layers": [1]}):
        with pytest.raises(ValueError, match="either keep_layers or drop_layers is needed"):
            Derive(**both)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_states_are_the_live_teachers_to_the_last_bit(tiny_models, tokenizer, frame, tmp_path, dtype):
    """Batched as they were when they were written; another batch shape may round differently."""
    model = load.load_model(tiny_models / "teacher", dtype, whole_rows=True)
    cache = TeacherCache(write_cache(tmp_path, frame, model, len(tokenizer), dtype), "train", frame, DATA)
    head = head_weight(model, len(tokenizer))
    assert torch.equal(cache.head, head)
    live = {}
    for start in range(0, len(frame), 10):
        part = frame.iloc[start : start + 10]
        states = answer_states(model, part, 500, "rows")
        live |= {start + index: hidden for index, hidden in states}
    for index, hidden in live.items():
        assert torch.equal(cache.row(index)["hidden"], hidden)
        assert torch.equal(cache.row(index)["hidden"] @ cache.head.T, hidden @ head.T)


def test_cache_matches_an_unpadded_forward_pass(tiny_models, frame, cache):
    model = load.load_model(tiny_models / "teacher", "float32")
    read = TeacherCache(cache, "train", frame, DATA)
    for index in (0, 11, 23):
        ids, targets = frame["input_ids"][index], torch.from_numpy(frame["targets"][index])
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([ids.tolist()])).last_hidden_state[0]
        torch.testing.assert_close(read.row(index)["hidden"], hidden[targets != -100], rtol=1e-4, atol=1e-4)
        assert len(read.row(index)["hidden"]) == frame["response_mask"][index].sum()


def test_cache_takes_two_bytes_per_value_and_eight_per_token_at_most(tiny_models, tokenizer, frame, tmp_path):
    model = load.load_model(tiny_models / "teacher", "bfloat16")
    write_cache(tmp_path, frame, model, len(tokenizer), "bfloat16", rows_per_shard=24)
    (shard,) = (tmp_path / "train").glob("*.safetensors")
    from safetensors import safe_open

    with safe_open(shard, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tokens, width = stored["hidden"].shape
    used = sum(t.nbytes for name, t in stored.items() if name != "offsets")
    assert used <= tokens * (2 * width + 8)


def test_a_process_that_is_started_anew_reads_the_cache_ahead(frame, cache):
    """As a training on a GPU has one, and as Python starts it from 3.14 on; without the head, a gigabyte."""
    rows = Rows(frame, TeacherCache(cache, "train", frame, DATA))
    assert not {"head", "cap"} & rows.cache.__getstate__().keys()
    how = {"batch_size": 8, "collate_fn": collate}
    ahead = torch.utils.data.DataLoader(rows, num_workers=1, multiprocessing_context="spawn", **how)
    for found, expected in zip(ahead, torch.utils.data.DataLoader(rows, **how), strict=True):
        assert torch.equal(found["teacher"]["hidden"], expected["teacher"]["hidden"])
        assert torch.equal(found["input_ids"], expected["input_ids"])


@pytest.mark.parametrize("fault", ["truncated", "flipped", "emptied", "missing", "other rows"])
def test_damaged_or_foreign_cache_is_refused(tiny_models, tokenizer, frame, tmp_path, fault):
    model = load.load_model(tiny_models / "teacher", "float32")
    manifest = write_cache(tmp_path, frame, model, len(tokenizer))
    shard = tmp_path / "train" / "shard-00001.safetensors"
    content = shard.read_bytes()
    match fault:
        case "truncated":
            shard.write_bytes(content[:-100])
        case "flipped":
            shard.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        case "emptied":
            shard.write_bytes(b"")
        case "missing":
            shard.unlink()
    rows = frame.iloc[::-1] if fault == "other rows" else frame
    with pytest.raises(UserError, match="run snakemake again to rebuild") as caught:
        TeacherCache(manifest, "train", rows, DATA)
    assert fault == "other rows" or "shard-00001" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vocabulary_hash": "other"}, "another tokenizer"),
        ({"template_hash": "other"}, "another chat template"),
    ],
)
def test_cache_of_another_tokenizer_or_template_is_refused(frame, cache, change, reason):
    with pytest.raises(UserError, match=reason):
        TeacherCache(cache, "train", frame, DATA | change)


def test_cache_of_another_teacher_is_refused(frame, cache, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="another teacher or adapter"):
        TeacherCache(cache, "train", frame, DATA, tmp_path / "manifest.json")


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_loss_falls_and_is_split_into_its_parts(tiny_models, frame, cache, tmp_path, tuning):
    _, log = run(tiny_models, frame, cache, tmp_path, job(epochs=6, tuning=tuning))
    assert log[-1]["loss"] < log[0]["loss"] and log[-1]["divergence"] < log[0]["divergence"]
    for step in log:
        assert step["loss"] == pytest.approx(0.5 * step["ce"] + 0.5 * 4 * step["divergence"], rel=1e-4)


@pytest.mark.parametrize(("batch_size", "gradient_accumulation"), [(1, 8), (2, 4), (8, 1)])
def test_effective_batch_does_not_depend_on_its_split(
    tiny_models, frame, cache, tmp_path, batch_size, gradient_accumulation
):
    """One step over all rows: the same loss and the same weights for every split of the batch."""
    whole = job(batch_size=24, gradient_accumulation=1)
    reference, reference_log = run(tiny_models, frame, cache, tmp_path / "whole", whole)
    split = job(batch_size=batch_size, gradient_accumulation=24 // batch_size)
    model, log = run(tiny_models, frame, cache, tmp_path / "split", split)
    assert len(log) == len(reference_log) == 1
    assert log[0]["loss"] == pytest.approx(reference_log[0]["loss"], rel=1e-5)
    assert log[0]["grad_norm"] == pytest.approx(reference_log[0]["grad_norm"], rel=1e-4)
    torch.testing.assert_close(trained(model), trained(reference), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(("batch_size", "passes"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_a_step_has_the_same_random_rows_however_it_is_split(batch_size, passes):
    lengths = [7, 3, 9, 1, 8, 2, 6, 4, 5, 10, 12, 11, 13]
    order = list(EpochSampler(lengths, batch_size, 3, lambda: 0, passes=passes))
    drawn = torch.randperm(13, generator=torch.Generator().manual_seed(300_009)).tolist()
    for start in range(0, 13, 6):
        step = order[start : start + 6]
        assert sorted(step) == sorted(drawn[start : start + 6])
        if batch_size > 1:
            assert [lengths[row] for row in step] == sorted((lengths[row] for row in step), reverse=True)
    assert order != list(EpochSampler(lengths, batch_size, 3, lambda: 1, passes=passes))


def test_reading_ahead_changes_nothing(tiny_models, frame, cache, tmp_path, monkeypatch):
    _, log = run(tiny_models, frame, cache, tmp_path / "plain")
    monkeypatch.setitem(train.READERS, "cpu", 1)
    _, ahead = run(tiny_models, frame, cache, tmp_path / "ahead")
    assert [step["loss"] for step in ahead] == [step["loss"] for step in log]


def test_fine_tuning_is_the_same_trainer_without_a_teacher(tiny_models, frame, tmp_path):
    _, log = run(tiny_models, frame, None, tmp_path, divergence=None, kl_weight=0.0)
    assert all(step["loss"] == pytest.approx(step["ce"], rel=1e-5) for step in log)
    assert "divergence" not in log[0]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_every_schedule_warms_up(tiny_models, frame, cache, tmp_path, schedule):
    _, log = run(tiny_models, frame, cache, tmp_path, job(epochs=3, schedule=schedule, warmup_ratio=0.5))
    rates = [step["learning_rate"] for step in log]
    rising = math.ceil(0.5 * len(log))
    assert rates[:rising] == pytest.approx([1e-3 * step / rising for step in range(rising)])
    if schedule == "constant":
        assert rates[rising:] == [1e-3] * (len(log) - rising)
    else:
        assert rates[rising] == pytest.approx(1e-3) and rates[-1] < 1e-3


def test_constant_without_a_warm_up_is_constant(tiny_models, frame, cache, tmp_path):
    _, log = run(tiny_models, frame, cache, tmp_path, job(schedule="constant", warmup_ratio=0.0))
    assert {step["learning_rate"] for step in log} == {1e-3}


def test_training_goes_on_from_its_checkpoint(tiny_models, frame, cache, tmp_path, monkeypatch):
    """Killed at step 5 and started again: the same steps, the same weights, to the last bit."""
    settings = job(epochs=3, lora_dropout=0.1, schedule="cosine", warmup_ratio=0.1)
    undisturbed, log = run(tiny_models, frame, cache, tmp_path / "undisturbed", settings)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    loss = train.DistillTrainer.compute_loss
    calls = []

    def dies(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(train.DistillTrainer, "compute_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_models, frame, cache, tmp_path / "killed", settings)
    assert checkpoints.last_checkpoint(tmp_path / "killed").endswith("checkpoint-4")
    model, resumed = run(tiny_models, frame, cache, tmp_path / "killed", settings)
    assert len(calls) == 10 + 2 * (len(log) - 4)
    assert torch.equal(trained(model), trained(undisturbed))
    assert [s["loss"] for s in resumed] == [s["loss"] for s in log]


def test_online_teacher_gives_the_losses_of_its_cache(tiny_models, tokenizer, frame, cache, tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model").symlink_to(tiny_models / "teacher")
    manifest = tmp_path / "teacher" / "manifest.json"
    write_manifest(manifest, stage="sft", params={}, inputs={}, outputs=[manifest.parent / "model"])
    _, cached = run(tiny_models, frame, cache, tmp_path / "cached", divergence=divergence("rkl"))
    online = LiveTeacher(manifest, "float32", len(tokenizer))
    _, live = run(tiny_models, frame, online, tmp_path / "live", divergence=divergence("rkl"))
    for one, other in zip(cached, live, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["divergence"] == pytest.approx(other["divergence"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"store": "logits"}, 2e-2),
        ({"store": "hidden-int8"}, 2e-2),
        ({"store": "topk", "top_k": 400}, 2e-2),
        ({"store": "topk", "top_k": 400, "tail": "renormalised"}, 2e-2),
        ({"store": "topk", "top_k": 16}, None),
        (
            {"store": "distillkit", "distillkit": {"k": 400, "exact_k": 400, "polynomial_terms": []}},
            2e-2,
        ),
        ({"store": "distillkit"}, None),
        ({"store": "sampled", "sampled": {"samples": 2**16}}, 2e-2),
        ({"store": "sampled", "sampled": {"samples": 16}}, None),
    ],
)
def test_other_ways_to_store_the_teacher_train_too(
    tiny_models, tokenizer, frame, cache, tmp_path, changes, tolerance
):
    """With all of the vocabulary kept the loss is that of the hidden states; with a part another."""
    model = load.load_model(tiny_models / "teacher", "float32")
    other = write_cache(tmp_path / "cache", frame, model, len(tokenizer), **changes)
    _, exact = run(tiny_models, frame, cache, tmp_path / "exact")
    _, log = run(tiny_models, frame, other, tmp_path / "work")
    if tolerance:
        assert log[0]["divergence"] == pytest.approx(exact[0]["divergence"], rel=tolerance)
    else:
        assert abs(log[0]["divergence"] / exact[0]["divergence"] - 1) > 0.05
    assert all(step["divergence"] > 0 for step in log)


def test_a_row_s_draws_do_not_depend_on_its_batch(tiny_models, tokenizer, frame, tmp_path):
    model = load.load_model(tiny_models / "teacher", "float32")
    caches = []
    for size in (10, 7):
        manifest = write_cache(
            tmp_path / str(size), frame, model, len(tokenizer), rows_per_shard=size, store="sampled"
        )
        caches.append(TeacherCache(manifest, "train", frame, DATA))
    for index in range(len(frame)):
        one, other = (cache.row(index)["ids"] for cache in caches)
        assert torch.equal(one, other)


def test_half_written_or_damaged_checkpoint_is_not_used(tmp_path):
    from kdag.files.atomic import write_json
    from kdag.files.manifest import hash_files

    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"weights of a step")
        if step < 6:
            write_json(folder / "seal.json", hash_files(folder, [folder]))
    (tmp_path / "checkpoint-4" / "weights").write_bytes(b"Weights of a step")
    assert checkpoints.last_checkpoint(tmp_path).endswith("checkpoint-2")


def test_merged_model_is_the_adapted_one(tiny_models, tokenizer, frame, cache, tmp_path):
    model, _ = run(tiny_models, frame, cache, tmp_path / "work", job(epochs=2))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
    train.save_trained(model, tokenizer, tmp_path / "model", "float32")
    with torch.no_grad():
        merged = load.load_model(tmp_path / "model", "float32")(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    adapter = json.loads((tmp_path / "model" / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 4
