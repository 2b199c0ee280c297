"""Turns the graph the PyTorch exporter writes into the clean form the rest of hwsearch relies on.

* Every convolution or linear layer is one node named after its module, with initialisers ``<layer>.weight`` and
  ``<layer>.bias``; linear layers are ``Gemm(transB=1)`` on matrices and ``MatMul`` + ``Add`` on anything larger.
* A batch norm that alone reads such a node is gone (`template.folded_parameters` multiplies it in).
* Constants are folded, and a reshape copies or infers the sizes that depend on channels wherever it can.
* Every operation has one result: a split is written as slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants
from torch import nn

LAYER_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(slots=True)
class Naming:
    """What the template must remember about its layers.

    Attributes:
        nodes: Layer -> its node, in execution order.
        folded: Layer -> the batch norm module folded into it.
        transposed: Parameters stored transposed, such as the [in, out] weights a MatMul takes.
    """

    nodes: dict[str, ir.Node] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    transposed: set[str] = field(default_factory=set)


def canonicalise(model: ir.Model, modules: Mapping[str, nn.Module]) -> Naming:
    """Rewrite `model` in place; the returned record says what the layers are called."""
    graph = model.graph
    naming = Naming()
    for node in list(graph):
        _name_layer(graph, node, modules, naming)
    for node in list(graph):
        _drop_batch_norm(graph, node, modules, naming)
    fold_constants(model)
    for node in list(graph):
        _unsqueeze_scalar(graph, node)
        _loosen_reshape(graph, node)
        _slice_split(graph, node)
        _pool_globally(graph, node)
    common.RemoveUnusedNodesPass()(model)
    common.IdentityEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    _name_batch_axis(graph)
    return naming


# --------------------------------------------------------------------------- layers


def _name_layer(graph: ir.Graph, node: ir.Node, modules: Mapping[str, nn.Module], naming: Naming) -> None:
    if node.op_type == "MatMul":
        _store_transposed(graph, node, naming)
    weight = node.inputs[1] if node.op_type in ("Conv", "Gemm", "MatMul") else None
    if weight is None or not weight.is_initializer() or len(_readers(weight)) != 1:
        return
    layer = str(weight.name).removesuffix(".weight")
    module = modules.get(layer)
    if layer == weight.name or not isinstance(module, LAYER_TYPES):
        return
    if node.op_type != "MatMul":
        if not _give_bias(graph, node, layer, module.weight.shape[0]):
            return
    elif weight.name in naming.transposed:
        _give_bias_add(graph, node, layer, module.weight.shape[0])
    else:
        return
    node.name = layer
    naming.nodes[layer] = node


def _store_transposed(graph: ir.Graph, node: ir.Node, naming: Naming) -> None:
    """Where a MatMul takes the transpose of a parameter, store the parameter that way."""
    transpose = node.inputs[1].producer() if node.inputs[1] is not None else None
    if transpose is None or transpose.op_type != "Transpose" or (weight := transpose.inputs[0]) is None:
        return
    array = ir.convenience.get_const_tensor(weight)
    if array is None or len(array.shape) != 2 or not weight.is_initializer() or len(_readers(weight)) != 1:
        return
    name = str(weight.name)
    graph.initializers.pop(name)
    node.replace_input_with(1, _initializer(graph, name, np.ascontiguousarray(array.numpy().T)))
    naming.transposed.add(name)


def _readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that compute with `value`; those that only ask for its shape or type do not count."""
    asks = {("Shape", 0), ("CastLike", 1)}
    return [use.node for use in value.uses() if (use.node.op_type, use.idx) not in asks]


def _give_bias(graph: ir.Graph, node: ir.Node, layer: str, width: int) -> bool:
    """Make the node's third input ``<layer>.bias``; False if it already is another parameter."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.is_initializer():
        return bias.name == f"{layer}.bias" and len(_readers(bias)) == 1
    node.resize_inputs(3)
    node.replace_input_with(2, _initializer(graph, f"{layer}.bias", np.zeros(width, np.float32)))
    return True


def _give_bias_add(graph: ir.Graph, node: ir.Node, layer: str, width: int) -> None:
    """Make the node that follows a MatMul the addition of ``<layer>.bias``."""
    product, bias = node.outputs[0], f"{layer}.bias"
    add = next((reader for reader in _readers(product) if reader.op_type == "Add"), None)
    if add is None or bias not in [value.name for value in add.inputs if value is not None]:
        add = ir.node("Add", [product, _initializer(graph, bias, np.zeros(width, np.float32))])
        add.outputs[0].name = f"{layer}.output"
        add.outputs[0].shape, add.outputs[0].type = product.shape, product.type
        replace_all_uses_with(product, add.outputs[0], replace_graph_outputs=True)
        add.replace_input_with(0, product)
        graph.insert_after(node, add)
    add.name = f"{layer}.bias_add"


def _drop_batch_norm(graph: ir.Graph, node: ir.Node, modules: Mapping[str, nn.Module], naming: Naming) -> None:
    """Remove a batch norm that alone reads a convolution or Gemm, and remember which it was."""
    if node.op_type != "BatchNormalization":
        return
    source, mean = node.inputs[0], node.inputs[3]
    if source is None or mean is None or (producer := source.producer()) is None:
        return
    layer, norm = str(producer.name), str(mean.name).removesuffix(".running_mean")
    known = isinstance(modules.get(norm), BATCH_NORMS) and naming.nodes.get(layer) is producer
    alone = len(_readers(source)) == 1 and len(_readers(mean)) == 1 and not source.is_graph_output()
    if not known or not alone or producer.op_type == "MatMul" or layer in naming.folded:
        return
    naming.folded[layer] = norm
    replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
    graph.remove(node, safe=True)


# --------------------------------------------------------------------------- shapes


def _loosen_reshape(graph: ir.Graph, node: ir.Node) -> None:
    """Write a reshape that keeps the batch axis as [0, 0, ..., -1]: copied sizes first, then one inferred."""
    if node.op_type != "Reshape" or node.inputs[0] is None:
        return
    before, after = node.inputs[0].shape, node.outputs[0].shape
    if before is None or after is None or isinstance(before[0], int) or before[0] != after[0]:
        return
    if not all(isinstance(size, int) for size in (*before[1:], *after[1:])):
        return
    sizes = [int(str(size)) for size in after[1:]]
    same = _common_prefix(sizes, [int(str(size)) for size in before[1:]])
    shape = [0] * (1 + same) + sizes[same:]
    if len(sizes) == same + 1:
        shape[-1] = -1
    name = f"{node.outputs[0].name}.shape"
    node.replace_input_with(1, _initializer(graph, name, np.array(shape, np.int64)))
    node.attributes.pop("allowzero", None)


def _slice_split(graph: ir.Graph, node: ir.Node) -> None:
    """Write a split as one slice for each of its results; the runtimes put them together again."""
    axis = node.attributes.get_int("axis", 0)
    sizes = [output.shape[axis] for output in node.outputs if node.op_type == "Split" and output.shape is not None]
    if len(sizes) < len(node.outputs) or not all(isinstance(size, int) for size in sizes):
        return
    start = 0
    for output, size in zip(node.outputs, sizes, strict=True):
        end = start + int(str(size))
        limits = [
            _initializer(graph, f"{output.name}.{kind}", np.array([value], np.int64))
            for kind, value in (("start", start), ("end", end), ("axis", axis))
        ]
        part = ir.node("Slice", [node.inputs[0], *limits], name=f"{node.name}.{output.name}")
        part.outputs[0].name = f"{output.name}.part"
        part.outputs[0].shape, part.outputs[0].type = output.shape, output.type
        replace_all_uses_with(output, part.outputs[0], replace_graph_outputs=True)
        graph.insert_before(node, part)
        start = end
    graph.remove(node, safe=True)


def _unsqueeze_scalar(graph: ir.Graph, node: ir.Node) -> None:
    """Write the reshape of a number to a vector as an Unsqueeze, which shape inference can follow."""
    if node.op_type != "Reshape" or node.inputs[0] is None or node.inputs[0].shape != ir.Shape([]):
        return
    if node.outputs[0].shape is None or len(node.outputs[0].shape) == 1:
        axes = _initializer(graph, f"{node.outputs[0].name}.axes", np.array([0], np.int64))
        unsqueeze = ir.node("Unsqueeze", [node.inputs[0], axes], name=node.name)
        unsqueeze.outputs[0].name = f"{node.outputs[0].name}.vector"
        replace_all_uses_with(node.outputs[0], unsqueeze.outputs[0])
        graph.insert_after(node, unsqueeze)
        graph.remove(node, safe=True)


def _common_prefix(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _pool_globally(graph: ir.Graph, node: ir.Node) -> None:
    """Write a mean over both image axes as the operator that runtimes have fast and integer kernels for."""
    if node.op_type != "ReduceMean" or len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return
    shape, axes = node.inputs[0].shape, ir.convenience.get_const_tensor(node.inputs[1])
    if shape is None or len(shape) != 4 or axes is None or sorted(axes.numpy() % 4) != [2, 3]:
        return
    pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
    keep = node.attributes.get_int("keepdims", 1)
    last = pool if keep else ir.node("Flatten", pool.outputs, {"axis": 1}, name=f"{node.name}.flatten")
    pool.outputs[0].name = f"{node.outputs[0].name}.pool"
    if last is not pool:
        last.outputs[0].name = f"{node.outputs[0].name}.flat"
    last.outputs[0].shape, last.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    replace_all_uses_with(node.outputs[0], last.outputs[0], replace_graph_outputs=True)
    graph.insert_after(node, [pool] if last is pool else [pool, last])
    graph.remove(node, safe=True)


def _name_batch_axis(graph: ir.Graph) -> None:
    for value, name in ((graph.inputs[0], "input"), (graph.outputs[0], "output")):
        value.name = name
        if value.shape is not None:
            value.shape = ir.Shape(["N", *value.shape[1:]])


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
