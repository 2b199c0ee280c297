"""Which channels a prune group can best do without, by greedy structured optimal brain surgery.

Removing a channel removes its columns from every layer that reads it. With second moments H of what a layer with weight
W reads, and all weights that are left free to compensate, that costs tr(W_c ([H⁻¹]_cc)⁻¹ W_cᵀ) (Hassibi and Stork,
"Optimal brain surgeon", 1993, for blocks of weights as in Kurtic et al., "ZipLM", 2023). The cheapest channel goes, H⁻¹
and W are updated, and so on: one order of removal gives the choice for every width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]

MOST_STEPS = 64  # in which the channels of a group go; each is a pass over matrices of all columns

COMPACT = 0.75
"""Share of the columns below which those that are gone are dropped from memory."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A layer that reads a prune group.

    Attributes:
        weight: [outputs, columns], float64.
        moments: H [columns, columns], float64, already damped.
        columns: Those of each channel [channels, columns per channel].
    """

    weight: Tensor
    moments: Tensor
    columns: Tensor


def removal_order(readers: Sequence[Reader]) -> Indices:
    """All channels of a group, in the order in which they are removed; of many channels, several at a time.

    The error of a channel is the sum over the readers, each as a share of its output's energy, so that channels tied
    over many layers are judged by all of them.
    """
    states = [_Elimination(reader) for reader in readers]
    channels = readers[0].columns.shape[0]
    at_once = max(1, channels // MOST_STEPS)
    left = torch.arange(channels)
    order: list[int] = []
    while len(left):
        errors = torch.stack([state.errors(left) for state in states]).sum(dim=0)
        cheapest = errors.argsort()
        gone = left[cheapest[:at_once]]
        for state in states:
            state.remove(gone)
        left = left[cheapest[at_once:].sort().values]
        order += gone.tolist()
    return np.array(order, dtype=np.int64)


def compensated(weight: Tensor, moments: Tensor, kept: Tensor) -> Tensor:
    """The weight [outputs, kept columns] whose output is nearest to the whole weight's.

    The minimiser of tr(D H Dᵀ), where D is the change of `weight` [outputs, columns], with the other columns at zero.
    """
    gone = torch.ones(len(moments), dtype=torch.bool)
    gone[kept] = False
    factor = torch.linalg.cholesky(moments[kept][:, kept])
    return weight[:, kept] + torch.cholesky_solve(moments[kept][:, gone] @ weight[:, gone].T, factor).T


def damped(moments: Tensor, ridge: float) -> Tensor:
    """H with `ridge` times the mean of its diagonal added to the diagonal, except for the constant last column."""
    diagonal = moments.diagonal(dim1=-2, dim2=-1)
    added = ridge * diagonal[..., :-1].mean(dim=-1, keepdim=True).clamp_min(1e-12).expand_as(diagonal).clone()
    added[..., -1] = 1e-12
    return moments + torch.diag_embed(added)


class _Elimination:
    """One reader while channels are removed from it."""

    def __init__(self, reader: Reader) -> None:
        self._columns = reader.columns
        self._weight = reader.weight.clone()
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(reader.moments))
        self._left = torch.ones(len(self._inverse), dtype=torch.bool)
        energy = (reader.weight @ reader.moments * reader.weight).sum()
        self._scale = 1.0 / float(energy.clamp_min(1e-30))

    def errors(self, channels: Tensor) -> Tensor:
        """What removing each of `channels` would cost, as a share of the output's energy."""
        columns = self._columns[channels]
        blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
        weights = self._weight[:, columns].movedim(0, 2)  # [channels, columns per channel, outputs]
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(blocks), weights, upper=False)
        return torch.sum(half.square(), dim=(1, 2)) * self._scale

    def remove(self, channels: Tensor) -> None:
        """Take channels out and let the rest make up for them."""
        columns = self._columns[channels].flatten()
        across = self._inverse[columns]
        solved = torch.linalg.solve(across[:, columns], across)
        self._weight.addmm_(self._weight[:, columns], solved, alpha=-1)
        self._inverse.addmm_(across.T, solved, alpha=-1)
        self._left[columns] = False
        if self._left.sum() < COMPACT * len(self._left):
            self._compact()

    def _compact(self) -> None:
        """Forget the columns that are gone: every step costs the square of those that are held."""
        self._weight = self._weight[:, self._left]
        self._inverse = self._inverse[self._left][:, self._left]
        self._columns = (self._left.cumsum(0) - 1)[self._columns]
        self._left = self._left[self._left]
