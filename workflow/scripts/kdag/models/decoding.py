"""Decoding: a plain loop over the steps of a batch, greedy or by a Sampler.

Nothing of a model's generation_config but its end tokens takes effect. A row that has ended leaves its batch
at once on a CPU; on a GPU the batch becomes half as large when the others fit.
"""

import contextlib
import functools
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from kdag.job.errors import UserError
from kdag.job.progress import Pace, Progress
from kdag.models import head, load, packed
from kdag.models.batch import Batch
from kdag.models.merging import merged
from kdag.models.sampling import Sampler
from kdag.models.static import why_not

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


def use_grouped_attention(model) -> None:
    transformers.AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    if model.config._attn_implementation == "sdpa":  # else it has an attention that only it computes
        model.set_attn_implementation(ATTENTION)


def load_model(directory: Path, dtype: str, gpus: int = 1):
    """(model, tokenizer) of a plain from_pretrained directory, weights in `dtype`, on so many GPUs."""
    tokenizer = load.load_tokenizer(directory)
    model = load.load_model(directory, dtype, gpus=gpus)
    use_grouped_attention(model)
    if model.device.type == "cuda" and (reason := why_not(model)):
        logging.warning("no CUDA graphs, since %s", reason)
    return model, tokenizer


def cache_of(model) -> str:
    """static: on a GPU, if the model can, so that steps can be CUDA graphs; else dynamic, which grows."""
    return "static" if model.device.type == "cuda" and why_not(model) is None else "dynamic"


@dataclass
class Answer:
    """What was said to one prompt. tokens: with the token that ended it, if one did; cut_off: none did;
    entropy: of what its tokens were drawn from, in nats per token; 0 where nothing was drawn."""

    tokens: list[int]
    cut_off: bool
    entropy: float

    @property
    def said(self) -> list[int]:
        """Without the token that ended it."""
        return self.tokens if self.cut_off else self.tokens[:-1]


@torch.inference_mode()
def decode(
    model,
    prompts: list[list[int]],
    *,
    vocabulary: int,
    eos_ids: list[int],
    max_new_tokens: int,
    repetition_penalty: float = 1.0,
    stopped=lambda said: False,
    on_step=lambda said, running: None,
    cache: str | None = None,
    halving: bool | None = None,
    sampler: Sampler | None = None,
    forward=None,
) -> tuple[list[list[int]], list[int | None], list[float], set[int]]:
    """Answer one batch of prompts (token ids): for each what was said without the token that ended it, that
    token or None, and the mean entropy; and the rows that were cut off.

    stopped(said so far) ends a row whose answer holds a stop string. Only ids below `vocabulary` are
    ever chosen: the rows that pad a head name no token.
    repetition_penalty is CTRL's, over the tokens of prompt and answer, as in transformers.
    on_step(said so far, rows still running) is called after each step.
    cache: static or dynamic, `cache_of` unless given. halving: ended rows stay until the others fit half of
    the batch; unless given, on a GPU, where a row costs little and copying the cache of all others much.
    sampler, forward: as Batch takes them.
    """
    batch = Batch(
        model,
        prompts,
        vocabulary=vocabulary,
        max_new_tokens=max_new_tokens,
        repetition_penalty=repetition_penalty,
        static=(cache or cache_of(model)) == "static",
        sampler=sampler,
        forward=forward,
    )
    halving = model.device.type == "cuda" if halving is None else halving
    said, ends, entropy = [[] for _ in prompts], [None] * len(prompts), [0.0] * len(prompts)
    rows = list(range(len(prompts)))  # of the lines of the batch
    running = set(rows)
    for _ in range(max_new_tokens):
        tokens = batch.step()
        drawn_from = sampler.entropy.tolist() if sampler else entropy
        for line, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row not in running:
                continue
            entropy[row] += drawn_from[line] if sampler else 0.0
            if token in eos_ids:
                ends[row] = token
            else:
                said[row].append(token)
            if token in eos_ids or stopped(said[row]):
                running.remove(row)
        if not running:
            break
        lines = staying(rows, running, halving)
        if len(lines) < len(rows):
            batch.keep(lines)
            rows = [rows[line] for line in lines]
        on_step(said, sorted(running))
    drawn = [len(tokens) + (end is not None) for tokens, end in zip(said, ends, strict=True)]
    return said, ends, [total / max(count, 1) for total, count in zip(entropy, drawn, strict=True)], running


def decode_greedily(model, prompts: list[list[int]], **how) -> tuple[list[list[int]], list[bool]]:
    """`decode`, each token the likeliest: (answers without the end token, whether cut off)."""
    said, _, _, running = decode(model, prompts, **how)
    return said, [row in running for row in range(len(prompts))]


def sample(
    model,
    prompts: list[list[int]],
    seeds: list[tuple[int, ...]],
    sampling: dict,
    *,
    vocabulary: int,
    eos_ids: list[int],
    forward=None,
    told: bool = False,
) -> list[Answer]:
    """An answer to each prompt, drawn by its own seed. sampling: as of the section of that name.

    told: with log lines. Batches are of like lengths, the longest prompts first.
    """
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    cap, size = sampling["max_new_tokens"], sampling["batch_size"]
    progress = GenerationProgress(len(prompts), cap) if told else None
    found: list = [None] * len(prompts)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        said, ends, entropy, _ = decode(
            model,
            [prompts[row] for row in rows],
            vocabulary=vocabulary,
            eos_ids=eos_ids,
            max_new_tokens=cap,
            sampler=Sampler(
                [seeds[row] for row in rows], cap, sampling["temperature"], sampling["top_p"], model.device
            ),
            forward=forward,
            cache="dynamic" if forward else None,
            **({"on_step": progress.step} if told else {}),
        )
        if told:
            progress.batch_done(said)
        for row, tokens, end, nats in zip(rows, said, ends, entropy, strict=True):
            found[row] = Answer(tokens if end is None else [*tokens, end], end is None, nats)
    return found


@contextlib.contextmanager
def answering(model, dtype: str):
    """A model in training, made to answer: yields (the model under its wrapper, its forward pass)."""
    base = head.base_model(model)
    attention, training = base.config._attn_implementation, model.training
    if attention == packed.NAME:  # which has no place for the tokens of a cache
        base.set_attn_implementation("sdpa")
    use_grouped_attention(base)
    model.eval()
    try:
        with merged(model, getattr(torch, dtype)):
            # The class's own forward: while a model trains, calling it gives the loss.
            yield base, functools.partial(type(base).forward, base)
    finally:
        model.train(training)
        base.set_attn_implementation(attention)


def check_positions(prompts: list[list[int]], cap: int, positions: int | None) -> None:
    """UserError if a prompt leaves no room for an answer of `cap` tokens."""
    longest = max(map(len, prompts))
    if positions and longest + cap > positions:
        raise UserError(
            f"a prompt has {longest} tokens; with sampling.max_new_tokens {cap} that is more than the "
            f"model's {positions} positions"
        )


def staying(rows: list[int], running: set[int], halving: bool) -> list[int]:
    """The lines of a batch that stay: of running rows, and if halving, of others to fill a half of it."""
    size = len(rows) if halving else len(running)
    while 2 * len(running) <= size:
        size //= 2
    running_first = sorted(range(len(rows)), key=lambda line: rows[line] not in running)
    return sorted(running_first[:size])


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
