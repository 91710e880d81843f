"""Distil a teacher of another tokenizer into the student: by the spans of tokens that say the same."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from kdag.config.section import checked
from kdag.config.training import DistillationJob
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.launching import one_process_per_gpu
from kdag.training import backends


def arguments():
    parser = cli.parser(__doc__, gpus=True, curves=True)
    parser.add_argument(
        "--config",
        type=json.loads,
        required=True,
        help="keys of `distillation`, alignment, divergence, divergence_params and seed",
    )
    parser.add_argument("--model", type=Path, required=True, help="the untrained student's directory")
    parser.add_argument(
        "--train",
        type=Path,
        nargs=2,
        required=True,
        help="train.parquet of the student, and of align_rows.py for the teacher",
    )
    parser.add_argument("--chat", type=Path, required=True, help="chat.json, saved with the model")
    parser.add_argument("--teacher", type=Path, required=True, help="manifest.json of the teacher's cache")
    parser.add_argument("--expect-teacher", type=Path, help="manifest.json the cache must be made from")
    parser.add_argument("--routes", type=Path, nargs="?", help="of several teachers; here there is one")
    parser.add_argument(
        "--reference", type=Path, nargs="?", help="manifest.json of the data, for a budget that sft sets"
    )
    parser.add_argument("--output", type=Path, required=True, help="model directory, written")
    parser.add_argument("--log", type=Path, required=True, help="training.jsonl, one line per step")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    settings = checked(DistillationJob, args.config)
    backend = backends.start(settings.backend, settings.tuning, False)  # before transformers is imported

    from kdag.losses import divergences, spans
    from kdag.teacher.aligned import AlignedTeacher
    from kdag.training.job import run_stage
    from kdag.training.schedule import Objective

    students, teachers = args.train
    run_stage(
        "distill_across",
        settings,
        replace(Objective.of(settings, divergences.load), alignment=spans.load(settings.alignment)),
        start=args.model,
        rows=[students],
        chat=args.chat,
        teacher=[args.teacher],
        expected_teacher=[args.expect_teacher] if args.expect_teacher else [],
        output=args.output,
        log=args.log,
        manifest=args.manifest,
        backend=backend,
        section="distillation",
        tensorboard=bool(args.tensorboard),
        reference=args.reference,
        cached_by=partial(AlignedTeacher, teachers),
    )


if __name__ == "__main__":
    cli.run(recorded(one_process_per_gpu(main, DistillationJob)), arguments())
