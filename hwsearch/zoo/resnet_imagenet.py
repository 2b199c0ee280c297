"""ResNets of the ImageNet form (He et al. 2016, table 1): four stages, basic or bottleneck blocks.

Parameters are named as in torchvision, whose pretrained weights load into ``resnet18(classes=1000, small=False)`` and
the like. As there, the stride of a bottleneck is at its 3×3 convolution.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from hwsearch.zoo.blocks import initialise, scaled


def resnet18(classes: int = 10, *, width: float = 1.0, small: bool = True) -> ResNet:
    """ResNet-18; see `ResNet` for the arguments."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, width=width, small=small)


def resnet34(classes: int = 10, *, width: float = 1.0, small: bool = True) -> ResNet:
    """ResNet-34; see `ResNet` for the arguments."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes, width=width, small=small)


def resnet50(classes: int = 10, *, width: float = 1.0, small: bool = True) -> ResNet:
    """ResNet-50; see `ResNet` for the arguments."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, width=width, small=small)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, added to the shortcut."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, channels, H / stride, W / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """A 3×3 convolution between two 1×1 ones that narrow and widen, added to the shortcut."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, 4 * channels, H / stride, W / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        return functional.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet(nn.Module):
    """[N, 3, H, W] images to [N, classes] logits.

    Args:
        block: What the stages are made of.
        blocks: How many of each stage.
        classes: Outputs.
        width: Multiplies all channels.
        small: For 32×32 images: the first convolution is 3×3 with stride 1, and no pool follows.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: tuple[int, int, int, int],
        classes: int,
        *,
        width: float = 1.0,
        small: bool = True,
    ) -> None:
        super().__init__()
        stem = scaled(64, width)
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False) if small else nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        widths = [scaled(base, width) for base in (64, 128, 256, 512)]
        inputs = [stem, *(channels * block.expansion for channels in widths)]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(block, inputs[i], widths[i], blocks[i], stride=1 if i == 0 else 2) for i in range(4)
        )
        self.fc = nn.Linear(inputs[-1], classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(block: type[BasicBlock | Bottleneck], inputs: int, channels: int, count: int, stride: int) -> nn.Sequential:
    first = block(inputs, channels, stride)
    return nn.Sequential(first, *(block(channels * block.expansion, channels, 1) for _ in range(count - 1)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
