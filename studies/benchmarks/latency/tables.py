"""How good latency tables are: `python studies/benchmarks/latency/tables.py MODEL TARGET [--models 80] [--size 32]`.

Builds the table of a model's whole search space, checks it against unseen candidates that mix channel counts, dropped
branches and precisions, and prints one line per figure. Half of the candidates are then learnt from, the others judged.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from hwsearch.backends.device import chip_isa
from hwsearch.config import SpaceConfig
from hwsearch.latency.build import build_table, target_device
from hwsearch.latency.predictor import Predictor
from hwsearch.latency.table import ROOT, table_folder
from hwsearch.latency.validate import check_table
from hwsearch.model.graph import trace
from hwsearch.model.load import load_model
from hwsearch.space.space import build_space
from hwsearch.space.target import load_target
from hwsearch.types import Candidate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="package.module:factory")
    parser.add_argument("target")
    parser.add_argument("--models", type=int, default=80)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--tables", type=Path, default=ROOT)
    arguments = parser.parse_args()
    example = np.zeros((1, 3, arguments.size, arguments.size), np.float32)
    network = trace(load_model(arguments.model), example, name=arguments.model)
    target = load_target(arguments.target)
    space = build_space(network.source, target, SpaceConfig(), chip_isa())
    name = arguments.model.partition(":")[2]
    folder = table_folder(target_device(target), name, root=arguments.tables)
    start = time.perf_counter()
    table = build_table(network, space, target, folder, _silent)
    built = time.perf_counter() - start
    found = check_table(table, network, space, target, _silent, models=arguments.models)
    table = table.checked(found.check)
    print(f"{name} on {target.name}: {sum(map(len, table.entries.values()))} entries built in {built:.0f} s")
    for check in filter(None, (found.check, found.learned)):
        print(
            f"learned {check.learned}: n {check.models}, MAPE {check.mape_pct:.2f} %, bias {check.bias_pct:+.2f} %, "
            f"max {check.max_pct:.1f} %, within 5 % {check.within_5_pct:.0f} %, within 10 % "
            f"{check.within_10_pct:.0f} %, Spearman {check.spearman:.4f}, drift {check.drift_pct:+.1f} %"
        )
    predictor = table.predictor(network.source, target, network.template)
    print_lookup(predictor, [point.candidate for point in found.points])


def print_lookup(predictor: Predictor, candidates: list[Candidate]) -> None:
    """How long one prediction takes: with a new set of branches and precisions, and with new widths only."""
    for label in ("first time", "again"):
        start = time.perf_counter()
        for candidate in candidates:
            predictor(candidate)
        print(f"lookup, {label}: {1e6 * (time.perf_counter() - start) / len(candidates):.0f} µs a candidate")


def _silent(*_: object) -> None:
    """No progress."""


if __name__ == "__main__":
    main()
