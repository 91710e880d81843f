"""Model directories as people have them, and students cut from every family."""

import json
import shutil

import pytest
import tiny
import torch
import transformers

from kdag.data.template import read_chat
from kdag.job.errors import UserError
from kdag.models import derive, files, load, same
from kdag.planning.jobsize import model_bytes
from kdag.training.train import save_trained

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "Qwen2": {},
    "Qwen2 with windows": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4},
    "Llama": {},
    "Qwen3": {},
    "SmolLM3": {},
    "Qwen3Moe": {**MOE, "mlp_only_layers": [1, 5], "decoder_sparse_step": 2},
    "Gemma2": {"head_dim": 8, "sliding_window": 8},
    "Gemma3": {"head_dim": 8, "sliding_window": 8},
    "Phi3": {},
    "Olmo2": {},
    "Cohere2": {"sliding_window": 8},
    "Granite": {},
}


def of_family(name: str):
    family = name.split()[0]
    config = getattr(transformers, f"{family}{'Text' if family == 'Gemma3' else ''}Config")
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config(**SIZES | FAMILIES[name]))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_student_on_disk_is_the_network_that_was_cut(name, tmp_path):
    of_family(name).save_pretrained(tmp_path / "teacher")
    model = load.load_model(tmp_path / "teacher", "float32", to_device=False)
    before = derive.computed(model)
    kept = [0, 1, 4, 5, 7]
    derive.keep_layers(model, kept)
    cut = derive.computed(model)
    assert cut[1] == [before[1][layer] for layer in kept], "each layer is what it was"
    model.save_pretrained(tmp_path / "student")
    saved = derive.computed(load.load_model(tmp_path / "student", "float32", to_device=False))
    assert torch.equal(cut[0], saved[0]) and cut[1] == saved[1]


def test_a_list_that_was_left_as_it_was_is_noticed(tmp_path):
    """SmolLM3's rotary layers: without them the student on disk would be another network."""
    model = of_family("SmolLM3")
    lists = list(model.config.no_rope_layers)
    derive.keep_layers(model, [0, 3, 7])
    cut = derive.computed(model)
    model.config.no_rope_layers = lists[:3]
    model.save_pretrained(tmp_path)
    saved = derive.computed(load.load_model(tmp_path, "float32", to_device=False))
    with pytest.raises(UserError, match="a smollm3 cannot be cut: the student on disk is not the network"):
        derive.check_same(cut, saved, "smollm3")


def test_a_network_without_a_list_of_layers_cannot_be_cut():
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16)
    )
    with pytest.raises(UserError, match="a gpt2 cannot be cut: it has no list of layers"):
        derive.keep_layers(model, [0])


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False, "temperature": 0.7, "top_p": 0.9, "eos_token_id": 2, "pad_token_id": 0},
        {"eos_token_id": [2, 0], "pad_token_id": -1},
    ],
)
def test_settings_of_sampling_that_cannot_be_saved_cost_no_training(tiny_models, tmp_path, settings):
    folder = shutil.copytree(tiny_models / "student", tmp_path / "student")
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model, tokenizer = load.load_model(folder, "float32"), load.load_tokenizer(folder)
    save_trained(model, tokenizer, tmp_path / "made", "float32")
    kept = json.loads((tmp_path / "made" / "generation_config.json").read_text())
    assert kept["eos_token_id"] == settings["eos_token_id"] and "temperature" not in kept


def test_who_opens_a_student_knows_all_that_ends_its_answers(tiny_models, tmp_path):
    folder = tiny_models / "student"
    save_trained(
        load.load_model(folder, "float32"),
        load.load_tokenizer(folder),
        tmp_path / "made",
        "float32",
        end_ids=(0, 2),
    )
    assert load.end_ids(tmp_path / "made", load.load_tokenizer(tmp_path / "made")) == {0, 2}


def test_an_adapter_next_to_merged_weights_is_left_alone(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models / "student", tmp_path / "merged")
    shutil.copy(folder / files.WHOLE, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    shutil.copy(folder / files.WHOLE, folder / "consolidated.safetensors")
    files.check(folder)
    names = {file.name for file in files.wanted(folder)}
    assert files.WHOLE in names and "tokenizer.json" in names
    assert not {name for name in names if name.startswith(("adapter", "consolidated"))}
    assert model_bytes(folder) == (folder / files.WHOLE).stat().st_size, "counted once"


def test_a_tokenizer_longer_than_the_model_is_named_before_anything_is_trained(tiny_models, tmp_path):
    import settle_chat

    tokenizer = load.load_tokenizer(tiny_models / "student")
    tiny.model(len(tokenizer) - 1, hidden=32, layers=2, tied=True, seed=0).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    given = ["--teacher", tiny_models / "teacher", "--student", tmp_path / "short"]
    args = settle_chat.arguments().parse_args([*map(str, given), "--output", str(tmp_path / "chat.json")])
    with pytest.raises(
        UserError, match=f"short: the tokenizer has {len(tokenizer)} tokens and its model only"
    ):
        settle_chat.main(args)


def test_a_chat_that_is_none_is_one_line(tmp_path):
    (tmp_path / "chat.json").write_text('{"template": "x"}')
    with pytest.raises(UserError, match="is not what settle_chat.py writes"):
        read_chat(tmp_path / "chat.json")


def test_dtype_is_read_by_either_name(tmp_path):
    for key in ("dtype", "torch_dtype"):
        (tmp_path / "config.json").write_text(json.dumps({key: "bfloat16"}))
        assert files.stored_dtype(tmp_path) == "bfloat16"


def test_rounding_is_no_difference_and_a_missing_matrix_is():
    """On processors whose bfloat16 rounds otherwise, single logits of a sound model are off by 8 % of the
    largest; all of them together are off by 3 to 8 %, and by 20 % where a matrix is missing."""
    model = of_family("Llama").to(torch.bfloat16)
    exact = derive.computed(model.float())[0]
    rounded = derive.computed(model.to(torch.bfloat16))[0]
    rounded[0, 7, 3] += 0.1 * exact.abs().max()
    assert same.same(exact, rounded) and same.same(rounded, exact)
    assert not same.same(exact, rounded.float()), "float32 rounds less"
    model.base_model.layers[3].mlp.down_proj.weight.data.zero_()
    assert not same.same(exact, derive.computed(model)[0])
    assert not same.same(exact, exact * float("nan"))
