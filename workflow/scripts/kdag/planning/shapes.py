"""A model as its shape: what config.json says of layers and sizes."""

from dataclasses import dataclass, replace

from kdag.job.errors import UserError

# Those whose weights are counted exactly; another family is counted as a llama of its sizes.
DENSE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "smollm3",
    "phi3",
    "olmo2",
    "granite",
)
EXPERTS = ("mixtral", "qwen3_moe")
TIED = ("gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "smollm3")  # unless config.json says otherwise
FEWER_ACTIVE = {"mixtral": 2, "qwen3_moe": 8}  # experts of a token, where config.json does not say
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """A decoder: what its sizes follow from."""

    family: str
    hidden: int
    layers: int
    queries: int  # heads x head size
    kv: int  # key-value heads x head size
    head_size: int
    mlp: int
    vocabulary: int
    tied: bool
    biases: tuple[str, ...] = ()
    norms: int = 2  # of `hidden` numbers, per layer
    head_norms: int = 0  # of `head_size` numbers, per layer
    wide_norms: int = 0  # further numbers of a layer's norms
    experts: int = 1  # of a layer, each with three matrices of `mlp`
    active: int = 1  # of them, for a token

    @classmethod
    def from_config(cls, raw: dict) -> "Shape":
        """From a transformers config.json. UserError for one that does not say its sizes."""
        raw = raw.get("text_config") or raw
        family = raw.get("model_type")
        experts = raw.get("num_experts") or raw.get("num_local_experts") or raw.get("n_routed_experts") or 1
        try:
            hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
            gemma = family.startswith("gemma")
            usual = 256 if gemma else 128 if family == "qwen3" else hidden // heads
            size = raw.get("head_dim") or usual
            return cls(
                family=family,
                hidden=hidden,
                layers=raw["num_hidden_layers"],
                queries=heads * size,
                kv=(raw.get("num_key_value_heads") or heads) * size,
                head_size=size,
                mlp=(experts > 1 and raw.get("moe_intermediate_size")) or raw["intermediate_size"],
                vocabulary=raw["vocab_size"],
                tied=raw.get("tie_word_embeddings", family in TIED),
                biases=_biases(family, raw),
                norms=4 if family in ("gemma2", "gemma3_text") else 2,
                head_norms=2 if family in ("qwen3", "qwen3_moe", "gemma3_text") else 0,
                wide_norms=(heads + (raw.get("num_key_value_heads") or heads)) * size
                if family == "olmo2"
                else 0,
                experts=experts,
                active=raw.get("num_experts_per_tok", FEWER_ACTIVE.get(family, 1)) if experts > 1 else 1,
            )
        except KeyError as error:
            raise UserError(
                f"a model_type {family} cannot be planned: its config.json has no {error.args[0]}"
            ) from error

    def with_layers(self, layers: int) -> "Shape":
        """A student that is cut from this one."""
        return replace(self, layers=layers)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """{name: (inputs, outputs)} of a layer's matrices."""
        h, q, kv, mlp = self.hidden, self.queries, self.kv, self.mlp
        return {
            "q_proj": (h, q),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
            "gate_proj": (h, mlp),
            "up_proj": (h, mlp),
            "down_proj": (mlp, h),
        }

    def _of_layers(self, experts: int) -> int:
        sizes = {name: a * b for name, (a, b) in self.linears.items()}
        mlp = sum(sizes[name] for name in MLP)
        router = self.hidden * self.experts if self.experts > 1 else 0
        return self.layers * (sum(sizes.values()) - mlp + experts * mlp + router)

    @property
    def matrices(self) -> int:
        """Weights in the layers' matrices that a token is multiplied with, the head apart."""
        return self._of_layers(self.active)

    @property
    def all_matrices(self) -> int:
        """Those of all experts."""
        return self._of_layers(self.experts)

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Every weight, exactly; a tied head counts once."""
        biases = sum(self.linears[name][1] for name in self.biases)
        norms = self.norms * self.hidden + self.head_norms * self.head_size + self.wide_norms
        rest = self.head * (1 if self.tied else 2) + self.hidden
        return self.all_matrices + self.layers * (biases + norms) + rest

    def adapters(self, rank: int, targets) -> int:
        """LoRA: rank x (inputs + outputs) of every matrix that has an adapter (arXiv:2106.09685)."""
        names = self.linears if targets == "all-linear" else [t for t in self.linears if t in targets]
        if self.experts > 1:  # which are no linear layers of their own
            names = [name for name in names if name not in MLP]
        return self.layers * rank * sum(sum(self.linears[name]) for name in names)

    def per_layer(self, factors: dict) -> float:
        """Bytes of a layer's activations per token, of two-byte numbers."""
        width = max(self.hidden, self.queries)
        return factors["hidden"] * width + factors["kv"] * self.kv + factors["mlp"] * self.mlp


def _biases(family: str, raw: dict) -> tuple[str, ...]:
    if family == "qwen2":
        return ("q_proj", "k_proj", "v_proj")
    attention = ("q_proj", "k_proj", "v_proj", "o_proj") if raw.get("attention_bias") else ()
    mlp = family == "llama" and raw.get("mlp_bias")
    return (*attention, *(("gate_proj", "up_proj", "down_proj") if mlp else ()))
