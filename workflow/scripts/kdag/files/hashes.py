"""SHA-256 of texts, values and files, and the one JSON string that a value has."""

import hashlib
import json
from pathlib import Path


def canonical_json(value) -> str:
    """One string per value: sorted keys, no spaces. What is hashed, and what Snakemake compares."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_json(value) -> str:
    return sha256_text(canonical_json(value))


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
