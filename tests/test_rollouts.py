"""Students that learn from their own answers: the same samples whatever the batches, the same bytes after a
kill, a teacher that is its own student."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from test_training import DATA, cache, frame, job, tokenizer, trained  # noqa: F401

from kdag.config.training import MixedJob
from kdag.data.rows import prompts
from kdag.job.errors import UserError
from kdag.losses.divergences import load as divergence
from kdag.models import decoding, load
from kdag.teacher.cache import TeacherCache
from kdag.teacher.live import LiveTeacher
from kdag.training import checkpoints, schedule, train
from kdag.training.batches import NOTHING, EpochSampler, Mixture, Rows
from kdag.training.job import Source, mixture_of
from kdag.training.rollouts import Rollouts

SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "max_new_tokens": 8,
    "refresh": 1,
    "replay": 0,
    "batch_size": 64,
}


class Live(LiveTeacher):
    """A live teacher that is at hand already."""

    def __init__(self, model, vocabulary):
        from kdag.models.head import head_weight, logit_cap

        self.model, self.weights = model, 0
        self.head, self.cap = head_weight(model, vocabulary).detach(), logit_cap(model)


class Settings:
    def __init__(self, answers, seed):
        self.answers, self.seed = answers, seed


def run(
    tiny_models,
    frame,  # noqa: F811
    work,
    answers,
    student="student",
    settings=None,
    sampling=None,
    allowed=None,
    heldout=None,
    **objective,
):
    settings = settings or job()
    tokenizer = load.load_tokenizer(tiny_models / "student")  # noqa: F811
    vocabulary = len(tokenizer)
    teacher = Live(load.load_model(tiny_models / "teacher", "float32", whole_rows=True), vocabulary)
    mixture = mixture_of({"dataset": Source(frame, DATA)}, Settings(answers, settings.seed))
    rollouts = partial(
        Rollouts,
        own=list(answers).index("student"),
        prompts=prompts(frame),
        sampling=SAMPLING | (sampling or {}),
        seed=settings.seed,
        dtype="float32",
        vocabulary=vocabulary,
        end_ids=(tokenizer.eos_token_id,),
        tokenizer=tokenizer,
    )
    model, log = train.train(
        load.load_model(tiny_models / student, "float32", whole_rows=True),
        frame,
        settings=settings,
        objective=train.Objective(
            **{"divergence": divergence("rkl"), "kl_weight": 0.5, "use_ce": False, **objective}
        ),
        teacher=teacher,
        vocabulary=vocabulary,
        work=work,
        mixture=mixture,
        rollouts=rollouts,
        heldout=heldout,
        allowed=allowed,
    )
    return model, log, Rollouts.written(work)


class KilledError(Exception):
    pass


def run_killed(monkeypatch, step, tiny_models, frame, work, answers, **how):  # noqa: F811
    """What `run` gives after one that died when it sampled for this step."""
    real = Rollouts.sample

    def dying(self, wanted):
        if wanted and wanted[0][0] >= step:
            raise KilledError
        return real(self, wanted)

    monkeypatch.setattr(Rollouts, "sample", dying)
    with pytest.raises(KilledError):
        run(tiny_models, frame, work, answers, **how)
    monkeypatch.setattr(Rollouts, "sample", real)
    assert checkpoints.last_checkpoint(work)
    return run(tiny_models, frame, work, answers, **how)


OWN = {"student": 1.0}


def test_every_step_learns_from_the_answers_that_are_written_down(tiny_models, frame, tmp_path):  # noqa: F811
    _, log, said = run(tiny_models, frame, tmp_path, OWN, settings=job(epochs=2))
    assert len(log) == 6 and sorted({entry["step"] for entry in said}) == [1, 2, 3, 4, 5, 6]
    for step in log:
        mine = [entry for entry in said if entry["step"] == step["step"]]
        assert len(mine) == 8
        assert step["answer_tokens"] == step["sampled_tokens"] == sum(len(e["tokens"]) for e in mine)
        assert step["sample_length"] == pytest.approx(step["sampled_tokens"] / 8)
        assert step["sample_cut_off"] == np.mean([entry["cut_off"] for entry in mine])
        assert 0 < step["sample_distinct_2"] <= 1 and step["sample_entropy"] > 0
    assert all(entry["tokens"] and len(entry["tokens"]) <= 8 for entry in said)
    assert len({json.dumps(entry["seed"]) for entry in said}) == len(said)


def test_answers_and_weights_do_not_depend_on_how_prompts_and_rows_are_batched(
    tiny_models,
    frame,  # noqa: F811
    tmp_path,
):
    model, log, said = run(tiny_models, frame, tmp_path / "a", OWN)
    other, other_log, others = run(
        tiny_models,
        frame,
        tmp_path / "b",
        OWN,
        settings=job(batch_size=2, gradient_accumulation=4),
        sampling={"batch_size": 3},
    )
    assert [entry["tokens"] for entry in said] == [entry["tokens"] for entry in others]
    torch.testing.assert_close(trained(model), trained(other), rtol=1e-3, atol=1e-5)
    assert [s["loss"] for s in log] == pytest.approx([s["loss"] for s in other_log], rel=1e-4)


def test_a_sample_is_what_the_weights_of_that_moment_say(tiny_models, frame, tmp_path):  # noqa: F811
    """The first step's answers are the untrained student's: an adapter begins as nothing."""
    _, _, said = run(tiny_models, frame, tmp_path, OWN)
    model, tokenizer = decoding.load_model(tiny_models / "student", "float32")  # noqa: F811
    first = [entry for entry in said if entry["step"] == 1]
    again = decoding.sample(
        model,
        [prompts(frame)[entry["row"]] for entry in first],
        [tuple(entry["seed"]) for entry in first],
        SAMPLING,
        vocabulary=len(tokenizer),
        eos_ids=[tokenizer.eos_token_id],
    )
    assert [answer.tokens for answer in again] == [entry["tokens"] for entry in first]
    later = [entry["tokens"] for entry in said if entry["step"] == 3]
    assert later != [entry["tokens"] for entry in first]


def test_a_teacher_that_is_its_own_student_has_nothing_to_teach(tiny_models, frame, tmp_path):  # noqa: F811
    _, log, _ = run(tiny_models, frame, tmp_path, OWN, student="teacher")
    assert abs(log[0]["divergence"]) < 1e-6


@pytest.mark.parametrize("refresh", [1, 2])
def test_a_killed_run_goes_on_with_the_same_answers_and_ends_in_the_same_weights(
    tiny_models,
    frame,  # noqa: F811
    tmp_path,
    monkeypatch,
    refresh,
):
    """Killed after the answers of a step are written, and in the middle of sampling."""
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    settings, sampling = job(epochs=2), {"refresh": refresh}
    whole, log, said = run(tiny_models, frame, tmp_path / "whole", OWN, settings=settings, sampling=sampling)

    for moment in ("before", "after"):
        work, real = tmp_path / moment, Rollouts.sample

        def dying(self, wanted, real=real, moment=moment):
            late = wanted[0][0] >= 4
            if late and moment == "before":
                raise KilledError
            found = real(self, wanted)
            if late:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / ".half.partial-1").write_text("{")
                raise KilledError
            return found

        monkeypatch.setattr(Rollouts, "sample", dying)
        with pytest.raises(KilledError):
            run(tiny_models, frame, work, OWN, settings=settings, sampling=sampling)
        monkeypatch.setattr(Rollouts, "sample", real)
        assert checkpoints.last_checkpoint(work)
        again, again_log, others = run(tiny_models, frame, work, OWN, settings=settings, sampling=sampling)
        assert others == said and again_log == log
        assert torch.equal(trained(again), trained(whole))


def test_what_a_kill_lost_is_answered_anew(tiny_models, frame, tmp_path):  # noqa: F811
    """Answers of weights that no checkpoint has are not learned from by others."""
    rollouts = Rollouts.__new__(Rollouts)
    rollouts.folder, rollouts.begun = tmp_path, False
    for step in (0, 3, 5):
        (tmp_path / f"{step:08d}-{step + 2:08d}.jsonl").write_text("")
    rollouts.forget_after(3)
    assert sorted(int(file.stem[:8]) for file in tmp_path.iterdir()) == [0, 3]


def test_lost_answers_of_an_earlier_time_are_said(tiny_models, frame, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    run(tiny_models, frame, tmp_path, OWN, settings=job(epochs=1), sampling={"refresh": 3})
    for file in (tmp_path / "answers-0-of-1").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="answers that were to be learned after step .* are lost"):
        run(tiny_models, frame, tmp_path, OWN, settings=job(epochs=1), sampling={"refresh": 3})


def test_a_mixture_learns_from_both_in_their_shares(tiny_models, frame, tmp_path):  # noqa: F811
    answers = {"dataset": 0.5, "student": 0.5}
    _, log, said = run(tiny_models, frame, tmp_path, answers, settings=job(epochs=4))
    assert 0.3 < len(said) / 96 < 0.7
    for step in log:
        own = sum(len(e["tokens"]) for e in said if e["step"] == step["step"])
        assert own == step["sampled_tokens"] < step["answer_tokens"]


def test_rows_are_drawn_from_seed_and_epoch_alone():
    rows = tiny_rows(200)
    mixture = Mixture([rows, rows, rows], [0.2, 0.3, 0.5], seed=1)
    first, again = mixture.draw(0), mixture.draw(0)
    assert np.array_equal(first, again) and not np.array_equal(first, mixture.draw(1))
    assert np.array_equal(first % 200, np.arange(200))
    shares = np.bincount(first // 200, minlength=3) / 200
    assert np.all(np.abs(shares - [0.2, 0.3, 0.5]) < 0.12)
    order = list(EpochSampler(rows.lengths, 4, 0, lambda: 0, processes=3, passes=3, draw=mixture.draw))
    assert sorted(n % 200 for n in order if n != NOTHING) == list(range(200)) and order.count(NOTHING) == 4
    with pytest.raises(UserError, match="of different rows"):
        Mixture([rows, tiny_rows(3)], [0.5, 0.5], seed=0)


def tiny_rows(count: int) -> Rows:
    from kdag.data.rows import EncodedRows

    ids = [[1, 2, 3 + number % 5] for number in range(count)]
    return Rows(EncodedRows.of(ids, [[0, 1, 1]] * count), None)


def test_the_prompt_of_a_row_is_what_stands_before_its_last_answer():
    from kdag.data.rows import EncodedRows

    rows = EncodedRows.of(
        [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [5, 6]], [[0, 0, 1, 1, 1], [0, 1, 0, 0, 1], [0, 1]]
    )
    assert prompts(rows) == [[5, 6], [5, 6, 7, 8], [5]]


def test_fixed_answers_of_two_kinds_bring_their_own_states(tiny_models, frame, cache):  # noqa: F811
    teacher = TeacherCache(cache, "train", frame, DATA)
    mixture = mixture_of(
        {"dataset": Source(frame, DATA, teacher), "teacher": Source(frame, DATA, teacher)},
        Settings({"dataset": 0.5, "teacher": 0.5}, 0),
    )
    row = mixture[len(frame) + 3]
    assert torch.equal(row["teacher"]["hidden"], teacher.row(3)["hidden"]) and row["row"] == len(frame) + 3


def test_schedules_reach_both_ends_and_are_written_down(tiny_models, frame, tmp_path):  # noqa: F811
    moving = {"from": 2.0, "to": 1.0, "over": "linear"}
    _, log, _ = run(tiny_models, frame, tmp_path, OWN, temperature=moving)
    assert [step["temperature"] for step in log] == [2.0, 1.5, 1.0]
    half = schedule.between({"from": 0.0, "to": 1.0, "over": "cosine"}, 0.25)
    assert half == pytest.approx((1 - np.cos(np.pi / 4)) / 2)


def test_the_adaptive_schedule_is_taids():
    """Against the published rule, written out once more; and what was logged is all that it needs."""
    losses, total = [3.0, 2.5, 2.6, 1.0, 0.9, 0.9], 10
    t, momentum, previous, expected = 0.4, 0.0, None, [0.4]
    for step, loss in enumerate(losses):
        if previous is not None:
            momentum = 0.99 * momentum + 0.01 * (previous - loss) / (previous + 1e-15)
            target = 0.4 + 0.6 * step / total
            t = min(1.0, max(target, t + 5e-4 * (1 / (1 + np.exp(-momentum))) * (1 - t)))
        previous = loss
        expected.append(t)
    one = schedule.Adaptive(0.4, 1.0)
    done = [step / total for step in range(total)]
    found = [one.after(losses[:n], done) for n in range(len(losses) + 1)]
    assert found == pytest.approx(expected)
    assert schedule.Adaptive(0.4, 1.0).after(losses, done) == found[-1]


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_merged_copies_say_what_the_trained_model_says_and_leave_no_trace(tiny_models, tuning):
    """In float32, where merging rounds next to nothing; afterwards every weight is the very tensor."""
    model = train.prepare(
        load.load_model(tiny_models / "student", "float32"), job(tuning=tuning), "transformers"
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    ids = torch.arange(12)[None]
    before = {name: (id(weight), weight.data_ptr()) for name, weight in model.named_parameters()}
    wanted = model(input_ids=ids).logits
    with decoding.answering(model, "float32") as (_, forward), torch.inference_mode():
        torch.testing.assert_close(forward(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)
    with decoding.answering(model, "bfloat16") as (base, forward), torch.inference_mode():
        assert forward(input_ids=ids).logits.dtype == torch.bfloat16
        assert all(weight.dtype == torch.bfloat16 for weight in base.parameters())
    assert {name: (id(weight), weight.data_ptr()) for name, weight in model.named_parameters()} == before
    assert torch.equal(model(input_ids=ids).logits, wanted)


def test_a_share_by_schedule_grows_from_none_to_all(tiny_models, frame, tmp_path):  # noqa: F811
    answers = {"dataset": 1.0, "student": {"from": 0.0, "to": 1.0, "over": "linear"}}
    settings = MixedJob(**job(epochs=4).model_dump(), answers=answers)
    _, log, said = run(tiny_models, frame, tmp_path, answers, settings=settings)
    shares = [step["student_share"] for step in log]
    assert shares == pytest.approx(np.linspace(0, 1, 12))
    own = [sum(entry["step"] == step["step"] for entry in said) for step in log]
    assert own[0] == 0 and own[-1] == 8 and sum(own[:6]) < sum(own[6:])
    assert log[0]["sampled_tokens"] == 0 and log[0]["answer_tokens"] > 0


DISTILLM = {"dataset": 1.0, "student": {"from": 0.0, "to": 1.0, "over": "adaptive"}}


def threshold_of_the_published_code(losses: list[float]) -> float:
    """finetune.py of jongwooko/distillm, after evaluations that gave these losses."""
    adaptive_threshold, prev_avg_loss, loss_eps = 0.0, losses[0], 0.1
    for curr_avg_loss in losses[1:]:
        if curr_avg_loss >= prev_avg_loss + loss_eps:
            adaptive_threshold += 0.1
            adaptive_threshold = min(adaptive_threshold, 1.0)
            prev_avg_loss = curr_avg_loss
    return adaptive_threshold


@pytest.mark.parametrize(
    "losses", [[2.0], [2.0, 1.9, 2.05, 2.1, 2.15, 2.2, 2.4], [1.0, *(1 + 0.2 * n for n in range(1, 14))]]
)
def test_the_adaptive_share_is_distillms(losses):
    share = schedule.StudentShare(DISTILLM["student"])
    assert share.grown(losses) == pytest.approx(threshold_of_the_published_code(losses))


def test_distillm_looks_at_the_held_out_rows_before_each_epoch(tiny_models, frame, tmp_path):  # noqa: F811
    """Cross-entropy as the model itself gives it, and a rate so high that it gets worse, so answers come."""
    heldout = frame.iloc[20:]
    settings = MixedJob(**job(epochs=4, learning_rate=0.3).model_dump(), answers=DISTILLM)
    _, log, said = run(tiny_models, frame, tmp_path, DISTILLM, settings=settings, heldout=heldout)
    at = [step["step"] for step in log if "heldout_ce" in step]
    assert at == [1, 4, 7, 10]
    model, total = load.load_model(tiny_models / "student", "float32"), 0.0
    for ids, targets in zip(heldout["input_ids"], heldout["targets"], strict=True):
        logits = model(input_ids=torch.tensor(np.array(ids))[None]).logits[
            0, :, : len(load.load_tokenizer(tiny_models / "student"))
        ]
        total += float(
            torch.nn.functional.cross_entropy(logits, torch.tensor(np.array(targets)).long(), reduction="sum")
        )
    assert log[0]["heldout_ce"] == pytest.approx(total / heldout.answer_tokens, rel=1e-5)
    seen = [step["heldout_ce"] for step in log if "heldout_ce" in step]
    for number, step in enumerate(log):
        assert step["student_share"] == pytest.approx(
            threshold_of_the_published_code(seen[: number // 3 + 1])
        )
    assert log[0]["student_share"] == 0 and log[-1]["student_share"] > 0
    assert {entry["step"] for entry in said} <= {s["step"] for s in log if s["student_share"]}


REPLAYING = {"dataset": 1.0, "student": {"from": 0.8, "to": 0.8, "over": "linear"}}


def test_answers_are_replayed_once_the_buffer_is_full_and_the_more_the_later(tiny_models, frame, tmp_path):  # noqa: F811
    settings = MixedJob(**job(epochs=8).model_dump(), answers=REPLAYING)
    _, log, said = run(tiny_models, frame, tmp_path, REPLAYING, settings=settings, sampling={"replay": 10})
    new = [entry for entry in said if "first" not in entry]
    old = [entry for entry in said if "first" in entry]
    for entry in old:
        before = [e for e in new if e["step"] < entry["step"]]
        assert len(before) >= 10
        (source,) = (
            e for e in before if e["step"] >= before[-10]["step"] and [e["step"], e["row"]] == entry["first"]
        )
        assert {**source, "step": 0, "row": 0} == {
            **{k: v for k, v in entry.items() if k != "first"},
            "step": 0,
            "row": 0,
        }
    late = [entry for entry in said if entry["step"] > 16]
    assert 0.6 < sum("first" in entry for entry in late) / len(late) <= 1
    assert len(said) / (24 * 8) == pytest.approx(0.8, abs=0.1)
    for step in log:
        assert step["sampled_tokens"] == sum(len(e["tokens"]) for e in new if e["step"] == step["step"])
        assert step["answer_tokens"] >= sum(len(e["tokens"]) for e in said if e["step"] == step["step"])


def test_a_killed_run_replays_the_same(tiny_models, frame, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    changed = {**DISTILLM, "student": DISTILLM["student"] | {"from": 0.9}}
    how = {
        "settings": MixedJob(**job(epochs=4).model_dump(), answers=changed),
        "sampling": {"replay": 10},
        "heldout": frame.iloc[20:],
    }
    whole, log, said = run(tiny_models, frame, tmp_path / "whole", changed, **how)
    assert any("first" in entry for entry in said if entry["step"] > 9)

    again, again_log, others = run_killed(
        monkeypatch, 10, tiny_models, frame, tmp_path / "killed", changed, **how
    )
    assert (again_log, others) == (log, said) and torch.equal(trained(again), trained(whole))
