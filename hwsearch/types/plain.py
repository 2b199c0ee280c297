"""Records as plain data that JSON holds, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

Record = TypeVar("Record")
Build = Callable[[Any], Any]

SCHEMA_VERSION = 1


def to_json(record: Any) -> Any:
    """The record as JSON-ready plain data: dictionaries, lists, strings, numbers, None."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(k): to_json(v) for k, v in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_json(v) for v in record]
    return record


def from_json(kind: type[Record], data: Any) -> Record:
    """The record of type `kind` that `to_json` turned into `data`.

    Raises:
        TypeError, KeyError, ValueError: `data` does not describe such a record.
    """
    return typing.cast("Record", _builder(typing.cast("Any", kind))(data))


@cache
def _builder(kind: Any) -> Build:
    """What makes a `kind` of plain data; looked up once, since a long run holds a hundred thousand records."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(typing.cast("type", kind))
    if origin in (types.UnionType, typing.Union):
        return _union(args)
    if origin is tuple:
        return _sequence(args[0]) if len(args) == 2 and args[1] is Ellipsis else _fixed(args)
    if origin is dict:
        build = _builder(args[1])
        return lambda data: {key: build(value) for key, value in data.items()}
    return float if kind is float else lambda data: data


def _sequence(kind: Any) -> Build:
    build = _builder(kind)
    return lambda data: tuple([build(value) for value in data])


def _fixed(kinds: tuple[Any, ...]) -> Build:
    builders = [_builder(kind) for kind in kinds]
    return lambda data: tuple([build(value) for build, value in zip(builders, data, strict=True)])


def _record(kind: type) -> Build:
    fields = {name: _builder(hint) for name, hint in typing.get_type_hints(kind).items()}

    def build(data: Any) -> Any:
        if not isinstance(data, dict):
            raise TypeError(f"{kind.__name__}: expected a JSON object, found {type(data).__name__}")
        unknown = data.keys() - fields.keys()
        if unknown:
            raise ValueError(f"{kind.__name__}: unknown field {min(unknown)!r}")
        return kind(**{name: fields[name](value) for name, value in data.items()})

    return build


def _union(kinds: tuple[Any, ...]) -> Build:
    """Records of a union are told apart by their field `kind`, where they have one."""
    choices = [kind for kind in kinds if kind is not type(None)]
    first, named = _builder(choices[0]), {_name(kind): _builder(kind) for kind in choices}

    def build(data: Any) -> Any:
        if data is None and len(choices) < len(kinds):
            return None
        name = data.get("kind") if isinstance(data, dict) else None
        return (named[name] if len(choices) > 1 and name is not None else first)(data)

    return build


def _name(kind: Any) -> Any:
    """The default of a record's field `kind`; None if it has none."""
    found = getattr(kind, "__dataclass_fields__", {}).get("kind")
    return None if found is None else found.default
