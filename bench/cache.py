"""Bench 3: the teacher's cache: writing, reading in random order, size on disk.

    python bench/cache.py --json build/cache.json
    python bench/cache.py --quick

Writing needs the demo's teacher and data: a finished `make demo`, or --teacher and --data. By turns
in one process over the same batches: `bare` is the teacher's backbone on them and nothing else,
`write` is cache.write_part, shards on disk included. The figure is the median over the
rounds of bare / write within a round; the first round warms up and is dropped.

Reading is from caches of rows with the demo's answer lengths (their states random numbers, since
only their size matters): one as wide as the demo's teacher, one as wide as Qwen2.5-7B. Every row
once in random order, four rows joined to a batch as the Trainer's collate does, which is when the
bytes are touched. Warm: the files are in the page cache and were read once before. From memory
is the limit: the same rows in the same order out of one tensor.

Size: the shards' files by the answer tokens in them, less what the states alone need, 2 d in bfloat16.
"""

import random
import tempfile
from pathlib import Path
from statistics import median

import common

TARGETS = {
    "speed of writing / bare forward": ("at least", 0.9),
    "random reads, GB/s": ("at least", 1.0),
    "bytes per token on disk - states": ("at most", 8),
}
WIDTHS = {"demo's width": 576, "Qwen2.5-7B's width": 3584}
BATCH = 4


def bare(model, frame, batch_tokens):
    """The backbone on the batches of write_part, its result thrown away."""
    import torch

    from kdag.models.head import hidden_states
    from kdag.models.load import device
    from kdag.teacher.cache import batches_by_length, pad

    ids = frame["input_ids"].tolist()
    with torch.no_grad():
        for batch in batches_by_length([len(row) for row in ids], batch_tokens):
            rows = [ids[i] for i in batch]
            mask = pad([[1] * len(row) for row in rows], 0)
            hidden_states(model, pad(rows, 0).to(device()), mask.to(device()))


def write(model, frame, folder, settings):
    import torch

    from kdag.teacher.cache import write_part

    write_part(
        model,
        frame,
        folder,
        unit="rows",
        batch_tokens=settings.batch_tokens,
        rows_per_shard=settings.rows_per_shard,
        encode=lambda hidden, row: {"hidden": hidden.to(getattr(torch, settings.dtype))},
    )


def size(folder):
    return sum(file.stat().st_size for file in folder.glob("shard-*"))


def answer_tokens(frame):
    return [sum(t != -100 for t in row) for row in frame["targets"]]


def measure_writing(figures, args, frame, rounds, folder):
    from kdag.config.training import TeacherCache
    from kdag.models.load import load_model

    settings = common.settled(TeacherCache())
    model = load_model(args.teacher, settings.dtype, whole_rows=True)
    times = {"bare": [], "write": []}
    for _ in range(rounds + 1):
        begin = common.now()
        bare(model, frame, settings.batch_tokens)
        middle = common.now()
        write(model, frame, folder, settings)
        times["write"].append(common.now() - middle)
        times["bare"].append(middle - begin)
    tokens, answer = sum(map(len, frame["input_ids"])), sum(answer_tokens(frame))
    speeds = [a / b for a, b in zip(times["bare"][1:], times["write"][1:], strict=True)]
    case = f"{len(frame)} rows, {rounds} rounds"
    figures.one(case, "bare forward, tokens/s", tokens / median(times["bare"][1:]))
    figures.one(case, "writing, tokens/s", tokens / median(times["write"][1:]))
    figures.one(case, "speed of writing / bare forward", median(speeds))
    states = model.config.hidden_size * model.dtype.itemsize
    figures.one(case, "bytes per token on disk", size(folder) / answer)
    figures.one(case, "bytes per token on disk - states", size(folder) / answer - states)


def synthetic(lengths, width):
    """What answer_states yields, without a model: random bf16 states, a slice of one big tensor."""
    import torch

    pool = torch.randn(max(lengths) + 1000, width).to(torch.bfloat16)

    def answer_states(model, frame, batch_tokens, unit, pace=None):
        for index, targets in enumerate(frame["targets"]):
            start = index % 1000
            yield index, pool[start : start + sum(t != -100 for t in targets)]

    return answer_states


def measure_reading(figures, frame, megabytes, rounds, folder):
    """Rows of `frame` again and again until a part has `megabytes`; read through TeacherCache."""
    import pandas as pd
    import torch
    from safetensors.torch import save_file

    from kdag.config.training import TeacherCache as Settings
    from kdag.files.manifest import write_manifest
    from kdag.teacher import cache as module

    lengths = answer_tokens(frame)
    made = module.answer_states
    for name, width in WIDTHS.items():
        repeats = max(1, round(megabytes * 1e6 / (sum(lengths) * 2 * width)))
        rows = pd.concat([frame] * repeats, ignore_index=True)
        place = folder / str(width)
        module.answer_states = synthetic(lengths, width)
        write(None, rows, place / "train", Settings(dtype="bfloat16"))
        module.answer_states = made
        save_file({"head": torch.zeros(1, width, dtype=torch.bfloat16)}, place / "head.safetensors")
        hashes = {"vocabulary_hash": "", "template_hash": ""}
        write_manifest(
            place / "manifest.json",
            stage="bench",
            params={},
            inputs={},
            outputs=[place / "train", place / "head.safetensors"],
            row_hashes={"train": rows["row_hash"].tolist()},
            store={"train": "hidden"},
            **hashes,
        )
        begin = common.now()
        cache = module.TeacherCache(place / "manifest.json", "train", rows, hashes)
        opened = common.now() - begin
        held = torch.cat([cache.row(i)["hidden"] for i in range(len(rows))]).split(lengths * repeats)
        order, speeds, copies, total = list(range(len(rows))), [], [], repeats * sum(lengths) * 2 * width
        for _ in range(rounds + 1):
            random.Random(0).shuffle(order)
            begin = common.now()
            for start in range(0, len(order), BATCH):
                torch.cat([cache.row(i)["hidden"] for i in order[start : start + BATCH]])
            speeds.append(total / (common.now() - begin) / 1e9)
            begin = common.now()
            for start in range(0, len(order), BATCH):
                torch.cat([held[i] for i in order[start : start + BATCH]])
            copies.append(total / (common.now() - begin) / 1e9)
        figures.one(name, "MB read", total / 1e6)
        figures.one(name, "MB per row", total / len(rows) / 1e6)
        figures.one(name, "random reads, GB/s", median(speeds[1:]))
        figures.one(name, "the same rows from memory, GB/s", median(copies[1:]))
        figures.one(name, "opening and checking, GB/s", total / opened / 1e9)
        used = size(place / "train") / (repeats * sum(lengths))
        figures.one(name, "bytes per token on disk - states", used - 2 * width)


def main():
    made = common.parser(__doc__)
    common.add_demo(made, student=False)
    made.add_argument("--rows", type=int, help="written; default 64, with --quick 8")
    made.add_argument("--megabytes", type=int, help="of each cache that is read; default 400, 60")
    made.add_argument("--rounds", type=int, help="timed; default 4, with --quick 2")
    args = common.start(made)
    rows = args.rows or (8 if args.quick else 64)
    rounds = args.rounds or (2 if args.quick else 4)

    from kdag.data.rows import read_rows

    frame = read_rows(args.data / "train.parquet")
    figures = common.Figures(TARGETS)
    with tempfile.TemporaryDirectory() as folder:
        measure_writing(figures, args, frame.iloc[:rows], rounds, Path(folder, "written"))
        megabytes = args.megabytes or (60 if args.quick else 400)
        measure_reading(figures, frame, megabytes, rounds, Path(folder))
    figures.write(args.json)


if __name__ == "__main__":
    main()
