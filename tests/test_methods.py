"""Whose answers, by which loss: what a strategy may say, what a method stands for, what each job is told."""

import pytest
import yaml
from conftest import ROOT

from kdag.config.load import load_config
from kdag.config.methods import METHODS
from kdag.config.stages import answer_set, answer_sets, canonical, stage_params
from kdag.job.errors import UserError


def loaded(strategies: dict, **changes):
    raw = yaml.safe_load((ROOT / "config.yaml").read_text())
    return load_config({**raw, **changes, "strategies": strategies})


PURE = {"use_ce_loss": False, "temperature": 1.0}


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ({"method": "seqkd"}, {"answers": "teacher", "divergence": "none"}),
        (
            {"method": "gkd", "student_share": 0.3},
            {"answers": {"dataset": 0.7, "student": 0.3}, "divergence": "jsd", "beta": 0.5, **PURE},
        ),
        ({"method": "gkd", "student_share": 1}, {"answers": "student", "divergence": "jsd", **PURE}),
        ({"method": "gkd", "answers": "student"}, {"answers": "student", "divergence": "jsd", **PURE}),
        (
            {"method": "imitkd"},
            {"answers": {"dataset": 0.5, "student": 0.5}, "divergence": "fkl", **PURE},
        ),
        (
            {"method": "taid", "temperature": 2},
            {
                "divergence": "taid",
                "taid_t": {"from": 0.4, "to": 1, "over": "adaptive"},
                "use_ce_loss": False,
                "temperature": 2,
            },
        ),
    ],
)
def test_a_method_is_the_keys_that_it_stands_for(method, keys):
    said, spelt = (loaded({"x": strategy}) for strategy in (method, keys))
    assert stage_params(said, "distill", strategy="x") == stage_params(spelt, "distill", strategy="x")


def test_every_method_is_in_the_docs_and_can_be_read_back():
    text = (ROOT / "docs" / "strategies.md").read_text()
    config = loaded({name: {"method": name} for name in METHODS})
    assert all(f"| `{name}` |" in text for name in METHODS)
    assert canonical(load_config(canonical(config))) == canonical(config)


def test_a_share_of_nothing_is_a_run_without_it():
    plain = loaded({"x": {"divergence": "jsd"}})
    none = loaded({"x": {"divergence": "jsd", "answers": {"dataset": 1, "student": 0}}})
    gkd = loaded({"x": {"method": "gkd", "student_share": 0, "use_ce_loss": True, "temperature": 2}})
    for config in (none, gkd):
        assert stage_params(config, "distill", strategy="x") == stage_params(plain, "distill", strategy="x")
        assert not config.online("x")


def test_the_teacher_answers_once_for_all_that_want_it_alike():
    config = loaded(
        {
            "a": {"method": "seqkd"},
            "b": {"answers": "teacher", "divergence": "fkl", "sampling": {"refresh": 4}},
            "c": {"answers": {"dataset": 0.5, "teacher": 0.5}, "divergence": "fkl"},
            "d": {"method": "seqkd", "sampling": {"temperature": 0}},
            "e": {"divergence": "fkl", "sampling": {"temperature": 3}},
        }
    )
    assert answer_set(config, "a") == answer_set(config, "b") == answer_set(config, "c")
    assert len(answer_sets(config)) == 2 and "refresh" not in answer_sets(config)[answer_set(config, "a")]


def test_sampling_is_told_to_none_but_those_who_sample():
    keys = {"fkl": {"divergence": "fkl"}, "opd": {"answers": "student", "divergence": "rkl"}}
    one, other = loaded(keys), loaded(keys, sampling={"temperature": 0.5})
    assert stage_params(one, "distill", strategy="fkl") == stage_params(other, "distill", strategy="fkl")
    assert "sampling" not in stage_params(one, "distill", strategy="fkl")
    assert stage_params(other, "distill", strategy="opd")["sampling"]["temperature"] == 0.5
    assert one.online("opd") and not one.online("fkl")


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({"answers": "me", "divergence": "fkl"}, "dataset, teacher, student, or shares of these"),
        ({"answers": {"dataset": 0.5}, "divergence": "fkl"}, "add up to 1"),
        ({"answers": {"dataset": 1.5, "student": -0.5}, "divergence": "fkl"}, "at least 0"),
        ({"method": "gdk"}, "no method is called 'gdk'; did you mean `gkd`"),
        ({"method": "gkd", "answers": "student", "student_share": 0.5}, "either answers or student_share"),
        ({"method": "gkd", "student_share": 1.5}, "a number from 0 to 1"),
        ({"answers": "student", "divergence": "none"}, "teaches it nothing but itself"),
        ({"answers": "student", "divergence": "fkl", "online": False}, "have no cache"),
        ({"divergence": "fkl", "sampling": {"temprature": 1}}, "sampling.temprature: no such key"),
        ({"divergence": "fkl", "sampling": {"temperature": -1}}, "greater than or equal to 0"),
        ({"divergence": "none", "beta": 1}, "neither a parameter of none"),
        ({"divergence": "fkl", "temperature": {"from": 0, "to": 1}}, "Input should be greater than 0"),
        ({"divergence": "fkl", "temperature": {"from": 1}}, "a schedule needs `to`"),
        ({"divergence": "fkl", "temperature": {"from": 1, "to": 2, "over": "time"}}, "linear, cosine"),
        (
            {"divergence": "fkl", "temperature": {"from": 1, "to": 2, "over": "adaptive"}},
            "adaptive is for taid_t",
        ),
        ({"divergence": "jsd", "beta": {"from": 0, "to": 0.5}}, "outside (0, 1)"),
        (
            {"divergence": "jsd", "beta": {"from": 0.1, "to": 0.5, "over": "adaptive"}},
            "adaptive is for taid_t",
        ),
        ({"divergence": "jsd", "beta": {"from": 0.1, "to": 0.5, "ovr": 1}}, "no 'ovr'"),
    ],
)
def test_mistakes_are_named(strategy, said):
    with pytest.raises(UserError) as caught:
        loaded({"x": strategy})
    assert said in str(caught.value) and "strategies.x" in str(caught.value)
    assert len(str(caught.value).split("\n")) == 1


def test_a_truncated_teacher_is_refused_where_either_end_of_a_schedule_needs_all_of_it():
    store = {"store": "topk", "tail": "renormalised"}
    loaded({"x": {"divergence": "ab", "alpha": 1, "beta": 0}}, teacher_cache=store)
    with pytest.raises(UserError, match="asks for the teacher where the student has mass"):
        moving = {"divergence": "ab", "alpha": {"from": 1, "to": 0}, "beta": {"from": 0, "to": 1}}
        loaded({"x": moving}, teacher_cache=store)
    loaded({"x": {"answers": "student", "divergence": "rkl"}}, teacher_cache=store)  # its teacher is live
