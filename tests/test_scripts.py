"""Every stage script by hand, as a user would call it, on the finished tiny experiment."""

import json

import pandas as pd
import pytest

from kdag.files.seals import read_sealed, write_sealed


def last_line(done) -> str:
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def paths(finished):
    (teacher,) = finished.folder.glob("resources/models/teacher-*/model")
    (student,) = finished.folder.glob("resources/models/student-*/model")
    (rows,) = finished.folder.glob("resources/datasets/rows-*/rows.jsonl")
    return {"teacher": teacher, "student": student, "rows": rows, "results": finished.results}


TRAINING = {
    "dtype": "float32",
    "batch_size": 4,
    "gradient_accumulation": 2,
    "lora_rank": 2,
    "gradient_checkpointing": True,
}


def test_fetch(finished, tmp_path):
    source = json.dumps({"source": "path", "path": "tiny/rows.jsonl"})
    made = ["--output", tmp_path / "rows.jsonl", "--manifest", tmp_path / "manifest.json"]
    finished.script("fetch_dataset", "--config", source, *made)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 40
    frame = pd.read_json(tmp_path / "rows.jsonl", lines=True)
    for name, write in (
        ("rows.parquet", frame.to_parquet),
        ("rows.json", lambda p: frame.to_json(p, orient="records")),
    ):
        write(tmp_path / name)
        source = json.dumps({"source": "path", "path": str(tmp_path / name)})
        again = ["--output", tmp_path / "again.jsonl", "--manifest", tmp_path / "again.json"]
        finished.script("fetch_dataset", "--config", source, *again)
        assert pd.read_json(tmp_path / "again.jsonl", lines=True).equals(frame), name
    source = json.dumps({"source": "path", "path": "tiny/teacher"})
    made = ["--output", tmp_path / "model", "--manifest", tmp_path / "model.json"]
    finished.script("fetch_model", "--config", source, *made)
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    ("script", "what"),
    [("fetch_model", "model"), ("fetch_dataset", "data set"), ("fetch_published", "data set")],
)
def test_hub_out_of_reach_is_one_line(finished, tmp_path, monkeypatch, script, what):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    source = {"source": "hub", "id": "someone/something", "revision": None, "split": "train", "files": "*"}
    source = json.dumps(source)
    made = ["--output", tmp_path / "out", "--manifest", tmp_path / "manifest.json"]
    done = finished.script(script, "--config", source, *made, check=False)
    assert done.returncode == 1
    assert f"error: {what} someone/something cannot be fetched from the hub" in last_line(done)
    assert "Traceback" not in done.stderr and not (tmp_path / "manifest.json").exists()


def test_subset_by_hand_equals_the_run(finished, paths, tmp_path):
    config = json.dumps({"train_rows": 24, "heldout_rows": 8, "max_tokens": 256})
    finished.script(
        *("subset", "--config", config, "--rows", paths["rows"]),
        *("--chat", paths["results"] / "data" / "chat.json", "--models", paths["student"], paths["teacher"]),
        *("--train", tmp_path / "train.parquet", "--heldout", tmp_path / "heldout.parquet"),
        *("--manifest", tmp_path / "manifest.json"),
    )
    made = (tmp_path / "train.parquet").read_bytes()
    assert made == (paths["results"] / "data" / "train.parquet").read_bytes()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_training_by_hand(finished, paths, tmp_path, tuning):
    from transformers import AutoModelForCausalLM

    out = [
        "--output",
        tmp_path / "model",
        "--log",
        tmp_path / "log",
        "--manifest",
        tmp_path / "manifest.json",
    ]
    given = ["--model", paths["student"], "--train", paths["results"] / "data" / "train.parquet", *out]
    finished.script("sft", "--config", json.dumps({**TRAINING, "tuning": tuning}), *given)
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "adapter").is_dir() == (tuning == "lora")
    job = {**TRAINING, "tuning": tuning, "divergence": "rkl", "use_ce_loss": False}
    cache = ["--teacher", paths["results"] / "cache" / "manifest.json"]
    finished.script("distill", "--config", json.dumps(job), *given, *cache)
    steps = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1)) and len(steps) >= 3
    assert all(step["divergence"] > 0 for step in steps)
    assert [file.name for file in tmp_path.glob(".*")] == [".lock-sft"]


def test_derive_by_hand(finished, paths, tmp_path):
    from transformers import AutoModelForCausalLM

    out = ["--output", tmp_path / "model", "--manifest", tmp_path / "manifest.json"]
    finished.script("derive_student", "--config", '{"keep_layers": 3}', "--teacher", paths["teacher"], *out)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert len(model.model.layers) == model.config.num_hidden_layers == 3
    done = finished.script(
        *("derive_student", "--config", '{"keep_layers": 9}', "--teacher", paths["teacher"], *out),
        check=False,
    )
    assert done.returncode == 1
    assert "keep_layers is 9; the teacher has 4 layers" in last_line(done)


def test_damaged_cache_is_named_before_training(finished, paths, tmp_path):
    import shutil

    shutil.copytree(paths["results"] / "cache", tmp_path / "cache")
    shard = tmp_path / "cache" / "train" / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)
    done = finished.script(
        *("distill", "--model", paths["student"], "--train", paths["results"] / "data" / "train.parquet"),
        *("--teacher", tmp_path / "cache" / "manifest.json", "--output", tmp_path / "model"),
        *("--log", tmp_path / "log", "--manifest", tmp_path / "manifest.json"),
        check=False,
    )
    assert done.returncode == 1
    assert "shard-00001.safetensors has another SHA-256" in last_line(done)
    assert "run snakemake again to rebuild it" in last_line(done)
    assert not (tmp_path / "model").exists()


def test_mixture_is_refused(finished, paths, tmp_path):
    import shutil

    shutil.copytree(paths["results"] / "eval", tmp_path / "eval")
    file = tmp_path / "eval" / "rkl-seed0" / "scores.json"
    scores = read_sealed(file)
    scores["n_prompts"] = 3
    scores["generation"]["dtype"] = "bfloat16"
    write_sealed(file, scores)
    (file.parent / "job-score_ifeval.json").unlink()
    models = ["teacher", "student-untrained", "rkl-seed0"]
    rows = [{"model": m, "label": m, "role": "student"} for m in models]
    untrained = next(finished.folder.glob("resources/models/student-*"))
    homes = [paths["results"] / "teacher", untrained, paths["results"] / "students" / "rkl" / "seed0"]
    done = finished.script(
        *("aggregate", "--config", json.dumps({"rows": rows, "tasks": [], "statistics": {}})),
        *("--scores", *(tmp_path / "eval" / m / "scores.json" for m in models)),
        *("--manifests", *(home / "manifest.json" for home in homes)),
        *("--fidelity", *(tmp_path / "eval" / m / "fidelity.json" for m in models[1:])),
        *(
            part
            for name in (
                "table",
                "csv",
                "fidelity-csv",
                "tasks-csv",
                "budget-csv",
                "closeness",
                "latex",
                "intervals",
                "comparisons",
                "seeds",
                "verdict",
                "notes",
            )
            for part in (f"--{name}", tmp_path / name)
        ),
        check=False,
    )
    assert done.returncode == 1
    assert "rkl-seed0: dtype is 'bfloat16', for teacher it is 'float32'" in done.stderr
    assert "rkl-seed0: n_prompts is 3, for teacher it is 4" in done.stderr
    assert not (tmp_path / "table").exists()


def test_a_student_opens_with_the_lines_of_its_card(finished, monkeypatch):
    """Merged and as an adapter it is one model; vLLM's line cannot be tried here."""
    import peft
    import torch
    import transformers

    monkeypatch.chdir(finished.folder)
    card = (finished.results / "students" / "fkl" / "seed0" / "README.md").read_text()
    lines = [line for line in card.splitlines() if line.startswith("model = ")]
    known = {"transformers": transformers, "peft": peft}
    merged, adapted = (eval(line.removeprefix("model = "), known) for line in lines)
    ids = torch.tensor([[5, 7, 11, 13]])
    assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
    assert "student - fkl" in card and "[" in card.split("student - fkl")[1][:20]
