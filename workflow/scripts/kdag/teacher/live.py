"""The live teacher in the place of its cache."""

from pathlib import Path

import torch

from kdag.files.manifest import read_manifest
from kdag.models.head import check_head, head_weight, hidden_states, logit_cap
from kdag.models.load import load_model
from kdag.models.weights import weights_of


class LiveTeacher:
    """The live teacher in the place of its cache: the same states, computed anew for every batch.

    In float32 the losses are the same too. In bfloat16 a row's states depend a little on the batch that it is
    in, which is another than the cache's: between the two lies a KL of 2e-6 to 3e-6 nats per token.
    """

    keeps_rows, logits = False, None

    def __init__(self, manifest_path: Path, dtype: str, vocabulary: int):
        read_manifest(manifest_path)  # by which load_model checks the files
        self.model = load_model(Path(manifest_path).parent / "model", dtype, whole_rows=True)
        check_head(self.model, vocabulary)
        self.weights = weights_of(self.model)[0]
        self.head, self.cap = head_weight(self.model, vocabulary).detach(), logit_cap(self.model)

    def to(self, device) -> None:
        """Where the loss is taken."""
        self.head = self.head.to(device)

    @torch.no_grad()
    def known(self, batch: dict, learn: torch.Tensor) -> torch.Tensor:
        """Hidden states [N, d] at the positions [B, L] where `learn` is true."""
        return hidden_states(self.model, batch["input_ids"], batch["attention_mask"])[learn]
