"""One Trainer for fine-tuning and distilling: the loss of distill_loss.py over the answer's tokens.

Loss and gradient are means over the answer tokens of the whole effective batch, however it is split.
Training goes on from its own last whole checkpoint after a kill.
"""

import json
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from kdag import models
from kdag.cli import clock
from kdag.data import answer_tokens, read_rows
from kdag.distill_loss import distill_loss
from kdag.errors import UserError
from kdag.manifest import (
    atomic_path,
    hash_files,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
    write_manifest,
    write_text,
)
from kdag.teacher_cache import OnlineTeacher, TeacherCache, pad
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


class Rows(torch.utils.data.Dataset):
    """The rows of a subset, each with what the cache holds of its teacher."""

    def __init__(self, frame, cache: TeacherCache | None):
        self.ids, self.targets = frame["input_ids"].tolist(), frame["targets"].tolist()
        self.cache = cache

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        row = {"input_ids": self.ids[index], "targets": self.targets[index], "row": index}
        return row | ({"teacher": self.cache.row(index)} if self.cache else {})


def collate(rows: list[dict]) -> dict:
    """Right-padded [B, L] ids, mask and targets; what is stored of the teacher [N, ...] in the order
    of the targets.

    The targets are shifted already, which the Trainer is told by calling them `shift_labels`.
    """
    targets = pad([row["targets"] for row in rows], -100)
    batch = {
        "input_ids": pad([row["input_ids"] for row in rows], 0),
        "attention_mask": pad([np.ones(len(row["input_ids"])) for row in rows], 0),
        "labels": targets,
        "shift_labels": targets,
        "rows": torch.tensor([row["row"] for row in rows]),
    }
    if "teacher" in rows[0]:
        names = rows[0]["teacher"]
        batch["teacher"] = {name: torch.cat([row["teacher"][name] for row in rows]) for name in names}
    return batch


class EpochSampler(torch.utils.data.Sampler):
    """Every row once, in an order that depends on seed and epoch alone, so that a resumed run keeps it.

    Rows of like length share a batch where a batch has several.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch())
        if self.batch_size == 1:
            return iter(torch.randperm(len(self), generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class DistillTrainer(Trainer):
    """The HF Trainer with its loss replaced; no logits come out of the model's own forward."""

    def __init__(self, *, objective: Objective, teacher, vocabulary: int, dtype: str, **kwargs):
        super().__init__(**kwargs)
        self.objective, self.vocabulary, self.teacher = objective, vocabulary, teacher
        self.dtype = getattr(torch, dtype)
        self.teacher_head = None if teacher is None else teacher.head.to(self.args.device)
        self.model_accepts_loss_kwargs = True  # the loss is divided by num_items_in_batch here
        self.sums = {}

    def _get_train_sampler(self, train_dataset=None):
        return EpochSampler(
            [len(ids) for ids in self.train_dataset.ids],
            self.args.train_batch_size,
            self.args.seed,
            lambda: int((self.state.epoch or 0) + 1e-6),
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
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
        loss, metrics = distill_loss(
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
            num_items=num_items_in_batch,
            teacher_logits=decode,
        )
        for name in ("ce_sum", "divergence_sum", "tokens"):
            self.sums[name] = self.sums.get(name, 0) + metrics[name]
        return loss

    def log(self, logs, *args, **kwargs):
        if self.sums and "loss" in logs:
            tokens = max(float(self.sums["tokens"]), 1.0)
            logs["ce"] = float(self.sums["ce_sum"]) / tokens
            if self.objective.divergence:
                logs["divergence"] = float(self.sums["divergence_sum"]) / tokens
            logs["answer_tokens"] = int(tokens)
            self.sums = {}
        super().log(logs, *args, **kwargs)


class Follow(TrainerCallback):
    """A log line with the time left per step, a checkpoint every two minutes, and a seal on each."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = self.saved = time.monotonic()
        self.first = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if time.monotonic() - self.saved > SECONDS_BETWEEN_CHECKPOINTS:
            control.should_save = state.global_step < state.max_steps

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        write_json(folder / "seal.json", hash_files(folder, [folder]))
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


def prepare(model, settings):
    """Make trainable what is to be trained: adapters or every weight, always in float32."""
    model.config.use_cache = False
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if settings.tuning == "full":
        return model.float()
    targets = settings.lora_target_modules
    try:
        return get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,
                lora_dropout=settings.lora_dropout,
                target_modules=targets if isinstance(targets, str) else list(targets),
            ),
        )
    except ValueError as error:
        raise UserError(f"lora_target_modules: {error}") from error


def train(model, frame, *, settings, objective: Objective, teacher, vocabulary: int, work: Path):
    """Train `model` on the rows of `frame`. settings: a config.Training with a seed.

    teacher: the TeacherCache of these rows, an OnlineTeacher, or None without a divergence. work: the folder
    of the checkpoints. Returns the trained model (PEFT-wrapped for LoRA) and the log, an entry per step.
    """
    set_seed(settings.seed)
    models.check_head(model, vocabulary)
    model = prepare(model, settings)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logging.info(
        "%d rows, %d answer tokens, %.2f M of %.1f M weights trained",
        len(frame),
        sum(len(answer_tokens(row)) for row in frame["targets"]),
        trainable / 1e6,
        sum(p.numel() for p in model.parameters()) / 1e6,
    )
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        use_cpu=models.device().type == "cpu",
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=models.device().type == "cuda",
        dataloader_num_workers=READERS[models.device().type],
    )
    trainer = DistillTrainer(
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
    checkpoint = last_checkpoint(work)
    if checkpoint:
        logging.info("going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    keys = ("step", "epoch", "loss", "ce", "divergence", "answer_tokens", "learning_rate", "grad_norm")
    log = [
        {key: entry[key] for key in keys if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return model, log


def save_trained(model, tokenizer, folder: Path, dtype: str) -> None:
    """Write the merged model in `dtype` to `folder`, and for LoRA the adapter to `folder`/adapter."""
    adapter = folder / "adapter"
    if hasattr(model, "peft_config"):
        model.save_pretrained(adapter)
        model = model.merge_and_unload()
    model = model.to(getattr(torch, dtype))
    model.config.use_cache = True
    models.save(model, tokenizer, folder)


def run_stage(stage: str, args, settings, objective: Objective, teacher: Path | None) -> None:
    """A training stage from its inputs to its manifest; shared by sft.py and distill.py.

    teacher: the manifest of the teacher's cache, or, for an online teacher, of the teacher itself.
    """
    frame = read_rows(args.train)
    data = read_json(args.train.parent / "manifest.json")
    vocabulary = data["vocabulary_size"]
    inputs = {
        "model": sha256_file(args.model.parent / "manifest.json"),
        "data": sha256_file(args.train.parent / "manifest.json"),
    }
    seen = None
    if teacher:
        inputs["teacher"] = sha256_file(teacher)
        if settings.teacher_dtype:
            seen = OnlineTeacher(teacher, settings.teacher_dtype, vocabulary)
        else:
            seen = TeacherCache(teacher, "train", frame, data, args.expect_teacher)
    # A checkpoint is resumed only by the very job that wrote it: same parameters, inputs and code.
    params = settings.model_dump()
    code = {m.__name__: sha256_file(m.__file__) for m in own_modules()}
    work = args.output.parent / f".checkpoints-{sha256_json([stage, params, inputs, code])[:12]}"
    for stale in args.output.parent.glob(".checkpoints-*"):
        if stale != work:
            shutil.rmtree(stale)
    model, log = train(
        models.load_model(args.model, settings.dtype),
        frame,
        settings=settings,
        objective=objective,
        teacher=seen,
        vocabulary=vocabulary,
        work=work,
    )
    with atomic_path(args.output) as partial:
        save_trained(model, models.load_tokenizer(args.model), partial, settings.dtype)
    write_text(args.log, "".join(json.dumps(entry) + "\n" for entry in log))
    write_manifest(
        args.manifest,
        stage=stage,
        params=params,
        inputs=inputs,
        outputs=[args.output, args.log],
        device=models.device_name(),
    )
    shutil.rmtree(work, ignore_errors=True)


def own_modules() -> list:
    return [m for name, m in sorted(sys.modules.items()) if name.startswith("kdag.")]
