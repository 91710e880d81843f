"""The section `teacher`: fetched and fine-tuned here, or behind a server, which is asked and not trained."""

import re
from typing import Literal

from pydantic import Field, model_serializer, model_validator

from kdag.config.sources import ModelSource

SERVER = "server"
# Of a teacher behind a server, and of no other source: how it is reached, which decides no result, and what
# it is asked.
REACHED = ("url", "key", "timeout", "retries", "parallel")
ASKED = ("api", "logprobs")
VARIABLE = r"^[A-Z_][A-Z0-9_]*$"  # capitals, as variables have and keys have not
TEXT_ONLY = ("llamacpp", "openai")


class Teacher(ModelSource):
    """The large model."""

    source: Literal["hub", "path", "package", "server"] = Field("hub", description="where it comes from")
    id: str | None = Field(
        None, description="hub: the repository, owner/name; server: the name that its /v1/models gives it"
    )
    revision: str | None = Field(
        None,
        description="hub: commit, branch or tag; null: the newest when fetched, recorded. server: a word of "
        "yours, to be changed when other weights answer to the same name",
    )
    online: bool = Field(
        False, description="run the teacher next to every student instead of reading its cache"
    )
    tokenizer: Literal["student", "own"] = Field(
        "student",
        description="own: another than the student's; a strategy with alignment to this teacher says so too",
    )
    api: Literal["vllm", "sglang", "llamacpp", "openai"] = Field(
        "vllm", description="server: what it speaks; llamacpp, openai (/v1/completions of any): text only"
    )
    logprobs: bool = Field(
        False, description="server: ask it for teacher_cache.top_k log-probabilities per token too"
    )
    url: str = Field("http://localhost:8000/v1", description="server: where it is, up to /v1")
    key: str | None = Field(
        None,
        json_schema_extra={"pattern": VARIABLE},
        description="server: the environment variable that holds its API key, as OPENAI_API_KEY; null: none",
    )
    timeout: int = Field(600, gt=0, description="server: seconds that one answer may take")
    retries: int = Field(5, ge=0, le=20, description="server: how often a request is sent again")
    parallel: int = Field(8, gt=0, le=1024, description="server: requests at a time")

    @model_validator(mode="after")
    def _source_has_its_keys(self):
        if self.source != SERVER:
            return super()._source_has_its_keys()
        if not self.id:
            raise ValueError(f"source {SERVER} needs id")
        if extra := [key for key in ("file", "package", "path") if getattr(self, key)]:
            raise ValueError(f"source {SERVER} does not take {', '.join(extra)}")
        return self

    @model_validator(mode="after")
    def _keys_of_a_server(self):
        own = [
            key for key in (*ASKED, *REACHED) if getattr(self, key) != type(self).model_fields[key].default
        ]
        if self.source != SERVER:
            if own:
                raise ValueError(f"source {self.source} does not take {own[0]}")
            return self
        if self.key and not re.fullmatch(VARIABLE, self.key):  # whose value is not told: it may be the key
            raise ValueError("key: the name of an environment variable is needed, in capitals, not the key")
        if not re.fullmatch(r"https?://[^\s@{}?#]+", self.url):
            raise ValueError("url: http://host:port/v1 is needed, without a password, braces, ? or #")
        if self.online:
            raise ValueError("online: true needs the teacher's weights, which a server keeps")
        if self.logprobs and self.api in TEXT_ONLY:
            raise ValueError(
                "logprobs: true needs api vllm or sglang, whose answers name tokens by their ids; a text may "
                "stand for several"
            )
        return self

    @model_serializer(mode="wrap")
    def _a_server_s_keys_are_a_server_s(self, dump):
        """Without the keys that only a server has, if there is none, and without the usual tokenizer."""
        unused = () if self.source == SERVER else (*ASKED, *REACHED)
        unused += ("tokenizer",) if self.tokenizer == "student" else ()
        return {key: value for key, value in dump(self).items() if key not in unused}

    def asked(self) -> dict:
        """What decides a server's answers, as far as it is known here."""
        return {key: getattr(self, key) for key in ("id", "revision", "api")}
