"""ResNet-18, 34 and 50 for large images (He et al. 2016), plain and in the training forms that are compared."""

from __future__ import annotations

from torch import nn
from torch.nn import functional

from hwsearch.reparam.expand import expand

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


class Residual(nn.Module):
    """Two 3×3 convolutions, or 1×1, 3×3 and 1×1, added to the shortcut."""

    def __init__(self, inputs, channels, stride, bottleneck):
        super().__init__()
        outputs = 4 * channels if bottleneck else channels
        shapes = [(inputs, channels, 3, stride), (channels, channels, 3, 1)]
        if bottleneck:
            shapes = [(inputs, channels, 1, 1), (channels, channels, 3, stride), (channels, outputs, 1, 1)]
        self.convs = nn.Sequential(*(conv_norm(*shape, relu=i < len(shapes) - 1) for i, shape in enumerate(shapes)))
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else conv_norm(inputs, outputs, 1, stride, relu=False)

    def forward(self, x):
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return functional.relu(self.convs(x) + self.shortcut(x))


def conv_norm(inputs, outputs, kernel, stride, *, relu):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU() if relu else nn.Identity())


def resnet(name, width=1.0):
    """The network called `name`, all channels times `width`."""
    bottleneck = name == "resnet50"
    inputs = round(64 * width)
    layers = [conv_norm(3, inputs, 7, 2, relu=True), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(DEPTHS[name]):
        channels = round(64 * width) << stage
        for i in range(depth):
            layers.append(Residual(inputs, channels, 2 if stage > 0 and i == 0 else 1, bottleneck))
            inputs = 4 * channels if bottleneck else channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def variants(name, width):
    """Plain, DBB and OREPA; as in the papers, only OREPA replaces the 7×7 stem, and both leave 1×1 alone."""
    plain = resnet(name, width)
    return {
        "plain": plain,
        "dbb": expand(plain, "dbb", layers=["*.convs.*"], fresh=True),
        "orepa": expand(expand(plain, "orepa_stack", layers=["0.0"], fresh=True), "orepa", fresh=True),
    }
