"""The sections of fine-tuning, of the teacher's cache and of distillation with its strategies."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_serializer, model_validator

from kdag.config.schedules import scheduled
from kdag.config.section import Dtype, Number, Section, checked


def layer_names(value):
    """all-linear or a list of names; checked here, as a union would answer one mistake with two lines."""
    named = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    if value != "all-linear" and not named:
        raise ValueError("all-linear or a list of layer names is needed")
    return value


def on_off_auto(value):
    if not isinstance(value, bool) and value != "auto":
        raise ValueError("auto, true or false is needed")
    return value


class Training(Section):
    """What fine-tuning and distillation share."""

    backend: Literal["auto", "transformers", "unsloth"] = Field(
        "auto", description="auto: unsloth where it is installed and a GPU is there, else transformers"
    )
    tuning: Literal["lora", "full"] = Field("lora", description="adapters, or every weight")
    load_in_4bit: bool = Field(False, description="QLoRA: frozen weights in four bits; needs bitsandbytes")
    lora_rank: int = Field(16, gt=0, le=1024)
    lora_alpha: Number = Field(32, gt=0, description="the adapter's output is scaled by alpha / rank")
    lora_dropout: Number = Field(0.0, ge=0, lt=1)
    lora_target_modules: Annotated[Literal["all-linear"] | list[str], BeforeValidator(layer_names)] = Field(
        "all-linear", description="which linear layers get an adapter; never the head"
    )
    epochs: Number = Field(1, gt=0, description="passes over the training rows")
    batch_size: int = Field(1, gt=0, description="rows per forward pass and device, unless tokens_per_pass")
    gradient_accumulation: int = Field(
        8, gt=0, description="the rows of an optimiser step are batch_size times this many"
    )
    tokens_per_pass: int | None = Field(
        None,
        gt=0,
        description="a step's rows, by length, are cut into forward passes of at most so many padded tokens; "
        "null: 8192 on a GPU, and batch_size rows on a CPU",
    )
    learning_rate: Number = Field(1e-4, gt=0, lt=1)
    warmup_ratio: Number = Field(0.05, ge=0, lt=1, description="share of the steps with rising rate")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit: its state in eight bits; needs bitsandbytes"
    )
    weight_decay: Number = Field(0.01, ge=0, lt=1)
    max_grad_norm: Number = Field(1.0, gt=0)
    dtype: Dtype = Field(
        "auto",
        description="frozen weights and arithmetic; trained weights are float32; auto: bfloat16 where the "
        "hardware multiplies it, else float16 on a GPU and float32 on a CPU",
    )
    gradient_checkpointing: Annotated[Literal["auto"] | bool, BeforeValidator(on_off_auto)] = Field(
        "auto",
        description="less memory for about a third more time; auto: on a GPU from when memory has run "
        "out, on a CPU and in several processes always",
    )

    @model_validator(mode="after")
    def _four_bits_are_frozen(self):
        if self.load_in_4bit and self.tuning == "full":
            raise ValueError("load_in_4bit: weights in four bits cannot be trained; take tuning: lora")
        return self


class TeacherTraining(Training):
    """Fine-tuning the teacher on the training rows."""

    seed: int = Field(0, ge=0, lt=2**32)


class DistillKit(Section):
    """Keys of DistillKit's `logprob_compressor`, by its names; the others are as it recommends."""

    k: int = Field(128, gt=0, description="tokens kept per position")
    exact_k: int = Field(16, ge=0, description="of these the likeliest, stored as they are, in bfloat16")
    polynomial_terms: list[Annotated[int, Field(ge=0, le=8)] | Literal["sqrt"]] = Field(
        [0, 1, 2, 3, 4, "sqrt"], description="powers of the rank, and its root, that are fitted to the others"
    )

    @model_validator(mode="after")
    def _the_others_are_fitted(self):
        if self.exact_k > self.k:
            raise ValueError(f"exact_k {self.exact_k} is more than k {self.k}")
        if self.exact_k < self.k and not self.polynomial_terms:
            raise ValueError("polynomial_terms: one at least, or exact_k as large as k")
        return self


class Sampled(Section):
    """Tokens drawn from the teacher's distribution (arXiv 2503.16870)."""

    samples: int = Field(128, gt=0, le=2**16, description="draws per position, with replacement")
    temperature: Number = Field(
        2.0, gt=0, le=96, description="of the distribution; must be that of every strategy that reads it"
    )
    seed: int = Field(0, ge=0, lt=2**32)


class TeacherCache(Section):
    """What the teacher thinks: its last hidden states at every answer position."""

    dtype: Dtype = Field("auto", description="the teacher's weights, arithmetic and what is stored")
    batch_tokens: int = Field(8192, gt=0, description="padded tokens per forward pass")
    rows_per_shard: int = Field(512, gt=0, description="rows per file")
    shards: int = Field(
        1,
        gt=0,
        le=1000,
        description="jobs that write it side by side, whole files each; the result is the same",
    )
    store: Literal["hidden", "hidden-int8", "topk", "logits", "distillkit", "sampled"] = Field(
        "hidden", description="what is stored of a training row; only hidden is exact and small"
    )
    top_k: int = Field(128, gt=0, description="topk: tokens kept per position")
    tail: Literal["bucket", "renormalised"] = Field(
        "bucket", description="topk, distillkit: the other tokens share their mass evenly, or have none"
    )
    distillkit: DistillKit = Field(default_factory=DistillKit, description="store: distillkit")
    sampled: Sampled = Field(default_factory=Sampled, description="store: sampled; only for fkl")

    def parameters(self) -> dict:
        """Of what is stored of a training row, by the names that storage.py and sizes.py know."""
        match self.store:
            case "hidden":
                return {"dtype": self.dtype}
            case "topk":
                return {"k": self.top_k, "tail": self.tail}
            case "distillkit":
                return self.distillkit.model_dump() | {"tail": self.tail}
            case "sampled":
                return self.sampled.model_dump()
        return {}

    def used(self, exclude=("shards",)) -> dict:
        """What the cache depends on, without the section of a store that is not chosen."""
        return self.model_dump(exclude={*exclude, *({"distillkit", "sampled"} - {self.store})})


class Distillation(Training):
    """Loss per answer token: (1 - w) CE + w T^2 D; with use_ce_loss false only T^2 D."""

    epochs: Number = Field(3, gt=0, description="passes over the training rows")
    gradient_accumulation: int = Field(
        32, gt=0, description="the rows of an optimiser step are batch_size times this many"
    )
    learning_rate: Number = Field(5e-4, gt=0, lt=1)
    use_ce_loss: bool = Field(True, description="false: only the divergence")
    kl_loss_weight: scheduled(0, 1) = Field(0.5, description="w; a number or a schedule")
    temperature: scheduled(0, 100) = Field(
        2.0, description="T, of both models in the divergence; a number or a schedule"
    )
    temperature_squared: bool = Field(True, description="scale the divergence by T^2")


class DistillationJob(Distillation):
    """What one student's training depends on, its strategy resolved."""

    divergence: str | None = Field(
        description="none: only cross-entropy; null: a loss across tokenizers that has none"
    )
    alignment: str | None = Field(None, description="a loss across tokenizers; null: one tokenizer")
    divergence_params: dict = Field(default_factory=dict, description="numbers and schedules")
    seed: int = 0
    budget: dict | None = Field(
        None, description="{equal, epochs, rows_per_step} of sft, which takes as much; null: all epochs"
    )
    teacher_dtype: Dtype | None = Field(None, description="online teacher only: its arithmetic")
    teachers: dict | None = Field(
        None,
        description="of several teachers: {weights by name, mixture}, or {by, names}; null: there is one",
    )

    @model_serializer(mode="wrap")
    def _one_teacher_and_one_tokenizer_go_without_saying(self, dump):
        unsaid = ("teachers", "alignment")
        return {key: value for key, value in dump(self).items() if key not in unsaid or value}


class MixedJob(DistillationJob):
    """What a training depends on besides, if its rows have answers of several kinds, or the student's own.

    answers: their shares; the student's may be a schedule, and the others then share what it leaves.
    sampling: for its own, as of the section `sampling`.
    """

    answers: dict[str, float | dict]
    sampling: dict | None = None
    student_divergence: str | None = Field(None, description="on its own answers; null: as on others")
    pairs: bool = Field(False, description="each prompt with both of its answers")


def read_job(config: dict) -> DistillationJob:
    """What a stage is told, as the one or the other; UserError if it is neither."""
    return checked(MixedJob if "answers" in config else DistillationJob, config)
