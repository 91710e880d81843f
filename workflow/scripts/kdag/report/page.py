"""report/index.html: one file that works offline and without a script. All text in it is escaped."""

from pathlib import Path

import jinja2
import pandas as pd

from kdag.config.roster import SFT
from kdag.report import closeness as closeness_of
from kdag.report import figures, measures
from kdag.report.table import further, letter_words

SHOWN_PROMPTS = 16


def heat_map(rows: list[dict], scores: dict[str, dict]) -> dict:
    """Strict accuracy per instruction type and model: the share right, and how many there are."""
    types = sorted({kind for row in rows for kind in scores[row["model"]]["instruction_types"]})
    lines = []
    for kind in types:
        cells = [scores[row["model"]]["instruction_types"][kind] for row in rows]
        lines.append(
            {
                "type": kind,
                "total": cells[0]["total"],
                "cells": [
                    {"share": c["strict_correct"] / c["total"], "correct": c["strict_correct"]} for c in cells
                ],
            }
        )
    return {"models": [row["label"] for row in rows], "lines": lines}


def side_by_side(rows: list[dict], scores: dict[str, dict], samples: dict[str, list[dict]]) -> list[dict]:
    """The first prompts with every model's answer and what of it passed, strictly."""
    shown = []
    for number in range(min(SHOWN_PROMPTS, len(samples[rows[0]["model"]]))):
        answers = []
        for row in rows:
            sample, judged = samples[row["model"]][number], scores[row["model"]]["prompts"][number]
            answers.append(
                {
                    "label": row["label"],
                    "response": sample["response"],
                    "verdicts": judged["strict"],
                    "cut_off": sample["cut_off"],
                }
            )
        first = samples[rows[0]["model"]][number]
        shown.append({"key": first["key"], "prompt": first["prompt"], "answers": answers})
    return shown


def costs(benchmarks: dict[str, Path], plan: list[dict]) -> list[dict]:
    """Wall time and peak host memory of each job, from Snakemake's benchmark files, and what the plan said.

    plan: the stages of planner.plan, which predicts the largest job of a stage.
    """
    stages, found = {entry["stage"]: entry for entry in plan}, []
    for job, path in benchmarks.items():
        line = pd.read_csv(path, sep="\t").iloc[-1]
        cost = {"job": job, "seconds": float(line["s"]), "mib": float(line["max_rss"])}
        if stage := stages.get(job.split("/")[0]):
            cost |= {
                "predicted_seconds": 3600 * stage["hours"],
                "predicted_mib": stage["host_bytes"] / 2**20,
            }
        found.append(cost)
    return found


def budgets(table: pd.DataFrame, benchmarks: Path) -> list[dict]:
    """The lines of budget.csv, with the wall time of each student's training where its benchmark is there."""
    found = table.to_dict("records")
    for line in found:
        seed = f"seed{line['seed']}"
        job = f"sft_student/{seed}" if line["strategy"] == SFT else f"distill/{line['strategy']}-{seed}"
        if (file := benchmarks / f"{job}.tsv").is_file():
            line["seconds"] = float(pd.read_csv(file, sep="\t").iloc[-1]["s"])
    return found


def blocks(markdown: str) -> list[dict]:
    """The verdict's paragraphs and bullets as plain text, for a template that escapes them."""
    found = []
    for part in markdown.strip().split("\n\n"):
        lines = part.split("\n")
        bullets = [line[2:].replace("`", "") for line in lines if line.startswith("- ")]
        found.append({"bullets": bullets, "text": part.replace("`", "")})
    return found


def render(
    template: Path,
    *,
    rows,
    cells,
    scores,
    samples,
    fidelity,
    logs,
    comparisons,
    tasks,
    notes,
    primary,
    **values,
) -> str:
    """The page. cells: comparisons.intervals; logs: {label: training log}; comparisons: its data frame;
    notes: of `answers.notes`; primary: the tested metric."""
    main = cells[cells["metric"] == primary].set_index("model")
    metrics = measures.names(scores[rows[0]["model"]])
    tested = primary.replace("_accuracy", "").replace("_", " ")
    order = [row["model"] for row in rows]
    labels = {row["model"]: row["label"] for row in rows}
    by_model = {
        model: {
            metric: cells[(cells["model"] == model) & (cells["metric"] == metric)].iloc[0].to_dict()
            for metric in metrics
        }
        for model in order
    }
    # Of answers that students sampled while they trained: how they collapse, where they do.
    sampled = {
        "sample_length": "tokens of a sampled answer",
        "sample_entropy": "entropy of what was sampled from, nats per token",
        "sample_distinct_2": "different pairs of tokens, as a share",
        "sample_cut_off": "sampled answers cut off, as a share",
        "sample_repeated": "sampled answers that repeat themselves, as a share",
    }
    shown = {
        key: axis
        for key, axis in sampled.items()
        if any(key in step for log in logs.values() for step in log)
    }
    question = closeness_of.asked(fidelity)
    close = {model: fidelity[model][question.measure] for model in order if model in fidelity}
    plots = {
        "forest": figures.forest(
            [labels[m] for m in order],
            *(main.loc[order, column].tolist() for column in ("accuracy", "low", "high")),
            f"{tested}, 95 % interval",
        ),
        "ce": figures.curves(logs, "ce", "cross-entropy, nats per token"),
        "divergence": figures.curves(logs, "divergence", "divergence, nats per token"),
        "fidelity": fidelity
        and figures.scatter(
            {labels[m]: (value, main.loc[m, "accuracy"]) for m, value in close.items()},
            question.axis,
            tested,
        ),
    }
    plots["sampled"] = [(figures.curves(logs, key, axis), axis) for key, axis in shown.items()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template.name).render(
        rows=rows,
        metrics=metrics,
        primary=primary,
        cells=by_model,
        plots=plots,
        heat=heat_map(rows, scores),
        samples=side_by_side(rows, scores, samples),
        fidelity=fidelity,
        measure=question.measure,
        labels=labels,
        further=further(rows, tasks, dict),
        answers={model: scores[model]["answers"] for model in order},
        comparisons=comparisons[comparisons["metric"] == primary].to_dict("records"),
        first=scores[order[0]],
        letters=letter_words(scores[order[0]]),
        notes=[note.replace("`", "") for note in notes],
        **values,
    )
