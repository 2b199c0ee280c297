"""Writes the example table of a device nobody has here: `python studies/benchmarks/latency/edge_asic.py`.

Nothing in it is measured. Every unit takes what a roofline allows: the longer of computing and moving data, plus a
start-up time. The figures are those of a small accelerator one could build, not of any product:

* an array of 256 multiply-accumulate units for 8-bit operands at 500 MHz, which takes two 4-bit or four 2-bit operands
  at once and works on 16 channels at a time; a vector unit with 8 units for fp32;
* 4 GB/s to memory, where every activation and weight goes once per layer;
* 2 µs to start a layer, 20 µs to start a network.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hwsearch.config import SpaceConfig
from hwsearch.latency.build import target_device
from hwsearch.latency.design import Drawer, reachable_axes
from hwsearch.latency.files import COLUMNS
from hwsearch.latency.grid import Axes
from hwsearch.latency.kernels import Kind
from hwsearch.latency.network import NetworkUnits, integer_flow
from hwsearch.latency.roofline import roofline_us
from hwsearch.latency.table import import_table
from hwsearch.model.graph import trace
from hwsearch.space.space import build_space
from hwsearch.space.target import load_target
from hwsearch.types import Roofline
from hwsearch.zoo.resnet import resnet20

FOLDER = Path(__file__).parents[3] / "latency_tables" / "example-edge-asic"
CANDIDATES = 1000  # enough to meet every kind of unit
EDGE = Roofline(
    origin="roofline of an imagined accelerator, computed by studies/benchmarks/latency/edge_asic.py; nothing measured",
    macs_per_us={"fp32": 8 * 500, "int8": 256 * 500, "int4": 512 * 500, "int2": 1024 * 500},
    bytes_per_us=4000,
    layer_us=2.0,
    call_us=20.0,
    channels_at_once=16,
)


def main() -> None:
    network = trace(resnet20().eval(), np.zeros((1, 3, 32, 32), np.float32), name="hwsearch.zoo.resnet:resnet20")
    target = load_target(str(FOLDER / "edge-asic-4bit.yaml"))
    space = build_space(network.source, target, SpaceConfig(), isa=())
    reader = NetworkUnits(network.source, network.template, integer_flow)
    drawer = Drawer(network, space, reader)
    units = [unit for _ in range(CANDIDATES) for unit in reader.units(drawer.candidate())]
    axes = reachable_axes(units, (), drawer.widths, reader.full)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "roofline.csv"
        write_csv(path, axes)
        table = import_table(path, FOLDER, target_device(target), batch=1, source="modelled", origin=EDGE.origin)
    print(f"{sum(map(len, table.entries.values()))} entries in {FOLDER}")


def write_csv(path: Path, axes: Mapping[Kind, Axes]) -> None:
    """Rows as anyone would write them for `hwsearch table import`."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS[:7])
        for kind in axes:
            for node in axes[kind].nodes():
                fields = (kind.unit, kind.window, kind.size, kind.precision)
                writer.writerow([*fields, *node, f"{roofline_us(EDGE, kind, node):.4g}"])


if __name__ == "__main__":
    main()
