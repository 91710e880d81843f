"""Students that learned under other settings are named with them, since a difference may be theirs."""

from kdag.report import settings


def made(**rates):
    rows = [{"model": f"{name}-seed0", "role": "student", "strategy": name} for name in rates]
    manifests = {
        f"{name}-seed0": {"params": {"learning_rate": rate, "lora_rank": 16, "kl_loss_weight": rate}}
        for name, rate in rates.items()
    }
    return [{"model": "teacher", "role": "teacher"}, *rows], manifests


def test_other_rates_are_said():
    assert settings.sentence(*made(sft=0.001, fkl=0.0005, rkl=0.001)) == (
        "Settings differ: `learning_rate` is 0.001 for `sft` and `rkl`, 0.0005 for `fkl`. A difference "
        "between rows of different settings may come from the settings."
    )


def test_what_a_strategy_is_is_no_difference_of_settings():
    rows, manifests = made(sft=0.001, fkl=0.001)
    manifests["fkl-seed0"]["params"]["kl_loss_weight"] = 0.5
    assert settings.sentence(rows, manifests) == ""
