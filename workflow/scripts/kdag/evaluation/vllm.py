"""Answers by vLLM, in an environment of its own (envs/vllm.yaml), under the same pinned settings.

lm-eval's vllm backend loads the model and builds the prompts. Several times faster on a GPU; its batches
are vLLM's own, so that bf16 answers may differ from run to run in a near tie.
"""

import importlib.metadata
from pathlib import Path

import torch
from lm_eval.models.vllm_causallms import VLLM
from vllm import SamplingParams, TokensPrompt

from kdag.data.template import Chat
from kdag.evaluation.answers import GreedyAnswers, quiet


class GreedyVLLM(GreedyAnswers, VLLM):
    def __init__(self, directory: Path, config: dict, chat: Chat, gpus: int = 1):
        quiet()
        VLLM.__init__(
            self,
            pretrained=str(directory),
            dtype=config["dtype"],
            batch_size=config["batch_size"],
            max_num_seqs=config["batch_size"],
            tensor_parallel_size=min(gpus, torch.cuda.device_count()),
            generation_config="vllm",  # nothing of the model's own but its end tokens
        )
        shape = self._config.get_text_config()
        limit = getattr(shape, "max_position_embeddings", None)
        backend = {"device": "cuda", "backend": f"vllm {importlib.metadata.version('vllm')}"}
        self.tokenizer.chat_template = chat.template
        self.pin(config, chat, limit, backend)
        # The rows that pad a head name no token, which vLLM does not know; it takes 1,024 biases at most.
        self.never = dict.fromkeys(range(self.pinned["vocabulary"], shape.vocab_size)[:1024], -100.0)

    def decode(self, prompts: list[list[int]], cap: int, until: tuple[str, ...]) -> list[tuple]:
        """(answer's ids without the end token, cut off) of each prompt."""
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=cap,
            repetition_penalty=self.pinned["repetition_penalty"],
            stop=list(until),
            include_stop_str_in_output=True,
            stop_token_ids=self.pinned["eos_token_ids"],
            logit_bias=self.never or None,
        )
        outputs = self.model.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], sampling)
        ends = set(self.pinned["eos_token_ids"])
        found = []
        for output in outputs:
            ids = list(output.outputs[0].token_ids)
            if ids and ids[-1] in ends:
                ids.pop()
            found.append((ids, output.outputs[0].finish_reason == "length"))
        return found
