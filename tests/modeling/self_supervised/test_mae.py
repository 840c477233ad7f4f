import pytest
import torch

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import get_cfg
from detlib.modeling import ViT, build_model
from detlib.modeling.self_supervised.mae import MAEPretrainDecoder, MAEPretrainHead, MAEReconstructionLoss, MAEViT
from detlib.modeling.self_supervised.masking import patchify
from detlib.utils.errors import ConfigError, DatasetError

PATCH_EMBED = ("patch_embed.proj.weight", "patch_embed.proj.bias")
BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


@pytest.fixture
def cfg():
    """16 patches of 8 pixels, of which 4 stay visible."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "MAE"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE = {"NAME": "MAEViT", "IMG_SIZE": 32, "PATCH_SIZE": 8, "EMBED_DIM": 32, "DEPTH": 2}
    cfg.MODEL.BACKBONE.NUM_HEADS = 4
    cfg.MODEL.SSL.NECK = {"NAME": "MAEPretrainDecoder", "EMBED_DIM": 16, "DEPTH": 1, "NUM_HEADS": 2}
    cfg.MODEL.SSL.HEAD = {"NAME": "MAEPretrainHead"}
    return cfg


def samples(num_samples=2, size=32):
    generator = torch.Generator().manual_seed(0)
    return [{"views": [torch.randint(0, 256, (3, size, size), generator=generator)]} for _ in range(num_samples)]


def seeded(model, *args, **kwargs):
    torch.manual_seed(1)
    return model(*args, **kwargs)


def test_vit_b_encodes_49_of_196_patches_of_224_pixels():
    vit = MAEViT(embed_dim=16, depth=1, num_heads=2)
    latent, mask, ids_restore = vit.encode_visible(torch.rand(2, 3, 224, 224), 0.75)
    assert latent.shape == (2, 50, 16)
    assert mask.shape == ids_restore.shape == (2, 196)
    assert mask.sum(dim=1).tolist() == [147, 147]


def test_decoder_predicts_768_values_of_each_of_196_patches():
    decoder = MAEPretrainDecoder(16, embed_dim=16, depth=1, num_heads=2)
    assert decoder(torch.rand(2, 50, 16), torch.arange(196).expand(2, -1)).shape == (2, 196, 768)


def test_decoder_of_vit_b_has_the_published_number_of_parameters():
    with torch.device("meta"):
        decoder = MAEPretrainDecoder(768)
    assert sum(p.numel() for p in decoder.parameters()) == 26_008_320


def test_positions_are_those_of_the_column_first_and_not_learned():
    vit = MAEViT(img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    in_row_0 = vit.pos_embed[0, 1:5]  # the row's waves are sin 0 and cos 0; column 2 has frequencies 1 and 1 / 100
    assert in_row_0[2, 4:].tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(in_row_0[2, :2], torch.tensor([2.0, 0.02]).sin())
    assert "pos_embed" not in dict(vit.named_parameters())


def test_decoder_adds_positions_with_the_column_first_to_mask_tokens_and_visible_patches():
    decoder = MAEPretrainDecoder(8, patch_size=2, grid_size=3, embed_dim=8, depth=0, num_heads=1)
    decoder.decoder_embed = decoder.decoder_norm = decoder.decoder_pred = torch.nn.Identity()
    decoder.mask_token.data.zero_()
    decoded = decoder(torch.zeros(1, 3, 8), torch.arange(9)[None])[0]  # patches 0 and 1 are visible, and also zeros
    row, column = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.02])  # frequencies 1 and 1 / 100
    torch.testing.assert_close(decoded[2], torch.cat([column.sin(), column.cos(), row.sin(), row.cos()]))
    assert torch.equal(decoded, decoder.decoder_pos_embed[0, 1:])


def test_noise_that_is_given_decides_what_is_hidden():
    vit = MAEViT(img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    _, mask, _ = vit.encode_visible(torch.rand(1, 3, 32, 32), 0.75, torch.arange(16.0)[None])
    assert mask.tolist() == [[False] * 4 + [True] * 12]


def test_hidden_pixels_do_not_reach_the_encoder():
    vit = MAEViT(img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    images, noise = torch.rand(1, 3, 32, 32), torch.arange(16.0)[None]
    changed = images.clone()
    changed[:, :, 8:] = 0  # all but the first row of patches
    latents = [vit.encode_visible(x, 0.75, noise)[0] for x in (images, changed)]
    assert torch.equal(*latents)


def test_visible_patches_keep_their_own_positions():
    vit = MAEViT(img_size=32, patch_size=8, embed_dim=8, depth=0, num_heads=2)
    images, noise = torch.rand(1, 3, 32, 32), torch.rand(1, 16)
    latent, _, _ = vit.encode_visible(images, 0.75, noise)
    everything = vit.norm(vit.embed(images))[0]
    torch.testing.assert_close(latent[0, 1:], everything[noise[0].argsort()[:4]])


def test_decoder_puts_visible_patches_where_they_came_from_and_mask_tokens_elsewhere():
    decoder = MAEPretrainDecoder(4, patch_size=2, grid_size=2, embed_dim=4, depth=0, num_heads=1)
    decoder.decoder_embed = decoder.decoder_norm = decoder.decoder_pred = torch.nn.Identity()
    decoder.decoder_pos_embed.zero_()
    decoder.mask_token.data.fill_(-1)
    latent = torch.tensor([[[9.0], [5.0], [7.0]]]).expand(-1, -1, 4)  # class token, then patches 3 and 0
    decoded = decoder(latent, torch.tensor([[1, 2, 3, 0]]))
    assert decoded[0, :, 0].tolist() == [7, -1, -1, 5]


def test_mask_token_starts_small_and_linear_layers_of_the_decoder_xavier_uniform():
    torch.manual_seed(0)
    decoder = MAEPretrainDecoder(64, embed_dim=128, depth=1, num_heads=2)
    assert 0.015 < decoder.mask_token.std() < 0.025
    bound = (6 / (64 + 128)) ** 0.5
    assert 0.99 * bound < decoder.decoder_embed.weight.abs().max() <= bound
    assert not any(p.any() for name, p in decoder.named_parameters() if name.endswith("bias"))


def test_target_is_normalised_with_the_unbiased_variance_of_all_values_of_a_patch():
    target = MAEPretrainHead(patch_size=8).target(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    torch.testing.assert_close(target.mean(dim=2), torch.zeros(2, 16, dtype=torch.float64))
    torch.testing.assert_close(target.var(dim=2, unbiased=True), torch.ones(2, 16).double(), atol=1e-4, rtol=0)


def test_target_of_a_nearly_flat_patch_is_kept_small():
    pixel = torch.tensor([0.0, 1e-3, 2e-3]).view(1, 3, 1, 1)  # variance 1e-6, to which 1e-6 is added
    target = MAEPretrainHead(patch_size=1).target(pixel)[0, 0]
    torch.testing.assert_close(target, torch.tensor([-(0.5**0.5), 0.0, 0.5**0.5]))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_pixels_undo_the_target(norm_pix):
    head, images = MAEPretrainHead(patch_size=8, norm_pix=norm_pix), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(head.pixels(head.target(images), images), patchify(images, 8))


def test_target_of_a_flat_patch_is_zero():
    assert not MAEPretrainHead(patch_size=8).target(torch.full((1, 3, 8, 8), 0.5)).any()


def test_target_without_normalisation_is_the_pixels():
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(MAEPretrainHead(patch_size=8, norm_pix=False).target(images), patchify(images, 8))


def test_loss_is_the_mean_over_hidden_patches_of_the_whole_batch():
    prediction, mask = torch.zeros(2, 2, 3), torch.tensor([[True, False], [True, True]])
    prediction[0, 0] = torch.tensor([3.0, 0.0, 0.0])  # mean square 3
    prediction[0, 1] = 100.0  # visible
    prediction[1, 1] = 1.0  # mean square 1
    assert MAEReconstructionLoss()(prediction, torch.zeros(2, 2, 3), mask) == (3 + 0 + 1) / 3


def test_loss_of_a_right_prediction_is_zero_whatever_is_said_of_visible_patches():
    head, images = MAEPretrainHead(patch_size=8), torch.rand(1, 3, 16, 16)
    mask = torch.tensor([[True, False, True, False]])
    prediction = head.target(images).clone()
    prediction[:, 1] = 7.0
    assert head(prediction, images, mask) == 0


def test_loss_compares_the_prediction_with_the_normalised_image(cfg):
    cfg.MODEL.SSL.HEAD.NORM_PIX = False
    model, batch = build_model(cfg), samples()
    targets = []
    model.head.loss_module.register_forward_pre_hook(lambda module, args: targets.append(args[1]))
    model(batch)
    images = torch.stack([sample["views"][0] for sample in batch])
    torch.testing.assert_close(targets[0], patchify((images - model.pixel_mean) / model.pixel_std, 8))


def test_tensor_is_the_prediction_for_each_patch(cfg):
    assert build_model(cfg)(samples(), mode="tensor").shape == (2, 16, 8 * 8 * 3)


def test_whole_images_give_a_map_by_extract_feat(cfg):
    model = build_model(cfg).eval()
    images = model.preprocess_views(samples())[0]
    features = model.extract_feat(images)
    assert features["last_feat"].shape == (2, 32, 4, 4)
    assert torch.equal(features["last_feat"], model.extract_feat(images)["last_feat"])  # nothing is drawn


def test_prediction_has_the_size_of_the_image_and_tells_what_was_hidden(cfg):
    outputs = seeded(build_model(cfg).eval(), samples(), mode="predict")
    assert [output["reconstruction"].shape for output in outputs] == [(3, 32, 32)] * 2
    assert [output["mask"].sum() for output in outputs] == [12 * 64] * 2


def test_prediction_is_in_the_range_of_the_input_without_normalised_patches(cfg):
    cfg.MODEL.SSL.HEAD.NORM_PIX = False
    model = build_model(cfg).eval()
    model.neck.decoder_pred.weight.data.zero_()
    image = model(samples(1), mode="predict")[0]["reconstruction"]
    torch.testing.assert_close(image, model.pixel_mean.expand(3, 32, 32))  # 0 once normalised is the mean


def test_loss_that_is_repeated_hides_other_patches(cfg):
    model, batch = build_model(cfg), samples()
    assert model(batch)["loss"] != model(batch)["loss"]
    assert seeded(model, batch)["loss"] == seeded(model, batch)["loss"]


def test_nothing_hidden_is_an_error_for_the_loss_only(cfg):
    cfg.MODEL.SSL.MASK_RATIO = 0.0
    model = build_model(cfg)
    assert model.reconstruct(torch.rand(1, 3, 32, 32))[1].sum() == 0
    with pytest.raises(ConfigError, match=r"MODEL\.SSL\.MASK_RATIO is 0"):
        model(samples())


@pytest.mark.parametrize("ratio", [-0.1, 0.99, 1.0])
def test_ratio_that_leaves_nothing_visible_or_is_no_share_is_an_error(cfg, ratio):
    cfg.MODEL.SSL.MASK_RATIO = ratio
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\) and leave some of the 16 patches visible"):
        build_model(cfg)


def test_images_of_another_size_are_an_error_that_names_the_key(cfg):
    with pytest.raises(DatasetError, match=r"40 x 40 pixels .* set up for 32 x 32; .* MODEL\.BACKBONE\.IMG_SIZE"):
        build_model(cfg)(samples(size=40))


def test_another_backbone_is_an_error(cfg):
    cfg.MODEL.BACKBONE.NAME = "MoCoV3ViT"
    cfg.MODEL.SSL.NECK.PATCH_SIZE = 8
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE of MAE must be a MAEViT"):
        build_model(cfg)


def test_weights_have_the_names_of_the_authors():
    block = [f"blocks.0.{layer}.{kind}" for layer in BLOCK for kind in ("weight", "bias")]
    vit = MAEViT(img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=2).state_dict()
    assert vit.keys() == {"cls_token", "pos_embed", *PATCH_EMBED, *block, "norm.weight", "norm.bias"}
    assert vit["pos_embed"].shape == (1, 1 + 16, 8)
    assert vit["blocks.0.attn.qkv.weight"].shape == (3 * 8, 8)
    decoder = MAEPretrainDecoder(8, patch_size=8, grid_size=4, embed_dim=8, depth=1, num_heads=2).state_dict()
    linear = [f"decoder_{layer}.{kind}" for layer in ("embed", "norm", "pred") for kind in ("weight", "bias")]
    assert decoder.keys() == {"mask_token", "decoder_pos_embed", *linear, *(f"decoder_{name}" for name in block)}


def test_weights_under_the_names_of_the_authors_load(cfg, tmp_path):
    model, other = build_model(cfg), build_model(cfg)
    theirs = {name.split(".", 1)[1]: weight for name, weight in model.state_dict().items()}
    assert {"cls_token", "patch_embed.proj.weight", "decoder_blocks.0.attn.qkv.weight", "mask_token"} < theirs.keys()
    torch.save({"model": theirs}, tmp_path / "mae_visualize_vit.pth")
    DetectionCheckpointer(other).load(f"{tmp_path}/mae_visualize_vit.pth?matching_heuristics=True")
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in other.state_dict().items())


def test_all_of_the_backbone_but_class_token_and_last_norm_loads_into_the_vit_of_detectors(cfg):
    vit = ViT(img_size=32, pretrain_img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)
    weights = {
        name.removeprefix("backbone."): weight
        for name, weight in build_model(cfg).state_dict().items()
        if name.startswith("backbone.")
    }
    missing, unexpected = vit.load_state_dict(weights, strict=False)
    assert missing == []
    assert unexpected == ["cls_token", "norm.weight", "norm.bias"]
