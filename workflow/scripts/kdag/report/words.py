"""How names stand in a sentence."""

import re

from kdag.config.roster import spoken


def named(name: str) -> str:
    """A row of the table; a strategy, whose name is the user's own, as code."""
    return spoken(name) or code(name)


def code(name: str) -> str:
    """A name as code, so that its underscores and stars are not markup."""
    return "`" + re.sub(r"[`<>|\s]+", " ", name).strip() + "`"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def listed(names: list[str]) -> str:
    """a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
