"""Greedy answers to a task's prompts, through lm-eval, with every setting pinned and recorded.

lm-eval builds the requests (the task's prompt, the model's chat template) and collects the answers;
decoding.py makes them.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

import lm_eval.api.task
import lm_eval.tasks
import transformers
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from kdag.config import precision
from kdag.data.template import Chat, unmarked
from kdag.evaluation.answers import GreedyAnswers, quiet
from kdag.evaluation.tasks.ifeval import prompt_set_hash
from kdag.files.hashes import sha256_json
from kdag.job.errors import UserError
from kdag.models.decoding import GenerationProgress, cache_of, decode_greedily, load_model


class GreedyLM(GreedyAnswers, HFLM):
    """lm-eval's transformers model with our decoding; its likelihood methods see our vocabulary."""

    def __init__(self, model, tokenizer, config: dict, chat: Chat):
        quiet()
        tokenizer.chat_template = chat.template  # which lm-eval asks for, to know that there is one
        HFLM.__init__(
            self, pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=config["batch_size"]
        )
        self.pin(
            config,
            chat,
            getattr(model.config.get_text_config(), "max_position_embeddings", None),
            {
                "device": model.device.type,
                "backend": f"transformers {transformers.__version__}",
                "attention": model.config._attn_implementation,
                "cache": cache_of(model),
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


def language_model(directory: Path, config: dict, chat: Chat, gpus: int = 1):
    """The model behind lm-eval's interface, on the backend that evaluation.backend names."""
    config = {**config, "dtype": precision.settle(config["dtype"], "evaluation.dtype")}
    if config.get("backend") == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise UserError("evaluation.backend: vllm needs the package vllm, which envs/vllm.yaml installs")
        from kdag.evaluation.vllm import GreedyVLLM

        return GreedyVLLM(directory, config, chat, gpus)
    model, tokenizer = load_model(directory, config["dtype"], gpus)
    return GreedyLM(model, tokenizer, config, chat)


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
                "rendered_prompt": unmarked(sample["arguments"][0][0]),
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
