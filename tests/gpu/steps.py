"""Caching, training and answering in processes of their own, one with a GPU in sight and one without.

python tests/gpu/steps.py cache FOLDER CACHE DTYPE       the teacher's states of the rows, CACHE/manifest.json
python tests/gpu/steps.py train FOLDER CACHE [OPTIONS]   prints the losses of every step as JSON
python tests/gpu/steps.py answer MODEL PROMPTS ENDS      prints vLLM's [ids, cut off] of every prompt as JSON
FOLDER holds teacher/ and student/ of tests/tiny.py; OPTIONS are train's below, PROMPTS and ENDS token ids,
all three JSON. No pydantic, datasets or lm-eval is needed but for `answer`.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "workflow" / "scripts")]

VOCABULARY = 400  # of tests/tiny.py's tokenizer; its heads are padded beyond
HASHES = {"vocabulary_hash": "", "template_hash": ""}
ANSWER = 12  # tokens


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
        encode=lambda hidden, row: {"hidden": hidden.to(getattr(torch, dtype))},
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


def train(
    folder: Path, made: Path, *, backend="transformers", start="student", output=None, **changes
) -> list[dict]:
    """LoRA in bf16 with the default settings, but for `changes`, four steps of eight rows.

    start: the model that is trained; output: where it is saved, merged.
    """
    from kdag.training import backends

    assert backends.start(backend) == backend  # before transformers is imported

    import gpu_shapes

    from kdag.models import load
    from kdag.training import train

    settings = gpu_shapes.settings("distillation", **{"batch_size": 2, "gradient_accumulation": 4, **changes})
    rows, start = frame(), folder / start
    with tempfile.TemporaryDirectory() as work:
        model, log = train.train(
            backends.load(start, settings, backend, int(rows.lengths.max())),
            rows,
            settings=settings,
            objective=gpu_shapes.objective(),
            teacher=opened(made),
            vocabulary=VOCABULARY,
            work=Path(work),
            backend=backend,
        )
    if output:
        base = start if settings.load_in_4bit else None
        train.save_trained(model, load.load_tokenizer(start), Path(output), settings.dtype, base)
    keys = ("loss", "ce", "divergence", "answer_tokens", "grad_norm")
    return [{key: entry[key] for key in keys} for entry in log]


def answer(model: Path, prompts: list[list[int]], ends: list[int]) -> list[tuple]:
    """Greedy answers through the evaluation's vLLM backend, in float32."""
    from kdag.data.template import Chat
    from kdag.evaluation import generation
    from kdag.models import load

    config = {"backend": "vllm", "dtype": "float32", "batch_size": 8, "max_new_tokens": ANSWER}
    chat = Chat(template=load.load_tokenizer(model).chat_template, end_ids=tuple(ends))
    lm = generation.language_model(model, {**config, "repetition_penalty": 1.0}, chat)
    return lm.decode(prompts, ANSWER, ())


def main(what, first, second, third=None):
    if what == "cache":
        cache(Path(first), Path(second), third or "bfloat16")
    elif what == "train":
        print(json.dumps(train(Path(first), Path(second), **json.loads(third or "{}"))))
    else:
        print(json.dumps(answer(Path(first), json.loads(second), json.loads(third))))


if __name__ == "__main__":
    main(*sys.argv[1:])
