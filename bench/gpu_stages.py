"""The parts `cache`, `generate` and `files` of bench/gpu.py: the stages that do not train, and files."""

import subprocess
import sys
import time
from functools import partial
from statistics import median

import common
import gpu_shapes
from gpu_run import GIB, card, ratio, release, times
from gpu_training import training_settings

MANY = 64  # prompts at once: what evaluation.batch_size could be


def part_cache(run):
    """bench/cache.py's two ways over the same batches, at the teacher's shape."""
    import cache as bench

    rate, _ = card(run)
    shape, settings = run.shapes["teacher"], gpu_shapes.settings("teacher_cache")
    network = gpu_shapes.model(shape)
    frame = gpu_shapes.rows(run.shapes, run.little(512, 16))
    count, taken = gpu_shapes.tokens(frame), {"bare": [], "write": []}
    common.reset_peak()
    for _ in range(run.often(2) + 1):
        taken["bare"] += times(partial(bench.bare, network, frame, settings.batch_tokens), 1)
        taken["write"] += times(partial(bench.write, network, frame, run.folder / "cache", settings), 1)
    case = f"{len(frame)} rows, {count} tokens"
    forward, wrote = median(taken["bare"][1:]), median(taken["write"][1:])
    run.figures.one(case, "bare forward, tokens/s", count / forward)
    run.figures.one(case, "writing, tokens/s", count / wrote)
    run.figures.one(case, "speed of caching / bare forward", ratio(taken["bare"][1:], taken["write"][1:]))
    floor = 2 * gpu_shapes.layer_weights(shape) * count / rate
    run.figures.one(case, "bare forward / its products at the card's rate", forward / floor)
    run.figures.one(case, "peak GiB", common.peak_memory() / GIB)


# Generation


def part_generate(run):
    """decode_greedily without an end token, so that every row runs to the cap."""
    import transformers
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    from kdag.models import decoding

    transformers.AttentionInterface.register(decoding.ATTENTION, decoding.grouped_attention)
    AttentionMaskInterface.register(decoding.ATTENTION, sdpa_mask)
    _, bandwidth = card(run)
    settings = gpu_shapes.settings("evaluation")
    for name in ("student", "teacher"):
        network = gpu_shapes.model(run.shapes[name], decoding.ATTENTION)
        floor = 2 * gpu_shapes.all_weights(run.shapes[name]) / bandwidth
        generation_figures(run, network, name, settings.batch_size, settings.max_new_tokens, floor)
        with run.attempt(f"{name}, transformers' generate"):
            transformers_generate(run, network, name, settings.batch_size)
        with run.attempt(f"{name}, batch {MANY}"):
            generation_figures(run, network, name, MANY, settings.max_new_tokens, floor)
        del network
        release()


def prompts(run, count, longer=0):
    import random

    generator = random.Random(0)
    sizes = [max(2, size // run.shapes["shorter"]) for size in gpu_shapes.PROMPTS]
    return [
        [generator.randrange(3, run.shapes["vocabulary"]) for _ in range(sizes[i % len(sizes)] + longer)]
        for i in range(count)
    ]


def decode_times(run, network, given, steps):
    """Seconds of every step; the first holds the prompts."""
    from kdag.models import decoding

    stamps = [common.now()]
    decoding.decode_greedily(
        network,
        given,
        vocabulary=run.shapes["vocabulary"],
        eos_ids=[],
        max_new_tokens=steps,
        on_step=lambda answers, running: stamps.append(common.now()),
    )
    return [b - a for a, b in zip(stamps, stamps[1:], strict=False)]


def generation_figures(run, network, name, batch, cap, floor):
    release()
    case, steps = f"{name}, batch {batch}", max(8, run.often(run.little(96, 8)))
    cap = cap // run.shapes["shorter"]
    decode_times(run, network, prompts(run, batch), 8)  # warms up
    common.reset_peak()
    short = decode_times(run, network, prompts(run, batch), steps)
    full = decode_times(run, network, prompts(run, batch, cap - steps // 2), steps // 2)
    early, late = median(short[4:]), median(full[2:])
    run.figures.one(case, "prompts, s", short[0])
    run.figures.one(case, "step, short cache, ms", 1e3 * early)
    run.figures.one(case, "step, full cache, ms", 1e3 * late)
    run.figures.one(case, "tokens/s", batch / ((early + late) / 2))
    run.figures.one(case, "step / reading the weights once", (early + late) / 2 / floor)
    run.figures.one(case, "peak GiB", common.peak_memory() / GIB)


def transformers_generate(run, network, name, batch):
    """The peer: model.generate with its own attention, the same prompts and number of tokens."""
    import torch

    from kdag.models import decoding
    from kdag.teacher.cache import pad

    given, steps = prompts(run, batch), run.often(run.little(96, 8))
    width = max(map(len, given))
    ids = pad([[0] * (width - len(row)) + row for row in given], 0).to(network.device)
    mask = pad([[0] * (width - len(row)) + [1] * len(row) for row in given], 0).to(network.device)

    def generate():
        with torch.inference_mode():
            network.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=steps,
                min_new_tokens=steps,
                eos_token_id=2,
                pad_token_id=0,
            )

    ours = [sum(decode_times(run, network, given, steps)) for _ in range(run.often(2))]
    network.set_attn_implementation("sdpa")
    generate()
    theirs = times(generate, len(ours))
    network.set_attn_implementation(decoding.ATTENTION)
    run.figures.one(f"{name}, batch {batch}", "transformers' generate / kdag, time", ratio(theirs, ours))


# What stands around the computing


def part_files(run):
    """Starting a process, loading, merging and writing, hashing, fidelity: what a stage does besides."""
    from types import SimpleNamespace

    from kdag.files import manifest
    from kdag.models import load
    from kdag.training import train

    figures, case, target = run.figures, "student", run.folder / "model"
    scripts = str(common.ROOT / "workflow" / "scripts")
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {scripts!r}); import kdag.training.train",
    ]
    start = times(lambda: subprocess.run(command, check=True), 2 - run.tiny)
    figures.one("any stage", "starting Python with its imports, s", start[-1])

    settings = training_settings(run, "distillation")
    network = train.prepare(gpu_shapes.model(run.shapes["student"]), settings, "transformers")
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    begin = time.perf_counter()
    train.save_trained(network, tokenizer, target, settings.dtype)
    saved = time.perf_counter()
    files = manifest.hash_files(target, [target])
    hashed = time.perf_counter()
    size = sum(file["bytes"] for file in files.values())
    del network
    release()
    figures.one(case, "merging and writing, s per GB", (saved - begin) / size * 1e9)
    figures.one(case, "hashing, s per GB", (hashed - saved) / size * 1e9)
    loaded = times(lambda: load.load_model(target, settings.dtype), 1)[0]
    figures.one(case, "loading, s per GB", loaded / size * 1e9)
    release()
    figures.one("fidelity", "held-out rows of one student, s", fidelity_seconds(run))


def fidelity_seconds(run):
    """kdag.evaluation.fidelity of one student on the held-out rows, with its and the untrained one's pass."""
    import torch

    from kdag.evaluation.fidelity import fidelity
    from kdag.models.head import head_weight
    from kdag.models.load import device
    from kdag.teacher.cache import answer_states

    shapes, count = run.shapes, run.little(int(gpu_shapes.config()["data"]["heldout_rows"]), 4)
    frame, vocabulary = gpu_shapes.rows(shapes, count), shapes["vocabulary"]
    width = shapes["teacher"]["hidden_size"]
    teacher_head = torch.randn(vocabulary, width, device=device()).mul_(0.02).to(torch.bfloat16)
    network = gpu_shapes.model(shapes["student"])
    head = head_weight(network, vocabulary).detach()
    targets = torch.tensor([t for row in frame["targets"] for t in row if t != -100]).long()
    teacher = torch.randn(len(targets), width).to(torch.bfloat16)
    begin = common.now()
    for _ in range(2):
        states = dict(answer_states(network, frame, 8192, "rows"))
        hidden = torch.cat([states[i].cpu() for i in range(len(frame))])
    fidelity(hidden, head, teacher, teacher_head, (hidden, head), targets)
    return common.now() - begin
