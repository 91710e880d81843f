"""Questions of reasoning-gym: none is asked that is trained on, and an answer is right or wrong."""

import json

import pytest
from test_methods import loaded

from kdag.config.stages import source_name, stage_params
from kdag.data import generated
from kdag.evaluation.tasks import reasoning_gym as task
from kdag.job.errors import UserError

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
FKL = {"fkl": {"divergence": "fkl"}}


def test_rows_are_different_questions_with_their_answers():
    found = list(generated.rows("chain_sum", 0, 60, SUMS))
    assert len({row["instruction"] for row in found}) == 60
    for row in found:
        assert eval(row["instruction"].split(":")[1].strip(" =")) == int(row["output"])
    assert found[:10] == list(generated.rows("chain_sum", 0, 60, SUMS))[:10]


def test_no_question_is_asked_that_is_trained_on(tmp_path):
    """With one digit there are few sums, so two seeds share many."""
    rows = tmp_path / "rows.jsonl"
    trained = list(generated.rows("chain_sum", 0, 60, SUMS))
    rows.write_text("".join(json.dumps(row) + "\n" for row in trained))
    settings = {"name": "sums", "dataset": "chain_sum", "items": 60, "seed": 1, "config": SUMS}
    task.fetch(settings | {"apart_from": str(rows)}, tmp_path)
    asked = json.loads((tmp_path / "items.json").read_text())
    questions = {item["question"] for item in asked["items"]}
    assert len(questions) == 60 and asked["left_out"] > 0
    assert not questions & {row["instruction"] for row in trained}
    task.fetch(settings, tmp_path)
    assert {i["question"] for i in json.loads((tmp_path / "items.json").read_text())["items"]} & {
        row["instruction"] for row in trained
    }


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("{}", True),
        ("The sum of both:\n{}.", True),
        ("<answer>{}</answer> I am sure.", True),
        ("<answer>1</answer> no: <answer> {} </answer>", True),
        ("It is {}", False),
        ("", False),
        ("{}0", False),
    ],
)
def test_the_last_line_or_block_of_an_answer_is_judged(answer, right):
    generator = generated.load("chain_sum", 3, 5, SUMS)
    entry = generator[2]
    assert task.process_results(entry, generator, [answer.format(entry["answer"])]) == {"acc": float(right)}


@pytest.mark.parametrize(
    ("dataset", "config", "said"),
    [
        ("chain_sums", {}, "did you mean `chain_sum`"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, "max_terms must be >= min_terms"),
        ("chain_sum", {"bogus": 1}, "bogus"),
        ("game_of_life", {}, "this generator needs the package cellpylib"),
    ],
)
def test_what_cannot_be_generated_is_one_line(dataset, config, said):
    with pytest.raises(UserError, match=said):
        generated.load(dataset, 0, 5, config)[0]
    with pytest.raises(UserError, match="only .* different questions"):
        list(generated.rows("chain_sum", 0, 5000, SUMS))


def test_a_task_that_is_generated_stays_apart_from_the_rows_and_others_keep_their_place():
    data = {"source": "reasoning-gym", "id": "chain_sum", "config": SUMS, "train_rows": 50}
    tasks = {"sums": {"generator": "reasoning-gym", "dataset": "chain_sum", "items": 20}, "arc_easy": {}}
    config = loaded(FKL, data=data, evaluation={"tasks": tasks})
    fetched = stage_params(config, "fetch_dataset")
    assert (fetched["rows"], fetched["seed"], fetched["config"]) == (150, 0, SUMS)
    told = stage_params(config, "fetch_task", task="sums")
    assert told["apart_from"] == source_name(fetched) and told["items"] == 20
    assert set(stage_params(config, "fetch_task", task="arc_easy")) == {
        "name",
        "limit",
        "num_fewshot",
        "chat_template",
        "path",
    }
    assert "seed" not in stage_params(loaded(FKL), "fetch_dataset")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": {"tasks": {"arc_easy": {"items": 5}}}}, "items is for tasks with a generator"),
        (
            {"evaluation": {"tasks": {"s": {"generator": "reasoning-gym", "limit": 5}}}},
            "takes neither path nor num_fewshot nor limit",
        ),
        ({"data": {"source": "reasoning-gym"}}, "source reasoning-gym needs id"),
        ({"data": {"source": "hub", "id": "a/b", "seed": 3}}, "takes neither config nor seed"),
    ],
)
def test_mistakes_of_the_configuration_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        loaded(FKL, **changes)
