"""SqueezeNet 1.1 (Iandola et al. 2016; the smaller release of the authors): fire modules, and no norms.

Parameters are named as in torchvision, whose pretrained weights load into ``squeezenet(classes=1000, small=False)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwsearch.zoo.blocks import initialise, scaled

FIRES = ((16, 64, 2), (32, 128, 2), (48, 192, 2), (64, 256, 2))
"""Channels a fire module squeezes to, channels of each of its two expansions, and how many follow one another."""

POOLED = 3
"""A pool stands before each of the first three runs of fire modules."""


def squeezenet(classes: int = 10, *, width: float = 1.0, small: bool = True) -> SqueezeNet:
    """SqueezeNet 1.1; see `SqueezeNet` for the arguments."""
    return SqueezeNet(classes, width=width, small=small)


class SqueezeNet(nn.Module):
    """[N, 3, H, W] images to [N, classes] logits.

    Args:
        classes: Outputs.
        width: Multiplies all channels.
        small: For 32×32 images: the first convolution has stride 1 and keeps the image size.
    """

    def __init__(self, classes: int, *, width: float = 1.0, small: bool = True) -> None:
        super().__init__()
        channels = scaled(64, width)
        stem = nn.Conv2d(3, channels, 3, padding=1) if small else nn.Conv2d(3, channels, 3, stride=2)
        layers: list[nn.Module] = [stem, nn.ReLU()]
        for i, (squeezed, expanded, count) in enumerate(FIRES):
            if i < POOLED:
                layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            for _ in range(count):
                layers.append(Fire(channels, scaled(squeezed, width), scaled(expanded, width)))
                channels = 2 * scaled(expanded, width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(channels, classes, 1), nn.ReLU())
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        scores: Tensor = self.classifier(self.features(images))
        return scores.mean((2, 3))


class Fire(nn.Module):
    """Squeeze to few channels, then expand by a 1×1 and a 3×3 convolution side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, 2 * expanded, H, W]."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)
