import logging

import pytest
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader, get_detection_dataset_dicts
from detlib.data.datasets import (
    load_image_folder,
    load_image_list,
    load_images,
    register_image_folder,
    register_images,
)
from detlib.utils.errors import ConfigError, DatasetError, MissingFileError


@pytest.fixture
def folder(tmp_path):
    """Makes empty files below a folder: ``folder("cat/1.jpg", "dog/")``; a path that ends in / is a folder."""

    def make(*paths):
        for path in paths:
            target = tmp_path / path
            (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
            if not path.endswith("/"):
                target.touch()
        return str(tmp_path)

    return make


def labels(samples):
    return {sample["image_id"]: sample["label"] for sample in samples}


def test_label_is_the_place_of_the_folder_in_sorted_order(folder):
    root = folder("dog/1.jpg", "Cow/1.jpg", "cat/1.jpg")
    assert labels(load_image_folder(root)) == {"Cow/1.jpg": 0, "cat/1.jpg": 1, "dog/1.jpg": 2}


def test_sample_has_file_id_and_label_and_no_size(folder):
    root = folder("cat/1.jpg")
    assert load_image_folder(root) == [{"file_name": f"{root}/cat/1.jpg", "image_id": "cat/1.jpg", "label": 0}]


def test_files_are_sorted_and_found_at_any_depth_whatever_the_case_of_their_ending(folder):
    root = folder("a/9.jpg", "a/b/c/1.PNG", "a/10.Jpeg", "a/x.ppm", "a/x.bmp", "a/x.pgm", "a/x.tif", "a/readme.txt")
    found = [sample["image_id"] for sample in load_image_folder(root)]
    assert found == ["a/10.Jpeg", "a/9.jpg", "a/b/c/1.PNG", "a/x.bmp", "a/x.pgm", "a/x.ppm", "a/x.tif"]


def test_hidden_files_and_folders_are_left_out(folder):
    root = folder("cat/1.jpg", "cat/._1.jpg", "cat/.thumbs/1.jpg", ".ipynb_checkpoints/1.jpg")
    assert labels(load_image_folder(root)) == {"cat/1.jpg": 0}


def test_linked_folders_are_followed(folder, tmp_path):
    root = folder("all/cat/1.jpg", "some/")
    (tmp_path / "some/cat").symlink_to(tmp_path / "all/cat")
    assert labels(load_image_folder(f"{root}/some")) == {"cat/1.jpg": 0}


def test_empty_class_keeps_its_label_and_is_warned_of(folder, caplog):
    root = folder("cat/1.jpg", "cow/readme.txt", "dog/1.jpg")
    with caplog.at_level(logging.WARNING):
        assert labels(load_image_folder(root)) == {"cat/1.jpg": 0, "dog/1.jpg": 2}
    assert "no image is of cow" in caplog.text


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["cat/readme.txt", "dog/"], r"no image in its folders cat, dog; .*\.jpg, \.jpeg, \.png, .*\.tif"),
        (["1.jpg"], r"no image in a folder; .*name_of_class/image\.jpg.* a list of them, ANNOTATIONS; or TYPE: images"),
    ],
)
@pytest.mark.parametrize("error", [DatasetError, RuntimeError])
def test_no_image_at_all_is_an_error_that_lists_the_endings(folder, paths, message, error):
    with pytest.raises(error, match=message):
        load_image_folder(folder(*paths))


def test_missing_folder_is_named(folder):
    with pytest.raises(MissingFileError, match="nowhere"):
        load_image_folder(folder() + "/nowhere")


def test_given_classes_rename_the_folders(folder):
    register_image_folder("pets", folder("n01/1.jpg", "n02/1.jpg"), classes=["cat", "dog"])
    assert MetadataCatalog.get("pets").classes == ("cat", "dog")
    assert labels(DatasetCatalog.get("pets")) == {"n01/1.jpg": 0, "n02/1.jpg": 1}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat"], r"CLASSES has 1 names \(cat\), but .* has 2 folders \(cat, dog\)"),
        (["dog", "cat"], r"CLASSES has 'dog' where .* has the folder 'cat'; .*write \[cat, dog\]"),
    ],
)
def test_classes_that_do_not_fit_the_folders_are_refused(folder, classes, message):
    with pytest.raises(DatasetError, match=message):
        load_image_folder(folder("cat/1.jpg", "dog/1.jpg"), classes)


def test_registering_reads_nothing_and_classes_are_those_of_the_folders(folder, tmp_path):
    register_image_folder("pets", tmp_path / "pets")
    folder("pets/cat/1.jpg", "pets/dog/1.jpg")
    metadata = MetadataCatalog.get("pets")
    assert metadata.classes == metadata.get("classes") == ("cat", "dog")
    assert metadata.evaluator_type == "image_classification"
    assert metadata.image_root == str(tmp_path / "pets")


def test_classes_of_a_missing_folder_are_unknown(tmp_path):
    register_image_folder("pets", tmp_path / "nowhere")
    assert MetadataCatalog.get("pets").get("classes") is None
    with pytest.raises(MissingFileError, match="nowhere"):
        _ = MetadataCatalog.get("pets").classes


def test_images_without_labels_are_found_at_any_depth_sorted_by_their_path(folder):
    root = folder("b.jpg", "a/2.png", "a/c/1.jpg", "readme.txt", ".thumbs/1.jpg", "._b.jpg")
    assert load_images(root) == [
        {"file_name": f"{root}/{path}", "image_id": path} for path in ("a/2.png", "a/c/1.jpg", "b.jpg")
    ]


def test_registering_images_without_labels_reads_nothing(folder, tmp_path):
    register_images("pets", tmp_path / "pets")
    folder("pets/1.jpg")
    assert [sample["image_id"] for sample in DatasetCatalog.get("pets")] == ["1.jpg"]
    assert MetadataCatalog.get("pets").get("classes") is None


def test_folder_without_images_and_missing_folder_are_refused(folder):
    with pytest.raises(RuntimeError, match=r"has no image; expected files that end in \.jpg"):
        load_images(folder("readme.txt"))
    with pytest.raises(MissingFileError, match="nowhere"):
        load_images(folder() + "/nowhere")


def write_list(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    return tmp_path / "list.txt"


def test_list_gives_path_and_class_split_at_the_last_blank(folder, tmp_path):
    root = folder("a/1.jpg", "b c/2 3.jpg")
    listed = load_image_list(write_list(tmp_path, "b c/2 3.jpg 1\n\na/1.jpg 0\n"), root, ["x", "y"])
    assert listed == [
        {"file_name": f"{root}/b c/2 3.jpg", "image_id": "b c/2 3.jpg", "label": 1},
        {"file_name": f"{root}/a/1.jpg", "image_id": "a/1.jpg", "label": 0},
    ]


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("a/1.jpg 2", DatasetError, r"list\.txt:2: class 2 does not exist; there are 2 classes, .*: x, y"),
        ("a/1.jpg -1", DatasetError, r"list\.txt:2: class -1 does not exist"),
        ("a/1.jpg", DatasetError, r"list\.txt:2: 'a/1\.jpg' is not a path, a blank and a class"),
        ("0", DatasetError, r"list\.txt:2: '0' is not"),
        ("a/2.jpg 0", MissingFileError, r"list\.txt:2: image '.*a/2\.jpg' does not exist"),
        ("b/1.jpg 0", MissingFileError, r"list\.txt:2: image '.*b/1\.jpg' does not exist"),
    ],
)
def test_mistake_in_a_list_names_file_and_line(folder, tmp_path, line, error, message):
    root = folder("a/1.jpg")
    with pytest.raises(error, match=message):
        load_image_list(write_list(tmp_path, f"a/1.jpg 0\n{line}\n"), root, ["x", "y"])


def test_list_of_nothing_and_missing_list_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"list\.txt' lists no image"):
        load_image_list(write_list(tmp_path, "\n"), str(tmp_path), ["x"])
    with pytest.raises(MissingFileError, match=r"none\.txt"):
        load_image_list(tmp_path / "none.txt", str(tmp_path), ["x"])


def test_list_needs_the_names_of_the_classes(tmp_path):
    with pytest.raises(ConfigError, match=r"'pets': a list of images .* in CLASSES"):
        register_image_folder("pets", tmp_path, "list.txt")
    assert "pets" not in DatasetCatalog


def test_registered_list_loads_and_its_images_are_counted(folder, tmp_path, caplog):
    root = folder("a/1.jpg", "a/2.jpg", "b/3.jpg")
    path = write_list(tmp_path, "a/1.jpg 1\na/2.jpg 1\nb/3.jpg 0\n")
    register_image_folder("pets", root, path, ["cat", "dog"])
    with caplog.at_level(logging.INFO):
        assert [sample["label"] for sample in get_detection_dataset_dicts("pets")] == [1, 1, 0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in caplog.text.splitlines() if "|" in line]
    assert rows[-1] == ["cat", "1", "dog", "2", "total", "3"]
    assert rows[0][:2] == ["class", "images"]


def test_folder_of_images_trains_with_grouping_by_aspect_ratio(folder, tmp_path, tiny_cfg):
    root = folder("cat/", "dog/")
    for i, size in enumerate([(20, 40), (40, 20), (30, 30)]):
        Image.new("RGB", size, (i, 0, 0)).save(f"{root}/{'cat' if i else 'dog'}/{i}.png")
    register_image_folder("pets", root)
    tiny_cfg.DATASETS.TRAIN = ("pets",)
    tiny_cfg.INPUT.AUGMENTATIONS_TRAIN = [{"NAME": "RandomResizedCrop", "SIZE": 16}]
    assert tiny_cfg.DATALOADER.ASPECT_RATIO_GROUPING
    loader = iter(build_detection_train_loader(tiny_cfg))
    samples = [sample for _ in range(3) for sample in next(loader)]  # Two passes.
    assert {sample["image"].shape for sample in samples} == {(3, 16, 16)}
    assert sorted((sample["image_id"], sample["label"]) for sample in samples) == [
        ("cat/1.png", 0),
        ("cat/1.png", 0),
        ("cat/2.png", 0),
        ("cat/2.png", 0),
        ("dog/0.png", 1),
        ("dog/0.png", 1),
    ]
    assert {(s["height"], s["width"]) for s in samples} == {(20, 40), (40, 20), (30, 30)}
