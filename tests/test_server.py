"""A teacher behind a server: what it answers is checked, kept and asked once, whatever the server does."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import yaml
from conftest import ROOT, Project
from stub_server import NAME, Stub

from kdag.config.load import load_config
from kdag.config.roster import compared_ids, model_ids, trained_ids
from kdag.config.stages import canonical, stage_params
from kdag.files.hashes import canonical_json
from kdag.job.errors import UserError
from kdag.teacher import asking, topk
from kdag.teacher.server import APIS, Client

K = 12
KEY = "sk-verysecretindeed"


@pytest.fixture(scope="module")
def stub(tiny_models):
    with Stub(tiny_models / "teacher") as made:
        yield made


@pytest.fixture(autouse=True)
def behaves(request):
    if "stub" in request.fixturenames:
        made = request.getfixturevalue("stub")
        made.before = made.change = lambda *_: None
        made.requests.clear()


@pytest.fixture(scope="module")
def rows(tiny_models, tmp_path_factory):
    from kdag.data.rows import read_rows
    from kdag.models import load

    folder = tmp_path_factory.mktemp("rows")
    tiny.encoded(
        tiny.rows(8), load.load_tokenizer(tiny_models / "student"), folder, train_rows=6, heldout_rows=2
    )
    return read_rows(folder / "train.parquet")


def server_of(stub, api="vllm", **reached):
    reached = {"timeout": 20, "retries": 2, **reached}
    return APIS[api](Client(stub.url, **reached), NAME, stub.tokenizer)


@pytest.fixture
def no_waiting(monkeypatch):
    """Retries without their pauses."""
    monkeypatch.setattr("kdag.teacher.server.LONGEST_WAIT", 0)


def scored(stub, rows, folder, api="vllm", parallel=1, **reached):
    manifest = folder / "teacher.json"
    manifest.write_text("{}")
    journal = asking.Journal(folder / ".asked.jsonl")
    server, vocabulary = server_of(stub, api, **reached), len(stub.tokenizer)
    return topk.scores(
        server, manifest, rows, K, vocabulary, journal, parallel=parallel, unit="rows of train"
    )


# --- what it says is what the model says -------------------------------------------------------------------


@pytest.mark.parametrize("api", ["vllm", "sglang"])
@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
def test_stored_rows_are_those_of_the_model_itself(stub, rows, tmp_path, api, tail):
    from kdag.teacher.storage import SCHEMES, encode_topk

    values = scored(stub, rows, tmp_path, api, parallel=3)
    vocabulary = len(stub.tokenizer)
    for index, value in enumerate(values):
        found = topk.stored(value, K, vocabulary, tail)
        ids, targets = (rows.value(name, index) for name in ("input_ids", "targets"))
        logp = stub.logp(ids.tolist())[torch.from_numpy(targets != -100)]
        # Log-probs are logits: with a head that is the identity, they are the hidden states.
        exact = encode_topk(logp, torch.eye(vocabulary), k=K, tail=tail)
        assert set(found) == set(exact)
        assert torch.equal(found["ids"], exact["ids"])
        assert (found["logp"].float() - exact["logp"].float()).abs().max() < 2e-2  # float16
        head = torch.zeros(vocabulary, 1)
        ours, theirs = (SCHEMES["topk"].logits(known, head).softmax(-1) for known in (found, exact))
        assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("api", "penalty"), [("vllm", 3.0), ("sglang", 3.0), ("llamacpp", 3.0), ("openai", 1.0)]
)
def test_answers_are_greedy_and_end_as_ours_do(stub, rows, tiny_models, monkeypatch, api, penalty):
    """Whatever the server does by default; only the plain standard has no field to switch it off."""
    from kdag.data.rows import prompts
    from kdag.models.decoding import decode_greedily, load_model

    model, _ = load_model(tiny_models / "teacher", "float32")
    given = prompts(rows)[:3]
    ours, cut_off = decode_greedily(
        model, given, vocabulary=len(stub.tokenizer), eos_ids=[2], repetition_penalty=1.0, max_new_tokens=9
    )
    monkeypatch.setattr(stub, "penalty", penalty)
    server = server_of(stub, api)
    for prompt, ids, cut in zip(given, ours, cut_off, strict=True):
        said = server.answer(prompt, {"temperature": 0, "max_new_tokens": 9}, (2,))
        assert said.cut_off == cut
        expected = [*ids, *([] if cut else [2])]
        if api in ("openai", "llamacpp"):  # a text may be cut into other tokens, and broken characters go
            text = stub.tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
            expected = [*stub.tokenizer(text)["input_ids"][:9], *([] if cut else [2])]
        assert said.ids == expected


# --- bad answers are refused in one line -------------------------------------------------------------------


def entries(answer):
    """The log-probs of vLLM's answer at position 40, which every row has and which is an answer's."""
    return answer["choices"][0]["prompt_logprobs"][-2]


def first_of(found):
    return next(iter(found.values()))


def with_value(value):
    def change(path, answer):
        if "completions" in path:
            first_of(entries(answer))["logprob"] = value

    return change


def fewer(path, answer):
    if "completions" in path:
        found = entries(answer)
        del found[next(iter(found))], found[next(iter(found))], found[next(iter(found))]


def other_length(path, answer):
    if "completions" in path:
        answer["choices"][0]["prompt_logprobs"].pop()


def other_model(path, answer):
    if "completions" in path:
        answer["model"] = "tiny/other"


def no_scores(path, answer):
    if "completions" in path:
        answer["choices"][0].pop("prompt_logprobs")


def too_much(path, answer):
    if "completions" in path:
        for entry in entries(answer).values():
            entry["logprob"] = -0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value(math.nan), "a log-probability is nan"),
        (with_value(-math.inf), "a log-probability is -inf"),
        (with_value(math.inf), "a log-probability is inf"),
        (with_value(0.5), "a log-probability is 0.5, above 0"),
        (with_value("no"), "the log-probabilities at position .* have another form"),
        (too_much, "the probabilities at a position add up to"),
        (fewer, "log-probabilities at a position, 12 were asked for"),
        (other_length, "positions have log-probabilities, .* were sent"),
        (other_model, "the model 'tiny/other' answered, 'tiny/teacher' was asked"),
        (no_scores, "gives no log-probabilities"),
        (lambda path, answer: {"choices": [], "model": NAME}, "one choice was asked for"),
    ],
)
def test_bad_scores_are_refused_and_named(stub, rows, tmp_path, change, message):
    stub.change = change
    with pytest.raises(UserError, match=message) as refused:
        scored(stub, rows, tmp_path)
    assert len(str(refused.value).splitlines()) == 1
    assert "rows of train, number 1" in str(refused.value)
    assert len(stub.requests) == 1, "what is wrong once is wrong again"


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_scores_of_other_tokens_than_were_sent_are_refused(stub, rows, tmp_path, api):
    def swapped(path, answer):
        if api == "sglang":
            answer["meta_info"]["input_token_logprobs"][5][1] += 1
        else:
            found = answer["choices"][0]["prompt_logprobs"]
            own = str(stub.requests[-1][1]["prompt"][5])
            found[5] = {k: v for k, v in found[5].items() if k != own}

    stub.change = swapped
    with pytest.raises(UserError, match="answered other tokens than were sent.*position 5"):
        scored(stub, rows, tmp_path, api)


def test_a_padded_head_s_tokens_are_none():
    """Their mass goes to the others in proportion, and the last one stands twice."""
    ids, logp = topk.likeliest([(9, math.log(0.5)), (3, math.log(0.3)), (4, math.log(0.1))], 3, 8)
    assert ids == [3, 4, 4] and np.allclose(np.exp(logp), [0.6, 0.2, 0.2])
    value = topk.packed([[(9, math.log(0.5)), (3, math.log(0.3)), (4, math.log(0.1))]], 3, 8)
    tail = topk.stored(value, 3, 8, "bucket")["tail"]
    assert torch.allclose(tail.exp(), torch.tensor([0.2 / 6]), atol=1e-6)


# --- a server that fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [429, 503, "die"])
def test_a_fault_that_passes_is_asked_again(stub, rows, tmp_path, no_waiting, fault):
    stub.before = lambda path, number: fault if number in (2, 3, 5) else None
    values = scored(stub, rows, tmp_path)
    assert len(values) == len(rows) and len(stub.requests) == len(rows) + 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (429, "HTTP 429: .*fault 429.*asked 3 times"),
        (500, "HTTP 500"),
        ("die", "disconnected without sending a response|reset by peer"),
        (400, "refuses with HTTP 400: .*fault 400"),
        (404, "does teacher.url end with /v1"),
    ],
)
def test_interrupted_asking_goes_on_with_what_was_answered(stub, rows, tmp_path, no_waiting, fault, message):
    stub.before = lambda path, number: fault if number > 3 else None
    with pytest.raises(UserError, match=message) as refused:
        scored(stub, rows, tmp_path)
    assert len(str(refused.value).splitlines()) == 1
    assert len((tmp_path / ".asked.jsonl").read_text().splitlines()) == 3
    stub.before = lambda *_: None
    stub.requests.clear()
    again = scored(stub, rows, tmp_path)
    assert len(stub.requests) == len(rows) - 3
    (tmp_path / "whole").mkdir()
    assert again == scored(stub, rows, tmp_path / "whole")


def test_a_stall_is_told_after_its_seconds(stub, rows, tmp_path, no_waiting):
    stub.before = lambda path, number: 3.0
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no answer within 1 seconds \(teacher.timeout\); asked 2 times"):
        scored(stub, rows, tmp_path, timeout=1, retries=1)
    assert time.monotonic() - start < 20


def test_nobody_there(tmp_path, rows, stub, no_waiting):
    away = SimpleNamespace(url="http://127.0.0.1:9/v1", tokenizer=stub.tokenizer)
    with pytest.raises(UserError, match=r"127.0.0.1:9.*refused.*asked 3 times. Is the server there"):
        scored(away, rows, tmp_path)


def test_text_that_is_no_json_is_asked_again(stub, rows, tmp_path, no_waiting):
    stub.change = lambda path, answer: b"<html>busy</html>" if len(stub.requests) < 2 else None
    assert len(scored(stub, rows, tmp_path)) == len(rows)
    assert len(stub.requests) == len(rows) + 1


def test_one_failure_stops_the_requests_next_to_it(stub, rows, tmp_path):
    """And no other waits out its own pauses."""
    stub.before = lambda path, number: 400 if number == 1 else 503
    start = time.monotonic()
    with pytest.raises(UserError, match="HTTP 400"):
        scored(stub, rows, tmp_path, parallel=4, retries=20)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("damage", ["torn", "flipped", "nonsense"])
def test_a_damaged_line_is_asked_again(stub, rows, tmp_path, damage):
    values = scored(stub, rows, tmp_path)
    journal = tmp_path / ".asked.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    bad = {
        "torn": lines[-1][:-20],
        "flipped": lines[-1].replace('"logp": "', '"logp": "A', 1),
        "nonsense": "{}\n",
    }
    journal.write_text("".join([*lines[:-1], bad[damage]]))
    stub.requests.clear()
    assert scored(stub, rows, tmp_path) == values
    assert len(stub.requests) == 1
    stub.requests.clear()
    assert scored(stub, rows, tmp_path) == values and not stub.requests


# --- meeting it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["vllm", "sglang", "llamacpp", "openai"])
def test_a_server_that_reads_as_we_do_is_met(stub, api):
    text = "The river runs.\n\n def f(x): 12 é"
    ids = stub.tokenizer(text)["input_ids"]
    assert server_of(stub, api).meet(text, ids) == {"id": NAME, "max_model_len": 4096}
    with pytest.raises(UserError, match="other tokens than were sent"):
        server_of(stub, api).meet(text, ids[:-1])


def test_a_model_of_another_name_is_refused(stub):
    other = APIS["vllm"](Client(stub.url), "tiny/other", stub.tokenizer)
    with pytest.raises(
        UserError, match=r"serves no model 'tiny/other' \(teacher.id\); it serves tiny/teacher"
    ):
        other.meet("a", [1])


def test_the_key_is_sent_and_never_told(tiny_models, tmp_path, monkeypatch):
    """The server itself repeats it in its error."""
    monkeypatch.setenv("TEACHER_WORD", KEY)
    with Stub(tiny_models / "teacher", key=KEY) as locked:
        assert Client(locked.url, key="TEACHER_WORD").call(f"{locked.url}/models")["data"]
        monkeypatch.setenv("TEACHER_WORD", KEY + "2")
        with pytest.raises(UserError, match="HTTP 401: .*Bearer .*teacher.key") as refused:
            Client(locked.url, key="TEACHER_WORD").call(f"{locked.url}/models")
        assert "***" in str(refused.value) and "verysecret" not in str(refused.value)
    monkeypatch.setenv("TEACHER_WORD", "with a\nline")
    with pytest.raises(UserError, match="TEACHER_WORD holds characters") as refused:
        Client(locked.url, key="TEACHER_WORD")
    assert "line" not in str(refused.value)
    monkeypatch.delenv("TEACHER_WORD")
    with pytest.raises(UserError, match="TEACHER_WORD is not set"):
        Client(locked.url, key="TEACHER_WORD")


# --- its configuration -------------------------------------------------------------------------------------


@pytest.fixture
def raw(tmp_path):
    for name in ("rows.jsonl", "prompts.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "teacher").mkdir()
    (tmp_path / "student").mkdir()
    return tiny.configuration(tmp_path)


def asked(raw, **teacher):
    return raw | {"teacher": {"source": "server", "id": NAME, **teacher}}


def scoring(raw, **teacher):
    raw = asked(raw, logprobs=True, **teacher)
    return raw | {"teacher_cache": {"store": "topk", "top_k": K, "rows_per_shard": 10}}


def test_without_a_server_no_job_sees_a_key_of_one(raw):
    config = load_config(raw)
    assert set(config.teacher.model_dump()) == {
        *("source", "id", "revision", "path", "package", "file", "online")
    }
    assert set(stage_params(config, "fetch_teacher")) == {
        *("source", "id", "revision", "path", "package", "file")
    }
    assert "timeout" not in canonical_json(canonical(config))


def test_how_a_server_is_reached_is_no_job_s_parameter(raw):
    near, far = (
        load_config(scoring(raw, url=url, **more))
        for url, more in (
            ("http://localhost:8000/v1", {}),
            ("https://elsewhere:9/v1", {"key": "MY_KEY", "timeout": 3, "retries": 1, "parallel": 2}),
        )
    )
    for stage in ("meet_teacher", "cache_teacher", "ask_prompts", "write_report", "write_cards"):
        assert canonical_json(stage_params(near, stage)) == canonical_json(stage_params(far, stage)), stage
    again = load_config(json.loads(json.dumps(canonical(near))))
    assert canonical(again) == canonical(near)
    other = load_config(scoring(raw, revision="second"))
    assert stage_params(near, "meet_teacher") != stage_params(other, "meet_teacher")


def test_rows_of_a_teacher_that_is_not_trained_here(raw):
    config = load_config(scoring(raw))
    assert "teacher-untrained" not in model_ids(config) and "teacher" in model_ids(config)
    assert "teacher" not in trained_ids(config) and compared_ids(config)
    raw["strategies"] = {"seqkd": {"method": "seqkd"}}
    assert not compared_ids(load_config(asked(raw)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "source server needs id"),
        ({"path": "x"}, "source server does not take path"),
        ({"online": True}, "online: true needs the teacher's weights"),
        ({"api": "openai"}, "logprobs: true needs api vllm or sglang"),
        ({"api": "llamacpp"}, "logprobs: true needs api vllm or sglang"),
        ({"logprobs": False}, "strategies.fkl.divergence: fkl needs the teacher's log-probabilities"),
        ({"url": "http://me:word@host/v1"}, "url: http://host:port/v1 is needed, without a password"),
        ({"url": "localhost:8000"}, "url: http://host:port/v1 is needed"),
        ({"key": "sk-123"}, "key: the name of an environment variable is needed, in capitals, not the key"),
        ({"key": "sk_abc123"}, "key: the name of an environment variable is needed"),
        ({"source": "path", "id": None, "path": "teacher"}, "source path does not take logprobs"),
    ],
)
def test_what_a_server_cannot_be_is_refused(raw, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        load_config(scoring(raw, **change) if "logprobs" not in change else asked(raw, **change))
    assert message in str(refused.value) and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("student", {"derive": {"from": "teacher", "keep_layers": 2}}, "student.derive: a teacher behind"),
        ("strategies", {"opd": {"answers": "student", "divergence": "rkl"}}, "a live teacher is needed"),
        ("teacher_cache", {"store": "hidden"}, "teacher_cache.store: a server gives log-probabilities"),
        ("teacher_cache", {"store": "topk", "shards": 2}, "teacher_cache.shards: one job asks"),
        ("chat", {"template": "teacher"}, "chat.template: teacher: a server does not say"),
        ("strategies", {"u": {"alignment": "uld"}}, "strategies.u.alignment: a teacher behind a server has"),
    ],
)
def test_what_needs_the_teacher_itself_is_refused(raw, key, value, message):
    with pytest.raises(UserError) as refused:
        load_config(scoring(raw) | {key: value})
    assert message in str(refused.value) and len(str(refused.value).splitlines()) == 1


# --- through the real Snakefile ----------------------------------------------------------------------------


def experiment(project, **changes):
    config = yaml.safe_load((project.folder / "config.yaml").read_text()) | changes
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return config


STRATEGIES = {"fkl": {"divergence": "fkl"}, "seqrkl": {"answers": "teacher", "divergence": "rkl"}}


def jobs(stderr: str) -> list[str]:
    return [
        line.split()[1].rstrip(":")
        for line in stderr.splitlines()
        if line.startswith(("rule ", "localrule "))
    ]


def test_end_to_end_with_log_probabilities(tmp_path, monkeypatch):
    """The server stops in the midst of the cache, the run goes on, the table is made, no one asks again."""
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    project = Project(tmp_path)
    with Stub(project.folder / "tiny" / "teacher", key=KEY) as stub:
        teacher = {
            "source": "server",
            "id": NAME,
            "url": stub.url,
            "logprobs": True,
            "key": "TEACHER_API_KEY",
        }
        cache = {"store": "topk", "top_k": K, "rows_per_shard": 10}
        experiment(
            project,
            teacher=teacher | {"retries": 0, "parallel": 2, "timeout": 60},
            teacher_cache=cache,
            strategies=STRATEGIES,
            sampling={"max_new_tokens": 6, "temperature": 0},
        )
        stub.before = lambda path, number: 503 if number > 12 else None
        failed = project.snakemake("--", "results/tiny/cache/manifest.json", check=False)
        assert failed.returncode and "HTTP 503" in failed.stderr and "goes on from there" in failed.stderr
        assert not (project.results / "cache" / "manifest.json").exists()
        kept = len((project.results / "cache" / ".asked.jsonl").read_text().splitlines())
        assert kept == 10  # of 12 requests two met it

        stub.before = lambda *_: None
        stub.requests.clear()
        project.snakemake("--", "results/tiny/cache/manifest.json")
        assert len(stub.requests) == 24 + 8 - kept
        assert not (project.results / "cache" / ".asked.jsonl").exists()

        project.snakemake()
        before = len(stub.requests)
        assert "Nothing to be done" in project.snakemake().stderr
        teacher["url"] = stub.url.replace("127.0.0.1", "localhost")
        experiment(project, teacher=teacher)
        assert "Nothing to be done" in project.snakemake().stderr
        assert len(stub.requests) == before

        # The stub's model is that of a local run, which answers the same.
        chat, prompts = project.results / "data" / "chat.json", project.results / "data" / "prompts.jsonl"
        settings = {"max_new_tokens": 12, "batch_size": 4, "repetition_penalty": 1.0, "dtype": "float32"}
        own = project.folder / "own"
        own.mkdir()
        project.script(
            *("generate", "--config", json.dumps(settings), "--model", project.folder / "tiny" / "teacher"),
            *("--chat", chat, "--prompts", prompts, "--output", own / "samples.jsonl"),
            *("--settings", own / "generation.json"),
        )
    assert (own / "samples.jsonl").read_text() == (
        project.results / "eval" / "teacher" / "samples.jsonl"
    ).read_text()

    table = (project.results / "report" / "table.md").read_text()
    labels = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:7]
    assert labels == [
        "teacher",
        "student, untrained",
        "student - sft",
        *(f"student - {s}" for s in STRATEGIES),
    ]
    assert "`tiny/teacher`, is behind a server (vllm) and was not fine-tuned here" in table
    assert "Held-out fidelity to the teacher" in table and "fine-tuned teacher" not in table
    fidelity = json.loads((project.results / "eval" / "fkl-seed0" / "fidelity.json").read_text())
    untrained = json.loads((project.results / "eval" / "student-untrained" / "fidelity.json").read_text())
    assert fidelity["forward_kl"] < untrained["forward_kl"]
    page = (project.results / "report" / "index.html").read_text()
    assert "is behind a server (vllm)" in page
    card = (project.results / "students" / "fkl" / "seed0" / "README.md").read_text()
    assert "`teacher` behind a server" in card or "`tiny/teacher` behind a server" in card
    told = [
        file
        for file in (*project.folder.rglob("*"),)
        if file.is_file() and file.suffix != ".safetensors" and KEY.encode() in file.read_bytes()
    ]
    assert not told


def test_end_to_end_with_text_only(tmp_path):
    project = Project(tmp_path)
    with Stub(project.folder / "tiny" / "teacher") as stub:
        experiment(
            project,
            teacher={"source": "server", "id": NAME, "url": stub.url, "api": "openai"},
            strategies={"seqkd": {"method": "seqkd"}},
            sampling={"max_new_tokens": 6},
            teacher_cache={},
        )
        done = project.snakemake()
        assert "Nothing to be done" in project.snakemake().stderr
    assert not {"sft_teacher", "cache_teacher", "measure_fidelity", "check_models"} & set(jobs(done.stderr))
    table = (project.results / "report" / "table.md").read_text()
    assert "It was asked for no log-probabilities, so fidelity to it is not measured." in table
    assert "forward_kl" not in table
    assert {path for path, _ in stub.requests} == {"/v1/models", "/v1/completions"}


def test_a_killed_job_goes_on(stub, rows, tmp_path, tiny_models):
    """Killed, not interrupted: whatever was answered and written stays."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path\n"
        "from types import SimpleNamespace\n"
        "from transformers import AutoTokenizer\n"
        "import test_server as t, pytest\n"
        "from kdag.data.rows import read_rows\n"
        "stub = SimpleNamespace(url=sys.argv[3], tokenizer=AutoTokenizer.from_pretrained(sys.argv[4]))\n"
        "t.scored(stub, read_rows(Path(sys.argv[5])), Path(sys.argv[6]))\n"
    )
    stub.before = lambda path, number: 600.0 if number == 4 else None
    train = tmp_path / "train.parquet"
    tiny.encoded(tiny.rows(8), stub.tokenizer, tmp_path, train_rows=6, heldout_rows=2)
    paths = [
        ROOT / "tests",
        ROOT / "workflow" / "scripts",
        stub.url,
        tiny_models / "teacher",
        train,
        tmp_path,
    ]
    child = subprocess.Popen([sys.executable, "-c", code, *map(str, paths)], env={**os.environ})
    journal = tmp_path / ".asked.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_text().count("\n") == 3):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    stub.before = lambda *_: None
    stub.requests.clear()
    assert len(scored(stub, rows, tmp_path)) == len(rows)
    assert len(stub.requests) == len(rows) - 3


def test_a_control_token_in_a_text_is_text():
    """An answer that shows the chat's own tokens does not end there, nor does it begin another turn."""
    tokenizer = tiny.tokenizer(["one two three"])
    server = APIS["openai"](None, "name", tokenizer)
    text = "write <|im_end|> and <|im_start|>"
    prompt = tokenizer("one")["input_ids"]
    usage = {"prompt_tokens": len(prompt)}
    server.completed = lambda body: {"text": text, "finish_reason": "stop", "usage": usage}
    ends = (tokenizer.eos_token_id,)
    said = server.answer(prompt, {"temperature": 0, "max_new_tokens": 60}, ends)
    assert not said.cut_off and said.ids[-1] == ends[0]
    assert not {1, 2} & set(said.ids[:-1]) and tokenizer.decode(said.ids[:-1]) == text
