"""A complete experiment small enough for tests: random Qwen2-shaped models, rows, prompts, a configuration.

The heads of teacher and student are padded to two different heights above the tokenizer's length, as
those of Qwen2.5-7B and 3B are. Run by hand: python tests/tiny.py FOLDER
"""

import json
import random
import sys
from dataclasses import asdict
from pathlib import Path

import yaml

WORDS = (
    "the a small red blue tree river stone bird song runs falls grows over under near bright quiet "
    "morning evening paper window answer question number seven three twelve list write short long "
    "name"
).split()
TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + "
    "'<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>system\\nYou are a tiny assistant.<|im_end|>\\n' }}"
    "{%- endif %}{%- for message in messages %}{%- if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Every instruction of the scorer would do; these are cheap and hit now and then by chance.
PROMPTS = [
    ("Write a short answer without any comma.", ["punctuation:no_comma"], [{}]),
    ("Answer in lower case, no capital letters.", ["change_case:english_lowercase"], [{}]),
    (
        "Write at least three words and no comma.",
        ["length_constraints:number_words", "punctuation:no_comma"],
        [{"relation": "at least", "num_words": 3}, {}],
    ),
    (
        "Answer in fewer than 9 sentences.",
        ["length_constraints:number_sentences"],
        [{"relation": "less than", "num_sentences": 9}],
    ),
]


def sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(words)).capitalize() + "."


def rows(count: int, seed: int = 0) -> list[dict]:
    generator = random.Random(seed)
    return [
        {
            "instruction": f"Question {number}: {sentence(generator, 4)}",
            "input": sentence(generator, 3) if number % 3 == 0 else "",
            "output": sentence(generator, generator.randint(3, 14)),
        }
        for number in range(count)
    ]


def tokenizer(corpus: list[str], vocabulary: int = 400):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(corpus, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def other_tokenizer(corpus: list[str], kind: str = "bpe", vocabulary: int = 500, normalizer=None):
    """A tokenizer as SentencePiece makes them, another kind than `tokenizer`: blanks are U+2581, one of them
    before the first word, and what no piece has is said in bytes, <0xE2>. kind: bpe or unigram.

    normalizer: of `tokenizers`, before the blanks are written.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    size = {"vocab_size": vocabulary - len(in_bytes), "special_tokens": special, "show_progress": False}
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    learned = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    learned.normalizer = normalizers.Sequence(steps)
    if kind == "bpe":
        # Words begin with a blank, as SentencePiece cuts them.
        from tokenizers import pre_tokenizers

        learned.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
        learned.train_from_iterator(corpus, trainers.BpeTrainer(**size))
        state = json.loads(learned.to_str())["model"]
        pieces = sorted(state["vocab"], key=state["vocab"].get)[len(special) :]
        vocab = {piece: number for number, piece in enumerate([*special, *in_bytes, *pieces])}
        merges = [tuple(pair) for pair in state["merges"]]
        made = models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    else:
        learned.train_from_iterator(corpus, trainers.UnigramTrainer(unk_token="<unk>", **size))
        scored = json.loads(learned.to_str())["model"]["vocab"][len(special) :]
        lowest = min(score for _, score in scored) - 10
        vocab = [(piece, 0.0) for piece in special] + [(piece, lowest) for piece in in_bytes]
        made = models.Unigram([*vocab, *map(tuple, scored)], unk_id=0, byte_fallback=True)
    whole = Tokenizer(made)
    whole.normalizer = normalizers.Sequence([*([normalizer] if normalizer else []), *steps])
    whole.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    wrapped.chat_template = TEMPLATE.replace("<|im_end|>", "</s>").replace("<|im_start|>", "<s>")
    return wrapped


def model(vocabulary: int, *, hidden: int, layers: int, tied: bool, seed: int, family: str = "Qwen2"):
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return getattr(transformers, f"{family}ForCausalLM")(config)


def save_models(folder: Path) -> None:
    """teacher/ and student/ below `folder`: one tokenizer, heads of 24 and 8 rows too many."""
    corpus = [text for row in rows(200, seed=1) for text in row.values()]
    shared = tokenizer(corpus)
    shapes = {
        "teacher": {"extra": 24, "hidden": 64, "layers": 4, "tied": False, "seed": 1},
        "student": {"extra": 8, "hidden": 32, "layers": 2, "tied": True, "seed": 2},
    }
    for name, shape in shapes.items():
        extra = shape.pop("extra")
        model(len(shared) + extra, **shape).save_pretrained(folder / name)
        shared.save_pretrained(folder / name)


def save_models_of_two_tokenizers(folder: Path, kind: str = "bpe") -> None:
    """teacher/ and student/ below `folder` as of `save_models`, but the teacher has another tokenizer.

    It is a Llama: of a Qwen2 transformers reads the tokenizer as byte-level, whatever its files say.
    """
    corpus = [text for row in rows(200, seed=1) for text in row.values()]
    pair = {"teacher": other_tokenizer(corpus, kind), "student": tokenizer(corpus)}
    shapes = {
        "teacher": {"hidden": 64, "layers": 4, "tied": False, "seed": 1, "family": "Llama"},
        "student": {"hidden": 32, "layers": 2, "tied": True, "seed": 2},
    }
    for name, shape in shapes.items():
        model(len(pair[name]), **shape).save_pretrained(folder / name)
        pair[name].save_pretrained(folder / name)


def configuration(folder: Path) -> dict:
    """The tiny experiment: float32 throughout, so that two runs give the same bytes."""
    short = {"learning_rate": 1e-3, "dtype": "float32", "gradient_checkpointing": False, "lora_rank": 4}
    return {
        "experiment": "tiny",
        "data": {
            "source": "path",
            "path": str(folder / "rows.jsonl"),
            "train_rows": 24,
            "heldout_rows": 8,
            "max_tokens": 256,
        },
        "teacher": {"source": "path", "path": str(folder / "teacher")},
        "teacher_training": {**short, "batch_size": 4, "gradient_accumulation": 2},
        "teacher_cache": {"dtype": "float32", "rows_per_shard": 10},
        "student": {"source": "path", "path": str(folder / "student")},
        "distillation": {**short, "epochs": 1, "batch_size": 2, "gradient_accumulation": 4},
        "strategies": {
            "fkl": {"divergence": "fkl"},
            "rkl": {"divergence": "rkl"},
            "skewed-fkl": {"divergence": "skewed-fkl", "skew_lambda": 0.1},
            "skewed-rkl": {"divergence": "skewed-rkl", "skew_lambda": 0.1},
        },
        "evaluation": {
            "prompts": {"source": "path", "path": str(folder / "prompts.jsonl")},
            "max_new_tokens": 12,
            "batch_size": 4,
            "dtype": "float32",
        },
    }


def prompts() -> list[dict]:
    return [
        {"key": key, "prompt": text, "instruction_id_list": ids, "kwargs": kwargs}
        for key, (text, ids, kwargs) in enumerate(PROMPTS)
    ]


def chat_of(tokenizer):
    """The chat of a pair with this tokenizer, nothing being configured."""
    from kdag.config.chat import Chat
    from kdag.data import chat

    return chat.settle(Chat(), tokenizer, tokenizer, {tokenizer.eos_token_id})


def chat_file(model: Path, folder: Path) -> Path:
    """chat.json of a model directory, as the stage `settle_chat` writes it."""
    from kdag.models import load

    (folder / "chat.json").write_text(json.dumps(asdict(chat_of(load.load_tokenizer(model)))))
    return folder / "chat.json"


def encoded(rows: list[dict], tokenizer, folder: Path, **settings) -> dict:
    """Write train.parquet and heldout.parquet as the stage `subset` does; returns its report."""
    from kdag.config.sources import Data
    from kdag.data import rows as data

    files = {part: folder / f"{part}.parquet" for part in ("train", "heldout")}
    settings = {"max_tokens": 200, **settings}
    return data.write_subset(rows, tokenizer, chat_of(tokenizer), Data(id="some/rows", **settings), files)


def write_jsonl(path: Path, values) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def write_experiment(folder: Path) -> Path:
    """Models, data, prompts and config.yaml in `folder`; returns the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    save_models(folder)
    write_jsonl(folder / "rows.jsonl", rows(40))
    write_jsonl(folder / "prompts.jsonl", prompts())
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(configuration(folder), sort_keys=False))
    return config


if __name__ == "__main__":
    print(write_experiment(Path(sys.argv[1])))
