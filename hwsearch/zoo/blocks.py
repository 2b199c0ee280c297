"""What the networks of the zoo share: convolution, norm and activation in one step, widths, and how weights begin."""

from __future__ import annotations

import torch
from torch import nn


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution without bias (``0``), batch norm (``1``) and activation; keeps the image size unless strided."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *([activation()] if activation else []))


def scaled(channels: int, width: float, multiple: int = 8) -> int:
    """`channels` times `width`, rounded to a multiple of `multiple`, and never to less than 90 % of it.

    The rule of the MobileNets (Sandler et al., "MobileNetV2", 2018, in the authors' code).
    """
    wanted = channels * width
    rounded = max(multiple, int(wanted + multiple / 2) // multiple * multiple)
    return rounded if rounded >= 0.9 * wanted else rounded + multiple


def initialise(module: nn.Module) -> None:
    """Start weights as for ReLU networks (He et al., 2015, fan out), linear ones small, biases at zero; in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            torch.nn.init.zeros_(part.bias)
