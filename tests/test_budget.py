"""Students that may take as much as others do: of tokens, steps or FLOPs, counted, also after a kill."""

from functools import partial

import pytest
import torch
from test_methods import loaded
from test_rollouts import OWN, run, run_killed
from test_training import DATA, cache, frame, job, tokenizer, trained  # noqa: F401

from kdag.config.stages import stage_params
from kdag.job.errors import UserError
from kdag.losses.divergences import load as divergence
from kdag.models import load
from kdag.teacher.cache import TeacherCache
from kdag.training import checkpoints, train
from kdag.training.budget import Budget, logged
from kdag.training.cost import cost


def allowed(frame, equal, epochs, teacher=(0, 0), live=True):  # noqa: F811
    """As the data's manifest and a strategy's parameters give it to a job."""
    counts = {
        "rows": len(frame),
        "tokens": int(frame.lengths.sum()),
        "answer_tokens": frame.answer_tokens,
    }
    return partial(Budget.of, {"equal": equal, "epochs": epochs, "rows_per_step": 8}, counts, teacher, live)


def settings(equal, given, **changes):
    return job(budget={"equal": equal, "epochs": given, "rows_per_step": 8}, **changes)


def test_a_budget_of_steps_is_the_epochs_that_have_them(tiny_models, frame, tokenizer, tmp_path):  # noqa: F811
    """Another number of epochs than its own, with the very schedule of the learning rate that those have."""

    def fine_tuned(work, chosen, **further):
        model = load.load_model(tiny_models / "student", "float32", whole_rows=True)
        return train.train(
            model,
            frame,
            settings=chosen,
            objective=train.Objective(),
            teacher=None,
            vocabulary=len(tokenizer),
            work=work,
            **further,
        )

    whole, log = fine_tuned(tmp_path / "whole", job(epochs=3, warmup_ratio=1 / 3, schedule="linear"))
    within, same = fine_tuned(
        tmp_path / "within",
        settings("steps", 3, epochs=1, warmup_ratio=1 / 3, schedule="linear"),
        allowed=allowed(frame, "steps", 3),
    )
    assert len(log) == len(same) == 9
    rates = [step["learning_rate"] for step in log]
    assert [step["learning_rate"] for step in same] == pytest.approx(rates, rel=1e-4, abs=1e-9)
    torch.testing.assert_close(trained(within), trained(whole), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("equal", ["tokens", "flops"])
def test_a_student_that_answers_itself_stops_nearest_to_the_budget_and_a_kill_changes_nothing(
    equal,
    tiny_models,
    frame,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    teacher = (1000, 0)
    how = {
        "settings": settings(equal, 2, epochs=50, schedule="linear"),
        "allowed": allowed(frame, equal, 2, teacher),
        "temperature": {"from": 2.0, "to": 1.0, "over": "linear"},
    }
    whole, log, said = run(tiny_models, frame, tmp_path / "whole", OWN, **how)
    from kdag.models.weights import weights_of

    weights = weights_of(whole)
    budget = how["allowed"](weights=weights)
    taken = [budget.taken(step) for step in logged(log)]
    assert abs(sum(taken) - budget.most) <= max(taken)
    if equal == "tokens":
        assert budget.most == 2 * frame.answer_tokens
    else:
        count = cost(log, weights, (1000, sum(step["tokens"] for step in log)))
        assert count["flops"] == sum(taken) and budget.most == pytest.approx(
            (4 * weights[0] + 2 * weights[1]) * 2 * int(frame.lengths.sum())
        )
    rates = [step["learning_rate"] for step in log]
    assert rates[-1] < 0.4 * max(rates) and rates[-1] > 0
    assert log[0]["temperature"] == 2 and log[-1]["temperature"] == pytest.approx(1, abs=0.1)
    assert sum(entry["prompt_tokens"] for entry in said) == sum(step["asked_tokens"] for step in log)

    again, again_log, others = run_killed(
        monkeypatch, len(log) - 1, tiny_models, frame, tmp_path / "killed", OWN, **how
    )
    assert again_log == log and others == said and torch.equal(trained(again), trained(whole))


def test_taid_follows_the_budget(tiny_models, frame, tokenizer, cache, tmp_path):  # noqa: F811
    moving = {"taid_t": {"from": 0.4, "to": 1.0, "over": "adaptive"}}
    model, log = train.train(
        load.load_model(tiny_models / "student", "float32", whole_rows=True),
        frame,
        settings=settings("tokens", 4, divergence="taid", divergence_params=moving),
        objective=train.Objective(
            divergence=divergence("taid"), divergence_params=moving, kl_weight=1.0, use_ce=False
        ),
        teacher=TeacherCache(cache, "train", frame, DATA),
        vocabulary=len(tokenizer),
        work=tmp_path,
        allowed=allowed(frame, "tokens", 4, live=False),
    )
    line = [0.4 + 0.6 * done for done in allowed(frame, "tokens", 4)(weights=(1, 1)).done(log)]
    assert len(log) == 12
    # The first value is the start, and the one after a step never lies below the line up to the step before.
    assert all(step["taid_t"] >= least - 1e-9 for step, least in zip(log[1:], line, strict=False))
    assert log[-1]["taid_t"] == pytest.approx(line[-3], abs=0.01)


def test_a_teacher_that_took_more_than_the_budget_is_said(frame):  # noqa: F811
    tokens = int(frame.lengths.sum())
    with pytest.raises(UserError, match="nothing is left to train with. More distillation.epochs"):
        allowed(frame, "flops", 1, (10**6, tokens), live=False)(weights=(100, 1))
    rest = allowed(frame, "flops", 1, (100, tokens), live=False)(weights=(100, 1))
    assert rest.most == 402 * tokens - 200 * tokens and rest.teacher == 0


STRATEGIES = {
    "fkl": {"divergence": "fkl"},
    "long": {"divergence": "fkl", "epochs": 5},
    "opd": {"answers": "student", "divergence": "rkl"},
}


def test_only_who_would_take_another_amount_is_told_of_the_budget():
    """So that asking for equal tokens runs nothing again whose tokens are equal already."""
    told = {
        equal: {
            name
            for name in STRATEGIES
            if stage_params(loaded(STRATEGIES, budget={"equal": equal}), "distill", strategy=name)["budget"]
        }
        for equal in ("tokens", "steps", "flops", None)
    }
    assert told == {"tokens": {"long", "opd"}, "steps": {"long"}, "flops": set(STRATEGIES), None: set()}
    config = loaded(STRATEGIES, budget={"equal": "tokens"})
    assert config.budget_of("opd") == {"equal": "tokens", "epochs": 3, "rows_per_step": 32}
    with pytest.raises(UserError, match=r"budget.equal: Input should be 'tokens', 'steps' or 'flops'"):
        loaded(STRATEGIES, budget={"equal": "time"})
