import itertools
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from detlib.data import MapDataset, build_batch_data_loader
from detlib.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler
from detlib.data.train_loader import LoadingError
from detlib.utils.errors import DatasetError

SAMPLES = [{"id": i, "width": 1 + i % 3, "height": 2} for i in range(10)]  # Every third is wide.


def augment(sample):
    return {**sample, "drawn": (random.random(), np.random.rand(), torch.rand(()).item())}


def build(num_workers=0, mapper=augment, samples=SAMPLES, sampler=None, seed=7, **kwargs):
    sampler = sampler or TrainingSampler(len(samples), seed=seed)
    dataset = MapDataset(samples, mapper, skip_corrupt=kwargs.pop("skip_corrupt", False))
    return build_batch_data_loader(dataset, sampler, 3, num_workers=num_workers, seed=seed, **kwargs)


def first(loader, n):
    return list(itertools.islice(loader, n))


def ids(batches):
    return [sample["id"] for batch in batches for sample in batch]


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("num_workers", [(0, 0), (0, 2), (2, 3)])
def test_resumed_loader_gives_the_samples_that_would_have_come(grouping, num_workers):
    expected = first(build(aspect_ratio_grouping=grouping), 12)
    loader = build(num_workers[0], aspect_ratio_grouping=grouping)
    resumed = build(num_workers[1], aspect_ratio_grouping=grouping, seed=0)
    assert first(loader, 5) == expected[:5]
    resumed.load_state_dict(loader.state_dict())
    assert first(resumed, 7) == expected[5:]


def test_loader_that_is_iterated_again_goes_on():
    loader, expected = build(aspect_ratio_grouping=True), first(build(aspect_ratio_grouping=True), 6)
    assert [next(iter(loader)) for _ in range(6)] == expected


def test_state_survives_a_file(tmp_path):
    loader = build(aspect_ratio_grouping=True)
    first(loader, 2)
    torch.save(loader.state_dict(), tmp_path / "state.pth")
    assert torch.load(tmp_path / "state.pth", weights_only=True) == loader.state_dict()
    assert len(loader.state_dict()["waiting"]) + 2 * 3 == loader.state_dict()["position"]


@pytest.mark.parametrize(
    "build_sampler",
    [
        lambda seed: RandomSubsetTrainingSampler(10, 0.5, seed_shuffle=seed, seed_subset=seed + 1),
        lambda seed: RepeatFactorTrainingSampler(torch.linspace(0.5, 3, 10), seed=seed),
    ],
)
def test_sampler_of_another_seed_takes_the_order_of_the_state(build_sampler):
    expected = first(build(sampler=build_sampler(1)), 8)
    loader, resumed = build(sampler=build_sampler(1)), build(sampler=build_sampler(5))
    first(loader, 3)
    resumed.load_state_dict(loader.state_dict())
    assert first(resumed, 5) == expected[3:]


def test_restarted_loader_begins_the_order_anew_with_other_random_numbers():
    loader, expected = build(), first(build(), 2)
    first(loader, 1)
    loader.restart(1)
    again = first(loader, 2)
    assert ids(again) == ids(expected)
    assert [s["drawn"] for s in again[0]] != [s["drawn"] for s in expected[0]]


def test_processes_draw_different_numbers_at_the_same_position(monkeypatch):
    one = first(build(), 1)
    monkeypatch.setattr("detlib.utils.comm.get_rank", lambda: 1)
    other = first(build(sampler=TrainingSampler(10, seed=7)), 1)
    assert one[0][0]["drawn"] != other[0][0]["drawn"]


def test_loading_leaves_the_random_numbers_of_the_training_alone():
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    first(build(), 2)
    assert torch.rand(()) == expected


def test_state_of_other_data_is_told(caplog):
    loader = build(samples=SAMPLES[:5])
    loader.load_state_dict(build().state_dict())
    assert "has 5 samples, but had 10" in caplog.text


class Endless(IterableDataset):
    def __iter__(self):
        return iter(lambda: {"id": 0}, None)


def test_stream_starts_anew_and_says_so(caplog):
    loader = build_batch_data_loader(Endless(), None, 2)
    loader.load_state_dict(loader.state_dict())
    assert "starts anew" in caplog.text
    assert ids(first(loader, 1)) == [0, 0]


def corrupt(sample):
    if sample["id"] in (2, 5):
        raise DatasetError(f"image {sample['id']}.jpg is damaged")
    return sample


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_samples_are_replaced_counted_and_reported(num_workers, caplog):
    loader = build(num_workers, corrupt, skip_corrupt=True)
    given = ids(first(loader, 10))  # Three passes over the data.
    assert len(given) == 30 and not {2, 5} & set(given)
    assert loader.num_corrupt >= 6
    assert "number 1 so far: image 2.jpg is damaged" in caplog.text or "number 1 so far: image 5.jpg" in caplog.text


def test_replacement_of_a_corrupt_sample_does_not_depend_on_the_number_of_workers():
    assert ids(first(build(0, corrupt, skip_corrupt=True), 6)) == ids(first(build(2, corrupt, skip_corrupt=True), 6))


def test_corrupt_sample_stops_by_default():
    with pytest.raises(DatasetError, match=r"\d\.jpg is damaged"):
        first(build(0, corrupt), 10)


def always_corrupt(sample):
    raise DatasetError("damaged")


def test_data_that_is_all_corrupt_is_an_error():
    with pytest.raises(DatasetError, match=r"10 samples in a row cannot be read, last: damaged.*tools/check_data\.py"):
        first(build(0, always_corrupt, skip_corrupt=True), 1)


def hang(sample):
    if sample["file_name"] == "4.jpg":
        time.sleep(60)
    return sample


def test_hanging_worker_names_its_sample(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # until the worker is terminated
    samples = [{"file_name": f"{i}.jpg"} for i in range(6)]
    loader = build(2, hang, samples, timeout=1)
    with pytest.raises(LoadingError, match=r"for 1 s \(DATALOADER.TIMEOUT\).*number 4, file_name '4.jpg'"):
        first(loader, 6)


def die(sample):
    if sample["file_name"] == "4.jpg":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return sample


def test_dead_worker_names_its_sample():
    samples = [{"file_name": f"{i}.jpg"} for i in range(6)]
    with pytest.raises(LoadingError, match=r"process that loads data died.*number 4, file_name '4.jpg'"):
        first(build(2, die, samples), 6)


def test_lost_connection_to_a_worker_means_that_it_died(monkeypatch):
    def reset(parts):
        raise ConnectionResetError(104, "Connection reset by peer")

    loader = iter(build(1))
    next(loader)
    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", reset)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(LoadingError, match="process that loads data died: Connection reset by peer"):
        next(loader)
