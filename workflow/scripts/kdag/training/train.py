"""Fine-tuning and distilling are one training: prepare the model, train it, save it merged.

Training goes on from its own last whole checkpoint after a kill.
"""

import logging
import math
import os
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from peft import PeftModel
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from kdag.config.kinds import STUDENT
from kdag.config.schedules import is_schedule
from kdag.job import launching
from kdag.job.errors import UserError
from kdag.models import head, load, save
from kdag.models.weights import weights_of
from kdag.training import backends, processes, sharding
from kdag.training.batches import Mixture, Rows, collate
from kdag.training.budget import KeepWithin
from kdag.training.checkpoints import Follow, last_checkpoint
from kdag.training.memory import checkpoints, tokens_per_pass
from kdag.training.schedule import Objective
from kdag.training.trainer import Arguments, DistillTrainer, ShardedTrainer

# Of each step, in training.jsonl, next to what moves by a schedule and what is measured of sampled answers.
LOGGED = (
    "step",
    "epoch",
    "loss",
    "ce",
    "divergence",
    "answer_tokens",
    "learning_rate",
    "grad_norm",
    "parts",
    "tokens_per_pass",
)
# Of each step, for what the training cost: rows and all of their tokens, prompts too; tokens of the prompts
# that the student answered for it.
COUNTED = ("rows", "tokens", "asked_tokens")
# transformers' names of the schedules; its own "constant" knows no warm-up.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
# Processes that read the cache ahead; on a CPU they would take a core from the step.
READERS = {"cuda": 1, "cpu": 0}


def prepare(model, settings, backend):
    """Make trainable what is to be trained: adapters or every weight, always in float32."""
    model.config.use_cache = False
    again = checkpoints(settings, load.device().type == "cpu", launching.processes())
    if again and backend == "transformers":  # Unsloth has its own
        compute_again(model)
    return model.float() if settings.tuning == "full" else backends.with_adapters(model, settings, backend)


def compute_again(model) -> None:
    """Keep no activations within layers: the backward pass computes them again."""
    base = head.base_model(model)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()


def train(
    model,
    frame,
    *,
    settings,
    objective: Objective,
    teacher,
    vocabulary: int,
    work: Path,
    backend: str = "transformers",
    shard: bool = False,
    tensorboard: Path | None = None,
    mixture: Mixture | None = None,
    rollouts=None,
    heldout=None,
    allowed=None,
):
    """Train `model` on the rows of `frame`. settings: a config.Training with a seed.

    teacher: the TeacherCache of these rows, a LiveTeacher, or None without a divergence. work: the folder
    of the checkpoints. shard: share the model out among the processes (sharding.py). tensorboard: the folder
    of its curves, if they are wanted. mixture: the rows, if there are several kinds of answers to draw from;
    frame is then the first kind. rollouts: for those that the student gives itself, what makes a Rollouts of
    (model, mixture, work, rows of a batch). heldout: rows that none is trained on, by which
    an adaptive share of those grows. allowed: what makes a Budget of the model's weights; None: all epochs.
    Returns the trained model (PEFT-wrapped for LoRA) and the log, an entry per step.
    """
    set_seed(settings.seed)
    head.check_head(model, vocabulary)
    model = prepare(model, settings, backend)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logging.info(
        "%d rows, %d answer tokens, %.2f M of %.1f M weights trained",
        len(frame),
        frame.answer_tokens,
        trainable / 1e6,
        sum(p.numel() for p in model.parameters()) / 1e6,
    )
    if tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(tensorboard)  # where transformers looks for it
    budget = allowed and allowed(weights=weights_of(model))
    passes = launching.passes_per_process(settings.gradient_accumulation, launching.processes())
    tokens = tokens_per_pass(settings, on_cpu=load.device().type == "cpu")
    # Cut by tokens, a batch is all that a process has of a step.
    together = (settings.batch_size * passes, 1) if tokens else (settings.batch_size, passes)
    arguments = Arguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        max_steps=budget.longest() if budget else -1,
        per_device_train_batch_size=together[0],
        gradient_accumulation_steps=together[1],
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        optim=backends.optimizer(settings),
        fp16=settings.dtype == "float16" and load.device().type == "cuda",  # scaled, or it underflows
        use_cpu=load.device().type == "cpu",
        ddp_backend=processes.backend(),
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="tensorboard" if tensorboard else "none",
        disable_tqdm=True,
        dataloader_pin_memory=load.device().type == "cuda",
        dataloader_num_workers=READERS[load.device().type],
    )
    share = (getattr(settings, "answers", None) or {}).get(STUDENT)
    if shard:
        sharding.shard(model)
    off = backend == "transformers" and not head.base_model(model).is_gradient_checkpointing
    may = settings.gradient_checkpointing == "auto" and off
    trainer = (ShardedTrainer if shard else DistillTrainer)(
        model=model,
        args=arguments,
        train_dataset=mixture or Rows(frame, teacher),
        data_collator=collate,
        objective=objective,
        teacher=teacher,
        vocabulary=vocabulary,
        dtype=settings.dtype,
        tokens_per_pass=tokens,
        save_memory=partial(compute_again, model) if may else None,
        rollouts=rollouts and rollouts(model, mixture, work, together[0]),
        share=share if is_schedule(share) else None,
        heldout=Rows(heldout, None) if heldout is not None else None,
        budget=budget,
        callbacks=[*([KeepWithin(budget, expected(settings, len(frame)))] if budget else []), Follow()],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = processes.agreed(last_checkpoint(work) if launching.rank() == 0 else None)
    if checkpoint:
        logging.info("going on from %s", checkpoint)
    torch.manual_seed(settings.seed + launching.rank())  # the same dropout on other rows would be no sample
    try:
        with head.forward_replaced(model, trainer.losses):
            trainer.train(resume_from_checkpoint=checkpoint)
    except UnpicklingError as error:
        why = "a file in it holds more than tensors and is not read, since a pickle can run code"
        raise UserError(f"{checkpoint}: {why}. Delete it and run again") from error
    keys = [*LOGGED, *COUNTED, *trainer.measured]
    log = [
        {key: entry[key] for key in keys if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return model, log


def expected(settings, rows: int) -> int:
    """Steps that a training with a budget may have, if its answers are as long as the data set's."""
    return math.ceil(
        settings.budget["epochs"] * rows / (settings.batch_size * settings.gradient_accumulation)
    )


def save_trained(model, tokenizer, folder: Path, dtype: str, base: Path | None = None, end_ids=()):
    """Write the merged model in `dtype` to `folder`, and for LoRA the adapter to `folder`/adapter.

    Returns the merged model.

    base: where the untrained weights lie, if the model holds them in four bits: they are merged as they are.
    end_ids: what ends its answers, which whoever opens the folder needs to know.
    """
    adapter = folder / "adapter"
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():  # a set, which each process would write in another order
            config.target_modules = sorted(config.target_modules)
        model.save_pretrained(adapter)
        (adapter / "README.md").unlink(missing_ok=True)  # PEFT's form, not filled in
        if base is not None:
            model = PeftModel.from_pretrained(load.load_model(base, dtype, to_device=False), adapter)
        model = model.merge_and_unload()
    model = model.to(getattr(torch, dtype))
    model.config.use_cache = True
    own = model.generation_config.eos_token_id
    if end_ids and set(end_ids) != set(own if isinstance(own, list) else [own]):
        model.generation_config.eos_token_id = list(end_ids)
    save.save(model, tokenizer, folder)
    return model
