"""From latencies of small and whole models to costs of units, by robust Gaussian regression.

Every model is one equation: the sum of its units' costs is its latency. The prior of a cost is a roofline (a constant,
values moved, multiply-accumulates; none negative) common to all units of one sort and precision. Around it a whole kind
of unit may be dearer, neighbouring channel counts move together, and every node may be a little off on its own. A model
that does not fit the others counts for less (Student's t, by reweighting), and no cost falls below zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from hwsearch.latency.grid import Axes, features
from hwsearch.latency.kernels import Column, Kind, Node

Matrix = NDArray[np.float64]
Counts = Mapping[Column, float]
"""How often each unit occurs in a model."""

KIND, NEAR, OWN = 0.2, 0.2, 0.1  # relative standard deviations: a kind, a neighbourhood, a node
REACH = 1.0  # of a neighbourhood, in natural logarithms of channels
FLOOR_US, FLOOR_US_PER_VALUE = 1.0, 1e-4  # added to a cost before those apply, so that none is surely zero
FREEDOM = 4.0  # of Student's t: few models fit badly, and then by much
PASSES = 6  # of reweighting
ZERO_US = 0.01  # standard error of a cost that is held at zero


@dataclass(frozen=True, slots=True)
class Equation:
    """A measured model: its units and their total, with the standard error of both together."""

    counts: Counts
    latency_us: float
    sigma_us: float


@dataclass(frozen=True, slots=True)
class Entry:
    """Cost of one unit at one node. `models` is how many measured models contain it; 0 is pure interpolation."""

    latency_us: float
    sigma_us: float
    models: int


def fit(equations: Sequence[Equation], axes: Mapping[Kind, Axes]) -> dict[Kind, dict[Node, Entry]]:
    """The cost of every node of every kind, with its standard error."""
    columns = [(kind, node) for kind, axis in axes.items() for node in axis.nodes()]
    design = design_matrix([e.counts for e in equations], axes, columns)
    latency = np.array([e.latency_us for e in equations])
    noise = np.array([e.sigma_us for e in equations])
    prior = _roofline(design / noise[:, None], latency / noise, columns)
    cost, sigma = _posterior(design, latency, noise, prior, Spread(columns, prior))
    models = np.count_nonzero(design, axis=0)
    found: dict[Kind, dict[Node, Entry]] = {kind: {} for kind in axes}
    for i, (kind, node) in enumerate(columns):
        found[kind][node] = Entry(float(cost[i]), float(sigma[i]), int(models[i]))
    return found


def _posterior(design: Matrix, latency: Matrix, noise: Matrix, prior: Matrix, spread: Spread) -> tuple[Matrix, Matrix]:
    """Costs and their standard errors, [nodes] each.

    Each pass weighs the models by how well they fitted and observes costs that came out negative to be zero.
    """
    zero = np.zeros(len(prior), bool)
    errors = noise
    for _ in range(PASSES):
        observed = np.concatenate([design, np.eye(len(prior))[zero]])
        values = np.concatenate([latency, np.zeros(zero.sum())])
        allowed = np.concatenate([errors, np.full(zero.sum(), ZERO_US)])
        reached = spread.times(observed.T)
        gain = np.linalg.solve(observed @ reached + np.diag(allowed**2), reached.T).T
        cost = prior + gain @ (values - observed @ prior)
        surprise = (latency - design @ cost) / noise
        errors = noise * np.sqrt((FREEDOM + surprise**2) / (FREEDOM + 1))
        zero |= cost < 0
    variance = spread.variance - np.einsum("ij,ij->i", gain, reached)
    return np.maximum(cost, 0.0), np.sqrt(np.maximum(variance, 0.0))


def design_matrix(models: Sequence[Counts], axes: Mapping[Kind, Axes], columns: Sequence[Column]) -> Matrix:
    """How much each node counts in each model, [models, nodes]."""
    position = {column: i for i, column in enumerate(columns)}
    design = np.zeros((len(models), len(columns)))
    for row, counts in zip(design, models, strict=True):
        for (kind, node), count in counts.items():
            for near, weight in (axes[kind].weights(node) or {}).items():
                row[position[kind, near]] += count * weight
    return design


def _roofline(design: Matrix, latency: Matrix, columns: Sequence[Column]) -> Matrix:
    """Costs of all nodes if every sort of unit is a weighted sum of its features, [nodes]."""
    terms: dict[tuple[str, str, int], int] = {}
    entries = [
        (row, terms.setdefault((kind.unit, kind.precision, i), len(terms)), value)
        for row, (kind, node) in enumerate(columns)
        for i, value in enumerate(features(kind, node))
    ]
    basis = np.zeros((len(columns), len(terms)))
    for row, column, value in entries:
        basis[row, column] = value
    basis /= basis.max(axis=0)
    weights, _ = nnls(design @ basis, latency)
    return np.asarray(basis @ weights)


class Spread:
    """Prior covariance of all costs, [nodes, nodes]; zero between kinds, so it is kept kind by kind.

    Args:
        columns: The nodes.
        prior: Their costs in µs.
    """

    def __init__(self, columns: Sequence[Column], prior: Matrix) -> None:
        members: dict[Kind, list[int]] = defaultdict(list)
        for i, (kind, _) in enumerate(columns):
            members[kind].append(i)
        self.variance = np.empty(len(columns))
        self._blocks: list[tuple[list[int], Matrix]] = []
        for kind, of in members.items():
            nodes = [columns[i][1] for i in of]
            moved = np.array([features(kind, node)[1] for node in nodes])
            scale = prior[of] + FLOOR_US + FLOOR_US_PER_VALUE * moved
            logs = np.log(nodes)
            distance = ((logs[:, None] - logs[None, :]) ** 2).sum(axis=-1)
            shape = KIND**2 + NEAR**2 * np.exp(-distance / (2 * REACH**2)) + OWN**2 * np.eye(len(of))
            block = shape * np.outer(scale, scale)
            self._blocks.append((of, block))
            self.variance[of] = np.diag(block)

    def times(self, matrix: Matrix) -> Matrix:
        """The covariance times `matrix`, [nodes, any]."""
        product = np.empty_like(matrix)
        for of, block in self._blocks:
            product[of] = block @ matrix[of]
        return product
