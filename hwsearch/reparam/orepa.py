"""OREPA: branches that are squeezed into one kernel in every training step (Hu et al., CVPR 2022, arXiv 2204.00826).

No branch has a batch norm; each ends in a learnt scale per output channel, and one batch norm follows the sum. So the
block is linear in training too: its parameters make one kernel, and feature maps see one convolution. The branches
then cost memory in proportion to kernels, C² · k², and no longer to feature maps, N · C · H · W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.reparam.blocks import BranchSum, RepBlock, thin_branches
from hwsearch.reparam.branches import copy_norm
from hwsearch.reparam.geometry import Geometry
from hwsearch.reparam.kernels import Kernel, after_pointwise, compose, fold, identity, per_output
from hwsearch.reparam.orepa_branches import (
    Average,
    Frequency,
    OrepaBranch,
    Origin,
    Pointwise,
    PointwiseConv,
    Prior,
    Separable,
    filters,
)

Squeeze = Literal["auto", "always", "never"]

_KINDS: dict[str, Callable[[Geometry, float], OrepaBranch]] = {
    "origin": Origin,
    "average": Average,
    "frequency": Frequency,
    "pointwise_conv": PointwiseConv,
    "pointwise": Pointwise,
    "separable": Separable,
}
BRANCHES = tuple(_KINDS)


class OrepaKernel(nn.Module):
    """A kernel [O, I / groups, k, k] made of scaled branches.

    Args:
        geometry: Of the convolution.
        branches: Names out of `BRANCHES`, ``origin`` among them.
        prior: Of the branch ``frequency``.
        slope: Negative slope that the initialisation assumes.

    Raises:
        ConfigError: an unknown branch, or no origin.
    """

    def __init__(
        self, geometry: Geometry, *, branches: Sequence[str] = BRANCHES, prior: Prior = "dct", slope: float = 0.0
    ) -> None:
        super().__init__()
        self.geometry = geometry
        kinds = _KINDS | {"frequency": partial(Frequency, prior=prior)}
        made = {name: kinds[name](geometry, slope) for name in _checked(branches)}
        self.branches = nn.ModuleDict(made)
        self.scales = nn.Parameter(torch.tensor([[b.start] for b in made.values()]).repeat(1, geometry.outputs))

    def forward(self) -> Tensor:
        """The kernel."""
        kernels: Iterator[Tensor] = (branch.kernel(scale) for branch, scale in self._scaled())
        return reduce(torch.add, kernels)

    def explicit(self, x: Tensor) -> Tensor:
        """What the kernel makes of `x` [N, I, H, W], branch by branch."""
        maps: Iterator[Tensor] = (branch(x) * scale[:, None, None] for branch, scale in self._scaled())
        return reduce(torch.add, maps)

    def squeezing_saves(self, x: Tensor) -> bool:
        """Whether making the kernel keeps less for the backward pass than the maps of the branches would."""
        g, made = self.geometry, [branch for branch, _ in self._scaled()]
        before = x.shape[0] * x.shape[2] * x.shape[3]
        after = before * g.outputs // (g.stride[0] * g.stride[1])
        kernel = g.outputs * g.inputs // g.groups * g.kernel**2
        return kernel + sum(branch.kept for branch in made) <= sum(branch.between(before) + after for branch in made)

    def take(self, weight: Tensor) -> None:
        """Become `weight`, the other branches at scale zero."""
        names = list(self.branches)
        origin = self.branches["origin"]
        assert isinstance(origin, Origin)
        with torch.no_grad():
            origin.weight.copy_(weight)
            self.scales.zero_()
            self.scales[names.index("origin")] = 1.0

    def _scaled(self) -> Iterator[tuple[OrepaBranch, Tensor]]:
        for branch, scale in zip(self.branches.values(), self.scales, strict=True):
            assert isinstance(branch, OrepaBranch)
            yield branch, scale


class GeneratedConv(RepBlock):
    """A kernel made of parameters in every pass, one convolution with it, one batch norm."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self.norm = nn.BatchNorm2d(geometry.outputs)

    def kernel(self) -> Tensor:
        """[O, I / groups, k, k]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] to [N, O, H', W']."""
        g = self.geometry
        out: Tensor = self.norm(functional.conv2d(x, self.kernel(), None, g.stride, g.padding, groups=g.groups))
        return out

    def equivalent(self) -> Kernel:  # noqa: D102
        return fold(self.kernel(), 0.0, self.norm)


class Orepa(GeneratedConv):
    """The OREPA block, for any kernel size above 1 and any groups.

    Args:
        geometry: Of the convolution it merges into.
        branches, prior, slope: As for `OrepaKernel`.
        squeeze: Whether training makes one kernel of the branches before it convolves; ``auto``: where that keeps less
            for the backward pass, which it does unless few small images meet a wide layer. Both compute the same.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        squeeze: Squeeze = "auto",
        branches: Sequence[str] = BRANCHES,
        prior: Prior = "dct",
        slope: float = 0.0,
    ) -> None:
        super().__init__(geometry)
        self.squeeze = squeeze
        self.generator = OrepaKernel(geometry, branches=branches, prior=prior, slope=slope)

    def kernel(self) -> Tensor:  # noqa: D102
        weight: Tensor = self.generator()
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """[N, I, H, W] to [N, O, H', W']."""
        if self._squeezes(x):
            return super().forward(x)
        out: Tensor = self.norm(self.generator.explicit(x))
        return out

    def take(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:  # noqa: D102
        self.generator.take(conv.weight)
        copy_norm(norm, conv.bias, self.norm)

    def _squeezes(self, x: Tensor) -> bool:
        if self.squeeze == "auto":
            return not self.training or self.generator.squeezing_saves(x)
        return self.squeeze == "always"


class OrepaPointwise(GeneratedConv):
    """OREPA for 1×1: the kernel beside a product of two, one of which starts as the identity. Experimental.

    A user of the reference reports that networks with it do not always converge, so nothing uses it unless asked to.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        g, widens = geometry, geometry.outputs > geometry.inputs
        inner = min(g.inputs, g.outputs)
        self.weight = filters(g.outputs, g.inputs // g.groups, 1, slope=1.0)
        self.first = nn.Parameter(identity(inner, g.groups)) if widens else filters(inner, g.inputs // g.groups, 1, 1.0)
        self.second = (
            filters(g.outputs, inner // g.groups, 1, 1.0) if widens else nn.Parameter(identity(inner, g.groups))
        )
        self.scales = nn.Parameter(torch.tensor([[1.0], [0.5]]).repeat(1, g.outputs))

    def kernel(self) -> Tensor:  # noqa: D102
        one, two = self.scales
        return self.weight * per_output(one) + after_pointwise(
            self.first, self.second * per_output(two), self.geometry.groups
        )

    def take(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:  # noqa: D102
        with torch.no_grad():
            self.weight.copy_(conv.weight)
            self.scales.copy_(torch.tensor([[1.0], [0.0]]).expand_as(self.scales))
        copy_norm(norm, conv.bias, self.norm)

    @classmethod
    def fits(cls, geometry: Geometry) -> bool:  # noqa: D102
        return geometry.kernel == 1


class OrepaStack(GeneratedConv):
    """OREPA for large kernels, such as a 7×7 stem: (k − 1) / 2 generated 3×3 kernels in a row, as one.

    It cannot become a given convolution, so it is for networks trained from the start; `Orepa` takes large kernels too.

    Args:
        geometry: Of the convolution it merges into; an odd kernel of at least 5.
        prior: As for `OrepaKernel`.
    """

    def __init__(self, geometry: Geometry, *, prior: Prior = "dct") -> None:
        super().__init__(geometry)
        first = replace(geometry, kernel=3)
        more = [replace(first, inputs=geometry.outputs)] * ((geometry.kernel - 3) // 2)
        self.parts = nn.ModuleList(OrepaKernel(part, prior=prior) for part in (first, *more))

    def kernel(self) -> Tensor:  # noqa: D102
        kernels: list[Tensor] = [part() for part in self.parts]
        return reduce(partial(compose, groups=self.geometry.groups), kernels)

    def take(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:  # noqa: ARG002
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "`orepa_stack` cannot take over the weights of a trained convolution",
            hint="use `orepa`, or train from the start with fresh=True",
        )

    @classmethod
    def fits(cls, geometry: Geometry) -> bool:  # noqa: D102
        return geometry.kernel > 3


class RepVGGOrepa(BranchSum):
    """RepVGG whose k×k branch is an OREPA block, without the 1×1 that RepVGG has itself.

    Args:
        geometry: Of the convolution it merges into.
        squeeze, prior: As for `Orepa`.
    """

    def __init__(self, geometry: Geometry, *, squeeze: Squeeze = "auto", prior: Prior = "dct") -> None:
        names = tuple(name for name in BRANCHES if name != "pointwise")
        main = Orepa(geometry, squeeze=squeeze, branches=names, prior=prior, slope=1.0)
        super().__init__(geometry, main, thin_branches(geometry))


def _checked(names: Sequence[str]) -> Sequence[str]:
    wrong = next((name for name in names if name not in BRANCHES), None)
    if wrong is not None or "origin" not in names:
        raise ConfigError(
            f"unknown OREPA branch `{wrong}`" if wrong else "an OREPA block needs its branch `origin`",
            where=f"branches = {list(names)}",
            allowed=", ".join(BRANCHES),
            hint=did_you_mean(wrong, BRANCHES) if wrong else None,
        )
    return names
