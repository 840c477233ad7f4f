import itertools

import numpy as np
import pytest
from torch.utils.data import Dataset, IterableDataset

from detlib.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detlib.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detlib.utils import comm
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import ConfigError, DatasetError, MissingFileError, UnknownNameError

WIDE, TALL = (40, 60), (60, 40)


@pytest.fixture
def own_catalog(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(DatasetCatalog, "data", dict(DatasetCatalog.data))


def first(loader, n):
    return list(itertools.islice(loader, n))


def ids(batches):
    return [[sample["image_id"] for sample in batch] for batch in batches]


def test_datasets_are_joined_in_their_order(dataset):
    a, b = dataset(WIDE), dataset(WIDE, TALL, name="tiny_too")
    assert get_detection_dataset_dicts(["tiny", "tiny_too"]) == a + b
    assert get_detection_dataset_dicts("tiny") == a


def test_images_without_objects_are_filtered_on_request(dataset):
    samples = dataset(WIDE, WIDE, annotations=[[], [{"category_id": 0}]])
    assert get_detection_dataset_dicts("tiny") == samples[1:]
    assert get_detection_dataset_dicts("tiny", filter_empty=False) == samples


def test_dataset_that_the_filter_empties_says_why(dataset):
    dataset(WIDE, WIDE, annotations=[[], [{"category_id": 0, "iscrowd": 1}]])
    with pytest.raises(DatasetError, match=r"no image is left of tiny: all 2 .*FILTER_EMPTY_ANNOTATIONS: False"):
        get_detection_dataset_dicts("tiny")


def test_dataset_without_samples_is_named(dataset):
    dataset()
    with pytest.raises(DatasetError, match="'tiny' has no samples"):
        get_detection_dataset_dicts("tiny")


def test_unknown_dataset_suggests_a_name(dataset):
    dataset(WIDE)
    with pytest.raises(UnknownNameError, match="did you mean 'tiny'"):
        get_detection_dataset_dicts("tinny")


def test_no_dataset_names_the_config_key():
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN"):
        get_detection_dataset_dicts(())


def test_datasets_must_agree_on_their_classes(dataset, metadata):
    dataset(WIDE)
    DatasetCatalog.register("other", lambda: [{"annotations": []}])
    metadata("other", thing_classes=["cow"])
    with pytest.raises(DatasetError, match="thing_classes differ"):
        get_detection_dataset_dicts(["tiny", "other"])
    DatasetCatalog.remove("other")


def labelled(name, metadata, samples, classes=("cat", "dog")):
    DatasetCatalog.register(name, lambda: samples)
    metadata(name, classes=classes)


def test_labelled_images_are_not_filtered_as_empty(metadata, own_catalog):
    samples = [{"file_name": "a.jpg", "label": 1}, {"file_name": "b.jpg", "labels": []}]
    labelled("labelled", metadata, samples)
    assert get_detection_dataset_dicts("labelled", filter_empty=True, min_keypoints=1) == samples


def test_labels_must_be_classes_of_the_dataset(metadata, own_catalog):
    labelled("labelled", metadata, [{"file_name": "a.jpg", "label": 2}])
    with pytest.raises(DatasetError, match=r"a\.jpg has the label 2, but there are 2 classes"):
        get_detection_dataset_dicts("labelled")


def test_labelled_datasets_must_agree_on_their_classes(metadata, own_catalog):
    labelled("labelled", metadata, [{"label": 0}])
    labelled("others", metadata, [{"label": 0}], classes=("dog", "cat"))
    with pytest.raises(DatasetError, match=r"'labelled' and 'others' .*their classes differ"):
        get_detection_dataset_dicts(["labelled", "others"])


@pytest.fixture
def two_tasks(own_catalog, dataset, metadata, tiny_cfg):
    """A config of 3 images to detect in, of two shapes, and 5 small ones to classify, of other classes."""
    dataset(WIDE, TALL, WIDE)
    MetadataCatalog.get("tiny").task = "det"
    samples = [{"image": np.zeros((8, 8, 3), np.uint8), "label": 0, "image_id": 10 + i} for i in range(5)]
    labelled("labelled", metadata, samples, classes=("day", "night"))
    MetadataCatalog.get("labelled").task = "cls"
    tiny_cfg.DATASETS.TRAIN = ("tiny", "labelled")
    return tiny_cfg


def test_samples_carry_the_task_of_their_dataset(two_tasks):
    samples = get_detection_dataset_dicts(["labelled", "tiny"])
    assert [sample["task"] for sample in samples] == ["cls"] * 5 + ["det"] * 3
    assert all("task" not in sample for sample in DatasetCatalog.get("labelled"))


def test_samples_of_torch_datasets_carry_the_task_too(own_catalog, metadata):
    DatasetCatalog.register("images", lambda: DatasetFromList([{"image_id": 0}]))
    metadata("images", task="cls")
    assert get_detection_dataset_dicts("images")[0] == {"image_id": 0, "task": "cls"}


def test_empty_images_are_filtered_in_datasets_of_every_task(two_tasks, dataset):
    dataset(WIDE, WIDE, name="more", annotations=[[], [{"category_id": 1}]])
    MetadataCatalog.get("more").task = "det"
    samples = get_detection_dataset_dicts(["labelled", "tiny", "more"])
    assert [sample["image_id"] for sample in samples] == [10, 11, 12, 13, 14, 0, 1, 2, 1]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("grouping", [True, False])
def test_batches_of_two_datasets_are_of_one_task_each_and_lose_no_image(two_tasks, grouping, num_workers):
    two_tasks.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    two_tasks.DATALOADER.NUM_WORKERS = num_workers
    batches = first(build_detection_train_loader(two_tasks), 24)
    assert all(len(batch) == 2 and len({sample["task"] for sample in batch}) == 1 for batch in batches)
    assert {i for batch in ids(batches) for i in batch} == {0, 1, 2, 10, 11, 12, 13, 14}
    for sample in (sample for batch in batches for sample in batch):
        assert ("instances" in sample, "label" in sample) == ((True, False), (False, True))[sample["task"] == "cls"]


def test_images_in_memory_are_evaluated_in_order(metadata, own_catalog, tiny_cfg):
    samples = [{"image": np.full((8, 8, 3), i, np.uint8), "label": i % 2, "image_id": i} for i in range(3)]
    labelled("labelled", metadata, samples)
    tiny_cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "CenterCrop", "SIZE": 4}]
    batches = list(build_detection_test_loader(tiny_cfg, "labelled"))
    assert [(s["image_id"], s["label"], s["image"].shape) for (s,) in batches] == [
        (i, i % 2, (3, 4, 4)) for i in range(3)
    ]
    assert [s["image"].unique().tolist() for (s,) in batches] == [[0], [1], [2]]


def test_number_of_proposal_files_must_be_that_of_the_datasets(dataset):
    dataset(WIDE)
    with pytest.raises(ConfigError, match="PROPOSAL_FILES_TRAIN"):
        get_detection_dataset_dicts("tiny", proposal_files=[])


def test_batches_are_grouped_by_aspect_ratio(dataset, tiny_cfg):
    samples = dataset(WIDE, TALL, WIDE, TALL, WIDE)
    tiny_cfg.DATASETS.TRAIN = ("tiny",)
    for batch in first(build_detection_train_loader(tiny_cfg), 10):
        assert len(batch) == 2
        assert len({samples[sample["image_id"]]["width"] for sample in batch}) == 1
        assert all(len(sample["instances"]) == 1 for sample in batch)


@pytest.mark.parametrize("grouping", [True, False])
def test_fewer_images_than_the_batch_size_still_train(dataset, tiny_cfg, grouping):
    dataset(WIDE, TALL)
    tiny_cfg.DATASETS.TRAIN = ("tiny",)
    tiny_cfg.SOLVER.IMS_PER_BATCH = 5
    tiny_cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    assert [len(batch) for batch in first(build_detection_train_loader(tiny_cfg), 3)] == [5, 5, 5]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_same_seed_gives_the_same_batches(dataset, tiny_cfg, num_workers):
    dataset(WIDE, TALL, WIDE, TALL, WIDE)
    tiny_cfg.DATASETS.TRAIN = ("tiny",)
    tiny_cfg.INPUT.MIN_SIZE_TRAIN = (32, 40, 48, 56, 64)
    tiny_cfg.DATALOADER.NUM_WORKERS = num_workers

    def draw(seed):
        seed_all_rng(seed)
        batches = first(build_detection_train_loader(tiny_cfg), 4)
        return [(s["image_id"], s["image"].shape, s["image"].sum().item()) for batch in batches for s in batch]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize("grouping", [True, False])
def test_order_of_samples_does_not_depend_on_the_number_of_workers(dataset, grouping):
    samples = dataset(WIDE, TALL, WIDE, TALL, WIDE, WIDE, TALL)

    def draw(num_workers):
        loader = build_detection_train_loader(
            samples,
            mapper=None,
            sampler=TrainingSampler(7, seed=3),
            total_batch_size=3,
            aspect_ratio_grouping=grouping,
            num_workers=num_workers,
        )
        return ids(first(loader, 6))

    assert draw(0) == draw(1) == draw(2)


def test_workers_draw_different_augmentations():
    loader = build_batch_data_loader(
        Drawn(), None, 1, num_workers=2, seed=0, collate_fn=lambda batch: batch[0], drop_last=False
    )
    assert len(set(loader)) == 2


class Drawn(IterableDataset):
    def __iter__(self):
        yield np.random.rand()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("TrainingSampler", TrainingSampler), ("RepeatFactorTrainingSampler", RepeatFactorTrainingSampler)],
)
def test_sampler_is_chosen_by_name(dataset, tiny_cfg, name, kind):
    dataset(WIDE, WIDE)
    tiny_cfg.DATASETS.TRAIN = ("tiny",)
    tiny_cfg.DATALOADER.SAMPLER_TRAIN = name
    loader = build_detection_train_loader(tiny_cfg)
    assert isinstance(loader.dataset.sampler, kind)


def test_subset_sampler_needs_a_ratio(dataset, tiny_cfg):
    dataset(WIDE, WIDE)
    tiny_cfg.DATASETS.TRAIN = ("tiny",)
    tiny_cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    with pytest.raises(ConfigError, match="RANDOM_SUBSET_RATIO"):
        build_detection_train_loader(tiny_cfg)
    tiny_cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    loader = build_detection_train_loader(tiny_cfg)
    assert isinstance(loader.dataset.sampler, RandomSubsetTrainingSampler)


def test_unknown_sampler_lists_the_known(dataset, tiny_cfg):
    dataset(WIDE)
    tiny_cfg.DATASETS.TRAIN = ("tiny",)
    tiny_cfg.DATALOADER.SAMPLER_TRAIN = "Shuffle"
    with pytest.raises(UnknownNameError, match=r"SAMPLER has no 'Shuffle'; Known: .*TrainingSampler"):
        build_detection_train_loader(tiny_cfg)


def test_missing_image_names_its_file(dataset, tiny_cfg):
    samples = dataset(WIDE)
    samples[0]["file_name"] = "gone.png"
    tiny_cfg.DATASETS.TRAIN = ("tiny",)
    with pytest.raises(MissingFileError, match=r"gone\.png"):
        next(iter(build_detection_train_loader(tiny_cfg)))


def test_batch_size_is_split_over_the_processes(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    loader = build_batch_data_loader(list(range(8)), TrainingSampler(8, seed=0), 4)
    assert len(next(iter(loader))) == 2
    with pytest.raises(ConfigError, match=r"3 \(SOLVER.IMS_PER_BATCH\) must be a positive multiple .* 2"):
        build_batch_data_loader(list(range(8)), TrainingSampler(8, seed=0), 3)


def test_batch_size_of_one_process_may_be_given_instead():
    loader = build_batch_data_loader(list(range(8)), TrainingSampler(8), None, single_gpu_batch_size=3)
    assert len(next(iter(loader))) == 3
    with pytest.raises(ValueError, match="not both"):
        build_batch_data_loader(list(range(8)), TrainingSampler(8), 3, single_gpu_batch_size=3)


def test_collate_function_makes_the_batch(dataset):
    samples = dataset(WIDE, WIDE)
    for grouping in (True, False):
        loader = build_detection_train_loader(
            samples, mapper=None, total_batch_size=2, aspect_ratio_grouping=grouping, collate_fn=len
        )
        assert first(loader, 2) == [2, 2]


class Stream(IterableDataset):
    def __iter__(self):
        for i in itertools.count():
            yield {"image_id": i, "width": 2, "height": 1}


def test_iterable_dataset_is_taken_as_it_comes():
    loader = build_detection_train_loader(Stream(), mapper=None, total_batch_size=2)
    assert ids(first(loader, 2)) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="sampler=None"):
        build_detection_train_loader(Stream(), mapper=None, sampler=TrainingSampler(3), total_batch_size=2)


def test_own_mapper_and_samples_go_with_a_config(dataset, tiny_cfg):
    samples = dataset(WIDE)
    loader = build_detection_train_loader(tiny_cfg, mapper=lambda sample: {**sample, "mine": 1}, dataset=samples)
    assert [sample["mine"] for sample in next(iter(loader))] == [1, 1]


def test_evaluation_sees_every_image_once_also_those_without_objects(dataset, tiny_cfg):
    dataset(WIDE, TALL, WIDE, annotations=[[], [{"category_id": 0}], []])
    batches = list(build_detection_test_loader(tiny_cfg, "tiny"))
    assert ids(batches) == [[0], [1], [2]]
    assert batches[0][0]["image"].shape == (3, 64, 96)
    assert (batches[0][0]["height"], batches[0][0]["width"]) == WIDE


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_batches_keep_the_incomplete_last_one(num_workers):
    samples = [{"image_id": i} for i in range(5)]
    loader = build_detection_test_loader(samples, mapper=lambda s: s, batch_size=2, num_workers=num_workers)
    assert ids(loader) == [[0, 1], [2, 3], [4]]


def test_evaluation_with_proposals_needs_a_file(dataset, tiny_cfg):
    dataset(WIDE)
    tiny_cfg.MODEL.LOAD_PROPOSALS = True
    with pytest.raises(ConfigError, match="PROPOSAL_FILES_TEST"):
        build_detection_test_loader(tiny_cfg, "tiny")


class Squares(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index**2


def test_torch_dataset_may_be_registered():
    DatasetCatalog.register("squares", Squares)
    try:
        assert isinstance(get_detection_dataset_dicts("squares"), Squares)
        assert len(get_detection_dataset_dicts(["squares", "squares"])) == 6
    finally:
        DatasetCatalog.remove("squares")
