import itertools
from collections import Counter

import pytest
import torch

from detlib.config import get_cfg
from detlib.data.samplers import ReplacementSampler, TrainingSampler, UniformClusterSampler, build_sampler
from detlib.utils import comm


def first(sampler, n):
    return list(itertools.islice(sampler, n))


def test_before_there_are_clusters_each_sample_comes_once_in_a_pass():
    assert first(UniformClusterSampler(12, seed=3), 24) == first(TrainingSampler(12, seed=3), 24)


def test_clusters_of_1_3_and_8_samples_have_at_most_5_draws_in_a_pass_of_12():
    sampler = UniformClusterSampler(12, seed=0)
    labels = torch.tensor([0] + [1] * 3 + [2] * 8).numpy()
    sampler.set_labels(labels)
    draws = first(sampler, 240)
    passes = [Counter(labels[draws[i : i + 12]].tolist()) for i in range(0, 240, 12)]
    # 12 // 3 + 1 of each, of which 3 of all are cut off.
    assert all(set(draws) == {0, 1, 2} for draws in passes)
    assert max(max(draws.values()) for draws in passes) == 5


def test_each_epoch_draws_in_an_order_of_its_own_also_after_resuming():
    def order(sampler, epoch):
        sampler.set_labels([0] * 20, epoch)
        return first(sampler, 20)

    sampler = UniformClusterSampler(20, seed=0)
    orders = [order(sampler, epoch) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert order(UniformClusterSampler(20, seed=0), 2) == orders[2]


def test_processes_share_the_draws(monkeypatch):
    def draws(rank, world_size, n):
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        sampler = UniformClusterSampler(8, seed=0)
        sampler.set_labels([0, 0, 0, 1, 1, 1, 1, 2])
        return first(sampler, n)

    together = draws(0, 1, 16)
    assert (draws(0, 2, 8), draws(1, 2, 8)) == (together[::2], together[1::2])


def test_labels_of_other_samples_are_an_error():
    with pytest.raises(ValueError, match="3 labels came for 4 samples"):
        UniformClusterSampler(4, seed=0).set_labels([0, 1, 2])


def test_draws_with_replacement_are_uniform_and_may_repeat_at_once():
    draws = first(ReplacementSampler(10, seed=0), 10_000)
    counts = Counter(draws)
    assert len(counts) == 10
    assert all(850 < count < 1150 for count in counts.values())  # 1000, with a deviation of 30
    assert any(a == b for a, b in itertools.pairwise(draws))


@pytest.mark.parametrize("name", ["UniformClusterSampler", "ReplacementSampler"])
def test_config_names_the_sampler(name):
    cfg = get_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN = name
    sampler = build_sampler(cfg, [{}] * 5)
    assert type(sampler).__name__ == name
    assert set(first(sampler, 200)) == set(range(5))
