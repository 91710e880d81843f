"""The README of a trained model: what it was made from and how, what it scored, and what nobody checked.

Pure functions of what the run wrote down. A model or file of this machine is named without its folder.
"""

import json
from pathlib import Path

LEVELS = ("strict", "loose")
SHOWN = ("forward_kl", "reverse_kl", "top1_agreement", "nll")


def source_name(source: dict) -> str:
    """`owner/name`, or the last part of a path: folders of this machine are nobody's business."""
    return source.get("id") or (Path(source["path"]).name if source.get("path") else source["file"])


def source_link(source: dict, revision: str | None, kind: str = "") -> str:
    """Markdown for a model or data set; kind: `datasets/` for the latter."""
    if not source.get("id"):
        return f"`{source_name(source)}` (not from a hub)"
    at = f" at `{revision}`" if revision else ""
    return f"[{source['id']}](https://huggingface.co/{kind}{source['id']}){at}"


def front_matter(config: dict, licence: str | None) -> str:
    """The YAML that the hub reads; values as JSON, which YAML reads too, so that nothing breaks out of it."""
    fields = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields["tags"] = ["knowledge-distillation", "kdag"]
    student, data = config["student"], config["data"]
    origin = config["teacher"] if student.get("derive") else student
    if origin.get("id"):
        fields["base_model"] = origin["id"]
    if data.get("id"):
        fields["datasets"] = [data["id"]]
    if licence:
        fields["license"] = licence
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def cell(value: float, found: dict | None) -> str:
    """62.1 % [57.9, 66.1]; the interval only where it belongs to this very value."""
    known = found and abs(found["accuracy"] - value) < 1e-9
    interval = f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]" if known else ""
    return f"{100 * value:.1f} %{interval}"


def scores_table(scores: dict[str, dict], intervals: dict[tuple[str, str], dict], labels: dict) -> str:
    """IFEval of this model beside the rows that say what it is worth; scores: {model id: scores.json}."""
    metrics = [f"{unit}_level_{level}_accuracy" for level in LEVELS for unit in ("prompt", "inst")]
    lines = ["| model | " + " | ".join(m.removesuffix("_accuracy").replace("_", " ") for m in metrics) + " |"]
    lines.append("|:--|" + "--:|" * len(metrics))
    for model, found in scores.items():
        cells = [cell(found[metric], intervals.get((model, metric))) for metric in metrics]
        lines.append(f"| {labels[model]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(scores: dict) -> str:
    generation = scores.get("generation") or {}
    how = [f"{scores['n_prompts']} prompts with {scores['n_instructions']} instructions"]
    how += [
        f"{k} {generation[k]}" for k in ("decoding", "dtype", "max_new_tokens", "lm_eval") if k in generation
    ]
    return ", ".join(how)


def hyperparameters(params: dict) -> str:
    rows = [f"| `{key}` | {value} |" for key, value in sorted(params.items()) if value not in (None, {})]
    return "\n".join(["| key | value |", "|:--|:--|", *rows])


def made_by(model: str, manifest: dict) -> str:
    """One sentence: how the weights came to be."""
    params = manifest["params"]
    if manifest["stage"] != "distill":
        taught = "the teacher of a distillation" if model == "teacher" else "the baseline without a teacher"
        return f"Fine-tuned on the answers alone: {taught}."
    own = ", ".join(f"{key} {value:g}" for key, value in params["divergence_params"].items())
    loss = f"T² D, T = {params['temperature']:g}"
    if params["use_ce_loss"]:
        weight = params["kl_loss_weight"]
        loss = f"{1 - weight:g} CE + {weight:g} {loss}"
    named = f"`{params['divergence']}`{f' ({own})' if own else ''}"
    return f"Distilled with D = {named}; loss per answer token: {loss}."


def origins(model: str, config: dict, train: dict, revisions: dict) -> list[str]:
    student = config["student"]
    start = source_link(student, revisions["student"]) if not student.get("derive") else ""
    start = start or f"{student['derive']['keep_layers']} evenly spaced layers of the untrained teacher"
    fetched = source_link(config["data"], revisions["data"], "datasets/")
    lines = [
        f"- teacher: {source_link(config['teacher'], revisions['teacher'])}, fine-tuned on the same rows",
        f"- student's start: {start}",
        f"- data: {fetched}, {train['rows']} rows with {train['answer_tokens']} answer tokens",
    ]
    return lines[::2] if model == "teacher" else lines


def card(model, config, manifest, *, data, revisions, scores, intervals, labels, fidelity, licence) -> str:
    """The whole README.

    config: the resolved configuration; manifest: the model's; data: the manifest of the encoded rows;
    revisions: {teacher, student, data: commit or None}; scores: {model id: scores.json}, may be empty;
    intervals: {(model id, metric): a line of intervals.csv}; fidelity: fidelity.json or None.
    """
    parts = [
        front_matter(config, licence),
        f"# {config['experiment']}: {model}",
        made_by(model, manifest),
        "## Made from",
        "\n".join(origins(model, config, data["report"]["train"], revisions)),
        "## Scores",
    ]
    if scores:
        here = next(iter(scores.values()))
        parts += [
            f"IFEval: {measured(here)}. In brackets 95 % intervals. A difference between two rows is not "
            "thereby a finding; the experiment's report has the paired tests.",
            scores_table(scores, intervals, labels),
        ]
    else:
        parts.append("Not evaluated yet.")
    if fidelity:
        found = ", ".join(f"{key.replace('_', ' ')} {fidelity[key]:.4f}" for key in SHOWN if key in fidelity)
        parts.append(
            f"To the fine-tuned teacher, per answer token of {fidelity['rows']} held-out rows: {found}."
        )
    resolved = json.dumps(without_folders(config), indent=1, ensure_ascii=False)
    parts += [
        "## Use",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("<this repository>", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("<this repository>")\n```',
        "## Training",
        hyperparameters(manifest["params"]),
        "Versions: " + ", ".join(f"{k} {v}" for k, v in manifest["versions"].items()) + ".",
        f"<details><summary>Configuration</summary>\n\n```json\n{resolved}\n```\n\n</details>",
        "## Licence and limits",
        "The licences of the student's start, of the teacher and of the data bind these weights too; read "
        "them before use. The model was measured on the scores above and on nothing else: not on safety, "
        "not on facts, not on other languages.",
    ]
    return "\n\n".join(parts) + "\n"


def without_folders(value):
    """A configuration with every `path` cut to its last part."""
    if isinstance(value, dict):
        return {
            k: Path(v).name if k == "path" and isinstance(v, str) else without_folders(v)
            for k, v in value.items()
        }
    return value
