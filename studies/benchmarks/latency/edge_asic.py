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
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hwsearch.config import SpaceConfig
from hwsearch.latency.build import target_device
from hwsearch.latency.design import Drawer, reachable_axes
from hwsearch.latency.files import COLUMNS
from hwsearch.latency.grid import Axes
from hwsearch.latency.kernels import CALL, Kind, Node
from hwsearch.latency.network import NetworkUnits, integer_flow
from hwsearch.latency.table import import_table
from hwsearch.model.graph import trace
from hwsearch.space.space import build_space
from hwsearch.space.target import load_target
from hwsearch.types import PRECISIONS
from hwsearch.zoo.resnet import resnet20

FOLDER = Path(__file__).parents[3] / "latency_tables" / "example-edge-asic"
MACS_PER_US = {"fp32": 8 * 500, "int8": 256 * 500, "int4": 512 * 500, "int2": 1024 * 500}
BYTES_PER_US = 4000
LAYER_US, CALL_US = 2.0, 20.0
CHANNELS_AT_ONCE = 16
CANDIDATES = 1000  # enough to meet every kind of unit
ORIGIN = "roofline of an imagined accelerator, computed by studies/benchmarks/latency/edge_asic.py; nothing measured"


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
        table = import_table(path, FOLDER, target_device(target), batch=1, source="modelled", origin=ORIGIN)
    print(f"{sum(map(len, table.entries.values()))} entries in {FOLDER}")


def write_csv(path: Path, axes: Mapping[Kind, Axes]) -> None:
    """Rows as anyone would write them for `hwsearch table import`."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS[:7])
        for kind in axes:
            for node in axes[kind].nodes():
                fields = (kind.unit, kind.window, kind.size, kind.precision)
                writer.writerow([*fields, *node, f"{latency_us(kind, node):.4g}"])


def latency_us(kind: Kind, node: Node) -> float:
    """What the roofline gives one unit."""
    if kind == CALL:
        return CALL_US
    inputs, outputs = node
    pixels = prod(float(side) for side in kind.size.split("x"))
    bits = PRECISIONS[kind.precision].act_bits
    if kind.unit not in ("conv", "linear"):
        return (LAYER_US if kind.unit[0].isupper() else 0.0) + pixels * (inputs + outputs) * bits / 8 / BYTES_PER_US
    kernel, _, stride = kind.window.partition("/")
    taps = prod(int(side) for side in kernel.split("x")) if kernel else 1
    reached = pixels / int(stride or 1) ** 2
    padded = [CHANNELS_AT_ONCE * ceil(c / CHANNELS_AT_ONCE) for c in node]
    compute = reached * taps * padded[0] * padded[1] / MACS_PER_US[kind.precision]
    moved = (pixels * inputs + reached * outputs + taps * inputs * outputs) * bits / 8
    return LAYER_US + max(compute, moved / BYTES_PER_US)


if __name__ == "__main__":
    main()
