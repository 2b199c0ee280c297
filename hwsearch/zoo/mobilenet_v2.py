"""MobileNetV2 (Sandler et al. 2018): inverted residuals with linear bottlenecks.

Parameters are named as in torchvision, whose pretrained weights load into ``mobilenet_v2(classes=1000, small=False)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hwsearch.zoo.blocks import conv_norm, initialise, scaled

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and stride of each stage (table 2 of the paper)."""


def mobilenet_v2(classes: int = 10, *, width: float = 1.0, small: bool = True) -> MobileNetV2:
    """MobileNetV2; see `MobileNetV2` for the arguments."""
    return MobileNetV2(classes, width=width, small=small)


class MobileNetV2(nn.Module):
    """[N, 3, H, W] images to [N, classes] logits.

    Args:
        classes: Outputs.
        width: Multiplies all channels.
        small: For 32×32 images: the first two of the five strides are 1.
        stages: Expansion, channels, blocks and stride of each.
    """

    def __init__(
        self,
        classes: int,
        *,
        width: float = 1.0,
        small: bool = True,
        stages: Sequence[tuple[int, int, int, int]] = STAGES,
    ) -> None:
        super().__init__()
        channels = scaled(32, width)
        blocks: list[nn.Module] = [conv_norm(3, channels, stride=1 if small else 2, activation=nn.ReLU6)]
        for stage, (expansion, base, count, first_stride) in enumerate(stages):
            outputs = scaled(base, width)
            for i in range(count):
                stride = first_stride if i == 0 and not (small and stage == 1) else 1
                blocks.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        last = scaled(1280, max(1.0, width))
        self.features = nn.Sequential(*blocks, conv_norm(channels, last, 1, activation=nn.ReLU6))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Expand, depthwise, project without activation; added to the input where the shape is the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_norm(inputs, hidden, 1, activation=nn.ReLU6)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            conv_norm(hidden, hidden, stride=stride, groups=hidden, activation=nn.ReLU6),
            *conv_norm(hidden, outputs, 1, activation=None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out
