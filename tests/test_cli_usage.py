"""The command line before anything is searched: help, exit codes, error text and error JSON, import weight."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

import hwsearch
from hwsearch.cli.main import app
from hwsearch.cli.output import print_table, shell

VERBS = [
    "benchmark",
    "check",
    "compare",
    "compare_targets",
    "compress",
    "dashboard",
    "demo",
    "doctor",
    "export",
    "front",
    "init",
    "merge",
    "reparam",
    "report",
    "rerank",
    "search",
    "show",
    "targets",
    "verify",
    "zoo",
]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


# --------------------------------------------------------------------------- the package


def test_importing_the_package_is_light():
    heavy = "{'torch', 'optuna', 'plotly', 'onnx', 'onnxruntime', 'pandas'}"
    result = python("-c", f"import sys, hwsearch, hwsearch.cli.main; print(sorted({heavy} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stderr


def test_public_names_are_pinned_sorted_and_there():
    assert hwsearch.__all__ == [
        "Backend",
        "Front",
        "Goals",
        "HwSearchError",
        "Run",
        "SearchSpace",
        "Study",
        "StudyConfig",
        "Target",
        "adapt",
        "benchmark",
        "compress",
        "export",
        "figure",
        "load_model",
        "load_study",
        "reparam",
        "report",
        "search",
        "to_frames",
        "verify",
    ]
    assert all(callable(getattr(hwsearch, name)) for name in hwsearch.__all__ if name not in ("adapt", "reparam"))
    assert callable(hwsearch.reparam.expand)
    assert callable(hwsearch.adapt.insert)


def test_public_functions_win_over_packages_of_the_same_name():
    code = (
        "import hwsearch, hwsearch.search.run, hwsearch.report.html, hwsearch.export.bundle, hwsearch.compress.prune\n"
        "print(*(type(f).__name__ for f in (hwsearch.search, hwsearch.report, hwsearch.export, hwsearch.compress)))"
    )
    assert python("-c", code).stdout.split() == ["function"] * 4


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = hwsearch.serach


# --------------------------------------------------------------------------- usage


def test_the_verbs_are_pinned():
    assert sorted(command.callback.__name__ for command in app.registered_commands) == VERBS


def test_every_verb_has_one_line_in_the_help(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--help")[1].splitlines()
    for command in app.registered_commands:
        (line,) = (line for line in lines if f" {command.callback.__name__.replace('_', '-')} " in line[:22])
        assert command.short_help in line


def test_a_shell_completes_verbs_and_options(tmp_path):
    script = tmp_path / "hwsearch"
    script.write_text("import sys\nfrom hwsearch.cli.main import main\nsys.exit(main())\n")

    def complete(words: str) -> list[str]:
        asked = {"_HWSEARCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        return python(str(script), **asked).stdout.split()

    assert complete("hwsearch dash") == ["dashboard"]
    assert "--max-latency-ms" in complete("hwsearch export --max")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_shared_flags(run, verb):
    code, out, _ = run(verb.replace("_", "-"), "--help")
    assert code == 0
    assert all(flag in out for flag in ("--json", "--quiet", "--debug"))


def test_without_a_verb_help_is_shown(run):
    code, out, _ = run()
    assert code == 0
    assert "Exit codes" in out


def test_the_version(run):
    assert run("--version") == (0, f"hwsearch {hwsearch.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [("serach",), ("front",), ("search", "study.yaml", "--nope"), ("search", "study.yaml", "--extend", "0")],
)
def test_wrong_usage_exits_with_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "--help" in err


def test_wrong_usage_is_json_where_json_was_asked_for(run):
    code, out, err = run("front", "--json")
    document = json.loads(out)
    assert (code, err) == (2, "")
    assert (document["schema_version"], document["exit_code"], document["error"]) == (1, 2, "ConfigError")


# --------------------------------------------------------------------------- errors


@pytest.fixture
def misspelt(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("model: a:b\ndata: digits\ntarget: ort-cpu\nsearch:\n  sampler: nsga3\n")
    return path


def test_an_error_says_what_where_allowed_and_what_to_do(run, misspelt):
    code, out, err = run("search", misspelt)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: unknown sampler `nsga3`",
        f"  {misspelt}:5  search.sampler = nsga3",
        "  allowed: gp, guided, nsga2, random, tpe",
        "",
        "hint: did you mean `nsga2`?",
    ]


def test_the_same_error_as_json(run, misspelt):
    code, out, err = run("search", misspelt, "--json")
    assert (code, err) == (2, "")
    assert json.loads(out) == {
        "schema_version": 1,
        "error": "ConfigError",
        "message": "unknown sampler `nsga3`",
        "where": f"{misspelt}:5  search.sampler = nsga3",
        "allowed": "gp, guided, nsga2, random, tpe",
        "hint": "did you mean `nsga2`?",
        "exit_code": 2,
    }


def test_a_traceback_only_with_debug(run, misspelt):
    assert "Traceback" not in run("search", misspelt)[2]
    assert "Traceback" in run("search", misspelt, "--debug")[2]


@pytest.mark.parametrize("verb", ["front", "report"])
def test_a_folder_that_is_no_run(run, tmp_path, verb):
    code, _, err = run(verb, tmp_path)
    assert code == 2
    assert "is not a run folder" in err


@pytest.mark.parametrize("verb", ["front", "report", "dashboard"])
def test_a_study_or_a_misspelt_run_is_answered_with_the_run(run, tmp_path, monkeypatch, verb):
    pytest.importorskip("dash")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    run_json = tmp_path / "runs" / "mine" / "ort-cpu" / "run.json"
    run_json.parent.mkdir(parents=True)
    run_json.touch()
    assert "did you mean `runs/mine`?" in run(verb, "mine")[2]
    assert "did you mean `runs/mine`?" in run(verb, "runs/mime")[2]
    assert "it holds runs/mine" in run(verb, "runs")[2]


def test_a_folder_that_is_no_bundle(run, tmp_path):
    assert run("verify", tmp_path)[0] == 2


def test_export_wants_exactly_one_way_to_choose(run, tmp_path):
    assert run("export", tmp_path, "--out", tmp_path / "out")[0] == 2


def test_a_target_whose_runtime_is_missing_exits_with_3(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    study = tmp_path / "study.yaml"
    study.write_text("model: hwsearch.zoo.resnet:resnet20\ndata: digits\ntarget: ort-cpu\n")
    code, _, err = run("search", study, "--out", tmp_path / "runs")
    assert code == 3
    assert "pip install" in err
    assert not (tmp_path / "runs").exists()


def test_as_a_process_in_colour_and_without(misspelt):
    coloured = python("-m", "hwsearch", "check", str(misspelt), FORCE_COLOR="1")
    plain = python("-m", "hwsearch", "check", str(misspelt), FORCE_COLOR="1", NO_COLOR="1")
    assert (coloured.returncode, plain.returncode) == (2, 2)
    assert "\x1b[1;31merror: " in coloured.stderr
    assert "\x1b[1;31m" not in plain.stderr


# --------------------------------------------------------------------------- init and doctor


def test_init_writes_a_study_that_loads_and_never_overwrites(run, tmp_path):
    code, out, err = run("init", tmp_path)
    assert code == 0
    assert out.split() == [str(tmp_path / "model.py"), str(tmp_path / "study.yaml")]
    assert f"next: hwsearch check {tmp_path / 'study.yaml'}" in err
    (tmp_path / "study.yaml").write_text("mine")
    code, _, err = run("init", tmp_path)
    assert code == 2
    assert "exists" in err
    assert (tmp_path / "study.yaml").read_text() == "mine"


def test_what_the_starting_study_shows_in_comments_is_right(run, tmp_path, monkeypatch):
    """Every key shown in a comment exists, and its value is the default."""
    run("init", tmp_path)
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    path = tmp_path / "study.yaml"
    text = path.read_text()
    plain = hwsearch.load_study(path).model_dump()
    header, body = text.split("\n\n", 1)
    shown = re.sub(r"^# ?", "", body, flags=re.MULTILINE).replace("data: digits ", "# ")
    path.write_text(f"{header}\n\n{shown}")
    full = hwsearch.load_study(path).model_dump()
    assert full.pop("weights") == str(tmp_path / "weights.pt")
    assert full.pop("data")["source"] == "folder"
    assert full["space"].pop("keep_float") == plain["space"].pop("keep_float")
    assert full == {name: value for name, value in plain.items() if name not in {"weights", "data"}}


def test_init_prints_the_schema(run):
    code, out, _ = run("init", "--schema")
    assert code == 0
    assert "sampler" in json.dumps(json.loads(out)["$defs"]["SearchConfig"])


def test_quiet_says_nothing_beside_the_data(run, tmp_path):
    assert run("init", tmp_path, "--quiet")[2] == ""


def test_doctor_tells_every_backend_and_the_device(run):
    code, out, _ = run("doctor", "--json", "--seconds", "0")
    document = json.loads(out)
    backends = {backend["name"]: backend for backend in document["backends"]}
    assert code == 0
    assert backends.keys() >= {"onnxruntime", "openvino"}
    assert backends["onnxruntime"]["device"]["chip"] == document["machine"]["chip"]
    assert document["versions"]["hwsearch"] == hwsearch.__version__
    assert document["noise"] is None


def test_doctor_says_how_to_install_what_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, out, _ = run("doctor", "--json", "--seconds", "0")
    openvino = next(b for b in json.loads(out)["backends"] if b["name"] == "openvino")
    assert code == 0
    assert not openvino["ok"]
    assert "pip install" in openvino["install"]


def test_the_noise_probe_ends_in_a_verdict(run):
    _, out, _ = run("doctor", "--json", "--seconds", "0.1")
    assert json.loads(out)["noise"]["verdict"] in {"quiet", "usable", "noisy"}


# --------------------------------------------------------------------------- printing


def test_tables_are_aligned_and_never_cut(capsys):
    print_table(["name", "ms"], [["a" * 200, "1.5"], ["b", "10.25"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{'name':200}     ms", f"{'a' * 200}    1.5", f"{'b':200}  10.25"]


def test_commands_are_shown_as_one_types_them():
    assert shell("hwsearch", "show", "my runs/a", "KEY") == "hwsearch show 'my runs/a' KEY"
