import pytest
import torch
from torch.nn import functional as F

from detlib.modeling.self_supervised.memories import KeyQueue, SimpleMemory, last_of_equal
from detlib.utils.errors import ConfigError


def keys(*values):
    """Keys of two channels at these angles."""
    angles = torch.tensor(values)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_queue_starts_with_keys_of_length_1():
    queue = KeyQueue(100, 16)
    assert queue.keys.shape == (16, 100)
    torch.testing.assert_close(queue.keys.norm(dim=0), torch.ones(100))


def test_noise_of_the_start_does_not_depend_on_the_seed_of_the_process():
    parts = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        parts.append((KeyQueue(5, 3).keys, SimpleMemory(5, 3).features, torch.rand(1)))
    assert torch.equal(parts[0][0], parts[1][0])
    assert torch.equal(parts[0][1], parts[1][1])
    assert parts[0][2] != parts[1][2]  # and leaves the seed alone


def test_enqueued_keys_are_the_first_columns_and_others_stay():
    queue = KeyQueue(8, 2)
    before = queue.keys.clone()
    queue.enqueue(keys(0.0, 1.0))
    assert torch.equal(queue.keys[:, :2], keys(0.0, 1.0).T)
    assert torch.equal(queue.keys[:, 2:], before[:, 2:])
    assert queue.pointer == 2


def test_pointer_wraps():
    queue = KeyQueue(8, 2)
    for angle in (0.0, 1.0, 2.0):
        queue.enqueue(keys(*[angle] * 4))
    assert queue.pointer == 4
    assert queue.pointer.dtype == torch.int64
    assert torch.equal(queue.keys, torch.cat([keys(*[2.0] * 4), keys(*[1.0] * 4)]).T)


def test_queue_that_batches_do_not_divide_is_an_error():
    with pytest.raises(
        ConfigError, match=r"MODEL.SSL.QUEUE_LEN is 8; it must be a multiple of the 3 images of a batch"
    ):
        KeyQueue(8, 2).enqueue(keys(0.0, 1.0, 2.0))


def test_queue_without_place_is_an_error():
    with pytest.raises(ConfigError, match=r"MODEL.SSL.QUEUE_LEN is 0; it must be 1 or more"):
        KeyQueue(0, 2)


def test_evaluation_mode_enqueues_nothing():
    queue = KeyQueue(8, 2).eval()
    before = queue.keys.clone()
    queue.enqueue(keys(0.0, 1.0))
    assert torch.equal(queue.keys, before)
    assert queue.pointer == 0


def test_similarities_can_be_differentiated_after_the_queue_has_moved_on():
    queue = KeyQueue(4, 2)
    expected = queue.keys.sum(dim=1)
    queries = keys(0.5).requires_grad_()
    total = queue.similarities(queries).sum()
    queue.enqueue(keys(0.0, 1.0))
    total.backward()
    torch.testing.assert_close(queries.grad[0], expected)


def test_bank_starts_with_rows_of_length_1():
    torch.testing.assert_close(SimpleMemory(50, 16).features.norm(dim=1), torch.ones(50))


def test_update_averages_into_its_rows_and_leaves_the_others():
    bank = SimpleMemory(4, 2, momentum=0.25)
    bank.features.copy_(keys(0.0, 0.0, 0.0, 0.0))
    bank.update(torch.tensor([2, 0]), keys(1.0, 2.0))
    expected = F.normalize(0.75 * keys(0.0, 0.0) + 0.25 * keys(2.0, 1.0), dim=1)  # of rows 0 and 2
    torch.testing.assert_close(bank.features[[0, 2]], expected)
    torch.testing.assert_close(bank.features.norm(dim=1), torch.ones(4))
    assert torch.equal(bank.features[[1, 3]], keys(0.0, 0.0))


def test_update_with_what_is_remembered_changes_nothing():
    bank = SimpleMemory(4, 8)
    before = bank.features.clone()
    bank.update(torch.tensor([1, 3]), before[[1, 3]])
    torch.testing.assert_close(bank.features, before)


def test_of_a_sample_that_comes_twice_the_last_embedding_counts():
    bank = SimpleMemory(3, 2, momentum=1.0)
    bank.update(torch.tensor([1, 2, 1]), keys(0.1, 0.2, 0.3))
    torch.testing.assert_close(bank.features[1:], keys(0.3, 0.2))


def test_last_of_equal_points_to_where_an_index_comes_last():
    assert last_of_equal(torch.tensor([7, 2, 7, 5, 7, 2])).tolist() == [4, 5, 4, 3, 4, 5]


def test_evaluation_mode_remembers_nothing():
    bank = SimpleMemory(3, 2).eval()
    before = bank.features.clone()
    bank.update(torch.tensor([1]), keys(0.1))
    assert torch.equal(bank.features, before)


def test_similarities_are_to_the_own_row_and_to_drawn_ones():
    bank = SimpleMemory(3, 2, num_negatives=20)
    bank.features.copy_(keys(0.0, 1.0, 2.0))
    positive, negative = bank.similarities(keys(0.0, 2.5), torch.tensor([0, 2]))
    torch.testing.assert_close(positive, torch.tensor([[0.0], [0.5]]).cos())
    allowed = torch.tensor([[1.0, 2.0], [2.5, 1.5]]).cos()  # to the two other rows
    distance = (negative[:, :, None] - allowed[:, None]).abs().amin(dim=2)
    assert negative.shape == (2, 20)
    assert distance.max() < 1e-6


def test_no_negative_is_the_sample_itself():
    bank = SimpleMemory(3, 2, num_negatives=500)
    drawn = bank.draw_negatives(torch.tensor([0, 1, 2]))
    assert [sorted(row.unique().tolist()) for row in drawn] == [[1, 2], [0, 2], [0, 1]]


def test_without_ensure_neg_the_sample_itself_may_be_drawn():
    bank = SimpleMemory(3, 2, num_negatives=500, ensure_neg=False)
    assert bank.draw_negatives(torch.tensor([1]))[0].unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(("ensure_neg", "others"), [(False, [0, 1, 2, 3]), (True, [0, 2, 3])])
def test_all_places_are_drawn_equally_often(ensure_neg, others):
    torch.manual_seed(0)
    bank = SimpleMemory(4, 2, num_negatives=12_000, ensure_neg=ensure_neg)
    counts = bank.draw_negatives(torch.tensor([1]))[0].bincount(minlength=4)
    expected = 12_000 / len(others)
    # Five standard deviations of a binomial distribution are less than 5 sqrt(4000) = 316.
    assert all(abs(counts[i] - expected) < 316 for i in others)


def test_similarities_can_be_differentiated_after_an_update():
    bank = SimpleMemory(3, 2, num_negatives=1)
    own = bank.features[1].clone()
    embeddings = keys(0.5).requires_grad_()
    positive, _ = bank.similarities(embeddings, torch.tensor([1]))
    bank.update(torch.tensor([1]), keys(2.0))
    positive.sum().backward()
    torch.testing.assert_close(embeddings.grad[0], own)


def test_bank_of_one_sample_is_an_error():
    with pytest.raises(ConfigError, match=r"MODEL.SSL.MEMORY is of one sample, which has no negatives"):
        SimpleMemory(1, 2)
