"""Load, derive and save models. Every model of a run is a plain directory that from_pretrained opens."""

import contextlib
import functools
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from kdag import gpu_lease
from kdag.errors import UserError, missing
from kdag.manifest import verify_beside

# The stages log their own progress; bars would fill a log file with carriage returns.
transformers_logging.set_verbosity_warning()
transformers_logging.disable_progress_bar()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def require(directory: Path) -> None:
    """Say how a model directory that is not there is made, before transformers takes its path for a name."""
    if not Path(directory).is_dir():
        raise UserError(missing(directory))
    if not (Path(directory) / "config.json").is_file():
        raise UserError(f"{directory} is no model directory: it has no config.json")


def load_tokenizer(directory: Path):
    require(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: no tokenizer can be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise UserError(f"{directory}: the tokenizer has no chat template; take an instruct model")
    return tokenizer


def load_model(directory: Path, dtype: str, *, to_device: bool = True, quantization=None, attention=None):
    """A causal language model in evaluation mode, its weights in `dtype`, whole or not at all.

    quantization: a transformers quantisation config for its linear layers; attention: the name of an
    implementation that is registered, else transformers' choice.
    """
    require(directory)
    verify_beside(directory)
    spread = to_device and not quantization and gpu_lease.spread()
    if quantization:
        placed = {"quantization_config": quantization, "device_map": {"": device()}}
    else:
        placed = {"device_map": "auto"} if spread else {}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            **({"attn_implementation": attention} if attention else {}),
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
    return model.eval().to(device()) if to_device and not quantization and not spread else model.eval()


def end_ids(directory: Path, tokenizer) -> set[int]:
    """The tokens that end an answer: the tokenizer's and those of the generation config."""
    file = Path(directory) / "generation_config.json"
    listed = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    return {*listed, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}


def base_model(model):
    """The transformers model under a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def hidden_states(model, input_ids, attention_mask) -> torch.Tensor:
    """Hidden states after the final norm, [B, L, d], beside the head that takes them. No logits are made."""
    base = base_model(model)
    out = base.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return out.last_hidden_state.to(base.get_output_embeddings().weight.device)


@contextlib.contextmanager
def forward_replaced(model, forward):
    """While this is open, model(...) is forward(...).

    DistributedDataParallel prepares a backward pass in its own forward, so whatever it is to see, the
    loss from hidden states included, has to be what calling the model does.
    """
    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def head_weight(model, vocabulary: int) -> torch.Tensor:
    """The head cut to the tokenizer's length, [V, d]; rows above it belong to no token."""
    weight = base_model(model).get_output_embeddings().weight
    if weight.shape[0] < vocabulary:
        raise UserError(f"the model's head has {weight.shape[0]} rows for a tokenizer of {vocabulary} tokens")
    return weight[:vocabulary]


def check_head(model, vocabulary: int) -> None:
    """Assert that head(hidden) is the model's own logits, so that nothing stands between the two.

    A soft-capped, scaled or quantised head fails here, before any training.
    """
    head = base_model(model).get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or not head.weight.is_floating_point():
        raise UserError(f"the model's head is a {type(head).__name__}; a plain linear layer is needed")
    ids = torch.arange(min(8, vocabulary), device=head.weight.device)[None]
    with torch.no_grad():
        hidden = hidden_states(model, ids, torch.ones_like(ids))
        rebuilt = hidden @ head_weight(model, vocabulary).T
        own = base_model(model)(input_ids=ids, use_cache=False).logits[..., :vocabulary]
    tolerance = 0.05 if rebuilt.dtype != torch.float32 else 1e-3
    if not torch.allclose(rebuilt.float(), own.float(), rtol=tolerance, atol=tolerance):
        raise UserError(
            "the model's logits are not its head applied to its last hidden states (a soft cap or a scale "
            f"on the logits?): they differ by up to {(rebuilt - own).abs().max():.3g}"
        )


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


def keep_layers(model, count: int) -> None:
    """Keep `count` evenly spaced transformer layers, the first and the last among them. In place."""
    layers = model.base_model.layers
    total = len(layers)
    if not 2 <= count <= total:
        raise UserError(f"student.derive.keep_layers is {count}; the teacher has {total} layers")
    kept = [round(i * (total - 1) / (count - 1)) for i in range(count)]
    model.base_model.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for position, layer in enumerate(model.base_model.layers):
        layer.self_attn.layer_idx = position
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]


def save(model, tokenizer, target: Path) -> None:
    """A directory that transformers, vLLM and lm-eval open with one line."""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
