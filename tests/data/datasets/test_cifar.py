import io
import os
import pickle

import numpy as np
import pytest

from detlib.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detlib.data.datasets import load_cifar, register_cifar
from detlib.data.datasets.cifar import CIFAR10, CIFAR100
from detlib.utils.errors import CheckpointError, ConfigError, DatasetError, MissingFileError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def rows(values):
    """An image for each value v: red is v, green is v + 1, blue v + 2, but the second pixel of the first row is 0."""
    planes = np.stack([np.full((32, 32), v + channel) for v in values for channel in range(3)]).astype(np.uint8)
    planes[:, 0, 1] = 0
    return planes.reshape(len(values), 3072)


@pytest.fixture
def cifar10(tmp_path):
    """CIFAR-10 of two images in each of its six files, with the values 0, 1, ..., 11."""
    folder = tmp_path / "cifar-10-batches-py"
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        content = {"batch_label": name, "labels": [i, 9 - i], "data": rows([2 * i, 2 * i + 1]), "filenames": ["a", "b"]}
        write(folder / name, content)
    write(folder / "batches.meta", {"num_cases_per_batch": 2, "label_names": NAMES, "num_vis": 3072})
    return tmp_path


@pytest.fixture
def cifar100(tmp_path):
    folder = tmp_path / "cifar-100-python"
    for i, name in enumerate(["train", "test"]):
        write(folder / name, {"fine_labels": [70 + i], "coarse_labels": [1], "data": rows([i])})
    write(folder / "meta", {"fine_label_names": [f"fine{i}" for i in range(100)], "coarse_label_names": ["fish"]})
    return tmp_path


def test_five_files_are_for_training_and_one_for_testing(cifar10):
    train, test = load_cifar(str(cifar10), "train"), load_cifar(str(cifar10), "test")
    assert [sample["image"][5, 5, 0] for sample in train] == list(range(10))
    assert [sample["label"] for sample in train] == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert [sample["image_id"] for sample in train] == list(range(10))
    assert [(sample["image"][5, 5, 0], sample["label"]) for sample in test] == [(10, 5), (11, 4)]


def test_planes_of_colors_become_an_rgb_image(cifar10):
    sample = load_cifar(str(cifar10), "train")[3]
    image = sample.pop("image")
    assert sample == {"label": 8, "image_id": 3, "height": 32, "width": 32}
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert image[0, 0].tolist() == [3, 4, 5]
    assert image[0, 1].tolist() == [0, 0, 0]
    assert image[1, 0].tolist() == [3, 4, 5]


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2 did, which made the official files: text and bytes are strings of bytes alike."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value if isinstance(value, bytes) else value.encode()
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def test_files_of_python_2_are_read(cifar10):
    path, file = cifar10 / "cifar-10-batches-py" / "test_batch", io.BytesIO()
    expected = load_cifar(cifar10, "test")
    Python2Pickler(file, protocol=2).dump(pickle.loads(path.read_bytes()))
    path.write_bytes(file.getvalue().replace(b"numpy._core", b"numpy.core"))
    for sample, same in zip(load_cifar(cifar10, "test"), expected, strict=True):
        assert sample["label"] == same["label"]
        np.testing.assert_array_equal(sample["image"], same["image"])


def test_cifar100_has_fine_labels(cifar100):
    register_cifar("fine", cifar100, "test", CIFAR100)
    (sample,) = DatasetCatalog.get("fine")
    assert sample["label"] == 71
    assert MetadataCatalog.get("fine").classes[71] == "fine71"
    assert len(MetadataCatalog.get("fine").classes) == 100


def test_registered_split_has_class_names_and_an_evaluator(cifar10):
    register_cifar("small", cifar10, "train")
    metadata = MetadataCatalog.get("small")
    assert metadata.classes == tuple(NAMES)
    assert metadata.evaluator_type == "image_classification"
    assert len(DatasetCatalog.get("small")) == 10


@pytest.mark.parametrize(("image_format", "pixel"), [("RGB", [3, 4, 5]), ("BGR", [5, 4, 3])])
def test_mapper_takes_the_image_from_memory_in_its_format(cifar10, image_format, pixel):
    sample = load_cifar(str(cifar10), "train")[3]
    mapped = DatasetMapper(True, augmentations=[], image_format=image_format)(sample)
    assert mapped["image"].shape == (3, 32, 32)
    assert mapped["image"][:, 0, 0].tolist() == pixel
    assert mapped["label"] == 8
    assert sample["image"].shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("version", "missing", "split"),
    [
        (CIFAR10, "cifar-10-batches-py/data_batch_3", "train"),
        (CIFAR10, "cifar-10-batches-py/test_batch", "test"),
        (CIFAR100, "cifar-100-python/train", "train"),
    ],
)
def test_missing_file_names_url_and_expected_folder(cifar10, cifar100, version, missing, split):
    (cifar10 / missing).unlink()
    with pytest.raises(MissingFileError, match=rf"{missing}.* fetch {version.url} .*the folder '.*{version.folder}'"):
        load_cifar(str(cifar10), split, version)


def test_class_names_without_files_are_unknown(tmp_path):
    register_cifar("absent", tmp_path, "train")
    assert MetadataCatalog.get("absent").get("classes") is None


def test_other_split_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'train' or 'test', got 'val'"):
        register_cifar("small", tmp_path, "val")


class RunsCommand:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


def test_file_with_code_is_refused_and_the_code_not_run(cifar10, capfd):
    write(cifar10 / "cifar-10-batches-py/test_batch", {"data": RunsCommand(), "labels": [0]})
    with pytest.raises(CheckpointError, match=r"test_batch was not loaded: it asks for '(posix|nt)\.system'"):
        load_cifar(str(cifar10), "test")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": rows([1])}, "test_batch lacks labels"),
        ([1, 2], "test_batch lacks data, labels"),
        ({"data": rows([1]), "labels": [1, 2]}, r"test_batch: expected 'data' of the shape \(2, 3072\)"),
        ({"data": rows([1]).astype(float), "labels": [1]}, "type uint8"),
    ],
)
def test_file_of_another_content_is_explained(cifar10, content, message):
    write(cifar10 / "cifar-10-batches-py/test_batch", content)
    with pytest.raises(DatasetError, match=message):
        load_cifar(str(cifar10), "test")
