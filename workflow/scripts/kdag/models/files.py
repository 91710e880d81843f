"""What a model directory must hold before anything is trained on it: no torch, no weights in memory.

Refused here, where it costs a second: weights as pickles, weights cut short, a shard or the tokenizer left
behind, a file that is no JSON, a model that asks for code of its own.
"""

import json
from pathlib import Path

from kdag.job.errors import UserError

WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*")
# A second copy of the weights in another layout, and adapters left next to what they were merged into.
UNWANTED = ("consolidated*", "adapter_*", "original/*")
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
# What AutoTokenizer builds a tokenizer from; without any of them it returns an empty one.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def wanted(directory: Path) -> list[Path]:
    """The files of a model directory that a run reads: of its weights those alone that are the model."""
    directory = Path(directory)
    found = {f for f in directory.iterdir() if any(f.match(pattern) for pattern in WANTED)}
    found -= {f for f in found if any(f.match(pattern) for pattern in UNWANTED)}
    weights = {directory / name for name in weight_files(directory)}
    return sorted(f for f in found if f.suffix != ".safetensors" or f in weights)


def weight_files(directory: Path) -> list[str]:
    """The names of the files that are a model's weights: one, or those that its index lists."""
    directory = Path(directory)
    if (directory / WHOLE).is_file():
        return [WHOLE]
    if (directory / INDEX).is_file():
        return sorted(set(read_object(directory / INDEX).get("weight_map", {}).values()))
    return []


def stored_dtype(directory: Path) -> str:
    """The dtype of a model's weights, by either name that config.json has for it."""
    config = read_object(Path(directory) / "config.json")
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def decoder_config(directory: Path) -> dict:
    """What config.json says of the part that reads and writes text."""
    config = read_object(Path(directory) / "config.json")
    return config.get("text_config") or config


def positions_of(directory: Path) -> int | None:
    """How many a model has for the tokens of a row; None if it has no bound."""
    config = decoder_config(directory)
    found = [config.get(key) for key in ("max_position_embeddings", "n_positions", "max_seq_len")]
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), None)


def check(directory: Path) -> None:
    """UserError with the file and what is wrong with it."""
    directory = Path(directory)
    check_kind(directory, bool(weight_files(directory)))
    check_weights(directory)
    check_tokenizer(directory)


def check_kind(directory: Path, has_weights: bool) -> None:
    """What the JSON files alone say; a hub's are there before its weights are."""
    if (directory / "adapter_config.json").is_file() and not has_weights:
        base = read_object(directory / "adapter_config.json").get("base_model_name_or_path")
        raise UserError(
            f"{directory}: an adapter without the model that it adapts ({base}); merge it first, with peft: "
            "AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(...)"
        )
    config = read_object(directory / "config.json")
    if stored := config.get("quantization_config"):
        method = stored.get("quant_method", "quantised") if isinstance(stored, dict) else "quantised"
        raise UserError(
            f"{directory}: its weights are stored quantised ({method}) and take no adapter in; "
            "take the model's full weights, and load_in_4bit: true to train on four bits of them"
        )
    for file in sorted(directory.glob("*.json")):
        read_object(file)
    if "auto_map" in config:
        check_known(directory, config.get("model_type"))


def read_object(file: Path) -> dict:
    if not file.is_file():
        raise UserError(f"{file.parent}: no model directory: {file.name} is missing")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, dict | list):
        raise UserError(f"{file}: a JSON object is needed, got {type(value).__name__}")
    return value


def check_weights(directory: Path) -> None:
    """Every shard is there and as long as its own header says."""
    from safetensors import SafetensorError, safe_open

    files = weight_files(directory)
    if not files:
        pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
        why = f"; {pickles[0]} is a pickle, which can run code and is not read" if pickles else ""
        raise UserError(f"{directory}: no model directory: no weights as *.safetensors{why}")
    if missing := [name for name in files if not (directory / name).is_file()]:
        raise UserError(f"{directory}: {INDEX} lists {missing[0]}, which is not there")
    for name in files:
        try:
            with safe_open(directory / name, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{directory / name}: no whole safetensors file: {error}") from error


def check_tokenizer(directory: Path) -> None:
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{directory}: no tokenizer: one of {', '.join(TOKENIZERS)} is needed")
    if (directory / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the type that the library raises
            reason = str(error).split("\n")[0]
            raise UserError(f"{directory / 'tokenizer.json'}: no tokenizer: {reason}") from error
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        check_fits(directory, size, tokenizer.id_to_token(size - 1))


def check_fits(directory: Path, size: int, last: str) -> None:
    """A tokenizer that is longer than the head has tokens that the model can neither read nor say."""
    rows = decoder_config(directory).get("vocab_size")
    if isinstance(rows, int) and size > rows:
        raise UserError(
            f"{directory}: the tokenizer has {size} tokens and its model only {rows} (the last one is "
            f"{last!r}): remove the further ones from tokenizer.json, or give the model rows for them "
            "(resize_token_embeddings)"
        )


def check_known(directory: Path, model_type: str | None) -> None:
    """A model with code of its own, unless transformers knows its kind: then that code is not asked for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"{directory}: the model asks for code of its own (auto_map in config.json), which is never run; "
            f"transformers knows no model_type {model_type!r}"
        )
