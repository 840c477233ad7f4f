import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detlib.modeling import build_model
from detlib.modeling.self_supervised.densecl import DenseCLHead, DenseCLNeck, matching_cells


@pytest.fixture
def densecl(ssl_cfg):
    def make(**head):
        torch.manual_seed(0)
        return build_model(
            ssl_cfg(
                "DenseCL",
                NECK={"NAME": "DenseCLNeck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8},
                HEAD={"NAME": "DenseCLHead", "TEMPERATURE": 0.2, "WARMUP_ITERS": 0, **head},
                QUEUE_LEN=8,
            )
        )

    return make


class Recorder(nn.Module):
    def forward(self, single, dense):
        self.single, self.dense = single, dense
        return {"loss": single[0].sum()}


def test_neck_gives_images_cells_and_the_mean_of_cells():
    neck = DenseCLNeck(6, 16, 8)
    embedding, grid, pooled = neck(torch.randn(2, 6, 7, 7))  # the map of 224 pixels
    assert (embedding.shape, grid.shape, pooled.shape) == ((2, 8), (2, 8, 49), (2, 8))
    torch.testing.assert_close(pooled, grid.mean(dim=2))


def test_neck_averages_cells_to_a_grid_first_if_wanted():
    neck = DenseCLNeck(6, 16, 8, num_grid=2)
    x = torch.randn(2, 6, 4, 4)
    assert neck(x)[1].shape == (2, 8, 4)
    torch.testing.assert_close(neck.cells(x)[:, :, 0], x[:, :, :2, :2].mean(dim=(2, 3)))


def test_every_cell_is_told_from_its_match_and_the_second_queue(densecl, samples):
    model = densecl()
    model.head = Recorder()
    model(samples(4))
    positive, negative = model.head.dense  # 32 pixels are 4 x 4 cells
    assert positive.shape == (4 * 16, 1)
    assert negative.shape == (4 * 16, 8)
    assert model.head.single[1].shape == (4, 8)


def test_negatives_of_images_and_of_cells_are_in_different_queues(densecl, samples):
    model = densecl()
    model.head = Recorder()
    model.queue2.keys.zero_()
    model(samples(4))
    assert (model.head.dense[1] == 0).all()
    assert (model.head.single[1] != 0).all()


def test_cell_matches_the_most_similar_one_of_the_backbone():
    query = F.normalize(torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]]), dim=1)  # at 0, 90 and 45 degrees
    key = F.normalize(torch.tensor([[[0.1, 1.0, 1.0], [1.0, 0.9, 0.1]]]), dim=1)  # near 90, 45 and 0 degrees
    assert matching_cells(query, key).tolist() == [[2, 0, 1]]


def test_identical_maps_match_cell_by_cell():
    cells = F.normalize(torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)), dim=1)
    assert matching_cells(cells, cells).tolist() == [list(range(9))] * 2


def test_matching_carries_no_gradient():
    cells = torch.randn(1, 3, 4, requires_grad=True)
    assert not matching_cells(cells, cells).requires_grad


def test_positive_of_a_cell_is_its_match_in_the_grid_of_the_keys(densecl, samples):
    model, batch = densecl(), samples(4)
    model.head = Recorder()
    maps = [model.feature_map(view) for view in model.preprocess_views(batch)]
    cells = [F.normalize(m.flatten(2), dim=1) for m in maps]
    grids = [F.normalize(model.neck(m)[1], dim=1) for m in maps]
    model(batch)
    positive = model.head.dense[0].view(4, 16)
    for image in range(4):
        for cell in range(16):
            match = (cells[1][image] * cells[0][image, :, cell : cell + 1]).sum(dim=0).argmax()
            expected = (grids[0][image, :, cell] * grids[1][image, :, match]).sum()
            torch.testing.assert_close(positive[image, cell], expected, rtol=1e-4, atol=1e-5)


def test_queues_get_the_keys_of_images_and_the_pooled_keys_of_cells(densecl, samples):
    model, batch = densecl(), samples(4)
    embedding, _, pooled = model.neck(model.feature_map(model.preprocess_views(batch)[1]))
    model(batch)
    torch.testing.assert_close(model.queue.keys[:, :4], F.normalize(embedding, dim=1).T)
    torch.testing.assert_close(model.queue2.keys[:, :4], F.normalize(pooled, dim=1).T)
    assert (model.queue.pointer, model.queue2.pointer) == (4, 4)


def similarities(rows):
    generator = torch.Generator().manual_seed(rows)
    return torch.rand(rows, 1, generator=generator), torch.rand(rows, 5, generator=generator)


def test_losses_are_weighted_by_lambda():
    head = DenseCLHead(temperature=0.2, dense_weight=0.25, warmup_iters=0)
    losses = head(similarities(2), similarities(6))
    single, dense = head.contrast(*similarities(2)), head.contrast(*similarities(6))
    torch.testing.assert_close(losses, {"loss_single": 0.75 * single, "loss_dense": 0.25 * dense})


def test_lambda_is_0_at_first_and_the_loss_that_of_moco():
    head = DenseCLHead(warmup_iters=2)
    weights = []
    for _ in range(4):
        losses = head(similarities(2), similarities(6))
        weights.append((losses["loss_dense"] / head.contrast(*similarities(6))).item())
        if weights[-1] == 0:
            torch.testing.assert_close(losses["loss_single"], head.contrast(*similarities(2)))
    assert weights == pytest.approx([0, 0, 0.5, 0.5])


def test_warm_up_is_counted_in_training_steps_and_saved():
    head = DenseCLHead(warmup_iters=2)
    for _ in range(2):
        head(similarities(2), similarities(6))
    head.eval()(similarities(2), similarities(6))
    resumed = DenseCLHead(warmup_iters=2)
    resumed.load_state_dict(head.state_dict())
    assert resumed.num_steps == 2
    assert resumed(similarities(2), similarities(6))["loss_dense"] > 0


def test_gradient_reaches_both_branches_and_not_the_copy(densecl, samples):
    model = densecl()
    sum(model(samples(4)).values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in [*model.backbone.parameters(), *model.neck.parameters()])
    assert all(p.grad is None for p in model.encoder_k.parameters())


def test_parameters_are_used_in_the_warm_up_too(densecl, samples):
    model = densecl(WARMUP_ITERS=10)
    sum(model(samples(4)).values()).backward()
    # Zeros and not None, which DDP would wait for.
    assert all((p.grad == 0).all() for p in model.neck.mlp2.parameters())


def test_prediction_is_the_normalised_map_of_the_backbone(densecl, samples):
    model, batch = densecl().eval(), samples(2)
    predictions = model(batch, mode="predict")
    features = model(batch, mode="tensor")["res5"]
    assert [list(prediction) for prediction in predictions] == [["grid"], ["grid"]]
    torch.testing.assert_close(predictions[1]["grid"], F.normalize(features[1].flatten(1), dim=0))
