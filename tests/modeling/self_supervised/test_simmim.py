import pytest
import torch

from detlib.config import get_cfg
from detlib.modeling import SwinTransformer, build_model
from detlib.modeling.self_supervised.simmim import (
    SimMIMHead,
    SimMIMNeck,
    SimMIMReconstructionLoss,
    SimMIMSwinTransformer,
    repeat_pixels,
)
from detlib.utils.errors import ConfigError, DatasetError


@pytest.fixture
def cfg():
    """Images of 32 pixels in 8 x 8 patches, and maps of 8 x 8 and 4 x 4 cells with windows of 4."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "SimMIM"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE = {"NAME": "SimMIMSwinTransformer", "IMG_SIZE": 32, "EMBED_DIM": 16, "WINDOW_SIZE": 4}
    cfg.MODEL.BACKBONE.DEPTHS = [2, 2]
    cfg.MODEL.BACKBONE.NUM_HEADS = [2, 4]
    cfg.MODEL.SSL.NECK = {"NAME": "SimMIMNeck"}
    cfg.MODEL.SSL.HEAD = {"NAME": "SimMIMHead"}
    return cfg


def samples(num_samples=2, grid=8):
    """The upper half of each image is hidden."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(grid) < grid // 2)[:, None].expand(grid, grid)
    return [
        {"views": [torch.randint(0, 256, (3, 32, 32), generator=generator)], "mask": mask} for _ in range(num_samples)
    ]


def recipe_swin(**options):
    """Of the depth and size of the published ones, but narrow."""
    return SimMIMSwinTransformer(embed_dim=8, num_heads=(1, 2, 4, 8), **options)


def test_22_units_of_32_pixels_are_1408_patches_and_22528_pixels():
    units = torch.zeros(1, 36)
    units[0, :22] = 1
    patches = repeat_pixels(units.view(1, 6, 6), 8)
    assert patches.shape == (1, 48, 48)
    assert (patches.sum(), repeat_pixels(patches, 4).sum()) == (1408, 22528)


def test_neck_gives_an_image_of_192_pixels_from_6_x_6_cells():
    with torch.device("meta"):
        neck = SimMIMNeck(1024)
        assert neck(torch.rand(2, 1024, 6, 6)).shape == (2, 3, 192, 192)
    assert sum(p.numel() for p in neck.parameters()) == 3_148_800


def test_neck_lays_out_the_pixels_of_a_cell_row_by_row_for_each_channel():
    neck = SimMIMNeck(1, stride=2)
    neck.decoder[0].weight.data.zero_()
    neck.decoder[0].bias.data = torch.arange(12.0)
    assert neck(torch.zeros(1, 1, 1, 1))[0].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]


def test_neck_is_built_for_the_stride_of_the_backbone(cfg):
    assert build_model(cfg).neck.decoder[0].out_channels == 3 * 8**2


def test_loss_of_a_right_reconstruction_is_zero_and_of_one_that_is_off_by_one_is_one():
    images = torch.rand(2, 3, 192, 192, dtype=torch.float64)
    mask = torch.zeros(2, 1, 192, 192)
    mask[:, :, :96] = 1
    loss = SimMIMReconstructionLoss()
    assert loss(images, images, mask) == 0
    assert loss(images + 1, images, mask).item() == pytest.approx(1, abs=1e-9)
    assert loss(images - 3, images, mask).item() == pytest.approx(3, abs=1e-9)  # not squared


def test_loss_does_not_depend_on_what_is_reconstructed_of_visible_pixels():
    head, images = SimMIMHead(), torch.rand(1, 3, 16, 16)
    mask = torch.eye(4)[None]
    reconstruction = torch.rand(1, 3, 16, 16)
    changed = reconstruction + 5 * (1 - repeat_pixels(mask, 4)[:, None])
    assert not torch.equal(changed, reconstruction)
    assert head(changed, images, mask) == head(reconstruction, images, mask)


def test_loss_where_nothing_is_hidden_is_zero():
    assert SimMIMHead()(torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 4)) == 0


def test_hidden_pixels_do_not_influence_the_output(cfg):
    model, batch = build_model(cfg).eval(), samples()
    before = model(batch, mode="tensor")
    for sample in batch:
        sample["views"][0][:, :16] = 0
    assert torch.equal(model(batch, mode="tensor"), before)
    batch[0]["views"][0][:, 16:] = 0
    assert not torch.equal(model(batch, mode="tensor"), before)


def test_hidden_patches_are_replaced_by_the_token_and_not_added_to(cfg):
    backbone = build_model(cfg).backbone
    backbone.encode = lambda patches: patches
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2, 3] = True
    patches = backbone.encode_masked(torch.rand(1, 3, 32, 32), mask)
    assert torch.equal(patches[0, :, 2, 3], backbone.mask_token[0, 0])
    assert (patches == backbone.mask_token.view(1, -1, 1, 1)).all(dim=1).sum() == 1


def test_token_and_linear_layers_start_truncated_normal_and_biases_at_0():
    torch.manual_seed(0)
    backbone = SimMIMSwinTransformer(img_size=32, embed_dim=128, depths=(1,), num_heads=(2,), window_size=4)
    block = backbone.layers[0].blocks[0]
    for start in (backbone.mask_token, block.attn.qkv.weight, block.mlp.fc1.weight):
        assert 0.017 < start.std() < 0.023
    assert not any(layer.bias.any() for layer in block.modules() if isinstance(layer, torch.nn.Linear))


def test_last_stage_of_the_recipe_is_one_window_that_is_not_shifted():
    backbone = recipe_swin(depths=(2, 2, 2, 2))
    assert [layer.window_size for layer in backbone.layers] == [6, 6, 6, 6]
    assert [layer.blocks[1].shift_size for layer in backbone.layers] == [3, 3, 3, 0]
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 192, 192))["p3"].shape == (1, 64, 6, 6)


def test_windows_of_12_are_6_on_the_last_map():
    backbone = recipe_swin(depths=(1, 1, 1, 1), window_size=12)
    assert [layer.window_size for layer in backbone.layers] == [12, 12, 12, 6]
    assert len(backbone.layers[3].blocks[0].attn.relative_position_bias_table) == 11**2


def test_stage_of_one_window_computes_the_same_for_maps_that_are_rolled_and_have_no_distances():
    """Attention over the whole map, whose only difference between positions is the learned bias of distances."""
    layer = recipe_swin(depths=(1, 1, 1, 2)).layers[3]
    for block in layer.blocks:
        torch.nn.init.zeros_(block.attn.relative_position_bias_table)
    maps = torch.rand(1, 6, 6, 64)
    outputs = [layer(x.flatten(1, 2), 6, 6)[0].unflatten(1, (6, 6)) for x in (maps, maps.roll(2, dims=1))]
    torch.testing.assert_close(outputs[1], outputs[0].roll(2, dims=1))


def test_tensor_is_the_reconstruction(cfg):
    assert build_model(cfg)(samples(), mode="tensor").shape == (2, 3, 32, 32)


def test_tensor_of_samples_without_masks_is_that_of_images_with_nothing_hidden(cfg):
    model, batch = build_model(cfg).eval(), samples()
    plain = [{"image": sample["views"][0]} for sample in batch]
    for sample in batch:
        sample["mask"] = torch.zeros(8, 8)
    assert torch.equal(model(plain), model(batch, mode="tensor"))


@pytest.mark.parametrize("mode", ["loss", "predict"])
def test_loss_and_prediction_without_mask_are_an_error(cfg, mode):
    with pytest.raises(DatasetError, match=r"no 'mask', but views; let INPUT\.VIEWS draw a mask of 8 x 8 patches"):
        build_model(cfg)([{"views": samples(1)[0]["views"]}], mode=mode)


def test_loss_compares_the_reconstruction_with_the_normalised_image(cfg):
    model, batch = build_model(cfg), samples()
    targets = []
    model.head.loss_module.register_forward_pre_hook(lambda module, args: targets.append(args[1]))
    model(batch)
    images = torch.stack([sample["views"][0] for sample in batch])
    torch.testing.assert_close(targets[0], (images - model.pixel_mean) / model.pixel_std)


def test_prediction_is_in_the_range_of_the_input_and_tells_what_was_hidden(cfg):
    model = build_model(cfg).eval()
    model.neck.decoder[0].weight.data.zero_()
    model.neck.decoder[0].bias.data.zero_()
    output = model(samples(1), mode="predict")[0]
    torch.testing.assert_close(output["reconstruction"], model.pixel_mean.expand(3, 32, 32))
    assert output["mask"].sum(dim=1).tolist() == [32] * 16 + [0] * 16


def test_whole_images_give_a_map_by_extract_feat(cfg):
    model = build_model(cfg)
    assert model.extract_feat(torch.rand(2, 3, 32, 32))["p1"].shape == (2, 32, 4, 4)


def test_mask_of_units_in_place_of_patches_is_an_error(cfg):
    with pytest.raises(DatasetError, match=r"shape \(2, 2\), but the image has 8 x 8 patches"):
        build_model(cfg)(samples(grid=2))


def test_images_of_another_size_are_an_error(cfg):
    batch = samples()
    for sample in batch:
        sample["views"] = [torch.zeros(3, 64, 64)]
    with pytest.raises(DatasetError, match="64 x 64 pixels came, but pre-training is set up for 32 x 32"):
        build_model(cfg)(batch)


def test_size_that_is_no_multiple_of_the_last_stride_is_an_error():
    with pytest.raises(ConfigError, match="IMG_SIZE 200 is no multiple of 32, the last stride"):
        SimMIMSwinTransformer(img_size=200)


def test_another_backbone_is_an_error(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_swin_backbone"
    for key in ("IMG_SIZE", "EMBED_DIM", "WINDOW_SIZE", "DEPTHS", "NUM_HEADS"):
        del cfg.MODEL.BACKBONE[key]
    cfg.MODEL.SWIN.EMBED_DIM = 24
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE of SimMIM must be a SimMIMSwinTransformer"):
        build_model(cfg)


def test_all_of_the_backbone_but_the_mask_token_loads_into_the_swin_of_detectors(cfg):
    swin = SwinTransformer(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, out_indices=(0, 1))
    missing, unexpected = swin.load_state_dict(build_model(cfg).backbone.state_dict(), strict=False)
    assert missing == ["norm0.weight", "norm0.bias"]  # which detectors learn
    assert unexpected == ["mask_token"]
