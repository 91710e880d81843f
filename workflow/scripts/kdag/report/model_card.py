"""The README of a trained model: what it was made from and how, what it scored, and what nobody checked.

`card` fills in the template with what the run wrote down, `of_model` reads that. A model or file of this
machine is named without its folder.
"""

import json
from pathlib import Path

import pandas as pd
from huggingface_hub import ModelCard, ModelCardData

from kdag.config.kinds import DATASET, NO_DIVERGENCE, STUDENT
from kdag.config.kinds import TEACHER as TEACHERS
from kdag.config.roster import TEACHER, further_teacher_ids, home_of, is_student, neighbours, table_rows
from kdag.config.schedules import is_schedule
from kdag.config.stages import canonical, shown, stage_params
from kdag.config.teacher import SERVER
from kdag.files.manifest import read_manifest
from kdag.files.reading import read_json
from kdag.files.seals import read_sealed
from kdag.report import measures
from kdag.report.words import listed

TEMPLATE = Path(__file__).parents[3] / "report" / "model_card.md.j2"
REPOSITORY = "<this repository>"
SHOWN = ("forward_kl", "reverse_kl", "top1_agreement", "nll", "nats_per_byte", "teacher_nats_per_byte")
WHOSE = {
    DATASET: "the data set's answers",
    TEACHERS: "the teacher's answers",
    STUDENT: "its own answers, sampled while it trained",
}


def source_name(source: dict) -> str:
    """`owner/name`, or the last part of a path: folders of this machine are nobody's business."""
    return plain(source.get("id") or (Path(source["path"]).name if source.get("path") else source["file"]))


def plain(name: str) -> str:
    """A name that ends no code, link or cell of Markdown and opens no tag."""
    return "".join(c if c.isprintable() and c not in "`[]()<>|" else "_" for c in name)


def source_link(source: dict, revision: str | None, kind: str = "") -> str:
    """Markdown for a model or data set; kind: `datasets/` for the latter."""
    if not source.get("id"):
        return f"`{source_name(source)}` (not from a hub)"
    at = f" at `{revision}`" if revision else ""
    name = source_name(source)
    return f"[{name}](https://huggingface.co/{kind}{name}){at}"


def card_data(config: dict, licence: str | None) -> ModelCardData:
    """What the hub reads of the card."""
    student, data = config["student"], config["data"]
    origin = config["teacher"] if student.get("derive") else student
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["knowledge-distillation", "kdag"],
        base_model=origin.get("id"),
        datasets=[data["id"]] if data.get("id") else None,
        license=licence,
    )


def cell(value: float, found: dict | None) -> str:
    """62.1 % [57.9, 66.1]; the interval only where it belongs to this very value."""
    known = found and abs(found["accuracy"] - value) < 1e-9
    interval = f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]" if known else ""
    return f"{100 * value:.1f} %{interval}"


def score_rows(scores: dict[str, dict], intervals: dict[tuple[str, str], dict], labels: dict) -> list[dict]:
    """This model's accuracies, then those of the rows that say what they are worth; as text."""
    return [
        {
            "label": labels[model],
            "cells": [
                cell(entry["value"], intervals.get((model, entry["metric"]))) for entry in found["metrics"]
            ],
        }
        for model, found in scores.items()
    ]


def measured(scores: dict) -> str:
    generation = scores.get("generation") or {}
    how = [f"{scores['n_prompts']} prompts with {scores['n_instructions']} instructions"]
    how += [
        f"{k} {generation[k]}" for k in ("decoding", "dtype", "max_new_tokens", "lm_eval") if k in generation
    ]
    return ", ".join(how)


def made_by(model: str, manifest: dict) -> str:
    """One sentence: how the weights came to be."""
    params = manifest["params"]
    if not manifest["stage"].startswith("distill"):
        taught = (
            "the teacher of a distillation" if not is_student(model) else "the baseline without a teacher"
        )
        return f"Fine-tuned on the answers only: {taught}."
    said = answers_of(manifest)
    if params["divergence"] == NO_DIVERGENCE:
        return f"Distilled by cross-entropy on {said}."
    own = ", ".join(f"{key} {number(value)}" for key, value in params["divergence_params"].items())
    loss = f"T² D, T = {number(params['temperature'])}"
    weight = params["kl_loss_weight"]
    if params["use_ce_loss"] and is_schedule(weight):
        loss = f"(1 - w) CE + w {loss}, w = {number(weight)}"
    elif params["use_ce_loss"]:
        loss = f"{1 - weight:g} CE + {weight:g} {loss}"
    named = f"`{params['divergence']}`{f' ({own})' if own else ''}"
    if params.get("student_divergence"):
        named += f", on its own answers `{params['student_divergence']}`,"
    return f"Distilled with D = {named} on {said}; loss per answer token: {loss}."


def number(value) -> str:
    """A number, or how it moves while the model trains."""
    return f"{value['from']:g} to {value['to']:g} ({value['over']})" if is_schedule(value) else f"{value:g}"


def answers_of(manifest: dict) -> str:
    """Whose answers a student was trained on."""
    shares = manifest["params"].get("answers")
    shares = shares or {TEACHERS if "answers" in manifest["inputs"] else DATASET: 1.0}
    moving = any(map(is_schedule, shares.values()))
    return listed([f"{WHOSE[kind]}{share_of(share, moving)}" for kind, share in shares.items()])


def share_of(share, moving: bool) -> str:
    """moving: a share of the others moves, and this one is of what that leaves."""
    if is_schedule(share):
        return f" (a share from {share['from']:.0%} to {share['to']:.0%}, {share['over']})"
    return "" if share == 1 or moving else f" ({share:.0%})"


def cut_from_teacher(derive: dict) -> str:
    if derive.get("keep_layers"):
        return f"{derive['keep_layers']} evenly spaced layers of the untrained teacher"
    return f"the untrained teacher without its layers {', '.join(map(str, derive['drop_layers']))} (from 0)"


def teacher_of(source: dict, revision: str | None) -> str:
    if source["source"] == SERVER:
        return f"`{source_name(source)}` behind a server ({source['api']}), asked and not trained here"
    if source.get("logprobs"):
        return f"its log-probs as published in {source_link(source, revision, 'datasets/')}; no model here"
    return f"{source_link(source, revision)}, fine-tuned on the same rows"


def origins(model: str, config: dict, train: dict, revisions: dict) -> list[str]:
    student = config["student"]
    start = source_link(student, revisions["student"]) if not student.get("derive") else ""
    start = start or cut_from_teacher(student["derive"])
    fetched = source_link(config["data"], revisions["data"], "datasets/")
    further = {f"{TEACHER}-{name}": (name, source) for name, source in config.get("teachers", {}).items()}
    teachers = {TEACHER: f"teacher: {teacher_of(config['teacher'], revisions['teacher'])}"} | {
        id_: f"teacher {name}: {teacher_of(source, revisions[id_])}"
        for id_, (name, source) in further.items()
    }
    if not is_student(model):
        return [teachers[model], f"data: {fetched}, {rows_of(train)}"]
    return [*teachers.values(), f"student's start: {start}", f"data: {fetched}, {rows_of(train)}"]


def rows_of(train: dict) -> str:
    return f"{train['rows']} rows with {train['answer_tokens']} answer tokens"


def card(
    model, config, manifest, *, data, revisions, scores, intervals, labels, fidelity, licence, place
) -> str:
    """The whole README.

    config: the resolved configuration; manifest: the model's; data: the manifest of the encoded rows;
    revisions: {teacher, student, data: commit or None}; scores: {model id: scores.json}, may be empty;
    intervals: {(model id, metric): a line of intervals.csv}; fidelity: fidelity.json or None; place: where
    the weights are.
    """
    first = next(iter(scores.values()), None)
    params = manifest["params"]
    made = ModelCard.from_template(
        card_data(config, licence),
        template_path=str(TEMPLATE),
        experiment=config["experiment"],
        model=model,
        made_by=made_by(model, manifest),
        origins=origins(model, config, data["report"]["train"], revisions),
        rows=score_rows(scores, intervals, labels),
        metrics=measures.names(first) if first else [],
        measured=measured(first) if first else "",
        fidelity=fidelity,
        teacher="the teacher" if config["teacher"]["source"] == SERVER else "the fine-tuned teacher",
        shown=SHOWN,
        place=place,
        quoted=lambda text: json.dumps(text, ensure_ascii=False),
        adapter=params.get("tuning") == "lora" and place != REPOSITORY,
        params=[
            (key, plain(str(value)) if isinstance(value, str) else value)
            for key, value in sorted(params.items())
            if value not in (None, {})
        ],
        versions=manifest["versions"].items(),
        configuration=json.dumps(without_folders(config), indent=1, ensure_ascii=False),
    )
    return f"{made}\n"


def without_folders(value):
    """A configuration with every `path` cut to its last part."""
    if isinstance(value, dict):
        return {
            k: Path(v).name if k == "path" and isinstance(v, str) else without_folders(v)
            for k, v in value.items()
        }
    return value


# --- reading what the run wrote ---------------------------------------------------------------------------


def of_model(config, results: Path, model: str, *, licence=None, place: str = REPOSITORY) -> str:
    """The card of a trained model of the experiment in `results`. config: config.Config."""
    fidelity = results / "eval" / model / "fidelity.json"
    student = None if config.student.derive else revision(stage_params(config, "fetch_student"), "models")
    return card(
        model,
        shown(canonical(config)),
        read_manifest(results / home_of(config, model) / "manifest.json"),
        data=read_manifest(results / "data" / "manifest.json"),
        revisions={
            "teacher": revision(stage_params(config, "fetch_teacher"), "models"),
            **{
                id_: revision(stage_params(config, "fetch_teacher", teacher=name), "models")
                for id_, name in further_teacher_ids(config).items()
            },
            **{
                f"{TEACHER}-{name}": revision(
                    stage_params(config, "fetch_published", teacher=name), "logprobs"
                )
                for name in config.published()
            },
            "student": student,
            "data": revision(stage_params(config, "fetch_dataset"), "datasets"),
        },
        scores=found_scores(results, [model, *neighbours(config, model)]),
        intervals=found_intervals(results / "report" / "intervals.csv"),
        labels={row["model"]: row["label"] for row in table_rows(config)},
        fidelity=read_sealed(fidelity) if fidelity.is_file() else None,
        licence=licence,
        place=place,
    )


def revision(source: dict, kind: str) -> str | None:
    """The commit that was fetched, as its manifest says."""
    for file in Path("resources", kind).glob("*/manifest.json"):
        manifest = read_json(file)
        if manifest.get("params") == source:
            return manifest.get("revision")
    return None


def found_scores(results: Path, models: list[str]) -> dict[str, dict]:
    """The scores of those that have any; nothing while the first, whose card it is, has none."""
    files = {name: results / "eval" / name / "scores.json" for name in models}
    if not files[models[0]].is_file():
        return {}
    return {name: read_sealed(file) for name, file in files.items() if file.is_file()}


def found_intervals(file: Path) -> dict[tuple[str, str], dict]:
    if not file.is_file():
        return {}
    return {(cell["model"], cell["metric"]): cell for cell in pd.read_csv(file).to_dict("records")}
