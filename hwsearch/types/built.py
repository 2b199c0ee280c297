"""What is built of a candidate: files, ranges, the device they are for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hwsearch.types.plain import to_json

WEIGHTS = "weights.npz"
"""In a bundle: the float weights that training after compression found."""


def trained_folder(run: Path) -> Path:
    """Where a run keeps what training made of candidates."""
    return run / "work" / "trained"


def trained_weights(run: Path, key: str) -> Path:
    """The float weights of a trained candidate."""
    return trained_folder(run) / f"{key}.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedModel:
    """A candidate bound to weights: a plain float ONNX file, and what each layer should compute in.

    Attributes:
        candidate_key: Key of the candidate.
        path: Float ONNX file, pruned, batch norm folded; nodes are named after their layers.
        precision: Layer -> requested precision.
        params, macs: Of the pruned network; `nonzero` counts weights that are not zero.
    """

    candidate_key: str
    path: str
    precision: dict[str, str]
    params: int
    nonzero: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Distribution of one activation tensor over the calibration images.

    `counts` is a histogram of equal bins from `low` to `high`, the smallest and largest value seen.
    """

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRange:
    """The interval an activation tensor is quantised over (after the range method)."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where a number comes from. Results compare only when their devices are equal."""

    backend: str
    backend_version: str
    chip: str
    isa: tuple[str, ...]
    threads: int
    driver: str | None = None
    options: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str:
        """Short stable name, e.g. for folders of latency tables."""
        text = json.dumps(to_json(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file (or a main file with companions) the backend can open.

    Attributes:
        path: Main file.
        files: Every file that belongs to it, main file included.
        format: ``onnx``, ``openvino-ir`` or ``tensorrt-engine``.
        sha256: Over all files.
        size_bytes: Of all files.
        portable: Whether it runs on another machine of the same kind (a TensorRT engine does not).
    """

    path: str
    files: tuple[str, ...]
    format: str
    sha256: str
    size_bytes: int
    portable: bool
