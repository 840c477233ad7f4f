import pytest

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import load_voc_instances, load_voc_labels, register_pascal_voc, register_voc_multi_label
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError, MissingFileError

OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
PAGE = "<annotation><size><width>30</width><height>20</height></size>{}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """A split "val" of an image with a dog and one without objects."""
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets/Main/val.txt").write_text("000002\n000001  1\n\n")
    (tmp_path / "Annotations/000001.xml").write_text(PAGE.format(""))
    (tmp_path / "Annotations/000002.xml").write_text(PAGE.format(OBJECT.format("dog", 1, 3, 10, 12)))
    return tmp_path


def test_box_begins_at_the_edge_of_its_first_pixel(voc):
    first, second = load_voc_instances(str(voc), "val", ["cat", "dog"])
    assert first == {
        "file_name": str(voc / "JPEGImages/000002.jpg"),
        "image_id": "000002",
        "height": 20,
        "width": 30,
        "annotations": [{"category_id": 1, "bbox": [0.0, 2.0, 10.0, 12.0], "bbox_mode": BoxMode.XYXY_ABS}],
    }
    assert (second["image_id"], second["annotations"]) == ("000001", [])


def test_registered_split_has_20_classes_and_what_the_evaluator_needs(voc):
    register_pascal_voc("my_voc", str(voc), "val", 2007)
    assert DatasetCatalog.get("my_voc")[0]["annotations"][0]["category_id"] == 11
    metadata = MetadataCatalog.get("my_voc")
    assert (len(metadata.thing_classes), metadata.thing_classes[11]) == (20, "dog")
    assert (metadata.dirname, metadata.split, metadata.year) == (str(voc), "val", 2007)
    assert metadata.evaluator_type == "pascal_voc"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "b">]><annotation>&b;</annotation>', "DOCTYPE"),
        ("<annotation><size>", r"000002\.xml cannot be read"),
        ("<annotation/>", "not an annotation of Pascal VOC"),
        (PAGE.format(OBJECT.format("cow", 1, 1, 2, 2)), r"000002\.xml: .*class 'cow'; known are cat, dog"),
        (PAGE.format(OBJECT.format("dog", "one", 1, 2, 2)), "not an annotation of Pascal VOC: .*'one'"),
    ],
)
def test_bad_annotation_is_refused_by_name(voc, page, message):
    (voc / "Annotations/000002.xml").write_text(page)
    with pytest.raises(DatasetError, match=message):
        load_voc_instances(str(voc), "val", ["cat", "dog"])


@pytest.mark.parametrize("path", ["ImageSets/Main/val.txt", "Annotations/000001.xml"])
def test_missing_file_is_named(voc, path):
    (voc / path).unlink()
    with pytest.raises(MissingFileError, match=path):
        load_voc_instances(str(voc), "val", ["cat", "dog"])


def object_of(name, difficult=None):
    tag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{tag}</object>"


def test_labels_are_the_classes_present_and_those_only_difficult_are_ignored(voc):
    page = "".join(
        [object_of("dog", 1), object_of("cow", 0), object_of("cow", 1), object_of("cat"), object_of("sheep", 1)]
    )
    (voc / "Annotations/000002.xml").write_text(PAGE.format(page))
    first, second = load_voc_labels(str(voc), "val", ["cat", "cow", "dog", "sheep"])
    assert first == {
        "file_name": str(voc / "JPEGImages/000002.jpg"),
        "image_id": "000002",
        "height": 20,
        "width": 30,
        "labels": [0, 1, 2, 3],
        "ignored_labels": [2, 3],
    }
    assert (second["labels"], second["ignored_labels"]) == ([], [])


def test_registered_labels_have_20_classes_and_an_evaluator(voc):
    register_voc_multi_label("my_voc", str(voc), "val")
    assert DatasetCatalog.get("my_voc")[0]["labels"] == [11]
    metadata = MetadataCatalog.get("my_voc")
    assert (len(metadata.classes), metadata.classes[11]) == (20, "dog")
    assert metadata.evaluator_type == "multi_label_classification"


def test_label_of_an_unknown_class_is_refused_by_name(voc):
    with pytest.raises(DatasetError, match=r"000002\.xml: .*class 'dog'; known are cat"):
        load_voc_labels(str(voc), "val", ["cat"])
