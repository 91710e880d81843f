"""A server's log-probabilities as a teacher's cache: the scheme `topk` of storage.py, from numbers that came
over a wire and are not believed unseen.

Of a position the k likeliest tokens are kept as the server gave them; what they leave of 1 is spread evenly
over the others, each at most as likely as the last one kept. That mass is 1 minus a sum, which cancels: below
about 1e-6 it is rounding. Where the model here is known, storage.encode_topk sums the others instead.
"""

import base64
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kdag.files.atomic import atomic_path
from kdag.files.hashes import sha256_file
from kdag.teacher import asking
from kdag.teacher.cache import file_rows, write_shard
from kdag.teacher.server import RefusedError, Server
from kdag.teacher.storage import FLOOR

ABOVE = 1e-3  # of rounding: a log-prob may be so much above 0, and all together so much above 1


def likeliest(entries: list[tuple[int, float]], k: int, vocabulary: int) -> tuple[list[int], list[float]]:
    """(ids, log-probs) of the k likeliest, the likeliest first. RefusedError says what is wrong with them.

    Ids at or above `vocabulary`, the rows that pad a head, are no tokens: their mass goes to the others in
    proportion, and the last token stands twice in their place, which changes nothing.
    """
    names = [name for name, _ in entries]
    if bad := [value for _, value in entries if not math.isfinite(value)]:
        raise RefusedError(f"a log-probability is {bad[0]}")
    if (most := max((value for _, value in entries), default=0.0)) > ABOVE:
        raise RefusedError(f"a log-probability is {most:.4g}, above 0")
    if len(set(names)) < len(names) or min(names, default=0) < 0:
        raise RefusedError("a token stands twice among the log-probabilities, or has a number below 0")
    if len(entries) < k:
        raise RefusedError(
            f"{len(entries)} log-probabilities at a position, {k} were asked for (teacher_cache.top_k); vLLM "
            "gives as many as --max-logprobs says"
        )
    best = sorted(entries, key=lambda entry: (-entry[1], entry[0]))[:k]
    total = math.fsum(math.exp(value) for _, value in best)
    if total > 1 + ABOVE:
        raise RefusedError(f"the probabilities at a position add up to {total:.4g}")
    padding = math.fsum(math.exp(value) for name, value in best if name >= vocabulary)
    kept = [(name, value) for name, value in best if name < vocabulary]
    if not kept or padding >= 1:
        raise RefusedError(f"no likely token is one of the tokenizer's {vocabulary}")
    kept += [kept[-1]] * (k - len(kept))
    return [name for name, _ in kept], [min(0.0, value - math.log1p(-padding)) for _, value in kept]


def packed(positions: list[list[tuple[int, float]]], k: int, vocabulary: int) -> dict[str, str]:
    """Of n positions: {"ids": int32 [n, k], "logp": float32 [n, k]}, each as base64 of its bytes."""
    both = [likeliest(entries, k, vocabulary) for entries in positions]
    ids = np.array([one for one, _ in both], dtype="<i4")
    logp = np.array([other for _, other in both], dtype="<f4")
    return {
        name: base64.b64encode(array.tobytes()).decode() for name, array in (("ids", ids), ("logp", logp))
    }


def stored(value: dict[str, str], k: int, vocabulary: int, tail: str) -> dict[str, torch.Tensor]:
    """What `packed` gave -> the tensors of a row in a cache: ids [n, k] int32, logp [n, k] float16, and for
    the tail "bucket" tail [n] float32, the log-prob of each token that was not kept."""
    ids, logp = (
        torch.from_numpy(np.frombuffer(base64.b64decode(value[name]), dtype).reshape(-1, k).copy())
        for name, dtype in (("ids", "<i4"), ("logp", "<f4"))
    )
    found = {"ids": ids.to(torch.int32), "logp": logp.clamp(min=FLOOR).to(torch.float16)}
    if tail == "bucket":
        first = torch.ones_like(ids, dtype=torch.bool)
        first[:, 1:] = ids[:, 1:] != ids[:, :-1]  # a token that stands twice counts once
        left = 1 - (logp.double().exp() * first).sum(1)
        others = (vocabulary - first.sum(1)).clamp(min=1)
        each = torch.log(left.clamp(min=0) / others)
        found["tail"] = torch.minimum(each, logp[:, -1].double()).clamp(min=FLOOR).float()
    return found


def write_part(frame, values: list[dict], folder: Path, *, rows_per_shard: int, **form) -> None:
    """Write the shards of one part of the data. values: `packed` of each row's answer positions; form: of
    `stored`."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(-(-len(frame) // rows_per_shard)):
        chosen = file_rows(shard, rows_per_shard)
        blocks = [stored(value, **form) for value in values[chosen]]
        write_shard(blocks, frame.iloc[chosen], folder / f"shard-{shard:05d}.safetensors")


def write_height(vocabulary: int, path: Path) -> None:
    """The head of a teacher that nobody here has: of it only its height is read."""
    with atomic_path(path) as partial:
        save_file({"head": torch.zeros(vocabulary, 1)}, partial)


def scores(
    server: Server,
    teacher: Path,
    frame,
    k: int,
    vocabulary: int,
    journal: asking.Journal,
    *,
    parallel: int,
    unit: str,
) -> list[dict]:
    """`packed` of each row's answer positions. frame: EncodedRows; teacher, parallel, unit: as of
    `asking.answers`."""
    of = sha256_file(teacher)
    questions = [
        {"teacher": of, "ids": frame.value("input_ids", row).tolist(), "k": k, "vocabulary": vocabulary}
        | {"learned": np.flatnonzero(frame.value("targets", row) != -100).tolist(), "row": row}
        for row in range(len(frame))
    ]

    def ask(question: dict) -> dict:
        try:
            positions = server.scores(question["ids"], k)
            return packed([positions[place] for place in question["learned"]], k, vocabulary)
        except RefusedError as error:
            raise RefusedError(f"{unit}, number {question['row'] + 1}: {error}") from error

    return asking.ask_all(questions, ask, journal, parallel=parallel, unit=unit, stop=server.client.stop)
