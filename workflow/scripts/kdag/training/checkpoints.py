"""Checkpoints of a training: written and sealed while it runs, found again whole or not at all."""

import logging
import shutil
import time
from pathlib import Path

from transformers import TrainerCallback

from kdag.files.atomic import write_json
from kdag.files.manifest import hash_files
from kdag.files.reading import read_json
from kdag.job import launching
from kdag.job.progress import Pace, clock
from kdag.training import processes

SECONDS_BETWEEN_CHECKPOINTS = 120


class Follow(TrainerCallback):
    """A log line with the time left per step, a checkpoint every two minutes, and a seal on each."""

    def __init__(self, now=time.monotonic):
        self.now = now

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = self.saved = time.monotonic()
        self.first, self.pace = state.global_step, None

    def on_step_end(self, args, state, control, **kwargs):
        if self.pace:
            self.pace.add(1)
        else:  # from here: the first step also warms up, and is no measure of the others
            self.pace = Pace(state.max_steps - state.global_step, self.now)
        if processes.agreed(time.monotonic() - self.saved > SECONDS_BETWEEN_CHECKPOINTS):
            control.should_save = state.global_step < state.max_steps

    def on_save(self, args, state, control, **kwargs):
        processes.wait_for_all()  # each process has written its own random state
        if launching.rank() == 0:
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
