"""transformers or Unsloth: which one trains, and the few lines in which they differ.

Unsloth patches transformers and peft, so `start` comes before either is imported, in a process that does
nothing else. It patches the classes of a family and not one model: in its process another model of the family
computes nothing any more.
"""

import atexit
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

from packaging.version import Version

from kdag.files.manifest import verified_meanwhile
from kdag.job import launching
from kdag.job.errors import UserError

# 2026.6.1 and older give their decoder no causal mask when it is called by itself, as it is here.
OLDEST_UNSLOTH = "2026.10.7"
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def start(wanted: str, tuning: str = "lora", live: bool = False) -> str:
    """The backend of this process, imported if it is Unsloth; a log line says why it is not.

    live: a teacher computes in the same process.
    """
    if wanted == "transformers":
        return wanted
    if reason := why_not_unsloth(tuning, live):
        level = logging.WARNING if wanted == "unsloth" else logging.INFO
        logging.log(level, "backend: transformers, since %s", reason)
        return "transformers"
    if "UNSLOTH_COMPILE_LOCATION" not in os.environ:
        folder = os.environ["UNSLOTH_COMPILE_LOCATION"] = tempfile.mkdtemp(prefix="unsloth-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    import unsloth

    logging.info("backend: unsloth %s", getattr(unsloth, "__version__", ""))
    return "unsloth"


def why_not_unsloth(tuning: str, live: bool = False) -> str | None:
    import torch

    if importlib.util.find_spec("unsloth") is None:
        return "the package unsloth is not installed (envs/requirements-unsloth.txt)"
    if Version(found := importlib.metadata.version("unsloth")) < Version(OLDEST_UNSLOTH):
        return f"unsloth {found} trains without a causal mask here; {OLDEST_UNSLOTH} or newer does not"
    if tuning == "full":
        return "tuning: full trains every weight in float32, and unsloth keeps some in another dtype"
    if live:
        return "the teacher is online, and unsloth patches its classes together with the student's"
    if not torch.cuda.is_available():
        return "unsloth needs a GPU and none is visible"
    if launching.processes() > 1:
        return "the job runs in several processes"
    return None


def load(directory: Path, settings, backend: str, longest: int, *, to_device: bool = True):
    """A model to be trained. longest: the most tokens a row has, which Unsloth sets up for."""
    from kdag.models import load

    if settings.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("load_in_4bit needs the package bitsandbytes (envs/requirements-unsloth.txt)")
    if backend == "transformers":
        quantization = four_bit(settings)
        model = load.load_model(
            directory, settings.dtype, to_device=to_device, quantization=quantization, whole_rows=True
        )
        # On a CPU bitsandbytes packs its weights for inference alone at the first pass outside training.
        return model.train() if settings.load_in_4bit else model
    import torch
    from transformers import GenerationConfig
    from unsloth import FastLanguageModel

    load.require(directory)
    with verified_meanwhile(directory):
        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(directory),
            max_seq_length=longest,
            dtype=getattr(torch, settings.dtype),
            load_in_4bit=settings.load_in_4bit,
            full_finetuning=False,
            use_exact_model_name=True,
            use_gradient_checkpointing=bool(settings.gradient_checkpointing),
        )
    if (directory / "generation_config.json").is_file():  # Unsloth sets a length, which would be saved
        model.generation_config = GenerationConfig.from_pretrained(directory)
        load.keep_end_tokens(model)
    return model


def four_bit(settings):
    """QLoRA's storage (Dettmers et al. 2023, arXiv:2305.14314): NF4, its constants quantised as well."""
    if not settings.load_in_4bit:
        return None
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
    )


def with_adapters(model, settings, backend: str):
    """The model under LoRA adapters. UserError where a layer that is named is not there."""
    targets = settings.lora_target_modules
    shape = {
        "r": settings.lora_rank,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
    }
    if backend == "unsloth":
        from unsloth import FastLanguageModel

        return FastLanguageModel.get_peft_model(
            model,
            **shape,
            target_modules=LINEAR_LAYERS if targets == "all-linear" else list(targets),
            use_gradient_checkpointing=bool(settings.gradient_checkpointing),
            random_state=settings.seed,
        )
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    names = targets if isinstance(targets, str) else list(targets)
    try:
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=names, **shape))
    except ValueError as error:
        raise UserError(f"lora_target_modules: {error}") from error
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            # Under autocast PEFT would turn what comes in into float32, and autocast at once back.
            module.cast_input_dtype_enabled = False
    return adapted


def optimizer(settings) -> str:
    """The Trainer's name for settings.optimizer."""
    if settings.optimizer == "adamw_8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "optimizer: adamw_8bit needs the package bitsandbytes (envs/requirements-unsloth.txt)"
            )
        return "adamw_bnb_8bit"
    return "adamw_torch"
