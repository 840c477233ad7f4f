import math

import pytest
import torch

from detlib.checkpoint.hand_over import fold_branches
from detlib.config import get_cfg
from detlib.modeling import ViT, build_model
from detlib.modeling.self_supervised.cae import CAEHead, CAELoss, CAENeck, CAEViT
from detlib.utils.errors import ConfigError, DatasetError


@pytest.fixture
def cfg():
    """4 x 4 patches of 8 pixels, and 16 words."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "CAE"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE = {"NAME": "CAEViT", "IMG_SIZE": 32, "PATCH_SIZE": 8, "EMBED_DIM": 32, "DEPTH": 2}
    cfg.MODEL.BACKBONE.NUM_HEADS = 4
    cfg.MODEL.SSL.NECK = {"NAME": "CAENeck", "VOCAB_SIZE": 16, "NUM_HEADS": 4, "REGRESSOR_DEPTH": 2}
    cfg.MODEL.SSL.NECK.DECODER_DEPTH = 1
    cfg.MODEL.SSL.HEAD = {"NAME": "CAEHead"}
    cfg.MODEL.SSL.TARGET_GENERATOR = {"NAME": "DALLEEncoder", "VOCAB_SIZE": 16, "HID_CHANNELS": 8}
    cfg.MODEL.SSL.MOMENTUM = 0.0
    return cfg


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def samples(num_samples=2, num_hidden=6):
    """The first patches of each image are hidden."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(16) < num_hidden).view(4, 4)

    def image():
        return torch.randint(0, 256, (3, 32, 32), generator=generator)

    return [{"views": [image()], "target_image": image(), "mask": mask} for _ in range(num_samples)]


def tiny_neck(**options):
    torch.manual_seed(0)
    return CAENeck(**{"in_channels": 16, "vocab_size": 8, "num_heads": 2, **options})


def test_75_hidden_and_121_visible_patches_give_75_scores_of_8192_words():
    with torch.device("meta"):
        neck = CAENeck(768)
        logits, regressed = neck(torch.rand(2, 121, 768), torch.rand(2, 121, 768), torch.rand(2, 75, 768))
    assert CAEViT(embed_dim=4, depth=0, num_heads=1).num_patches == 75 + 121
    assert logits.flatten(0, 1).shape == (2 * 75, 8192)
    assert regressed.shape == (2, 75, 768)


def test_loss_of_uniform_scores_is_the_logarithm_of_the_number_of_words():
    losses = CAEHead()(
        torch.zeros(2, 75, 8192), torch.zeros(2, 75).long(), torch.zeros(2, 75, 4), torch.zeros(2, 75, 4)
    )
    assert losses["loss_main"].item() == pytest.approx(math.log(8192))  # 9.0109
    assert losses["loss_align"] == 0


def test_alignment_is_twice_the_mean_squared_error():
    _, align = CAELoss()(torch.zeros(1, 2), torch.zeros(1).long(), torch.full((1, 1, 4), 3.0), torch.zeros(1, 1, 4))
    assert align == 2 * 3**2


def test_latent_target_gets_no_gradient():
    latent, target = torch.rand(1, 2, 4, requires_grad=True), torch.rand(1, 2, 4, requires_grad=True)
    CAEHead()(torch.zeros(1, 2, 8), torch.zeros(1, 2).long(), latent, target)["loss_align"].backward()
    assert latent.grad is not None and target.grad is None


def test_losses_are_exactly_two(model):
    assert model(samples()).keys() == {"loss_main", "loss_align"}


def test_teacher_is_the_encoder_after_the_update(model):
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter)
    model(samples())
    for own, online in zip(model.teacher.backbone.parameters(), model.backbone.parameters()):
        assert torch.equal(own, online)
    assert model.teacher.num_updates == 1


def test_targets_are_what_the_encoder_of_this_step_makes_of_hidden_patches(model):
    for parameter in model.backbone.parameters():
        torch.nn.init.normal_(parameter)  # as after a step of the optimizer
    model.head = torch.nn.Module()
    model.head.forward = lambda logits, words, regressed, targets: targets
    images = model.preprocess_views(samples())[0]
    of_hidden = model.backbone.encode_patches(images, torch.arange(6).expand(2, -1))
    assert torch.equal(model(samples()), of_hidden[:, 1:])  # without the class token


@pytest.mark.parametrize("mode", ["loss", "predict"])
def test_neck_takes_visible_patches_without_the_class_token_and_all_positions(model, mode):
    seen = []
    model.neck.register_forward_pre_hook(lambda module, args: seen.extend(args))
    model(samples(), mode=mode)
    images = model.preprocess_views(samples())[0]
    of_visible = model.backbone.encode_patches(images, torch.arange(6, 16).expand(2, -1))
    assert torch.equal(seen[0], of_visible[:, 1:])
    positions = model.backbone.pos_embed[:, 1:].expand(2, -1, -1)
    assert torch.equal(seen[1], positions[:, 6:]) and torch.equal(seen[2], positions[:, :6])


def test_teacher_stays_as_it_is_when_losses_are_only_measured(model):
    torch.nn.init.normal_(model.backbone.cls_token)
    model.eval()(samples(), mode="loss")
    assert not torch.equal(model.teacher.backbone.cls_token, model.backbone.cls_token)


def test_hidden_pixels_reach_the_targets_but_not_what_is_predicted(model):
    model.head = torch.nn.Module()
    model.head.forward = lambda *args: args
    batch = samples()
    before = model(batch)
    for sample in batch:
        sample["views"][0][:, :8] = 0  # the first row of patches, which is hidden
    logits, words, regressed, targets = (torch.equal(*pair) for pair in zip(model(batch), before))
    assert (logits, words, regressed, targets) == (True, True, True, False)


def test_visible_pixels_do_not_reach_the_teacher(model):
    model.head = torch.nn.Module()
    model.head.forward = lambda *args: args
    batch = samples()
    before = model(batch)
    for sample in batch:
        sample["views"][0][:, 16:] = 0  # the last two rows of patches, which are visible
    logits, words, regressed, targets = (torch.equal(*pair) for pair in zip(model(batch), before))
    assert (logits, words, regressed, targets) == (False, True, False, True)


def test_neither_teacher_nor_tokenizer_learns(model):
    sum(model(samples()).values()).backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"teacher", "target_generator"}
    assert all(p.grad is None for name, p in model.named_parameters() if name in frozen)


def test_words_are_those_of_hidden_patches_row_by_row(model):
    words = model.target_generator(torch.stack([s["target_image"] for s in samples()]))
    model.head = torch.nn.Module()
    model.head.forward = lambda logits, words, *_: words
    assert torch.equal(model(samples()), words.flatten(1)[:, :6])


def test_regressor_leaves_visible_latents_as_they_are_and_adds_no_positions_to_values():
    neck = tiny_neck(regressor_depth=1, decoder_depth=0)
    block = neck.regressor[0]
    torch.nn.init.zeros_(block.q.weight)  # Attention is uniform then, and only values count.
    latent, visible, hidden = torch.rand(1, 3, 16), torch.rand(1, 3, 16), torch.rand(1, 2, 16)
    _, regressed = neck(latent, visible, hidden)
    torch.testing.assert_close(neck(latent, visible + 1.0, -hidden)[1], regressed)


def test_regressor_knows_positions_from_queries_and_keys():
    neck = tiny_neck(regressor_depth=1, decoder_depth=0)
    latent, visible, hidden = torch.rand(1, 3, 16), torch.rand(1, 3, 16), torch.rand(1, 2, 16)
    _, regressed = neck(latent, visible, hidden)
    assert not torch.allclose(neck(latent, visible.flip(1), hidden)[1], regressed)
    assert not torch.allclose(neck(latent, visible, -hidden)[1], regressed)


def test_regressor_block_follows_the_formula():
    block = tiny_neck(regressor_depth=1).regressor[0]
    for gamma in (block.gamma_1, block.gamma_2):
        torch.nn.init.uniform_(gamma)
    queries, latent, pos_q, pos_v = (torch.rand(1, n, 16) for n in (2, 3, 2, 3))
    values = torch.cat([latent, queries], dim=1)
    q = block.q(block.norm_q(queries + pos_q)).view(2, 2, 8).transpose(0, 1)
    k = block.k(block.norm_k(values + torch.cat([pos_v, pos_q], dim=1))).view(5, 2, 8).transpose(0, 1)
    v = block.v(block.norm_v(values)).view(5, 2, 8).transpose(0, 1)
    attended = ((q @ k.transpose(1, 2) / 8**0.5).softmax(dim=2) @ v).transpose(0, 1).reshape(1, 2, 16)
    x = block.norm2(queries + block.gamma_1 * block.proj(attended))
    expected = x + block.gamma_2 * block.mlp(x)
    torch.testing.assert_close(block(queries, latent, pos_q, torch.cat([pos_v, pos_q], dim=1)), expected)


def test_what_is_aligned_is_normalised():
    neck = tiny_neck(regressor_depth=1, decoder_depth=0)
    torch.nn.init.zeros_(neck.regressor_norm.weight)
    torch.nn.init.constant_(neck.regressor_norm.bias, 3.0)
    assert (neck(torch.rand(1, 3, 16), torch.rand(1, 3, 16), torch.rand(1, 2, 16))[1] == 3).all()


def test_decoder_sees_hidden_patches_only():
    neck = tiny_neck(regressor_depth=0, decoder_depth=1)
    latent, visible, hidden = torch.rand(1, 3, 16), torch.rand(1, 3, 16), torch.rand(1, 2, 16)
    assert torch.equal(neck(latent, visible, hidden)[0], neck(-latent, visible, hidden)[0])


def test_words_are_scored_at_the_positions_of_hidden_patches():
    neck = tiny_neck(regressor_depth=0, decoder_depth=1)
    latent, visible, hidden = torch.rand(1, 3, 16), torch.rand(1, 3, 16), torch.rand(1, 2, 16)
    logits, _ = neck(latent, visible, hidden)
    torch.testing.assert_close(neck(latent, visible, hidden.flip(1))[0], logits.flip(1))
    assert not torch.allclose(logits[0, 0], logits[0, 1])


def test_encoder_has_factors_of_a_tenth_no_bias_of_keys_and_positions_with_the_row_first():
    vit = CAEViT(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    assert (vit.blocks[0].gamma_1 == 0.1).all()
    assert vit.blocks[0].attn.qkv.bias is None
    assert vit.pos_embed[0, 2, :4].tolist() == [0, 0, 1, 1]  # row 0, column 1


def test_patches_and_tokens_start_truncated_normal():
    torch.manual_seed(0)
    vit, neck = CAEViT(img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=2), CAENeck(64, 64, num_heads=2)
    for start in (vit.patch_embed.proj.weight, vit.cls_token, neck.mask_token, neck.classifier.weight):
        assert 0.014 < start.std() < 0.026
    assert not vit.patch_embed.proj.bias.any()


def test_tensor_is_all_tokens_of_the_whole_image(model):
    assert model(samples(), mode="tensor").shape == (2, 17, 32)


def test_predicted_words_replace_those_of_hidden_patches_only(model):
    batch = samples()
    torch.nn.init.zeros_(model.neck.classifier.weight)
    model.neck.classifier.bias.data[7] = 1  # word 7 everywhere
    output = model.eval()(batch, mode="predict")[1]
    words = model.target_generator(batch[1]["target_image"][None])[0].flatten()
    assert output["words"].flatten().tolist() == [7] * 6 + words[6:].tolist()
    assert torch.equal(output["mask"], batch[1]["mask"])


def test_masks_that_hide_different_numbers_of_patches_are_an_error(model):
    with pytest.raises(DatasetError, match=r"hide \[5, 6\] of 16 patches"):
        model(samples(1) + samples(1, num_hidden=5))


def test_sample_without_target_image_is_an_error(model):
    batch = samples()
    del batch[1]["target_image"]
    with pytest.raises(DatasetError, match=r"no 'target_image', but mask, views; .* \(3, 32, 32\), 8 pixels for each"):
        model(batch)


def test_target_image_of_another_size_is_an_error(model):
    batch = samples()
    batch[0]["target_image"] = torch.zeros(3, 16, 16)
    with pytest.raises(DatasetError, match=r"a target_image of \(3, 16, 16\); let INPUT\.VIEWS give one of"):
        model(batch)


def test_other_numbers_of_words_in_neck_and_tokenizer_are_an_error(cfg):
    cfg.MODEL.SSL.NECK.VOCAB_SIZE = 8
    with pytest.raises(ConfigError, match=r"NECK\.VOCAB_SIZE is 8, but MODEL\.SSL\.TARGET_GENERATOR has 16 words"):
        build_model(cfg)


def test_another_backbone_is_an_error(cfg):
    cfg.MODEL.BACKBONE.NAME = "MAEViT"
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE of CAE must be a CAEViT; it is a MAEViT"):
        build_model(cfg)


def test_all_of_the_backbone_loads_into_the_vit_of_detectors_once_folded(model):
    vit = ViT(img_size=32, pretrain_img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4)
    weights = model.backbone.state_dict()
    fold_branches(weights, vit.state_dict())
    assert vit.load_state_dict(weights, strict=False).missing_keys == []
    assert torch.equal(vit.pos_embed, model.backbone.pos_embed)
