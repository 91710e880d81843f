"""A training stage from its inputs to its manifest."""

import itertools
import json
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdag.config import precision
from kdag.config.kinds import DATASET, STUDENT, TEACHER
from kdag.config.schedules import is_adaptive
from kdag.data.rows import EncodedRows, prompts, read_rows
from kdag.data.template import read_chat
from kdag.files.atomic import atomic_path, write_jsonl, write_text
from kdag.files.hashes import sha256_file, sha256_json
from kdag.files.manifest import SUBSET, read_manifest, write_manifest
from kdag.files.seals import check_source, read_sealed
from kdag.job import arithmetic, launching
from kdag.job.errors import UserError
from kdag.models import load
from kdag.models.weights import weights_of
from kdag.teacher.cache import TeacherCache
from kdag.teacher.live import LiveTeacher
from kdag.teacher.several import MixedTeachers, RoutedTeachers
from kdag.training import backends, processes, sharding
from kdag.training.batches import Mixture, Rows
from kdag.training.budget import Budget
from kdag.training.cost import cost
from kdag.training.schedule import Objective
from kdag.training.train import COUNTED, prepare, save_trained, train


@dataclass
class Source:
    """Rows with one kind of answers, and what is known of the teacher on them. data: their manifest."""

    frame: EncodedRows
    data: dict
    cache: TeacherCache | None = None


def run_stage(
    stage: str,
    settings,
    objective: Objective,
    *,
    start: Path,
    rows: list[Path],
    chat: Path | None,
    output: Path,
    log: Path,
    manifest: Path,
    backend: str,
    section: str,
    teacher: list[Path] = (),
    expected_teacher: list[Path] = (),
    tensorboard: bool = False,
    rollouts=None,
    answers: Path | None = None,
    reference: Path | None = None,
    routes: Path | None = None,
    cached_by=TeacherCache,
) -> None:
    """A training stage from its inputs to its manifest, for every script that trains.

    settings: a config Training with a seed. start: the untrained model's directory; rows: train.parquet of
    the data, of the teacher's answers to it, or both; chat: chat.json, whose template is saved with the
    model. output, log and manifest are written. teacher: the manifests of the teacher's caches of these rows,
    or, for an online teacher, of the teacher itself; of several teachers one for each. expected_teacher: what
    the caches must be made from. routes: of route_rows.py, which row has which teacher. cached_by:
    what reads a cache, if it is not of these rows' tokens (teacher/aligned.py).
    backend: what `backends.start` chose. section: where the configuration has these settings. rollouts: the
    class Rollouts, for rows that the student answers itself; answers: where its answers are written.
    reference: the manifest of the data, by which a budget is measured; by the held-out rows next to it an
    adaptive share of the student's answers grows.
    """
    spoken = read_chat(chat) if chat else None
    inputs = {"model": sha256_file(start.parent / "manifest.json")}
    sources, live = read_sources(rows, teacher, settings, expected_teacher, inputs, routes, cached_by)
    if reference:
        inputs["data"] = sha256_file(reference)
    first = next(iter(sources.values()))
    vocabulary = first.data["vocabulary_size"]
    params = settings.model_dump()
    dtype = precision.settle(settings.dtype, f"{section}.dtype")
    settings = settings.model_copy(update={"dtype": dtype})
    shard = sharding.wanted(start, settings)
    if shard and rollouts:
        raise UserError(
            "a student that answers itself while it trains has to fit on one GPU, since each process answers "
            "its own rows; take answers: teacher, tuning: lora or one process (resources.gpus.distill: 1)"
        )
    # A checkpoint is resumed only by the very job that wrote it: same parameters, inputs, code and dtype.
    code = {m.__name__: sha256_file(m.__file__) for m in own_modules()}
    job = [stage, params, dtype, inputs, code, *([launching.processes()] if shard else [])]
    work = output.parent / f".checkpoints-{sha256_json(job)[:12]}"
    for stale in set(output.parent.glob(".checkpoints-*")) - {work}:
        if launching.rank() == 0:
            shutil.rmtree(stale)
    if rollouts:
        rollouts = rollouts.prepared(sources[DATASET].frame, settings, spoken, start, vocabulary)
    seen = live(vocabulary) if live else first.cache
    share = (getattr(settings, "answers", None) or {}).get(STUDENT)
    known = (seen.weights, cached(sources)) if seen else (0, 0)
    allowed = (
        partial(Budget.of, settings.budget, counts_of(reference), known, bool(live))
        if getattr(settings, "budget", None)
        else None
    )
    trained = fit(
        settings,
        objective,
        start=start,
        frame=first.frame,
        mixture=mixture_of(sources, settings),
        teacher=seen,
        vocabulary=vocabulary,
        work=work,
        backend=backend,
        shard=shard,
        tensorboard=output.parent / "tensorboard" if tensorboard else None,
        rollouts=rollouts,
        heldout=read_rows(reference.with_name("heldout.parquet")) if is_adaptive(share) else None,
        allowed=allowed,
    )
    processes.leave()
    write_model(trained, output, settings, start=start, chat=spoken, backend=backend)
    steps = trained.steps
    write_text(log, "".join(json.dumps(without(entry, COUNTED)) + "\n" for entry in steps))
    said = rollouts.func.written(work) if rollouts else []
    if answers:
        write_jsonl(answers, said)
    write_manifest(
        manifest,
        stage=stage,
        params=params,
        inputs=inputs,
        outputs=[output, log, *([answers] if answers else [])],
        backend=backend,
        dtype=dtype,
        arithmetic=arithmetic.recorded(),
        processor=precision.here().name,
        **passes(settings, steps),
        cost=cost(steps, trained.size, teacher_of(sources, seen, steps)),
        device=(f"{launching.processes()} x " if launching.processes() > 1 else "") + load.device_name(),
    )
    shutil.rmtree(work, ignore_errors=True)


def read_sources(
    rows: list[Path],
    teacher: list[Path],
    settings,
    expected: list[Path],
    inputs: dict,
    routes: Path | None = None,
    cached_by=TeacherCache,
):
    """({kind of answers: Source}, what makes the live teacher or None); `inputs` gets the hash of each.

    rows, teacher, expected, routes, cached_by: as run_stage takes them.
    """
    sources, live = {}, None
    several = getattr(settings, "teachers", None)
    for number, path in enumerate(rows):
        data = read_manifest(path.parent / "manifest.json", SUBSET)
        kind = TEACHER if data["stage"] == "answer_teacher" else DATASET
        sources[kind] = Source(read_rows(path), data)
        inputs["answers" if kind == TEACHER else "data"] = sha256_file(path.parent / "manifest.json")
        if not teacher or settings.teacher_dtype:
            continue
        mine = teacher if several else [teacher[number]]
        made_from = expected if several else [*expected[:1]]
        caches = [
            cached_by(manifest, "train", sources[kind].frame, data, of)
            for manifest, of in itertools.zip_longest(mine, made_from)
        ]
        sources[kind].cache = together(caches, several, routes, path) if several else caches[0]
        name = "teacher" if kind == DATASET else "teacher_of_answers"
        inputs |= hashes(name, mine)
    if teacher and settings.teacher_dtype:
        inputs |= hashes("teacher", teacher)
        dtype = precision.settle(settings.teacher_dtype, "teacher_cache.dtype")
        live = partial(live_teachers, teacher, dtype, several)
    if routes:
        inputs["routes"] = sha256_file(routes)
    return sources, live


def hashes(name: str, manifests: list[Path]) -> dict[str, str]:
    """{name: of the first, name_1: of the next ...}."""
    return {f"{name}_{n}" if n else name: sha256_file(path) for n, path in enumerate(manifests)}


def together(teachers: list, several: dict, routes: Path | None, rows: Path | None = None):
    """Several teachers as one. several: as of a DistillationJob. rows: train.parquet that `routes` is of."""
    if "by" not in several:
        return MixedTeachers(teachers, several["weights"], several["mixture"])
    found = read_sealed(routes)
    check_source(routes, found["inputs"], "data", rows.parent / "manifest.json")
    return RoutedTeachers(teachers, [several["names"].index(name) for name in found["teachers"]])


def live_teachers(manifests: list[Path], dtype: str, several: dict | None, vocabulary: int):
    teachers = [LiveTeacher(manifest, dtype, vocabulary) for manifest in manifests]
    return together(teachers, several, None) if several else teachers[0]


def teacher_of(sources: dict[str, Source], seen, steps: list[dict]) -> tuple[int, int]:
    """(weights of the teacher, tokens that it read): a live one each time, for a cache each row once."""
    if seen is None:
        return 0, 0
    return seen.weights, cached(sources) or sum(entry["tokens"] for entry in steps)


def cached(sources: dict[str, Source]) -> int:
    """Tokens of the rows whose states are stored."""
    read = {id(source): getattr(source.cache, "read", source.frame) for source in sources.values()}
    return sum(int(read[id(source)].lengths.sum()) for source in sources.values() if source.cache)


def counts_of(data: Path) -> dict[str, int]:
    """{rows, tokens, answer_tokens} of the data set's training rows. data: their manifest."""
    return read_manifest(data, SUBSET)["report"]["train"]


def without(entry: dict, keys) -> dict:
    return {key: value for key, value in entry.items() if key not in keys}


def mixture_of(sources: dict[str, Source], settings) -> Mixture | None:
    """What rows with several kinds of answers are drawn from; the student's own begin as prompts with nothing
    to learn. None if there is one kind, and not the student's."""
    shares = getattr(settings, "answers", None)
    if not shares:
        return None
    kinds = []
    for kind in shares:
        if kind == STUDENT:
            given = prompts(sources[DATASET].frame)
            unanswered = EncodedRows.of(given, [[0] * len(ids) for ids in given])
            kinds.append(Rows(unanswered, None))
        else:
            kinds.append(Rows(sources[kind].frame, sources[kind].cache))
    return Mixture(kinds, list(shares.values()), settings.seed)


@dataclass
class Trained:
    """A model behind its training. steps: the log, an entry each; weights: if it is sharded, what was trained
    of it, whole; longest: the tokens of the longest row; size: of `weights_of`."""

    model: object
    steps: list[dict]
    weights: dict | None
    longest: int
    size: tuple[int, int]


def fit(
    settings, objective: Objective, *, start: Path, frame, backend: str, shard: bool, **further
) -> Trained:
    """Load the model in `start` and train it, in every process of the job; further: as `train` takes it."""
    longest = int(frame.lengths.max())
    loaded = backends.load(start, settings, backend, longest, to_device=not shard)
    model, steps = train(
        loaded, frame, settings=settings, objective=objective, backend=backend, shard=shard, **further
    )
    whole = sharding.trained_weights(model) if shard else None
    return Trained(model, steps, whole, longest, weights_of(model))


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
