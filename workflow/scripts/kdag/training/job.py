"""A training stage from its inputs to its manifest."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from kdag.config import precision
from kdag.data.rows import read_rows
from kdag.data.template import read_chat
from kdag.files.atomic import atomic_path, write_text
from kdag.files.hashes import sha256_file, sha256_json
from kdag.files.manifest import SUBSET, read_manifest, write_manifest
from kdag.job import arithmetic, launching
from kdag.models import load
from kdag.teacher.cache import TeacherCache
from kdag.teacher.live import LiveTeacher
from kdag.training import backends, processes, sharding
from kdag.training.train import Objective, prepare, save_trained, train


def run_stage(
    stage: str,
    settings,
    objective: Objective,
    *,
    start: Path,
    rows: Path,
    chat: Path | None,
    output: Path,
    log: Path,
    manifest: Path,
    backend: str,
    section: str,
    teacher: Path | None = None,
    expected_teacher: Path | None = None,
    tensorboard: bool = False,
) -> None:
    """A training stage from its inputs to its manifest; shared by sft.py and distill.py.

    settings: a config Training with a seed. start: the untrained model's directory; rows: train.parquet;
    chat: chat.json, whose template is saved with the model.
    output, log and manifest are written. teacher: the manifest of the teacher's cache, or, for an online
    teacher, of the teacher itself; expected_teacher: what the cache must be made from. backend: what
    `backends.start` chose. section: where the configuration has these settings.
    """
    frame, spoken = read_rows(rows), read_chat(chat) if chat else None
    data = read_manifest(rows.parent / "manifest.json", SUBSET)
    vocabulary = data["vocabulary_size"]
    inputs = {
        "model": sha256_file(start.parent / "manifest.json"),
        "data": sha256_file(rows.parent / "manifest.json"),
    }
    seen = None
    if teacher:
        inputs["teacher"] = sha256_file(teacher)
        if settings.teacher_dtype:
            live = precision.settle(settings.teacher_dtype, "teacher_cache.dtype")
            seen = LiveTeacher(teacher, live, vocabulary)
        else:
            seen = TeacherCache(teacher, "train", frame, data, expected_teacher)
    params = settings.model_dump()
    dtype = precision.settle(settings.dtype, f"{section}.dtype")
    settings = settings.model_copy(update={"dtype": dtype})
    shard = sharding.wanted(start, settings)
    # A checkpoint is resumed only by the very job that wrote it: same parameters, inputs, code and dtype.
    code = {m.__name__: sha256_file(m.__file__) for m in own_modules()}
    job = [stage, params, dtype, inputs, code, *([launching.processes()] if shard else [])]
    work = output.parent / f".checkpoints-{sha256_json(job)[:12]}"
    for stale in set(output.parent.glob(".checkpoints-*")) - {work}:
        if launching.rank() == 0:
            shutil.rmtree(stale)
    trained = fit(
        settings,
        objective,
        start=start,
        frame=frame,
        teacher=seen,
        vocabulary=vocabulary,
        work=work,
        backend=backend,
        shard=shard,
        tensorboard=output.parent / "tensorboard" if tensorboard else None,
    )
    processes.leave()
    if launching.rank() > 0:
        return
    write_model(trained, output, settings, start=start, chat=spoken, backend=backend)
    steps = trained.steps
    write_text(log, "".join(json.dumps(entry) + "\n" for entry in steps))
    write_manifest(
        manifest,
        stage=stage,
        params=params,
        inputs=inputs,
        outputs=[output, log],
        backend=backend,
        dtype=dtype,
        arithmetic=arithmetic.recorded(),
        processor=precision.here().name,
        **passes(settings, steps),
        device=(f"{launching.processes()} x " if launching.processes() > 1 else "") + load.device_name(),
    )
    shutil.rmtree(work, ignore_errors=True)


@dataclass
class Trained:
    """A model behind its training. steps: the log, an entry each; weights: if it is sharded, what was trained
    of it, whole; longest: the tokens of the longest row."""

    model: object
    steps: list[dict]
    weights: dict | None
    longest: int


def fit(
    settings, objective: Objective, *, start: Path, frame, backend: str, shard: bool, **further
) -> Trained:
    """Load the model in `start` and train it, in every process of the job; further: as `train` takes it."""
    longest = int(frame.lengths.max())
    loaded = backends.load(start, settings, backend, longest, to_device=not shard)
    model, steps = train(
        loaded, frame, settings=settings, objective=objective, backend=backend, shard=shard, **further
    )
    return Trained(model, steps, sharding.trained_weights(model) if shard else None, longest)


def write_model(trained: Trained, output: Path, settings, *, start: Path, chat, backend: str):
    """A directory that everything opens, by the first process alone. Returns the merged model.

    chat: a Chat, whose template and ends are saved too, or None.
    """
    model = trained.model
    if trained.weights is not None:
        whole = backends.load(start, settings, backend, trained.longest, to_device=False)
        model = sharding.put(trained.weights, prepare(whole, settings, backend))
    with atomic_path(output) as partial:
        base = start if settings.load_in_4bit else None
        tokenizer = load.load_tokenizer(start)
        if chat:
            tokenizer.chat_template = chat.template
        return save_trained(model, tokenizer, partial, settings.dtype, base, chat.end_ids if chat else ())


def passes(settings, steps: list[dict]) -> dict:
    """What a forward pass had at the end, for the manifest: so many tokens, or rows."""
    if tokens := [entry["tokens_per_pass"] for entry in steps if "tokens_per_pass" in entry]:
        return {"tokens_per_pass": min(tokens)}
    return {"rows_per_pass": -(-settings.batch_size // max(entry.get("parts", 1) for entry in steps))}


def own_modules() -> list:
    """What was imported and can change a result: not what only talks."""
    ours = [name for name in sorted(sys.modules) if name.startswith("kdag.") and sys.modules[name].__file__]
    return [sys.modules[name] for name in ours if not name.startswith("kdag.job.")]
