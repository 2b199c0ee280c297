"""How good latency tables are: `python studies/benchmarks/latency/tables.py`. See README.md.

For every network and target the table of the whole search space is built and checked against unseen candidates, which
mix channel counts, dropped branches and precisions. Half of them are then learnt from and the others judged. Results go
to the README and to `tables.json`, every single model to `tables.csv`; the tables themselves are thrown away.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from measure import write_table

from hwsearch.backends.device import chip_isa
from hwsearch.backends.environment import read_environment
from hwsearch.config import SpaceConfig
from hwsearch.latency.build import build_table, target_device
from hwsearch.latency.design import Drawer
from hwsearch.latency.network import NetworkUnits, quantizer_rule
from hwsearch.latency.predictor import Predictor
from hwsearch.latency.validate import Validation, check_table
from hwsearch.model.graph import trace
from hwsearch.model.load import load_model
from hwsearch.space.space import build_space
from hwsearch.space.target import load_target
from hwsearch.store import write_json
from hwsearch.types import to_json

HERE = Path(__file__).parent
NETWORKS = {
    "resnet20": "hwsearch.zoo.resnet:resnet20",
    "mobilenet_v2": "hwsearch.zoo.mobilenet_v2:mobilenet_v2",
    "vit_tiny": "hwsearch.zoo.vit:vit_tiny",
}
TARGETS = ("ort-cpu", "openvino-cpu")
GOALS = {"resnet20": "≤ 2 %, all within 10 %; ≤ 1 % after 40"}
OTHER_GOAL = "≤ 4 %, 99 % within 10 %"
MODELS = 80
LOOKUPS = 500
START, END = "<!-- tables -->", "<!-- end of tables -->"
HEADINGS = (
    "network", "target", "entries", "built in", "MAPE", "max", "within 5 %, 10 %", "Spearman", "look best: MAPE, max",
    "MAPE after learning", "lookup, new", "goal",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One table: what it is of, how long it took, how good it is, and how long it takes to ask."""

    network: str
    target: str
    entries: int
    seconds: float
    found: Validation
    lookup_us: float

    def row(self) -> tuple[str, ...]:
        """Cells of the README's table."""
        check, best, learned = self.found.check, self.found.tempting, self.found.learned
        return (
            self.network,
            self.target,
            str(self.entries),
            f"{self.seconds:.0f} s",
            f"{check.mape_pct:.2f} %",
            f"{check.max_pct:.1f} %",
            f"{check.within_5_pct:.0f} %, {check.within_10_pct:.0f} %",
            f"{check.spearman:.4f}",
            f"{best.mape_pct:.2f} %, {best.max_pct:.1f} %" if best else "",
            f"{learned.mape_pct:.2f} % ({learned.learned})" if learned else "",
            f"{self.lookup_us:.0f} µs",
            GOALS.get(self.network, OTHER_GOAL),
        )


def build_and_check(network_name: str, target_name: str, models: int, space_config: SpaceConfig) -> Case:
    """The whole of one case."""
    path = NETWORKS[network_name]
    network = trace(load_model(path), np.zeros((1, 3, 32, 32), np.float32), name=path)
    target = load_target(target_name)
    space = build_space(network.source, target, space_config, chip_isa())
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        table = build_table(network, space, target, Path(folder), _silent)
        seconds = time.perf_counter() - start
        found = check_table(table, network, space, target, _silent, models=models)
    reader = NetworkUnits(network.source, network.template, quantizer_rule(target))
    return Case(
        network=network_name,
        target=target_name,
        entries=sum(map(len, table.entries.values())),
        seconds=seconds,
        found=found,
        lookup_us=lookup_us(
            table.predictor(network.source, target, network.template), Drawer(network, space, reader, seed=1)
        ),
    )


def lookup_us(predictor: Predictor, drawer: Drawer) -> float:
    """Median time of predicting a candidate whose precisions and dropped branches have not been met before."""
    for _ in range(LOOKUPS):
        predictor(drawer.candidate(any_width=True))
    seconds = []
    for candidate in [drawer.candidate(any_width=True) for _ in range(LOOKUPS)]:
        start = time.perf_counter()
        predictor(candidate)
        seconds.append(time.perf_counter() - start)
    return 1e6 * median(seconds)


def write_points(path: Path, cases: list[Case]) -> None:
    """Every model that was measured, one per row."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("network", "target", "key", "predicted_ms", "sigma_ms", "measured_ms"))
        for case in cases:
            for p in case.found.points:
                numbers = (f"{value:.6g}" for value in (p.predicted_ms, p.sigma_ms, p.measured_ms))
                writer.writerow((case.network, case.target, p.candidate.key, *numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--models", type=int, default=MODELS)
    parser.add_argument("--precisions-only", action="store_true", help="a space without pruning and dropping")
    parser.add_argument("--dry", action="store_true", help="print only, write nothing")
    arguments = parser.parse_args()
    environment = read_environment()
    pruned = not arguments.precisions_only
    space = SpaceConfig(prune=pruned, drop_branches=pruned)
    cases = []
    for network in arguments.networks:
        for target in arguments.targets:
            cases.append(build_and_check(network, target, arguments.models, space))
            print(*cases[-1].row(), sep=" | ", flush=True)
    if arguments.dry:
        return
    devices = [target_device(load_target(name)) for name in arguments.targets]
    runtimes = ", ".join(f"{device.backend} {device.backend_version}" for device in devices)
    heading = f"{devices[0].chip}, {runtimes}, one thread; load average {environment.load} before the start; "
    heading += f"{arguments.models} random models and a quarter as many that look best."
    write_table([case.row() for case in cases], heading, HEADINGS, (START, END))
    write_points(HERE / "tables.csv", cases)
    rows = [dict(zip(HEADINGS, case.row(), strict=True)) for case in cases]
    write_json(HERE / "tables.json", {"environment": to_json(environment), "arguments": vars(arguments), "rows": rows})


def _silent(*_: object) -> None:
    """No progress."""


if __name__ == "__main__":
    main()
