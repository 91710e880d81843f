"""Every method, from its name in the configuration to the gradient of its first step, against the definition
of its paper written out once more, in float64 and with plain autograd."""

from functools import partial

import numpy as np
import pytest
import torch
from test_methods import loaded
from test_rollouts import Live
from test_training import DATA, cache, frame, tokenizer  # noqa: F401

from kdag.config.methods import METHODS
from kdag.config.stages import stage_params
from kdag.config.training import read_job
from kdag.data.rows import prompts
from kdag.losses.divergences import load as divergence
from kdag.models import load
from kdag.teacher.cache import TeacherCache
from kdag.training import train
from kdag.training.job import Source, mixture_of
from kdag.training.rollouts import Rollouts
from kdag.training.schedule import Objective

STEP = {"epochs": 1, "batch_size": 4, "gradient_accumulation": 6, "dtype": "float32", "tuning": "full"}


def forward_kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def jensen_shannon(p, q, beta=0.5):
    """GKD's: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q."""
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return beta * forward_kl(p, m) + (1 - beta) * forward_kl(q, m)


def skewed(p, q):
    """DistiLLM's SKL, alpha 0.1: KL(p || 0.1 p + 0.9 q)."""
    return forward_kl(p, (0.1 * p.exp() + 0.9 * q.exp()).log())


def skewed_reverse(p, q):
    """DistiLLM's SRKL, alpha 0.1: KL(q || 0.9 p + 0.1 q)."""
    return forward_kl(q, (0.9 * p.exp() + 0.1 * q.exp()).log())


def taid(p, q, student, teacher):
    """TAID's first target: softmax(0.6 sg(student's logits) + 0.4 teacher's logits)."""
    target = torch.log_softmax(0.6 * student.detach() + 0.4 * teacher, -1)
    return forward_kl(target, q)


# Of each method: on others' answers, and on the student's own.
PAPERS = {
    "seqkd": (None, None),
    "imitkd": (forward_kl, forward_kl),
    "gkd": (jensen_shannon, jensen_shannon),
    "distillm": (skewed, skewed),
    "distillm-2": (skewed, skewed_reverse),
    "taid": (taid, None),
}


def test_every_method_has_its_definition_here():
    assert set(PAPERS) == set(METHODS)


def prepared(tiny_models, frame, cache, tokenizer, name, work):  # noqa: F811
    """(settings, further arguments of `train`) of a strategy that says `method`, as its job makes them."""
    strategy = {"method": name, "sampling": {"max_new_tokens": 8}}
    if name == "distillm":  # whose share begins at 0
        strategy["student_share"] = {"from": 0.5, "to": 1.0, "over": "adaptive"}
    config = loaded({"x": strategy}, distillation=STEP)
    settings = read_job(stage_params(config, "distill", strategy="x"))
    own = "student" in config.strategies["x"].answers
    sources = {kind: Source(frame, DATA) for kind in ("dataset", "teacher")}
    vocabulary = len(tokenizer)
    given = {"frame": frame, "settings": settings, "vocabulary": vocabulary, "work": work}
    if own:
        teacher = Live(load.load_model(tiny_models / "teacher", "float32", whole_rows=True), vocabulary)
        rollouts = partial(
            Rollouts,
            own=list(settings.answers).index("student"),
            prompts=prompts(frame),
            sampling=settings.sampling,
            seed=settings.seed,
            dtype="float32",
            vocabulary=vocabulary,
            end_ids=(tokenizer.eos_token_id,),
            tokenizer=tokenizer,
            pairs=settings.pairs,
        )
        given |= {"teacher": teacher, "rollouts": rollouts, "mixture": mixture_of(sources, settings)}
        given |= {"heldout": frame.iloc[:4]}
    else:
        given |= {"teacher": None if name == "seqkd" else TeacherCache(cache, "train", frame, DATA)}
    plain = settings.divergence == "none"
    return given | {"objective": Objective() if plain else Objective.of(settings, divergence)}


@pytest.mark.parametrize("name", PAPERS)
def test_the_first_step_is_the_papers(tiny_models, frame, cache, tokenizer, tmp_path, name):  # noqa: F811
    given = prepared(tiny_models, frame, cache, tokenizer, name, tmp_path)
    _, log = train.train(load.load_model(tiny_models / "student", "float32", whole_rows=True), **given)
    assert len(log) == 1
    student, teacher = (
        load.load_model(tiny_models / side, "float32").double() for side in ("student", "teacher")
    )
    student.train()
    rows = rows_of_the_step(given, name, tmp_path)
    assert log[0]["answer_tokens"] == sum(len(answer) for _, answer, _ in rows)
    others, own = PAPERS[name]
    total = 0
    for prompt, answer, is_own in rows:
        ids = torch.tensor([*prompt, *answer])[None]
        at = slice(len(prompt) - 1, ids.shape[1] - 1)
        z, y = (model(input_ids=ids).logits[0, at, : len(tokenizer)] for model in (student, teacher))
        q, p = torch.log_softmax(z, -1), torch.log_softmax(y.detach(), -1)
        law = own if is_own else others
        if law is None:
            total = total - q.gather(1, torch.tensor(answer)[:, None]).sum()
        else:
            total = total + (law(p, q, z, y.detach()) if law is taid else law(p, q)).sum()
    loss = total / log[0]["answer_tokens"]
    loss.backward()
    size = torch.stack([w.grad.norm() for w in student.parameters() if w.grad is not None]).norm()
    assert log[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert log[0]["grad_norm"] == pytest.approx(float(size), rel=1e-4)


def rows_of_the_step(given, name, work):
    """[(prompt, answer, whether the student's)], from the rows and from what was written down."""
    frame, asked = given["frame"], prompts(given["frame"])  # noqa: F811
    said = {entry["row"]: entry["tokens"] for entry in Rollouts.written(work)}
    rows = [(asked[row], tokens, True) for row, tokens in said.items()]
    if name == "distillm-2":
        assert len(said) == len(frame)
    elif "rollouts" in given:
        assert 0 < len(said) < len(frame)
    for row, ids in enumerate(frame["input_ids"]):
        if name == "distillm-2" or row not in said:
            rows.append((asked[row], np.asarray(ids)[len(asked[row]) :].tolist(), False))
    return rows
