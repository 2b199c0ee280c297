"""The records that flow through hwsearch, in the order in which they appear.

    SourceModel -> SearchSpace -> Candidate -> CompressedModel -> Artifact -> Trial -> Front

Every record is frozen, holds only plain data (no live module, session or open file), names its units
(`_ms`, `_bytes`, `_pct`), and survives a round trip through JSON (`to_json`, `from_json`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Record = TypeVar("Record")

SCHEMA_VERSION = 1

Split = Literal["calibrate", "search", "report"]


# --------------------------------------------------------------------------- precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A number format a layer may be asked to compute in.

    `name` is what appears in candidates, tables and reports; bits are those of one weight and one activation (tf32
    computes with 19 of the 32 it is stored in). `integer` formats are chosen layer by layer and come with scales, which
    holds for fp8 and for weights of 4 bits beside 16-bit activations (w4a16) as well.
    """

    name: str
    weight_bits: int
    act_bits: int
    integer: bool


PRECISIONS: dict[str, Precision] = {
    p.name: p
    for p in (
        Precision(name="fp32", weight_bits=32, act_bits=32, integer=False),
        Precision(name="tf32", weight_bits=19, act_bits=19, integer=False),
        Precision(name="bf16", weight_bits=16, act_bits=16, integer=False),
        Precision(name="fp16", weight_bits=16, act_bits=16, integer=False),
        Precision(name="fp8", weight_bits=8, act_bits=8, integer=True),
        Precision(name="int8", weight_bits=8, act_bits=8, integer=True),
        Precision(name="w4a16", weight_bits=4, act_bits=16, integer=True),
        Precision(name="int4", weight_bits=4, act_bits=4, integer=True),
        Precision(name="int2", weight_bits=2, act_bits=2, integer=True),
    )
}


# --------------------------------------------------------------------------- the network


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """One convolution or linear layer of the network, in execution order.

    Attributes:
        name: Dotted module path, e.g. ``layer1.0.conv1``; also the node name in the ONNX template.
        op: ``conv``, ``depthwise`` or ``linear``.
        in_shape, out_shape: Without the batch axis.
        params: Weights and biases, batch norm folded.
        macs: Multiply-accumulates for one example.
        width_group: The prune group of its output channels, or None if they are fixed.
        quant_group: Layers with the same value read the same input quantiser.
        groups: Of a grouped convolution; a depthwise one says so by its `op`.
    """

    name: str
    op: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    params: int
    macs: int
    width_group: str | None
    quant_group: str
    groups: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelAxis:
    """One tensor axis that loses channels together with its prune group.

    Channel ``c`` of the group is entries ``offset + c * repeat`` to ``offset + (c + 1) * repeat - 1`` of the axis:
    `repeat` > 1 after a flatten, `offset` > 0 after a concatenation.

    Attributes:
        module: Dotted path of the convolution, linear or norm layer.
        side: ``out`` (weight axis 0 and bias; every vector of a norm) or ``in`` (weight axis 1).
    """

    module: str
    side: Literal["out", "in"]
    offset: int = 0
    repeat: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneGroup:
    """Channels that must be kept or dropped together, across residual adds and norms.

    `name` is the first layer (in execution order) that produces them; `channels` is how many there are.
    `kind` is ``inner`` when they stay inside one residual branch and ``stage`` when they cross an add.
    """

    name: str
    channels: int
    kind: Literal["inner", "stage"]
    axes: tuple[ChannelAxis, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A residual branch whose shortcut is the identity, so that it can be dropped as a whole.

    Attributes:
        name: Longest common module path of its layers, e.g. ``layer1.0``.
        layers: Names of the layers inside.
        groups: Prune groups that live wholly inside.
        add_node: ONNX node that adds the branch to its shortcut.
        branch_input: Position (0 or 1) of the branch among that node's inputs.
    """

    name: str
    layers: tuple[str, ...]
    groups: tuple[str, ...]
    add_node: str
    branch_input: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """What hwsearch knows of the network it was given.

    Attributes:
        name: The factory or file it came from.
        sha256: Over names, shapes and values of all weights: two runs agree only if this does.
        input_shape: One example, without the batch axis.
        output_shape: Likewise.
        refused: What cannot be pruned or dropped, and why, one line each.
    """

    name: str
    sha256: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    layers: tuple[LayerInfo, ...]
    groups: tuple[PruneGroup, ...]
    branches: tuple[Branch, ...]
    refused: tuple[str, ...] = ()

    def layer(self, name: str) -> LayerInfo:
        """The layer called `name`; KeyError if there is none."""
        return next(layer for layer in self.layers if layer.name == name)


# --------------------------------------------------------------------------- target and space


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCapability:
    """Precisions a device takes for one kind of layer.

    It runs all of `accepts`, perhaps by widening; only `accelerates` are faster than the next wider format. `patterns`
    are those of zero weights whose multiplications it skips, e.g. ``2:4``.
    """

    accepts: tuple[str, ...]
    accelerates: tuple[str, ...]
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Requirements in deployment units; None means no limit."""

    latency_ms: float | None = None
    size_mb: float | None = None
    accuracy_drop_points: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """How much of a network a device wants gone: `goal`, a fraction, of its channels, parameters or MACs."""

    metric: Literal["channels", "params", "macs"]
    goal: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRanges:
    """How a device wants activations calibrated: by which range method, on at most so many images."""

    method: Literal["minmax", "percentile", "entropy", "mse"]
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """A device that is not here as three rates: a layer takes the longer of computing and moving data, plus a start.

    Attributes:
        origin: Where the figures come from, in one line.
        macs_per_us: Precision -> multiply-accumulates per microsecond.
        bytes_per_us: To and from memory, which every activation and weight crosses once per layer.
        layer_us, call_us: To start a layer, and the network.
        channels_at_once: Channels are rounded up to a multiple of it.
    """

    origin: str
    macs_per_us: dict[str, float]
    bytes_per_us: float
    layer_us: float
    call_us: float
    channels_at_once: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device to search for, and what it can do.

    Example:
        >>> from hwsearch.space.target import load_target
        >>> target = load_target("ort-cpu", threads=2)
        >>> isinstance(target, hs.Target), target.threads, target.ops["conv"].accelerates
        (True, 2, ('int8',))

    Attributes:
        name: e.g. ``ort-cpu``.
        backend: Name of the backend that builds for it, e.g. ``onnxruntime``.
        threads: Intra-op threads used for latency.
        batch: Batch size latency is measured at.
        ops: Capability per layer kind (``conv``, ``depthwise``, ``linear``).
        mixed_float: Whether float formats can differ from layer to layer; otherwise one holds for a whole candidate.
        granularity: Channel counts are multiples of this.
        min_keep: Smallest fraction of a group's channels the space offers.
        needs_isa: Precision -> instruction sets of which the chip needs at least one to run it natively.
        table: Folder of the latency table that describes the device; None where tables are built by measuring.
        options: Settings only this backend knows, such as ``cuda_graph: "off"``.
        sparsity: What `hwsearch compress` prunes to; None to prune as much as accuracy allows.
        limits: Of the device; a study's own come before them.
        ranges: Calibration the device is known to need; None where the study or `hwsearch compress` chooses.
        roofline: What a table is computed from, for a device that is not here and has no `table`.
    """

    name: str
    backend: str
    threads: int
    batch: int
    ops: dict[str, OpCapability]
    mixed_float: bool
    granularity: int
    min_keep: float
    needs_isa: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    table: str | None = None
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    sparsity: Sparsity | None = None
    limits: Limits = Limits()
    ranges: ActivationRanges | None = None
    roofline: Roofline | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """All candidates a study may choose from.

    Example:
        >>> space = hs.Run.open(run_folder).space
        >>> space.widths["stem"], space.precisions["stem"], space.droppable
        ((4, 8), ('int8', 'fp32'), ('branch',))

    Attributes:
        widths: Prune group -> channel counts offered, ascending; the last is the full width.
        droppable: Names of branches that may be dropped.
        precisions: Layer -> precisions offered, narrowest first.
        float_precisions: Formats for the layers that stay in floating point, narrowest first.
        patterns: Layer -> patterns of zero weights offered beside a dense one, most zeros first (see `patterns`).
        refused: What was asked for or is usual, and is not offered, with the reason.
    """

    target: str
    widths: dict[str, tuple[int, ...]]
    droppable: tuple[str, ...]
    precisions: dict[str, tuple[str, ...]]
    float_precisions: tuple[str, ...]
    patterns: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One complete choice, in canonical form: equal networks have equal keys.

    Attributes:
        keep: Prune group -> channels kept, only where fewer than all and not inside a dropped branch.
        dropped: Names of dropped branches, sorted.
        precision: Layer -> precision name, for every layer that is left.
        recipe: Other choices (range method, recovery), sorted by name.
        pattern: Layer -> pattern of its zero weights, ``2:4`` or a share such as ``0.75``, only where not dense.
    """

    keep: dict[str, int]
    dropped: tuple[str, ...]
    precision: dict[str, str]
    recipe: dict[str, str] = dataclasses.field(default_factory=dict)
    pattern: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether no channel, branch or weight is gone: only number formats may differ from the original's."""
        return not (self.keep or self.dropped or self.pattern)

    @property
    def float_precision(self) -> str:
        """Format of the layers that stay in floating point: the narrowest any of them asks for, else fp32."""
        floats = [PRECISIONS[name] for name in self.precision.values() if not PRECISIONS[name].integer]
        return min(floats, key=lambda p: p.weight_bits).name if floats else "fp32"

    @property
    def key(self) -> str:
        """12 hex digits that name the candidate in files, plots and bundles."""
        choices = to_json(self)
        if not self.pattern:  # so that dense candidates keep the keys they had before there were patterns
            del choices["pattern"]
        text = json.dumps(choices, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


# --------------------------------------------------------------------------- built models


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


# --------------------------------------------------------------------------- results


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
class LayerTime:
    """One unit the runtime executes.

    Attributes:
        runtime_layer: Its name inside the runtime.
        kind: The runtime's own operation name, e.g. ``QLinearConv``.
        source_layers: Layers of the network it computes; empty for glue such as quantise or reorder.
        requested: Precision asked for its source layers, or None for glue.
        executed: Precision it really computes in, or None if the runtime does not say.
        ms: Profiled time (relative weight only: profilers slow small models), or None.
    """

    runtime_layer: str
    kind: str
    source_layers: tuple[str, ...]
    requested: str | None
    executed: str | None
    ms: float | None


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


# --------------------------------------------------------------------------- JSON


def to_json(record: Any) -> Any:
    """The record as JSON-ready plain data: dictionaries, lists, strings, numbers, None."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(k): to_json(v) for k, v in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_json(v) for v in record]
    return record


def from_json(kind: type[Record], data: Any) -> Record:
    """The record of type `kind` that `to_json` turned into `data`.

    Raises:
        TypeError, KeyError, ValueError: `data` does not describe such a record.
    """
    return typing.cast("Record", _build(kind, data))


def _build(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_record(typing.cast("type", kind), data)
    if origin in (types.UnionType, typing.Union):
        return _build_union(args, data)
    if origin is tuple:
        inner = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else list(args)
        return tuple(_build(k, v) for k, v in zip(inner, data, strict=True))
    if origin is dict:
        return {k: _build(args[1], v) for k, v in data.items()}
    if kind is float:
        return float(data)
    return data


def _build_record(kind: type, data: Any) -> Any:
    if not isinstance(data, dict):
        raise TypeError(f"{kind.__name__}: expected a JSON object, found {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    unknown = set(data) - set(hints)
    if unknown:
        raise ValueError(f"{kind.__name__}: unknown field {sorted(unknown)[0]!r}")
    return kind(**{name: _build(hints[name], value) for name, value in data.items()})


def _build_union(args: tuple[Any, ...], data: Any) -> Any:
    if data is None and type(None) in args:
        return None
    choices = [a for a in args if a is not type(None)]
    if len(choices) > 1 and isinstance(data, dict) and "kind" in data:
        choices = [
            a
            for a in choices
            if getattr(a, "__dataclass_fields__", {}).get("kind") is not None
            and a.__dataclass_fields__["kind"].default == data["kind"]
        ]
    return _build(choices[0], data)
