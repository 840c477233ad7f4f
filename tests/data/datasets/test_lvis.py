import copy
import json
import pickle

import pytest

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import builtin, get_lvis_instances_meta, load_lvis_json, lvis, register_lvis_instances
from detlib.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detlib.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT
from detlib.data.detection_utils import get_fed_loss_cls_weights
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError, MissingFileError, UnknownNameError

CATEGORIES = [
    {"id": 2, "name": "bell", "synonyms": ["bell_(tower)", "bell"], "frequency": "c", "image_count": 16},
    {"id": 1, "name": "apple", "frequency": "r", "image_count": 4},
]
BOX = {"id": 7, "image_id": 5, "category_id": 2, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6]]}
CONTENT = {
    "info": {"topic": "categories"},
    "images": [
        {"id": 5, "height": 8, "width": 9, "coco_url": "http://images/val2017/05.jpg", "neg_category_ids": [1]},
        {"id": 4, "height": 8, "width": 9, "file_name": "04.jpg", "not_exhaustive_category_ids": [2]},
    ],
    "annotations": [BOX],
    "categories": CATEGORIES,
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Folder of datasets with the training set of LVIS v1."""
    (tmp_path / "lvis").mkdir()
    (tmp_path / "coco").mkdir()
    (tmp_path / "lvis/lvis_v1_train.json").write_text(json.dumps(CONTENT))
    monkeypatch.setenv("DETLIB_DATASETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def known(root):
    """The known names, registered for that folder."""
    DatasetCatalog.data.clear()
    MetadataCatalog.data.clear()
    builtin.register_all_lvis(str(root))
    return root


def test_samples_have_the_folder_of_their_split_and_what_was_not_looked_for(root):
    second, first = load_lvis_json(str(root / "lvis/lvis_v1_train.json"), "coco", extra_annotation_keys=["id"])
    assert first["file_name"] == "coco/val2017/05.jpg"
    assert (first["neg_category_ids"], first["not_exhaustive_category_ids"]) == ([1], [])
    (instance,) = first["annotations"]
    assert instance == {
        "id": 7,
        "iscrowd": 0,
        "category_id": 1,
        "bbox": [1, 2, 3, 4],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": [[1, 2, 4, 2, 4, 6]],
    }
    assert (second["file_name"], second["not_exhaustive_category_ids"]) == ("coco/04.jpg", [2])
    assert second["annotations"] == []


def test_known_dataset_has_names_and_counts_before_it_is_loaded(known):
    metadata = MetadataCatalog.get("lvis_v1_train")
    assert metadata.thing_classes == ["apple", "bell_(tower)"]
    assert metadata.evaluator_type == "lvis"
    assert get_fed_loss_cls_weights("lvis_v1_train", 0.5).tolist() == [2.0, 4.0]
    assert len(DatasetCatalog.get("lvis_v1_train")) == 2


def test_validation_set_takes_names_but_no_counts_from_its_own_file(known):
    (known / "lvis/lvis_v1_train.json").rename(known / "lvis/lvis_v1_val.json")
    metadata = MetadataCatalog.get("lvis_v1_val")
    assert metadata.thing_classes == ["apple", "bell_(tower)"]
    assert metadata.get("class_image_count") is None
    with pytest.raises(AttributeError, match="class_image_count"):
        _ = metadata.class_image_count


def test_names_without_any_file_are_a_default_or_an_error_that_tells_the_way(known):
    (known / "lvis/lvis_v1_train.json").unlink()
    metadata = MetadataCatalog.get("lvis_v1_val")
    assert metadata.get("thing_classes", "none") == "none"
    assert "thing_classes" not in metadata.as_dict()
    for ask in (
        lambda: metadata.thing_classes,
        lambda: len(LVIS_CATEGORIES),
        lambda: get_lvis_instances_meta("lvis_v1"),
    ):
        with pytest.raises(MissingFileError, match=r"DETLIB_DATASETS.*lvis_v1_train\.json.*builtin_datasets\.md"):
            ask()


def test_cocofied_classes_need_no_file(known):
    metadata = MetadataCatalog.get("lvis_v0.5_val_cocofied")
    assert len(metadata.thing_classes) == 80
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79
    assert get_lvis_instances_meta("lvis_v0.5_train_cocofied")["thing_classes"][0] == "person"


def test_constants_are_the_lists_of_the_file(root):
    assert [category["name"] for category in LVIS_CATEGORIES] == ["apple", "bell"]
    assert list(LVIS_CATEGORY_IMAGE_COUNT) == [{"id": 1, "image_count": 4}, {"id": 2, "image_count": 16}]


def test_own_dataset_takes_classes_from_its_file(root):
    register_lvis_instances("mine", {"color": "red"}, str(root / "lvis/lvis_v1_train.json"), "coco")
    assert MetadataCatalog.get("mine").thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}
    assert MetadataCatalog.get("mine").color == "red"


def test_registering_own_data_reads_nothing_and_what_was_declared_stays(root):
    path = root / "later.json"
    register_lvis_instances("mine", {"thing_classes": ["a", "b"]}, str(path), "coco")
    path.write_text(json.dumps(CONTENT))
    assert MetadataCatalog.get("mine").thing_classes == ["a", "b"]
    assert DatasetCatalog.get("mine")[1]["annotations"][0]["category_id"] == 1
    assert MetadataCatalog.get("mine").thing_classes == ["a", "b"]


def test_missing_own_file_is_named_without_talk_of_public_datasets(root):
    register_lvis_instances("mine", {}, str(root / "gone.json"), "coco")
    with pytest.raises(MissingFileError, match=r"dataset 'mine' lacks .*gone\.json") as error:
        _ = MetadataCatalog.get("mine").thing_classes
    assert "DETLIB_DATASETS" not in str(error.value)
    with pytest.raises(MissingFileError, match=r"gone\.json"):
        DatasetCatalog.get("mine")


def test_federated_loss_on_a_file_without_counts_says_what_is_missing(root):
    (root / "own.json").write_text(json.dumps({**CONTENT, "categories": [{"id": 1, "name": "apple"}]}))
    register_lvis_instances("mine", {}, str(root / "own.json"), "coco")
    with pytest.raises(DatasetError, match="class_image_count in the metadata of dataset 'mine'"):
        get_fed_loss_cls_weights("mine")


def test_missing_cocofied_file_names_the_tool_and_the_page(known):
    message = r"lvis_v0\.5_val_cocofied\.json.*tools/prepare_cocofied_lvis\.py.*docs/tutorials/builtin_datasets\.md"
    with pytest.raises(MissingFileError, match=message):
        DatasetCatalog.get("lvis_v0.5_val_cocofied")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_lazy_metadata_can_be_copied_before_it_is_read(known, clone):
    copied = clone(MetadataCatalog.get("lvis_v1_train"))
    assert copied.name == "lvis_v1_train"
    assert copied.thing_classes == ["apple", "bell_(tower)"]


@pytest.mark.parametrize("first", [True, False])
def test_categories_are_found_wherever_they_stand_and_however_long(tmp_path, monkeypatch, first):
    monkeypatch.setattr(lvis, "FIRST_WINDOW", 8)
    rest = {"images": [{"neg_category_ids": [1]}] * 50}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"categories": CATEGORIES, **rest} if first else {**rest, "categories": CATEGORIES}))
    assert lvis.read_categories(str(path)) == CATEGORIES[::-1]


@pytest.mark.parametrize("text", ["", "{}", '{"categories": [1]}', '{"categories": [{"id": 1, "name": "a"}, '])
def test_file_without_categories_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match="no list of 'categories'"):
        lvis.read_categories(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{**BOX, "category_id": 9}]}, "annotation 7 .*category 9"),
        ({"annotations": [{**BOX, "image_id": 9}]}, "annotation 7 of image 9"),
        ({"annotations": [BOX, BOX]}, "1 annotation ids come twice: 7"),
        ({"annotations": [{**BOX, "bbox": [1, 2]}]}, "1 boxes are not four finite numbers"),
        ({"annotations": [], "images": [{"id": 5, "height": 8, "width": 9}]}, "image 5 has neither coco_url nor"),
        ({"categories": None}, "'categories' is NoneType"),
    ],
)
def test_damaged_entry_is_named(root, changes, message):
    path = root / "a.json"
    path.write_text(json.dumps({**CONTENT, **changes}))
    with pytest.raises(DatasetError, match=rf"a\.json.*{message}"):
        load_lvis_json(str(path), "coco")


def test_polygons_that_enclose_nothing_are_left_out_with_a_warning(root, caplog):
    line = {**BOX, "id": 8, "segmentation": [[1, 1, 4, 4]]}
    (root / "a.json").write_text(json.dumps({**CONTENT, "annotations": [BOX, line]}))
    _, first = load_lvis_json(str(root / "a.json"), "coco")
    assert len(first["annotations"]) == 1
    assert "left out 1 annotations" in caplog.text


def test_test_set_without_annotations_is_read(root):
    (root / "a.json").write_text(json.dumps({key: CONTENT[key] for key in ("images", "categories")}))
    assert [sample["annotations"] for sample in load_lvis_json(str(root / "a.json"), "coco")] == [[], []]


def test_file_of_another_version_is_refused(known):
    assert MetadataCatalog.get("lvis_v1_val").get("thing_classes")
    (known / "lvis/lvis_v1_val.json").write_text(
        json.dumps({**CONTENT, "categories": [*CATEGORIES, {"id": 3, "name": "c"}]})
    )
    with pytest.raises(DatasetError, match=r"2 thing_classes .* 3 categories"):
        DatasetCatalog.get("lvis_v1_val")


def test_unknown_version_is_refused():
    with pytest.raises(UnknownNameError, match=r"lvis_v1 or lvis_v0\.5"):
        get_lvis_instances_meta("lvis_v2_train")
