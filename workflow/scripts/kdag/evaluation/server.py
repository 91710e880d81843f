"""Greedy answers of a teacher behind a server, through lm-eval and under the settings of every other row.

What of these settings the server computes by itself (its arithmetic, its batches) is not known here and not
recorded.
"""

import importlib.metadata

from lm_eval.api.model import LM

from kdag.data.template import Chat
from kdag.evaluation.answers import GreedyAnswers, quiet
from kdag.files.reading import read_json
from kdag.job.errors import UserError
from kdag.models import load
from kdag.teacher import asking

NO_SCORES = (
    "this task asks for the likelihood of given answers, of which a server here gives none; take it out"
)


class GreedyServer(GreedyAnswers, LM):
    def __init__(self, args, config: dict, chat: Chat, journal: asking.Journal):
        """args: of `asking.arguments`, with teacher (the manifest of meet_teacher.py) and model (a folder
        with the tokenizer). config: max_new_tokens, repetition_penalty, server, and of a further task `task`.
        """
        quiet()
        LM.__init__(self)
        self.tokenizer = load.load_tokenizer(args.model)
        self.tokenizer.chat_template = chat.template
        self.asked, self.journal, self.args = config["server"], journal, args
        self.server = asking.server_of(args, self.asked, self.tokenizer)
        longest = read_json(args.teacher)["server"]["max_model_len"]
        backend = {"server": self.asked, "backend": f"server ({self.asked['api']})"}
        self.pin({"batch_size": None, "dtype": None, **config}, chat, longest, backend)

    def settings(self) -> dict:
        unknown = ("batch_size", "dtype")
        pinned = {key: value for key, value in self.pinned.items() if key not in unknown}
        version = {"lm_eval": importlib.metadata.version("lm_eval")}
        return {"chat": self.chat.recorded(), **pinned, **self.backend_settings, **version}

    @property
    def tokenizer_name(self) -> str:
        return self.asked["id"]

    def chat_template(self, chat_template=False) -> str:
        return self.chat.template

    def decode(self, prompts: list[list[int]], cap: int, until: tuple[str, ...]) -> list[tuple]:
        """(answer's ids without the end token, cut off) of each prompt."""
        sampling = {"temperature": 0, "max_new_tokens": cap}
        if self.pinned["repetition_penalty"] != 1:
            sampling["repetition_penalty"] = self.pinned["repetition_penalty"]
        if until:
            sampling["stop"] = list(until)
        answers = asking.answers(
            self.server,
            self.args.teacher,
            prompts,
            [sampling] * len(prompts),
            self.chat.end_ids,
            self.journal,
            parallel=self.args.parallel,
            unit="answers",
        )
        ends = set(self.chat.end_ids)
        return [(a.ids[:-1] if a.ids[-1] in ends else a.ids, a.cut_off) for a in answers]

    def loglikelihood(self, requests):
        raise UserError(NO_SCORES)

    def loglikelihood_rolling(self, requests):
        raise UserError(NO_SCORES)
