import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsearch.config import DataConfig, NormalizeConfig
from hwsearch.errors import DataError
from hwsearch.model.data import check_inputs, check_labels, load_splits, splits_from

CUSTOM = "data.py:examples"


def config(**settings):
    return DataConfig(**{"source": CUSTOM, **settings})


def pair(n, seed=0, classes=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3, 4, 4)).astype(np.float32), rng.integers(0, classes, n)


def rows(split):
    return {x.tobytes() for x in split.inputs}


# --------------------------------------------------------------------------- drawing


@settings(max_examples=30, deadline=None)
@given(n=st.integers(20, 60), repeats=st.integers(0, 10), seed=st.integers(0, 3), calibrate=st.integers(1, 5))
def test_drawn_splits_never_share_an_example(n, repeats, seed, calibrate):
    inputs, targets = pair(n)
    repeated = (np.concatenate([inputs, inputs[:repeats]]), np.concatenate([targets, targets[:repeats]]))
    splits = splits_from(repeated, config(calibrate=calibrate, search=6, seed=seed))
    parts = [splits.calibrate, splits.search, splits.report]
    parts += [splits.train] if splits.train is not None else []
    assert [len(part) for part in parts[:2]] == [calibrate, 6]
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            assert not rows(one) & rows(other)
    assert set().union(*map(rows, parts)) == {x.tobytes() for x in inputs}


def test_same_seed_same_splits_and_hashes():
    value = pair(40)
    one, again, other = (splits_from(value, config(seed=seed)) for seed in (1, 1, 2))
    assert one.report.sha256 == again.report.sha256
    assert np.array_equal(one.report.inputs, again.report.inputs)
    assert one.report.sha256 != other.report.sha256


def test_hash_sees_targets():
    inputs, targets = pair(40)
    one, other = (splits_from((inputs, t), config()) for t in (targets, targets + 1))
    assert one.search.sha256 != other.search.sha256


def test_train_and_test_pools_are_kept_apart():
    train, test = pair(50, seed=1), pair(30, seed=2)
    splits = splits_from({"train": train, "test": test}, config(calibrate=10, search=10))
    assert rows(splits.calibrate) | rows(splits.train) == {x.tobytes() for x in train[0]}
    assert rows(splits.search) | rows(splits.report) == {x.tobytes() for x in test[0]}
    assert (len(splits.train), len(splits.report)) == (40, 20)


def test_test_pool_with_training_examples_is_a_leak():
    train, test = pair(50, seed=1), pair(30, seed=2)
    test[0][:3] = train[0][:3]
    with pytest.raises(DataError, match="3 of 30 test examples are training examples too"):
        splits_from({"train": train, "test": test}, config(calibrate=10, search=10))


def test_given_splits_are_taken_as_they_are():
    value = {name: pair(10, seed) for seed, name in enumerate(("calibrate", "search", "report"))}
    splits = splits_from(value, config(search=4))
    assert np.array_equal(splits.report.inputs, value["report"][0])
    assert len(splits.named("search")) == 4
    assert splits.train is None


def test_given_splits_that_overlap():
    value = {name: pair(10, seed) for seed, name in enumerate(("calibrate", "search", "report"))}
    value["report"][0][:2] = value["search"][0][:2]
    with pytest.raises(DataError, match="2 examples are in both the search and the report split"):
        splits_from(value, config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calibrate": 41}, "41 examples asked for the calibrate split, but only 40"),
        ({"calibrate": 10, "search": 20, "report": 11}, "11 examples asked for the report split, but only 10"),
        ({"calibrate": 10, "search": 30}, "the report split is empty"),
    ],
)
def test_more_than_there_is(settings, message):
    with pytest.raises(DataError, match=message):
        splits_from(pair(40), config(**settings))


# --------------------------------------------------------------------------- what users give


def test_loaders_and_tensors():
    inputs, targets = pair(24)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(inputs), torch.from_numpy(targets))
    loader = torch.utils.data.DataLoader(dataset, batch_size=5)
    from_loader = splits_from(loader, config())
    from_arrays = splits_from((torch.from_numpy(inputs), torch.from_numpy(targets)), config())
    assert from_loader.report.sha256 == from_arrays.report.sha256


def test_normalize_and_bytes():
    pixels = np.full((12, 3, 2, 2), 51, np.uint8)
    pixels[:, 0, 0, 0] = np.arange(12)
    normalize = NormalizeConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    splits = splits_from((pixels, np.zeros(12, int)), config(normalize=normalize))
    assert splits.report.inputs.dtype == np.float32
    np.testing.assert_allclose(splits.report.inputs[0, :, 1, 1], [0.2, 0.0, -0.05], atol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"train": pair(10)}, "keys train"),
        ((pair(10)[0], pair(9)[1]), "do not fit together"),
        ("text", "is a str"),
        (iter(()), "is empty"),
        ([np.zeros(3)], "not a pair"),
        (pair(0), "empty"),
        ((np.array([[i, np.nan] for i in range(20)], np.float32), np.zeros(20, int)), "5 of 5 examples .* NaN"),
        ((np.zeros((20, 2), np.float32), np.zeros(20, int)), "the search split is empty"),
    ],
)
def test_malformed_data(value, message):
    with pytest.raises(DataError, match=message):
        splits_from(value, config())


def test_factory(tmp_path):
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "def examples():\n    x = np.random.default_rng(0).normal(size=(30, 2)).astype('float32')\n"
        "    return x, (x[:, 0] > 0).astype(int)\n"
        "def broken():\n    raise OSError('disk gone')\n"
    )
    assert load_splits(config(), base_dir=tmp_path).search.inputs.shape[1:] == (2,)
    with pytest.raises(DataError, match=r"failed(?s:.*)disk gone"):
        load_splits(config(source="data.py:broken"), base_dir=tmp_path)
    with pytest.raises(DataError, match=r"no data factory `example`(?s:.*)did you mean `examples`"):
        load_splits(config(source="data.py:example"), base_dir=tmp_path)


# --------------------------------------------------------------------------- checks against the model


def test_check_labels():
    inputs, targets = pair(40)
    splits = splits_from((inputs, targets), config())
    check_labels(splits, 4)
    with pytest.raises(DataError, match=r"out of range, e.g. 3(?s:.*)0 to 2: the model has 3 outputs"):
        check_labels(splits, 3)
    with pytest.raises(DataError, match="out of range"):
        check_labels(splits_from((inputs, targets - 1), config()), 4)
    with pytest.raises(DataError, match="count from 0"):
        check_labels(splits_from((inputs, np.arange(40) % 4 + 1), config()), 4)
    with pytest.raises(DataError, match="float64"):
        check_labels(splits_from((inputs, targets * 1.0), config()), 4)


def test_check_inputs():
    splits = splits_from(pair(40), config())
    check_inputs(splits, (3, 4, 4))
    with pytest.raises(DataError, match=r"shape \(3, 4, 4\)(?s:.*)\(3, 32, 32\)"):
        check_inputs(splits, (3, 32, 32))


# --------------------------------------------------------------------------- built-in sources


def test_digits():
    splits = load_splits(DataConfig(source="digits"), base_dir=Path())
    assert splits.report.inputs.shape[1:] == (3, 32, 32)
    assert [len(s) for s in (splits.calibrate, splits.search, splits.report, splits.train)] == [249, 300, 500, 748]
    check_labels(splits, 10)
    assert abs(splits.report.inputs.mean()) < 0.05
    assert 0.7 < splits.report.inputs.std() < 1.1
    assert np.array_equal(splits.report.inputs[:, 0], splits.report.inputs[:, 2])


def cifar(n, seed):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
        "labels": rng.integers(0, 10, n).astype("u1"),
    }


def test_cifar10_archives_and_batches_agree(tmp_path):
    archives, batches = tmp_path / "npz", tmp_path / "py" / "cifar-10-batches-py"
    archives.mkdir()
    batches.mkdir(parents=True)
    for name, file, n in (("train", "data_batch_1", 30), ("test", "test_batch", 20)):
        data = cifar(n, seed=n)
        np.savez(archives / f"{name}.npz", **data)
        flat = data["images"].transpose(0, 3, 1, 2).reshape(n, -1)
        # Protocol 2 and byte keys, as the published files have them.
        (batches / file).write_bytes(
            pickle.dumps({b"data": flat, b"labels": data["labels"].tolist(), b"batch_label": b"x"}, protocol=2)
        )
    one, other = (
        load_splits(DataConfig(source="cifar10", path=str(p), search=5), base_dir=tmp_path)
        for p in (archives, tmp_path / "py")
    )
    assert one.report.inputs.shape == (15, 3, 32, 32)
    assert one.report.sha256 == other.report.sha256
    assert np.array_equal(one.calibrate.inputs, other.calibrate.inputs)


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_cifar10_batch_cannot_run_code(tmp_path, capfd):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Payload(), b"labels": []}))
    (tmp_path / "test_batch").write_bytes(b"")
    with pytest.raises(DataError, match=r"not a CIFAR-10 batch(?s:.*)builtins\.print"):
        load_splits(DataConfig(source="cifar10", path=str(tmp_path)), base_dir=tmp_path)
    assert "code ran" not in capfd.readouterr().out


def test_missing_folders(tmp_path):
    with pytest.raises(DataError, match="needs a path"):
        load_splits(DataConfig(source="cifar10"), base_dir=tmp_path)
    with pytest.raises(DataError, match="not found: nowhere"):
        load_splits(DataConfig(source="cifar10", path="nowhere"), base_dir=tmp_path)
    with pytest.raises(DataError, match="NO_SUCH_VARIABLE is not set"):
        load_splits(DataConfig(source="cifar10", path="${NO_SUCH_VARIABLE}/c"), base_dir=tmp_path)
    with pytest.raises(DataError, match="no CIFAR-10 in"):
        load_splits(DataConfig(source="cifar10", path=str(tmp_path)), base_dir=tmp_path)


@pytest.mark.parametrize("settings", [{"image_size": 32}, {"path": "somewhere"}])
def test_a_setting_without_effect_is_refused(settings, tmp_path):
    with pytest.raises(DataError, match=r"has no effect on the source `digits`"):
        load_splits(DataConfig(source="digits", **settings), base_dir=tmp_path)


def images(folder, n, seed):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)
            image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("levels", [("",), ("train", "val")])
def test_image_folder(tmp_path, levels):
    for seed, level in enumerate(levels):
        images(tmp_path / level, 8, seed)
    splits = load_splits(DataConfig(source="folder", path=str(tmp_path), image_size=10, search=3), base_dir=tmp_path)
    assert splits.report.inputs.shape[1:] == (3, 10, 10)
    assert set(splits.report.targets) == {0, 1}
    if len(levels) == 2:
        assert len(splits.search) + len(splits.report) == 16


def test_image_folder_without_images(tmp_path):
    pytest.importorskip("PIL")
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="no images in"):
        load_splits(DataConfig(source="folder", path=str(tmp_path)), base_dir=tmp_path)
