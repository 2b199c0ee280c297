"""The database of repaired pieces: the order in which a group's channels go, and weights that make up for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.compress.prune import Indices, magnitude_order
from hwsearch.compress.select import Reader, compensated, damped, removal_order
from hwsearch.compress.sparsify import magnitude_mask, surgery
from hwsearch.compress.statistics import Layer, find_layer, second_moments
from hwsearch.model.template import folded_parameters
from hwsearch.store import atomic_write
from hwsearch.types import ChannelAxis, PruneGroup, SourceModel


class Database:
    """Pieces of one network, made when first asked for and kept in memory and, between runs, in files named by content.

    Args:
        module: The network, batch norm folded.
        source: Its record.
        images: Calibration images [N, ...].
        rows: About how many positions of a layer its second moments are taken over.
        damping: Added to them, relative to their mean diagonal.
        folder: Where the files go; None keeps everything in memory.
    """

    def __init__(
        self, module: nn.Module, source: SourceModel, images: Tensor, *, rows: int, damping: float, folder: Path | None
    ) -> None:
        self._module, self._source, self._images = module, source, images
        self._rows, self._damping, self._folder = rows, damping, folder
        self._groups = {group.name: group for group in source.groups}
        self._known: dict[str, NDArray[np.generic]] = {}

    def select(self, keep: Mapping[str, int]) -> dict[str, Indices]:
        """Prune group -> sorted indices of the channels to keep; `keep` says how many."""
        return {name: np.sort(self.order(name)[::-1][:count]) for name, count in keep.items()}

    def order(self, group: str) -> Indices:
        """All channels of a group, in the order in which they are best removed."""
        order = self._piece(lambda: self._removal_order(self._groups[group]), "order", group)
        return order.astype(np.int64)

    def weight(self, name: str, left: Indices) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of a layer that make up for all input entries but those `left`, in the same precision.

        The weight is [outputs, left, ...]. None if none are lost, or the layer is depthwise and only passes them on.
        """
        layer = self._layer(name)
        if not self._is_reader(name) or len(left) == layer.weight.shape[1]:
            return None
        flat = torch.from_numpy(self._piece(lambda: self._compensated(name, left), "weight", name, left))
        shape = (layer.weight.shape[0], len(left), *layer.weight.shape[2:])
        return flat[:, :-1].reshape(shape).to(layer.weight.dtype), flat[:, -1].to(layer.weight.dtype)

    def change(self, name: str, left: Indices) -> Tensor | None:
        """What is added to weight and bias [outputs, columns + 1] to make up for all input entries but those `left`.

        Columns of lost entries become zero. None where `weight` gives None.
        """
        found = self.weight(name, left)
        if found is None:
            return None
        layer = self._layer(name)
        change = -_flat(layer).float()
        change[:, _columns(layer, torch.from_numpy(left)[None])[0]] += found[0].flatten(1)
        change[:, -1] += found[1]
        return change

    def sparse(self, name: str, entries: tuple[Indices, Indices], pattern: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer that make up for lost inputs and for zeros by `pattern`, chosen by surgery.

        Args:
            name: Of the layer.
            entries: Output and input entries of the weight that are left.
            pattern: See `hwsearch.patterns`.
        """
        rows, left = entries
        flat = torch.from_numpy(self._piece(lambda: self._sparse(name, rows, left, pattern), pattern, name, rows, left))
        layer = self._layer(name)
        shape = (len(rows), len(left), *layer.weight.shape[2:])
        return flat[:, :-1].reshape(shape).to(layer.weight.dtype), flat[:, -1].to(layer.weight.dtype)

    # ----------------------------------------------------------------------- making pieces

    def _removal_order(self, group: PruneGroup) -> Indices:
        axes = [axis for axis in group.axes if axis.side == "in" and self._is_watched(axis.module)]
        if not axes:  # nothing that reads it can be watched
            return magnitude_order(folded_parameters(self._module, {}), group)
        return removal_order([self._reader(axis, group) for axis in axes])

    def _reader(self, axis: ChannelAxis, group: PruneGroup) -> Reader:
        entries = axis.offset + torch.arange(group.channels * axis.repeat).reshape(group.channels, axis.repeat)
        return Reader(
            _flat(self._layer(axis.module)), self._moments[axis.module][0], _columns(self._layer(axis.module), entries)
        )

    def _compensated(self, name: str, left: Indices) -> NDArray[np.float32]:
        layer = self._layer(name)
        flat = _flat(layer)
        columns = _columns(layer, torch.from_numpy(left)[None])[0]
        with_bias = torch.cat([columns, torch.tensor([flat.shape[1] - 1])])
        if name in self._moments:
            return compensated(flat, self._moments[name][0], with_bias).float().numpy()
        return flat[:, with_bias].float().numpy()

    def _sparse(self, name: str, rows: Indices, left: Indices, pattern: str) -> NDArray[np.float32]:
        layer = self._layer(name)
        weight, bias = self.weight(name, left) or (layer.weight, layer.bias)
        assert bias is not None
        if name in self._moments:
            columns = _columns(layer, torch.from_numpy(left)[None])[0]
            with_bias = torch.cat([columns, torch.tensor([layer.weight[0].numel()])])
            moments = self._moments[name][:, with_bias[:, None], with_bias]
            weight, bias = surgery(weight[rows], bias[rows], moments, pattern)
        else:  # what it reads cannot be watched
            weight, bias = weight[rows] * magnitude_mask(weight[rows], pattern), bias[rows]
        return torch.cat([weight.flatten(1), bias[:, None]], dim=1).float().numpy()

    @cached_property
    def _moments(self) -> dict[str, Tensor]:
        """Damped second moments of what layers read [groups, columns + 1, columns + 1]; of all but depthwise ones."""
        wanted = [layer.name for layer in self._source.layers if layer.op != "depthwise"]
        moments = second_moments(self._module, wanted, self._images, rows=self._rows)
        # Popped for the memory's sake, as there.
        return {name: damped(moments.pop(name), self._damping) for name in list(moments)}

    def _is_watched(self, name: str) -> bool:
        return name in self._moments and self._is_reader(name)

    def _is_reader(self, name: str) -> bool:
        """Whether the layer mixes all its input channels; a depthwise one only passes them on."""
        return int(getattr(self._layer(name), "groups", 1)) == 1

    def _layer(self, name: str) -> Layer:
        return find_layer(self._module, name)

    # ----------------------------------------------------------------------- keeping pieces

    def _piece(self, make: Callable[[], NDArray[np.generic]], *key: object) -> NDArray[np.generic]:
        name = self._digest(*key)
        if name not in self._known:
            self._known[name] = self._load(name, make)
        return self._known[name]

    def _load(self, name: str, make: Callable[[], NDArray[np.generic]]) -> NDArray[np.generic]:
        if self._folder is None:
            return make()
        path = self._folder / f"{name}.npy"
        if not path.exists():
            made = make()
            with atomic_write(path) as stream:
                np.save(stream, made)
        return np.asarray(np.load(path))

    @cached_property
    def _origin(self) -> bytes:
        """What every piece depends on: weights, images and settings."""
        digest = hashlib.sha256(self._images.numpy().tobytes())
        digest.update(json.dumps([self._source.sha256, self._rows, self._damping]).encode())
        return digest.digest()

    def _digest(self, *key: object) -> str:
        digest = hashlib.sha256(self._origin)
        for part in key:
            digest.update(part.tobytes() if isinstance(part, np.ndarray) else f"{part}\n".encode())
        return digest.hexdigest()[:24]


def _flat(layer: Layer) -> Tensor:
    """Weight and bias [outputs, columns + 1], in float64."""
    assert layer.bias is not None
    return torch.cat([layer.weight.flatten(1), layer.bias[:, None]], dim=1).double()


def _columns(layer: Layer, entries: Tensor) -> Tensor:
    """Columns of the flattened weight that input entries [channels, n] own, [channels, n * kernel size]."""
    kernel = layer.weight[0, 0].numel()
    return (entries[..., None] * kernel + torch.arange(kernel)).flatten(1)
