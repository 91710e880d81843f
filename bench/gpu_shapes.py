"""What bench/gpu.py works on: the default experiment's shapes and lengths, random models, settings.

Lengths are constants, so that two machines measure the same. They were measured on 2026-11-24 with
Qwen2.5's pretokenizer over the vocabulary of cl100k_base, which Qwen2.5's extends; its chat template with
the default system prompt adds 29 tokens, the end token 1.
"""

from types import SimpleNamespace

import common

SHAPES = {
    "qwen2.5": {
        "teacher": {  # Qwen2.5-7B-Instruct
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        "student": {  # Qwen2.5-3B-Instruct
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "vocabulary": 151665,  # tokens of the tokenizer; the heads are cut to it
        "shorter": 1,
    },
    "tiny": {
        "teacher": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "vocab_size": 544,
            "tie_word_embeddings": False,
        },
        "student": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 528,
            "tie_word_embeddings": True,
        },
        "vocabulary": 500,
        "shorter": 10,  # lengths are divided by this
    },
}

# (prompt, answer) of 999 Alpaca rows (LLaMA-Factory's alpaca_en_demo.json @ff6d4d1): the middles of 64
# equal parts of the rows sorted by length. All rows: prompts 47.4 tokens in the mean, answers 146.0.
ROWS = (
    *((34, 14), (46, 4), (42, 11), (45, 9), (47, 8), (35, 23), (39, 21), (42, 19), (47, 15), (40, 24)),
    *((49, 16), (56, 10), (50, 19), (38, 33), (43, 30), (63, 11), (40, 37), (41, 38), (71, 10), (52, 31)),
    *((46, 43), (60, 33), (60, 41), (51, 56), (44, 67), (66, 51), (39, 83), (49, 79), (107, 27), (55, 86)),
    *((44, 104), (41, 112), (42, 118), (40, 126), (37, 135), (42, 136), (40, 144), (39, 153), (36, 166)),
    *((39, 169), (42, 175), (53, 172), (37, 198), (40, 205), (49, 206), (41, 226), (39, 242), (43, 244)),
    *((49, 248), (37, 269), (44, 274), (36, 290), (38, 299), (36, 311), (44, 308), (34, 331), (39, 342)),
    *((43, 346), (35, 365), (41, 372), (38, 390), (39, 409), (52, 437), (45, 501)),
)
# The 541 prompts of IFEval, rendered: the middles of 16 equal parts.
PROMPTS = (50, 53, 57, 60, 63, 65, 67, 69, 72, 76, 78, 82, 88, 94, 103, 118)
# {rows per batch: decoding steps of one model over all of IFEval}: batches by prompt length, each as long as
# its longest answer, at most 1,280. Answers of Qwen2.5-7B- and 3B-Instruct (GPTQ int4; M-IFEval @06f08ff):
# 288 and 357 tokens in the mean; 14 and 61 of the 541 reach the cap. With 256 all three batches have one that
# does (of the teacher's last 29 rows that is not certain: 3,773 at least).
IFEVAL_STEPS = {
    "teacher": {16: 33287, 64: 11453, 256: 3840},
    "student": {16: 41946, 64: 11520, 256: 3840},
}


def config() -> dict:
    """config.yaml, which holds every key with its default; numbers as numbers.

    Read without kdag.config, since a GPU machine may lack pydantic.
    """
    import yaml

    return number(yaml.safe_load((common.ROOT / "config.yaml").read_text()))


def number(value):
    """YAML 1.1 reads 1e-4 as a string."""
    if isinstance(value, dict):
        return {key: number(inner) for key, inner in value.items()}
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def settings(section: str, **changes) -> SimpleNamespace:
    """A section of config.yaml as the stages see it on such a GPU, for one epoch of the rows at hand."""
    values = config()[section]
    if "dtype" in values:
        values |= {"dtype": "bfloat16"}
    if "epochs" in values:
        values |= {"epochs": 1}
    return SimpleNamespace(**{"seed": 0} | values | changes)


def objective():
    """Of the default experiment's first strategy."""
    from kdag.losses.divergences import load
    from kdag.training.train import Objective

    values, strategy = config()["distillation"], next(iter(config()["strategies"].values()))
    return Objective(
        divergence=load(strategy["divergence"]),
        divergence_params={k: v for k, v in strategy.items() if k != "divergence"},
        kl_weight=values["kl_loss_weight"],
        temperature=values["temperature"],
        temperature_squared=values["temperature_squared"],
        use_ce=values["use_ce_loss"],
    )


def lengths(shapes: dict, count: int) -> list[tuple[int, int]]:
    """(prompt, answer) of `count` rows, spread evenly over ROWS."""
    stride = 37  # coprime to 64: any few rows in sequence are of many lengths
    chosen = [ROWS[i * stride % len(ROWS)] for i in range(count)]
    return [tuple(max(2, tokens // shapes["shorter"]) for tokens in row) for row in chosen]


def rows(shapes: dict, count: int):
    """Rows as kdag.data.rows.read_rows gives them, of random tokens."""
    import numpy as np

    from kdag.data.rows import EncodedRows

    random = np.random.default_rng(0)
    ids, masks = [], []
    for prompt, answer in lengths(shapes, count):
        ids.append(random.integers(3, shapes["vocabulary"], prompt + answer).astype(np.int32))
        masks.append(np.repeat(np.array([0, 1], dtype=np.int8), [prompt, answer]))
    return EncodedRows.of(ids, masks)


def tokens(frame) -> int:
    return sum(map(len, frame["input_ids"]))


def answer_tokens(frame) -> int:
    return sum(int(mask.sum()) for mask in frame["response_mask"])


def model(shape: dict, attention: str = "sdpa"):
    """A Qwen2 of random bf16 weights, made where it is to be."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from kdag.models.load import device

    made = Qwen2Config(
        **shape,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device()):
        return AutoModelForCausalLM.from_config(
            made, dtype=torch.bfloat16, attn_implementation=attention
        ).eval()


def layer_weights(shape: dict) -> int:
    """Weights of the linear layers of all transformer layers."""
    d, kv = shape["hidden_size"], shape["num_key_value_heads"]
    kv_width = kv * d // shape["num_attention_heads"]
    return shape["num_hidden_layers"] * (2 * d * (d + kv_width) + 3 * d * shape["intermediate_size"])


def all_weights(shape: dict) -> int:
    heads = 1 if shape["tie_word_embeddings"] else 2
    return layer_weights(shape) + heads * shape["vocab_size"] * shape["hidden_size"]
