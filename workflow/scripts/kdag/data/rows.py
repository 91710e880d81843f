"""Instruction rows -> chat template -> token ids and response mask.

The one place that decides which tokens a model learns from: the answer and the token that ends it.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kdag.data import template
from kdag.files.hashes import canonical_json, sha256_json, sha256_text
from kdag.files.manifest import verify_beside
from kdag.job.errors import UserError

MOST_BAD_ROWS_SHOWN = 10


@dataclass(frozen=True)
class Fields:
    """The columns of an instruction row; `input` may be absent."""

    instruction: str
    input: str | None
    output: str


def messages(row: dict, fields: Fields) -> list[dict]:
    """One user turn and one assistant turn. ValueError says what is wrong with the row."""
    for field in filter(None, (fields.instruction, fields.output)):
        if field not in row:
            raise ValueError(f"field {field!r} is missing; the row has {', '.join(row) or 'none'}")
    texts = {}
    for field in filter(None, (fields.instruction, fields.input, fields.output)):
        value = row.get(field)
        if value is None and field == fields.input:
            value = ""
        if not isinstance(value, str):
            raise ValueError(f"field {field!r} must be text, got {type(value).__name__}: {value!r:.60}")
        texts[field] = value
    for field in (fields.instruction, fields.output):
        if not texts[field].strip():
            raise ValueError(f"field {field!r} is empty")
    further = texts.get(fields.input, "").strip()
    user = texts[fields.instruction] + (f"\n\n{further}" if further else "")
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": texts[fields.output]},
    ]


def encode(tokenizer, conversation: list[dict], end_ids: set[int]) -> tuple[list[int], list[int]]:
    """Token ids of prompt and answer, and a mask that is 1 on the answer up to its end token.

    What the template puts behind the end token (a line break, mostly) is left out: no model is asked for
    it. The mask marks tokens as targets: whoever predicts token i does so from position i - 1.
    """
    options = {"tokenize": True, "return_dict": False}
    prompt = template.apply(tokenizer, conversation[:-1], add_generation_prompt=True, **options)
    whole = template.apply(tokenizer, conversation, **options)
    if whole[: len(prompt)] != prompt:
        raise UserError(
            "the chat template renders a prompt differently once its answer follows, so the answer's "
            "tokens cannot be told from the prompt's; use a model with another template"
        )
    answer = whole[len(prompt) :]
    ends = [i for i, token in enumerate(answer) if token in end_ids]
    answer = answer[: ends[-1] + 1] if ends else [*answer, tokenizer.eos_token_id]
    return prompt + answer, [0] * len(prompt) + [1] * len(answer)


def subset(rows, tokenizer, end_ids, *, fields: Fields, train_rows, heldout_rows, max_tokens, overlong):
    """Split and encode. rows: list of dicts. Returns (train, heldout, report): two data frames and counts.

    Columns: row (number in the source, from 0), row_hash, input_ids, response_mask, prompt, response.
    The first train_rows rows train; the next heldout_rows are held out, less those whose text trains.
    """
    if len(rows) < train_rows + heldout_rows:
        raise UserError(
            f"data.train_rows + data.heldout_rows = {train_rows + heldout_rows}, but the data set has "
            f"{len(rows)} rows"
        )
    rows = rows[: train_rows + heldout_rows]
    conversations, bad = [], []
    for number, row in enumerate(rows):
        try:
            conversations.append(messages(row, fields))
        except ValueError as error:
            bad.append(f"row {number}: {error}")
    if bad:
        more = f"\n... and {len(bad) - MOST_BAD_ROWS_SHOWN} more" * (len(bad) > MOST_BAD_ROWS_SHOWN)
        raise UserError("bad rows in the data: " + "\n".join(bad[:MOST_BAD_ROWS_SHOWN]) + more)

    template.check("student", tokenizer, conversations)
    seen, parts = set(), {"train": [], "heldout": []}
    report = {"dropped_overlong": [], "truncated": [], "heldout_repeats_train": []}
    for number, conversation in enumerate(conversations):
        part = "train" if number < train_rows else "heldout"
        text_hash = sha256_text(canonical_json(conversation[0]["content"].split()))
        if part == "train":
            seen.add(text_hash)
        elif text_hash in seen:
            report["heldout_repeats_train"].append(number)
            continue
        ids, mask = encode(tokenizer, conversation, end_ids)
        if len(ids) > max_tokens:
            if overlong == "error":
                raise UserError(f"row {number} has {len(ids)} tokens, data.max_tokens is {max_tokens}")
            if overlong == "drop" or not any(mask[:max_tokens]):
                report["dropped_overlong"].append(number)
                continue
            report["truncated"].append(number)
            ids, mask = ids[:max_tokens], mask[:max_tokens]
        parts[part].append(
            {
                "row": number,
                "row_hash": sha256_json([ids, mask]),
                "input_ids": np.array(ids, dtype=np.int32),
                "response_mask": np.array(mask, dtype=np.int8),
                "prompt": conversation[0]["content"],
                "response": conversation[1]["content"],
            }
        )
    left_out = dict(report)
    for part, kept in parts.items():
        if not kept:
            counts = ", ".join(f"{key}: {len(rows)} rows" for key, rows in left_out.items())
            raise UserError(f"no row is left in the {part} part; {counts}")
        report[part] = {
            "rows": len(kept),
            "tokens": sum(len(row["input_ids"]) for row in kept),
            "answer_tokens": int(sum(row["response_mask"].sum() for row in kept)),
        }
    return pd.DataFrame(parts["train"]), pd.DataFrame(parts["heldout"]), report


def targets(input_ids, response_mask) -> np.ndarray:
    """The token to predict at each position, -100 where there is none to learn: the one shift."""
    following = np.where(np.asarray(response_mask[1:]) == 1, np.asarray(input_ids[1:]), -100)
    return np.append(following, -100).astype(np.int32)


def answer_tokens(row_targets: np.ndarray) -> np.ndarray:
    """The targets that are learned, in order: what a row's block in the teacher's cache predicts."""
    return row_targets[row_targets != -100]


def read_rows(path) -> pd.DataFrame:
    """What `subset` wrote, without the texts and with the `targets`; small-integer arrays.

    UserError if the file is not what its manifest says.
    """
    verify_beside(path)
    frame = pd.read_parquet(path, columns=["row_hash", "input_ids", "response_mask"])
    pairs = zip(frame["input_ids"], frame["response_mask"], strict=True)
    frame["targets"] = [targets(ids, mask) for ids, mask in pairs]
    return frame
