"""Reasoning: what is given, what is learned, what is scored, for templates that differ in it."""

import pytest
from families import FAMILIES
from test_templates import chat_of, conversation, runs, tokenizer_of

from kdag.data import template
from kdag.data.formats import Conversation

ASKED, THOUGHT, SAID = "Name a bird.", "A small one.", "Wren."
CLOSED, OPEN = "<think>\n\n</think>\n\n", "<think>\n"
BLOCK = f"<think>\n{THOUGHT}\n</think>\n\n"
IM, EOT = "<|im_end|>", "<|eot_id|>"
R1 = "<｜begin▁of▁sentence｜><｜User｜>Name a bird.<｜Assistant｜>"
END = "<｜end▁of▁sentence｜>"
QWEN = "<|im_start|>user\nName a bird.<|im_end|>\n<|im_start|>assistant\n"
NEMOTRON = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nName a bird.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)

# (family, thinking): (what is given, what is learned) of a row with reasoning; of a row without.
EXPECTED = {
    ("qwen3", "off"): [(QWEN + CLOSED, SAID + IM)] * 2,
    ("qwen3", "strip"): [(QWEN, SAID + IM)] * 2,
    ("qwen3", "keep"): [(QWEN, BLOCK + SAID + IM), (QWEN + CLOSED, SAID + IM)],
    ("qwen3.5", "off"): [(QWEN + CLOSED, SAID + IM)] * 2,
    ("qwen3.5", "strip"): [(QWEN, SAID + IM)] * 2,
    ("qwen3.5", "keep"): [
        (QWEN + OPEN, BLOCK.removeprefix(OPEN) + SAID + IM),
        (QWEN + OPEN + "\n</think>\n\n", SAID + IM),
    ],
    ("deepseek-r1", "off"): [(R1 + CLOSED, SAID + END)] * 2,
    ("deepseek-r1", "strip"): [(R1, SAID + END)] * 2,
    ("deepseek-r1", "keep"): [
        (R1 + OPEN, BLOCK.removeprefix(OPEN) + SAID + END),
        (R1 + OPEN + "\n</think>\n\n", SAID + END),
    ],
    ("nemotron", "off"): [(NEMOTRON.format("/no_think"), SAID + EOT)] * 2,
    ("nemotron", "strip"): [(NEMOTRON.format(""), SAID + EOT)] * 2,
    ("nemotron", "keep"): [
        (NEMOTRON.format("") + OPEN, BLOCK.removeprefix(OPEN) + SAID + EOT),
        (NEMOTRON.format("") + OPEN + "\n</think>\n\n", SAID + EOT),
    ],
    ("chatml", "off"): [(QWEN, SAID + IM)] * 2,
    ("chatml", "keep"): [(QWEN, BLOCK + SAID + IM), (QWEN, SAID + IM)],
}


def row(thought: bool) -> Conversation:
    made = conversation([(ASKED, SAID)])
    if thought:
        made.messages[-1]["reasoning_content"] = THOUGHT
    return made


@pytest.mark.parametrize(("family", "thinking"), EXPECTED)
def test_what_is_given_and_what_is_learned(family, thinking):
    tokenizer = tokenizer_of(FAMILIES[family])
    chat = chat_of(tokenizer, FAMILIES[family], thinking=thinking)
    for thought, expected in zip((True, False), EXPECTED[family, thinking], strict=True):
        ((ids, mask),) = template.encode(tokenizer, chat, row(thought))
        assert runs(tokenizer, ids, mask) == [expected], f"with reasoning: {thought}"


@pytest.mark.parametrize(("family", "thinking"), EXPECTED)
def test_a_model_is_asked_as_it_was_trained(family, thinking):
    """What was learned follows what a model is given."""
    tokenizer = tokenizer_of(FAMILIES[family])
    chat = chat_of(tokenizer, FAMILIES[family], thinking=thinking)
    asked = template.prompt_tokens(tokenizer, chat, [{"role": "user", "content": ASKED}])
    ((ids, mask),) = template.encode(tokenizer, chat, row(True))
    assert ids[: mask.index(1)] == asked


def test_earlier_turns_have_the_reasoning_that_the_template_leaves_them():
    """Qwen 3 drops it, so that each turn is a row of its own, as it was when it was answered."""
    tokenizer = tokenizer_of(FAMILIES["qwen3"])
    chat = chat_of(tokenizer, FAMILIES["qwen3"], thinking="keep")
    talk = conversation([(ASKED, SAID), ("Another?", "Owl.")])
    for turn in talk.learned:
        talk.messages[turn]["reasoning_content"] = THOUGHT
    (first, second) = template.encode(tokenizer, chat, talk)
    assert runs(tokenizer, *first) == [(QWEN, BLOCK + SAID + IM)]
    earlier = f"{QWEN}{SAID}{IM}\n" + QWEN.replace(ASKED, "Another?")
    assert runs(tokenizer, *second) == [(earlier, BLOCK + "Owl." + IM)]


@pytest.mark.parametrize(
    ("answer", "prompt", "scored", "thought"),
    [
        ("Wren.", "user\n", "Wren.", None),
        ("<think>\nHm.\n</think>\n\nWren.", "user\n", "Wren.", "Hm."),
        ("\n<think>Hm.</think>Wren.", "user\n", "Wren.", "Hm."),
        ("Hm.\n</think>\n\nWren.", "assistant\n<think>\n", "Wren.", "Hm."),
        ("<think>\nHm and hm", "user\n", "", "Hm and hm"),
        ("Hm and hm", "assistant\n<think>", "", "Hm and hm"),
        ("Write </think> to end it.", "user\n", "Write </think> to end it.", None),
        ("Wren.", "<think>\n\n</think>\n\n", "Wren.", None),
        ("<think></think>a</think>b", "user\n", "a</think>b", ""),
    ],
)
def test_what_is_scored_stands_behind_the_reasoning(answer, prompt, scored, thought):
    assert template.after_thinking(answer, prompt) == (scored, thought)
