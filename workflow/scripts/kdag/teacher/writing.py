"""A teacher's cache from its rows to its manifest."""

import logging
from pathlib import Path

from kdag.config import precision
from kdag.config.training import TeacherCache as Settings
from kdag.files.atomic import atomic_path
from kdag.files.manifest import write_manifest
from kdag.job import arithmetic, progress
from kdag.models import load
from kdag.models.head import check_head, head_weight, logit_cap
from kdag.models.weights import weights_of
from kdag.teacher.cache import count_tokens, file_rows, files_of_share, write_head, write_part
from kdag.teacher.storage import SCHEMES


def write_cache(
    teacher: Path,
    frames: dict,
    subset: dict,
    settings: Settings,
    manifest: Path,
    *,
    params: dict,
    inputs: dict,
    folder: Path | None = None,
    share: tuple[int, int] = (0, 1),
    gpus: int = 1,
) -> None:
    """What the model in `teacher` thinks of `frames`, {part: rows}, or a share of its files.

    subset: the manifest of the rows. settings: with a dtype that is settled. manifest: written last; folder:
    where the files lie, by default next to it; params, inputs: what the manifest says of the job.
    """
    folder = folder or manifest.parent
    files = files_of_share({k: len(f) for k, f in frames.items()}, settings.rows_per_shard, *share)
    stored = {part: settings.store if part == "train" else "hidden" for part in frames}
    told = {part: settings.parameters() for part, store in stored.items() if SCHEMES[store].told}
    weights = {}
    if any(files.values()):
        vocabulary = subset["vocabulary_size"]
        model = load.load_model(teacher, settings.dtype, gpus=gpus, whole_rows=True)
        check_head(model, vocabulary)
        weights = {"weights": weights_of(model)[0]}
        outputs = write_files(model, vocabulary, frames, files, stored, settings, folder)
        if share[0] == 0:
            outputs.append(folder / "head.safetensors")
            write_head(model, vocabulary, outputs[-1], settings.dtype)
    else:
        logging.info("there are more shares than files; none is this one's")
        folder.mkdir(parents=True, exist_ok=True)
        outputs = []
    hashes = {part: frame["row_hash"].tolist() for part, frame in frames.items()}
    write_manifest(
        manifest,
        stage="cache_teacher",
        params=params,
        inputs=inputs,
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
        **weights,
        **({"parameters": told} if told else {}),
    )


def write_files(model, vocabulary: int, frames, files, stored, settings, folder: Path) -> list[Path]:
    """The files of a share, {part: their numbers}, in a folder per part."""
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
    return [folder / part for part in frames]


def encoder(store: str, head, settings: Settings, cap: float | None = None):
    """(hidden [n, d], the row's hash) -> what is stored of it. Fidelity reads held-out rows as they are."""
    encode = SCHEMES[store].encode
    match store:
        case "hidden":
            return lambda hidden, row: encode(hidden, head, dtype=settings.dtype)
        case "topk" | "distillkit":
            exact, given = head.float(), settings.parameters()
            return lambda hidden, row: encode(hidden, exact, **given, cap=cap)
        case "sampled":
            exact, given = head.float(), settings.parameters()
            return lambda hidden, row: encode(hidden, exact, **given, row=row, cap=cap)
    return lambda hidden, row: encode(hidden, head, cap=cap)
