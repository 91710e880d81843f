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


def markdown(rows, table: pd.DataFrame, closeness: pd.DataFrame, scores: dict) -> str:
    students = [i for i, row in enumerate(rows) if row["role"] == "student"]
    cells = table[["model", *METRICS]].copy().astype(object)
    for metric in METRICS:
        best = table.loc[students, metric].max()
        cells[metric] = [
            f"**{value:.4f}**" if i in students and value == best else f"{value:.4f}"
            for i, value in enumerate(table[metric])
        ]
    shown = ["forward_kl", "forward_kl_ratio", "reverse_kl", "total_variation", "top1_agreement"]
    near = closeness[["model", *shown]].round(4)
    return "\n".join(
        [
            cells.to_markdown(index=False, disable_numparse=True),
            "",
            f"{scores['n_prompts']} prompts, {scores['n_instructions']} instructions, the same for every "
            "row. Bold: the best trained student of a column.",
            "",
            f"Held-out fidelity to the fine-tuned teacher, per answer token ({closeness['tokens'][0]} tokens "
            f"of {closeness['rows'][0]} rows), in nats; forward_kl_ratio: relative to the untrained student.",
            "",
            near.to_markdown(index=False, floatfmt=".4f"),
            "",
        ]
    )
