"""Fine-tune a model on the answers only: the teacher, and the student that has no teacher."""

import json
from pathlib import Path

from kdag.config.section import checked
from kdag.config.training import TeacherTraining
from kdag.files.records import recorded
from kdag.job import cli
from kdag.job.launching import one_process_per_gpu
from kdag.training import backends


def arguments():
    parser = cli.parser(__doc__, gpus=True, curves=True)
    parser.add_argument("--config", type=json.loads, default={}, help="training keys and seed")
    parser.add_argument("--model", type=Path, required=True, help="model directory to start from")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet")
    parser.add_argument(
        "--chat", type=Path, help="chat.json, saved with the model; default: its own template"
    )
    parser.add_argument("--output", type=Path, required=True, help="model directory, written")
    parser.add_argument("--log", type=Path, required=True, help="training.jsonl, one line per step")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    settings = checked(TeacherTraining, args.config)
    backend = backends.start(settings.backend, settings.tuning)  # before transformers is imported

    from kdag.training.job import run_stage
    from kdag.training.schedule import Objective

    section = "teacher_training" if args.name == "sft_teacher" else "distillation"
    run_stage(
        "sft",
        settings,
        Objective(),
        start=args.model,
        rows=[args.train],
        chat=args.chat,
        output=args.output,
        log=args.log,
        manifest=args.manifest,
        backend=backend,
        section=section,
        tensorboard=bool(args.tensorboard),
    )


if __name__ == "__main__":
    cli.run(recorded(one_process_per_gpu(main, TeacherTraining)), arguments())
