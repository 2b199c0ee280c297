"""How good latency tables are: `python studies/benchmarks/latency/tables.py MODEL TARGET [--models 80] [--size 32]`.

Builds the table of a model's whole search space, checks it against unseen candidates that mix channel counts, dropped
branches and precisions, and prints one line per figure. Half of the candidates are then learnt from, the others judged.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean, median

import numpy as np

from hwsearch.backends.device import chip_isa
from hwsearch.config import SpaceConfig
from hwsearch.latency.build import build_table, target_device
from hwsearch.latency.design import Drawer
from hwsearch.latency.files import TableCheck
from hwsearch.latency.network import NetworkUnits, quantizer_rule
from hwsearch.latency.predictor import Predictor
from hwsearch.latency.table import ROOT, table_folder
from hwsearch.latency.validate import check_table
from hwsearch.model.graph import trace
from hwsearch.model.load import load_model
from hwsearch.space.space import build_space
from hwsearch.space.target import load_target
from hwsearch.types import Candidate

LOOKUPS = 500


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
    table = table.checked(found.check, found.tempting)
    print(f"{name} on {target.name}: {sum(map(len, table.entries.values()))} entries built in {built:.0f} s")
    for label, check in (("all", found.check), ("looked best", found.tempting), ("after learning", found.learned)):
        if check is not None:
            print_check(label, check)
    drawer = Drawer(network, space, NetworkUnits(network.source, network.template, quantizer_rule(target)), seed=1)
    print_lookup(table.predictor(network.source, target, network.template), drawer)


def print_check(label: str, check: TableCheck) -> None:
    """One line of figures."""
    print(
        f"{label}, learned {check.learned}: n {check.models}, MAPE {check.mape_pct:.2f} %, bias {check.bias_pct:+.2f} "
        f"%, max {check.max_pct:.1f} %, within 5 % {check.within_5_pct:.0f} %, within 10 % "
        f"{check.within_10_pct:.0f} %, Spearman {check.spearman:.4f}, drift {check.drift_pct:+.1f} %"
    )


def print_lookup(predictor: Predictor, drawer: Drawer) -> None:
    """How long one prediction takes, of candidates whose precisions and dropped branches are new, and of known ones."""
    for _ in range(LOOKUPS):
        predictor(drawer.candidate(any_width=True))
    unseen = [drawer.candidate(any_width=True) for _ in range(LOOKUPS)]
    for label in ("new", "known"):
        seconds = [timed(predictor, candidate) for candidate in unseen]
        print(
            f"lookup of a {label} candidate: median {1e6 * median(seconds):.0f} µs, mean {1e6 * mean(seconds):.0f} µs"
        )


def timed(predictor: Predictor, candidate: Candidate) -> float:
    """Seconds one prediction takes."""
    start = time.perf_counter()
    predictor(candidate)
    return time.perf_counter() - start


def _silent(*_: object) -> None:
    """No progress."""


if __name__ == "__main__":
    main()
