"""What an experiment takes before it runs: jobs, memory, disk and hours of every stage, by arithmetic alone.

Models are shapes (config.json), a card is four numbers (cards.py). Sizes are bytes, times hours.
How it is computed, and how far from measurements it is: docs/planning.md.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from kdag import cards
from kdag.cards import Card, Shape
from kdag.config import Config
from kdag.manifest import sha256_json
from kdag.stages import model_ids, student_ids

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
FOUR_BIT = 0.516  # bytes per weight: NF4 with its constants quantised twice (arXiv:2305.14314, section 3)
OPTIMIZER = {"adamw": 16, "adamw_8bit": 10}  # bytes per trained weight: fp32 itself, gradient, two moments
# Saved for the backward pass per token and layer, of two-byte numbers: measured with saved_tensors_hooks on
# llama layers, batch 4 x 300, sdpa attention.
SAVED = {"lora": {"hidden": 24, "kv": 4, "mlp": 8}, "full": {"hidden": 32, "kv": 4, "mlp": 8}}
FORWARD = {"hidden": 8, "kv": 0, "mlp": 6}  # held at once where nothing is saved: one layer's
# distill_loss.py: logits of a chunk, and five fp32 buffers of so many elements (on a CPU of each thread).
CHUNK_ELEMENTS, BLOCK_BUFFERS = 2**26, 5
BLOCK_ELEMENTS = {"gpu": 2**25, "cpu": 2**20}
FIDELITY_TOKENS = 8192  # padded, per forward pass of measure_fidelity.py
# What takes less memory, the least harmful first: (field, value).
TRAINING_CHANGES = (
    ("gradient_checkpointing", True),
    ("batch_size", 1),
    ("tuning", "lora"),
    ("load_in_4bit", True),
)
CACHE_CHANGES = (("batch_tokens", 1024), ("dtype", "bfloat16"))
EVALUATION_CHANGES = (("batch_size", 1), ("dtype", "bfloat16"))
# bench/gpu_shapes.py: means of 999 Alpaca rows; IFEval's 541 prompts and the answers to them.
ROW = {"prompt": 47.4, "answer": 146.0}
IFEVAL = {"prompts": 541, "prompt": 74, "teacher_answer": 288, "student_answer": 357}


def source_name(source: dict) -> str:
    """The folder's name below resources/models of a fetched source, as `fetched` of common.smk has it."""
    named = source["id"] or source["path"] or source["file"]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(named).stem if source["path"] else Path(named).name)
    return f"{name.strip('-')}-{sha256_json(source)[:8]}"


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
    return made | {"prompts": prompts, "prompt": IFEVAL["prompt"], "generated": answers}


@dataclass
class Load:
    """What one job takes. fixed and transient: on the device; held: in host memory wherever it runs."""

    shape: Shape
    fixed: float
    transient: float
    flops: float
    seconds: float  # of computing
    weights: float  # bytes of weights that are read and written, whole
    disk: float
    trainable: int = 0
    held: float = 0

    def device(self, card: Card) -> float:
        return cards.device_bytes(card, self.fixed + self.held * card.on_cpu, self.transient)


def stored_bytes(config: Config, teacher: Shape) -> float:
    """Of an answer token in the cache, its target included (teacher_storage.py)."""
    cache, item = config.teacher_cache, BYTES[config.teacher_cache.dtype]
    groups = -(-teacher.hidden // 16)
    kept = {
        "hidden": teacher.hidden * item,
        "hidden-int8": 18 * groups,
        "topk": cache.top_k * 6 + (4 if cache.tail == "bucket" else 0),
        "logits": teacher.vocabulary * item,
    }
    return kept[cache.store] + 4


def training(shape, settings, tokens, card, teacher=None, live=None) -> Load:
    """Fine-tuning, or with the Shape of a teacher distillation; live: an online teacher's dtype."""
    full, item, rows = settings.tuning == "full", BYTES[settings.dtype], tokens["train"]
    passes_back = 6 if full else 4  # per weight: 2 forward, 2 to the inputs, 2 to the weights
    again = 2 if settings.gradient_checkpointing else 0
    adapters = 0 if full else shape.adapters(settings.lora_rank, settings.lora_target_modules)
    trained = shape.parameters if full else adapters
    frozen = 0 if full else item * (shape.parameters - shape.matrices)
    frozen += 0 if full else (FOUR_BIT if settings.load_in_4bit else item) * shape.matrices
    # Autocast's copy of the matrices; of the head a copy, its gradient in fp32 and a product.
    copies = item * shape.matrices * (item < 4) + (2 * item + 4) * shape.head if full else 0

    width = settings.batch_size * tokens["longest"]
    layer = shape.per_layer(SAVED[settings.tuning]) * item / 2
    kept = item * shape.hidden if settings.gradient_checkpointing else layer
    activations = width * (shape.layers * kept + layer + 4 * item * shape.hidden)
    answers = width * rows["answers"] / rows["tokens"]
    logits = min(answers * shape.vocabulary, CHUNK_ELEMENTS) * item * (2 if teacher else 1)
    block = BLOCK_ELEMENTS["cpu" if card.on_cpu else "gpu"]
    loss = logits + BLOCK_BUFFERS * 4 * min(answers * shape.vocabulary, block) + answers * shape.hidden * item

    flops = rows["tokens"] * ((passes_back + again) * shape.matrices + 6 * adapters)
    flops += rows["answers"] * passes_back * shape.head
    passes = -(-rows["rows"] // settings.batch_size)
    launched = passes * shape.layers * (2 + again / 2) * (1 if full else cards.LORA_LAUNCHES)
    seen = weights = 0
    if teacher:
        flops += rows["answers"] * 2 * teacher.head
        seen = teacher.head * BYTES[live or settings.dtype]
    if teacher and live:
        flops += rows["tokens"] * 2 * teacher.matrices
        launched += passes * teacher.layers
        seen = weights = teacher.parameters * BYTES[live]
        activations += width * teacher.per_layer(FORWARD) * BYTES[live] / 2
    return Load(
        shape=shape,
        fixed=trained * OPTIMIZER[settings.optimizer] + frozen + copies + loss + seen,
        transient=activations,
        flops=flops * settings.epochs,
        seconds=cards.compute_seconds(card, flops * settings.epochs, launched * settings.epochs),
        weights=2 * item * shape.parameters + weights,
        disk=item * shape.parameters + 4 * adapters,
        trainable=trained,
    )


def caching(shape, cache, tokens, card, parts, per_token) -> Load:
    """The teacher over `parts` of the data. cache: config.TeacherCache; per_token: bytes stored."""
    item, counts = BYTES[cache.dtype], [tokens[part] for part in parts]
    read, answers = (sum(count[key] for count in counts) for key in ("tokens", "answers"))
    width = min(cache.batch_tokens, read)
    in_shard = min(cache.rows_per_shard, max(count["rows"] for count in counts)) / max(counts[0]["rows"], 1)
    flops = read * 2 * shape.matrices
    passes = -(-read // cache.batch_tokens)
    return Load(
        shape=shape,
        fixed=item * (shape.parameters + shape.head),
        transient=width * shape.per_layer(FORWARD) * item / 2,
        flops=flops,
        seconds=cards.compute_seconds(card, flops, passes * shape.layers),
        weights=item * shape.parameters,
        disk=answers * per_token + item * shape.head,
        held=2 * min(in_shard, 1) * counts[0]["answers"] * per_token,
    )


def generating(shape, evaluation, tokens, card, answer) -> Load:
    """Greedy answers of `answer` tokens in the mean to every prompt."""
    item, batch = BYTES[evaluation.dtype], min(evaluation.batch_size, tokens["prompts"])
    per_token = 2 * shape.layers * shape.kv * item
    # The longest of `batch` answers, their lengths exponential: 979 and 1,273 steps were measured for batches
    # of 16 and 64 of Qwen2.5-7B-Instruct's (bench/gpu_shapes.py), 974 and 1,280 are computed.
    longest = min(evaluation.max_new_tokens, answer * sum(1 / n for n in range(1, batch + 1)))
    steps = -(-tokens["prompts"] // batch) * longest
    made = tokens["prompts"] * answer
    flops = 2 * (made + tokens["prompts"] * tokens["prompt"]) * shape.matrices + 2 * made * shape.head
    read = steps * item * (shape.matrices + shape.head) + made * per_token * (tokens["prompt"] + answer / 2)
    return Load(
        shape=shape,
        fixed=item * shape.parameters
        + per_token * batch * (tokens["prompt"] + evaluation.max_new_tokens)
        + (item + 4) * batch * shape.vocabulary,
        transient=batch * tokens["prompt"] * shape.per_layer(FORWARD) * item / 2,
        flops=flops,
        seconds=cards.compute_seconds(card, flops, steps * shape.layers, read),
        weights=item * shape.parameters,
        disk=tokens["prompts"] * (4 * answer + 3000),  # the answer's text, its prompt, its scores
    )


def measuring(shape, teacher, evaluation, tokens, card) -> Load:
    """Student and untrained student over the held-out rows, one after the other, then three heads."""
    item, rows = BYTES[evaluation.dtype], tokens["heldout"]
    width = min(FIDELITY_TOKENS, rows["tokens"])
    flops = 4 * rows["tokens"] * shape.matrices + 2 * rows["answers"] * (2 * shape.head + teacher.head)
    models = item * shape.parameters
    heads = item * (2 * shape.head + teacher.head) + 6 * 4 * min(256, rows["answers"]) * shape.vocabulary
    return Load(
        shape=shape,
        fixed=max(models, heads),
        transient=width * shape.per_layer(FORWARD) * item / 2 if models > heads else 0,
        flops=flops,
        seconds=cards.compute_seconds(card, flops, 2 * shape.layers * -(-rows["tokens"] // FIDELITY_TOKENS)),
        weights=2 * models,
        disk=3000,
        held=rows["answers"] * item * (2 * shape.hidden + teacher.hidden),
    )


def plan(config: Config, teacher: Shape, student: Shape, card: Card, tokens: dict) -> list[dict]:
    """An entry per stage. tokens: of `default_tokens`. hours: of a job in the mean; memory: of the largest.

    too_large: the key to change where a job needs more memory than the card has, else None.
    """
    live = config.teacher_cache.dtype if config.teacher.online else None
    parts = ["heldout"] if live else ["train", "heldout"]
    kept, evaluation, seeds = stored_bytes(config, teacher), config.evaluation, len(config.seeds)
    students = len(student_ids(config))

    def trained(shape, seen=None, live=None):
        return lambda settings: training(shape, settings, tokens, card, seen, live)

    def cached(settings):
        return caching(teacher, settings, tokens, card, parts, kept)

    def answered(shape, side):
        return lambda settings: generating(shape, settings, tokens, card, tokens["generated"][side])

    def compared(settings):
        return measuring(student, teacher, settings, tokens, card)

    large, small = model_key(config, "teacher"), model_key(config, "student")
    distilled = []
    for name, strategy in config.strategies.items():
        own = {key: f"strategies.{name}.{key}" for key in strategy.overrides()}
        settings = config.distillation_of(name)
        change = remedies("distillation", TRAINING_CHANGES, own)
        distilled.append((seeds, settings, trained(student, teacher, live), change, small))
    tune, cut = remedies("teacher_training", TRAINING_CHANGES), remedies("teacher_cache", CACHE_CHANGES)
    learn, change = remedies("distillation", TRAINING_CHANGES), remedies("evaluation", EVALUATION_CHANGES)
    stages = {
        "sft_teacher": [(1, config.teacher_training, trained(teacher), tune, large)],
        "cache_teacher": [(1, config.teacher_cache, cached, cut, large)],
        "sft_student": [(seeds, config.distillation, trained(student), learn, small)],
        "distill": distilled,
        "generate": [
            (2, evaluation, answered(teacher, "teacher"), change, large),
            (
                len(model_ids(config)) - 2,
                evaluation,
                answered(student, "student"),
                change,
                small,
            ),
        ],
        "measure_fidelity": [(students + 1, evaluation, compared, change, small)],
    }
    return [entry(config, card, stage, kinds) for stage, kinds in stages.items()]


def model_key(config: Config, side: str) -> str:
    """The key that says which model it is."""
    source = getattr(config, side)
    if side == "student" and source.derive:
        return "student.derive.keep_layers"
    return f"{side}." + {"hub": "id", "path": "path", "package": "file"}[source.source]


def remedies(section: str, changes, own=()) -> list[tuple[str, str, object]]:
    """(configuration key, field, value) of what would take less memory; `own`: keys that stand elsewhere."""
    return [(dict(own).get(field, f"{section}.{field}"), field, value) for field, value in changes]


def entry(config: Config, card: Card, stage: str, kinds) -> dict:
    """One stage. kinds: (jobs, settings, settings -> Load, remedies, model's key) of jobs that are alike."""
    gpus = getattr(config.resources.gpus, stage)
    shards = config.teacher_cache.shards if stage == "cache_teacher" else 1
    loads = [(jobs, compute(settings)) for jobs, settings, compute, *_ in kinds]
    number = sum(jobs for jobs, _ in loads)
    hours = sum(jobs * job_hours(load, gpus, shards) for jobs, load in loads)
    largest = max(range(len(kinds)), key=lambda index: loads[index][1].device(card))
    load, (_, settings, compute, changes, model) = loads[largest][1], kinds[largest]
    needed = load.device(card)
    room = card.memory * cards.GIB
    host = needed if card.on_cpu else gpus * (cards.CUDA_PROCESS + load.shape.parameters * 2) + load.held
    disk = sum(jobs * load.disk for jobs, load in loads)
    key = None
    if needed > room:
        key = key_to_change(lambda s: compute(s).device(card), settings, changes, room) or model
    return {
        "stage": stage,
        "jobs": number * shards,
        "gpus": gpus,
        "parameters": load.shape.parameters,
        "trainable": load.trainable,
        "flops": round(sum(jobs * load.flops for jobs, load in loads)),
        "gpu_bytes": 0 if card.on_cpu else round(needed),
        "host_bytes": round(host),
        "disk_bytes": round(disk),
        "hours": hours / number,
        "hours_total": hours * shards,
        "gpu_hours": hours * shards * gpus * (not card.on_cpu),
        "too_large": key,
    }


def job_hours(load: Load, gpus: int, shards: int) -> float:
    """From its start to its manifest, the computing shared out evenly."""
    return (cards.START_SECONDS + load.weights / cards.DISK_RATE + load.seconds / gpus / shards) / 3600


def key_to_change(needed, settings, changes, room: float) -> str | None:
    """The first key whose change alone makes it fit, else the best; None if all do not."""
    changed = [(key, {field: value}) for key, field, value in changes if getattr(settings, field) != value]
    every = {field: value for _, update in changed for field, value in update.items()}
    if needed(settings.model_copy(update=every)) > room:
        return None
    tried = {key: needed(settings.model_copy(update=update)) for key, update in changed}
    return next((key for key, value in tried.items() if value <= room), min(tried, key=tried.get))
