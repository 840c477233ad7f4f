import pytest
import torch
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.checkpoint.hand_over import extract_backbone, fold_branches, resize_positions
from detlib.checkpoint.parts import find_part, names_of_backbone, prefixes_of_backbones
from detlib.utils.errors import CheckpointError


def tensors(*names):
    return dict.fromkeys(names, torch.zeros(1))


def test_backbone_is_extracted_without_prefix_and_its_average_is_not():
    weights = tensors("backbone.a.weight", "encoder_k.backbone.a.weight", "neck.weight")
    assert list(extract_backbone(weights)) == ["a.weight"]


@pytest.mark.parametrize("inner", ["bottom_up.", "net."])
def test_what_is_above_the_backbone_is_not_extracted(inner):
    weights = tensors(f"backbone.{inner}a.weight", "backbone.fpn_lateral2.weight")
    assert list(extract_backbone(weights)) == ["a.weight"]


@pytest.mark.parametrize("prefix", ["encoder_q", "encoder_q.", "module.encoder_q."])
def test_prefix_may_lack_its_dot_and_have_that_of_a_wrapper(prefix):
    assert list(extract_backbone(tensors("encoder_q.a.weight", "queue"), prefix)) == ["a.weight"]


def test_extracting_an_average_is_refused():
    with pytest.raises(CheckpointError, match=r"momentum_encoder only follows the backbone that was trained"):
        extract_backbone(tensors("momentum_encoder.a.weight"), "module.momentum_encoder.")


def test_extracting_from_another_prefix_names_those_that_there_are():
    with pytest.raises(CheckpointError, match=r"they start with encoder_q \(2\), queue \(1\)"):
        extract_backbone(tensors("encoder_q.a", "encoder_q.b", "queue"))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("backbone.res2.w", "backbone.bottom_up.res2.w"),
        ("backbone.patch_embed.w", "backbone.net.patch_embed.w"),
        ("backbone.net.patch_embed.w", "backbone.patch_embed.w"),
        ("backbone.bottom_up.res2.w", "backbone.res2.w"),
        ("backbone.res5.0.w", "roi_heads.res5.0.w"),
        ("roi_heads.res5.0.w", "backbone.bottom_up.res5.0.w"),
    ],
)
def test_backbone_finds_its_place_in_a_detector_or_classifier(name, place):
    assert names_of_backbone(tensors(place, "other.w"), [name]) == {name: place}


def test_names_without_prefix_are_those_of_the_backbone_first():
    model = tensors("backbone.net.norm.weight", "backbone.simfp_2.norm.weight")
    assert names_of_backbone(model, ["norm.weight"], has_prefix=False) == {"norm.weight": "backbone.net.norm.weight"}


def test_names_that_the_model_has_stay():
    assert names_of_backbone(tensors("backbone.w", "backbone.net.w"), ["backbone.w"]) == {}


def test_last_norm_of_a_backbone_does_not_go_to_a_norm_of_a_head(tmp_path):
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"net": nn.Linear(4, 4, bias=False)}), "head": nn.Module()})
    model["head"].norm = nn.LayerNorm(4)
    weights = {"norm.weight": torch.full((4,), 7.0), "norm.bias": torch.full((4,), 7.0), "weight": torch.ones(4, 4)}
    torch.save({"model": weights, "matching_heuristics": True}, tmp_path / "vit.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "vit.pth"))
    assert (model["backbone"]["net"].weight == 1).all()
    assert (model["head"].norm.weight == 1).all() and (model["head"].norm.bias == 0).all()


def test_average_is_taken_last_among_parts_alike():
    part = {"weight": torch.zeros(2)}
    checkpoint = {"momentum_encoder.weight": torch.ones(2), "base_encoder.weight": torch.zeros(2)}
    prefixes, found = find_part(part, checkpoint, "backbone.")
    assert prefixes == ["base_encoder.", "momentum_encoder."]
    assert torch.equal(found["weight"], torch.zeros(2))


def test_prefix_of_a_backbone_is_recognised_and_that_of_its_average_is_not():
    names = ["encoder_q.a", "encoder_q.b", "encoder_k.a", "encoder_k.b", "neck.a"]
    assert prefixes_of_backbones(["a", "b", "c"], names) == ["encoder_q."]


def test_factors_of_branches_go_into_the_layers_before_them():
    weights = {
        "blocks.0.gamma_1": torch.tensor([2.0, 3.0]),
        "blocks.0.attn.proj.weight": torch.ones(2, 2),
        "blocks.0.attn.proj.bias": torch.tensor([1.0, -1.0]),
    }
    fold_branches(weights, ["blocks.0.attn.proj.weight"])
    assert weights.keys() == {"blocks.0.attn.proj.weight", "blocks.0.attn.proj.bias"}
    assert weights["blocks.0.attn.proj.weight"].tolist() == [[2, 2], [3, 3]]
    assert weights["blocks.0.attn.proj.bias"].tolist() == [2, -3]


def test_biases_of_queries_and_values_become_one_with_zeros_for_keys():
    weights = {"attn.q_bias": torch.tensor([1.0]), "attn.v_bias": torch.tensor([2.0])}
    fold_branches(weights, [])
    assert weights.keys() == {"attn.qkv.bias"}
    assert weights["attn.qkv.bias"].tolist() == [1, 0, 2]


def test_model_that_has_such_branches_itself_gets_them_as_they_are():
    weights = tensors("blocks.0.gamma_1", "blocks.0.attn.proj.weight", "attn.q_bias", "attn.v_bias")
    before = dict(weights)
    fold_branches(weights, before)
    assert weights == before


def resized(name, weight, expected):
    weights = {name: weight}
    assert resize_positions(weights, {name: expected}) == [name]
    return weights[name]


def test_positions_of_a_larger_grid_are_bicubic():
    grid = torch.rand(1, 3, 4, 4)
    result = resized("pos_embed", grid.flatten(2).transpose(1, 2), torch.zeros(1, 36, 3))
    expected = nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(result, expected.flatten(2).transpose(1, 2))


def test_class_token_is_dropped_from_positions_kept_or_left_to_the_model():
    with_class = torch.tensor([9.0, 1, 2, 3, 4]).view(1, 5, 1)
    without = with_class[:, 1:]
    assert torch.equal(resized("pos_embed", with_class, torch.zeros(1, 4, 1)), without)
    assert resized("pos_embed", without, torch.full((1, 5, 1), 7.0)).flatten().tolist() == [7, 1, 2, 3, 4]
    assert resized("pos_embed", with_class, torch.zeros(1, 10, 1))[0, 0] == 9


def test_table_of_a_window_grows_in_its_middle_around_the_same_centre():
    table = torch.zeros(9, 2)
    table[4] = torch.tensor([1.0, 2.0])  # distance 0 in windows of 2 x 2
    result = resized("attn.relative_position_bias_table", table, torch.zeros(25, 2)).view(5, 5, 2)
    assert result[..., 0].argmax() == 12 and result[..., 1].argmax() == 12
    torch.testing.assert_close(result, result.flip(0, 1))
    torch.testing.assert_close(result[..., 1], 2 * result[..., 0])


def test_distances_along_a_side_are_linear():
    result = resized("attn.rel_pos_h", torch.tensor([[0.0], [3.0], [6.0]]), torch.zeros(9, 1))
    torch.testing.assert_close(result.flatten(), torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 6.0]))


@pytest.mark.parametrize(
    ("name", "weight", "expected"),
    [
        ("pos_embed", (1, 4, 3), (1, 4, 3)),  # nothing to do
        ("pos_embed", (1, 7, 3), (1, 4, 3)),  # no square
        ("pos_embed", (1, 4, 3), (1, 9, 5)),  # another width
        ("relative_position_bias_table", (8, 2), (25, 2)),
        ("relative_position_bias_table", (9, 2), (25, 4)),
        ("weight", (1, 4, 3), (1, 9, 3)),
    ],
)
def test_what_cannot_be_resized_is_left_as_it_is(name, weight, expected):
    weights = {name: torch.rand(weight)}
    assert resize_positions(weights, {name: torch.zeros(expected)}) == []
    assert weights[name].shape == weight
