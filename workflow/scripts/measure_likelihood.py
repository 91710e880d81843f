"""Measure on the held-out rows how likely a student holds the answers, per byte, next to a teacher of another
tokenizer, to which no divergence of tokens is defined."""

import json
from pathlib import Path

from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest, verify_beside
from kdag.files.records import recorded
from kdag.files.seals import write_sealed
from kdag.job import cli, progress
from kdag.job.errors import UserError
from kdag.job.gpu_lease import leased
from kdag.teacher.sizes import FIDELITY_TOKENS


def arguments():
    parser = cli.parser(__doc__, gpus=True)
    parser.add_argument("--config", type=json.loads, default={"dtype": "bfloat16"})
    parser.add_argument("--model", type=Path, required=True, help="the student's directory")
    parser.add_argument("--heldout", type=Path, required=True, help="heldout.parquet of the student")
    parser.add_argument("--aligned", type=Path, required=True, help="heldout.parquet of align_rows.py")
    parser.add_argument("--cache", type=Path, required=True, help="the cache's manifest.json")
    parser.add_argument("--output", type=Path, required=True, help="fidelity.json")
    return parser


def main(args):
    import pyarrow.parquet as pq
    import torch

    from kdag.config import precision
    from kdag.data.rows import answer_tokens, read_rows
    from kdag.evaluation.bytes import nll_per_byte
    from kdag.losses.fused_spans import token_logp
    from kdag.models import head, load
    from kdag.teacher.cache import TeacherCache, answer_states, count_tokens

    frame, theirs = read_rows(args.heldout), read_rows(args.aligned)
    verify_beside(args.aligned)
    table = pq.read_table(args.aligned, columns=["student_widths", "teacher_widths"])
    made = read_manifest(args.aligned.parent / "manifest.json", SUBSET)
    cache = TeacherCache(args.cache, "heldout", theirs, made)
    dtype = precision.settle(args.config["dtype"], "evaluation.dtype")
    model = load.load_model(args.model, dtype, gpus=args.gpus, whole_rows=True)
    vocabulary = read_manifest(args.heldout.parent / "manifest.json", SUBSET)["vocabulary_size"]
    pace = progress.Pace(count_tokens(frame))
    states = dict(
        answer_states(model, frame, FIDELITY_TOKENS, f"rows through {args.model.parent.name}", pace)
    )

    ours, read = (table[side].to_pylist() for side in ("student_widths", "teacher_widths"))
    both = [a is not None and b is not None for a, b in zip(ours, read, strict=True)]

    @torch.inference_mode()
    def per_byte(hidden, weight, cap, rows, widths):
        """Of every row, and of those that both models read."""
        targets = [torch.from_numpy(answer_tokens(row)).long() for row in rows["targets"]]
        weight = weight.to(load.device())
        nll = [
            -token_logp(kept.to(weight.device, weight.dtype), weight, wanted.to(weight.device), cap=cap).cpu()
            for kept, wanted in zip(hidden, targets, strict=True)
        ]
        lengths = [len(row) for row in targets]
        shared = [taken if there else None for taken, there in zip(widths, both, strict=True)]
        return [nll_per_byte(torch.cat(nll), lengths, each) for each in (widths, shared)]

    every, student = per_byte(
        [states[i] for i in range(len(frame))],
        head.head_weight(model, vocabulary).detach(),
        head.logit_cap(model),
        *(frame, ours),
    )
    _, teacher = per_byte(
        [cache.row(i)["hidden"] for i in range(len(theirs))],
        cache.head,
        cache.cap,
        theirs,
        read,
    )
    if not any(both):
        raise UserError(f"{args.aligned}: both models read no held-out row; the log of align_rows says why")
    inputs = {
        "model": sha256_file(args.model.parent / "manifest.json"),
        "cache": sha256_file(args.cache),
    }
    by_row = every["by_row"]
    write_sealed(
        args.output,
        {
            **{key: value for key, value in student.items() if key != "by_row"},
            "teacher_nats_per_byte": teacher["nats_per_byte"],
            "by_row": {"nats_per_byte": by_row},
            **{"rows": len(frame), "dtype": dtype, "inputs": inputs, "params": args.config},
        },
    )


if __name__ == "__main__":
    cli.run(recorded(leased(main)), arguments())
