"""Greedy answers to a task's prompts, through lm-eval, with every setting pinned and recorded.

lm-eval builds the requests (the task's prompt, the model's chat template) and collects the answers.
Decoding is a plain loop over the model's forward pass, so nothing of a model's generation_config but
its end tokens takes effect, and a row that has ended leaves its batch at once.
"""

import importlib.metadata
import logging
import math
import time
from pathlib import Path

import lm_eval.api.task
import lm_eval.tasks
import torch
import torch.nn.functional as F
import transformers
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from kdag.cli import Progress
from kdag.errors import UserError
from kdag.ifeval import prompt_set_hash
from kdag.manifest import sha256_json, sha256_text

ATTENTION = "grouped_sdpa"


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Transformers' sdpa attention, but one new token per row reads its keys and values in place.

    transformers copies keys and values once per query head of their group before it attends; with
    a long cache that copy costs more than all the rest. The heads of a group see the same keys, so
    for one query position they can stand where query positions stand.
    query [rows, heads, 1, d], key and value [rows, groups, cached, d] -> [rows, 1, heads, d]
    """
    rows, heads, positions, dim = query.shape
    groups = key.shape[1]
    if positions > 1 or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    folded = query.reshape(rows, groups, heads // groups, dim)
    output = F.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, dim), None


def load_model(directory: Path, dtype: str, device: str | None = None):
    """(model, tokenizer) of a plain from_pretrained directory, weights in `dtype`."""
    if not (Path(directory) / "config.json").is_file():
        raise UserError(f"{directory} is no model directory: it has no config.json")
    transformers.utils.logging.disable_progress_bar()
    transformers.AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation=ATTENTION
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer in {directory} has no chat template")
    return model.to(device).eval(), tokenizer


def end_tokens(model, tokenizer) -> list[int]:
    """The ids that end an answer: those of the model's generation config and the tokenizer's."""
    ids = model.generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


@torch.inference_mode()
def decode_greedily(
    model,
    prompts: list[list[int]],
    *,
    vocabulary: int,
    eos_ids: list[int],
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    stopped=lambda answer: False,
    on_step=lambda answers, running: None,
) -> tuple[list[list[int]], list[bool]]:
    """Answer one batch of prompts (token ids): (answers without the end token, whether cut off).

    stopped(answer so far) ends a row whose answer holds a stop string. Only ids below `vocabulary` are
    ever chosen: the rows that pad a head name no token.
    repetition_penalty is CTRL's, over the tokens of prompt and answer, as in transformers.
    on_step(answers so far, rows still running) is called after each step.
    """
    device, width = model.device, max(map(len, prompts))
    input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.ones(len(prompts), width + max_new_tokens, dtype=torch.long)
    seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=device)
    for row, ids in enumerate(prompts):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, : width - len(ids)] = 0
        seen[row, ids] = True
    input_ids, mask = input_ids.to(device), mask.to(device)
    positions = (mask[:, :width].cumsum(-1) - 1).clamp(min=0)

    cache = transformers.DynamicCache(config=model.config)
    answers = [[] for _ in prompts]
    running = list(range(len(prompts)))
    for step in range(max_new_tokens):
        logits = model(
            input_ids=input_ids,
            attention_mask=mask[:, : width + step],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1, :vocabulary]
        if repetition_penalty != 1.0:
            logits = logits.float()
            weaker = torch.where(logits < 0, logits * repetition_penalty, logits / repetition_penalty)
            logits = torch.where(seen, weaker, logits)
        chosen = logits.max(-1).indices  # four times as fast as argmax on a CPU

        tokens = chosen.tolist()
        staying = []
        for line, token in enumerate(tokens):
            if token not in eos_ids:
                answers[running[line]].append(token)
                if not stopped(answers[running[line]]):
                    staying.append(line)
        if len(staying) < len(running):
            running = [running[line] for line in staying]
            if not running:
                break
            keep = torch.tensor(staying, device=device)
            chosen, mask, positions, seen = (t[keep] for t in (chosen, mask, positions, seen))
            cache.batch_select_indices(keep)
        input_ids, positions = chosen[:, None], positions[:, -1:] + 1
        seen.scatter_(1, input_ids, True)
        on_step(answers, running)
    cut_off = set(running)
    return answers, [row in cut_off for row in range(len(prompts))]


class GreedyLM(HFLM):
    """lm-eval's transformers model with our decoding; its likelihood methods are untouched.

    `answers[task, doc id]` holds what lm-eval's samples have no field for: n_tokens and cut_off.
    """

    def __init__(self, model, tokenizer, config: dict):
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=config["batch_size"],
        )
        quiet()
        self.answers = {}
        # The chat template writes every special token there should be; a task without it has none yet.
        self.special_tokens = not config.get("task", {}).get("chat_template", True)
        self.dtype_name = config["dtype"]
        self.decoding = {
            "vocabulary": len(tokenizer),
            "eos_ids": end_tokens(model, tokenizer),
            "max_new_tokens": config["max_new_tokens"],
            "repetition_penalty": config["repetition_penalty"],
        }

    def settings(self) -> dict:
        """How every task is answered: what two rows of a table must have in common."""
        return {
            "chat_template_sha256": sha256_text(self.tokenizer.chat_template),
            "decoding": "greedy",
            "repetition_penalty": self.decoding["repetition_penalty"],
            "max_new_tokens": self.decoding["max_new_tokens"],
            "batch_size": self.batch_size,
            "eos_token_ids": self.decoding["eos_ids"],
            "vocabulary": self.decoding["vocabulary"],
            "dtype": self.dtype_name,
            "device": self.model.device.type,
            "backend": f"transformers {transformers.__version__}",
            "attention": self.model.config._attn_implementation,
            "torch": torch.__version__,
            "lm_eval": importlib.metadata.version("lm_eval"),
        }

    def _model_call(self, inps, **kwargs):
        """Logits of the tokenizer's tokens alone: the rows that pad a head are no answers."""
        return super()._model_call(inps, **kwargs)[..., : self.decoding["vocabulary"]]

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of `requests`, greedy, up to their stop strings."""
        texts = [""] * len(requests)
        alike = {}  # requests of one task have its settings; several tasks may come at once
        for row, request in enumerate(requests):
            kwargs = request.args[1]
            cap = min(kwargs.get("max_gen_toks") or math.inf, self.decoding["max_new_tokens"])
            until = kwargs.get("until") or []
            until = (until,) if isinstance(until, str) else tuple(until)
            alike.setdefault((cap, until), []).append(row)
        for (cap, until), rows in alike.items():
            for row, text in zip(rows, self._answer([requests[r] for r in rows], cap, until), strict=True):
                texts[row] = text
        return texts

    def _answer(self, requests, cap: int, until: tuple[str, ...]) -> list[str]:
        """Batches are formed by prompt length, longest first."""
        texts = [request.args[0] for request in requests]
        prompts = self.tokenizer(texts, add_special_tokens=self.special_tokens)["input_ids"]
        self._check_lengths(prompts, cap)
        order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
        progress = GenerationProgress(len(prompts), cap)
        decoding = self.decoding | {"max_new_tokens": cap, "on_step": progress.step}
        if until:
            # A character is four tokens at most, so the end of an answer is enough to look at.
            tail = 4 * max(map(len, until))
            decoding["stopped"] = lambda ids: any(stop in self._text(ids[-tail:]) for stop in until)
        texts = [""] * len(prompts)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            answers, cut_off = decode_greedily(self.model, [prompts[row] for row in rows], **decoding)
            progress.batch_done(answers)
            for row, ids, cut in zip(rows, answers, cut_off, strict=True):
                text = self._text(ids)
                texts[row] = text[: min((text.find(s) for s in until if s in text), default=None)]
                key = requests[row].task_name, requests[row].doc_id
                self.answers[key] = {"n_tokens": len(ids), "cut_off": cut}
        return texts

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _check_lengths(self, prompts: list[list[int]], cap: int) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(range(len(prompts)), key=lambda row: len(prompts[row]))
        needed = len(prompts[longest]) + cap
        if limit and needed > limit:
            raise UserError(
                f"prompt {longest + 1} has {len(prompts[longest])} tokens; with max_new_tokens "
                f"{cap} that is more than the model's {limit} positions"
            )


class GenerationProgress:
    """Log lines while batches are decoded, reckoned in token slots: rows times the cap.

    A row that ends early gives its remaining slots back at once, so the time left is an upper bound
    that only shrinks.
    """

    def __init__(self, rows: int, cap: int):
        self.rows, self.cap = rows, cap
        self.slots = Progress(rows * cap, "token slots")
        self.rows_done = self.tokens_done = 0
        self.start = time.monotonic()

    def step(self, answers: list[list[int]], running: list[int]) -> None:
        ended = len(answers) - len(running)
        used = ended * self.cap + sum(len(answers[row]) for row in running)
        done = self.rows_done * self.cap + used
        if done < self.slots.total:
            rows = self.rows_done + ended
            self.slots.update(done, f", {rows} of {self.rows} prompts answered")

    def batch_done(self, answers: list[list[int]]) -> None:
        self.rows_done += len(answers)
        self.tokens_done += sum(map(len, answers))
        if self.rows_done == self.rows:
            seconds = time.monotonic() - self.start
            logging.info(
                "%d prompts answered with %d tokens in %.1f s, %.0f tokens/s",
                *(self.rows, self.tokens_done, seconds, self.tokens_done / seconds),
            )


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


def generate(
    model, tokenizer, docs: list[dict], config: dict, task: str = "ifeval"
) -> tuple[list[dict], dict]:
    """Answer every document: (samples in the documents' order, the settings that produced them).

    config: max_new_tokens, batch_size, repetition_penalty, dtype (that of the loaded weights).
    """
    lm = GreedyLM(model, tokenizer, config)
    local = local_task(task, docs, config["max_new_tokens"])
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
