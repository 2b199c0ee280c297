"""How much each choice explains of what evaluations differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

TREES = 64
PART_OF_FEATURES = 1 / 3
"""Looked at for each split of a tree, as Breiman advises for regression."""


def importances(features: Mapping[str, Sequence[float]], values: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """Share of the variance of `values` that a random forest attributes to each feature; they sum to 1.

    A feature that never varies has 0; all have 0 if the values do not vary. The mean decrease in impurity (Breiman,
    "Random Forests", 2001).

    Args:
        features: Name -> one number per evaluation.
        values: One number per evaluation.
        seed: Of the forest.
    """
    from sklearn.ensemble import RandomForestRegressor

    varying = [name for name, column in features.items() if min(column) < max(column)]
    found = dict.fromkeys(features, 0.0)
    if not varying or min(values) == max(values):
        return found
    forest = RandomForestRegressor(TREES, max_features=PART_OF_FEATURES, random_state=seed)
    forest.fit(np.column_stack([features[name] for name in varying]), values)
    return found | dict(zip(varying, forest.feature_importances_.tolist(), strict=True))
