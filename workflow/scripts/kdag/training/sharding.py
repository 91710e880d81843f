"""A model too large for one GPU, shared out among the processes of a job (FSDP).

Each process holds a part of every weight, gradient and optimiser state; a layer's weights come together
while it computes. torch's fully_shard does it, without accelerate, whose FSDP is for GPUs alone: so the
tests run the same code on two CPU processes. A checkpoint is written by torch's distributed checkpoint: the
parts of all processes.
"""

import json
import logging
import os
from pathlib import Path

import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from kdag.files.atomic import write_json
from kdag.files.reading import read_json
from kdag.job import launching
from kdag.job.errors import UserError
from kdag.models import head, load
from kdag.training.memory import OPTIMIZER, SHARE_OF_GPU

PARTS, SCHEDULER = "parts", "scheduler.json"  # of a checkpoint
OPTIONS = StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True)
FORCE = "KDAG_SHARD"  # set to 1: shard whatever the size


def wanted(directory: Path, settings) -> bool:
    """Are the weights in `directory`, trained as `settings` say, too much for the GPU of a process?"""
    if launching.processes() == 1:
        return False
    shard = os.environ.get(FORCE) == "1"
    if torch.cuda.is_available() and not shard and not settings.load_in_4bit:
        each = OPTIMIZER["adamw"] if settings.tuning == "full" else getattr(torch, settings.dtype).itemsize
        memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        shard = count_weights(directory) * each > SHARE_OF_GPU * memory
    if shard and (settings.load_in_4bit or settings.optimizer != "adamw"):
        raise UserError(
            "the model does not fit on one GPU and is shared out among several, which neither load_in_4bit "
            "nor optimizer: adamw_8bit can be"
        )
    return shard


def count_weights(directory: Path) -> int:
    """From the headers of the files alone."""
    total = 0
    for file in Path(directory).glob("*.safetensors"):
        with open(file, "rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        total += sum(torch.Size(shape).numel() for shape in shapes)
    return total


def shard(model) -> None:
    """In place: a unit per layer, and one for what is left, the head among it."""
    mesh = init_device_mesh(load.device().type, (launching.processes(),))
    for layer in head.base_model(model).base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    logging.info("the model is shared out among %d processes", launching.processes())


def trained_weights(model) -> dict[str, torch.Tensor]:
    """The trained weights, whole, on the CPU of the first process; the others help and get nothing."""
    whole = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            together = weight.detach().full_tensor()
            if launching.rank() == 0:
                whole[name] = together.cpu()
    return whole


def put(weights: dict[str, torch.Tensor], model):
    """The model with these trained weights, in a model that is not sharded."""
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    if trained != weights.keys():
        raise RuntimeError(f"other weights were trained: {sorted(trained ^ weights.keys())[:5]}")
    model.load_state_dict(weights, strict=False)
    return model


class Sharded:
    """What a Trainer does otherwise where its model is sharded."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accelerator.prepare_model = lambda model, **_: model  # instead of DistributedDataParallel

    def _clip_grad_norm(self, model):
        norm = super()._clip_grad_norm(model)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def save_model(self, output_dir=None, _internal_call=False):
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # the weights are saved with the optimizer

    def _parts(self) -> dict[str, torch.Tensor]:
        """The trained weights and their moments by name, each a DTensor: loading fills them in place."""
        weights, moments = get_state_dict(self.model, self.optimizer.optimizer, options=OPTIONS)
        return weights | {name: part for name, part in moments.items() if isinstance(part, torch.Tensor)}

    def _save_optimizer_and_scheduler(self, output_dir):
        # As safetensors: DCP's own format has a pickle, which reading would run.
        writer = HuggingFaceStorageWriter(str(Path(output_dir, PARTS)), save_distributed=True)
        checkpoint.save(self._parts(), storage_writer=writer)
        if launching.rank() == 0:
            write_json(Path(output_dir, SCHEDULER), self.lr_scheduler.state_dict())

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """The weights are loaded with the optimizer, which is not made yet."""

    def _load_optimizer_and_scheduler(self, folder):
        if folder is None:
            return
        checkpoint.load(self._parts(), storage_reader=HuggingFaceStorageReader(str(Path(folder, PARTS))))
        self.lr_scheduler.load_state_dict(read_json(Path(folder, SCHEDULER)))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
