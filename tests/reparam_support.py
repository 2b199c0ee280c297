"""What the tests of re-parameterisation share."""

import torch
from torch import nn
from torch.nn import functional


def randomised(module, seed=0):
    """The module in eval mode with random weights, scales and batch norm statistics."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
            else:
                for parameter in part.parameters(recurse=False):
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def difference(found, expected):
    """Largest difference, relative to the largest of the expected values or 1."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


class Small(nn.Module):
    """A strided stem, a residual block whose first convolution has a bias, a depthwise and a 1×1 convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn3 = nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False), nn.BatchNorm2d(8)
        self.pointwise, self.bn4 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 12, 3, padding=1)
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        x = self.stem(x)
        x = functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + x)
        x = functional.relu(self.bn4(self.pointwise(functional.relu(self.bn3(self.depthwise(x))))))
        return self.linear(self.last(x).mean((2, 3)))
