"""Keeping the best weights, time budgets, and going on after a kill."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from training_support import stripes, tiny

from hwsearch.errors import ModelError, TrainingStoppedError
from hwsearch.model import train as training
from hwsearch.model.train import random_shift, train


def ticking(seconds):
    """A clock that moves on by `seconds` each time it is read."""
    counter = itertools.count()
    return lambda: next(counter) * seconds


def weights(module):
    return [value.clone() for value in module.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_best_weights_are_kept():
    module, scores, seen = tiny(), iter([0.1, 0.5, 0.9, 0.3]), []

    def judge():
        assert not module.training
        seen.append(weights(module))
        return next(scores)

    history = train(module, *stripes(), epochs=3, batch=16, judge=judge)
    assert history.best == 0.9
    assert same(weights(module), seen[2])
    assert not same(seen[2], seen[3])


def test_the_start_is_kept_if_nothing_beats_it():
    module = tiny()
    before, scores = weights(module), iter([0.9, 0.5, 0.9])
    history = train(module, *stripes(), epochs=2, judge=lambda: next(scores))
    assert history.best == 0.9
    assert same(weights(module), before)


def test_a_time_limit_ends_an_epoch_early():
    steps = []
    history = train(tiny(), *stripes(), minutes=1, batch=4, clock=ticking(1.0), stop=lambda: bool(steps.append(1)))
    assert len(steps) < 60  # the clock is read once or more per step, and stops the 24-step epochs after 60 readings
    assert len(steps) % 24 != 0
    assert history.seconds < 70


@pytest.mark.parametrize("stop_after", [1, 7, 12, 17])
def test_a_resumed_run_equals_an_uninterrupted_one(stop_after, tmp_path):
    """Wherever it stops: in an epoch, at its end, or before the first step of the next."""
    settings = {"epochs": 3, "batch": 16, "augment": random_shift(1, flip=True), "seed": 3}
    whole, resumed, scores = tiny(), tiny(), {}

    def score(module):
        return lambda: float(module[0].weight.detach().abs().sum())

    scores["whole"] = train(whole, *stripes(), judge=score(whole), **settings)
    steps = itertools.count(1)
    path = tmp_path / "state"
    stop = {"stop": lambda: next(steps) == stop_after}
    with pytest.raises(TrainingStoppedError):
        train(resumed, *stripes(), judge=score(resumed), checkpoint=path, **stop, **settings)
    fresh = tiny()
    scores["resumed"] = train(fresh, *stripes(), judge=score(fresh), checkpoint=path, **settings)
    assert same(weights(fresh), weights(whole))
    assert scores["resumed"].losses == scores["whole"].losses


def test_a_finished_run_is_not_repeated(tmp_path):
    one, again = tiny(), tiny()
    first = train(one, *stripes(), epochs=2, checkpoint=tmp_path / "state")
    second = train(again, *stripes(), epochs=2, checkpoint=tmp_path / "state", stop=lambda: True)
    assert same(weights(one), weights(again))
    assert second.losses == first.losses
    assert second.seconds > 0


def test_seconds_of_an_interrupted_process_count(tmp_path):
    clock, steps = ticking(1.0), itertools.count(1)
    with pytest.raises(TrainingStoppedError):
        train(tiny(), *stripes(), minutes=1, checkpoint=tmp_path / "s", clock=clock, stop=lambda: next(steps) == 10)
    used, steps = clock(), []
    train(tiny(), *stripes(), minutes=1, checkpoint=tmp_path / "s", clock=clock, stop=lambda: bool(steps.append(1)))
    assert clock() < 80
    assert used > 10
    assert steps


def test_killed_in_the_middle(tmp_path):
    """A process that dies by SIGKILL leaves a whole file or none, and the next one goes on from it."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from training_support import stripes, tiny
        from hwsearch.model import train as training
        from hwsearch.model.train import train
        training.SAVE_EVERY_S = 0.0
        seen = []
        def stop():
            seen.append(1)
            if len(seen) == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            return False
        train(tiny(), *stripes(), epochs=3, batch=16, checkpoint=Path(sys.argv[2]), stop=stop)
        """)
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    done = subprocess.run([sys.executable, script, here, tmp_path / "state"], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    whole, resumed, steps = tiny(), tiny(), []
    train(whole, *stripes(), epochs=3, batch=16)
    train(resumed, *stripes(), epochs=3, batch=16, checkpoint=tmp_path / "state", stop=lambda: bool(steps.append(1)))
    assert len(steps) == 18 - 7
    assert same(weights(resumed), weights(whole))


def test_divergence_is_noticed_at_once():
    steps = []
    with pytest.raises(ModelError, match="diverged in epoch 1"):
        train(tiny(), *stripes(), epochs=50, batch=8, lr=1e30, weight_decay=1.0, stop=lambda: bool(steps.append(1)))
    assert len(steps) < 12


def test_checkpoints_hold_data_only(tmp_path):
    """Nothing in them runs code when they are read."""
    train(tiny(), *stripes(), epochs=1, checkpoint=tmp_path / "state", judge=lambda: 1.0)
    values = torch.load(tmp_path / "state", weights_only=True)
    assert values["kept"].keys() == tiny().state_dict().keys()
    assert training.SAVE_EVERY_S > 0
