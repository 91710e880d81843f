"""Distil the teacher into the student: cross-entropy plus a divergence over the full vocabulary."""

import json
from pathlib import Path

from kdag.config.kinds import NO_DIVERGENCE
from kdag.config.training import read_job
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.launching import one_process_per_gpu
from kdag.training import backends


def arguments():
    parser = cli.parser(__doc__, gpus=True, curves=True)
    parser.add_argument(
        "--config",
        type=json.loads,
        default={"divergence": "fkl"},
        help="keys of `distillation`, divergence, divergence_params and seed",
    )
    parser.add_argument("--model", type=Path, required=True, help="the untrained student's directory")
    parser.add_argument(
        "--train",
        type=Path,
        nargs="+",
        required=True,
        help="train.parquet of the data, of the teacher's answers to it, or of both",
    )
    parser.add_argument(
        "--chat", type=Path, help="chat.json, saved with the model; default: its own template"
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        nargs="*",
        default=[],
        help="manifest.json of the teacher's cache of each --train, or of the teacher; or of several",
    )
    parser.add_argument(
        "--expect-teacher",
        type=Path,
        nargs="*",
        default=[],
        help="manifest.json each cache must be made from",
    )
    parser.add_argument("--routes", type=Path, nargs="?", help="of route_rows.py: the teacher of each row")
    parser.add_argument(
        "--reference", type=Path, nargs="?", help="manifest.json of the data, for a budget that sft sets"
    )
    parser.add_argument("--output", type=Path, required=True, help="model directory, written")
    parser.add_argument("--log", type=Path, required=True, help="training.jsonl, one line per step")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    settings = read_job(args.config)
    live = settings.teacher_dtype is not None
    backend = backends.start(settings.backend, settings.tuning, live)  # before transformers is imported

    from kdag.losses.divergences import load
    from kdag.training.job import run_stage
    from kdag.training.schedule import Objective

    plain = settings.divergence == NO_DIVERGENCE
    run_stage(
        "distill",
        settings,
        Objective() if plain else Objective.of(settings, load),
        start=args.model,
        rows=args.train,
        chat=args.chat,
        teacher=args.teacher,
        expected_teacher=args.expect_teacher,
        output=args.output,
        log=args.log,
        manifest=args.manifest,
        backend=backend,
        section="distillation",
        tensorboard=bool(args.tensorboard),
        reference=args.reference,
        routes=args.routes,
    )


if __name__ == "__main__":
    cli.run(recorded(one_process_per_gpu(main, lambda **config: read_job(config))), arguments())
