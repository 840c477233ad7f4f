import math

import numpy as np
import pytest
import torch

from detlib.data.view_splits import QuarterTurns
from detlib.modeling import build_model
from detlib.utils.errors import ConfigError, DatasetError


@pytest.fixture
def rotation_pred(ssl_cfg):
    torch.manual_seed(0)
    return build_model(ssl_cfg("RotationPred", HEAD={"NAME": "LinearClsHead", "NUM_CLASSES": 4}))


def turned(count, seed=0):
    """A batch whose views are what QuarterTurns makes of random images."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(count)]
    as_tensors = [[torch.from_numpy(view.transpose(2, 0, 1).copy()) for view in QuarterTurns()(i)] for i in images]
    return [{"views": views} for views in as_tensors]


def test_equal_scores_have_a_loss_of_ln_4(rotation_pred):
    rotation_pred.head.fc.weight.data.zero_()
    assert rotation_pred(turned(3))["loss"].item() == pytest.approx(math.log(4), rel=1e-6)  # 1.3863


def test_classes_are_counter_clockwise_quarter_turns_of_each_sample_in_turn(rotation_pred, monkeypatch):
    seen = {}
    batch = turned(3)
    views = rotation_pred.preprocess_views(batch)
    monkeypatch.setattr(rotation_pred, "feature_map", lambda images: images)
    monkeypatch.setattr(
        rotation_pred.head, "loss", lambda x, y: seen.update(target=y, means=x) or {"loss_cls": x.sum()}
    )
    rotation_pred(batch)
    assert seen["target"].tolist() == [0, 1, 2, 3] * 3
    for sample in range(3):
        for turns in range(4):
            view = torch.rot90(views[0][sample], turns, (-2, -1))
            torch.testing.assert_close(view, views[turns][sample])
            torch.testing.assert_close(seen["means"][4 * sample + turns], view.mean(dim=(1, 2)))


def test_four_quarter_turns_are_none():
    (image,) = (sample["views"] for sample in turned(1))
    assert torch.equal(torch.rot90(image[3], 1, (-2, -1)), image[0])


def test_prediction_has_an_entry_for_each_sample_with_the_scores_of_its_views(rotation_pred):
    rotation_pred.eval()
    batch = turned(3)
    predictions = rotation_pred(batch, mode="predict")
    assert [p["scores"].shape for p in predictions] == [(4, 4)] * 3
    view = rotation_pred.preprocess_views(batch)[2][1:2]
    scores = rotation_pred.head(rotation_pred.feature_map(view).mean(dim=(2, 3)))[0]
    torch.testing.assert_close(predictions[1]["scores"][2], scores, rtol=1e-3, atol=1e-3)


def test_mean_of_the_pixels_does_not_tell_the_turn(rotation_pred, monkeypatch):
    monkeypatch.setattr(rotation_pred, "feature_map", lambda images: images)
    rotation_pred.head.fc = torch.nn.Linear(3, 4)
    with torch.no_grad():
        assert rotation_pred(turned(5))["loss"].item() >= math.log(4)


def test_features_are_those_of_all_four_views(rotation_pred):
    batch = turned(2)
    features = rotation_pred.eval()(batch)
    views = rotation_pred.preprocess_views(batch)
    torch.testing.assert_close(
        features[rotation_pred.in_feature][5][None], rotation_pred.feature_map(views[1][1:2]), rtol=1e-3, atol=1e-3
    )


def test_a_view_that_was_not_turned_is_an_error(rotation_pred, samples):
    with pytest.raises(DatasetError, match=r"learns from 4 views of each image, got 2.* SPLIT: {NAME: Quart"):
        rotation_pred(samples(2))


def test_without_a_head_it_is_not_built(ssl_cfg):
    with pytest.raises(ConfigError, match=r"RotationPred needs MODEL.SSL.HEAD"):
        build_model(ssl_cfg("RotationPred"))


def test_turns_of_images_that_are_brighter_at_the_top_are_learned(rotation_pred):
    rng = np.random.default_rng(0)
    optimizer = torch.optim.SGD(rotation_pred.parameters(), lr=0.05, momentum=0.9)
    falling = np.linspace(200, 50, 16)[:, None, None]
    losses = []
    for _ in range(15):
        images = [np.uint8(falling + rng.integers(0, 50, (16, 16, 3))) for _ in range(4)]
        batch = [{"views": [torch.from_numpy(v.transpose(2, 0, 1).copy()) for v in QuarterTurns()(i)]} for i in images]
        loss = rotation_pred(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 < 1 < losses[0]
