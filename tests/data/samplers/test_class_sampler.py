import itertools
from collections import Counter

import pytest
import torch

from detlib.data.samplers import RepeatAugSampler, UniformClassSampler
from detlib.utils import comm
from detlib.utils.errors import DatasetError


def first(sampler, n):
    return list(itertools.islice(sampler, n))


@pytest.fixture
def process(monkeypatch):
    """Makes samplers believe to be in process `rank` of `world_size`."""

    def become(rank, world_size):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)

    return become


def test_each_class_has_as_many_draws():
    labels = [0] * 90 + [1] * 9 + [5]  # 100 // 3 + 1 = 34 draws of each, cut to 100.
    indices = first(UniformClassSampler(labels, seed=0), 100)
    counts = Counter(labels[i] for i in indices)
    assert set(counts) == {0, 1, 5}
    assert sum(counts.values()) == 100
    assert all(32 <= count <= 34 for count in counts.values())


def test_classes_of_1_3_and_8_samples_have_at_most_5_draws_in_a_pass_of_12():
    labels = [0] + [1] * 3 + [2] * 8
    indices = first(UniformClassSampler(labels, seed=0), 12 * 200)
    passes = [Counter(labels[i] for i in indices[start : start + 12]) for start in range(0, len(indices), 12)]
    # 12 // 3 + 1 = 5 draws of each are cut to 12, which leaves 4 of each on average.
    assert max(max(counts.values()) for counts in passes) == 5
    assert all(sum(counts[c] for counts in passes) / 200 == pytest.approx(4, rel=0.06) for c in range(3))


def test_large_class_is_drawn_without_repeats_and_a_small_one_with():
    labels = [0] * 50 + [1]
    indices = first(UniformClassSampler(labels, seed=0), 51)
    of_large = [i for i in indices if labels[i] == 0]
    assert len(of_large) == len(set(of_large)) >= 25
    assert Counter(indices)[50] >= 25


def test_sample_of_several_classes_is_drawn_for_each():
    sampler = UniformClassSampler([{0}, {1}, {0, 1}, set()], seed=0)
    counts = Counter(first(sampler, 4000))
    assert set(counts) == {0, 1, 2}
    assert counts[2] / 4000 == pytest.approx(0.5, abs=0.03)


def test_sample_of_no_class_is_not_drawn():
    assert set(first(UniformClassSampler(torch.tensor([-1, 3, -1, 4]), seed=0), 40)) == {1, 3}


@pytest.mark.parametrize("class_ids", [[-1, -1], [set(), set()]])
def test_samples_without_any_class_are_refused(class_ids):
    with pytest.raises(DatasetError, match="none of 2 samples has a class"):
        UniformClassSampler(class_ids)


def test_passes_differ_and_follow_from_the_seed():
    labels = [0, 1, 2, 3] * 5
    indices = first(UniformClassSampler(labels, seed=1), 40)
    assert indices == first(UniformClassSampler(labels, seed=1), 40)
    assert indices[:20] != indices[20:]


def test_each_sample_comes_several_times_in_a_row():
    indices = first(RepeatAugSampler(12, num_repeats=3, seed=0), 24)
    for one_pass in (indices[:12], indices[12:]):
        assert len(set(one_pass)) == 4
        assert [index for index in one_pass[::3] for _ in range(3)] == one_pass
    assert set(indices[:12]) != set(indices[12:])


def test_pass_is_as_long_as_without_repeats():
    assert first(RepeatAugSampler(5, num_repeats=2, shuffle=False), 10) == [0, 0, 1, 1, 2, 0, 0, 1, 1, 2]


def test_copies_of_a_sample_are_dealt_out_to_processes(process):
    shares = []
    for rank in range(3):
        process(rank, 3)
        shares.append(first(RepeatAugSampler(9, num_repeats=3, shuffle=False, seed=0), 3))
    assert shares == [[0, 1, 2]] * 3


@pytest.mark.parametrize(
    "make", [lambda: RepeatAugSampler(12, 2, seed=0), lambda: UniformClassSampler([0, 1] * 6, seed=0)]
)
def test_processes_take_turns_in_one_stream(process, make):
    whole = first(make(), 12)
    shares = []
    for rank in range(3):
        process(rank, 3)
        shares.append(first(make(), 4))
    assert [index for step in zip(*shares, strict=True) for index in step] == whole


def test_number_of_repeats_must_be_positive():
    with pytest.raises(ValueError, match=r"num_repeats \(DATALOADER.NUM_REPEATS\) must be positive, got 0"):
        RepeatAugSampler(3, num_repeats=0)
