"""What training takes per weight and per pass; without torch, since the planner counts with it."""

OPTIMIZER = {"adamw": 16, "adamw_8bit": 10}  # per trained weight: itself in fp32, its gradient, two moments
SHARE_OF_GPU = 0.7  # for weights, gradients and optimiser; the rest is for activations

TOKENS_PER_PASS = 8192  # on a GPU; with fewer it waits for launches: docs/performance.md


def tokens_per_pass(settings, on_cpu: bool) -> int | None:
    """The most padded tokens of a forward pass; None: passes have batch_size rows."""
    return settings.tokens_per_pass or (None if on_cpu else TOKENS_PER_PASS)


def checkpoints(settings, on_cpu: bool, processes: int = 1) -> bool:
    """Are activations computed again from the beginning on? auto waits for memory to run out, which is only
    noticed on a GPU, and mended only in one process."""
    if settings.gradient_checkpointing == "auto":
        return on_cpu or processes > 1
    return settings.gradient_checkpointing
