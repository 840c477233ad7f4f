import pytest
import torch
from torch import nn

from detlib.modeling.self_supervised.densecl import DenseCLNeck
from detlib.modeling.self_supervised.necks import (
    AvgPool2dNeck,
    LinearNeck,
    MoCoV2Neck,
    NonLinearNeck,
    batch_norm_1d,
    mean_of_cells,
)
from detlib.modeling.self_supervised.swav import SwAVNeck
from detlib.utils.errors import ConfigError

BYOL = {"with_bias": True, "with_last_bn": False}
SIMSIAM = {"with_last_bias": True, "with_last_bn": False}
NO_AFFINE = {"with_last_bn_affine": False}


@pytest.mark.parametrize(
    ("build", "num_parameters"),
    [
        (lambda: LinearNeck(2048, 128), 262_272),
        (lambda: MoCoV2Neck(2048, 2048, 128), 4_458_624),
        (lambda: DenseCLNeck(2048, 2048, 128), 8_917_248),
        (lambda: NonLinearNeck(2048, 4096, 256, **BYOL), 9_449_472),
        (lambda: NonLinearNeck(256, 4096, 256, **BYOL), 2_109_440),  # predictor of BYOL
        (lambda: NonLinearNeck(2048, 2048, 2048, num_layers=3, **NO_AFFINE), 12_591_104),  # SimSiam
        (lambda: NonLinearNeck(2048, 512, 2048, **SIMSIAM), 2_100_224),
        (lambda: NonLinearNeck(2048, 8192, 8192, num_layers=3, with_last_bn=False), 151_027_712),  # Barlow Twins
        (lambda: NonLinearNeck(2048, 2048, 128), 4_460_800),  # SimCLR
        (lambda: NonLinearNeck(2048, 4096, 256, **NO_AFFINE), 9_445_376),  # MoCo v3
        (lambda: NonLinearNeck(256, 4096, 256, with_last_bn=False), 2_105_344),
        (lambda: NonLinearNeck(384, 4096, 256, num_layers=3, **NO_AFFINE), 18_366_464 + 1_048_576),
        (lambda: NonLinearNeck(256, 4096, 256, **NO_AFFINE), 2_105_344),
        (lambda: SwAVNeck(2048, 2048, 128), 4_462_720),
        (lambda: AvgPool2dNeck(2048), 0),
    ],
)
def test_necks_have_as_many_parameters_as_published(build, num_parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == num_parameters


def test_mean_of_cells_averages_maps_and_keeps_vectors():
    maps = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 1, 2, 2)
    assert mean_of_cells(maps).tolist() == [[3.0]]
    assert mean_of_cells(maps.flatten(1)).tolist() == [[1.0, 2.0, 3.0, 6.0]]


def kinds(neck):
    return [type(layer).__name__ for layer in neck.mlp]


def test_non_linear_neck_has_norm_and_relu_after_all_layers_but_the_last():
    assert kinds(NonLinearNeck(4, 4, 4, num_layers=3)) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + [
        "Linear",
        "BatchNorm1d",
    ]
    assert kinds(NonLinearNeck(4, 4, 4, with_last_bn=False)) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert kinds(NonLinearNeck(4, 4, 4, num_layers=1, with_last_bn=False)) == ["Linear"]


def test_non_linear_neck_has_biases_only_where_wanted():
    def biases(**kwargs):
        return [
            layer.bias is not None for layer in NonLinearNeck(4, 4, 4, **kwargs).mlp if isinstance(layer, nn.Linear)
        ]

    assert biases() == [False, False]
    assert biases(with_bias=True) == [True, False]
    assert biases(with_last_bias=True) == [False, True]


def test_non_linear_neck_without_pooling_takes_vectors():
    predictor = NonLinearNeck(4, 8, 2, with_avg_pool=False)
    assert predictor(torch.randn(3, 4)).shape == (3, 2)
    assert NonLinearNeck(4, 8, 2)(torch.randn(3, 4, 5, 5)).shape == (3, 2)


def test_moco_v2_neck_has_no_norm():
    assert kinds(MoCoV2Neck(4, 8, 2)) == ["Linear", "ReLU", "Linear"]


def test_swav_neck_gives_vectors_of_length_1():
    torch.testing.assert_close(SwAVNeck(4, 8, 3)(torch.randn(5, 4, 2, 2)).norm(dim=1), torch.ones(5))


def test_avg_pool_keeps_four_dimensions():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert AvgPool2dNeck(1)(x).tolist() == [[[[7.5]]]]
    assert AvgPool2dNeck(1, output_size=2)(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


def test_synchronised_norm_in_one_process_is_batch_norm():
    x = torch.randn(6, 3)
    torch.testing.assert_close(batch_norm_1d("SyncBN", 3)(x), nn.BatchNorm1d(3)(x))
    assert batch_norm_1d("SyncBN", 3, affine=False).weight is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: batch_norm_1d("GN", 3), "the norm of a neck is 'GN'; it must be one of BN, SyncBN"),
        (lambda: NonLinearNeck(4, 4, 4, num_layers=0), "num_layers is 0; it must be 1 or more"),
    ],
)
def test_neck_that_cannot_be_built_is_an_error(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_batch_norm_of_one_vector_is_an_error_in_training_only(norm):
    neck = NonLinearNeck(4, 4, 4, norm=norm)
    with pytest.raises(ConfigError, match=r"got one vector, which has no variance; set SOLVER.IMS_PER_BATCH"):
        neck(torch.randn(1, 4))
    assert neck.eval()(torch.randn(1, 4)).isfinite().all()
