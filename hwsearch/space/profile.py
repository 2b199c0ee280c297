"""A target file as a checked `Target`: what may stand in it, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from hwsearch.config import LimitsConfig
from hwsearch.config_errors import UnknownValueError, explain
from hwsearch.config_section import Count, Positive, Section
from hwsearch.patterns import pattern_name
from hwsearch.study_file import read_yaml
from hwsearch.types import PRECISIONS, Target, from_json

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

TABLE = "table"
"""The backend of devices that are not here."""


class OpProfile(Section):
    """What one kind of layer may be: see `hwsearch.types.OpCapability`."""

    accepts: Names
    accelerates: tuple[str, ...]
    patterns: tuple[str, ...] = ()

    @field_validator("patterns", mode="before")
    @classmethod
    def _known_patterns(cls, value: Any) -> Any:
        return [pattern_name(name) for name in value] if isinstance(value, (list, tuple)) else value

    @field_validator("accepts", "accelerates")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PRECISIONS:
                raise UnknownValueError(name, tuple(PRECISIONS), f"unknown precision `{name}`")
        return value

    @field_validator("accepts")
    @classmethod
    def _holds_a_float(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        floats = tuple(name for name, precision in PRECISIONS.items() if not precision.integer)
        if not set(floats) & set(value):
            raise UnknownValueError(", ".join(value), floats, "no floating-point format, the yardstick, is accepted")
        return value

    @field_validator("accelerates")
    @classmethod
    def _accepted(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        accepted = info.data.get("accepts", value)
        for name in value:
            if name not in accepted:
                raise UnknownValueError(name, accepted, f"`{name}` is accelerated without being accepted")
        return value


class OpsProfile(Section):
    """Kinds of layers; one that is left out runs in fp32 alone."""

    conv: OpProfile | None = None
    depthwise: OpProfile | None = None
    linear: OpProfile | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not (self.conv or self.depthwise or self.linear):
            raise ValueError(f"no kind of layer is given: expected {', '.join(type(self).model_fields)}")
        return self

    def accepted(self) -> tuple[str, ...]:
        """Every precision some layer may have."""
        found = (op.accepts for op in (self.conv, self.depthwise, self.linear) if op is not None)
        return tuple(dict.fromkeys(name for accepts in found for name in accepts))

    def skipped(self) -> tuple[str, ...]:
        """Every pattern of zeros that is skipped in some layer."""
        return tuple(name for op in (self.conv, self.depthwise, self.linear) if op is not None for name in op.patterns)


class SparsityProfile(Section):
    """How much should go, as a fraction."""

    metric: Literal["channels", "params", "macs"] = "macs"
    goal: Fraction


class RangesProfile(Section):
    """How activations are calibrated."""

    method: Literal["minmax", "percentile", "entropy", "mse"]
    images: Count = 512


class RooflineProfile(Section):
    """See `hwsearch.types.Roofline`."""

    origin: Annotated[str, Field(min_length=1)]
    macs_per_us: dict[str, Positive]
    bytes_per_us: Positive
    layer_us: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    call_us: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    channels_at_once: Count = 1
    pj_per_mac: dict[str, Positive] = Field(default_factory=dict)
    pj_per_byte: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class TargetProfile(Section):
    """See `hwsearch.types.Target`."""

    name: str | None = None
    backend: str
    threads: Count = 1
    batch: Count = 1
    ops: OpsProfile
    mixed_float: bool = False
    granularity: Count
    min_keep: Annotated[float, Field(gt=0, le=1)]
    needs_isa: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    table: str | None = None
    options: dict[str, str] = Field(default_factory=dict)
    sparsity: SparsityProfile | None = None
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    ranges: RangesProfile | None = None
    roofline: RooflineProfile | None = None

    @field_validator("needs_isa")
    @classmethod
    def _of_accepted(cls, value: dict[str, tuple[str, ...]], info: ValidationInfo) -> dict[str, tuple[str, ...]]:
        ops = info.data.get("ops")
        accepted = tuple(value) if ops is None else (*ops.accepted(), *ops.skipped())
        for name in value:
            if name not in accepted:
                raise UnknownValueError(name, accepted, f"no layer accepts `{name}`")
        return value

    @field_validator("table", "roofline")
    @classmethod
    def _not_measured(cls, value: object, info: ValidationInfo) -> object:
        backend = info.data.get("backend", TABLE)
        if value is not None and backend != TABLE:
            raise ValueError(f"a target with a {info.field_name} has `backend: {TABLE}`, not `{backend}`")
        return value

    @field_validator("roofline")
    @classmethod
    def _complete(cls, value: RooflineProfile | None, info: ValidationInfo) -> RooflineProfile | None:
        if value is None:
            return value
        if info.data.get("table") is not None:
            raise ValueError("a table is given already; keep one of the two")
        accepted = info.data["ops"].accepted() if "ops" in info.data else ()
        for rates in ("macs_per_us", "pj_per_mac") if value.pj_per_mac else ("macs_per_us",):
            if missing := [name for name in accepted if name not in getattr(value, rates)]:
                raise ValueError(f"{rates} lacks {', '.join(missing)}, which layers accept")
        return value


def parse_target(text: str, path: Path) -> Target:
    """The target that the YAML `text` of the file `path` describes.

    Raises:
        ConfigError: it is malformed or contradicts itself; names the line, what was found and what is allowed.
    """
    file = read_yaml(path, text)
    try:
        profile = TargetProfile.model_validate(file.data)
    except ValidationError as error:
        raise explain(error, file, TargetProfile) from None
    facts = profile.model_dump(mode="json", exclude={"ops"})
    ops = profile.ops.model_dump(mode="json", exclude_none=True)
    return from_json(Target, {**facts, "name": profile.name or path.stem, "ops": ops})
