"""The network as an ONNX graph, exported once; a candidate only puts other numbers into it.

`export_template` runs the (slow) PyTorch exporter. `Template.bind` replaces initialisers, whose shapes may shrink, and
`Template.without_branches` removes residual branches; both take milliseconds, since nothing is exported again.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.errors import ModelError
from hwsearch.model.canonical import LAYER_TYPES, Naming, canonicalise
from hwsearch.model.foreign import quiet, root_cause
from hwsearch.types import Branch

OPSET = 20

SMALL = 64
"""Constants of this many numbers or fewer, such as the scales of a resize, may decide shapes."""

Parameters = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """An ONNX model in two parts: a graph without numbers, and the numbers.

    Attributes:
        skeleton: Graph without initialisers; input ``input`` [N, ...], output ``output`` [N, ...]. Not to be changed.
        initializers: Name -> tensor; ``<layer>.weight`` and ``<layer>.bias`` for layers, the module's own names for
            other parameters.
        layers: Names of the layers in execution order; each is also a node's name.
        folded: Layer -> batch norm module folded into it.
        transposed: Parameters stored transposed: weights of linear layers on more than two axes.
    """

    skeleton: onnx.ModelProto
    initializers: Mapping[str, onnx.TensorProto]
    layers: tuple[str, ...]
    folded: Mapping[str, str]
    transposed: frozenset[str]

    def node(self, name: str) -> onnx.NodeProto:
        """The node called `name`; KeyError if there is none."""
        for node in self.skeleton.graph.node:
            if node.name == name:
                return cast("onnx.NodeProto", node)
        raise KeyError(name)

    def result(self, layer: str) -> str:
        """Name of the tensor that holds a layer's result, bias included."""
        node = self.node(layer)
        return str((self.node(f"{layer}.bias_add") if node.op_type == "MatMul" else node).output[0])

    def bind(self, parameters: Parameters | None = None) -> onnx.ModelProto:
        """A complete model with the given parameters in place of the template's own.

        Args:
            parameters: Name -> array in PyTorch's layout (a linear weight is [out, in] in every case); shapes may
                differ from the template's. Names the graph does not hold, such as those of a dropped branch, are
                ignored.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.skeleton)
        parameters = parameters or {}
        for name, tensor in self.initializers.items():
            array = parameters.get(name)
            model.graph.initializer.append(tensor if array is None else self._tensor(name, array))
        _follow_depthwise_width(model.graph, parameters)
        return model

    def shapes(self, batch: int = 1, parameters: Parameters | None = None) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the graph at a fixed batch size; `parameters` as in `bind`.

        Raises:
            onnx.shape_inference.InferenceError: some shapes do not fit together.
        """
        model, parameters = onnx.ModelProto(), parameters or {}
        model.CopyFrom(self.skeleton)
        for name, tensor in self.initializers.items():
            if name in parameters:
                shape = parameters[name].shape
                _declare(model.graph, name, shape[::-1] if name in self.transposed else shape)
            elif tensor.data_type == onnx.TensorProto.FLOAT and prod(tensor.dims) > SMALL:
                _declare(model.graph, name, tensor.dims)
            else:
                model.graph.initializer.append(tensor)
        _follow_depthwise_width(model.graph, parameters)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        model.graph.output[0].type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        values = [*inferred.input, *inferred.value_info, *inferred.output]
        return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}

    def _tensor(self, name: str, array: NDArray[np.float32]) -> onnx.TensorProto:
        if name in self.transposed:
            array = array.T
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
        tensor.raw_data = np.asarray(array, dtype="<f4").tobytes()
        return tensor

    def without_branches(self, branches: Iterable[Branch]) -> Template:
        """The template with residual branches removed: their sum is the shortcut alone.

        A branch that lies inside another dropped one needs no removal of its own.
        """
        graph = onnx.GraphProto()
        graph.CopyFrom(self.skeleton.graph)
        for branch in branches:
            _bypass(graph, branch.add_node, branch.branch_input)
        _remove_dead_nodes(graph)
        return self._with_graph(graph)

    def _with_graph(self, graph: onnx.GraphProto) -> Template:
        skeleton = onnx.ModelProto()
        skeleton.CopyFrom(self.skeleton)
        skeleton.graph.CopyFrom(graph)
        names = {node.name for node in graph.node}
        used = {name for node in graph.node for name in node.input}
        return dataclasses.replace(
            self,
            skeleton=skeleton,
            initializers={name: tensor for name, tensor in self.initializers.items() if name in used},
            layers=tuple(name for name in self.layers if name in names),
            folded={layer: norm for layer, norm in self.folded.items() if layer in names},
        )


def export_template(module: nn.Module, example: Tensor) -> Template:
    """The template of `module` (in eval mode), with its own weights.

    Args:
        module: Takes one tensor and returns one tensor, both with the batch as first axis.
        example: Input [N, ...] with any N; only its shape and type matter.

    Raises:
        ModelError: PyTorch cannot trace or export the module.
    """
    modules = dict(module.named_modules())
    model = _export(module, example)
    naming = canonicalise(model, modules)
    if not naming.nodes:
        raise ModelError("the model has no convolution or linear layer to work on")
    return _with_own_weights(_split(model, naming), module)


def folded_parameters(module: nn.Module, folded: Mapping[str, str]) -> dict[str, NDArray[np.float32]]:
    """All parameters of `module` under the names of its template, batch norms multiplied into their layers.

    Convolution and linear layers get a bias in any case. Other parameters and running statistics keep their names.

    Args:
        module: The network, or a pruned copy of it.
        folded: Layer -> batch norm module folded into it (`Template.folded`).
    """
    modules = dict(module.named_modules())
    gone = tuple(f"{norm}." for norm in folded.values())
    arrays = {
        name: _array(tensor)
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not name.startswith(gone)
    }
    for name, layer in modules.items():
        if isinstance(layer, LAYER_TYPES):
            norm = modules[folded[name]] if name in folded else None
            arrays[f"{name}.weight"], arrays[f"{name}.bias"] = _fold(layer, norm)
    return arrays


def _fold(layer: Any, norm: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of ``norm(layer(x))``: w·s and (b − mean)·s + shift with s = scale / sqrt(var + eps)."""
    weight: Tensor = layer.weight.detach().double()
    bias: Tensor = weight.new_zeros(weight.shape[0]) if layer.bias is None else layer.bias.detach().double()
    if norm is not None:
        scale: Tensor = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.detach()
        weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
        bias = (bias - norm.running_mean) * scale
        bias = bias if norm.bias is None else bias + norm.bias.detach()
    return _array(weight), _array(bias)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


# --------------------------------------------------------------------------- export


def _export(module: nn.Module, example: Tensor) -> ir.Model:
    # A batch of one would be baked into the graph as a constant.
    pair = torch.cat([example, example])[:2]
    with quiet():
        try:
            axes = ({0: torch.export.Dim("N", min=1)},)
            program = torch.export.export(module, (pair,), dynamic_shapes=axes, strict=False)
            exported = torch.onnx.export(
                program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False,
                input_names=["input"], output_names=["output"],
            )  # fmt: skip
        except Exception as error:
            raise _explain(error) from error
    if exported is None or len(exported.model.graph.outputs) != 1:
        raise ModelError("the model must return exactly one tensor", hint="wrap it in a module that returns one")
    return exported.model


def _explain(error: Exception) -> ModelError:
    cause = root_cause(error)
    if "Constraints violated (N)" in cause or "Constraints violated (N)" in str(error):
        return ModelError(
            "the model works for one batch size only, so it cannot be exported",
            where=cause,
            hint="write x.flatten(1) or x.view(x.shape[0], -1) instead of a fixed batch size",
        )
    return ModelError(
        "the model cannot be traced by torch.export",
        where=cause,
        hint="avoid Python branches on tensor values and calls to other libraries in `forward`, "
        "or export it yourself and give the .pt2 file",
    )


def _split(model: ir.Model, naming: Naming) -> Template:
    skeleton = ir.to_proto(model)
    initializers = {tensor.name: tensor for tensor in skeleton.graph.initializer}
    skeleton.graph.ClearField("initializer")
    skeleton.graph.ClearField("value_info")
    return Template(
        skeleton=skeleton,
        initializers=initializers,
        layers=tuple(naming.nodes),
        folded=naming.folded,
        transposed=frozenset(naming.transposed),
    )


def _with_own_weights(template: Template, module: nn.Module) -> Template:
    bound = template.bind(folded_parameters(module, template.folded))
    return dataclasses.replace(template, initializers={tensor.name: tensor for tensor in bound.graph.initializer})


# --------------------------------------------------------------------------- graph surgery


def _follow_depthwise_width(graph: onnx.GraphProto, parameters: Parameters) -> None:
    """A depthwise convolution has as many groups as channels, however many are left."""
    for node in graph.node:
        weight = parameters.get(node.input[1]) if node.op_type == "Conv" else None
        for attribute in node.attribute if weight is not None else ():
            if attribute.name == "group" and attribute.i > 1 and weight is not None and weight.shape[1] == 1:
                attribute.i = weight.shape[0]


def _declare(graph: onnx.GraphProto, name: str, shape: Sequence[int]) -> None:
    """Make a parameter an input: shape inference needs no values, and copying large ones costs."""
    graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)))


def _bypass(graph: onnx.GraphProto, add_name: str, branch_input: int) -> None:
    """Let the readers of a sum read its shortcut; a ReLU right after a ReLU goes too."""
    add = next((node for node in graph.node if node.name == add_name), None)
    if add is None:
        return
    shortcut, total = add.input[1 - branch_input], add.output[0]
    graph.node.remove(add)
    producer = next((node for node in graph.node if shortcut in node.output), None)
    readers = [node for node in graph.node if total in node.input]
    if producer is not None and producer.op_type == "Relu" and [node.op_type for node in readers] == ["Relu"]:
        total = readers[0].output[0]
        graph.node.remove(readers[0])
    _redirect(graph, total, shortcut)


def _redirect(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
    if graph.output[0].name == old:
        graph.node.append(onnx.helper.make_node("Identity", [new], [old], name=f"{old}.identity"))


def _remove_dead_nodes(graph: onnx.GraphProto) -> None:
    needed = Counter(name for node in graph.node for name in node.input)
    needed.update(value.name for value in graph.output)
    for node in reversed(list(graph.node)):
        if not any(needed[name] for name in node.output):
            needed.subtract(node.input)
            graph.node.remove(node)
