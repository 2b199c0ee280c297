"""What a network is made of: layers, prune groups, droppable branches, and layers that share an input."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.errors import ModelError
from hwsearch.model.attention import with_free_heads
from hwsearch.model.branches import find_branches
from hwsearch.model.foreign import root_cause
from hwsearch.model.groups import find_groups
from hwsearch.model.template import Template, export_template
from hwsearch.types import LayerInfo, PruneGroup, SourceModel

MULTIPLIERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network with what hwsearch knows about it.

    Attributes:
        source: The record that goes into results.
        module: The PyTorch module, in eval mode.
        template: Its ONNX graph.
    """

    source: SourceModel
    module: nn.Module
    template: Template


def trace(module: nn.Module, example: Tensor | NDArray[np.float32], *, name: str) -> Network:
    """Analyse `module`; it is put into eval mode and otherwise left as it is.

    Args:
        module: Takes one tensor [N, ...] and returns one tensor [N, ...].
        example: One input, with its batch axis; only shape and type matter.
        name: The factory or file the module came from.

    Raises:
        ModelError: it does not run on such an input, or cannot be traced or exported.
    """
    module.eval()
    example = torch.as_tensor(example)[:1]
    output = _run(module, example)
    template = with_free_heads(export_template(module, example))
    groups, refused = find_groups(module, example, template)
    shapes = template.shapes()
    source = SourceModel(
        name=name,
        sha256=weights_sha256(module),
        input_shape=tuple(example.shape[1:]),
        output_shape=tuple(output.shape[1:]),
        layers=tuple(_layer(layer, template, shapes, groups) for layer in template.layers),
        groups=groups,
        branches=find_branches(template, shapes, groups),
        refused=(*refused, *_outside_layers(template)),
    )
    return Network(source=source, module=module, template=template)


def weights_sha256(module: nn.Module) -> str:
    """Hex digest over names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _run(module: nn.Module, example: Tensor) -> Tensor:
    shape = tuple(example.shape[1:])
    try:
        with torch.no_grad():
            output = module(example)
    except Exception as error:
        raise ModelError(
            f"the model does not run on an input of shape {shape}",
            where=root_cause(error),
            hint="check that the data have the shape the model expects",
        ) from error
    if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != 1:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            "the model must return one tensor whose first axis is the batch",
            where=f"found: {found} for one input of shape {shape}",
            hint="wrap it in a module that returns one tensor",
        )
    return output


def _layer(
    name: str, template: Template, shapes: Mapping[str, tuple[int, ...]], groups: tuple[PruneGroup, ...]
) -> LayerInfo:
    node = template.node(name)
    weight, bias = template.initializers[f"{name}.weight"].dims, template.initializers[f"{name}.bias"].dims
    inputs, outputs = shapes[node.input[0]], shapes[node.output[0]]
    linear = node.op_type != "Conv"
    depthwise = not linear and _groups(node) == weight[0] > 1
    return LayerInfo(
        name=name,
        op="linear" if linear else "depthwise" if depthwise else "conv",
        in_shape=inputs[1:],
        out_shape=outputs[1:],
        params=prod(weight) + prod(bias),
        macs=prod(outputs) * (inputs[-1] if linear else prod(weight[1:])),
        width_group=next((group.name for group in groups if _produces(group, name)), None),
        quant_group=node.input[0],
        groups=1 if linear or depthwise else _groups(node),
    )


def _groups(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _produces(group: PruneGroup, layer: str) -> bool:
    return any(axis.module == layer and axis.side == "out" for axis in group.axes)


def _outside_layers(template: Template) -> list[str]:
    """One line for each weight that is multiplied with but belongs to no layer hwsearch handles."""
    nodes = [node for node in template.skeleton.graph.node if node.op_type in MULTIPLIERS]
    readers = Counter(name for node in nodes for name in node.input[:2] if name in template.initializers)
    outside = {name for node in nodes if node.name not in template.layers for name in node.input[:2]}
    return [
        f"{name}: " + ("it is used more than once" if count > 1 else "it is no convolution or linear module's weight")
        + ", so it stays as it is"
        for name, count in readers.items()
        if name in outside
    ]  # fmt: skip
