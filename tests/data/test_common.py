import pickle

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from detlib.data import DatasetFromList, MapDataset, ToIterableDataset
from detlib.data.common import AspectRatioGroupedDataset, GroupedDataset, task_of
from detlib.data.samplers import InferenceSampler, TrainingSampler
from detlib.utils.errors import DatasetError, MissingFileError


class Numbers(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        yield from range(self.n)


@pytest.mark.parametrize("serialize", [True, False])
def test_elements_of_the_list_come_back_as_copies(serialize):
    samples = [{"boxes": [1, 2]}, {"boxes": []}]
    dataset = DatasetFromList(samples, serialize=serialize)
    dataset[0]["boxes"].append(3)
    assert len(dataset) == 2
    assert [dataset[0], dataset[1], dataset[-1]] == [{"boxes": [1, 2]}, {"boxes": []}, {"boxes": []}]


def test_without_copy_and_serialization_the_element_itself_is_given():
    samples = [{"boxes": []}]
    assert DatasetFromList(samples, copy=False, serialize=False)[0] is samples[0]


def test_serialization_can_be_a_function():
    assert list(DatasetFromList([1, 2], serialize=lambda items: [10 * item for item in items])) == [10, 20]


def test_serialized_list_ends():
    assert list(DatasetFromList(["a", "b"])) == ["a", "b"]
    assert list(DatasetFromList([])) == []


def test_serialized_list_is_one_buffer_for_all_samples():
    dataset = DatasetFromList([{"id": i} for i in range(100)])
    arrays = vars(dataset._lst).values()
    assert all(not isinstance(value, (list, dict)) for value in arrays)


def test_map_applies_the_function():
    mapped = MapDataset([1, 2, 3], lambda x: 10 * x)
    assert [mapped[0], mapped[2]] == [10, 30]
    assert len(mapped) == 3


def test_map_replaces_a_sample_for_which_the_function_returns_none():
    mapped = MapDataset(list(range(5)), lambda x: x if x in (3, 4) else None)
    assert {mapped[0] for _ in range(30)} == {3, 4}
    assert mapped[3] == 3


def test_map_that_returns_none_for_all_says_so():
    with pytest.raises(DatasetError, match="None for all 3 samples"):
        MapDataset([1, 2, 3], lambda x: None)[0]


def test_failing_function_names_the_sample_and_is_not_retried():
    calls = []

    def fail(sample):
        calls.append(sample)
        raise KeyError("depth")

    with pytest.raises(RuntimeError, match=r"file_name 'a\.jpg': KeyError: 'depth'"):
        MapDataset([{"file_name": "a.jpg"}, {"file_name": "b.jpg"}], fail)[0]
    assert len(calls) == 1


def test_user_error_keeps_its_type_and_names_the_dataset(metadata):
    metadata("cells_train", image_root="/data/cells/train")
    metadata("cells_val", image_root="/data/cells/val/")

    def fail(sample):
        raise MissingFileError("image x does not exist")

    with pytest.raises(
        MissingFileError, match=r"image x does not exist .*'/data/cells/val/x\.jpg' of dataset 'cells_val'"
    ):
        MapDataset([{"file_name": "/data/cells/val/x.jpg"}], fail)[0]


def test_failing_function_names_the_sample_from_a_worker_too():
    def fail(sample):
        raise KeyError("depth")

    loader = DataLoader(MapDataset([{"file_name": "a.jpg"}], fail), num_workers=1)
    with pytest.raises(RuntimeError, match=r"file_name 'a\.jpg': KeyError: 'depth'"):
        next(iter(loader))


def test_map_of_an_iterable_skips_none():
    mapped = MapDataset(Numbers(5), lambda x: None if x == 2 else 10 * x)
    assert isinstance(mapped, IterableDataset)
    assert list(mapped) == [0, 10, 30, 40]


def test_map_with_a_lambda_can_be_pickled():
    pytest.importorskip("cloudpickle")
    assert pickle.loads(pickle.dumps(MapDataset([1, 2], lambda x: 10 * x)))[1] == 20


def test_map_can_be_pickled():
    assert pickle.loads(pickle.dumps(MapDataset(["1", "2"], int)))[1] == 2


def test_iterable_follows_the_sampler():
    dataset = ToIterableDataset(["a", "b", "c"], InferenceSampler(3))
    assert list(dataset) == ["a", "b", "c"]
    assert len(dataset) == 3


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_workers_share_the_samples_in_chunks(chunk_size):
    dataset = ToIterableDataset(list(range(8)), InferenceSampler(8), shard_chunk_size=chunk_size)
    batches = list(DataLoader(dataset, batch_size=chunk_size, num_workers=2, collate_fn=list))
    assert batches == [list(range(8))[i : i + chunk_size] for i in range(0, 8, chunk_size)]


def test_without_sharding_each_worker_gives_all():
    dataset = ToIterableDataset(list(range(3)), InferenceSampler(3), shard_sampler=False)
    assert sorted(DataLoader(dataset, batch_size=None, num_workers=2)) == [0, 0, 1, 1, 2, 2]


def test_iterable_dataset_and_non_sampler_are_refused():
    with pytest.raises(TypeError, match="IterableDataset"):
        ToIterableDataset(Numbers(3), TrainingSampler(3))
    with pytest.raises(TypeError, match="Sampler"):
        ToIterableDataset([1, 2, 3], [0, 1, 2])


def test_batches_are_all_wide_or_all_not():
    sizes = [(4, 2), (2, 4), (2, 2), (8, 1), (9, 9), (3, 2)]  # width, height
    samples = [{"width": w, "height": h, "id": i} for i, (w, h) in enumerate(sizes)]
    batches = AspectRatioGroupedDataset(samples, 2)
    assert [[sample["id"] for sample in batch] for batch in batches] == [[1, 2], [0, 3]]


def test_error_of_a_sample_in_memory_names_its_id():
    def fail(sample):
        raise KeyError("depth")

    with pytest.raises(RuntimeError, match="the sample with image_id 7: KeyError"):
        MapDataset([{"image_id": 7, "image": None}], fail)[0]


def test_batches_are_grouped_by_the_image_that_the_model_gets():
    shapes = [(3, 2, 4), (3, 4, 2), (3, 2, 2), (3, 1, 8)]
    samples = [{"image": torch.zeros(shape), "width": 9, "height": 1, "id": i} for i, shape in enumerate(shapes)]
    batches = AspectRatioGroupedDataset(samples, 2)
    assert [[sample["id"] for sample in batch] for batch in batches] == [[1, 2], [0, 3]]


def test_samples_of_unknown_size_form_one_group():
    assert list(AspectRatioGroupedDataset([{"id": 0}, {"id": 1}], 2)) == [[{"id": 0}, {"id": 1}]]


def test_batches_are_of_one_task_whatever_the_order_of_samples():
    samples = [{"id": i, "task": task} for i, task in enumerate(["det", "cls", "cls", "det", "det", "cls", "cls"])]
    batches = GroupedDataset(samples, 2, task_of)
    assert [[sample["id"] for sample in batch] for batch in batches] == [[1, 2], [0, 3], [5, 6]]


def test_wide_images_of_two_tasks_are_in_batches_of_their_own():
    tasks = ["det", "cls", "det", "cls"]
    samples = [{"id": i, "task": task, "width": 2, "height": 1} for i, task in enumerate(tasks)]
    batches = AspectRatioGroupedDataset(samples, 2)
    assert [[sample["id"] for sample in batch] for batch in batches] == [[0, 2], [1, 3]]


def test_samples_without_a_task_form_one_group():
    batches = GroupedDataset([{"id": 0}, {"id": 1, "task": "det"}, {"id": 2}], 2, task_of)
    assert list(batches) == [[{"id": 0}, {"id": 2}]]
