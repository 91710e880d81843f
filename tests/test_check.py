"""The check of both models before anything is trained: what cannot work ends there, in one line."""

import json
import logging
import subprocess
import sys

import pytest
import tiny
import torch
import transformers

import check_models
from kdag.config.experiment import Config
from kdag.config.stages import stage_params
from kdag.files.manifest import write_manifest
from kdag.job.errors import UserError
from kdag.models import decoding, head, load, packed
from kdag.training import backends

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Families whose attention only their own code computes.
EAGER = {
    "sinks": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "capped scores": ("Gemma2", {"attn_logit_softcapping": 0.5}),
}


def save_model(folder, family: str, vocabulary: int, further: dict):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=vocabulary, **SIZES | further)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def check(tiny_models, tmp_path):
    """The stage on the tiny pair, under a changed configuration or with another model."""
    tokenizer = load.load_tokenizer(tiny_models / "student")
    data = tmp_path / "data"
    data.mkdir()
    tiny.encoded(tiny.rows(40), tokenizer, data, train_rows=24, heldout_rows=8)
    subset = {"vocabulary_size": len(tokenizer), "vocabulary_hash": "v", "template_hash": "t"}
    given = {"stage": "subset", "params": {}, "inputs": {}, "outputs": [data / "train.parquet"]}
    write_manifest(data / "manifest.json", **given, **subset)
    chat = tiny.chat_file(tiny_models / "student", tmp_path)

    def run(change=lambda raw: None, gpus=1, **models):
        raw = tiny.configuration(tmp_path)
        for source in (raw["data"], raw["teacher"], raw["student"], raw["evaluation"]["prompts"]):
            source.update(source="hub", id="some/thing")
            del source["path"]
        change(raw)
        words = ["--config", json.dumps(stage_params(Config(**raw), "check_models"))]
        for name in ("teacher", "student"):
            words += [f"--{name}", models.get(name, tiny_models / name)]
        words += ["--train", data / "train.parquet", "--chat", chat]
        words += ["--output", tmp_path / "check" / "models.json"]
        (tmp_path / "check").mkdir(exist_ok=True)
        words = list(map(str, words))
        if gpus > 1:
            command = [sys.executable, check_models.__file__, *words, "--gpus", str(gpus)]
            subprocess.run(command, check=True, timeout=300)
        else:
            check_models.main(check_models.arguments().parse_args(words))
        return sorted(file.name for file in (tmp_path / "check").iterdir())

    return run


@pytest.mark.parametrize("store", ["hidden", "hidden-int8", "topk", "logits", "distillkit", "sampled"])
def test_a_pair_that_works_leaves_a_note_and_nothing_else(check, store, caplog):
    caplog.set_level(logging.INFO)
    assert check(lambda raw: raw["teacher_cache"].update(store=store)) == ["models.json"]
    assert {"the teacher: works", "the student: works"} <= {line.split(",")[0] for line in caplog.messages}


def test_a_student_is_tried_with_every_setting_that_matters(check, caplog):
    def two_ways(raw):
        raw["strategies"] = {
            "fkl": {"divergence": "fkl"},
            "warm": {"divergence": "jsd", "temperature": 3, "learning_rate": 1e-4},
            "whole": {"divergence": "fkl", "tuning": "full", "online": True},
        }

    caplog.set_level(logging.INFO)
    check(two_ways)
    worked = [line.split(": works")[0] for line in caplog.messages if ": works" in line]
    assert worked == ["the teacher", "the student", "the student, settings 2 of 2"]


def test_unsloth_stays_out_of_the_process_of_several_models(check, monkeypatch):
    monkeypatch.setattr(backends, "start", lambda *_: pytest.fail("a backend was started"))
    monkeypatch.setitem(sys.modules, "unsloth", None)  # which cannot be imported
    check(lambda raw: [raw[name].update(backend="unsloth") for name in ("teacher_training", "distillation")])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda raw: raw["distillation"].update(lora_target_modules=["q"]),
            "the student: lora_target_modules",
        ),
        (lambda raw: raw["teacher_training"].update(lora_target_modules=["q"]), "the teacher: lora_target"),
    ],
)
def test_settings_that_a_model_cannot_take_are_one_line(check, change, said):
    with pytest.raises(UserError) as error:
        check(change)
    assert str(error.value).startswith(said)


def test_a_model_without_a_tokenizer_is_one_line(check, tmp_path):
    with pytest.raises(UserError, match="^the teacher: .*no tokenizer"):
        check(teacher=save_model(tmp_path / "llama", "Llama", 512, {}))


def test_whatever_a_model_stumbles_over_is_one_line(check, monkeypatch):
    """A failure that nobody here has thought of."""

    def stumble(self, *args, **kwargs):
        raise IndexError("index 512 is out of range")

    monkeypatch.setattr(transformers.Qwen2Model, "forward", stumble)
    with pytest.raises(UserError, match="^the teacher: IndexError: index 512 is out of range$"):
        check()


def test_a_model_that_is_saved_wrongly_is_found(check, monkeypatch):
    """Weights that are lost on their way to the disk and back."""
    real = decoding.load_model

    def other(*args):
        model, tokenizer = real(*args)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.zero_()
        return model, tokenizer

    monkeypatch.setattr(decoding, "load_model", other)
    with pytest.raises(UserError, match="^the teacher: the model that was saved is not the one that was"):
        check()


def test_several_processes_and_a_model_that_they_share(check, monkeypatch):
    monkeypatch.setenv("KDAG_SHARD", "1")
    assert "models.json" in check(gpus=2)


@pytest.mark.parametrize("kind", EAGER)
def test_an_attention_of_its_own_is_kept_everywhere(kind, check, tiny_models, tmp_path):
    """In training, cache and answers; sdpa would leave a cap out without a word, and refuses sinks."""
    family, further = EAGER[kind]
    tokenizer = load.load_tokenizer(tiny_models / "student")
    folder = save_model(tmp_path / "model", family, len(tokenizer) + 8, further)
    tokenizer.save_pretrained(folder)
    eager = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        wanted = eager(input_ids=ids).logits
        answering, _ = decoding.load_model(folder, "float32")
        assert torch.equal(answering(input_ids=ids).logits, wanted)
        trained = load.load_model(folder, "float32", whole_rows=True)
        assert not packed.on(trained)
        hidden = head.hidden_states(trained, ids, torch.ones_like(ids))
        cap = head.logit_cap(trained)
        rebuilt = hidden @ head.head_weight(trained, wanted.shape[-1]).T
        rebuilt = rebuilt if cap is None else cap * torch.tanh(rebuilt / cap)
        assert torch.allclose(rebuilt, wanted, atol=1e-4)
    assert check(teacher=folder) == ["models.json"]
