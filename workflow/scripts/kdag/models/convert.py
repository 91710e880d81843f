"""A GGUF file turned into a model directory."""

import contextlib
import functools
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kdag.job.errors import UserError
from kdag.models.save import save


@contextlib.contextmanager
def read_once():
    """transformers reads a GGUF file four times on its way to a model and a tokenizer, seconds each."""
    import gguf

    reader, gguf.GGUFReader = gguf.GGUFReader, functools.cache(gguf.GGUFReader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def from_gguf(file: Path, target: Path, dtype: str = "bfloat16") -> None:
    """Turn a GGUF file into a safetensors model directory, dequantised."""
    with open(file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file")
    with read_once():
        quantised = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    values = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=getattr(torch, dtype))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    # GGUF's tokenizer metadata may name another end token than the model stops at.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    save(model, tokenizer, target)
