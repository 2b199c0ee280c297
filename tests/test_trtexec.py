"""TensorRT through its command-line tool, on this machine and over ssh, with programs that stand in for both."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from hwsearch.backends.base import RunOptions, get_backend
from hwsearch.backends.tensorrt_options import TensorRtOptions, read_options
from hwsearch.backends.trtexec_command import read_help, time_command
from hwsearch.cli.main import main
from hwsearch.errors import ConfigError, EvaluationError
from hwsearch.testing import BackendContract
from hwsearch.testing.contract import assign, build, examples
from hwsearch.testing.networks import layer_names, residual

HERE = Path(__file__).parent
SHELL = "#!/bin/sh\n"


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(SHELL + text)
    (folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with trtexec and nvidia-smi; and another, reached by ssh, that alone has them if asked for so."""
    tools, remote = tmp_path / "tools", tmp_path / "remote"
    tool = f'PYTHONPATH={HERE.parent} exec {sys.executable} {HERE / "trtexec_tool.py"} "$@"\n'
    program(tools, "trtexec", tool)
    program(tools, "nvidia-smi", 'echo "Jetson Stand-in, 580.65.06, 8.7"\n')
    options = 'while [ "$1" = -o ]; do shift 2; done\nhost=$1; shift\n'
    reach = '[ "$host" = jetson ] || { echo "no route" >&2; exit 255; }\n'
    program(
        remote, "ssh", f'{options}{reach}echo "$host" >> {tmp_path / "calls"}\nPATH={tools}:$PATH exec sh -c "$*"\n'
    )
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = "/usr/bin:/bin"

    def use(*, remotely: bool = False) -> str:
        monkeypatch.setenv("PATH", f"{remote}:{system}" if remotely else f"{tools}:{system}")
        return "trtexec@jetson" if remotely else "trtexec"

    use.log = tmp_path / "log"
    use.calls = tmp_path / "calls"
    return use


def commands(machine):
    return [json.loads(line) for line in machine.log.read_text().splitlines()]


@pytest.mark.slow
class TestTrtexecBackend(BackendContract):
    @pytest.fixture
    def backend(self, machine):
        return get_backend(machine())

    @pytest.fixture(params=["residual"])
    def model(self):
        """One network: every step starts a process."""
        return residual()

    @pytest.fixture(params=["int8"])
    def precision(self, model):
        return assign("int8", layer_names(model))

    @pytest.mark.skip(reason="the timing cache grows from build to build, as the real one does")
    def test_artifact_describes_its_files(self):
        """As for the backend tensorrt."""


@pytest.mark.parametrize("remotely", [False, True])
def test_build_run_time_and_inspect_here_and_over_ssh(machine, tmp_path, remotely):
    backend = get_backend(machine(remotely=remotely))
    device = backend.device(RunOptions())
    assert (device.chip, device.driver, device.backend_version) == ("Jetson Stand-in", "580.65.06", "10.16.2")
    assert device.isa == ("sm_87", "int8", "fp16", "tf32", "bf16")
    assert device.options["host"] == ("jetson" if remotely else "local")
    model = residual()
    precision = assign("fp32", layer_names(model))
    artifact = build(backend, model, precision, tmp_path / "artifact")
    session = backend.open(artifact, RunOptions())
    inputs = examples(model, 1)
    local = get_backend("onnxruntime")
    expected = local.open(build(local, model, precision, tmp_path / "local"), RunOptions()).run(inputs)
    np.testing.assert_allclose(session.run(inputs), expected, atol=1e-5)
    session.bind(inputs)
    assert [session.step() for _ in range(3)] == [250_000] * 3
    times = backend.inspect(artifact, precision, RunOptions())
    assert {time.ms for time in times} == {0.25}
    assert sorted(layer for time in times for layer in time.source_layers) == sorted(precision)
    assert machine.calls.exists() == remotely


def test_the_command_asks_for_everything_that_matters(machine, tmp_path):
    backend = get_backend(machine())
    model = residual()
    artifact = build(backend, model, assign("fp32", layer_names(model)), tmp_path / "a")
    session = backend.open(artifact, RunOptions())
    session.step()
    building, timing = commands(machine)
    assert {"--stronglyTyped", "--noTF32", "--skipInference", "--profilingVerbosity=detailed"} <= set(building)
    assert "--memPoolSize=workspace:4096" in building
    assert not any(word.startswith("--sparsity") for word in building)
    assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"} <= set(timing)


def test_what_version_11_does_by_itself_is_not_asked_of_it(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_VERSION", "11")
    backend = get_backend(machine())
    assert backend.availability().version == "11.4.0"
    model = residual()
    artifact = build(backend, model, assign("fp32", layer_names(model)), tmp_path / "a")
    assert backend.open(artifact, RunOptions()).step() == 250_000
    with pytest.raises(EvaluationError, match=r"trtexec 11.4.0 times CUDA graphs without transfers"):
        backend.open(artifact, RunOptions(options={"transfers": "on"})).step()


def test_transfers_are_timed_when_asked_for(machine, tmp_path):
    backend = get_backend(machine())
    model = residual()
    artifact = build(backend, model, assign("fp32", layer_names(model)), tmp_path / "a")
    assert backend.open(artifact, RunOptions(options={"transfers": "on"})).step() == 1_250_000
    assert "--noDataTransfers" not in commands(machine)[-1]


def test_the_timing_cache_is_kept_between_builds(machine, tmp_path):
    backend = get_backend(machine())
    model = residual()
    for name, expected in (("a", b"timed "), ("b", b"timed timed ")):
        build(backend, model, assign("fp32", layer_names(model)), tmp_path / name)
        assert (tmp_path / name / "timing.cache").read_bytes() == expected


def test_larger_batches_get_an_engine_of_their_own(machine, tmp_path):
    backend = get_backend(machine())
    model = residual()
    artifact = build(backend, model, assign("fp32", layer_names(model)), tmp_path / "a")
    inputs = examples(model, 5)
    together = backend.open(artifact, RunOptions(batch=5)).run(inputs)
    alone = backend.open(artifact, RunOptions()).run(inputs[3:4])
    np.testing.assert_allclose(together[3:4], alone, atol=1e-5)
    assert sum("--skipInference" in command for command in commands(machine)) == 2


def test_refusals_are_told_in_the_tools_words(machine, tmp_path):
    machine()
    from hwsearch.backends.trtexec_command import read_help
    from hwsearch.backends.trtexec_host import Host
    from hwsearch.backends.trtexec_session import build_there

    host = Host()
    tool = read_help(host.run(["trtexec", "--help"], stage="worker"))
    broken = onnx.helper.make_model(residual().graph, opset_imports=[onnx.helper.make_opsetid("", 8)])
    with pytest.raises(EvaluationError, match=r"trtexec on this machine: \[TRT\] .*operator set 9 to 25") as caught:
        build_there(host, tool, broken, RunOptions(), b"")
    assert caught.value.stage == "build"
    assert "FAILED" in caught.value.log


def test_a_host_that_cannot_be_reached_is_named(machine):
    machine(remotely=True)
    state = get_backend("trtexec@elsewhere").availability()
    assert "elsewhere cannot be reached by ssh: no route" in state.problem
    assert "ssh elsewhere" in state.install


def test_a_machine_without_the_tool_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    state = get_backend("trtexec").availability()
    assert state.problem == "trtexec is not on the PATH of this machine"
    assert "developer.nvidia.com/tensorrt" in state.install


def test_only_a_tool_of_10_or_11_is_taken():
    needed = "--onnx --saveEngine --loadEngine --skipInference --exportTimes --exportLayerInfo"
    assert read_help(f"[TensorRT v110201] {needed}").version == "11.2.1"
    assert read_help(f"[TensorRT v10.3.0.30] {needed}").version == "10.3.0.30"
    for text in (f"[TensorRT v8601] {needed}", "[TensorRT v100300] --onnx", "bash: trtexec: not found"):
        with pytest.raises(ValueError, match=r"too old|does not say"):
            read_help(text)


def test_a_graph_that_is_not_wanted_is_not_asked_for():
    tool = read_help(
        "[TensorRT v101602] --onnx --saveEngine --loadEngine --skipInference --exportTimes --exportLayerInfo "
        "--useCudaGraph"
    )
    settings = TensorRtOptions(cuda_graph=False)
    assert "--useCudaGraph" not in time_command(tool, settings, engine="e", times="t")


def test_only_backends_for_other_machines_take_a_host():
    with pytest.raises(ConfigError, match="`onnxruntime` works on this machine only"):
        get_backend("onnxruntime@jetson")


@pytest.mark.parametrize("options", [{"cuda_graphs": "on"}, {"transfers": "maybe"}, {"workspace_mb": "0"}])
def test_options_are_checked(options):
    with pytest.raises(ConfigError):
        read_options(options)
    assert read_options({"cuda_graph": "off", "workspace_mb": "64"}) == TensorRtOptions(
        cuda_graph=False, workspace_mb=64
    )


# --------------------------------------------------------------------------- what is missing, and how to get it


MISSING = (
    "the Python package tensorrt is not installed",
    "there is no NVIDIA driver",
    "pip install 'hwsearch[tensorrt]'",
)


def no_tensorrt_here():
    state = get_backend("tensorrt").availability()
    return state.version is None and "libcuda" in (state.problem or "")


@pytest.mark.skipif(not no_tensorrt_here(), reason="TensorRT or a GPU is here")
@pytest.mark.parametrize("verb", ["check", "search", "benchmark", "table"])
def test_commands_for_the_target_say_what_is_missing_and_exit_with_3(verb, tmp_path, capsys):
    study = tmp_path / "study.yaml"
    study.write_text("model: hwsearch.zoo.resnet:resnet20\ndata: digits\ntarget: tensorrt-gpu\n")
    path = tmp_path / "model.onnx"
    onnx.save(residual(), path)
    arguments = {
        "check": ["check", str(study)],
        "search": ["search", str(study), "--out", str(tmp_path / "runs")],
        "benchmark": ["benchmark", str(path), "--target", "tensorrt-gpu"],
        "table": ["table", "build", str(study), "--target", "tensorrt-gpu"],
    }[verb]
    assert main(arguments) == 3
    printed = " ".join(capsys.readouterr().err.split())
    for words in MISSING:
        assert words in printed


@pytest.mark.skipif(not no_tensorrt_here(), reason="TensorRT or a GPU is here")
def test_doctor_refuses_a_target_that_cannot_run_here(capsys):
    assert main(["doctor", "--seconds", "0", "--target", "tensorrt-gpu"]) == 3
    message = capsys.readouterr().err
    assert "`tensorrt-gpu` cannot run here" in message
    assert "pip install" in message


@pytest.mark.skipif(not no_tensorrt_here(), reason="TensorRT or a GPU is here")
def test_doctor_lists_what_is_missing(capsys):
    assert main(["doctor", "--json", "--seconds", "0"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["backends"]}
    told = f"{found['tensorrt']['problem']} {found['tensorrt']['install']}"
    for words in MISSING:
        assert words in told
    assert not found["trtexec"]["ok"]
