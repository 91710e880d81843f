"""A teacher and a student of two tokenizers: nats per byte, and a loss from answers to gradients."""

import math

import numpy as np
import pytest
import tiny
import torch

from kdag.data.alignment import AlignmentError, align, common_tokens, spelling, widths
from kdag.evaluation.bytes import nll_per_byte
from kdag.losses import divergences, spans
from kdag.losses.fused_spans import span_distill_loss, token_logp
from kdag.models.head import head_weight, hidden_states
from kdag.models.load import load_model, load_tokenizer


def nll(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_nats_per_byte_are_all_nats_over_all_bytes():
    found = nll_per_byte(nll(1, 2, 3, 4), [2, 2], [[1, 2], [3, 4]])
    assert found["nats_per_byte"] == pytest.approx(10 / 10) and found["bytes"] == 10
    assert found["by_row"] == pytest.approx([3 / 3, 7 / 7]) and found["undefined_rows"] == 0


def test_an_end_says_no_byte_and_a_dummy_prefix_has_to_be_said():
    found = nll_per_byte(nll(0.5, 2, 100), [3], [np.array([0, 5, -1])])
    assert found["nats_per_byte"] == pytest.approx(2.5 / 5)


def test_a_row_that_is_not_spelled_is_not_defined():
    found = nll_per_byte(nll(1, 2, 3), [1, 2], [None, [2, 2]])
    assert found["by_row"] == [None, pytest.approx(5 / 4)]
    assert found["nats_per_byte"] == pytest.approx(5 / 4) and found["undefined_rows"] == 1
    nothing = nll_per_byte(nll(1, 2), [1, 1], [None, [-1]])
    assert nothing == {"nats_per_byte": None, "bytes": 0, "undefined_rows": 2, "by_row": [None, None]}
    assert nll_per_byte(nll(), [], [])["nats_per_byte"] is None


def test_numbers_of_tokens_that_differ_are_refused():
    for rows, sizes in (([1], [[1]]), ([2], []), ([2], [[1]])):
        with pytest.raises(ValueError, match="tokens and widths of|rows"):
            nll_per_byte(nll(1, 2), rows, sizes)


def test_two_models_that_know_nothing_differ_by_their_vocabularies_alone():
    """Each token costs ln V, so nats per byte are tokens ln V / bytes, and tokens alone would mislead."""
    corpus = [text for row in tiny.rows(100) for text in row.values()]
    others = (tiny.other_tokenizer(corpus, kind) for kind in ("bpe", "unigram"))
    for made in (tiny.tokenizer(corpus), *others):
        text = "the river \U0001f600"
        ids = made(text, add_special_tokens=False)["input_ids"]
        taken = widths(spelling(made), ids, text)
        known = -token_logp(torch.zeros(len(ids), 3), torch.zeros(len(made), 3), torch.tensor(ids))
        found = nll_per_byte(known, [len(ids)], [taken])
        assert found["nats_per_byte"] == pytest.approx(len(ids) * math.log(len(made)) / 14, rel=1e-6)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pair(tmp_path_factory, request):
    """{side: (model, tokenizer)} of a pair on disk."""
    folder = tmp_path_factory.mktemp(f"two-{request.param}")
    tiny.save_models_of_two_tokenizers(folder, request.param)
    return {
        name: (load_model(folder / name, "float32").eval(), load_tokenizer(folder / name))
        for name in ("teacher", "student")
    }


PROMPT = "Question 7: "
TEXTS = ["The river falls over 201 stones.", "Morning \U0001f600 caf\u00e9 \u4e2d\u6587", " two  blanks\n"]


def answered(model, tokenizer, text: str):
    """(hidden [n, d] before each token of the answer and of its end, the tokens [n], their widths [n])."""
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    whole = torch.tensor([prompt + ids])
    hidden = hidden_states(model, whole, torch.ones_like(whole))[0, len(prompt) - 1 : -1]
    return hidden, torch.tensor(ids), widths(spelling(tokenizer), ids, text)


def batch(pair, side: str):
    hidden, ids, taken = zip(*(answered(*pair[side], text) for text in TEXTS), strict=True)
    return torch.cat(hidden), torch.cat(ids), taken


def spans_of_batch(student, teacher) -> list[torch.Tensor]:
    """Spans [K, 2] of either side over the rows of a batch."""
    found, shift = [], [0, 0]
    for sides in zip(student, teacher, strict=True):
        aligned = align(*sides)
        found.append([aligned.student + shift[0], aligned.teacher + shift[1]])
        shift = [shift[0] + len(sides[0]), shift[1] + len(sides[1])]
    return [torch.from_numpy(np.concatenate([row[side] for row in found])) for side in (0, 1)]


def test_log_likelihoods_of_a_model_are_its_own_logits(pair):
    for model, tokenizer in pair.values():
        hidden, ids, taken = answered(model, tokenizer, TEXTS[0])
        found = -token_logp(hidden, head_weight(model, len(tokenizer)), ids)
        prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
        logits = model(torch.tensor([prompt + ids.tolist()])).logits[0, len(prompt) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        nats = float(expected[:-1].detach().sum())
        per_byte = nll_per_byte(found, [len(ids)], [taken])
        assert per_byte["bytes"] == len(TEXTS[0].encode())
        assert per_byte["nats_per_byte"] == pytest.approx(nats / per_byte["bytes"], rel=1e-4)


@pytest.mark.parametrize("name", spans.NAMES)
def test_a_student_learns_from_a_teacher_of_another_tokenizer(pair, name):
    """From texts to a lower loss, which a fixed seed of Adam's takes in 20 steps."""
    (teacher, teacher_tokenizer), (student, student_tokenizer) = pair["teacher"], pair["student"]
    state = {key: value.clone() for key, value in student.state_dict().items()}
    with torch.no_grad():
        known, teacher_ids, teacher_widths = batch(pair, "teacher")
        _, _, student_widths = batch(pair, "student")
    runs = spans_of_batch(student_widths, teacher_widths)
    ends = student_tokenizer.eos_token_id, teacher_tokenizer.eos_token_id
    common = common_tokens(spelling(student_tokenizer), spelling(teacher_tokenizer), ends)
    params = {
        "gold": {"common": tuple(map(torch.from_numpy, common)), "divergence": divergences.load("jsd")},
        "span-likelihood": {"tau": 1.0},
        "uld": {},
    }[name]
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        hidden, ids, _ = batch(pair, "student")
        loss, metrics = span_distill_loss(
            *(hidden, head_weight(student, len(student_tokenizer))),
            *(known, head_weight(teacher, len(teacher_tokenizer)).detach()),
            *(ids, teacher_ids, *runs),
            **{"loss": spans.load(name), "loss_params": params, "kl_weight": 1.0, "temperature": 1.0},
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    student.load_state_dict(state)
    assert metrics["spans"] == len(runs[0]) > 20
    assert losses[-1] < 0.9 * losses[0]


def test_the_ends_of_both_are_the_last_span(pair):
    sides = [batch(pair, name)[2][0] for name in ("student", "teacher")]
    aligned = align(*sides)
    assert aligned.one_to_one[-1] and aligned.student[-1, 1] == len(sides[0])
    assert aligned.bytes[-1].tolist() == [len(TEXTS[0].encode())] * 2


def test_a_text_that_one_of_them_changes_has_no_alignment(pair):
    text = "a\u2581b"
    with pytest.raises(AlignmentError, match="another text"):
        answered(*pair["teacher"], text)
    assert np.maximum(answered(*pair["student"], text)[2], 0).sum() == 5
