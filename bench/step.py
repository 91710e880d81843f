"""Bench 2: a whole distillation step against a plain fine-tuning step of the same student.

    python bench/step.py --json build/step.json
    python bench/step.py --quick

Needs the demo's teacher, student and data: a finished `make demo`, or --teacher, --student, --data.
Both are kdag.training.train on the same rows in the same batches with the demo's settings: reading
the batches, forward, loss, backward, clipping, optimiser, log. fine-tuning minimises cross-entropy
alone; distillation cross-entropy and the forward KL to the teacher, whose hidden states it reads
from a cache that is written before the clock runs. A third takes the same step with padded rows and a mask,
as on a GPU; on a CPU rows are packed one behind the other.

Time: the processes by turns, step by step, medians over the steps; the ratio is the median of the
ratios within a round. Where it goes: functions wrapped with a clock; `other` is what is left, such
as the heads' casts, clipping and the Trainer. Memory: each process's high-water mark of its
resident set (VmHWM; on a GPU the allocator's), less what the imports held before the model came.
"""

import tempfile
from pathlib import Path
from statistics import mean, median

import common

TARGETS = {"distillation / fine-tuning": ("at most", 1.25)}
PHASES = ("backbone forward", "loss and its gradient", "backward", "optimiser", "rows and cache")


def worker(baton, student, folder, divergence, packed=True):
    """Train on the rows in `folder`, packed or padded, with a divergence or without; bytes at the peak."""
    import accelerate
    from accelerate.optimizer import AcceleratedOptimizer

    from kdag.losses import divergences
    from kdag.models import head, load
    from kdag.training import train, trainer

    before = common.memory()
    settings = common.demo_settings()
    objective = train.Objective()
    if divergence:
        objective = train.Objective(
            divergence=divergences.load(settings.divergence),
            divergence_params=settings.divergence_params,
            kl_weight=settings.kl_loss_weight,
            temperature=settings.temperature,
            temperature_squared=settings.temperature_squared,
            use_ce=settings.use_ce_loss,
        )
    watch = common.Stopwatch()
    watch.wrap(head, "hidden_states", "backbone forward")
    watch.wrap(trainer, "distill_loss", "loss and its gradient")
    watch.wrap(accelerate.Accelerator, "backward", "backward")
    watch.wrap(AcceleratedOptimizer, "step", "optimiser")
    watch.wrap(train.Rows, "__getitem__", "rows and cache")
    watch.wrap(train, "collate", "rows and cache")
    with tempfile.TemporaryDirectory() as work:
        common.train_by_turns(
            baton,
            notes=watch.take,
            model=load.load_model(student, settings.dtype, whole_rows=packed),
            frame=common.read_part(folder, "train"),
            settings=settings,
            objective=objective,
            teacher=common.open_cache(folder, "train") if divergence else None,
            vocabulary=common.vocabulary_size(folder / "data"),
            work=Path(work),
        )
    return common.peak_memory() - before


def main():
    made = common.parser(__doc__)
    common.add_demo(made)
    made.add_argument("--steps", type=int, help="timed; default 12, with --quick 2")
    args = common.start(made)
    steps = args.steps or (2 if args.quick else 12)

    settings = common.demo_settings()
    rows = (steps + 1) * settings.batch_size * settings.gradient_accumulation
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        frame = common.first_rows(folder, args.data, args.teacher, train=rows, heldout=1)["train"]
        kwargs = {"student": args.student, "folder": folder}
        done = common.by_turns(
            {
                "fine-tuning": (worker, kwargs | {"divergence": False}),
                "distillation": (worker, kwargs | {"divergence": True}),
                "padded distillation": (worker, kwargs | {"divergence": True, "packed": False}),
            }
        )

    figures = common.Figures(TARGETS)
    case = f"{steps} steps of {rows // (steps + 1)} rows"
    tokens = sum(map(len, frame["input_ids"])) / (steps + 1)
    answer = sum(t != -100 for row in frame["targets"] for t in row) / (steps + 1)
    figures.add(case, **{"tokens per step": tokens, "answer tokens per step": answer})
    for name, (turns, peak) in done.items():
        whole = median(common.seconds(turns))
        figures.add(case, **{f"{name} s per step": whole, f"{name} peak MiB": peak / 2**20})
        means = {phase: mean(turn.get(phase, 0) for turn in turns[1:]) for phase in PHASES}
        means["other"] = mean(common.seconds(turns)) - sum(means.values())
        for phase, value in means.items():
            figures.one(case, f"{name}: {phase}, mean s", value)
    (plain, plain_peak), (distilled, peak) = done["fine-tuning"], done["distillation"]
    figures.one(case, "distillation / fine-tuning", common.ratio(distilled, plain))
    figures.one(case, "distillation / fine-tuning memory", peak / plain_peak)
    figures.one(case, "padded / packed rows", common.ratio(done["padded distillation"][0], distilled))
    figures.write(args.json)


if __name__ == "__main__":
    main()
