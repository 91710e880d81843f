"""Bench 4: what grows with the number of rows. 100, 1,000 and 10,000 rows, the tests' tiny models.

    python bench/growth.py --json build/growth.json
    python bench/growth.py --quick                    100 and 500 rows

Needs nothing but what it makes: rows of one length (tests/tiny.py's words), so that a batch costs the
same at every size, and random models. Three stages, each size in a process of its own, by turns:
  encode   rows read, encoded, both parts written to Parquet
  cache    teacher_cache.write_part, 512 rows to a shard
  train    train.train with a cached teacher, LoRA, 20 rows to a batch; a turn is an optimiser
           step. The same number of steps at every size, and then the largest goes on alone to the
           end of its epoch: `late` are the last of those steps, `early` the first of them.
Time: seconds by the tokens of the rows (encode, cache: a small size is done several times to a turn),
the median over the rounds of the ratio to the smallest size. Set-up, which does not grow with the
rows (imports, loading), is not timed. Memory: a process's high-water mark of its resident set, the
largest size by the smallest, imports and all; and what a row adds to it. Mapped files count: the
pages of the cache that were read, which the system takes back when it needs them.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import median

import common

sys.path.insert(0, str(common.ROOT / "tests"))

STAGES = ("encode", "cache", "train")
TIME, PEAK = "largest / smallest, time per token", "largest / smallest, peak memory"
LATE = "late / early steps, time per token"
TARGETS = {TIME: ("at most", 1.1), PEAK: ("at most", 1.1), LATE: ("at most", 1.1)}
BATCH, ACCUMULATION, HELDOUT = 20, 1, 4
ROWS_PER_TURN = 1000  # a smaller size is done again until it has had so many


def write_rows(path, count):
    """Instruction rows whose answers all have eight words, in the tests' style."""
    import tiny

    generator = random.Random(0)
    with open(path, "w") as file:
        for number in range(count):
            row = {
                "instruction": f"Question {number}: {tiny.sentence(generator, 4)}",
                "input": tiny.sentence(generator, 3),
                "output": tiny.sentence(generator, 8),
            }
            file.write(json.dumps(row) + "\n")


def prepare(folder, sizes):
    """Models, and for each size rows.jsonl, the two parts of the subset and a cache of the first."""
    import tiny

    from kdag.files.manifest import write_manifest

    for name in ("teacher", "student"):
        (folder / name).mkdir(parents=True)
    tiny.save_models(folder / "made")
    for name in ("teacher", "student"):
        (folder / "made" / name).rename(folder / name / "model")
        write_manifest(folder / name / "manifest.json", stage="", params={}, inputs={}, outputs=[])
    for size in sizes:
        place = folder / str(size)
        (place / "whole").mkdir(parents=True)
        write_rows(place / "rows.jsonl", size + HELDOUT)
        encode(place, size, tokenizer(folder))
        hashes = {"vocabulary_hash": "", "template_hash": ""}
        write_manifest(
            place / "whole" / "manifest.json",
            stage="",
            params={},
            inputs={},
            outputs=[],
            vocabulary_size=len(tokenizer(folder)),
            **hashes,
        )
        counts = {"train": size, "heldout": HELDOUT}
        common.first_rows(place, place / "whole", folder / "teacher" / "model", **counts)


def tokenizer(folder):
    from kdag.models.load import load_tokenizer

    return load_tokenizer(folder / "student" / "model")


def encode(place, size, tokenizer):
    from kdag.config.chat import Chat
    from kdag.config.sources import Data
    from kdag.data import chat, rows
    from kdag.files import readers

    chosen = chat.settle(Chat(), tokenizer, tokenizer, {tokenizer.eos_token_id})
    keys = {"train_rows": size, "heldout_rows": HELDOUT, "max_tokens": 256, "overlong": "error"}
    files = {name: place / "whole" / f"{name}.parquet" for name in ("train", "heldout")}
    found = readers.rows(place / "rows.jsonl")
    rows.write_subset(found, tokenizer, chosen, Data(id="some/rows", **keys), files)


def encode_worker(baton, folder, size, rounds, steps):
    from kdag.data import rows  # noqa: F401  the imports' memory is not the stage's

    ready = tokenizer(folder)
    for _ in range(rounds + 1):
        for _ in range(repeats(size)):
            encode(folder / str(size), size, ready)
        baton.turn()
    return common.status("VmHWM")


def cache_worker(baton, folder, size, rounds, steps):
    from kdag.models import load
    from kdag.teacher.cache import write_part

    model = load.load_model(folder / "teacher" / "model", "float32", whole_rows=True)
    frame = common.read_part(folder / str(size), "train")
    for _ in range(rounds + 1):
        for _ in range(repeats(size)):
            write_part(
                model,
                frame,
                folder / str(size) / "again",
                unit="rows",
                batch_tokens=8192,
                rows_per_shard=512,
                encode=lambda hidden, row: {"hidden": hidden},
            )
        baton.turn()
    return common.status("VmHWM")


def train_worker(baton, folder, size, rounds, steps):
    from kdag.losses import divergences
    from kdag.models import load
    from kdag.training import train

    place = folder / str(size)
    common.train_by_turns(
        baton,
        model=load.load_model(folder / "student" / "model", "float32", whole_rows=True),
        frame=common.read_part(place, "train"),
        settings=common.demo_settings(
            epochs=max(1, (steps + 1) * BATCH * ACCUMULATION / size),
            batch_size=BATCH,
            gradient_accumulation=ACCUMULATION,
            lora_rank=4,
            dtype="float32",
        ),
        objective=train.Objective(divergence=divergences.load("fkl"), kl_weight=0.5, temperature=2.0),
        teacher=common.open_cache(place, "train"),
        vocabulary=common.vocabulary_size(place / "data"),
        work=folder / f"work-{size}",
    )
    return common.status("VmHWM")


def repeats(size):
    return max(1, ROWS_PER_TURN // size)


def measure(figures, stage, folder, sizes, tokens, rounds, steps):
    """One stage at every size. tokens: {size: tokens of its rows}."""
    worker = {"encode": encode_worker, "cache": cache_worker, "train": train_worker}[stage]
    kwargs = {"folder": folder, "rounds": rounds, "steps": steps}
    done = common.by_turns({str(size): (worker, kwargs | {"size": size}) for size in sizes})
    per_token, peaks = {}, {}
    for size in sizes:
        turns, peaks[size] = done[str(size)]
        times = common.seconds(turns)
        at_once = BATCH * ACCUMULATION * tokens[size] / size  # rows are of one length
        if stage != "train":
            at_once = repeats(size) * tokens[size]
        per_token[size] = [seconds / at_once for seconds in times]
        compared = per_token[size][: steps if stage == "train" else rounds]
        case = f"{stage}, {size} rows"
        figures.one(case, "microseconds per token", 1e6 * median(compared))
        figures.one(case, "peak MiB", peaks[size] / 2**20)
    small, large = sizes[0], sizes[-1]
    pairs = zip(per_token[large], per_token[small], strict=False)
    figures.one(stage, TIME, median(a / b for a, b in pairs))
    alone = per_token[large][max(len(per_token[size]) for size in sizes[:-1]) :]
    if stage == "train" and len(alone) >= 2 * steps:
        figures.one(stage, LATE, median(alone[-steps:]) / median(alone[:steps]))
    figures.one(stage, PEAK, peaks[large] / peaks[small])
    figures.one(
        stage, "KiB that a row adds to the peak", (peaks[large] - peaks[small]) / 1024 / (large - small)
    )


def main():
    made = common.parser(__doc__)
    made.add_argument("--rows", type=int, nargs="+", help="default 100 1000 10000, with --quick 100 500")
    made.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    made.add_argument("--rounds", type=int, help="timed; default 3, with --quick 2")
    made.add_argument("--steps", type=int, help="of training, timed by turns; default 60, with --quick 6")
    args = common.start(made)
    sizes = sorted(args.rows or ([100, 500] if args.quick else [100, 1000, 10000]))
    rounds = args.rounds or (2 if args.quick else 3)
    steps = args.steps or (6 if args.quick else 60)

    figures = common.Figures(TARGETS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, sizes)
        tokens = {size: int(common.read_part(folder / str(size), "train").lengths.sum()) for size in sizes}
        for stage in args.stages:
            measure(figures, stage, folder, sizes, tokens, rounds, steps)
    figures.write(args.json)


if __name__ == "__main__":
    main()
