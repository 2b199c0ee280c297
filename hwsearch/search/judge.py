"""What a built model's outputs are worth: the study's metric, and how far they are from the original network's."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwsearch.model.data import Splits
from hwsearch.model.divergence import Divergence, divergence
from hwsearch.model.graph import Network
from hwsearch.model.metric import Metric
from hwsearch.model.outputs import outputs_of
from hwsearch.store import atomic_write
from hwsearch.types import Accuracy, Split

Outputs = NDArray[np.float32]

BATCH_BYTES = 16 * 2**20
LARGEST_BATCH = 128


class Judge:
    """Scores outputs on the splits of one study.

    Args:
        network: The original.
        splits: The study's data.
        metric: What it is about.
        folder: Where the original's outputs on the search split are kept between runs.
    """

    def __init__(self, network: Network, splits: Splits, metric: Metric, folder: Path) -> None:
        self._network, self._splits, self._metric = network, splits, metric
        self._path = folder / "original.search.npy"

    def accuracy(self, outputs: Outputs, split: Split) -> Accuracy:
        """The metric for outputs [N, ...] on a split's first N examples; on the search split also their divergence."""
        data = self._splits.named(split)
        value, interval = self._metric.score(outputs, data.targets[: len(outputs)])
        apart = self.divergence(outputs) if split == "search" else None
        return Accuracy(
            metric=self._metric.name,
            value=value,
            higher_is_better=self._metric.higher_is_better,
            examples=len(outputs),
            ci95=interval,
            split=split,
            data_hash=data.sha256,
            divergence=None if apart is None else apart.mean,
            divergence_sigma=None if apart is None else apart.standard_error,
        )

    def divergence(self, outputs: Outputs) -> Divergence:
        """How far outputs on the first examples of the search split, as many as there are, are from the original's."""
        return divergence(outputs, self._original[: len(outputs)], probabilities=self.probabilities)

    @property
    def probabilities(self) -> bool:
        """Whether outputs are logits of class probabilities."""
        return self._metric.name == "top1" and len(self._network.source.output_shape) == 1

    @cached_property
    def _original(self) -> Outputs:
        inputs = self._splits.search.inputs
        if self._path.exists():
            known: Outputs = np.load(self._path)
            if len(known) == len(inputs):
                return known
        found = outputs_of(self._network.module, inputs, batch=batch_size(inputs))
        with atomic_write(self._path) as stream:
            np.save(stream, found)
        return found


def batch_size(inputs: NDArray[np.float32]) -> int:
    """How many of `inputs` [N, ...] to run at a time."""
    return int(max(1, min(LARGEST_BATCH, BATCH_BYTES // max(1, inputs[0].nbytes), len(inputs))))
