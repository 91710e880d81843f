"""What an experiment takes before it runs: jobs, memory, disk and hours of every stage, by arithmetic alone.

Models are shapes (config.json), a device is four numbers (devices.py). Sizes are bytes, times hours.
How it is computed, and how far from measurements it is: docs/planning.md.
"""

from math import ceil

from kdag.config.experiment import Config
from kdag.config.kinds import NO_DIVERGENCE, STUDENT
from kdag.config.roster import student_ids
from kdag.config.sampling import Sampling
from kdag.config.schedules import numbers
from kdag.config.stages import answer_set, answer_sets
from kdag.planning import devices
from kdag.planning.devices import Device
from kdag.planning.needs import (
    Need,
    caching,
    generating,
    measuring,
    stored_bytes,
    training,
    with_sampling,
)
from kdag.planning.shapes import Shape

# What takes less memory, the least harmful first: (field, value).
TRAINING_CHANGES = (
    ("gradient_checkpointing", True),
    ("batch_size", 1),
    ("tokens_per_pass", 1024),
    ("tuning", "lora"),
    ("load_in_4bit", True),
)
CACHE_CHANGES = (("batch_tokens", 1024), ("dtype", "bfloat16"))
EVALUATION_CHANGES = (("batch_size", 1), ("dtype", "bfloat16"))
GPUS_OF = {"cache_answers": "cache_teacher", "distill_on_policy": "distill"}  # where the key is another's
SEVERAL_GPUS = (2, 4, 8)  # of one machine
LEAST_STEPS = 36  # of a student cut from its teacher, which must first learn to speak again
# bench/gpu_shapes.py: means of 999 Alpaca rows; IFEval's 541 prompts and the answers to them. The longest
# prompt with SmolLM2's tokenizer and template.
ROW = {"prompt": 47.4, "answer": 146.0}
IFEVAL = {"prompts": 541, "prompt": 74, "longest": 386, "teacher_answer": 288, "student_answer": 357}


def default_tokens(config: Config, data: dict | None = None, longest: int | None = None) -> dict:
    """Rows, tokens and answers that `plan` counts with.

    data: the `report` of a subset's manifest; without it rows have the mean lengths of Alpaca. longest: of
    the training rows; without it the longest that data.max_tokens lets through.
    """
    made = {"longest": longest or config.data.max_tokens}
    for part, rows in (("train", config.data.train_rows), ("heldout", config.data.heldout_rows)):
        found = (data or {}).get(part)
        answers = found["answer_tokens"] if found else rows * min(ROW["answer"], config.data.max_tokens)
        total = found["tokens"] if found else rows * min(sum(ROW.values()), config.data.max_tokens)
        made[part] = {"rows": found["rows"] if found else rows, "tokens": total, "answers": answers}
    cap = config.evaluation.max_new_tokens
    prompts = min(config.evaluation.limit or IFEVAL["prompts"], IFEVAL["prompts"])
    answers = {side: min(IFEVAL[f"{side}_answer"], cap) for side in ("teacher", "student")}
    lengths = {"prompt": IFEVAL["prompt"], "longest_prompt": IFEVAL["longest"]}
    return made | lengths | {"prompts": prompts, "generated": answers}


def plan(config: Config, teacher: Shape, student: Shape, device: Device, tokens: dict) -> list[dict]:
    """An entry per stage. tokens: of `default_tokens`. hours: of a job in the mean; memory: of the largest.

    too_large: the key to change where a job needs more memory than the device has, else None.
    """
    config = with_dtypes(config, device)
    parts = ["heldout"] if all(map(config.online, config.strategies)) else ["train", "heldout"]
    kept, evaluation, seeds = stored_bytes(config, teacher), config.evaluation, len(config.seeds)
    students = len(student_ids(config))

    def trained(shape, seen=None, live=None):
        return lambda settings: training(shape, settings, tokens, device, seen, live)

    def cached(settings):
        return caching(teacher, settings, tokens, device, parts, kept)

    def cached_answers(settings):
        return caching(teacher, settings, tokens, device, ["train"], kept)

    def answering(shape, answer):
        return lambda settings: generating(shape, settings, asked(tokens), device, answer)

    def asked_of_teacher(name, params):
        sampling = Sampling(**{key: value for key, value in params.items() if key in Sampling.model_fields})
        settings = questions(config, sampling, params["dtype"])
        return name, 1, settings, answering(teacher, mean_answer(sampling)), ask, large

    def on_policy(live, sampling, share, pairs):
        def compute(settings):
            step = settings.batch_size * settings.gradient_accumulation
            step = tokens["train"]["rows"] if sampling.refresh == "epoch" else step * sampling.refresh
            asking = questions(config, sampling, settings.dtype, step)
            answers = answering(student, mean_answer(sampling))(asking)
            twice = {key: 2 * getattr(settings, key) for key in ("epochs", "batch_size")} if pairs else {}
            own = trained(student, teacher, live)(settings.model_copy(update=twice))
            return with_sampling(own, answers, settings, share * settings.epochs)

        return compute

    def answered(shape, side):
        return lambda settings: generating(shape, settings, tokens, device, tokens["generated"][side])

    def compared(settings):
        return measuring(student, teacher, settings, tokens, device)

    large, small = model_key(config, "teacher"), model_key(config, "student")
    distilled, by_themselves = [], []
    for name, strategy in config.strategies.items():
        live = config.teacher_cache.dtype if config.online(name) else None
        share, compute, kind = strategy.answers.get(STUDENT), trained(student, teacher, live), distilled
        if share:
            share = 1 if strategy.pairs else mean_share(share)
            compute = on_policy(live, config.sampling_of(name), share, strategy.pairs)
            kind = by_themselves
        own = {key: f"strategies.{name}.{key}" for key in strategy.overrides()}
        settings = with_dtype(config.distillation_of(name), device)
        settings = within_budget(config, name, settings, tokens, compute, trained(student))
        change = remedies("distillation", TRAINING_CHANGES, own)
        kind.append((name, seeds, settings, compute, change, small))
    tune, cut = remedies("teacher_training", TRAINING_CHANGES), remedies("teacher_cache", CACHE_CHANGES)
    ask = remedies("sampling", (("batch_size", 1),))
    learn, change = remedies("distillation", TRAINING_CHANGES), remedies("evaluation", EVALUATION_CHANGES)
    stages = {
        "sft_teacher": [("teacher", 1, config.teacher_training, trained(teacher), tune, large)],
        "cache_teacher": [("teacher", 1, config.teacher_cache, cached, cut, large)],
        "answer_teacher": [asked_of_teacher(name, params) for name, params in answer_sets(config).items()],
        "cache_answers": [
            (name, 1, config.teacher_cache, cached_answers, cut, large) for name in cached_sets(config)
        ],
        "sft_student": [("student", seeds, config.distillation, trained(student), learn, small)],
        "distill": distilled,
        "distill_on_policy": by_themselves,
        "generate": [
            ("teacher", 2, evaluation, answered(teacher, "teacher"), change, large),
            (
                "student",
                students + 1,
                evaluation,
                answered(student, "student"),
                change,
                small,
            ),
        ],
        "measure_fidelity": [("student", students + 1, evaluation, compared, change, small)],
    }
    return [entry(config, device, stage, kinds) for stage, kinds in stages.items() if kinds]


def asked(tokens: dict) -> dict:
    """The same, the training prompts in the place of the evaluation's; the longest may be a whole row."""
    rows = tokens["train"]
    prompt = (rows["tokens"] - rows["answers"]) / rows["rows"]
    return tokens | {"prompts": rows["rows"], "prompt": prompt, "longest_prompt": tokens["longest"]}


def mean_answer(sampling: Sampling) -> float:
    return min(ROW["answer"], sampling.max_new_tokens)


def questions(config: Config, sampling: Sampling, dtype: str, at_once: int | None = None):
    """A section `evaluation` for training prompts that are answered, at most `at_once` of them at a time."""
    size = min(sampling.batch_size, at_once or sampling.batch_size)
    update = {"batch_size": size, "max_new_tokens": sampling.max_new_tokens, "dtype": dtype}
    return config.evaluation.model_copy(update=update)


def cached_sets(config: Config) -> list[str]:
    """The teacher's answers whose states are stored, for strategies with a divergence and no live teacher."""
    wanted = (
        answer_set(config, name)
        for name in config.answered()
        if config.strategies[name].divergence != NO_DIVERGENCE and not config.online(name)
    )
    return list(dict.fromkeys(wanted))


def with_dtype(section, device: Device):
    """A section of the configuration with the dtype that `auto` is on this device."""
    return section.model_copy(update={"dtype": device.dtype(section.dtype)})


def with_dtypes(config: Config, device: Device) -> Config:
    sections = ("teacher_training", "teacher_cache", "distillation", "evaluation")
    return config.model_copy(update={name: with_dtype(getattr(config, name), device) for name in sections})


def steps(settings, rows: int) -> int:
    """Optimiser steps of a training on so many rows, rounded as transformers' Trainer rounds.

    settings: a config_training.Training. The number of processes makes no difference.
    """
    passes = ceil(rows / settings.batch_size)
    return ceil(settings.epochs * ceil(passes / settings.gradient_accumulation))


def mean_share(share) -> float:
    """Of rows that a student answers itself; where it is adaptive, as if half of its growth were used."""
    return sum(numbers(share)) / len(numbers(share))


def within_budget(config: Config, name: str, settings, tokens: dict, compute, sft):
    """A strategy's settings with as many epochs as its budget gives it. compute, sft: settings -> Need."""
    budget, rows = config.budget_of(name), tokens["train"]["rows"]
    if not budget:
        return settings
    once = settings.model_copy(update={"epochs": 1})
    epochs = {
        "tokens": lambda: budget["epochs"],
        "steps": lambda: steps(config.distillation, rows) / steps(once, rows),
        "flops": lambda: sft(config.distillation).flops / compute(once).flops,
    }[budget["equal"]]()
    return settings.model_copy(update={"epochs": epochs})


def too_few_steps(config: Config, rows: int) -> tuple[str, str] | None:
    """(which students cut from their teacher get too few steps, what to change); None if none does."""
    if not config.student.derive:
        return None
    counts = {"sft": steps(config.distillation, rows)}
    counts |= {name: steps(config.distillation_of(name), rows) for name in config.strategies}
    few = {}
    for name, count in counts.items():
        if count < LEAST_STEPS:
            few.setdefault(count, []).append(name)
    if not few:
        return None
    listed = [
        f"{count} optimiser steps {'each' if names == [*counts] else 'for ' + ', '.join(names)}"
        for count, names in sorted(few.items())
    ]
    return (
        f"students cut from their teacher get {'; '.join(listed)}; after fewer than {LEAST_STEPS} they often "
        "repeat themselves or find no end",
        "raise distillation.epochs or data.train_rows, or lower distillation.gradient_accumulation (or a "
        "strategy's own keys)",
    )


def model_key(config: Config, side: str) -> str:
    """The key that says which model it is."""
    source = getattr(config, side)
    if side == "student" and source.derive:
        return f"student.derive.{'keep' if source.derive.keep_layers else 'drop'}_layers"
    return f"{side}." + {"hub": "id", "path": "path", "package": "file"}[source.source]


def remedies(section: str, changes, own=()) -> list[tuple[str, str, object]]:
    """(configuration key, field, value) of what would take less memory; `own`: keys that stand elsewhere."""
    return [(dict(own).get(field, f"{section}.{field}"), field, value) for field, value in changes]


def entry(config: Config, device: Device, stage: str, kinds) -> dict:
    """One stage. kinds: (name, jobs, settings, settings -> Need, remedies, model's key) of jobs alike.

    A kind's name is its strategy in `distill`, elsewhere whose model it is.
    """
    gpus = getattr(config.resources.gpus, GPUS_OF.get(stage, stage))
    shards = config.teacher_cache.shards if stage == "cache_teacher" else 1
    taken = [(jobs, compute(settings)) for _, jobs, settings, compute, *_ in kinds]
    number = sum(jobs for jobs, _ in taken)
    hours = sum(jobs * job_hours(need, gpus, shards) for jobs, need in taken)
    largest = max(range(len(kinds)), key=lambda index: taken[index][1].device(device, gpus))
    need, (_, _, settings, compute, changes, model) = taken[largest][1], kinds[largest]
    needed = need.device(device, gpus)
    room = device.memory * devices.GIB
    disk = sum(jobs * need.disk for jobs, need in taken)
    key = None
    if needed > room:
        key = key_to_change(lambda s: compute(s).device(device, gpus), settings, changes, room)
        divided = any(need.device(device, count) <= room for count in SEVERAL_GPUS if count > gpus)
        key = key or (f"resources.gpus.{stage}" if divided else model)
    return {
        "stage": stage,
        "jobs": number * shards,
        "gpus": gpus,
        "parameters": need.shape.parameters,
        "trainable": need.trainable,
        "flops": round(sum(jobs * need.flops for jobs, need in taken)),
        "gpu_bytes": 0 if device.on_cpu else round(needed),
        "gpu_bytes_of": {
            name: 0 if device.on_cpu else round(own.device(device, gpus))
            for (name, *_), (_, own) in zip(kinds, taken, strict=True)
        },
        "host_bytes": round(max(need.host(device, gpus) for _, need in taken)),
        "disk_bytes": round(disk),
        "hours": hours / number,
        "hours_longest": max(job_hours(need, gpus, shards) for _, need in taken),
        "hours_total": hours * shards,
        "gpu_hours": hours * shards * gpus * (not device.on_cpu),
        "too_large": key,
    }


def job_hours(need: Need, gpus: int, shards: int) -> float:
    """From its start to its manifest, the computing shared out evenly where several GPUs work at a time."""
    working = shards * (1 if need.spread else gpus)
    return (devices.START_SECONDS + need.weights / devices.DISK_RATE + need.seconds / working) / 3600


def key_to_change(needed, settings, changes, room: float) -> str | None:
    """The first key whose change alone makes it fit, else the best; None if all do not."""
    changed = [(key, {field: value}) for key, field, value in changes if getattr(settings, field) != value]
    every = {field: value for _, update in changed for field, value in update.items()}
    if needed(settings.model_copy(update=every)) > room:
        return None
    tried = {key: needed(settings.model_copy(update=update)) for key, update in changed}
    return next((key for key, value in tried.items() if value <= room), min(tried, key=tried.get))
