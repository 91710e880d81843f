"""Models as directories that everything opens."""

from pathlib import Path


def save(model, tokenizer, target: Path) -> None:
    """A directory that transformers, vLLM and lm-eval open with one line."""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
