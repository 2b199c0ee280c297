"""What a layer reads and writes at sampled positions, and second moments of it, streamed in chunks of images."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHUNK_IMAGES = 32
CHUNK_ROWS = 8192

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def find_layer(module: nn.Module, name: str) -> Layer:
    """The convolution or linear layer of that name."""
    return cast("Layer", module.get_submodule(name))


def write_parameters(layer: Layer, weight: Tensor, bias: Tensor) -> None:
    """Put other numbers, of the same shapes, into a layer that has a bias."""
    assert layer.bias is not None
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def sample_positions(name: str, images: int, positions: int, rows: int) -> Tensor:
    """Output positions of a layer to look at, [images, rows per image], ascending for each image.

    All of them if `images` times `positions` is at most `rows`, else about `rows` in total: neighbouring positions say
    nearly the same, so that other images are worth more. The draw depends only on the arguments.
    """
    count = min(positions, max(1, -(-rows // images)))
    if count == positions:
        return torch.arange(positions).expand(images, -1)
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    order = torch.rand(images, positions, generator=draw).argsort(dim=1)
    return order[:, :count].sort(dim=1).values


def output_positions(layer: Layer, outputs: Tensor) -> int:
    """How many vectors of output channels one example gives."""
    vectors = outputs[0].numel() // _channels(layer, outputs)
    return int(vectors)


def output_rows(layer: Layer, outputs: Tensor) -> Tensor:
    """What a layer writes as [images, positions, channels]."""
    return outputs.flatten(2).transpose(1, 2) if isinstance(layer, CONVOLUTIONS) else _tokens(outputs)


def take_outputs(layer: Layer, outputs: Tensor, positions: Tensor) -> Tensor:
    """Rows [images * rows per image, channels] of what a layer writes."""
    return _at(output_rows(layer, outputs), positions).flatten(0, 1)


def take_inputs(layer: Layer, inputs: Tensor, positions: Tensor) -> Tensor:
    """Rows [groups, images * rows per image, columns] of what a layer multiplies by its weight; a last column is 1.

    The columns are in the order of the flattened weight: input channel, then kernel position.
    """
    groups = getattr(layer, "groups", 1)
    rows = inputs.new_empty(groups, positions.numel(), layer.weight[0].numel() + 1)
    rows[..., -1] = 1
    columns = rows[..., :-1].view(groups, *positions.shape, *layer.weight.shape[1:])
    for start in range(0, len(inputs), CHUNK_IMAGES):  # at a time: what lies in between is as large as the inputs
        part = slice(start, start + CHUNK_IMAGES)
        some, where, into = inputs[part], positions[part], columns[:, part]
        read = _windows(layer, some, where) if isinstance(layer, CONVOLUTIONS) else _at(_tokens(some), where)
        into.copy_(read.reshape(*where.shape, groups, *into.shape[3:]).movedim(2, 0))
    return rows


def gram(rows: Tensor, other: Tensor | None = None) -> Tensor:
    """rowsᵀ · other (or rows) per group, in float64 [groups, columns, columns of other]; chunks of rows are summed."""
    if other is None and len(rows) == 1:
        return _symmetric_gram(rows[0])[None]
    other = rows if other is None else other
    total = rows.new_zeros(rows.shape[0], rows.shape[2], other.shape[2], dtype=torch.float64)
    for left, right in zip(torch.split(rows, CHUNK_ROWS, 1), torch.split(other, CHUNK_ROWS, 1), strict=True):
        total += left.transpose(1, 2) @ right
    return total


def second_moments(module: nn.Module, layers: Iterable[str], images: Tensor, *, rows: int) -> dict[str, Tensor]:
    """Layer -> mean of x xᵀ over what it reads, [groups, columns + 1, columns + 1] in float64, the last column being 1.

    Args:
        module: The network; layers that it does not call as modules are missing from the result.
        layers: Which ones.
        images: [N, ...]; a few at a time pass through the network.
        rows: About how many positions of a layer are looked at.
    """
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    start = 0

    def look(name: str, layer: Layer, inputs: Tensor, outputs: Tensor) -> None:
        positions = sample_positions(name, len(images), output_positions(layer, outputs), rows)
        taken = take_inputs(layer, inputs, positions[start : start + len(inputs)])
        totals[name] = totals[name].add_(gram(taken)) if name in totals else gram(taken)
        counts[name] = counts.get(name, 0) + taken.shape[1]

    with torch.inference_mode(), watch(module, layers, look):
        for chunk in torch.split(images, CHUNK_IMAGES):
            module(chunk)
            start += len(chunk)
    # Popped, so that no more than one layer's moments are held twice.
    return {name: totals.pop(name) / counts[name] for name in list(totals)}


@contextmanager
def watch(
    module: nn.Module, layers: Iterable[str], look: Callable[[str, Layer, Tensor, Tensor], None]
) -> Iterator[None]:
    """Within the context, call ``look(name, layer, inputs, outputs)`` whenever one of the layers has run."""
    modules: Mapping[str, nn.Module] = dict(module.named_modules())

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda layer, inputs, outputs: look(name, layer, inputs[0], outputs)  # type: ignore[arg-type]

    handles = [modules[name].register_forward_hook(hook_for(name)) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _symmetric_gram(rows: Tensor) -> Tensor:
    """rowsᵀ · rows by blocks, of which those below the diagonal are copied.

    Not by a BLAS of NumPy's, which knows symmetric products: its threads and PyTorch's wait for one another in loops.
    """
    columns = rows.shape[1]
    total = rows.new_zeros(columns, columns, dtype=torch.float64)
    half = columns // 2
    for chunk in torch.split(rows, CHUNK_ROWS):
        total[:half] += chunk[:, :half].T @ chunk
        total[half:, half:] += chunk[:, half:].T @ chunk[:, half:]
    total[half:, :half] = total[:half, half:].T
    return total


def _at(rows: Tensor, positions: Tensor) -> Tensor:
    """The rows [images, positions, channels] at the given positions of each image."""
    return rows.gather(1, positions[..., None].expand(-1, -1, rows.shape[2]))


def _tokens(values: Tensor) -> Tensor:
    """[N, ..., channels] as [N, positions, channels]."""
    return values.flatten(1, -2) if values.dim() > 2 else values[:, None]


def _channels(layer: Layer, outputs: Tensor) -> int:
    return outputs.shape[1] if isinstance(layer, CONVOLUTIONS) else outputs.shape[-1]


def _windows(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor, positions: Tensor) -> Tensor:
    """Patches [images, rows per image, channels, *kernel] under the kernel at the given output positions."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padding = layer._reversed_padding_repeated_twice  # noqa: SLF001  (numbers even where `padding` says "same")
    view = functional.pad(inputs, padding, mode=mode)
    view = view.movedim(1, -1).contiguous()  # the channels of a pixel side by side: gathering is several times faster
    for axis, (kernel, stride, dilation) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=1
    ):
        view = view.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    image = torch.arange(len(inputs))[:, None].expand_as(positions)
    where = torch.unravel_index(positions, view.shape[1 : 1 + len(layer.kernel_size)])
    return view[(image, *where)]
