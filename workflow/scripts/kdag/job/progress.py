"""How far a job is, how long it will take, and whether that is far from what was planned."""

import logging
import time
from datetime import timedelta


class Progress:
    """Log lines with the share done and the time left, at most one every `every` seconds."""

    def __init__(self, total: int, unit: str, every: float = 5.0):
        self.total, self.unit, self.every = total, unit, every
        self.start = self.last = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if done < self.total and now - self.last < self.every:
            return
        self.last = now
        left = (now - self.start) / max(done, 1) * (self.total - done)
        logging.info("%d/%d %s, %s left%s", done, self.total, self.unit, clock(left), note)


# When a job says that it is far too slow: not in its first seconds, and compared with a minute at least.
FIRST_SECONDS, TOO_SLOW, SHORTEST_PLAN = 60, 10, 60


class Pace:
    """One warning, once a job, where it will take more than TOO_SLOW times what the planner says.

    total: of whatever is done evenly over time; now: the clock.
    """

    planned = 0.0  # seconds of this job, by --planned; 0: not known, or the warning was given

    def __init__(self, total: float, now=time.monotonic):
        self.total, self.now, self.start, self.done = total, now, now(), 0

    def add(self, done: float) -> None:
        self.reach(self.done + done)

    def reach(self, done: float) -> None:
        self.done = done
        seconds = self.now() - self.start
        if not Pace.planned or seconds < FIRST_SECONDS or not 0 < done < self.total:
            return
        whole = seconds / done * self.total
        if whole > TOO_SLOW * max(Pace.planned, SHORTEST_PLAN):
            logging.warning(
                "this job will take about %s, the plan said %s: `make doctor` says what this machine lacks "
                "(a GPU that is not used, arithmetic that the processor emulates), `make plan` how the plan "
                "was made",
                *(timedelta(seconds=round(length)) for length in (whole, Pace.planned)),
            )
            Pace.planned = 0.0


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
