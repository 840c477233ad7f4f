"""Pascal VOC: one XML file of boxes per image (development kit of VOC2012, sec. 8)."""

import os
import xml.etree.ElementTree as ElementTree
from typing import Any

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["CLASS_NAMES", "load_voc_instances", "read_xml", "register_pascal_voc"]

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
    image_set = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    if not PathManager.isfile(image_set):
        raise MissingFileError(f"{image_set!r}, the list of images of a VOC split, does not exist; check the folder")
    with PathManager.open(image_set) as file:
        # A second column says in the lists of one class whether it is in the image.
        image_ids = [line.split()[0] for line in file if line.strip()]
    category_ids = {name: index for index, name in enumerate(class_names)}
    return [_sample(dirname, image_id, category_ids) for image_id in image_ids]


def _sample(dirname: str, image_id: str, category_ids: dict[str, int]) -> dict[str, Any]:
    xml_file = os.path.join(dirname, "Annotations", f"{image_id}.xml")
    root = read_xml(xml_file)
    try:
        return {
            "file_name": os.path.join(dirname, "JPEGImages", f"{image_id}.jpg"),
            "image_id": image_id,
            "height": int(root.findtext("./size/height")),
            "width": int(root.findtext("./size/width")),
            "annotations": [_instance(element, category_ids, xml_file) for element in root.iter("object")],
        }
    except DatasetError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(f"{xml_file} is not an annotation of Pascal VOC: {error}") from error


def _instance(element: ElementTree.Element, category_ids: dict[str, int], xml_file: str) -> dict[str, Any]:
    name = element.findtext("name")
    if name not in category_ids:
        raise DatasetError(f"{xml_file}: an object is of the class {name!r}; known are {', '.join(category_ids)}")
    box = element.find("bndbox")
    xmin, ymin, xmax, ymax = (float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
    return {
        "category_id": category_ids[name],
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
        except ElementTree.ParseError as error:
            raise DatasetError(f"{xml_file} cannot be read: {error}") from None
