import pytest
import torch
from torch import nn

from detlib.modeling import META_ARCH_REGISTRY, build_model
from detlib.modeling.preprocessing import ImagePreprocessor
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread, sample_indices, ssl_parts
from detlib.utils.errors import ConfigError, DatasetError
from detlib.utils.events import EventStorage


class Identity(nn.Module):
    """Images as feature maps."""

    def forward(self, x):
        return {"pixels": x}


class Mean(SelfSupModel):
    """Its loss is the mean of the first view, plus 100 times the number of views."""

    def loss(self, views, samples):
        return {"loss": views[0].mean() + 100 * len(views)}


class Pairs(Mean):
    num_views = 2


def model(cls=Mean):
    preprocessor = ImagePreprocessor([10.0, 20.0, 30.0], [1.0, 2.0, 5.0])
    return cls(preprocessor=preprocessor, backbone=Identity(), in_feature="pixels")


def sample(*values, size=2):
    return {"views": [torch.full((3, size, size), float(value)) for value in values]}


def test_unknown_mode_is_an_error_that_quotes_it():
    with pytest.raises(RuntimeError, match="mode is 'train'; Mean has the modes tensor, loss, predict"):
        model()([sample(1)], mode="train")


def test_mode_is_loss_when_training_and_tensor_otherwise():
    batch = [sample(40)]
    # (40 - 10) / 1, (40 - 20) / 2 and (40 - 30) / 5 have the mean 14.
    assert model().train()(batch) == {"loss": 114}
    assert list(model().eval()(batch)) == ["pixels"]
    assert model().eval()(batch, mode="loss") == {"loss": 114}


def test_tensor_gives_the_features_of_the_first_view_normalised():
    features = model()([sample(40, 0), sample(10, 0)], mode="tensor")["pixels"]
    expected = torch.tensor([[30.0, 10.0, 2.0], [0.0, -5.0, -4.0]])[:, :, None, None].expand(2, 3, 2, 2)
    torch.testing.assert_close(features, expected)


def test_predict_names_the_algorithm_that_predicts_nothing():
    with pytest.raises(NotImplementedError, match="Mean predicts nothing"):
        model()([sample(1)], mode="predict")


def test_image_alone_is_one_view():
    batch = [{"image": torch.full((3, 2, 2), 40, dtype=torch.uint8)}]
    assert model()(batch, mode="loss") == {"loss": 114}


def test_views_at_different_places_may_differ_in_size():
    large, small = torch.full((3, 4, 4), 40.0), torch.zeros(3, 2, 2)
    assert model()([{"views": [large, small]}] * 2, mode="loss") == {"loss": 214}


@pytest.mark.parametrize(
    ("cls", "batch", "message"),
    [
        (Mean, [{"file_name": "a.jpg", "width": 1}], "'a.jpg' has neither 'views' nor 'image', but file_name, width"),
        (Mean, [sample(1), sample(1, 2)], r"samples of a batch have \[1, 2\] views"),
        (Mean, [sample(1, size=2), sample(1, size=3)], r"views\[0\] come in the sizes \[\(2, 2\), \(3, 3\)\]"),
        (Pairs, [sample(1)], "Pairs learns from 2 views of each image, got 1; set INPUT.VIEWS, as in"),
    ],
)
def test_views_that_do_not_fit_are_an_error_that_says_what_to_set(cls, batch, message):
    with pytest.raises(DatasetError, match=message):
        model(cls)(batch, mode="loss")


def test_too_few_views_for_the_loss_are_enough_for_features():
    assert model(Pairs)([sample(1)], mode="tensor")["pixels"].shape == (1, 3, 2, 2)


def test_subclass_without_loss_is_named():
    with pytest.raises(NotImplementedError, match="SelfSupModel needs loss"):
        model(SelfSupModel)([sample(1)], mode="loss")


def test_parts_of_the_config_go_to_the_last_feature_by_default(ssl_cfg):
    cfg = ssl_cfg("SimCLR", NECK={"NAME": "LinearNeck", "OUT_CHANNELS": 5}, HEAD={"NAME": "ContrastiveHead"})
    parts = ssl_parts(cfg)
    assert parts["in_feature"] == "res5"
    assert parts["neck"].fc.weight.shape == (5, 64)
    assert parts["head"].temperature == 0.1


EMBEDDING = ("BYOL", "BarlowTwins", "DenseCL", "MoCo", "MoCoV3", "NPID", "SimCLR", "SimSiam", "SwAV")


@pytest.mark.parametrize("name", EMBEDDING)
@pytest.mark.parametrize("missing", ["NECK", "HEAD"])
def test_part_that_an_algorithm_needs_is_named(ssl_cfg, name, missing):
    parts = {"NECK": {"NAME": "LinearNeck"}, "HEAD": {"NAME": "ContrastiveHead"}, "MEMORY": {"NAME": "SimpleMemory"}}
    del parts[missing]
    with pytest.raises(ConfigError, match=rf"{name} needs MODEL.SSL.{missing}, as"):
        build_model(ssl_cfg(name, **parts))


def test_algorithm_without_neck_and_head_has_none(ssl_cfg):
    parts = ssl_parts(ssl_cfg("SimCLR"))
    assert parts["neck"] is None
    assert parts["head"] is None


def test_loss_of_the_config_is_that_of_the_head(ssl_cfg):
    head = {"NAME": "LatentPredictHead", "PREDICTOR": {"NAME": "NonLinearNeck", "HID_CHANNELS": 4}}
    loss = {"NAME": "CosineSimilarityLoss", "SHIFT": 2, "SCALE": 3}
    parts = ssl_parts(ssl_cfg("BYOL", NECK={"NAME": "LinearNeck"}, HEAD=head, LOSS=loss))
    assert (parts["head"].loss_module.shift, parts["head"].loss_module.scale) == (2.0, 3.0)


def test_feature_that_the_backbone_lacks_is_an_error(ssl_cfg):
    with pytest.raises(ConfigError, match=r"MODEL.SSL.IN_FEATURE is 'p3', but the backbone gives res5"):
        ssl_parts(ssl_cfg("SimCLR", IN_FEATURE="p3"))


def test_sample_indices_are_those_of_the_samples():
    indices = sample_indices([{"sample_idx": 4}, {"sample_idx": 0}], 5, torch.device("cpu"))
    assert indices.tolist() == [4, 0]
    assert indices.dtype == torch.int64


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"views": []}, "a sample has no 'sample_idx', but views"),
        ({"sample_idx": 5}, "a sample_idx is 5, but MODEL.SSL.MEMORY remembers 5 samples; set its LENGTH"),
        ({"sample_idx": -1}, "a sample_idx is -1"),
    ],
)
def test_sample_without_a_place_in_the_memory_is_an_error(sample, message):
    with pytest.raises(DatasetError, match=message):
        sample_indices([sample], 5, torch.device("cpu"))


@pytest.mark.parametrize(
    ("embeddings", "spread"),
    [
        # Each channel is 3, -3, 0, 0 before and 1, -1, 0, 0 after normalisation: std sqrt(1 / 2), times sqrt(2).
        (torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]]), 1.0),
        (torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.3, 0.4]]), 0.0),  # one direction: collapsed
    ],
)
def test_spread_in_the_log_is_1_on_the_sphere_and_0_when_collapsed(embeddings, spread):
    with EventStorage() as storage:
        log_spread(embeddings)
        assert storage.latest()["embedding_spread"][0] == pytest.approx(spread, abs=1e-6)


def test_all_algorithms_are_meta_architectures():
    for name in EMBEDDING:
        assert issubclass(META_ARCH_REGISTRY.get(name), SelfSupModel)
