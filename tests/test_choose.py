"""The choice out of a sweep: by the rule alone, from what the evaluation wrote."""

from pathlib import Path

import choose
import pytest
import yaml

from kdag.config.load import load_config
from kdag.files.seals import write_sealed

ROOT = Path(__file__).parents[1]
STRATEGIES = {
    "fkl-lo": {"divergence": "fkl", "learning_rate": 1e-4},
    "fkl-hi": {"divergence": "fkl", "learning_rate": 1e-3},
    "skewed-fkl-a": {"divergence": "skewed-fkl", "skew_lambda": 0.2},
    "skewed-fkl-b": {"divergence": "skewed-fkl", "skew_lambda": 0.3},
}
# strategy: the scores of two seeds, each the mean of these; the KL of both
MEASURED = {
    "fkl-lo": ([(0.1, 0.3), (0.4, 0.4)], 0.2),
    "fkl-hi": ([(0.5, 0.1), (0.2, 0.2)], 0.1),
    "skewed-fkl-a": ([(0.2, 0.2), (0.2, 0.2)], 0.2),
    "skewed-fkl-b": ([(0.1, 0.3), (0.3, 0.1)], 0.1),
}


def evaluated(results):
    for strategy, (seeds, forward_kl) in MEASURED.items():
        for seed, values in enumerate(seeds):
            metrics = [{"metric": f"m{i}", "value": value} for i, value in enumerate(values)]
            folder = results / "eval" / f"{strategy}-seed{seed}"
            folder.mkdir(parents=True)
            write_sealed(folder / "scores.json", {"metrics": metrics})
            write_sealed(folder / "fidelity.json", {"forward_kl": forward_kl})


def test_the_highest_score_is_chosen_and_of_equal_ones_the_closest_to_the_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    default = yaml.safe_load((ROOT / "config.yaml").read_text())
    config = load_config(default | {"experiment": "sweep", "seeds": [0, 1], "strategies": STRATEGIES})
    evaluated(tmp_path / "results" / "sweep")
    settings = choose.measured(config)
    assert settings.loc[settings["setting"] == "fkl-lo", "score"].item() == pytest.approx(0.3)
    assert choose.chosen(settings) == {"fkl": "fkl-lo", "skewed-fkl": "skewed-fkl-b"}
    assert list(choose.ranked(settings)["setting"]) == ["fkl-lo", "fkl-hi", "skewed-fkl-b", "skewed-fkl-a"]


def test_what_is_printed_can_be_copied_into_a_configuration():
    line = choose.flow(STRATEGIES["fkl-hi"])
    assert "\n" not in line and yaml.safe_load(f"fkl: {line}") == {"fkl": STRATEGIES["fkl-hi"]}
