import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hwsearch.model.channels import axis_indices, take_channels
from hwsearch.types import ChannelAxis, PruneGroup


@st.composite
def layouts(draw):
    """An axis made of gaps and groups, and what to keep of each group."""
    parts, expected, offset = [], [], 0
    for _ in range(draw(st.integers(1, 3))):
        gap, channels, repeat = draw(st.integers(0, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
        keep = draw(st.lists(st.integers(0, channels - 1), unique=True))
        expected += range(offset, offset + gap)
        offset += gap
        expected += [offset + c * repeat + r for c in keep for r in range(repeat)]
        parts.append((ChannelAxis(module="m", side="in", offset=offset, repeat=repeat), channels, keep))
        offset += channels * repeat
    tail = draw(st.integers(0, 3))
    return offset + tail, draw(st.permutations(parts)), [*expected, *range(offset, offset + tail)]


@given(layouts())
def test_axis_indices(layout):
    size, parts, expected = layout
    assert axis_indices(size, parts).tolist() == expected


def test_take_channels_touches_only_the_axes_of_the_group():
    axes = (
        ChannelAxis(module="a", side="out"),
        ChannelAxis(module="n", side="out"),
        ChannelAxis(module="b", side="in"),
    )
    group = PruneGroup(name="a", channels=3, kind="inner", axes=axes)
    arrays = {
        "a.weight": np.arange(12).reshape(3, 4),
        "a.bias": np.arange(3),
        "a.inner.weight": np.arange(3),
        "n.running_mean": np.arange(3),
        "n.num_batches_tracked": np.array(7),
        "b.weight": np.arange(6).reshape(2, 3),
        "b.bias": np.arange(2),
    }
    taken = take_channels(arrays, [group], {"a": [2, 0]})
    assert taken["a.weight"].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert taken["a.bias"].tolist() == taken["n.running_mean"].tolist() == [2, 0]
    assert taken["b.weight"].tolist() == [[2, 0], [5, 3]]
    for name in ("a.inner.weight", "n.num_batches_tracked", "b.bias"):
        assert taken[name] is arrays[name]
    assert take_channels(arrays, [group], {}) == arrays
