"""How much each choice explains of what evaluations differ in, by Optuna's importance evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import MeanDecreaseImpurityImportanceEvaluator, get_param_importances

TREES = 64


def importances(features: Mapping[str, Sequence[float]], values: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """Share of the variance of `values` that a random forest attributes to each feature; they sum to 1.

    A feature that never varies has 0; all have 0 if the values do not vary. The mean decrease in impurity (Breiman,
    "Random Forests", 2001, as in ``optuna.importance``).

    Args:
        features: Name -> one number per evaluation.
        values: One number per evaluation.
        seed: Of the forest.
    """
    varying = {name: column for name, column in features.items() if min(column) < max(column)}
    found = dict.fromkeys(features, 0.0)
    if not varying or min(values) == max(values):
        return found
    study = _study(varying, values)
    evaluator = MeanDecreaseImpurityImportanceEvaluator(n_trees=TREES, seed=seed)
    return found | get_param_importances(study, evaluator=evaluator)


def _study(features: Mapping[str, Sequence[float]], values: Sequence[float]) -> optuna.Study:
    """A study in memory in which each evaluation is a trial and each feature a parameter."""
    spans: dict[str, BaseDistribution] = {
        name: FloatDistribution(min(column), max(column)) for name, column in features.items()
    }
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for i, value in enumerate(values):
        params = {name: column[i] for name, column in features.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spans, value=value))
    return study
