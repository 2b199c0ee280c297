"""RepVGG (Ding et al. 2021) as it is deployed: nothing but 3×3 convolutions and ReLUs.

What training adds to each convolution, and takes away again, is the business of `hwsearch.reparam`.
"""

from __future__ import annotations

from torch import Tensor, nn

from hwsearch.zoo.blocks import conv_norm, initialise, scaled

BLOCKS = (2, 4, 14, 1)
"""Blocks of each stage of RepVGG-A (table 2 of the paper)."""

CHANNELS = (48, 96, 192, 1280)
"""Channels of each stage of RepVGG-A0; the stem has those of the first."""


def repvgg_a0(classes: int = 10, *, width: float = 1.0, small: bool = True) -> RepVGG:
    """RepVGG-A0; see `RepVGG` for the arguments."""
    return RepVGG(classes, width=width, small=small)


class RepVGG(nn.Module):
    """[N, 3, H, W] images to [N, classes] logits.

    Args:
        classes: Outputs.
        width: Multiplies all channels.
        small: For 32×32 images: the first two of the five strides are 1.
        blocks: Of each stage.
    """

    def __init__(
        self, classes: int, *, width: float = 1.0, small: bool = True, blocks: tuple[int, int, int, int] = BLOCKS
    ) -> None:
        super().__init__()
        widths = [scaled(base, width) for base in CHANNELS]
        self.stage0 = conv_norm(3, widths[0], stride=1 if small else 2)
        self.stage1 = _stage(widths[0], widths[0], blocks[0], stride=1 if small else 2)
        self.stage2 = _stage(widths[0], widths[1], blocks[1])
        self.stage3 = _stage(widths[1], widths[2], blocks[2])
        self.stage4 = _stage(widths[2], widths[3], blocks[3])
        self.linear = nn.Linear(widths[3], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stage0(images)))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int = 2) -> nn.Sequential:
    first = conv_norm(inputs, outputs, stride=stride)
    return nn.Sequential(first, *(conv_norm(outputs, outputs) for _ in range(blocks - 1)))
