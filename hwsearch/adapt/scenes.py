"""Data of a scene: a folder of images, an archive of arrays, or a factory; checked against the network they are for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.adapt.ladder import Scene
from hwsearch.config import DataConfig, NormalizeConfig
from hwsearch.errors import DataError
from hwsearch.model.pools import ArrayPool, Normalize, Pool
from hwsearch.model.sources import load_pools, read_arrays

UNLABELLED = 512
"""Most images used without their labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What data must fit: the network's input, its outputs, and how its images were prepared.

    Attributes:
        shape: Of one example, [C, H, W].
        classes: Outputs.
        normalize: Per channel, after scaling pixels to 0..1; None if there was none.
    """

    shape: tuple[int, ...]
    classes: int
    normalize: Normalize | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneData:
    """A scene, and examples of it that nothing is adapted on.

    Attributes:
        name: Where it came from.
        scene: What adaptation sees.
        inputs: The other examples [M, ...]; they judge the result.
        targets: Their classes [M]; empty without labels.
        sha256: Over `inputs` and `targets`.
    """

    name: str
    scene: Scene
    inputs: NDArray[np.float32]
    targets: NDArray[np.int64]
    sha256: str


def load_scene(spec: str, fit: Fit, *, shots: int = 10, seed: int = 0, base_dir: Path | None = None) -> SceneData:
    """A scene from its data, divided at random into what adapts and what judges.

    Args:
        spec: A folder with one sub-folder of images per class; an ``.npz`` archive with ``images`` (uint8 [N, H, W, C])
            or ``inputs`` (float32, as the network takes them), and ``labels`` where they are known; or a factory as
            ``file.py:function`` or ``package.module:function`` that returns ``(inputs, targets)``.
        fit: What the data must fit.
        shots: Labelled examples per class that may be used; 0 for none.
        seed: Of the division.
        base_dir: What relative paths are relative to; None for the current folder.

    Raises:
        DataError: no such data, or they do not fit the network.
    """
    pool, labelled = _pool(spec, fit, base_dir or Path.cwd())
    name = Path(spec).name if ":" not in spec else spec
    inputs, targets = pool.load(np.arange(len(pool.targets))), np.asarray(pool.targets, np.int64)
    _check_shape(name, inputs, fit)
    if labelled:
        _check_labels(name, targets, fit)
    return divide(name, inputs, targets if labelled else None, fit.classes, shots=shots, seed=seed)


def load_stream(spec: str, fit: Fit, *, base_dir: Path | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Labelled examples in the order in which they came, inputs [N, ...] and classes [N]; arguments as `load_scene`.

    Raises:
        DataError: as `load_scene`, or there are no labels, or it is a folder, whose images come in no order.
    """
    if ((base_dir or Path.cwd()) / Path(spec).expanduser()).is_dir():
        raise DataError(
            f"{spec} is a folder of images, which says nothing of when they came",
            allowed="an .npz archive, or file.py:factory, in the order of time",
            hint="to adapt to a folder as a whole: hwsearch adapt update",
        )
    pool, labelled = _pool(spec, fit, base_dir or Path.cwd())
    if not labelled:
        raise DataError(f"{spec} has no labels", hint="updates learn from labelled examples; add `labels`")
    inputs, targets = pool.load(np.arange(len(pool.targets))), np.asarray(pool.targets, np.int64)
    _check_shape(Path(spec).name, inputs, fit)
    _check_labels(Path(spec).name, targets, fit)
    return inputs, targets


def divide(
    name: str,
    inputs: NDArray[np.float32],
    targets: NDArray[np.int64] | None,
    classes: int,
    *,
    shots: int = 10,
    seed: int = 0,
) -> SceneData:
    """A scene out of examples [N, ...] and their classes [N], or None where those are not known.

    `shots` of each class keep their label; at most half of the others, and `UNLABELLED`, are used without it; the rest
    judges.

    Raises:
        DataError: a class has too few examples.
    """
    order = np.random.default_rng(seed).permutation(len(inputs))
    few = np.zeros(0, np.int64) if targets is None else _shots(name, order, targets, classes, shots)
    others = order[~np.isin(order, few)]
    unlabelled = others[: min(UNLABELLED, len(others) // 2 if targets is not None else len(others))]
    rest = others[len(unlabelled) :]
    known = np.zeros(0, np.int64) if targets is None else targets
    judged = known[rest] if targets is not None else known
    return SceneData(
        name=name,
        scene=Scene(images=inputs[unlabelled], few=inputs[few], labels=known[few]),
        inputs=inputs[rest],
        targets=judged,
        sha256=hashlib.sha256(inputs[rest].tobytes() + judged.tobytes()).hexdigest(),
    )


def _shots(
    name: str, order: NDArray[np.int64], targets: NDArray[np.int64], classes: int, shots: int
) -> NDArray[np.int64]:
    """`shots` examples of each class, in mixed order."""
    counts = np.bincount(targets, minlength=classes)
    if shots and counts.min() <= shots:
        label = int(counts.argmin())
        raise DataError(
            f"{name} has {counts[label]} examples of class {label}",
            allowed=f"more than {shots}, the labelled examples per class that are asked for",
            hint="ask for fewer labels, or none",
        )
    rank = np.zeros(len(order), np.int64)
    for label in range(classes):
        mine = targets[order] == label
        rank[mine] = np.arange(mine.sum())
    few: NDArray[np.int64] = order[rank < shots]
    return few


def _pool(spec: str, fit: Fit, base_dir: Path) -> tuple[Pool, bool]:
    """The examples, and whether their labels are known."""
    path = base_dir / Path(spec).expanduser()
    if path.suffix == ".npz":
        return _archive(path, fit)
    if path.is_dir():
        found = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        _check_classes(path.name, len(found), fit)
        config = DataConfig(source="folder", path=str(path), image_size=fit.shape[-1], normalize=_config(fit.normalize))
        return load_pools(config, base_dir=base_dir)["all"], True
    if ":" not in spec:
        raise DataError(
            f"no data at {path}", allowed="a folder with a sub-folder per class, an .npz archive, or file.py:factory"
        )
    pools = load_pools(DataConfig(source=spec, normalize=_config(fit.normalize)), base_dir=base_dir)
    if set(pools) != {"all"}:
        raise DataError(f"`{spec}` returned several pools", allowed="one pair (inputs, targets)")
    return pools["all"], True


def _archive(path: Path, fit: Fit) -> tuple[Pool, bool]:
    arrays = read_arrays(path)
    if "classes" in arrays:
        _check_classes(path.name, len(arrays["classes"]), fit)
    labelled = "labels" in arrays
    if "inputs" in arrays:
        inputs, normalize = arrays["inputs"].astype(np.float32), None
    elif "images" in arrays and arrays["images"].ndim in (3, 4):
        images = arrays["images"]
        inputs, normalize = (images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)), fit.normalize
    else:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}",
            allowed="images [N, H, W, C] or inputs [N, ...], and labels [N] where they are known",
        )
    labels = arrays["labels"] if labelled else np.zeros(len(inputs), np.int64)
    if len(labels) != len(inputs) or len(inputs) == 0:
        raise DataError(f"{path} holds {len(inputs)} examples and {len(labels)} labels", allowed="as many of each")
    _check_shape(path.name, inputs, fit)
    return ArrayPool(inputs, labels, normalize), labelled


def _check_shape(name: str, inputs: NDArray[Any], fit: Fit) -> None:
    if inputs.shape[1:] != tuple(fit.shape):
        raise DataError(
            f"examples of {name} have shape {inputs.shape[1:]}",
            allowed=f"{tuple(fit.shape)}, as the model takes them",
            hint="images in an archive are [N, H, W, C]; inputs are [N, C, H, W]",
        )


def _check_classes(name: str, found: int, fit: Fit) -> None:
    if found != fit.classes:
        raise DataError(
            f"{name} has {found} classes and the model {fit.classes} outputs",
            hint="adapters follow a scene; other classes need a network of their own",
        )


def _check_labels(name: str, labels: NDArray[np.int64], fit: Fit) -> None:
    if labels.ndim != 1 or labels.min() < 0 or labels.max() >= fit.classes:
        found = f"{labels.min()} to {labels.max()}" if labels.ndim == 1 else f"of shape {labels.shape}"
        raise DataError(
            f"labels of {name} are {found}",
            allowed=f"0 to {fit.classes - 1}: the model has {fit.classes} outputs",
        )


def _config(normalize: Normalize | None) -> NormalizeConfig | None:
    return None if normalize is None else NormalizeConfig(mean=normalize.mean, std=normalize.std)
