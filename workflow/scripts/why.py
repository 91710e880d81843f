"""Say why distilling did not help: what the evidence of an experiment points to, or that it is unknown.

python workflow/scripts/why.py --config experiments/demo.yaml

Reads the results and runs the untrained student once over the held-out rows; changes nothing.
"""

import math
from pathlib import Path

from kdag.config import precision, yaml_file
from kdag.config.kinds import STUDENT
from kdag.config.roster import SFT, STUDENT_UNTRAINED, TEACHER, behind_server, home_of
from kdag.config.schedules import numbers
from kdag.config.stages import source_name, stage_params
from kdag.config.teachers import FIRST
from kdag.files.manifest import SUBSET, read_manifest
from kdag.files.reading import read_jsonl
from kdag.files.seals import read_sealed
from kdag.job import cli
from kdag.job.errors import UserError
from kdag.report import why
from kdag.report.answers import far_more


def arguments():
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), help="the experiment")
    return parser


def rows_of(folder: Path, start: Path) -> why.Rows:
    """Of the training rows in `folder`; start: the untrained student, for its tokenizer."""
    import numpy as np

    from kdag.data.rows import read_rows
    from kdag.data.template import read_chat
    from kdag.models.load import load_tokenizer

    frame, ends = read_rows(folder / "train.parquet"), set(read_chat(folder / "chat.json").end_ids)
    tokenizer = load_tokenizer(start)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    control = np.array(sorted(special - ends))
    learned = shifted = controls = unended = 0
    for ids, targets in zip(frame["input_ids"], frame["targets"], strict=True):
        ids, targets = np.asarray(ids), np.asarray(targets)
        at = np.flatnonzero(targets != -100)
        following = np.append(ids[1:], -1)
        learned += len(at)
        shifted += int((targets[at] != following[at]).sum())
        controls += int(np.isin(targets[at], control).sum())
        unended += not ends & set(targets[at].tolist())
    return why.Rows(shifted / learned, controls / learned, unended / len(frame))


def pulls(config, results: Path, start: Path) -> dict[str, why.Pull]:
    """{strategy: Pull} of those with a divergence from the first teacher alone, from the untrained student's
    states and the teacher's."""
    import numpy as np
    import torch

    from kdag.data.rows import answer_tokens, read_rows
    from kdag.losses.cap import capped
    from kdag.losses.divergences import load as divergence
    from kdag.losses.fused import distill_loss
    from kdag.models import head, load
    from kdag.teacher.cache import TeacherCache, answer_states
    from kdag.teacher.sizes import FIDELITY_TOKENS

    data = read_manifest(results / "data" / "manifest.json", SUBSET)
    frame = read_rows(results / "data" / "heldout.parquet")
    cache = TeacherCache(results / "cache" / "manifest.json", "heldout", frame, data)
    dtype = precision.settle(config.evaluation.dtype, "evaluation.dtype")
    model = load.load_model(start, dtype, whole_rows=True)
    found = dict(answer_states(model, frame, FIDELITY_TOKENS, "rows through the untrained student"))
    states = torch.cat([found[i] for i in range(len(frame))]).float()
    weight = head.head_weight(model, len(cache.head)).detach().float()
    teacher = torch.cat([cache.row(i)["hidden"] for i in range(len(frame))]).to(states.device).float()
    above = cache.head.to(states.device).float()
    targets = torch.from_numpy(np.concatenate([answer_tokens(row) for row in frame["targets"]])).long()

    def gradient(**how):
        hidden = states.clone().requires_grad_()
        loss, _ = distill_loss(
            hidden,
            weight,
            teacher,
            above,
            targets.to(states.device),
            student_cap=head.logit_cap(model),
            teacher_cap=cache.cap,
            **how,
        )
        loss.backward()
        return hidden.grad.flatten()

    def entropy(temperature: float) -> float:
        total = 0.0
        for some in teacher.split(256):
            logp = capped(some @ above.T, cache.cap).div(temperature).log_softmax(-1)
            total -= float((logp.exp() * logp).sum())
        return total / len(teacher) / math.log(len(above))

    ce = gradient(divergence=None, divergence_params={}, kl_weight=0.0, temperature=1.0)
    at_1, made = entropy(1.0), {}
    for name, chosen in config.strategies.items():
        if chosen.alignment or config.teachers_of(name) != [FIRST]:
            continue  # what is known here is of the first teacher, token by token
        own = config.distillation_of(name)
        start_of = {key: numbers(value)[0] for key, value in chosen.divergence_params().items()}
        temperature, share = numbers(own.temperature)[0], numbers(own.kl_loss_weight)[0]
        pull = gradient(
            divergence=divergence(chosen.divergence),
            divergence_params=start_of,
            kl_weight=1.0,
            temperature=temperature,
            temperature_squared=own.temperature_squared,
            use_ce=False,
        )
        weights = (1 - share, share) if own.use_ce_loss else (0.0, 1.0)
        sizes = float(ce.norm()), float(pull.norm())
        cosine = float(ce @ pull) / max(sizes[0] * sizes[1], 1e-30)
        made[name] = why.Pull(
            weights[0] * sizes[0], weights[1] * sizes[1], cosine, entropy(temperature), at_1
        )
    return made


def student(config, results: Path, name: str, seed: int, pull, teacher: dict) -> why.Student:
    """teacher: its scores."""
    model = f"{name}-seed{seed}"
    scores = read_sealed(results / "eval" / model / "scores.json")
    near = read_sealed(results / "eval" / model / "fidelity.json")
    log = read_jsonl(results / home_of(config, model) / "training.jsonl")
    # Of answers that are the student's own, the loss is of other answers each time: it may rise.
    own = name != SFT and STUDENT in config.strategies[name].answers
    rose, stuck = (False, False) if own else why.rose_or_stuck(log)

    def more(kind: str) -> bool:
        return far_more(*([prompt[kind] for prompt in each["prompts"]] for each in (scores, teacher)))

    return why.Student(
        name,
        scores["prompt_level_strict_accuracy"],
        near["nll"],
        near["forward_kl"],
        rose=rose,
        stuck=stuck,
        cut_off=more("cut_off"),
        repeated=more("repeated"),
        pull=pull,
    )


def table(found: why.Evidence) -> str:
    head = ("student", "strict acc.", "NLL", "forward KL", "|CE|", "|D|", "cosine", "T entropy")
    lines = [("{:<28}" + " {:>10}" * 7).format(*head)]
    for each in found.students:
        pull = each.pull
        cells = [f"{each.accuracy:.4f}", f"{each.nll:.3f}", f"{each.forward_kl:.3f}"]
        cells += (
            [f"{pull.ce:.3g}", f"{pull.divergence:.3g}", f"{pull.cosine:.2f}", f"{pull.entropy:.1%}"]
            if pull
            else ["-"] * 4
        )
        lines.append(("{:<28}" + " {:>10}" * 7).format(each.name[:28], *cells))
    return "\n".join(
        [
            *lines,
            "",
            f"teacher: strict accuracy {found.teacher_accuracy:.4f}, NLL {found.teacher_nll:.3f} nats per "
            f"token of the held-out answers; untrained student: {found.untrained_nll:.3f}",
            "|CE|, |D|: sizes of the weighted gradients at the untrained student's hidden states;",
            "cosine: between them; T entropy: the teacher's at the strategy's temperature, as a share of a",
            "uniform distribution's",
        ]
    )


def main(args):
    config = yaml_file.read_config(args.config)
    results = Path("results", config.experiment)
    if behind_server(config):
        raise UserError("why compares with the states of a teacher that ran here; a server gives none")
    if FIRST in config.aligned():
        raise UserError("why compares token by token, and the teacher has another tokenizer")
    if not (results / "report" / "table.md").is_file():
        raise UserError(f"{results} is not finished: run it first, then ask why")
    home = results / "student"
    if not config.student.derive:
        home = Path("resources", "models", source_name(stage_params(config, "fetch_student")))
    start = home / "model"
    seed, rows = config.seeds[0], rows_of(results / "data", start)
    # Of labels that are not the answers' tokens nothing further can be said: the cache is of others.
    pull = {} if rows.shifted > why.SHIFTED else pulls(config, results, start)
    names = [SFT, *config.strategies]
    teacher = read_sealed(results / "eval" / TEACHER / "scores.json")
    untrained = read_sealed(results / "eval" / STUDENT_UNTRAINED / "fidelity.json")
    found = why.Evidence(
        rows=rows,
        teacher_nll=untrained["teacher_nll"],
        untrained_nll=untrained["nll"],
        teacher_accuracy=teacher["prompt_level_strict_accuracy"],
        students=[student(config, results, name, seed, pull.get(name), teacher) for name in names],
    )
    print(f"{table(found)}\n\n{why.paragraph(found)}")


if __name__ == "__main__":
    cli.run(main, arguments())
