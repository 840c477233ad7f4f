"""The brief look before a training stops what would surely fail, and breaks nothing else."""

import logging

import pytest

from detlib.config import get_cfg
from detlib.data import DatasetMapper, build_detection_train_loader
from detlib.data.check import check_briefly
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("tiny",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 1
    return cfg


def lost(dataset):
    """A dataset whose second image is not there."""
    samples = dataset((6, 8), (6, 8))
    samples[1]["file_name"] = "gone.png"


def test_sound_data_is_passed_with_a_line(dataset, cfg, caplog):
    dataset((6, 8), (6, 8))
    with caplog.at_level(logging.INFO, "detlib"):
        check_briefly(cfg, build_detection_train_loader(cfg))
    assert "Looked at 2 of 2 training images" in caplog.messages[-1]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_image_that_does_not_exist_stops_with_its_name_and_the_tool(dataset, cfg):
    lost(dataset)
    with pytest.raises(DatasetError, match=r"gone\.png, image 1(.|\n)*tools/check_data\.py(.|\n)*DATALOADER.CHECK"):
        check_briefly(cfg, build_detection_train_loader(cfg))


def test_other_size_stops(dataset, cfg):
    dataset((6, 8))[0]["height"] = 7
    with pytest.raises(DatasetError, match=r"is 6 x 8 \(height x width\), but its dataset says 7 x 8"):
        check_briefly(cfg, build_detection_train_loader(cfg))


def test_what_training_survives_is_a_warning_with_its_remedy(dataset, cfg, caplog):
    box = {"bbox": [1, 2, 0, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    dataset((6, 8), annotations=[[box]])
    check_briefly(cfg, build_detection_train_loader(cfg))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "boxes without area" in warning and "-> correct or delete them" in warning


@pytest.mark.parametrize("option", [("DATALOADER.ON_CORRUPT", "skip"), ("DATALOADER.CHECK", "False")])
def test_options_let_training_go_on(dataset, cfg, caplog, option):
    lost(dataset)
    cfg.merge_from_list(list(option))
    check_briefly(cfg, build_detection_train_loader(cfg))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (1 if option[1] == "skip" else 0)


class FindsFilesItself(DatasetMapper):
    pass


def test_mapper_of_ones_own_is_only_warned(dataset, cfg, caplog):
    lost(dataset)
    check_briefly(cfg, build_detection_train_loader(cfg, mapper=FindsFilesItself(cfg, True)))
    assert "gone.png" in caplog.text


def test_loader_of_ones_own_is_left_alone(dataset, cfg, caplog):
    lost(dataset)
    check_briefly(cfg, [[{"image": 1}]])
    cfg.DATASETS.TRAIN = ("fed_by_hand",)
    check_briefly(cfg, iter(()))
    assert not caplog.records


def test_check_that_fails_does_not_stop(dataset, cfg, caplog):
    samples = dataset((6, 8))
    loader = build_detection_train_loader(cfg)
    del samples
    loader.dataset.dataset.source._lst = ["no sample"]
    check_briefly(cfg, loader)
    assert "could not be checked" in caplog.text


def test_test_data_that_is_not_there_is_a_warning(dataset, cfg, caplog, tmp_path):
    from detlib.data.datasets.register import register_datasets

    dataset((6, 8))
    entry = {"NAME": "lost_test", "TYPE": "coco", "JSON": str(tmp_path / "no.json"), "IMAGES": str(tmp_path)}
    cfg.DATASETS.REGISTER, cfg.DATASETS.TEST = [entry], ("lost_test",)
    register_datasets(cfg)
    check_briefly(cfg, build_detection_train_loader(cfg))
    assert "no.json" in caplog.text and "DATASETS.TEST" in caplog.text
