"""Ask a teacher behind a server for its likeliest tokens at every answer position, and cache them as topk."""

import json
from pathlib import Path

from kdag.files.atomic import atomic_path
from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest, write_manifest
from kdag.files.records import recorded
from kdag.job import cli
from kdag.teacher import asking


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--config", type=json.loads, required=True, help="keys of `teacher_cache`, and server"
    )
    asking.arguments(parser)
    parser.add_argument("--teacher", type=Path, required=True, help="manifest.json of meet_teacher.py")
    parser.add_argument("--parts", nargs="+", choices=("train", "heldout"), required=True)
    parser.add_argument("--train", type=Path, required=True, help="train.parquet")
    parser.add_argument("--heldout", type=Path, help="heldout.parquet")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of what was written")
    return parser


def main(args):
    settings, folder = args.config, args.manifest.parent
    data = read_manifest(args.train.parent / "manifest.json", SUBSET)
    vocabulary, k = data["vocabulary_size"], settings["top_k"]

    from kdag.data.rows import read_rows
    from kdag.models import load
    from kdag.teacher import topk

    server = asking.server_of(args, settings["server"], load.load_tokenizer(args.model))
    journal = asking.Journal(folder / ".asked.jsonl")
    frames = {part: read_rows(getattr(args, part)) for part in args.parts}
    outputs = []
    for part, frame in frames.items():
        values = topk.scores(
            server,
            args.teacher,
            frame,
            k,
            vocabulary,
            journal,
            parallel=args.parallel,
            unit=f"rows of {part}",
        )
        form = {"k": k, "vocabulary": vocabulary, "tail": settings["tail"]}
        with atomic_path(folder / part) as partial:
            topk.write_part(frame, values, partial, rows_per_shard=settings["rows_per_shard"], **form)
        outputs.append(folder / part)
    outputs.append(folder / "head.safetensors")
    topk.write_height(vocabulary, outputs[-1])
    write_manifest(
        args.manifest,
        stage="cache_teacher",
        params=settings,
        inputs={
            "teacher": sha256_file(args.teacher),
            "data": sha256_file(args.train.parent / "manifest.json"),
        },
        outputs=outputs,
        row_hashes={part: frame["row_hash"].tolist() for part, frame in frames.items()},
        store=dict.fromkeys(frames, settings["store"]),
        **{key: data[key] for key in SUBSET},
    )
    journal.done()


if __name__ == "__main__":
    cli.run(recorded(main), arguments())
