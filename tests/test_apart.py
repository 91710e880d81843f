"""Strangers' files end in one line, whatever they do to what reads them."""

import os
import signal
import time

import pytest
import tiny

from kdag.config.chat import Chat as Settings
from kdag.data import chat, template
from kdag.files import apart, readers
from kdag.job.errors import UserError


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def loop():
    while True:
        time.sleep(0.01)


def eat():
    return len("x" * (4 * 2**30))


def stumble():
    raise ZeroDivisionError("a\nb")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (crash, "the file: its reader crashed (SIGSEGV)"),
        (loop, "the file: it is not done after 1 seconds"),
        (eat, "the file: it takes more than 1 GiB of memory"),
        (stumble, "the file: ZeroDivisionError: a b"),
    ],
)
def test_what_goes_wrong_in_a_child_is_one_line(function, words):
    with pytest.raises(UserError) as error:
        apart.run(function, what="the file", seconds=1, memory=2**30)
    assert str(error.value) == words


def test_what_goes_well_comes_back():
    assert apart.run(len, [1, 2], what="the file", seconds=10) == 2


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "memory": "{{ 'x' * 9000000000 }}",
    "long": "{{ 'x' * 90000000 }}",
    "divides": "{{ 1 / 0 }}",
    "type": "{{ 'a' + 1 }}",
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "syntax": "{% if %}",
    "unknown filter": "{{ messages | nothing }}",
    "attribute": "{{ messages.__class__.__mro__ }}",
    "index": "{{ messages[99].content.upper() }}",
    "raises": "{{ raise_exception('no\\x1b[2J') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('id') }}",
    "encoding": "{{ '%c' % 1114112 }}",
    "range": "{% for a in range(10 ** 12) %}x{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_line(name, monkeypatch):
    tokenizer = tiny.tokenizer([" ".join(tiny.WORDS)])
    tokenizer.chat_template = HOSTILE[name]
    monkeypatch.setattr(template, "SECONDS", 3)
    with pytest.raises(UserError) as error:
        chat.settle(Settings(), tokenizer, tokenizer, {2})
    assert str(error.value).startswith("the teacher's chat template")
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    """Every byte flipped by turns; the reader may refuse, crash, or find nothing wrong."""
    import pandas as pd

    good = tmp_path / "good.parquet"
    pd.DataFrame(tiny.rows(3)).to_parquet(good)
    content, bad = good.read_bytes(), tmp_path / "bad.parquet"
    for place in range(4, len(content), max(1, len(content) // 40)):
        bad.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            rows = apart.run(readers.copy, bad, tmp_path / "out", None, what=str(bad), seconds=60)
        except UserError as error:
            assert str(error).startswith(str(bad))
            assert "\n" not in str(error)
        else:
            assert isinstance(rows, int)
