"""What a training has cost, counted: the same however fast the machine was.

A product with a weight is two operations per token forward, two for the gradient of what came in and two for
that of the weight, if it is trained. Attention and the loss are left out, activations that are computed again
too: at these lengths they are a few per cent.
"""


def cost(steps: list[dict], weights: tuple[int, int], teacher: tuple[int, int]) -> dict:
    """{what: how much} of a training. steps: its log; weights: of `weights_of`; teacher: (its weights, tokens
    that it read)."""
    return {
        "steps": len(steps),
        "rows": sum(entry["rows"] for entry in steps),
        "tokens": sum(entry["tokens"] for entry in steps),
        "answer_tokens": sum(entry["answer_tokens"] for entry in steps),
        "sampled_tokens": sum(entry.get("sampled_tokens", 0) for entry in steps),
        "teacher_tokens": teacher[1],
        "flops": sum(learning(entry, weights) for entry in steps) + reading(*teacher),
    }


def learning(entry: dict, weights: tuple[int, int]) -> int:
    """Operations of a step, of which `entry` is the log: of its forward and backward pass, and of sampling
    its answers, if the student gave them itself."""
    every, trained = weights
    sampled = entry.get("sampled_tokens", 0) + entry.get("asked_tokens", 0)
    return (4 * every + 2 * trained) * entry["tokens"] + 2 * every * sampled


def reading(weights: int, tokens: int) -> int:
    """Operations of a forward pass over so many tokens."""
    return 2 * weights * tokens
