"""What a PyTorch network answers to many examples."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def outputs_of(module: nn.Module, inputs: NDArray[np.float32], *, batch: int) -> NDArray[np.float32]:
    """Outputs [N, ...] of a network in eval mode for `inputs` [N, ...], computed `batch` examples at a time."""
    starts = range(0, len(inputs), batch)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        parts = [module(torch.from_numpy(np.ascontiguousarray(inputs[i : i + batch])).to(device)) for i in starts]
    return torch.cat(parts).float().cpu().numpy()
