"""The configuration: its defaults, its checks, and which part of it each stage sees."""

import json
from pathlib import Path

import pytest
import tiny
import yaml

import write_schema
from kdag.config.load import load_config
from kdag.config.roster import model_ids
from kdag.config.stages import canonical, shown, stage_params
from kdag.files.hashes import canonical_json
from kdag.job.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def raw(tmp_path):
    for name in ("rows.jsonl", "prompts.jsonl"):
        (tmp_path / name).touch()
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
    return tiny.configuration(tmp_path)


def put(raw: dict, path: str, value) -> dict:
    *parents, last = path.split(".")
    inner = raw
    for key in parents:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return raw


def test_default_experiment_is_the_published_one():
    config = load_config(yaml.safe_load((ROOT / "config.yaml").read_text()))
    assert config.teacher.id == "unsloth/Qwen2.5-7B-Instruct"
    assert config.student.id == "unsloth/Qwen2.5-3B-Instruct"
    assert (config.data.id, config.data.train_rows) == ("yahma/alpaca-cleaned", 1000)
    teacher, student = config.teacher_training, config.distillation
    assert (teacher.batch_size * teacher.gradient_accumulation, teacher.epochs) == (8, 1)
    assert (teacher.learning_rate, teacher.warmup_ratio, teacher.weight_decay) == (1e-4, 0.05, 0.01)
    assert (student.use_ce_loss, student.kl_loss_weight, student.temperature) == (True, 0.5, 2.0)
    assert (student.epochs, student.batch_size, student.gradient_accumulation) == (3, 1, 32)
    assert student.learning_rate == 5e-4
    assert list(config.strategies) == ["fkl", "rkl", "skewed-fkl", "skewed-rkl"]
    assert config.evaluation.limit is None
    assert config.seeds == [0]


def test_default_file_shows_every_key_with_its_default():
    """config.yaml is the documentation of the keys, so none may be missing or differ."""
    written = yaml.safe_load((ROOT / "config.yaml").read_text())
    config = load_config(written)
    for section in ("data", "teacher_training", "teacher_cache", "distillation", "sampling", "evaluation"):
        fields = type(getattr(config, section)).model_fields
        expected = set(fields) - {"path", "package", "file"}
        assert set(written[section]) == expected | ({"source", "id"} & set(written[section])), section
    least = {k: written[k] for k in ("experiment", "data", "teacher", "student", "strategies")}
    assert load_config(least) == config


def test_schema_is_in_step():
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    assert schema == json.loads(json.dumps(write_schema.schema())), "run `make schema`"


def test_strategy_overrides_a_distillation_key(raw):
    raw["strategies"]["skewed-rkl-0.3"] = {
        "divergence": "skewed-rkl",
        "skew_lambda": 0.3,
        "temperature": 1,
    }
    config = load_config(raw)
    params = stage_params(config, "distill", strategy="skewed-rkl-0.3", seed=0)
    assert params["divergence_params"] == {"skew_lambda": 0.3}
    assert params["temperature"] == 1.0
    assert stage_params(config, "distill", strategy="fkl", seed=0)["temperature"] == 2.0
    assert "skewed-rkl-0.3-seed0" in model_ids(config)


@pytest.mark.parametrize(
    ("path", "first", "second"),
    [
        ("distillation.temperature", 2, 2.0),
        ("distillation.learning_rate", "1e-4", 1.0e-4),
        ("distillation.kl_loss_weight", 0.5, "0.5"),
    ],
)
def test_another_spelling_of_a_value_is_the_same_value(raw, path, first, second):
    one = stage_params(load_config(put(raw, path, first)), "distill", strategy="fkl")
    two = stage_params(load_config(put(raw, path, second)), "distill", strategy="fkl")
    assert canonical_json(one) == canonical_json(two)


def test_sft_student_sees_no_key_of_the_divergence(raw):
    before = stage_params(load_config(raw), "sft_student")
    raw["distillation"] |= {"temperature": 5, "kl_loss_weight": 0.9}
    assert stage_params(load_config(raw), "sft_student") == before


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("distillation.temprature", 2, "distillation.temprature: no such key; did you mean `temperature`?"),
        ("distilation", {}, "distilation: no such key; did you mean `distillation`?"),
        ("distillation.temperature", 0, "distillation.temperature: Input should be greater than 0 (got 0)"),
        ("distillation.temperature", "warm", "distillation.temperature"),
        ("data.train_rows", 1.5, "data.train_rows"),
        ("data.path", "no/such/file.jsonl", "no such file or directory: no/such/file.jsonl"),
        ("data.source", "web", "data.source: Input should be 'hub', 'path', 'package' or 'reasoning-gym'"),
        ("data.id", "a/b", "source path does not take id"),
        ("strategies.x", {"divergence": "klf"}, "strategies.x.divergence: Input should be 'fkl'"),
        ("strategies.x", {"divergence": "fkl", "skew_lambda": 0.1}, "neither a parameter of fkl"),
        ("strategies.x", {"divergence": "skewed-fkl", "skwe_lambda": 0.1}, "did you mean `skew_lambda`?"),
        ("strategies.x", {"divergence": "skewed-fkl", "skew_lambda": 0}, "outside (0, 1)"),
        ("strategies.x", {"divergence": "skewed-fkl", "skew_lambda": 1}, "outside (0, 1)"),
        ("strategies.x", {"divergence": "fkl", "epochs": -1}, "strategies.x: epochs"),
        ("strategies.sft", {"divergence": "fkl"}, "'sft' is the name of a baseline row"),
        ("strategies.a b; rm -rf", {"divergence": "fkl"}, "may hold letters, digits"),
        ("strategies.x-seed1", {"divergence": "fkl"}, "does not end in -seed"),
        ("strategies", {}, "strategies: Dictionary should have at least 1 item"),
        ("seeds", [], "seeds: List should have at least 1 item"),
        ("seeds", [1, 1], "seeds: each seed once"),
        ("student.derive", {"from": "teacher", "keep_layers": 3}, "derive takes no other key"),
        ("teacher_cache", {"store": "topk", "tail": "renormalised"}, "has none there; take bucket"),
        ("teacher_cache", {"store": "distillkit", "tail": "renormalised"}, "has none there; take bucket"),
        ("teacher_cache.distillkit", {"k": 8}, "teacher_cache.distillkit: exact_k 16 is more than k 8"),
        ("teacher_cache.distillkit", {"polynomial_terms": []}, "one at least, or exact_k as large as k"),
        ("teacher_cache.distillkit", {"exact": 8}, "did you mean `exact_k`?"),
        ("teacher_cache.sampled", {"samples": 0}, "teacher_cache.sampled.samples: Input should be greater"),
        ("experiment", "../up", "experiment: String should match pattern"),
        ("evaluation.repetition_penalty", 0.5, "greater than or equal to 1"),
    ],
)
def test_mistake_is_one_line_that_names_key_and_value(raw, path, value, message):
    if path.startswith("strategies."):
        raw["strategies"][path.removeprefix("strategies.")] = value
    else:
        put(raw, path, value)
    with pytest.raises(UserError) as caught:
        load_config(raw)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_sampled_teacher_serves_fkl_at_its_temperature_and_nothing_else(raw):
    raw["teacher_cache"] = {"store": "sampled", "sampled": {"temperature": 2}}
    raw["strategies"] = {
        "fkl": {"divergence": "fkl"},
        "ab": {"divergence": "ab", "alpha": 1, "beta": {"from": 0, "to": 0.5}},
        "live": {"divergence": "rkl", "online": True},
        "words": {"divergence": "none", "answers": "teacher"},
    }
    load_config(raw)
    raw["strategies"] = {
        "a": {"divergence": "rkl"},
        "b": {"divergence": "ab", "alpha": {"from": 1, "to": 0.5}, "beta": 0},
        "c": {"divergence": "fkl", "temperature": 1},
        "d": {"divergence": "fkl", "temperature": {"from": 2, "to": 3}},
    }
    with pytest.raises(UserError) as caught:
        load_config(raw)
    lines = str(caught.value).split("\n")
    assert [line.split(":")[0] for line in lines] == [f"strategies.{name}" for name in "abcd"]
    assert all("is not linear in the teacher's probabilities" in line for line in lines[:2])
    assert "temperature 1 is not teacher_cache.sampled.temperature, 2" in lines[2]
    assert "temperature 3 is not" in lines[3]


def test_the_section_of_a_store_is_part_of_no_other_store_s_cache(raw):
    def params(**keys):
        return canonical_json(stage_params(load_config(raw | {"teacher_cache": keys}), "cache_teacher"))

    plain = (
        '{"batch_tokens":8192,"dtype":"auto","rows_per_shard":512,'
        '"store":"hidden","tail":"bucket","top_k":128}'
    )
    assert params() == params(distillkit={"k": 50}, sampled={"seed": 1}) == plain
    raw["strategies"] = {"fkl": {"divergence": "fkl"}}
    for store, key in (("distillkit", "sampled"), ("sampled", "distillkit")):
        changed = {"sampled": {"seed": 3}, "distillkit": {"k": 60}}
        assert params(store=store) == params(store=store, **{key: changed[key]}) != params()
        assert params(store=store) != params(store=store, **{store: changed[store]})


def test_all_mistakes_are_told_at_once(raw):
    put(put(raw, "seeds", []), "data.train_rows", 0)
    with pytest.raises(UserError) as caught:
        load_config(raw)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["config.yaml", "experiments/demo.yaml"])
def test_what_the_report_is_given_is_read_back_as_the_same(name, monkeypatch):
    """Nulls stay nulls, a derived student has no source, and every stage gets what it got."""
    monkeypatch.chdir(ROOT)
    raw = yaml.safe_load((ROOT / name).read_text())
    raw["data"]["input_field"] = None
    config = load_config(raw)
    again = load_config(json.loads(json.dumps(canonical(config))))
    assert canonical(again) == canonical(config)
    assert shown(canonical(config))["data"]["input_field"] is None
    for stage in ("subset", "sft_teacher", "cache_teacher", "generate", "aggregate", "write_report"):
        assert stage_params(again, stage) == stage_params(config, stage)
    for strategy in config.strategies:
        assert stage_params(again, "distill", strategy) == stage_params(config, "distill", strategy)


def test_columns_and_prompts_are_looked_at_before_anything_runs(raw, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "reply": "b"}\n')
    source = {"source": "path", "path": str(tmp_path / "rows.jsonl")}
    with pytest.raises(
        UserError, match="output_field: no row has a column 'answer'; there are question, reply"
    ):
        load_config(raw | {"data": source | {"instruction_field": "question", "output_field": "answer"}})
    with pytest.raises(UserError, match="the first row has no key, prompt, instruction_id_list, kwargs"):
        load_config(raw | {"evaluation": {"prompts": source}})
