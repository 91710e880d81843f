"""Store what the teacher thinks: its last hidden states at every answer position, and its head once.

One job writes the whole cache, or with --share j/N the j-th of N shares of its files, which gather_cache.py
puts together. The files are the same however they are shared out.
"""

import argparse
import json
import logging
import shutil
from pathlib import Path

from kdag.config import precision
from kdag.config.training import TeacherCache as Settings
from kdag.files.atomic import atomic_path
from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest, write_manifest
from kdag.files.records import recorded
from kdag.job import arithmetic, cli, progress
from kdag.job.gpu_lease import leased


def share(text: str) -> tuple[int, int]:
    """`j/N` -> (j, N)."""
    number, count = map(int, text.split("/"))
    if not 0 <= number < count:
        raise argparse.ArgumentTypeError(f"{text}: shares of {count} are 0 to {count - 1}")
    return number, count


def arguments():
    parser = cli.parser(__doc__.splitlines()[0], gpus=True)
    parser.add_argument("--config", type=json.loads, default={}, help="keys of `teacher_cache`")
    parser.add_argument("--model", type=Path, required=True, help="the fine-tuned teacher's directory")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet")
    parser.add_argument("--parts", nargs="+", choices=("train", "heldout"), default=("train", "heldout"))
    parser.add_argument("--heldout", type=Path, required=True, help="heldout.parquet")
    parser.add_argument("--share", type=share, default="0/1", help="j/N: the j-th of N shares, from 0")
    parser.add_argument("--files", type=Path, help="the cache's folder; default: the manifest's")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of what was written")
    return parser


def main(args):
    from kdag.data.rows import read_rows
    from kdag.models import load
    from kdag.teacher.cache import file_rows, files_of_share

    settings = Settings(**args.config)
    settings = settings.model_copy(update={"dtype": precision.settle(settings.dtype, "teacher_cache.dtype")})
    subset = read_manifest(args.train.parent / "manifest.json", SUBSET)
    frames = {part: read_rows(getattr(args, part)) for part in args.parts}
    files = files_of_share({k: len(f) for k, f in frames.items()}, settings.rows_per_shard, *args.share)
    stored = {part: settings.store if part == "train" else "hidden" for part in frames}
    folder = args.files or args.manifest.parent
    if any(files.values()):
        outputs = write_files(args, settings, subset["vocabulary_size"], frames, files, stored, folder)
    else:
        logging.info("there are more shares than files; none is this one's")
        folder.mkdir(parents=True, exist_ok=True)
        outputs = []
    hashes = {part: frame["row_hash"].tolist() for part, frame in frames.items()}
    write_manifest(
        args.manifest,
        stage="cache_teacher",
        params=args.config,
        inputs={
            "teacher": sha256_file(args.model.parent / "manifest.json"),
            "data": sha256_file(args.train.parent / "manifest.json"),
        },
        outputs=outputs,
        row_hashes={
            part: [h for n in numbers for h in hashes[part][file_rows(n, settings.rows_per_shard)]]
            for part, numbers in files.items()
        },
        store=stored,
        vocabulary_size=subset["vocabulary_size"],
        vocabulary_hash=subset["vocabulary_hash"],
        template_hash=subset["template_hash"],
        dtype=settings.dtype,
        arithmetic=arithmetic.recorded(),
        processor=precision.here().name,
        device=load.device_name(),
    )
    if args.share == (0, 1):  # shares of an earlier run would keep their bytes on disk
        shutil.rmtree(folder.with_name("cache-shards"), ignore_errors=True)


def write_files(args, settings, vocabulary, frames, files, stored, folder) -> list[Path]:
    """The files of this share, {part: numbers}, and with the very first of them the head."""
    from kdag.models import load
    from kdag.models.head import check_head, head_weight, logit_cap
    from kdag.teacher.cache import count_tokens, file_rows, write_head, write_part

    model = load.load_model(args.model, settings.dtype, gpus=args.gpus, whole_rows=True)
    check_head(model, vocabulary)
    head = head_weight(model, vocabulary).detach()
    parts = [frames[p].iloc[file_rows(n, settings.rows_per_shard)] for p in frames for n in files[p]]
    pace = progress.Pace(sum(map(count_tokens, parts)))
    for part, frame in frames.items():
        with atomic_path(folder / part) as partial:
            write_part(
                model,
                frame,
                partial,
                unit=f"rows of {part}",
                batch_tokens=settings.batch_tokens,
                rows_per_shard=settings.rows_per_shard,
                encode=encoder(stored[part], head, settings, logit_cap(model)),
                files=files[part],
                pace=pace,
            )
    outputs = [folder / part for part in frames]
    if args.share[0] == 0:
        outputs.append(folder / "head.safetensors")
        write_head(model, vocabulary, outputs[-1], settings.dtype)
    return outputs


def encoder(store: str, head, settings: Settings, cap: float | None = None):
    """hidden [n, d] -> what is stored of it. Fidelity reads held-out rows as they are."""
    from kdag.teacher.storage import SCHEMES

    encode = SCHEMES[store].encode
    match store:
        case "hidden":
            return lambda hidden: encode(hidden, head, dtype=settings.dtype)
        case "topk":
            exact = head.float()
            return lambda hidden: encode(hidden, exact, k=settings.top_k, tail=settings.tail, cap=cap)
    return lambda hidden: encode(hidden, head, cap=cap)


if __name__ == "__main__":
    cli.run(recorded(leased(main)), arguments(), memory="teacher_cache.batch_tokens")
