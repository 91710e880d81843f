"""Load models and tokenizers. Every model of a run is a plain directory that from_pretrained opens."""

import json
import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from kdag.files.manifest import verified_meanwhile
from kdag.job.errors import UserError, missing
from kdag.models import packed
from kdag.models.files import decoder_config

# The stages log their own progress; bars would fill a log file with carriage returns.
transformers_logging.set_verbosity_warning()
transformers_logging.disable_progress_bar()
transformers_logging.disable_default_handler()
transformers_logging.enable_propagation()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def require(directory: Path) -> None:
    """Say how a model directory that is not there is made, before transformers takes its path for a name."""
    if not Path(directory).is_dir():
        raise UserError(missing(directory))
    if not (Path(directory) / "config.json").is_file():
        raise UserError(f"{directory} is not a model directory: it has no config.json")


def load_tokenizer(directory: Path):
    require(directory)
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: no tokenizer can be loaded: {error}") from error


def load_model(
    directory: Path,
    dtype: str,
    *,
    to_device: bool = True,
    quantization=None,
    gpus=1,
    whole_rows: bool = False,
):
    """A causal language model in evaluation mode, its weights in `dtype`, whole or not at all.

    quantization: a transformers quantisation config for its linear layers; gpus: of this process, which share
    its layers if there are several; whole_rows: only for `head.hidden_states`, so that rows may be packed.
    """
    require(directory)
    spread = to_device and not quantization and gpus > 1 and torch.cuda.device_count() > 1
    if quantization:
        placed = {"quantization_config": quantization, "device_map": {"": device()}}
    else:
        placed = {"device_map": "auto"} if spread else {}
    with verified_meanwhile(directory):
        model = whole(directory, dtype, placed).eval()
        keep_end_tokens(model)
        model = model.to(device()) if to_device and not quantization and not spread else model
    # A pass outside of training would make bitsandbytes pack its weights for inference alone.
    if whole_rows and not quantization and device().type == "cpu" and packed.turn_on(model):
        logging.info("rows are packed: no padding")
    return model


def whole(directory: Path, dtype: str, placed: dict):
    """What from_pretrained makes of a directory; UserError unless every weight is in its files."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            **({"attn_implementation": "eager"} if caps_attention(directory) else {}),
            **placed,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: no model can be loaded: {error}") from error
    # A weight that is not in the files would be random or zero, and nobody would notice.
    if info["missing_keys"] or info["mismatched_keys"]:
        raise UserError(
            f"{directory}: weights are missing or of another shape: "
            f"{sorted(map(str, info['missing_keys']))[:5]} {sorted(map(str, info['mismatched_keys']))[:5]}"
        )
    return model


def caps_attention(directory: Path) -> bool:
    """Do its layers cap the scores of attention (Gemma 2)? transformers' sdpa leaves that out, unsaid."""
    return bool(decoder_config(directory).get("attn_logit_softcapping"))


def keep_end_tokens(model) -> None:
    """Drop settings of sampling that contradict each other: nothing samples, and they cannot be saved."""
    settings = model.generation_config
    try:
        if settings.pad_token_id is not None and settings.pad_token_id < 0:
            raise ValueError(f"pad_token_id is {settings.pad_token_id}")
        settings.validate(strict=True)
    except ValueError as error:
        logging.warning("generation_config.json is not valid and is kept only in part: %s", first_line(error))
        pad = settings.pad_token_id
        kept = {"bos_token_id": settings.bos_token_id, "eos_token_id": settings.eos_token_id}
        model.generation_config = GenerationConfig(**kept, pad_token_id=None if pad and pad < 0 else pad)


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def end_ids(directory: Path, tokenizer) -> set[int]:
    """The tokens that end an answer of a model by itself: the tokenizer's and the model's."""
    found = {tokenizer.eos_token_id}
    for name in ("config.json", "generation_config.json"):
        file = Path(directory) / name
        listed = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        found |= set(listed) if isinstance(listed, list) else {listed}
    return found - {None}
