"""Losses across tokenizers by name: the keys that each fills in, under those that a strategy says itself.

losses/spans/ holds what they are. `gold` compares the tokens that both vocabularies have by a divergence; the
others have none.
"""

from kdag.config.section import suggestion

ALIGNMENTS = {
    "uld": {"divergence": None, "temperature_squared": False},  # neither its paper nor its code has T^2
    "gold": {"divergence": "jsd"},  # TRL's beta = 0.5 is the default of jsd, too
    "span-likelihood": {"divergence": None},
}


def with_alignment(strategy):
    """A strategy with the keys that its `alignment` fills in; ValueError, to be put behind its name."""
    if not isinstance(strategy, dict) or strategy.get("alignment") is None:
        return strategy
    name = strategy["alignment"]
    if name not in ALIGNMENTS:
        hint = suggestion(str(name), ALIGNMENTS) or f"; known: {', '.join(ALIGNMENTS)}"
        raise ValueError(f".alignment: no loss across tokenizers is called {name!r}{hint}")
    if strategy.get("divergence") is not None and ALIGNMENTS[name]["divergence"] is None:
        raise ValueError(f".divergence: {name} has none; gold compares common tokens by one")
    return {**ALIGNMENTS[name], **{key: value for key, value in strategy.items() if value is not None}}
