import pytest
import torch
import torch.nn.functional as F

from detlib.projects.point_rend.mask_head import calculate_uncertainty
from detlib.projects.point_rend.point_features import (
    generate_regular_grid_point_coords,
    get_point_coords_wrt_image,
    get_uncertain_point_coords_on_grid,
    get_uncertain_point_coords_with_randomness,
    point_sample,
    point_sample_fine_grained_features,
    sample_point_classes,
    sample_point_labels,
)
from detlib.projects.point_rend.point_selection import PointSampling, Subdivision
from detlib.projects.point_rend.semantic_seg import calculate_uncertainty as semantic_uncertainty
from detlib.structures import BitMasks, Boxes, Instances, PolygonMasks
from detlib.utils.errors import ConfigError


def square(low, high):
    return [[low, low, high, low, high, high, low, high]]


def test_points_at_centers_of_cells_have_their_values_and_others_are_between():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.25], [0.5, 0.5]]])
    torch.testing.assert_close(point_sample(x, points), torch.tensor([[[0.0, 1.0, 2.0, 0.5, 1.5]]]))


def test_points_in_a_grid_equal_grid_sample():
    x, points = torch.rand(2, 3, 5, 7), torch.rand(2, 4, 6, 2)
    expected = F.grid_sample(x, 2 * points - 1, align_corners=False)
    torch.testing.assert_close(point_sample(x, points), expected)
    torch.testing.assert_close(point_sample(x, points.flatten(1, 2)), expected.flatten(2))


def test_half_precision_maps_are_sampled_at_exact_coordinates():
    x = torch.arange(256.0).view(1, 1, 1, 256).bfloat16()  # Each a number that bfloat16 can hold.
    points = torch.stack([(torch.arange(256) + 0.5) / 256, torch.full((256,), 0.5)], dim=-1)[None]
    assert torch.equal(point_sample(x, points)[0, 0], x.flatten())


def test_regular_grid_is_centers_row_by_row():
    expected = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    torch.testing.assert_close(generate_regular_grid_point_coords(3, 2, "cpu"), expected.expand(3, 4, 2))


def test_points_of_boxes_in_pixels():
    boxes = torch.tensor([[10.0, 20, 30, 60], [0, 0, 1, 1]])
    points = torch.tensor([[[0.0, 0.0], [0.5, 0.25]], [[1.0, 1.0], [0.5, 0.5]]])
    expected = torch.tensor([[[10.0, 20.0], [20.0, 30.0]], [[1.0, 1.0], [0.5, 0.5]]])
    torch.testing.assert_close(get_point_coords_wrt_image(boxes, points), expected)


def test_fine_grained_features_are_those_of_the_image_and_of_all_maps():
    """Maps whose values are the pixel's column, plus 100 in the second image."""
    fine = torch.arange(8.0).expand(2, 1, 8, 8) + 0.5 + torch.tensor([0.0, 100.0]).view(2, 1, 1, 1)
    coarse = F.avg_pool2d(fine, 2)
    boxes = [Boxes(torch.zeros(0, 4)), Boxes(torch.tensor([[2.0, 2, 6, 6], [4, 4, 6, 6]]))]
    features, pixels = point_sample_fine_grained_features(
        [fine, coarse], [1.0, 0.5], boxes, torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]])
    )
    torch.testing.assert_close(pixels[:, 0], torch.tensor([[4.0, 4.0], [5.0, 5.0]]))
    torch.testing.assert_close(features[:, :, 0], torch.tensor([[104.0, 104.0], [105.0, 105.0]]))
    none, _ = point_sample_fine_grained_features([fine], [1.0], [boxes[0]] * 2, torch.zeros(0, 5, 2))
    assert none.shape == (0, 1, 5)


def test_cells_on_the_grid_are_the_most_uncertain_with_x_before_y():
    uncertainty = torch.zeros(1, 1, 2, 4)
    uncertainty[0, 0, 1, 2], uncertainty[0, 0, 0, 3] = 2, 1
    cells, points = get_uncertain_point_coords_on_grid(uncertainty, 2)
    assert cells.tolist() == [[6, 3]]
    torch.testing.assert_close(points, torch.tensor([[[2.5 / 4, 1.5 / 2], [3.5 / 4, 0.5 / 2]]]))
    assert get_uncertain_point_coords_on_grid(uncertainty, 100)[0].shape == (1, 8)


def test_importance_sampling_takes_uncertain_points_and_the_rest_from_anywhere():
    """The logits cross 0 in the middle of the first mask and at 1/4 of the second."""
    edge = torch.tensor([0.5, 0.25])
    logits = ((torch.arange(100) + 0.5) / 100 - edge[:, None]).view(2, 1, 1, 100).expand(2, 1, 100, 100)
    points = get_uncertain_point_coords_with_randomness(logits, lambda x: -x.abs(), 200, 10, 0.75)
    assert points.shape == (2, 200, 2) and points.min() >= 0 and points.max() <= 1
    distance = (points[..., 0] - edge[:, None]).abs()
    assert distance[:, :150].max() < 0.1  # 150 of 2000 points are nearer than 0.0375, give or take.
    assert distance[:, 150:].max() > 0.3


def test_more_candidates_than_points_are_needed_and_a_part_is_at_most_all():
    for arguments, key in [((0, 3.0, 0.5), "TRAIN_NUM_POINTS"), ((10, 0.5, 0.5), "OVERSAMPLE_RATIO")]:
        with pytest.raises(ConfigError, match=key):
            PointSampling(*arguments)
    with pytest.raises(ConfigError, match=r"IMPORTANCE_SAMPLE_RATIO is 1\.5"):
        PointSampling(10, 3.0, 1.5)
    with pytest.raises(ConfigError, match="SUBDIVISION_STEPS is -1"):
        Subdivision(-1, 10)


def test_uncertainty_of_a_mask_is_that_of_its_class():
    logits = torch.tensor([[[3.0], [-1.0]], [[0.5], [2.0]]])
    assert calculate_uncertainty(logits, torch.tensor([1, 0])).tolist() == [[[-1.0]], [[-0.5]]]
    assert calculate_uncertainty(logits[:, :1], torch.tensor([1, 0])).tolist() == [[[-3.0]], [[-0.5]]]


def test_semantic_uncertainty_is_the_difference_of_the_best_two_classes():
    logits = torch.tensor([[[1.0, 5.0], [3.0, 5.0], [0.0, -2.0]]])  # (1, 3, 2 points)
    assert semantic_uncertainty(logits).tolist() == [[[-2.0, 0.0]]]


def test_subdivision_changes_only_the_chosen_points():
    """Of 16 cells the 3 nearest to 0 are predicted anew; the others are the interpolation."""
    coarse = torch.tensor([[[[-4.0, 4.0], [-4.0, 1.0]]]])
    upsampled = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    result = Subdivision(1, 3)(coarse, lambda x: -x.abs(), lambda points: torch.full((1, 1, points.shape[1]), 99.0))
    chosen = upsampled.abs().flatten().topk(3, largest=False).indices
    assert (result.flatten() == 99).nonzero().flatten().tolist() == sorted(chosen.tolist())
    kept = result != 99
    torch.testing.assert_close(result[kept], upsampled[kept])


def test_subdivision_skips_steps_that_predict_every_cell_without_changing_the_result():
    calls = []

    def predict(points):
        calls.append(points.shape[1])
        return points.sum(dim=-1)[:, None] - 1

    coarse = torch.randn(2, 1, 3, 3)
    logits = Subdivision(3, 144)(coarse, lambda x: -x.abs(), predict)
    assert logits.shape == (2, 1, 24, 24) and calls == [144, 144]  # 12 x 12 at once, then 144 of 24 x 24
    for _ in range(3):
        coarse = Subdivision(1, 144)(coarse, lambda x: -x.abs(), predict)
    torch.testing.assert_close(logits, coarse)
    assert torch.equal(Subdivision(0, 9)(coarse, None, None), coarse)


def test_labels_of_points_are_the_mask_beside_its_edge_and_half_on_it():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, :, :4] = True
    box = Boxes(torch.tensor([[2.0, 0, 6, 8]]))
    instances = Instances((8, 8), proposal_boxes=box, gt_masks=BitMasks(masks))
    points = torch.tensor([[[0.25, 0.5], [0.5, 0.5], [0.75, 0.5]]])  # columns 3, 4 and 5
    torch.testing.assert_close(sample_point_labels([instances], points), torch.tensor([[1.0, 0.5, 0.0]]))


def test_labels_of_polygons_are_those_of_their_bitmaps_in_images_of_different_sizes():
    first, second = [[square(1, 6), square(3, 12), square(1, 6)], (16, 20)], [[square(2, 9)], (12, 10)]
    regions = []
    for as_bitmaps in (True, False):
        regions.append([Instances((5, 5), proposal_boxes=Boxes(torch.zeros(0, 4)))])
        for polygons, size in (first, second):
            masks = PolygonMasks(polygons)
            masks = BitMasks.from_polygon_masks(masks, *size) if as_bitmaps else masks
            boxes = Boxes(torch.tensor([[0.0, 0, 10, 10]]).expand(len(masks), 4))
            regions[-1].append(Instances(size, proposal_boxes=boxes, gt_masks=masks))
    points = torch.rand(4, 30, 2)
    labels = sample_point_labels(regions[0], points)
    assert labels.shape == (4, 30) and 0 < labels.mean() < 1
    assert torch.equal(labels, sample_point_labels(regions[1], points))


def test_an_object_is_drawn_once_for_all_of_its_proposals(monkeypatch):
    drawn = []
    draw = BitMasks.from_polygon_masks
    monkeypatch.setattr(BitMasks, "from_polygon_masks", lambda p, h, w: drawn.append(len(p)) or draw(p, h, w))
    masks = PolygonMasks([square(0, 8), square(4, 8)])[torch.tensor([1, 0, 0])]
    instances = Instances((8, 8), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 8, 8]] * 3)), gt_masks=masks)
    labels = sample_point_labels([instances], torch.full((3, 1, 2), 0.25))
    assert labels.flatten().tolist() == [0, 1, 1] and drawn == [2]


def test_classes_of_points_are_those_of_their_pixels():
    targets = torch.arange(6).view(1, 2, 3)
    points = torch.tensor([[[0.0, 0.0], [0.5, 0.4], [0.99, 0.6], [1.0, 1.0]]])
    assert sample_point_classes(targets, points).tolist() == [[0, 1, 5, 5]]
