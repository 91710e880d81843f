"""The section `statistics`."""

from typing import Literal

from pydantic import Field

from kdag.config.metrics import PRIMARY
from kdag.config.roster import FAMILY, FIDELITY_FAMILY
from kdag.config.section import Number, Section


class Statistics(Section):
    """Which comparisons are made, declared before the results are seen."""

    primary: str = Field(
        PRIMARY,
        min_length=1,
        description="the metric that is tested, as the table's columns name it; its items are right or wrong",
    )
    family: list[Literal[FAMILY]] = Field(
        list(FAMILY),
        min_length=1,
        description="every trained student against these, and the strategies among each other",
    )
    fidelity_family: list[Literal[FIDELITY_FAMILY]] = Field(
        ["sft", "strategies"],
        description="the same for a second question: which student is closest to its teacher on the held-out "
        "rows; empty: it is not tested",
    )
    alpha: Number = Field(0.05, gt=0, lt=1, description="chance of any false finding in the whole family")
    draws: int = Field(10_000, ge=1000, description="bootstrap draws")
    seed: int = Field(0, ge=0, lt=2**32)
