import math

import pytest
import torch

from detlib.modeling.self_supervised.heads import (
    ContrastiveHead,
    CosineSimilarityLoss,
    LatentPredictHead,
    similarities,
)
from detlib.utils.errors import ConfigError


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_contrast_of_equal_similarities_is_the_log_of_their_number(temperature):
    loss = ContrastiveHead(temperature)(torch.full((3, 1), 0.5), torch.full((3, 7), 0.5))
    assert loss.item() == pytest.approx(math.log(8), rel=1e-6)


def test_contrast_of_a_perfect_match_has_its_closed_form():
    # The positive is 1, the negatives are 0.
    loss = ContrastiveHead(0.5)(torch.ones(2, 1), torch.zeros(2, 4))
    assert loss.item() == pytest.approx(math.log(1 + 4 * math.exp(-2)), rel=1e-6)


def test_contrast_without_negatives_is_0():
    assert ContrastiveHead()(torch.zeros(2, 1), torch.zeros(2, 0)) == 0


def test_contrast_is_the_mean_over_rows():
    positive, negative = torch.tensor([[0.3], [0.9]]), torch.tensor([[0.1, 0.2], [0.5, -0.5]])
    rows = [ContrastiveHead(0.2)(positive[i : i + 1], negative[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(ContrastiveHead(0.2)(positive, negative), (rows[0] + rows[1]) / 2)


def test_contrast_of_shorter_floats_is_computed_in_float32():
    positive, negative = torch.tensor([[0.3]]), torch.tensor([[0.1, -0.2]])
    loss = ContrastiveHead(0.07)(positive.bfloat16(), negative.bfloat16())
    expected = ContrastiveHead(0.07)(positive.bfloat16().float(), negative.bfloat16().float())
    assert loss == expected


@pytest.mark.parametrize("temperature", [0, -0.1])
def test_temperature_that_is_not_above_0_is_an_error(temperature):
    with pytest.raises(ConfigError, match=rf"MODEL.SSL.HEAD.TEMPERATURE is {temperature}; it must be above 0"):
        ContrastiveHead(temperature)


@pytest.mark.parametrize(("target", "cosine"), [([2.0, 0.0], 1), ([0.0, 5.0], 0), ([-1.0, 0.0], -1)])
def test_cosine_loss_is_shift_minus_scaled_cosine(target, cosine):
    loss = CosineSimilarityLoss(shift=2.0, scale=3.0)(torch.tensor([[1.0, 0.0]]), torch.tensor([target]))
    assert loss.item() == pytest.approx(2 - 3 * cosine, abs=1e-6)


def head(**kwargs):
    return LatentPredictHead({"NAME": "NonLinearNeck", "HID_CHANNELS": 4, **kwargs}, in_channels=3)


def test_predictor_keeps_the_size_and_does_not_pool():
    predictor = head().predictor
    assert predictor(torch.randn(2, 3)).shape == (2, 3)
    assert not predictor.with_avg_pool


def test_targets_get_no_gradient():
    embeddings, targets = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    head()(embeddings, targets).backward()
    assert embeddings.grad.abs().sum() > 0
    assert targets.grad is None


def test_similarities_are_exact_to_float32_under_autocast():
    a = torch.tensor([[1.0, 1e-4]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a.T).dtype == torch.bfloat16  # what it is about
        assert similarities(a, torch.tensor([[0.0, 1.0], [1.0, 1.0]])).tolist() == [
            [pytest.approx(1e-4), pytest.approx(1.0001, abs=1e-7)]
        ]


def test_similarities_of_short_floats_are_in_float32():
    a = torch.tensor([[1.0, 2**-8]], dtype=torch.bfloat16)
    assert similarities(a, a).tolist() == [[1 + 2**-16]]
