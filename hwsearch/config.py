"""A study file (YAML or TOML) as a checked, resolved `StudyConfig`.

Only three things are required: a model, data and a target. Paths may hold ``${VARIABLE}`` and are relative to the study
file. Configs are inert: nothing is imported or run here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from hwsearch.config_errors import explain, one_of
from hwsearch.config_recover import RecoverConfig
from hwsearch.config_reparam import ReparamConfig
from hwsearch.config_section import Count, Positive, Section
from hwsearch.errors import ConfigError
from hwsearch.patterns import pattern_name
from hwsearch.study_file import StudyFile, read_study_file
from hwsearch.types import PRECISIONS

Channels = Annotated[tuple[float, ...], Field(min_length=1)]


class NormalizeConfig(Section):
    """Subtracted and divided per channel, after scaling pixels to 0..1."""

    mean: Channels
    std: Annotated[tuple[Positive, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} entries and std has {len(self.std)}")
        return self


class DataConfig(Section):
    """Where the examples come from, and how many go into each of the three splits.

    Attributes:
        source: ``digits``, ``cifar10``, ``folder``, ``file.py:factory`` or ``package.module:factory``; ``python`` for
            arrays handed over by a program.
        calibrate, search, report: Examples per split; None for the source's own default (`report`: all that is left).
        normalize: None for the source's own default.
        image_size: Pixels, for ``folder``.
        seed: Of the shuffle before splitting.
    """

    source: str
    path: str | None = None
    calibrate: Count | None = None
    search: Count | None = None
    report: Count | None = None
    normalize: NormalizeConfig | None = None
    image_size: Count | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        return one_of(value, ("digits", "cifar10", "folder", "python"), "file.py:factory", "package.module:factory")


class LimitsConfig(Section):
    """Requirements in deployment units; the accuracy drop is in points against the fp32 baseline."""

    latency_ms: Positive | None = None
    size_mb: Positive | None = None
    energy_mj: Positive | None = None
    accuracy_drop_points: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class SearchConfig(Section):
    """How candidates are proposed, how many, and where the study is stored.

    Attributes:
        sampler: ``guided`` by sensitivities and an exact solver; the others let Optuna choose every layer by itself.
        patience: Evaluations without a gain after which the search ends; None to spend the whole budget.
        storage: URL of an Optuna storage; None for SQLite inside the run folder.
        timeout_s, memory_mb: For one stage of one evaluation.
        stop_minutes: Of the whole search; None for no limit.
    """

    sampler: Literal["gp", "guided", "nsga2", "random", "tpe"] = "guided"
    evaluations: Count = 50
    patience: Count | None = 20
    seed: Annotated[int, Field(ge=0)] = 0
    storage: str | None = None
    timeout_s: Positive = 120
    memory_mb: Count = 8192
    stop_minutes: Positive | None = None

    @field_validator("storage")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and "://" not in value:
            raise ValueError("expected a database URL such as sqlite:///study.db or postgresql://host/name")
        return value


class SpaceConfig(Section):
    """What may be chosen; None for the target's own value.

    Attributes:
        granularity: Channel counts are multiples of this.
        min_keep: Smallest fraction of a group's channels that is offered.
        keep_float, keep_width: Globs over layer names, e.g. ``layer3.*``.
        sparsity: Patterns of zero weights, ``2:4`` or shares such as .75; size then means that of packed files.
    """

    granularity: Count | None = None
    min_keep: Annotated[float, Field(gt=0, le=1)] | None = None
    prune: bool = True
    drop_branches: bool = True
    precisions: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    keep_float: tuple[str, ...] = ()
    keep_width: tuple[str, ...] = ()
    sparsity: tuple[str, ...] | None = None

    @field_validator("precisions")
    @classmethod
    def _known_precisions(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            one_of(name, tuple(PRECISIONS))
        return value

    @field_validator("sparsity", mode="before")
    @classmethod
    def _known_patterns(cls, value: Any) -> Any:
        return [pattern_name(name) for name in value] if isinstance(value, (list, tuple)) else value


class QuantizeConfig(Section):
    """How activation ranges are chosen from what calibration saw."""

    ranges: Literal["entropy", "minmax", "mse", "percentile"] = "minmax"


class MeasureConfig(Section):
    """Effort of one latency measurement: at most `rounds` and about `seconds`, at least `min_rounds`.

    Fewer `rounds` than the default of `min_rounds` lower that, too.
    """

    rounds: Count = 60
    min_rounds: Count = 24
    seconds: Positive = 2.0

    @model_validator(mode="before")
    @classmethod
    def _few_rounds(cls, data: Any) -> Any:
        if isinstance(data, dict) and "min_rounds" not in data and isinstance(data.get("rounds"), int):
            return {**data, "min_rounds": min(data["rounds"], cls.model_fields["min_rounds"].default)}
        return data

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_rounds > self.rounds:
            raise ValueError(f"min_rounds ({self.min_rounds}) is greater than rounds ({self.rounds})")
        return self


class SensitivityConfig(Section):
    """How much each single choice hurts: what the guided sampler knows before its first proposal.

    Attributes:
        method: ``measured``: each choice built on its own, repaired and compared with the original; ``fisher``:
            estimated from gradients in one pass; ``auto``: measured, unless that takes more than about ten minutes.
        images: Examples of the search split compared.
    """

    method: Literal["auto", "measured", "fisher"] = "auto"
    images: Annotated[int, Field(ge=2)] = 512


class StudyConfig(Section):
    """One study, fully resolved: every default filled in, every path absolute.

    Example:
        >>> from hwsearch.config import make_study
        >>> study = make_study({"model": "hwsearch.zoo.resnet:resnet20", "data": "digits", "target": "ort-cpu"})
        >>> isinstance(study, hs.StudyConfig), study.search.evaluations
        (True, 50)

    Attributes:
        model: ``package.module:factory``, ``path/file.py:factory`` or ``path/model.pt2``.
        metric: ``top1``, or a function ``(outputs, targets) -> float`` as ``file.py:name`` or ``package.module:name``.
        latency: ``measure`` every candidate, ask the ``table`` alone, or ``auto``: the table where it passed its check,
            measuring whatever may reach the front.
        tables: Folder of latency tables.
        objectives: ``accuracy`` and ``latency``, and perhaps ``size`` and ``energy``.
        targets: Names of built-in targets or paths of target files; a study file may also say ``target: name``.
        threads, batch: None for the target's own.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.\-]*$")] = "study"
    model: str
    model_args: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    data: DataConfig
    metric: str = "top1"
    direction: Literal["maximize", "minimize"] = "maximize"
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    threads: Count | None = None
    batch: Count | None = None
    objectives: tuple[Literal["accuracy", "latency", "size", "energy"], ...] = ("accuracy", "latency")
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    space: SpaceConfig = Field(default_factory=SpaceConfig)
    quantize: QuantizeConfig = Field(default_factory=QuantizeConfig)
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
    recover: RecoverConfig = Field(default_factory=RecoverConfig)
    reparam: ReparamConfig | None = None
    sensitivity: SensitivityConfig = Field(default_factory=SensitivityConfig)
    latency: Literal["auto", "measure", "table"] = "auto"
    tables: str = "latency_tables"

    _base_dir: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def wants_energy(self) -> bool:
        """Whether energy is an objective, or limited."""
        return "energy" in self.objectives or self.limits.energy_mj is not None

    @property
    def base_dir(self) -> Path:
        """Folder of the study file; not part of the resolved form."""
        return self._base_dir

    def model_post_init(self, context: Any, /) -> None:
        """Remember the folder the study came from."""
        if context:
            self._base_dir = context["base_dir"]

    @model_validator(mode="before")
    @classmethod
    def _accept_short_forms(cls, data: Any) -> Any:
        return _long_form(dict(data)) if isinstance(data, dict) else data

    @field_validator("model")
    @classmethod
    def _model_spec(cls, value: str) -> str:
        return (
            value
            if value.endswith(".pt2")
            else one_of(value, (), "package.module:factory", "path/file.py:factory", "path/model.pt2")
        )

    @field_validator("metric")
    @classmethod
    def _metric_spec(cls, value: str) -> str:
        return one_of(value, ("top1",), "file.py:function", "package.module:function")

    @field_validator("targets", "objectives")
    @classmethod
    def _no_repeats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each name may stand only once")
        return value

    @field_validator("objectives")
    @classmethod
    def _accuracy_and_latency_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value[:2] != ("accuracy", "latency"):
            raise ValueError("expected [accuracy, latency], and after them perhaps size or energy")
        return value


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study in `path`, with ``key=value`` overrides applied and everything resolved.

    Example:
        >>> study = hs.load_study(study_file, ["search.evaluations=5"])
        >>> study.search.evaluations, study.targets
        (5, ('ort-cpu',))

    Raises:
        ConfigError: the file or an override is wrong; names the place, what was found and what is allowed.
    """
    study = read_study_file(Path(path))
    if {"target", "targets"} <= study.data.keys():
        raise ConfigError(
            "both `target` and `targets` are set", where=study.place(("targets",)), hint="keep one of the two"
        )
    _long_form(study.data)
    study.override(overrides)
    return _checked(study, study.path.resolve().parent)


def make_study(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyConfig:
    """The study with these keys, as in a study file, and ``key=value`` overrides; paths are relative to this folder.

    Raises:
        ConfigError: as for `load_study`.
    """
    study = StudyFile(Path("arguments"), _long_form(dict(settings)))
    study.override(overrides)
    return _checked(study, Path.cwd())


def _checked(study: StudyFile, folder: Path) -> StudyConfig:
    _long_form(study.data)
    study.expand_variables()
    study.data.setdefault("name", re.sub(r"[^\w.\-]+", "-", folder.name).strip("-.") or "study")
    try:
        config = StudyConfig.model_validate(study.data, context={"base_dir": folder})
    except ValidationError as error:
        raise explain(error, study, StudyConfig) from None
    return _with_absolute_paths(config)


def resolved_yaml(config: StudyConfig) -> str:
    """The study as YAML with every default written out; loading it gives an equal study."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """JSON schema of a study file, for completion and checks in an editor."""
    schema = StudyConfig.model_json_schema()
    properties = schema["properties"]
    properties["data"] = {"anyOf": [{"type": "string"}, properties["data"]]}
    properties["target"] = {"type": "string", "title": "Target"}
    schema["required"] = ["model", "data"]
    schema["oneOf"] = [{"required": ["target"]}, {"required": ["targets"]}]
    return schema


def _long_form(data: dict[str, Any]) -> dict[str, Any]:
    """Write out ``target: a`` and ``data: digits``, and leave out keys without a value, in place."""
    for name in [name for name, value in data.items() if value is None]:
        del data[name]
    if "target" in data:
        data["targets"] = [data.pop("target")]
    if isinstance(data.get("data"), str):
        data["data"] = {"source": data["data"]}
    return data


# --------------------------------------------------------------------------- paths


def _with_absolute_paths(config: StudyConfig) -> StudyConfig:
    base = config.base_dir
    data = config.data.model_copy(
        update={
            "source": _absolute_spec(config.data.source, base),
            "path": None if config.data.path is None else _absolute(config.data.path, base),
        }
    )
    return config.model_copy(
        update={
            "model": _absolute_spec(config.model, base),
            "metric": _absolute_spec(config.metric, base),
            "weights": None if config.weights is None else _absolute(config.weights, base),
            "data": data,
            "targets": tuple(_absolute_target(target, base) for target in config.targets),
        }
    )


def _absolute(path: str, base: Path) -> str:
    return str((base / Path(path).expanduser()).resolve())


def _absolute_target(target: str, base: Path) -> str:
    return _absolute(target, base) if target.endswith((".yaml", ".yml")) else target


def _absolute_spec(spec: str, base: Path) -> str:
    """``file.py:name`` and ``model.pt2`` with their path absolute; module paths and plain names as they are."""
    file, colon, name = spec.rpartition(":")
    if file.endswith(".py"):
        return f"{_absolute(file, base)}{colon}{name}"
    return _absolute(spec, base) if spec.endswith(".pt2") else spec
