"""What changes while a student trains: the numbers of its objective, by schedule.

Nothing here keeps what a checkpoint does not: each value follows from the step and from what the Trainer has
logged, so a resumed run goes on with the same numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from kdag.config.schedules import is_adaptive
from kdag.losses.base import Divergence
from kdag.training.budget import StepsOnly

ALPHA, MOMENTUM = 5e-4, 0.99  # of the adaptive schedule, as published: TAID, arXiv 2501.16937


@dataclass(frozen=True)
class Objective:
    """What is minimised. Without a divergence: only cross-entropy, which is fine-tuning.

    kl_weight, temperature and the parameters are numbers, or schedules {from, to, over}. own: the divergence
    on the student's own answers, if it is another; each takes those of the parameters that it has. alignment:
    the loss of spans, losses.spans.SpanLoss, for a teacher of another tokenizer.
    """

    divergence: Divergence | None = None
    divergence_params: dict | None = None
    kl_weight: float | dict = 0.0
    temperature: float | dict = 1.0
    temperature_squared: bool = True
    use_ce: bool = True
    own: Divergence | None = None
    alignment: Callable | None = None

    @classmethod
    def of(cls, settings, load) -> "Objective":
        """What a config DistillationJob asks for; load: what gives a divergence by its name."""
        own = getattr(settings, "student_divergence", None)
        return cls(
            divergence=load(settings.divergence) if settings.divergence else None,
            divergence_params=settings.divergence_params,
            kl_weight=settings.kl_loss_weight,
            temperature=settings.temperature,
            temperature_squared=settings.temperature_squared,
            use_ce=settings.use_ce_loss,
            own=load(own) if own else None,
        )


class Schedules:
    """An objective whose numbers are those of the moment. course: what knows how far the training is."""

    def __init__(self, objective: Objective, course=None):
        self.objective, self.course = objective, course or StepsOnly()
        self.adaptive, self.now = {}, {}
        numbers = {
            "kl_loss_weight": objective.kl_weight,
            "temperature": objective.temperature,
            **(objective.divergence_params or {}),
        }
        self.moving = {name: value for name, value in numbers.items() if isinstance(value, dict)}

    def values(self, state) -> dict[str, float]:
        """{name: value} of all that moves, for the step after `state.global_step` (a TrainerState)."""
        found = {}
        for name, schedule in self.moving.items():
            if is_adaptive(schedule):
                follow = self.adaptive.setdefault(name, Adaptive(schedule["from"], schedule["to"]))
                found[name] = follow.after(losses(state.log_history), self.course.done(state))
            else:
                found[name] = between(schedule, self.course.along(state))
        return found

    def at(self, state) -> Objective:
        """The objective of the step after `state.global_step`."""
        if not self.moving:
            return self.objective
        found = dict(self.values(state))
        self.now = dict(found)
        return replace(
            self.objective,
            kl_weight=found.pop("kl_loss_weight", self.objective.kl_weight),
            temperature=found.pop("temperature", self.objective.temperature),
            divergence_params={**(self.objective.divergence_params or {}), **found},
        )


class StudentShare:
    """The share of rows that have the student's own answers, by a schedule. course: as of Schedules.

    over: adaptive is DistiLLM's (arXiv 2402.03898 and its code): more by MORE after an epoch whose held-out
    cross-entropy is at least WORSE nats higher than the last one that counted.
    """

    MORE, WORSE = 0.1, 0.1

    def __init__(self, schedule: dict, course=None):
        self.schedule, self.course = schedule, course or StepsOnly()
        self.adaptive = is_adaptive(schedule)
        self.now = {}  # what is logged with the step

    def at(self, state, heldout: float | None = None) -> float:
        """Of the step after `state.global_step`; heldout: the cross-entropy, if an epoch begins with it."""
        self.now = {} if heldout is None else {"heldout_ce": heldout}
        if self.adaptive:
            logged = [entry["heldout_ce"] for entry in state.log_history if "heldout_ce" in entry]
            share = self.grown([*logged, *self.now.values()])
        else:
            share = between(self.schedule, self.course.along(state))
        self.now["student_share"] = share
        return share

    def grown(self, heldout: list[float]) -> float:
        """heldout: cross-entropy before the training and after each epoch so far."""
        share, previous = self.schedule["from"], heldout[0]
        for loss in heldout[1:]:
            if loss >= previous + self.WORSE:
                share, previous = min(share + self.MORE, self.schedule["to"]), loss
        return share


def between(schedule: dict, share: float) -> float:
    """The value of a schedule when `share` of the training is done; both ends are reached."""
    if schedule["over"] == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return schedule["from"] + (schedule["to"] - schedule["from"]) * share


def losses(history: list[dict]) -> list[float]:
    """The divergence of each step that was logged."""
    return [entry["divergence"] for entry in history if "divergence" in entry]


class Adaptive:
    """TAID's t: never below the straight line from `start` to `end`, and ahead of it while the loss falls."""

    def __init__(self, start: float, end: float):
        self.start, self.end = start, end
        self.t, self.previous, self.momentum, self.steps = start, None, 0.0, 0

    def after(self, found: list[float], done: list[float]) -> float:
        """t after steps with these losses. done: the share of the training that was, before each of them."""
        for loss in found[self.steps :]:
            self.steps += 1
            if self.previous is not None:
                change = (self.previous - loss) / (self.previous + 1e-15)
                self.momentum = MOMENTUM * self.momentum + (1 - MOMENTUM) * change
                line = self.start + (self.end - self.start) * done[self.steps - 1]
                ahead = self.t + ALPHA / (1 + math.exp(-self.momentum)) * (1 - self.t)
                self.t = min(self.end, max(line, ahead))
            self.previous = loss
        return self.t
