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
        "--own",
        type=Path,
        nargs="*",
        default=[],
        help="of a teacher with another tokenizer: its train.parquet and chat.json of align_rows.py, and the "
        "student's directory",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="train.parquet with these answers, written"
    )
    parser.add_argument("--manifest", type=Path, required=True)
    return parser


def main(args):
    settings = Sampling(**{key: value for key, value in args.config.items() if key != "dtype"})
    dtype = precision.settle(args.config["dtype"], "teacher_cache.dtype")
    chat, data = read_chat(args.chat), read_manifest(args.train.parent / "manifest.json", SUBSET)

    from kdag.data.aligned_rows import Speaker
    from kdag.data.rows import prompts, read_rows
    from kdag.models import decoding, load
    from kdag.models.files import positions_of
    from kdag.teacher.answering import encoded, report, sampled, spoken
    from kdag.teacher.rows import write_rows

    given = prompts(read_rows(args.train))
    rows, own_chat, student = args.own or (args.train, args.chat, None)
    own = read_manifest(rows.parent / "manifest.json", SUBSET)
    if student:
        decoding.check_positions(given, settings.max_new_tokens, positions_of(student))
    answers, texts = sampled(
        *(args.model, rows, settings, read_chat(own_chat), dtype, own["vocabulary_size"], args.gpus)
    )
    said = [answer.tokens for answer in answers]
    if student:
        us = Speaker(load.load_tokenizer(student), chat)
        texts = spoken(us, Speaker(load.load_tokenizer(args.model), read_chat(own_chat)), answers, texts)
        said = encoded(us, answers, texts, settings.max_new_tokens)
    write_rows(args.train, given, said, texts, args.output)
    unended = sum(not set(ids[-1:]) & set(chat.end_ids) for ids in said)
    found = report(answers, texts) | {"cut_off": unended}
    logging.info("the teacher's answers: %s", found)
    write_manifest(
        args.manifest,
        stage="answer_teacher",
        params=args.config,
        inputs={
            "teacher": sha256_file(args.model.parent / "manifest.json"),
            "data": sha256_file(args.train.parent / "manifest.json"),
            **({"rows": sha256_file(rows.parent / "manifest.json")} if student else {}),
        },
        outputs=[args.output],
        report=found,
        **{key: data[key] for key in (*SUBSET, "chat")},
        dtype=dtype,
        arithmetic=arithmetic.recorded(),
        processor=precision.here().name,
        device=load.device_name(),
    )


if __name__ == "__main__":
    cli.run(recorded(leased(main)), arguments(), memory="sampling.batch_size")
