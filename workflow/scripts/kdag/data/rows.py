"""Rows of a data set -> token ids and response mask, split into those that train and those held out."""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kdag.config.sources import Data
from kdag.data import formats, template
from kdag.data.formats import Conversation
from kdag.data.template import Chat, RefusedError
from kdag.files.atomic import atomic_path
from kdag.files.hashes import canonical_json, sha256_json, sha256_text
from kdag.files.manifest import verify_beside
from kdag.job.errors import UserError

MOST_BAD_ROWS_SHOWN = 10
TOKENS_AT_A_TIME = 2**20  # of a file that is written: rows may be short and many, or long and few
LEFT_OUT = ("bad", "dropped_overlong", "heldout_repeats_train")  # why a row is, in a subset's report


def conversation(row: dict, settings: Data, chat: Chat) -> Conversation:
    """A row's conversation; ValueError says why it cannot be learned."""
    try:
        found = formats.conversation(settings, row, settings.learn)
    except (TypeError, AttributeError, KeyError) as error:  # a value of another kind, somewhere inside
        raise ValueError(f"it is no conversation: {error}") from error
    if chat.thinking is None and any("reasoning_content" in message for message in found.messages):
        raise ValueError("it has reasoning; chat.thinking says what is learned of it: keep, strip or off")
    return found


def subset(
    rows: Iterable[dict],
    tokenizer,
    chat: Chat,
    settings: Data,
    keep: Callable[[str, dict], None],
    positions: int | None = None,
) -> dict:
    """Split and encode rows, one by one. The first train_rows train; the next heldout_rows are held out, less
    those whose text trains.

    keep: is given "train" or "heldout" and {row (number in the source, from 0), row_hash, input_ids,
    response_mask, prompt, response}. positions: that the models have. Returns the report: what was kept, and
    which rows were left out and why.
    """
    most = min(settings.max_tokens, positions or settings.max_tokens)
    report = {"bad": [], "dropped_overlong": [], "truncated": [], "heldout_repeats_train": []}
    counts = {part: {"rows": 0, "tokens": 0, "answer_tokens": 0} for part in ("train", "heldout")}
    seen, bad = set(), {}
    rows = iter(rows)
    first = list(itertools.islice(rows, template.TRIED))
    template.check_rows(tokenizer, chat, [c for row in first if (c := _learnable(row, settings, chat))])
    for number, row in enumerate(itertools.chain(first, rows)):
        part = "train" if number < settings.train_rows else "heldout"
        try:
            found = conversation(row, settings, chat)
            text_hash = sha256_text(canonical_json(found.prompt.split()))[:16]
            if part == "heldout" and text_hash in seen:
                report["heldout_repeats_train"].append(number)
                continue
            encoded = (
                template.encode(tokenizer, chat, found) if not bad or settings.bad_rows == "drop" else []
            )
        except (ValueError, RefusedError) as error:
            bad[number] = str(error)
            continue
        if part == "train":
            seen.add(text_hash)
        for ids, mask in encoded:
            ids, mask, done = cut(number, ids, mask, most, settings)
            if done:
                report[done].append(number)
            if done == "dropped_overlong":
                continue
            counts[part]["rows"] += 1
            counts[part]["tokens"] += len(ids)
            counts[part]["answer_tokens"] += sum(mask)
            keep(
                part,
                {
                    "row": number,
                    "row_hash": sha256_json([ids, mask]),
                    "input_ids": ids,
                    "response_mask": mask,
                    "prompt": found.prompt,
                    "response": found.response,
                },
            )
    if bad and settings.bad_rows == "error":
        shown = [
            f"row {number}: {reason}" for number, reason in itertools.islice(bad.items(), MOST_BAD_ROWS_SHOWN)
        ]
        more = f"\n... and {len(bad) - len(shown)} more" * (len(bad) > len(shown))
        lines = "\n".join(shown) + more
        raise UserError(f"bad rows in the data: {lines}; data.bad_rows: drop would leave them out")
    report["bad"] = [{"row": number, "reason": reason} for number, reason in bad.items()]
    for part, kept in counts.items():
        if not kept["rows"]:
            left = ", ".join(f"{key}: {len(report[key])} rows" for key in LEFT_OUT)
            raise UserError(f"no row is left in the {part} part; {left}")
    return report | counts


def cut(number: int, ids: list, mask: list, most: int, settings: Data) -> tuple[list, list, str]:
    """(ids, mask, what was done) of an encoded row that may be longer than `most`; UserError as settings say.

    Done is "", "truncated" or "dropped_overlong", also of a row whose answer would be cut off whole.
    """
    if len(ids) <= most:
        return ids, mask, ""
    if settings.overlong == "error":
        own = most == settings.max_tokens
        limit = f"data.max_tokens is {most}" if own else f"the models have {most} positions"
        raise UserError(f"row {number} has {len(ids)} tokens, {limit}")
    if settings.overlong == "drop" or not any(mask[:most]):
        return ids, mask, "dropped_overlong"
    return ids[:most], mask[:most], "truncated"


def write_subset(rows, tokenizer, chat: Chat, settings: Data, files: dict[str, Path], positions=None) -> dict:
    """`subset` into two Parquet files, {"train": path, "heldout": path}, or into none. Returns its report."""
    with contextlib.ExitStack() as stack:
        partial = {part: stack.enter_context(atomic_path(path)) for part, path in files.items()}
        writers = {part: stack.enter_context(Writer(path)) for part, path in partial.items()}
        return subset(rows, tokenizer, chat, settings, lambda part, row: writers[part].write(row), positions)


def _learnable(row: dict, settings: Data, chat: Chat) -> Conversation | None:
    try:
        return conversation(row, settings, chat)
    except ValueError:
        return None


SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "row_hash": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "response_mask": pa.list_(pa.int8()),
        "prompt": pa.string(),
        "response": pa.string(),
    }
)


# Of it, what is trained on.
STORED = pa.schema([SCHEMA.field(name) for name in ("row_hash", "input_ids", "response_mask")])


class Writer:
    """Rows into a Parquet file, some at a time."""

    def __init__(self, path: Path):
        self.file, self.waiting, self.tokens = pq.ParquetWriter(path, SCHEMA), [], 0

    def write(self, row: dict) -> None:
        kinds = {"input_ids": np.int32, "response_mask": np.int8}
        self.waiting.append(row | {name: np.asarray(row[name], dtype=kind) for name, kind in kinds.items()})
        self.tokens += len(row["input_ids"])
        if self.tokens >= TOKENS_AT_A_TIME:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            self.file.write_table(pa.Table.from_pylist(self.waiting, SCHEMA))
        self.waiting, self.tokens = [], 0

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        if not failed:
            self._flush()
        self.file.close()


def targets(input_ids, response_mask) -> np.ndarray:
    """The token to predict at each position, -100 where there is none to learn: the one shift."""
    following = np.where(np.asarray(response_mask[1:]) == 1, np.asarray(input_ids[1:]), -100)
    return np.append(following, -100).astype(np.int32)


def answer_tokens(row_targets: np.ndarray) -> np.ndarray:
    """The targets that are learned, in order: what a row's block in the teacher's cache predicts."""
    return row_targets[row_targets != -100]


class EncodedRows:
    """Encoded rows on disk, of which memory holds what is looked at, however many there are.

    Its columns are row_hash (text), input_ids, response_mask and targets (arrays of a row's length); `iloc`
    gives some of the rows, as of a data frame.
    """

    def __init__(self, table: pa.Table, sizes: np.ndarray, chosen=None):
        """sizes [rows, 2]: tokens and learned tokens of each row, as `sizes_of` gives them."""
        self.table, self.sizes = table, sizes
        self.chosen = range(len(table)) if chosen is None else chosen

    @classmethod
    def of(cls, input_ids, response_mask, row_hash=None) -> "EncodedRows":
        """Rows that are in memory already."""
        hashes = row_hash or [str(number) for number in range(len(input_ids))]
        columns = {"row_hash": hashes, "input_ids": list(input_ids), "response_mask": list(response_mask)}
        table = pa.table(columns, schema=STORED)
        return cls(table, sizes_of(table["response_mask"].combine_chunks()))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, name: str) -> "Column":
        return Column(self, name)

    def value(self, name: str, number: int):
        """A column's value of one row."""
        place = self.chosen[number]
        if name == "row_hash":
            return self.table["row_hash"][place].as_py()
        if name == "targets":
            return targets(self.value("input_ids", number), self.value("response_mask", number))
        return self.table[name][place].values.to_numpy()

    @property
    def iloc(self) -> "Some":
        return Some(self)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return self.sizes[np.asarray(self.chosen, dtype=np.int64), 0]

    @property
    def answer_tokens(self) -> int:
        """Learned tokens of all rows."""
        return int(self.sizes[np.asarray(self.chosen, dtype=np.int64), 1].sum())


def sizes_of(masks: pa.ListArray) -> np.ndarray:
    """Tokens, and learned tokens, of each row [rows, 2]; nothing comes before a first token to predict it."""
    ends = masks.offsets.to_numpy()
    flat = masks.values.to_numpy().astype(np.int32)
    total = np.concatenate([[0], np.cumsum(flat)])
    learned = total[ends[1:]] - total[np.minimum(ends[:-1] + 1, ends[1:])]
    return np.stack([np.diff(ends), learned], axis=1).astype(np.int32)


class Column:
    """One column of encoded rows, read row by row."""

    def __init__(self, rows: EncodedRows, name: str):
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int):
        return self.rows.value(self.name, number)

    def __iter__(self):
        return (self[number] for number in range(len(self)))

    def tolist(self) -> list:
        return list(self)


class Some:
    """rows.iloc[5:10], or [4, 2]: those rows, in this order."""

    def __init__(self, rows: EncodedRows):
        self.rows = rows

    def __getitem__(self, wanted) -> EncodedRows:
        chosen = self.rows.chosen
        some = chosen[wanted] if isinstance(wanted, slice) else [chosen[number] for number in wanted]
        return EncodedRows(self.rows.table, self.rows.sizes, some)


def prompts(rows: EncodedRows) -> list[list[int]]:
    """The tokens of each row before the last answer in it: what is given when that is sampled anew."""
    found = []
    for number in range(len(rows)):
        mask = np.asarray(rows.value("response_mask", number))
        last = np.flatnonzero(mask)[-1]
        given = np.flatnonzero(mask[:last] == 0)
        begin = given[-1] + 1 if len(given) else 1
        found.append(rows.value("input_ids", number)[:begin].tolist())
    return found


def answered(prompt: list[int], answer: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, targets) of a row with a sampled answer, of which every token is learned."""
    ids = np.array([*prompt, *answer], dtype=np.int32)
    return ids, targets(ids, [0] * len(prompt) + [1] * len(answer))


def longest(rows: EncodedRows, count: int) -> EncodedRows:
    """The `count` longest rows, the longest first."""
    return rows.iloc[np.argsort(-rows.lengths, kind="stable")[:count].tolist()]


def read_rows(path: Path) -> EncodedRows:
    """What `subset` wrote. UserError if the file is not what its manifest says."""
    verify_beside(path)
    # Unpacked into a file that is mapped and then has no name: memory holds the pages that are looked at, and
    # the disk has its room back when this process ends, however it ends.
    with tempfile.TemporaryDirectory(dir=Path(path).parent, prefix=".rows-") as folder:
        unpacked = Path(folder, "rows.arrow")
        sizes = [np.empty((0, 2), dtype=np.int32)]
        with pa.OSFile(str(unpacked), "wb") as sink, pa.ipc.new_file(sink, STORED) as writer:
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                part = file.read_row_group(group, columns=STORED.names).cast(STORED).combine_chunks()
                sizes += [sizes_of(masks) for masks in part["response_mask"].chunks]
                writer.write_table(part)
        pa.default_memory_pool().release_unused()
        return EncodedRows(pa.ipc.open_file(pa.memory_map(str(unpacked))).read_all(), np.concatenate(sizes))
