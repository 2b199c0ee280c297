"""The example in the docstring of every public name, run as it stands."""

import doctest
import inspect

import onnx
import pytest
from onnx import TensorProto, helper
from tiny_search import DATA, QUICK, TinyNet, search_tiny, write_target

import hwsearch as hs


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the examples take for granted: a network, data, a target, a run, and some files."""
    folder = tmp_path_factory.mktemp("examples")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    (folder / "study.yaml").write_text("model: hwsearch.zoo.resnet:resnet20\ndata: digits\ntarget: ort-cpu\n")
    identity = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    onnx.save(helper.make_model(identity, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "relu.onnx")
    yield {
        "hs": hs,
        "network": TinyNet(),
        "data": DATA,
        "settings": {"search": {"sampler": "tpe"}, "measure": QUICK},
        "target": str(write_target(folder)),
        "run_folder": search_tiny(folder, name="made").path,
        "study_file": folder / "study.yaml",
        "model_file": folder / "relu.onnx",
    }
    patch.undo()


@pytest.mark.parametrize("name", hs.__all__)
def test_the_example_of_a_public_name_runs(name, names):
    found = doctest.DocTestParser().get_doctest(
        inspect.getdoc(getattr(hs, name)) or "", dict(names), name, filename=None, lineno=0
    )
    assert found.examples, f"{name} has no example"
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found, out=said.append)
    assert not said, "".join(said)
