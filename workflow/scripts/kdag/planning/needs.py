"""What one job of each stage takes: memory, operations, time and disk, from shapes and settings alone.

Sizes are bytes, times seconds. How the formulas were found, and how far from measurements they are:
docs/planning.md.
"""

from dataclasses import dataclass, replace
from math import exp

from kdag.config.experiment import Config
from kdag.losses.sizes import BLOCK_ELEMENTS, CHUNK_ELEMENTS
from kdag.models.sizes import PROMPT_TOKENS
from kdag.planning import devices
from kdag.planning.devices import Device
from kdag.planning.shapes import Shape
from kdag.teacher import sizes
from kdag.training.memory import OPTIMIZER, SHARE_OF_GPU, tokens_per_pass

FOUR_BIT = 0.516  # bytes per weight: NF4 with its constants quantised twice (arXiv:2305.14314, section 3)
# Bytes saved for the backward pass per token and layer, of two-byte numbers (bench/saved.py). On a CPU, where
# rows are packed, what attention gave for each row is put together: a copy more.
SAVED = {"lora": {"hidden": 16, "kv": 4, "mlp": 8}, "full": {"hidden": 30, "kv": 4, "mlp": 8}}
PACKED = 2
FORWARD = {"hidden": 8, "kv": 0, "mlp": 6}  # held at once where nothing is saved: one layer's
BLOCK_BUFFERS = 5  # of losses/fused.py, in fp32, on a CPU of each thread
# Matrix products of different shape for one number of tokens: forward, the head's among them; in training
# also backward, and with adapters five more each way and for their own gradients.
PRODUCTS = {"forward": 5, "full": 15, "lora": 25}


@dataclass
class Need:
    """What one job takes. fixed and transient: on the device; held: in host memory wherever it runs.

    parted: of `fixed`, what several GPUs divide among them, where they do (`divided`). products: matrix
    products of different shapes, each of which a CPU compiles once.
    """

    shape: Shape
    fixed: float
    transient: float
    flops: float
    seconds: float  # of computing
    weights: float  # bytes of weights that are read and written, whole
    disk: float
    trainable: int = 0
    held: float = 0
    parted: float = 0
    spread: bool = False  # one process, its layers on several GPUs one after the other: no faster
    shardable: bool = False
    products: int = 0

    def divided(self, device: Device, gpus: int) -> bool:
        sharded = self.shardable and self.parted > SHARE_OF_GPU * device.memory * devices.GIB
        return gpus > 1 and not device.on_cpu and (self.spread or sharded)

    def device(self, device: Device, gpus: int = 1) -> float:
        """Bytes on each of a job's GPUs, or in the memory of a machine without."""
        fixed = self.fixed + self.held * device.on_cpu
        if self.divided(device, gpus):
            fixed -= self.parted * (1 - 1 / gpus)
        return devices.device_bytes(device, fixed, self.transient, self.products)

    def host(self, device: Device, gpus: int = 1) -> float:
        """Bytes of host memory: weights pass through it, in each process of a training."""
        if device.on_cpu:
            return self.device(device)
        loading = devices.CUDA_PROCESS + 2 * self.shape.parameters
        return loading * (1 if self.spread else gpus) + self.held


def with_sampling(need: Need, sampled: Need, settings, times: float) -> Need:
    """A training whose student answers its prompts, `times` over, nothing being kept for a backward pass.

    It answers with copies of its weights (models/merging.py). settings: the training's.
    """
    item, shape = sizes.ITEM[settings.dtype], need.shape
    copies = item * (shape.all_matrices if settings.tuning == "lora" else shape.parameters * (item < 4))
    besides = sampled.fixed - sampled.weights + sampled.transient + copies * (not settings.load_in_4bit)
    return replace(
        need,
        transient=max(need.transient, besides),
        flops=need.flops + times * sampled.flops,
        seconds=need.seconds + times * sampled.seconds,
    )


def stored_bytes(config: Config, teacher: Shape) -> float:
    """Of an answer token in the cache, its target included."""
    cache = config.teacher_cache
    per_token = sizes.BYTES_PER_TOKEN[cache.store]
    return per_token(teacher.hidden, teacher.vocabulary, **cache.parameters()) + sizes.TARGET


def training(shape, settings, tokens, device, teacher=None, live=None) -> Need:
    """Fine-tuning, or with the Shape of a teacher distillation; live: an online teacher's dtype."""
    if settings.gradient_checkpointing == "auto":
        off, on = (settings.model_copy(update={"gradient_checkpointing": again}) for again in (False, True))
        need = training(shape, off, tokens, device, teacher, live)
        fits = not device.on_cpu and need.device(device) <= device.memory * devices.GIB
        return need if fits else training(shape, on, tokens, device, teacher, live)
    full, item, rows = settings.tuning == "full", sizes.ITEM[settings.dtype], tokens["train"]
    passes_back = 6 if full else 4  # per weight: 2 forward, 2 to the inputs, 2 to the weights
    again = 2 if settings.gradient_checkpointing else 0
    adapters = 0 if full else shape.adapters(settings.lora_rank, settings.lora_target_modules)
    trained = shape.parameters if full else adapters
    frozen = 0 if full else item * (shape.parameters - shape.all_matrices)
    frozen += 0 if full else (FOUR_BIT if settings.load_in_4bit else item) * shape.all_matrices
    # Autocast's copy of the matrices; of the head a copy, its gradient in fp32 and a product.
    copies = item * shape.all_matrices * (item < 4) + (2 * item + 4) * shape.head if full else 0

    width, passes = a_pass(settings, tokens, device)
    saved = SAVED[settings.tuning]
    saved = saved | {"hidden": saved["hidden"] + PACKED * device.on_cpu}
    layer = shape.per_layer(saved) * item / 2
    # Checkpointed, a layer keeps what comes in: with every weight trained that is in float32.
    kept = (4 if full else item) * shape.hidden if settings.gradient_checkpointing else layer
    activations = width * (shape.layers * kept + layer + 4 * item * shape.hidden)
    answers = width * rows["answers"] / rows["tokens"]
    logits = min(answers * shape.vocabulary, CHUNK_ELEMENTS) * item * (2 if teacher else 1)
    block = BLOCK_ELEMENTS["cpu" if device.on_cpu else "cuda"]
    loss = logits + BLOCK_BUFFERS * 4 * min(answers * shape.vocabulary, block) + answers * shape.hidden * item

    flops = rows["tokens"] * ((passes_back + again) * shape.matrices + 6 * adapters)
    flops += rows["answers"] * passes_back * shape.head
    launched = passes * shape.layers * (2 + again / 2) * (1 if full else devices.LORA_LAUNCHES)
    seen = weights = 0
    if teacher:
        flops += rows["answers"] * 2 * teacher.head
        seen = teacher.head * sizes.ITEM[live or settings.dtype]
    if teacher and live:
        flops += rows["tokens"] * 2 * teacher.matrices
        launched += passes * teacher.layers
        seen = weights = teacher.parameters * sizes.ITEM[live]
        activations += width * teacher.per_layer(FORWARD) * sizes.ITEM[live] / 2
    model = trained * OPTIMIZER[settings.optimizer] + frozen
    return Need(
        shape=shape,
        fixed=model + copies + loss + seen,
        transient=activations,
        flops=flops * settings.epochs,
        seconds=devices.compute_seconds(device, flops * settings.epochs, launched * settings.epochs),
        weights=2 * item * shape.parameters + weights,
        disk=item * shape.parameters + 4 * adapters,
        trainable=trained,
        parted=model,
        shardable=settings.optimizer == "adamw" and not settings.load_in_4bit,
        products=PRODUCTS[settings.tuning] * min(passes, tokens["longest"]) * (item < 4),
    )


def a_pass(settings, tokens, device) -> tuple[int, int]:
    """(padded tokens of the widest forward pass of a training, how many passes an epoch has)."""
    rows, limit = tokens["train"], tokens_per_pass(settings, device.on_cpu)
    if limit is None:
        return settings.batch_size * tokens["longest"], -(-rows["rows"] // settings.batch_size)
    step = settings.batch_size * settings.gradient_accumulation
    steps = -(-rows["rows"] // step)
    width = min(max(limit, tokens["longest"]), step * tokens["longest"])
    return width, max(steps, -(-rows["tokens"] // limit))


def caching(shape, cache, tokens, device, parts, per_token) -> Need:
    """The teacher over `parts` of the data. cache: config.TeacherCache; per_token: bytes stored."""
    item, counts = sizes.ITEM[cache.dtype], [tokens[part] for part in parts]
    read, answers = (sum(count[key] for count in counts) for key in ("tokens", "answers"))
    width = min(cache.batch_tokens, read)
    in_shard = min(cache.rows_per_shard, max(count["rows"] for count in counts)) / max(counts[0]["rows"], 1)
    flops = read * 2 * shape.matrices
    passes = -(-read // cache.batch_tokens)
    return Need(
        shape=shape,
        fixed=item * (shape.parameters + shape.head),
        transient=width * shape.per_layer(FORWARD) * item / 2,
        flops=flops,
        seconds=devices.compute_seconds(device, flops, passes * shape.layers),
        weights=item * shape.parameters,
        disk=answers * per_token + item * shape.head,
        held=2 * min(in_shard, 1) * counts[0]["answers"] * per_token,
        parted=item * shape.parameters,
        spread=True,
        products=PRODUCTS["forward"] * (passes + 1) * (item < 4),
    )


def generating(shape, evaluation, tokens, device, answer) -> Need:
    """Greedy answers of `answer` tokens in the mean to every prompt."""
    item, batch = sizes.ITEM[evaluation.dtype], min(evaluation.batch_size, tokens["prompts"])
    per_token = 2 * shape.layers * shape.kv * item
    # The longest of `batch` answers, their lengths exponential: 979 and 1,273 steps were measured for batches
    # of 16 and 64 of Qwen2.5-7B-Instruct's (bench/gpu_shapes.py), 974 and 1,280 are computed.
    longest = min(evaluation.max_new_tokens, answer * sum(1 / n for n in range(1, batch + 1)))
    steps = -(-tokens["prompts"] // batch) * longest
    made = tokens["prompts"] * answer
    flops = 2 * (made + tokens["prompts"] * tokens["prompt"]) * shape.matrices + 2 * made * shape.head
    read = steps * item * (shape.all_matrices + shape.head) + made * per_token * (
        tokens["prompt"] + answer / 2
    )
    # The batch of the longest prompts comes first, all padded to the longest. Rows leave as they end (on a
    # GPU once half have), and a step with a new number of rows has new products.
    read_at_once = min(batch * tokens["longest_prompt"], max(PROMPT_TOKENS, tokens["longest_prompt"]))
    held = item * shape.parameters
    held += per_token * batch * (tokens["longest_prompt"] + evaluation.max_new_tokens)
    ends = 1 - exp(-evaluation.max_new_tokens / answer)
    return Need(
        shape=shape,
        fixed=held + (item + 4) * batch * shape.vocabulary,
        transient=read_at_once * shape.per_layer(FORWARD) * item / 2,
        flops=flops,
        # A step is one launch, a CUDA graph; models without a static cache take longer.
        seconds=devices.compute_seconds(device, flops, read=read),
        weights=item * shape.parameters,
        disk=tokens["prompts"] * (4 * answer + 3000),  # the answer's text, its prompt, its scores
        parted=held,
        spread=True,
        products=round(PRODUCTS["forward"] * batch * ends) * (item < 4),
    )


def measuring(shape, teacher, evaluation, tokens, device) -> Need:
    """Student and untrained student over the held-out rows, one after the other, then three heads."""
    item, rows = sizes.ITEM[evaluation.dtype], tokens["heldout"]
    width = min(sizes.FIDELITY_TOKENS, rows["tokens"])
    flops = 4 * rows["tokens"] * shape.matrices + 2 * rows["answers"] * (2 * shape.head + teacher.head)
    models = item * shape.parameters
    heads = item * (2 * shape.head + teacher.head) + 6 * 4 * min(256, rows["answers"]) * shape.vocabulary
    return Need(
        shape=shape,
        fixed=max(models, heads),
        transient=width * shape.per_layer(FORWARD) * item / 2 if models > heads else 0,
        flops=flops,
        seconds=devices.compute_seconds(
            device, flops, 2 * shape.layers * -(-rows["tokens"] // sizes.FIDELITY_TOKENS)
        ),
        weights=2 * models,
        disk=3000,
        held=rows["answers"] * item * (2 * shape.hidden + teacher.hidden),
        parted=models if models > heads else 0,
        spread=True,
        products=PRODUCTS["forward"] * (1 + rows["tokens"] // sizes.FIDELITY_TOKENS) * (item < 4),
    )
