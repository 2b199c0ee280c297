"""MobileNetV1 (Howard et al. 2017): each convolution split into a depthwise and a pointwise one.

A 3×3 convolution of N channels to N channels costs 1/N + 1/9 of what it would cost whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hwsearch.zoo.blocks import conv_norm, initialise, scaled

BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
"""Channels and stride of each block (table 1 of the paper)."""


def mobilenet_v1(classes: int = 10, *, width: float = 1.0, small: bool = True) -> MobileNetV1:
    """MobileNetV1; see `MobileNetV1` for the arguments."""
    return MobileNetV1(classes, width=width, small=small)


class MobileNetV1(nn.Module):
    """[N, 3, H, W] images to [N, classes] logits.

    Args:
        classes: Outputs.
        width: Multiplies all channels.
        small: For 32×32 images: the first two of the five strides are 1.
        blocks: Channels and stride of each.
    """

    def __init__(
        self, classes: int, *, width: float = 1.0, small: bool = True, blocks: Sequence[tuple[int, int]] = BLOCKS
    ) -> None:
        super().__init__()
        channels = scaled(32, width)
        layers: list[nn.Module] = [conv_norm(3, channels, stride=1 if small else 2)]
        for i, (base, stride) in enumerate(blocks):
            outputs = scaled(base, width)
            layers.append(separable(channels, outputs, 1 if small and i == 1 else stride))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3×3 and pointwise convolution, each with norm and activation; keeps the image size unless strided."""
    return nn.Sequential(conv_norm(inputs, inputs, stride=stride, groups=inputs), conv_norm(inputs, outputs, 1))
