"""The six branches of an OREPA block: each as a kernel, and as the convolutions in a row it stands for.

Weights are made as the reference makes them (He et al. 2015), so that training starts alike.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.reparam.branches import NearIdentity
from hwsearch.reparam.geometry import Geometry
from hwsearch.reparam.kernels import after_pointwise, centred, mean, per_output

Prior = Literal["paper", "dct"]

MULTIPLIER = 8
"""Filters per input channel of the separable branch."""

FEW_GROUPS = 4
"""Up to this many groups, the 1×1 in front of a k×k has as many outputs as inputs; above it, twice as many."""


class OrepaBranch(nn.Module):
    """A bias-free linear map [N, I, H, W] to [N, O, H', W'].

    Attributes:
        start: What the branch's scale begins with.
        kept: Numbers that making the kernel keeps for the backward pass, beside parameters.
    """

    start = 1.0
    kept = 0

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def kernel(self, scale: Tensor) -> Tensor:
        """The kernel [O, I / groups, k, k] times `scale` [O]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The branch as it is drawn: one convolution after the other."""
        raise NotImplementedError

    def between(self, before: int) -> int:
        """Numbers of the map between its convolutions, for `before` input pixels, or 0."""
        return 0 * before


class Origin(OrepaBranch):
    """k×k."""

    start = 0.25

    def __init__(self, geometry: Geometry, slope: float) -> None:
        super().__init__(geometry)
        self.weight = filters(geometry.outputs, geometry.inputs // geometry.groups, geometry.kernel, slope)

    def kernel(self, scale: Tensor) -> Tensor:  # noqa: D102
        return self.weight * per_output(scale)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _spatial(x, self.weight, self.geometry)


class Pointwise(OrepaBranch):
    """1×1."""

    def __init__(self, geometry: Geometry, slope: float) -> None:
        super().__init__(geometry)
        self.weight = filters(geometry.outputs, geometry.inputs // geometry.groups, 1, slope)

    def kernel(self, scale: Tensor) -> Tensor:  # noqa: D102
        return centred(self.weight * per_output(scale), self.geometry.kernel)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return functional.conv2d(x, self.weight, stride=self.geometry.stride, groups=self.geometry.groups)


class Average(OrepaBranch):
    """1×1, then a k×k average."""

    start = 0.25

    def __init__(self, geometry: Geometry, slope: float) -> None:
        super().__init__(geometry)
        self.weight = filters(geometry.outputs, geometry.inputs // geometry.groups, 1, slope)

    def kernel(self, scale: Tensor) -> Tensor:  # noqa: D102
        return self.weight * per_output(scale) * mean(self.geometry.kernel, self.weight)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        g = self.geometry
        pixels = functional.conv2d(x, self.weight, groups=g.groups)
        return functional.avg_pool2d(pixels, g.kernel, g.stride, g.padding)

    def between(self, before: int) -> int:  # noqa: D102
        return before * self.geometry.outputs


class Frequency(OrepaBranch):
    """1×1, then a fixed cosine per output channel."""

    start = 0.0
    prior: Tensor

    def __init__(self, geometry: Geometry, slope: float, *, prior: Prior = "dct") -> None:
        super().__init__(geometry)
        self.weight = filters(geometry.outputs, geometry.inputs // geometry.groups, 1, slope)
        self.register_buffer("prior", cosines(prior, geometry.outputs, geometry.kernel)[:, None])
        self.kept = self.weight.numel()

    def kernel(self, scale: Tensor) -> Tensor:  # noqa: D102
        return self.weight * per_output(scale) * self.prior

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        g = self.geometry
        pixels = functional.conv2d(x, self.weight, groups=g.groups)
        return functional.conv2d(pixels, self.prior, stride=g.stride, padding=g.padding, groups=g.outputs)

    def between(self, before: int) -> int:  # noqa: D102
        return before * self.geometry.outputs


class PointwiseConv(OrepaBranch):
    """1×1 near the identity, then k×k."""

    start = 0.5

    def __init__(self, geometry: Geometry, slope: float) -> None:
        super().__init__(geometry)
        self.pointwise = NearIdentity(geometry, repeats=1 if geometry.groups <= FEW_GROUPS else 2)
        self.inner = len(self.pointwise.weight)
        self.weight = filters(geometry.outputs, self.inner // geometry.groups, geometry.kernel, slope)
        self.kept = self.weight.numel() + self.pointwise.weight.numel()

    def kernel(self, scale: Tensor) -> Tensor:  # noqa: D102
        return after_pointwise(self.pointwise.kernel(), self.weight * per_output(scale), self.geometry.groups)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _spatial(self.pointwise(x), self.weight, self.geometry)

    def between(self, before: int) -> int:  # noqa: D102
        return before * self.inner


class Separable(OrepaBranch):
    """k×k on every channel, `MULTIPLIER` filters each, then 1×1."""

    start = 0.5

    def __init__(self, geometry: Geometry, slope: float) -> None:
        super().__init__(geometry)
        g = geometry
        self.depthwise = filters(MULTIPLIER * g.inputs, 1, g.kernel, slope)
        self.weight = filters(g.outputs, MULTIPLIER * g.inputs // g.groups, 1, slope)
        self.kept = self.weight.numel()

    def kernel(self, scale: Tensor) -> Tensor:  # noqa: D102
        g = self.geometry
        inputs = g.inputs // g.groups
        pointwise = (self.weight * per_output(scale)).reshape(g.groups, -1, inputs, MULTIPLIER)
        filters = self.depthwise.reshape(g.groups, inputs, MULTIPLIER, g.kernel, g.kernel)
        return torch.einsum("goie,giehw->goihw", pointwise, filters).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        g = self.geometry
        filtered = functional.conv2d(x, self.depthwise, stride=g.stride, padding=g.padding, groups=g.inputs)
        return functional.conv2d(filtered, self.weight, groups=g.groups)

    def between(self, before: int) -> int:  # noqa: D102
        vertical, horizontal = self.geometry.stride
        return before * self.geometry.inputs * MULTIPLIER // (vertical * horizontal)


def cosines(prior: Prior, outputs: int, size: int) -> Tensor:
    """Fixed filters [outputs, size, size].

    ``paper`` repeats with a period of 2 · size and so holds few different filters, some of them zero; ``dct`` holds
    every basis function of the two-dimensional discrete cosine transform in turn.
    """
    pixel = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    channel = torch.arange(outputs, dtype=torch.float64)
    if prior == "dct":
        basis = torch.cos(torch.arange(size)[:, None] * pixel)
        row, column = torch.arange(outputs) % size**2 // size, torch.arange(outputs) % size
        made = basis[row][:, :, None] * basis[column][:, None, :]
    else:
        down = torch.cos((channel + 1)[:, None] * pixel)[:, :, None]
        across = torch.cos((channel + 1 - outputs / 2)[:, None] * pixel)[:, None, :]
        made = torch.where((channel < outputs / 2)[:, None, None], down, across)
    return made.to(torch.get_default_dtype())


def filters(outputs: int, inputs: int, size: int, slope: float) -> nn.Parameter:
    """A weight [outputs, inputs, size, size], drawn for activations with this negative slope (He et al. 2015)."""
    weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
    nn.init.kaiming_uniform_(weight, a=slope)
    return weight


def _spatial(x: Tensor, weight: Tensor, g: Geometry) -> Tensor:
    return functional.conv2d(x, weight, stride=g.stride, padding=g.padding, groups=g.groups)
