"""The table: rows measured alike, side by side, and what a reader must know below it."""

import pandas as pd

from kdag.errors import UserError

METRICS = [f"{level}_level_{mode}_accuracy" for mode in ("strict", "loose") for level in ("prompt", "inst")]


def refuse_mixture(rows: list[dict], scores: dict[str, dict]) -> None:
    """UserError if any row was measured on other prompts or under other settings than the first."""
    reference = rows[0]["model"]
    differing = []
    for row in rows:
        ours, theirs = measured_how(scores[reference]), measured_how(scores[row["model"]])
        differing += [
            f"{row['model']}: {key} is {theirs.get(key)!r}, for {reference} it is {ours.get(key)!r}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
    if differing:
        raise UserError("rows that were measured differently share no table:\n" + "\n".join(differing))


def measured_how(scores: dict) -> dict:
    counts = {key: scores[key] for key in ("n_prompts", "n_instructions", "prompts_sha256")}
    return counts | (scores.get("generation") or {})


def accuracy_table(rows: list[dict], scores: dict[str, dict]) -> pd.DataFrame:
    """One row per model: label, the four accuracies, how many prompts and instructions they are out of."""
    return pd.DataFrame(
        {
            "model": row["label"],
            **{metric: scores[row["model"]][metric] for metric in METRICS},
            **{count: scores[row["model"]][count] for count in ("n_prompts", "n_instructions")},
        }
        for row in rows
    )


def fidelity_table(rows: list[dict], fidelity: dict[str, dict]) -> pd.DataFrame:
    """One row per student: means per held-out answer token; the ratio is to the untrained student."""
    untrained = fidelity["student-untrained"]["forward_kl"]
    return pd.DataFrame(
        {
            "model": row["label"],
            **{k: v for k, v in fidelity[row["model"]].items() if not isinstance(v, dict)},
            "forward_kl_ratio": fidelity[row["model"]]["forward_kl"] / untrained,
        }
        for row in rows
        if row["model"] in fidelity
    )


def best(rows: list[dict], table: pd.DataFrame, metric: str) -> set[int]:
    """The lines of the best trained students of a column; several where they tie."""
    students = [i for i, row in enumerate(rows) if row["role"] == "student"]
    return {i for i in students if table[metric][i] == table.loc[students, metric].max()}


def bold(rows, table: pd.DataFrame, mark: str) -> pd.DataFrame:
    """The accuracies as text, the best trained student of a column set in `mark`."""
    cells = table[["model", *METRICS]].copy().astype(object)
    for metric in METRICS:
        top = best(rows, table, metric)
        cells[metric] = [
            mark.format(f"{v:.4f}") if i in top else f"{v:.4f}" for i, v in enumerate(table[metric])
        ]
    return cells


def latex(rows, table: pd.DataFrame) -> str:
    """The table for a paper; needs no package but the standard ones."""
    cells = bold(rows, table, r"\textbf{{{}}}")
    cells.columns = [name.removesuffix("_accuracy").replace("_", " ") for name in cells.columns]
    lines = [" & ".join(cells.columns) + r" \\", r"\hline"]
    lines += [" & ".join(row) + r" \\" for row in cells.astype(str).itertuples(index=False)]
    body = "\n".join(lines).replace("_", r"\_").replace("%", r"\%")
    return "\\begin{tabular}{lrrrr}\n" + body + "\n\\end{tabular}\n"


def interval_table(rows: list[dict], cells: pd.DataFrame) -> pd.DataFrame:
    """The 95 % interval of every cell of the table, as text."""
    text = {
        (cell["model"], cell["metric"]): f"{cell['low']:.4f} to {cell['high']:.4f}"
        for cell in cells.to_dict("records")
    }
    return pd.DataFrame(
        {"model": row["label"], **{metric: text[row["model"], metric] for metric in METRICS}} for row in rows
    )


def markdown(rows, table, cells, spread, closeness, words: str, scores: dict[str, dict]) -> str:
    """table.md: the table, its intervals, the verdict, the fidelity, and what a reader must know."""
    first = scores[rows[0]["model"]]
    generation = first.get("generation") or {}
    shown = ["forward_kl", "forward_kl_ratio", "reverse_kl", "total_variation", "top1_agreement"]
    parts = [
        bold(rows, table, "**{}**").to_markdown(index=False, disable_numparse=True),
        f"{first['n_prompts']} prompts, {first['n_instructions']} instructions, the same for every row, "
        f"answered greedily with at most {generation.get('max_new_tokens')} tokens in "
        f"{generation.get('dtype')}. Bold: the best trained student of a column, "
        "which says nothing about a difference; the verdict does.",
        "95 % intervals: Wilson for prompts; bootstrap over prompts for instructions, which share a prompt.",
        interval_table(rows, cells).to_markdown(index=False, disable_numparse=True),
        words.strip(),
    ]
    if spread["seeds"].max() > 1:
        seeds = spread[spread["metric"] == METRICS[0]].drop(columns=["metric", "seeds"])
        parts += [
            f"Over training seeds, {METRICS[0]}; sd is between seeds, on the same prompts.",
            seeds.to_markdown(index=False, floatfmt=".4f"),
        ]
    parts += [
        f"Held-out fidelity to the fine-tuned teacher, per answer token ({closeness['tokens'][0]} tokens of "
        f"{closeness['rows'][0]} rows), in nats; forward_kl_ratio: relative to the untrained student.",
        closeness[["model", *shown]].to_markdown(index=False, floatfmt=".4f"),
    ]
    return "\n\n".join(parts) + "\n"
