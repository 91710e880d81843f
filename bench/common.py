"""What the benchmarks share: processes that take turns, their memory, figures next to their targets.

Every method has a process of its own, so that its memory can be told from the others', and the
processes take turns step by step (A B C A B C ...), so that a machine that slows down slows all of
them: a ratio is the median over the rounds of the ratio within a round. The first round warms up
and is dropped.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))


# Arguments and output


def parser(doc):
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    made.add_argument("--quick", action="store_true", help="the smallest sizes, to see that it runs")
    return made


def add_demo(made, student=True):
    """--teacher, --student and --data with what a finished `make demo` left as defaults."""
    demo = ROOT / "results" / "demo"
    made.add_argument(
        "--teacher",
        type=Path,
        default=demo / "teacher" / "model",
        help="the fine-tuned teacher, its manifest next to it",
    )
    if student:
        made.add_argument(
            "--student", type=Path, default=demo / "student" / "model", help="the untrained student"
        )
    made.add_argument("--data", type=Path, default=demo / "data", help="folder of train and heldout.parquet")


def add_steps(made, default):
    """--steps and --dtype of a training; `steps_of` reads the first."""
    made.add_argument("--steps", type=int, help=f"of the optimiser; default {default}, with --quick 2")
    made.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))


def steps_of(made, args, default):
    steps = args.steps or (2 if args.quick else default)
    if steps < 2:
        made.error("--steps: the first one warms up and is not timed, so 2 at least")
    return steps


def start(made):
    """Parse; say what is missing; keep the network out; print the machine's part of the measurement."""
    from kdag.job import arithmetic
    from kdag.job.cli import OFFLINE

    args = made.parse_args()
    for name in ("teacher", "student", "data"):
        path = getattr(args, name, None)
        needed = {"teacher": "../manifest.json", "student": "config.json", "data": "train.parquet"}[name]
        if path and not (path / needed).is_file():
            made.error(f"--{name} {path}: nothing there; run `make demo` first, or name another folder")
    os.environ.update(OFFLINE, TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    arithmetic.make_reproducible()
    import torch

    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {processor()}, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return args


def processor():
    """What computes, what it multiplies in hardware below 32 bits, and so what `dtype: auto` is here."""
    from kdag.config import precision

    found = precision.here()
    units = ", ".join(f"{dtype} by {unit}" for dtype, unit in found.units.items())
    chosen = precision.automatic(found.on_gpu, "bfloat16" in found.units)
    return f"{found.name} ({units or 'float32 alone'}), dtype auto: {chosen}"


def settled(settings):
    """The settings of a stage with the dtype that it computes in on this machine."""
    from kdag.config import precision

    return settings.model_copy(update={"dtype": precision.settle(settings.dtype, "dtype")})


class Figures:
    """Prints figures as they come, those with a target next to it, and keeps them for the JSON."""

    def __init__(self, targets):
        self.targets, self.rows = targets, []  # {figure: ("at most" or "at least", value)}

    def add(self, case, **figures):
        for name, value in figures.items():
            self.one(case, name, value)

    def one(self, case, name, value):
        text = ""
        if name in self.targets:
            word, target = self.targets[name]
            met = value <= target if word == "at most" else value >= target
            text = f"target {word} {target:g}: {'met' if met else 'MISSED'}"
        print(f"{case:24} {name:44} {value:12.3f}   {text}", flush=True)
        self.rows.append({"case": case, "figure": name, "value": round(value, 4), "target": text})

    def write(self, path):
        import torch

        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"torch": torch.__version__, "processor": processor(), "rows": self.rows}
            path.write_text(json.dumps(content, indent=1) + "\n")


# Time and memory


def sync():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def now():
    sync()
    return time.perf_counter()


def status(field):
    """A field in bytes of /proc/self/status (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def memory():
    """Bytes held now: of the resident set; on a GPU what the allocator holds there."""
    import torch

    return torch.cuda.memory_allocated() if torch.cuda.is_available() else status("VmRSS")


def peak_memory():
    """The high-water mark of `memory`, since the process began."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else status("VmHWM")


def on_gpu():
    import torch

    return torch.cuda.is_available()


def reset_peak():
    """`peak_memory` begins anew from what is held now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


class Stopwatch:
    """Where the time goes: functions that are wrapped add their seconds under a name."""

    def __init__(self):
        self.seconds = defaultdict(float)

    def wrap(self, owner, attribute, name):
        function = getattr(owner, attribute)

        def timed(*args, **kwargs):
            begin = now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += now() - begin

        setattr(owner, attribute, timed)

    def take(self):
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


# Processes that take turns


class Baton:
    """A worker's side: `turn` ends its turn and returns when the next one begins."""

    def __init__(self, connection):
        self.connection = connection
        self.wait()

    def wait(self):
        self.connection.recv()
        self.begin = now()

    def turn(self, **notes):
        self.connection.send(("turn", {"seconds": now() - self.begin, **notes}))
        self.wait()


def work(connection, function, kwargs):
    try:
        connection.send(("done", function(Baton(connection), **kwargs)))
    except (EOFError, ConnectionError):  # another worker has failed, and the program with it
        sys.exit(1)


def by_turns(workers):
    """Run {name: (function, keyword arguments)}, each in a process of its own, one at a time.

    A function takes a Baton first and calls its `turn` after every step. What comes before the
    first step belongs to the first turn. Returns {name: (turns, result)}, the turns as dicts.
    """
    context = multiprocessing.get_context("spawn")
    turns, results, running = {name: [] for name in workers}, {}, {}
    for name, (function, kwargs) in workers.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, function, kwargs), daemon=True)
        process.start()
        theirs.close()
        running[name] = ours, process
    while running:
        for name, (connection, process) in list(running.items()):
            try:
                connection.send("go")
                kind, value = connection.recv()
            except (EOFError, ConnectionError):
                sys.exit(f"{name} has failed: its error is above")
            if kind == "turn":
                turns[name].append(value)
            else:
                results[name] = value
                process.join()
                del running[name]
    return {name: (turns[name], results[name]) for name in workers}


def seconds(turns):
    """Of every turn but the first."""
    return [turn["seconds"] for turn in turns[1:]]


def ratio(above, below):
    """The median over the rounds of the ratio within a round; two lists of turns."""
    return median(a / b for a, b in zip(seconds(above), seconds(below), strict=True))


# kdag's own stages, without their files


def demo_settings(**changes):
    """The demo's distillation, for one epoch of the rows at hand."""
    import yaml

    from kdag.config.training import DistillationJob

    demo = yaml.safe_load((ROOT / "experiments" / "demo.yaml").read_text())
    return settled(DistillationJob(**demo["distillation"] | {"divergence": "fkl", "epochs": 1} | changes))


def first_rows(folder, data, teacher, dtype="auto", **counts):
    """The first rows of a subset, {part: count}, in `folder`/data, and their cache in `folder`/cache.

    The cache is made by the stage itself, in `dtype`. Returns {part: data frame}.
    """
    import shutil

    import pandas as pd

    import cache_teacher

    made = folder / "data"
    made.mkdir(parents=True)
    shutil.copy(data / "manifest.json", made)
    for part, count in counts.items():
        frame = pd.read_parquet(data / f"{part}.parquet")
        if count > len(frame):
            sys.exit(f"{data}: {part} has {len(frame)} rows, {count} are needed")
        frame.iloc[:count].to_parquet(made / f"{part}.parquet", index=False)
    stage = cache_teacher.arguments().parse_args(
        [
            f"--config={json.dumps({'dtype': dtype})}",
            f"--model={teacher}",
            f"--train={made / 'train.parquet'}",
            f"--heldout={made / 'heldout.parquet'}",
            f"--manifest={folder / 'cache' / 'manifest.json'}",
        ]
    )
    cache_teacher.main(stage)
    return {part: read_part(folder, part) for part in counts}


def read_part(folder, part):
    from kdag.data.rows import read_rows

    return read_rows(folder / "data" / f"{part}.parquet")


def open_cache(folder, part):
    from kdag.files.reading import read_json
    from kdag.teacher.cache import TeacherCache

    data = read_json(folder / "data" / "manifest.json")
    return TeacherCache(folder / "cache" / "manifest.json", part, read_part(folder, part), data)


def vocabulary_size(data):
    from kdag.files.reading import read_json

    return read_json(data / "manifest.json")["vocabulary_size"]


def train_timed(last=None, **kwargs):
    """kdag.training.train, whole; the seconds of every optimiser step, reading its batches included.

    last: a context, such as a profiler, in which the last step runs.
    """
    from kdag.training import train

    seconds = []

    class Timed(train.Follow):
        def on_train_begin(self, args, state, control, **kwargs):
            self.begin = now()

        def on_step_begin(self, args, state, control, **kwargs):
            if last and state.global_step == state.max_steps - 1:
                last.__enter__()

        def on_step_end(self, args, state, control, **kwargs):
            end = now()
            seconds.append(end - self.begin)
            self.begin = end
            if last and state.global_step == state.max_steps:
                last.__exit__(None, None, None)

        def on_log(self, args, state, control, logs=None, **kwargs):
            pass

    made, train.Follow = train.Follow, Timed
    try:
        train.train(**kwargs)
    finally:
        train.Follow = made
    return seconds


def train_by_turns(baton, notes=dict, **kwargs):
    """kdag.training.train, whole, a turn per optimiser step; `notes` gives what a turn has to add.

    A turn begins with the reading of the batches, so that it holds everything that a step costs.
    """
    from kdag.training import train

    class Turns(train.Follow):
        def on_step_end(self, args, state, control, **kwargs):
            baton.turn(**notes())

        def on_log(self, args, state, control, logs=None, **kwargs):
            pass

    train.Follow = Turns
    return train.train(**kwargs)
