"""The parts `teacher`, `step`, `wide`, `unsloth` and `profile` of bench/gpu.py: steps of training."""

import contextlib
import time
from functools import partial
from importlib.util import find_spec
from statistics import median

import common
import gpu_shapes
from gpu_run import GIB, NotHere, card, gkd_loss, ratio, release, times

# Steps that compile, and find the memory that the others use.
WARM_UP = 2


def stored_teacher(run, frame):
    """A kdag.teacher.cache.TeacherCache of random states for these rows, files and hashes and all."""
    import cache as bench
    import torch
    from safetensors.torch import save_file

    from kdag.files.manifest import write_manifest
    from kdag.models.load import device
    from kdag.teacher import cache

    width, vocabulary = run.shapes["teacher"]["hidden_size"], run.shapes["vocabulary"]
    folder = run.folder / "stored"
    made = cache.answer_states
    cache.answer_states = bench.synthetic(bench.answer_tokens(frame), width)
    bench.write(None, frame, folder / "train", gpu_shapes.settings("teacher_cache"))
    cache.answer_states = made
    head = torch.randn(vocabulary, width, device=device()).mul_(0.02).to(torch.bfloat16).cpu()
    save_file({"head": head}, folder / "head.safetensors")
    hashes = {"vocabulary_hash": "", "template_hash": ""}
    write_manifest(
        folder / "manifest.json",
        stage="bench",
        params={},
        inputs={},
        outputs=[folder / "train", folder / "head.safetensors"],
        row_hashes={"train": frame["row_hash"].tolist()},
        store={"train": "hidden"},
        **hashes,
    )
    return cache.TeacherCache(folder / "manifest.json", "train", frame, hashes)


def training_settings(run, section, **changes):
    values = gpu_shapes.settings(section, **changes)
    if run.tiny:
        values.gradient_accumulation = 2
    return values


def rows_per_step(settings):
    return settings.batch_size * settings.gradient_accumulation


def by_kdag(run, shape, frame, settings, goal, teacher=None, last=None):
    """training.train, whole: (seconds per step, bytes at the peak). last: a context of the last step."""
    release()
    common.reset_peak()
    seconds = common.train_timed(
        last,
        model=gpu_shapes.model(shape),
        frame=frame,
        settings=settings,
        objective=goal,
        teacher=teacher,
        vocabulary=run.shapes["vocabulary"],
        work=run.folder / "work",
    )
    return seconds, common.peak_memory()


def by_loop(shape, frame, settings, loss, cache=None):
    """A plain loop of transformers and peft over the same rows in the same batches with the same adapters.

    loss(model, batch, answer tokens of the step). Returns (seconds per step, bytes at the peak).
    """
    import torch

    from kdag.models.load import device
    from kdag.training import train
    from kdag.training.batches import EpochSampler, Rows, collate

    release()
    common.reset_peak()
    network = train.prepare(gpu_shapes.model(shape), settings, "transformers").train()
    data = Rows(frame, cache)
    lengths, passes = [len(ids) for ids in data.ids], settings.gradient_accumulation
    order = list(EpochSampler(lengths, settings.batch_size, settings.seed, lambda: 0, passes=passes))
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, fused=True)
    autocast, seconds, at_once = torch.autocast(device().type, torch.bfloat16), [], rows_per_step(settings)
    for start in range(0, len(order), at_once):
        begin = common.now()
        step = [data[i] for i in order[start : start + at_once]]
        items = sum(int((row["targets"] != -100).sum()) for row in step)
        for first in range(0, at_once, settings.batch_size):
            batch = on_device(collate(step[first : first + settings.batch_size]))
            with autocast:
                value = loss(network, batch, items)
            value.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(common.now() - begin)
    return seconds, common.peak_memory()


def on_device(batch):
    from kdag.models.load import device

    return {k: on_device(v) if isinstance(v, dict) else v.to(device()) for k, v in batch.items()}


def logits_of(network, batch):
    return network(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits


def transformers_loss(network, batch, items):
    """Cross-entropy as transformers' own models and Trainer have it, on all logits."""
    return network(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
        shift_labels=batch["labels"],
        num_items_in_batch=items,
        use_cache=False,
    ).loss


def dense_loss(head, goal):
    """The default objective in its textbook form: all logits of both, log_softmax, autograd."""
    import torch.nn.functional as F

    def loss(network, batch, items):
        learn, heat = batch["labels"] != -100, goal.temperature
        student = logits_of(network, batch)[learn][:, : len(head)].float()
        teacher = (batch["teacher"]["hidden"] @ head.t()).float()
        ce = F.cross_entropy(student, batch["labels"][learn], reduction="sum")
        log_q, log_p = F.log_softmax(student / heat, dim=-1), F.log_softmax(teacher / heat, dim=-1)
        kl = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return ((1 - goal.kl_weight) * ce + goal.kl_weight * heat**2 * kl) / items

    return loss


def live_gkd_loss(teacher, vocabulary, gkd):
    """TRL's GKD on given answers: the teacher runs alongside, its loss sees every position from the first
    answer's on. beta = 0 is the forward KL."""
    import torch

    def loss(network, batch, items):
        first = int((batch["labels"] != -100).any(0).nonzero()[0])
        student = logits_of(network, batch)[:, first:, :vocabulary]
        with torch.no_grad():
            wanted = logits_of(teacher, batch)[:, first:, :vocabulary]
        return gkd(student, wanted, batch["labels"][:, first:], beta=0.0, temperature=1.0, items=items)

    return loss


def step_floor(run, name, frame, teacher_head=False):
    """Seconds that the products of a LoRA step over these rows take at the card's rate, checkpointed.

    Or that reading the weights takes, if that is longer: forward, forward again, backward.
    """
    rate, bandwidth = run.card
    shape, count = run.shapes[name], gpu_shapes.tokens(frame)
    flops = 6 * gpu_shapes.layer_weights(shape) * count
    heads = 2 * shape["hidden_size"] + (run.shapes["teacher"]["hidden_size"] if teacher_head else 0)
    flops += 2 * run.shapes["vocabulary"] * heads * gpu_shapes.answer_tokens(frame)
    read = 3 * 2 * gpu_shapes.layer_weights(shape) * len(frame)
    return max(flops / rate, read / bandwidth)


def training_figures(run, case, name, seconds, peak, rows):
    """Of a way to train."""
    run.figures.one(case, f"{name}, s per step", median(seconds))
    run.figures.one(case, f"{name}, s per row", sum(seconds) / len(seconds) / rows)
    run.figures.one(case, f"{name}, peak GiB", peak / GIB)


def part_teacher(run):
    """Fine-tuning the teacher; next to it transformers' own loss in a plain loop."""
    from kdag.training.train import Objective

    run.card = card(run)
    settings = training_settings(run, "teacher_training")
    rows = rows_per_step(settings)
    frame, shape = gpu_shapes.rows(run.shapes, rows * (WARM_UP + run.often(4))), run.shapes["teacher"]
    case = f"{settings.batch_size} x {settings.gradient_accumulation} rows"
    taken, peak = by_kdag(run, shape, frame, settings, Objective())
    seconds = taken[WARM_UP:]
    training_figures(run, case, "fine-tuning", seconds, peak, rows)
    floor = step_floor(run, "teacher", frame) * rows / len(frame)
    run.figures.one(case, "fine-tuning / its limit on this card", median(seconds) / floor)
    with run.attempt("plain transformers"):
        taken, other_peak = by_loop(shape, frame, settings, transformers_loss)
        others = taken[WARM_UP:]
        training_figures(run, case, "plain transformers", others, other_peak, rows)
        run.figures.one(case, "plain transformers / kdag, time", ratio(others, seconds))
        run.figures.one(case, "plain transformers / kdag, memory", other_peak / peak)


def part_step(run):
    """The default micro-batch, with every peer."""
    measure_step(run, training_settings(run, "distillation"), ("dense", "trl"), twice=not run.quick)


def part_wide(run):
    """The same rows per step in micro-batches of eight: what the key batch_size would change."""
    settings = training_settings(run, "distillation")
    wide = run.little(8, 2)
    accumulation = max(1, rows_per_step(settings) // wide)
    settings.batch_size, settings.gradient_accumulation = wide, accumulation
    measure_step(run, settings, ("dense",), twice=False)


def measure_step(run, settings, peers, twice):
    """Fine-tuning, distillation, peers, and the first two again in the other order."""
    from kdag.training.train import Objective

    run.card = card(run)
    goal, rows, shape = gpu_shapes.objective(), rows_per_step(settings), run.shapes["student"]
    frame = gpu_shapes.rows(run.shapes, rows * (WARM_UP + run.often(4)))
    cache = stored_teacher(run, frame)
    ours = {
        "fine-tuning": partial(by_kdag, run, shape, frame, settings, Objective()),
        "distillation": partial(by_kdag, run, shape, frame, settings, goal, cache),
    }
    others = {
        "dense": partial(dense_step, shape, frame, settings, goal, cache),
        "trl": partial(trl_step, run, shape, frame, settings),
    }
    case = f"{settings.batch_size} x {settings.gradient_accumulation} rows"
    seconds, peaks, took = {}, {}, 0
    for name in (*ours, *peers, *(reversed(ours) if twice else ())):
        if not run.time_for(f"{name} (once more)" if name in seconds else name, took):
            break
        begin = time.monotonic()
        with contextlib.nullcontext() if name in ours else run.attempt(name):
            taken, peak = (ours | others)[name]()
            seconds[name] = seconds.get(name, []) + taken[WARM_UP:]
            peaks[name] = max(peak, peaks.get(name, 0))
            training_figures(run, case, name, seconds[name], peaks[name], rows)
        took = time.monotonic() - begin
    step_figures(run, case, seconds, peaks, frame, rows)


def dense_step(shape, frame, settings, goal, cache):
    from kdag.models.load import device

    return by_loop(shape, frame, settings, dense_loss(cache.head.to(device()), goal), cache)


def trl_step(run, shape, frame, settings):
    gkd, whose = gkd_loss()
    run.figures.note(f"GKD's loss: {whose}; the teacher runs alongside, as TRL has no stored one")
    teacher = gpu_shapes.model(run.shapes["teacher"])
    return by_loop(shape, frame, settings, live_gkd_loss(teacher, run.shapes["vocabulary"], gkd))


def step_figures(run, case, seconds, peaks, frame, rows):
    figures = run.figures
    ours, plain = seconds["distillation"], seconds["fine-tuning"]
    figures.one(case, "distillation step / fine-tuning step", ratio(ours, plain))
    more = peaks["distillation"] - peaks["fine-tuning"]
    figures.one(case, "distillation step - fine-tuning step, GiB", more / GIB)
    head = 2 * run.shapes["vocabulary"] * run.shapes["teacher"]["hidden_size"]
    figures.one(case, "of which the teacher's head, GiB", head / GIB)
    for name, with_teacher in (("fine-tuning", False), ("distillation", True)):
        floor = step_floor(run, "student", frame, with_teacher) * rows / len(frame)
        figures.one(case, f"{name} / its limit on this card", median(seconds[name]) / floor)
    for name in ("dense", "trl"):
        if name in seconds:
            first = ours[: len(seconds[name])]
            figures.one(case, f"{name} / distillation, time", ratio(seconds[name], first))
            figures.one(case, f"{name} / distillation, memory", peaks[name] / peaks["distillation"])


# Unsloth


def part_unsloth(run):
    """The student's fine-tuning by both backends, each in a process of its own, by turns."""
    if find_spec("unsloth") is None:
        raise NotHere("unsloth is not installed")
    if not common.on_gpu():
        raise NotHere("unsloth needs a GPU")
    folder = run.folder / "student"
    settings = training_settings(run, "distillation")
    rows = gpu_shapes.rows(run.shapes, rows_per_step(settings) * (1 + run.often(2)))
    write_student(run.shapes["student"], folder)
    kwargs = {"folder": folder, "frame": rows, "settings": settings}
    kwargs["vocabulary"] = run.shapes["vocabulary"]
    done = common.by_turns(
        {name: (backend_worker, kwargs | {"backend": name}) for name in ("transformers", "unsloth")}
    )
    case = f"{settings.batch_size} x {settings.gradient_accumulation} rows"
    for name, (turns, peak) in done.items():
        run.figures.one(case, f"{name}, s per step", median(common.seconds(turns)))
        run.figures.one(case, f"{name}, peak GiB", peak / GIB)
    (plain, plain_peak), (other, peak) = done["transformers"], done["unsloth"]
    run.figures.one(case, "unsloth / transformers, time", common.ratio(other, plain))
    run.figures.one(case, "unsloth / transformers, memory", peak / plain_peak)


def backend_worker(baton, backend, folder, frame, settings, vocabulary):
    """Fine-tune with one of kdag's backends; bytes at the peak."""
    from kdag.training import backends

    settings.backend = backend
    backend = backends.start(backend)
    longest = max(map(len, frame["input_ids"]))
    from kdag.training.train import Objective

    common.train_by_turns(
        baton,
        model=backends.load(folder, settings, backend, longest),
        frame=frame,
        settings=settings,
        objective=Objective(),
        teacher=None,
        vocabulary=vocabulary,
        work=folder.parent / f"work-{backend}",
        backend=backend,
    )
    return common.peak_memory()


def write_student(shape, folder):
    """A directory that from_pretrained opens, with a tokenizer that has nothing but its length right."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(shape["vocab_size"])}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="w2", pad_token="w0", unk_token="w0")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    gpu_shapes.model(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    release()


# Where the time goes; not among the parts that run unless asked for


def part_profile(run):
    """Kernels by their time, and the share of the time that the device works, of a step of each kind."""
    import gpu_loss
    import loss as bench

    from kdag.training.train import Objective

    settings = training_settings(run, "distillation", gradient_accumulation=8)
    frame, shape = gpu_shapes.rows(run.shapes, 4 * rows_per_step(settings)), run.shapes["student"]
    stored = stored_teacher(run, frame)
    for name, goal, teacher in (
        ("fine-tuning", Objective(), None),
        ("distillation", gpu_shapes.objective(), stored),
    ):
        profiler = made_profiler()
        seconds, _ = by_kdag(run, shape, frame, settings, goal, teacher, last=profiler)
        show_profile(run, name, profiler, median(seconds[1:-1]))
    inputs = gpu_loss.loss_inputs(run, run.little(2048, 32))
    seconds, profiler = times(partial(bench.kdag, inputs), 5), made_profiler()
    with profiler:
        bench.kdag(inputs)
        common.sync()
    show_profile(run, "loss", profiler, median(seconds[1:]))


def made_profiler():
    from torch.profiler import ProfilerActivity, profile

    gpu = [ProfilerActivity.CUDA] if common.on_gpu() else []
    return profile(activities=[ProfilerActivity.CPU, *gpu])


def show_profile(run, name, profiler, seconds):
    """seconds: of the same without the profiler, which slows the host and not the device."""
    events, gpu = profiler.key_averages(), common.on_gpu()
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    busy = sum(getattr(event, key) for event in events if not gpu or event.device_type.name == "CUDA")
    run.figures.one(name, "time of the kernels / time", busy / 1e6 / seconds)
    print(events.table(sort_by=key, row_limit=15, max_name_column_width=70), flush=True)
