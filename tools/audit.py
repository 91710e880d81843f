"""How many items a table of accuracies can be out of, from nothing but its printed digits.

An accuracy is a count over n, rounded. 0.5915 is 320/541, and no count over 540 rounds to it; so every
cell allows some n, and cells of one row and level (prompts, or instructions) must allow the same one.
What is found are possibilities: a size that is missing is ruled out, one that is there is not proven.
Columns of IFEval are read by level; of any other table each column is a level of its own. What the
differences of a column are worth, its size being known, is in worth.py.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd
import worth

from kdag.job.errors import UserError

LEVELS = {"prompt": "prompts", "inst": "instructions"}  # {word in a column's name: unit}
LARGEST = 5000  # items that a column of another table may be out of, if nothing is said
NUMBER = r"(\d+\.?\d*|\.\d+)%?"
INTRO = (
    "An accuracy is a count over n, rounded: 0.5915 is 320/541, and no count over 540 rounds to it. So its "
    "digits tell which n are possible, and all cells of one row must allow the same one. A number that is "
    "missing below is ruled out, if the values are rounded counts; one that is there is not proven."
)


@dataclass(frozen=True)
class Printed:
    """A printed accuracy: `digits`/`scale`; 0.5915 and 59.15 % are both 5915/10000."""

    text: str
    digits: int
    scale: int

    @property
    def decimals(self) -> int:
        return len(self.text.rstrip("%").partition(".")[2])

    def count(self, n: int) -> int | None:
        """The k whose k/n is printed like this, or None. A tie may have been rounded either way."""
        k = _nearest(self.digits * n, self.scale)
        return k if 0 <= k <= n and 2 * abs(k * self.scale - self.digits * n) <= n else None


def _nearest(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def read_cells(table: pd.DataFrame, columns: dict[str, list[str]]) -> list[dict[str, list[Printed]]]:
    """For every row {unit: its printed values}. Percent if a value of the table is above 1 or has a %."""
    named = [column for group in columns.values() for column in group]
    texts = {column: [re.sub(r"[*_\s]", "", str(text)) for text in table[column]] for column in named}
    for column in named:
        for name, text in zip(table.iloc[:, 0], texts[column], strict=True):
            if not re.fullmatch(NUMBER, text):
                raise UserError(f"row {name!r}, {column}: {text!r} is no accuracy; 0.5915, 59.15, 59.15% are")
    percent = any(t.endswith("%") or _number(t) > 1 for column in texts.values() for t in column)
    return [
        {unit: [_printed(texts[column][i], percent) for column in group] for unit, group in columns.items()}
        for i in range(len(table))
    ]


def _number(text: str) -> Fraction:
    return Fraction(text.rstrip("%"))


def _printed(text: str, percent: bool) -> Printed:
    value, bare = _number(text), text.rstrip("%")
    decimals = len(bare.partition(".")[2])
    if value > (100 if percent else 1):
        raise UserError(f"an accuracy above 100 %: {text!r}")
    return Printed(text, int(value * 10**decimals), 10 ** (decimals + 2 * percent))


def possible(values: list[Printed], largest: int) -> list[int]:
    """Every n up to `largest` of which all values can be rounded counts."""
    return [n for n in range(1, largest + 1) if all(value.count(n) is not None for value in values)]


def chance(values: list[Printed], n: int) -> float:
    """How often values with any digits at all would all be possible for n: a measure of what a fit says."""
    return math.prod(min(1.0, (n + 1) / (value.scale + 1)) for value in values)


def find_columns(names: list[str]) -> dict[str, list[str]]:
    """{unit: columns}: those with `prompt` in their name, and those with `inst`; else {column: [column]}."""
    found = {unit: [n for n in names if word in n.lower()] for word, unit in LEVELS.items()}
    if both := set(found["prompts"]) & set(found["instructions"]):
        raise UserError(f"columns {', '.join(sorted(both))}: of prompts or of instructions?")
    found = {unit: columns for unit, columns in found.items() if columns}
    return found or {name: [name] for name in names}


def audit(
    table: pd.DataFrame,
    largest: dict[str, int],
    declared: dict[str, int],
    instructions_per_prompt: list[int] | None = None,
) -> str:
    """Markdown. `table` holds text, names first; sizes are {"prompts": n, "instructions": m}, of other tables
    {column: n}; of a size that is not declared only the possible numbers are told."""
    columns = find_columns(list(table.columns[1:]))
    names = [re.sub(r"\s+", " ", str(name)).replace("|", "/").strip() for name in table.iloc[:, 0]]
    if not names or len(set(names)) < len(names):
        raise UserError("the table has no rows, or two of the same name")
    cells = read_cells(table, columns)
    if unknown := set(declared) - set(columns) - set(LEVELS.values()):
        raise UserError(f"no column is called {sorted(unknown)[0]!r}; there are {', '.join(columns)}")
    largest = {unit: max(largest.get(unit, LARGEST), declared.get(unit, 0)) for unit in columns}
    fits = {
        unit: {name: possible(row[unit], largest[unit]) for name, row in zip(names, cells, strict=True)}
        for unit in columns
    }
    parts = ["# What this table can be out of", INTRO]
    if len({value.decimals for row in cells for values in row.values() for value in values}) > 1:
        parts.append(
            "The cells differ in their number of decimals, and each is taken as printed. If zeros at the end "
            "were dropped (0.58 for 0.5800), more is ruled out than said here: restore them."
        )
    for unit in columns:
        parts += _level(unit, names, cells, fits[unit], largest[unit], declared.get(unit))
        if unit not in LEVELS.values() and declared.get(unit):
            counts = {
                name: row[unit][0].count(declared[unit]) for name, row in zip(names, cells, strict=True)
            }
            parts += worth.paragraphs(counts, declared[unit])
    if instructions_per_prompt and len(columns) == 2:
        parts += _subsets(names, cells, fits, instructions_per_prompt)
    return "\n\n".join(parts) + "\n"


def _level(unit, names, cells, fits, largest, declared) -> list[str]:
    values = {name: row[unit] for name, row in zip(names, cells, strict=True)}
    items = unit if unit in LEVELS.values() else "items"
    lines = []
    for name in names:
        if declared is None:
            answer = "not given"
        elif declared in fits[name]:
            answer = "yes: " + ", ".join(str(value.count(declared)) for value in values[name])
        else:
            missed = [value for value in values[name] if value.count(declared) is None]
            answer = "**no**: " + "; ".join(_beside(value, declared) for value in missed)
        lines.append([name, ", ".join(v.text for v in values[name]), answer, _listed(fits[name])])
    head = ["row", "printed", f"counts out of {declared or 'n'}", f"possible numbers of {items}"]
    shown = pd.DataFrame(lines, columns=head).to_markdown(index=False, disable_numparse=True)
    first = values[names[0]]
    accidental = sum(chance(first, n) for n in range(1, largest + 1))
    itself = f", and {declared} itself one time in {1 / chance(first, declared):,.0f}" if declared else ""
    note = (
        f"Tried: every number of {items} up to {largest}. A row of arbitrary digits would fit "
        f"{accidental:.2g} of them on average{itself}."
    )
    title = unit.capitalize() if unit in LEVELS.values() else unit
    return [f"## {title}", shown, _shared(items, names, fits, largest), note]


def _beside(value: Printed, n: int) -> str:
    """The printed values next to this one that n allows."""
    below = value.digits * n // value.scale
    unit = value.scale / 10**value.decimals  # 100 where the table is in percent
    near = [f"{k}/{n} is {unit * k / n:.{value.decimals}f}" for k in (below, below + 1) if k <= n]
    return f"{value.text} is none, {', '.join(near)}"


def _listed(sizes: list[int]) -> str:
    if not sizes:
        return "none"
    shown = ", ".join(map(str, sizes[:8])) + (f" and {len(sizes) - 8} more" if len(sizes) > 8 else "")
    step = math.gcd(*sizes)
    return f"{shown} (all multiples of {step})" if step > 1 and len(sizes) > 1 else shown


def _shared(unit: str, names: list[str], fits: dict[str, list[int]], largest: int) -> str:
    common = sorted(set.intersection(*(set(sizes) for sizes in fits.values())))
    if common:
        return f"All rows can be out of the same number of {unit}: {_listed(common)}."
    counts = {n: [name for name in names if n in fits[name]] for sizes in fits.values() for n in sizes}
    if not counts:
        return f"No row's values are rounded counts of any number of {unit} that was tried."
    most = max(len(members) for members in counts.values())
    best = sorted(n for n in counts if len(counts[n]) == most)
    others = [name for name in names if name not in counts[best[0]]]
    return (
        f"**No number of {unit} up to {largest} fits all rows: as rounded counts over so many, they were not "
        f"measured on the same {unit}.** "
        f"{_listed(best)} fits most, {most} of {len(names)} rows; not {', '.join(others)}."
    )


def _subsets(names, cells, fits, instructions_per_prompt) -> list[str]:
    """Both levels at once: the first n prompts of the set hold m instructions."""
    upto = np.cumsum(instructions_per_prompt).tolist()
    lines, accidental = [], 0.0
    for n, m in enumerate(upto, start=1):
        accidental += chance(cells[0]["prompts"], n) * chance(cells[0]["instructions"], m)
    for name in names:
        both = [
            f"{n} prompts, {upto[n - 1]} instructions"
            for n in fits["prompts"][name]
            if n <= len(upto) and upto[n - 1] in fits["instructions"][name]
        ]
        lines.append([name, "; ".join(both) or "none"])
    shown = pd.DataFrame(lines, columns=["row", "possible"]).to_markdown(index=False, disable_numparse=True)
    note = (
        f"Possible are n and m together, where the first n of the set's {len(upto)} prompts hold m "
        f"instructions. A row of arbitrary digits would fit {accidental:.1g} such pairs on average. A row "
        "that fits none was scored on other prompts than the first, or its values are no rounded counts."
    )
    return ["## The first prompts of the set", shown, note]
