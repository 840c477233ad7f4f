import math

import pytest
import torch
from torch.nn import functional as F

from detlib.modeling.loss import AsymmetricLoss, CrossEntropyLoss, FocalLoss, LabelSmoothLoss

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
SCORES = torch.tensor([[1.0, 2.0, 3.0, 4.0]])  # of C = 4 classes, with label 2
LABEL = torch.tensor([2])
ONE_HOT = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
POSITIVE, NEGATIVE = torch.tensor([[1.0]]), torch.tensor([[0.0]])


def test_softmax_cross_entropy_is_minus_log_of_the_probability():
    loss = CrossEntropyLoss()(LOGITS, torch.tensor([0, 0]), reduction_override="none")
    torch.testing.assert_close(loss, torch.tensor([math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]))


def test_class_weights_do_not_enter_the_divisor_of_the_mean():
    loss = CrossEntropyLoss(class_weight=[0.25, 0.75])
    assert loss(LOGITS, torch.tensor([0, 0])).item() == pytest.approx(0.281732, abs=1e-6)


def test_weighted_mean_is_that_of_torch():
    loss = CrossEntropyLoss(class_weight=[0.25, 0.75], weighted_mean=True)
    assert loss(LOGITS, torch.tensor([0, 0])).item() == pytest.approx(1.126928, abs=1e-6)
    labels = torch.tensor([0, 1])
    expected = F.cross_entropy(LOGITS, labels, weight=torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(loss(LOGITS, labels), expected)


def test_avg_factor_precedes_the_weighted_mean():
    loss = CrossEntropyLoss(class_weight=[0.25, 0.75], weighted_mean=True)
    assert loss(LOGITS, torch.tensor([0, 0]), avg_factor=2).item() == pytest.approx(0.281732, abs=1e-6)


def test_weighted_mean_of_classes_without_weight_is_zero():
    loss = CrossEntropyLoss(class_weight=[0.0, 1.0], weighted_mean=True)
    assert loss(LOGITS, torch.tensor([0, 0])).item() == 0


@pytest.mark.parametrize("arguments", [{}, {"class_weight": [0.5, 2.0, 1.0, 3.0]}])
def test_soft_targets_that_are_one_hot_are_labels(arguments):
    soft = CrossEntropyLoss(use_soft=True, **arguments)
    expected = CrossEntropyLoss(**arguments)(SCORES, LABEL)
    torch.testing.assert_close(soft(SCORES, ONE_HOT), expected)
    torch.testing.assert_close(soft(SCORES, LABEL), expected)


def test_soft_targets_mix_the_losses_of_their_labels():
    loss = CrossEntropyLoss(use_soft=True)
    mixed = loss(SCORES, torch.tensor([[0.3, 0.0, 0.7, 0.0]]))
    torch.testing.assert_close(mixed, 0.3 * loss(SCORES, torch.tensor([0])) + 0.7 * loss(SCORES, LABEL))


def test_sigmoid_cross_entropy_averages_over_classes_unless_divided_by_samples():
    loss = CrossEntropyLoss(use_sigmoid=True)
    logits, targets = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 1.0], [0.5, 0.0, 0.0]])
    assert loss(logits, targets).item() == pytest.approx(math.log(2))
    assert loss(logits, targets, avg_factor=2).item() == pytest.approx(3 * math.log(2))


def test_class_and_positive_weights_of_sigmoids():
    loss = CrossEntropyLoss(use_sigmoid=True, class_weight=[1.0, 2.0, 3.0], pos_weight=[10.0, 10.0, 10.0])
    elements = loss(torch.zeros(1, 3), torch.tensor([1]), reduction_override="none")
    torch.testing.assert_close(elements, torch.tensor([[1.0, 20.0, 3.0]]) * math.log(2))


@pytest.mark.parametrize("loss", [CrossEntropyLoss(use_sigmoid=True), FocalLoss(), AsymmetricLoss()])
def test_background_label_is_a_row_of_zeros(loss):
    logits = torch.tensor([[1.0, -1.0, 2.0], [0.5, 0.0, -2.0]])
    rows = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(loss(logits, torch.tensor([3, 1])), loss(logits, rows))
    torch.testing.assert_close(loss(logits, torch.tensor([3, 1])), loss(logits, rows.long()))


def test_gradient_of_softmax_cross_entropy_is_probability_minus_target():
    scores = SCORES.clone().requires_grad_()
    CrossEntropyLoss()(scores, LABEL).backward()
    torch.testing.assert_close(scores.grad, SCORES.softmax(dim=1) - ONE_HOT)


def test_gradient_of_sigmoid_cross_entropy_is_probability_minus_target():
    scores = SCORES.clone().requires_grad_()
    CrossEntropyLoss(use_sigmoid=True, reduction="sum")(scores, LABEL).backward()
    torch.testing.assert_close(scores.grad, SCORES.sigmoid() - ONE_HOT)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), LabelSmoothLoss()])
@pytest.mark.parametrize("label", [2, -1])
def test_label_outside_of_a_softmax_is_an_error_that_says_what_to_do(loss, label):
    with pytest.raises(ValueError, match=f"label {label} for 2 scores; expected 0 to 1.*one more score.*use_sigmoid"):
        loss(LOGITS, torch.tensor([0, label]))


def test_soft_targets_without_the_option_are_an_error():
    with pytest.raises(AssertionError, match=r"targets are \(1, 4\); .*use_soft=True"):
        CrossEntropyLoss()(SCORES, ONE_HOT)


def test_labels_as_floats_are_an_error():
    for loss in (CrossEntropyLoss(), FocalLoss()):
        with pytest.raises(AssertionError, match=r"of torch.float32; expected .* of an integer type"):
            loss(SCORES, torch.tensor([2.0]))


def test_options_of_cross_entropy_that_exclude_each_other():
    with pytest.raises(AssertionError, match="use_sigmoid and use_soft"):
        CrossEntropyLoss(use_sigmoid=True, use_soft=True)
    with pytest.raises(ValueError, match="weighted_mean is set; it needs class_weight"):
        CrossEntropyLoss(weighted_mean=True)
    with pytest.raises(ValueError, match="pos_weight is set; it needs use_sigmoid=True"):
        CrossEntropyLoss(pos_weight=[1.0])


@pytest.mark.parametrize("arguments", [{"class_weight": [1.0]}, {"use_sigmoid": True, "pos_weight": [1.0]}])
def test_class_weights_must_be_as_many_as_scores(arguments):
    with pytest.raises(ValueError, match="_weight has 1 values for 4 scores"):
        CrossEntropyLoss(**arguments)(SCORES, LABEL)


def test_class_weights_move_with_the_module_but_are_not_saved():
    loss = CrossEntropyLoss(use_sigmoid=True, class_weight=[1.0, 2.0], pos_weight=[1.0, 2.0])
    assert loss.state_dict() == {}
    assert loss.to("meta").class_weight.device.type == "meta"


def test_half_precision_module_keeps_working():
    loss = CrossEntropyLoss(class_weight=[1.0, 2.0]).half()
    assert loss(LOGITS.half(), torch.tensor([0, 1])).dtype == torch.float32


@pytest.mark.parametrize(("mode", "expected"), [("original", 1.490190), ("classy_vision", 1.485644)])
def test_label_smoothing_of_a_softmax(mode, expected):
    loss = LabelSmoothLoss(0.1, num_classes=4, mode=mode)
    assert loss(SCORES, LABEL).item() == pytest.approx(expected, abs=1e-6)
    assert loss(SCORES, ONE_HOT).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("mode", "targets"),
    [("original", [0.025, 0.025, 0.925, 0.025]), ("classy_vision", [0.0227, 0.0227, 0.9318, 0.0227])],
)
def test_smoothed_targets_are_where_the_gradient_vanishes(mode, targets):
    scores = SCORES.clone().requires_grad_()
    LabelSmoothLoss(0.1, mode=mode)(scores, LABEL).backward()
    torch.testing.assert_close(SCORES.softmax(dim=1) - scores.grad, torch.tensor([targets]), atol=1e-4, rtol=0)


def test_label_smoothing_of_several_labels():
    scores = torch.zeros(1, 4, requires_grad=True)
    LabelSmoothLoss(0.1, mode="multi_label", reduction="sum")(scores, torch.tensor([[1, 0, 1, 0]])).backward()
    torch.testing.assert_close(0.5 - scores.grad, torch.tensor([[0.9, 0.1, 0.9, 0.1]]))


def test_original_label_smoothing_is_that_of_torch():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 0])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(LabelSmoothLoss(0.2)(logits, labels), expected)


def test_label_smoothing_refuses_other_numbers_of_classes_values_and_modes():
    with pytest.raises(ValueError, match="num_classes is 3, but there are 4 scores"):
        LabelSmoothLoss(0.1, num_classes=3)(SCORES, LABEL)
    for value in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"expected a value in \[0, 1\)"):
            LabelSmoothLoss(value)
    with pytest.raises(ValueError, match="'classy'; expected 'original', 'classy_vision' or 'multi_label'"):
        LabelSmoothLoss(mode="classy")


@pytest.mark.parametrize(
    ("logit", "target", "expected"),
    [(0.0, 1, 0.0433217), (0.0, 0, 0.1299651), (2.0, 1, 0.000450891), (2.0, 0, 1.237559)],
)
def test_focal_loss(logit, target, expected):
    loss = FocalLoss()(torch.tensor([[logit]]), torch.tensor([[target]]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_takes_weights_of_samples_or_elements():
    logits, labels = torch.zeros(2, 2), torch.tensor([0, 2])
    elements = FocalLoss()(logits, labels, reduction_override="none")
    of_samples = FocalLoss()(logits, labels, weight=torch.tensor([1.0, 0.0]), avg_factor=1)
    torch.testing.assert_close(of_samples, elements[0].sum())
    of_elements = FocalLoss()(logits, labels, weight=torch.tensor([[1.0, 0.0], [0.0, 1.0]]), avg_factor=1)
    torch.testing.assert_close(of_elements, elements[0, 0] + elements[1, 1])


def test_focal_loss_of_a_softmax_is_an_error():
    with pytest.raises(ValueError, match=r"focal loss is of sigmoids only\. CrossEntropyLoss has a softmax"):
        FocalLoss(use_sigmoid=False)


def test_asymmetric_loss_shifts_the_negatives():
    assert AsymmetricLoss()(torch.zeros(1, 1), POSITIVE).item() == pytest.approx(math.log(2))
    assert AsymmetricLoss()(torch.zeros(1, 1), NEGATIVE).item() == pytest.approx(-(0.45**4) * math.log(0.55))


def test_asymmetric_loss_of_negatives_below_the_clip_is_zero():
    scores = torch.tensor([[-4.0]], requires_grad=True)  # p = 0.018
    loss = AsymmetricLoss()(scores, NEGATIVE)
    loss.backward()
    assert (loss.item(), scores.grad.item()) == (0, 0)


def test_asymmetric_loss_without_asymmetry_is_cross_entropy():
    logits, targets = torch.randn(5, 3), torch.rand(5, 3)
    loss = AsymmetricLoss(gamma_pos=0.0, gamma_neg=0.0, clip=0.0)
    torch.testing.assert_close(loss(logits, targets), F.binary_cross_entropy_with_logits(logits, targets))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
def test_asymmetric_loss_of_extreme_scores_is_finite_with_gradient(gamma):
    scores = torch.tensor([[-200.0, -4.0, 200.0]] * 2, requires_grad=True)
    loss = AsymmetricLoss(gamma_pos=gamma, gamma_neg=gamma)(scores, torch.tensor([[1.0] * 3, [0.0] * 3]))
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()
