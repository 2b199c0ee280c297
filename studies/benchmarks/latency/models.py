"""Small convolutional networks as ONNX files: sixty that differ, and chains whose latency ratio is known."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS, SIZES, DEPTHS = (8, 16, 24, 32, 48), (16, 32), (2, 4, 6, 9, 12, 16)


def chain(path: Path, *, width: int, size: int, depth: int) -> Path:
    """`depth` identical 3×3 convolutions with ReLU, so that depth n + 1 takes (n + 1) / n of the time."""
    rng = np.random.default_rng(0)
    kernel = (rng.standard_normal((width, width, 3, 3)) * np.sqrt(2 / (9 * width))).astype(np.float32)
    nodes, previous = [], "input"
    for i in range(depth):
        last = "output" if i == depth - 1 else f"relu{i}"
        nodes.append(helper.make_node("Conv", [previous, f"w{i}"], [f"conv{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{i}"], [last], f"relu{i}"))
        previous = last
    shape = ["N", width, size, size]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    weights = [numpy_helper.from_array(kernel, f"w{i}") for i in range(depth)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def variants(folder: Path, count: int) -> list[Path]:
    """`count` different chains, at most 60: about 0.01 to 5 ms each on one core."""
    choices = list(itertools.product(WIDTHS, SIZES, DEPTHS))
    picked = choices[:: len(choices) // count][:count]
    return [
        chain(folder / f"w{width}-s{size}-d{depth}.onnx", width=width, size=size, depth=depth)
        for width, size, depth in picked
    ]
