"""Rows of a subset as training batches: what a row holds, how rows are padded, in which order they come."""

import itertools

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from kdag.config.schedules import is_schedule
from kdag.job.errors import UserError
from kdag.teacher.cache import pad

NOTHING = -1  # the number of a row that completes a batch
PADDED = -100  # behind the end of what is stored of a row: neither a token nor a place


class Rows(torch.utils.data.Dataset):
    """The rows of a subset, each with what is stored of its teacher, if the teacher stores anything.

    Row NOTHING is a token with nothing to learn: see EpochSampler.
    """

    draw = None  # see Mixture

    def __init__(self, frame, teacher):
        self.ids, self.targets, self.lengths = frame["input_ids"], frame["targets"], frame.lengths
        self.count = len(frame)
        self.cache = teacher if teacher and teacher.keeps_rows else None
        self.kept_as = getattr(teacher, "kept_as", "teacher")  # see `collate`

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        if index == NOTHING:
            row = {"input_ids": np.zeros(1), "targets": np.full(1, -100), "row": index}
            stored = {name: tensor[:0] for name, tensor in self.cache.row(0).items()} if self.cache else None
        else:
            row = {"input_ids": self.ids[index], "targets": self.targets[index], "row": index}
            stored = self.cache.row(index) if self.cache else None
        return row | ({self.kept_as: stored} if self.cache else {})


class Mixture(torch.utils.data.Dataset):
    """The same prompts with several kinds of answers, of which one is drawn for each row and epoch.

    Numbers of a kind follow those of the kind before it.
    """

    def __init__(self, kinds: list[Rows], shares: list[float], seed: int):
        """shares: of the rows of an epoch, on average, adding up to 1. Rows of a kind whose share is a
        schedule are not drawn here, but where the share is known."""
        counts = {len(rows) for rows in kinds}
        if len(counts) > 1:
            raise UserError(f"the answers are of different rows: there are {sorted(counts)} of them")
        self.kinds, self.seed = kinds, seed
        self.shares = [0.0 if is_schedule(share) else share for share in shares]
        self.lengths, self.count = kinds[0].lengths, len(kinds[0])

    def __len__(self):
        return len(self.kinds) * self.count

    def __getitem__(self, index):
        kind, row = divmod(index, self.count)
        return self.kinds[0][NOTHING] if index == NOTHING else self.kinds[kind][row] | {"row": index}

    def draw(self, epoch: int) -> np.ndarray:
        """The number of the answer that each row has in an epoch, by seed and epoch alone."""
        drawn = np.random.default_rng([self.seed, epoch, self.count]).random(self.count)
        kinds = np.searchsorted(np.cumsum(self.shares[:-1]), drawn, side="right")
        return kinds * self.count + np.arange(self.count)


def collate(rows: list[dict]) -> dict:
    """Right-padded [B, L] ids, mask and targets; what is stored of the teacher [N, ...] in the order
    of the targets. What an aligned teacher stores is in its own tokens: [B, ...], padded with PADDED.

    The targets are shifted already, which the Trainer is told by calling them `shift_labels`. own [B]: is the
    answer the student's?
    """
    targets = pad([row["targets"] for row in rows], -100)
    batch = {
        "input_ids": pad([row["input_ids"] for row in rows], 0),
        "attention_mask": pad([np.ones(len(row["input_ids"])) for row in rows], 0),
        "labels": targets,
        "shift_labels": targets,
        "rows": torch.tensor([row["row"] for row in rows]),
        "own": torch.tensor([row.get("own", False) for row in rows]),
    }
    if "teacher" in rows[0]:
        names = rows[0]["teacher"]
        batch["teacher"] = {name: torch.cat([row["teacher"][name] for row in rows]) for name in names}
    if "aligned" in rows[0]:
        batch["aligned"] = {
            name: pad_sequence([row["aligned"][name] for row in rows], True, PADDED)
            for name in rows[0]["aligned"]
        }
    return batch


def split(batch: dict, parts: int) -> list[dict]:
    """The rows of a batch in up to `parts` smaller batches, each padded to its own longest row."""
    rows = torch.arange(len(batch["labels"]), device=batch["labels"].device)
    return [some(batch, chosen) for chosen in rows.chunk(parts)]


def split_by_tokens(batch: dict, tokens: int) -> list[dict]:
    """The rows of a batch by length, the longest first, in batches of at most `tokens` padded tokens.

    A row that is longer is a batch of its own.
    """
    lengths = batch["attention_mask"].sum(1)
    order = lengths.argsort(descending=True, stable=True)
    pieces, first = [], 0
    for row in range(1, len(order) + 1):
        if row == len(order) or int(lengths[order[first]]) * (row + 1 - first) > tokens:
            pieces.append(some(batch, order[first:row]))
            first = row
    return pieces


def some(batch: dict, rows: torch.Tensor) -> dict:
    """Those rows of a batch, in this order, padded to their longest."""
    longest = int(batch["attention_mask"][rows].sum(1).max())
    piece = {
        name: value[rows, :longest] if value.ndim > 1 else value[rows]
        for name, value in batch.items()
        if name not in ("teacher", "aligned")
    }
    if "aligned" in batch:
        piece["aligned"] = {name: tensor[rows] for name, tensor in batch["aligned"].items()}
    if "teacher" in batch:
        learned = (batch["labels"] != -100).sum(1)
        ends = learned.cumsum(0)
        places = [torch.arange(int(ends[row] - learned[row]), int(ends[row])) for row in rows.tolist()]
        chosen = torch.cat(places).to(rows.device)
        piece["teacher"] = {name: tensor[chosen] for name, tensor in batch["teacher"].items()}
    return piece


def nothing_to_learn(batch: dict) -> dict:
    """A row of one token without a target, next to `batch`: what a process computes while others still do."""
    piece = some(batch, torch.zeros(1, dtype=torch.long, device=batch["labels"].device))
    stored, aligned = piece.pop("teacher", None), piece.pop("aligned", None)
    piece = {name: value[:, :1] if value.ndim > 1 else value for name, value in piece.items()}
    piece |= {name: torch.full_like(piece[name], -100) for name in ("labels", "shift_labels")}
    piece |= {"teacher": {name: tensor[:0] for name, tensor in stored.items()}} if stored else {}
    return piece | (
        {"aligned": {n: torch.full_like(t, PADDED) for n, t in aligned.items()}} if aligned else {}
    )


class EpochSampler(torch.utils.data.Sampler):
    """Every row once, in an order that depends on seed and epoch alone, so that a resumed run keeps it.

    The rows of an optimiser step are drawn at random, and come by length within it, so that rows of like
    length share a forward pass. (Steps of like rows alone made the demo's students loop:
    docs/performance.md.) So batch_size and gradient_accumulation of one product give the same steps. Of every
    `processes` batches each process takes one, so that a step has the same rows however many there are; rows
    without anything to learn complete the last of these batches. Where a batch is all
    of a step that a process has (passes == processes), each has as many long rows as the others.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int,
        epoch,
        processes: int = 1,
        passes: int = 1,
        draw=None,
    ):
        """epoch: a function that says which; passes: forward passes of a step, of all processes; draw: a
        function of the epoch that says which number stands for each row, as of Mixture."""
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, epoch
        self.draw = draw
        self.missing = 0 if processes == 1 else -len(lengths) % (batch_size * processes)
        self.step, self.shares = batch_size * passes, processes if passes == processes else 1

    def __len__(self):
        return len(self.lengths) + self.missing

    def __iter__(self):
        rows = len(self.lengths)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch())
        order = torch.randperm(rows, generator=generator).numpy()
        for start in range(0, rows, self.step) if self.batch_size > 1 else ():
            step = order[start : start + self.step]
            step[:] = step[np.argsort(-self.lengths[step], kind="stable")]
            step[:] = np.concatenate([step[share :: self.shares] for share in range(self.shares)])
        if self.draw:
            order = self.draw(self.epoch())[order]
        return itertools.chain(map(int, order), itertools.repeat(NOTHING, self.missing))
