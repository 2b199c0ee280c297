"""A float graph as far as the placing of quantisers depends on it: operations, and what runtimes fold into them.

Reading one takes a millisecond. Asking which of its tensors a backend would quantise then takes microseconds, so that a
search can ask for thousands of candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx

from hwsearch.backends.rewrite import ACTIVATIONS, BIASED, Graph

COMPUTES = BIASED | {"MatMul", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}
"""Operations whose kernel computes new values, and can apply an activation to them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, with the constant bias and the activation that are folded into it.

    Attributes:
        name: Of its node; a layer's name if it has a weight.
        op: ONNX operation.
        reads: Tensors it computes from, constants left out.
        constants: Whether it reads constants too.
        writes: The tensor the node itself leaves.
        leaves: The tensor left past bias and activation.
        activated: Whether an activation is folded in.
    """

    name: str
    op: str
    reads: tuple[str, ...]
    constants: bool
    writes: str
    leaves: str
    activated: bool


@dataclass(frozen=True, slots=True)
class Flow:
    """The operations of a graph in execution order; those that compute from constants alone are left out."""

    steps: tuple[Step, ...]
    input: str
    output: str

    def without(self, gone: Collection[str], instead: Mapping[str, str]) -> Flow:
        """Some steps left out; who read a tensor of theirs reads the one named `instead`."""
        untouched = instead.keys().isdisjoint
        kept = [step for step in self.steps if step.name not in gone]
        redirected = [step if untouched(step.reads) else _redirected(step, instead) for step in kept]
        return Flow(tuple(redirected), self.input, self.output)


def read_flow(graph: Graph) -> Flow:
    """The flow of a float graph."""
    constants = {*graph.initializers, ""}
    folded: set[str] = set()
    steps: list[Step] = []
    for node in graph.nodes:
        if constants.issuperset(node.input):
            constants.update(node.output)
        elif node.output[0] not in folded:
            steps.append(_step(graph, node, constants))
            folded.update(_past(graph, node))
    return Flow(tuple(steps), graph.inputs[0], graph.outputs[0])


def _step(graph: Graph, node: onnx.NodeProto, constants: Collection[str]) -> Step:
    leaves = (node.output[0], *_past(graph, node))[-1]
    return Step(
        name=node.name,
        op=node.op_type,
        reads=tuple(dict.fromkeys(name for name in node.input if name not in constants)),
        constants=any(name and name in constants for name in node.input),
        writes=node.output[0],
        leaves=leaves,
        activated=leaves != node.output[0] and graph.producer[leaves].op_type in ACTIVATIONS,
    )


def _past(graph: Graph, node: onnx.NodeProto) -> list[str]:
    """Outputs of the nodes that are folded into `node`: a bias written as an addition, an activation."""
    if node.op_type not in COMPUTES:
        return []
    bias, last = graph.bias(node), graph.folded_output(node)
    between = [] if bias is None else [str(bias[0].output[0])]
    return [name for name in dict.fromkeys((*between, last)) if name != node.output[0]]


def _redirected(step: Step, instead: Mapping[str, str]) -> Step:
    """`step`, reading what is left of the tensors it read."""
    return dataclasses.replace(step, reads=tuple([_followed(name, instead) for name in step.reads]))


def _followed(name: str, instead: Mapping[str, str]) -> str:
    while name in instead:
        name = instead[name]
    return name
