"""What evaluations find, and the front they make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hwsearch.types.built import Artifact, Device
from hwsearch.types.space import Candidate

SIMULATED = "simulated "
"""In front of the precision of a device that is not here, whose numbers were computed elsewhere."""

Split = Literal["calibrate", "search", "report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latency of one call.

    Attributes:
        best_ms: Minimum of the round medians; what ranks candidates (least disturbed estimate).
        median_ms, p90_ms, p99_ms: Over all samples; None where nothing was measured.
        ci95_ms: Bootstrap interval of `best_ms`.
        rounds, samples: How much was measured.
        source: ``measured``, ``table`` or ``modelled``.
        sigma_ms: Standard error used by the search.
        reference_ms: The reference model's `best_ms` in the same campaign, or None.
        contaminated: Rounds marked as disturbed.
        reference_ratio, reference_ratio_ci95: Multiple of the reference's latency in the same rounds; steadier than
            `best_ms` when the machine is slow for longer than the campaign.
    """

    best_ms: float
    median_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    ci95_ms: tuple[float, float]
    rounds: int
    samples: int
    batch: int
    source: str
    sigma_ms: float
    reference_ms: float | None = None
    contaminated: int = 0
    reference_ratio: float | None = None
    reference_ratio_ci95: tuple[float, float] | None = None

    @property
    def ratio(self) -> float | None:
        """Latency as a multiple of the reference's in the same campaign."""
        if self.reference_ratio is not None:
            return self.reference_ratio
        return None if self.reference_ms is None else self.best_ms / self.reference_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What one example takes of a device.

    Attributes:
        net_mj: Beyond what the device takes when idle; of the whole chip, whoever else uses it.
        ci95_mj: Interval of `net_mj`.
        source: ``powercap`` or ``nvml``, the counters it was read from; ``modelled`` where it was computed.
        total_mj: Idle included; None where nothing was measured.
        idle_watts: What the device took while nothing ran; None where nothing was measured.
    """

    net_mj: float
    ci95_mj: tuple[float, float]
    source: str
    total_mj: float | None = None
    idle_watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One unit the runtime executes.

    Attributes:
        runtime_layer: Its name inside the runtime.
        kind: The runtime's own operation name, e.g. ``QLinearConv``.
        source_layers: Layers of the network it computes; empty for glue such as quantise or reorder.
        requested: Precision asked for its source layers, or None for glue.
        executed: Precision it really computes in, or None if the runtime does not say; ``simulated int4`` where the
            device is not here.
        ms: Profiled time (relative weight only: profilers slow small models), or None.
    """

    runtime_layer: str
    kind: str
    source_layers: tuple[str, ...]
    requested: str | None
    executed: str | None
    ms: float | None

    @property
    def format(self) -> str | None:
        """`executed`, on the device or simulated."""
        return self.executed and self.executed.removeprefix(SIMULATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Value of the study's metric on one split.

    Attributes:
        ci95: Interval for the value; None where the metric gives no per-example scores.
        divergence: How far the outputs are from the original network's on the same examples, on average: KL divergence
            of the class probabilities for ``top1``, relative squared error for other metrics; None where unknown.
        divergence_sigma: Its standard error.
    """

    metric: str
    value: float
    higher_is_better: bool
    examples: int
    ci95: tuple[float, float] | None
    split: Split
    data_hash: str
    divergence: float | None = None
    divergence_sigma: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """What a finished evaluation found.

    Attributes:
        packed_bytes: Size of the artifact's files, each deflated; None unless the study asks for sparse weights, whose
            zeros save space in no other way.
        energy: None unless the study asks for it.
    """

    kind: Literal["success"] = "success"
    accuracy: Accuracy
    latency: Latency
    artifact: Artifact
    layers: tuple[LayerTime, ...]
    params: int
    nonzero: int
    macs: int
    packed_bytes: int | None = None
    energy: Energy | None = None

    @property
    def size_bytes(self) -> int:
        """What counts as the model's size: of its files, packed where the study asks for sparse weights."""
        return self.artifact.size_bytes if self.packed_bytes is None else self.packed_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an evaluation gave no result. See `errors.EvaluationError` for the stages and kinds."""

    kind: Literal["failure"] = "failure"
    stage: str
    error: str
    message: str
    hint: str | None = None
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One evaluation of one candidate.

    Attributes:
        number: Position in the study, from 0.
        baseline: ``fp32``, ``bf16``, ``int8``... for the uniform settings every study starts with, else None.
        constraints: Name -> violation in the limit's own unit; <= 0 is feasible.
        seconds: Wall time per stage (``stitch``, ``build``, ``accuracy``, ``latency``...).
        fidelity: ``F2`` measured on the artifact, ``F1``/``F0`` estimates, ``F3`` after recovery.
    """

    number: int
    candidate: Candidate
    baseline: str | None
    outcome: Success | Failure
    constraints: dict[str, float]
    seconds: dict[str, float]
    fidelity: str = "F2"
    finished_at: str = ""

    @property
    def feasible(self) -> bool:
        """Succeeded, with finite values, within every limit."""
        return (
            isinstance(self.outcome, Success)
            and math.isfinite(self.outcome.accuracy.value)
            and math.isfinite(self.outcome.latency.best_ms)
            and all(value <= 0 for value in self.constraints.values())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A finalist: re-measured together with the others and scored on the report split.

    Attributes:
        trial: Number of the trial it came from.
        accuracy: On the report split once finalised, else on the search split (see `accuracy.split`).
        on_front: False for baselines and finalists that the others dominate.
        tied_with: Keys of points whose difference is within the noise.
        build_spread: How much longer the slower of two builds of the model took than the faster, as a fraction; None
            where building twice gives the same file.
        training_minutes: Spent on training the model; None if it was not trained.
        energy: None unless the study asks for it.
    """

    key: str
    trial: int
    baseline: str | None
    accuracy: Accuracy
    latency: Latency
    size_bytes: int
    params: int
    macs: int
    on_front: bool
    tied_with: tuple[str, ...] = ()
    build_spread: float | None = None
    training_minutes: float | None = None
    energy: Energy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The result of a search on one target.

    Example:
        >>> front = hs.Run.open(run_folder).front
        >>> [point.baseline for point in front.points if point.baseline]  # in order of latency
        ['int8', 'fp32']

    Attributes:
        points: Ascending in latency, baselines included.
        reference: (accuracy, latency_ms) of the hypervolume's reference point.
        hypervolume: Of the front, relative to the reference box; 0 to 1.
        final: Whether finalists were re-measured and scored on the report split.
    """

    target: str
    device: Device
    objectives: tuple[str, ...]
    points: tuple[FrontPoint, ...]
    reference: tuple[float, float]
    hypervolume: float
    final: bool
