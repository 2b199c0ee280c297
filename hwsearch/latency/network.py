"""Units of whole candidates, without building anything; a candidate like none before takes tens of microseconds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from hwsearch.backends.base import get_backend
from hwsearch.backends.flow import Flow, read_flow
from hwsearch.backends.rewrite import ACTIVATIONS, Graph
from hwsearch.errors import ConfigError
from hwsearch.latency.kernels import MOVES, Column, Operation, Plan, Situation, Unit, compiled_units, situations
from hwsearch.latency.plan import read_plan
from hwsearch.types import PRECISIONS, Branch, Candidate, SourceModel, Target

if TYPE_CHECKING:
    from hwsearch.model.template import Template

MOST_PLANS = 4096
INTEGER_KERNELS = MOVES | {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}
"""Operations without weights that a device taken on trust (`integer_flow`) computes in integers."""

Rule = Callable[[Flow, Mapping[str, str]], Collection[str]]
"""Tensors of a graph that are quantised under a precision per layer."""


@runtime_checkable
class ReadsFlow(Protocol):
    """A backend that latency tables can be made for."""

    def observed_tensors(self, flow: Flow, precision: Mapping[str, str]) -> Collection[str]:
        """What `Backend.tensors_to_observe` answers for a graph with this flow."""
        ...


def quantizer_rule(target: Target) -> Rule:
    """How the device of `target` is used.

    Raises:
        ConfigError: the backend cannot say.
    """
    if target.backend == "table":
        return integer_flow
    backend = get_backend(target.backend)
    if not isinstance(backend, ReadsFlow):
        raise ConfigError(
            f"there are no latency tables for the backend `{target.backend}`: it has no method `observed_tensors`",
            hint="set `latency: measure`",
        )
    return backend.observed_tensors


class NetworkUnits:
    """Reads candidates of one network as units.

    A new pattern of precisions only recombines what operations were found to compile to. So does a new set of dropped
    branches: what dropping each of them does to the graph is read once.

    Args:
        source: The traced network.
        template: Its graph.
        rule: Says what is quantised.
    """

    def __init__(self, source: SourceModel, template: Template, rule: Rule) -> None:
        self.source, self.template, self.rule = source, template, rule
        self.full = {group.name: group.channels for group in source.groups}
        self._shapes = template.shapes()
        self._operations: dict[tuple[object, ...], Operation] = {}
        self._branches = {branch.name: branch for branch in source.branches}
        self._whole = self._read(())
        self._plans: dict[tuple[str, ...], Plan] = {(): self._whole}
        self._removals: dict[str, _Removal | None] = {}

    def units(self, candidate: Candidate) -> list[Unit]:
        """Units of a candidate, their widths in terms of its prune groups."""
        plan = self._plan(candidate.dropped)
        quantized = self.rule(plan.flow, candidate.precision)
        return compiled_units(plan, quantized, candidate.precision, candidate.float_precision)

    def situations(self, candidate: Candidate) -> list[Situation]:
        """What the operations of a candidate meet; with the call, all that `units` depends on."""
        plan = self._plan(candidate.dropped)
        quantized = self.rule(plan.flow, candidate.precision)
        return situations(plan, quantized, candidate.precision, candidate.float_precision)

    def counts(self, candidate: Candidate) -> Counter[Column]:
        """How often each unit occurs in a candidate, at its own widths."""
        keep = {**self.full, **candidate.keep}
        return Counter((u.kind, (u.inputs.channels(keep), u.outputs.channels(keep))) for u in self.units(candidate))

    def without(self, dropped: tuple[str, ...]) -> Template:
        """The template without some branches."""
        return self.template.without_branches([self._branches[name] for name in dropped])

    def _plan(self, dropped: tuple[str, ...]) -> Plan:
        found = self._plans.get(dropped)
        if found is None:
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            found = self._plans[dropped] = self._recombined(dropped) or self._read(dropped)
        return found

    def _recombined(self, dropped: tuple[str, ...]) -> Plan | None:
        """The plan without some branches, from the effects of dropping each alone; None if they may interfere."""
        removals = [self._removal(name) for name in dropped]
        gone: set[str] = set()
        instead: dict[str, str] = {}
        for removal in removals:
            if removal is None:
                return None
            gone |= removal.gone
            instead |= removal.instead
        return Plan(self._whole.flow.without(gone, instead), self._whole.operations)

    def _removal(self, name: str) -> _Removal | None:
        if name not in self._removals:
            self._removals[name] = self._tried_removal(self._branches[name])
        return self._removals[name]

    def _tried_removal(self, branch: Branch) -> _Removal | None:
        """What dropping a branch does, if leaving out its steps is all there is to it.

        Where an activation stands alone it could be folded once enough branches are gone, so nothing is recombined.
        """
        whole, left = self._whole, self._read((branch.name,))
        steps = {step.name: step for step in whole.flow.steps}
        gone = steps.keys() - left.operations.keys()
        total = steps[branch.add_node]
        removal = _Removal(frozenset(gone), {total.leaves: total.reads[1 - branch.branch_input]})
        alone = any(step.op in ACTIVATIONS for step in whole.flow.steps)
        same_flow = whole.flow.without(removal.gone, removal.instead) == left.flow
        same_operations = all(whole.operations.get(name) is found for name, found in left.operations.items())
        return removal if same_flow and same_operations and not alone else None

    def _read(self, dropped: tuple[str, ...]) -> Plan:
        """The plan read from the graph itself; operations that are alike are the same object in all plans."""
        template = self.without(dropped)
        flow = read_flow(Graph(template.skeleton, template.initializers))
        plan = read_plan(flow, template.skeleton.graph, template.layers, self._shapes, self.source)
        known = {
            name: self._operations.setdefault((name, *dataclasses.astuple(operation)), operation)
            for name, operation in plan.operations.items()
        }
        return Plan(flow, known)


@dataclasses.dataclass(frozen=True, slots=True)
class _Removal:
    """What dropping a branch does: steps that go, and the tensor that stands in for their sum."""

    gone: frozenset[str]
    instead: Mapping[str, str]


def integer_flow(flow: Flow, precision: Mapping[str, str]) -> set[str]:
    """Quantised tensors on a device without a backend: what integer layers read and write, and what follows from it."""
    integer = {layer for layer, name in precision.items() if PRECISIONS[name].integer}
    found = {step.reads[0] for step in flow.steps if step.name in integer}
    for step in flow.steps:
        if step.name in integer or (step.op in INTEGER_KERNELS | ACTIVATIONS and step.reads[0] in found):
            found.update((step.writes, step.leaves))
    return found
