"""The teacher's own answers to the training prompts, as rows that take the place of the data set's."""

from pathlib import Path

from kdag.data.loops import distinct_pairs, is_repeated
from kdag.data.rows import prompts, read_rows
from kdag.models import decoding
from kdag.models.files import positions_of
from kdag.teacher.rows import write_rows

SEED = 0  # the answers are one sample, which every strategy and seed shares


def write_answers(
    model: Path, rows: Path, output: Path, settings, chat, dtype: str, data: dict, gpus: int = 1
) -> dict:
    """Answer the prompts of `rows` and write them with these answers to `output`. Returns what they are like.

    settings: a config Sampling; data: the manifest of the rows. A row keeps its place and its prompt; its
    answer ends with the token that ended it, or without one where it was cut off.
    """
    given = prompts(read_rows(rows))
    decoding.check_positions(given, settings.max_new_tokens, positions_of(model))
    loaded, tokenizer = decoding.load_model(model, dtype, gpus)
    answers = decoding.sample(
        loaded,
        given,
        [(SEED, row) for row in range(len(given))],
        settings.model_dump(),
        vocabulary=data["vocabulary_size"],
        eos_ids=chat.end_ids,
        told=True,
    )
    texts = [tokenizer.decode(answer.said) for answer in answers]
    write_rows(rows, given, [answer.tokens for answer in answers], texts, output)
    return report(answers, texts)


def report(answers: list, texts: list[str]) -> dict:
    """What the answers are like, on average."""
    count, tokens = len(answers), sum(len(answer.tokens) for answer in answers)
    return {
        "answers": count,
        "sampled_tokens": tokens,
        "entropy": sum(answer.entropy * len(answer.tokens) for answer in answers) / tokens,
        "distinct_2": sum(distinct_pairs(answer.tokens) for answer in answers) / count,
        "cut_off": sum(answer.cut_off for answer in answers),
        "repeated": sum(map(is_repeated, texts)),
    }
