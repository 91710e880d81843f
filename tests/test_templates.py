"""Chat templates of many families: what is given, what is learned, and that a model is asked for that."""

import pytest
import tiny
from families import FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdag.config.chat import Chat as Settings
from kdag.config.columns import Columns
from kdag.data import formats, template
from kdag.data.chat import settle
from kdag.data.formats import Conversation
from kdag.job.errors import UserError

TURNS = [("Name a bird.", "Wren, a small one."), ("And another?\nBig.", "Owl\n\n- grey\n- old")]
CORPUS = [text for row in tiny.rows(200, seed=1) for text in row.values()] + ["a\n\nb\n- c"] * 50


def tokenizer_of(family) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE(unk_token="<unk>") if family.metaspace else models.BPE())
    if family.metaspace:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        inner.decoder = decoders.Sequence([decoders.Metaspace(), decoders.Fuse()])
        alphabet = sorted(
            set("".join(CORPUS) + "▁\n\t[]/<>#:|'’YouSYINT-_.,?!0123456789()`{}\"")
            | set(map(chr, range(33, 127)))
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", *family.special],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=family.ends[0], bos_token=family.bos)
    made.add_tokens(["<think>", "</think>"])  # words kept whole, as Qwen3's
    made.chat_template = {"default": family.template, "other": "{{ 0 }}"} if family.named else family.template
    return made


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def tokenizer(family):
    return tokenizer_of(family)


def chat_of(tokenizer, family, **keys):
    ends = set(tokenizer.convert_tokens_to_ids(list(family.ends)))
    return settle(Settings(**keys), tokenizer, tokenizer, ends)


def conversation(turns=TURNS, system=None) -> Conversation:
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Conversation(messages, learned=[i for i, m in enumerate(messages) if m["role"] == "assistant"])


def runs(tokenizer, ids, mask) -> list[tuple[str, str]]:
    """(all before it, the text of each run of learned tokens)."""
    found, start = [], None
    for place, learned in enumerate([*mask, 0]):
        if learned and start is None:
            start = place
        if not learned and start is not None:
            before = tokenizer.decode(ids[:start])  # of a run alone the first space would be lost
            found.append((before, tokenizer.decode(ids[:place]).removeprefix(before)))
            start = None
    return found


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_every_answer_is_learned_to_its_end_and_nothing_else(family, tokenizer, system):
    if system and not family.system:
        pytest.skip("the family knows no system prompt")
    chat = chat_of(tokenizer, family)
    encoded = template.encode(tokenizer, chat, conversation(system=system))
    found = [run for ids, mask in encoded for run in runs(tokenizer, ids, mask)]
    expected = [
        (prompt, answer if answer.endswith(family.ends) else answer + family.ends[0])
        for prompt, answer in family.says(TURNS, system)
    ]
    assert [said for _, said in found] == [said for _, said in expected]
    if not family.apart:  # what such a template says of earlier turns is its own
        assert [before for before, _ in found] == [before for before, _ in expected]
    else:
        assert found[0][0] == expected[0][0]
    assert all(ids[-1] in chat.end_ids and mask[-1] for ids, mask in encoded)


def test_the_prompt_of_generation_is_the_prompt_of_training(family, tokenizer):
    chat, talk = chat_of(tokenizer, family), conversation()
    prefixes = [
        ids[:place]
        for ids, mask in template.encode(tokenizer, chat, talk)
        for place in range(1, len(ids))
        if mask[place] and not mask[place - 1]
    ]
    asked = [template.prompt_tokens(tokenizer, chat, talk.messages[:number]) for number in talk.learned]
    assert prefixes == asked


def test_special_tokens_in_the_text_are_text(family, tokenizer):
    chat = chat_of(tokenizer, family)
    end = family.ends[0]
    turns = [(f"What is {end}?", f"A token: {end}, and {family.special[-1]} too.")]
    ((ids, mask),) = template.encode(tokenizer, chat, conversation(turns))
    learned = [token for token, learn in zip(ids, mask, strict=True) if learn]
    assert not set(learned[:-1]) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert learned[-1] in chat.end_ids
    assert f"A token: {end}, and {family.special[-1]} too." in tokenizer.decode(learned)
    alone = template.encode(tokenizer, chat, conversation([("What is it?", "A token.")]))[0]
    special = [[t for t in row if t in tokenizer.all_special_ids] for row in (ids, alone[0])]
    assert special[0] == special[1], "as many control tokens as without them in the text"


@pytest.mark.parametrize("first", ["\n", " ", "\n\n", "\t", "  \n"])
def test_an_answer_may_begin_with_white_space(family, tokenizer, first):
    chat = chat_of(tokenizer, family)
    talk = conversation([("Name a bird.", f"{first}Wren.")])
    ((ids, mask),) = template.encode(tokenizer, chat, talk)
    start = mask.index(1)
    assert ids[:start] == template.prompt_tokens(tokenizer, chat, talk.messages[:1])
    said = tokenizer.decode(ids[start:])
    assert min((said.split(end)[0] for end in family.ends), key=len).strip() == "Wren."


TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n' + (tools | map('tojson') | join('\\n')) + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}{{- '<|im_start|>assistant' }}"
    "{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}"
    '{%- for call in message.tool_calls or [] %}{{- \'\\n<tool_call>\\n{"name": "\' + call.function.name +'
    " '\", \"arguments\": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.mark.parametrize("learn", ["all", "last"])
def test_calls_of_tools_are_learned_and_their_results_are_not(learn):
    family = FAMILIES["chatml"]
    tokenizer = tokenizer_of(family)
    tokenizer.chat_template = TOOLS
    call = {"type": "function", "function": {"name": "find", "arguments": {"bird": "<|im_end|>"}}}
    row = {
        "messages": [
            {"role": "user", "content": "Name a bird."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "a wren"},
            {"role": "assistant", "content": "Wren."},
        ],
        "tools": [{"type": "function", "function": {"name": "find"}}],
    }
    talk = formats.conversation(Columns(), row, learn)
    ((ids, mask),) = template.encode(tokenizer, chat_of(tokenizer, family), talk)
    said = [said for _, said in runs(tokenizer, ids, mask)]
    asked = '<tool_call>\n{"name": "find", "arguments": {"bird": "<|im_end|>"}}\n</tool_call><|im_end|>'
    assert said == [asked, "Wren.<|im_end|>"][-1 if learn == "last" else 0 :]
    before = tokenizer.decode(ids[: len(mask) - mask[::-1].index(0)])
    assert before.startswith('<|im_start|>system\n{"type": "function"')
    assert before.endswith("<tool_response>\na wren\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


def row_with_tools():
    call = {"type": "function", "function": {"name": "find", "arguments": {"bird": "wren"}}}
    return {
        "messages": [
            {"role": "user", "content": "Name a bird."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "a wren"},
            {"role": "assistant", "content": "Wren."},
        ],
        "tools": [{"type": "function", "function": {"name": "find"}}],
    }


@pytest.mark.parametrize("name", ["qwen2.5", "llama-3.2", "gemma-2", "phi-3", "deepseek-v3", "hermes"])
def test_a_template_that_knows_no_tools_is_refused_and_loses_nothing(name):
    tokenizer = tokenizer_of(FAMILIES[name])
    talk = formats.conversation(Columns(), row_with_tools())
    with pytest.raises(template.RefusedError, match=r"leaves out|cannot render"):
        template.encode(tokenizer, chat_of(tokenizer, FAMILIES[name]), talk)


JSON_ARGUMENTS = TOOLS.replace("if message.content", "if message.content is not none").replace(
    "(call.function.arguments | tojson)", "call.function.arguments"
)
CALLS = "for call in message.tool_calls or []"
ONLY_NONE = JSON_ARGUMENTS.replace(CALLS, f"{CALLS} if message.content is none")


@pytest.mark.parametrize(
    "text", [TOOLS, JSON_ARGUMENTS, ONLY_NONE], ids=["object", "JSON", "JSON, without text"]
)
def test_calls_are_spelt_as_the_template_wants_them(text):
    """DeepSeek's writes a call only where there is no text, and joins its arguments as text."""
    family = FAMILIES["chatml"]
    tokenizer = tokenizer_of(family)
    tokenizer.chat_template = text
    talk = formats.conversation(Columns(), row_with_tools())
    encoded = template.encode(tokenizer, chat_of(tokenizer, family), talk)
    said = [said for ids, mask in encoded for _, said in runs(tokenizer, ids, mask)]
    assert [each.strip() for each in said] == [
        '<tool_call>\n{"name": "find", "arguments": {"bird": "wren"}}\n</tool_call><|im_end|>',
        "Wren.<|im_end|>",
    ]


@pytest.mark.parametrize("answer", ["d", "n", "i", "end", "t", "s", "eos", "im_end", "of"])
def test_a_short_answer_has_one_end(family, tokenizer, answer):
    """Its letters stand in the end token too."""
    chat = chat_of(tokenizer, family)
    ((ids, mask),) = template.encode(tokenizer, chat, conversation([("Say it.", answer)]))
    learned = [token for token, learn in zip(ids, mask, strict=True) if learn]
    assert [token for token in learned if token in chat.end_ids] == learned[-1:]


def test_a_template_may_be_too_long_for_a_path_and_a_tokenizer_may_have_no_end():
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    with pytest.raises(UserError, match="no file and no template is called"):
        chat_of(tokenizer, FAMILIES["chatml"], template="{{ x }}" * 1000)
    plain = tokenizer_of(FAMILIES["alpaca"])
    plain.eos_token = None
    with pytest.raises(UserError):
        settle(Settings(), plain, plain, set())
