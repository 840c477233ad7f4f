import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detlib.layers import (
    CNNBlockBase,
    Conv2d,
    DepthwiseSeparableConv2d,
    FrozenBatchNorm2d,
    ShapeSpec,
    cat,
    cross_entropy,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)
from detlib.layers.wrappers import check_if_dynamo_compiling, disable_torch_compiler, empty_input_loss_func_wrapper


def test_conv_applies_norm_then_activation():
    conv = Conv2d(1, 1, 1, bias=False, norm=nn.BatchNorm2d(1).eval(), activation=F.relu)
    nn.init.ones_(conv.weight)
    conv.norm.running_mean.fill_(2.0)
    out = conv(torch.tensor([1.0, 5.0]).view(1, 1, 1, 2))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 3.0]), atol=1e-4, rtol=0)


def test_conv_keys_are_those_of_checkpoints():
    assert list(Conv2d(1, 1, 1, norm=nn.GroupNorm(1, 1)).state_dict()) == ["weight", "bias", "norm.weight", "norm.bias"]


def test_conv_without_extras_is_torchs_conv():
    conv = Conv2d(2, 3, kernel_size=3, padding=1)
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))


def test_conv_of_no_images_gives_no_images():
    assert Conv2d(2, 3, 3, norm=nn.BatchNorm2d(3))(torch.zeros(0, 2, 4, 4)).shape == (0, 3, 2, 2)


def test_cat_of_one_tensor_copies_nothing():
    x = torch.ones(2)
    assert cat([x]) is x
    assert cat([x, x]).tolist() == [1, 1, 1, 1]


def test_nonzero_tuple_of_matrix_and_of_scalar():
    rows, columns = nonzero_tuple(torch.tensor([[0, 1], [2, 0]]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
    assert [i.tolist() for i in nonzero_tuple(torch.tensor(3))] == [[0]]


def test_mean_cross_entropy_of_nothing_is_zero_with_gradient():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 4)


def test_cross_entropy_of_something_is_torchs():
    logits, target = torch.randn(3, 4), torch.tensor([0, 3, 1])
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            cross_entropy(logits, target, reduction=reduction), F.cross_entropy(logits, target, reduction=reduction)
        )


def test_wrapped_loss_keeps_its_name():
    assert empty_input_loss_func_wrapper(F.mse_loss).__name__ == "mse_loss"


def test_tracing_helpers_do_the_plain_thing_outside_of_a_compiler():
    assert shapes_to_tensor([3, 4]).tolist() == [3, 4]
    assert move_device_like(torch.zeros(1), torch.zeros(1, device="meta")).device.type == "meta"
    assert not check_if_dynamo_compiling()
    assert disable_torch_compiler(lambda x: x + 1)(1) == 2


def test_shape_specs_are_equal_if_their_numbers_are():
    assert ShapeSpec(channels=3, stride=4) == ShapeSpec(3, None, None, 4)
    assert ShapeSpec(channels=3) != ShapeSpec(channels=4)


def test_depthwise_separable_conv_has_a_kernel_per_channel_then_mixes_channels():
    block = DepthwiseSeparableConv2d(4, 6, norm1="BN")
    assert block.depthwise.weight.shape == (4, 1, 3, 3)
    assert block.pointwise.weight.shape == (6, 4, 1, 1)
    assert (block.depthwise.bias is None, block.pointwise.bias is None) == (True, False)
    assert block(torch.randn(1, 4, 5, 5)).shape == (1, 6, 5, 5)


def test_frozen_block_has_nothing_to_train():
    block = CNNBlockBase(3, 3, stride=1)
    block.conv = Conv2d(3, 3, 1, norm=nn.BatchNorm2d(3))
    assert block.freeze() is block
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)
    assert not any(parameter.requires_grad for parameter in block.parameters())


@pytest.mark.parametrize("name", ["in_channels", "out_channels", "stride"])
def test_block_tells_its_shape(name):
    assert (
        getattr(CNNBlockBase(in_channels=2, out_channels=4, stride=8), name)
        == {
            "in_channels": 2,
            "out_channels": 4,
            "stride": 8,
        }[name]
    )
