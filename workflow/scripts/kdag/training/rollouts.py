"""The student's own answers, sampled from its weights of the moment for the rows of the next optimiser step.

They are written down, whole, before anything is learned from them: a run that goes on after a kill learns
from the same ones. Each has a seed of its own, so it depends on its prompt, its seed and the weights alone,
as far as the arithmetic does not depend on what is computed next to it (in float32 it hardly does, in
bfloat16 it does).
"""

import itertools
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np

from kdag.config.kinds import STUDENT
from kdag.data.loops import distinct_pairs, is_repeated
from kdag.data.rows import answered, prompts
from kdag.files.atomic import write_jsonl
from kdag.files.reading import read_jsonl
from kdag.job import launching
from kdag.job.errors import UserError
from kdag.models import decoding, load
from kdag.models.files import positions_of
from kdag.training import processes
from kdag.training.batches import NOTHING, collate

EPOCH = 10**9  # steps, of which no epoch has as many


class Rollouts:
    """Puts answers where batches have the rows of `own`, the kind of a Mixture that has none yet."""

    # Of the answers of a step, next to its loss in the log: they show a student that collapses.
    MEASURES = (
        "sampled_tokens",
        "asked_tokens",
        "sample_length",
        "sample_entropy",
        "sample_distinct_2",
        "sample_cut_off",
        "sample_repeated",
    )

    def __init__(
        self,
        model,
        dataset,
        folder: Path,
        batch_size: int,
        *,
        own: int,
        prompts: list[list[int]],
        sampling: dict,
        seed: int,
        dtype: str,
        vocabulary: int,
        end_ids: tuple[int, ...],
        tokenizer,
        pairs: bool = False,
    ):
        """folder: of the checkpoints, and of the answers until the training has ended; batch_size: rows of a
        batch; prompts: of each row, token ids; sampling: as of the section of that name."""
        self.model, self.dataset, self.batch_size = model, dataset, batch_size
        self.folder = Path(folder, f"answers-{launching.rank()}-of-{launching.processes()}")
        self.own, self.prompts, self.sampling, self.seed = own, prompts, sampling, seed
        self.dtype, self.vocabulary, self.end_ids, self.tokenizer = dtype, vocabulary, end_ids, tokenizer
        self.pairs = pairs  # each prompt with the answer of the first kind too
        self.waiting: list[list[dict]] = []  # the batches of the next steps
        self.found: dict[int, list[dict]] = {}  # the answers of each step that is not logged yet
        self.begun = False
        self.buffer: deque | None = None  # what `replayed` draws from

    @classmethod
    def prepared(cls, frame, settings, chat, start: Path, vocabulary: int):
        """What makes Rollouts of the rest that the training knows: see `train`.

        frame: the rows whose prompts are answered; settings: a config MixedJob; chat: a Chat, whose ends end
        an answer; start: the untrained student's directory. UserError if a prompt leaves no room for one.
        """
        given = prompts(frame)
        decoding.check_positions(given, settings.sampling["max_new_tokens"], positions_of(start))
        return partial(
            cls,
            own=list(settings.answers).index(STUDENT),
            prompts=given,
            sampling=settings.sampling,
            seed=settings.seed,
            dtype=settings.dtype,
            vocabulary=vocabulary,
            end_ids=chat.end_ids,
            tokenizer=load.load_tokenizer(start),
            pairs=settings.pairs,
        )

    def batches(self, upcoming, count: int, step: int, share: float | None, done: float) -> list[dict]:
        """The `count` batches of an optimiser step; upcoming: those of the epoch that are left, whose rows
        are replaced; step: how many steps the weights have had; share: of rows that get the student's
        answers, None: those that the mixture says; done: how much of the training is."""
        if not self.begun:
            self.forget_after(step)
        if not self.waiting:
            file, last = self.answered(step)
            numbers = [batch["rows"].tolist() for batch in itertools.islice(upcoming, count * (last - step))]
            steps = [sum(numbers[at : at + count], []) for at in range(0, len(numbers), count)]
            known = read_jsonl(file) if file else self.write(steps, step, share, done)
            self.waiting = self.answer(steps, step, known)
        return self.waiting.pop(0) if self.waiting else []

    def answered(self, step: int) -> tuple[Path | None, int]:
        """(the file with the answers of the step after `step`, the last step that is answered in it); None if
        they are to be sampled, for `refresh` steps at most. UserError if they are lost."""
        files = {file: tuple(map(int, file.stem.split("-"))) for file in sorted(self.folder.glob("*.jsonl"))}
        for file, (since, last) in files.items():
            if since <= step < last:
                return file, last
        if step and step not in {last for _, last in files.values()}:
            folder = self.folder.parent
            raise UserError(f"answers that were to be learned after step {step} are lost. Delete {folder}")
        return None, step + (EPOCH if self.sampling["refresh"] == "epoch" else self.sampling["refresh"])

    def write(self, steps: list[list[int]], step: int, share: float | None, done: float) -> list[dict]:
        """The answers to rows of the next steps, written down. steps: the numbers of their rows."""
        places = [(at, n) for at, numbers in enumerate(steps, step + 1) for n in numbers if n != NOTHING]
        if self.pairs:
            own = places
        elif share is None:
            own = [place for place in places if self.is_own(place[1])]
        else:
            own = [place for place in places if self.random(*place, "share").random() < share]
        again = self.replayed(own, done)
        new = [place for place in own if place not in again]
        found = dict(zip(new, self.sample(new), strict=True))
        self.remember(found.values())
        known = [found.get(place) or again[place] for place in own]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.folder / f"{step:08d}-{step + len(steps):08d}.jsonl", known)
        return known

    def replayed(self, own: list[tuple[int, int]], done: float) -> dict[tuple[int, int], dict]:
        """{(step, row's number): an earlier answer that stands there again, to its own prompt}.

        As in DistiLLM's code: none before there are `replay` of them, then the more the further the training
        is.
        """
        size, found = self.sampling["replay"], {}
        if not size:
            return found
        if self.buffer is None:
            self.buffer = deque(maxlen=size)
            for file in sorted(self.folder.glob("*.jsonl")):
                self.remember(read_jsonl(file))
        for at, number in own if len(self.buffer) == size else ():
            draw = self.random(at, number, "replay")
            if draw.random() < done:
                entry = self.buffer[int(draw.integers(size))]
                first = [entry["step"], entry["row"]]
                found[at, number] = entry | {"step": at, "row": number % self.dataset.count, "first": first}
        return found

    def remember(self, entries) -> None:
        """The last `replay` new answers, of this process's steps."""
        if self.buffer is not None:
            self.buffer.extend(entry for entry in entries if "first" not in entry)

    def random(self, step: int, number: int, purpose: str) -> np.random.Generator:
        """By seed, step, row and purpose alone; another than that of the row's answer."""
        return np.random.default_rng([self.seed, number % self.dataset.count, step, *purpose.encode()])

    def answer(self, steps: list[list[int]], step: int, known: list[dict]) -> list[list[dict]]:
        """The batches of the next steps. steps: the numbers of their rows; known: the answers to them."""
        by_row = {(entry["step"], entry["row"]): entry for entry in known}
        made = []
        for at, numbers in enumerate(steps, step + 1):
            own = {n: by_row.get((at, n % self.dataset.count)) for n in numbers if n != NOTHING}
            self.found[at] = [entry for entry in own.values() if entry and "first" not in entry]
            rows = [self.row(number, own.get(number)) for number in numbers]
            if self.pairs:
                rows += [self.dataset[n if n == NOTHING else n % self.dataset.count] for n in numbers]
            rows.sort(key=lambda row: -len(row["input_ids"]))
            size = self.batch_size * (2 if self.pairs else 1)
            made.append([collate(rows[start : start + size]) for start in range(0, len(rows), size)])
        return made

    def is_own(self, number: int) -> bool:
        return number // self.dataset.count == self.own

    def row(self, number: int, answer: dict | None) -> dict:
        if answer is None:
            return self.dataset[number]
        asked = answer["first"][1] if "first" in answer else answer["row"]
        ids, targets = answered(self.prompts[asked], answer["tokens"])
        return {"input_ids": ids, "targets": targets, "row": number, "own": True}

    def sample(self, wanted: list[tuple[int, int]]) -> list[dict]:
        """The answers to be written down, in the order of `wanted`: pairs of a step and a row's number."""
        if not wanted:
            return []
        rows = [number % self.dataset.count for _, number in wanted]
        seeds = [(self.seed, row, step) for (step, _), row in zip(wanted, rows, strict=True)]
        with decoding.answering(self.model, self.dtype) as (model, forward):
            answers = decoding.sample(
                model,
                [self.prompts[row] for row in rows],
                seeds,
                self.sampling,
                vocabulary=self.vocabulary,
                eos_ids=self.end_ids,
                forward=forward,
            )
        return [
            {
                "step": step,
                "row": row,
                "seed": seed,
                "temperature": self.sampling["temperature"],
                "prompt": self.tokenizer.decode(self.prompts[row]),
                "answer": self.tokenizer.decode(answer.said),
                "tokens": answer.tokens,
                "prompt_tokens": len(self.prompts[row]),
                "cut_off": answer.cut_off,
                "entropy": answer.entropy,
            }
            for (step, _), row, seed, answer in zip(wanted, rows, seeds, answers, strict=True)
        ]

    def forget_after(self, step: int) -> None:
        """Delete what was answered by weights that a kill has lost."""
        self.begun = True
        for file in self.folder.glob("*.jsonl"):
            if int(file.stem.split("-")[0]) > step:
                file.unlink()

    def measured(self, step: int, device) -> dict[str, float]:
        """The MEASURES of a step's answers, of all processes."""
        found = self.found.pop(step, [])
        lengths = [len(entry["tokens"]) for entry in found]
        sums = processes.summed(
            [
                len(found),
                sum(lengths),
                sum(entry["prompt_tokens"] for entry in found),
                sum(entry["entropy"] * length for entry, length in zip(found, lengths, strict=True)),
                sum(distinct_pairs(entry["tokens"]) for entry in found),
                sum(entry["cut_off"] for entry in found),
                sum(is_repeated(entry["answer"]) for entry in found),
            ],
            device,
        )
        count, tokens, asked, entropy, distinct, cut_off, repeated = sums
        if not count:
            return {"sampled_tokens": 0}
        values = (tokens / count, entropy / tokens, *(s / count for s in (distinct, cut_off, repeated)))
        counts = {"sampled_tokens": int(tokens), "asked_tokens": int(asked)}
        return counts | dict(zip(self.MEASURES[2:], values, strict=True))

    @staticmethod
    def written(folder: Path) -> list[dict]:
        """The answers of all processes and steps, in the order of steps and rows."""
        files = sorted(Path(folder).glob(f"answers-*-of-{launching.processes()}/*.jsonl"))
        entries = itertools.chain.from_iterable(map(read_jsonl, files))
        return sorted(entries, key=lambda entry: (entry["step"], entry["row"]))
