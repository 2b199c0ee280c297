"""Convolutions with the batch norm that alone reads them, found by tracing."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from hwsearch.errors import ModelError
from hwsearch.model.foreign import root_cause
from hwsearch.reparam.blocks import RepBlock


def conv_norm_pairs(model: nn.Module) -> dict[str, str]:
    """Name of a convolution -> name of the batch norm behind it, in execution order; modules used once only.

    Raises:
        ModelError: `torch.fx` cannot trace the model.
    """
    graph, modules = _graph(model), dict(model.named_modules())
    uses = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    found = {}
    for node in graph.nodes:
        norm = next(iter(node.users), None)
        if node.op != "call_module" or len(node.users) != 1 or norm is None or norm.op != "call_module":
            continue
        conv_name, norm_name = str(node.target), str(norm.target)
        kinds = isinstance(modules[conv_name], nn.Conv2d) and isinstance(modules[norm_name], nn.BatchNorm2d)
        if kinds and uses[conv_name] == uses[norm_name] == 1:
            found[conv_name] = norm_name
    return found


class _Tracer(fx.Tracer):
    """Stops at our own blocks, whose passes depend on shapes."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, RepBlock) or super().is_leaf_module(module, name)


def _graph(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:
        raise ModelError(
            "the model cannot be traced by torch.fx",
            where=root_cause(error),
            hint="avoid Python branches on tensor values in `forward`",
        ) from error
