"""Where answers go wrong, in sentences for below the table: pure functions of the rows and their scores.

A row is named if its answers are cut off, or repeat themselves, far more often than those of the model it is
compared with, and the teacher if fine-tuning lowered its score. These are warnings and no findings: each p
stands by itself, outside the family whose tests the verdict corrects.
"""

from kdag.config.roster import TEACHER, TEACHER_UNTRAINED, spoken
from kdag.report import stats
from kdag.report.measures import Items

MORE, LEVEL = 0.10, 0.05  # named: a share so much larger, and so unlikely by chance
KINDS = {"cut_off": ("is cut off", "are cut off"), "repeated": ("repeats itself", "repeat themselves")}
RULE = (
    f"(Named: at least {100 * MORE:.0f} points more often, with p at most {LEVEL:g} by McNemar's exact test "
    "on the same prompts, not adjusted: a warning, not a finding.)"
)
STUDENTS = (
    "Look at: more steps (`distillation.epochs`, `data.train_rows`), a lower `distillation.learning_rate`, "
    "and for a student cut from its teacher fewer layers cut (`student.derive`)."
)
OF_TEACHER = "Look at: a lower `teacher_training.learning_rate`, fewer `teacher_training.epochs`."
LISTED = 4  # so many shares are listed; of more, the smallest and the largest


def notes(
    rows: list[dict],
    scores: dict[str, dict],
    primary: str,
    items: dict[str, Items],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> list[str]:
    """The paragraphs, in Markdown; none where nothing is wrong.

    rows: all of `roster.table_rows`; items: {model id: Items} of the tested metric, `primary`.
    """
    by_model = {row["model"]: row for row in rows}
    students = [row for row in rows if row["role"] == "student"]
    teacher, untrained = by_model[TEACHER], by_model.get(TEACHER_UNTRAINED)
    worse = {kind: worse_than(students, teacher, scores, kind) for kind in KINDS}
    found, named = [of_students(worse, teacher, scores)], worse
    if untrained:
        worse_teacher = {kind: worse_than([teacher], untrained, scores, kind) for kind in KINDS}
        named = {kind: worse[kind] + worse_teacher[kind] for kind in KINDS}
        found.append(of_teacher(worse_teacher, untrained, scores, lowered(primary, items, draws, seed)))
    found.append(mostly(rows, scores, named))
    return [text for text in found if text]


def of_students(worse: dict[str, list[dict]], teacher: dict, scores: dict[str, dict]) -> str:
    """The paragraph on trained students. worse: {kind: those that the rule names}."""
    said = [sentence(found, kind, scores, teacher) for kind, found in worse.items() if found]
    if not said:
        return ""
    one = len({row["model"] for found in worse.values() for row in found}) == 1
    whose = "Its scores say" if one else "Their scores say"
    why = f"{whose} more about unfinished training than about the strategy."
    return " ".join([*said, why, STUDENTS, RULE])


def of_teacher(worse: dict[str, list[dict]], untrained: dict, scores: dict[str, dict], lower: str) -> str:
    """The paragraph on the fine-tuned teacher. lower: of `lowered`."""
    said = [sentence(found, kind, scores, untrained) for kind, found in worse.items() if found]
    rule = [RULE] if said else []
    if lower:
        said.append(lower)
    return " ".join([*said, "The students learn from it.", OF_TEACHER, *rule]) if said else ""


def worse_than(rows: list[dict], baseline: dict, scores: dict[str, dict], kind: str) -> list[dict]:
    """Those of `rows` that the rule names; none where the answers do not tell."""
    return [row for row in rows if far_more(flags(scores, row, kind), flags(scores, baseline, kind))]


def flags(scores: dict[str, dict], row: dict, kind: str) -> list:
    return [prompt[kind] for prompt in scores[row["model"]]["prompts"]]


def far_more(a: list[bool | None], b: list[bool | None]) -> bool:
    """Is a true on far more of the same prompts than b: by MORE of them, and with p at most LEVEL?"""
    if None in a or None in b:
        return False
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    return (only_a - only_b) / len(a) >= MORE and stats.mcnemar_exact(only_a, only_b) <= LEVEL


def sentence(found: list[dict], kind: str, scores: dict[str, dict], baseline: dict) -> str:
    """`fkl` and `rkl` are cut off in 64 % and 67 % of their answers, the teacher in 31 %."""
    several = len(found) > 1
    verb, whose = KINDS[kind][several], "their" if several else "its"
    share = {r["model"]: scores[r["model"]]["answers"][f"{kind}_share"] for r in [*found, baseline]}
    text = (
        f"{listed([name(row) for row in found])} {verb} in {percents([share[r['model']] for r in found])} of "
        f"{whose} answers, {name(baseline)} in {percents([share[baseline['model']]])}."
    )
    return text[0].upper() + text[1:]


def lowered(primary: str, items: dict[str, Items], draws: int, seed: int) -> str:
    """That the fine-tuned teacher scores lower than the untrained one, if it does, and whether by chance."""
    own, prompts = items[TEACHER]
    base, _ = items[TEACHER_UNTRAINED]
    if own.mean() >= base.mean():
        return ""
    found = stats.paired_test(own, base, prompts, draws, seed)
    p, of_prompts = found.p, len(set(prompts)) == len(prompts)
    test = "McNemar's exact test" if of_prompts else "an exact sign-flip test"
    return (
        f"The fine-tuned teacher scores lower than the untrained one: {own.mean():.4f} and {base.mean():.4f} "
        f"(`{primary}`), {100 * found.difference:.1f} points (95 % interval {100 * found.low:.1f} to "
        f"{100 * found.high:.1f}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} by {test}, not "
        f"adjusted){', which may be chance' if p > LEVEL else ''}."
    )


def mostly(rows: list[dict], scores: dict[str, dict], named: dict[str, list[dict]]) -> str:
    """Which rows mostly did not answer: accuracies of such answers are luck. Without what is named already,
    and without the untrained student, which is what it is."""
    parts = []
    for kind, words in {
        "cut_off": "are cut off",
        "repeated": "repeat themselves",
        "empty": "are empty",
    }.items():
        shares = {r["model"]: scores[r["model"]]["answers"][f"{kind}_share"] or 0 for r in rows}
        over = [r for r in rows if shares[r["model"]] > 0.5 and r["role"] != "untrained"]
        labels = [name(r) for r in over if r not in named.get(kind, [])]
        if labels:
            parts.append(f"{words}: {', '.join(labels)}")
    return f"More than half of the answers {'; '.join(parts)}." if parts else ""


def name(row: dict) -> str:
    """`fkl`, with its seed where there are several; the teacher."""
    if row["role"] != "student":
        return spoken(row["model"]) or f"the {row['label']}"
    return f"`{row['strategy']}`{row['label'].removeprefix('student - ' + row['strategy'])}"


def percents(shares: list[float]) -> str:
    texts = [f"{100 * share:.0f} %" for share in sorted(shares)]
    if texts[0] == texts[-1]:
        return texts[0]
    if len(texts) > LISTED:
        return f"{texts[0]} to {texts[-1]}"
    return listed([f"{100 * share:.0f} %" for share in shares])


def listed(texts: list[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
