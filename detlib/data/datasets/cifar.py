"""CIFAR-10 and CIFAR-100: small images in files of arrays (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html)."""

import functools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.lazy import set_lazy_metadata
from detlib.utils import safe_pickle
from detlib.utils.errors import ConfigError, DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["CIFAR10", "CIFAR100", "CIFARVersion", "load_cifar", "register_cifar"]

SIDE = 32  # Height and width of all images.


@dataclass(frozen=True)
class CIFARVersion:
    """Where the files of a version are, and what their entries are called."""

    url: str
    folder: str
    files_of_split: dict[str, tuple[str, ...]]
    label_key: str
    meta_file: str
    names_key: str


CIFAR10 = CIFARVersion(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    files_of_split={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    label_key="labels",
    meta_file="batches.meta",
    names_key="label_names",
)
CIFAR100 = CIFARVersion(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    folder="cifar-100-python",
    files_of_split={"train": ("train",), "test": ("test",)},
    label_key="fine_labels",
    meta_file="meta",
    names_key="fine_label_names",
)


def register_cifar(name: str, root: str | os.PathLike[str], split: str, version: CIFARVersion = CIFAR10) -> None:
    """Register a split of CIFAR. No file is read before the dataset, or its classes, are first asked for.

    Args:
        name: name for the config, for example ``cifar10_train``.
        root: folder in which the archive of the "python version" was unpacked.
        split: "train" or "test".
    """
    if split not in version.files_of_split:
        raise ConfigError(f"dataset {name!r}: the split must be 'train' or 'test', got {split!r}")
    root = os.fspath(root)
    DatasetCatalog.register(name, functools.partial(load_cifar, root, split, version))
    set_lazy_metadata(name, ("classes",), functools.partial(_metadata_of_file, root, version))
    MetadataCatalog.get(name).set(evaluator_type="image_classification")


def load_cifar(root: str, split: str, version: CIFARVersion = CIFAR10) -> list[dict[str, Any]]:
    """Read a split of CIFAR: 50000 images to train on, or 10000 to test on.

    Returns:
        One dict per image: ``image`` (32, 32, 3) uint8 in RGB, ``label``, ``image_id`` (its number), ``height`` and
        ``width``.

    Raises:
        MissingFileError: a file is missing.
        CheckpointError: a file is damaged, or holds something else than arrays and containers.
        DatasetError: a file has another content.
    """
    samples: list[dict[str, Any]] = []
    for file_name in version.files_of_split[split]:
        content = _read(root, version, file_name, ("data", version.label_key))
        pixels, labels = content["data"], content[version.label_key]
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * SIDE**2):
            raise DatasetError(
                f"{os.path.join(root, version.folder, file_name)}: expected 'data' of the shape ({len(labels)}, "
                f"{3 * SIDE**2}) and type uint8, for as many labels; fetch {version.url} again"
            )
        # Each row holds the plane of red, then green, then blue.
        images = np.ascontiguousarray(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        samples += [
            {"image": image, "label": int(label), "image_id": image_id, "height": SIDE, "width": SIDE}
            for image_id, (image, label) in enumerate(zip(images, labels, strict=True), start=len(samples))
        ]
    return samples


def _metadata_of_file(root: str, version: CIFARVersion) -> dict[str, Any]:
    return {"classes": tuple(_read(root, version, version.meta_file, (version.names_key,))[version.names_key])}


def _read(root: str, version: CIFARVersion, file_name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    folder = os.path.join(root, version.folder)
    path = os.path.join(folder, file_name)
    if not PathManager.isfile(path):
        needed = (*version.files_of_split["train"], *version.files_of_split["test"], version.meta_file)
        raise MissingFileError(
            f"{path!r} does not exist; fetch {version.url} and unpack it, so that the folder {folder!r} has the files "
            f"{', '.join(needed)}"
        )
    with PathManager.open(path, "rb") as file:
        content = safe_pickle.load(file)
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise DatasetError(f"{path} lacks {', '.join(missing)}; is it of the 'python version', {version.url}?")
    for key, kind in ((version.label_key, int), (version.names_key, str)):
        values = content.get(key, [])
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise DatasetError(f"{path}: {key!r} is no list of {kind.__name__}; fetch {version.url} again")
    return content
