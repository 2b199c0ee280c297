import copy
import dataclasses

import numpy as np
import pytest
import torch
from test_zero_patterns import Grouped, images
from tiny_search import DATA, QUICK, TinyNet, examples, write_target

from hwsearch.compress import once_for_all as training
from hwsearch.compress.once_for_all import Cut, Sandwich, Schooling, Shared, drawn, once_for_all, sandwich_loss
from hwsearch.compress.prune import pruned
from hwsearch.compress.reconstruct import Reconstructor
from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.config_recover import OnceForAllConfig, RecoverConfig
from hwsearch.errors import DataError, TrainingStoppedError
from hwsearch.model.data import DataSplit
from hwsearch.model.graph import trace
from hwsearch.model.train import train
from hwsearch.search.api import search
from hwsearch.store import read_json
from hwsearch.types import Candidate
from hwsearch.zoo.resnet import ResNet

WANTED = OnceForAllConfig(minutes=1.0, lr=0.02)


@pytest.fixture(scope="module", params=["residual", "grouped"])
def network(request):
    torch.manual_seed(0)
    module = (ResNet(1, 10, width=0.5) if request.param == "residual" else Grouped()).eval()
    reestimate_batch_norm(module, images(32))
    return trace(module, images(1), name=request.param)


def every_cut(network):
    halves = {group.name: group.channels // 2 for group in network.source.groups}
    first = tuple(branch.name for branch in network.source.branches[:1])
    return Cut(halves), Cut({}, first), Cut(halves, first)


def test_masks_compute_what_the_smaller_network_does(network):
    reconstructor = Reconstructor(network, images(32))
    shared, x = Shared(network, reconstructor), torch.from_numpy(images(4, 1))
    with torch.no_grad():
        whole = network.module(x)
        for cut in every_cut(network):
            candidate = Candidate(keep=dict(cut.keep), dropped=cut.dropped, precision={})
            kept = reconstructor.select(candidate.keep)
            smaller = pruned(network.module, network.source, candidate, kept, network.template.folded)
            torch.testing.assert_close(shared.cut(x, cut), smaller(x))
            assert not torch.allclose(shared.cut(x, cut), whole, atol=1e-3)
        assert torch.equal(network.module(x), whole)  # no mask is left behind


def test_every_step_holds_the_whole_network_and_the_narrowest(network):
    torch.manual_seed(0)
    groups = {group.name: group.channels for group in network.source.groups}
    seen = [drawn(network.source, WANTED) for _ in range(50)]
    for largest, smallest, *random in seen:
        assert largest == Cut({})
        assert smallest.keep == {name: channels // 2 for name, channels in groups.items()}
        assert len(random) == 2
        for cut in random:
            assert all(groups[name] / 2 <= left < groups[name] for name, left in cut.keep.items())
    assert any(cut.dropped for *_, cut in seen)
    assert not any(cut.dropped for *_, cut in [drawn(network.source, still(drop_branches=False)) for _ in range(50)])


def still(**changes):
    return WANTED.model_copy(update=changes)


def data_split(count=96):
    labels = np.arange(count) % 5
    inputs = images(count, 4) + labels[:, None, None, None].astype(np.float32)
    return DataSplit(name="train", inputs=inputs, targets=labels, sha256="0")


def schooling(**changes):
    config = RecoverConfig(once_for_all=still(**changes), batch=16, seed=1)
    return Schooling(
        config=config,
        examples=data_split(),
        calibration=images(32),
        probabilities=True,
        score=lambda module: float(module(torch.from_numpy(images(2))).detach().sum()),
    )


def ticking(step):
    """A clock on which every question takes `step` seconds."""
    now = iter(np.arange(0.0, 1e6, step).tolist())
    return lambda: next(now)


def test_it_is_trained_once_and_then_read(network, tmp_path):
    epochs = []
    first = once_for_all(
        network, schooling(), tmp_path, on_epoch=lambda epoch, _: epochs.append(epoch), clock=ticking(1.0)
    )
    assert epochs
    assert not torch.equal(next(first.parameters()), next(network.module.parameters()))
    again = once_for_all(network, schooling(), tmp_path, on_epoch=lambda *_: pytest.fail("trained twice"))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert [parameter.requires_grad for parameter in first.parameters()] == [
        parameter.requires_grad for parameter in network.module.parameters()
    ]
    (facts,) = tmp_path.glob("*.json")
    assert read_json(facts)["whole_network"]["before"] != read_json(facts)["whole_network"]["after"]
    assert len(list(tmp_path.iterdir())) == 2
    assert len(list(tmp_path.glob("*.pt"))) == 1
    once_for_all(network, schooling(lr=0.03), tmp_path, clock=ticking(1.0))
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(network, tmp_path, monkeypatch):
    # Counted in steps, so that both runs take the same ones.
    monkeypatch.setattr(training, "train", lambda *given, minutes, clock, **more: train(*given, epochs=3, **more))
    whole = once_for_all(network, schooling(), tmp_path / "whole")
    asked = iter([False] * 8 + [True])
    with pytest.raises(TrainingStoppedError):
        once_for_all(network, schooling(), tmp_path / "cut", stop=lambda: next(asked))
    assert len(list((tmp_path / "cut").glob("*.part"))) == 1
    resumed = once_for_all(network, schooling(), tmp_path / "cut")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_all_candidates_come_nearer_to_the_original(network):
    torch.manual_seed(0)
    module = trace(copy.deepcopy(network.module).requires_grad_(), images(1), name="copy")
    reconstructor = Reconstructor(network, images(32))
    shared = Shared(module, reconstructor)
    examples_, loss = data_split(), sandwich_loss(lambda outputs, _: (outputs[:, 0] - outputs[:, 1]).square().mean())
    sandwich = Sandwich(shared, network.module, lambda: drawn(network.source, WANTED))
    history = train(
        sandwich, examples_.inputs, examples_.targets, epochs=8, lr=0.01, batch=16, weight_decay=0.0, loss=loss
    )
    assert history.losses[-1] < 0.7 * history.losses[0]


def test_a_search_goes_on_from_the_shared_weights(tmp_path):
    data = DATA | {"train": examples(64, 3)}
    given = {"search": {"sampler": "tpe"}, "measure": QUICK, "recover": {"once_for_all": {"minutes": 0.01}}}
    plain, trained = (
        search(TinyNet(), data=data, target=str(write_target(tmp_path)), out=tmp_path / name, name="tiny",
               evaluations=3, **settings).run
        for name, settings in (("plain", {k: v for k, v in given.items() if k != "recover"}), ("shared", given))
    )  # fmt: skip
    assert plain.source.sha256 != trained.source.sha256
    assert dataclasses.replace(plain.source, sha256="") == dataclasses.replace(trained.source, sha256="")
    assert len(list((tmp_path / "shared").rglob("trained/*.pt"))) == 1


def test_without_training_examples_it_is_refused(tmp_path):
    with pytest.raises(DataError, match="no training examples"):
        search(
            TinyNet(), data=DATA, target=str(write_target(tmp_path)), out=tmp_path,
            recover={"once_for_all": {"minutes": 1}},
        )  # fmt: skip
