"""A model as its shape: what config.json says of layers and sizes."""

from dataclasses import dataclass, replace

from kdag.job.errors import UserError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")


@dataclass(frozen=True)
class Shape:
    """A dense decoder: what its sizes follow from."""

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

    @classmethod
    def from_config(cls, raw: dict) -> "Shape":
        """From a transformers config.json. UserError for what is not a dense decoder of FAMILIES."""
        family = raw.get("model_type")
        if any(raw.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
            raise UserError(
                f"model_type {family}: a mixture of experts cannot be planned; dense decoders can"
            )
        if family not in FAMILIES:
            raise UserError(f"model_type {family!r} cannot be planned; known are {', '.join(FAMILIES)}")
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
                mlp=raw["intermediate_size"],
                vocabulary=raw["vocab_size"],
                tied=raw.get("tie_word_embeddings", gemma),
                biases=_biases(family, raw),
                norms=4 if family in ("gemma2", "gemma3_text") else 2,
                head_norms=2 if family in ("qwen3", "gemma3_text") else 0,
            )
        except KeyError as error:
            raise UserError(f"config.json of a {family} has no {error.args[0]}") from error

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

    @property
    def matrices(self) -> int:
        """Weights in the layers' matrices: what a token is multiplied with, the head apart."""
        return self.layers * sum(a * b for a, b in self.linears.values())

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Every weight, exactly; a tied head counts once."""
        biases = sum(self.linears[name][1] for name in self.biases)
        norms = self.norms * self.hidden + self.head_norms * self.head_size
        rest = self.head * (1 if self.tied else 2) + self.hidden
        return self.matrices + self.layers * (biases + norms) + rest

    def adapters(self, rank: int, targets) -> int:
        """LoRA: rank x (inputs + outputs) of every matrix that has an adapter (arXiv:2106.09685)."""
        names = self.linears if targets == "all-linear" else [t for t in self.linears if t in targets]
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
