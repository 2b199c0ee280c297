"""What a search expects of models it has not evaluated: the solver's whole front, kept beside the evaluations.

The solver finds the best model for every latency in one pass, so a new limit is answered from this file at once,
without a model, data or device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwsearch.errors import ConfigError
from hwsearch.store import read_json, write_json
from hwsearch.types import SCHEMA_VERSION, Candidate, from_json, to_json

PREDICTIONS_FILE = "predicted.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One model, and what is expected of it.

    Attributes:
        latency_ms, latency_sigma_ms: From the latency table (or what stands in for it), and its standard error.
        accuracy, accuracy_sigma: Of the study's metric on the search split, from calibrated sensitivities.
    """

    candidate: Candidate
    latency_ms: float
    latency_sigma_ms: float
    accuracy: float
    accuracy_sigma: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The expected front of a run.

    Attributes:
        evaluations: How many the expectation was calibrated with.
        models: Fastest first; each is expected to be more accurate than those before.
        random: Expected accuracy and latency in ms of candidates drawn at random: what a search without guidance meets.
    """

    evaluations: int
    models: tuple[Prediction, ...]
    random: tuple[tuple[float, float], ...] = ()

    def within(self, max_latency_ms: float) -> Prediction | None:
        """The most accurate model expected to take at most `max_latency_ms`; None if all are slower."""
        return next((m for m in reversed(self.models) if m.latency_ms <= max_latency_ms), None)


def write_predictions(folder: Path, found: Predictions) -> None:
    """Keep predictions in a run folder."""
    write_json(folder / PREDICTIONS_FILE, {"schema_version": SCHEMA_VERSION, "predictions": to_json(found)})


def read_predictions(folder: Path) -> Predictions | None:
    """The predictions of a run; None where the search made none.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return None
    try:
        return from_json(Predictions, read_json(path)["predictions"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is damaged", where=str(error), hint="delete it; the next search writes it anew"
        ) from error
