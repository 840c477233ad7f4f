import pytest
import torch

from detlib.modeling.loss import weight_reduce_loss, weighted_loss

PRED = torch.tensor([0.0, 2.0, 3.0])
TARGET = torch.ones(3)  # |PRED - TARGET| is 1, 1, 2
WEIGHT = torch.tensor([1.0, 0.0, 1.0])
EPS = torch.finfo(torch.float32).eps


@weighted_loss
def scaled_l1(pred, target, scale=1.0):
    """Scaled difference."""
    return scale * (pred - target).abs()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 4 / 3),
        ({"weight": WEIGHT}, 1.0),  # (1 + 0 + 2) / 3: elements without weight count
        ({"reduction": "sum"}, 4.0),
        ({"reduction": "none"}, [1.0, 1.0, 2.0]),
        ({"weight": WEIGHT, "reduction": "none"}, [1.0, 0.0, 2.0]),
        ({"weight": WEIGHT, "avg_factor": 2}, 1.5),
        ({"avg_factor": 3}, 4 / 3),
        ({"avg_factor": 0.5}, 8.0),
        ({"reduction": "none", "avg_factor": 2}, [1.0, 1.0, 2.0]),
        ({"weight": torch.ones(3)}, 4 / 3),
        ({"scale": 3.0}, 4.0),
    ],
)
def test_weight_reduction_and_avg_factor(arguments, expected):
    torch.testing.assert_close(scaled_l1(PRED, TARGET, **arguments), torch.tensor(expected))


def test_weight_may_be_given_by_position():
    assert scaled_l1(PRED, TARGET, WEIGHT).item() == 1.0


def test_weight_broadcasts_as_usual():
    loss = weight_reduce_loss(torch.ones(2, 3), torch.tensor([1.0, 2.0, 3.0]), "none")
    assert loss.tolist() == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("avg_factor", [2, 2.0, torch.tensor(2), torch.tensor(2.0), torch.tensor(2.0).half()])
def test_avg_factor_may_be_a_number_or_a_tensor(avg_factor):
    assert scaled_l1(PRED, TARGET, avg_factor=avg_factor).item() == 2.0


def test_tensor_as_avg_factor_is_not_read():
    """On the meta device a tensor has no value, so that asking for one raises."""
    meta = torch.device("meta")
    loss = scaled_l1(PRED.to(meta), TARGET.to(meta), avg_factor=torch.tensor(2, device=meta))
    assert loss.shape == ()


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
def test_avg_factor_zero_counts_as_the_smallest_step_of_float32(zero):
    assert scaled_l1(PRED, TARGET, avg_factor=zero).item() == pytest.approx(4 / EPS)
    assert scaled_l1(PRED, PRED, avg_factor=zero).item() == 0


def test_avg_factor_with_sum_is_an_error():
    with pytest.raises(ValueError, match="avg_factor cannot be combined with reduction 'sum'; use reduction 'mean'"):
        scaled_l1(PRED, TARGET, reduction="sum", avg_factor=2)


@pytest.mark.parametrize("avg_factor", [None, 2])
def test_unknown_reduction_is_an_error(avg_factor):
    with pytest.raises(ValueError, match="'avg'; expected 'none', 'mean' or 'sum'"):
        scaled_l1(PRED, TARGET, reduction="avg", avg_factor=avg_factor)


def test_decorated_function_keeps_its_name_and_doc():
    assert (scaled_l1.__name__, scaled_l1.__doc__) == ("scaled_l1", "Scaled difference.")


def test_no_elements_give_zero_with_gradient():
    pred = torch.zeros(0, 4, requires_grad=True)
    for arguments in ({}, {"reduction": "sum"}, {"avg_factor": 0}):
        loss = scaled_l1(pred, torch.zeros(0, 4), **arguments)
        loss.backward()
        assert loss.item() == 0
    assert pred.grad.shape == (0, 4)


def test_half_precision_elements_are_summed_beyond_the_range_of_float16():
    elements = torch.full((100,), 1000.0, dtype=torch.float16)
    assert weight_reduce_loss(elements, avg_factor=1).item() == 100_000
