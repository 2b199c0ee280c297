"""Target profiles: what may stand in a file, what a roofline computes, and what a study takes over from them."""

import dataclasses
import json

import numpy as np
import pytest
from torch import nn

from hwsearch.cli.main import main
from hwsearch.config import SpaceConfig, make_study
from hwsearch.errors import ConfigError
from hwsearch.latency.kernels import CALL, Kind
from hwsearch.latency.roofline import roofline_table, roofline_us
from hwsearch.model.graph import trace
from hwsearch.search.prepare import for_target, ready_target
from hwsearch.space.space import baselines, build_space
from hwsearch.space.target import load_target, target_names
from hwsearch.types import ActivationRanges, Limits, Roofline

PROFILE = """\
backend: table
ops:
  conv: {accepts: [fp32, int8], accelerates: [int8]}
  linear: {accepts: [fp32, int8], accelerates: [int8]}
granularity: 8
min_keep: 0.25
sparsity: {metric: macs, goal: 0.3}
limits: {latency_ms: 2}
roofline:
  origin: by arithmetic
  macs_per_us: {fp32: 1000, int8: 4000}
  bytes_per_us: 8000
  layer_us: 2
  call_us: 20
  channels_at_once: 4
"""


@pytest.fixture(scope="module")
def network():
    """Two convolutions and a head."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), *head)
    return trace(module.eval(), np.zeros((2, 3, 8, 8), np.float32), name="small")


@pytest.fixture
def written(tmp_path):
    def write(found="", replacement=""):
        assert found in PROFILE
        path = tmp_path / "mine.yaml"
        path.write_text(PROFILE.replace(found, replacement) if found else PROFILE)
        return str(path)

    return write


def test_built_in_targets():
    assert {"ort-cpu", "openvino-cpu", "ort-cpu-edge", "tensorrt-gpu", "arm-neon", "npu-4bit"} <= set(target_names())
    goals = {name: target.sparsity for name in target_names() if (target := load_target(name)).sparsity}
    assert {name: (goal.metric, goal.goal) for name, goal in goals.items()} == {
        "ort-cpu-edge": ("macs", 0.3),
        "tensorrt-gpu": ("macs", 0.6),
    }
    for name in target_names():
        target = load_target(name)
        assert (target.backend == "table") == (target.roofline is not None)
        assert target.roofline is None or "nothing measured" in target.roofline.origin


@pytest.mark.parametrize(
    ("found", "replacement", "message", "place", "allowed"),
    [
        ("conv:", "convv:", "unknown key `ops.convv`", "mine.yaml:3", "conv, depthwise, linear"),
        ("latency_ms: 2", "latency_ms: -2", "should be greater than 0", "mine.yaml:8", None),
        ("latency_ms: 2", "energy: 2", "unknown key `limits.energy`", "mine.yaml:8", "latency_ms"),
        ("accelerates: [int8]}\n  lin", "accelerates: [int4]}\n  lin", "without being accepted", ":3", "fp32, int8"),
        ("[fp32, int8], accelerates: [int8]}\ngr", "[int8], accelerates: [int8]}\ngr", "yardstick", ":4", "fp32, tf32"),
        ("metric: macs", "metric: flops", "unknown metric `flops`", "mine.yaml:7", "channels, params, macs"),
        ("goal: 0.3", "goal: 30", "should be less than 1", "mine.yaml:7", None),
        ("int8: 4000", "int4: 4000", "macs_per_us lacks int8", "mine.yaml:9", None),
        ("backend: table", "backend: openvino", "has `backend: table`", "mine.yaml:9", None),
        ("roofline:", "table: .\nroofline:", "a table is given already", "mine.yaml:10", None),
        ("granularity: 8", "granularity: 8\nneeds_isa: {bf16: [amx_bf16]}", "accepts `bf16`", ":6", "fp32, int8"),
        ("granularity: 8\n", "granularity: 8\ngranularity: 8\n", "set twice", "mine.yaml:6", None),
        ("granularity: 8\n", "", "`granularity` is missing", "mine.yaml", None),
        ("latency_ms: 2", "energy_mj: -1", "should be greater than 0", "mine.yaml:8", None),
        ("{metric: macs, goal: 0.3}", "0.3", "`sparsity` should be a mapping", "mine.yaml:7", "metric, goal"),
        (
            "[fp32, int8], accelerates: [int8]}\n  lin",
            "fp32, accelerates: []}\n  lin",
            "be a list",
            "mine.yaml:3",
            None,
        ),
        ("[fp32, int8], accelerates: [int8]}\n  lin", "[], accelerates: []}\n  lin", "is empty", "mine.yaml:3", None),
        ("call_us: 20", "call_us: 20\n  pj_per_mac: {fp32: 1}", "pj_per_mac lacks int8", "mine.yaml:9", None),
    ],
)
def test_a_wrong_profile_is_refused_at_its_line(written, found, replacement, message, place, allowed):
    with pytest.raises(ConfigError) as caught:
        load_target(written(found, replacement))
    assert message in caught.value.message
    assert place in caught.value.where
    assert allowed is None or allowed in caught.value.allowed


def test_a_profile_without_layers_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("backend: onnxruntime\nops: {}\ngranularity: 8\nmin_keep: 0.25\n")
    with pytest.raises(ConfigError, match="no kind of layer is given: expected conv, depthwise, linear"):
        load_target(str(path))


def test_a_roofline_is_the_longer_of_computing_and_moving():
    roof = Roofline(
        origin="", macs_per_us={"int8": 100.0, "fp32": 1.0}, bytes_per_us=10.0, layer_us=2.0, call_us=20.0,
        channels_at_once=4,
    )  # fmt: skip
    assert roofline_us(roof, CALL, (1, 1)) == 20.0
    conv = Kind("conv", "3x3/2", "8x8", "int8")  # 16 outputs of 9 taps; 6 channels are computed as 8
    assert roofline_us(roof, conv, (4, 6)) == pytest.approx(2 + max(16 * 9 * 4 * 8 / 100, (64 * 4 + 16 * 6 + 216) / 10))
    slow = dataclasses.replace(roof, macs_per_us={"int8": 1.0})
    assert roofline_us(slow, conv, (4, 6)) == pytest.approx(2 + 16 * 9 * 4 * 8)
    assert roofline_us(slow, Kind("depthwise", "3x3", "8x8", "int8"), (6, 6)) == pytest.approx(2 + 64 * 9 * 8)
    assert roofline_us(roof, Kind("Add", "", "8x8", "fp32"), (4, 4)) == pytest.approx(2 + 64 * 8 * 4 / 10)
    assert roofline_us(roof, Kind("quantize", "", "8x8", "fp32"), (4, 4)) == pytest.approx(64 * 8 * 4 / 10)


def test_a_computed_table_is_labelled_answers_everything_and_follows_its_roofline(network, written, tmp_path):
    target = load_target(written())
    space = build_space(network.source, target, SpaceConfig(granularity=4), isa=())
    table = roofline_table(network, space, target, tmp_path / "table")
    assert table.manifest.source == "modelled"
    assert table.manifest.origin.startswith("by arithmetic")
    predict = table.predictor(network.source, target, network.template)
    latencies = {name: predict(candidate)[0] for name, candidate in baselines(space).items()}
    assert latencies["int8"] < latencies["fp32"]
    assert roofline_table(network, space, target, tmp_path / "table").manifest.created == table.manifest.created
    slower = dataclasses.replace(target, roofline=dataclasses.replace(target.roofline, call_us=500.0))
    again = roofline_table(network, space, slower, tmp_path / "table")
    added = again.predictor(network.source, slower, network.template)(baselines(space)["int8"])[0] - latencies["int8"]
    assert added == pytest.approx(0.48)


def test_a_measured_table_is_not_replaced(network, written, tmp_path):
    target = load_target(written())
    space = build_space(network.source, target, SpaceConfig(granularity=4), isa=())
    folder = tmp_path / "table"
    roofline_table(network, space, target, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"source": "measured", "origin": "a lab"}))
    with pytest.raises(ConfigError, match="measured table"):
        roofline_table(network, space, target, folder)


def test_a_study_takes_over_what_it_leaves_open():
    target = dataclasses.replace(
        load_target("ort-cpu"),
        limits=Limits(latency_ms=2.0, size_mb=1.0),
        ranges=ActivationRanges(method="entropy", images=64),
    )
    plain = {"model": "a:b", "data": "digits", "target": "ort-cpu"}
    study = for_target(make_study({**plain, "limits": {"latency_ms": 1.0}}), target)
    assert (study.limits.latency_ms, study.limits.size_mb, study.quantize.ranges) == (1.0, 1.0, "entropy")
    asked = for_target(make_study({**plain, "quantize": {"ranges": "minmax"}}), target)
    assert asked.quantize.ranges == "minmax"


def test_threads_and_batch_are_the_targets_unless_the_study_says_so(written):
    own = written("backend: table\n", "backend: table\nthreads: 2\nbatch: 4\n")
    plain = {"model": "a:b", "data": "digits", "target": own}
    assert (ready_target(own, make_study(plain)).threads, ready_target(own, make_study(plain)).batch) == (2, 4)
    assert ready_target(own, make_study({**plain, "threads": 1})).threads == 1


def test_a_target_without_table_or_roofline_says_what_to_import(written):
    bare = written(PROFILE[PROFILE.index("roofline:") :], "")
    with pytest.raises(ConfigError, match="names none") as caught:
        ready_target(bare, make_study({"model": "a:b", "data": "digits", "target": bare}))
    assert "hwsearch table import" in caught.value.hint


def test_the_targets_are_listed_with_what_runs_here(written, capsys):
    assert main(["targets", "--json", "ort-cpu-edge", written()]) == 0
    edge, mine = json.loads(capsys.readouterr().out)["targets"]
    assert edge["here"]
    assert edge["native"]["conv"] == ["int8", "fp32"]
    assert (edge["latency"], mine["latency"]) == ("measured", "modelled (roofline)")
    assert main(["targets"]) == 0
    assert "30% macs" in capsys.readouterr().out
    assert main(["targets", written("conv:", "konv:")]) == 2
