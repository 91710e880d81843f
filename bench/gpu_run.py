"""What the parts of bench/gpu.py have in common.

A part is a function `part_<name>(run)` in a process of its own. It gives its figures to run.figures as they
come, so that what was measured before a failure is kept. What is measured is kdag's own code; a peer that
fails or is not installed is a note.
"""

import contextlib
import gc
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import common

GIB = 2**30


@dataclass
class Run:
    shapes: dict  # of gpu_shapes.SHAPES
    tiny: bool
    quick: bool
    folder: Path  # for this part's files
    figures: common.Figures
    end: float  # of time.monotonic(): when the part is ended from outside

    def time_for(self, what: str, seconds: float) -> bool:
        """Whether so much more can be done before the part is ended; a note where not."""
        if enough := time.monotonic() + 1.3 * seconds < self.end:
            return enough
        self.figures.note(f"{what}: no time was left")
        return False

    def often(self, count: int) -> int:
        """Repetitions: half with --quick, and no more than two where only the program is tried."""
        return min(2, count) if self.tiny else max(1, count // 2) if self.quick else count

    def little(self, count: int, tiny: int) -> int:
        """A size, which is another where only the program is tried."""
        return tiny if self.tiny else count

    @contextlib.contextmanager
    def attempt(self, what: str):
        """A peer or a case that fails is a note; the part goes on."""
        try:
            yield
        except Exception as error:
            self.figures.note(f"{what}: {brief(error)}")


class NotHere(Exception):  # noqa: N818  no error
    """Why a part cannot be measured here."""


def brief(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def release():
    """What nobody holds any more is free."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def times(function, count):
    """Seconds of each call."""
    taken = []
    for _ in range(count):
        begin = common.now()
        function()
        taken.append(common.now() - begin)
    return taken


def ratio(above, below):
    """The median of the ratios within a round."""
    return median(a / b for a, b in zip(above, below, strict=True))


def card(run):
    """(FLOP/s of a large bf16 product, bytes/s of a large copy, read and written), measured now."""
    import torch

    from kdag.models.load import device

    size, width = run.little(2**32, 2**20), run.little(8192, 128)
    sides = [torch.randn(width, width, device=device()).to(torch.bfloat16) for _ in range(2)]
    product = median(times(partial(torch.mm, *sides), 10)[3:])
    places = [torch.zeros(size, dtype=torch.uint8, device=device()) for _ in range(2)]
    copied = median(times(partial(places[0].copy_, places[1]), 10)[3:])
    return 2 * width**3 / product, 2 * size / copied


def generalized_jsd(student_logits, teacher_logits, labels, beta=0.5, temperature=1.0, items=None):
    """GKDTrainer.generalized_jsd_loss (TRL 1.15) written out for a machine without TRL; tested equal."""
    import torch
    import torch.nn.functional as F

    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    if beta == 0:
        values = F.kl_div(student, teacher, reduction="none", log_target=True)
    elif beta == 1:
        values = F.kl_div(teacher, student, reduction="none", log_target=True)
    else:
        share = torch.tensor(beta, dtype=student.dtype, device=student.device)
        mixed = torch.stack([student + torch.log1p(-share), teacher + torch.log(share)])
        mixture = torch.logsumexp(mixed, dim=0)
        values = share * F.kl_div(mixture, teacher, reduction="none", log_target=True)
        values = values + (1 - share) * F.kl_div(mixture, student, reduction="none", log_target=True)
    learn = labels != -100
    return values[learn].sum() / (learn.sum() if items is None else items)


def gkd_loss():
    """(TRL's function if it is installed, else ours of the same arithmetic; which)."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    try:
        import trl
        from trl.experimental.gkd import GKDTrainer
    except ImportError:
        return generalized_jsd, "TRL is not installed: its arithmetic, written out in bench/gpu_run.py"

    def loss(student_logits, teacher_logits, labels, beta=0.5, temperature=1.0, items=None):
        return GKDTrainer.generalized_jsd_loss(
            student_logits,
            teacher_logits,
            labels=labels,
            beta=beta,
            temperature=temperature,
            num_items_in_batch=items,
        )

    return loss, f"TRL {trl.__version__}"
