"""What training takes per weight and per pass; without torch, since the planner counts with it."""

OPTIMIZER = {"adamw": 16, "adamw_8bit": 10}  # per trained weight: itself in fp32, its gradient, two moments
SHARE_OF_GPU = 0.7  # for weights, gradients and optimiser; the rest is for activations

TOKENS_PER_PASS = 8192  # on a GPU; with fewer it waits for launches: docs/performance.md


def tokens_per_pass(settings, on_cpu: bool) -> int | None:
    """The most padded tokens of a forward pass; None: passes have batch_size rows."""
    return settings.tokens_per_pass or (None if on_cpu else TOKENS_PER_PASS)
