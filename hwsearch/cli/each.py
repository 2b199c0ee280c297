"""``search --each``: a study searched once for every value of one key, and the models of all of them as one front."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hwsearch.cli.output import note
from hwsearch.config import StudyConfig, load_study
from hwsearch.errors import ConfigError

if TYPE_CHECKING:
    from hwsearch.search.run import Run
    from hwsearch.types import Front


@dataclass(frozen=True, slots=True)
class Variant:
    """A study with one of the values: what it is called among them, and its configuration."""

    label: str
    config: StudyConfig


def variants(study: Path, settings: Sequence[str], each: str | None) -> list[Variant]:
    """The study with every value of ``KEY=A,B``, each under a name of its own; or as it is.

    Raises:
        ConfigError: no key, fewer than two different values, or a study that is wrong with one of them.
    """
    if each is None:
        return [Variant("", load_study(study, settings))]
    key, _, listed = each.partition("=")
    values = [value.strip() for value in listed.split(",")]
    if not key or not all(values) or len(set(values)) < max(2, len(values)):
        raise ConfigError(
            f"cannot read `--each {each}`", allowed="--each key=value,value, e.g. --each reparam.kind=plain,orepa"
        )
    return [_variant(study, [*settings, f"{key}={value}"], value) for value in values]


def fronts_as_one(variants: Sequence[Variant], runs: Sequence[Sequence[Run]]) -> list[Front]:
    """For each target one front with the models of all variants, measured together."""
    from hwsearch.search.together import together

    labelled = [(variant.label, run) for variant, found in zip(variants, runs, strict=True) for run in found]
    targets = dict.fromkeys(run.target.name for _, run in labelled)
    note("measuring the models of all searches together")
    return [together({label: run for label, run in labelled if run.target.name == name}) for name in targets]


def _variant(study: Path, settings: Sequence[str], value: str) -> Variant:
    config = load_study(study, settings)
    label = re.sub(r"[^\w.\-]+", "-", value).strip("-")
    return Variant(label, config.model_copy(update={"name": f"{config.name}-{label}"}))
