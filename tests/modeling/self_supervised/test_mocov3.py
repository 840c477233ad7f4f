import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detlib.config import CfgNode
from detlib.modeling import build_model
from detlib.modeling.self_supervised.mocov3 import MoCoV3Head, MoCoV3ViT
from detlib.utils.errors import ConfigError


def test_logits_are_of_all_images_of_the_batch():
    shapes = []

    class Recorder(nn.Module):
        def forward(self, logits, labels):
            shapes.append((tuple(logits.shape), labels.tolist()))
            return logits.sum()

    MoCoV3Head(4, nn.Identity(), loss=Recorder())(torch.randn(3, 4), torch.randn(3, 4))
    assert shapes == [((3, 3), [0, 1, 2])]


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_equal_embeddings_have_the_log_of_the_batch_times_twice_the_temperature(temperature):
    head = MoCoV3Head(4, nn.Identity(), temperature)
    loss = 2 * head(torch.ones(5, 4), torch.ones(5, 4))  # both directions
    assert loss.item() == pytest.approx(2 * 2 * temperature * math.log(5), rel=1e-6)


def test_direction_has_its_closed_form():
    # Each query is its key, and the keys are at right angles.
    loss = MoCoV3Head(3, nn.Identity(), 0.5)(4 * torch.eye(3), torch.eye(3))
    assert loss.item() == pytest.approx(2 * 0.5 * math.log(1 + 2 * math.exp(-2)), rel=1e-6)


def test_temperature_of_0_is_an_error():
    with pytest.raises(ConfigError, match=r"MODEL.SSL.HEAD.TEMPERATURE is 0.0; it must be above 0"):
        MoCoV3Head(3, nn.Identity(), 0.0)


@pytest.fixture
def mocov3(ssl_cfg):
    def make(backbone=None, **ssl):
        torch.manual_seed(0)
        neck = {"NAME": "NonLinearNeck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8, "WITH_LAST_BN_AFFINE": False}
        predictor = {"NAME": "NonLinearNeck", "HID_CHANNELS": 16, "WITH_LAST_BN": False}
        head = {"NAME": "MoCoV3Head", "TEMPERATURE": 0.5, "PREDICTOR": predictor}
        cfg = ssl_cfg("MoCoV3", NECK=neck, HEAD=head, MOMENTUM=0.99, MOMENTUM_SCHEDULE="cosine", **ssl)
        if backbone:
            cfg.MODEL.BACKBONE = CfgNode(backbone)
        return build_model(cfg)

    return make


VIT = {"NAME": "MoCoV3ViT", "IMG_SIZE": 32, "PATCH_SIZE": 8, "EMBED_DIM": 32, "DEPTH": 2, "NUM_HEADS": 4}


def test_loss_is_the_sum_of_both_directions(mocov3, samples):
    model, batch = mocov3(), samples(4)
    z = [model.neck(model.feature_map(view)) for view in model.preprocess_views(batch)]
    q, k = [F.normalize(model.head.predictor(x), dim=1) for x in z], [F.normalize(x, dim=1) for x in z]
    directions = [F.cross_entropy(q[i] @ k[1 - i].T / 0.5, torch.arange(4)) for i in (0, 1)]
    torch.testing.assert_close(model(batch), {"loss": sum(directions)})  # 2 tau = 1


def test_swapped_views_have_the_same_loss(mocov3, samples):
    model, batch = mocov3(), samples(4)
    swapped = [{"views": sample["views"][::-1]} for sample in batch]
    torch.testing.assert_close(model(batch), model(swapped))


def test_momentum_encoder_moves_before_the_keys_are_made(mocov3, samples):
    model, other = mocov3(), mocov3()
    other.momentum_encoder.momentum = 0.0  # It becomes the network, whatever it was.
    with torch.no_grad():
        for parameter in other.momentum_encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.testing.assert_close(other(samples(4)), model(samples(4)))


def test_momentum_encoder_has_no_predictor_and_no_gradient(mocov3, samples):
    model = mocov3()
    model(samples(4))["loss"].backward()
    assert not any("predictor" in name for name, _ in model.momentum_encoder.named_parameters())
    assert all(p.grad is None for p in model.momentum_encoder.parameters())
    learning = [*model.backbone.parameters(), *model.neck.parameters(), *model.head.parameters()]
    assert all(p.grad is not None for p in learning)


def test_transformer_gives_class_token_and_map_and_the_neck_takes_the_token(mocov3, samples):
    model = mocov3(VIT)
    assert model.in_feature == "cls_token"
    features = model(samples(2), mode="tensor")
    assert {name: tuple(x.shape) for name, x in features.items()} == {"last_feat": (2, 32, 4, 4), "cls_token": (2, 32)}


def test_projection_of_patches_stays_random(mocov3, samples):
    model = mocov3(VIT)
    model(samples(4))["loss"].backward()
    frozen = {name for name, p in model.backbone.named_parameters() if p.grad is None}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert not any(p.requires_grad for p in model.backbone.patch_embed.parameters())


def test_projection_of_patches_learns_if_wanted():
    assert all(p.requires_grad for p in vit(stop_grad_conv1=False).parameters())


def vit(**options):
    torch.manual_seed(0)
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return MoCoV3ViT(**{**defaults, **options})


def test_positions_are_fixed_and_that_of_the_class_token_is_0():
    positions = vit().pos_embed
    assert (positions[0, 0] == 0).all()
    assert not positions.requires_grad
    # Cell (row 1, column 2) of four: sines and cosines of the row first, then of the column.
    waves = 10000.0 ** (-torch.arange(8) / 8)
    expected = torch.cat([waves.sin(), waves.cos(), (2 * waves).sin(), (2 * waves).cos()])
    torch.testing.assert_close(positions[0, 1 + 1 * 4 + 2], expected)


def bound_of(weight):
    return weight.abs().max().item()


def test_weights_start_as_published():
    model = vit()
    block = model.blocks[0]
    # sqrt(6 / (fan_in + fan_out)): queries, keys and values each by themselves, an MLP of 32 and 128 channels, patches
    # of 3 x 8 x 8.
    for weight, bound in [
        (block.attn.qkv.weight, (6 / 64) ** 0.5),
        (block.mlp.fc1.weight, (6 / 160) ** 0.5),
        (model.patch_embed.proj.weight, (6 / (192 + 32)) ** 0.5),
    ]:
        assert 0.97 * bound < bound_of(weight) <= bound
    assert bound_of(block.attn.qkv.bias) == bound_of(block.mlp.fc1.bias) == bound_of(model.patch_embed.proj.bias) == 0
    assert 0 < bound_of(model.cls_token) < 1e-5
