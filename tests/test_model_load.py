import math
import pickle

import pytest
import torch
from model_networks import Depthwise, Transformer, randomised
from torch import nn

from hwsearch.errors import ModelError
from hwsearch.model.graph import trace
from hwsearch.model.load import load_model
from hwsearch.zoo.resnet import resnet20

FACTORIES = """
import torch
from torch import nn

def small(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))

def broken():
    raise RuntimeError("no such dataset\\nsecond line")

def number():
    return 3

def poisoned():
    module = small()
    module[1].running_var[0] = float("nan")
    return module

constant = 5
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(FACTORIES)
    return tmp_path


def small(folder, **arguments):
    return load_model("nets.py:small", model_args=arguments, base_dir=folder)


def test_factory_in_a_package():
    module = load_model("hwsearch.zoo.resnet:resnet20", model_args={"num_classes": 3, "width": 0.25})
    assert not module.training
    assert module.linear.weight.shape == (3, 16)


def test_factory_in_a_file_relative_to_the_study(folder):
    assert small(folder, width=6)[0].weight.shape == (6, 3, 1, 1)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_weights_bare_or_wrapped(folder, wrap, prefix):
    source = small(folder)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save(state if wrap is None else {"epoch": 3, wrap: state}, folder / "w.pt")
    loaded = load_model("nets.py:small", weights=folder / "w.pt", base_dir=folder)
    assert torch.equal(loaded[0].weight, source[0].weight)


def test_weights_without_the_counter_of_batch_norm(folder):
    state = small(folder).state_dict()
    del state["1.num_batches_tracked"]
    torch.save(dict(state), folder / "w.pt")
    load_model("nets.py:small", weights=folder / "w.pt", base_dir=folder)


def test_safetensors(folder):
    safetensors = pytest.importorskip("safetensors.torch")
    source = small(folder)
    safetensors.save_file(source.state_dict(), folder / "w.safetensors")
    loaded = load_model("nets.py:small", weights=folder / "w.safetensors", base_dir=folder)
    assert torch.equal(loaded[0].weight, source[0].weight)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("nets.py", {}, "does not name a model factory"),
        ("net.py:small", {}, "file not found.*(?s:.*)did you mean `nets.py`"),
        ("nets.py:smal", {}, "no model factory `smal`(?s:.*)did you mean `small`"),
        ("nets.py:constant", {}, "is a int, not a model factory"),
        ("nets.py:number", {}, "returned a int"),
        ("nets.py:broken", {}, "failed(?s:.*)RuntimeError: no such dataset$"),
        ("nets.py:small", {"widht": 3}, "does not take these model_args(?s:.*)did you mean `width`"),
        ("nets.py:poisoned", {}, "`1.running_var` holds 1 NaN"),
        ("hwsearch.zoo.resnets:resnet20", {}, "no module `hwsearch.zoo.resnets`(?s:.*)did you mean `resnet`"),
        ("nosuchpackage:net", {}, "no module `nosuchpackage`"),
        ("missing.pt2", {}, "model file not found"),
        ("nets.pt2", {}, "not a .pt2 file"),
    ],
)
def test_bad_model(folder, spec, arguments, message):
    (folder / "nets.pt2").write_bytes(b"no zip")
    with pytest.raises(ModelError, match=message):
        load_model(spec, model_args=arguments, base_dir=folder)


def test_a_module_whose_import_fails_is_named(folder):
    (folder / "bad.py").write_text("import nosuchpackage")
    with pytest.raises(ModelError, match=r"cannot be imported(?s:.*)nosuchpackage"):
        load_model("bad.py:net", base_dir=folder)


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_is_refused_and_not_run(folder, capfd):
    torch.save({"state_dict": Payload()}, folder / "w.pt")
    with pytest.raises(ModelError, match="refused"):
        load_model("nets.py:small", weights=folder / "w.pt", base_dir=folder)
    (folder / "w.pkl").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ModelError):
        load_model("nets.py:small", weights=folder / "w.pkl", base_dir=folder)
    assert "code ran" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [{}, {"state_dict": {"a": 3}}, [1, 2], {"weights": {"x": torch.zeros(1)}}])
def test_a_file_without_state_dict(folder, content):
    torch.save(content, folder / "w.pt")
    with pytest.raises(ModelError, match="no state dict"):
        load_model("nets.py:small", weights=folder / "w.pt", base_dir=folder)


def test_missing_and_damaged_weights(folder):
    with pytest.raises(ModelError, match=r"not found(?s:.*)NO_SUCH_VARIABLE is not set"):
        load_model("nets.py:small", weights=folder / "${NO_SUCH_VARIABLE}" / "w.pt", base_dir=folder)
    (folder / "w.pt").write_bytes(b"hello")
    with pytest.raises(ModelError, match="weights"):
        load_model("nets.py:small", weights=folder / "w.pt", base_dir=folder)


def test_weights_of_another_architecture_give_one_message(folder):
    torch.save(resnet20().state_dict(), folder / "w.pt")
    with pytest.raises(ModelError, match="another architecture") as caught:
        load_model("nets.py:small", weights=folder / "w.pt", base_dir=folder)
    assert "missing: 0.weight" in caught.value.where
    assert "and" in caught.value.where
    assert "\n" not in caught.value.where


def test_weights_of_another_width_name_both_shapes(folder):
    torch.save(small(folder, width=5).state_dict(), folder / "w.pt")
    with pytest.raises(ModelError, match=r"0.weight \[5, 3, 1, 1\] \(the model has \[4, 3, 1, 1\]\)") as caught:
        load_model("nets.py:small", weights=folder / "w.pt", base_dir=folder)
    assert "missing" not in caught.value.where


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(folder, value):
    state = small(folder).state_dict()
    state["0.weight"][0, 0] = value
    torch.save(state, folder / "w.pt")
    with pytest.raises(ModelError, match=r"`0.weight` holds 1 NaN or infinite values of 12"):
        load_model("nets.py:small", weights=folder / "w.pt", base_dir=folder)


# --------------------------------------------------------------------------- .pt2


def exported(module, path, dynamic=True):
    axes = ({0: torch.export.Dim("n")},) if dynamic else None
    torch.export.save(torch.export.export(module, (torch.randn(2, 3, 16, 16),), dynamic_shapes=axes), path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("build", [Depthwise, Transformer])
def test_exported_program_gets_its_modules_back(build, tmp_path):
    torch.manual_seed(0)
    original = randomised(build())
    exported(original, tmp_path / "net.pt2")
    module = load_model(str(tmp_path / "net.pt2"))
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(module(x), original(x))
    modules = dict(module.named_modules())
    for name, part in original.named_modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm):
            assert type(modules[name]) is type(part), name
        elif isinstance(part, nn.Linear):
            assert isinstance(modules[name], nn.Linear), name
    source, expected = (trace(m, x, name="x").source for m in (module, original))
    assert source.layers == expected.layers
    assert source.groups == expected.groups


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_exported_in_training_mode(tmp_path):
    exported(Depthwise().train(), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match="training mode"):
        load_model(str(tmp_path / "net.pt2"))
