"""The three splits of a study: calibrate, search and report; disjoint, seeded, hashed, checked for leaks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import DataError
from hwsearch.model.pools import Indices, Pool
from hwsearch.model.sources import Pools, load_pools, pools_from

SPLITS = ("calibrate", "search", "report")

CALIBRATE, SEARCH = 512, 2000
"""Examples in these splits unless the study says otherwise or the pool is small."""

NATURAL_OVERLAP = 0.01
"""Share of a test pool that may repeat training examples, as some public data sets do; more is a leak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSplit:
    """Examples of one split.

    Attributes:
        name: ``calibrate``, ``search``, ``report`` or ``train``.
        inputs: Float32 [N, ...], images as [N, C, H, W], normalised.
        targets: [N, ...].
        sha256: Over the raw examples and targets, in order.
    """

    name: str
    inputs: NDArray[np.float32]
    targets: NDArray[Any]
    sha256: str

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """The splits of a study, and what is left of the training pool."""

    calibrate: DataSplit
    search: DataSplit
    report: DataSplit
    rest: tuple[Pool, Indices] | None = None

    def named(self, name: str) -> DataSplit:
        """The split called ``calibrate``, ``search`` or ``report``."""
        return {split.name: split for split in (self.calibrate, self.search, self.report)}[name]

    @property
    def train(self) -> DataSplit | None:
        """Training examples in none of the other splits, loaded at each access; None if the source has none."""
        return None if self.rest is None else _split("train", *self.rest)


def load_splits(config: Any, *, base_dir: Path) -> Splits:
    """The splits a `DataConfig` describes.

    Where a source has a training and a test pool, `calibrate` comes from the former and the others from the latter,
    since accuracy on training images says nothing. Splits we draw never share an example, not even a repeated one.

    Args:
        config: A `hwsearch.config.DataConfig`.
        base_dir: What relative paths are relative to.

    Raises:
        DataError: the source is missing or malformed, too small for what is asked, or leaks between given splits.
    """
    return _splits(load_pools(config, base_dir=base_dir), config)


def splits_from(value: Any, config: Any) -> Splits:
    """Splits out of live arrays, tensors or loaders.

    Args:
        value: As a data factory returns it: a dictionary with ``calibrate``, ``search`` and ``report`` (and perhaps
            ``train``), or with ``train`` and ``test``, or one pair ``(inputs, targets)``.
        config: A `hwsearch.config.DataConfig` for sizes, seed and `normalize`.

    Raises:
        DataError: as for `load_splits`.
    """
    return _splits(pools_from(value, config), config)


def check_inputs(splits: Splits, expected: tuple[int, ...]) -> None:
    """Refuse examples whose shape, without the batch axis, is not the one the model takes.

    Raises:
        DataError: names the split and both shapes.
    """
    for split in (splits.calibrate, splits.search, splits.report):
        found = split.inputs.shape[1:]
        if found != tuple(expected):
            raise DataError(
                f"examples of the {split.name} split have shape {found}",
                allowed=f"{tuple(expected)}, as the model takes them",
                hint="images are channels first: [N, C, H, W]",
            )


def check_labels(splits: Splits, classes: int) -> None:
    """Refuse targets that are not class numbers 0 to ``classes - 1``.

    Raises:
        DataError: names the split and a label that does not fit.
    """
    for split in (splits.calibrate, splits.search, splits.report):
        labels = split.targets
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(
                f"targets of the {split.name} split are {labels.dtype} of shape {labels.shape}",
                allowed="one class number per example, [N], for the metric top1",
            )
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise DataError(
                f"{len(wrong)} of {len(labels)} labels of the {split.name} split are out of range, e.g. {wrong[0]}",
                allowed=f"0 to {classes - 1}: the model has {classes} outputs",
                hint="labels count from 0" if wrong.min() == classes and labels.min() == 1 else None,
            )


# --------------------------------------------------------------------------- drawing


def _splits(pools: Pools, config: Any) -> Splits:
    for name, pool in pools.items():
        if len(pool.targets) == 0:
            raise DataError(f"the {name} pool of the data is empty")
    if "calibrate" in pools:
        return _given(pools, config)
    return _drawn(pools, config)


def _given(pools: Pools, config: Any) -> Splits:
    """The user's own splits, shortened to the sizes asked for; sharing an example is an error."""
    chosen = {name: _first(name, len(pools[name].targets), getattr(config, name)) for name in SPLITS}
    digests = {name: {pools[name].digests[i] for i in chosen[name]} for name in SPLITS}
    for one, other in (("calibrate", "search"), ("calibrate", "report"), ("search", "report")):
        if common := len(digests[one] & digests[other]):
            raise DataError(
                f"{common} examples are in both the {one} and the {other} split",
                hint="splits must be disjoint; give train and test, or one set, and they are drawn for you",
            )
    calibrate, search, report = (_split(name, pools[name], chosen[name]) for name in SPLITS)
    held = set().union(*digests.values())
    return Splits(calibrate=calibrate, search=search, report=report, rest=_given_rest(pools, held))


def _given_rest(pools: Pools, held: set[bytes]) -> tuple[Pool, Indices] | None:
    """The user's own training examples, but for the few that the splits hold as well; more than a few are a leak."""
    train = pools.get("train")
    if train is None:
        return None
    for name in ("search", "report"):
        _check_leak(train, pools[name])
    left = [i for i, digest in enumerate(train.digests) if digest not in held]
    return (train, np.asarray(left, np.int64)) if left else None


def _first(name: str, available: int, count: int | None) -> Indices:
    if count is not None and count > available:
        raise _too_few(name, count, available)
    return np.arange(available if count is None else count)


def _drawn(pools: Pools, config: Any) -> Splits:
    rng = np.random.default_rng(config.seed)
    train, test = pools.get("train", pools.get("all")), pools.get("test", pools.get("all"))
    if train is None or test is None:
        raise DataError("the data have neither pools nor splits")
    if train is not test:
        _check_leak(train, test)
    first = _Draw(train, rng)
    second = first if test is train else _Draw(test, rng)
    calibrate = first.take("calibrate", config.calibrate, min(CALIBRATE, len(train.targets) // 4))
    second.seen |= first.seen
    search = second.take("search", config.search, min(SEARCH, (len(test.targets) * 3) // 8))
    report = second.take("report", config.report, None)
    first.seen |= second.seen
    left = first.left()
    return Splits(
        calibrate=_split("calibrate", train, calibrate),
        search=_split("search", test, search),
        report=_split("report", test, report),
        rest=(train, left) if len(left) else None,
    )


class _Draw:
    """Examples of a pool in random order, handed out without repetition."""

    def __init__(self, pool: Pool, rng: np.random.Generator) -> None:
        self._digests = pool.digests
        self._order = rng.permutation(len(pool.targets))
        self.seen: set[bytes] = set()

    def take(self, name: str, count: int | None, default: int | None) -> Indices:
        """The next `count` examples, or `default`, or all; fewer only where repeated examples had to go."""
        wanted = count if count is not None else default
        if wanted is not None and wanted > len(self._order):
            raise _too_few(name, wanted, len(self._order))
        new = self.left()
        taken = new[:wanted]
        self._order = new[len(taken) :]
        if len(taken) == 0:
            raise DataError(
                f"the {name} split is empty", hint="ask for fewer examples in the others, or give more data"
            )
        self.seen.update(self._digests[i] for i in taken)
        return taken

    def left(self) -> Indices:
        """Examples not handed out, nor equal to one that was."""
        return np.asarray([i for i in self._order if self._digests[i] not in self.seen], np.int64)


def _check_leak(train: Pool, test: Pool) -> None:
    digests = test.digests
    common = len(set(train.digests) & set(digests))
    if common > NATURAL_OVERLAP * len(digests):
        raise DataError(
            f"{common} of {len(digests)} test examples are training examples too",
            hint="accuracy on training examples says nothing; give test examples the model has not seen",
        )


def _split(name: str, pool: Pool, indices: Indices) -> DataSplit:
    inputs, targets = pool.load(indices), pool.targets[indices]
    bad = int((~np.isfinite(inputs.reshape(len(inputs), -1))).any(axis=1).sum())
    if bad:
        raise DataError(f"{bad} of {len(inputs)} examples of the {name} split hold NaN or infinite values")
    return DataSplit(name=name, inputs=inputs, targets=targets, sha256=_sha256(pool, indices))


def _sha256(pool: Pool, indices: Iterable[int]) -> str:
    digest, digests = hashlib.sha256(), pool.digests
    for i in indices:
        digest.update(digests[i])
        digest.update(np.ascontiguousarray(pool.targets[i]).tobytes())
    return digest.hexdigest()


def _too_few(name: str, wanted: int, available: int) -> DataError:
    return DataError(
        f"{wanted} examples asked for the {name} split, but only {available} are left",
        hint=f"set data.{name} to at most {available}",
    )
