"""A training stage from its inputs to its manifest."""

import json
import shutil
import sys
from pathlib import Path

from kdag import backends, models, parallel, precision, sharded
from kdag.data import read_rows
from kdag.manifest import atomic_path, read_json, sha256_file, sha256_json, write_manifest, write_text
from kdag.teacher_cache import OnlineTeacher, TeacherCache
from kdag.training import Objective, prepare, save_trained, train


def run_stage(
    stage: str, args, settings, objective: Objective, teacher: Path | None, backend: str, section: str
) -> None:
    """A training stage from its inputs to its manifest; shared by sft.py and distill.py.

    teacher: the manifest of the teacher's cache, or, for an online teacher, of the teacher itself. backend:
    what `backends.start` chose. section: where the configuration has these settings.
    """
    frame = read_rows(args.train)
    data = read_json(args.train.parent / "manifest.json")
    vocabulary = data["vocabulary_size"]
    inputs = {
        "model": sha256_file(args.model.parent / "manifest.json"),
        "data": sha256_file(args.train.parent / "manifest.json"),
    }
    seen = None
    if teacher:
        inputs["teacher"] = sha256_file(teacher)
        if settings.teacher_dtype:
            live = precision.settle(settings.teacher_dtype, "teacher_cache.dtype")
            seen = OnlineTeacher(teacher, live, vocabulary)
        else:
            seen = TeacherCache(teacher, "train", frame, data, args.expect_teacher)
    params = settings.model_dump()
    dtype = precision.settle(settings.dtype, f"{section}.dtype")
    settings = settings.model_copy(update={"dtype": dtype})
    shard = sharded.wanted(args.model, settings)
    # A checkpoint is resumed only by the very job that wrote it: same parameters, inputs, code and dtype.
    code = {m.__name__: sha256_file(m.__file__) for m in own_modules()}
    job = [stage, params, dtype, inputs, code, *([parallel.processes()] if shard else [])]
    work = args.output.parent / f".checkpoints-{sha256_json(job)[:12]}"
    for stale in set(args.output.parent.glob(".checkpoints-*")) - {work}:
        if parallel.rank() == 0:
            shutil.rmtree(stale)
    longest = max(map(len, frame["input_ids"]))
    model, log = train(
        backends.load(args.model, settings, backend, longest, to_device=not shard),
        frame,
        settings=settings,
        objective=objective,
        teacher=seen,
        vocabulary=vocabulary,
        work=work,
        backend=backend,
        shard=shard,
    )
    weights = sharded.trained_weights(model) if shard else None
    if parallel.rank() > 0:
        return
    if shard:
        whole = backends.load(args.model, settings, backend, longest, to_device=False)
        model = sharded.put(weights, prepare(whole, settings, backend))
    with atomic_path(args.output) as partial:
        base = args.model if settings.load_in_4bit else None
        save_trained(model, models.load_tokenizer(args.model), partial, settings.dtype, base)
    write_text(args.log, "".join(json.dumps(entry) + "\n" for entry in log))
    write_manifest(
        args.manifest,
        stage=stage,
        params=params,
        inputs=inputs,
        outputs=[args.output, args.log],
        backend=backend,
        dtype=dtype,
        arithmetic=precision.recorded(),
        processor=precision.here().name,
        rows_per_pass=-(-settings.batch_size // max(entry.get("parts", 1) for entry in log)),
        device=(f"{parallel.processes()} x " if parallel.processes() > 1 else "") + models.device_name(),
    )
    shutil.rmtree(work, ignore_errors=True)


def own_modules() -> list:
    return [m for name, m in sorted(sys.modules.items()) if name.startswith("kdag.")]
