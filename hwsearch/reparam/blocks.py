"""Blocks that are several branches in training and one convolution afterwards.

Each stands for a convolution and the batch norm behind it; the activation stays outside, in the network.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hwsearch.reparam.branches import (
    Branch,
    ConvNorm,
    IdentityNorm,
    PointwiseConvNorm,
    PointwisePoolNorm,
    PoolNorm,
    copy_norm,
    copy_weights,
)
from hwsearch.reparam.geometry import Geometry
from hwsearch.reparam.kernels import Kernel, centred, fold, identity


class RepBlock(nn.Module):
    """[N, I, H, W] to [N, O, H', W'], linear in eval mode.

    Attributes:
        geometry: Of the convolution it merges into.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def equivalent(self) -> Kernel:
        """Weight [O, I / groups, k, k] and bias [O] of the convolution it is in eval mode; differentiable."""
        raise NotImplementedError

    def take(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Become ``norm(conv(x))`` exactly, in training mode too, with every branch free to learn from there."""
        raise NotImplementedError

    @classmethod
    def fits(cls, geometry: Geometry) -> bool:
        """Whether the block is meant for convolutions like this one."""
        return geometry.kernel > 1

    def merged(self) -> nn.Conv2d:
        """A new convolution that computes the same in eval mode, in the block's type and on its device.

        Kernels are multiplied in float64: the one rounding is that of the result.
        """
        exact = copy.deepcopy(self).double().eval().requires_grad_(requires_grad=False)
        weight, bias = exact.equivalent()
        like = next(self.parameters())
        conv = self.geometry.conv(bias=True).to(like.device, like.dtype)
        with torch.no_grad():
            conv.weight.copy_(weight)
            assert conv.bias is not None
            conv.bias.copy_(bias)
        return conv.train(self.training)


class BranchSum(RepBlock):
    """The sum of branches that end in a batch norm each.

    Args:
        geometry: Of the convolution it merges into.
        main: The branch that can become any convolution with batch norm.
        others: The rest, by name.
    """

    def __init__(self, geometry: Geometry, main: ConvNorm | RepBlock, others: dict[str, Branch]) -> None:
        super().__init__(geometry)
        self.main = main
        self.others = nn.ModuleDict(others)

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] to [N, O, H', W']."""
        out: Tensor = self.main(x)
        for branch in self.others.values():
            out = out + branch(x)
        return out

    def equivalent(self) -> Kernel:  # noqa: D102
        weight, bias = self.main.equivalent()
        for branch in self.others.values():
            assert isinstance(branch, Branch)
            part, offset = branch.equivalent()
            weight, bias = weight + centred(part, self.geometry.kernel), bias + offset
        return weight, bias

    def take(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:  # noqa: D102
        self.main.take(conv, norm)
        for branch in self.others.values():
            assert isinstance(branch, Branch)
            branch.silence()


class Plain(BranchSum):
    """k×k with a batch norm and nothing else: how a merged convolution is trained further."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry, ConvNorm(geometry), {})

    @classmethod
    def fits(cls, geometry: Geometry) -> bool:  # noqa: ARG003, D102
        return True


class RepVGG(BranchSum):
    """k×k, 1×1 and identity, each with a batch norm (Ding et al., "RepVGG", CVPR 2021)."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry, ConvNorm(geometry), thin_branches(geometry))


class MobileOne(BranchSum):
    """Several k×k, 1×1 and identity, each with a batch norm (Vasu et al., "MobileOne", CVPR 2023).

    Args:
        geometry: Of the convolution it merges into.
        copies: Branches with the full kernel; 4 in the smallest of the paper's networks, 1 in most others.
    """

    def __init__(self, geometry: Geometry, *, copies: int = 4) -> None:
        more: dict[str, Branch] = {f"copy{i}": ConvNorm(geometry) for i in range(1, copies)}
        super().__init__(geometry, ConvNorm(geometry), more | thin_branches(geometry))

    @classmethod
    def fits(cls, geometry: Geometry) -> bool:  # noqa: ARG003, D102
        return True


class ACB(BranchSum):
    """k×k, k×1 and 1×k, each with a batch norm (Ding et al., "ACNet", ICCV 2019, asymmetric convolution block)."""

    def __init__(self, geometry: Geometry) -> None:
        k = geometry.kernel
        thin: dict[str, Branch] = {}
        if k > 1:
            thin = {"vertical": ConvNorm(geometry, (k, 1)), "horizontal": ConvNorm(geometry, (1, k))}
        super().__init__(geometry, ConvNorm(geometry), thin)


class DBB(BranchSum):
    """k×k; 1×1; 1×1 and k×k; 1×1 and average; batch norms behind every part (Ding et al., "DBB", CVPR 2021).

    Branches that would be the same map twice are left out: 1×1 and average of a 1×1 block, 1×1 of a depthwise one.
    """

    def __init__(self, geometry: Geometry) -> None:
        others: dict[str, Branch] = {"pointwise_conv": PointwiseConvNorm(geometry)}
        if geometry.kernel > 1:
            others["pool"] = PoolNorm(geometry) if geometry.depthwise else PointwisePoolNorm(geometry)
            if not geometry.depthwise:
                others["pointwise"] = ConvNorm(geometry, 1)
        super().__init__(geometry, ConvNorm(geometry), others)


class QARepVGG(RepBlock):
    """k×k with a batch norm, 1×1 and identity without, and one batch norm of the sum (Chu et al., AAAI 2024).

    Without batch norms of their own, the 1×1 and the identity cannot put a few huge weights on the kernel's centre, so
    the merged convolution quantises like an ordinary one.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.main = ConvNorm(geometry)
        self.pointwise = geometry.conv(1)
        self.norm = nn.BatchNorm2d(geometry.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] to [N, O, H', W']."""
        total = self.main(x) + self.pointwise(x)
        out: Tensor = self.norm(total + x if self.geometry.keeps_shape else total)
        return out

    def equivalent(self) -> Kernel:  # noqa: D102
        weight, bias = self.main.equivalent()
        pointwise = self.pointwise.weight
        if self.geometry.keeps_shape:
            pointwise = pointwise + self._identity()
        return fold(weight + centred(pointwise, self.geometry.kernel), bias, self.norm)

    def take(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Become ``norm(conv(x))``: the inner norm undoes itself, and the 1×1 starts as minus the identity.

        In training mode this holds up to what a second `eps` changes.
        """
        copy_weights(conv, self.main.conv)
        copy_norm(norm, conv.bias, self.main.norm)
        copy_norm(norm, conv.bias, self.norm)
        inner = self.main.norm
        assert inner.running_mean is not None
        assert inner.running_var is not None
        with torch.no_grad():
            inner.weight.copy_((inner.running_var + inner.eps).sqrt())
            inner.bias.copy_(inner.running_mean)
            self.pointwise.weight.zero_()
            if self.geometry.keeps_shape:
                self.pointwise.weight.sub_(self._identity())

    def _identity(self) -> Tensor:
        return identity(self.geometry.inputs, self.geometry.groups).to(self.norm.weight)


def thin_branches(geometry: Geometry) -> dict[str, Branch]:
    """The 1×1 and the identity beside a full kernel, where they differ from it and exist."""
    branches: dict[str, Branch] = {}
    if geometry.kernel > 1:
        branches["pointwise"] = ConvNorm(geometry, 1)
    if geometry.keeps_shape:
        branches["identity"] = IdentityNorm(geometry)
    return branches
