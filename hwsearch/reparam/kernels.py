"""The algebra of merging: kernels of convolutions in a row or side by side, as one kernel.

A kernel is a weight [O, I / groups, h, w] and a bias [O] of a cross-correlation whose zero padding keeps kernels of all
sizes centred on the same pixel. The numerals are the transforms of Ding et al., "Diverse Branch Block", CVPR 2021,
section 3.2. Everything is differentiable and computes in the type it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Kernel = tuple[Tensor, Tensor]


def affine(norm: nn.BatchNorm2d) -> Kernel:
    """Scale and shift [O] that a batch norm applies in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def fold(weight: Tensor, bias: Tensor | float, norm: nn.BatchNorm2d) -> Kernel:
    """Transform I: a convolution followed by a batch norm."""
    scale, shift = affine(norm)
    return weight * per_output(scale), bias * scale + shift


def per_output(vector: Tensor) -> Tensor:
    """A vector [O] in the form that multiplies a weight [O, I / groups, h, w] along its outputs."""
    return vector[:, None, None, None]


def after_pointwise(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """Transform III: a 1×1 kernel [T, I / groups, 1, 1] followed by `second` [O, T / groups, h, w].

    Exact at the borders too as long as the map between them is padded with what the first makes of a zero pixel.
    """
    inner, inputs = first.shape[:2]
    spatial = second.reshape(groups, -1, inner // groups, *second.shape[2:])
    pointwise = first.reshape(groups, inner // groups, inputs)
    return torch.einsum("gothw,gti->goihw", spatial, pointwise).flatten(0, 1)


def through(bias: Tensor, weight: Tensor, groups: int) -> Tensor:
    """What a constant input [T] becomes behind `weight` [O, T / groups, h, w], away from the borders: [O]."""
    taps = weight.sum((2, 3)).reshape(groups, -1, weight.shape[1])
    return torch.einsum("got,gt->go", taps, bias.reshape(groups, -1)).flatten()


def compose(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """The kernel [O, I / groups, h + h' − 1, w + w' − 1] of two kernels in a row with nothing between them.

    Cross-correlations compose by a full convolution of their kernels, hence the flip.
    """
    inner, inputs, height, width = first.shape
    images = first.reshape(groups, inner // groups, inputs, height, width).permute(2, 0, 1, 3, 4).flatten(1, 2)
    full = (second.shape[2] - 1, second.shape[3] - 1)
    return functional.conv2d(images, second.flip(2, 3), padding=full, groups=groups).transpose(0, 1)


def centred(weight: Tensor, size: int) -> Tensor:
    """Transform VI: the kernel with zeros around it, `size` × `size`; both sizes are odd."""
    vertical, horizontal = (size - weight.shape[2]) // 2, (size - weight.shape[3]) // 2
    return functional.pad(weight, [horizontal, horizontal, vertical, vertical])


def identity(channels: int, groups: int, *, repeats: int = 1) -> Tensor:
    """The 1×1 kernel [repeats · channels, channels / groups, 1, 1] that copies, each group `repeats` times over."""
    inputs = channels // groups
    rows = torch.arange(repeats * channels)
    weight = torch.zeros(repeats * channels, inputs, 1, 1)
    weight[rows, rows % inputs] = 1.0
    return weight


def mean(size: int, like: Tensor) -> Tensor:
    """Transform V: the kernel [1, 1, size, size] of an average over a window that counts padding."""
    return torch.full((1, 1, size, size), 1 / size**2, dtype=like.dtype, device=like.device)
