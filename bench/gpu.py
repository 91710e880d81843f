"""The default experiment's figures at its real shapes, on one GPU, in under ten minutes.

    python bench/gpu.py --json build/gpu.json               everything
    python bench/gpu.py --parts loss step --quick           some of it, half the repetitions
    python bench/gpu.py --parts profile                     where the time goes (not among the others)
    python bench/gpu.py --device cpu --shapes tiny          does the program run? its figures mean nothing

Models are random weights in the shapes of Qwen2.5-7B- and 3B-Instruct, made on the GPU; rows are random
tokens with the lengths of real ones (gpu_shapes.py); settings are config.yaml's. Nothing is downloaded.
  card      what it can do: a large bf16 product, a large copy. `limit` is a figure's products at the
            first rate or its weights read at the second, whichever takes longer
  loss      distill_loss against the three bare products, the dense form, TRL's GKD and Liger's JSD
  divergences  forward KL, reverse KL and JSD alone against TRL's chunked and dense loss and Liger's, at the
            vocabularies of Llama 3 (128,256) and Qwen2.5, rows of logits aligned and tight; equality first
  step      a distillation step against the plain fine-tuning step, the dense form (stored teacher) and
            GKD (live teacher): time and memory
  generate  decode_greedily at the pinned batch size, and at 64, against transformers' generate
  cache     writing the teacher's cache against the bare forward pass
  teacher   the teacher's fine-tuning step against transformers' own loss
  files     what a stage does besides: imports, loading, merging, writing, hashing; fidelity
  wide      `step` in micro-batches of eight, the effective batch unchanged
  unsloth   the student's fine-tuning step by both backends, where unsloth is installed
Last comes the sum of it all for the default experiment, with what would change it.

A part has a process of its own and a limit of time; one that fails or runs out of memory loses only what
was not measured yet. The JSON is written after every part.
"""

import importlib
import json
import logging
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import common
import gpu_shapes
from gpu_experiment import whole_experiment
from gpu_run import NotHere, Run, brief

TARGETS = {
    "fused loss / bare products": ("at most", 1.3),
    "speed of caching / bare forward": ("at least", 0.9),
    "distillation step / fine-tuning step": ("at most", 1.15),
    "distillation step - fine-tuning step, GiB": ("at most", 1.0),
    "the whole default experiment, minutes": ("at most", 60),
}
PARTS = {  # in the order of what would be missed most: their module, the seconds each may take
    "card": ("gpu_loss", 90),  # the first imports on a fresh machine are slow
    "loss": ("gpu_loss", 110),
    "divergences": ("gpu_loss", 90),
    "step": ("gpu_training", 230),
    "generate": ("gpu_stages", 110),
    "cache": ("gpu_stages", 90),
    "teacher": ("gpu_training", 90),
    "files": ("gpu_stages", 110),
    "wide": ("gpu_training", 90),
    "unsloth": ("gpu_training", 150),
    "profile": ("gpu_training", 150),
}
UNASKED = [part for part in PARTS if part != "profile"]
PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "trl", "liger-kernel", "unsloth")
IMPORTS = ["torch", "transformers", "peft", "gpu_stages", "kdag.training.train"]


class Part(common.Figures):
    """The figures of a part, on disk as soon as they are there."""

    def __init__(self, file):
        super().__init__(TARGETS)
        self.file, self.notes, self.status = file, [], "unfinished"

    def one(self, case, name, value):
        super().one(case, name, value)
        row = self.rows.pop() | {"value": value}  # a figure that comes again takes the place of the first
        self.rows = [r for r in self.rows if (r["case"], r["figure"]) != (case, name)] + [row]
        self.save()

    def note(self, text):
        if text not in self.notes:
            print(f"  {text}", flush=True)
            self.notes.append(text)
            self.save()

    def save(self):
        content = {"status": self.status, "notes": self.notes, "rows": self.rows}
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        os.replace(partial, self.file)


def child(name, shapes, quick, folder, file, limit):
    """The process of a part: whatever happens, its file says how it went."""
    os.setpgrp()
    sys.path[:0] = [str(common.ROOT / "bench"), str(common.ROOT / "workflow" / "scripts")]
    logging.getLogger().setLevel(logging.ERROR)
    figures = Part(file)
    figures.save()
    try:
        end = time.monotonic() + limit
        run = Run(gpu_shapes.SHAPES[shapes], shapes == "tiny", quick, folder, figures, end)
        module, _ = PARTS[name]
        getattr(importlib.import_module(module), f"part_{name}")(run)
        figures.status = "done"
    except NotHere as reason:
        figures.status = "skipped"
        figures.note(str(reason))
    except BaseException as error:
        traceback.print_exc()
        out = type(error).__name__ == "OutOfMemoryError"
        figures.status = "out of memory" if out else "failed"
        figures.note(brief(error))
    figures.save()


def run_part(name, args, limit):
    """A part in a process of its own, ended when its time is over; returns what it left."""
    # On a CPU the processes branch off one that has done the imports. A GPU takes no process that
    # branched off one that may have touched it.
    context = multiprocessing.get_context("forkserver" if args.device == "cpu" else "spawn")
    with tempfile.TemporaryDirectory(prefix="kdag-gpu-") as temporary:
        file = Path(temporary, "part.json")
        given = name, args.shapes, args.quick, Path(temporary), file, limit
        process = context.Process(target=child, args=given)
        begin = time.monotonic()
        process.start()
        try:
            process.join(limit)
        finally:
            late = process.is_alive()
            if late:
                end_group(process)
        left = {"status": "unfinished", "notes": [], "rows": []}
        if file.is_file():
            left = json.loads(file.read_text())
        if left["status"] == "unfinished":
            left["status"] = f"stopped after {limit:.0f} s" if late else f"ended with {process.exitcode}"
        return left | {"seconds": round(time.monotonic() - begin, 1)}


def end_group(process):
    """End a part and every process it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        process.kill()
    process.join()


def environment(device):
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {
        "date": date.today().isoformat(),
        "gpu": gpu() if device == "cuda" else None,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": found,
    }


def gpu():
    """Name, driver and memory as nvidia-smi gives them."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def arguments():
    made = common.parser(__doc__)
    made.add_argument("--parts", nargs="+", choices=PARTS, default=UNASKED, metavar="PART", help="all")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    made.add_argument("--shapes", choices=gpu_shapes.SHAPES, default="qwen2.5")
    made.add_argument("--minutes", type=float, default=9, help="for all parts together; default 9")
    return made


def prepare(args):
    """The environment of every process that comes."""
    from kdag.job.cli import OFFLINE

    os.environ.update(OFFLINE, TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        multiprocessing.set_forkserver_preload(IMPORTS)
    elif gpu() is None:
        sys.exit("no GPU is here (nvidia-smi): --device cpu --shapes tiny shows whether the program runs")


def main():
    args = arguments().parse_args()
    prepare(args)
    result = {
        "environment": environment(args.device),
        "arguments": {"shapes": args.shapes, "quick": args.quick, "device": args.device},
        "parts": {},
    }
    print(json.dumps(result["environment"]), flush=True)
    end = time.monotonic() + 60 * args.minutes
    for name in args.parts:
        left = min(PARTS[name][1], end - time.monotonic())
        print(f"\n{name}", flush=True)
        if left < 5:
            done = {"status": "skipped", "notes": ["no time was left"], "rows": [], "seconds": 0}
        else:
            done = run_part(name, args, left)
        print(f"  {name}: {done['status']}, {done['seconds']} s", flush=True)
        result["parts"][name] = done
        write(args.json, result)
    result["parts"]["experiment"] = experiment(result["parts"])
    result["targets"] = targets(result["parts"])
    write(args.json, result)
    summary(result)
    if any(part["status"] not in ("done", "skipped") for part in result["parts"].values()):
        sys.exit(1)


def experiment(parts):
    """The sum of the stages, as a part like the others."""
    print("\nexperiment", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = Part(Path(folder, "part.json"))
        missing = whole_experiment(figures, parts, gpu_shapes.config())
    status, notes = "done", figures.notes
    if missing:
        status, notes = "skipped", [*notes, f"not measured: {'; '.join(missing)}"]
        print(f"  {notes[-1]}", flush=True)
    return {"status": status, "notes": notes, "rows": figures.rows, "seconds": 0}


def targets(parts):
    """Every figure with a target, and the targets without a figure."""
    found = []
    for name, (word, value) in TARGETS.items():
        rows = [(part, row) for part, done in parts.items() for row in done["rows"] if row["figure"] == name]
        if not rows:
            found.append({"figure": name, "target": f"{word} {value:g}", "value": None, "met": None})
        for part, row in rows:
            met = row["value"] <= value if word == "at most" else row["value"] >= value
            found.append(
                {
                    "figure": name,
                    "part": part,
                    "case": row["case"],
                    "target": f"{word} {value:g}",
                    "value": row["value"],
                    "met": met,
                }
            )
    return found


def write(path, result):
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(partial, path)


def summary(result):
    print(f"\n{'target':44} {'case':36} {'wanted':>14} {'measured':>10}")
    for row in result["targets"]:
        measured = "-" if row["value"] is None else f"{row['value']:.3f}"
        verdict = {True: "met", False: "MISSED", None: "not measured"}[row["met"]]
        case = f"{row.get('part', '')}: {row.get('case', '')}".strip(": ")
        print(f"{row['figure']:44} {case:36} {row['target']:>14} {measured:>10}  {verdict}")
    for name, part in result["parts"].items():
        if part["status"] != "done" or part["notes"]:
            print(f"{name}: {part['status']}. {' '.join(part['notes'])}")
    if result["arguments"]["shapes"] == "tiny":
        print("These shapes are tiny: the figures say nothing but that the program runs.")


if __name__ == "__main__":
    main()
