import pytest
import torch
import torch.nn.functional as F

from detlib.modeling.backbone.mvit import MViT
from detlib.modeling.backbone.utils import add_decomposed_rel_pos
from detlib.utils.errors import ConfigError


def mvit(**kwargs):
    torch.manual_seed(0)
    options = {
        "img_size": 64,
        "embed_dim": 4,
        "depth": 5,
        "last_block_indexes": (0, 2, 3, 4),
        "adaptive_window_size": 16,
        "rel_pos_zero_init": False,
    }
    return MViT(**{**options, **kwargs})


def reference_attention(attention, x, stride_q, stride_kv):
    """Pooling attention over the whole map (MViTv2, fig. 2), head by head."""
    n, d = attention.num_heads, attention.qkv.out_features // 3 // attention.num_heads
    outputs = []
    for head in range(n):
        pooled = []
        for i, (pool, norm, stride) in enumerate(
            [
                (attention.pool_q, attention.norm_q, stride_q),
                (attention.pool_k, attention.norm_k, stride_kv),
                (attention.pool_v, attention.norm_v, stride_kv),
            ]
        ):
            rows = slice((i * n + head) * d, (i * n + head + 1) * d)
            part = F.linear(x, attention.qkv.weight[rows], attention.qkv.bias[rows]).permute(0, 3, 1, 2)
            part = F.conv2d(part, pool.weight, stride=stride, padding=1, groups=d)
            pooled.append(norm(part.permute(0, 2, 3, 1)))
        q, k, v = (part.flatten(1, 2) for part in pooled)
        logits = q @ k.transpose(1, 2) / d**0.5
        sizes = pooled[0].shape[1:3], pooled[1].shape[1:3]
        logits = add_decomposed_rel_pos(logits, q, attention.rel_pos_h, attention.rel_pos_w, *sizes)
        outputs.append((logits.softmax(-1) @ v + q).view(*pooled[0].shape))
    return attention.proj(torch.cat(outputs, dim=-1))


def test_global_block_is_that_of_the_paper():
    block = mvit().blocks[2]  # The last one of scale3: 2 heads, keys and values pooled by 4.
    x = torch.randn(2, 8, 12, 8)
    attended = reference_attention(block.attn, block.norm1(x), 1, 4)
    expected = x + attended
    torch.testing.assert_close(block(x), expected + block.mlp(block.norm2(expected)))


def test_first_block_of_a_stage_halves_the_map_and_doubles_the_channels():
    block = mvit().blocks[1]  # Windows of 16 hold this whole map.
    x = torch.randn(2, 16, 16, 4)
    normed = block.norm1(x)
    shortcut = F.max_pool2d(block.proj(normed).permute(0, 3, 1, 2), 3, stride=2, padding=1).permute(0, 2, 3, 1)
    expected = shortcut + reference_attention(block.attn, normed, 2, 2)
    found = block(x)
    assert found.shape == (2, 8, 8, 8)
    torch.testing.assert_close(found, expected + block.mlp(block.norm2(expected)))


def test_windows_of_the_first_stage_do_not_see_each_other():
    model = mvit(out_features=["scale2"], adaptive_window_size=8).eval()
    block = model.blocks[0]
    x = torch.randn(1, 16, 24, 4)
    before = block(x)
    x[:, :, :8] += torch.arange(4)
    after = block(x)
    # The kernels that pool keys reach over an edge of windows by one position, hence not further than the next window.
    torch.testing.assert_close(before[:, :, 16:], after[:, :, 16:])
    assert (before[:, :, :16] != after[:, :, :16]).any(dim=-1).all()


def test_strides_and_windows_change_from_stage_to_stage():
    attentions = [block.attn for block in mvit().blocks]
    assert [a.pool_q.stride[0] for a in attentions] == [1, 2, 1, 2, 2]
    # Halved with each stage, twice that in the global blocks of the inner stages.
    assert [a.pool_k.stride[0] for a in attentions] == [4, 2, 4, 2, 1]
    assert [a.q_window for a in attentions] == [16, 8, 0, 0, 0]
    assert [a.rel_pos_h.shape[0] for a in attentions] == [31, 15, 15, 7, 7]


def test_heads_double_with_the_channels():
    model = mvit(num_heads=2)
    assert [block.attn.num_heads for block in model.blocks] == [2, 4, 4, 8, 16]
    assert {name: shape.channels for name, shape in model.output_shape().items()} == {
        "scale2": 4,
        "scale3": 8,
        "scale4": 16,
        "scale5": 32,
    }


@pytest.mark.parametrize(("depth", "last", "millions"), [(10, (0, 2, 7, 9), 24.2), (16, (0, 2, 13, 15), 34.9)])
def test_number_of_weights_is_that_of_the_paper(depth, last, millions):
    with torch.device("meta"):
        model = MViT(depth=depth, last_block_indexes=last, out_features=["scale5"])
    classifier = 768 * 1000 + 1000
    assert (sum(p.numel() for p in model.parameters()) + classifier) / 1e6 == pytest.approx(millions, abs=0.1)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for use_act_checkpoint in (False, True):
        model = mvit(use_act_checkpoint=use_act_checkpoint)
        sum(x.square().sum() for x in model(torch.ones(1, 3, 36, 64)).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_absolute_positions_are_interpolated():
    model = mvit(use_abs_pos=True, pretrain_img_size=32)
    assert model.pos_embed.shape == (1, 65, 4)
    assert model(torch.randn(1, 3, 40, 64))["scale2"].shape == (1, 4, 10, 16)


def test_stages_after_the_last_output_are_not_built():
    model = mvit(out_features=["scale3"])
    assert len(model.blocks) == 3
    assert not any("scale2_norm" in key for key in model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_features": ["scale6"]}, "OUT_FEATURES is .*scale6.*scale2, scale3"),
        ({"depth": 6}, r"\[0, 2, 3, 4\]; it must rise and end with the last of DEPTH 6"),
        ({"adaptive_window_size": 6}, "windows of 6 cannot be pooled with strides 1 and 4"),
    ],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        mvit(**options)
