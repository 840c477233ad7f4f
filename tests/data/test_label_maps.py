import numpy as np
import pytest
import torch
from PIL import Image

from detlib.config import get_cfg
from detlib.data import DatasetMapper
from detlib.data import transforms as T
from detlib.data.label_maps import read_label_map, semantic_labels_of
from detlib.utils.errors import DatasetError, MissingFileError

LABELS = np.array([[0, 1, 2, 255], [3, 3, 3, 3]], dtype=np.uint8)


def write(path, array, palette=False):
    image = Image.fromarray(array)
    if palette:
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([200, 10, 10, 10, 200, 10] + [7] * (256 * 3 - 6))
    image.save(path)
    return str(path)


@pytest.mark.parametrize("palette", [False, True], ids=["gray", "palette"])
def test_pixel_values_are_classes_whatever_their_colors(tmp_path, palette):
    labels = read_label_map(write(tmp_path / "a.png", LABELS, palette))
    assert labels.dtype == np.uint8
    assert labels.tolist() == LABELS.tolist()


def test_labels_of_16_bits_keep_their_values(tmp_path):
    labels = read_label_map(write(tmp_path / "a.png", np.array([[0, 700]], dtype=np.uint16)))
    assert labels.tolist() == [[0, 700]]


def test_gray_stored_as_rgb_is_read_as_gray(tmp_path):
    labels = read_label_map(write(tmp_path / "a.png", np.repeat(LABELS[:, :, None], 3, axis=2)))
    assert labels.tolist() == LABELS.tolist()


def test_colors_are_refused(tmp_path):
    path = write(tmp_path / "a.png", np.array([[[0, 1, 2]]], dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"a\.png has the shape \(1, 1, 3\).*pixel values are classes"):
        read_label_map(path)


def test_missing_label_map_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.png does not exist"):
        read_label_map(tmp_path / "none.png")


def panoptic_sample(tmp_path, segments):
    """Segments 0 (none), 1 and 256 + 2, a pixel each."""
    colors = np.array([[[0, 0, 0], [1, 0, 0], [2, 1, 0]]], dtype=np.uint8)
    return {"pan_seg_file_name": write(tmp_path / "p.png", colors), "segments_info": segments}


def test_labels_come_from_panoptic_segments_that_state_them(tmp_path):
    segments = [{"id": 1, "sem_seg_label": 0}, {"id": 258, "sem_seg_label": 7}]
    assert semantic_labels_of(panoptic_sample(tmp_path, segments)).tolist() == [[255, 0, 7]]


def test_panoptic_segments_without_labels_give_no_label_map(tmp_path):
    assert semantic_labels_of(panoptic_sample(tmp_path, [{"id": 1}, {"id": 258}])) is None
    assert semantic_labels_of({"file_name": "a.jpg"}) is None


def test_unknown_segment_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"p\.png has the segment 258"):
        semantic_labels_of(panoptic_sample(tmp_path, [{"id": 1, "sem_seg_label": 0}]))


# The mapper


@pytest.fixture
def labelled(image_file, tmp_path):
    """An image of 20 x 40 pixels; the left half of its labels is 1, the right half 2."""
    labels = np.full((20, 40), 1, dtype=np.uint8)
    labels[:, 20:] = 2
    return {"file_name": image_file("a.png", 20, 40), "sem_seg_file_name": write(tmp_path / "labels.png", labels)}


def mapper(is_train=True, augmentations=()):
    return DatasetMapper(is_train, augmentations=list(augmentations), image_format="BGR")


def test_labels_follow_the_image(labelled):
    mapped = mapper(augmentations=[T.HFlipTransform(40), T.Resize((10, 20))])(labelled)
    assert mapped["sem_seg"].dtype == torch.int64
    assert mapped["sem_seg"].shape == mapped["image"].shape[1:] == (10, 20)
    assert mapped["sem_seg"][0].tolist() == [2] * 10 + [1] * 10
    assert "sem_seg_file_name" not in mapped
    assert "instances" not in mapped


def test_labels_are_not_read_for_predictions(labelled):
    mapped = mapper(is_train=False)({**labelled, "sem_seg_file_name": "none.png"})
    assert "sem_seg" not in mapped
    assert "sem_seg_file_name" not in mapped


def test_label_map_of_another_size_names_both_files(labelled, tmp_path):
    labelled["sem_seg_file_name"] = write(tmp_path / "small.png", LABELS)
    with pytest.raises(DatasetError, match=r"a\.png, .*small\.png, is 2 x 4 \(height x width\), but the image 20 x 40"):
        mapper()(labelled)


def test_crops_respect_the_largest_area_of_one_class(labelled):
    """Half of the width is of each class, so a crop of which no class has 60 % lies in the middle."""
    cfg = get_cfg()
    cfg.INPUT.CROP.merge_from_list(["ENABLED", True, "TYPE", "absolute", "SIZE", [20, 20]])
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.6
    cfg.INPUT.merge_from_list(["MIN_SIZE_TRAIN", (20,), "RANDOM_FLIP", "none"])
    crop = DatasetMapper(cfg, is_train=True)
    assert isinstance(crop.augmentations.augs[0], T.RandomCrop_CategoryAreaConstraint)
    np.random.seed(0)
    shares = [(crop(labelled)["sem_seg"] == 1).float().mean().item() for _ in range(10)]
    assert np.median(shares) == pytest.approx(0.5, abs=0.1)


def test_padding_of_large_scale_jitter_is_ignored(labelled):
    cfg = get_cfg()
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    jitter.merge_from_list(["ENABLED", True, "SIZE", [64, 64], "MIN_SCALE", 0.5, "MAX_SCALE", 0.5, "PAD", True])
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 200
    labels = DatasetMapper(cfg, is_train=True)(labelled)["sem_seg"]
    assert labels.shape == (64, 64)
    assert labels.unique().tolist() == [1, 2, 200]
