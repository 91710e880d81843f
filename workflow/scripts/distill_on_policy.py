"""Distil the teacher into a student that answers the prompts itself: the loss is taken on its own answers."""

import json
from pathlib import Path

from kdag.config.section import checked
from kdag.config.training import MixedJob
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.launching import one_process_per_gpu


def arguments():
    parser = cli.parser(__doc__, gpus=True, curves=True)
    parser.add_argument(
        "--config",
        type=json.loads,
        required=True,
        help="keys of `distillation`, divergence, divergence_params, seed, answers, sampling",
    )
    parser.add_argument("--model", type=Path, required=True, help="the untrained student's directory")
    parser.add_argument(
        "--train",
        type=Path,
        nargs="+",
        required=True,
        help="train.parquet of the data, and of the teacher's answers if some are learned",
    )
    parser.add_argument("--chat", type=Path, required=True, help="chat.json, saved with the model")
    parser.add_argument(
        "--teacher", type=Path, nargs="+", required=True, help="manifest.json of each teacher"
    )
    parser.add_argument("--expect-teacher", type=Path, nargs="*", help="of a cache; here there is none")
    parser.add_argument(
        "--routes", type=Path, nargs="?", help="of rows that are not sampled; here there are none"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        nargs="?",
        help="manifest.json of the data, for a budget that sft sets; next to it heldout.parquet, for a share "
        "of answers that is adaptive",
    )
    parser.add_argument("--output", type=Path, required=True, help="model directory, written")
    parser.add_argument(
        "--log",
        type=Path,
        required=True,
        help="training.jsonl, one line per step; answers.jsonl next to it has one for each of its answers",
    )
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    settings = checked(MixedJob, args.config)

    from kdag.losses.divergences import load
    from kdag.training.job import run_stage
    from kdag.training.rollouts import Rollouts
    from kdag.training.schedule import Objective

    run_stage(
        "distill_on_policy",
        settings,
        Objective.of(settings, load),
        start=args.model,
        rows=args.train,
        chat=args.chat,
        teacher=args.teacher,
        output=args.output,
        log=args.log,
        manifest=args.manifest,
        backend="transformers",  # Unsloth's decoder is made for its own generation
        section="distillation",
        tensorboard=bool(args.tensorboard),
        reference=args.reference,
        rollouts=Rollouts,
        answers=args.log.with_name("answers.jsonl"),
    )


if __name__ == "__main__":
    cli.run(recorded(one_process_per_gpu(main, MixedJob)), arguments(), memory="sampling.batch_size")
