"""Caching and training in processes of their own, one with a GPU in sight and one without.

python tests/gpu/steps.py cache FOLDER CACHE DTYPE    the teacher's states of the rows, CACHE/manifest.json
python tests/gpu/steps.py train FOLDER CACHE          prints the losses of every step as JSON
FOLDER holds teacher/ and student/ of tests/tiny.py. No pydantic, datasets or lm-eval is needed.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "workflow" / "scripts")]

VOCABULARY = 400  # of tests/tiny.py's tokenizer; its heads are padded beyond
HASHES = {"vocabulary_hash": "", "template_hash": ""}


def frame():
    import gpu_shapes

    return gpu_shapes.rows(gpu_shapes.SHAPES["tiny"] | {"vocabulary": VOCABULARY}, 32)


def cache(folder: Path, made: Path, dtype: str) -> None:
    import torch

    from kdag.files.manifest import write_manifest
    from kdag.models import head, load
    from kdag.teacher.cache import write_head, write_part

    model, rows = load.load_model(folder / "teacher", dtype), frame()
    head.check_head(model, VOCABULARY)
    write_part(
        model,
        rows,
        made / "train",
        unit="rows",
        batch_tokens=200,
        rows_per_shard=20,
        encode=lambda hidden: {"hidden": hidden.to(getattr(torch, dtype))},
    )
    write_head(model, VOCABULARY, made / "head.safetensors", dtype)
    write_manifest(
        made / "manifest.json",
        stage="cache_teacher",
        params={},
        inputs={},
        outputs=[made / "train", made / "head.safetensors"],
        row_hashes={"train": rows["row_hash"].tolist()},
        store={"train": "hidden"},
        **HASHES,
    )


def opened(made: Path):
    from kdag.teacher.cache import TeacherCache

    return TeacherCache(made / "manifest.json", "train", frame(), HASHES)


def train(folder: Path, made: Path) -> list[dict]:
    """LoRA in bf16 with the default settings, four steps of eight rows."""
    import gpu_shapes

    from kdag.models import load
    from kdag.training import train

    settings = gpu_shapes.settings("distillation", batch_size=2, gradient_accumulation=4)
    with tempfile.TemporaryDirectory() as work:
        _, log = train.train(
            load.load_model(folder / "student", settings.dtype),
            frame(),
            settings=settings,
            objective=gpu_shapes.objective(),
            teacher=opened(made),
            vocabulary=VOCABULARY,
            work=Path(work),
        )
    return [{key: entry[key] for key in ("loss", "ce", "divergence", "answer_tokens")} for entry in log]


def main(what, folder, made, dtype="bfloat16"):
    if what == "cache":
        cache(Path(folder), Path(made), dtype)
    else:
        print(json.dumps(train(Path(folder), Path(made))))


if __name__ == "__main__":
    main(*sys.argv[1:])
