"""Pruned networks repaired without a gradient: which channels stay, and least squares for what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hwsearch.compress.database import Database
from hwsearch.compress.fold import Flow, fold
from hwsearch.compress.least_squares import Goal, record_goals, refit
from hwsearch.compress.prune import Indices, entries_left, select_channels, silence_branches, slice_module
from hwsearch.compress.statistics import find_layer, write_parameters
from hwsearch.model.graph import Network
from hwsearch.model.template import folded_parameters
from hwsearch.types import Candidate

Selection = Literal["obs", "magnitude"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How channels are chosen and weights refitted.

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
        silence_branches(smaller, [b for b in self._source.branches if b.name in candidate.dropped], norms={})
        return smaller

    def repaired(self, candidate: Candidate, *, images: int | None = None) -> nn.Module:
        """The candidate without batch norms, refitted by sequential least squares.

        A candidate that neither loses channels nor a branch comes back unchanged.

        Args:
            candidate: What to keep and drop.
            images: Refit on the first ones alone, in less time.
        """
        smaller = self.stitched(candidate)
        dropped = {layer for b in self._source.branches if b.name in candidate.dropped for layer in b.layers}
        left = self._outputs_left(self.select(candidate.keep))
        stale = [layer for layer in self._flow.stale({*left, *dropped}) if layer not in dropped]
        refit(
            smaller,
            stale,
            self._goals,
            self._flow,
            left,
            self._images[:images],
            ridge=self.settings.ridge,
            rectify=self.settings.rectify,
        )
        return smaller

    def _insert_pieces(self, smaller: nn.Module, kept: Mapping[str, Indices]) -> None:
        for name, (rows, columns) in self._entries_left(kept).items():
            piece = self._database.weight(name, columns)
            if piece is not None:
                write_parameters(find_layer(smaller, name), piece[0][rows], piece[1][rows])

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
