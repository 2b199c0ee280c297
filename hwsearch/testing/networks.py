"""Small networks in the form the template has: nodes named after layers, weights ``<layer>.weight`` and ``.bias``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


@dataclass(slots=True)
class Builder:
    """Collects nodes and weights; every method returns the name of the tensor it adds."""

    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def conv(self, name: str, source: str, inputs: int, outputs: int, kernel: int = 3, **options: Any) -> str:
        """A convolution with bias that keeps the image size unless strided."""
        groups = options.get("group", 1)
        self._weight(name, (outputs, inputs // groups, kernel, kernel), outputs)
        attributes = {"kernel_shape": [kernel, kernel], "pads": [kernel // 2] * 4, **options}
        return self._layer("Conv", name, [source, f"{name}.weight", f"{name}.bias"], **attributes)

    def gemm(self, name: str, source: str, inputs: int, outputs: int) -> str:
        """A linear layer on [N, inputs]."""
        self._weight(name, (outputs, inputs), outputs)
        return self._layer("Gemm", name, [source, f"{name}.weight", f"{name}.bias"], transB=1)

    def matmul(self, name: str, source: str, inputs: int, outputs: int) -> str:
        """A linear layer on [N, T, inputs]."""
        self._weight(name, (inputs, outputs), outputs, fan_in=inputs)
        product = self._layer("MatMul", name, [source, f"{name}.weight"])
        return self.op("Add", product, f"{name}.bias", name=f"{name}.bias_add")

    def op(self, kind: str, *sources: str, name: str | None = None, **attributes: Any) -> str:
        """Any operation without weights."""
        return self._layer(kind, name or f"node_{kind.lower()}_{len(self.nodes)}", list(sources), **attributes)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """An initialiser."""
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def finish(self, shape: tuple[int, ...], output: str, out_shape: tuple[int, ...]) -> onnx.ModelProto:
        """The model; shapes are those of one example."""
        for node in self.nodes:
            node.input[:] = ["output" if name == output else name for name in node.input]
            node.output[:] = ["output" if name == output else name for name in node.output]
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", *out_shape])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        helper.set_model_props(model, {"hwsearch.key": "0123456789ab"})
        return model

    def _weight(self, name: str, shape: tuple[int, ...], outputs: int, fan_in: int | None = None) -> None:
        spread = 1 / np.sqrt(fan_in or np.prod(shape[1:]))
        self.constant(f"{name}.weight", self.random.normal(0, spread, shape).astype(np.float32))
        self.constant(f"{name}.bias", self.random.normal(0, 0.1, outputs).astype(np.float32))

    def _layer(self, kind: str, name: str, sources: list[str], **attributes: Any) -> str:
        output = f"{name}_out"
        self.nodes.append(helper.make_node(kind, sources, [output], name=name, **attributes))
        return output


def plain() -> onnx.ModelProto:
    """Two convolutions, the last of which is the network's output."""
    net = Builder()
    x = net.op("Relu", net.conv("first", "input", 3, 16))
    return net.finish((3, 12, 12), net.conv("last", x, 16, 8, strides=[2, 2]), (8, 6, 6))


def residual() -> onnx.ModelProto:
    """A stem, an identity block, a strided block with a projection, max and global pooling, a head."""
    net = Builder()
    x = net.op("Relu", net.conv("stem", "input", 3, 16))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.conv("a.conv2", net.op("Relu", net.conv("a.conv1", x, 16, 16)), 16, 16)
    x = net.op("Relu", net.op("Add", y, x))
    y = net.conv("b.conv2", net.op("Relu", net.conv("b.conv1", x, 16, 32, strides=[2, 2])), 32, 32)
    x = net.op("Relu", net.op("Add", y, net.conv("b.shortcut", x, 16, 32, 1, strides=[2, 2])))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.finish((3, 16, 16), net.gemm("head", x, 32, 10), (10,))


def depthwise() -> onnx.ModelProto:
    """An inverted bottleneck with ReLU6, as in MobileNet V2."""
    net = Builder()
    low, high = (net.constant(name, np.array(value, np.float32)) for name, value in (("low", 0), ("high", 6)))
    x = net.op("Clip", net.conv("stem", "input", 3, 16), low, high)
    y = net.op("Clip", net.conv("expand", x, 16, 32, 1), low, high)
    y = net.op("Clip", net.conv("depthwise", y, 32, 32, group=32), low, high)
    x = net.op("Add", x, net.conv("project", y, 32, 16, 1))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.finish((3, 12, 12), net.gemm("head", x, 16, 10), (10,))


def linear() -> onnx.ModelProto:
    """Two linear layers."""
    net = Builder()
    x = net.op("Relu", net.gemm("hidden", "input", 24, 32))
    return net.finish((24,), net.gemm("head", x, 32, 10), (10,))


def concat() -> onnx.ModelProto:
    """Two branches joined along the channels, as in SqueezeNet, and average pooling."""
    net = Builder()
    x = net.op("Relu", net.conv("squeeze", "input", 3, 16, 1))
    left, right = (net.op("Relu", net.conv(name, x, 16, 16, size)) for name, size in (("left", 1), ("right", 3)))
    x = net.op("AveragePool", net.op("Concat", left, right, axis=1), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.conv("last", x, 32, 16, 1))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.finish((3, 12, 12), net.gemm("head", x, 16, 10), (10,))


def tokens() -> onnx.ModelProto:
    """Linear layers on a sequence, joined by a residual addition, and a mean over the sequence."""
    net = Builder()
    x = net.matmul("embed", "input", 24, 32)
    y = net.matmul("mlp.out", net.op("Relu", net.matmul("mlp.in", x, 32, 64)), 64, 32)
    axes = net.constant("axes", np.array([1], np.int64))
    x = net.op("ReduceMean", net.op("Add", x, y), axes, keepdims=0)
    return net.finish((6, 24), net.gemm("head", x, 32, 10), (10,))


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    network.__name__: network for network in (plain, residual, depthwise, linear, concat, tokens)
}


def layer_names(model: onnx.ModelProto) -> list[str]:
    """Names of the layers of such a network, in execution order."""
    return [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
