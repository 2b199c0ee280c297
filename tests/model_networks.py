"""Small networks that tests trace; each stands for one difficulty."""

import functools

import torch
from torch import nn
from torch.nn import functional

from hwsearch.model.graph import trace
from hwsearch.zoo.resnet import ResNet, resnet20


class Depthwise(nn.Module):
    """Depthwise convolution, batch norms with and without weights, flatten into a linear layer with one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8, affine=False)
        self.depth = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.depth_bn = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 12, 1)
        self.hidden = nn.Linear(12 * 4, 16)
        self.hidden_bn = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 5, bias=False)

    def forward(self, x):
        x = functional.relu(self.stem_bn(self.stem(x)))
        x = functional.relu6(self.depth_bn(self.depth(x)))
        x = functional.max_pool2d(functional.hardswish(self.point(x)), 4)
        x = x.view(x.size(0), -1)
        return self.head(functional.relu(self.hidden_bn(self.hidden(x))))


class Concat(nn.Module):
    """Two branches side by side, read by one convolution and, after a mean, by a linear layer."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.join = nn.Conv2d(10, 6, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        sides = torch.cat([torch.relu(self.left(x)), torch.sigmoid(self.right(x))], 1)
        return self.head(torch.cat([torch.relu(self.join(sides)), sides], 1).mean((2, 3)))


class PreActivation(nn.Module):
    """A batch norm before its convolution cannot be folded; two residual blocks, one with a second reader."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.one(torch.relu(self.norm(x)))
        inner = self.two(x)
        x = (x + inner) * torch.sigmoid(inner)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Gated(nn.Module):
    """A residual block whose inner channels are scaled by a squeeze-and-excitation gate: tied, but not by a sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.expand, self.project = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        y = torch.relu(self.expand(x))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head((x + self.project(y)).mean((2, 3)))


class Transformer(nn.Module):
    """A ViT with one `nn.MultiheadAttention` block and one hand-written attention block."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads = heads
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 24), nn.Linear(24, width, bias=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        x = x + self.fc2(functional.gelu(self.fc1(self.norm3(x))))
        return self.head(x[:, 0])


def shuffle(x):
    """Channels of two groups, interleaved."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Awkward(nn.Module):
    """Channels that cannot simply go: split, grouped, shuffled, scaled by a parameter, fixed by a reshape, reused."""

    def __init__(self):
        super().__init__()
        self.split, self.side = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1)
        self.before_grouped, self.grouped = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.shuffled, self.scaled, self.fixed = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.twice = nn.Conv2d(4, 4, 1)
        self.plain, self.after = nn.Conv2d(4, 7, 1), nn.Conv2d(7, 3, 1)
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        left, right = self.split(x).chunk(2, 1)
        x = shuffle(torch.cat([left, torch.relu(self.side(right))], 1))
        x = torch.relu(self.grouped(torch.relu(self.before_grouped(x))))
        x = shuffle(self.shuffled(x))
        n, _, h, w = x.shape
        x = torch.relu(self.scaled(x)) * self.scale
        x = self.fixed(x).reshape(n, 2, 2, h, w).sum(1).repeat(1, 2, 1, 1)
        x = self.twice(torch.relu(self.twice(x)))
        return self.head(self.after(torch.relu(self.plain(x))).mean((2, 3)))


def randomised(module):
    """`module` in eval mode with norm statistics and weights as after training, not as after construction."""
    draw = torch.Generator().manual_seed(0)
    for part in module.modules():
        if getattr(part, "running_mean", None) is not None:
            part.running_mean.normal_(generator=draw)
            part.running_var.uniform_(0.5, 2, generator=draw)
            if part.weight is not None:
                part.weight.data.uniform_(0.5, 1.5, generator=draw)
                part.bias.data.normal_(generator=draw)
    return module.eval()


NETWORKS = {
    "resnet20": (resnet20, 32),
    "resnet8-b": (functools.partial(ResNet, 1, 10, shortcut="B", width=0.5), 16),
    "depthwise": (Depthwise, 16),
    "concat": (Concat, 8),
    "pre-activation": (PreActivation, 8),
    "gated": (Gated, 8),
    "transformer": (Transformer, 16),
    "awkward": (Awkward, 8),
}


@functools.cache
def traced(name):
    """The traced network called `name`; traced once for all tests."""
    torch.manual_seed(0)
    build, size = NETWORKS[name]
    return trace(randomised(build()), torch.zeros(1, 3, size, size), name=name)
