"""Precisions, and the network as it was traced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A number format a layer may be asked to compute in.

    `name` is what appears in candidates, tables and reports; bits are those of one weight and one activation (tf32
    computes with 19 of the 32 it is stored in). `integer` formats are chosen layer by layer and come with scales, which
    holds for fp8 and for weights of 4 bits beside 16-bit activations (w4a16) as well.
    """

    name: str
    weight_bits: int
    act_bits: int
    integer: bool


PRECISIONS: dict[str, Precision] = {
    p.name: p
    for p in (
        Precision(name="fp32", weight_bits=32, act_bits=32, integer=False),
        Precision(name="tf32", weight_bits=19, act_bits=19, integer=False),
        Precision(name="bf16", weight_bits=16, act_bits=16, integer=False),
        Precision(name="fp16", weight_bits=16, act_bits=16, integer=False),
        Precision(name="fp8", weight_bits=8, act_bits=8, integer=True),
        Precision(name="int8", weight_bits=8, act_bits=8, integer=True),
        Precision(name="w4a16", weight_bits=4, act_bits=16, integer=True),
        Precision(name="int4", weight_bits=4, act_bits=4, integer=True),
        Precision(name="int2", weight_bits=2, act_bits=2, integer=True),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """One convolution or linear layer of the network, in execution order.

    Attributes:
        name: Dotted module path, e.g. ``layer1.0.conv1``; also the node name in the ONNX template.
        op: ``conv``, ``depthwise`` or ``linear``.
        in_shape, out_shape: Without the batch axis.
        params: Weights and biases, batch norm folded.
        macs: Multiply-accumulates for one example.
        width_group: The prune group of its output channels, or None if they are fixed.
        quant_group: Layers with the same value read the same input quantiser.
        groups: Of a grouped convolution; a depthwise one says so by its `op`.
    """

    name: str
    op: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    params: int
    macs: int
    width_group: str | None
    quant_group: str
    groups: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelAxis:
    """One tensor axis that loses channels together with its prune group.

    Channel ``c`` of the group is entries ``offset + c * repeat`` to ``offset + (c + 1) * repeat - 1`` of the axis:
    `repeat` > 1 after a flatten, `offset` > 0 after a concatenation.

    Attributes:
        module: Dotted path of the convolution, linear or norm layer.
        side: ``out`` (weight axis 0 and bias; every vector of a norm) or ``in`` (weight axis 1).
    """

    module: str
    side: Literal["out", "in"]
    offset: int = 0
    repeat: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneGroup:
    """Channels that must be kept or dropped together, across residual adds and norms.

    `name` is the first layer (in execution order) that produces them; `channels` is how many there are.
    `kind` is ``inner`` when they stay inside one residual branch and ``stage`` when they cross an add.
    """

    name: str
    channels: int
    kind: Literal["inner", "stage"]
    axes: tuple[ChannelAxis, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A residual branch whose shortcut is the identity, so that it can be dropped as a whole.

    Attributes:
        name: Longest common module path of its layers, e.g. ``layer1.0``.
        layers: Names of the layers inside.
        groups: Prune groups that live wholly inside.
        add_node: ONNX node that adds the branch to its shortcut.
        branch_input: Position (0 or 1) of the branch among that node's inputs.
    """

    name: str
    layers: tuple[str, ...]
    groups: tuple[str, ...]
    add_node: str
    branch_input: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """What hwsearch knows of the network it was given.

    Attributes:
        name: The factory or file it came from.
        sha256: Over names, shapes and values of all weights: two runs agree only if this does.
        input_shape: One example, without the batch axis.
        output_shape: Likewise.
        refused: What cannot be pruned or dropped, and why, one line each.
    """

    name: str
    sha256: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    layers: tuple[LayerInfo, ...]
    groups: tuple[PruneGroup, ...]
    branches: tuple[Branch, ...]
    refused: tuple[str, ...] = ()

    def layer(self, name: str) -> LayerInfo:
        """The layer called `name`; KeyError if there is none."""
        return next(layer for layer in self.layers if layer.name == name)
