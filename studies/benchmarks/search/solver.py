"""How long the solver and the pricing of a space take, and how far the prices are from the predictions.

python studies/benchmarks/search/solver.py [REPEATS]
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from hwsearch.config import SpaceConfig
from hwsearch.latency.table import LatencyTable
from hwsearch.model.graph import trace
from hwsearch.search.pricing.prices import table_prices
from hwsearch.search.pricing.pricing import Pricing
from hwsearch.search.solver.dynamic import frontier
from hwsearch.search.solver.problem import Problem, Term
from hwsearch.space.space import build_space, decode, dimensions
from hwsearch.space.target import load_target
from hwsearch.zoo.resnet import resnet20, resnet56

TABLES = Path(__file__).parents[3] / "latency_tables"
LOSS = {"bf16": 0.001, "int8": 0.02}


def fastest_ms(work, repeats):
    """Result of the last call, and the time of the fastest, in ms."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        times.append(1e3 * (time.perf_counter() - started))
    return result, min(times)


def chain(length, options, *, conversions):
    """Groups in a row, with or without a price on every change between neighbours."""
    rng, terms = np.random.default_rng(0), []
    for i in range(length):
        loss = np.r_[np.sort(rng.exponential(1, options - 1))[::-1], 0]
        terms.append(Term((f"x{i}",), loss, {"ms": np.sort(rng.uniform(0.1, 1, options))}))
        if conversions and i:
            pair = rng.uniform(0, 0.1, (options, options))
            terms.append(Term((f"x{i - 1}", f"x{i}"), np.zeros_like(pair), {"ms": pair}))
    return Problem({f"x{i}": options for i in range(length)}, tuple(terms))


def loss(kind, name, value):
    """A sensitivity that differs from name to name."""
    scale = 0.5 + sum(name.encode()) % 17 / 17
    return scale * {"drop": 1.0, "precision": LOSS.get(value, 0.0), "keep": 8 / (value if kind == "keep" else 1)}[kind]


def price(backend, target, build, repeats):
    """One line on a network with the committed table of a backend."""
    network = trace(build().eval(), np.zeros((1, 3, 32, 32), np.float32), name=build.__name__)
    target = load_target(target)
    table = LatencyTable.load(next(TABLES.glob(f"{backend}/*/cifar10-resnet20")))
    space = build_space(network.source, target, SpaceConfig(), isa=table.manifest.device.isa)
    predictor = table.predictor(network.source, target, network.template)
    prices = table_prices(table, network, target, predictor)
    pricing, built = fastest_ms(lambda: Pricing(network.source, space, prices, loss), 1)
    rng, weights = np.random.default_rng(0), np.ones(len(pricing.segments))
    chart, solved = fastest_ms(lambda: pricing.chart(weights * rng.uniform(0.5, 2, len(weights))), repeats)
    drawn = [
        decode(space, network.source, {d.name: int(rng.integers(d.size)) for d in dimensions(space)})
        for _ in range(100)
    ]
    solved_for = [chart.candidate(row) for row in range(0, len(chart), max(1, len(chart) // 100))]
    error = max(abs(pricing.price_ms(c) / predictor(c)[0] - 1) for c in drawn + solved_for)
    print(
        f"{build.__name__} {backend}: priced in {built:.0f} ms, solved in {solved:.0f} ms for {len(chart)} models, "
        f"largest difference between price and prediction {100 * error:.1g} %"
    )


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for conversions in (False, True):
        found, taken = fastest_ms(partial(frontier, chain(60, 6, conversions=conversions), "ms"), count)
        print(f"60 groups x 6 choices, conversions {conversions}: {taken:.0f} ms for {len(found)} trade-offs")
    for network in (resnet20, resnet56):
        price("onnxruntime", "ort-cpu", network, count)
        price("openvino", "openvino-cpu", network, count)
