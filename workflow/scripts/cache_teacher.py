"""Store what the teacher thinks: its last hidden states at every answer position, and its head once."""

import json
from pathlib import Path

from kdag import cli
from kdag.config import TeacherCache as Settings
from kdag.manifest import atomic_path, read_json, sha256_file, write_manifest


def arguments():
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=json.loads, default={}, help="keys of `teacher_cache`")
    parser.add_argument("--model", type=Path, required=True, help="the fine-tuned teacher's directory")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet")
    parser.add_argument("--parts", nargs="+", choices=("train", "heldout"), default=("train", "heldout"))
    parser.add_argument("--heldout", type=Path, required=True, help="heldout.parquet")
    parser.add_argument(
        "--manifest", type=Path, required=True, help="manifest.json; the cache lies beside it"
    )
    return parser


def main(args):
    from kdag import models
    from kdag.data import read_rows
    from kdag.teacher_cache import write_head, write_part

    folder = args.manifest.parent
    settings = Settings(**args.config)
    subset = read_json(args.train.parent / "manifest.json")
    vocabulary = subset["vocabulary_size"]
    model = models.load_model(args.model, settings.dtype)
    models.check_head(model, vocabulary)
    frames = {part: read_rows(getattr(args, part)) for part in args.parts}
    for part, frame in frames.items():
        with atomic_path(folder / part) as partial:
            write_part(
                model,
                frame,
                partial,
                unit=f"rows of {part}",
                batch_tokens=settings.batch_tokens,
                rows_per_shard=settings.rows_per_shard,
                dtype=settings.dtype,
            )
    write_head(model, vocabulary, folder / "head.safetensors", settings.dtype)
    write_manifest(
        args.manifest,
        stage="cache_teacher",
        params=args.config,
        inputs={
            "teacher": sha256_file(args.model.parent / "manifest.json"),
            "data": sha256_file(args.train.parent / "manifest.json"),
        },
        outputs=[folder / name for name in (*frames, "head.safetensors")],
        row_hashes={part: frame["row_hash"].tolist() for part, frame in frames.items()},
        vocabulary_size=vocabulary,
        vocabulary_hash=subset["vocabulary_hash"],
        template_hash=subset["template_hash"],
        device=models.device_name(),
    )


if __name__ == "__main__":
    cli.run(main, arguments())
