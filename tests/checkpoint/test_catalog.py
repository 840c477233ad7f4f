import pytest

from detlib.checkpoint.catalog import ModelCatalog
from detlib.utils.errors import UnknownNameError
from detlib.utils.file_io import PathManager


def test_imagenet_name_gives_an_address():
    address = ModelCatalog.get("ImageNetPretrained/MSRA/R-50")
    assert address == "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl"


def test_added_detectron_model_gives_an_address(monkeypatch):
    monkeypatch.setitem(ModelCatalog.C2_DETECTRON_MODELS, "1/e2e_keypoint_rcnn", "1/folder")
    address = ModelCatalog.get("Caffe2Detectron/COCO/1/e2e_keypoint_rcnn")
    assert address.endswith("detectron/1/folder/output/train/keypoints_coco_2014_train%3Akeypoints_coco_2014_"
                            "valminusminival/generalized_rcnn/model_final.pkl")  # fmt: skip


def test_unknown_name_suggests_the_closest():
    with pytest.raises(UnknownNameError, match="did you mean 'MSRA/R-50'"):
        ModelCatalog.get("ImageNetPretrained/MSRA/R50")


def test_catalog_paths_are_known_to_the_path_manager():
    with pytest.raises(UnknownNameError):
        PathManager.get_local_path("catalog://ImageNetPretrained/nobody/nothing")
