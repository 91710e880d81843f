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
    head = models.head_weight(model, vocabulary).detach()
    stored = {part: settings.store if part == "train" else "hidden" for part in frames}
    encoders = {part: encoder(stored[part], head, settings) for part in frames}
    for part, frame in frames.items():
        with atomic_path(folder / part) as partial:
            write_part(
                model,
                frame,
                partial,
                unit=f"rows of {part}",
                batch_tokens=settings.batch_tokens,
                rows_per_shard=settings.rows_per_shard,
                encode=encoders[part],
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
        store=stored,
        vocabulary_size=vocabulary,
        vocabulary_hash=subset["vocabulary_hash"],
        template_hash=subset["template_hash"],
        device=models.device_name(),
    )


def encoder(store: str, head, settings: Settings):
    """hidden [n, d] -> what is stored of it. Fidelity reads held-out rows as they are."""
    from kdag.teacher_storage import SCHEMES

    encode = SCHEMES[store].encode
    match store:
        case "hidden":
            return lambda hidden: encode(hidden, head, dtype=settings.dtype)
        case "topk":
            exact = head.float()
            return lambda hidden: encode(hidden, exact, k=settings.top_k, tail=settings.tail)
    return lambda hidden: encode(hidden, head)


if __name__ == "__main__":
    cli.run(main, arguments())
