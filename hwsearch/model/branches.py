"""Residual branches that can be dropped as a whole, found on the exported graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import onnx

from hwsearch.model.template import Template
from hwsearch.types import Branch, PruneGroup

Shapes = Mapping[str, tuple[int, ...]]


def find_branches(template: Template, shapes: Shapes, groups: Sequence[PruneGroup]) -> tuple[Branch, ...]:
    """Branches whose sum with an identity shortcut can be replaced by the shortcut, in execution order.

    A branch qualifies when it starts at the very tensor it is added to, keeps its shape, holds at least one layer, and
    nothing else reads those layers.

    Args:
        template: The network's graph.
        shapes: Of the template's tensors, from `Template.shapes`.
        groups: Prune groups of the network; each branch lists those that lie inside it.
    """
    adds = [node for node in template.skeleton.graph.node if node.op_type == "Add"]
    found = [branch for add in adds for side in (0, 1) if (branch := _branch(template, shapes, add, side, groups))]
    names = Counter(branch.name for branch in found)
    return tuple(b if names[b.name] == 1 else replace(b, name=b.layers[0]) for b in found)


def _branch(
    template: Template, shapes: Shapes, add: onnx.NodeProto, side: int, groups: Sequence[PruneGroup]
) -> Branch | None:
    start, end = add.input[1 - side], add.input[side]
    if shapes.get(start) is None or shapes.get(start) != shapes.get(end):
        return None
    inside = _nodes_between(template, start, end)
    layers = tuple(name for name in template.layers if name in inside)
    if not layers:
        return None
    branch = Branch(
        name=_common_path(layers),
        layers=layers,
        groups=tuple(group.name for group in groups if _layers_of(group, template) <= set(layers)),
        add_node=add.name,
        branch_input=side,
    )
    left = template.without_branches([branch]).layers
    return branch if left and set(left) == set(template.layers) - set(layers) else None


def _nodes_between(template: Template, start: str, end: str) -> set[str]:
    """Names of the nodes that compute tensor `end` from tensor `start` alone; empty if it depends on another."""
    producers = {output: node for node in template.skeleton.graph.node for output in node.output}
    found: set[str] = set()
    waiting = [end]
    while waiting:
        tensor = waiting.pop()
        if tensor == start or tensor in template.initializers or not tensor:
            continue
        node = producers.get(tensor)
        if node is None:
            return set()
        # A node that asks for a size depends on no value.
        if node.name not in found and node.op_type != "Shape":
            found.add(node.name)
            waiting.extend(node.input)
    return found


def _layers_of(group: PruneGroup, template: Template) -> set[str]:
    return {axis.module for axis in group.axes} & set(template.layers)


def _common_path(layers: Sequence[str]) -> str:
    levels = zip(*(layer.split(".") for layer in layers), strict=False)
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, levels)) or layers[0]
