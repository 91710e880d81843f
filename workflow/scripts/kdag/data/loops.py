"""Does an answer go round in circles? Of answers that are scored, and of those that are trained on."""


def is_repeated(text: str) -> bool:
    """Whether the text ends in a loop: some unit of 1 to 400 characters fills its tail.

    The tail is the last 60 characters or three more units, whichever is longer; a unit cut off in
    the middle still counts. A list whose numbers count up is no loop by this measure.
    """
    text = text.rstrip()
    for period in range(1, min(400, len(text) // 4) + 1):
        tail = max(60, 3 * period)
        if tail + period <= len(text) and text[-tail:] == text[-tail - period : -period]:
            return True
    return False


def distinct_pairs(ids: list[int]) -> float:
    """Different pairs of neighbouring tokens, as a share of all (distinct-2, arXiv 1510.03055); 1 of none."""
    pairs = list(zip(ids, ids[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
