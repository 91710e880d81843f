"""2,000 and more inputs that nobody meant: each ends in a plan, a result, or a line that says what is wrong.

Mutations of good inputs, from a fixed seed. Anything but a UserError is a fault of ours.
"""

import copy
import json
import random

import pytest
import tiny
import yaml
from conftest import ROOT

from kdag.config.chat import Chat as Settings
from kdag.config.load import load_config
from kdag.config.sources import Data
from kdag.data import chat, rows, template
from kdag.evaluation.tasks import ifeval
from kdag.files import manifest, seals
from kdag.job.errors import UserError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

ODD = [
    *(None, True, False, 0, -1, 1, 10**30, -(10**30), 1e-320, float("nan"), float("inf"), 0.1 + 0.2),
    *("", " ", "0", "1e999", "nan", "no", "a b", "../x", "/", "{x}", "\x00", "\x1b[2J", "\u2028", "é" * 300),
    *([], [[]], [None], ["a", 1], {}, {"a": {}}, {None: 1}, {1: 2}, [[[[[]]]]], ["a"] * 1000),
]


def places(value, path=()):
    """Every place in nested lists and dictionaries, as a path to it."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutated(value, generator: random.Random):
    """A copy with one to three places replaced, removed, renamed, repeated or nested."""
    made = copy.deepcopy(value)
    for _ in range(generator.randint(1, 3)):
        *path, last = generator.choice([place for place in places(made) if place])
        holder = made
        for key in path:
            holder = holder[key]
        match generator.randrange(6):
            case 0 | 1 | 2:
                holder[last] = copy.deepcopy(generator.choice(ODD))
            case 3:
                del holder[last]
            case 4 if isinstance(holder, dict):
                holder[generator.choice(["x", str(last) + "s", str(last).upper(), None, 7])] = holder[last]
            case _:
                holder[last] = generator.choice([[holder[last]], {"x": holder[last]}, str(holder[last])])
        if not any(True for place in places(made) if place):
            break
    return made


def as_json(value):
    """As it comes out of a file."""
    return json.loads(json.dumps(value))


def survives(function, *args):
    """Called; None where it refused, in words without a character that is none."""
    try:
        return function(*args)
    except UserError as error:
        assert str(error).strip()
        return None


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return tiny.write_experiment(tmp_path_factory.mktemp("fuzz") / "tiny")


def test_configurations(experiment):
    generator, accepted = random.Random(1), 0
    bases = [yaml.safe_load(file.read_text()) for file in (experiment, ROOT / "config.yaml")]
    for number in range(900):
        raw = mutated(bases[number % 2], generator)
        try:
            accepted += survives(load_config, raw) is not None
        except Exception as error:
            raise AssertionError(f"configuration {number}: {raw}") from error
    assert 50 < accepted < 850


def test_rows(experiment):
    generator, accepted = random.Random(2), 0
    tokenizer = tiny.tokenizer([" ".join(tiny.WORDS)])
    chosen = chat.settle(Settings(), tokenizer, tokenizer, {tokenizer.eos_token_id})
    settings = Data(id="some/rows", train_rows=4, heldout_rows=2, max_tokens=512)

    def encode(made):
        return rows.subset(made, tokenizer, chosen, settings, lambda part, row: None)

    for number in range(500):
        made = [row for row in as_json(mutated(tiny.rows(12), generator)) if isinstance(row, dict)]
        try:
            accepted += survives(encode, made) is not None
        except Exception as error:
            raise AssertionError(f"rows {number}: {made}") from error
    assert 20 < accepted < 480


def test_prompts():
    generator, accepted = random.Random(3), 0
    docs = [
        {"key": number, "prompt": prompt, "instruction_id_list": ids, "kwargs": kwargs}
        for number, (prompt, ids, kwargs) in enumerate(tiny.PROMPTS)
    ]
    for number in range(400):
        made = [doc for doc in as_json(mutated(docs, generator)) if isinstance(doc, dict)]
        answers = [{"response": "An answer."} for _ in made]
        try:
            accepted += survives(ifeval.score, made, answers) is not None
        except Exception as error:
            raise AssertionError(f"prompts {number}: {made}") from error
    assert 10 < accepted < 390


def test_manifests_and_sealed_results(tmp_path):
    generator, accepted = random.Random(4), 0
    (tmp_path / "rows.jsonl").write_text("{}\n")
    good = manifest.write_manifest(
        tmp_path / "good.json", stage="a", params={}, inputs={"x": "y"}, outputs=[tmp_path / "rows.jsonl"]
    )
    seals.write_sealed(tmp_path / "sealed.json", {"scores": {"a": [1, 2]}})
    sealed = json.loads((tmp_path / "sealed.json").read_text())
    for number in range(400):
        file = tmp_path / "manifest.json"
        content = json.dumps(mutated(good if number % 2 else sealed, generator), default=str)
        if number % 5 == 0:
            cut = generator.randrange(len(content))
            content = content[:cut] + generator.choice(["", "}", "\x00", "�"])
        file.write_text(content)
        try:
            read = manifest.verify_files if number % 2 else seals.read_sealed
            accepted += survives(read, file) is not None
        except Exception as error:
            raise AssertionError(f"artifact {number}: {content}") from error
    assert accepted < 300


def test_templates(monkeypatch):
    """Pieces of a real template removed, doubled and swapped with pieces of Jinja."""
    generator, accepted = random.Random(5), 0
    pieces = [
        "{%",
        "%}",
        "{{",
        "}}",
        "messages",
        "[",
        "]",
        "|",
        "'",
        "0",
        "**9",
        "loop.index",
        "{% for x in y %}",
    ]
    monkeypatch.setattr(template, "SECONDS", 5)
    tokenizer = tiny.tokenizer([" ".join(tiny.WORDS)])
    for number in range(200):
        text = tiny.TEMPLATE
        for _ in range(generator.randint(1, 4)):
            start = generator.randrange(len(text))
            end = start + generator.randint(0, 12)
            text = text[:start] + generator.choice([*pieces, "", text[start:end] * 2]) + text[end:]
        tokenizer.chat_template = text
        try:
            accepted += survives(chat.settle, Settings(), tokenizer, tokenizer, {2}) is not None
        except Exception as error:
            raise AssertionError(f"template {number}: {text}") from error
    assert 2 < accepted < 198
