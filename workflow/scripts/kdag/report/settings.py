"""Which students learned under other settings than others, besides what their strategy is."""

from kdag.report.words import code, listed, named

# What moves the weights, and is no part of what a strategy is; how long a training was is budget.py's.
KEYS = ("learning_rate", "schedule", "warmup_ratio", "optimizer", "weight_decay", "max_grad_norm")
KEYS += ("tuning", "lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules", "load_in_4bit", "dtype")


def sentence(rows: list[dict], manifests: dict[str, dict]) -> str:
    """Markdown; empty if all students had the same. manifests: {model id: its manifest}."""
    params = {row["strategy"]: manifests[row["model"]]["params"] for row in rows if row["role"] == "student"}
    said = []
    for key in KEYS:
        values: dict[str, list[str]] = {}
        for strategy, settings in params.items():
            values.setdefault(str(settings.get(key)), []).append(named(strategy))
        if len(values) > 1:
            each = [f"{value} for {listed(names)}" for value, names in values.items()]
            said.append(f"{code(key)} is {', '.join(each)}")
    if not said:
        return ""
    return (
        f"Settings differ: {'; '.join(said)}. A difference between rows of different settings may come from "
        "the settings."
    )
