"""The records that flow through hwsearch, in the order in which they appear.

    SourceModel -> SearchSpace -> Candidate -> CompressedModel -> Artifact -> Trial -> Front

Every record is frozen, holds only plain data (no live module, session or open file), names its units
(`_ms`, `_bytes`, `_pct`), and survives a round trip through JSON (`to_json`, `from_json`).
"""

from __future__ import annotations

from hwsearch.types.built import Artifact, CompressedModel, Device, Observation, TensorRange
from hwsearch.types.network import PRECISIONS, Branch, ChannelAxis, LayerInfo, Precision, PruneGroup, SourceModel
from hwsearch.types.plain import SCHEMA_VERSION, from_json, to_json
from hwsearch.types.results import (
    Accuracy,
    Energy,
    Failure,
    Front,
    FrontPoint,
    Latency,
    LayerTime,
    Split,
    Success,
    Trial,
)
from hwsearch.types.space import (
    ActivationRanges,
    Candidate,
    Limits,
    OpCapability,
    Roofline,
    SearchSpace,
    Sparsity,
    Target,
)

__all__ = [
    "PRECISIONS",
    "SCHEMA_VERSION",
    "Accuracy",
    "ActivationRanges",
    "Artifact",
    "Branch",
    "Candidate",
    "ChannelAxis",
    "CompressedModel",
    "Device",
    "Energy",
    "Failure",
    "Front",
    "FrontPoint",
    "Latency",
    "LayerInfo",
    "LayerTime",
    "Limits",
    "Observation",
    "OpCapability",
    "Precision",
    "PruneGroup",
    "Roofline",
    "SearchSpace",
    "SourceModel",
    "Sparsity",
    "Split",
    "Success",
    "Target",
    "TensorRange",
    "Trial",
    "from_json",
    "to_json",
]
