"""The teacher's last hidden states on disk: write, verify, read.

Nothing is lost for any divergence or temperature at 2 d + 4 bytes per answer token in bf16, since the logits
are rebuilt from them with the teacher's head, which is stored once. They are those of the cache's batches: in
bfloat16 a live teacher, whose batches are others, rounds otherwise (live.py). Below the cache's folder:

    head.safetensors                 "head" [V, d], "cap" if its logits have a soft cap
    <part>/shard-00000.safetensors   "hidden" [n, d], "targets" [n] int32, "offsets" [rows + 1] int64
                                     (or the tensors of another scheme of storage.py)
    manifest.json                    hashes of all of it, row hashes, tokenizer and template hashes

Position i of a row's block is the hidden state that predicts the row's i-th answer token.
"""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdag.data.rows import answer_tokens
from kdag.files.atomic import atomic_path
from kdag.files.hashes import sha256_file
from kdag.files.manifest import CACHE, verify_files
from kdag.job.errors import UserError
from kdag.job.progress import Pace, Progress
from kdag.models.head import head_weight, hidden_states, logit_cap
from kdag.models.load import device
from kdag.teacher.storage import SCHEMES


def batches_by_length(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Indices grouped so that rows of like length share a batch of at most batch_tokens padded tokens."""
    batches, current = [], []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if current and lengths[current[0]] * (len(current) + 1) > batch_tokens:
            batches.append(current)
            current = []
        current.append(index)
    return [*batches, current] if current else batches


def pad(rows: list[np.ndarray], value: int) -> torch.Tensor:
    """Right-padded [B, L] int64."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(padded)


def count_tokens(frame) -> int:
    """Of whole rows: what a forward pass takes its time for."""
    return int(frame.lengths.sum())


@torch.no_grad()
def answer_states(model, frame, batch_tokens: int, unit: str, pace: Pace | None = None):
    """Yield (index into frame, hidden [n_i, d] of its answer positions) for every row, by length.

    pace: of the whole job, which is told the tokens of each pass.
    """
    ids, targets = frame["input_ids"].tolist(), frame["targets"].tolist()
    progress, done = Progress(len(ids), unit), 0
    for batch in batches_by_length([len(row) for row in ids], batch_tokens):
        rows = [ids[i] for i in batch]
        input_ids = pad(rows, 0).to(device())
        mask = pad([np.ones(len(row)) for row in rows], 0).to(device())
        hidden = hidden_states(model, input_ids, mask)
        for position, index in enumerate(batch):
            learn = torch.from_numpy(targets[index] != -100).to(hidden.device)
            yield index, hidden[position, : len(learn)][learn]
        done += len(batch)
        progress.update(done)
        if pace:
            pace.add(sum(map(len, rows)))


def file_rows(number: int, rows_per_shard: int) -> slice:
    """The rows of a part that lie in its file `number`."""
    return slice(number * rows_per_shard, (number + 1) * rows_per_shard)


def files_of_share(rows: dict[str, int], rows_per_shard: int, number: int, count: int):
    """{part: numbers of its files} of share `number` of `count`, the parts having so many rows each.

    A file's content depends on its rows alone. Shares are runs of files: in order they are the cache.
    """
    files = [(part, file) for part, n in rows.items() for file in range(-(-n // rows_per_shard))]
    first, end = (-(-share * len(files) // count) for share in (number, number + 1))
    return {part: [file for owner, file in files[first:end] if owner == part] for part in rows}


def write_part(
    model,
    frame,
    folder: Path,
    *,
    unit: str,
    batch_tokens: int,
    rows_per_shard: int,
    encode,
    files: list[int] | None = None,
    pace: Pace | None = None,
) -> None:
    """Write the shards of one part of the data, or those numbered `files`, each whole or absent.

    encode: (hidden [n, d], the row's hash) -> {name: tensor [n, ...]}, what is stored of a row's answer
    positions. pace: as `answer_states` takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(-(-len(frame) // rows_per_shard)) if files is None else files:
        rows = frame.iloc[file_rows(shard, rows_per_shard)]
        hashes, blocks = rows["row_hash"].tolist(), [None] * len(rows)
        for index, hidden in answer_states(model, rows, batch_tokens, f"{unit}, shard {shard}", pace):
            stored = encode(hidden, hashes[index])
            blocks[index] = {name: tensor.cpu() for name, tensor in stored.items()}
        write_shard(blocks, rows, folder / f"shard-{shard:05d}.safetensors")


def write_shard(blocks: list[dict], rows, target: Path) -> None:
    """One file, of what is stored of each of `rows`: {name: tensor [n_i, ...]}."""
    tokens = [answer_tokens(row) for row in rows["targets"]]
    with atomic_path(target) as path:
        save_file(
            {
                **{name: torch.cat([block[name] for block in blocks]) for name in blocks[0]},
                "targets": torch.from_numpy(np.concatenate(tokens)),
                "offsets": torch.tensor([0, *map(len, tokens)]).cumsum(0),
            },
            path,
        )


def write_head(model, vocabulary: int, path: Path, dtype: str) -> None:
    head = head_weight(model, vocabulary).to(getattr(torch, dtype)).cpu().contiguous()
    cap = logit_cap(model)
    with atomic_path(path) as partial:
        save_file({"head": head} | ({} if cap is None else {"cap": torch.tensor(cap)}), partial)


def slices(path: Path) -> dict:
    """{name: what reads a range of rows} of the tensors that a shard stores of its rows' tokens."""
    file = safe_open(path, "pt")
    names = set(file.keys()) - {"offsets", "targets"}
    return {name: file.get_slice(name) for name in sorted(names)}


class TeacherCache:
    """Random access to one part of a cache, checked against the rows it is used with.

    To training it is a teacher, as `live.LiveTeacher` is: `head` [V, d] and the soft `cap` of its logits;
    `keeps_rows`: a batch brings `row` of each of its rows; `known`: what is known of the teacher at a batch's
    learned positions; `logits`: makes logits of that, or None where it is hidden states, which the loss takes
    as they are; `weights`: that a token meets in it.
    """

    keeps_rows = True

    def __init__(self, manifest_path: Path, part: str, frame, data: dict, teacher: Path | None = None):
        """frame: the rows as `data.read_rows` gives them; data: the manifest that lies next to them;
        teacher: the manifest of the teacher that the cache should be of.

        UserError if tokenizer, template, teacher or any row is not what was cached.
        """
        folder = Path(manifest_path).parent
        manifest = verify_files(manifest_path, (f"{part}/", "head."), CACHE)
        rebuild = f"; delete {manifest_path} and run snakemake again to rebuild the cache"
        for what, key in (("tokenizer", "vocabulary_hash"), ("chat template", "template_hash")):
            if manifest[key] != data[key]:
                raise UserError(f"{folder} was made with another {what} than the data of this run{rebuild}")
        if teacher and manifest["inputs"]["teacher"] != sha256_file(teacher):
            raise UserError(f"{folder} was made from another teacher or adapter than {teacher}{rebuild}")
        cached, wanted = manifest["row_hashes"][part], frame["row_hash"].tolist()
        if cached != wanted:
            differing = next(
                (i for i, pair in enumerate(zip(cached, wanted, strict=False)) if len(set(pair)) > 1),
                min(len(cached), len(wanted)),
            )
            raise UserError(
                f"{folder}: the cached rows are not the rows of this run ({len(cached)} and {len(wanted)}, "
                f"the first that differs is number {differing}){rebuild}"
            )
        store = manifest["store"][part]
        stored = load_file(folder / "head.safetensors")
        self.weights = manifest.get("weights", 0)
        self.head, self.cap = stored["head"], stored["cap"].item() if "cap" in stored else None
        told = manifest["parameters"][part] if SCHEMES[store].told else {}
        self.logits = None if store == "hidden" else partial(SCHEMES[store].logits, cap=self.cap, **told)
        self.files, self.place = sorted((folder / part).glob("shard-*.safetensors")), []
        for number, path in enumerate(self.files):
            file = safe_open(path, "pt")
            offsets = file.get_tensor("offsets").tolist()
            stored = file.get_tensor("targets").numpy()
            first = len(self.place)
            rows = zip(offsets[:-1], offsets[1:], frame.iloc[first:]["targets"], strict=False)
            for start, end, targets in rows:
                if not np.array_equal(stored[start:end], answer_tokens(targets)):
                    raise UserError(f"{path}: row {len(self.place)} has other target tokens than the data")
                self.place.append((number, start, end))
        if len(self.place) != len(frame):
            raise UserError(f"{folder}: {len(self.place)} rows are cached, {len(frame)} are needed")
        self.shards = [slices(path) for path in self.files]
        logging.info("cache of %d rows in %s verified", len(self.place), folder / part)

    def __getstate__(self) -> dict:
        """What another process needs that reads rows ahead: `row`, which opens the files anew there."""
        return {"files": self.files, "place": self.place}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.shards = [slices(path) for path in self.files]

    def to(self, device) -> None:
        """Where the loss is taken."""
        self.head = self.head.to(device)

    def known(self, batch: dict, learn: torch.Tensor):
        """Hidden states [N, d], or the stored tensors of another scheme, {name: [N, ...]}."""
        return batch["teacher"] if self.logits else batch["teacher"]["hidden"]

    def row(self, index: int) -> dict[str, torch.Tensor]:
        """What is stored of row `index` of the frame, the first dimension of each tensor n_i."""
        shard, start, end = self.place[index]
        return {name: tensor[start:end] for name, tensor in self.shards[shard].items()}
