"""Bench 8: a step of on-policy distillation by kdag and by TRL's DistillationTrainer, at equal tokens.

    python bench/on_policy.py --json build/on_policy.json
    python bench/on_policy.py --quick

Needs the demo's teacher, student and data: a finished `make demo`, or --teacher, --student, --data.
The objective is one that both have: the reverse KL alone, over the whole vocabulary, at temperature 1, on
answers that the student samples from its weights of the moment, to the same prompts. Nobody ends an answer
before its cap, so both sample and learn exactly as many tokens. Alike besides: LoRA and its first values,
autocast over weights in the arithmetic's type, fused AdamW, schedule, clipping, no gradient checkpointing.
  kdag   train.train with Rollouts and a live teacher
  trl    trl.DistillationTrainer with transformers' generate (vLLM needs a GPU); its chunked divergence is
         Triton's, in the place of whose kernels stand torch's without a GPU (peer_losses.py)
Time: processes by turns, step by step, medians; ratios are medians of the ratios within a round. Of a step
sampling and the teacher's forward pass apart; the rest is the student's forward and backward pass, the loss,
the optimiser, and the writing down of answers, which is kdag's alone.
"""

import logging
import sys
import tempfile
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import common
import peers

TARGETS = {"kdag / trl, time per step": ("at most", 0.8)}


def settings_of(dtype):
    return common.demo_settings(divergence="rkl", dtype=dtype, use_ce_loss=False, temperature=1.0)


def given(data, count):
    """The first rows."""
    from kdag.data.rows import read_rows

    return read_rows(data / "train.parquet").iloc[:count]


def run_kdag(baton, student, teacher, data, dtype, rows, answer):
    from kdag.config.kinds import DATASET, STUDENT
    from kdag.config.sampling import Sampling
    from kdag.config.training import MixedJob
    from kdag.losses import divergences
    from kdag.models import load
    from kdag.teacher.live import LiveTeacher
    from kdag.training import train
    from kdag.training.job import Source, mixture_of
    from kdag.training.rollouts import Rollouts

    frame = given(data, rows)
    settings = MixedJob(
        **settings_of(dtype).model_dump(),
        answers={STUDENT: 1.0},
        sampling=Sampling(max_new_tokens=answer).model_dump(),
    )
    vocabulary, watch = common.vocabulary_size(data), common.Stopwatch()
    watch.wrap(Rollouts, "sample", "sampling")
    watch.wrap(LiveTeacher, "known", "teacher")
    with tempfile.TemporaryDirectory() as work:
        common.train_by_turns(
            baton,
            watch.take,
            model=load.load_model(student, settings.dtype),
            frame=frame,
            settings=settings,
            objective=train.Objective(divergence=divergences.load("rkl"), kl_weight=1.0, use_ce=False),
            teacher=LiveTeacher(teacher.parent / "manifest.json", settings.dtype, vocabulary),
            vocabulary=vocabulary,
            work=Path(work),
            mixture=mixture_of({DATASET: Source(frame, data={})}, settings),
            rollouts=Rollouts.prepared(frame, settings, SimpleNamespace(end_ids=()), student, vocabulary),
        )
    return rows * answer


def run_trl(baton, student, teacher, data, dtype, rows, answer):
    import peer_losses
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import DistillationConfig, DistillationTrainer

    from kdag.data.rows import prompts as cut
    from kdag.models import load

    peer_losses.chunked_divergence()  # torch in the place of Triton, where there is no GPU
    settings, prompts, watch = settings_of(dtype), cut(given(data, rows)), common.Stopwatch()
    at_once = settings.batch_size * settings.gradient_accumulation

    class Turns(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            baton.turn(**watch.take())

    class Trainer(DistillationTrainer):
        sampled = 0

        def _tokenize_prompts(self, numbers):
            return [prompts[int(number)] for number in numbers], None, {}

        def _generate_single_turn(self, *arguments, **how):
            completions = super()._generate_single_turn(*arguments, **how)
            self.sampled += sum(map(len, completions))
            return completions

        def _get_last_hidden_state(self, model, *arguments, **how):
            if model is not self.teacher_model:
                return super()._get_last_hidden_state(model, *arguments, **how)
            begin = common.now()
            states = super()._get_last_hidden_state(model, *arguments, **how)
            watch.seconds["teacher"] += common.now() - begin
            return states

    watch.wrap(Trainer, "_generate_single_turn", "sampling")
    with tempfile.TemporaryDirectory() as work:
        trainer = Trainer(
            model=casting(peers.student_with_adapters(student, settings)),
            teacher_model=load.load_model(teacher, settings.dtype),
            args=DistillationConfig(
                output_dir=work,
                beta=1.0,
                temperature=1.0,
                max_completion_length=answer,
                generation_kwargs={"min_new_tokens": answer},
                disable_dropout=True,
                num_train_epochs=1,
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=1,
                **peers.trainer_arguments(settings),
            ),
            train_dataset=Dataset.from_dict({"prompt": [str(number) for number in range(rows)]}),
            processing_class=load.load_tokenizer(student),
            callbacks=[Turns()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.sampled


def casting(model):
    """PEFT casts what comes into float32 adapters, which kdag turns off: TRL answers without autocast."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = True
    return model


def main():
    made = common.parser(__doc__)
    common.add_demo(made)
    common.add_steps(made, 6)
    made.add_argument("--answer", type=int, help="tokens of an answer; default 64, with --quick 8")
    args = common.start(made)
    logging.getLogger().setLevel(logging.WARNING)
    steps = common.steps_of(made, args, 6)
    answer = args.answer or (8 if args.quick else 64)
    try:
        import trl
    except ImportError:
        sys.exit("trl is not installed: pip install -r envs/requirements-test.txt")

    settings = settings_of(args.dtype)
    rows = steps * settings.batch_size * settings.gradient_accumulation
    kwargs = {"student": args.student, "teacher": args.teacher, "data": args.data}
    kwargs |= {"dtype": settings.dtype, "rows": rows, "answer": answer}
    done = common.by_turns({"kdag": (run_kdag, kwargs), "trl": (run_trl, kwargs)})

    print(f"trl {trl.__version__}")
    figures, case = common.Figures(TARGETS), f"{rows // steps} rows, {answer} tokens each"
    for name, (turns, sampled) in done.items():
        figures.one(name, "tokens sampled", sampled)
        whole = median(common.seconds(turns))
        parts = {part: median(turn.get(part, 0.0) for turn in turns[1:]) for part in ("sampling", "teacher")}
        figures.one(name, "s per step", whole)
        for part, seconds in parts.items():
            figures.one(name, f"of which {part}", seconds)
        figures.one(name, "of which the rest", whole - sum(parts.values()))
    figures.one(case, "kdag / trl, time per step", common.ratio(done["kdag"][0], done["trl"][0]))
    figures.write(args.json)


if __name__ == "__main__":
    main()
