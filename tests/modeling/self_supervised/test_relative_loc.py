import math

import numpy as np
import pytest
import torch
from torch import nn

from detlib.config import get_cfg
from detlib.data.view_splits import GridPatches
from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.modeling.backbone import build_resnet_backbone
from detlib.modeling.self_supervised import RelativeLocNeck
from detlib.utils.errors import DatasetError

NEAR = {"rtol": 1e-3, "atol": 1e-3}  # Batches of other sizes are computed in another order.


@pytest.fixture
def relative_loc(ssl_cfg):
    torch.manual_seed(0)
    neck = {"NAME": "RelativeLocNeck", "OUT_CHANNELS": 16}
    return build_model(ssl_cfg("RelativeLoc", NECK=neck, HEAD={"NAME": "LinearClsHead", "NUM_CLASSES": 8}))


def patches(samples, count):
    return samples(count, sizes=[16] * 9)


def test_neck_has_the_published_number_of_parameters():
    neck = RelativeLocNeck(2048, 4096)
    assert sum(p.numel() for p in neck.parameters()) == 16_789_504
    assert neck.norm.momentum == 0.003
    assert neck.fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert (neck.fc.bias == 0).all()
    assert isinstance(neck.dropout, nn.Dropout) and neck.dropout.p == 0.5


def test_equal_scores_have_a_loss_of_ln_8(relative_loc, samples):
    relative_loc.head.fc.weight.data.zero_()
    assert relative_loc(patches(samples, 2))["loss"].item() == pytest.approx(math.log(8), rel=1e-6)  # 2.0794


def test_batch_of_n_has_8n_pairs_whose_classes_are_the_places(relative_loc, samples, monkeypatch):
    seen = {}
    loss = relative_loc.head.loss
    monkeypatch.setattr(relative_loc.head, "loss", lambda x, y: seen.update(x=x, y=y) or loss(x, y))
    relative_loc(patches(samples, 3))
    assert relative_loc.head(seen["x"]).shape == (24, 8)
    assert seen["y"].tolist() == list(range(8)) * 3


@pytest.mark.parametrize(("training", "num_encoded"), [(True, 16 * 3), (False, 9 * 3)])
def test_pair_is_the_neighbour_and_then_the_middle(relative_loc, samples, monkeypatch, training, num_encoded):
    views = relative_loc.train(training).preprocess_views(patches(samples, 3))
    encoded = []
    monkeypatch.setattr(relative_loc, "feature_map", lambda images: encoded.append(len(images)) or images)
    monkeypatch.setattr(relative_loc, "neck", nn.Identity())
    pairs = relative_loc.embeddings(views)
    for sample in range(3):
        for place in range(8):
            expected = torch.cat([views[1 + place][sample], views[0][sample]])
            assert torch.equal(pairs[8 * sample + place], expected)
    # Without statistics of batches to care for, the middle is encoded once.
    assert sum(encoded) == num_encoded


def test_prediction_has_the_scores_of_the_pairs_of_each_sample(relative_loc, samples):
    predictions = relative_loc.eval()(patches(samples, 2), mode="predict")
    assert [p["scores"].shape for p in predictions] == [(8, 8)] * 2


def test_features_are_those_of_the_neighbours(relative_loc, samples):
    relative_loc.eval()
    batch = patches(samples, 2)
    features = relative_loc(batch)[relative_loc.in_feature]
    views = relative_loc.preprocess_views(batch)
    assert len(features) == 16
    torch.testing.assert_close(features[8], relative_loc.feature_map(views[1][1:2])[0], **NEAR)


def test_features_of_one_image_are_its_own(relative_loc, samples):
    relative_loc.eval()
    (sample,) = samples(1, sizes=[32])
    image = relative_loc.preprocess_views([sample])[0]
    torch.testing.assert_close(relative_loc([{"image": sample["views"][0]}]), relative_loc.backbone(image), **NEAR)


def test_cells_of_255_pixels_are_85_and_their_patches_have_21_to_move():
    rows = np.arange(255, dtype=np.float32)[:, None, None].repeat(255, axis=1)
    np.random.seed(0)
    tops = [GridPatches(64)(rows)[1][0, 0, 0] for _ in range(300)]  # of the first neighbour
    assert (min(tops), max(tops)) == (0, 20)  # of 255 / 3 - 64 = 21 pixels the last stays free


def test_map_of_a_patch_of_64_pixels_has_2_by_2_cells():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    with torch.device("meta"):
        backbone = build_resnet_backbone(cfg, ShapeSpec(channels=3))
        assert backbone(torch.empty(1, 3, 64, 64))["res5"].shape == (1, 2048, 2, 2)


def test_places_of_patches_of_images_that_fade_to_a_corner_are_learned(relative_loc):
    rng = np.random.default_rng(0)
    relative_loc.neck.dropout.p = 0.0
    optimizer = torch.optim.SGD(relative_loc.parameters(), lr=0.1, momentum=0.9)
    steps = np.linspace(0, 200, 51)
    fading = np.stack(np.broadcast_arrays(steps[:, None], steps, 100), axis=2)  # red downwards, green to the right
    split = GridPatches(16)
    losses = []
    for _ in range(25):
        images = [np.uint8(fading + rng.integers(0, 20, (51, 51, 3))) for _ in range(4)]
        batch = [{"views": [torch.from_numpy(p.transpose(2, 0, 1).copy()) for p in split(i)]} for i in images]
        loss = relative_loc(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 < 1.8 < losses[0]


@pytest.mark.parametrize(("mode", "error"), [("loss", "learns from 9 views"), ("predict", "compares patches")])
def test_an_image_that_was_not_split_is_an_error(relative_loc, samples, mode, error):
    with pytest.raises(DatasetError, match=f"{error}.*GridPatches"):
        relative_loc(samples(2, sizes=[32]), mode=mode)
