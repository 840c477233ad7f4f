import itertools
import math

import numpy as np
import pytest
import torch

from detlib.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detlib.utils import comm


def first(sampler, n):
    return list(itertools.islice(sampler, n))


@pytest.fixture
def process(monkeypatch):
    """Makes samplers believe to be in process `rank` of `world_size`."""

    def become(rank, world_size):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)

    return become


def test_every_pass_holds_every_sample_once():
    indices = first(TrainingSampler(5, seed=0), 15)
    passes = [indices[0:5], indices[5:10], indices[10:15]]
    assert all(sorted(p) == [0, 1, 2, 3, 4] for p in passes)
    assert passes[0] != passes[1]


def test_without_shuffling_the_order_is_kept():
    assert first(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_same_seed_gives_the_same_order():
    assert first(TrainingSampler(100, seed=1), 200) == first(TrainingSampler(100, seed=1), 200)
    assert first(TrainingSampler(100, seed=1), 200) != first(TrainingSampler(100, seed=2), 200)


def test_order_follows_from_the_global_seed():
    def draw():
        np.random.seed(5)
        torch.manual_seed(5)
        return first(TrainingSampler(50), 50)

    assert draw() == draw()


def test_processes_see_disjoint_samples(process):
    shares = []
    for rank in range(3):
        process(rank, 3)
        shares.append(first(TrainingSampler(9, seed=0), 3))
    assert sorted(itertools.chain(*shares)) == list(range(9))


@pytest.mark.parametrize("sampler", [TrainingSampler, InferenceSampler])
def test_empty_dataset_is_refused(sampler):
    with pytest.raises(ValueError, match=sampler.__name__):
        sampler(0)
    with pytest.raises(TypeError, match=sampler.__name__):
        sampler([1, 2])


def test_subset_is_the_same_in_every_pass():
    indices = first(RandomSubsetTrainingSampler(10, 0.5, seed_shuffle=0, seed_subset=1), 15)
    assert len(set(indices)) == 5
    assert set(indices[:5]) == set(indices[5:10]) == set(indices[10:])
    assert indices[:5] != indices[5:10]


def test_subset_does_not_depend_on_the_seed_of_the_order():
    subsets = [set(first(RandomSubsetTrainingSampler(20, 0.5, True, seed, 1), 10)) for seed in (0, 1)]
    assert subsets[0] == subsets[1]


def test_tiny_subset_has_one_sample():
    assert len(set(first(RandomSubsetTrainingSampler(3, 0.01), 10))) == 1
    with pytest.raises(ValueError, match="subset_ratio"):
        RandomSubsetTrainingSampler(3, 50)


def image_of(*classes):
    return {"annotations": [{"category_id": c} for c in classes]}


def test_repeat_factors_are_those_of_the_rarest_class_in_the_image():
    # Class 0 is in all 4 images with objects, class 1 in 1 of 5: f = 0.8 and 0.2, t = 0.8.
    samples = [image_of(0), image_of(0, 0), image_of(0), image_of(0, 1), image_of()]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(samples, 0.8)
    assert factors.tolist() == [1, 1, 1, 2, 1]  # sqrt(0.8 / 0.2) = 2
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(samples, 0.8, sqrt=False)
    assert factors.tolist() == pytest.approx([1, 1, 1, 4, 1])


@pytest.mark.parametrize("key", ["label", "labels"])
def test_repeat_factors_follow_from_labels_of_images(key):
    # Of 40 images 1 is of class 1: f = 0.025, t = 0.1, sqrt(t / f) = 2.
    samples = [{key: c if key == "label" else [0, c]} for c in [0] * 39 + [1]]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(samples, 0.1)
    assert factors.tolist() == [1] * 39 + [2]


def test_repeat_factor_may_be_a_fraction():
    samples = [{"label": 0}] * 97 + [{"label": 1}] * 3  # f = 0.03
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(samples, 0.1)
    assert factors[-1].item() == pytest.approx(1.8257, abs=1e-4)


def test_common_classes_are_not_repeated():
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency([image_of(0), image_of(1)], 0.1)
    assert factors.tolist() == [1, 1]


def test_whole_factors_repeat_exactly():
    indices = first(RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0, 3.0]), seed=0), 12)
    assert sorted(indices[:6]) == [0, 1, 1, 2, 2, 2]
    assert sorted(indices[6:]) == [0, 1, 1, 2, 2, 2]


def test_fractional_factors_are_right_on_average():
    indices = first(RepeatFactorTrainingSampler(torch.tensor([1.0, 1.5]), shuffle=False, seed=0), 5000)
    assert indices.count(1) / indices.count(0) == pytest.approx(1.5, abs=0.06)


def test_factors_that_never_give_a_sample_are_refused():
    with pytest.raises(ValueError, match="repeat_factors"):
        RepeatFactorTrainingSampler(torch.zeros(3))


@pytest.mark.parametrize(("size", "world_size"), [(10, 1), (10, 3), (2, 4), (8, 4)])
def test_inference_covers_all_samples_in_order_and_evenly(process, size, world_size):
    shares = []
    for rank in range(world_size):
        process(rank, world_size)
        sampler = InferenceSampler(size)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1]) in (size // world_size, math.ceil(size / world_size))
    assert list(itertools.chain(*shares)) == list(range(size))
