"""The section `strategies`: a divergence with its parameters, how it sees the teacher, what else differs.

Which divergences and parameters there are, with ranges and defaults, load.py checks when the configuration is
read. Stages are given what came of it and import no table of them.
"""

from pydantic import ConfigDict, Field

from kdag.config.section import Section
from kdag.config.training import Distillation


class Strategy(Section):
    """A divergence, its parameters, `online`, and any key of `distillation` it overrides."""

    model_config = ConfigDict(extra="allow", frozen=True)
    divergence: str
    online: bool | None = Field(None, description="the live teacher, or its cache; null: as teacher.online")

    def divergence_params(self) -> dict[str, float]:
        """The divergence's own parameters."""
        return {k: float(v) for k, v in self.model_extra.items() if k not in Distillation.model_fields}

    def overrides(self) -> dict:
        return {k: v for k, v in self.model_extra.items() if k in Distillation.model_fields}
