import math

import pytest
import torch

from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detlib.utils.errors import ConfigError, DatasetError

K, IGNORE = 4, 255


@pytest.fixture
def model(tiny_semantic_cfg):
    torch.manual_seed(0)
    return build_model(tiny_semantic_cfg)


@pytest.fixture
def labelled(sample):
    """A sample without instances whose left half is of class 1, the right half of class 2."""

    def make(height, width):
        labels = torch.ones(height, width, dtype=torch.int64)
        labels[:, width // 2 :] = 2
        return {**{k: v for k, v in sample(height, width).items() if k != "instances"}, "sem_seg": labels}

    return make


def head(shapes, common_stride=4, norm="", **kwargs):
    torch.manual_seed(0)
    shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in shapes.items()}
    return SemSegFPNHead(shapes, num_classes=K, conv_dims=8, common_stride=common_stride, norm=norm, **kwargs)


def test_losses_are_finite_and_reach_every_weight(model, labelled):
    losses = model([labelled(64, 96), labelled(96, 64)])
    assert set(losses) == {"loss_sem_seg"}
    losses["loss_sem_seg"].backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert {name for name, grad in grads.items() if grad is None} == set()
    assert all(grad.isfinite().all() for grad in grads.values())


def test_loss_is_the_mean_cross_entropy_of_pixels_that_count():
    """Equal logits give log(K), however many pixels are ignored; the weight is a factor."""
    module = head({"p2": 4}, loss_weight=0.5, ignore_value=IGNORE)
    targets = torch.zeros(1, 8, 8, dtype=torch.int64)
    targets[0, 2:] = IGNORE
    losses = module.losses(torch.zeros(1, K, 2, 2), targets)
    assert float(losses["loss_sem_seg"]) == pytest.approx(0.5 * math.log(K))


def test_image_whose_pixels_are_all_ignored_has_zero_loss_with_a_gradient(model, labelled):
    sample = labelled(64, 64)
    sample["sem_seg"][:] = IGNORE
    loss = model([sample])["loss_sem_seg"]
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.sem_seg_head.parameters())


def test_padding_is_ignored(model, labelled):
    """The padding of the smaller image of a batch adds nothing to the sum or to the number of pixels."""
    targets = []
    model.sem_seg_head.losses = lambda logits, labels: targets.append(labels) or {}
    model([labelled(64, 64), labelled(32, 96)])
    assert targets[0].shape == (2, 64, 96)
    assert (targets[0][0, :, 64:] == IGNORE).all()
    assert (targets[0][1, 32:] == IGNORE).all()
    assert ((targets[0] == 1) | (targets[0] == 2)).sum() == 64 * 64 + 32 * 96


def test_predictions_have_the_size_that_is_asked_for(model):
    model.eval()
    with torch.no_grad():
        images = [{"image": torch.zeros(3, 64, 64)}, {"image": torch.zeros(3, 32, 90), "height": 50, "width": 140}]
        first, second = model(images)
    assert first["sem_seg"].shape == (K, 64, 64)
    assert second["sem_seg"].shape == (K, 50, 140)


def test_learns_two_regions(model, labelled):
    sample = labelled(64, 64)
    sample["image"][:, :, :32] = 0
    sample["image"][:, :, 32:] = 255
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(15):
        loss = model([sample])["loss_sem_seg"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.sem_seg_head.eval()
    with torch.no_grad():
        logits, _ = model.sem_seg_head(model.backbone(model.preprocessor([sample]).tensor))
    assert (logits[0].argmax(dim=0) == sample["sem_seg"]).float().mean() > 0.9


def test_sample_without_labels_is_named(model, sample):
    with pytest.raises(DatasetError, match=r"needs 'sem_seg', but 'a\.jpg' has only .*DATASETS\.TRAIN"):
        model([{**sample(64, 64), "file_name": "a.jpg"}])


@pytest.mark.parametrize("wrong", [K, 254, -1])
def test_label_of_no_class_names_sample_and_option(model, labelled, wrong):
    sample = {**labelled(64, 64), "file_name": "a.jpg"}
    sample["sem_seg"][3, 5] = wrong
    with pytest.raises(DatasetError, match=rf"'a\.jpg' has the labels \[{wrong}\].*SEM_SEG_HEAD\.NUM_CLASSES"):
        model([sample])


def test_labels_of_another_size_than_the_image_are_refused(model, labelled):
    with pytest.raises(DatasetError, match=r"shape \(32, 64\), its image \(64, 64\)"):
        model([{**labelled(64, 64), "sem_seg": torch.zeros(32, 64, dtype=torch.int64)}])


def test_head_upsamples_each_map_to_the_common_stride():
    module = head({"p5": 32, "p2": 4, "p3": 8})
    assert module.in_features == ["p2", "p3", "p5"]
    assert [len(x) for x in module.scale_heads] == [1, 2, 6]  # convolutions and upsamplings
    features = {"p2": torch.zeros(2, 8, 16, 24), "p3": torch.zeros(2, 8, 8, 12), "p5": torch.zeros(2, 8, 2, 3)}
    assert module.layers(features).shape == (2, K, 16, 24)
    logits, losses = module.eval()(features)
    assert logits.shape == (2, K, 64, 96)
    assert losses == {}


@pytest.mark.parametrize("stride", [2, 12])
def test_stride_that_doubling_does_not_reach_is_refused(stride):
    with pytest.raises(ConfigError, match=rf"p9 of stride {stride} to the stride 4.*COMMON_STRIDE"):
        head({"p9": stride})


def test_unknown_feature_map_is_refused(tiny_semantic_cfg):
    tiny_semantic_cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2"]
    with pytest.raises(ConfigError, match=r"SEM_SEG_HEAD\.IN_FEATURES is \['p2'\]"):
        build_model(tiny_semantic_cfg)


def test_images_are_padded_to_the_coarsest_map_of_the_head(tiny_semantic_cfg, sample):
    tiny_semantic_cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p3", "p6"]  # The backbone itself asks for multiples of 32.
    model = build_model(tiny_semantic_cfg).eval()
    with torch.no_grad():
        (output,) = model([sample(70, 90)])
    assert model.preprocessor.size_divisibility == 64
    assert output["sem_seg"].shape == (4, 70, 90)
