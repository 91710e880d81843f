"""Greedy decoding: a plain loop over the model's forward pass.

Nothing of a model's generation_config but its end tokens takes effect, and a row that has ended leaves
its batch at once.
"""

import logging
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from kdag.job.progress import Pace, Progress
from kdag.models import load

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


def load_model(directory: Path, dtype: str, gpus: int = 1):
    """(model, tokenizer) of a plain from_pretrained directory, weights in `dtype`, on so many GPUs."""
    transformers.AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    tokenizer = load.load_tokenizer(directory)
    model = load.load_model(directory, dtype, gpus=gpus)
    if model.config._attn_implementation == "sdpa":  # else it has an attention that only it computes
        model.set_attn_implementation(ATTENTION)
    return model, tokenizer


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
    spread = len({*getattr(model, "hf_device_map", {}).values()}) > 1
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
            cache.batch_select_indices(keep.cpu() if spread else keep)  # its layers may lie apart
        input_ids, positions = chosen[:, None], positions[:, -1:] + 1
        seen.scatter_(1, input_ids, True)
        on_step(answers, running)
    cut_off = set(running)
    return answers, [row in cut_off for row in range(len(prompts))]


class GenerationProgress:
    """Log lines while batches are decoded, reckoned in token slots: rows times the cap.

    A row that ends early gives its remaining slots back at once, so the time left is an upper bound
    that only shrinks. Its pace against the plan takes a row that is still running to be half done at least,
    so that a high cap alone makes no job look slow.
    """

    def __init__(self, rows: int, cap: int, now=time.monotonic):
        self.rows, self.cap, self.pace = rows, cap, Pace(rows, now)
        self.slots = Progress(rows * cap, "token slots")
        self.rows_done = self.tokens_done = 0
        self.start = time.monotonic()

    def step(self, answers: list[list[int]], running: list[int]) -> None:
        ended = len(answers) - len(running)
        used = ended * self.cap + sum(len(answers[row]) for row in running)
        done = self.rows_done * self.cap + used
        halves = sum(max(0.5, len(answers[row]) / self.cap) for row in running)
        self.pace.reach(self.rows_done + ended + halves)
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
