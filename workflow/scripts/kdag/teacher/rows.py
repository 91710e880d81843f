"""Answers as rows that take the place of the data set's."""

from pathlib import Path

import pyarrow.parquet as pq

from kdag.data.rows import Writer
from kdag.files.atomic import atomic_path
from kdag.files.hashes import sha256_json


def write_rows(
    rows: Path, prompts: list[list[int]], answers: list[list[int]], texts: list[str], output: Path
) -> None:
    """`rows` with these answers, into `output`. A row keeps its place and its prompt; of its answer every
    token is learned."""
    source = pq.read_table(rows, columns=["row", "prompt"]).to_pylist()
    with atomic_path(output) as partial, Writer(partial) as writer:
        for known, prompt, answer, text in zip(source, prompts, answers, texts, strict=True):
            ids = [*prompt, *answer]
            mask = [0] * len(prompt) + [1] * len(answer)
            writer.write(
                {
                    **known,
                    "row_hash": sha256_json([ids, mask]),
                    "input_ids": ids,
                    "response_mask": mask,
                    "response": text,
                }
            )
