"""Python objects named by ``package.module:name`` or ``file.py:name``, with errors that say which part is wrong."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.model.foreign import one_line


def import_object(spec: str, *, base_dir: Path, what: str, error: type[ConfigError] = ConfigError) -> Any:
    """The object a specification names.

    Args:
        spec: ``package.module:name`` or ``path/file.py:name``.
        base_dir: What relative paths are relative to.
        what: The kind of thing wanted, for messages, e.g. ``model factory``.
        error: Raised for anything wrong.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise error(f"`{spec}` does not name a {what}", allowed="package.module:function or path/file.py:function")
    module = _from_file(base_dir / place, what, error) if place.endswith(".py") else _from_package(place, what, error)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise error(f"`{place}` has no {what} `{name}`", where=spec, hint=did_you_mean(name, public))
    return getattr(module, name)


def _from_package(place: str, what: str, error: type[ConfigError]) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as missing:
        asked = missing.name is not None and (place == missing.name or place.startswith(f"{missing.name}."))
        message = f"{what}: no module `{place}`" if asked else f"{what}: `{place}` needs `{missing.name}`"
        raise error(message, where=str(missing), hint=_nearby(place) if asked else None) from missing
    except Exception as problem:
        raise error(f"{what}: `{place}` cannot be imported", where=one_line(problem)) from problem


def _nearby(place: str) -> str:
    parent, _, last = place.rpartition(".")
    folder = importlib.util.find_spec(parent) if parent in sys.modules else None
    siblings = [
        path.stem
        for root in (folder.submodule_search_locations or [] if folder else [])
        for path in Path(root).iterdir()
    ]
    return did_you_mean(last, siblings) or "install the package, or give the file: path/file.py:function"


def _from_file(path: Path, what: str, error: type[ConfigError]) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        near = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise error(f"{what}: file not found: {path}", hint=did_you_mean(path.name, near))
    # The name is the file's own, so that classes defined there can be found again, but cannot shadow a package.
    name = f"hwsearch_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"{what}: not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise error(f"{what}: {path} cannot be imported", where=one_line(problem)) from problem
    finally:
        sys.path.remove(str(path.parent))
    return module
