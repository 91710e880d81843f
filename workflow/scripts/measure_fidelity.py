"""Measure on the held-out rows how close a student is to the fine-tuned teacher, and how far it moved."""

import json
from pathlib import Path

from kdag.files.hashes import sha256_file
from kdag.files.manifest import SUBSET, read_manifest
from kdag.files.records import recorded
from kdag.files.seals import write_sealed
from kdag.job import cli, progress
from kdag.job.gpu_lease import leased
from kdag.teacher.sizes import FIDELITY_TOKENS


def arguments():
    parser = cli.parser(__doc__, gpus=True)
    parser.add_argument("--config", type=json.loads, default={"dtype": "bfloat16"})
    parser.add_argument("--model", type=Path, required=True, help="the student's directory")
    parser.add_argument("--untrained", type=Path, required=True, help="the untrained student's directory")
    parser.add_argument("--heldout", type=Path, required=True, help="heldout.parquet")
    parser.add_argument("--cache", type=Path, required=True, help="the cache's manifest.json")
    parser.add_argument("--output", type=Path, required=True, help="fidelity.json")
    return parser


def main(args):
    import numpy as np
    import torch

    from kdag.config import precision
    from kdag.data.rows import answer_tokens, read_rows
    from kdag.evaluation.fidelity import fidelity
    from kdag.models import head, load
    from kdag.teacher.cache import TeacherCache, answer_states, count_tokens

    frame = read_rows(args.heldout)
    cache = TeacherCache(
        args.cache, "heldout", frame, read_manifest(args.heldout.parent / "manifest.json", SUBSET)
    )
    vocabulary = len(cache.head)
    dtype = precision.settle(args.config["dtype"], "evaluation.dtype")
    pace = progress.Pace(count_tokens(frame) * len({args.untrained, args.model}))

    caps = {}

    def states_and_head(directory):
        model = load.load_model(directory, dtype, gpus=args.gpus, whole_rows=True)
        caps["student"] = head.logit_cap(model)
        hidden = dict(
            answer_states(model, frame, FIDELITY_TOKENS, f"rows through {directory.parent.name}", pace)
        )
        return (
            torch.cat([hidden[i].cpu() for i in range(len(frame))]),
            head.head_weight(model, vocabulary).detach().to(load.device(), copy=True),
        )

    untrained = states_and_head(args.untrained)
    student = untrained if args.model == args.untrained else states_and_head(args.model)
    targets = [answer_tokens(row) for row in frame["targets"]]
    rows = [cache.row(i) for i in range(len(frame))]
    known = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    measures = fidelity(
        *student,
        known["hidden"] if cache.logits is None else known,
        cache.head.to(load.device()),
        untrained,
        torch.from_numpy(np.concatenate(targets)).long(),
        [len(row) for row in targets],
        caps=(caps["student"], cache.cap),
        teacher_logits=cache.logits,
    )
    inputs = {
        "model": sha256_file(args.model.parent / "manifest.json"),
        "cache": sha256_file(args.cache),
    }
    write_sealed(
        args.output, {**measures, "rows": len(frame), "dtype": dtype, "inputs": inputs, "params": args.config}
    )


if __name__ == "__main__":
    cli.run(recorded(leased(main)), arguments())
