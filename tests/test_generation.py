"""Greedy decoding against transformers' own, padded heads, early ends, and lm-eval's samples."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kdag.data.template import Chat
from kdag.evaluation import generation
from kdag.evaluation.tasks.ifeval import prompt_set_hash
from kdag.job.errors import UserError
from kdag.models import decoding, load

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow" / "scripts"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = ["Write a story about a dog that crosses the river and the old bridge without commas."] * 4
CONFIG = {"max_new_tokens": 12, "batch_size": 3, "repetition_penalty": 1.0, "dtype": "float32"}
CHAT = Chat(template=TEMPLATE, end_ids=(0, 2))
DOCS = [
    {
        "key": key,
        "prompt": prompt,
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    for key, prompt in enumerate(
        [
            "Write.",
            "Write a story about a dog.",
            "The old bridge crosses the river without a dog.",
            "A story?",
            "Write about the river and the bridge and the river and the dog that crosses.",
        ],
        start=1000,
    )
]


def make_model(directory, padding=13, seed=0):
    """A random Qwen2 with 2 query heads per key head, whose head has `padding` rows without a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer) + padding,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = transformers.Qwen2ForCausalLM(config)
    # What Qwen2.5 ships and decoding must not inherit.
    model.generation_config.update(
        eos_token_id=[2, 0], repetition_penalty=1.9, do_sample=True, temperature=0.7, top_k=20
    )
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(directory):
    return decoding.load_model(directory, "float32")


def prompt_ids(tokenizer):
    messages = [[{"role": "user", "content": doc["prompt"]}] for doc in DOCS]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]


def reference(model, tokenizer, ids, eos_ids, cap, penalty=1.0):
    """What transformers generates for one prompt alone, with its own attention."""
    suppressed = list(range(len(tokenizer), model.config.vocab_size)) or None
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=cap,
            repetition_penalty=penalty,
            suppress_tokens=suppressed,
            eos_token_id=eos_ids,
        )[0, len(ids) :].tolist()
    return output[:-1] if output[-1] in eos_ids else output


def decode(model, tokenizer, prompts, eos_ids, cap=12, penalty=1.0):
    return decoding.decode_greedily(
        model,
        prompts,
        vocabulary=len(tokenizer),
        eos_ids=eos_ids,
        max_new_tokens=cap,
        repetition_penalty=penalty,
    )


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_decoding_equals_transformers_with_rows_that_end_at_different_times(directory, loaded, penalty):
    model, tokenizer = loaded
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    prompts = prompt_ids(tokenizer)
    free, _ = decode(model, tokenizer, prompts, eos_ids=[], cap=24, penalty=penalty)
    # A random model never says its end token: let tokens it does say end the rows.
    eos_ids = [free[0][3], free[2][7]]
    answers, cut_off = decode(model, tokenizer, prompts, eos_ids, cap=24, penalty=penalty)
    expected = [reference(plain, tokenizer, ids, eos_ids, 24, penalty) for ids in prompts]
    assert answers == expected
    assert cut_off == [len(answer) == 24 for answer in answers]
    assert len({len(answer) for answer in answers}) > 1


def test_grouped_attention_equals_sdpa(directory, loaded):
    model, tokenizer = loaded
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    ids = torch.randint(3, 200, (2, 9))
    logits = []
    for network in (model, plain):
        with torch.inference_mode():
            first = network(ids[:, :8], attention_mask=mask[:, :8], use_cache=True)
            last = network(
                ids[:, 8:],
                attention_mask=mask,
                past_key_values=first.past_key_values,
                position_ids=torch.tensor([[4], [8]]),
            )
        logits.append(last.logits)
    assert torch.allclose(*logits, atol=1e-5)


def test_rows_that_pad_the_head_are_never_chosen(tmp_path):
    model, tokenizer = decoding.load_model(make_model(tmp_path), "float32")
    prompts = prompt_ids(tokenizer)
    free, _ = decode(model, tokenizer, prompts, eos_ids=[])
    with torch.no_grad():
        # The padding now answers everything louder than any token does.
        model.lm_head.weight[len(tokenizer) :] = 2 * model.lm_head.weight[free[0][0]]
    answers, _ = decode(model, tokenizer, prompts, eos_ids=[])
    assert answers == free
    assert max(max(answer) for answer in answers) < len(tokenizer)


def test_an_answer_may_be_empty(loaded):
    model, tokenizer = loaded
    prompts = prompt_ids(tokenizer)
    free, _ = decode(model, tokenizer, prompts, eos_ids=[], cap=2)
    first = sorted({answer[0] for answer in free})
    assert decode(model, tokenizer, prompts, eos_ids=first) == ([[]] * 5, [False] * 5)


def test_end_tokens_are_the_models_and_the_tokenizers(loaded):
    assert load.end_ids(loaded[0].name_or_path, loaded[1]) == {0, 2}


# --- through lm-eval ------------------------------------------------------------------------------


def test_samples_and_settings(loaded):
    model, tokenizer = loaded
    samples, settings = generation.generate(generation.GreedyLM(model, tokenizer, CONFIG, CHAT), DOCS)
    eos_ids = sorted(load.end_ids(model.name_or_path, tokenizer))
    answers, cut_off = decode(model, tokenizer, prompt_ids(tokenizer), eos_ids)
    for row, (doc, sample) in enumerate(zip(DOCS, samples, strict=True)):
        assert sample == {
            "key": doc["key"],
            "prompt": doc["prompt"],
            "rendered_prompt": f"<|im_start|>user\n{doc['prompt']}<|im_end|>\n<|im_start|>assistant\n",
            "response": tokenizer.decode(answers[row], skip_special_tokens=True),
            "n_tokens": len(answers[row]),
            "cut_off": cut_off[row],
        }
    assert settings["prompts_sha256"] == prompt_set_hash(DOCS)
    assert settings["vocabulary"] == len(tokenizer) < model.config.vocab_size
    assert (settings["task"], settings["task_version"]) == ("ifeval", 4.0)
    assert (settings["repetition_penalty"], settings["decoding"]) == (1.0, "greedy")
    assert (settings["dtype"], settings["device"], settings["cache"]) == ("float32", "cpu", "dynamic")
    assert (settings["batch_size"], settings["max_new_tokens"]) == (3, 12)

    lm = generation.GreedyLM(model, tokenizer, {**CONFIG, "batch_size": 2}, CHAT)
    again, _ = generation.generate(lm, DOCS[::-1])
    assert again[::-1] == samples


def test_too_long_a_prompt_is_refused(loaded):
    long = {**DOCS[1], "prompt": "story " * 300}
    with pytest.raises(UserError, match=r"prompt 2 has \d+ tokens; with max_new_tokens 12"):
        generation.generate(generation.GreedyLM(*loaded, CONFIG, CHAT), [DOCS[0], long])


def test_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no config.json"):
        decoding.load_model(tmp_path, "float32")


def test_script_twice_gives_equal_bytes_and_no_noise(directory, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps(asdict(CHAT)))
    files = []
    for run in ("first", "second"):
        output, settings = tmp_path / run / "samples.jsonl", tmp_path / run / "generation.json"
        done = subprocess.run(
            [
                *(sys.executable, SCRIPTS / "generate.py", "--config", json.dumps(CONFIG)),
                *("--model", directory, "--chat", chat, "--prompts", prompts),
                *("--output", output, "--settings", settings),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "it/s" not in done.stderr and "5 prompts answered" in done.stderr
        files.append((output.read_bytes(), settings.read_bytes()))
    assert files[0] == files[1]


# --- vLLM -----------------------------------------------------------------------------------------

VLLM = """
import importlib.metadata, types
import torch, transformers
from kdag.models import decoding

TokensPrompt = dict
asked = []


class SamplingParams(types.SimpleNamespace):
    pass


class LLM:
    def __init__(self, model, dtype, **settings):
        self.settings = settings
        self.loaded = decoding.load_model(model, dtype)
        self.llm_engine = types.SimpleNamespace(model_config=None)

    def generate(self, prompts, sampling):
        asked.append((prompts, sampling))
        model, tokenizer = self.loaded
        assert sampling.temperature == 0
        assert sampling.logit_bias == dict.fromkeys(range(len(tokenizer), model.config.vocab_size), -100.0)
        answers, cut_off = decoding.decode_greedily(
            model, [prompt["prompt_token_ids"] for prompt in prompts], vocabulary=len(tokenizer),
            eos_ids=sampling.stop_token_ids, max_new_tokens=sampling.max_tokens,
            repetition_penalty=sampling.repetition_penalty)
        return [
            types.SimpleNamespace(outputs=[types.SimpleNamespace(
                token_ids=ids + ([] if cut else sampling.stop_token_ids[:1]),
                finish_reason="length" if cut else "stop")])
            for ids, cut in zip(answers, cut_off)
        ]
"""


def test_both_backends_ask_the_same_prompts_and_tell_ends_alike(directory, loaded, tmp_path, monkeypatch):
    """A stand-in for the vllm package, which needs a GPU, below lm-eval's real backend."""
    files = {
        "vllm/__init__.py": VLLM,
        "vllm/lora/request.py": "LoRARequest = None",
        "vllm/lora/__init__.py": "",
        "vllm/renderers/__init__.py": "",
        "vllm/renderers/hf.py": "def resolve_chat_template(tokenizer, **_): return tokenizer.chat_template",
        "vllm/tokenizers.py": "import transformers\n"
        "def get_tokenizer(path, tokenizer_mode, trust_remote_code, revision):\n"
        "    return transformers.AutoTokenizer.from_pretrained(path)",
        "vllm-0.33.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    ours, our_settings = generation.generate(generation.GreedyLM(*loaded, CONFIG, CHAT), DOCS)
    lm = generation.language_model(directory, {**CONFIG, "backend": "vllm"}, CHAT)
    theirs, settings = generation.generate(lm, DOCS)
    assert theirs == ours
    assert settings["backend"] == "vllm 0.33.0" and lm.model.settings["generation_config"] == "vllm"
    same = our_settings.keys() - {"backend", "device", "attention", "cache"}
    assert {key: settings[key] for key in same} == {key: our_settings[key] for key in same}
