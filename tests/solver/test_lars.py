import copy

import pytest
import torch
from torch import nn

from detlib.solver import LARS


def parameter(values, grad):
    param = nn.Parameter(torch.tensor(values))
    param.grad = torch.tensor(grad)
    return param


def test_step_of_a_matrix_has_the_length_of_rate_times_trust_times_weights():
    w = parameter([[3.0, 4.0]], grad=[[0.0, 2.0]])  # |w| = 5, |g| = 2
    LARS([w], lr=10.0, trust_coefficient=0.1).step()
    # g * 0.1 * 5 / 2 = (0, 0.5)
    torch.testing.assert_close(w.data, torch.tensor([[3.0, 4.0 - 10 * 0.5]]))


def test_weight_decay_is_in_the_gradient_before_its_norm_is_taken():
    w = parameter([[3.0, 4.0]], grad=[[0.0, 1.0]])
    LARS([w], lr=1.0, weight_decay=2.0, trust_coefficient=0.1).step()
    # g + 2 w = (6, 9), of norm sqrt(117).
    expected = torch.tensor([[3.0, 4.0]]) - 0.1 * 5 / 117**0.5 * torch.tensor([[6.0, 9.0]])
    torch.testing.assert_close(w.data, expected)


def test_second_step_applies_the_changed_rate_to_the_whole_buffer():
    w = parameter([[1.0]], grad=[[4.0]])
    optimizer = LARS([w], lr=1.0, momentum=0.5, trust_coefficient=0.1)
    optimizer.step()  # g = 4 * 0.1 * 1 / 4 = 0.1 = buffer; w = 0.9
    assert w.item() == pytest.approx(0.9)
    optimizer.param_groups[0]["lr"] = 10.0
    optimizer.step()  # g = 0.1 * 0.9 = 0.09; buffer = 0.05 + 0.09 = 0.14; w = 0.9 - 1.4
    assert optimizer.state[w]["momentum_buffer"].item() == pytest.approx(0.14)
    assert w.item() == pytest.approx(-0.5)


def test_weights_of_norm_0_take_the_gradient_as_it_is():
    w = parameter([[0.0, 0.0]], grad=[[3.0, 4.0]])
    LARS([w], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(w.data, torch.tensor([[-0.3, -0.4]]))


def test_gradient_of_norm_0_leaves_the_weights_and_makes_no_nan():
    w = parameter([[3.0, 4.0]], grad=[[0.0, 0.0]])
    LARS([w], lr=0.1).step()
    assert w.tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("values", [[3.0, 4.0], 3.0])
def test_at_most_one_dimension_has_neither_decay_nor_scaling(values):
    bias = parameter(values, grad=values)
    LARS([bias], lr=0.1, weight_decay=100.0).step()
    torch.testing.assert_close(bias.data, torch.tensor(values) * 0.9)


def test_defaults_are_those_of_the_releases():
    w = parameter([[3.0, 4.0]], grad=[[0.0, 2.0]])
    optimizer = LARS([w], lr=1.0)
    optimizer.step()  # The gradient becomes 2 * 0.001 * 5 / 2 = 0.005.
    torch.testing.assert_close(w.data, torch.tensor([[3.0, 3.995]]))
    assert optimizer.defaults["momentum"] == 0.9
    assert optimizer.defaults["weight_decay"] == 0


def test_parameters_of_one_group_do_not_touch_each_other():
    params = [parameter([[2.0]], [[8.0]]), parameter([2.0], [8.0]), parameter([[6.0]], [[1.0]])]
    params.append(nn.Parameter(torch.ones(1)))  # without gradient
    LARS(params, lr=1.0, trust_coefficient=0.5).step()
    assert [param.item() for param in params] == [1.0, -6.0, 3.0, 1.0]


def test_parameters_of_different_types_step_together():
    params = [parameter([[2.0]], [[8.0]]), nn.Parameter(torch.tensor([[4.0]], dtype=torch.float64))]
    params[1].grad = torch.ones(1, 1, dtype=torch.float64)
    LARS(params, lr=1.0, trust_coefficient=0.5).step()
    assert [param.item() for param in params] == [1.0, 2.0]


def test_groups_have_options_of_their_own():
    a, b = parameter([4.0], [1.0]), parameter([4.0], [1.0])
    optimizer = LARS([{"params": [a], "lr": 2.0}, {"params": [b], "momentum": 0.0}], lr=1.0, momentum=0.5)
    for _ in range(2):
        optimizer.step()
    assert a.item() == 4 - 2 * 1 - 2 * 1.5
    assert b.item() == 4 - 1 - 1


def test_saved_and_loaded_optimizer_takes_the_same_next_step():
    w = parameter([[3.0, 4.0]], grad=[[1.0, 2.0]])
    first = LARS([w], lr=1.0)
    first.step()
    twin = parameter(w.tolist(), grad=[[1.0, 2.0]])
    second = LARS([twin], lr=5.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    first.step()
    second.step()
    assert torch.equal(w, twin)


def test_gradients_stay_as_they_are():
    w = parameter([[3.0, 4.0]], grad=[[1.0, 2.0]])
    LARS([w], lr=1.0, weight_decay=0.1).step()
    assert w.grad.tolist() == [[1.0, 2.0]]


def test_closure_is_run_with_gradients_and_its_loss_returned():
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS([w], lr=0.25)

    def closure():
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert w.item() == 0.5


def test_negative_rate_is_refused():
    with pytest.raises(ValueError, match="lr is -1"):
        LARS([nn.Parameter(torch.zeros(1))], lr=-1)
