"""The table: rows measured alike, side by side, and what a reader must know below it."""

import pandas as pd

from kdag.config.roster import STUDENT_UNTRAINED, TEACHER_UNTRAINED
from kdag.job.errors import UserError
from kdag.report import budget, measures, stats
from kdag.report.words import listed


def refuse_mixture(rows: list[dict], scores: dict[str, dict], how=None) -> None:
    """UserError if any row was measured on other prompts or under other settings than the first.

    how: what of a model's scores must be the same for all; `measured_how` unless given.
    """
    how = how or measured_how
    held = [
        row["model"] for row in rows if "server" not in how(scores[row["model"]]) and not own_tokenizer(row)
    ]
    reference = (held or [rows[0]["model"]])[0]
    differing = []
    for row in rows:
        ours, theirs = how(scores[reference]), how(scores[row["model"]])
        # Of a server it is known what was asked, and nothing of its arithmetic.
        keys = ours.keys() | theirs.keys()
        if "server" in theirs and "server" not in ours:
            keys = (ours.keys() & theirs.keys()) - {"backend"}
        if own_tokenizer(row):
            keys -= OWN
            ours, theirs = (each | {"chat": without_template(each)} for each in (ours, theirs))
        differing += [
            f"{row['model']}: {key} is {theirs.get(key)!r}, for {reference} it is {ours.get(key)!r}"
            for key in sorted(keys)
            if ours.get(key) != theirs.get(key)
        ]
    if differing:
        raise UserError("rows that were measured differently share no table:\n" + "\n".join(differing))


OWN = {"vocabulary", "rendered_prompts_sha256"}  # that models of another tokenizer have


def own_tokenizer(row: dict) -> bool:
    """Has the row's model another tokenizer than the students, and so a chat template of its own?"""
    return "tokenizer" in row


def without_template(how: dict) -> dict:
    return {key: value for key, value in (how.get("chat") or {}).items() if key != "template_sha256"}


def tokenizer_words(rows: list[dict]) -> str:
    """That some models were asked in their own tokens; empty if none was."""
    asked = [row["label"] for row in rows if own_tokenizer(row)]
    if not asked:
        return ""
    whose = "its" if len(asked) == 1 else "their"
    return (
        f"{listed(asked)}: of another tokenizer than the students, so asked by a chat template of {whose} "
        f"own, and the cap is of {whose} own tokens."
    )


def answered_here(rows: list[dict], scores: dict[str, dict]) -> str:
    """The first row whose settings are all known: not that of a teacher behind a server."""
    here = [
        row["model"]
        for row in rows
        if "server" not in (scores[row["model"]].get("generation") or {}) and not own_tokenizer(row)
    ]
    return (here or [rows[0]["model"]])[0]


def measured_how(scores: dict) -> dict:
    counts = {key: scores[key] for key in ("n_prompts", "n_instructions", "prompts_sha256")}
    return counts | (scores.get("generation") or {})


def accuracy_table(rows: list[dict], scores: dict[str, dict]) -> pd.DataFrame:
    """One row per model: label, its accuracies, how many prompts and instructions they are out of."""
    return pd.DataFrame(
        {
            "model": row["label"],
            **{entry["metric"]: entry["value"] for entry in scores[row["model"]]["metrics"]},
            **{count: scores[row["model"]][count] for count in ("n_prompts", "n_instructions")},
        }
        for row in rows
    )


def task_table(rows: list[dict], tasks: dict[str, dict[str, dict]]) -> pd.DataFrame:
    """tasks.csv: a row per model and metric of every further task; tasks: {task: {model id: scores}}.

    low, high: Wilson's interval where items are right or wrong; else value -+ 1.96 standard errors, which are
    lm-eval's; empty where it has none.
    """
    found = []
    for scores in tasks.values():
        refuse_mixture(rows, scores, how=lambda scores: scores["measured"])
        for row in rows:
            for entry in scores[row["model"]]["metrics"]:
                low, high = task_interval(entry)
                found.append(
                    {
                        "model": row["model"],
                        "metric": entry["metric"],
                        "value": entry["value"],
                        "low": low,
                        "high": high,
                        "n": entry["n"],
                    }
                )
    return pd.DataFrame(found, columns=["model", "metric", "value", "low", "high", "n"])


def task_interval(entry: dict) -> tuple[float | None, float | None]:
    """(low, high) of a metric of a further task, as the file of its scores has it."""
    right = entry["value"] * entry["n"]
    if entry.get("verdicts") and abs(right - round(right)) < 1e-6:
        return stats.wilson(round(right), entry["n"])
    if entry["stderr"] is None:
        return None, None
    return entry["value"] - 1.96 * entry["stderr"], entry["value"] + 1.96 * entry["stderr"]


def further(rows: list[dict], tasks: pd.DataFrame, cell) -> dict[str, list]:
    """{metric: [cell(line of task_table) per row]}, in the order of the tasks."""
    lines = {(line["model"], line["metric"]): line for line in tasks.to_dict("records")}
    return {m: [cell(lines[row["model"], m]) for row in rows] for m in tasks["metric"].unique()}


def fidelity_table(rows: list[dict], fidelity: dict[str, dict]) -> pd.DataFrame:
    """One row per student: means per held-out answer token; the ratio is to the untrained student."""
    measured = [row for row in rows if row["model"] in fidelity]
    if not measured:
        return pd.DataFrame(columns=["model"])
    refuse_mixture(measured, fidelity, how=lambda measures: {"dtype": measures.get("dtype")})
    found = pd.DataFrame(
        {
            "model": row["label"],
            **{k: v for k, v in fidelity[row["model"]].items() if not isinstance(v, dict | str)},
        }
        for row in measured
    )
    if "forward_kl" in found:
        found["forward_kl_ratio"] = found["forward_kl"] / fidelity[STUDENT_UNTRAINED]["forward_kl"]
    return found


def fidelity_words(rows: list[dict], closeness: pd.DataFrame) -> list[str]:
    """The fidelity below the table, with what it is. closeness: of `fidelity_table`, not empty."""
    count = closeness["rows"][0]
    if "forward_kl" in closeness:
        shown = ["forward_kl", "forward_kl_ratio", "reverse_kl", "total_variation", "top1_agreement"]
        said = (
            f"Held-out fidelity to {taught(rows)}, per answer token ({closeness['tokens'][0]} tokens of "
            f"{count} rows), in nats; forward_kl_ratio: relative to the untrained student."
        )
    else:
        shown = ["nats_per_byte"]
        said = (
            f"How likely the held-out answers are ({closeness['bytes'][0]} bytes of "
            f"{count - closeness['undefined_rows'][0]} rows), in nats "
            f"per byte of their text; {taught(rows)}: {closeness['teacher_nats_per_byte'][0]:.4f}. It has "
            "another tokenizer, so a divergence from it is not defined."
        )
    return [said, closeness[["model", *shown]].to_markdown(index=False, floatfmt=".4f")]


def best(rows: list[dict], table: pd.DataFrame, metric: str) -> set[int]:
    """The lines of the best trained students of a column; several where they tie."""
    students = [i for i, row in enumerate(rows) if row["role"] == "student"]
    return {i for i in students if table[metric][i] == table.loc[students, metric].max()}


def bold(rows, table: pd.DataFrame, marked: list[str], mark: str) -> pd.DataFrame:
    """The accuracies as text, the best trained student of a `marked` column set in `mark`."""
    cells = table.drop(columns=["n_prompts", "n_instructions"]).astype(object)
    for metric in cells.columns[1:]:
        top = best(rows, table, metric) if metric in marked else ()
        cells[metric] = [
            mark.format(f"{v:.4f}") if i in top else f"{v:.4f}" for i, v in enumerate(table[metric])
        ]
    return cells


def latex(rows, table: pd.DataFrame, marked: list[str]) -> str:
    """The table for a paper; needs no package but the standard ones."""
    cells = bold(rows, table, marked, r"\textbf{{{}}}")
    cells.columns = [name.removesuffix("_accuracy").replace("_", " ") for name in cells.columns]
    lines = [" & ".join(cells.columns) + r" \\", r"\hline"]
    lines += [" & ".join(row) + r" \\" for row in cells.astype(str).itertuples(index=False)]
    body = "\n".join(lines).replace("_", r"\_").replace("%", r"\%")
    return "\\begin{tabular}{l" + "r" * (cells.shape[1] - 1) + "}\n" + body + "\n\\end{tabular}\n"


def interval_text(cell: dict) -> str:
    return "–" if pd.isna(cell["low"]) else f"{cell['low']:.4f} to {cell['high']:.4f}"


def interval_table(rows: list[dict], cells: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """The 95 % interval of every cell of the table, as text."""
    text = {(cell["model"], cell["metric"]): interval_text(cell) for cell in cells.to_dict("records")}
    return pd.DataFrame(
        {"model": row["label"], **{metric: text[row["model"], metric] for metric in metrics}} for row in rows
    )


def task_words(tasks: dict[str, dict], first: str, tested: str | None) -> str:
    """What a reader must know of the further columns. tested: the one of them that is, if any."""
    lines = []
    for name, scores in tasks.items():
        measured = scores[first]["measured"]
        shots = ", ".join(sorted({str(n) for n in measured["num_fewshot"].values()}))
        versions = ", ".join(sorted({task["version"] for task in measured["tasks"].values()}))
        lines.append(
            f"{name} (version {versions}): {sum(measured['n'].values())} documents, {shots} worked examples, "
            f"{'chat template' if measured['chat_template'] else 'no chat template'}"
        )
    return (
        f"Further columns are lm-eval's metrics; {f'`{tested}` is tested, the others' if tested else 'they'} "
        "describe and are not tested. Their 95 % intervals: Wilson where items are right or wrong, else 1.96 "
        f"standard errors. {'; '.join(lines)}."
    )


def penalty_words(generation: dict) -> str:
    penalty = generation.get("repetition_penalty", 1)
    return "" if penalty == 1 else f", tokens that were there already with a penalty of {penalty:g}"


def taught(rows: list[dict]) -> str:
    """What sentences call the teacher: one that a server answers for was not trained here."""
    trained = any(row["model"] == TEACHER_UNTRAINED for row in rows)
    return "the fine-tuned teacher" if trained else "the teacher"


def server_words(rows: list[dict], scores: dict[str, dict], compared: int) -> str:
    """What a reader must know of a teacher behind a server; empty if there is none.

    compared: of how many rows the fidelity is measured.
    """
    asked = [(scores[row["model"]].get("generation") or {}).get("server") for row in rows]
    server = next(filter(None, asked), None)
    if server is None:
        return ""
    known = (
        "Fidelity is to what the server gives of it: its likeliest tokens, all others sharing evenly what is "
        "left."
        if compared
        else "It was asked for no log-probabilities, so fidelity to it is not measured."
    )
    if server["api"] == "openai":
        known += " If it has a penalty or top-k by default, it was not switched off: there is no field."
    return (
        f"The teacher, `{server['id']}`, is behind a server ({server['api']}) and was not fine-tuned here; "
        f"what it computes with is not known. {known}"
    )


def letter_words(scores: dict) -> str:
    """That some prompts are scored against a random letter, if any are; empty otherwise."""
    keys = scores.get("random_letters") or []
    if not keys:
        return ""
    which = f"Prompt {keys[0]}" if len(keys) == 1 else f"Prompts {', '.join(map(str, keys))}"
    return (
        f'{which}: the "letter" asked for is none, and IFEval\'s scorer counts a random one in its place '
        "(here the same one for every row, strict and loose), so their verdicts say nothing about an answer."
    )


def markdown(
    rows,
    table,
    cells,
    spread,
    closeness,
    words: str,
    scores,
    tasks,
    further_tasks,
    notes: list[str],
    primary,
    budgets,
) -> str:
    """table.md: the table, its intervals, the verdict, the fidelity, and what a reader must know.

    notes: of `answers.notes`; primary: the tested metric; budgets: of
    `budget.budget_table`.
    """
    first = scores[answered_here(rows, scores)]
    columns = measures.names(first)
    other = None if primary in columns else primary
    generation = first.get("generation") or {}
    parts = [
        bold(rows, table, columns, "**{}**").to_markdown(index=False, disable_numparse=True),
        f"{first['n_prompts']} prompts, {first['n_instructions']} instructions, the same for every row, "
        f"answered greedily with at most {generation.get('max_new_tokens')} tokens in "
        f"{generation.get('dtype')}{penalty_words(generation)}. Bold: the best trained student of a column, "
        "which says nothing about a difference; the verdict does.",
        *filter(
            None, [server_words(rows, scores, len(closeness)), tokenizer_words(rows), letter_words(first)]
        ),
        *notes,
        "95 % intervals: Wilson for prompts; bootstrap over prompts for instructions, which share a prompt "
        "(Wilson over prompts where all or none were followed).",
        interval_table(rows, cells, columns)
        .assign(**further(rows, tasks, interval_text))
        .to_markdown(index=False, disable_numparse=True),
        *([task_words(further_tasks, answered_here(rows, scores), other)] if further_tasks else []),
        words.strip(),
    ]
    if spread["seeds"].max() > 1:
        seeds = spread[spread["metric"] == primary].drop(columns=["metric", "seeds"])
        parts += [
            f"Over training seeds, {primary}; sd is between seeds, on the same prompts.",
            seeds.to_markdown(index=False, floatfmt=".4f"),
        ]
    if len(closeness):
        parts += fidelity_words(rows, closeness)
    parts.append(budget.markdown(budgets))
    return "\n\n".join(parts) + "\n"
