import math

import pytest
import torch
from torch import nn

from detlib.checkpoint.hand_over import fold_branches
from detlib.modeling import SimpleFeaturePyramid, ViT
from detlib.modeling.self_supervised.vision_transformer import (
    TransformerBlock,
    VisionTransformer,
    sin_cos_positions,
)
from detlib.utils.errors import ConfigError, DatasetError


def tiny_vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return VisionTransformer(**{**defaults, **options})


def detector_vit() -> ViT:
    """The same network as detectors have it: neither class token nor norm at the end."""
    return ViT(
        img_size=32,
        pretrain_img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6),
    )


def test_position_of_a_patch_is_sine_and_cosine_of_its_row_then_of_its_column():
    positions = sin_cos_positions(8, 3)  # frequencies 1 and 1 / 100
    row, column = 1, 2
    angles = torch.tensor([row, row / 100]), torch.tensor([column, column / 100])
    expected = torch.cat([angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()])
    torch.testing.assert_close(positions[1 + row * 3 + column], expected)


def test_positions_with_the_column_first_are_those_with_the_row_first_with_halves_swapped():
    row_first, column_first = sin_cos_positions(16, 4), sin_cos_positions(16, 4, column_first=True)
    assert torch.equal(column_first, row_first.roll(8, dims=1))


def test_position_of_the_class_token_is_zero_and_positions_are_not_learned_but_saved():
    vit = tiny_vit()
    assert not vit.pos_embed[0, 0].any()
    assert not vit.pos_embed.requires_grad
    assert "pos_embed" in vit.state_dict()


def test_outputs_are_a_map_and_the_class_token_in_the_order_asked_for():
    vit = tiny_vit(out_features=("last_feat", "cls_token"))
    outputs = vit(torch.rand(2, 3, 32, 32))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {"last_feat": (2, 32, 4, 4), "cls_token": (2, 32)}
    assert list(vit.output_shape()) == ["last_feat", "cls_token"]
    assert vit.output_shape()["last_feat"].stride == 8


def test_unknown_output_is_an_error():
    with pytest.raises(ConfigError, match=r"OUT_FEATURES is \['map'\]; choose from last_feat and cls_token"):
        tiny_vit(out_features=("map",))


def test_map_has_patch_3_of_a_4_x_4_grid_in_row_0():
    vit = tiny_vit()
    images = torch.rand(1, 3, 32, 32)
    tokens = vit.encode(vit.embed(images))
    torch.testing.assert_close(vit(images)["last_feat"][0, :, 0, 3], tokens[0, 1 + 3])


def test_other_sizes_of_images_have_interpolated_positions():
    assert tiny_vit()(torch.rand(1, 3, 48, 16))["last_feat"].shape == (1, 32, 6, 2)


def test_image_that_is_no_multiple_of_the_patch_is_an_error():
    with pytest.raises(DatasetError, match="32 x 30 pixels do not fall into whole patches of 8"):
        tiny_vit()(torch.rand(1, 3, 32, 30))


def test_size_that_is_no_multiple_of_the_patch_is_an_error():
    with pytest.raises(ConfigError, match="IMG_SIZE 30 is no multiple of PATCH_SIZE 8"):
        tiny_vit(img_size=30)


def test_heads_that_do_not_divide_the_channels_are_an_error():
    with pytest.raises(ConfigError, match="5 heads do not divide 32 channels"):
        tiny_vit(num_heads=5)


def test_encoding_some_of_the_patches_adds_the_class_token_only():
    vit = tiny_vit()
    assert vit.encode(vit.embed(torch.rand(2, 3, 32, 32))[:, :5]).shape == (2, 6, 32)


def test_linear_layers_start_xavier_uniform_and_the_patches_as_one_linear_layer():
    vit = tiny_vit(embed_dim=64)
    assert vit.blocks[0].attn.qkv.weight.abs().max() <= math.sqrt(6 / (64 + 3 * 64))
    bound = math.sqrt(6 / (64 + 3 * 8 * 8))
    assert 0.99 * bound < vit.patch_embed.proj.weight.abs().max() <= bound
    assert not any(p.any() for name, p in vit.named_parameters() if name.endswith("bias"))
    assert 0.01 < vit.cls_token.std() < 0.03


def test_block_agrees_with_torch():
    torch.manual_seed(0)
    block = TransformerBlock(32, 4)
    reference = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {"attn.qkv.": "self_attn.in_proj_", "attn.proj.": "self_attn.out_proj.", "mlp.fc1": "linear1"}
    names["mlp.fc2"] = "linear2"
    weights = block.state_dict()
    for ours, theirs in names.items():
        weights = {name.replace(ours, theirs): w for name, w in weights.items()}
    reference.load_state_dict(weights)
    x = torch.rand(2, 5, 32)
    torch.testing.assert_close(block(x), reference(x))


def test_without_bias_of_keys_a_block_has_dim_parameters_fewer_and_none_in_qkv():
    def num_parameters(**options):
        return sum(p.numel() for p in TransformerBlock(32, 4, **options).parameters())

    assert num_parameters() - num_parameters(k_bias=False) == 32
    assert TransformerBlock(32, 4, k_bias=False).attn.qkv.bias is None


def test_layer_scale_of_nearly_nothing_makes_a_block_the_identity():
    x = torch.rand(1, 5, 32)
    torch.testing.assert_close(TransformerBlock(32, 4, layer_scale=1e-9)(x), x)


def test_drop_path_skips_branches_of_some_images_and_scales_those_of_the_others():
    torch.manual_seed(0)
    block = TransformerBlock(32, 4, drop_path=0.5)
    for parameter in block.mlp.fc2.parameters():  # leaves attention
        nn.init.zeros_(parameter)
    x = torch.rand(1, 5, 32).expand(64, -1, -1)
    branch = block.eval()(x) - x
    dropped = block.train()(x) - x
    skips = [torch.allclose(image, torch.zeros(1), atol=1e-5) for image in dropped]
    assert 10 < sum(skips) < 54
    factors = torch.tensor([0.0 if skip else 2.0 for skip in skips])[:, None, None]
    torch.testing.assert_close(dropped, factors * branch, rtol=1e-3, atol=1e-5)


def test_drop_path_grows_from_0_to_the_rate():
    assert [block.drop_path.p for block in tiny_vit(depth=3, drop_path_rate=0.2).blocks] == [0.0, 0.1, 0.2]


def test_blocks_that_are_computed_again_have_the_same_gradients_and_keep_fewer_values():
    kept, gradients = [], []
    for recompute in (False, True):
        vit = tiny_vit(use_act_checkpoint=recompute, drop_path_rate=0.5)
        torch.manual_seed(1)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            loss = vit(torch.ones(4, 3, 32, 32))["last_feat"].square().sum()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append(torch.cat([p.grad.flatten() for p in vit.parameters()]))
    assert torch.equal(*gradients)
    assert kept[1] < kept[0] / 2


def test_lr_factor_is_1_at_the_top_and_lowest_for_patches_and_class_token():
    vit = tiny_vit()
    names = ("norm.weight", "blocks.1.attn.qkv.weight", "blocks.0.norm1.bias", "patch_embed.proj.bias", "cls_token")
    assert [vit.lr_factor(name, 0.5) for name in names] == [1.0, 0.5, 0.25, 0.125, 0.125]


def test_weights_load_by_name_into_the_vit_of_detectors_all_but_class_token_and_last_norm():
    missing, unexpected = detector_vit().load_state_dict(tiny_vit().state_dict(), strict=False)
    assert missing == []
    assert unexpected == ["cls_token", "norm.weight", "norm.bias"]


@pytest.mark.parametrize("options", [{}, {"k_bias": False, "layer_scale": 0.1}])
def test_vit_of_detectors_computes_the_same_with_folded_weights(options):
    vit, detector = tiny_vit(**options), detector_vit().eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.1)
    weights = vit.state_dict()
    fold_branches(weights, detector.state_dict())
    assert detector.load_state_dict(weights, strict=False).missing_keys == []
    images = torch.rand(2, 3, 32, 32)
    tokens = vit.embed(images)
    for block in vit.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(detector(images)["last_feat"].flatten(2).transpose(1, 2), tokens)


def test_weights_load_into_a_simple_feature_pyramid():
    pyramid = SimpleFeaturePyramid(detector_vit(), "last_feat", 16, (2.0, 1.0))
    pyramid.net.load_state_dict(tiny_vit().state_dict(), strict=False)
    assert torch.equal(pyramid.net.pos_embed, tiny_vit().pos_embed)
    assert pyramid(torch.rand(1, 3, 32, 32))["p2"].shape == (1, 16, 8, 8)
