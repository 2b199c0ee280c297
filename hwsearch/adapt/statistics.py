"""How far features in a scene are from those in the source data: per channel, layer and network, as score and as loss.

Each channel counts as a Gaussian. With mean m and variance v in the scene, and the same with index s in the source,

    KL(scene ‖ source) = ½ (v / v_s + (m − m_s)² / v_s − 1 + ln(v_s / v))

No label is needed, and of the source only the statistics (Ishii and Sugiyama, "Source-free domain adaptation via
distributional alignment by matching batch normalization statistics", 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.model.canonical import BATCH_NORMS, LAYER_TYPES

Statistic = Literal["gaussian", "mean"]

FLOOR = 1e-3
"""Added to variances, as a share of the layer's mean variance: channels that hardly vary count little."""

IMAGES = 1024
"""Most images that one pass looks at."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of each channel of a feature map, both [channels], over examples and positions."""

    mean: Tensor
    variance: Tensor


Statistics = Mapping[str, Moments]
"""Site -> moments of what the module of that name gives out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShift:
    """How far one site has moved.

    Attributes:
        name: The module whose outputs were looked at.
        divergence: Mean over its channels, in nats.
        by_mean: The part of it that comes from the means; the rest comes from the variances.
        worst_channel: Where the divergence is largest.
    """

    name: str
    divergence: float
    by_mean: float
    worst_channel: int


def sites(module: nn.Module) -> tuple[str, ...]:
    """Where statistics are taken: batch norms, or in a network without any, all layers but the last."""
    norms = [name for name, part in module.named_modules() if isinstance(part, BATCH_NORMS)]
    layers = [name for name, part in module.named_modules() if isinstance(part, LAYER_TYPES)]
    return tuple(norms or layers[:-1])


def measure(module: nn.Module, images: NDArray[np.float32] | Tensor, at: tuple[str, ...] | None = None) -> Statistics:
    """Statistics of features over images [N, ...], the first `IMAGES` of them in one pass; `module` is in eval mode.

    Args:
        module: The network.
        images: As it takes them.
        at: Sites; None for `sites(module)`.
    """
    found: dict[str, Moments] = {}

    def look(name: str, output: Tensor) -> None:
        found[name] = _moments(output)

    with torch.inference_mode(), _Watch(module, sites(module) if at is None else at, look):
        module(torch.as_tensor(images[:IMAGES]))
    return {name: Moments(seen.mean.clone(), seen.variance.clone()) for name, seen in found.items()}


def stored(module: nn.Module) -> Statistics:
    """What batch norms give out on the data they were trained on, by their own account; no data are needed."""
    found = {}
    for name, norm in module.named_modules():
        if isinstance(norm, BATCH_NORMS) and norm.running_mean is not None and norm.running_var is not None:
            zero, one = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)
            scale = (one if norm.weight is None else norm.weight.detach()).square()
            share = norm.running_var / (norm.running_var + norm.eps)
            found[name] = Moments((zero if norm.bias is None else norm.bias.detach()).clone(), scale * share)
    return found


def divergence(scene: Moments, source: Moments, statistic: Statistic = "gaussian") -> Tensor:
    """Divergence of each channel, [channels] in nats; with `statistic` ``mean`` the part that the means make."""
    floor = FLOOR * source.variance.mean().clamp_min(1e-12)
    variance, reference = scene.variance + floor, source.variance + floor
    by_mean = (scene.mean - source.mean).square() / reference / 2
    if statistic == "mean":
        return by_mean
    ratio = variance / reference
    return by_mean + (ratio - 1 - ratio.log()) / 2


def score(scene: Statistics, source: Statistics, statistic: Statistic = "gaussian") -> float:
    """Mean over the sites of the mean over their channels: one number for the distance between scene and source."""
    values = [divergence(scene[name], source[name], statistic).mean() for name in source]
    return float(torch.stack(values).mean())


def layer_report(scene: Statistics, source: Statistics) -> tuple[LayerShift, ...]:
    """How far each site has moved, in the order of the network."""
    return tuple(_shift(name, scene[name], source[name]) for name in source)


class Matching:
    """The divergence of a batch from the source as a loss, differentiable; a context manager around training.

    Args:
        module: What is trained.
        source: What its features should be like.
    """

    def __init__(self, module: nn.Module, source: Statistics) -> None:
        self._source = source
        self._seen: dict[str, Tensor] = {}
        self._watch = _Watch(module, tuple(source), self._seen.__setitem__)

    def __enter__(self) -> Self:
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.__exit__(kind, error, trace)
        self._seen.clear()

    def __call__(self, rows: Tensor | None = None) -> Tensor:
        """Score of the batch that has just passed, or of those of its examples where `rows` [N] is true."""
        values = []
        for name, output in self._seen.items():
            source = self._source[name]
            there = Moments(source.mean.to(output.device), source.variance.to(output.device))
            values.append(divergence(_moments(output if rows is None else output[rows]), there).mean())
        return torch.stack(values).mean()


class _Watch:
    """Within the context, ``look(name, output)`` is called whenever one of the modules has run."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], look: Any) -> None:
        self._parts = {name: module.get_submodule(name) for name in names}
        self._look = look
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for name, part in self._parts.items():
            hook = part.register_forward_hook(lambda _, __, output, name=name: self._look(name, output))
            self._handles.append(hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()


def channel_rows(values: Tensor) -> Tensor:
    """Feature maps [N, C, ...] with positions behind, or tokens [N, T, C], as rows [N · positions, C]."""
    rows = values.movedim(1, -1) if values.dim() >= 4 else values
    return rows.flatten(0, -2).float()


def _moments(output: Tensor) -> Moments:
    rows = channel_rows(output)
    return Moments(rows.mean(0), rows.var(0, correction=0))


def _shift(name: str, scene: Moments, source: Moments) -> LayerShift:
    total, by_mean = divergence(scene, source), divergence(scene, source, "mean")
    return LayerShift(
        name=name,
        divergence=float(total.mean()),
        by_mean=float(by_mean.mean()),
        worst_channel=int(total.argmax()),
    )
