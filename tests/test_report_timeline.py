"""The timeline of a stream shows what happened, and when."""

import pytest

from hwsearch.adapt.follow import Event
from hwsearch.report.timeline import timeline, write_timeline

EVENTS = [
    Event(window=0, score=0.01, drift=False, accuracy=0.9),
    Event(window=1, score=0.8, drift=True, accuracy=0.3),
    Event(window=2, score=0.7, drift=False, accuracy=0.2, update="rolled back", reason="the anchor fell", seconds=1.0),
    Event(window=3, score=0.9, drift=True, accuracy=0.4, update="accepted", reason="it helps", seconds=2.0),
    Event(window=4, score=0.02, drift=False, accuracy=0.8),
]


def traces():
    return {trace.name: trace for trace in timeline(EVENTS).data}


def test_every_window_has_its_divergence_and_accuracy():
    found = traces()
    assert found["divergence, nats"].y == (0.01, 0.8, 0.7, 0.9, 0.02)
    assert found["accuracy"].y == (0.9, 0.3, 0.2, 0.4, 0.8)
    assert found["mean of 5"].y[-1] == pytest.approx(0.52)
    assert found["mean of 5"].y[0] == 0.9


def test_detections_and_updates_are_marked_where_they_were():
    found = traces()
    assert found["drift noticed"].x == (1, 3)
    assert found["update accepted"].x == (3,)
    assert found["update undone"].text == ("the anchor fell",)
    assert [shape.x0 for shape in timeline(EVENTS).layout.shapes] == [1, 3, 3, 2]


def test_the_page_needs_nothing_else(tmp_path):
    write_timeline(EVENTS, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Following the scene" in text
    assert '<script src="http' not in text
