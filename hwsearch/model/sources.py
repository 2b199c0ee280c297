"""Where pools of examples come from: one function per kind of source."""

from __future__ import annotations

import importlib.util
import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwsearch.errors import DataError, did_you_mean
from hwsearch.model.foreign import one_line
from hwsearch.model.importing import import_object
from hwsearch.model.pools import ArrayPool, ImagePool, Normalize, Pool, pool_from

Pools = dict[str, Pool]

IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DIGITS = Normalize((0.305,) * 3, (0.376,) * 3)
DIGITS_TEST = 800

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

SHAPES_OF_DATA = (
    ("calibrate", "search", "report"),
    ("calibrate", "search", "report", "train"),
    ("train", "test"),
    ("all",),
)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` archive by name; pickled objects are refused.

    Raises:
        DataError: there is no such archive, or it is damaged.
    """
    if not path.exists():
        raise DataError(f"no file at {path}")
    if not zipfile.is_zipfile(path):
        raise DataError(f"not an .npz archive, or cut short: {path}", allowed="what numpy.savez writes")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"cannot read the arrays of {path}", where=str(error)) from error


def load_pools(config: Any, *, base_dir: Path) -> Pools:
    """Pools of a `DataConfig`, named ``all``, ``train`` and ``test``, or ``calibrate``, ``search`` and ``report``.

    Raises:
        DataError: the source is not known, or what it reads is missing or malformed.
    """
    built_in: dict[str, Callable[[Any, Path], Pools]] = {"digits": _digits, "cifar10": _cifar10, "folder": _folder}
    _refuse_unused(config)
    if config.source in built_in:
        return built_in[config.source](config, base_dir)
    if ":" not in config.source:
        raise DataError(
            f"unknown data source `{config.source}`",
            allowed=f"{', '.join(sorted(built_in))}, path/file.py:factory or package.module:factory",
            hint=did_you_mean(config.source, built_in),
        )
    factory = import_object(config.source, base_dir=base_dir, what="data factory", error=DataError)
    try:
        value = factory()
    except Exception as error:
        raise DataError(f"data factory `{config.source}` failed", where=one_line(error)) from error
    return pools_from(value, config)


def _refuse_unused(config: Any) -> None:
    """A setting that would have no effect is a mistake."""
    uses = {"image_size": ("folder",), "path": ("folder", "cifar10")}
    for name, sources in uses.items():
        if getattr(config, name) is not None and config.source not in sources:
            raise DataError(
                f"data.{name} has no effect on the source `{config.source}`",
                allowed=f"{name} with the sources " + ", ".join(sources),
            )


def pools_from(value: Any, config: Any) -> Pools:
    """Pools out of what a data factory returns; see `load_pools` for their names.

    Args:
        value: Dictionary with ``calibrate``, ``search`` and ``report`` (and ``train``, for studies that train), or
            with ``train`` and ``test``, or one pair ``(inputs, targets)`` or loader for all.
        config: A `DataConfig`, for its `normalize`.
    """
    named = dict(value) if isinstance(value, Mapping) else {"all": value}
    if not any(set(names) == set(named) for names in SHAPES_OF_DATA):
        raise DataError(
            "the data factory returned a dictionary with keys " + ", ".join(map(str, named)),
            allowed="calibrate, search, report and perhaps train; or train and test; or one pair (inputs, targets)",
        )
    normalize = _normalize(config, None)
    return {name: pool_from(part, f"`{name}`", normalize) for name, part in named.items()}


# --------------------------------------------------------------------------- digits


def _digits(config: Any, _base_dir: Path) -> Pools:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey, as 32×32 images with three equal channels.

    Size and channels are those of CIFAR, so that the same networks fit. 800 images, fixed once, are the test pool.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = _enlarged(images.reshape(-1, 8, 8).astype(np.float32) / 16, 32)
    pixels = np.repeat(np.round(grey * 255).astype(np.uint8)[:, None], 3, axis=1)
    order = np.random.default_rng(0).permutation(len(pixels))
    normalize = _normalize(config, DIGITS)
    parts = {"test": order[:DIGITS_TEST], "train": order[DIGITS_TEST:]}
    return {name: ArrayPool(pixels[part], labels[part].astype(np.int64), normalize) for name, part in parts.items()}


def _enlarged(images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Bilinear interpolation of [N, h, h] to [N, size, size], pixel centres aligned."""
    old = images.shape[-1]
    centre = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    low = np.minimum(centre.astype(int), old - 2)
    weights = np.zeros((size, old), np.float32)
    weights[np.arange(size), low] = 1 - (centre - low)
    weights[np.arange(size), low + 1] = centre - low
    return np.asarray(weights @ images @ weights.T, np.float32)


# --------------------------------------------------------------------------- CIFAR-10


def _cifar10(config: Any, base_dir: Path) -> Pools:
    """CIFAR-10 from ``train*.npz`` and ``test*.npz`` (``images`` [N, 32, 32, 3], ``labels``) or the batches folder."""
    folder = _path(config, base_dir)
    read = _read_archives if list(folder.glob("test*.npz")) else _read_batches
    normalize = _normalize(config, IMAGENET)
    return {name: ArrayPool(*read(folder, name), normalize) for name in ("train", "test")}


def _read_archives(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    parts = []
    for path in sorted(folder.glob(f"{name}*.npz")):
        arrays = read_arrays(path)
        try:
            parts.append((arrays["images"].transpose(0, 3, 1, 2), arrays["labels"].astype(np.int64)))
        except (ValueError, KeyError) as error:
            raise DataError(
                f"not a CIFAR-10 archive: {path}",
                where=str(error),
                allowed="arrays images [N, 32, 32, 3] and labels [N]",
            ) from error
    if not parts:
        raise DataError(f"no {name}*.npz in {folder}", hint="both a training and a test archive are needed")
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _read_batches(folder: Path, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    nested = folder / "cifar-10-batches-py"
    folder = nested if nested.is_dir() else folder
    files = sorted(folder.glob("data_batch_*")) if name == "train" else sorted(folder.glob("test_batch"))
    if not files:
        raise DataError(f"no CIFAR-10 in {folder}", allowed="train*.npz and test*.npz, or cifar-10-batches-py")
    batches = [_read_batch(path) for path in files]
    images = np.concatenate([np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32) for batch in batches])
    return images, np.concatenate([np.asarray(batch[b"labels"], np.int64) for batch in batches])


def _read_batch(path: Path) -> dict[bytes, Any]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise DataError(f"not a CIFAR-10 batch: {path}", where=str(error)) from error
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise DataError(f"not a CIFAR-10 batch: {path}", allowed="a dictionary with data and labels")
    return batch


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays and plain Python data; anything else in the file is refused, since it could run code."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is no array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


# --------------------------------------------------------------------------- image folders


def _folder(config: Any, base_dir: Path) -> Pools:
    """Images in one sub-folder per class, with or without a level ``train`` and ``test`` (or ``val``) above them."""
    if importlib.util.find_spec("PIL") is None:
        raise DataError("reading image files needs Pillow", hint="pip install 'hwsearch[images]'")
    folder = _path(config, base_dir)
    tests = [folder / name for name in ("test", "val") if (folder / name).is_dir()]
    levels = {"train": folder / "train", "test": tests[0]} if tests and (folder / "train").is_dir() else {"all": folder}
    classes = sorted({path.name for level in levels.values() for path in level.iterdir() if path.is_dir()})
    size, normalize = config.image_size or 224, _normalize(config, IMAGENET)
    return {name: _image_pool(level, classes, size, normalize) for name, level in levels.items()}


def _image_pool(level: Path, classes: list[str], size: int, normalize: Normalize) -> ImagePool:
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(path for path in (level / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(
            f"no images in {level}", allowed="one sub-folder per class, with " + ", ".join(sorted(IMAGE_SUFFIXES))
        )
    return ImagePool(tuple(files), np.asarray(labels, np.int64), size, normalize)


# --------------------------------------------------------------------------- shared


def _path(config: Any, base_dir: Path) -> Path:
    if not config.path:
        raise DataError(f"the data source `{config.source}` needs a path", hint="set data.path to its folder")
    path = base_dir / Path(config.path).expanduser()
    if path.is_dir():
        return path
    unset = re.findall(r"\$\{?(\w+)\}?", config.path)
    hint = f"the environment variable {unset[0]} is not set" if unset else "check data.path"
    raise DataError(f"data folder not found: {config.path}", hint=hint)


def _normalize(config: Any, default: Normalize | None) -> Any:
    given = config.normalize
    return default if given is None else Normalize(tuple(given.mean), tuple(given.std))
