"""IFEval's four metrics by name, as scores and the table's columns spell them."""

IFEVAL = tuple(f"{unit}_level_{mode}_accuracy" for mode in ("strict", "loose") for unit in ("prompt", "inst"))
PRIMARY = IFEVAL[0]  # what is tested unless `statistics.primary` says otherwise
