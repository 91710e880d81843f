"""What each student's training took, counted, and which rows of the table took different amounts."""

import pandas as pd

from kdag.report.words import listed, named

SAME = 0.05  # budgets that differ by no larger share are called equal
COLUMNS = ("steps", "rows", "answer_tokens", "tokens", "sampled_tokens", "teacher_tokens", "flops")


def budget_table(rows: list[dict], manifests: dict[str, dict]) -> pd.DataFrame:
    """A line per trained student. manifests: {model id: its manifest}."""
    found = []
    for row in rows:
        if row["role"] == "student":
            cost = manifests[row["model"]]["cost"]
            own = {"model": row["label"], "strategy": row["strategy"], "seed": row["seed"]}
            found.append(own | {name: cost[name] for name in COLUMNS})
    return pd.DataFrame(found)


def equal(manifests: dict[str, dict]) -> str | None:
    """What all students were given as much of, if the configuration asked for it."""
    budgets = [manifest["params"].get("budget") for manifest in manifests.values()]
    return next((budget["equal"] for budget in budgets if budget), None)


def groups(table: pd.DataFrame) -> list[pd.DataFrame]:
    """A frame for each group of strategies with as many steps and answer tokens, seeds on average."""
    means = table.groupby("strategy", sort=False)[["steps", "answer_tokens", "flops"]].mean()
    found: list[list[str]] = []
    for name, mean in means.iterrows():
        alike = [g for g in found if close(means.loc[g[0]], mean)]
        if alike:
            alike[0].append(name)
        else:
            found.append([name])
    return [means.loc[group] for group in found]


def close(one: pd.Series, other: pd.Series) -> bool:
    told = ["steps", "answer_tokens"]
    return bool(((one[told] - other[told]).abs() <= SAME * one[told]).all())


def sentence(table: pd.DataFrame, given: str | None = None) -> str:
    """Which strategies had other budgets than others; empty where all had the same. given: of `equal`."""
    found = groups(table)
    if len(found) < 2:
        return ""
    said = [
        f"{listed([named(name) for name in group.index])} "
        f"{group['answer_tokens'].mean():,.0f} answer tokens in {group['steps'].mean():,.0f} steps, "
        f"{group['flops'].mean():.2g} FLOPs"
        for group in found
    ]
    unit = {"tokens": "answer tokens", "flops": "FLOPs"}.get(given, given)
    begin = "Budgets differ"
    if given:
        begin = f"Every student was given as many {unit} as `sft` takes; the rest differs"
    return (
        f"{begin}. Trained on: {'; '.join(said)}. A difference between rows of different budgets may come "
        "from the budget."
    )


def markdown(table: pd.DataFrame) -> str:
    """The table with its caption."""
    shown = table.drop(columns=["strategy", "seed"]).rename(columns=lambda name: name.replace("_", " "))
    shown["flops"] = [f"{value:.3g}" for value in shown["flops"]]
    counts = [name for name in shown.columns if name not in ("model", "flops")]
    shown[counts] = shown[counts].map("{:,}".format)
    return (
        "What each training took. answer tokens: learned; tokens: prompts too; sampled: by the student while "
        "it trained; teacher: read for it, once if they are cached. flops: of products with weights.\n\n"
        + shown.to_markdown(index=False, disable_numparse=True)
    )
