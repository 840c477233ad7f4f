import pytest
import torch
from torch import nn

from detlib.modeling.loss import L1Loss, SmoothL1Loss, build_loss
from detlib.utils.errors import ConfigTypeError, UnknownNameError

NAMES = [
    "AsymmetricLoss",
    "CIoULoss",
    "CrossEntropyLoss",
    "DIoULoss",
    "DiceLoss",
    "FocalLoss",
    "GHMC",
    "GHMR",
    "GIoULoss",
    "IoULoss",
    "L1Loss",
    "LabelSmoothLoss",
    "MSELoss",
    "SmoothL1Loss",
]
CLASS_LOSSES = ["AsymmetricLoss", "CrossEntropyLoss", "FocalLoss", "GHMC", "LabelSmoothLoss"]
BOX_LOSSES = ["CIoULoss", "DIoULoss", "GIoULoss", "IoULoss"]


def example_inputs(name):
    """Scores and labels for a class loss, else boxes; those of two samples."""
    if name in CLASS_LOSSES:
        return torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]), torch.tensor([2, 0])
    pred = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 4.0, 3.0]])
    return pred, torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 4.0, 4.0]])


def empty_inputs(name):
    if name in CLASS_LOSSES:
        return torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    return torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4)


def test_arguments_of_a_node_reach_the_loss():
    loss = build_loss({"NAME": "SmoothL1Loss", "BETA": 1, "LOSS_WEIGHT": 2})
    assert type(loss) is SmoothL1Loss
    assert (loss.beta, loss.loss_weight, loss.reduction) == (1.0, 2.0, "mean")


def test_unknown_argument_is_a_type_error_that_names_the_class():
    with pytest.raises(ConfigTypeError, match="GIoULoss takes no BETA") as error:
        build_loss({"NAME": "GIoULoss", "BETA": 1.0})
    assert isinstance(error.value, TypeError)


def test_unknown_loss_is_an_error_with_the_closest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'SmoothL1Loss'"):
        build_loss({"NAME": "SmoothL1"})


def test_no_node_is_no_loss_and_a_module_comes_back():
    loss = L1Loss()
    assert build_loss({}) is None
    assert build_loss(None) is None
    assert build_loss(loss) is loss


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_registered_under_their_class_names(name):
    loss = build_loss({"NAME": name})
    assert isinstance(loss, nn.Module)
    assert type(loss).__name__ == name


@pytest.mark.parametrize("name", NAMES)
def test_only_iou_losses_are_on_boxes(name):
    assert getattr(build_loss({"NAME": name}), "on_boxes", False) == (name in BOX_LOSSES)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_losses_say_whether_they_use_a_sigmoid(name):
    softmax = name in ("CrossEntropyLoss", "LabelSmoothLoss")
    assert build_loss({"NAME": name}).use_sigmoid == (not softmax)


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_nothing_are_zero_with_gradient(name):
    loss = build_loss({"NAME": name})
    pred, target = empty_inputs(name)
    for arguments in ({}, {"avg_factor": 0}, {"reduction_override": "sum"}, {"weight": torch.zeros(0)}):
        value = loss(pred, target, **arguments)
        value.backward()
        assert value.item() == 0
    assert pred.grad.shape == pred.shape
    assert loss(pred, target, reduction_override="none").numel() == 0


@pytest.mark.parametrize("name", NAMES)
def test_loss_weight_scales_every_reduction(name):
    loss, doubled = build_loss({"NAME": name}), build_loss({"NAME": name, "LOSS_WEIGHT": 2})
    pred, target = example_inputs(name)
    for reduction in ("none", "mean", "sum"):
        once, twice = (x(pred, target, reduction_override=reduction) for x in (loss, doubled))
        torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("name", NAMES)
def test_reduction_none_is_what_sum_and_mean_reduce(name):
    loss = build_loss({"NAME": name, "REDUCTION": "none"})
    pred, target = example_inputs(name)
    elements = loss(pred, target)
    assert elements.shape[0] == len(pred)
    torch.testing.assert_close(loss(pred, target, reduction_override="sum"), elements.sum())
    torch.testing.assert_close(loss(pred, target, reduction_override="mean"), elements.mean())


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_ones_change_nothing(name):
    loss = build_loss({"NAME": name})
    pred, target = example_inputs(name)
    torch.testing.assert_close(loss(pred, target, weight=torch.ones(2)), loss(pred, target))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("GHMC", "GHMR")])
def test_weights_of_samples_and_avg_factor(name):
    loss = build_loss({"NAME": name})
    pred, target = example_inputs(name)
    elements = loss(pred, target, reduction_override="none")
    value = loss(pred, target, weight=torch.tensor([3.0, 0.0]), avg_factor=2)
    torch.testing.assert_close(value, 3 * elements[0].sum() / 2)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_zero_give_zero_with_a_gradient_of_zero(name):
    loss = build_loss({"NAME": name})
    pred, target = example_inputs(name)
    pred.requires_grad_()
    value = loss(pred, target, weight=torch.zeros(2), avg_factor=0)
    value.backward()
    assert value.item() == 0
    assert (pred.grad == 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    loss = build_loss({"NAME": name})
    pred, target = example_inputs(name)
    pred = (100 * pred).to(dtype).requires_grad_()
    target = 100 * target if name not in (*CLASS_LOSSES, "DiceLoss") else target
    value = loss(pred, target.to(dtype) if target.is_floating_point() else target)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert pred.grad.dtype == dtype
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_losses_work_without_reading_values_so_that_a_gpu_need_not_wait(name):
    """On the meta device a tensor has no values."""
    loss = build_loss({"NAME": name}).to("meta")
    pred, target = (x.to("meta") for x in example_inputs(name))
    avg_factor = torch.tensor(2, device="meta")
    assert loss(pred, target, weight=torch.ones(2, device="meta"), avg_factor=avg_factor).shape == ()


@pytest.mark.parametrize("name", NAMES)
def test_unknown_reduction_is_an_error(name):
    with pytest.raises(ValueError, match="'avg'; expected 'none', 'mean' or 'sum'"):
        build_loss({"NAME": name, "REDUCTION": "avg"})
    with pytest.raises(AssertionError, match="reduction_override is 'avg'; expected None, 'none'"):
        build_loss({"NAME": name})(*example_inputs(name), reduction_override="avg")


@pytest.mark.parametrize("name", NAMES)
def test_targets_of_another_shape_are_an_error_not_a_broadcast(name):
    pred, _ = example_inputs(name)
    with pytest.raises(AssertionError, match=r"expected"):
        build_loss({"NAME": name})(pred, torch.zeros(1, 1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3,), (1, 1, 4)])
def test_weights_of_another_shape_are_an_error_not_a_broadcast(name, shape):
    with pytest.raises(AssertionError, match=r"expected one weight per sample, \(2,\), or per element"):
        build_loss({"NAME": name})(*example_inputs(name), weight=torch.ones(shape))
