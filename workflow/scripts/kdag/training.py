"""One Trainer for fine-tuning and distilling: the loss of distill_loss.py over the answer's tokens.

Loss and gradient are means over the answer tokens of the whole effective batch, however it is split.
Training goes on from its own last whole checkpoint after a kill.
"""

import logging
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from kdag import backends, models, parallel, sharded
from kdag.batches import EpochSampler, Rows, collate, split
from kdag.cli import clock
from kdag.data import answer_tokens
from kdag.distill_loss import distill_loss
from kdag.errors import UserError
from kdag.manifest import hash_files, read_json, write_json
from kdag.teacher_cache import OnlineTeacher, TeacherCache
from kdag.teacher_storage import SCHEMES

SECONDS_BETWEEN_CHECKPOINTS = 120
# Processes that read the cache ahead; on a CPU they would take a core from the step.
READERS = {"cuda": 1, "cpu": 0}


@dataclass(frozen=True)
class Objective:
    """What is minimised. Without a divergence: cross-entropy alone, which is fine-tuning."""

    divergence: str | None = None
    divergence_params: dict | None = None
    kl_weight: float = 0.0
    temperature: float = 1.0
    temperature_squared: bool = True
    use_ce: bool = True


class DistillTrainer(Trainer):
    """The HF Trainer with its loss replaced; no logits come out of the model's own forward."""

    def __init__(self, *, objective: Objective, teacher, vocabulary: int, dtype: str, **kwargs):
        super().__init__(**kwargs)
        self.objective, self.vocabulary, self.teacher = objective, vocabulary, teacher
        self.dtype = getattr(torch, dtype)
        self.teacher_head = None if teacher is None else teacher.head.to(self.args.device)
        self.model_accepts_loss_kwargs = True  # the loss is divided by num_items_in_batch here
        self.sums = {}
        self.parts = 1  # forward passes that a batch is taken in; doubled when memory runs out
        self.step, self.batches = None, []  # of the optimiser step that is under way

    def _get_train_sampler(self, train_dataset=None):
        return EpochSampler(
            [len(ids) for ids in self.train_dataset.ids],
            self.args.train_batch_size,
            self.args.seed,
            lambda: int((self.state.epoch or 0) + 1e-6),
            parallel.processes(),
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        """A forward and backward pass; where memory runs out, the step begins again in smaller ones.

        The effective batch and the loss stay what they are: sums over the same answer tokens.
        """
        if self.step != self.state.global_step:
            self.step, self.batches = self.state.global_step, []
        self.batches.append(inputs)
        batches, one_pass = self.batches[-1:], super().training_step
        while True:
            try:
                for batch in batches:
                    pieces = split(batch, self.parts) if self.parts > 1 else [batch]
                    losses = [one_pass(model, piece, num_items_in_batch) for piece in pieces]
                return sum(losses)
            except torch.OutOfMemoryError as error:
                self._halve(str(error))
            # Outside the handler, which holds on to the failed pass and its memory.
            model.zero_grad()
            self.sums, batches = {}, self.batches
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _halve(self, reason: str) -> None:
        rows = -(-self.args.train_batch_size // self.parts)
        if rows == 1 or parallel.processes() > 1:
            raise UserError(
                f"out of memory with {rows} rows per pass ({reason.split('.')[0]}). Lower batch_size and "
                "raise gradient_accumulation by as much, or set gradient_checkpointing, tuning: lora, "
                "load_in_4bit, or a smaller data.max_tokens"
            )
        self.parts *= 2
        logging.warning(
            "out of memory: step %d begins again with %d rows per pass, the same effective batch",
            self.state.global_step + 1,
            -(-self.args.train_batch_size // self.parts),
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, metrics = model(inputs, num_items_in_batch)  # which is `losses` below
        for name in ("ce_sum", "divergence_sum", "tokens"):
            self.sums[name] = self.sums.get(name, 0) + metrics[name]
        return loss * parallel.processes()  # num_items is that of all processes; gradients are averaged

    def losses(self, inputs, num_items):
        """(loss, metrics) of a batch: what calling the model means while it trains."""
        model = self.model
        learn = inputs["labels"] != -100
        autocast = torch.autocast(self.args.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast:
            hidden = models.hidden_states(model, inputs["input_ids"], inputs["attention_mask"])
        if isinstance(self.teacher, OnlineTeacher):
            inputs["teacher"] = {"hidden": self.teacher.hidden(inputs, learn)}
        stored, decode = inputs.get("teacher"), None
        if self.teacher and self.teacher.store != "hidden":
            decode = SCHEMES[self.teacher.store].logits
        elif self.teacher:
            stored = stored["hidden"]
        objective = self.objective
        return distill_loss(
            hidden[learn].to(self.dtype),
            models.head_weight(model, self.vocabulary).to(self.dtype),
            stored,
            self.teacher_head,
            inputs["labels"][learn],
            divergence=objective.divergence or "fkl",
            divergence_params=objective.divergence_params or {},
            kl_weight=objective.kl_weight,
            temperature=objective.temperature,
            temperature_squared=objective.temperature_squared,
            use_ce=objective.use_ce,
            num_items=num_items,
            teacher_logits=decode,
        )

    def log(self, logs, *args, **kwargs):
        if self.sums and "loss" in logs:
            ce, divergence, tokens = parallel.summed(list(self.sums.values()), self.args.device)
            tokens = max(tokens, 1.0)
            logs["ce"] = ce / tokens
            if self.objective.divergence:
                logs["divergence"] = divergence / tokens
            logs["answer_tokens"] = int(tokens)
            if self.parts > 1:
                logs["parts"] = self.parts
            self.sums = {}
            self._refuse_broken(logs)
        super().log(logs, *args, **kwargs)

    def _refuse_broken(self, logs) -> None:
        """Stop before a model that is no longer one is saved, in a checkpoint or as the result."""
        broken = [k for k in ("loss", "grad_norm") if not math.isfinite(logs.get(k, 0.0))]
        if broken:
            rows = sorted(
                {int(row) for batch in self.batches for row in batch["rows"]} - {len(self.train_dataset)}
            )
            raise UserError(
                f"step {self.state.global_step}: {broken[0]} is {logs[broken[0]]} "
                f"({self.objective.divergence or 'cross-entropy'}); nothing is saved. The step's rows, by "
                f"their place in train.parquet: {rows}. A lower learning_rate or max_grad_norm, or dtype: "
                "float32, may help"
            )


class ShardedTrainer(sharded.Sharded, DistillTrainer):
    """The same for a model that one GPU does not hold."""


class Arguments(TrainingArguments):
    """The Trainer takes to nn.DataParallel where one process sees several GPUs; here it never does.

    Of several processes without a GPU each is on "cpu:0", to which torch.load can bring no checkpoint back.
    """

    @property
    def device(self):
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def n_gpu(self):
        return min(super().n_gpu, 1)


class Follow(TrainerCallback):
    """A log line with the time left per step, a checkpoint every two minutes, and a seal on each."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = self.saved = time.monotonic()
        self.first = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if parallel.agreed(time.monotonic() - self.saved > SECONDS_BETWEEN_CHECKPOINTS):
            control.should_save = state.global_step < state.max_steps

    def on_save(self, args, state, control, **kwargs):
        parallel.wait_for_all()  # each process has written its own random state
        if parallel.rank() == 0:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            write_json(folder / "seal.json", hash_files(folder, [folder]))
            # Not by the Trainer, which removes the old one before the new one is sealed.
            for old in set(folder.parent.glob("checkpoint-*")) - {folder}:
                shutil.rmtree(old)
        self.saved = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        done = state.global_step - self.first
        left = (time.monotonic() - self.start) / max(done, 1) * (state.max_steps - state.global_step)
        logging.info(
            "step %d/%d, %s left, loss %.4f, ce %.4f%s",
            state.global_step,
            state.max_steps,
            clock(left),
            logs["loss"],
            logs["ce"],
            f", divergence {logs['divergence']:.4f}" if "divergence" in logs else "",
        )


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint whose seal is there and true; a kill can leave one half written."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.rsplit("-", 1)[1]))
    for checkpoint in found:
        seal = checkpoint / "seal.json"
        if not seal.is_file():
            continue
        files = hash_files(checkpoint, [checkpoint])
        files.pop("seal.json")
        if files == read_json(seal):
            return str(checkpoint)
        logging.warning("%s is damaged and is not used", checkpoint)
    return None


def prepare(model, settings, backend):
    """Make trainable what is to be trained: adapters or every weight, always in float32."""
    model.config.use_cache = False
    if settings.gradient_checkpointing and backend == "transformers":  # Unsloth has its own
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.float() if settings.tuning == "full" else backends.with_adapters(model, settings, backend)


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
):
    """Train `model` on the rows of `frame`. settings: a config.Training with a seed.

    teacher: the TeacherCache of these rows, an OnlineTeacher, or None without a divergence. work: the folder
    of the checkpoints. shard: share the model out among the processes (sharded.py). Returns the trained model
    (PEFT-wrapped for LoRA) and the log, an entry per step.
    """
    set_seed(settings.seed)
    models.check_head(model, vocabulary)
    model = prepare(model, settings, backend)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logging.info(
        "%d rows, %d answer tokens, %.2f M of %.1f M weights trained",
        len(frame),
        sum(len(answer_tokens(row)) for row in frame["targets"]),
        trainable / 1e6,
        sum(p.numel() for p in model.parameters()) / 1e6,
    )
    tensorboard = os.getenv("KDAG_TENSORBOARD")
    if tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(work.parent / "tensorboard")
    arguments = Arguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=parallel.passes_per_process(
            settings.gradient_accumulation, parallel.processes()
        ),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        optim=backends.optimizer(settings),
        fp16=settings.dtype == "float16" and models.device().type == "cuda",  # scaled, or it underflows
        use_cpu=models.device().type == "cpu",
        ddp_backend=parallel.backend(),
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="tensorboard" if tensorboard else "none",
        disable_tqdm=True,
        dataloader_pin_memory=models.device().type == "cuda",
        dataloader_num_workers=READERS[models.device().type],
    )
    if shard:
        sharded.shard(model)
    trainer = (ShardedTrainer if shard else DistillTrainer)(
        model=model,
        args=arguments,
        train_dataset=Rows(frame, teacher if isinstance(teacher, TeacherCache) else None),
        data_collator=collate,
        objective=objective,
        teacher=teacher,
        vocabulary=vocabulary,
        dtype=settings.dtype,
        callbacks=[Follow()],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = parallel.agreed(last_checkpoint(work) if parallel.rank() == 0 else None)
    if checkpoint:
        logging.info("going on from %s", checkpoint)
    torch.manual_seed(settings.seed + parallel.rank())  # the same dropout on other rows would be no sample
    try:
        with models.forward_replaced(model, trainer.losses):
            trainer.train(resume_from_checkpoint=checkpoint)
    except UnpicklingError as error:
        why = "a file in it holds more than tensors and is not read, since a pickle can run code"
        raise UserError(f"{checkpoint}: {why}. Delete it and run again") from error
    keys = (
        "step",
        "epoch",
        "loss",
        "ce",
        "divergence",
        "answer_tokens",
        "learning_rate",
        "grad_norm",
        "parts",
    )
    log = [
        {key: entry[key] for key in keys if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return model, log


def save_trained(model, tokenizer, folder: Path, dtype: str, base: Path | None = None) -> None:
    """Write the merged model in `dtype` to `folder`, and for LoRA the adapter to `folder`/adapter.

    base: where the untrained weights lie, if the model holds them in four bits: they are merged as they are.
    """
    adapter = folder / "adapter"
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():  # a set, which each process would write in another order
            config.target_modules = sorted(config.target_modules)
        model.save_pretrained(adapter)
        if base is not None:
            model = PeftModel.from_pretrained(models.load_model(base, dtype, to_device=False), adapter)
        model = model.merge_and_unload()
    model = model.to(getattr(torch, dtype))
    model.config.use_cache = True
    models.save(model, tokenizer, folder)
