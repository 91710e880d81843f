"""A teacher of another tokenizer: the cache of its own tokens, and which of them say what the student's do.

The rows of align_rows.py lie in a folder of the teacher's:

    train.parquet      the teacher's ids and mask of each row, the hash of the student's row (`of`), and the
                       `spans` of the learned tokens, four numbers each: the student's first and the one
                       behind its last, then the teacher's
    common.parquet     the tokens that both vocabularies have: `student`, `teacher`
    manifest.json      with the teacher's vocabulary and template
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from kdag.data.rows import answer_tokens, read_rows
from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest, verify_files
from kdag.job.errors import UserError
from kdag.losses.fused_spans import span_distill_loss
from kdag.teacher.cache import TeacherCache


class AlignedTeacher:
    """In the place of a TeacherCache; `loss` is of spans and not of tokens."""

    keeps_rows, kept_as, logits = True, "aligned", None

    def __init__(self, rows: Path, manifest_path: Path, part: str, frame, data: dict, teacher=None):
        """rows: the teacher's Parquet file; the rest as TeacherCache takes it, of the student's rows.

        UserError if rows, cache and student's rows do not belong together.
        """
        made = rows.parent / "manifest.json"
        verify_files(made, (rows.name, "common."), SUBSET)
        self.read = read_rows(rows)  # what the teacher read, for what it cost
        self.cache = TeacherCache(manifest_path, part, self.read, read_manifest(made, SUBSET), teacher)
        table = pq.read_table(rows, columns=["of", "spans"])
        if table["of"].to_pylist() != frame["row_hash"].tolist():
            raise UserError(f"{rows} is not of the rows of this run; delete {made} and run snakemake again")
        if read_manifest(Path(manifest_path))["inputs"].get("data") != sha256_file(made):
            raise UserError(f"{manifest_path} is not of {rows}; delete it and run snakemake again")
        self.targets = [answer_tokens(row).astype(np.int64) for row in self.read["targets"]]
        self.spans = [np.array(row, dtype=np.int64).reshape(-1, 4) for row in table["spans"].to_pylist()]
        if not any(map(len, self.spans)):
            raise UserError(f"{rows}: no row could be aligned; the log of align_rows says why")
        common = pq.read_table(rows.with_name("common.parquet"))
        self.common = [torch.from_numpy(common[side].to_numpy()) for side in ("student", "teacher")]
        self.weights, self.head, self.cap = self.cache.weights, self.cache.head, self.cache.cap

    def to(self, device) -> None:
        self.head = self.head.to(device)
        self.common = [ids.to(device) for ids in self.common]

    def row(self, index: int) -> dict[str, torch.Tensor]:
        """hidden [n, d] and targets [n] of the teacher's learned tokens, spans [K, 4] within the row."""
        kept = {"targets": self.targets[index], "spans": self.spans[index]}
        return self.cache.row(index) | {name: torch.from_numpy(value) for name, value in kept.items()}

    def known(self, batch: dict, learn: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same of a batch: hidden [N, d], targets [N], spans [K, 4] among its learned tokens.

        learn [B, L]: which of the student's tokens are learned.
        """
        kept = batch["aligned"]
        theirs, real = kept["targets"] >= 0, kept["spans"][..., 0] >= 0
        sizes = torch.stack([learn.sum(1), theirs.sum(1)], 1)
        before = sizes.cumsum(0) - sizes
        spans = kept["spans"] + before.repeat_interleave(2, 1)[:, None]
        return {"hidden": kept["hidden"][theirs], "targets": kept["targets"][theirs], "spans": spans[real]}

    def loss(self, objective, hidden, head, labels, known: dict, cap, *, num_items, num_spans):
        """(loss, metrics) of learned tokens, hidden [N, d], labels [N]; known: of `known`; cap: of the
        student's logits. objective: training.schedule.Objective with an alignment."""
        params = objective.divergence_params or {}
        if objective.divergence:
            params = {"common": self.common, "divergence": objective.divergence, "divergence_params": params}
        return span_distill_loss(
            *(hidden, head, known["hidden"], self.head, labels, known["targets"]),
            *(known["spans"][:, :2], known["spans"][:, 2:]),
            loss=objective.alignment,
            loss_params=params,
            kl_weight=objective.kl_weight,
            temperature=objective.temperature,
            temperature_squared=objective.temperature_squared,
            use_ce=objective.use_ce,
            num_items=num_items,
            num_spans=num_spans,
            student_cap=cap,
            teacher_cap=self.cap,
        )
