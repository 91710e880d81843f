"""What reaches a log: no password, no token, and no character that a terminal would take for a command.

A log is printed, kept, and quoted in tables, and what it says comes in part from strangers' files.
"""

import contextlib
import logging
import os
import re

IN_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@]+@", re.I)
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
NAMED = re.compile(r"TOKEN|PASSWORD|SECRET|API_?KEY", re.I)  # of environment variables
SHORTEST = 8  # characters; a shorter value would be found in innocent words
HIDDEN = "***"
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def clean(text: str) -> str:
    """Without what stands before the @ of an address, the hub's tokens, the environment's, and controls."""
    text = TOKEN.sub(HIDDEN, IN_ADDRESS.sub(rf"\1{HIDDEN}@", text))
    for name, value in os.environ.items():
        if NAMED.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text.translate(CONTROL)


class Formatter(logging.Formatter):
    """The last step of every line of ours, tracebacks included."""

    def format(self, record):
        return clean(super().format(record))


def clean_others() -> None:
    """Libraries with handlers of their own get messages that are clean already."""
    make = logging.getLogRecordFactory()

    def made(*args, **kwargs):
        record = make(*args, **kwargs)
        with contextlib.suppress(TypeError, ValueError):  # a library's own mistake stays its own
            record.msg, record.args = clean(record.getMessage()), None
        return record

    logging.setLogRecordFactory(made)
