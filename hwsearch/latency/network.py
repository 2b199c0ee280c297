"""Units of whole candidates, read from the network's template without building anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from hwsearch.latency.kernels import FOLDED, MOVES, Column, Plan, Unit, compiled_units, read_plan
from hwsearch.types import PRECISIONS, Candidate, SourceModel

if TYPE_CHECKING:
    import onnx

    from hwsearch.model.template import Template

    Quantized = Callable[[onnx.ModelProto, Mapping[str, str]], Collection[str]]
    """Tensors a backend quantises: what `Backend.tensors_to_observe` answers."""

MOST_PLANS = 512
INTEGER_KERNELS = MOVES | {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}
"""Operations without weights that a device taken on trust (`integer_flow`) computes in integers."""


class NetworkUnits:
    """Reads candidates of one network as units.

    Args:
        source: The traced network.
        template: Its graph.
        quantized: The backend's rule for what is quantised.
    """

    def __init__(self, source: SourceModel, template: Template, quantized: Quantized) -> None:
        self.source, self.template, self.quantized = source, template, quantized
        self.full = {group.name: group.channels for group in source.groups}
        self._plans: dict[tuple[str, ...], tuple[onnx.ModelProto, Plan]] = {}

    def units(self, candidate: Candidate) -> list[Unit]:
        """Units of a candidate, their widths in terms of its prune groups."""
        skeleton, plan = self._plan(candidate.dropped)
        quantized = self.quantized(skeleton, candidate.precision)
        return list(compiled_units(plan, quantized, candidate.precision, candidate.float_precision))

    def counts(self, candidate: Candidate) -> Counter[Column]:
        """How often each unit occurs in a candidate, at its own widths."""
        keep = {**self.full, **candidate.keep}
        return Counter((u.kind, (u.inputs.channels(keep), u.outputs.channels(keep))) for u in self.units(candidate))

    def without(self, dropped: tuple[str, ...]) -> Template:
        """The template without some branches."""
        return self.template.without_branches([b for b in self.source.branches if b.name in dropped])

    def _plan(self, dropped: tuple[str, ...]) -> tuple[onnx.ModelProto, Plan]:
        if dropped not in self._plans:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            template = self.without(dropped)
            plan = read_plan(template.skeleton, template.layers, template.shapes(), self.source)
            self._plans[dropped] = (template.skeleton, plan)
        return self._plans[dropped]


def integer_flow(model: onnx.ModelProto, precision: Mapping[str, str]) -> set[str]:
    """Quantised tensors on a device without a backend: what integer layers read and write, and what follows from it."""
    integer = {layer for layer, name in precision.items() if PRECISIONS[name].integer}
    found = {node.input[0] for node in model.graph.node if node.name in integer}
    for node in model.graph.node:
        if node.name in integer or (node.op_type in INTEGER_KERNELS | FOLDED and node.input[0] in found):
            found.update(node.output)
    return found
