"""A network and examples that training learns in a blink."""

import numpy as np
import torch
from torch import nn


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(32, 2)
    )


def stripes(n=96):
    """Images that are brighter in the upper or in the left half."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, n)
    images = rng.normal(size=(n, 1, 4, 4)).astype(np.float32)
    images[targets == 0, :, :2] += 2
    images[targets == 1, :, :, :2] += 2
    return images, targets
