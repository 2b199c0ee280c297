"""Models of a run, built and run by a child process that outlives a crash of theirs; the parent loads no runtime.

Records hold paths relative to the run folder, children read examples from arrays in ``work/``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hwsearch.backends.base import LowerRequest, RunOptions, get_backend
from hwsearch.backends.environment import usable_core_count
from hwsearch.backends.worker import Worker
from hwsearch.config import StudyConfig
from hwsearch.errors import EvaluationError
from hwsearch.model.data import Splits
from hwsearch.search.judge import batch_size
from hwsearch.search.ranges import RangeFinder
from hwsearch.search.run_options import latency_options
from hwsearch.store import atomic_write
from hwsearch.types import Artifact, Candidate, CompressedModel, LayerTime, Observation, Split, Target, TensorRange


class Builder:
    """Builds, runs and inspects. A context manager: leaving it ends the child process.

    Args:
        splits: The study's data; what the child reads is saved for it.
        target: Device to build for.
        config: The study.
        folder: The run folder.
    """

    def __init__(self, splits: Splits, target: Target, config: StudyConfig, folder: Path) -> None:
        self._target, self._folder, self._work = target, folder, folder / "work"
        self._splits = splits
        self._saved: set[Path] = set()
        self._timeout = config.search.timeout_s
        self._worker = Worker(
            target.backend,
            RunOptions(threads=usable_core_count()),
            memory_bytes=config.search.memory_mb * 2**20,
            log=self._work / "logs" / "builder.log",
        )
        self.ranges = RangeFinder(get_backend(target.backend), self._observed, config.quantize.ranges)

    def __enter__(self) -> Self:
        self._worker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, error, trace)

    def build(
        self,
        compressed: CompressedModel,
        candidate: Candidate,
        folder: Path,
        learned: Mapping[str, TensorRange] = MappingProxyType({}),
    ) -> Artifact:
        """What runs on the device, in `folder`; `learned` ranges take the place of observed ones."""
        ranges = {**self.ranges(compressed, candidate), **learned}
        artifact = self._worker.build(
            Path(compressed.path),
            LowerRequest(precision=compressed.precision, ranges=ranges),
            folder,
            options=latency_options(self._target, candidate.float_precision),
            timeout_s=self._timeout,
        )
        return self._relative(artifact)

    def rebuilt(self, artifact: Artifact, candidate: Candidate) -> Artifact | None:
        """The model built once more, where builds of one model can differ, as engines do; None elsewhere."""
        source = next((file for file in artifact.files if file.endswith(".onnx")), None)
        if artifact.portable or source is None:
            return None
        second = self._worker.build(
            self._folder / source,
            LowerRequest(precision={}),
            self._work / "second" / candidate.key,
            options=latency_options(self._target, candidate.float_precision),
            timeout_s=self._timeout,
        )
        return self._relative(second)

    def layers(self, artifact: Artifact, candidate: Candidate, requested: Mapping[str, str]) -> tuple[LayerTime, ...]:
        """What the runtime executes, unit by unit, beside the precision that was requested for each layer."""
        options = latency_options(self._target, candidate.float_precision)
        return self._worker.inspect(self.located(artifact), requested, options=options, timeout_s=self._timeout)

    def outputs(
        self, artifact: Artifact, candidate: Candidate, split: Split, first: int = 0, end: int | None = None
    ) -> NDArray[np.float32]:
        """What a built model answers to the examples of a split, or to those from `first` to `end`.

        All cores take part, since the outputs do not depend on how many compute them.

        Raises:
            EvaluationError: it cannot be run, or answers NaN or infinity.
        """
        path, examples = self._work / "outputs.npy", self._examples(split, first, end)
        options = RunOptions(
            threads=usable_core_count(), float_precision=candidate.float_precision, options=self._target.options
        )
        self._worker.predict(
            self.located(artifact),
            examples,
            path,
            batch=batch_size(np.load(examples, mmap_mode="r")),
            options=options,
            timeout_s=self._timeout,
        )
        outputs: NDArray[np.float32] = np.load(path)
        if not np.isfinite(outputs).all():
            raise EvaluationError("the built model returns NaN or infinity", stage="accuracy", kind="invalid")
        return outputs

    def located(self, artifact: Artifact) -> Artifact:
        """The artifact with paths that can be opened."""
        return dataclasses.replace(
            artifact,
            path=str(self._folder / artifact.path),
            files=tuple(str(self._folder / file) for file in artifact.files),
        )

    def _relative(self, artifact: Artifact) -> Artifact:
        return dataclasses.replace(
            artifact,
            path=_relative(artifact.path, self._folder),
            files=tuple(_relative(file, self._folder) for file in artifact.files),
        )

    def _observed(self, path: Path, tensors: Sequence[str], bins: int) -> dict[str, Observation]:
        """Distributions on the calibration split, or on as many of its images as the target asks for."""
        asked = self._target.ranges
        images = self._examples("calibrate", 0, None if asked is None else asked.images)
        return self._worker.observe(path, tensors, images, bins=bins, timeout_s=self._timeout)

    def _examples(self, split: Split, first: int, end: int | None) -> Path:
        """Where examples of a split lie for the child."""
        inputs = self._splits.named(split).inputs
        part = inputs[first:end]
        whole = len(part) == len(inputs)
        path = self._work / (f"{split}.inputs.npy" if whole else f"{split}-{first}-{first + len(part)}.inputs.npy")
        if path not in self._saved:
            with atomic_write(path) as stream:
                np.save(stream, part)
            self._saved.add(path)
        return path


def _relative(path: str, folder: Path) -> str:
    return Path(path).resolve().relative_to(folder.resolve()).as_posix()
