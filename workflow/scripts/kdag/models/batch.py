"""A batch of prompts while they are answered, a token per row and step."""

import logging

import torch
from transformers import DynamicCache

from kdag.models.sizes import PROMPT_TOKENS
from kdag.models.static import Graphs, graphs_wanted, joined, plain, rounded, spread, with_room

ROOM = 256  # tokens that a static cache has room for before a longer one takes its place


class Batch:
    """Prompts on the model's device, what was said last, and the cache.

    Prompts are read into a dynamic cache. If `static`, a cache of fixed length takes its place then, and
    a longer one once it is full: attention reads all of it, and most answers are shorter than they might be.
    From there on a step changes tensors in place only, as a CUDA graph needs it.
    """

    def __init__(
        self,
        model,
        prompts: list[list[int]],
        *,
        vocabulary: int,
        max_new_tokens: int,
        repetition_penalty: float,
        static: bool,
        sampler=None,
        forward=None,
    ):
        """sampler: a Sampler of as many rows; without one the likeliest token is said. forward: is called
        instead of the model, whose call may mean something else while it trains."""
        self.sampler, self.forward = sampler, forward or model
        self.model, self.vocabulary, self.penalty, self.static = model, vocabulary, repetition_penalty, static
        width = max(map(len, prompts))
        self.longest = rounded(width + max_new_tokens)
        tokens = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.ones(len(prompts), self.longest, dtype=torch.long)
        seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool)
        for row, ids in enumerate(prompts):
            tokens[row, width - len(ids) :] = torch.tensor(ids)
            mask[row, : width - len(ids)] = 0
            seen[row, ids] = True
        self.tokens, self.mask, self.seen = (tensor.to(model.device) for tensor in (tokens, mask, seen))
        self.positions = (self.mask[:, :width].cumsum(-1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=model.config)
        self.filled, self.length = 0, None  # positions of the cache; how many there can be, if it is static
        self.graphs = Graphs(model.device) if static and graphs_wanted(model.device) else None
        self.warm, self.replay = False, None  # does the cache allow a graph; what repeats it

    def step(self) -> list[int]:
        """The token that each row says next."""
        if self.static and self.filled and self.length in (None, self.filled):
            self.move()
        read = self.tokens.shape[1]
        self.run()
        self.filled += read
        return self.tokens[:, 0].tolist()

    def keep(self, lines: list[int]) -> None:
        """Only these lines of the batch stay in it."""
        kept = torch.tensor(lines, device=self.tokens.device)
        self.tokens, self.mask, self.positions, self.seen = (
            tensor[kept] for tensor in (self.tokens, self.mask, self.positions, self.seen)
        )
        if self.sampler:
            self.sampler.keep(kept)
        if self.static:
            self.move(kept)
        else:
            self.cache.batch_select_indices(kept.cpu() if spread(self.model) else kept)

    def move(self, lines: torch.Tensor | None = None) -> None:
        """Into a static cache with room for the next tokens; a graph of the old one is of no use any more."""
        self.warm, self.replay = False, None
        self.length = min(rounded(self.filled + ROOM), self.longest)
        self.cache = with_room(self.cache, self.filled, self.length, lines)

    def read_prompts(self) -> torch.Tensor:
        """`read` of all prompts, a few rows at a time where they are many: into `cache`."""
        rows = max(1, PROMPT_TOKENS // self.tokens.shape[1])
        if rows >= len(self.tokens) or not plain(self.model):
            return self.read(slice(None), self.cache)
        parts = [slice(start, start + rows) for start in range(0, len(self.tokens), rows)]
        caches = [self.cache, *(DynamicCache(config=self.model.config) for _ in parts[1:])]
        logits = torch.cat(list(map(self.read, parts, caches)))
        self.cache = joined(caches)
        return logits

    def read(self, rows: slice, cache) -> torch.Tensor:
        """The logits of the token after `tokens`, [n, V]; their keys and values go into `cache`."""
        return self.forward(
            input_ids=self.tokens[rows],
            attention_mask=self.mask[rows, : self.length or self.filled + self.tokens.shape[1]],
            position_ids=self.positions[rows],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1, : self.vocabulary]

    def choose(self) -> None:
        """Read `tokens`, and put what each row says next in their place."""
        logits = self.read(slice(None), self.cache) if self.filled else self.read_prompts()
        if self.penalty != 1.0:
            logits = logits.float()
            weaker = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
            logits = torch.where(self.seen, weaker, logits)
        # Of a maximum: four times as fast as argmax on a CPU.
        chosen = self.sampler(logits) if self.sampler else logits.max(-1, keepdim=True).indices
        self.seen.scatter_(1, chosen, True)
        if self.filled:
            self.tokens.copy_(chosen)
            self.positions.add_(1)
        else:
            self.tokens, self.positions = chosen, self.positions[:, -1:] + 1

    def run(self) -> None:
        """A step as it comes or as a graph: the first in a cache sets up what it needs, the second is one."""
        if self.warm and self.replay is None:
            self.replay = self.graphs.capture(self.choose)
        if self.replay is not None:
            self.replay()
        elif self.graphs is None or self.length is None:
            self.choose()
        elif waits := self.graphs.warm_up(self.choose):
            self.graphs = None
            logging.warning("no CUDA graphs: a step waits for the GPU in %s", ", ".join(sorted(waits)))
        else:
            self.warm = True
