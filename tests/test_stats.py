"""Statistics: known values, real answers, properties, and simulations of what they promise."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar

from kdag.config.metrics import IFEVAL, PRIMARY
from kdag.config.roster import FAMILY
from kdag.evaluation.tasks import ifeval
from kdag.files.reading import read_jsonl
from kdag.job.errors import UserError
from kdag.report import comparisons, pool, power, stats
from kdag.report.measures import Items, gather
from kdag.report.verdict import verdict

# IFEval's prompts by their number of instructions; 541 prompts, 834 instructions.
SIZES = np.repeat([1, 2, 3], [305, 179, 57])
PROMPTS = np.arange(len(SIZES))


# --- known values ---------------------------------------------------------------------------------


def test_wilson():
    other = scipy_stats.binomtest(58, 100).proportion_ci(method="wilson")
    assert stats.wilson(58, 100) == pytest.approx(tuple(other))
    assert stats.wilson(0, 10)[0] == 0 and stats.wilson(10, 10)[1] == 1
    k, n, z = 320, 541, 1.959964  # by hand: the roots of (p - k/n)^2 = z^2 p (1 - p) / n
    middle, half = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    by_hand = ((middle - half) / (n + z * z), (middle + half) / (n + z * z))
    assert stats.wilson(k, n) == pytest.approx(by_hand, abs=1e-6)
    for wrong in ((0, 0), (5, 4), (-1, 4)):
        with pytest.raises(ValueError):
            stats.wilson(*wrong)


def test_mcnemar_exact():
    assert stats.mcnemar_exact(0, 0) == 1
    assert stats.mcnemar_exact(0, 6) == pytest.approx(2 / 64)
    assert stats.mcnemar_exact(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    for a, b in ((27, 112), (5, 5), (1, 18), (200, 231)):
        assert stats.mcnemar_exact(a, b) == stats.mcnemar_exact(b, a) == pytest.approx(p_values(a, b))
        assert stats.mcnemar_exact(a, b) == pytest.approx(mcnemar([[9, a], [b, 9]], exact=True).pvalue)
    with pytest.raises(ValueError):
        stats.mcnemar_exact(-1, 3)


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert len(stats.holm([])) == 0
    with pytest.raises(ValueError):
        stats.holm([0.1, math.nan])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_properties(pvalues):
    adjusted = stats.holm(pvalues)
    assert len(adjusted) == len(pvalues)
    assert np.all(adjusted >= np.array(pvalues)) and np.all(adjusted <= 1)
    order = np.argsort(pvalues, kind="stable")
    assert np.all(np.diff(adjusted[order]) >= 0), "a smaller p is never adjusted to a larger one"
    if pvalues:
        assert adjusted[order[0]] == pytest.approx(min(1, len(pvalues) * min(pvalues)))


def test_power_of_mcnemars_test_is_summed_over_all_outcomes():
    """By hand: every number of discordant prompts, every split of them, times whether p is at most alpha."""
    for n, psi, d, alpha in ((30, 0.4, 0.3, 0.05), (12, 0.9, 0.5, 0.01), (40, 0.2, 0.2, 0.05)):
        by_hand = 0.0
        for m in range(n + 1):
            for only_a in range(m + 1):
                if stats.mcnemar_exact(only_a, m - only_a) <= alpha:
                    split = scipy_stats.binom.pmf(only_a, m, (1 + d / psi) / 2)
                    by_hand += scipy_stats.binom.pmf(m, n, psi) * split
        assert power.mcnemar_power(n, psi, d, alpha) == pytest.approx(by_hand, abs=1e-9)
    assert power.mcnemar_power(541, 0.0, 0.0) == 0
    with pytest.raises(ValueError):
        power.mcnemar_power(541, 0.1, 0.2)


@pytest.mark.parametrize(
    "n, psi, alpha", [(541, 0.1, 0.05), (541, 0.3, 0.05 / 20), (64, 0.2, 0.05), (64, 0, 0.05)]
)
def test_what_is_called_detectable_is_found_four_times_in_five(n, psi, alpha):
    d = power.detectable(n, psi, alpha)
    assert power.mcnemar_power(n, max(psi, d), d, alpha) == pytest.approx(0.8, abs=1e-3)
    rng = np.random.default_rng(3)
    psi = max(psi, d)
    drawn = rng.multinomial(n, [(psi + d) / 2, (psi - d) / 2, 1 - psi], size=4000)
    assert np.mean(p_values(drawn[:, 0], drawn[:, 1]) <= alpha) == pytest.approx(0.8, abs=0.02)


def test_what_cannot_be_detected():
    assert power.detectable(541, 0) > 6 / 541, "fewer cannot be significant at all"
    assert power.detectable(5, 0.4) == power.detectable(8, 0.4, alpha=0.001) == math.inf
    assert power.detectable(6, 0.4) < 1
    with pytest.raises(ValueError):
        power.detectable(541, 1.1)


def test_tangos_interval_is_its_score_test_inverted():
    """At each end the score is 1.96: the variance is that of the best guess that has this difference."""
    for b, c, n in ((43, 17, 200), (1, 9, 64), (5, 0, 64), (0, 3, 541)):
        for end in stats.tango(b, c, n):
            guesses = np.linspace(max(0, -end), (1 - end) / 2, 200_001)[1:-1]  # of the share that b alone has
            chance = b * np.log(guesses + end) + c * np.log(guesses)
            chance += (n - b - c) * np.log(1 - 2 * guesses - end)
            best = guesses[np.nanargmax(chance)]
            score = (b - c - n * end) / math.sqrt(n * (2 * best + end * (1 - end)))
            assert abs(score) == pytest.approx(1.96, abs=2e-3)
    reach = 1.959964**2 / (541 + 1.959964**2)
    assert stats.tango(0, 0, 541) == pytest.approx((-reach, reach), abs=1e-6)
    assert stats.tango(8, 0, 8)[1] == 1 and stats.tango(0, 8, 8)[0] == -1
    with pytest.raises(ValueError):
        stats.tango(3, 3, 5)


@pytest.mark.parametrize("n", [12, 64, 541])
def test_an_interval_holds_zero_if_and_only_if_the_exact_test_finds_nothing(n):
    for m in [*range(min(n, 45) + 1), *range(45, n, 61)]:
        for only_a in range(m // 2, m + 1):
            low, high = stats.paired_interval(only_a, m - only_a, n)
            found = stats.mcnemar_exact(only_a, m - only_a) <= 0.05
            assert (low > 0) == found and low < high and low <= (2 * only_a - m) / n <= high


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.sampled_from([1, 3]), st.booleans())
def test_no_interval_is_a_point_or_contradicts_its_test(seed, n_prompts, n_seeds, clustered):
    """Whatever the answers: all alike, all different, one prompt, several items a prompt."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(n_prompts), rng.integers(1, 4, n_prompts) if clustered else 1)
    a, b = rng.random((2, n_seeds, len(clusters))) < rng.choice([0, 0.1, 0.5, 0.9, 1], size=(2, 1, 1))
    if n_seeds == 1:
        found = stats.paired_test(a[0], b[0], clusters, draws=200)
    else:
        found = stats.crossed_test(a, b, clusters)
    assert -1 <= found.low < found.high <= 1
    assert found.low <= found.difference <= found.high
    if found.p > 0.05:
        assert found.low <= 0 <= found.high


def test_sign_flip_is_mcnemar_of_one_seed_and_exact_of_several():
    for a, b in ((3, 11), (0, 6), (7, 7), (27, 112)):
        assert stats.sign_flip([1] * a + [-1] * b + [0] * 50) == pytest.approx(stats.mcnemar_exact(a, b))
    differences = np.array([3, 2, 2, -1, 1, 3])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    by_hand = np.mean(np.abs(signs.T @ np.abs(differences)) >= differences.sum())
    assert stats.sign_flip(differences) == pytest.approx(by_hand)
    assert stats.sign_flip([0, 0]) == 1


def test_bootstrap_against_the_formula():
    """On one item a prompt the interval is what the normal approximation says, to sampling error."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 541)) < [[0.6], [0.5]]).astype(float)
    found = stats.paired_bootstrap(a, b, PROMPTS)
    half = 1.96 * (a - b).std() / math.sqrt(541)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    expected = (found.difference - half, found.difference + half)
    assert (found.low, found.high) == pytest.approx(expected, abs=2e-3)
    assert found.p == pytest.approx(scipy_stats.ttest_rel(a, b).pvalue, abs=0.01)


def test_bootstrap_draws_prompts_not_instructions():
    """All instructions of a prompt alike: as wide as over prompts, not as over so many instructions."""
    values = np.repeat(np.arange(100) % 2, 4).astype(float)
    clustered = np.ptp(stats.bootstrap_interval(values, np.repeat(np.arange(100), 4)))
    naive = np.ptp(stats.bootstrap_interval(values, np.arange(400)))
    assert clustered / naive == pytest.approx(2, rel=0.05)


def test_equal_models_and_wrong_shapes():
    a = np.array([1.0, 0, 1, 1])
    assert stats.paired_bootstrap(a, a, range(4)) == (0, 0, 0, 1)
    reach = 1.959964**2 / (4 + 1.959964**2)  # no prompt says anything of the variance
    for found in (stats.paired_test(a, a, range(4)), stats.crossed_test([a, a], [a], range(4))):
        assert found[:4] == pytest.approx((0, -reach, reach, 1))
    with pytest.raises(ValueError):
        stats.paired_bootstrap(a, a[:3], range(4))
    with pytest.raises(ValueError):
        stats.paired_bootstrap(a, a, range(3))
    with pytest.raises(ValueError):
        stats.crossed_test([a, a, a], [a, a], range(4))
    with pytest.raises(ValueError):
        stats.crossed_test([a], [a], range(4))


def test_few_prompts_do_not_pass_for_many():
    """Eight prompts, all better with every seed: no variance at all, and the exact p is 2 / 2^8."""
    found = stats.crossed_test(np.ones((3, 8)), np.zeros((1, 8)), range(8))
    assert found.difference == found.high == 1 and found.p == pytest.approx(2 / 256)
    assert found.low == pytest.approx(1 - 3.8415 / (8 + 3.8415), abs=1e-4)


def test_same_bytes_twice():
    def once():
        rng = np.random.default_rng(5)
        a, b = rng.random((2, 3, 834)) < 0.6
        clusters = np.repeat(PROMPTS, SIZES)
        stats._draws.cache_clear()
        found = [stats.paired_bootstrap(a[0], b[0], clusters, 2000, 1)]
        found += [stats.paired_test(a[0], b[0], clusters, 2000, 1), stats.crossed_test(a, b, clusters)]
        return repr(found)

    assert once() == once()
    a, b = np.random.default_rng(5).random((2, 541)) < 0.6
    assert stats.paired_bootstrap(a, b, PROMPTS, 500, 1) != stats.paired_bootstrap(a, b, PROMPTS, 500, 2)


# --- simulations ----------------------------------------------------------------------------------
# 4,000 replications of a 95 % interval: the standard error of its coverage is 0.35 %.


def p_values(only_a, only_b):
    """`mcnemar_exact` of arrays: twice the smaller tail."""
    only_a, only_b = np.asarray(only_a), np.asarray(only_b)
    return np.minimum(1, 2 * scipy_stats.binom.cdf(np.minimum(only_a, only_b), only_a + only_b, 0.5))


@pytest.mark.parametrize("n", [100, 541])
@pytest.mark.parametrize("p", [0.3, 0.5915, 0.71])
def test_coverage_of_wilson(n, p):
    """Exact: the probability of every count, times whether its interval holds p."""
    k = np.arange(n + 1)
    holds = np.array([low <= p <= high for low, high in (stats.wilson(int(i), n) for i in k)])
    assert 0.93 <= scipy_stats.binom.pmf(k, n, p)[holds].sum() <= 0.97


def test_coverage_of_the_paired_bootstrap():
    """541 prompts: both right 50 %, only a 14 %, only b 9 %, neither 27 %."""
    rng = np.random.default_rng(11)
    covered = 0
    for i in range(4000):
        kind = rng.choice(4, size=541, p=[0.5, 0.14, 0.09, 0.27])
        found = stats.paired_bootstrap(kind <= 1, (kind == 0) | (kind == 2), PROMPTS, 1000, i // 200)
        covered += found.low <= 0.05 <= found.high
    print(f"paired bootstrap: {covered / 4000:.4f}")
    assert 0.93 <= covered / 4000 <= 0.97


def answers(rng, n_models, shift=0.0):
    """0/1 [n_models, 834 or so] and clusters: prompts share difficulty, instructions of one prompt more."""
    sizes = rng.choice(SIZES, size=541)
    clusters = np.repeat(PROMPTS, sizes)
    hard = rng.normal(size=541)[clusters] + rng.normal(scale=0.5, size=clusters.size)
    noise = rng.normal(size=(n_models, clusters.size))
    return (hard + noise + shift > -0.5).astype(float), clusters


def test_coverage_of_inst_level_intervals():
    """Clustered instructions, one model's accuracy and the difference of two."""
    rng = np.random.default_rng(12)
    spread = math.sqrt(1 + 0.25 + 1)
    truth = scipy_stats.norm.cdf(0.5 / spread)
    alone = pair = naive = 0
    for i in range(2500):
        (a, b), clusters = answers(rng, 2)
        low, high = stats.bootstrap_interval(a, clusters, 1000, i // 250)
        alone += low <= truth <= high
        found = stats.paired_bootstrap(a, b, clusters, 1000, i // 250)
        pair += found.low <= 0 <= found.high
        low, high = stats.wilson(int(a.sum()), a.size)
        naive += low <= truth <= high
    print(f"inst-level: {alone / 2500:.4f}, difference {pair / 2500:.4f}, Wilson {naive / 2500:.4f}")
    assert 0.93 <= alone / 2500 <= 0.97
    assert 0.93 <= pair / 2500 <= 0.97
    assert naive < alone - 50, "treating instructions as independent holds less than it says"


def test_false_discoveries_of_the_whole_family():
    """Seven equally good models, 20 tests: a false finding in at most 5 % of the experiments."""
    rng = np.random.default_rng(13)
    untrained, sft, teacher, *strategies = range(7)
    family = [(s, untrained) for s in (sft, *strategies)] + [(s, sft) for s in strategies]
    family += [(s, teacher) for s in (sft, *strategies)]
    family += [(a, b) for a in strategies for b in strategies if a < b]
    assert len(family) == 20
    first, second = np.array(family).T
    holm_found = plain_found = 0
    for _ in range(4000):
        right = rng.normal(size=541) + rng.normal(scale=0.7, size=(7, 541)) > 0
        only_a, only_b = (right[first] & ~right[second]).sum(1), (right[second] & ~right[first]).sum(1)
        p = p_values(only_a, only_b)
        # statsmodels collects garbage in every call: only those that can make a difference.
        holm_found += 20 * p.min() <= 0.1 and stats.holm(p).min() <= 0.05
        plain_found += p.min() <= 0.05
    print(f"false findings: Holm {holm_found / 4000:.4f}, uncorrected {plain_found / 4000:.4f}")
    assert holm_found / 4000 <= 0.05 + 2 * 0.0034
    assert plain_found / 4000 > 0.2, "without the correction the same tests find something far too often"


def trained(rng, seeds, seed_sd):
    """[seeds, 541] answers of a strategy that is on average as good as any other."""
    own = rng.normal(scale=0.5, size=541)
    level = rng.normal(scale=seed_sd, size=(seeds, 1))
    return own + level + rng.normal(scale=0.5, size=(seeds, 541))


@pytest.mark.parametrize("n_seeds, seed_sd", [(2, 0.1), (3, 0.0), (3, 0.1), (3, 0.3), (5, 0.1)])
def test_coverage_over_prompts_and_seeds(n_seeds, seed_sd):
    """Two equal methods, seeds that differ by 0, 2 and 7 points: p and interval keep what they promise.

    It may be too wide (of two seeds, or where seeds hardly differ, it holds up to 100 %), never too narrow.
    """
    rng = np.random.default_rng(14)
    covered = found = 0
    for _ in range(800):
        hard = rng.normal(size=541)
        a, b = (trained(rng, n_seeds, seed_sd) + hard > 0 for _ in range(2))
        crossed = stats.crossed_test(a, b, PROMPTS)
        covered += crossed.low <= 0 <= crossed.high
        found += crossed.p <= 0.05
    print(f"{n_seeds} seeds, spread {seed_sd}: holds {covered / 800:.3f}, false {found / 800:.3f}")
    assert covered / 800 >= 0.93
    assert found / 800 <= 0.05 + 2 * 0.0077


# --- comparisons and verdict ----------------------------------------------------------------------


def table(models: dict[str, np.ndarray]):
    """(rows, items) of {model: 0/1 per prompt}, one instruction a prompt; `fkl-seed1` is a student."""
    rows, scores = [], {}
    for model, right in models.items():
        row = {"model": model, "label": model, "role": "teacher" if "teacher" in model else "untrained"}
        if "-seed" in model:
            strategy, seed = model.split("-seed")
            row |= {"role": "student", "strategy": strategy, "seed": int(seed)}
        rows.append(row)
        prompts = [{"key": i, "strict": [bool(v)], "loose": [bool(v)]} for i, v in enumerate(right)]
        scores[model] = {"prompts": prompts, "metrics": ifeval.metrics(prompts)}
    return rows, gather(rows, scores)


def students(n=541, seeds=(0,), better=0.0, worse=0.0):
    """Baselines, sft and two strategies; `up` is right on a further share of prompts, `down` on fewer."""
    rng = np.random.default_rng(21)
    base = rng.random(n) < 0.5
    models = {"teacher-untrained": base, "teacher": base, "student-untrained": base}
    for name, share, value in (("sft", 0, True), ("up", better, True), ("down", worse, False)):
        for seed in seeds:
            flipped = rng.random(n) < 0.05  # what training moves at random
            moved = np.where(rng.random(n) < share, value, base ^ flipped)
            models[f"{name}-seed{seed}"] = moved
    return table(models)


ALL = list(FAMILY)
compare = functools.partial(comparisons.compare, primary=PRIMARY)


def test_family_and_its_correction():
    rows, items = students(better=0.3, worse=0.02)
    found = compare(rows, items, ALL, draws=500)
    tested = found[found["metric"] == PRIMARY]
    against = list(zip(tested["family"], tested["a"], tested["b"], strict=True))
    assert against == [
        ("untrained", "sft", "student-untrained"),
        ("untrained", "up", "student-untrained"),
        ("untrained", "down", "student-untrained"),
        ("sft", "up", "sft"),
        ("sft", "down", "sft"),
        ("teacher", "sft", "teacher"),
        ("teacher", "up", "teacher"),
        ("teacher", "down", "teacher"),
        ("strategies", "up", "down"),
    ]
    assert list(found.columns) == comparisons.COLUMNS and set(found["metric"]) == set(IFEVAL)
    assert np.allclose(tested["p_holm"].astype(float), stats.holm(tested["p"].astype(float)))
    rest = found[found["metric"] != PRIMARY]
    assert rest[["p", "p_holm", "detectable"]].isna().all(axis=None) and rest["low"].notna().all()
    row = tested.iloc[1]
    a, b = (items[PRIMARY][m].values for m in ("up-seed0", "student-untrained"))
    assert (row["only_a"], row["only_b"]) == ((a > b).sum(), (b > a).sum())
    assert row["difference"] == pytest.approx(100 * (a.mean() - b.mean()))
    assert row["p"] == stats.mcnemar_exact(row["only_a"], row["only_b"])
    assert (row["low"], row["high"]) == pytest.approx(
        tuple(100 * end for end in stats.tango(row["only_a"], row["only_b"], 541))
    )
    share = (row["only_a"] + row["only_b"]) / 541
    limits = [100 * power.detectable(541, share, alpha) for alpha in (0.05, 0.05 / 9)]
    assert [row["detectable"], row["detectable_family"]] == pytest.approx(limits)
    alone = compare(rows, items, ["strategies"], draws=500)
    assert len(alone) == 4 and alone["p_holm"].iloc[0] == alone["p"].iloc[0]


def test_verdict_names_what_survives_and_nothing_else():
    rows, items = students(better=0.3, worse=0.4)
    text = verdict(compare(rows, items, ALL, draws=500))
    assert "- `up` is better than the untrained student: " in text
    assert "- `down` is worse than the untrained student: " in text
    assert "- `down` is worse than the teacher: " in text
    assert "- `up` is better than `down`: " in text
    assert "No significant difference from the untrained student for `sft`; with 541 prompts we could" in text
    assert "`sft` is better" not in text and "`sft` is worse" not in text
    assert "One training seed (0): the claim is about these models, not about the methods." in text
    assert "9 comparisons in one family" in text


def test_verdict_of_nothing_found():
    rows, items = students()
    found = compare(rows, items, ALL, draws=500)
    text = verdict(found)
    assert "better" not in text and "worse" not in text
    most = found[found["family"] == "untrained"]["detectable_family"].max()
    assert (
        "- No significant difference between any trained student and the untrained student; with 541 prompts "
        f"we could have detected {most:.1f} points or more (80 % power)." in text
    )
    assert "- No significant difference between any strategy and `sft`; with 541" in text
    assert "- No significant difference between any two strategies; with 541" in text
    assert "that is not evidence of equality" in text
    rows, items = students(n=6)
    assert "6 prompts cannot show any difference" in verdict(compare(rows, items, ALL, draws=50))
    assert "nothing is claimed" in verdict(compare(rows, items, [], draws=50))


def test_verdict_is_safe_markdown():
    rows, items = students(better=0.5)
    for row in rows:
        if row.get("strategy") == "up":
            row["strategy"] = "u_p*`<b>`|\n# x"
    text = verdict(compare(rows, items, ALL, draws=50))
    assert "`u_p* b # x` is better" in text and "<" not in text.replace("p < 0.001", "") and "|" not in text


def test_several_seeds():
    rows, items = students(seeds=(0, 1, 2), better=0.3)
    found = compare(rows, items, ALL, draws=500)
    tested = found[found["metric"] == PRIMARY]
    assert len(tested) == 9, "strategies are compared, not single seeds"
    row = tested.iloc[1]
    a = np.stack([items[PRIMARY][f"up-seed{s}"].values for s in range(3)])
    b = items[PRIMARY]["student-untrained"].values
    each = 100 * (a - b).mean(axis=1)
    assert row["difference"] == pytest.approx(each.mean())
    assert row["difference_sd"] == pytest.approx(each.std(ddof=1))
    assert row["by_seed"] == ", ".join(f"{s}: {d:+.2f}" for s, d in enumerate(each))
    assert row["seeds"] == "0 1 2" and row["only_a"] == (a > b).sum()
    accuracies = {
        s: np.array([items[PRIMARY][f"{s}-seed{k}"].values.mean() for k in range(3)])
        for s in ("sft", "up", "down")
    }
    parts = pool.pool(accuracies).of_mean("up", "student-untrained")
    assert row["p"] == pytest.approx(stats.crossed_test(a, b[None], PROMPTS, pooled=parts).p)
    text = verdict(found)
    assert "3 training seeds (0, 1, 2)" in text and "`up` is better than the untrained student" in text
    spread = comparisons.over_seeds(rows, items).set_index(["strategy", "metric"]).loc[("up", PRIMARY)]
    assert spread["mean"] == pytest.approx(a.mean()) and spread["sd"] == pytest.approx(each.std(ddof=1) / 100)
    with pytest.raises(UserError, match="not trained with all of the seeds"):
        compare([r for r in rows if r["model"] != "up-seed1"], items, ["sft"], draws=50)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_tested_metric_of_instructions_is_tested_by_its_prompts(seeds):
    """Three instructions a prompt that stand and fall together are one answer, not three."""
    rng, documents = np.random.default_rng(4), np.repeat(np.arange(60), 3)
    rows = [{"model": "student-untrained", "label": "untrained", "role": "untrained"}]
    rows += [
        {"model": f"up-seed{s}", "label": "up", "role": "student", "strategy": "up", "seed": s} for s in seeds
    ]
    base = rng.random(60) < 0.5
    right = {row["model"]: np.where(rng.random(60) < 0.25, True, base) for row in rows[1:]}
    right["student-untrained"] = base
    items = {m: Items(np.repeat(values, 3).astype(float), documents) for m, values in right.items()}
    row = compare(rows, {PRIMARY: items}, ["untrained"], draws=500).iloc[0]
    assert (row["n"], row["prompts"]) == (180, 60)
    by_prompt = sum(right[r["model"]].astype(int) for r in rows[1:]) - len(seeds) * base.astype(int)
    if len(seeds) == 1:
        assert row["test"] == "sign-flip of prompts, exact"
        assert row["p"] == pytest.approx(stats.mcnemar_exact(int(by_prompt.sum()), 0))
        assert 0 < row["low"] < row["difference"] < row["high"] and 5 < row["detectable"] < 30
    else:
        assert row["p"] >= stats.sign_flip(by_prompt) and row["seed_variance"] == "own"


def spread(sd, seeds=3, seed=0):
    """Accuracies of seeds whose standard deviation is exactly sd."""
    values = np.random.default_rng(seed).normal(size=seeds)
    return 0.5 + sd * (values - values.mean()) / values.std(ddof=1)


def test_the_pool_is_the_mean_variance_of_students_that_vary_alike():
    alike = {name: spread(sd, seed=i) for i, (name, sd) in enumerate(zip("abcd", (1, 2, 2, 3), strict=True))}
    found = pool.pool(alike)
    assert found.variance == pytest.approx((1 + 4 + 4 + 9) / 4) and found.df == 8 and not found.left_out
    assert found.of_mean("a", "b") == (((pytest.approx(2 * 4.5 / 3), 8),), 8)
    assert found.of_mean("a", "teacher") == (((pytest.approx(4.5 / 3), 8),), 8)


def test_a_student_that_varies_more_counts_with_its_own_variance():
    names = {"a": 1, "b": 1, "c": 1, "d": 6, "e": 9}
    found = pool.pool({name: spread(sd, seed=i) for i, (name, sd) in enumerate(names.items())})
    assert found.left_out == pytest.approx({"d": 36, "e": 81}) and found.students == tuple("abc")
    assert found.of_mean("a", "b") == (((pytest.approx(2 / 3), 6),), 6)
    assert found.of_mean("a", "d") == (((pytest.approx(1 / 3), 6), (pytest.approx(12), 2)), 6)
    assert found.of_mean("teacher", "d") == (((pytest.approx(12), 2),), 6)
    assert found.of_mean("d", "e") == (((pytest.approx(12), 2), (pytest.approx(27), 2)), 6)


def test_the_t_of_a_student_left_out_is_limited_by_the_pools():
    alone, left_out = pool.Seeds(((1.0, 2),)), pool.Seeds(((1.0, 2),), 10)
    for alpha in (0.05, 0.05 / 20):
        most = pool.LIMIT * scipy_stats.t.isf(alpha / 2, 10)
        assert alone.square(alpha) == pytest.approx(scipy_stats.t.isf(alpha / 2, 2) ** 2)
        assert left_out.square(alpha) == pytest.approx(min(most**2, alone.square(alpha)))
    assert pool.known_by(0.5, 3, None) == (((0.5, 2),), None)
    assert pool.known_by(0.5, 3, pool.Seeds(((0.2, 10),), 10)) == (((0.5, 10),), 10)
    assert pool.known_by(0.1, 3, pool.Seeds(((0.2, 10),), 10)) == (((0.2, 10),), 10)


def test_too_few_seeds_or_students_are_not_pooled():
    for names, seeds in (("abcde", 2), ("ab", 3), ("", 3)):
        assert pool.pool({name: spread(1, seeds, i) for i, name in enumerate(names)}) is None
    assert pool.pool({name: spread(1, 3, i) for i, name in enumerate("abc")}).df == 6
    assert pool.pool({name: spread(1, 5, i) for i, name in enumerate("ab")}).df == 8
    alike = pool.pool({name: np.full(3, 0.5) for name in "abc"})
    assert alike.variance == 0 and not alike.left_out


def test_an_estimate_of_few_seeds_prints_no_number():
    """Ten degrees of freedom tell the variance well enough, two and one do not."""
    known = power.detectable_over_seeds(1e-4, 1e-4, 10, power.Runs(5, 3, 1), 541)
    assert known.low < known.size < known.high <= 2 * known.low
    assert power.detectable_over_seeds(1e-4, 1e-4, 2, power.Runs(2, 3, 2), 541) is None
    assert power.detectable_over_seeds(1e-4, 1e-4, 1, power.Runs(5, 2, 1), 541) is None
    nothing = power.detectable_over_seeds(0.0, 0.0, 10, power.Runs(5, 3, 1), 541)
    assert nothing.size == power.detectable(541, 0.0)


def test_what_seeds_could_have_detected_is_the_power_of_the_crossed_test():
    """Normal differences of known variances: four in five runs find it, with those that leave one out."""
    rng, runs, variance = np.random.default_rng(8), power.Runs(5, 3, 2), 1e-4
    pooled = variance * power._shown(runs)  # what such runs say of it
    size = power.detectable_over_seeds(2e-4, pooled, 10, runs, 541).size
    found = 0
    for _ in range(1500):
        students = rng.normal(scale=math.sqrt(variance), size=(5, 3))
        seeds = pool.pool({str(k): student for k, student in enumerate(students)}).of_mean("0", "1")
        pair = students[0] - students[1]
        seeds = pool.known_by(np.var(pair, ddof=1) / 3, 3, seeds)
        observed = size + pair.mean() + rng.normal(scale=math.sqrt(2e-4))
        found += observed > math.sqrt(2e-4 * pool.t(0.05, 540) ** 2 + seeds.square(0.05))
    assert found / 1500 == pytest.approx(0.8, abs=0.03)


def test_what_cannot_be_compared_is_refused():
    rows, items = students(n=20)
    with pytest.raises(UserError, match="known are untrained, sft, teacher, strategies"):
        compare(rows, items, ["untraind"])
    with pytest.raises(UserError, match="needs the row teacher"):
        compare([r for r in rows if r["model"] != "teacher"], items, ["teacher"])


def test_comparisons_are_the_same_bytes_twice():
    rows, items = students(n=60, seeds=(0, 1), better=0.2)
    csv = [compare(rows, items, ALL, draws=300).to_csv(index=False) for _ in range(2)]
    assert csv[0] == csv[1]


# --- real answers ---------------------------------------------------------------------------------


def test_two_real_models(shared_data):
    """7B against 3B by the verdicts published with the answers: 112 and 27 discordant prompts."""
    scores = {}
    for model in ("7B", "3B"):
        lists = [
            [r["follow_instruction_list"] for r in read_jsonl(shared_data / "ifeval" / name)]
            for name in (f"qwen2.5-{model}-gptq-int4_{mode}.jsonl" for mode in ("strict", "loose"))
        ]
        prompts = [{"key": i, "strict": s, "loose": q} for i, (s, q) in enumerate(zip(*lists, strict=True))]
        scored = {"prompts": prompts, "metrics": ifeval.metrics(prompts)}
        scores["teacher" if model == "7B" else "small-seed0"] = scored
    rows = [
        {"model": "teacher", "label": "7B", "role": "teacher"},
        {"model": "small-seed0", "label": "3B", "role": "student", "strategy": "small", "seed": 0},
    ]
    items = gather(rows, scores)
    found = compare(rows, items, ["teacher"]).set_index("metric")
    row = found.loc[PRIMARY]
    assert (row["only_a"], row["only_b"], row["n"]) == (27, 112, 541)
    assert row["difference"] == pytest.approx(100 * (310 - 395) / 541)
    assert row["p"] == pytest.approx(1.7e-13, rel=0.02)
    assert (row["low"], row["high"]) == pytest.approx((-19.8, -11.6), abs=0.2)
    loose = found.loc["prompt_level_loose_accuracy"]
    assert (loose["only_a"], loose["only_b"]) == (26, 104)
    inst = found.loc["inst_level_strict_accuracy"]
    assert inst["n"] == 834 and inst["high"] < 0
    cells = comparisons.intervals(rows, items, draws=2000).set_index(["model", "metric"])
    cell = cells.loc[("teacher", PRIMARY)]
    assert (cell["correct"], cell["n"]) == (395, 541) and (cell["low"], cell["high"]) == stats.wilson(
        395, 541
    )
    cell = cells.loc[("teacher", "inst_level_strict_accuracy")]
    assert cell["n"] == 834 and cell["low"] < cell["accuracy"] < cell["high"]
