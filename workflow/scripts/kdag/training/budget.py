"""How much of a training is done: of its steps, or of a budget that other students have too.

A budget is counted from the log entries of the steps, which a checkpoint holds, so a training that goes on
after a kill ends where it would have ended.
"""

import math
import warnings
from dataclasses import dataclass
from itertools import accumulate

from transformers import TrainerCallback

from kdag.job.errors import UserError
from kdag.training import cost

FINE = 1_000_000  # steps that the shape of a learning rate's schedule is asked at


@dataclass(frozen=True)
class Budget:
    """`most` of what `equal` names. weights: the student's, of `weights_of`; teacher: the weights of a live
    one, which reads every step's tokens, else 0."""

    equal: str
    most: float
    weights: tuple[int, int]
    teacher: int = 0

    @classmethod
    def of(cls, wanted: dict, data: dict, teacher: tuple[int, int], live: bool, weights: tuple[int, int]):
        """What fine-tuning this student takes on the data set's rows.

        wanted: {equal, epochs, rows_per_step} of it; data: {rows, tokens, answer_tokens} of the data set's
        rows; teacher: its weights, and the tokens that it read for the cache. UserError if that is too much.
        """
        equal, epochs = wanted["equal"], wanted["epochs"]
        most = {
            "tokens": epochs * data["answer_tokens"],
            "steps": math.ceil(epochs * -(-data["rows"] // wanted["rows_per_step"])),
            "flops": cost.learning({"tokens": epochs * data["tokens"]}, weights),
        }[equal]
        before = cost.reading(*teacher) if equal == "flops" and not live else 0
        if before >= most:
            raise UserError(
                f"budget.equal: flops: reading the rows for its cache took the teacher {before:.3g} FLOPs, "
                f"and sft takes {most:.3g} in all, so nothing is left to train with. More "
                "distillation.epochs give every student more; equal: tokens leaves the teacher out"
            )
        return cls(equal, most - before, weights, teacher[0] if live else 0)

    def taken(self, entry: dict) -> float:
        """By the step that `entry` is the log of."""
        if self.equal == "flops":
            return cost.learning(entry, self.weights) + cost.reading(self.teacher, entry["tokens"])
        return entry["answer_tokens"] if self.equal == "tokens" else 1

    def done(self, history: list[dict]) -> list[float]:
        """The share of the budget that is taken before the first step, the second, and so on."""
        return [0.0, *(so_far / self.most for so_far in accumulate(map(self.taken, logged(history))))]

    def steps(self, history: list[dict]) -> int:
        """How many steps there will have been in all, as far as can be told after one at least: as many as
        come nearest to the budget if those to come are as those that were."""
        *_, share = done = self.done(history)
        steps = len(done) - 1
        return steps + max(0, round((1 - share) / (share / steps)))

    def longest(self) -> int:
        """A number of steps that are never too few: each learns a token at least."""
        return math.ceil(self.most / self.taken({"tokens": 1, "answer_tokens": 1}))


class StepsOnly:
    """The steps of a training, where their number is known."""

    def done(self, state) -> list[float]:
        """The share that is done before each of the first steps."""
        return [step / state.max_steps for step in range(state.global_step + 1)]

    def along(self, state) -> float:
        """Of the step to come: 0 for the first, 1 for the last."""
        return min(1.0, state.global_step / max(1, state.max_steps - 1))


class BudgetOnly:
    """The same of a budget. The last step's share is 1 if it takes as much as the others on average."""

    def __init__(self, budget: Budget):
        self.budget = budget

    def done(self, state) -> list[float]:
        return self.budget.done(state.log_history)

    def along(self, state) -> float:
        *_, share = done = self.done(state)
        steps = len(done) - 1
        return min(1.0, share / max(1 - share / steps, 1e-9)) if steps else 0.0


def logged(history: list[dict]) -> list[dict]:
    """The entries of steps."""
    return [entry for entry in history if "answer_tokens" in entry]


class KeepWithin(TrainerCallback):
    """Ends a training when its budget is taken, and says meanwhile how many steps that will be."""

    def __init__(self, budget: Budget, expected: int):
        """expected: steps that it may be, before there was one."""
        self.budget, self.expected = budget, expected

    def on_train_begin(self, args, state, control, **kwargs):
        state.max_steps = self.budget.steps(state.log_history) if state.global_step else self.expected

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = False  # which is known once the step is logged

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no step of the optimiser came before the first
            lr_scheduler.step()  # looks at what is logged by now: see `shaped`

    def on_log(self, args, state, control, **kwargs):
        state.max_steps = max(self.budget.steps(state.log_history), state.global_step)
        if state.max_steps == state.global_step:
            control.should_training_stop, control.should_save = True, False


def shaped(scheduler, budget: Budget, history) -> None:
    """Let a learning rate follow the budget. scheduler: a LambdaLR of FINE steps; history(): the log."""
    (shape, *_) = scheduler.lr_lambdas
    follow = lambda _: shape(int(FINE * min(1.0, budget.done(history())[-1])))  # noqa: E731
    scheduler.lr_lambdas = [follow] * len(scheduler.lr_lambdas)
