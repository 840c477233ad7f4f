import socket

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from detlib.layers import CycleBatchNormList, FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from detlib.layers.batch_norm import LayerNorm
from detlib.utils.errors import ConfigError, UnknownNameError


def randomized_batch_norm():
    norm = nn.BatchNorm2d(3).eval()
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return norm


def test_new_frozen_batch_norm_is_the_identity():
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(FrozenBatchNorm2d(3)(x), x)


def test_frozen_batch_norm_scales_by_hand_checkable_numbers():
    norm = FrozenBatchNorm2d(1, eps=0.0)
    norm.load_state_dict(
        {
            "weight": torch.tensor([3.0]),
            "bias": torch.tensor([1.0]),
            "running_mean": torch.tensor([2.0]),
            "running_var": torch.tensor([4.0]),
        }
    )
    assert norm(torch.full((1, 1, 1, 1), 6.0)).item() == 7.0  # (6 - 2) / 2 * 3 + 1


def test_frozen_batch_norm_gives_the_same_with_and_without_gradient():
    norm = FrozenBatchNorm2d.convert_frozen_batchnorm(randomized_batch_norm())
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(norm(x.clone().requires_grad_()), norm(x))


def test_frozen_batch_norm_has_no_parameters_and_the_keys_of_checkpoints():
    norm = FrozenBatchNorm2d(3)
    assert list(norm.parameters()) == []
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var"]


def test_batch_norm_that_is_frozen_keeps_its_keys():
    source = randomized_batch_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(source)
    assert list(frozen.state_dict()) == list(source.state_dict())
    source.num_batches_tracked += 3
    frozen.load_state_dict(source.state_dict())
    assert frozen.num_batches_tracked == 3
    frozen.load_state_dict(FrozenBatchNorm2d(3).state_dict())  # Which has no counter.


def test_frozen_batch_norm_keeps_half_precision():
    assert FrozenBatchNorm2d(3)(torch.zeros(1, 3, 2, 2).half().requires_grad_()).dtype == torch.float16


def test_weights_of_batch_norm_load_into_frozen_batch_norm():
    source = randomized_batch_norm()
    frozen = FrozenBatchNorm2d(3)
    frozen.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(frozen(x), source(x))


def test_caffe2_weights_without_statistics_load_as_scale_and_shift():
    frozen = nn.Sequential(FrozenBatchNorm2d(1))
    frozen[0].running_mean.fill_(5.0)
    frozen.load_state_dict({"0.weight": torch.tensor([2.0]), "0.bias": torch.tensor([1.0])})
    torch.testing.assert_close(frozen(torch.full((1, 1, 1, 1), 3.0)), torch.full((1, 1, 1, 1), 7.0))


def test_frozen_batch_norm_without_any_weights_is_reported_missing():
    result = FrozenBatchNorm2d(1).load_state_dict({}, strict=False)
    assert result.missing_keys == ["weight", "bias", "running_mean", "running_var"]


def test_convert_freezes_every_batch_norm_and_changes_no_output():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(randomized_batch_norm(), nn.ReLU())).eval()
    x = torch.randn(2, 3, 4, 5)
    expected = model(x)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    assert isinstance(frozen[1][0], FrozenBatchNorm2d)
    assert not frozen[1][0].training
    torch.testing.assert_close(frozen(x), expected)


def test_convert_back_gives_trainable_batch_norm_of_the_same_output():
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(nn.Sequential(randomized_batch_norm())).eval()
    x = torch.randn(2, 3, 4, 5)
    expected = frozen(x)
    trainable = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(frozen)
    assert isinstance(trainable[0], nn.BatchNorm2d)
    torch.testing.assert_close(trainable(x), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("naiveSyncBN_N", NaiveSyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
        ("LN", LayerNorm),
    ],
)
def test_get_norm_builds_each_norm_by_name(name, expected):
    norm = get_norm(name, 64)
    assert type(norm) is expected
    assert norm(torch.randn(2, 64, 3, 3)).shape == (2, 64, 3, 3)


@pytest.mark.parametrize("nothing", ["", None])
def test_get_norm_without_name_is_none(nothing):
    assert get_norm(nothing, 8) is None


def test_get_norm_calls_a_function():
    assert get_norm(lambda channels: nn.GroupNorm(2, channels), 8).num_groups == 2


def test_unknown_norm_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'Batch'.*BN, SyncBN"):
        get_norm("Batch", 8)


def test_group_norm_of_48_channels_says_what_divides():
    with pytest.raises(ConfigError, match="multiple of 32"):
        get_norm("GN", 48)


def test_layer_norm_normalizes_the_channels_of_each_position():
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]]).view(1, 2, 1, 2)
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(LayerNorm(2)(x), expected)


def test_cycle_batch_norm_keeps_statistics_per_level_and_shares_weights():
    norms = CycleBatchNormList(2, num_features=1, momentum=1.0)
    for level in (1.0, 3.0) * 2:
        norms(torch.full((1, 1, 2, 2), level))
    assert [norm.running_mean.item() for norm in norms] == [1.0, 3.0]
    assert [name for name, _ in norms.named_parameters()] == ["weight", "bias"]


def test_cycle_batch_norm_without_affine_has_no_parameters():
    norms = CycleBatchNormList(2, num_features=1, affine=False)
    assert list(norms.parameters()) == []
    assert norms(torch.randn(2, 1, 2, 2)).shape == (2, 1, 2, 2)


def test_naive_sync_batch_norm_in_one_process_is_batch_norm():
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(NaiveSyncBatchNorm(3)(x), nn.BatchNorm2d(3)(x))


def test_naive_sync_batch_norm_refuses_other_modes():
    with pytest.raises(ValueError, match="stats_mode is 'n'"):
        NaiveSyncBatchNorm(3, stats_mode="n")


def images(count):
    return torch.arange(count * 8.0).view(count, 2, 2, 2).sin()


def run_by_image(rank, port):
    """Three images in one process and none in the other agree with batch norm over all three."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    norm = NaiveSyncBatchNorm(2, stats_mode="N")
    x = images(3) if rank == 0 else images(0)
    x.requires_grad_()
    y = norm(x)
    y.square().sum().backward()
    reference, all_images = nn.BatchNorm2d(2), images(3).requires_grad_()
    expected = reference(all_images)
    expected.square().sum().backward()
    if rank == 0:
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(x.grad, all_images.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)

    by_process, halves = NaiveSyncBatchNorm(2), images(4)
    y = by_process(halves[rank * 2 : rank * 2 + 2])
    torch.testing.assert_close(y, nn.BatchNorm2d(2)(halves)[rank * 2 : rank * 2 + 2])
    dist.destroy_process_group()


def test_naive_sync_batch_norm_over_two_processes_is_batch_norm_over_all_images():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run_by_image, args=(port,), nprocs=2)
