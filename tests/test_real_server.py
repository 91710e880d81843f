"""A teacher behind a server that nobody here wrote: `transformers serve`, over its own /v1/completions."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import tiny
from test_server import rows  # noqa: F401, a fixture

from kdag.data.rows import prompts
from kdag.job.errors import UserError
from kdag.models.decoding import decode_greedily, load_model
from kdag.teacher.server import APIS, Client

END = 2  # <|im_end|>


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(its address, its name of the model, which is the folder). The model's head has no row too many, which
    it would say and we would not."""
    folder = tmp_path_factory.mktemp("served")
    tiny.save_models_of_two_tokenizers(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model, cache = str(folder / "student"), folder / "hub"
    cache.mkdir()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_CACHE": str(cache)}
        )
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and job.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
        else:
            pytest.fail((folder / "log").read_text()[-3000:])
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        job.kill()
        job.wait()


def test_its_answers_are_those_of_the_model(served, rows):  # noqa: F811
    address, name = served
    model, tokenizer = load_model(Path(name), "float32")
    given = prompts(rows)[:4]
    ours, cut_off = decode_greedily(
        model, given, vocabulary=len(tokenizer), eos_ids=[END], repetition_penalty=1.0, max_new_tokens=9
    )
    server = APIS["openai"](Client(address), name, tokenizer)
    for prompt, ids, cut in zip(given, ours, cut_off, strict=True):
        said = server.answer(prompt, {"temperature": 0, "max_new_tokens": 9}, (END,))
        assert said.cut_off == cut
        # A text may be cut into other tokens, and broken characters go.
        text = tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")
        assert said.ids == [*tokenizer(text)["input_ids"][:9], *([] if cut else [END])]


def test_a_model_that_it_does_not_serve_is_refused_by_name(served):
    address, name = served
    _, tokenizer = load_model(Path(name), "float32")
    server = APIS["openai"](Client(address), "another", tokenizer)
    with pytest.raises(UserError, match="serves no model 'another'"):
        server.meet("one two", tokenizer("one two")["input_ids"])
