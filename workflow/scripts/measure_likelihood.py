"""Measure on the held-out rows how likely a student holds the answers, per byte, next to a teacher of another
tokenizer, to which no divergence of tokens is defined."""

import json
from pathlib import Path

from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest, verify_beside
from kdag.files.records import recorded
from kdag.files.seals import write_sealed
from kdag.job import cli, progress
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

    @torch.inference_mode()
    def per_byte(hidden, weight, cap, rows, widths):
        targets = [torch.from_numpy(answer_tokens(row)).long() for row in rows["targets"]]
        weight = weight.to(load.device())
        nll = [
            -token_logp(kept.to(weight.device, weight.dtype), weight, wanted.to(weight.device), cap=cap).cpu()
            for kept, wanted in zip(hidden, targets, strict=True)
        ]
        return nll_per_byte(torch.cat(nll), [len(row) for row in targets], widths.to_pylist())

    student = per_byte(
        [states[i] for i in range(len(frame))],
        head.head_weight(model, vocabulary).detach(),
        head.logit_cap(model),
        *(frame, table["student_widths"]),
    )
    teacher = per_byte(
        [cache.row(i)["hidden"] for i in range(len(theirs))],
        cache.head,
        cache.cap,
        theirs,
        table["teacher_widths"],
    )
    inputs = {
        "model": sha256_file(args.model.parent / "manifest.json"),
        "cache": sha256_file(args.cache),
    }
    by_row = student.pop("by_row")
    write_sealed(
        args.output,
        {
            **student,
            "teacher_nats_per_byte": teacher["nats_per_byte"],
            "by_row": {"nats_per_byte": by_row},
            **{"rows": len(frame), "dtype": dtype, "inputs": inputs, "params": args.config},
        },
    )


if __name__ == "__main__":
    cli.run(recorded(leased(main)), arguments())
