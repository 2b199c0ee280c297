"""How long a search will take, told before it starts."""

import pytest
from tiny_search import QUICK, write_target

from hwsearch.config import make_study
from hwsearch.errors import SearchFailedError
from hwsearch.search.estimate import Estimate, estimate_study

NETWORK = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *head)
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(NETWORK)

    def make(backend="FakeBackend", **settings):
        write_target(tmp_path, backend)
        data = {"source": "digits", "calibrate": 16, "search": 32, "report": 64}
        given = {"model": "model.py:build", "data": data, "target": str(tmp_path / "fake.yaml"), "measure": QUICK}
        return make_study(given | settings)

    return make


def test_an_estimate_is_made_of_a_real_evaluation_and_leaves_nothing(study, tmp_path):
    before = set(tmp_path.rglob("*"))
    config = study(search={"evaluations": 7, "sampler": "tpe"})
    before |= {tmp_path / "fake.yaml"}
    (found,) = estimate_study(config)
    assert (found.target, found.evaluations) == ("fake", 7)
    assert found.evaluation_s > 0.05  # at least what the study measures for
    assert found.sensitivities_s == 0
    assert found.seconds > 7 * found.evaluation_s
    assert {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)} <= before


def test_a_guided_search_first_asks_what_each_choice_does(study):
    (found,) = estimate_study(study(sensitivity={"images": 8}))
    assert found.sensitivities_s > 0


def test_what_would_fail_is_found_out_at_once(study):
    with pytest.raises(SearchFailedError, match="the first evaluation failed"):
        estimate_study(study(backend="FailingBackend"))


def test_parts_add_up():
    found = Estimate(target="t", evaluations=10, evaluation_s=2.0, sensitivities_s=5.0, finalists_s=3.0)
    assert found.seconds == 28.0
