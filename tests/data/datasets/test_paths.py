import json
import os

import pytest

from detlib.config import get_cfg
from detlib.data import DatasetCatalog
from detlib.data.datasets import load_coco_json, register_coco_instances
from detlib.data.datasets.coco_panoptic import load_coco_panoptic_json
from detlib.data.datasets.image_folder import load_image_list
from detlib.data.datasets.lvis import load_lvis_json
from detlib.data.datasets.pascal_voc import load_voc_instances
from detlib.data.datasets.paths import Folder
from detlib.data.datasets.register import register_datasets
from detlib.data.datasets.sem_seg import load_sem_seg_json
from detlib.utils.errors import DatasetError


@pytest.fixture
def images(tmp_path):
    """A folder with a link to another folder, beside a secret."""
    (tmp_path / "images").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "images/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "way_in").symlink_to(tmp_path / "images")
    return tmp_path / "images"


def join(folder, name, **options):
    return Folder(str(folder), "a.json", **options).join(name, "image 1")


@pytest.mark.parametrize(
    "name", ["a.jpg", "sub/a.jpg", "./a.jpg", "..a.jpg", "sub/../a.jpg", "link/a.jpg", "a..b/c.jpg"]
)
def test_name_below_the_folder_is_joined_as_it_is(images, name):
    assert join(images, name) == os.path.join(images, name)


def test_absolute_name_below_the_folder_stays(images):
    assert join(images, str(images / "a.jpg")) == str(images / "a.jpg")


def test_folder_may_be_a_link_by_either_name(images):
    link = images.parent / "way_in"
    assert join(link, str(images / "a.jpg")) == str(images / "a.jpg")
    assert join(images, str(link / "a.jpg")) == str(link / "a.jpg")
    assert join(link, "sub/../a.jpg") == str(link / "sub/../a.jpg")


def test_folder_may_be_relative(images, monkeypatch):
    monkeypatch.chdir(images.parent)
    assert join("images", str(images / "a.jpg")) == str(images / "a.jpg")
    with pytest.raises(DatasetError):
        join("images", "../secret.jpg")


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "sub/../../secret.jpg", "/etc/passwd", "link/../secret.jpg", "{images}-2/a.jpg", "..", "a/../.."],
)
def test_name_that_leads_out_of_the_folder_is_refused_with_what_to_do(images, name):
    with pytest.raises(
        DatasetError, match=r"a\.json: image 1 names .*ALLOW_OUTSIDE: true.*allow_outside=True.*image_root"
    ):
        join(images, name.format(images=images))


def test_any_name_is_joined_where_that_is_allowed(images):
    assert join(images, "../secret.jpg", allow_outside=True) == f"{images}/../secret.jpg"
    assert join(images, "/etc/passwd", allow_outside=True) == "/etc/passwd"
    assert join("/", "/data/a.jpg") == "/data/a.jpg"


def test_without_a_folder_names_are_paths_but_no_urls():
    assert join("", "/data/a.jpg") == "/data/a.jpg"
    assert join("", "../a.jpg") == "../a.jpg"
    with pytest.raises(DatasetError, match="http://x"):
        join("", "http://x/a.jpg")


def test_below_a_url_names_go_down_only():
    assert join("s3://bucket/images", "a/b.jpg") == "s3://bucket/images/a/b.jpg"
    for name in ("../b.jpg", "/etc/passwd"):
        with pytest.raises(DatasetError, match="not below"):
            join("s3://bucket/images", name)


@pytest.mark.parametrize("name", ["", None, 5, ["a.jpg"], "a\0.jpg", "\ud800.jpg"])
def test_what_is_no_file_name_is_refused_even_where_all_is_allowed(images, name):
    with pytest.raises(DatasetError, match=r"image 1 has .* for the name of a file"):
        join(images, name, allow_outside=True)


def write(folder, content):
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return str(path)


OUT = {"id": 1, "file_name": "../secret.jpg", "sem_seg_file_name": "a.png", "height": 4, "width": 6}
META = {"thing_dataset_id_to_contiguous_id": {}, "stuff_dataset_id_to_contiguous_id": {}}


@pytest.mark.parametrize(
    ("load", "content", "arguments"),
    [
        (load_coco_json, {"images": [OUT], "categories": []}, 1),
        (load_lvis_json, {"images": [OUT], "categories": []}, 1),
        (load_lvis_json, {"images": [{**OUT, "coco_url": "http://x/../secret.jpg"}], "categories": []}, 1),
        (load_sem_seg_json, {"images": [OUT], "categories": []}, 2),
        (
            load_sem_seg_json,
            {"images": [{**OUT, "file_name": "a.jpg", "sem_seg_file_name": "../secret.jpg"}], "categories": []},
            2,
        ),
        (load_coco_panoptic_json, {"annotations": [{"image_id": 1, "file_name": "../a.png", "segments_info": []}]}, 2),
    ],
)
def test_no_annotation_file_names_files_outside_unless_allowed(images, load, content, arguments):
    path, folders = write(images, content), [str(images)] * arguments
    more = {"meta": META} if load is load_coco_panoptic_json else {}
    with pytest.raises(DatasetError, match="is not below the folder"):
        load(path, *folders, **more)
    assert len(load(path, *folders, **more, allow_outside=True)) == 1


def test_lists_of_images_name_no_files_outside(images):
    (images / "list.txt").write_text("../secret.jpg 0\n")
    with pytest.raises(DatasetError, match=r"line 1 names '\.\./secret\.jpg'"):
        load_image_list(str(images / "list.txt"), str(images), ["a"])
    assert len(load_image_list(str(images / "list.txt"), str(images), ["a"], allow_outside=True)) == 1
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (images / folder).mkdir(parents=True)
    (images / "ImageSets/Main/train.txt").write_text("../../secret\n")
    with pytest.raises(DatasetError, match=r"names '\.\./\.\./secret\.xml'"):
        load_voc_instances(str(images), "train", ["a"])


def test_entry_of_the_config_and_function_can_allow_names_outside(images):
    path = write(images, {"images": [OUT], "categories": [{"id": 1, "name": "a"}]})
    entry = {"TYPE": "coco", "JSON": path, "IMAGES": str(images)}
    cfg = get_cfg()
    cfg.DATASETS.REGISTER = [{**entry, "NAME": "strict"}, {**entry, "NAME": "free", "ALLOW_OUTSIDE": True}]
    register_datasets(cfg)
    register_coco_instances("by_code", {}, path, str(images), allow_outside=True)
    with pytest.raises(DatasetError):
        DatasetCatalog.get("strict")
    for name in ("free", "by_code"):
        assert DatasetCatalog.get(name)[0]["file_name"] == f"{images}/../secret.jpg"
