"""A list among a strategy's values stands for several strategies."""

import itertools


def expand_sweeps(strategies: dict) -> dict:
    """Every list among a strategy's values becomes one strategy per combination, named by the values.

    {"s": {"divergence": "skewed-fkl", "skew_lambda": [0.1, 0.3]}} gives s-skew_lambda0.1 and
    s-skew_lambda0.3. lora_target_modules is a list by nature and not swept.
    """
    expanded = {}
    for name, strategy in strategies.items():
        swept = {}
        if isinstance(strategy, dict):
            swept = {k: v for k, v in strategy.items() if isinstance(v, list) and k != "lora_target_modules"}
            if empty := [key for key, values in swept.items() if not values]:
                raise ValueError(f"strategies.{name}: `{empty[0]}` is an empty list, so nothing would run")
        for values in itertools.product(*swept.values()):
            chosen = dict(zip(swept, values, strict=True))
            full = "-".join([str(name), *(f"{key}{value}" for key, value in chosen.items())])
            if full in expanded:
                raise ValueError(f"strategies: the name {full!r} is given twice")
            expanded[full] = {**strategy, **chosen} if swept else strategy
    return expanded
