"""Pruned networks repaired without a gradient: which channels stay, and least squares for what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.compress.database import Database
from hwsearch.compress.fisher import Error, compensation_error, fisher_losses, rounding_error
from hwsearch.compress.fold import Flow, fold
from hwsearch.compress.least_squares import Goal, record_goals, refit
from hwsearch.compress.prune import Indices, entries_left, select_channels, silence_branches, slice_module
from hwsearch.compress.sparsify import magnitude_mask
from hwsearch.compress.statistics import Layer, find_layer, write_parameters
from hwsearch.model.graph import Network
from hwsearch.model.template import folded_parameters
from hwsearch.types import Candidate

Selection = Literal["obs", "magnitude"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How channels, and the zeros of sparse weights, are chosen and weights refitted.

    Attributes:
        selection: ``obs`` (optimal brain surgery) or ``magnitude``.
        images: Calibration images used, the first ones.
        rows: About how many output positions of a layer are looked at, over all images.
        damping: Added to the second moments when channels are chosen, relative to their mean diagonal.
        ridge: Pull of the refit towards the weights it starts from, relative likewise.
        rectify: Rounds in which targets below a ReLU's zero give way.
    """

    selection: Selection = "obs"
    images: int = 256
    rows: int = 16384
    damping: float = 1e-2
    ridge: float = 1e-2
    rectify: int = 1


class Reconstructor:
    """Repairs candidates of one network; what they share is computed once, when first needed.

    Args:
        network: The traced original; left unchanged.
        images: Calibration images [N, ...].
        settings: See `Settings`.
        folder: Where the database of pieces is kept between runs; None keeps it in memory.
    """

    def __init__(
        self,
        network: Network,
        images: NDArray[np.float32],
        *,
        settings: Settings | None = None,
        folder: Path | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._source, self._template = network.source, network.template
        self._original = fold(network.module, network.template.folded)
        self._images = torch.from_numpy(np.ascontiguousarray(images[: self.settings.images]))
        self._flow = Flow.of(network.template)
        self._database = Database(
            self._original,
            self._source,
            self._images,
            rows=self.settings.rows,
            damping=self.settings.damping,
            folder=folder,
        )

    def select(self, keep: Mapping[str, int]) -> dict[str, Indices]:
        """Prune group -> sorted indices of the channels that stay; `keep` says how many."""
        if self.settings.selection == "obs":
            return self._database.select(keep)
        return select_channels(folded_parameters(self._original, {}), self._source, keep)

    def stitched(self, candidate: Candidate) -> nn.Module:
        """The candidate without batch norms, put together from the database and not yet refitted."""
        kept = self.select(candidate.keep)
        smaller = slice_module(self._original, self._source, kept)
        if self.settings.selection == "obs":
            self._insert_pieces(smaller, kept)
        for layer, pattern in candidate.pattern.items():
            write_parameters(find_layer(smaller, layer), *self._sparse(smaller, layer, kept, pattern))
        silence_branches(smaller, [b for b in self._source.branches if b.name in candidate.dropped], norms={})
        return smaller

    def repaired(self, candidate: Candidate, *, images: int | None = None) -> nn.Module:
        """The candidate without batch norms, refitted by sequential least squares.

        A candidate that loses neither channels nor weights nor a branch comes back unchanged.

        Args:
            candidate: What to keep and drop.
            images: Refit on the first ones alone, in less time.
        """
        smaller = self.stitched(candidate)
        dropped = {layer for b in self._source.branches if b.name in candidate.dropped for layer in b.layers}
        left = self._outputs_left(self.select(candidate.keep))
        stale = {*self._flow.stale({*left, *dropped, *candidate.pattern}), *candidate.pattern} - dropped
        refit(
            smaller,
            stale,
            self._goals,
            self._flow,
            left,
            self._images[:images],
            ridge=self.settings.ridge,
            rectify=self.settings.rectify,
            sparse=candidate.pattern,
        )
        return smaller

    def estimated(
        self, changes: Mapping[str, Candidate], inputs: NDArray[np.float32], *, probabilities: bool
    ) -> dict[str, NDArray[np.float64]]:
        """Name -> estimated divergence of each image [N] after repair, from gradients of the original alone.

        Those that cannot be estimated, since a branch does not end in a layer of its own, are left out.

        Args:
            changes: Candidates that narrow, drop, empty or round one thing each; all are judged in the same pass.
            inputs: Images [N, ...] they are judged on; others than those that repair, which are fitted too well.
            probabilities: Whether the outputs are logits and the divergence is KL; relative squared error if not.
        """
        errors: dict[str, dict[str, Error]] = {}
        branches: dict[str, list[str]] = {}
        for name, candidate in changes.items():
            for layer, error in self._errors(candidate):
                errors.setdefault(layer, {})[name] = error
            for branch in self._source.branches:
                if branch.name in candidate.dropped and (ends := self._flow.joined.intersection(branch.layers)):
                    branches.setdefault(max(ends, key=branch.layers.index), []).append(name)
        images = torch.from_numpy(np.ascontiguousarray(inputs))
        found = fisher_losses(self._original, errors, branches, images, probabilities=probabilities)
        return {name: losses.double().numpy() for name, losses in found.items()}

    def _errors(self, candidate: Candidate) -> Iterator[tuple[str, Error]]:
        """Layers whose result a candidate changes, other than by dropping it, and how."""
        for layer, (_, columns) in self._entries_left(self.select(candidate.keep)).items():
            change = self._database.change(layer, columns)
            if change is not None:
                yield layer, compensation_error(change)
        for layer, pattern in candidate.pattern.items():
            weight, bias = self._sparse(self._original, layer, {}, pattern)
            yield layer, compensation_error(_change(find_layer(self._original, layer), weight, bias))
        for layer, precision in candidate.precision.items():
            if precision != "fp32":
                yield layer, rounding_error(find_layer(self._original, layer), precision)

    def _insert_pieces(self, smaller: nn.Module, kept: Mapping[str, Indices]) -> None:
        for name, (rows, columns) in self._entries_left(kept).items():
            piece = self._database.weight(name, columns)
            if piece is not None:
                write_parameters(find_layer(smaller, name), piece[0][rows], piece[1][rows])

    def _sparse(self, module: nn.Module, name: str, kept: Mapping[str, Indices], pattern: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a layer of `module`, which has the channels `kept`, with zeros by a pattern."""
        if self.settings.selection == "obs":
            rows, columns = map(np.arange, self._sizes[name])
            return self._database.sparse(name, self._entries_left(kept).get(name, (rows, columns)), pattern)
        layer = find_layer(module, name)
        assert layer.bias is not None
        return layer.weight * magnitude_mask(layer.weight, pattern), layer.bias

    def _outputs_left(self, kept: Mapping[str, Indices]) -> dict[str, Tensor]:
        """Layer -> output channels it still has, for layers that lost some."""
        entries = self._entries_left(kept).items()
        sizes = self._sizes
        return {name: torch.from_numpy(rows) for name, (rows, _) in entries if len(rows) < sizes[name][0]}

    def _entries_left(self, kept: Mapping[str, Indices]) -> dict[str, tuple[Indices, Indices]]:
        return entries_left(self._sizes, self._source, kept)

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        weights = {name: find_layer(self._original, name).weight for name in self._template.layers}
        return {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}

    @cached_property
    def _goals(self) -> dict[str, Goal]:
        return record_goals(self._original, self._flow, self._images, rows=self.settings.rows)


def _change(layer: Layer, weight: Tensor, bias: Tensor) -> Tensor:
    """What is added to weight and bias of a layer [groups, outputs, columns + 1] when these take their place."""
    assert layer.bias is not None
    groups = getattr(layer, "groups", 1)
    flat = torch.cat([(weight - layer.weight).flatten(1), (bias - layer.bias)[:, None]], dim=1)
    return flat.view(groups, -1, flat.shape[1])
