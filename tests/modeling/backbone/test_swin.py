import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling.backbone.swin import (
    BasicLayer,
    PatchMerging,
    SwinTransformer,
    WindowAttention,
    build_swin_backbone,
    window_partition,
    window_reverse,
)
from detlib.utils.errors import ConfigError


def swin(**kwargs):
    torch.manual_seed(0)
    options = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "out_indices": (0, 1)}
    return SwinTransformer(**{**options, **kwargs})


def name_in_torchvision(key):
    """layers.1.blocks.0.mlp.fc1.weight -> features.3.0.mlp.0.weight"""
    for ours, theirs in {
        "patch_embed.proj": "features.0.0",
        "patch_embed.norm": "features.0.2",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
        ".blocks": "",
    }.items():
        key = key.replace(ours, theirs)
    parts = key.split(".")
    if parts[0] == "layers":
        stage = int(parts[1])
        if parts[2] == "downsample":
            return ".".join(["features", str(2 * stage + 2), *parts[3:]])
        return ".".join(["features", str(2 * stage + 1), *parts[2:]])
    return key


@pytest.mark.parametrize("size", [(64, 96), (61, 75)])
def test_gives_the_same_numbers_as_torchvision(size):
    torch.manual_seed(0)
    reference = TorchvisionSwin([4, 4], 8, [2, 2, 1], [2, 4, 4], window_size=[3, 3], norm_layer=nn.LayerNorm).eval()
    model = swin(depths=(2, 2, 1), num_heads=(2, 4, 4), window_size=3, out_indices=(0, 1, 2)).eval()
    weights = reference.state_dict()
    weights.update({key: value for key, value in model.state_dict().items() if key.startswith("norm")})
    theirs = {key: weights[name_in_torchvision(key)].view_as(value) for key, value in model.state_dict().items()}
    assert torch.equal(theirs["layers.0.blocks.0.attn.relative_position_index"], _index(model))
    model.load_state_dict(theirs)
    x = torch.randn(2, 3, *(side // 4 * 4 for side in size))  # torchvision cuts off what is no whole patch.
    with torch.no_grad():
        found, features = model(x), reference.features[0](x)
        for i in range(3):
            features = reference.features[2 * i + 1](features)
            torch.testing.assert_close(found[f"p{i}"], F.layer_norm(features, features.shape[-1:]).permute(0, 3, 1, 2))
            if i < 2:
                features = reference.features[2 * i + 2](features)


def _index(model):
    return model.layers[0].blocks[0].attn.relative_position_index


def test_window_attention_is_that_of_the_formula():
    torch.manual_seed(0)
    attention = WindowAttention(4, (2, 3), num_heads=1)
    x = torch.randn(2, 6, 4)
    q, k, v = attention.qkv(x).split(4, dim=-1)
    bias = torch.empty(6, 6)
    for i in range(6):
        for j in range(6):
            dy, dx = i // 3 - j // 3, i % 3 - j % 3
            bias[i, j] = attention.relative_position_bias_table[(dy + 1) * 5 + dx + 2, 0]
    mask = torch.zeros(2, 6, 6)
    mask[1, :, 0] = float("-inf")  # In the second window of each image nothing sees the first position.
    logits = q @ k.transpose(1, 2) / 2 + bias
    torch.testing.assert_close(attention(x), attention.proj(logits.softmax(-1) @ v))
    torch.testing.assert_close(attention(x, mask), attention.proj((logits + mask).softmax(-1) @ v))


def test_windows_are_cut_row_by_row_and_joined_again():
    x = torch.arange(16.0).view(1, 4, 4, 1)
    windows = window_partition(x, 2)
    assert windows.flatten(1)[:2].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert torch.equal(window_reverse(windows, 2, 4, 4), x)


def test_merging_takes_down_before_right():
    merging = PatchMerging(1)
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()
    assert merging(torch.arange(4.0).view(1, 4, 1), 2, 2).flatten().tolist() == [0, 2, 1, 3]
    assert merging(torch.arange(3.0).view(1, 3, 1) + 1, 1, 3).tolist() == [[[1, 0, 2, 0], [3, 0, 0, 0]]]


def test_merging_refuses_another_number_of_positions():
    with pytest.raises(ValueError, match="got 5 positions, which is not 2 x 3"):
        PatchMerging(1)(torch.zeros(1, 5, 1), 2, 3)


def test_layer_returns_its_map_and_the_next_one():
    layer = BasicLayer(4, 2, 1, window_size=3, downsample=PatchMerging)
    x, H, W, reduced, next_H, next_W = layer(torch.randn(2, 5 * 7, 4), 5, 7)
    assert (x.shape, H, W, reduced.shape, next_H, next_W) == ((2, 35, 4), 5, 7, (2, 12, 8), 3, 4)


def test_shifted_windows_connect_neighbours_but_not_opposite_edges():
    layer = BasicLayer(4, 2, 1, window_size=4).eval()
    x = torch.randn(1, 64, 4)
    before = layer(x, 8, 8)[0]
    x.view(1, 8, 8, 4)[:, :, 0] += torch.arange(4)
    changed = (before != layer(x, 8, 8)[0]).any(dim=-1).view(8, 8).any(dim=0)
    # Column 0 reaches its window (0 to 3) and from there the shifted one (2 to 5), but nothing across the edge.
    assert changed.tolist() == [True] * 6 + [False] * 2


def test_absolute_positions_are_interpolated():
    model = swin(ape=True, pretrain_img_size=32)
    assert model.absolute_pos_embed.shape == (1, 8, 8, 8)
    assert model(torch.randn(1, 3, 40, 64))["p1"].shape == (1, 16, 5, 8)


def test_checkpointing_changes_no_gradient_also_for_two_sizes_at_once():
    gradients = []
    for use_checkpoint in (False, True):
        model = swin(use_checkpoint=use_checkpoint, drop_path_rate=0.0)
        outputs = [model(torch.ones(1, 3, *size)) for size in ((32, 40), (24, 32))]
        sum(x.square().sum() for output in outputs for x in output.values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, set()), (1, {"patch_embed"}), (2, {"patch_embed", "layers.0"})])
def test_freeze_at_counts_the_patches_as_the_stem(freeze_at, frozen):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.SWIN.merge_from_list(["EMBED_DIM", 8, "DEPTHS", [1, 1], "NUM_HEADS", [1, 2], "OUT_INDICES", [1]])
    model = build_swin_backbone(cfg, ShapeSpec(channels=3)).train()
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name for name, _ in model.named_parameters() if any(name.startswith(f) for f in frozen)} == names
    assert model.layers[0].blocks[0].training == (freeze_at < 2)
    assert model.layers[1].blocks[0].training


def test_stages_after_the_last_output_are_not_built():
    model = swin(out_indices=(0,))
    assert not any("layers.1" in key or "downsample" in key for key in model.state_dict())
    assert model.size_divisibility == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"out_indices": (2,)}, r"OUT_INDICES is \[2\]; choose from \[0, 1\]"), ({"num_heads": (1,)}, "differ in length")],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        swin(**options)


def test_windows_may_differ_from_stage_to_stage():
    model = swin(window_size=(4, 2))
    assert [layer.window_size for layer in model.layers] == [4, 2]
    assert model(torch.rand(1, 3, 32, 32))["p1"].shape == (1, 16, 4, 4)


def test_windows_for_another_number_of_stages_are_an_error():
    with pytest.raises(ConfigError, match=r"WINDOW_SIZE \[4, 2, 1\] and DEPTHS \[2, 2\] differ in length"):
        swin(window_size=(4, 2, 1))
