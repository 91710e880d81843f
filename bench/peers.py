"""Bench 5: the same distillation by kdag, by TRL's own trainer and by a straightforward dense script.

    python bench/peers.py --json build/peers.json
    python bench/peers.py --quick

Needs the demo's teacher, student and data: a finished `make demo`, or --teacher, --student, --data.
About 10 GB of memory, as all methods are there at once.
The objective is one that all of them have: the forward KL alone, over the whole vocabulary, on the
given answers, at temperature 1, a mean over the answer tokens of the effective batch. Alike for all:
rows, their order, batches, masks, LoRA and its first values, bfloat16 autocast over bfloat16 weights
with float32 adapters, fused AdamW, schedule, clipping, no gradient checkpointing.
  kdag          train.train with the cached teacher (writing the cache is timed apart)
  kdag-online   the same with the teacher running alongside: what one epoch costs with a fresh cache
  trl           trl.experimental.gkd.GKDTrainer, lmbda = 0 (nothing is generated), beta = 0 (forward KL)
  dense         a loop of thirty lines: both models, all logits, log_softmax, F.kl_div, autograd
What TRL cannot do, so that this is not the demo's own objective: a temperature in GKD's loss (its
`temperature` is that of sampling alone; GOLDTrainer's reaches the loss, which is otherwise the same),
T^2, cross-entropy in the same loss, the skewed divergences, a stored teacher, heads of different
height. Its DistillationTrainer learns from answers that the student generates and from no others.
GKD's own collator would also train what the template writes behind the end token; here it gets one
that takes kdag's ids and masks, and its rows in kdag's order.

Time: processes by turns, step by step, medians; ratios are medians of the ratios within a round.
Memory: each process's high-water mark of its resident set up to the last step (VmHWM; on a GPU the
allocator's), less what the imports held before any model came. Held-out forward KL:
kdag.evaluation.fidelity of each student after the same number of steps on the first held-out rows, and of the
untrained one.
"""

import logging
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import common

TARGETS = {}  # no target is set for the peers: kdag's are in the other benchmarks
PEERS = ("trl", "dense")


def batch_order(frame, settings):
    """kdag's own order of the rows in the first epoch."""
    from kdag.training.batches import EpochSampler

    lengths = [len(ids) for ids in frame["input_ids"]]
    return list(
        EpochSampler(
            lengths, settings.batch_size, settings.seed, lambda: 0, passes=settings.gradient_accumulation
        )
    )


def in_order(folder, settings):
    """Rows with their tokens and unshifted labels, in kdag's order."""
    frame = common.read_part(folder, "train")
    rows = frame.iloc[batch_order(frame, settings)]
    return [
        {"input_ids": ids, "labels": [t if learn else -100 for t, learn in zip(ids, mask, strict=True)]}
        for ids, mask in zip(rows["input_ids"], rows["response_mask"], strict=True)
    ]


def collate(rows):
    from kdag.teacher.cache import pad

    return {
        "input_ids": pad([row["input_ids"] for row in rows], 0),
        "attention_mask": pad([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": pad([row["labels"] for row in rows], -100),
    }


def student_with_adapters(student, settings):
    from transformers import set_seed

    from kdag.models import load
    from kdag.training import train

    set_seed(settings.seed)
    return train.prepare(load.load_model(student, settings.dtype), settings, "transformers")


def run_kdag(baton, student, teacher, folder, settings, online):
    from kdag.losses import divergences
    from kdag.models import load
    from kdag.teacher.live import LiveTeacher
    from kdag.training import train

    vocabulary = common.vocabulary_size(folder / "data")
    if online:
        source = LiveTeacher(teacher.parent / "manifest.json", settings.dtype, vocabulary)
    else:
        source = common.open_cache(folder, "train")
    model, _ = common.train_by_turns(
        baton,
        model=load.load_model(student, settings.dtype, whole_rows=True),
        frame=common.read_part(folder, "train"),
        settings=settings,
        objective=train.Objective(
            divergence=divergences.load("fkl"), kl_weight=1.0, temperature=1.0, use_ce=False
        ),
        teacher=source,
        vocabulary=vocabulary,
        work=folder / f"work-{online}",
    )
    return model


def trainer_arguments(settings):
    """kdag's settings for a Trainer of TRL's."""
    from kdag.models import load
    from kdag.training.train import SCHEDULES

    return {
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": SCHEDULES[settings.schedule],
        "warmup_steps": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "bf16": settings.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "use_cpu": load.device().type == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def run_trl(baton, student, teacher, folder, settings):
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from kdag.models import load

    class Turns(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            baton.turn()

    rows = in_order(folder, settings)
    arguments = GKDConfig(
        output_dir=str(folder / "trl"),
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        disable_dropout=True,
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        train_sampling_strategy="sequential",
        **trainer_arguments(settings),
        dataloader_pin_memory=load.device().type == "cuda",
    )
    trainer = GKDTrainer(
        model=student_with_adapters(student, settings),
        teacher_model=load.load_model(teacher, settings.dtype),
        args=arguments,
        data_collator=collate,
        train_dataset=Dataset.from_list(rows),
        processing_class=load.load_tokenizer(student),
        callbacks=[Turns()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model


def run_dense(baton, student, teacher, folder, settings):
    import torch
    import torch.nn.functional as F
    from transformers import get_scheduler

    from kdag.models import load
    from kdag.training.train import SCHEDULES

    model = student_with_adapters(student, settings).train()
    teacher = load.load_model(teacher, settings.dtype)
    rows = in_order(folder, settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    at_once = settings.batch_size * settings.gradient_accumulation
    steps = len(rows) // at_once
    schedule = get_scheduler(
        SCHEDULES[settings.schedule],
        optimiser,
        num_warmup_steps=math.ceil(steps * settings.warmup_ratio),
        num_training_steps=steps,
    )
    dtype, device = getattr(torch, settings.dtype), load.device()
    for step in range(steps):
        of_step = rows[step * at_once : (step + 1) * at_once]
        items = sum(label != -100 for row in of_step for label in row["labels"])
        for start in range(0, at_once, settings.batch_size):
            batch = collate(of_step[start : start + settings.batch_size])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            learn = batch.pop("labels")[:, 1:] != -100
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(**batch, use_cache=False).logits[:, :-1]
            with torch.no_grad():
                wanted = teacher(**batch, use_cache=False).logits[:, :-1]
            log_q = F.log_softmax(logits[learn].float(), dim=-1)
            log_p = F.log_softmax(wanted[learn].float(), dim=-1)
            (F.kl_div(log_q, log_p, reduction="sum", log_target=True) / items).backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        baton.turn()
    return model


def worker(baton, method, student, teacher, folder, dtype):
    """Train by one method; bytes at the peak, held-out measures."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from kdag.training import train  # noqa: F401  imports first, so that their memory can be left out

    if method == "trl":
        import datasets  # noqa: F401
        from trl.experimental.gkd import GKDTrainer  # noqa: F401
    before = common.memory()
    settings = common.demo_settings(dtype=dtype)
    if method == "trl":
        model = run_trl(baton, student, teacher, folder, settings)
    elif method == "dense":
        model = run_dense(baton, student, teacher, folder, settings)
    else:
        model = run_kdag(baton, student, teacher, folder, settings, online=method == "kdag-online")
    return common.peak_memory() - before, heldout(model, folder)


def heldout(model, folder):
    """kdag.evaluation.fidelity of a model on the held-out rows in `folder`."""
    import torch

    from kdag.evaluation.fidelity import fidelity
    from kdag.models import load
    from kdag.models.head import head_weight
    from kdag.teacher.cache import answer_states

    model.eval()
    frame, cache = common.read_part(folder, "heldout"), common.open_cache(folder, "heldout")
    autocast = torch.autocast(load.device().type, cache.head.dtype, cache.head.dtype != torch.float32)
    with autocast:
        states = dict(answer_states(model, frame, 8192, "rows"))
    hidden = torch.cat([states[i].to(cache.head.dtype).cpu() for i in range(len(frame))])
    head = head_weight(model, len(cache.head)).detach()
    targets = torch.tensor([t for row in frame["targets"] for t in row if t != -100]).long()
    teacher = torch.cat([cache.row(i)["hidden"] for i in range(len(frame))])
    measures = fidelity(hidden, head, teacher, cache.head.to(load.device()), (hidden, head), targets)
    return {name: measures[name] for name in ("forward_kl", "top1_agreement", "tokens")}


def main():
    made = common.parser(__doc__)
    common.add_demo(made)
    common.add_steps(made, 8)
    made.add_argument("--heldout-rows", type=int, help="default 16, with --quick 2")
    made.add_argument("--methods", nargs="+", choices=("kdag-online", *PEERS), help="besides kdag; all")
    args = common.start(made)
    logging.getLogger().setLevel(logging.WARNING)
    steps = common.steps_of(made, args, 8)
    kept = args.heldout_rows or (2 if args.quick else 16)
    methods = ("kdag", *(args.methods or ("kdag-online", *PEERS)))
    if "trl" in methods:
        try:
            import trl
        except ImportError:
            sys.exit("trl is not installed: pip install -r envs/requirements-test.txt, or --methods dense")

    from kdag.models import load

    settings = common.demo_settings(dtype=args.dtype)
    args.dtype = settings.dtype
    rows = steps * settings.batch_size * settings.gradient_accumulation
    figures, case = common.Figures(TARGETS), f"{steps} steps of {rows // steps} rows"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        begin = time.perf_counter()
        common.first_rows(folder, args.data, args.teacher, args.dtype, train=rows, heldout=kept)
        figures.one(case, "writing the cache, whole stage, s, once", time.perf_counter() - begin)
        start = heldout(load.load_model(args.student, args.dtype), folder)
        kwargs = {"student": args.student, "teacher": args.teacher, "folder": folder, "dtype": args.dtype}
        done = common.by_turns({name: (worker, kwargs | {"method": name}) for name in methods})

    if "trl" in methods:
        print(f"trl {trl.__version__}")
    figures.one("untrained", "held-out forward KL, nats", start["forward_kl"])
    figures.one("untrained", "held-out top-1 agreement", start["top1_agreement"])
    for name, (turns, (peak, measures)) in done.items():
        figures.one(name, "s per step", median(common.seconds(turns)))
        figures.one(name, "peak MiB", peak / 2**20)
        figures.one(name, "held-out forward KL, nats", measures["forward_kl"])
        figures.one(name, "held-out top-1 agreement", measures["top1_agreement"])
    for name in methods[1:]:
        figures.one(case, f"{name} / kdag, time per step", common.ratio(done[name][0], done["kdag"][0]))
        figures.one(case, f"{name} / kdag, memory", done[name][1][0] / done["kdag"][1][0])
    figures.write(args.json)


if __name__ == "__main__":
    main()
