"""Giving a compressed network its accuracy back, cheapest means first."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hwsearch.model.canonical import BATCH_NORMS


def reestimate_batch_norm(module: nn.Module, inputs: NDArray[np.float32], *, batch: int = 128) -> None:
    """Replace the running statistics of every batch norm by those of `inputs`, in place, without gradients.

    Pruning changes what a layer receives, so the statistics of the original network no longer fit (He et al., "Channel
    pruning for accelerating very deep neural networks", 2017; Li et al., "EagleEye", 2020).

    Args:
        module: In eval mode before and after.
        inputs: Calibration images [N, ...].
        batch: Images per forward pass; statistics are averaged over passes with equal weight.
    """
    norms = [m for m in module.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.inference_mode():
        for start in range(0, len(inputs), batch):
            chunk = torch.from_numpy(np.asarray(inputs[start : start + batch]))
            if len(chunk) > 1:
                module(chunk)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
