import math

import pytest
import torch
from torch.nn import functional as F

from detlib.modeling.loss import GHMC, GHMR, L1Loss

LOGITS = torch.tensor([0.0, 0.0, 0.0, 4.0])  # |p - t| of 0.5 three times, and of 0.982
TARGETS = torch.tensor([1.0, 0.0, 1.0, 0.0])
DIFFERENCES = torch.tensor([0.0, 0.01, 1.0, 2.0])


def looped_ghmc(logits, targets, weight, bins):
    """The paper's formula, one bin after the other."""
    gradient = (logits.sigmoid() - targets).abs()
    total = max((weight > 0).sum().item(), 1)
    weights, num_filled = torch.zeros_like(logits), 0
    for i in range(bins):
        inside = (gradient >= i / bins) & (gradient < (i + 1) / bins + (1e-6 if i == bins - 1 else 0)) & (weight > 0)
        if inside.any():
            num_filled += 1
            weights[inside] = total / inside.sum()
    return F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum") / total / max(num_filled, 1)


def test_ghmc_divides_by_the_elements_of_a_bin():
    assert GHMC()(LOGITS, TARGETS).item() == pytest.approx(2.355649, abs=1e-6)


def test_ghmc_weights_of_the_elements():
    weights = torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0])
    plain = F.binary_cross_entropy_with_logits(LOGITS, TARGETS, reduction="none")
    torch.testing.assert_close(GHMC()(LOGITS, TARGETS, reduction_override="none"), weights * plain)


def test_ghmc_agrees_with_a_loop_over_bins():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 5, generator=generator)
    targets = (torch.rand(40, 5, generator=generator) < 0.3).float()
    weight = (torch.rand(40, 5, generator=generator) < 0.8).float()
    torch.testing.assert_close(GHMC(bins=7)(logits, targets, weight), looped_ghmc(logits, targets, weight, 7))


def test_ghmc_of_one_bin_is_the_mean_cross_entropy():
    expected = F.binary_cross_entropy_with_logits(LOGITS[:3], TARGETS[:3])
    torch.testing.assert_close(GHMC()(LOGITS[:3], TARGETS[:3]), expected)
    torch.testing.assert_close(GHMC(bins=1)(LOGITS, TARGETS), F.binary_cross_entropy_with_logits(LOGITS, TARGETS))


def test_ghmc_counts_the_largest_gradients():
    assert GHMC()(torch.tensor([200.0]), torch.tensor([0.0])).item() == pytest.approx(200)


def test_ghmc_leaves_out_elements_without_weight():
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(GHMC()(LOGITS, TARGETS, weight), GHMC()(LOGITS[:3], TARGETS[:3]))


def test_ghmc_takes_labels_with_those_out_of_range_as_background():
    logits = torch.tensor([[0.0, 4.0], [1.0, -1.0], [2.0, 0.0]])
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(GHMC()(logits, torch.tensor([0, 2, -1])), GHMC()(logits, rows))


def test_gradient_of_ghmc_takes_the_weights_as_constants():
    logits = LOGITS.clone().requires_grad_()
    GHMC()(logits, TARGETS).backward()
    weights = torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0])
    torch.testing.assert_close(logits.grad, weights * (LOGITS.sigmoid() - TARGETS) / 4)


def test_ghmr_divides_by_the_elements_of_a_bin():
    assert GHMR()(DIFFERENCES, torch.zeros(4)).item() == pytest.approx(0.494170, abs=1e-6)


def test_ghmr_of_one_bin_is_the_mean():
    difference = torch.tensor([1.0, 2.0, 3.0])
    expected = ((difference.square() + 0.02**2).sqrt() - 0.02).mean()
    torch.testing.assert_close(GHMR()(difference, torch.zeros(3)), expected)


def test_ghmr_with_a_large_bend_is_far_from_l1_and_close_to_it_with_a_small_one():
    difference, zero = torch.tensor([1.0, 2.0]), torch.zeros(2)
    torch.testing.assert_close(GHMR(mu=1e-4)(difference, zero), L1Loss()(difference, zero), atol=2e-4, rtol=0)
    assert GHMR(mu=10.0)(difference, zero) < 0.2


@pytest.mark.parametrize("loss", [GHMC(), GHMR()])
def test_avg_factor_is_ignored(loss):
    torch.testing.assert_close(loss(LOGITS, TARGETS, avg_factor=17), loss(LOGITS, TARGETS))
    torch.testing.assert_close(
        loss(LOGITS, TARGETS, avg_factor=17, reduction_override="sum"), 4 * loss(LOGITS, TARGETS)
    )


def test_momentum_keeps_running_counts():
    loss = GHMC(momentum=0.75)
    loss(LOGITS, TARGETS)
    counts = loss.density.running_count
    assert counts.tolist() == [0, 0, 0, 0, 0, 0.75, 0, 0, 0, 0.25]
    loss(LOGITS[:3], TARGETS[:3])
    assert counts[5].item() == pytest.approx(0.75 * 0.75 + 0.25 * 3)
    assert counts[9].item() == 0.25  # a bin that is empty now keeps its count


def test_weights_divide_by_the_running_counts():
    loss = GHMC(momentum=0.75)
    elements = loss(LOGITS, TARGETS, reduction_override="none")
    torch.testing.assert_close(elements[0], torch.tensor(4 / 0.75 / 2 * math.log(2)))


def test_running_counts_are_saved_and_only_with_momentum():
    assert GHMC().state_dict() == {}
    loss, resumed = GHMR(momentum=0.5), GHMR(momentum=0.5)
    loss(DIFFERENCES, torch.zeros(4))
    resumed.load_state_dict(loss.state_dict())
    assert torch.equal(resumed.density.running_count, loss.density.running_count)


def test_running_counts_stay_when_nothing_is_given():
    loss = GHMC(momentum=0.5)
    loss(LOGITS, TARGETS)
    before = loss.density.running_count.clone()
    assert loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).item() == 0
    assert torch.equal(loss.density.running_count, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mu": 0.0}, "mu is 0.0; expected more than 0"),
        ({"bins": 0}, "bins is 0; expected 1 or more"),
        ({"momentum": 1.0}, r"momentum is 1.0; expected a value in \[0, 1\)"),
    ],
)
def test_arguments_out_of_range_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        GHMR(**arguments)
