"""ResNets for 32×32 images (He et al. 2016, section 4.2), named like the widely used pretrained CIFAR-10 checkpoints.

Three stages of 16, 32 and 64 channels with ``(depth - 2) / 6`` basic blocks each, global average pooling, one linear
layer. The parameter-free shortcut ("option A": every second pixel, new channels zero) is written as a strided 1×1
convolution with a fixed weight: the same numbers, in a form whose channels can be pruned and quantised like any other.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Shortcut = Literal["A", "B"]


def resnet20(num_classes: int = 10, *, shortcut: Shortcut = "A", width: float = 1.0) -> ResNet:
    """ResNet-20: 0.27 M parameters, 41 M multiply-accumulates at 32×32; see `ResNet` for the arguments."""
    return ResNet(3, num_classes, shortcut=shortcut, width=width)


def resnet32(num_classes: int = 10, *, shortcut: Shortcut = "A", width: float = 1.0) -> ResNet:
    """ResNet-32; see `ResNet` for the arguments."""
    return ResNet(5, num_classes, shortcut=shortcut, width=width)


def resnet44(num_classes: int = 10, *, shortcut: Shortcut = "A", width: float = 1.0) -> ResNet:
    """ResNet-44; see `ResNet` for the arguments."""
    return ResNet(7, num_classes, shortcut=shortcut, width=width)


def resnet56(num_classes: int = 10, *, shortcut: Shortcut = "A", width: float = 1.0) -> ResNet:
    """ResNet-56; see `ResNet` for the arguments."""
    return ResNet(9, num_classes, shortcut=shortcut, width=width)


class ResNet(nn.Module):
    """[N, 3, H, W] images to [N, num_classes] logits.

    Args:
        blocks: Basic blocks per stage.
        num_classes: Outputs.
        shortcut: Where the shape changes: ``A`` subsamples and pads with zero channels, ``B`` learns a projection.
        width: Multiplies the 16, 32 and 64 channels of the stages.
    """

    def __init__(self, blocks: int, num_classes: int, *, shortcut: Shortcut = "A", width: float = 1.0) -> None:
        super().__init__()
        channels = [max(1, round(base * width)) for base in (16, 32, 64)]
        self.conv1 = _conv3x3(3, channels[0])
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.layer1 = _stage(channels[0], channels[0], blocks, 1, shortcut)
        self.layer2 = _stage(channels[0], channels[1], blocks, 2, shortcut)
        self.layer3 = _stage(channels[1], channels[2], blocks, 2, shortcut)
        self.linear = nn.Linear(channels[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, PaddingShortcut):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, num_classes] of images [N, 3, H, W]."""
        out = functional.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = functional.adaptive_avg_pool2d(out, 1).flatten(1)
        logits: Tensor = self.linear(out)
        return logits


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, added to the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else _projection(inputs, outputs, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PaddingShortcut(nn.Conv2d):
    """Every second pixel with zero channels on both sides, as a 1×1 convolution whose weight is fixed.

    Checkpoints of implementations that slice and pad have no such weight; loading one keeps ours.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=1, stride=2, bias=False)
        offset = (outputs - inputs) // 2
        with torch.no_grad():
            self.weight.zero_()
            self.weight[range(offset, offset + inputs), range(inputs)] = 1.0
        self.weight.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_supply_weight)  # type: ignore[no-untyped-call]


def _supply_weight(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    state.setdefault(f"{prefix}weight", module.weight)


def _projection(inputs: int, outputs: int, shortcut: Shortcut) -> nn.Module:
    if shortcut == "A":
        return PaddingShortcut(inputs, outputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))


def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
