"""What a training has cost, counted: the same however fast the machine was.

A product with a weight is two operations per token forward, two for the gradient of what came in and two for
that of the weight, if it is trained. Attention and the loss are left out, activations that are computed again
too: at these lengths they are a few per cent.
"""


def cost(steps: list[dict], weights: tuple[int, int], *, sampled: int, asked: int, teacher: tuple[int, int]):
    """{what: how much} of a training. steps: its log; weights: of `weights_of`; sampled, asked: tokens that
    the student said while it trained, and those of their prompts; teacher: (its weights, tokens it read)."""
    tokens = sum(entry["tokens"] for entry in steps)
    every, trained = weights
    operations = (
        (4 * every + 2 * trained) * tokens + 2 * every * (sampled + asked) + 2 * teacher[0] * teacher[1]
    )
    return {
        "steps": len(steps),
        "rows": sum(entry["rows"] for entry in steps),
        "tokens": tokens,
        "answer_tokens": sum(entry["answer_tokens"] for entry in steps),
        "sampled_tokens": sampled,
        "teacher_tokens": teacher[1],
        "flops": operations,
    }
