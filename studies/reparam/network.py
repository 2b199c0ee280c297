"""A plain stack of 3×3 convolutions for 32×32 images: 0.2 M parameters, 8 M multiply-accumulates, no shortcuts."""

from __future__ import annotations

from torch import nn

SHAPES = ((16, 1), (24, 2), (24, 1), (48, 2), (48, 1), (48, 1), (96, 2), (96, 1))


def build():
    """The network, with random weights; layers are called ``0``, ``3``, ``6``, ..."""
    parts, inputs = [], 3
    for outputs, stride in SHAPES:
        parts += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
