"""Greedy answers behind lm-eval's interface: what its backends share."""

import importlib.metadata
import importlib.util
import logging
import math

import lm_eval.api.task
import lm_eval.tasks
import torch

from kdag.data.template import (
    CLOSE,
    OPEN,
    Chat,
    after_thinking,
    marked,
    prompt_text,
    render,
    special_tokens,
    tokens,
)
from kdag.job import arithmetic
from kdag.job.errors import UserError


class GreedyAnswers:
    """What lm-eval's models of both backends share: greedy answers under pinned settings.

    `answers[task, doc id]` holds what lm-eval's samples have no field for: n_tokens and cut_off.
    """

    def pin(self, config: dict, chat: Chat, limit: int | None, backend: dict) -> None:
        """config: evaluation's settings; limit: positions the model has; backend: what computes."""
        self.chat = chat
        self.answers, self.limit, self.backend_settings = {}, limit, backend
        # The chat template writes every special token there should be; a task without it has none yet.
        self.special_tokens = not config.get("task", {}).get("chat_template", True)
        self.pinned = {
            "decoding": "greedy",
            "repetition_penalty": config["repetition_penalty"],
            "max_new_tokens": config["max_new_tokens"],
            "batch_size": config["batch_size"],
            "eos_token_ids": list(chat.end_ids),
            "vocabulary": len(self.tokenizer),
            "dtype": config["dtype"],
        }

    def settings(self) -> dict:
        """How every task is answered: what two rows of a table must have in common."""
        return {
            "chat": self.chat.recorded(),
            **self.pinned,
            **self.backend_settings,
            "arithmetic": arithmetic.recorded(),
            "torch": torch.__version__,
            "lm_eval": importlib.metadata.version("lm_eval"),
        }

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of `requests`, greedy, up to their stop strings."""
        texts = [""] * len(requests)
        alike = {}  # requests of one task have its settings; several tasks may come at once
        for row, request in enumerate(requests):
            kwargs = request.args[1]
            cap = min(kwargs.get("max_gen_toks") or math.inf, self.pinned["max_new_tokens"])
            until = kwargs.get("until") or []
            until = (until,) if isinstance(until, str) else tuple(until)
            alike.setdefault((cap, until), []).append(row)
        for (cap, until), rows in alike.items():
            prompts = [self.prompt_ids(requests[row].args[0]) for row in rows]
            self._check_lengths(prompts, cap)
            for row, (ids, cut_off) in zip(rows, self.decode(prompts, cap, until), strict=True):
                text, thought = after_thinking(self.text(ids), requests[row].args[0])
                texts[row] = text[: min((text.find(s) for s in until if s in text), default=None)]
                key = requests[row].task_name, requests[row].doc_id
                thinking = {} if thought is None else {"thinking": thought}
                self.answers[key] = {"n_tokens": len(ids), "cut_off": cut_off, **thinking}
        return texts

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """What lm-eval asks for before a request: the prompt as every stage renders it."""
        pattern = special_tokens(self.tokenizer)
        messages = marked(chat_history, pattern)
        if add_generation_prompt:
            return prompt_text(self.tokenizer, self.chat, messages)
        return render(self.tokenizer, self.chat, messages, prompt=False, continue_final_message=True)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Of a prompt that was rendered, or of a task's own text, which has no chat's special tokens."""
        return self.tokenizer(prompt)["input_ids"] if self.special_tokens else tokens(self.tokenizer, prompt)

    def text(self, ids: list[int]) -> str:
        """What was said, without control tokens; the ends of a block of reasoning stay, whatever they are."""
        pattern = special_tokens(self.tokenizer)
        blocks = pattern is not None and pattern.fullmatch(CLOSE)
        text = self.tokenizer.decode(ids, skip_special_tokens=not blocks, clean_up_tokenization_spaces=False)
        return pattern.sub(lambda found: found[0] * (found[0] in (OPEN, CLOSE)), text) if blocks else text

    def _check_lengths(self, prompts: list[list[int]], cap: int) -> None:
        longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
        needed = len(prompts[longest]) + cap
        if self.limit and needed > self.limit:
            raise UserError(
                f"prompt {longest + 1} has {len(prompts[longest])} tokens; with max_new_tokens "
                f"{cap} that is more than the model's {self.limit} positions"
            )


def quiet() -> None:
    """No warning about a model object handed over, which is what we mean to do, and no bars in the log."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda documents, **_: documents
