"""The state of a training run on disk, so that a run killed in the middle goes on as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hwsearch.store import atomic_write


@dataclass(slots=True)
class TrainingState:
    """Everything that determines how training goes on.

    Attributes:
        module, optimizer: With their weights and momenta.
        generator: Of order and augmentation.
        losses: Mean loss of each finished epoch.
        order: Of the examples in the running epoch.
        step: Batches of it that are done.
        total: Sum of their losses, each times its examples.
        seconds: Spent by earlier processes.
        best: Highest score so far; None if nothing judges.
        kept: The weights that have it.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    generator: Generator
    losses: list[float] = field(default_factory=list)
    order: Tensor | None = None
    step: int = 0
    total: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    kept: dict[str, Tensor] | None = None

    def save(self, path: Path, seconds: float) -> None:
        """Write the state, after `seconds` of training in all; a kill leaves the last complete file."""
        values = {name: getattr(self, name) for name in _PLAIN}
        values |= {"seconds": seconds, "rng": torch.get_rng_state(), "generator": self.generator.get_state()}
        values |= {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        with atomic_write(path) as stream:
            torch.save(values, stream)

    def load(self, path: Path) -> None:
        """Go on from a file, if there is one."""
        if not path.exists():
            return
        values: dict[str, Any] = torch.load(path, weights_only=True)
        for name in _PLAIN:
            setattr(self, name, values[name])
        self.module.load_state_dict(values["module"])
        self.optimizer.load_state_dict(values["optimizer"])
        self.generator.set_state(values["generator"])
        torch.set_rng_state(values["rng"])


_PLAIN = ("losses", "order", "step", "total", "seconds", "best", "kept")
