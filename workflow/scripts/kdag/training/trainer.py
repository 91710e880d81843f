"""The HF Trainer with the loss of losses/fused.py over the answer's tokens.

Loss and gradient are means over the answer tokens of the whole effective batch, however it is split.
"""

import logging
import math

import torch
from transformers import Trainer, TrainingArguments

from kdag.job import launching
from kdag.job.errors import UserError
from kdag.losses.fused import distill_loss, select
from kdag.models import head
from kdag.teacher.several import RoutedTeachers
from kdag.training import budget as budgets
from kdag.training import processes, sharding
from kdag.training.batches import NOTHING, EpochSampler, collate, nothing_to_learn, split, split_by_tokens
from kdag.training.schedule import Objective, Schedules, StudentShare

# Of each forward pass, added up over a step.
SUMMED = ("ce_sum", "divergence_sum", "tokens", "rows", "all_tokens")


class DistillTrainer(Trainer):
    """The HF Trainer with its loss replaced; no logits come out of the model's own forward."""

    def __init__(
        self,
        *,
        objective: Objective,
        teacher,
        vocabulary: int,
        dtype: str,
        tokens_per_pass: int | None = None,
        save_memory=None,
        rollouts=None,
        share=None,
        heldout=None,
        budget: budgets.Budget | None = None,
        **kwargs,
    ):
        """teacher: a TeacherCache, a LiveTeacher, several of them (teacher/several.py) or None. rollouts:
        what gives rows the student's own answers before each step (rollouts.Rollouts), if any has them.
        share: a schedule of the share of rows that have them, or None; heldout: a Rows that no step learns
        from, by which an adaptive share grows. budget: what the learning rate and all schedules follow,
        instead of the steps."""
        super().__init__(**kwargs)
        self.course = budgets.BudgetOnly(budget) if budget else budgets.StepsOnly()
        self.schedules = Schedules(objective, self.course)
        self.share, self.heldout = share and StudentShare(share, self.course), heldout
        self.vocabulary, self.teacher = vocabulary, teacher
        self.rollouts, self.budget = rollouts, budget
        self.measured = [*self.schedules.moving, *(rollouts.MEASURES if rollouts else [])]
        self.measured += ["heldout_ce", "student_share"] if share else []
        self.dtype = getattr(torch, dtype)
        if teacher is not None:
            teacher.to(self.args.device)
        self.model_accepts_loss_kwargs = True  # the loss is divided by num_items_in_batch here
        self.sums = {}
        # What a batch is cut into: by tokens, if it is all that a process has of a step, else `parts` of its
        # rows. Where memory runs out, the former are halved or the latter doubled.
        self.tokens, self.parts = tokens_per_pass, 1
        self.save_memory = save_memory  # what is done first where memory runs out, if anything
        self.step, self.batches = None, []  # of the optimiser step that is under way
        self.spans = None  # that it compares in all processes, with a teacher of another tokenizer

    def _get_train_sampler(self, train_dataset=None):
        return EpochSampler(
            self.train_dataset.lengths,
            self.args.train_batch_size,
            self.args.seed,
            lambda: int((self.state.epoch or 0) + 1e-6),
            launching.processes(),
            self.args.gradient_accumulation_steps * launching.processes(),
            self.train_dataset.draw,
        )

    def create_scheduler(self, num_training_steps, optimizer=None):
        if not self.budget:
            return super().create_scheduler(num_training_steps, optimizer)
        super().create_scheduler(budgets.FINE, optimizer)
        budgets.shaped(self.lr_scheduler, self.budget, lambda: self.state.log_history)
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of an optimiser step, and how many tokens they learn in all processes."""
        if self.rollouts:
            share = self.share and self.share.at(self.state, self.heldout_ce())
            done = self.course.done(self.state)[-1]
            batches = self.rollouts.batches(epoch_iterator, num_batches, self.state.global_step, share, done)
            epoch_iterator, num_batches = iter(batches), len(batches)
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        # Rows that a teacher of another tokenizer cannot read have nothing to learn, and may be a whole step.
        tokens = tokens if tokens is None else tokens.clamp(min=1)
        if self.schedules.objective.alignment:
            spans = sum(int((batch["aligned"]["spans"][..., 0] >= 0).sum()) for batch in batches)
            self.spans = max(1, *processes.summed([spans], self.args.device))
        return batches, tokens

    @torch.no_grad()
    def heldout_ce(self) -> float | None:
        """Cross-entropy of the held-out rows, in nats per token, before an epoch; else None."""
        if not self.share.adaptive or (self.state.epoch or 0) % 1:
            return None
        total = tokens = 0
        size, rows = self.args.train_batch_size, range(len(self.heldout))
        self.model.eval()
        for start in rows[::size]:
            batch = collate([self.heldout[row] for row in rows[start : start + size]])
            batch = self._prepare_inputs(batch)
            for piece in split_by_tokens(batch, self.tokens) if self.tokens else [batch]:
                _, metrics = self.loss_of(piece, Objective(), None, None)
                total, tokens = total + float(metrics["ce_sum"]), tokens + int(metrics["tokens"])
        self.model.train()
        return processes.agreed(total / tokens)

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
                    losses = [one_pass(model, piece, num_items_in_batch) for piece in self._passes(batch)]
                return sum(losses)
            except torch.OutOfMemoryError as error:
                self._spare(str(error), int(inputs["attention_mask"].sum(1).max()))
            # Outside the handler, which holds on to the failed pass and its memory.
            model.zero_grad()
            self.sums, batches = {}, self.batches
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _passes(self, batch: dict) -> list[dict]:
        """What a batch is computed in; as many in every process, since each pass is one of all of them."""
        if not self.tokens:
            return split(batch, self.parts) if self.parts > 1 else [batch]
        pieces = split_by_tokens(batch, self.tokens)
        most = processes.largest(len(pieces), self.args.device)
        return pieces + [nothing_to_learn(batch)] * (most - len(pieces))

    def _spare(self, reason: str, longest: int) -> None:
        """Less memory from here on; longest: the tokens of the longest row that was at hand."""
        if self.save_memory:
            self.save_memory()
            self.save_memory = None
            now = "gradient checkpointing is on from here"
            logging.warning("out of memory: step %d begins again, %s", self.state.global_step + 1, now)
            return
        rows = -(-self.args.train_batch_size // self.parts)
        smallest = self.tokens <= longest if self.tokens else rows == 1
        now = f"{self.tokens} tokens" if self.tokens else f"{rows} rows"
        if smallest or launching.processes() > 1:
            raise UserError(
                f"out of memory with {now} per pass ({reason.split('.')[0]}). Lower tokens_per_pass, or "
                "batch_size and raise gradient_accumulation by as much, or set gradient_checkpointing, "
                "tuning: lora, load_in_4bit, or a smaller data.max_tokens"
            )
        if self.tokens:
            self.tokens = max(self.tokens // 2, longest)
            now = f"{self.tokens} tokens"
        else:
            self.parts *= 2
            now = f"{-(-self.args.train_batch_size // self.parts)} rows"
        logging.warning(
            "out of memory: step %d begins again with %s per pass, the same effective batch",
            *(self.state.global_step + 1, now),
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, metrics = model(inputs, num_items_in_batch)  # which is `losses` below
        real = inputs["rows"] != NOTHING
        seen = {"rows": real.sum(), "all_tokens": inputs["attention_mask"][real].sum()}
        for name in SUMMED:
            self.sums[name] = self.sums.get(name, 0) + (metrics | seen)[name]
        return loss * launching.processes()  # num_items is that of all processes; gradients are averaged

    def losses(self, inputs, num_items):
        """(loss, metrics) of a batch: what calling the model means while it trains."""
        return self.loss_of(inputs, self.schedules.at(self.state), self.teacher, num_items)

    def loss_of(self, inputs, objective: Objective, teacher, num_items):
        model = self.model
        learn = inputs["labels"] != -100
        autocast = torch.autocast(self.args.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast:
            hidden = head.hidden_states(model, inputs["input_ids"], inputs["attention_mask"])
        hidden, labels = hidden[learn].to(self.dtype), inputs["labels"][learn]
        known = teacher and teacher.known(inputs, learn)
        if objective.alignment:
            head_weight = head.head_weight(model, self.vocabulary).to(self.dtype)
            given = (hidden, head_weight, labels, known, head.logit_cap(model))
            return teacher.loss(objective, *given, num_items=num_items, num_spans=self.spans)
        if isinstance(teacher, RoutedTeachers):
            asked = [(objective.divergence, *part) for part in teacher.parts(known)]
        elif objective.own:
            own = inputs["own"][:, None].expand_as(learn)[learn]
            asked = [
                (divergence, teacher, select(known, some), some)
                for divergence, some in ((objective.divergence, ~own), (objective.own, own))
            ]
        else:
            return self.loss_by(objective.divergence, objective, hidden, labels, teacher, known, num_items)
        parts = [
            self.loss_by(divergence, objective, hidden[some], labels[some], one, theirs, num_items)
            for divergence, one, theirs, some in asked
        ]
        metrics = {name: sum(part[name] for _, part in parts) for name in parts[0][1]}
        return sum(loss for loss, _ in parts), metrics

    def loss_by(self, divergence, objective: Objective, hidden, labels, teacher, known, num_items):
        """(loss, metrics) of tokens with hidden states [N, d], labels [N]; known: of the teacher on them."""
        params = objective.divergence_params or {}
        if objective.own:
            params = {name: params[name] for name in divergence.resolve({})}
        return distill_loss(
            hidden,
            head.head_weight(self.model, self.vocabulary).to(self.dtype),
            known,
            teacher and teacher.head,
            labels,
            divergence=divergence,
            divergence_params=params,
            kl_weight=objective.kl_weight,
            temperature=objective.temperature,
            temperature_squared=objective.temperature_squared,
            use_ce=objective.use_ce,
            num_items=num_items,
            teacher_logits=teacher and teacher.logits,
            student_cap=head.logit_cap(self.model),
            teacher_cap=teacher and teacher.cap,
        )

    def log(self, logs, *args, **kwargs):
        if self.sums and "loss" in logs:
            sums = processes.summed(list(self.sums.values()), self.args.device)
            ce, divergence, tokens, rows, all_tokens = sums
            logs |= {"rows": int(rows), "tokens": int(all_tokens)}
            tokens = max(tokens, 1.0)
            logs["ce"] = ce / tokens
            if self.schedules.objective.alignment:
                logs["divergence"] = divergence / self.spans
            elif self.schedules.objective.divergence:
                logs["divergence"] = divergence / tokens
            logs["answer_tokens"] = int(tokens)
            if self.parts > 1:
                logs["parts"] = self.parts
            if self.tokens:
                logs["tokens_per_pass"] = self.tokens
            logs.update(self.schedules.now | (self.share.now if self.share else {}))
            if self.rollouts:
                logs.update(self.rollouts.measured(self.state.global_step, self.args.device))
            self.sums = {}
            self._refuse_broken(logs)
        super().log(logs, *args, **kwargs)

    def _refuse_broken(self, logs) -> None:
        """Stop before a broken model is saved, in a checkpoint or as the result."""
        broken = [k for k in ("loss", "grad_norm") if not math.isfinite(logs.get(k, 0.0))]
        if broken:
            numbers = {int(row) for batch in self.batches for row in batch["rows"]} - {NOTHING}
            rows = sorted(number % self.train_dataset.count for number in numbers)
            objective = self.schedules.objective
            name = getattr(objective.alignment or objective.divergence, "name", "cross-entropy")
            raise UserError(
                f"step {self.state.global_step}: {broken[0]} is {logs[broken[0]]} ({name}); nothing is "
                f"saved. The step's rows, by place in train.parquet: {rows}. A lower learning_rate or "
                "max_grad_norm, or dtype: float32, may help"
            )


class ShardedTrainer(sharding.Sharded, DistillTrainer):
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
