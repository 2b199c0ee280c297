import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.config import SpaceConfig
from hwsearch.errors import ConfigError
from hwsearch.space.space import baselines, build_space, decode, dimensions, encode, log10_size, uniform
from hwsearch.space.target import load_target, native_precisions, target_names
from hwsearch.types import Branch, ChannelAxis, LayerInfo, PruneGroup, SourceModel


def layer(name, op="conv"):
    return LayerInfo(
        name=name,
        op=op,
        in_shape=(16, 8, 8),
        out_shape=(16, 8, 8),
        params=1,
        macs=1,
        width_group=None,
        quant_group=name,
    )


SOURCE = SourceModel(
    name="m",
    sha256="0",
    input_shape=(3, 8, 8),
    output_shape=(10,),
    layers=(layer("stem"), layer("block.conv1"), layer("block.conv2"), layer("head", "linear")),
    groups=(
        PruneGroup(name="stem", channels=32, kind="stage", axes=(ChannelAxis(module="stem", side="out"),)),
        PruneGroup(
            name="block.conv1", channels=16, kind="inner", axes=(ChannelAxis(module="block.conv1", side="out"),)
        ),
    ),
    branches=(
        Branch(
            name="block", layers=("block.conv1", "block.conv2"), groups=("block.conv1",), add_node="a", branch_input=0
        ),
    ),
)
ISA = ("avx512_vnni", "avx512_bf16")


def space_on(target="openvino-cpu", isa=ISA, **options):
    return build_space(SOURCE, load_target(target), SpaceConfig(**options), isa)


SPACE = space_on()
NUMBERS = st.fixed_dictionaries({d.name: st.integers(0, d.size - 1) for d in dimensions(SPACE)})


@given(NUMBERS)
def test_decoding_is_the_inverse_of_encoding(numbers):
    candidate = decode(SPACE, SOURCE, numbers)
    encoded = encode(SPACE, candidate)
    assert encoded is not None
    assert decode(SPACE, SOURCE, encoded) == candidate


@given(NUMBERS, st.integers(0, 2), st.integers(0, 1))
def test_choices_inside_a_dropped_branch_do_not_matter(numbers, keep, precision):
    dropped = {**numbers, "drop:block": 0}
    other = {**dropped, "keep:block.conv1": min(keep, 1), "precision:block.conv2": precision}
    assert decode(SPACE, SOURCE, dropped).key == decode(SPACE, SOURCE, other).key


def test_everything_at_its_largest_is_the_original():
    assert decode(SPACE, SOURCE, {}) == uniform(SOURCE, "fp32")


def test_widths_are_multiples_of_the_granularity_down_to_the_smallest_fraction():
    assert SPACE.widths == {"stem": (8, 16, 24, 32), "block.conv1": (8, 16)}
    assert space_on(granularity=4, min_keep=0.5).widths["block.conv1"] == (8, 12, 16)


def test_size_counts_every_combination():
    assert log10_size(SPACE) == pytest.approx(sum(__import__("math").log10(d.size) for d in dimensions(SPACE)))


def test_bf16_is_offered_only_where_the_chip_computes_in_it():
    assert SPACE.float_precisions == ("bf16", "fp32")
    plain = space_on(isa=("avx512_vnni",))
    assert plain.float_precisions == ("fp32",)
    assert any("bf16" in note for note in plain.refused)
    assert native_precisions(load_target("ort-cpu"), "conv", ISA) == ("int8", "fp32")


def test_baselines_are_uniform_widest_first():
    assert list(baselines(SPACE)) == ["fp32", "bf16", "int8"]
    assert set(baselines(SPACE)["int8"].precision.values()) == {"int8"}
    kept = baselines(space_on(keep_float=["head"]))["int8"]
    assert kept.precision["head"] == "fp32"
    assert kept.precision["stem"] == "int8"


def test_fp32_stays_the_yardstick_when_only_int8_is_asked_for():
    space = space_on(precisions=["int8"])
    assert next(iter(baselines(space))) == "fp32"
    assert encode(space, uniform(SOURCE, "fp32")) is None
    assert decode(space, SOURCE, {}).precision["stem"] == "int8"


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match="matches no layer"):
        space_on(keep_float=["blok.*"])


def test_a_precision_the_device_only_widens_is_refused():
    with pytest.raises(ConfigError, match="gains nothing"):
        space_on("ort-cpu", precisions=["bf16", "int8"])


def test_candidates_outside_the_space_have_no_numbers():
    candidate = uniform(SOURCE, "int8")
    assert encode(SPACE, dataclasses.replace(candidate, keep={"stem": 13})) is None
    assert encode(SPACE, dataclasses.replace(candidate, dropped=("elsewhere",))) is None


def test_unknown_and_malformed_targets(tmp_path):
    assert "ort-cpu" in target_names()
    with pytest.raises(ConfigError, match="unknown target") as caught:
        load_target("ort-cup")
    assert caught.value.hint == "did you mean `ort-cpu`?"
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "backend: onnxruntime\nthreads: 1\nbatch: 1\nmixed_float: false\ngranularity: 8\nmin_keep: 0.5\n"
        "ops:\n  conv: {accepts: [fp32], accelerates: [int7]}\n"
    )
    with pytest.raises(ConfigError, match="unknown precision `int7`"):
        load_target(str(bad))
