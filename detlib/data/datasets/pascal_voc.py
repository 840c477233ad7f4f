"""Pascal VOC: one XML file of boxes per image (development kit of VOC2012, sec. 8), or of the classes in it."""

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import Any

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.coco_values import are_numbers
from detlib.data.datasets.image_folder import numbered_lines
from detlib.data.datasets.paths import Folder
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = [
    "CLASS_NAMES",
    "load_voc_instances",
    "load_voc_labels",
    "read_xml",
    "register_pascal_voc",
    "register_voc_multi_label",
]

XML, IMAGES = "Annotations", "JPEGImages"

# fmt: off
CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


def register_pascal_voc(
    name: str,
    dirname: str,
    split: str,
    year: int,
    class_names: list[str] | tuple[str, ...] = CLASS_NAMES,
) -> None:
    """Register a dataset in VOC's layout. No file is read before it is first asked for.

    Args:
        name: name for the config, for example ``voc_2007_trainval``.
        dirname: folder that holds ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: name of a file in ``ImageSets/Main``, without its ending.
        year: 2007 makes the evaluation sample 11 recalls; other years take the area under the curve.
        class_names: names in the XML files, in the order of category ids.
    """
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(
        thing_classes=list(class_names), dirname=dirname, year=year, split=split, evaluator_type="pascal_voc"
    )


def register_voc_multi_label(name: str, dirname: str, split: str, class_names: Sequence[str] = CLASS_NAMES) -> None:
    """Register a dataset in VOC's layout for classification: which classes are in an image, see load_voc_labels.

    Args:
        name: name for the config, for example ``voc_2007_trainval_multi_label``; the others are those of
            :func:`register_pascal_voc`.
    """
    DatasetCatalog.register(name, lambda: load_voc_labels(dirname, split, class_names))
    MetadataCatalog.get(name).set(
        classes=tuple(class_names), dirname=dirname, split=split, evaluator_type="multi_label_classification"
    )


def load_voc_instances(dirname: str, split: str, class_names: list[str] | tuple[str, ...]) -> list[dict[str, Any]]:
    """Read the annotations of a split; objects marked difficult are among them.

    VOC counts pixels from 1 and names the first and the last one of a box. In the samples, a box spans from the edge
    of its first to that of its last pixel: [1, 1, 10, 10] becomes [0, 0, 10, 10].

    Args:
        dirname: folder that holds ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: name of a file in ``ImageSets/Main``, without its ending.
        class_names: names in the XML files, in the order of category ids.

    Returns:
        One dict per image in the order of the split: ``file_name``, ``image_id``, ``height``, ``width`` and
        ``annotations`` with ``category_id``, ``bbox`` and ``bbox_mode``.

    Raises:
        MissingFileError: the file of the split, or one that it names, does not exist.
        DatasetError: an annotation is damaged or of an unknown class.
    """
    return _load(dirname, split, class_names, _annotations)


def load_voc_labels(dirname: str, split: str, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Read which classes are in the images of a split.

    Arguments and errors are those of :func:`load_voc_instances`.

    Returns:
        One dict per image: ``file_name``, ``image_id``, ``height``, ``width``, the sorted ``labels`` of all classes in
        it, and ``ignored_labels``: those among them of which all objects are marked difficult. In testing, it counts
        neither for nor against a model whether it finds them.
    """
    return _load(dirname, split, class_names, _labels)


def _load(
    dirname: str,
    split: str,
    class_names: Sequence[str],
    read_objects: Callable[[ElementTree.Element, dict[str, int], str], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Read a split; read_objects gives what its samples say of the objects in an annotation file."""
    image_set = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    # A second column says in the lists of one class whether it is in the image.
    image_ids = [line.split()[0] for _, line in numbered_lines(image_set)]
    category_ids = {name: index for index, name in enumerate(class_names)}
    folders = {name: Folder(os.path.join(dirname, name), image_set, argument="dirname") for name in (XML, IMAGES)}
    samples = []
    for image_id in image_ids:
        xml_file = folders[XML].join(f"{image_id}.xml", "a line")
        root = read_xml(xml_file)
        try:
            sample = {
                "file_name": folders[IMAGES].join(f"{image_id}.jpg", "a line"),
                "image_id": image_id,
                "height": int(root.findtext("./size/height")),
                "width": int(root.findtext("./size/width")),
            }
            samples.append({**sample, **read_objects(root, category_ids, xml_file)})
        except DatasetError:
            raise
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise DatasetError(f"{xml_file} is not an annotation of Pascal VOC: {error}") from error
    return samples


def _annotations(root: ElementTree.Element, category_ids: dict[str, int], xml_file: str) -> dict[str, Any]:
    return {"annotations": [_instance(element, category_ids, xml_file) for element in root.iter("object")]}


def _labels(root: ElementTree.Element, category_ids: dict[str, int], xml_file: str) -> dict[str, Any]:
    objects = list(root.iter("object"))
    present = {_category_id(element, category_ids, xml_file) for element in objects}
    counted = {
        _category_id(element, category_ids, xml_file)
        for element in objects
        if int(element.findtext("difficult", "0")) == 0
    }
    return {"labels": sorted(present), "ignored_labels": sorted(present - counted)}


def _category_id(element: ElementTree.Element, category_ids: dict[str, int], xml_file: str) -> int:
    name = element.findtext("name")
    if name not in category_ids:
        raise DatasetError(f"{xml_file}: an object is of the class {name!r}; known are {', '.join(category_ids)}")
    return category_ids[name]


def _instance(element: ElementTree.Element, category_ids: dict[str, int], xml_file: str) -> dict[str, Any]:
    category_id = _category_id(element, category_ids, xml_file)
    box = element.find("bndbox")
    xmin, ymin, xmax, ymax = (float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not are_numbers((xmin, ymin, xmax, ymax)):
        raise DatasetError(f"{xml_file}: the box of an object is {xmin, ymin, xmax, ymax}; expected finite numbers")
    return {
        "category_id": category_id,
        "bbox": [xmin - 1, ymin - 1, xmax, ymax],
        "bbox_mode": BoxMode.XYXY_ABS,
    }


class _PlainTree(ElementTree.TreeBuilder):
    """Refuses the document type, the only place where XML can define entities, which can grow without bound."""

    def doctype(self, name: str, public_id: str, system: str) -> None:
        raise ElementTree.ParseError("it has a DOCTYPE, which is not read for safety; remove it")


def read_xml(xml_file: str) -> ElementTree.Element:
    """Read an annotation file and return its root.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: it is damaged, or has a document type.
    """
    if not PathManager.isfile(xml_file):
        raise MissingFileError(f"VOC annotation {xml_file!r} does not exist; check the folder, or the list of images")
    with PathManager.open(xml_file, "rb") as file:
        try:
            return ElementTree.parse(file, ElementTree.XMLParser(target=_PlainTree())).getroot()
        except (ElementTree.ParseError, ValueError, RecursionError) as error:
            raise DatasetError(f"{xml_file} cannot be read: {error}") from None
