"""Images with one label each: a folder for each class, or a list of files. And images without any."""

import functools
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.lazy import set_lazy_metadata
from detlib.data.datasets.paths import Folder
from detlib.utils.errors import ConfigError, DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = [
    "NoImagesError",
    "load_image_folder",
    "load_image_list",
    "load_images",
    "names_in_folder",
    "numbered_lines",
    "register_image_folder",
    "register_images",
    "sample_of_line",
]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")

logger = logging.getLogger(__name__)


class NoImagesError(DatasetError, RuntimeError):
    """There is no image in a folder. Code of the field catches a RuntimeError here, as torchvision once raised it."""

    __str__ = DatasetError.__str__


def register_image_folder(
    name: str,
    image_root: str | os.PathLike[str],
    list_file: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
    allow_outside: bool = False,
) -> None:
    """Register images of one label each. No file is read before the dataset, or its classes, are first asked for.

    Args:
        name: name for the config, for example ``cells_train``.
        image_root: folder with a folder for each class, see :func:`load_image_folder`.
        list_file: a list of images below image_root, see :func:`load_image_list`; then folders mean nothing.
        classes: names in the order of labels; those of the folders by default. A list needs them.
        allow_outside: whether paths of the list may lead out of image_root.
    """
    image_root = os.fspath(image_root)
    if list_file is None:
        load = functools.partial(load_image_folder, image_root, classes)
    elif classes is None:
        raise ConfigError(
            f"dataset {name!r}: a list of images has the numbers of classes only; give their names, too, in CLASSES"
        )
    else:
        load = functools.partial(load_image_list, list_file, image_root, classes, allow_outside)
        MetadataCatalog.get(name).set(list_file=os.fspath(list_file), allow_outside=allow_outside)
    DatasetCatalog.register(name, load)
    if classes is None:
        set_lazy_metadata(name, ("classes",), functools.partial(_metadata_of_folder, image_root))
    else:
        MetadataCatalog.get(name).set(classes=tuple(classes))
    MetadataCatalog.get(name).set(image_root=image_root, evaluator_type="image_classification")


def register_images(name: str, image_root: str | os.PathLike[str]) -> None:
    """Register images without labels, see :func:`load_images`. No file is read before the dataset is first asked for.

    Args:
        name: name for the config, for example ``photos``.
    """
    image_root = os.fspath(image_root)
    DatasetCatalog.register(name, functools.partial(load_images, image_root))
    MetadataCatalog.get(name).set(image_root=image_root)


def load_images(image_root: str) -> list[dict[str, Any]]:
    """List the images in a folder and those below, whose names mean nothing; those that begin with a dot are hidden.

    Returns:
        One dict per image, sorted by path: ``file_name`` and ``image_id`` (the path below image_root).

    Raises:
        MissingFileError: there is no such folder.
        NoImagesError: there is no image in it.
    """
    _check_exists(image_root)
    paths = _image_paths(image_root, "")
    if not paths:
        raise NoImagesError(f"{image_root!r} has no image; expected files that end in {', '.join(IMAGE_ENDINGS)}")
    return [{"file_name": os.path.join(image_root, path), "image_id": path} for path in paths]


def load_image_folder(image_root: str, classes: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Read a folder of the layout ``image_root/name_of_class/**/image.jpg``.

    Labels are the places of the classes' folders in sorted order; an empty folder keeps its place. Names that begin
    with a dot are hidden, and left out. Only the names of files are read: samples have no ``height`` and ``width``,
    which the mapper takes from the image.

    Args:
        classes: other names for the sorted folders; as many as there are.

    Returns:
        One dict per image, class by class, sorted by path: ``file_name``, ``image_id`` (the path below image_root) and
        ``label``.

    Raises:
        MissingFileError: there is no such folder.
        NoImagesError: there is no image in it.
        DatasetError: classes do not fit the folders.
    """
    folders = _class_folders(image_root)
    _check_classes(image_root, folders, classes)
    samples: list[dict[str, Any]] = []
    empty = []
    for label, folder in enumerate(folders):
        paths = _image_paths(image_root, folder)
        if not paths:
            empty.append(folder)
        samples += [{"file_name": os.path.join(image_root, p), "image_id": p, "label": label} for p in paths]
    if not samples:
        raise NoImagesError(
            f"{image_root!r} has no image {'in its folders ' + ', '.join(folders) if folders else 'in a folder'}; "
            f"expected {os.path.join(image_root, 'name_of_class', 'image.jpg')}, where files end in "
            f"{', '.join(IMAGE_ENDINGS)}. Images without folders of classes need a list of them, ANNOTATIONS; or "
            "TYPE: images, to learn without labels"
        )
    if empty:
        logger.warning("%s: no image is of %s; each keeps its label all the same", image_root, ", ".join(empty))
    return samples


def load_image_list(
    list_file: str | os.PathLike[str], image_root: str, classes: Sequence[str], allow_outside: bool = False
) -> list[dict[str, Any]]:
    """Read a file with a line for each image: its path below image_root, a blank and the number of its class.

    The path may have blanks, too. Lines without text are passed over.

    Args:
        classes: names of the classes 0, 1, ...
        allow_outside: whether paths may lead out of ``image_root``, as for :func:`load_coco_json`.

    Returns:
        One dict per image in the order of the lines: ``file_name``, ``image_id`` (the path of the line) and ``label``.

    Raises:
        MissingFileError: the list does not exist, or an image of it.
        NoImagesError: the list is empty.
        DatasetError: a line has another form, or a class that does not exist.
    """
    folder, names_in = Folder(image_root, list_file, allow_outside), functools.cache(names_in_folder)
    samples = [sample_of_line(*numbered, folder, classes, names_in) for numbered in numbered_lines(list_file)]
    if not samples:
        raise NoImagesError(f"{os.fspath(list_file)!r} lists no image; expected lines like 'cat/1.jpg 0'")
    return samples


def numbered_lines(list_file: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines of a list of images that have text, with their numbers from 1 on."""
    if not PathManager.isfile(list_file):
        raise MissingFileError(f"list of images {os.fspath(list_file)!r} does not exist; check the path")
    with PathManager.open(list_file) as file:
        try:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        except UnicodeDecodeError as error:
            raise DatasetError(f"{os.fspath(list_file)} is not a text file: {error}") from error


def sample_of_line(
    number: int, line: str, folder: Folder, classes: Sequence[str], names_in: Callable[[str], Collection[str]]
) -> dict[str, Any]:
    """The sample of a line of a list of images.

    Args:
        names_in: gives the names of the files in a folder. Folders are listed once each: asking for every file takes
            minutes for a million on a network drive.

    Raises:
        MissingFileError: there is no such image.
        DatasetError: the line has another form, or a class that does not exist.
    """
    where = f"{folder.source}:{number}"
    path, label = _parse(line, where, classes)
    file_name = folder.join(path, f"line {number}")
    if os.path.basename(path) not in names_in(os.path.dirname(file_name)):
        raise MissingFileError(
            f"{where}: image {file_name!r} does not exist; correct the line, or the folder that paths start from"
        )
    return {"file_name": file_name, "image_id": path, "label": label}


def _parse(line: str, where: str, classes: Sequence[str]) -> tuple[str, int]:
    path, _, label = line.strip().rpartition(" ")
    if not path or not label.removeprefix("-").isdecimal():
        raise DatasetError(f"{where}: {line.strip()!r} is not a path, a blank and a class, such as 'cat/1.jpg 0'")
    if not 0 <= int(label) < len(classes):
        raise DatasetError(
            f"{where}: class {label} does not exist; there are {len(classes)} classes, numbered from 0: "
            f"{', '.join(classes)}"
        )
    return path.rstrip(), int(label)


def _class_folders(image_root: str) -> list[str]:
    _check_exists(image_root)
    return sorted(entry.name for entry in os.scandir(image_root) if entry.is_dir() and not entry.name.startswith("."))


def _check_exists(image_root: str) -> None:
    if not os.path.isdir(image_root):
        raise MissingFileError(f"image folder {image_root!r} does not exist; check the path")


def _metadata_of_folder(image_root: str) -> dict[str, Any]:
    return {"classes": tuple(_class_folders(image_root))}


def _check_classes(image_root: str, folders: list[str], classes: Sequence[str] | None) -> None:
    if classes is None:
        return
    if len(classes) != len(folders):
        raise DatasetError(
            f"CLASSES has {len(classes)} names ({', '.join(classes)}), but {image_root!r} has {len(folders)} folders "
            f"({', '.join(folders)}); each folder is one class"
        )
    for name, folder in zip(classes, folders, strict=True):
        if name != folder and name in folders:
            raise DatasetError(
                f"CLASSES has {name!r} where {image_root!r} has the folder {folder!r}; labels follow the sorted "
                f"folders. Leave CLASSES out, or write [{', '.join(folders)}]"
            )


def _image_paths(image_root: str, folder: str) -> list[str]:
    """Sorted paths of the images in a folder and those below, from image_root on."""
    found = []
    for path, folders, names in os.walk(os.path.join(image_root, folder), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below_root = os.path.relpath(path, image_root)
        found += [
            os.path.normpath(os.path.join(below_root, name))
            for name in names
            if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
        ]
    return sorted(found)


def names_in_folder(folder: str) -> frozenset[str]:
    return frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()
