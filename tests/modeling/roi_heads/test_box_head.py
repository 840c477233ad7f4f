import pytest
import torch

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling.roi_heads import FastRCNNConvFCHead, build_box_head
from detlib.utils.errors import ConfigError, UnknownNameError

REGION = ShapeSpec(channels=4, height=3, width=3)


@pytest.mark.parametrize(
    ("conv_dims", "fc_dims", "expected"), [([6], [], (6, 3, 3)), ([], [5], (5,)), ([6, 7], [5, 8], (8,))]
)
def test_output_has_the_shape_that_is_told_beforehand(conv_dims, fc_dims, expected):
    head = FastRCNNConvFCHead(REGION, conv_dims=conv_dims, fc_dims=fc_dims)
    shape = head.output_shape
    assert tuple(n for n in (shape.channels, shape.height, shape.width) if n is not None) == expected
    assert head(torch.zeros(2, 4, 3, 3)).shape == (2, *expected)
    assert head(torch.zeros(0, 4, 3, 3)).shape == (0, *expected)


def test_layers_have_the_names_of_published_weights():
    head = FastRCNNConvFCHead(REGION, conv_dims=[8], fc_dims=[5, 5], conv_norm="BN")
    names = {name.split(".")[0] for name in head.state_dict()}
    assert names == {"conv1", "fc1", "fc2"}
    # A convolution before a norm needs no bias.
    assert "conv1.bias" not in head.state_dict()


def test_config_gives_numbers_of_layers_and_widths():
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.merge_from_list(
        ["NAME", "FastRCNNConvFCHead", "NUM_CONV", 1, "CONV_DIM", 6, "NUM_FC", 2, "FC_DIM", 5]
    )
    head = build_box_head(cfg, REGION)
    assert [(conv.in_channels, conv.out_channels) for conv in head.conv_norm_relus] == [(4, 6)]
    assert [(fc.in_features, fc.out_features) for fc in head.fcs] == [(54, 5), (5, 5)]


def test_a_head_without_layers_is_a_config_error():
    with pytest.raises(ConfigError, match="NUM_CONV or NUM_FC"):
        FastRCNNConvFCHead(REGION, conv_dims=[], fc_dims=[])


def test_unknown_head_is_suggested():
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFcHead"
    with pytest.raises(UnknownNameError, match="did you mean 'FastRCNNConvFCHead'"):
        build_box_head(cfg, REGION)
