"""The branches that training sums up and merging folds into one kernel.

Each is linear in eval mode and answers `equivalent()` with a `Kernel` whose size is odd and at most the block's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.reparam.geometry import Geometry
from hwsearch.reparam.kernels import Kernel, affine, after_pointwise, fold, identity, mean, through


class Branch(nn.Module):
    """One of the linear maps [N, I, H, W] to [N, O, H', W'] that a block adds up.

    Attributes:
        norm: The batch norm at its end.
    """

    norm: nn.BatchNorm2d

    def equivalent(self) -> Kernel:
        """Weight [O, I / groups, h, w] and bias [O] of the convolution this branch is in eval mode."""
        raise NotImplementedError

    def silence(self) -> None:
        """Let the branch contribute nothing until training gives it a scale."""
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)


class ConvNorm(Branch):
    """A convolution and a batch norm.

    Args:
        geometry: Of the block.
        kernel: Height and width, or both in one; None for the block's.
    """

    def __init__(self, geometry: Geometry, kernel: int | tuple[int, int] | None = None) -> None:
        super().__init__()
        self.conv = geometry.conv(kernel)
        self.norm = nn.BatchNorm2d(geometry.outputs)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.norm(self.conv(x))
        return out

    def equivalent(self) -> Kernel:  # noqa: D102
        return fold(self.conv.weight, 0.0, self.norm)

    def take(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Become ``norm(conv(x))``."""
        copy_weights(conv, self.conv)
        copy_norm(norm, conv.bias, self.norm)


class IdentityNorm(Branch):
    """A batch norm of the input itself."""

    kernel: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(geometry.outputs)
        self.register_buffer("kernel", identity(geometry.inputs, geometry.groups), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.norm(x)
        return out

    def equivalent(self) -> Kernel:  # noqa: D102
        return fold(self.kernel, 0.0, self.norm)


class PointwiseConvNorm(Branch):
    """1×1 (near the identity), batch norm, k×k, batch norm; twice as many channels between them if depthwise."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.pointwise = NearIdentity(geometry, repeats=2 if geometry.depthwise else 1)
        inner = len(self.pointwise.weight)
        self.inner = nn.BatchNorm2d(inner)
        self.conv = nn.Conv2d(inner, geometry.outputs, geometry.kernel, groups=geometry.groups, bias=False)
        self.norm = nn.BatchNorm2d(geometry.outputs)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        between, rest = zero_kept(self.inner, self.pointwise(x))
        g, weight = self.geometry, self.conv.weight
        bias = through(rest, weight, g.groups)
        out: Tensor = self.norm(functional.conv2d(between, weight, bias, g.stride, g.padding, groups=g.groups))
        return out

    def equivalent(self) -> Kernel:  # noqa: D102
        first, bias = fold(self.pointwise.kernel(), 0.0, self.inner)
        weight, groups = self.conv.weight, self.geometry.groups
        return fold(after_pointwise(first, weight, groups), through(bias, weight, groups), self.norm)


class PointwisePoolNorm(Branch):
    """1×1, batch norm, k×k average, batch norm."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.conv = nn.Conv2d(geometry.inputs, geometry.outputs, 1, groups=geometry.groups, bias=False)
        self.inner = nn.BatchNorm2d(geometry.outputs)
        self.norm = nn.BatchNorm2d(geometry.outputs)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        between, rest = zero_kept(self.inner, self.conv(x))
        out: Tensor = self.norm(_pool(between, self.geometry) + rest[:, None, None])
        return out

    def equivalent(self) -> Kernel:  # noqa: D102
        weight, bias = fold(self.conv.weight, 0.0, self.inner)
        return fold(weight * mean(self.geometry.kernel, weight), bias, self.norm)


class PoolNorm(Branch):
    """A k×k average of every channel on its own, and a batch norm; for depthwise blocks."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.norm = nn.BatchNorm2d(geometry.outputs)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.norm(_pool(x, self.geometry))
        return out

    def equivalent(self) -> Kernel:  # noqa: D102
        window = mean(self.geometry.kernel, self.norm.weight)
        return fold(window.expand(self.geometry.outputs, -1, -1, -1), 0.0, self.norm)


class NearIdentity(nn.Module):
    """A 1×1 convolution that starts as the identity and is drawn back there by weight decay.

    Args:
        geometry: Of the block.
        repeats: Outputs per input.
    """

    start: Tensor

    def __init__(self, geometry: Geometry, *, repeats: int) -> None:
        super().__init__()
        self.groups = geometry.groups
        self.register_buffer("start", identity(geometry.inputs, self.groups, repeats=repeats), persistent=False)
        self.weight = nn.Parameter(torch.zeros_like(self.start))

    def kernel(self) -> Tensor:
        """The weight [repeats · I, I / groups, 1, 1]."""
        return self.start + self.weight

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] to [N, repeats · I, H, W]."""
        return functional.conv2d(x, self.kernel(), groups=self.groups)


def zero_kept(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """``norm(x)`` less what the norm makes of a zero, and that [C].

    A zero pixel stays zero this way, so that zero padding afterwards is padding before. Padding the normed map with
    zeros instead would make merging wrong at the borders.
    """
    normed = norm(x)
    rest = affine(norm)[1].detach()  # after the pass, which updates the running statistics
    return normed - rest[:, None, None], rest


def copy_weights(source: nn.Conv2d, to: nn.Conv2d) -> None:
    """Copy a weight of the same shape."""
    with torch.no_grad():
        to.weight.copy_(source.weight)


def copy_norm(source: nn.BatchNorm2d, bias: Tensor | None, to: nn.BatchNorm2d) -> None:
    """Copy a batch norm; `bias` of the convolution before it moves into the running mean."""
    to.load_state_dict(source.state_dict())
    to.eps, to.momentum = source.eps, source.momentum
    if bias is not None:
        assert to.running_mean is not None
        to.running_mean -= bias.detach()


def _pool(x: Tensor, geometry: Geometry) -> Tensor:
    return functional.avg_pool2d(x, geometry.kernel, geometry.stride, geometry.padding)
