"""A study file as plain data that remembers where every key was written.

YAML and TOML become the same thing: a mapping, and a table from key path to ``file:line`` (or to the ``--set`` that
replaced it), so that whatever turns out to be wrong with a value can be shown at its place.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hwsearch.errors import ConfigError

KeyPath = tuple[str | int, ...]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TOML_TABLE = re.compile(r"^\s*\[\[?\s*([\w.\-]+)\s*\]\]?")
_TOML_KEY = re.compile(r"^\s*([\w.\-]+)\s*=")


@dataclass(frozen=True, slots=True)
class StudyFile:
    """The content of a study file.

    Attributes:
        path: The file, as the user named it.
        data: Its mapping; plain dictionaries, lists, strings, numbers, booleans and None.
        places: Key path -> where its value was written.
    """

    path: Path
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, key: KeyPath) -> str:
        """Where `key`, or the nearest key around it, was written; the file itself if nowhere."""
        return next((self.places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.places), str(self.path))

    def where(self, key: KeyPath, value: Any) -> str:
        """The place, the key and the value found, as errors show them."""
        place = self.place(key)
        shown = f"{dotted(key)} = {_short(value)}"
        return place if place.startswith("--set") else f"{place}  {shown}"

    def override(self, assignments: Sequence[str]) -> None:
        """Apply ``a.b=value`` assignments; values are read as YAML.

        Raises:
            ConfigError: an assignment is malformed, or reaches into something that is not a mapping.
        """
        for text in assignments:
            self._assign(text)

    def _assign(self, text: str) -> None:
        name, equals, value = text.partition("=")
        key = tuple(name.strip().split("."))
        if not equals or not all(key):
            raise ConfigError(
                f"cannot read `--set {text}`", allowed="--set key=value, e.g. --set search.evaluations=20"
            )
        parent = self.data
        for depth, part in enumerate(key[:-1], start=1):
            inner = parent.get(part)
            if inner is None:
                inner = parent[part] = {}
            if not isinstance(inner, dict):
                raise ConfigError(f"`{dotted(key[:depth])}` is not a mapping", where=f"--set {text}")
            parent = inner
        parent[key[-1]] = _parse_value(value, text)
        self.places[key] = f"--set {text}"

    def expand_variables(self) -> None:
        """Replace ``${NAME}`` in every string by the environment variable.

        Raises:
            ConfigError: it is not set.
        """
        for key, container, position, text in list(_strings(self.data)):
            expanded = text
            for name in dict.fromkeys(_VARIABLE.findall(text)):
                expanded = expanded.replace(f"${{{name}}}", self._variable(name, key, text))
            container[position] = expanded

    def _variable(self, name: str, key: KeyPath, text: str) -> str:
        if name in os.environ:
            return os.environ[name]
        raise ConfigError(
            f"environment variable `{name}` is not set",
            where=self.where(key, text),
            hint=f"set it before the command: export {name}=..., or write the value in its place",
        )


def read_study_file(path: Path) -> StudyFile:
    """The study file `path`; a folder stands for the ``study.yaml`` in it.

    Raises:
        ConfigError: it is missing, not YAML or TOML, or says something twice.
    """
    path = path / "study.yaml" if path.is_dir() else path
    readers = {".yaml": read_yaml, ".yml": read_yaml, ".toml": _read_toml}
    if path.suffix not in readers:
        allowed = "a .yaml or .toml file, or a folder with a study.yaml"
        hint = None if path.exists() else f"there is no {path}; to write a study: hwsearch init {path}"
        raise ConfigError(f"not a study file: {path}", allowed=allowed, hint=hint)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"study file not found: {path}", hint="write one with: hwsearch init") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}", where=str(error)) from error
    return readers[path.suffix](path, text)


def dotted(key: KeyPath) -> str:
    """``search.sampler`` or ``space.keep_float[0]``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_yaml(path: Path, text: str) -> StudyFile:
    """The YAML `text` of the file `path`, which holds a mapping.

    Raises:
        ConfigError: it is not YAML, no mapping, or says something twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        places = {} if node is None else {key: f"{path}:{line}" for key, line in _walk(node, path)}
        data = None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"not valid YAML: {error.problem}", where=f"{path}:{line}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"not valid YAML: {path}", where=str(error).splitlines()[0]) from None
    finally:
        loader.dispose()
    if data is not None and not isinstance(data, dict):
        raise ConfigError("the file does not hold a mapping", where=f"{path}:1", allowed="lines such as `key: value`")
    return StudyFile(path, data or {}, places)


def _walk(node: yaml.Node, path: Path, key: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    """Key paths under `node` with their lines, refusing a key that stands twice in one mapping."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*key, index), item.start_mark.line + 1
            yield from _walk(item, path, (*key, index))
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for name, value in node.value:
            inner, line = (*key, str(name.value)), name.start_mark.line + 1
            if inner in seen:
                raise ConfigError(
                    f"`{dotted(inner)}` is set twice",
                    where=f"{path}:{line}  first on line {seen[inner]}",
                    hint="keep one of the two",
                )
            seen[inner] = line
            yield inner, line
            yield from _walk(value, path, inner)


def _read_toml(path: Path, text: str) -> StudyFile:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("not valid TOML", where=f"{path}  {error}") from None
    return StudyFile(path, data, {key: f"{path}:{line}" for key, line in _toml_lines(text)})


def _toml_lines(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Lines of tables and keys; the keys of an inline table count as written where it begins."""
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TOML_TABLE.match(line):
            table = tuple(header[1].split("."))
            yield table, number
        elif entry := _TOML_KEY.match(line):
            yield (*table, *entry[1].split(".")), number


def _strings(value: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, Any, Any, str]]:
    """(key path, container, position in it, text) of every string inside `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for position, item in inside:
        if isinstance(item, str):
            yield (*key, position), value, position, item
        else:
            yield from _strings(item, (*key, position))


def _parse_value(value: str, text: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(
            f"cannot read `--set {text}`", allowed="a YAML value after `=`, e.g. 20, null or [a, b]"
        ) from None


def _short(value: Any, limit: int = 80) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"
