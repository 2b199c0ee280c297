"""What is wrong with a study, as one error at its place instead of a list of validation failures."""

from __future__ import annotations

import re

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hwsearch.errors import ConfigError, did_you_mean
from hwsearch.study_file import KeyPath, StudyFile, dotted

_IN_WORDS = {"model_type": "should be a mapping", "tuple_type": "should be a list", "too_short": "is empty"}
"""Kind of an error -> what people read, where pydantic speaks of Python."""


def one_of(value: str, names: tuple[str, ...], *forms: str) -> str:
    """`value` if it is one of `names`, or looks like one of the ``module:name`` forms.

    Raises:
        UnknownValueError: it is neither.
    """
    if value in names or (forms and re.fullmatch(r".+:[A-Za-z_]\w*", value)):
        return value
    raise UnknownValueError(value, (*names, *forms))


class UnknownValueError(ValueError):
    """A value that is not in a list of names; found inside pydantic's own error.

    Args:
        value: What was found.
        allowed: The names.
        message: What is wrong, where the key's own name does not say it.
    """

    def __init__(self, value: str, allowed: tuple[str, ...], message: str | None = None) -> None:
        super().__init__(message or f"unknown value `{value}`")
        self.value = value
        self.allowed = allowed
        self.message = message


def explain(error: ValidationError, study: StudyFile, schema: type[BaseModel]) -> ConfigError:
    """The root cause as one error: a misspelt key explains the missing one, never the other way round."""
    order = {"extra_forbidden": 0, "missing": 1}
    first = min(error.errors(include_url=False), key=lambda detail: order.get(detail["type"], 2))
    if first["type"] == "extra_forbidden":
        return _unknown_key(first, study, schema)
    if first["type"] == "missing":
        return _missing_key(first["loc"], study)
    return _wrong_value(first, study, schema)


def _unknown_key(detail: ErrorDetails, study: StudyFile, schema: type[BaseModel]) -> ConfigError:
    key = detail["loc"]
    fields = set(_section(schema, key[:-1]).model_fields)
    allowed = sorted(fields | ({"target"} if "targets" in fields else set()))
    return ConfigError(
        f"unknown key `{dotted(key)}`",
        where=study.where(key, detail["input"]),
        allowed=", ".join(allowed),
        hint=_elsewhere(schema, str(key[-1])) or did_you_mean(str(key[-1]), allowed),
    )


def _elsewhere(schema: type[BaseModel], name: str) -> str | None:
    """A hint where a key of this name stands in another section."""
    found = [f"`{section}.{name}`" for section, kind in _sections(schema).items() if name in kind.model_fields]
    return f"did you mean {' or '.join(found)}?" if found else None


def _missing_key(key: KeyPath, study: StudyFile) -> ConfigError:
    examples = {
        "model": "model: mynet.py:build",
        "data": "data: digits",
        "targets": "target: ort-cpu",
        "data.source": "data: {source: digits}",
    }
    name = "target" if key == ("targets",) else dotted(key)
    example = examples.get(dotted(key))
    return ConfigError(
        f"`{name}` is missing", where=study.place(key), hint=f"add a line such as `{example}`" if example else None
    )


def _wrong_value(detail: ErrorDetails, study: StudyFile, schema: type[BaseModel]) -> ConfigError:
    key, value = detail["loc"], detail["input"]
    if unknown := _unknown_value(detail):
        found, allowed, message = unknown
        name = next(str(part) for part in reversed(key) if isinstance(part, str))
        return ConfigError(
            message or f"unknown {name} `{found}`",
            where=study.where(key, value),
            allowed=", ".join(allowed),
            hint=did_you_mean(found, allowed),
        )
    problem = _IN_WORDS.get(detail["type"], detail["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return ConfigError(
        f"`{dotted(key)}` {problem}" if problem.startswith(("should", "is")) else f"`{dotted(key)}`: {problem}",
        where=study.where(key, value),
        allowed=f"keys {', '.join(_section(schema, key).model_fields)}" if detail["type"] == "model_type" else None,
    )


def _unknown_value(detail: ErrorDetails) -> tuple[str, tuple[str, ...], str | None] | None:
    """(found, allowed, message) where a value is not in a list of names."""
    context = detail.get("ctx", {})
    if detail["type"] == "literal_error":
        return str(detail["input"]), tuple(re.findall(r"'([^']*)'", context["expected"])), None
    cause = context.get("error")
    return (cause.value, cause.allowed, cause.message) if isinstance(cause, UnknownValueError) else None


def _section(schema: type[BaseModel], key: KeyPath) -> type[BaseModel]:
    """The model class of the section at `key`."""
    section = schema
    for part in key:
        section = _sections(section)[str(part)]
    return section


def _sections(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Key -> the model class of the section there."""
    return {
        name: kind
        for name, field in schema.model_fields.items()
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }
