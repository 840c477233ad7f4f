import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import EncoderBlock

from detlib.layers import ShapeSpec
from detlib.modeling import Backbone, build_backbone
from detlib.modeling.backbone.fpn import LastLevelMaxPool
from detlib.modeling.backbone.vit import SimpleFeaturePyramid, ViT, get_vit_lr_decay_rate
from detlib.solver import build_optimizer
from detlib.utils.errors import ConfigError


def vit(**kwargs):
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "pretrain_img_size": 24}
    return ViT(**{**options, **kwargs})


def test_gives_the_same_numbers_as_blocks_of_torchvision():
    model = vit(use_abs_pos=False).eval()
    x = torch.randn(2, 3, 32, 48)
    expected = model.patch_embed(x).flatten(1, 2)  # (2, 4 * 6, 8)
    for block in model.blocks:
        reference = EncoderBlock(2, 8, 32, dropout=0, attention_dropout=0, norm_layer=nn.LayerNorm).eval()
        weights = block.state_dict()
        renamed = {
            "self_attention.in_proj_weight": weights["attn.qkv.weight"],
            "self_attention.in_proj_bias": weights["attn.qkv.bias"],
        }
        for theirs, ours in {
            "ln_1": "norm1",
            "ln_2": "norm2",
            "self_attention.out_proj": "attn.proj",
            "mlp.0": "mlp.fc1",
            "mlp.3": "mlp.fc2",
        }.items():
            for kind in ("weight", "bias"):
                renamed[f"{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
        reference.load_state_dict(renamed)
        expected = reference(expected)
    with torch.no_grad():
        torch.testing.assert_close(model(x)["last_feat"].flatten(2).transpose(1, 2), expected)


def test_absolute_positions_are_added_to_patches():
    model = vit(depth=0)
    x = torch.zeros(1, 3, 24, 24)
    patches = model.patch_embed(x).permute(0, 3, 1, 2)
    positions = model.pos_embed[:, 1:].transpose(1, 2).view(1, 8, 3, 3)
    torch.testing.assert_close(model(x)["last_feat"], patches + positions)


def test_windows_do_not_see_each_other():
    model = vit(window_size=2, window_block_indexes=[0, 1], use_rel_pos=True).eval()
    x = torch.randn(1, 3, 32, 48)
    before = model(x)["last_feat"]
    x[..., :16] += 1  # The first column of windows.
    after = model(x)["last_feat"]
    torch.testing.assert_close(before[..., 2:], after[..., 2:])
    assert not torch.allclose(before[..., :2], after[..., :2])


def test_blocks_without_windows_see_the_whole_map():
    model = vit(window_size=2, window_block_indexes=[0]).eval()
    x = torch.randn(1, 3, 32, 48)
    before = model(x)["last_feat"]
    x[..., :8] += 1
    assert (before != model(x)["last_feat"]).any(dim=1).all()


def test_relative_positions_start_without_effect_unless_told_otherwise():
    x = torch.randn(1, 3, 32, 32)
    plain = vit().eval()(x)["last_feat"]
    torch.testing.assert_close(vit(use_rel_pos=True).eval()(x)["last_feat"], plain)
    assert vit(use_rel_pos=True, rel_pos_zero_init=False).blocks[0].attn.rel_pos_h.abs().sum() > 0


def test_tables_of_distances_fit_windows_and_the_whole_map():
    model = vit(window_size=3, window_block_indexes=[0], use_rel_pos=True)
    assert [block.attn.rel_pos_h.shape for block in model.blocks] == [(5, 4), (7, 4)]


def test_residual_block_starts_as_the_identity():
    x = torch.randn(1, 3, 32, 32)
    model, plain = vit(residual_block_indexes=[1]).eval(), vit().eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(model(x)["last_feat"], plain(x)["last_feat"])


def test_checkpointing_changes_no_gradient():
    x = torch.randn(1, 3, 32, 40)
    gradients = []
    for use_act_checkpoint in (False, True):
        model = vit(use_rel_pos=True, use_act_checkpoint=use_act_checkpoint)
        model(x)["last_feat"].square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_path_rises_with_depth():
    assert [block.drop_path.p for block in vit(depth=3, drop_path_rate=0.4).blocks] == [0, 0.2, 0.4]


def test_windows_without_a_size_are_refused():
    with pytest.raises(ConfigError, match=r"\[1\] use windows"):
        vit(window_block_indexes=[1])


class Map(Backbone):
    """One map of stride 16 and 8 channels."""

    def forward(self, x):
        return {"map": torch.ones(len(x), 8, x.shape[-2] // 16, x.shape[-1] // 16)}

    def output_shape(self):
        return {"map": ShapeSpec(channels=8, stride=16)}


def test_pyramid_has_its_levels_and_one_more():
    model = SimpleFeaturePyramid(Map(), "map", 6, (4.0, 2.0, 1.0, 0.5), LastLevelMaxPool(), square_pad=128)
    maps = model(torch.zeros(2, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "p2": (2, 6, 16, 24),
        "p3": (2, 6, 8, 12),
        "p4": (2, 6, 4, 6),
        "p5": (2, 6, 2, 3),
        "p6": (2, 6, 1, 2),
    }
    assert {name: shape.stride for name, shape in model.output_shape().items()} == {f"p{i}": 2**i for i in range(2, 7)}
    assert model.padding_constraints == {"size_divisibility": 32, "square_size": 128}
    assert model.size_divisibility == 32


@pytest.mark.parametrize(("factors", "message"), [((4.0, 1.0), "half of the one before"), ((8.0, 4.0), "has 8.0")])
def test_pyramid_refuses_other_scales(factors, message):
    with pytest.raises(ConfigError, match=message):
        SimpleFeaturePyramid(Map(), "map", 6, factors)


@pytest.mark.parametrize(
    ("name", "num_layers_above"),
    [
        ("backbone.net.pos_embed", 13),
        ("backbone.net.patch_embed.proj.weight", 13),
        ("backbone.net.blocks.0.attn.rel_pos_h", 12),
        ("backbone.net.blocks.11.mlp.fc1.bias", 1),
        ("backbone.net.blocks.3.residual.conv1.weight", 0),
        ("backbone.simfp_2.0.weight", 0),
        ("roi_heads.box_head.fc1.weight", 0),
    ],
)
def test_learning_rate_decays_with_the_layers_above(name, num_layers_above):
    assert get_vit_lr_decay_rate(name, 0.5, 12) == 0.5**num_layers_above


def test_optimizer_takes_the_depth_from_the_model(tiny_cfg):
    tiny_cfg.MODEL.BACKBONE.NAME = "build_vit_fpn_backbone"
    tiny_cfg.MODEL.VIT.merge_from_list(["EMBED_DIM", 8, "DEPTH", 2, "NUM_HEADS", 2, "IMG_SIZE", 64])
    tiny_cfg.merge_from_list(["SOLVER.LAYER_DECAY", 0.5, "SOLVER.BASE_LR", 8.0, "SOLVER.OPTIMIZER", "AdamW"])
    model = build_backbone(tiny_cfg)
    rate = {param: group["lr"] for group in build_optimizer(tiny_cfg, model).param_groups for param in group["params"]}
    assert rate[model.net.pos_embed] == 1
    assert rate[model.net.blocks[0].attn.qkv.weight] == 2
    assert rate[model.net.blocks[1].attn.qkv.weight] == 4
    assert rate[model.simfp_4[0].weight] == 8
