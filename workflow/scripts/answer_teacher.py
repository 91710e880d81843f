"""Sample the teacher's answers to the training prompts, once for every strategy that wants them."""

import json
import logging
from pathlib import Path

from kdag.config import precision
from kdag.config.sampling import Sampling
from kdag.data.template import read_chat
from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest, write_manifest
from kdag.files.records import recorded
from kdag.job import arithmetic, cli
from kdag.job.gpu_lease import leased


def arguments():
    parser = cli.parser(__doc__, gpus=True)
    parser.add_argument("--config", type=json.loads, required=True, help="keys of `sampling`, and dtype")
    parser.add_argument("--model", type=Path, required=True, help="the fine-tuned teacher's directory")
    parser.add_argument("--chat", type=Path, required=True, help="chat.json of settle_chat.py")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet of the data")
    parser.add_argument(
        "--output", type=Path, required=True, help="train.parquet with these answers, written"
    )
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    settings = Sampling(**{key: value for key, value in args.config.items() if key != "dtype"})
    dtype = precision.settle(args.config["dtype"], "teacher_cache.dtype")
    chat, data = read_chat(args.chat), read_manifest(args.train.parent / "manifest.json", SUBSET)

    from kdag.models import load
    from kdag.teacher.answering import write_answers

    report = write_answers(args.model, args.train, args.output, settings, chat, dtype, data, args.gpus)
    logging.info("the teacher's answers: %s", report)
    write_manifest(
        args.manifest,
        stage="answer_teacher",
        params=args.config,
        inputs={
            "teacher": sha256_file(args.model.parent / "manifest.json"),
            "data": sha256_file(args.train.parent / "manifest.json"),
        },
        outputs=[args.output],
        report=report,
        **{key: data[key] for key in (*SUBSET, "chat")},
        dtype=dtype,
        arithmetic=arithmetic.recorded(),
        processor=precision.here().name,
        device=load.device_name(),
    )


if __name__ == "__main__":
    cli.run(recorded(leased(main)), arguments(), memory="sampling.batch_size")
