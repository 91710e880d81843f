"""Fine-tune a model on the answers alone: the teacher, and the student that has no teacher."""

import json
from pathlib import Path

from kdag import backends, cli
from kdag.config_section import checked
from kdag.config_training import TeacherTraining
from kdag.parallel import one_process_per_gpu


def arguments():
    parser = cli.parser(__doc__, gpus=True)
    parser.add_argument("--config", type=json.loads, default={}, help="training keys and seed")
    parser.add_argument("--model", type=Path, required=True, help="model directory to start from")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet")
    parser.add_argument("--output", type=Path, required=True, help="model directory, written")
    parser.add_argument("--log", type=Path, required=True, help="training.jsonl, one line per step")
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    settings = checked(TeacherTraining, args.config)
    backend = backends.start(settings.backend)  # before transformers is imported

    from kdag.training import Objective
    from kdag.training_stage import run_stage

    section = "teacher_training" if args.name == "sft_teacher" else "distillation"
    run_stage("sft", args, settings, Objective(), teacher=None, backend=backend, section=section)


if __name__ == "__main__":
    cli.run(one_process_per_gpu(main, TeacherTraining), arguments())
