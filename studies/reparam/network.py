"""A plain stack of 3×3 convolutions for 32×32 images: 0.3 M parameters, 11 M multiply-accumulates, no shortcuts."""

from __future__ import annotations

from torch import nn

SHAPES = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))


def build():
    """The network, with random weights; layers are called ``0``, ``3``, ``6``, ..."""
    parts, inputs = [], 3
    for outputs, stride in SHAPES:
        parts += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
