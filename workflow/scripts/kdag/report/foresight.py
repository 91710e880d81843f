"""What an experiment will be able to see, before it runs: the power of its tests if models vary as usual.

Two students are taken to answer DIFFERING of the items differently, half of which another seed would change,
and a student's accuracy to vary by SEED_SD from seed to seed, drawing included: what was seen of small models
on IFEval (docs/statistics.md). The tests themselves are those that the report will use.
"""

import math

from scipy import optimize

from kdag.config.experiment import Config
from kdag.config.metrics import IFEVAL
from kdag.config.roster import table_rows
from kdag.report import power
from kdag.report.comparisons import pairs

DIFFERING = 0.3
SEED_SD = 0.022
WANTED = (0.03, 0.05, 0.10)  # differences that users ask for
MOST_ITEMS, MOST_SEEDS = 100_000, 20
KNOWN = 10**9  # degrees of freedom of a variance that is assumed


def tasks_of(config: Config, prompts: int) -> dict[str, int]:
    """{task: its items}, of those whose number the configuration says; prompts: of IFEval."""
    found = {"IFEval": prompts}
    for name, task in config.evaluation.tasks.items():
        if items := task.items if task.generator else task.limit:
            found[name] = items
    return found


def tested(config: Config) -> str | None:
    """The task of `tasks_of` whose metric is tested; None if it is another."""
    primary = config.statistics.primary
    if primary in IFEVAL:
        return "IFEval"
    return next((name for name in config.evaluation.tasks if primary.startswith(f"{name}_")), None)


def detectable(items: int, seeds: int, students: int, alpha: float) -> float:
    """The smallest difference of two students that is found with 80 % power; inf if there is none."""
    if seeds < 2:
        return power.detectable(items, DIFFERING, alpha)
    of_items = DIFFERING / items * (1 + 1 / seeds) / 2
    runs = power.Runs(students, seeds, 2)
    return power.detectable_over_seeds(of_items, SEED_SD**2, KNOWN, runs, items, alpha).size


def items_for(wanted: float, seeds: int, students: int, alpha: float) -> int | None:
    """How many items show this difference; None if more would not, since seeds vary."""

    def missing(log_items: float) -> float:
        return detectable(round(math.exp(log_items)), seeds, students, alpha) - wanted

    ends = math.log(10), math.log(MOST_ITEMS)
    if missing(ends[1]) > 0:
        return None
    return 10 if missing(ends[0]) <= 0 else math.ceil(math.exp(optimize.brentq(missing, *ends, xtol=1e-3)))


def seeds_for(wanted: float, items: int, students: int, alpha: float) -> int | None:
    """How many seeds show this difference on so many items, from three on; None if 20 do not."""
    enough = (n for n in range(3, MOST_SEEDS + 1) if detectable(items, n, students, alpha) <= wanted)
    return next(enough, None)


def ways(wanted: float, items: int, seeds: int, students: int, alpha: float) -> str:
    """What would have to be added to see a difference."""
    more, by_seeds = items_for(wanted, seeds, students, alpha), seeds_for(wanted, items, students, alpha)
    if more and more <= items:
        return "is seen as it is"
    found = [f"{more:,} items" if more else "", f"{by_seeds} seeds on these items" if by_seeds else ""]
    if any(found):
        return " or ".join(filter(None, found))
    for count in range(max(3, seeds + 1), MOST_SEEDS + 1):
        if more := items_for(wanted, count, students, alpha):
            return f"{more:,} items and {count} seeds"
    return f"more than {MOST_SEEDS} seeds"


def told(config: Config, prompts: int, most: int) -> list[str]:
    """Lines for `make plan`. prompts: of IFEval, as the planner counts those that are asked; most: of all."""
    seeds, students = len(config.seeds), len(config.strategies) + 1
    declared = len(pairs(table_rows(config), config.statistics.family))
    alone, family = config.statistics.alpha, config.statistics.alpha / max(1, declared)
    assumed = f"{100 * DIFFERING:g} % of the items differently"
    assumed += f" and seeds vary by {100 * SEED_SD:g} points" if seeds > 1 else ""
    lines = ["evidence: what is seen of two students with 80 % power, if they", f"answer {assumed}:"]
    which = tested(config)
    for name, items in tasks_of(config, prompts).items():
        sizes = (detectable(items, seeds, students, alpha) for alpha in (alone, family))
        shown = [f"{100 * size:.1f} points" if size < 1 else "nothing" for size in sizes]
        counted = f"{items:,} items, {seeds} seed{'s' if seeds > 1 else ''}"
        among = f"; among {declared} comparisons {shown[1]}" if name == which else ", not tested"
        lines.append(f"  {name}, {counted}: {shown[0]} alone{among}")
    items = tasks_of(config, prompts).get(which)
    if items is None:
        return lines
    lines.append(f"  to see of {which}, among {declared} comparisons:")
    for wanted in WANTED:
        lines.append(f"    {100 * wanted:g} points: {ways(wanted, items, seeds, students, family)}")
    if which == "IFEval":
        lines.append(f"  (IFEval has {most} prompts; a further task brings more)")
    return lines
