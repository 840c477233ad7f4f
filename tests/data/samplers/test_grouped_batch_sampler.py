import pytest
from torch.utils.data import SequentialSampler

from detlib.data.samplers import GroupedBatchSampler


def test_batches_hold_one_group_in_the_order_they_fill():
    groups = [0, 1, 0, 1, 1, 0, 1]
    assert list(GroupedBatchSampler(SequentialSampler(groups), groups, 2)) == [[0, 2], [1, 3], [4, 6]]


def test_given_batches_do_not_change_afterwards():
    batches = iter(GroupedBatchSampler(SequentialSampler(range(4)), [0] * 4, 2))
    batch = next(batches)
    next(batches)
    assert batch == [0, 1]


def test_number_of_batches_is_unknown():
    with pytest.raises(TypeError, match="number of batches"):
        len(GroupedBatchSampler(SequentialSampler([0]), [0], 1))


def test_list_instead_of_a_sampler_is_refused():
    with pytest.raises(TypeError, match="Sampler"):
        GroupedBatchSampler([0, 1], [0, 0], 2)
