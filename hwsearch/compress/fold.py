"""A network without its batch norms, and what its graph says about where errors arise and can be repaired."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import nn

from hwsearch.model.canonical import LAYER_TYPES
from hwsearch.model.template import Template, folded_parameters


def fold(module: nn.Module, folded: Mapping[str, str]) -> nn.Module:
    """A copy of `module` whose batch norms are multiplied into their layers; it computes the same.

    Every layer of the copy has a bias.

    Args:
        module: In eval mode.
        folded: Layer -> batch norm module behind it (`Template.folded`).
    """
    parameters = folded_parameters(module, folded)
    plain = copy.deepcopy(module).requires_grad_(requires_grad=False)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, LAYER_TYPES):
            for kind in ("weight", "bias"):
                value = torch.from_numpy(parameters[f"{name}.{kind}"]).to(layer.weight.dtype)
                setattr(layer, kind, nn.Parameter(value, requires_grad=False))
    for norm in folded.values():
        plain.set_submodule(norm, nn.Identity())
    return plain


@dataclass(frozen=True, slots=True)
class Flow:
    """How layers hang together, read from the exported graph.

    Attributes:
        joined: Layers whose output goes nowhere but into a sum of two activations.
        rectified: Layers whose output, or the sum it goes into, goes nowhere but into ReLUs.
    """

    template: Template
    joined: frozenset[str]
    rectified: frozenset[str]

    @classmethod
    def of(cls, template: Template) -> Flow:
        """The flow of a template."""
        readers = _readers(template.skeleton.graph)
        joined, rectified = set(), set()
        for layer in template.layers:
            after = readers.get(template.result(layer), [])
            if [node.op_type for node in after] == ["Add"] and not _reads_constant(template, after[0]):
                joined.add(layer)
                after = readers.get(after[0].output[0], [])
            if after and all(node.op_type == "Relu" for node in after):
                rectified.add(layer)
        return cls(template, frozenset(joined), frozenset(rectified))

    def stale(self, changed: Iterable[str]) -> tuple[str, ...]:
        """Layers that read something other than they used to once the outputs of `changed` differ, in order."""
        changed = set(changed)
        touched: set[str] = set()
        found = []
        for node in self.template.skeleton.graph.node:
            reached = not touched.isdisjoint(node.input)
            if reached and node.name in self.template.layers:
                found.append(node.name)
            if reached or node.name in changed:
                touched.update(node.output)
        return tuple(found)


def _reads_constant(template: Template, node: onnx.NodeProto) -> bool:
    return any(name in template.initializers for name in node.input)


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor -> nodes that read it; the graph's output counts as read by a node of its own."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in [*graph.node, onnx.NodeProto(op_type="Output", input=[graph.output[0].name])]:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found
