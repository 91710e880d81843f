"""What `make plan` says an experiment will be able to see."""

import pytest
from test_methods import loaded

from kdag.report import foresight, power

STRATEGIES = {name: {"divergence": name} for name in ("fkl", "rkl", "jsd", "akl")}


@pytest.mark.parametrize("wanted", [0.03, 0.05, 0.1])
def test_so_many_items_show_the_difference_and_fewer_do_not(wanted):
    items = foresight.items_for(wanted, 1, 5, 0.05 / 20)
    assert power.mcnemar_power(items, foresight.DIFFERING, wanted, 0.05 / 20) >= 0.79
    assert power.mcnemar_power(int(0.9 * items), foresight.DIFFERING, wanted, 0.05 / 20) < 0.79


def test_so_many_seeds_show_the_difference_and_one_fewer_does_not():
    seeds = foresight.seeds_for(0.1, 400, 5, 0.05 / 20)
    assert foresight.detectable(400, seeds, 5, 0.05 / 20) <= 0.1
    assert seeds == 3 or foresight.detectable(400, seeds - 1, 5, 0.05 / 20) > 0.1
    assert foresight.seeds_for(0.01, 50, 2, 0.001) is None


def test_more_items_do_not_help_where_seeds_vary_too_much():
    assert foresight.items_for(0.02, 2, 5, 0.05 / 20) is None


def test_the_lines_name_every_task_and_what_would_have_to_be_added():
    tasks = {"sums": {"generator": "reasoning-gym", "dataset": "chain_sum", "items": 300}, "arc_easy": {}}
    config = loaded(STRATEGIES, evaluation={"tasks": tasks, "limit": 100}, seeds=[0, 1, 2])
    said = foresight.told(config, 100, 541)
    assert said[1] == "answer 30 % of the items differently and seeds vary by 2.2 points:"
    assert said[2].startswith("  IFEval, 100 items, 3 seeds: ") and "among 20 comparisons" in said[2]
    assert said[3].startswith("  sums, 300 items, 3 seeds: ") and said[3].endswith(", not tested")
    assert [line.split(":")[0].strip() for line in said[5:8]] == ["3 points", "5 points", "10 points"]
    assert said[-1].endswith("a further task brings more)") and not any("arc_easy" in line for line in said)


def test_a_difference_that_is_seen_already_asks_for_nothing():
    said = foresight.told(loaded(STRATEGIES, statistics={"family": ["strategies"]}), 541, 541)
    assert "    10 points: is seen as it is" in said and "among 6 comparisons" in said[2]
