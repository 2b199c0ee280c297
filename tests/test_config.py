"""Study files: what is accepted, what is filled in, and where each mistake is pointed out."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.config import StudyConfig, json_schema, load_study, make_study, resolved_yaml
from hwsearch.errors import ConfigError

BASE = "model: net.py:build\ndata: digits\ntarget: ort-cpu\n"


@pytest.fixture
def study(tmp_path):
    """Write a study file and return its path."""

    def write(text: str, name: str = "study.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refused(path: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_study(path, overrides)
    return caught.value


# --------------------------------------------------------------------------- what is accepted


def test_three_lines_are_a_study(study, tmp_path):
    config = load_study(study(BASE))
    assert config.name == tmp_path.name
    assert config.data.source == "digits"
    assert config.targets == ("ort-cpu",)
    assert (config.search.sampler, config.search.evaluations) == ("guided", 50)
    assert config.base_dir == tmp_path


def test_toml_says_the_same_as_yaml(study):
    as_yaml = load_study(study(BASE + "search: {evaluations: 7}\nlimits: {latency_ms: 0.5}\n"))
    as_toml = load_study(
        study(
            'model = "net.py:build"\ndata = "digits"\ntarget = "ort-cpu"\n'
            "[search]\nevaluations = 7\n[limits]\nlatency_ms = 0.5\n",
            "study.toml",
        )
    )
    assert as_toml == as_yaml


def test_a_folder_stands_for_its_study(study, tmp_path):
    study(BASE)
    assert load_study(tmp_path) == load_study(tmp_path / "study.yaml")


def test_a_section_without_keys_has_its_defaults(study):
    assert load_study(study(BASE + "search:\n  # sampler: gp\n")) == load_study(study(BASE))


def test_paths_are_relative_to_the_study_file(study, tmp_path):
    text = "model: sub/net.py:build\nweights: w.pt\ntarget: ort-cpu\nmetric: m.py:score\n"
    config = load_study(study(text + "data: {source: d.py:load, path: ../images}\n"))
    assert config.model == f"{tmp_path}/sub/net.py:build"
    assert config.weights == f"{tmp_path}/w.pt"
    assert config.metric == f"{tmp_path}/m.py:score"
    assert config.data.source == f"{tmp_path}/d.py:load"
    assert config.data.path == str(tmp_path.parent / "images")


def test_names_in_packages_are_not_paths(study):
    config = load_study(study(BASE.replace("net.py:build", "package.module:factory")))
    assert config.model == "package.module:factory"


def test_variables_are_expanded(study, monkeypatch):
    monkeypatch.setenv("MY_WEIGHTS", "/data")
    assert load_study(study(BASE + "weights: ${MY_WEIGHTS}/w.pt\n")).weights == "/data/w.pt"


def test_the_resolved_form_is_an_equal_study(study, tmp_path):
    config = load_study(study(BASE + "weights: w.pt\nspace: {keep_float: [conv1]}\nlimits: {size_mb: 1.5}\n"))
    resolved = tmp_path / "elsewhere" / "study.yaml"
    resolved.parent.mkdir()
    resolved.write_text(resolved_yaml(config))
    assert load_study(resolved).model_dump() == config.model_dump()


@given(
    evaluations=st.integers(1, 10_000),
    seed=st.integers(0, 2**31),
    latency=st.none() | st.floats(1e-6, 1e6),
    globs=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="$", exclude_categories=["Cc", "Cs"])), max_size=3
    ),
)
def test_any_study_survives_its_resolved_form(evaluations, seed, latency, globs):
    config = make_study(
        {
            "name": "any",
            "model": "a:b",
            "data": "digits",
            "target": "ort-cpu",
            "search": {"evaluations": evaluations, "seed": seed},
            "limits": {"latency_ms": latency},
            "space": {"keep_float": globs},
        }
    )
    assert make_study(yaml.safe_load(resolved_yaml(config))) == config


# --------------------------------------------------------------------------- overrides


def test_overrides_win_and_are_read_as_yaml(study):
    path = study(BASE.replace("target: ort-cpu", "targets: [ort-cpu, openvino-cpu]"))
    config = load_study(
        path,
        ["search.evaluations=7", "target=ort-cpu", "data.seed=3", "space.keep_float=[a, b]", "limits.latency_ms=null"],
    )
    assert config.search.evaluations == 7
    assert config.targets == ("ort-cpu",)
    assert (config.data.source, config.data.seed) == ("digits", 3)
    assert config.space.keep_float == ("a", "b")


def test_a_key_of_another_section_is_pointed_to(study):
    error = refused(study(BASE), "evaluations=5")
    assert error.hint == "did you mean `search.evaluations`?"
    assert refused(study(BASE + "patience: 3\n")).hint == "did you mean `search.patience`?"


def test_a_wrong_override_is_blamed_itself(study):
    error = refused(study(BASE + "search: {sampler: gp}\n"), "search.sampler=nsga3")
    assert error.where == "--set search.sampler=nsga3"
    assert error.hint == "did you mean `nsga2`?"


@pytest.mark.parametrize("text", ["evaluations", "=3", "search..seed=1", "search.seed=[", "model.x=1"])
def test_malformed_overrides_are_refused(study, text):
    assert f"--set {text}" in str(refused(study(BASE), text))


# --------------------------------------------------------------------------- mistakes, each at its line


@pytest.mark.parametrize(
    ("lines", "message", "where", "hint"),
    [
        ("samplr: 3", "unknown key `samplr`", "study.yaml:4  samplr = 3", None),
        (
            "search:\n  evaluation: 3",
            "unknown key `search.evaluation`",
            "study.yaml:5  search.evaluation = 3",
            "evaluations",
        ),
        ("search:\n  sampler: nsga3", "unknown sampler `nsga3`", "study.yaml:5  search.sampler = nsga3", "nsga2"),
        ("space: {precisions: [int8, int9]}", "unknown precisions `int9`", "study.yaml:4", "int8"),
        (
            "search: {evaluations: 0}",
            "`search.evaluations` should be greater",
            "study.yaml:4  search.evaluations = 0",
            None,
        ),
        ("limits: {latency_ms: -1}", "`limits.latency_ms` should be greater than 0", "study.yaml:4", None),
        ("limits: {latency_ms: .nan}", "`limits.latency_ms` should be a finite number", "study.yaml:4", None),
        ("threads: two", "`threads` should be a valid integer", "study.yaml:4  threads = two", None),
        ("objectives: [latency]", "`objectives`: expected [accuracy, latency]", "study.yaml:4", None),
        (
            "measure: {rounds: 4, min_rounds: 5}",
            "`measure`: min_rounds (5) is greater than rounds (4)",
            "study.yaml:4",
            None,
        ),
        ("search: {storage: study.db}", "`search.storage`: expected a database URL", "study.yaml:4", None),
        ("search: 3", "`search` should be a mapping", "study.yaml:4  search = 3", None),
        ("metric: f1", "unknown metric `f1`", "study.yaml:4  metric = f1", None),
        ("targets: [openvino-cpu]", "both `target` and `targets` are set", "study.yaml:4", "keep one"),
        ("model: other.py:net", "`model` is set twice", "study.yaml:4  first on line 1", "keep one"),
        (
            "space:\n  prune: true\n  prune: false",
            "`space.prune` is set twice",
            "study.yaml:6  first on line 5",
            "keep one",
        ),
        (
            "weights: ${HWSEARCH_NOT_SET}/w",
            "environment variable `HWSEARCH_NOT_SET` is not set",
            "study.yaml:4",
            "export",
        ),
    ],
)
def test_a_mistake_is_shown_at_its_line(study, lines, message, where, hint):
    error = refused(study(BASE + lines + "\n"))
    assert message in error.message
    assert where in error.where
    assert (hint or "") in (error.hint or "")
    assert "validation error" not in str(error)


def test_a_misspelt_key_is_the_cause_of_the_missing_one(study):
    error = refused(study(BASE.replace("model:", "modle:")))
    assert error.message == "unknown key `modle`"
    assert error.hint == "did you mean `model`?"
    assert "target, targets" in error.allowed


@pytest.mark.parametrize("name", ["model", "data", "target"])
def test_the_three_required_keys(study, name):
    error = refused(study("".join(line for line in BASE.splitlines(True) if not line.startswith(name))))
    assert error.message == f"`{name}` is missing"
    assert f"{name}: " in error.hint


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        ('[search]\nsampler = "tpee"', "study.toml:5  search.sampler = tpee"),
        ('search.sampler = "tpee"', "study.toml:4"),
    ],
)
def test_toml_mistakes_have_lines_too(study, lines, where):
    text = 'model = "a:b"\ndata = "digits"\ntarget = "ort-cpu"\n' + lines
    error = refused(study(text, "study.toml"))
    assert where in error.where
    assert error.hint == "did you mean `tpe`?"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("model: [", "study.yaml", "not valid YAML"),
        ("model: !!python/object/apply:os.getcwd []", "study.yaml", "not valid YAML"),
        ("a: &a [*a]", "study.yaml", "not valid YAML"),
        ("- model", "study.yaml", "does not hold a mapping"),
        ("model = ", "study.toml", "not valid TOML"),
        ("", "study.txt", "not a study file"),
    ],
)
def test_files_that_are_no_studies(study, text, name, message):
    assert message in refused(study(text, name)).message


def test_a_missing_file_says_how_to_get_one(tmp_path):
    assert "hwsearch init" in refused(tmp_path / "study.yaml").hint


# --------------------------------------------------------------------------- schema


def test_the_schema_knows_every_key_and_the_short_forms():
    schema = json_schema()
    assert set(schema["properties"]) == {*StudyConfig.model_fields, "target"}
    assert {"type": "string"} in schema["properties"]["data"]["anyOf"]
    assert schema["additionalProperties"] is False
    assert "base_dir" not in schema["properties"]
