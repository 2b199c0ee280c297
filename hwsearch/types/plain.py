"""Records as plain data that JSON holds, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

Record = TypeVar("Record")

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
    return typing.cast("Record", _build(kind, data))


def _build(kind: Any, data: Any) -> Any:
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_record(typing.cast("type", kind), data)
    if origin in (types.UnionType, typing.Union):
        return _build_union(args, data)
    if origin is tuple:
        inner = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else list(args)
        return tuple(_build(k, v) for k, v in zip(inner, data, strict=True))
    if origin is dict:
        return {k: _build(args[1], v) for k, v in data.items()}
    if kind is float:
        return float(data)
    return data


def _build_record(kind: type, data: Any) -> Any:
    if not isinstance(data, dict):
        raise TypeError(f"{kind.__name__}: expected a JSON object, found {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    unknown = set(data) - set(hints)
    if unknown:
        raise ValueError(f"{kind.__name__}: unknown field {sorted(unknown)[0]!r}")
    return kind(**{name: _build(hints[name], value) for name, value in data.items()})


def _build_union(args: tuple[Any, ...], data: Any) -> Any:
    if data is None and type(None) in args:
        return None
    choices = [a for a in args if a is not type(None)]
    if len(choices) > 1 and isinstance(data, dict) and "kind" in data:
        choices = [
            a
            for a in choices
            if getattr(a, "__dataclass_fields__", {}).get("kind") is not None
            and a.__dataclass_fields__["kind"].default == data["kind"]
        ]
    return _build(choices[0], data)
