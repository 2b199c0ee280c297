"""ShuffleNetV2 (Ma et al. 2018): half of the channels pass by each unit, and a shuffle mixes the halves.

The channels that are shuffled cannot be pruned: taking some away would shift all that follow to other places. Those
inside the units can. Parameters are named as in torchvision, whose pretrained weights load into
``shufflenet_v2(classes=1000, width=1.0, small=False)`` and the like.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwsearch.errors import ModelError
from hwsearch.zoo.blocks import conv_norm, initialise

CHANNELS = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}
"""Width -> channels of the stem, of the three stages and before the classifier (table 5 of the paper)."""

UNITS = (4, 8, 4)
"""Units of each stage (table 5 of the paper)."""


def shufflenet_v2(classes: int = 10, *, width: float = 1.0, small: bool = True) -> ShuffleNetV2:
    """ShuffleNetV2; `width` is 0.5, 1.0, 1.5 or 2.0, the other arguments are those of `ShuffleNetV2`."""
    if width not in CHANNELS:
        raise ModelError(f"ShuffleNetV2 has no width {width}", allowed=", ".join(map(str, CHANNELS)))
    return ShuffleNetV2(classes, CHANNELS[width], small=small)


class ShuffleNetV2(nn.Module):
    """[N, 3, H, W] images to [N, classes] logits.

    Args:
        classes: Outputs.
        channels: Of the stem, of the three stages and before the classifier; the stages' are even.
        units: Of each stage.
        small: For 32×32 images: the first convolution has stride 1, and no pool follows.
    """

    def __init__(
        self,
        classes: int,
        channels: tuple[int, int, int, int, int],
        *,
        units: tuple[int, int, int] = UNITS,
        small: bool = True,
    ) -> None:
        super().__init__()
        stem, *stages, last = channels
        self.conv1 = conv_norm(3, stem, stride=1 if small else 2)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.stage2, self.stage3, self.stage4 = (
            _stage(inputs, outputs, count)
            for inputs, outputs, count in zip((stem, *stages), stages, units, strict=False)
        )
        self.conv5 = conv_norm(stages[-1], last, 1)
        self.fc = nn.Linear(last, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        x = self.maxpool(self.conv1(images))
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Unit(nn.Module):
    """Half of the channels through two pointwise and a depthwise convolution, the others past them, then a shuffle.

    With stride 2 both halves see all channels and are convolved.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.branch1 = nn.Sequential()
        if stride == 2:
            self.branch1 = nn.Sequential(*_depthwise(inputs, stride), *conv_norm(inputs, half, 1))
        self.branch2 = nn.Sequential(
            *conv_norm(inputs if stride == 2 else half, half, 1), *_depthwise(half, stride), *conv_norm(half, half, 1)
        )
        self.splits = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        past, through = x.chunk(2, dim=1) if self.splits else (x, x)
        return shuffle(torch.cat([self.branch1(past), self.branch2(through)], dim=1))


def shuffle(x: Tensor) -> Tensor:
    """The two halves of the channels of [N, C, H, W], interleaved."""
    return torch.unflatten(x, 1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(Unit(inputs, outputs, 2), *(Unit(outputs, outputs, 1) for _ in range(units - 1)))


def _depthwise(channels: int, stride: int) -> nn.Sequential:
    return conv_norm(channels, channels, stride=stride, groups=channels, activation=None)
