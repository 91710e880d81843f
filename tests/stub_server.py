"""A server of a tiny model, with real logits, that speaks as vLLM, SGLang and plain OpenAI servers do.

    with Stub(folder) as stub:                 stub.url is .../v1
        stub.before = lambda path, number: ... a number: HTTP status; "die": no answer; seconds: wait first
        stub.change = lambda path, answer: ... another answer

number counts the requests from 1. The model's vocabulary is cut to the tokenizer's, as everywhere here.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "tiny/teacher"


class Stub:
    def __init__(self, folder: Path, name: str = NAME, key: str | None = None):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.name, self.key, self.requests = name, key, []
        self.before = self.change = lambda *_: None
        self.penalty = 1.0  # on tokens that are there, unless a request says otherwise
        self.lock = threading.Lock()

    def __enter__(self):
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):  # noqa: N802, http.server's name
                self.answer(None)

            def do_POST(self):  # noqa: N802
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body):
                with stub.lock:
                    stub.requests.append((self.path, body))
                    fault = stub.before(self.path, len(stub.requests))
                if stub.key and self.headers.get("Authorization") != f"Bearer {stub.key}":
                    return self.send(401, {"error": f"wrong key: {self.headers.get('Authorization')}"})
                if fault == "die":
                    return self.connection.close()
                if isinstance(fault, float):
                    time.sleep(fault)
                elif fault:
                    return self.send(fault, {"error": {"message": f"fault {fault}"}}, {"Retry-After": "0"})
                with stub.lock:
                    found = stub.reply(self.path, body)
                changed = stub.change(self.path, found)
                return self.send(200, found if changed is None else changed)

            def send(self, code, value, headers=None):
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                try:
                    self.send_response(code)
                    for name, text in {**(headers or {}), "Content-Length": str(len(content))}.items():
                        self.send_header(name, text)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # who asked has gone
                    pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    # --- what the servers answer --------------------------------------------------------------------------

    def reply(self, path: str, body: dict | None) -> dict:
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": self.name, "max_model_len": 4096}]}
        if path == "/generate":
            return self.sglang(body)
        ids = self.ids(body["prompt"])
        penalty = body.get("repetition_penalty", body.get("repeat_penalty", self.penalty))
        said, reason = self.continued(ids, body["max_tokens"], body.get("stop_token_ids", [2]), penalty)
        choice = {"index": 0, "text": self.tokenizer.decode(said, skip_special_tokens=True)}
        choice |= {"finish_reason": reason, "logprobs": None}
        if body.get("return_token_ids"):
            choice |= {"token_ids": said, "prompt_token_ids": ids}
        if (k := body.get("prompt_logprobs")) is not None:
            choice["prompt_logprobs"] = [None] + [
                {
                    str(name): {"logprob": value, "rank": rank + 1, "decoded_token": "x"}
                    for rank, (value, name) in enumerate([*best, own])
                }
                for best, own in self.scored(ids, k)
            ]
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(said)}
        return {"id": "1", "model": self.name, "choices": [choice], "usage": usage}

    def sglang(self, body: dict) -> dict:
        ids = body.get("input_ids") or self.ids(body["text"])
        sampling = body["sampling_params"]
        ends, penalty = sampling.get("stop_token_ids", [2]), sampling.get("repetition_penalty", self.penalty)
        said, reason = self.continued(ids, sampling["max_new_tokens"], ends, penalty)
        meta = {"prompt_tokens": len(ids), "finish_reason": {"type": reason}}
        if body.get("return_logprob"):
            scored = self.scored(ids, body.get("top_logprobs_num", 0))
            meta["input_token_logprobs"] = [[None, ids[0], None]] + [[*own, None] for _, own in scored]
            meta["input_top_logprobs"] = [None] + [[[*one, None] for one in best] for best, _ in scored]
        return {"text": self.tokenizer.decode(said), "output_ids": said, "meta_info": meta}

    def ids(self, prompt) -> list[int]:
        return prompt if isinstance(prompt, list) else self.tokenizer(prompt)["input_ids"]

    @torch.no_grad()
    def logp(self, ids: list[int]) -> torch.Tensor:
        logits = self.model(torch.tensor([ids])).logits[0, :, : len(self.tokenizer)]
        return logits.log_softmax(-1)

    def scored(self, ids: list[int], k: int) -> list[tuple[list, tuple]]:
        """For each token but the first: ((log-prob, token) of the k likeliest, of the one that is there)."""
        logp = self.logp(ids)[:-1]
        top = logp.topk(k, dim=-1)
        return [
            (list(zip(values, names, strict=True)), (row[token].item(), token))
            for values, names, row, token in zip(
                top.values.tolist(), top.indices.tolist(), logp, ids[1:], strict=True
            )
        ]

    def continued(self, ids: list[int], count: int, ends: list[int], penalty: float) -> tuple[list, str]:
        said = []
        while len(said) < count:
            logp = self.logp([*ids, *said])[-1]
            logp[list({*ids, *said})] *= penalty
            said.append(logp.argmax().item())
            if said[-1] in ends:
                return said, "stop"
        return said, "length"
