import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from detlib.data import DatasetCatalog, build_detection_train_loader, build_feature_loader
from detlib.utils import comm
from detlib.utils.errors import DatasetError

SIZES = [(20, 30), (30, 20), (24, 24), (20, 30), (31, 33)]


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.DATASETS.TRAIN = ("tiny",)
    tiny_cfg.INPUT.VIEWS = [{"COUNT": 2, "AUGMENTATIONS": [{"NAME": "RandomResizedCrop", "SIZE": 14}]}]
    return tiny_cfg


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_sample_comes_once_in_the_order_of_the_dataset(dataset, cfg, num_workers):
    dataset(*SIZES, annotations=[[]] * 5)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    batches = list(build_feature_loader(cfg, 2))
    assert [[sample["sample_idx"] for sample in batch] for batch in batches] == [[0, 1], [2, 3], [4]]
    assert all(sample["image_id"] == sample["sample_idx"] for batch in batches for sample in batch)


def test_of_a_limited_number_the_same_samples_come_again_in_their_order(dataset, cfg):
    dataset(*SIZES)
    first, second = (
        [sample["sample_idx"] for batch in build_feature_loader(cfg, 2, limit=3) for sample in batch] for _ in range(2)
    )
    assert first == second == sorted(set(first)) and len(first) == 3


def test_indices_are_those_of_training(dataset, cfg):
    dataset(*SIZES, annotations=[[], [], [{"category_id": 0}], [], []])
    files = {sample["sample_idx"]: sample["file_name"] for (sample,) in build_feature_loader(cfg, 1)}
    trained = itertools.chain(*itertools.islice(build_detection_train_loader(cfg), 5))
    assert {sample["sample_idx"]: sample["file_name"] for sample in trained} == files


def test_each_process_gets_its_part(dataset, cfg, monkeypatch):
    dataset(*SIZES)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append([sample["sample_idx"] for batch in build_feature_loader(cfg, 2) for sample in batch])
    assert shares == [[0, 1, 2], [3, 4]]


def test_image_is_the_middle_in_the_size_of_the_first_view(dataset, cfg):
    samples = dataset((32, 32))
    ((sample,),) = build_feature_loader(cfg, 1)
    # The shorter side becomes 14 * 8 / 7 = 16, of which the middle 14 pixels are taken.
    pixels = np.asarray(Image.open(samples[0]["file_name"]).resize((16, 16), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(pixels[1:15, 1:15, ::-1].copy()).permute(2, 0, 1)  # BGR.
    assert torch.equal(sample["image"], expected)
    assert "views" not in sample and "annotations" not in sample


def test_size_is_that_before_a_split(dataset, cfg):
    dataset((20, 30))
    cfg.INPUT.VIEWS[0]["SPLIT"] = {"NAME": "GridPatches", "PATCH_SIZE": 3}
    ((sample,),) = build_feature_loader(cfg, 1)
    assert sample["image"].shape == (3, 14, 14)


def test_augmentations_for_testing_come_first(dataset, cfg):
    dataset(*SIZES)
    cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "Resize", "SHAPE": [5, 6]}]
    assert {tuple(sample["image"].shape) for (sample,) in build_feature_loader(cfg, 1)} == {(3, 5, 6)}


def test_features_do_not_need_views(dataset, cfg):
    dataset((20, 30))
    cfg.INPUT.VIEWS = []
    ((sample,),) = build_feature_loader(cfg, 1)
    assert sample["image"].shape == (3, 64, 96)  # INPUT.MIN_SIZE_TEST


def test_other_datasets_may_be_asked_for(dataset, cfg):
    dataset(*SIZES)
    dataset((20, 30), name="others")
    ((sample,),) = build_feature_loader(cfg, 1, "others")
    assert "others_0" in sample["file_name"] and sample["sample_idx"] == 0


def test_labels_stay(cfg, monkeypatch):
    samples = [{"image": np.zeros((20, 20, 3), np.uint8), "label": label} for label in (2, 0)]
    monkeypatch.setitem(DatasetCatalog.data, "tiny", lambda: samples)
    assert [sample["label"] for (sample,) in build_feature_loader(cfg, 1)] == [2, 0]


def test_nothing_is_drawn(dataset, cfg):
    dataset(*SIZES)
    np.random.seed(5)
    first = [sample["image"] for (sample,) in build_feature_loader(cfg, 1)]
    state = np.random.rand()
    np.random.seed(5)
    assert np.random.rand() == state
    second = [sample["image"] for (sample,) in build_feature_loader(cfg, 1)]
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_stream_is_refused(cfg, monkeypatch):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    monkeypatch.setitem(DatasetCatalog.data, "tiny", Stream)
    with pytest.raises(DatasetError, match="a place in their dataset, got an IterableDataset"):
        build_feature_loader(cfg, 1)
