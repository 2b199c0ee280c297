"""A bundle's network in a form that can be trained, rebuilt from the study it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwsearch.adapt.files import load_adapter
from hwsearch.adapt.insert import merge
from hwsearch.adapt.ladder import Source
from hwsearch.adapt.migrate import answers
from hwsearch.adapt.scenes import Fit
from hwsearch.adapt.statistics import measure
from hwsearch.compress.materialize import materialize
from hwsearch.compress.reconstruct import Reconstructor, Settings
from hwsearch.compress.stitch import parameters_of
from hwsearch.config import StudyConfig, load_study
from hwsearch.errors import BundleError, ConfigError
from hwsearch.export.manifest import Manifest, parse_manifest, read_facts
from hwsearch.export.shipped.verify import damage, judge
from hwsearch.model.pools import Normalize
from hwsearch.search.evaluate import Subject
from hwsearch.search.prepare import load_subject
from hwsearch.types.built import WEIGHTS

ADAPTER = "adapter.json"
REPLAY = 256
"""Source images kept for replay: the first of the calibration split."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """What a bundle was made of.

    Attributes:
        folder: The bundle.
        manifest: Its hwsearch.json.
        config: The study it came from.
        subject: The original network and the source data.
        base: The candidate's network as it was exported, batch norms in their places.
        current: As it answers now: `base` with the last update's adapters merged in.
        source: Statistics of `base` on the source data, and a few of those images.
    """

    folder: Path
    manifest: Manifest
    config: StudyConfig
    subject: Subject
    base: Any
    current: Any
    source: Source

    @property
    def identity(self) -> str:
        """What names `base` in files of adapters: the original's weights and the candidate."""
        return base_identity(self.manifest)


def base_identity(manifest: Manifest) -> str:
    """The name of the network a bundle was exported with, whichever machine rebuilds it."""
    parts = [manifest.source_sha256, manifest.candidate.key]
    if WEIGHTS in manifest.files:  # training takes its time, and finds something else each time
        parts.append(manifest.files[WEIGHTS])
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def fit_of(manifest: Manifest) -> Fit:
    """What data of a scene must fit.

    Raises:
        ConfigError: the model is no classifier.
    """
    if len(manifest.output.shape) != 1:
        raise ConfigError(
            f"the model gives outputs of shape {manifest.output.shape}",
            allowed="[classes]: adaptation is for classifiers",
        )
    facts = manifest.preprocessing["normalize"]
    normalize = None if facts is None else Normalize(tuple(facts["mean"]), tuple(facts["std"]))
    return Fit(shape=manifest.input.shape, classes=manifest.output.shape[0], normalize=normalize)


def open_deployed(folder: Path | str, *, subject: Subject | None = None) -> Deployed:
    """The network of a bundle, rebuilt from the candidate, the original weights and the calibration split.

    Where it was trained after compression, its weights are in the bundle.

    Args:
        folder: The bundle.
        subject: Replaces the model and data its study names, for searches from Python.

    Raises:
        BundleError: it is damaged, or answers otherwise than the rebuilt network.
        ConfigError: what it was made of is not here or has changed, or cannot be rebuilt.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    manifest = parse_manifest(facts)
    if damaged := damage(folder, facts):
        name, what = next(iter(damaged.items()))
        raise BundleError(f"{folder} is damaged", where=f"{name}: {what}", hint="export the model again")
    _check_rebuildable(manifest)
    config = load_study(folder / "study.yaml")
    subject = subject or _load(config)
    found = subject.network.source.sha256
    if found != manifest.source_sha256:
        raise ConfigError(
            "the network this bundle was made of has changed",
            where=f"{config.model}: weights {found[:12]}, expected {manifest.source_sha256[:12]}",
            hint="restore the model and weights that study.yaml names",
        )
    base = _rebuilt(folder, manifest, config, subject)
    current = merge(load_adapter(folder, base, base_identity(manifest))) if (folder / ADAPTER).exists() else base
    _check_same(folder, current)
    images = subject.splits.calibrate.inputs
    source = Source(statistics=measure(base, images), replay=images[:REPLAY])
    return Deployed(folder, manifest, config, subject, base, current, source)


def _load(config: StudyConfig) -> Subject:
    first = "reparam" if config.reparam is not None else "recover.once_for_all"
    if config.reparam is not None or config.recover.once_for_all is not None:
        raise ConfigError(
            f"the study trains its network first (`{first}`), and those weights are not in the bundle",
            hint="from Python, hand the trained network over: open_deployed(bundle, subject=...)",
        )
    return load_subject(config)


def _check_rebuildable(manifest: Manifest) -> None:
    trained = [name for name in manifest.candidate.recipe if name.startswith("recover.")]
    if trained and WEIGHTS not in manifest.files:
        raise ConfigError(
            "the weights of this bundle were trained after compression, and are not kept in it",
            where=f"no {WEIGHTS}: it was searched with an earlier version of hwsearch",
            hint="search in a new folder (--out) and export from there, or export a candidate that was not trained",
        )


def _rebuilt(folder: Path, manifest: Manifest, config: StudyConfig, subject: Subject) -> Any:
    network, candidate, images = subject.network, manifest.candidate, subject.splits.calibrate.inputs
    reconstructor = Reconstructor(network, images, settings=Settings(selection=config.recover.selection))
    if WEIGHTS in manifest.files:
        with np.load(folder / WEIGHTS) as archive:
            parameters = dict(archive)
    else:
        parameters = parameters_of(network, candidate, reconstructor, calibration=images, repair=config.recover.repair)
    return materialize(network, candidate, parameters, reconstructor.select(candidate.keep), images).eval()


def _check_same(folder: Path, network: Any) -> None:
    samples = np.load(folder / "samples.npz")
    same, detail = judge(answers(network, samples["inputs"]).numpy(), samples["outputs"], exact=False)
    if not same:
        raise BundleError(
            "the network rebuilt from study.yaml answers otherwise than this bundle",
            where=detail,
            hint="the study's data or settings have changed since the search",
        )
