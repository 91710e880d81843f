"""Several teachers in the place of one, as training sees it (cache.TeacherCache): cached or live.

MixedTeachers: a weighted mean of their distributions at temperature 1, which the loss takes as one teacher's.
RoutedTeachers: of each row one of them, with its own head, so that a row's loss is that of a run with this
teacher alone.
"""

import numpy as np
import torch

from kdag.losses.cap import capped
from kdag.losses.products import to_logits

MIXTURES = ("probability", "log")
ROUTE = "route"  # next to the stored tensors of a routed row: which teacher is its own


class MixedTeachers:
    """Teachers of one vocabulary, asked all together.

    mixture probability: p = sum w_i p_i, which gives mass wherever one of them does; log: ln p =
    sum w_i ln p_i less its normaliser (a product of experts), which gives mass only where all do. The weights
    add up to 1. At a temperature T the mixture is tempered, as any teacher's distribution is, and not each
    teacher.
    """

    cap = None  # its logits are log-probs, under the teachers' caps already

    def __init__(self, teachers: list, weights: list[float], mixture: str):
        self.teachers, self.shares, self.mixture = teachers, weights, mixture
        self.keeps_rows = teachers[0].keeps_rows
        self.weights = sum(teacher.weights for teacher in teachers)

    @property
    def head(self):
        return self.teachers[0].head  # only its height is read

    def to(self, device) -> None:
        for teacher in self.teachers:
            teacher.to(device)

    def row(self, index: int) -> dict[str, torch.Tensor]:
        """What is stored of a row by each of them, the names led by the teacher's number."""
        return {
            f"{number}.{name}": tensor
            for number, teacher in enumerate(self.teachers)
            for name, tensor in teacher.row(index).items()
        }

    def known(self, batch: dict, learn: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.keeps_rows:
            return batch["teacher"]
        states = [teacher.known(batch, learn) for teacher in self.teachers]
        return {f"{number}.hidden": hidden for number, hidden in enumerate(states)}

    def logits(self, stored: dict, head) -> torch.Tensor:
        """ln p [n, V] of the mixture, float32; up to a constant per token with `log`."""
        total = None
        for number, (teacher, share) in enumerate(zip(self.teachers, self.shares, strict=True)):
            logp = logits_of(teacher, own(stored, number)).float().log_softmax(-1)
            if self.mixture == "log":
                total = logp.mul_(share) if total is None else total.add_(logp, alpha=share)
            else:
                logp.add_(float(np.log(share)))
                total = logp if total is None else torch.logaddexp(total, logp)
        return total


class RoutedTeachers:
    """Each row has one of the teachers, whose caches hold all rows."""

    keeps_rows, cap = True, None

    def __init__(self, teachers: list, routes: list[int]):
        """routes: of each row the number of its teacher."""
        self.teachers, self.routes = teachers, routes
        self.weights = sum(teacher.weights for teacher in teachers)

    def to(self, device) -> None:
        for teacher in self.teachers:
            teacher.to(device)

    def row(self, index: int) -> dict[str, torch.Tensor]:
        """What its own teacher stores of a row, and zeros for the others', so that rows can be joined."""
        mine, found = self.routes[index], {}
        for number, teacher in enumerate(self.teachers):
            for name, tensor in teacher.row(index).items():
                found[f"{number}.{name}"] = tensor if number == mine else torch.zeros_like(tensor)
        count = len(next(iter(found.values())))
        return found | {ROUTE: torch.full((count,), mine, dtype=torch.int64)}

    def known(self, batch: dict, learn: torch.Tensor) -> dict[str, torch.Tensor]:
        return batch["teacher"]

    def parts(self, known: dict) -> list[tuple]:
        """(teacher, what is known of it, which of the tokens [N] are its own) of every teacher that has any;
        of the first one, if there is no token."""
        found = []
        for number, teacher in enumerate(self.teachers):
            some = known[ROUTE] == number
            if some.any() or (number == 0 and not len(some)):
                stored = {name: tensor[some] for name, tensor in own(known, number).items()}
                found.append((teacher, stored if teacher.logits else stored["hidden"], some))
        return found


def own(stored: dict, number: int) -> dict[str, torch.Tensor]:
    """The tensors of teacher `number`, under their own names."""
    begin = f"{number}."
    return {name.removeprefix(begin): tensor for name, tensor in stored.items() if name.startswith(begin)}


def logits_of(teacher, stored: dict) -> torch.Tensor:
    """One teacher's logits [n, V] from what is stored of its rows, or from its states."""
    if teacher.logits:
        return teacher.logits(stored, teacher.head)
    return capped(to_logits(stored["hidden"].to(teacher.head.dtype), teacher.head), teacher.cap)
