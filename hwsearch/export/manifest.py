"""hwsearch.json: what a bundle holds, and where its numbers come from."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwsearch.errors import BundleError
from hwsearch.export.shipped.verify import digest
from hwsearch.types import (
    SCHEMA_VERSION,
    Accuracy,
    Artifact,
    Candidate,
    Device,
    Energy,
    Latency,
    LayerTime,
    Target,
    from_json,
    to_json,
)

FILE = "hwsearch.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of one model."""

    accuracy: Accuracy
    latency: Latency
    size_bytes: int
    energy: Energy | None = None

    def ratio_to(self, other: Figures) -> float:
        """Latency as a multiple of the other's; through the common reference where both have one."""
        mine, theirs = self.latency.ratio, other.latency.ratio
        if mine is not None and theirs is not None:
            return mine / theirs
        return self.latency.best_ms / other.latency.best_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An input or output of the model; `shape` is that of one example, without the batch axis in front."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """New weights put into a bundle; graph, channels and number formats stayed.

    Attributes:
        version: 1 for the first.
        created: When.
        previous_sha256: `Manifest.sha256` of the version it replaced: the updates of a bundle are a chain.
        scene: What it was adapted to.
        rungs: Names of the means that stayed.
        labels: Labelled examples used.
        before: Accuracy in the scene of the version replaced, None if the scene has no labels to score by.
        after: Likewise of this version.
        source_before: Accuracy on the search split of the original data.
        source_after: Likewise of this version.
        latency_ratio: Latency as a multiple of the version replaced, measured in turns; None if not measured.
        seconds: Wall time of adapting and building.
    """

    version: int
    created: str
    previous_sha256: str
    scene: str
    rungs: tuple[str, ...]
    labels: int
    before: Accuracy | None
    after: Accuracy | None
    source_before: Accuracy
    source_after: Accuracy
    latency_ratio: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of hwsearch.json.

    Attributes:
        key: Of the candidate.
        study: Name of the study it came from.
        metric, direction: As the study file says them.
        float_precision: Format the runtime is asked to use for the layers that are not quantised.
        figures: Of this model; `baselines` those of the uniform settings it was searched against.
        layers: What the runtime executes, with requested and executed precision.
        artifact: The model files, relative to the bundle.
        preprocessing: What was done to the examples before they became inputs.
        versions: Package -> version when it was searched and measured.
        requirements: Package -> version that computed the samples; what requirements.txt pins.
        updates: What came after the export, oldest first.
        files: File -> SHA-256, for every other file of the bundle.
        sha256: Of all of the above.
    """

    key: str
    study: str
    created: str
    source: str
    source_sha256: str
    candidate: Candidate
    target: Target
    device: Device
    metric: str
    direction: str
    float_precision: str
    figures: Figures
    baselines: dict[str, Figures]
    params: int
    macs: int
    layers: tuple[LayerTime, ...]
    artifact: Artifact
    input: Tensor
    output: Tensor
    preprocessing: dict[str, Any]
    versions: dict[str, str]
    requirements: dict[str, str]
    files: dict[str, str]
    updates: tuple[Update, ...] = ()
    sha256: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def exact(self) -> bool:
        """Whether all layers were asked to compute in fp32, so that outputs agree on any processor."""
        return set(self.candidate.precision.values()) <= {"fp32"}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write hwsearch.json, sealed with its own digest."""
    facts = to_json(manifest)
    facts["sha256"] = digest(facts)
    (folder / FILE).write_text(json.dumps(facts, indent=1) + "\n")


def read_facts(folder: Path) -> dict[str, Any]:
    """hwsearch.json as plain data.

    Raises:
        BundleError: it is missing, cut short, or of another schema version.
    """
    path = folder / FILE
    try:
        facts = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder} is not a bundle", where=f"{FILE} not found", hint="name a folder that `hwsearch export` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is damaged", where=str(error), hint="export the model again") from error
    version = facts.get("schema_version") if isinstance(facts, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} is not of a form this version of hwsearch reads",
            where=f"schema_version = {version}",
            allowed=str(SCHEMA_VERSION),
        )
    return dict(facts)


def parse_manifest(facts: dict[str, Any]) -> Manifest:
    """The record that `facts` describe.

    Raises:
        BundleError: an entry is missing, unknown or of the wrong kind, or the model is not a file of the bundle.
    """
    try:
        manifest = from_json(Manifest, facts)
        inside = {manifest.artifact.path, *manifest.artifact.files} <= manifest.files.keys()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{FILE} is damaged", where=str(error), hint="export the model again") from error
    if not inside:
        raise BundleError(f"{FILE} names a model that is not in the bundle", where=str(manifest.artifact.path))
    return manifest


def located(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact of a bundle with paths that can be opened."""
    return dataclasses.replace(
        artifact, path=str(folder / artifact.path), files=tuple(str(folder / file) for file in artifact.files)
    )
