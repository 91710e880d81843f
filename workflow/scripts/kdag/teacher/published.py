"""A teacher's log-probs that others published in DistillKit's format, as what `topk` stores of our rows.

A published set is a folder of Parquet files, found at any depth. A row of them has

    input_ids [L]                      token ids
    compressed_logprobs [m, bytes]     of what follows each of the first m tokens: see compressor.py
    bytepacked_indices [m, bytes]      ids of the tokens that these belong to: see bits.py
    attention_mask [L]                 if sequences were packed: 1, 1, ..., 2, 2, ..., the number of each

with m = L, or L - 1, as vLLM says nothing of what would follow the last token. Its settings are in
compression_config.yaml next to the files, which DistillKit writes when it captures, or are given.

The log-probs are at temperature 1 and of the k likeliest tokens; what is left of the mass is shared by the
others. No teacher is needed, and none is asked: that the tokens are the same, one by one, is what makes the
signal fit a row.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from kdag.files.atomic import atomic_path
from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest, write_manifest
from kdag.files.published import COLUMNS, SETTINGS, opened
from kdag.job.errors import UserError
from kdag.teacher import bits
from kdag.teacher.cache import write_shard
from kdag.teacher.compressor import Compressor
from kdag.teacher.sizes import index_bits
from kdag.teacher.storage import FLOOR, left_over

SEQUENCES = "attention_mask"
ROWS_AT_A_TIME = 16  # of a file: a packed one may have 8,192 tokens of 400 bytes


@dataclass(frozen=True)
class Sequence:
    """ids [L] int64; values and indices [m, bytes] uint8, of its first m tokens; where: file and row."""

    ids: np.ndarray
    values: np.ndarray
    indices: np.ndarray
    where: str


class Published:
    """A published set. settings: of DistillKit's `logprob_compressor`, with d; default: those next to it."""

    def __init__(self, folder: Path, settings: dict | None = None):
        self.folder = Path(folder)
        self.files = sorted(self.folder.rglob("*.parquet"))
        if not self.files:
            raise UserError(f"{folder}: no Parquet file")
        self.settings = dict(settings or self.own_settings())
        settings = dict(self.settings)
        try:
            self.vocabulary = int(settings.pop("d"))
            self.compressor = Compressor(**settings)
        except (KeyError, TypeError, ValueError) as error:
            lacking = isinstance(error, KeyError)
            why = "d, the size of the teacher's vocabulary, is missing" if lacking else error
            raise UserError(f"{folder}: no settings of a logprob_compressor: {why}") from error

    def own_settings(self) -> dict:
        path = self.folder / SETTINGS
        if not path.is_file():
            raise UserError(f"{path}: no such file; it should hold DistillKit's logprob_compressor")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise UserError(f"{path}: the keys of a logprob_compressor are needed")
        return found

    def sequences(self) -> Iterator[Sequence]:
        """Every sequence of every file, packed ones apart. UserError names a row that is none."""
        for path in self.files:
            file = opened(path)
            wanted, number = [*COLUMNS, *({SEQUENCES} & set(file.schema_arrow.names))], 0
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=wanted):
                for index in range(len(batch)):
                    row = {name: batch[name][index] for name in wanted}
                    yield from self.parts(row, f"{path}: row {number}")
                    number += 1

    def parts(self, row: dict, where: str) -> Iterator[Sequence]:
        """A row's sequences: itself, or those that were packed into it."""
        try:
            ids = row["input_ids"].values.to_numpy(zero_copy_only=False).astype(np.int64)
            values, indices = (table(row[name]) for name in COLUMNS[1:])
        except (AttributeError, ValueError, TypeError) as error:
            raise UserError(f"{where}: token ids and rows of bytes are needed: {error}") from error
        if len(values) != len(indices) or len(ids) - len(values) not in (0, 1):
            raise UserError(
                f"{where}: {len(ids)} tokens, {len(values)} rows of log-probs and {len(indices)} of ids"
            )
        starts = [0]
        if SEQUENCES in row:
            owner = row[SEQUENCES].values.to_numpy(zero_copy_only=False)
            starts += (np.flatnonzero(np.diff(owner)) + 1).tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            yield Sequence(ids[start:end], values[start:end], indices[start:end], where)

    def stored(self, found: Sequence, learned: np.ndarray, vocabulary: int) -> dict[str, torch.Tensor]:
        """What `topk` stores of the positions `learned` of a sequence, in float32.

        vocabulary: of ours. A published id beyond it, a row of padding in the teacher's head, is left out: it
        takes the likeliest token's place and number once more.
        """
        try:
            logp = self.compressor.decompress(torch.from_numpy(found.values[learned]))
            packed = torch.from_numpy(found.indices[learned])
            ids = bits.unpack(packed, index_bits(self.vocabulary), self.compressor.k)
        except ValueError as error:
            raise UserError(f"{found.where}: other settings than it was written with: {error}") from error
        beyond = ids >= vocabulary
        if not logp.isfinite().all() or beyond[:, 0].any() or (logp > 1).any():
            raise UserError(f"{found.where}: these are no log-probs, or of other settings")
        others = vocabulary - (~beyond).sum(-1)
        left = left_over(logp.masked_fill(beyond, FLOOR), others)
        ids, logp = torch.where(beyond, ids[:, :1], ids), torch.where(beyond, logp[:, :1], logp)
        return {"ids": ids.int(), "logp": logp, "tail": left}

    def of_rows(self, frame, vocabulary: int) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """(index, what `topk` stores of its learned positions) of every row, in the order of the set.

        frame: encoded rows. A row's tokens up to the one before its last learned one must be those at the
        beginning of a published sequence, and what it learns must lie within the log-probs. UserError, in one
        line, names the first row of which that is not so.
        """
        wanted = {}
        for index, (ids, targets) in enumerate(zip(frame["input_ids"], frame["targets"], strict=True)):
            learned = np.flatnonzero(np.asarray(targets) != -100)
            seen = np.asarray(ids, dtype=np.int64)[: learned[-1] + 1 if len(learned) else 0]
            wanted.setdefault((len(seen), digest(seen)), []).append((index, learned))
        lengths = sorted({length for length, _ in wanted})
        for sequence in self.sequences():
            for key in beginnings(sequence.ids[: len(sequence.values)], lengths):
                for index, learned in wanted.pop(key, ()):
                    yield index, self.stored(sequence, learned, vocabulary)
            if not wanted:
                return
        missing = [index for rows in wanted.values() for index, _ in rows]
        if missing:
            raise UserError(self.missing(frame, sorted(missing)))

    def missing(self, frame, rows: list[int]) -> str:
        """Which rows no sequence has the tokens of, and how far the nearest goes along with the first."""
        ids, best, told = np.asarray(frame["input_ids"][rows[0]], dtype=np.int64), -1, ""
        for sequence in self.sequences():
            length = min(len(ids), len(sequence.values))
            differing = np.flatnonzero(ids[:length] != sequence.ids[:length])
            same = int(differing[0]) if len(differing) else length
            if same > best:
                other = f"{sequence.ids[same]} instead of {ids[same]}" if len(differing) else "no more"
                best, told = same, f"{sequence.where} has its first {same} tokens, and then {other}"
        return (
            f"{self.folder} lacks {len(rows)} of {len(frame)} rows, the first of them row {rows[0]}: {told}; "
            "rows, template and tokenizer must be those that it was captured with"
        )


def table(rows) -> np.ndarray:
    """A Parquet list of lists of bytes, all of one length, as uint8 [rows, bytes]."""
    inner = rows.values
    if not len(inner):
        return np.zeros((0, 0), dtype=np.uint8)
    flat = inner.flatten().to_numpy(zero_copy_only=False)
    if len(flat) % len(inner) or flat.min() < 0 or flat.max() > 255:
        raise ValueError("rows of bytes of one length")
    return flat.astype(np.uint8).reshape(len(inner), -1)


def digest(ids: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(ids, dtype=np.int64).tobytes()).digest()


def beginnings(ids: np.ndarray, lengths: list[int]) -> Iterator[tuple[int, bytes]]:
    """(length, digest) of the beginnings of these lengths."""
    hashed, done = hashlib.sha256(), 0
    for length in lengths:
        if length > len(ids):
            return
        hashed.update(np.ascontiguousarray(ids[done:length], dtype=np.int64).tobytes())
        done = length
        yield length, hashed.digest()


def write_published(
    published: Published,
    frame,
    data: Path,
    manifest: Path,
    *,
    params: dict,
    teacher: str,
    rows_per_shard: int = 512,
) -> None:
    """A teacher's cache of `frame` from a published set, which training reads as any other.

    frame: the encoded rows; data: the manifest that lies next to them; teacher: the hash of the set's
    manifest. Held in memory until it is written: 6 k + 4 bytes a token. Of the head only the vocabulary is
    left, as nothing is multiplied with it.
    """
    subset, folder = read_manifest(data, SUBSET), manifest.parent
    blocks: list[dict] = [None] * len(frame)
    for index, stored in published.of_rows(frame, subset["vocabulary_size"]):
        blocks[index] = stored | {"logp": stored["logp"].half()}
    with atomic_path(folder / "train") as partial:
        partial.mkdir(parents=True)
        for number, start in enumerate(range(0, len(frame), rows_per_shard)):
            rows = frame.iloc[start : start + rows_per_shard]
            write_shard(
                blocks[start : start + rows_per_shard], rows, partial / f"shard-{number:05d}.safetensors"
            )
    with atomic_path(folder / "head.safetensors") as path:
        save_file({"head": torch.zeros(subset["vocabulary_size"], 0)}, path)
    write_manifest(
        manifest,
        stage="cache_published",
        params=params,
        inputs={"teacher": teacher, "data": sha256_file(data)},
        outputs=[folder / "train", folder / "head.safetensors"],
        row_hashes={"train": frame["row_hash"].tolist()},
        store={"train": "topk"},
        **{key: subset[key] for key in SUBSET},
    )
