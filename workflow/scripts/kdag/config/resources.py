"""The section `resources`."""

from pydantic import Field

from kdag.config.section import Section


class Gpus(Section):
    """GPUs of one job of each stage; more than one trains data-parallel, at the same effective batch."""

    sft_teacher: int = Field(1, gt=0)
    cache_teacher: int = Field(1, gt=0)
    answer_teacher: int = Field(1, gt=0)
    sft_student: int = Field(1, gt=0)
    distill: int = Field(1, gt=0)
    generate: int = Field(1, gt=0)
    measure_fidelity: int = Field(1, gt=0)


class Resources(Section):
    """How the work is spread; no change here runs anything again."""

    gpus: Gpus = Field(default_factory=Gpus)
    tensorboard: bool = Field(False, description="write training curves for TensorBoard next to each model")
