"""A teacher behind an HTTP server: vLLM, SGLang, llama.cpp, or any that has OpenAI's /v1/completions.

    server.answer(prompt, sampling, ends)    what it says to a prompt
    server.scores(ids, k)                    its k likeliest tokens at each position of a text, with log-probs
    server.meet(text, ids)                   is it there, under this name, and does it read a text as we do?

Tokens go by their ids wherever the server takes them, since a text may be cut into tokens in several ways. A
request that gets no answer, or 429 or 5xx, is sent again, `retries` times, after 1, 2, 4, ... seconds; what
else is wrong is refused. The key is in a header and nowhere else: not in an address, a log or an error.

Servers without log-probs of a prompt by token id are asked for text only: llama.cpp's own gives those of
generated tokens only (https://github.com/ggml-org/llama.cpp/issues/27174), and llama-cpp-python's names a
token by its text, leaves out every token that is the one for the beginning of a text, and is a position off
if there is none (llama_cpp/llama.py of 0.3.36, `echo`).
"""

import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from kdag.data.template import text_tokens
from kdag.job.errors import UserError

AGAIN = (408, 425, 429)  # besides 5xx
LONGEST_WAIT = 60  # seconds between two attempts, whatever the server asks for
SHOWN = 300  # characters of what a server says in an error


class RefusedError(UserError):
    """The server's answer is not what was asked for."""


@dataclass(frozen=True)
class Answer:
    """Tokens, the one that ended it included; cut_off: none did, there were too many."""

    ids: list[int]
    cut_off: bool


class StoppedError(Exception):
    """Another request has failed; this one is not sent again."""


class Client:
    """JSON over HTTP with retries. `stop`: set, nobody waits any longer."""

    def __init__(self, url: str, *, key: str = "", timeout: int = 600, retries: int = 5):
        """key: the name of the environment variable that holds the API key; "": none."""
        self.url, self.retries, self.timeout = url.rstrip("/"), retries, timeout
        self.root = self.url.removesuffix("/v1")
        self.stop = threading.Event()
        self.secret = secret_of(key)
        headers = {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
        self.http = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=min(timeout, 30)))

    def call(self, address: str, body: dict | None = None) -> dict:
        """What the server answers to `body`, or to GET, as an object. UserError says why it does not."""
        method = "GET" if body is None else "POST"
        for attempt in range(self.retries + 1):
            wait = 2**attempt
            try:
                response = self.http.request(method, address, json=body)
            except httpx.TimeoutException:
                problem = f"no answer within {self.timeout} seconds (teacher.timeout)"
            except httpx.TransportError as error:
                problem = self.told(str(error) or type(error).__name__)
            else:
                problem, asked = self.problem(response)
                wait = wait if asked is None else asked
                if problem is None:
                    return response.json()
            if attempt < self.retries and self.stop.wait(min(wait, LONGEST_WAIT)):
                raise StoppedError
        raise UserError(
            f"{address}: {problem}; asked {self.retries + 1} times. Is the server there (teacher.url)? What "
            "was answered is kept: the same command goes on from there"
        )

    def problem(self, response: httpx.Response) -> tuple[str | None, float | None]:
        """(what is wrong and may be right the next time, seconds to wait if the server says so); UserError
        for what will stay wrong."""
        code = response.status_code
        if code in AGAIN or code >= 500:
            return f"HTTP {code}: {self.told(response.text)}", retry_after(response)
        if code != 200:
            hint = {401: "; teacher.key names the environment variable with its API key"}
            hint |= {403: hint[401], 404: "; does teacher.url end with /v1, and is teacher.api right?"}
            raise UserError(
                f"{response.url} refuses with HTTP {code}: {self.told(response.text)}{hint.get(code, '')}"
            )
        try:
            whole = isinstance(response.json(), dict)
        except ValueError:
            whole = False
        return (None, None) if whole else (f"no JSON object: {self.told(response.text)}", None)

    def told(self, text: str) -> str:
        """The beginning of what somebody said, in one line and without the key."""
        text = text.replace(self.secret, "***") if self.secret else text
        return " ".join(text.split())[:SHOWN]


def secret_of(key: str) -> str:
    """The API key in the environment variable `key`; UserError, without it, if it is none."""
    if not key:
        return ""
    found = os.environ.get(key, "").strip()
    if not found:
        raise UserError(
            f"teacher.key: the environment variable {key} is not set; export it where snakemake runs"
        )
    if not found.isascii() or not found.isprintable() or " " in found:
        raise UserError(f"teacher.key: the environment variable {key} holds characters that no API key has")
    return found


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of the header Retry-After, a number or a date; None without one."""
    said = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


class Server:
    """What all of them share: the name of the model, and /v1/models."""

    def __init__(self, client: Client, model: str, tokenizer):
        self.client, self.model, self.tokenizer = client, model, tokenizer

    def meet(self, text: str, ids: list[int]) -> dict:
        """Its {id, max_model_len or None}. UserError unless it knows the model and reads `text` as `ids`."""
        listed = self.client.call(f"{self.client.url}/models").get("data")
        known = {each.get("id"): each for each in listed or () if isinstance(each, dict)}
        if self.model not in known:
            named = self.client.told(", ".join(map(str, known)) or "none")
            raise RefusedError(
                f"{self.client.url} serves no model {self.model!r} (teacher.id); it serves {named}"
            )
        self.check_reading(text, ids)
        longest = known[self.model].get("max_model_len")
        return {"id": self.model, "max_model_len": longest if isinstance(longest, int) else None}

    def completed(self, body: dict) -> dict:
        """The one choice of /v1/completions; its model must be the one that was asked."""
        answer = self.client.call(f"{self.client.url}/completions", {"model": self.model, **body})
        if str(answer.get("model", self.model)).split("@")[0] != self.model.split("@")[0]:  # name@revision
            said = self.client.told(str(answer["model"]))
            raise RefusedError(f"{self.client.url}: the model {said!r} answered, {self.model!r} was asked")
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise RefusedError(f"{self.client.url}: one choice was asked for; its answer has another form")
        return {"usage": answer.get("usage") or {}, **choices[0]}

    def other_tokens(self, what: str) -> RefusedError:
        return RefusedError(
            f"{self.client.url}: {self.model} answered other tokens than were sent: {what}. Its tokenizer "
            "has to be the student's"
        )

    def ended(self, ids, reason, ends: tuple[int, ...]) -> Answer:
        """ids: as the server gave them; reason: why it stopped; ends: the tokens that may end an answer."""
        size = len(self.tokenizer)
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < size for i in ids):
            raise RefusedError(f"{self.client.url}: its answer is no list of ids of the student's tokenizer")
        if reason not in ("stop", "length"):
            raise RefusedError(f"{self.client.url}: an answer stopped for {self.client.told(str(reason))!r}")
        if reason == "stop" and not (ids and ids[-1] in ends):
            own = self.tokenizer.eos_token_id
            ids = [*ids, own if own in ends else ends[0]]
        if not ids:
            raise RefusedError(f"{self.client.url}: an answer of no token")
        return Answer(ids, reason == "length")


class Vllm(Server):
    """https://docs.vllm.ai/en/stable/serving/openai_compatible_server: prompts by ids, `prompt_logprobs`.

    choices[0].prompt_logprobs is [null, {"<id>": {"logprob": x, "rank": r, "decoded_token": s}, ...}, ...], a
    position for each token of the prompt, with its k likeliest tokens and the one that stands there. -inf is
    written as -9999.0. The server's --max-logprobs, 20 by default, bounds k. `return_token_ids` gives
    choices[0].token_ids and prompt_token_ids.
    """

    def check_reading(self, text: str, ids: list[int]) -> None:
        body = {"prompt": text, "add_special_tokens": False, "max_tokens": 1, "return_token_ids": True}
        read = self.completed(body).get("prompt_token_ids")
        if read is None:
            raise RefusedError(
                f"{self.client.url} gives no token ids (return_token_ids); a newer vLLM does, or take "
                "teacher.api: openai for text only"
            )
        if read != ids:
            raise self.other_tokens(difference(read, ids))

    def answer(self, prompt: list[int], sampling: dict, ends: tuple[int, ...]) -> Answer:
        """sampling: max_new_tokens, temperature, and top_p, repetition_penalty, seed or stop."""
        body = {
            "prompt": prompt,
            "max_tokens": sampling["max_new_tokens"],
            **WHOLE,
            **{key: sampling[key] for key in SAMPLED if key in sampling},
            "stop_token_ids": list(ends),
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        choice = self.completed(body)
        if choice.get("prompt_token_ids", prompt) != prompt:
            raise self.other_tokens(difference(choice["prompt_token_ids"], prompt))
        return self.ended(choice.get("token_ids"), choice.get("finish_reason"), ends)

    def scores(self, ids: list[int], k: int) -> list[list[tuple[int, float]]]:
        """At each position of `ids` but the first: (token, log-prob) of the k likeliest and the one there."""
        found = self.completed({"prompt": ids, "max_tokens": 1, "prompt_logprobs": k}).get("prompt_logprobs")
        if not isinstance(found, list):
            raise RefusedError(f"{self.client.url} gives no log-probabilities (prompt_logprobs)")
        check_count(self, len(found), len(ids))
        positions = []
        for place, (token, entries) in enumerate(zip(ids[1:], found[1:], strict=True), start=1):
            if not isinstance(entries, dict) or str(token) not in entries:
                raise self.other_tokens(f"token {token} at position {place} is not among what it scored")
            try:
                positions.append([(int(name), float(entry["logprob"])) for name, entry in entries.items()])
            except (TypeError, KeyError, ValueError) as error:
                raise bad_form(self, place) from error
        return positions


class Sglang(Server):
    """https://docs.sglang.io/basic_usage/sampling_params.html: its own /generate, next to /v1.

    meta_info.input_token_logprobs is [[null, id, text], [logprob, id, text], ...], a position for each token,
    and input_top_logprobs [null, [[logprob, id, text], ...], ...], the k likeliest at each.
    """

    def generated(self, body: dict, **sampling) -> dict:
        found = self.client.call(f"{self.client.root}/generate", {**body, "sampling_params": sampling})
        if not isinstance(found.get("meta_info"), dict):
            raise RefusedError(f"{self.client.root}/generate: its answer has another form than SGLang's")
        return found

    def check_reading(self, text: str, ids: list[int]) -> None:
        body = {"text": text, "return_logprob": True, "logprob_start_len": 0}
        read = token_ids(self.generated(body, max_new_tokens=1)["meta_info"].get("input_token_logprobs"))
        if read != ids:
            raise self.other_tokens(difference(read, ids))

    def answer(self, prompt: list[int], sampling: dict, ends: tuple[int, ...]) -> Answer:
        """sampling: as Vllm.answer takes it; SGLang takes no seed unless it runs deterministically."""
        chosen = WHOLE | {key: sampling[key] for key in SAMPLED if key in sampling and key != "seed"}
        found = self.generated(
            {"input_ids": prompt},
            max_new_tokens=sampling["max_new_tokens"],
            **chosen,
            stop_token_ids=list(ends),
            skip_special_tokens=False,
        )
        meta = found["meta_info"]
        if meta.get("prompt_tokens", len(prompt)) != len(prompt):
            raise self.other_tokens(f"{meta['prompt_tokens']} were read, {len(prompt)} sent")
        reason = meta.get("finish_reason")
        reason = reason.get("type") if isinstance(reason, dict) else reason
        return self.ended(found.get("output_ids"), reason, ends)

    def scores(self, ids: list[int], k: int) -> list[list[tuple[int, float]]]:
        """As Vllm.scores."""
        body = {"input_ids": ids, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": k}
        meta = self.generated(body, max_new_tokens=1, temperature=0)["meta_info"]
        there, likeliest = meta.get("input_token_logprobs"), meta.get("input_top_logprobs")
        if not isinstance(there, list) or not isinstance(likeliest, list):
            raise RefusedError(f"{self.client.root}/generate gives no log-probabilities (return_logprob)")
        check_count(self, len(there), len(ids))
        check_count(self, len(likeliest), len(ids))
        if (read := token_ids(there)) != ids:
            raise self.other_tokens(difference(read, ids))
        positions = []
        for place, (own, entries) in enumerate(zip(there[1:], likeliest[1:], strict=True), start=1):
            try:
                scored = {int(entry[1]): float(entry[0]) for entry in [*entries, own]}
            except (TypeError, IndexError, ValueError) as error:
                raise bad_form(self, place) from error
            positions.append(list(scored.items()))
        return positions


class OpenAI(Server):
    """Text in, text out, by /v1/completions with the standard's own fields only: `transformers serve`, say.

    The prompt is the rendered text; how many tokens the server read of it (usage.prompt_tokens) must be how
    many we have. What the standard has no field for, top-k or a penalty, is as the server has it.
    """

    def __init__(self, client: Client, model: str, tokenizer):
        super().__init__(client, model, tokenizer)
        began = tokenizer("a")["input_ids"][:1]
        self.begins = began if began == [tokenizer.bos_token_id] else []  # what the server adds by itself too

    def check_reading(self, text: str, ids: list[int]) -> None:
        self.check_usage(self.completed({"prompt": text, "max_tokens": 1}), [*self.begins, *ids])

    def check_usage(self, choice: dict, ids: list[int]) -> None:
        read = choice["usage"].get("prompt_tokens")
        if read != len(ids):
            raise self.other_tokens(f"{read} were read (usage.prompt_tokens), {len(ids)} are the text's")

    def answer(self, prompt: list[int], sampling: dict, ends: tuple[int, ...]) -> Answer:
        """As Vllm.answer; the answer's tokens are those that our tokenizer makes of its text."""
        begun = len(self.begins) if prompt[:1] == self.begins else 0
        text = self.tokenizer.decode(prompt[begun:], clean_up_tokenization_spaces=False)
        chosen = {key: sampling[key] for key in ("temperature", "top_p", "seed") if key in sampling}
        chosen |= self.further(sampling)
        choice = self.completed({"prompt": text, "max_tokens": sampling["max_new_tokens"], **chosen})
        self.check_usage(choice, prompt)
        said = choice.get("text")
        if not isinstance(said, str):
            raise RefusedError(f"{self.client.url}: an answer without a text")
        said = said.rstrip("\ufffd")  # a character that was cut in the middle of its bytes
        ids = text_tokens(self.tokenizer, said)[: sampling["max_new_tokens"]]
        return self.ended(ids, choice.get("finish_reason"), ends)

    def further(self, sampling: dict) -> dict:
        """Fields besides the standard's."""
        return {}


class LlamaCpp(OpenAI):
    """llama.cpp's own server, and llama-cpp-python's, whose defaults are no plain sampling: top-k 40, min-p
    0.05, and in the latter a penalty of 1.1 (llama_cpp/server/types.py of 0.3.36), with temperature 0 too.
    """

    def further(self, sampling: dict) -> dict:
        stops = {"stop": sampling["stop"]} if "stop" in sampling else {}
        return {"top_k": 0, "min_p": 0.0, "repeat_penalty": sampling.get("repetition_penalty", 1.0), **stops}


SAMPLED = ("temperature", "top_p", "repetition_penalty", "seed", "stop")
# Said to servers that would else take what the model's generation_config.json has.
WHOLE = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
APIS = {"vllm": Vllm, "sglang": Sglang, "llamacpp": LlamaCpp, "openai": OpenAI}


def token_ids(found) -> list:
    """The ids of SGLang's [[logprob, id, text], ...]."""
    return [entry[1] if isinstance(entry, list) and len(entry) > 1 else None for entry in found or ()]


def check_count(server: Server, given: int, sent: int) -> None:
    if given != sent:
        raise RefusedError(f"{server.client.url}: {given} positions have log-probabilities, {sent} were sent")


def bad_form(server: Server, place: int) -> RefusedError:
    return RefusedError(f"{server.client.url}: the log-probabilities at position {place} have another form")


def difference(read, sent: list[int]) -> str:
    """Where two lists of tokens part."""
    if not isinstance(read, list):
        return "it names none"
    for place, (one, other) in enumerate(zip(read, sent, strict=False)):
        if one != other:
            return f"{one!r} instead of {other} at position {place}"
    return f"{len(read)} instead of {len(sent)}"
