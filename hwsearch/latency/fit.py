"""From latencies of small models to costs of units, by Gaussian regression.

Every model is one equation: the sum of its units' costs is its latency. The prior of a cost is a roofline (a constant,
values moved, multiply-accumulates; none negative) common to all units of one sort and precision. Around it a whole kind
of unit may be dearer, neighbouring channel counts move together, and every node may be a little off on its own.
"""

from __future__ import annotations

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

KIND, NEAR, OWN = 0.3, 0.3, 0.05  # relative standard deviations: a kind, a neighbourhood, a node
REACH = 1.0  # of a neighbourhood, in natural logarithms of channels
FLOOR_US, FLOOR_US_PER_VALUE = 1.0, 1e-4  # added to a cost before those apply, so that none is surely zero
MODEL_ERROR = 0.01  # latency of a small model that no sum of units explains, relative


@dataclass(frozen=True, slots=True)
class Equation:
    """A measured model: its units and their total."""

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
    noise = np.hypot([e.sigma_us for e in equations], MODEL_ERROR * latency)
    prior = _roofline(design / noise[:, None], latency / noise, columns)
    spread = prior_covariance(columns, prior)
    whiten = np.linalg.inv(np.linalg.cholesky(spread))
    cost, _ = nnls(np.concatenate([design / noise[:, None], whiten]), np.concatenate([latency / noise, whiten @ prior]))
    reached = spread @ design.T
    gain = np.linalg.solve(design @ reached + np.diag(noise**2), reached.T).T
    variance = np.diag(spread) - np.einsum("ij,ij->i", gain, reached)
    sigma = np.sqrt(np.maximum(variance, 0.0))
    models = np.count_nonzero(design, axis=0)
    found: dict[Kind, dict[Node, Entry]] = {kind: {} for kind in axes}
    for i, (kind, node) in enumerate(columns):
        found[kind][node] = Entry(float(cost[i]), float(sigma[i]), int(models[i]))
    return found


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


def prior_covariance(columns: Sequence[Column], prior: Matrix) -> Matrix:
    """Prior covariance of all costs, [nodes, nodes]: zero between kinds."""
    spread = np.zeros((len(columns), len(columns)))
    number = {kind: i for i, kind in enumerate(dict.fromkeys(kind for kind, _ in columns))}
    kinds = np.array([number[kind] for kind, _ in columns])
    moved = np.array([features(kind, node)[1] for kind, node in columns])
    scales = prior + FLOOR_US + FLOOR_US_PER_VALUE * moved
    logs = np.log([node for _, node in columns])
    for i in range(len(number)):
        of = np.flatnonzero(kinds == i)
        distance = ((logs[of, None] - logs[None, of]) ** 2).sum(axis=-1)
        shape = KIND**2 + NEAR**2 * np.exp(-distance / (2 * REACH**2)) + OWN**2 * np.eye(len(of))
        scale = scales[of]
        spread[np.ix_(of, of)] = shape * np.outer(scale, scale)
    return spread
