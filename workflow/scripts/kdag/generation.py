"""Greedy answers to a task's prompts, through lm-eval, with every setting pinned and recorded.

lm-eval builds the requests (the task's prompt, the model's chat template) and collects the answers;
decoding.py makes them.
"""

import importlib.metadata
import importlib.util
import logging
import math
from pathlib import Path

import lm_eval.api.task
import lm_eval.tasks
import torch
import transformers
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from kdag import precision
from kdag.decoding import GenerationProgress, decode_greedily, end_tokens, load_model
from kdag.errors import UserError
from kdag.ifeval import prompt_set_hash
from kdag.manifest import sha256_json, sha256_text


class GreedyAnswers:
    """What lm-eval's models of both backends share: greedy answers under pinned settings.

    `answers[task, doc id]` holds what lm-eval's samples have no field for: n_tokens and cut_off.
    """

    def pin(self, config: dict, eos_ids: list[int], limit: int | None, backend: dict) -> None:
        """config: evaluation's settings; limit: positions the model has; backend: what computes."""
        self.answers, self.limit, self.backend_settings = {}, limit, backend
        # The chat template writes every special token there should be; a task without it has none yet.
        self.special_tokens = not config.get("task", {}).get("chat_template", True)
        self.pinned = {
            "decoding": "greedy",
            "repetition_penalty": config["repetition_penalty"],
            "max_new_tokens": config["max_new_tokens"],
            "batch_size": config["batch_size"],
            "eos_token_ids": eos_ids,
            "vocabulary": len(self.tokenizer),
            "dtype": config["dtype"],
        }

    def settings(self) -> dict:
        """How every task is answered: what two rows of a table must have in common."""
        return {
            "chat_template_sha256": sha256_text(self.tokenizer.chat_template),
            **self.pinned,
            **self.backend_settings,
            "arithmetic": precision.recorded(),
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
            prompts = self.tokenizer(
                [requests[row].args[0] for row in rows], add_special_tokens=self.special_tokens
            )["input_ids"]
            self._check_lengths(prompts, cap)
            for row, (ids, cut_off) in zip(rows, self.decode(prompts, cap, until), strict=True):
                text = self.text(ids)
                texts[row] = text[: min((text.find(s) for s in until if s in text), default=None)]
                key = requests[row].task_name, requests[row].doc_id
                self.answers[key] = {"n_tokens": len(ids), "cut_off": cut_off}
        return texts

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _check_lengths(self, prompts: list[list[int]], cap: int) -> None:
        longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
        needed = len(prompts[longest]) + cap
        if self.limit and needed > self.limit:
            raise UserError(
                f"prompt {longest + 1} has {len(prompts[longest])} tokens; with max_new_tokens "
                f"{cap} that is more than the model's {self.limit} positions"
            )


class GreedyLM(GreedyAnswers, HFLM):
    """lm-eval's transformers model with our decoding; its likelihood methods see our vocabulary."""

    def __init__(self, model, tokenizer, config: dict):
        quiet()
        HFLM.__init__(
            self, pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=config["batch_size"]
        )
        self.pin(
            config,
            end_tokens(model, tokenizer),
            getattr(model.config.get_text_config(), "max_position_embeddings", None),
            {
                "device": model.device.type,
                "backend": f"transformers {transformers.__version__}",
                "attention": model.config._attn_implementation,
            },
        )

    def _model_call(self, inps, **kwargs):
        """Logits of the tokenizer's tokens alone: the rows that pad a head are no answers."""
        return super()._model_call(inps, **kwargs)[..., : self.pinned["vocabulary"]]

    def decode(self, prompts: list[list[int]], cap: int, until: tuple[str, ...]) -> list[tuple]:
        """(answer's ids, cut off) of each prompt; batches by prompt length, longest first."""
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        progress = GenerationProgress(len(prompts), cap)
        decoding = {
            "vocabulary": self.pinned["vocabulary"],
            "eos_ids": self.pinned["eos_token_ids"],
            "repetition_penalty": self.pinned["repetition_penalty"],
            "max_new_tokens": cap,
            "on_step": progress.step,
        }
        if until:
            # A character is four tokens at most, so the end of an answer is enough to look at.
            tail = 4 * max(map(len, until))
            decoding["stopped"] = lambda ids: any(stop in self.text(ids[-tail:]) for stop in until)
        found = [None] * len(prompts)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            answers, cut_off = decode_greedily(self.model, [prompts[row] for row in rows], **decoding)
            progress.batch_done(answers)
            for row, *answer in zip(rows, answers, cut_off, strict=True):
                found[row] = tuple(answer)
        return found


def quiet() -> None:
    """No warning about a model object handed over, which is what we mean to do, and no bars in the log."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda documents, **_: documents


def local_task(name: str, docs: list[dict], max_new_tokens: int) -> dict:
    """lm-eval's own task `name` on our prompts, to be answered only: scoring is another stage's."""
    import datasets

    directory = Path(lm_eval.tasks.__file__).parent / name
    task = load_yaml(directory / f"{name}.yaml", resolve_func=False)
    rows = [{"row": row, "prompt": doc["prompt"]} for row, doc in enumerate(docs)]
    dataset = datasets.Dataset.from_list(rows)
    for scoring in ("process_results", "metric_list", "dataset_path", "dataset_name"):
        task.pop(scoring, None)
    return {
        **task,
        "custom_dataset": lambda **_: {task["test_split"]: dataset},
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": max_new_tokens},
    }


def language_model(directory: Path, config: dict):
    """The model behind lm-eval's interface, on the backend that evaluation.backend names."""
    config = {**config, "dtype": precision.settle(config["dtype"], "evaluation.dtype")}
    if config.get("backend") == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise UserError("evaluation.backend: vllm needs the package vllm, which envs/vllm.yaml installs")
        from kdag.vllm_backend import GreedyVLLM

        return GreedyVLLM(directory, config)
    model, tokenizer = load_model(directory, config["dtype"])
    return GreedyLM(model, tokenizer, config)


def generate(lm: GreedyAnswers, docs: list[dict], task: str = "ifeval") -> tuple[list[dict], dict]:
    """Answer every document: (samples in the documents' order, the settings that produced them)."""
    local = local_task(task, docs, lm.pinned["max_new_tokens"])
    loaded = TaskManager(include_defaults=False).load([local])
    loaded["tasks"][task].override_metric("bypass")
    results = evaluate(lm, loaded, bootstrap_iters=0, log_samples=True, apply_chat_template=True)

    by_row = {sample["doc"]["row"]: sample for sample in results["samples"][task]}
    samples = []
    for row, doc in enumerate(docs):
        sample = by_row[row]
        samples.append(
            {
                "key": doc["key"],
                "prompt": doc["prompt"],
                "rendered_prompt": sample["arguments"][0][0],
                "response": sample["resps"][0][0],
                **lm.answers[task, sample["doc_id"]],
            }
        )
    settings = {
        "task": task,
        "task_version": local["metadata"]["version"],
        "prompts_sha256": prompt_set_hash(docs),
        "rendered_prompts_sha256": sha256_json([s["rendered_prompt"] for s in samples]),
        **lm.settings(),
    }
    return samples, settings
