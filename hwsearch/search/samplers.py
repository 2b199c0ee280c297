"""Optuna samplers by the name a study gives them, over the space's ordered integers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import optuna

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.space.space import Dimension

STARTUP = 10


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)


def _nsga2(seed: int) -> optuna.samplers.BaseSampler:
    # A population of 20 leaves room for generations within the budgets a device allows.
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)


def _gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)


def _random(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "gp": _gp,
    "guided": _tpe,  # over the solver's coefficients
    "nsga2": _nsga2,
    "random": _random,
    "tpe": _tpe,
}


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler called `name`.

    Raises:
        ConfigError: unknown name.
    """
    if name not in SAMPLERS:
        raise ConfigError(
            f"unknown sampler `{name}`", allowed=", ".join(sorted(SAMPLERS)), hint=did_you_mean(name, SAMPLERS)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed)


def suggest(trial: optuna.Trial, dimensions: Sequence[Dimension]) -> dict[str, int]:
    """A number for every dimension, chosen by the trial's sampler."""
    return {dimension.name: trial.suggest_int(dimension.name, 0, dimension.size - 1) for dimension in dimensions}
