import numpy as np
import pytest

from detlib.config import get_cfg
from detlib.data import DatasetMapper
from detlib.data import detection_utils as utils
from detlib.data import transforms as T
from detlib.utils.errors import ConfigError, ConfigTypeError


def test_augmentation_of_training_resizes_and_flips():
    cfg = get_cfg()
    assert [type(a) for a in utils.build_augmentation(cfg, True)] == [T.ResizeShortestEdge, T.RandomFlip]
    cfg.INPUT.RANDOM_FLIP = "none"
    assert [type(a) for a in utils.build_augmentation(cfg, True)] == [T.ResizeShortestEdge]
    cfg.INPUT.RANDOM_FLIP = "diagonal"
    with pytest.raises(ConfigError, match=r"INPUT.RANDOM_FLIP.*'diagonal'"):
        utils.build_augmentation(cfg, True)


@pytest.mark.parametrize(("pad", "size"), [(True, (64, 96)), (False, (50, 25))])
def test_large_scale_jitter_fits_the_image_into_a_size_and_crops_to_it(pad, size):
    cfg = get_cfg()
    cfg.INPUT.LARGE_SCALE_JITTER.merge_from_list(["ENABLED", True, "SIZE", [64, 96], "PAD", pad])
    cfg.INPUT.LARGE_SCALE_JITTER.merge_from_list(["MIN_SCALE", 50 / 64, "MAX_SCALE", 50 / 64])
    augmentations = utils.build_augmentation(cfg, True)
    assert [type(a) for a in augmentations] == [T.ResizeScale, T.FixedSizeCrop, T.RandomFlip]
    sample = T.AugInput(np.zeros((100, 50, 3), np.uint8))
    T.AugmentationList(augmentations)(sample)
    assert sample.image.shape[:2] == size
    cfg.INPUT.LARGE_SCALE_JITTER.merge_from_list(["MIN_SCALE", 2.0, "MAX_SCALE", 2.0])
    sample = T.AugInput(np.zeros((100, 150, 3), np.uint8))
    T.AugmentationList(utils.build_augmentation(cfg, True))(sample)
    assert sample.image.shape[:2] == (64, 96)  # Cut from 128 x 192.


def test_augmentation_of_evaluation_only_resizes():
    (resize,) = utils.build_augmentation(get_cfg(), False)
    transform = resize.get_transform(np.zeros((400, 500, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == (800, 1000)


CIFAR_TRAIN = [{"NAME": "RandomPaddedCrop", "SIZE": 32, "PADDING": 4}, {"NAME": "RandomFlip"}]


def test_augmentations_by_name_are_the_whole_list():
    cfg = get_cfg()
    cfg.INPUT.AUGMENTATIONS_TRAIN = CIFAR_TRAIN
    cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "CenterCrop", "SIZE": 32}]
    assert [type(a) for a in utils.build_augmentation(cfg, True)] == [T.RandomPaddedCrop, T.RandomFlip]
    assert [type(a) for a in utils.build_augmentation(cfg, False)] == [T.CenterCrop]
    assert [type(a) for a in DatasetMapper(cfg).augmentations.augs] == [T.RandomPaddedCrop, T.RandomFlip]


def test_augmentations_by_name_come_from_a_config_file(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "INPUT:\n  FORMAT: RGB\n  AUGMENTATIONS_TRAIN:\n  - {NAME: RandomResizedCrop, SIZE: 8, SCALE: [0.2, 1]}\n"
        "  - {NAME: RandomApply, PROB: 0.5, TFM_OR_AUG: {NAME: GaussianBlur, SIGMA: [0.1, 2]}}\n"
    )
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "c.yaml"))
    crop, blur = utils.build_augmentation(cfg, True)
    assert (crop.size, crop.scale, blur.aug.sigma) == ((8, 8), (0.2, 1), (0.1, 2))


@pytest.mark.parametrize("section", ["CROP", "LARGE_SCALE_JITTER"])
def test_other_crops_beside_augmentations_by_name_are_refused(section):
    cfg = get_cfg()
    cfg.INPUT.AUGMENTATIONS_TRAIN = CIFAR_TRAIN
    cfg.INPUT[section].ENABLED = True
    with pytest.raises(ConfigError, match=rf"AUGMENTATIONS_TRAIN is the whole list, but INPUT.{section}.ENABLED"):
        utils.build_augmentation(cfg, True)
    assert len(utils.build_augmentation(cfg, False)) == 1  # They are for training only.


def test_mistake_in_an_augmentation_names_its_list():
    cfg = get_cfg()
    cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "CenterCrop", "SIZE": 32}, {"NAME": "RandomFlip", "PROP": 1}]
    with pytest.raises(ConfigTypeError, match=r"INPUT.AUGMENTATIONS_TEST\[1\]: .*takes no PROP; did you mean PROB"):
        utils.build_augmentation(cfg, False)


def test_boxes_follow_masks_after_augmentations_by_name():
    cfg = get_cfg()
    cfg.INPUT.AUGMENTATIONS_TRAIN = CIFAR_TRAIN
    assert not DatasetMapper(cfg).recompute_boxes
    cfg.MODEL.MASK_ON = True
    assert DatasetMapper(cfg).recompute_boxes
    assert not DatasetMapper(cfg, is_train=False).recompute_boxes
