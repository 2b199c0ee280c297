"""Which single weights of a layer become zero, and what the others become to make up for them.

By magnitude, the smallest go. By optimal brain surgery (Hassibi and Stork, "Optimal brain surgeon", 1993) those go
whose loss, when all others make up for it, costs least: w² over the diagonal of H⁻¹, with the second moments H of what
the layer reads. A few go at a time, and what is left is solved for in between; the cubic schedule is that of Zhu and
Gupta, "To prune, or not to prune", 2017. One sweep over the columns, as in SparseGPT, is faster for large layers and as
good for 2:4, but leaves 1.3 to 1.5 times the error where zeros may be anywhere (`studies/benchmarks/sparsity`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hwsearch.compress.statistics import find_layer
from hwsearch.errors import ConfigError
from hwsearch.patterns import TWO_FOUR, share_of_zeros

STEPS = 16
"""In which the weights go."""

HASTY, THOROUGH = 4, 40
"""Rounds of conjugate gradients between the steps, and in the end."""

ENOUGH = 1e-6
"""Squared residual, relative to that of the first round, at which they end before."""


def magnitude_mask(weight: Tensor, pattern: str) -> Tensor:
    """True where a weight [outputs, inputs, *kernel] stays: the largest, of the layer or of every four inputs.

    Raises:
        ConfigError: the pattern is 2:4 and the inputs do not come in fours.
    """
    scores = _may_go(weight.abs().reshape(*weight.shape[:2], -1), pattern)
    return _all_but_smallest(scores, share_of_zeros(pattern)).view(weight.shape)


def surgery(weight: Tensor, bias: Tensor, moments: Tensor, pattern: str) -> tuple[Tensor, Tensor]:
    """Weight and bias with zeros by `pattern`, whose result is near to that of the layer as it is.

    Never further from it than with the mask by magnitude, which is tried as well.

    Args:
        weight: [outputs, inputs, *kernel].
        bias: [outputs].
        moments: Of what each group of the layer reads, damped [groups, columns + 1, columns + 1], in float64.
        pattern: See `hwsearch.patterns`.

    Raises:
        ConfigError: as for `magnitude_mask`.
    """
    outputs, inputs = weight.shape[:2]
    flat = torch.cat([weight.flatten(1), bias[:, None]], dim=1).double()
    whole = flat.view(len(moments), outputs // len(moments), -1)
    kept = _with_bias(magnitude_mask(weight, pattern).view(*whole.shape[:2], -1))
    found = _compensated(whole, whole * kept, moments, kept, THOROUGH), _operated(whole, moments, inputs, pattern)
    best = min(found, key=lambda new: reconstruction_error(new - whole, moments)).view(outputs, -1)
    return best[:, :-1].reshape(weight.shape).to(weight.dtype), best[:, -1].to(bias.dtype)


def reconstruction_error(change: Tensor, moments: Tensor) -> float:
    """Mean squared error of a layer's outputs, summed over them, when its weight [groups, outputs, columns] changes."""
    return float((change @ moments * change).sum())


def restricted_solve(wanted: Tensor, moments: Tensor, kept: Tensor, rounds: int = THOROUGH) -> Tensor:
    """The X [groups, columns, outputs], zero but where `kept`, with moments · X = `wanted` where `kept`.

    By conjugate gradients for all outputs at once, preconditioned with the diagonal: every output has an equation of
    its own, since it keeps weights of its own.
    """
    scale = 1 / moments.diagonal(dim1=-2, dim2=-1)[..., None]
    found = torch.zeros_like(wanted)
    residual = wanted * kept
    direction = scale * residual
    energy = (residual * direction).sum(dim=-2, keepdim=True)
    enough = ENOUGH * energy
    for _ in range(rounds):
        if (energy <= enough).all():
            break
        ahead = (moments @ direction) * kept
        step = energy / (direction * ahead).sum(dim=-2, keepdim=True).clamp_min(1e-300)
        found += step * direction
        residual -= step * ahead
        energy, before = (residual * scale * residual).sum(dim=-2, keepdim=True), energy
        direction = scale * residual + energy / before.clamp_min(1e-300) * direction
    return found


def copy_zeros(sparse: nn.Module, module: nn.Module, layers: Iterable[str]) -> None:
    """Make the weights of some layers zero where those of another network with such layers are, in place."""
    with torch.no_grad():
        for name in layers:
            find_layer(module, name).weight.mul_(find_layer(sparse, name).weight != 0)


def hold_zeros(module: nn.Module, layers: Iterable[str]) -> None:
    """Keep zero weights of some layers zero while they are trained: their gradients are, from now on."""
    for name in layers:
        weight = find_layer(module, name).weight
        kept = weight.detach() != 0
        weight.register_hook(lambda gradient, kept=kept: gradient * kept.to(gradient.device))  # type: ignore[no-untyped-call]


def _operated(whole: Tensor, moments: Tensor, inputs: int, pattern: str) -> Tensor:
    """Weights and bias [groups, outputs, columns + 1] with zeros by optimal brain surgery."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    cost = inverse.diagonal(dim1=-2, dim2=-1)[:, None, :-1]
    left = whole
    for step in range(1, STEPS + 1):
        zeros = share_of_zeros(pattern) * (1 - (1 - step / STEPS) ** 3)
        scores = (left[..., :-1].square() / cost).reshape(-1, inputs, whole.shape[-1] // inputs)
        kept = _with_bias(_all_but_smallest(_may_go(scores, pattern), zeros).view(*whole.shape[:2], -1))
        left = _compensated(whole, left * kept, moments, kept, THOROUGH if step == STEPS else HASTY)
    return left


def _compensated(whole: Tensor, left: Tensor, moments: Tensor, kept: Tensor, rounds: int) -> Tensor:
    """From weights `left` [groups, outputs, columns] towards those at `kept` whose result is nearest to `whole`'s."""
    return left + restricted_solve(moments @ (whole - left).mT, moments, kept.mT, rounds).mT


def _may_go(scores: Tensor, pattern: str) -> Tensor:
    """The scores [outputs, inputs, positions] of the weights, infinite where the pattern forbids that they go.

    Under 2:4 only the two lowest of four neighbouring inputs may.
    """
    if pattern != TWO_FOUR:
        return scores
    if scores.shape[1] % 4:
        raise ConfigError(
            f"2:4 needs input channels in fours, and a filter reads {scores.shape[1]}",
            hint="keep a multiple of 4 channels, or use a share such as 0.5",
        )
    fours = scores.view(len(scores), -1, 4, scores.shape[2])
    ranks = fours.argsort(dim=2).argsort(dim=2)
    return torch.where(ranks < 2, fours, torch.inf).flatten(1, 2)


def _all_but_smallest(scores: Tensor, zeros: float) -> Tensor:
    """True for all but the `zeros` smallest, as a share of all scores."""
    flat = scores.flatten()
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[flat.topk(round(zeros * len(flat)), largest=False).indices] = False
    return kept.view(scores.shape)


def _with_bias(kept: Tensor) -> Tensor:
    """The mask of a weight with a last column for the bias, which always stays."""
    return torch.cat([kept, torch.ones_like(kept[..., :1])], dim=-1)
