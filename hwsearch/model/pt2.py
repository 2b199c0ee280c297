"""Networks as `torch.export` saves them: written, and read with their layers turned back into modules.

An exported program calls functions (``aten.conv2d``) on parameters; pruning tools look for modules. Convolutions,
linear layers, batch and layer norms become `nn` modules again, under their original dotted names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from hwsearch.errors import ModelError
from hwsearch.model.foreign import one_line, quiet, root_cause
from hwsearch.store import atomic_write

Arguments = dict[str, Any]


def load_pt2(path: Path) -> nn.Module:
    """The module saved in a ``.pt2`` file; inference only, as it was exported.

    Raises:
        ModelError: not such a file, or exported in training mode.
    """
    try:
        with quiet():
            traced = torch.export.load(path).module()
    except Exception as error:
        raise ModelError(
            f"not a .pt2 file that this PyTorch ({torch.__version__}) can read: {path}",
            where=one_line(error),
            hint="save it with torch.export.save(torch.export.export(model.eval(), ...), path)",
        ) from error
    return _with_modules(traced)


def save_pt2(module: nn.Module, example: Tensor, path: Path) -> None:
    """Export `module` for inference at any batch size into a ``.pt2`` file.

    Args:
        module: In eval mode.
        example: Input [N, ...] with N at least 2.
        path: Where the file goes.

    Raises:
        ModelError: PyTorch cannot trace the module.
    """
    axes = ({0: torch.export.Dim("N", min=1)},)
    try:
        with quiet():
            program = torch.export.export(module, (example,), dynamic_shapes=axes, strict=False)
    except Exception as error:
        raise ModelError("the model cannot be traced by torch.export", where=root_cause(error)) from error
    with atomic_write(path) as stream:
        torch.export.save(program, stream)


def _with_modules(traced: fx.GraphModule) -> nn.Module:
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            traced.graph.erase_node(node)
        elif node.op == "call_function" and node.target in _BUILDERS:
            _restore(traced, node)
    _plain_signature(traced.graph)
    traced.graph.eliminate_dead_code()
    # A fresh module: what `torch.export` returns refuses eval() and train().
    return fx.GraphModule(traced, traced.graph, class_name="Exported")


def _plain_signature(graph: fx.Graph) -> None:
    """One tensor in, one tensor out, without the exporter's nested arguments."""
    inputs, output = graph.find_nodes(op="placeholder"), graph.output_node()
    outputs = output.args[0]
    if len(inputs) != 1 or not isinstance(outputs, tuple) or len(outputs) != 1:
        raise ModelError("the .pt2 model must take one tensor and return one tensor")
    output.args = (outputs[0],)
    graph.set_codegen(fx.graph.CodeGen())


def _restore(traced: fx.GraphModule, node: fx.Node) -> None:
    arguments = _arguments(node)
    tensors = {name: value for name, value in arguments.items() if _is_parameter(value)}
    owners = {str(value.target).rpartition(".")[0] for value in tensors.values()}
    shared = any(len(value.users) > 1 for value in tensors.values())
    if len(owners) != 1 or shared or not all(str(v.target).endswith(f".{name}") for name, v in tensors.items()):
        return
    name = owners.pop()
    values = {key: _get(traced, str(value.target)) for key, value in tensors.items()}
    module = _BUILDERS[node.target](values, arguments)
    for key, value in values.items():
        setattr(module, key, value)
    traced.set_submodule(name, module.eval())
    with traced.graph.inserting_before(node):
        call = traced.graph.call_module(name, (arguments["input"],))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    traced.graph.erase_node(node)


def _arguments(node: fx.Node) -> Arguments:
    """Name -> value of a call's arguments, defaults included."""
    given = list(node.args)
    named: Arguments = {}
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]  # noqa: SLF001
        default = argument.default_value if argument.has_default_value() else None
        named[argument.name] = given[i] if i < len(given) else node.kwargs.get(argument.name, default)
    return named


def _is_parameter(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _get(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


# --------------------------------------------------------------------------- one builder per function


def _conv(kind: type[nn.Conv1d | nn.Conv2d | nn.Conv3d]) -> Callable[[Arguments, Arguments], nn.Module]:
    def build(values: Arguments, arguments: Arguments) -> nn.Module:
        weight, groups = values["weight"], arguments["groups"]
        padding = arguments["padding"]
        return kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=tuple(arguments["stride"]),
            padding=padding if isinstance(padding, str) else tuple(padding),
            dilation=tuple(arguments["dilation"]),
            groups=groups,
            bias="bias" in values,
        )

    return build


def _linear(values: Arguments, _arguments: Arguments) -> nn.Module:
    outputs, inputs = values["weight"].shape
    return nn.Linear(inputs, outputs, bias="bias" in values)


def _batch_norm(values: Arguments, arguments: Arguments) -> nn.Module:
    if arguments["training"] or "running_mean" not in values:
        raise ModelError("the .pt2 file was exported in training mode", hint="call model.eval() before torch.export")
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    kind = kinds[arguments["input"].meta["val"].dim()]
    return kind(
        len(values["running_mean"]), eps=arguments["eps"], momentum=arguments["momentum"], affine="weight" in values
    )


def _layer_norm(values: Arguments, arguments: Arguments) -> nn.Module:
    return nn.LayerNorm(
        tuple(arguments["normalized_shape"]), eps=arguments["eps"], elementwise_affine="weight" in values,
        bias="bias" in values,
    )  # fmt: skip


aten = torch.ops.aten

_BUILDERS: dict[Any, Callable[[Arguments, Arguments], nn.Module]] = {
    aten.conv1d.default: _conv(nn.Conv1d),
    aten.conv1d.padding: _conv(nn.Conv1d),
    aten.conv2d.default: _conv(nn.Conv2d),
    aten.conv2d.padding: _conv(nn.Conv2d),
    aten.conv3d.default: _conv(nn.Conv3d),
    aten.conv3d.padding: _conv(nn.Conv3d),
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
}
