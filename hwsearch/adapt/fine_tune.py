"""Training a few parameters of a network that is otherwise kept as it is."""

from __future__ import annotations

import math
from typing import Any, Self

from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.model.canonical import BATCH_NORMS
from hwsearch.model.train import Augment, History, Loss, train

BATCH = 64


class Steady(nn.Module):
    """A network in training whose batch norms keep their statistics, which are calibrated and not averaged."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.network(x)
        return out

    def train(self, mode: bool = True) -> Self:
        """Dropout goes into training mode, batch norms do not."""
        super().train(mode)
        for part in self.network.modules():
            if isinstance(part, BATCH_NORMS):
                part.eval()
        return self


def fine_tune(
    network: nn.Module,
    inputs: NDArray[Any] | Tensor,
    targets: NDArray[Any] | Tensor,
    *,
    loss: Loss,
    steps: int,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    augment: Augment | None = None,
) -> History:
    """Train what is not frozen in `network`, in place, for at least `steps` steps of AdamW; see `train`."""
    epochs = math.ceil(steps / math.ceil(len(inputs) / BATCH))
    return train(
        Steady(network),
        inputs,
        targets,
        epochs=epochs,
        lr=lr,
        batch=BATCH,
        weight_decay=weight_decay,
        optimizer="adamw",
        seed=seed,
        loss=loss,
        augment=augment,
    )
