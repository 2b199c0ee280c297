"""Merged siblings kept where they are measured to be faster, and nowhere else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from hwsearch.backends.base import RunOptions
from hwsearch.backends.benchmark import BENCHMARK_POLICY, benchmark
from hwsearch.backends.horizontal import merge, siblings
from hwsearch.backends.timing import Comparison, TimingPolicy

FASTER = "faster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """One group of siblings: its layers, and the model with only these merged against the model without."""

    layers: tuple[str, ...]
    comparison: Comparison

    @property
    def kept(self) -> bool:
        """Whether it is faster beyond the noise."""
        return self.comparison.verdict == FASTER


def merge_where_faster(
    path: Path,
    backend: str,
    options: RunOptions,
    policy: TimingPolicy = BENCHMARK_POLICY,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[onnx.ModelProto, tuple[Merging, ...]]:
    """The model with those siblings merged that are faster for it, each measured on its own; and all that were tried.

    Raises:
        ConfigError: there is no such file.
        BackendUnavailableError: the runtime is not here.
    """
    model = onnx.load(path)
    groups = siblings(model)
    if not groups:
        return model, ()
    tried = _measured(model, groups, backend, options, policy, progress)
    for found in tried:
        if found.kept:
            model = merge(model, found.layers)
    return model, tried


def _measured(
    model: onnx.ModelProto,
    groups: Sequence[tuple[str, ...]],
    backend: str,
    options: RunOptions,
    policy: TimingPolicy,
    progress: Callable[[str], None],
) -> tuple[Merging, ...]:
    """All variants in turns with the model as it is, in one campaign."""
    with tempfile.TemporaryDirectory(prefix="hwsearch-") as folder:
        variants = [model, *(merge(model, names) for names in groups)]
        paths = [Path(folder) / f"{number}.onnx" for number in range(len(variants))]
        for variant, path in zip(variants, paths, strict=True):
            onnx.save(variant, path)
        rows = benchmark(paths, backend, options, policy, progress).rows
    found = [row.against_first for row in rows[1:]]
    return tuple(Merging(layers=names, comparison=c) for names, c in zip(groups, found, strict=True) if c is not None)
