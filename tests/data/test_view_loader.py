"""The loader of training batches for a config with INPUT.VIEWS."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from detlib.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from detlib.data.datasets.register import register_datasets
from detlib.utils import comm
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import DatasetError

SIZES = [(20, 30), (30, 20), (24, 24), (20, 30), (31, 33)]


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


@pytest.fixture
def cfg(tiny_cfg):
    """Two views of 8 pixels of each image of ``tiny``."""
    tiny_cfg.DATASETS.TRAIN = ("tiny",)
    tiny_cfg.INPUT.VIEWS = [{"COUNT": 2, "AUGMENTATIONS": [{"NAME": "RandomResizedCrop", "SIZE": 8}]}]
    return tiny_cfg


@pytest.fixture
def own_catalog(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(DatasetCatalog, "data", dict(DatasetCatalog.data))


def noise(height, width):
    return np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8)


def samples_of(loader, num_batches):
    return list(itertools.chain(*itertools.islice(loader, num_batches)))


def test_training_loader_gives_views_and_evaluation_loader_an_image(dataset, cfg):
    dataset(*SIZES)
    sample = next(iter(build_detection_train_loader(cfg)))[0]
    assert len(sample["views"]) == 2 and "image" not in sample and "instances" not in sample
    (sample,) = next(iter(build_detection_test_loader(cfg, "tiny")))
    assert sample["image"].shape == (3, 64, 96) and "views" not in sample


def test_no_image_is_left_out_for_having_no_objects(dataset, cfg):
    dataset(*SIZES, annotations=[[], [{"category_id": 0, "iscrowd": 1}], [], [], []])
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS  # Does not count.
    seen = {sample["image_id"] for sample in samples_of(build_detection_train_loader(cfg), 5)}
    assert seen == {0, 1, 2, 3, 4}


def test_datasets_of_different_classes_go_together(dataset, cfg, metadata, monkeypatch, image_file):
    dataset(*SIZES)
    whale = {"file_name": image_file("others_0.png", 20, 30), "annotations": [{"category_id": 80}]}
    monkeypatch.setitem(DatasetCatalog.data, "others", lambda: [whale])
    metadata("others", thing_classes=["whale"])
    cfg.DATASETS.TRAIN = ("tiny", "others")
    samples = samples_of(build_detection_train_loader(cfg), 6)
    files = {sample["sample_idx"]: sample["file_name"] for sample in samples}
    assert len(files) == 6 and "others_0" in files[5]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_sample_idx_is_the_place_in_the_dataset_in_every_epoch(dataset, cfg, sampler, num_workers):
    dataset(*SIZES)  # The id of an image is its place.
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.NUM_WORKERS = num_workers
    samples = samples_of(build_detection_train_loader(cfg), 10)  # 4 epochs.
    assert all(sample["sample_idx"] == sample["image_id"] for sample in samples)
    assert {sample["sample_idx"] for sample in samples} == {0, 1, 2, 3, 4}


def test_sample_idx_is_the_same_in_all_processes(dataset, cfg, monkeypatch):
    dataset(*SIZES)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 3)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        seen += samples_of(build_detection_train_loader(cfg), 5)
    assert len(seen) == 10  # A batch of 2 is 1 for each of two processes: 2 epochs.
    assert sorted(sample["sample_idx"] for sample in seen) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert all(sample["sample_idx"] == sample["image_id"] for sample in seen)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_same_seed_gives_the_same_views(dataset, cfg, num_workers):
    dataset(*SIZES)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    jitter = {"NAME": "ColorJitter", "BRIGHTNESS": 0.4, "HUE": 0.1}
    cfg.INPUT.VIEWS[0]["AUGMENTATIONS"].append({"NAME": "RandomApply", "PROB": 0.8, "TFM_OR_AUG": jitter})
    cfg.INPUT.VIEWS[0]["AUGMENTATIONS"].append({"NAME": "RandomFlip"})

    def draw(seed):
        seed_all_rng(seed)
        samples = samples_of(build_detection_train_loader(cfg), 4)
        return [(sample["sample_idx"], torch.stack(sample["views"]).numpy().tobytes()) for sample in samples]

    first = draw(1)
    assert draw(1) == first != draw(2)


def test_workers_change_neither_order_nor_make_equal_views(dataset, cfg):
    dataset((20, 30))  # One image, so that equal draws would give equal views.

    def draw(num_workers):
        cfg.DATALOADER.NUM_WORKERS = num_workers
        seed_all_rng(1)
        return samples_of(build_detection_train_loader(cfg), 4)

    samples = draw(2)
    assert [sample["sample_idx"] for sample in samples] == [sample["sample_idx"] for sample in draw(0)]
    views = [view for sample in samples for view in sample["views"]]
    assert len({view.numpy().tobytes() for view in views}) == len(views) == 16


def test_batches_are_not_grouped_by_the_proportions_of_images(dataset, cfg):
    dataset((20, 30), (30, 20))
    assert cfg.DATALOADER.ASPECT_RATIO_GROUPING  # Does not count: both images are in each batch.
    batches = itertools.islice(build_detection_train_loader(cfg), 3)
    assert [sorted(sample["image_id"] for sample in batch) for batch in batches] == [[0, 1]] * 3


def write_images(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(20, 30)).save(folder / path)


def declare(cfg, **declaration):
    cfg.DATASETS.REGISTER = [{"NAME": "unlabelled", **declaration}]
    cfg.DATASETS.TRAIN = ("unlabelled",)
    register_datasets(cfg)


@pytest.mark.parametrize("type_name", ["images", "image_folder"])
def test_folders_are_learned_from_with_or_without_classes(cfg, tmp_path, own_catalog, metadata, type_name):
    metadata("unlabelled")
    write_images(tmp_path, "a/1.png", "b/2.png", *(["3.png", "c/d/4.png"] if type_name == "images" else []))
    declare(cfg, TYPE=type_name, IMAGES=str(tmp_path))
    samples = samples_of(build_detection_train_loader(cfg), 4)
    assert {sample["image_id"] for sample in samples} >= {"a/1.png", "b/2.png"}
    assert {sample["sample_idx"] for sample in samples} == set(range(4 if type_name == "images" else 2))
    assert all(len(sample["views"]) == 2 for sample in samples)


def test_coco_file_without_annotations_is_learned_from(cfg, tmp_path, own_catalog, metadata):
    metadata("unlabelled")
    write_images(tmp_path, "1.png", "2.png")
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (1, 2)]
    (tmp_path / "info.json").write_text(json.dumps({"images": images, "categories": []}))
    declare(cfg, TYPE="coco", JSON=str(tmp_path / "info.json"), IMAGES=str(tmp_path))
    samples = samples_of(build_detection_train_loader(cfg), 1)
    assert sorted(sample["image_id"] for sample in samples) == [1, 2]


class InMemory(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"image": noise(20, 30), "label": index, "annotations": []}


class Stream(IterableDataset):
    def __iter__(self):
        return (InMemory()[index] for index in itertools.count())


def test_torch_datasets_are_learned_from(cfg):
    samples = samples_of(build_detection_train_loader(cfg, dataset=InMemory()), 3)
    assert {(sample["sample_idx"], sample["label"]) for sample in samples} == {(0, 0), (1, 1), (2, 2)}
    (first, *_) = samples_of(build_detection_train_loader(cfg, dataset=Stream()), 1)
    assert len(first["views"]) == 2 and "sample_idx" not in first  # In a stream there is no place.


def test_own_mapper_knows_the_place_of_a_sample(dataset, cfg):
    dataset(*SIZES)
    loader = build_detection_train_loader(cfg, mapper=lambda sample: {"mine": sample["sample_idx"]})
    assert {sample["mine"] for sample in samples_of(loader, 5)} == {0, 1, 2, 3, 4}


def test_damaged_image_names_its_file(dataset, cfg):
    samples = dataset((20, 30))
    with open(samples[0]["file_name"], "r+b") as file:
        file.truncate(80)
    with pytest.raises(DatasetError, match=r"tiny_0\.png"):
        next(iter(build_detection_train_loader(cfg)))
