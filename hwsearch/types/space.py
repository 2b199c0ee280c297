"""What a device takes, what may be chosen, and one choice of it all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from hwsearch.types.network import PRECISIONS
from hwsearch.types.plain import to_json


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
    energy_mj: float | None = None
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
        pj_per_mac: Precision -> picojoules of a multiply-accumulate; empty where energy is not known.
        pj_per_byte: To or from memory.
    """

    origin: str
    macs_per_us: dict[str, float]
    bytes_per_us: float
    layer_us: float
    call_us: float
    channels_at_once: int = 1
    pj_per_mac: dict[str, float] = dataclasses.field(default_factory=dict)
    pj_per_byte: float = 0.0


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
