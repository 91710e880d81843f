"""A teacher of another tokenizer, from the configuration to the table."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import yaml
from conftest import Project
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from kdag.config.chat import Chat as Settings
from kdag.config.load import load_config
from kdag.config.stages import canonical, stage_params
from kdag.data import chat as chats
from kdag.data.aligned_rows import ALIGNED, Speaker, Tally, aligned, reasons
from kdag.data.alignment import common_tokens, learned_runs, spelling, widths
from kdag.data.formats import Conversation
from kdag.data.rows import EncodedRows, prompts
from kdag.data.template import encode
from kdag.files.hashes import sha256_json
from kdag.files.manifest import hash_files
from kdag.job.errors import UserError
from kdag.losses import divergences, spans
from kdag.models.decoding import Answer
from kdag.models.load import load_tokenizer
from kdag.report import closeness
from kdag.teacher.aligned import AlignedTeacher
from kdag.teacher.answering import encoded, sampled, spoken
from kdag.training.batches import NOTHING, Rows, collate, nothing_to_learn, some, split_by_tokens
from kdag.training.schedule import Objective

TEXTS = [
    "The river falls over 201 stones.",
    "Morning \U0001f600 caf\u00e9 \u4e2d\u6587",
    " two  blanks\n",
    "a",
]


# --- what may be asked for ------------------------------------------------------------------------


def configured(tmp_path, strategies, **changed):
    tiny.write_experiment(tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    settings["teachers"] = {"other": {"source": "path", "path": str(tmp_path / "teacher")}}
    return load_config(settings | {"strategies": strategies} | changed)


ONE = {"alignment": "uld"}
OWN = {"teacher": {"source": "package", "package": "p", "file": "f", "tokenizer": "own"}}


@pytest.mark.parametrize(
    ("strategies", "changed", "said"),
    [
        (
            {"a": {"alignment": "gould"}},
            {},
            "no loss across tokenizers is called 'gould'; did you mean",
        ),
        ({"a": {"alignment": "uld", "divergence": "fkl"}}, {}, "uld has none; gold compares common tokens"),
        ({"a": {"alignment": "gold", "divergence": "taid"}}, {}, "gold does not go with divergence taid"),
        ({"a": {"alignment": "span-likelihood", "tau": 0}}, {}, r"tau = 0.0 is outside \(0, 1e\+06\)"),
        ({"a": {"alignment": "uld", "tau": 1}}, {}, "`tau` is neither a parameter of uld"),
        ({"a": {"alignment": "uld", "answers": "teacher"}}, {}, "only the data set's answers can be aligned"),
        ({"a": {"alignment": "uld", "online": True}}, {}, "is read from its cache"),
        ({"a": {"alignment": "uld", "teachers": {"teacher": 0.5, "other": 0.5}}}, {}, "there is one teacher"),
        ({"a": {"divergence": None}}, {}, "divergence: a name is needed"),
        ({"a": ONE, "b": {"divergence": "fkl"}}, {}, "strategies.b: 'teacher' has another tokenizer"),
        (
            {"a": ONE, "b": {"divergence": "fkl", "answers": "teacher"}},
            {},
            "strategies.b: 'teacher' has another tokenizer",
        ),
        ({"a": {"divergence": "fkl"}}, OWN, "'teacher' has another tokenizer, as teacher.tokenizer says"),
        ({"a": {"method": "gkd"}}, OWN, "'teacher' has another tokenizer"),
        ({"a": ONE}, {"student": {"derive": {"from": "teacher", "keep_layers": 2}}}, "has its tokenizer"),
        ({"a": ONE}, {"teacher_cache": {"store": "topk"}}, "alignment needs hidden"),
        ({"a": ONE}, {"chat": {"template": "teacher"}}, "it has a template of its own"),
        ({"a": ONE, "b": ONE}, {}, "'a' and 'b' are the same training"),
    ],
)
def test_what_cannot_be_aligned_is_refused_before_anything_runs(tmp_path, strategies, changed, said):
    with pytest.raises(UserError, match=said):
        configured(tmp_path, strategies, **changed)


def test_an_alignment_fills_in_its_keys(tmp_path):
    config = configured(
        tmp_path,
        {"u": ONE, "g": {"alignment": "gold"}, "s": {"alignment": "span-likelihood"}},
        teacher={"source": "path", "path": str(tmp_path / "teacher"), "online": True},
    )
    jobs = {name: stage_params(config, "distill", strategy=name) for name in config.strategies}
    assert [jobs[name]["divergence"] for name in "ugs"] == [None, "jsd", None]
    assert jobs["s"]["divergence_params"] == {"tau": 100.0} and jobs["g"]["divergence_params"] == {
        "beta": 0.5
    }
    assert not jobs["u"]["temperature_squared"] and jobs["g"]["temperature_squared"]
    assert not any(config.online(name) for name in "ugs") and config.aligned() == ["teacher"]


def test_a_teacher_of_another_tokenizer_may_answer_alone(tmp_path):
    config = configured(tmp_path, {"s": {"method": "seqkd"}}, **OWN)
    assert stage_params(config, "align_rows")["text"], "rows without a span are no fault then"
    assert config.aligned() == ["teacher"] and canonical(config)["teacher"]["tokenizer"] == "own"
    assert "tokenizer" not in canonical(configured(tmp_path, {"f": {"divergence": "fkl"}}))["teacher"]


def test_a_pair_with_one_tokenizer_is_told_nothing_of_it(tmp_path):
    config = configured(tmp_path, {"f": {"divergence": "fkl"}})
    assert "alignment" not in stage_params(config, "distill", strategy="f") and config.aligned() == []


# --- rows -----------------------------------------------------------------------------------------


def speakers(student=None):
    corpus = [text for row in tiny.rows(200, seed=1) for text in row.values()]
    pair = student or tiny.tokenizer(corpus), tiny.other_tokenizer(corpus)
    return [Speaker(tokenizer, tiny.chat_of(tokenizer)) for tokenizer in pair]


def talk(answer: str) -> Conversation:
    turns = [{"role": "user", "content": "Question 7?"}, {"role": "assistant", "content": answer}]
    return Conversation(turns, learned=[1])


def students_row(student: Speaker, number: int, found: Conversation) -> dict:
    ((ids, mask),) = encode(student.tokenizer, student.chat, found)
    given = {"row": number, "row_hash": sha256_json([ids, mask]), "input_ids": ids, "response_mask": mask}
    return given | {"prompt": found.prompt, "response": found.response}


def made(student, teacher, texts):
    tally, talks = Tally(), [talk(text) for text in texts]
    given = [(students_row(student, number, found), found) for number, found in enumerate(talks)]
    return list(aligned(iter(given), student, teacher, tally)), tally


def test_spans_and_widths_are_of_every_byte_of_an_answer():
    rows, tally = made(*speakers(), TEXTS)
    assert tally.rows == 4 and not tally.unaligned and tally.spans >= tally.one_to_one > 0
    for row, text in zip(rows, TEXTS, strict=True):
        size = len(text.strip().encode() if text.endswith("\n") else text.encode())
        for side in ("student_widths", "teacher_widths"):
            assert abs(int(np.maximum(row[side], 0).sum()) - size) <= 2  # a template may trim blanks
        table = np.reshape(row["spans"], (-1, 4))
        assert (table[1:, 0] == table[:-1, 1]).all() and (table[1:, 2] == table[:-1, 3]).all()
        assert table[-1, 1] == sum(row["response_mask"]) or table[-1, 3] == sum(row["response_mask"])


def test_a_row_that_cannot_be_aligned_stays_a_row_and_says_why():
    student, teacher = speakers()
    rows, tally = made(student, teacher, [*TEXTS, "a\u2581b"])
    assert [each["row"] for each in tally.unaligned] == [4]
    assert "another text" in tally.unaligned[0]["reason"] and "1 x " in reasons(tally.unaligned)
    assert len(rows) == 5 and list(rows[4]["spans"]) == [] and rows[4]["teacher_widths"] is None
    assert rows[4]["student_widths"] is not None  # its likelihood by bytes is the student's own affair
    teacher.positions = 12
    rows, tally = made(student, teacher, TEXTS[:1])
    assert "which has 12 positions" in tally.unaligned[0]["reason"] and rows[0]["response_mask"] == [0]


# --- batches and the loss ---------------------------------------------------------------------------


class Kept(AlignedTeacher):
    """What an AlignedTeacher has read, from rows that are in memory."""

    def __init__(self, rows, vocabulary: int, width: int = 6):
        generator = torch.Generator().manual_seed(0)
        self.head, self.cap, self.weights = torch.randn(vocabulary, width, generator=generator), None, 1
        masks = [np.array(row["response_mask"]) for row in rows]
        self.targets = [
            np.array(row["input_ids"])[1:][m[1:] == 1] for row, m in zip(rows, masks, strict=True)
        ]
        self.spans = [np.reshape(row["spans"], (-1, 4)).astype(np.int64) for row in rows]
        self.hidden = [torch.randn(len(t), width, generator=generator) for t in self.targets]
        self.cache = self

    def row(self, index):
        kept = {
            "targets": torch.from_numpy(self.targets[index]),
            "spans": torch.from_numpy(self.spans[index]),
        }
        return {"hidden": self.hidden[index], **kept}


class Frame(dict):
    lengths = np.array([])


def batch_of(student, teacher, texts):
    rows, _ = made(student, teacher, texts)
    given = [students_row(student, number, talk(text)) for number, text in enumerate(texts)]
    targets = []
    for row in given:
        mask = np.array(row["response_mask"][1:])
        targets.append(np.append(np.where(mask == 1, row["input_ids"][1:], -100), -100))
    frame = Frame(input_ids=[np.array(row["input_ids"]) for row in given], targets=targets)
    kept = Kept(rows, len(teacher.tokenizer))
    return Rows(frame, kept), kept


def loss_of(batch, kept, head, states, objective, spans_of_step):
    """Of a batch whose student's hidden states are those of its tokens."""
    learn = batch["labels"] != -100
    hidden = states[batch["input_ids"]][learn]
    loss, _ = kept.loss(
        *(objective, hidden, head, batch["labels"][learn], kept.known(batch, learn), None),
        **{"num_items": 50, "num_spans": spans_of_step},
    )
    return loss


@pytest.mark.parametrize("name", spans.NAMES)
def test_the_loss_of_a_step_is_the_same_however_its_rows_are_cut(name):
    student, teacher = speakers()
    rows, kept = batch_of(student, teacher, [*TEXTS, "a\u2581b"])
    whole = collate([rows[number] for number in (0, 1, NOTHING, 2, 3, 4)])
    generator = torch.Generator().manual_seed(1)
    size = len(student.tokenizer)
    states, head = (torch.randn(size, 5, generator=generator).requires_grad_() for _ in range(2))
    divergence, params = (divergences.load("jsd"), {"beta": 0.5}) if name == "gold" else (None, {})
    params = {"tau": 2.0} if name == "span-likelihood" else params
    objective = Objective(divergence, params, 0.5, 2.0, alignment=spans.load(name))
    kept.common = [torch.arange(5), torch.arange(5) + 3]
    count = int((whole["aligned"]["spans"][..., 0] >= 0).sum())
    assert count == sum(map(len, kept.spans))

    def gradient(batches):
        total = sum(loss_of(batch, kept, head, states, objective, count) for batch in batches)
        return total.detach(), *torch.autograd.grad(total, (states, head))

    pieces = split_by_tokens(whole, 40)
    assert len(pieces) > 2
    one, other = gradient([whole]), gradient([*pieces, nothing_to_learn(whole)])
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert some(whole, torch.tensor([3, 0]))["aligned"]["spans"].shape[0] == 2


# --- words ------------------------------------------------------------------------------------------


def test_a_likelihood_is_called_one_and_rows_without_bytes_are_left_out():
    rows = [{"model": "student-untrained", "role": "untrained"}]
    rows += [
        {"model": f"{name}-seed0", "role": "student", "strategy": name, "seed": 0} for name in ("sft", "uld")
    ]
    generator = np.random.default_rng(0)
    fidelity = {
        row["model"]: {"by_row": {"nats_per_byte": [None, *(1 - 0.3 * n + generator.normal(0, 0.01, 20))]}}
        | {"nats_per_byte": 1.0}
        for n, row in enumerate(rows)
    }
    question = closeness.asked(fidelity)
    by_row = closeness.rows_of(fidelity)
    assert {len(each) for each in by_row.values()} == {20}
    table = closeness.compare(rows, by_row, ["sft"], 0.05)
    said = closeness.words(table, 0.05, "the fine-tuned teacher", question)
    assert "`uld` holds the held-out answers likelier than `sft` by 0." in said
    assert "closer" not in said and "is not defined, since it has another tokenizer" in said


# --- the whole of it --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("across"))
    tiny.save_models_of_two_tokenizers(project.folder / "two")
    settings = yaml.safe_load(project.config.read_text())
    for side in ("teacher", "student"):
        settings[side]["path"] = str(project.folder / "two" / side)
    settings["strategies"] = {
        "gold": {"alignment": "gold"},
        "uld": {"alignment": "uld"},
        "seqkd": {"method": "seqkd", "sampling": {"max_new_tokens": 12}},
    }
    (project.folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    project.snakemake()
    return project


def test_a_pair_of_two_tokenizers_runs_to_its_table(run):
    table = (run.results / "report" / "table.md").read_text()
    assert "teacher, untrained and teacher: of another tokenizer than the students" in table
    assert "nats_per_byte" in table and "a divergence from it is not defined" in table
    assert "nats per byte" in (run.results / "report" / "index.html").read_text()
    assert "Nothing to be done" in run.snakemake().stderr


def test_its_numbers_are_there_and_finite(run):
    for name in ("gold", "uld"):
        home = run.results / "students" / name / "seed0"
        steps = [json.loads(line) for line in (home / "training.jsonl").read_text().splitlines()]
        assert len(steps) == 3 and all(math.isfinite(step["divergence"]) for step in steps)
        measured = json.loads((run.results / "eval" / f"{name}-seed0" / "fidelity.json").read_text())
        assert 0 < measured["nats_per_byte"] < 10 and len(measured["by_row"]["nats_per_byte"]) == 8
    report = json.loads((run.results / "teacher" / "rows" / "manifest.json").read_text())["report"]
    assert report["train"]["spans"] > 100 and report["unaligned"] == {"train": [], "heldout": []}
    ours, theirs = (
        pq.read_table(run.results / folder / "train.parquet") for folder in ("data", "teacher/rows")
    )
    assert theirs["of"].to_pylist() == ours["row_hash"].to_pylist()


def test_the_teacher_s_own_answers_are_learned_in_the_student_s_tokens(run):
    """Its text, behind the student's own prompt, with the student's end; not the teacher's ids."""
    (answers,) = (run.results / "answers").glob("*")
    said = pq.read_table(answers / "train.parquet").to_pylist()
    ours = pq.read_table(run.results / "data" / "train.parquet").to_pylist()
    tokenizer = load_tokenizer(run.folder / "two" / "student")
    end = json.loads((run.results / "data" / "chat.json").read_text())["end_ids"][0]
    assert [row["row"] for row in said] == [row["row"] for row in ours]
    whole = 0
    for row, known in zip(said, ours, strict=True):
        start = row["response_mask"].index(1)
        prompt, answer = row["input_ids"][:start], row["input_ids"][start:]
        assert prompt == known["input_ids"][:start] and all(row["response_mask"][start:])
        assert len(answer) <= 12
        if answer[-1] == end:
            assert tokenizer.decode(answer[:-1]) == row["response"]
            whole += 1
        assert row["response"].startswith(tokenizer.decode(answer).removesuffix("\ufffd")[:4])
    manifest = json.loads((answers / "manifest.json").read_text())
    assert manifest["report"]["cut_off"] == len(said) - whole and manifest["inputs"]["rows"]


def test_an_answer_is_spoken_by_the_student():
    """Control tokens in it are text; what was cut off has no end; no more tokens than are wanted."""
    student, teacher = speakers()
    tokenizer, end = student.tokenizer, student.chat.end_ids[0]
    whole, cut = Answer([5, 6, 7], False, 0.0), Answer([5, 6], True, 0.0)
    special = tokenizer.convert_ids_to_tokens(end)
    answers, texts = (
        [whole, cut, whole],
        [f"one {special} two", "one two\ufffd", "one two three four five six"],
    )
    said = spoken(student, teacher, answers, texts)
    assert said == [texts[0], "one two", texts[2]]
    first, second, third = encoded(student, answers, said, most=30)
    assert first[-1] == end and end not in first[:-1]
    assert tokenizer.decode(first[:-1]) == texts[0]
    assert tokenizer.decode(second) == "one two" and end not in second
    assert encoded(student, [whole], said[2:], most=4) == [third[:4]] and end not in third[:4]


BLANK_BEFORE = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' + m.content + ' [/INST]' }}"
    "{%- else %}{{- ' ' + m.content|trim + eos_token }}{%- endif %}{%- endfor %}"
)


def test_white_space_that_a_template_writes_is_not_the_answer_s():
    """Mistral's template: every answer begins with a blank, and ends without what is blank at its end."""
    student, teacher = speakers()
    teacher.tokenizer.chat_template = BLANK_BEFORE
    teacher = Speaker(teacher.tokenizer, tiny.chat_of(teacher.tokenizer))
    rows, tally = made(student, teacher, ["The river falls over 201 stones.", "A stone. "])
    assert tally.unaligned == [] and tally.spans > 4
    for row, core in zip(rows, ("The river falls over 201 stones.", "A stone."), strict=True):
        for side in ("student_widths", "teacher_widths"):
            assert sum(max(width, 0) for width in row[side]) == len(core)
        spans = np.array(row["spans"]).reshape(-1, 4)
        taken = np.maximum(row["student_widths"], 0), np.maximum(row["teacher_widths"], 0)
        for s0, s1, t0, t1 in spans:
            assert taken[0][s0:s1].sum() == taken[1][t0:t1].sum()
    assert spoken(student, teacher, [Answer([5, 2], False, 0.0)], [" A stone."]) == ["A stone."]
    assert spoken(teacher, student, [Answer([5, 2], False, 0.0)], ["A stone."]) == [" A stone."]


def test_the_end_of_an_answer_is_the_template_s():
    """And not the lowest of the tokens that may end one, as <|endoftext|> of generation_config.json."""
    student, teacher = speakers()
    tokenizer, own = student.tokenizer, student.tokenizer.eos_token_id
    chat = chats.settle(Settings(), tokenizer, tokenizer, {0, own})
    assert chat.end_ids == (0, own) and chats.answer_end(tokenizer, chat) == own
    (said,) = encoded(Speaker(tokenizer, chat), [Answer([5, own], False, 0.0)], ["The river."], 50)
    assert said[-1] == own
    table = common_tokens(spelling(tokenizer), spelling(teacher.tokenizer), (own, 2))
    assert (own, 2) in set(zip(*map(list, table), strict=True))


def test_runs_of_blanks_that_are_added_tokens_spell_blanks():
    """As in Gemma's vocabulary, where they are added tokens, written as its pieces are."""
    _, teacher = speakers()
    state = json.loads(teacher.tokenizer.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    known = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for number, piece in enumerate(("\u2581\u2581", "\u2581\u2581\u2581\u2581"), start=len(vocab)):
        vocab[piece] = number
        state["added_tokens"].append({"id": number, "content": piece, **known})
    blanks = [["\u2581", "\u2581"], ["\u2581\u2581", "\u2581\u2581"]]
    state["model"]["merges"] = blanks + state["model"]["merges"]
    state["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    gemma = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="</s>")
    for text in ("the river:\n    stone", "a  b"):
        ids = gemma(text, add_special_tokens=False)["input_ids"]
        assert max(ids) >= len(vocab) - 2, "a run of blanks is one token"
        assert widths(spelling(gemma), ids, text).sum() == len(text)


TWO_TURNS = Conversation(
    [
        {"role": "user", "content": "Question one"},
        {"role": "assistant", "content": "Answer one"},
        {"role": "user", "content": "Question two"},
        {"role": "assistant", "content": "Answer two"},
    ],
    learned=[1, 3],
)
# Qwen3's: an empty block of reasoning before the last answer alone, so that each turn is a row of its own.
EMPTY_THOUGHT = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{%- endif %}"
)


def rows_of(student: Speaker, found: Conversation) -> list[dict]:
    return [
        {"row": 0, "row_hash": sha256_json([ids, mask]), "input_ids": ids, "response_mask": mask}
        | {"prompt": found.prompt, "response": found.response}
        for ids, mask in encode(student.tokenizer, student.chat, found)
    ]


def byte_level_teacher() -> Speaker:
    corpus = [text for row in tiny.rows(200, seed=1) for text in row.values()]
    tokenizer = tiny.tokenizer(corpus, 320)
    return Speaker(tokenizer, tiny.chat_of(tokenizer))


def test_each_row_of_a_conversation_is_put_to_the_teacher_as_itself():
    """A template that makes a row of each turn: the teacher is asked the question of that row."""
    corpus = [text for row in tiny.rows(200, seed=1) for text in row.values()]
    tokenizer, teacher = tiny.tokenizer(corpus), byte_level_teacher()
    tokenizer.chat_template = EMPTY_THOUGHT
    student, tally = Speaker(tokenizer, chats.settle(Settings(), tokenizer, tokenizer, {2})), Tally()
    ours = rows_of(student, TWO_TURNS)
    assert len(ours) == 2
    theirs = list(aligned(iter([(row, TWO_TURNS) for row in ours]), student, teacher, tally))
    assert tally.unaligned == [] and all(len(row["spans"]) for row in theirs)
    asked = prompts(EncodedRows.of(*([row[key] for row in theirs] for key in ("input_ids", "response_mask"))))
    for prompt, question in zip(asked, ("one", "two"), strict=True):
        assert teacher.tokenizer.decode(prompt).rstrip().endswith("<|im_start|>assistant")
        assert f"Question {question}<|im_end|>" in teacher.tokenizer.decode(prompt)[-60:]


def test_a_row_that_lost_its_last_turn_is_put_to_the_teacher_as_it_is():
    student, teacher, tally = speakers()[0], byte_level_teacher(), Tally()
    (row,) = rows_of(student, TWO_TURNS)
    size = row["input_ids"].index(student.chat.end_ids[0], row["response_mask"].index(1)) + 1
    cut = row | {key: row[key][:size] for key in ("input_ids", "response_mask")}
    (theirs,) = aligned(iter([(cut, TWO_TURNS)]), student, teacher, tally)
    assert tally.unaligned == [] and "Question two" not in teacher.tokenizer.decode(theirs["input_ids"])


def test_of_several_turns_a_teacher_may_know_the_last_alone():
    """SentencePiece's blank before each text: what it is asked is not what stood in its row before."""
    student, teacher = speakers()
    tally, (row,) = Tally(), rows_of(student, TWO_TURNS)
    assert len(encode(teacher.tokenizer, teacher.chat, TWO_TURNS)) == 2
    (theirs,) = aligned(iter([(row, TWO_TURNS)]), student, teacher, tally)
    spans = np.array(theirs["spans"]).reshape(-1, 4)
    assert tally.unaligned == [] and len(spans) > 1
    assert (
        spans[0, 0]
        == sum(row["response_mask"]) - len(learned_runs(row["input_ids"], row["response_mask"])[-1])
        > 0
    )
    assert spans[-1, 1] == sum(row["response_mask"]) and spans[0, 2] == 0


def test_an_end_that_is_no_special_token_says_nothing():
    student, teacher = speakers()
    state = json.loads(student.tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] != "<|im_end|>" and token["special"]
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>"
    )
    plain.chat_template = student.tokenizer.chat_template
    rows, tally = made(Speaker(plain, student.chat), teacher, ["The river falls.", "A stone."])
    assert tally.unaligned == [] and all(row["student_widths"][-1] == -1 for row in rows)


def with_unread(run, folder, unread: list[int]) -> None:
    """The teacher's training rows, some of which it does not read, into `folder`."""
    rows = run.results / "teacher" / "rows"
    table = pq.read_table(rows / "train.parquet").to_pylist()
    for number in unread:
        table[number] |= {"input_ids": [0], "response_mask": [0]}
    pq.write_table(pa.Table.from_pylist(table, ALIGNED), folder / "train.parquet")
    manifest = json.loads((rows / "manifest.json").read_text())
    manifest["report"]["unaligned"]["train"] = [
        {"row": table[number]["row"], "reason": "no system prompt"} for number in unread
    ]
    manifest["files"] = hash_files(folder, [folder / "train.parquet"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_step_of_rows_that_the_teacher_cannot_read_changes_nothing(run, tmp_path):
    with_unread(run, tmp_path, [0, 1, 2, 3])
    (teacher,) = run.folder.glob("resources/models/teacher-*/model")
    short = {"dtype": "float32", "batch_size": 1, "gradient_accumulation": 1, "lora_rank": 2}
    run.script(
        *("sft", "--config", json.dumps(short), "--train", tmp_path / "train.parquet"),
        *(
            "--model",
            teacher,
            "--chat",
            run.results / "teacher" / "rows" / "chat.json",
        ),
        *("--output", tmp_path / "out" / "model", "--log", tmp_path / "out" / "log"),
        *("--manifest", tmp_path / "out" / "manifest.json"),
    )
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log").read_text().splitlines()]
    assert all(map(math.isfinite, losses)) and losses.count(0.0) in (4, 8, 12)


def test_a_row_that_the_teacher_cannot_read_has_no_answer(run, tmp_path):
    with_unread(run, tmp_path, [3])
    with pytest.raises(UserError, match=r"^1 training rows .* row 3: no system prompt$"):
        sampled(run.results / "teacher" / "model", tmp_path / "train.parquet", None, None, "float32", 0)


def test_rows_of_another_run_are_refused(run):
    """The teacher's rows are of the student's, and a cache is of the teacher's rows."""
    from kdag.data.rows import read_rows
    from kdag.files.manifest import SUBSET, read_manifest

    data = run.results / "data"
    frame, given = read_rows(data / "train.parquet"), read_manifest(data / "manifest.json", SUBSET)
    rows, cache = run.results / "teacher" / "rows" / "train.parquet", run.results / "cache" / "manifest.json"
    teacher = AlignedTeacher(rows, cache, "train", frame, given)
    assert teacher.weights > 0 and len(teacher.row(0)["spans"]) > 1
    with pytest.raises(UserError, match="is not of the rows of this run"):
        AlignedTeacher(rows, cache, "train", frame.iloc[:5], given)


def test_likelihood_is_compared_on_the_rows_that_both_read(run):
    measured = json.loads((run.results / "eval" / "uld-seed0" / "fidelity.json").read_text())
    assert measured["undefined_rows"] == 0 and 0 < measured["teacher_nats_per_byte"] < 10
    table = (run.results / "report" / "table.md").read_text()
    assert f"({measured['bytes']} bytes of 8 rows)" in table
