"""The shipped configs of BarlowTwins, BYOL, SimSiam and SwAV are the published recipes."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from detlib.config import get_cfg
from detlib.data import transforms as T
from detlib.data.view_mapper import build_views
from detlib.modeling import build_model
from detlib.solver import LARS, build_lr_scheduler, build_optimizer

CONFIGS = Path(__file__).parents[3] / "configs" / "SelfSupervised"
NUM_IMAGES = 1281167  # of ImageNet-1k

# Images of a batch, epochs, epochs of the warm-up, learning rate and that at the end, weight decay, optimizer.
RECIPES = {
    "barlow_twins_r50_300e": (2048, 300, 10, 1.6, 0.0016, 1e-6, LARS),
    "byol_r50_200e": (4096, 200, 10, 4.8, 0.0, 1e-6, LARS),
    "simsiam_r50_100e": (256, 100, 0, 0.05, 0.0, 1e-4, torch.optim.SGD),
    "swav_r50_200e": (256, 200, 0, 0.6, 0.0006, 1e-6, LARS),
}
# Parameters of neck and head, which are predictor or prototypes.
NUM_PARAMETERS = {
    "barlow_twins_r50_300e": (151_027_712, 0),
    "byol_r50_200e": (9_449_472, 2_109_440),
    "simsiam_r50_100e": (12_591_104, 2_100_224),
    "swav_r50_200e": (4_462_720, 384_000),
}


def read(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "meta"
    return cfg


@cache
def build(name):
    with torch.device("meta"):
        return build_model(read(name))


def options_of(model, optimizer, key):
    values = {param: group.get(key) for group in optimizer.param_groups for param in group["params"]}
    return {name: values[param] for name, param in model.named_parameters() if param in values}


@pytest.mark.parametrize("name", RECIPES)
def test_neck_and_head_have_as_many_parameters_as_published(name):
    model = build(name)
    counts = tuple(sum(p.numel() for p in part.parameters()) for part in (model.neck, model.head))
    assert counts == NUM_PARAMETERS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_rate_rises_over_the_warmup_and_falls_by_a_cosine_over_the_rest(name):
    batch_size, epochs, warmup_epochs, lr, lr_end, _, _ = RECIPES[name]
    iters_per_epoch = NUM_IMAGES // batch_size
    cfg = read(name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)

    def rate(epoch):
        scheduler.last_epoch = epoch * iters_per_epoch  # Its epochs are iterations.
        return scheduler.get_lr()[0]

    assert (batch_size, epochs * iters_per_epoch) == (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER)
    assert rate(warmup_epochs / 2) == pytest.approx(lr / 2 if warmup_epochs else lr, rel=1e-2)
    middle = (warmup_epochs + epochs) / 2
    assert [rate(warmup_epochs), rate(middle), rate(epochs)] == pytest.approx([lr, (lr + lr_end) / 2, lr_end])


@pytest.mark.parametrize("name", RECIPES)
def test_optimizer_decays_as_published(name):
    *_, weight_decay, optimizer_type = RECIPES[name]
    model = build(name)
    optimizer = build_optimizer(read(name), model)
    assert type(optimizer) is optimizer_type
    assert set(options_of(model, optimizer, "momentum").values()) == {0.9}
    decays = options_of(model, optimizer, "weight_decay")
    # LARS itself decays nothing of fewer than two dimensions.
    decayed = {key for key, p in model.named_parameters() if optimizer_type is not LARS or p.ndim > 1} & decays.keys()
    assert {decays[key] for key in decayed} == {weight_decay}


def test_biases_and_norms_of_barlow_twins_have_a_low_rate():
    model = build("barlow_twins_r50_300e")
    rates = options_of(model, build_optimizer(read("barlow_twins_r50_300e"), model), "lr")
    # 0.2 and 0.0048 for each 256 images.
    assert {rates[key] for key, p in model.named_parameters() if p.ndim > 1} == {0.2 * 8}
    assert {round(rates[key], 9) for key, p in model.named_parameters() if p.ndim == 1} == {0.0048 * 8}


def test_predictor_of_simsiam_alone_keeps_its_rate():
    model = build("simsiam_r50_100e")
    is_fixed = options_of(model, build_optimizer(read("simsiam_r50_100e"), model), "fixed_lr")
    assert {key.split(".")[0] for key, fixed in is_fixed.items() if fixed} == {"head"}
    assert {key.split(".")[0] for key, fixed in is_fixed.items() if not fixed} == {"backbone", "neck"}


def test_momentum_of_byol_grows_from_its_start_over_the_whole_training():
    target_net = build("byol_r50_200e").target_net
    assert (target_net.momentum, target_net.schedule, target_net.max_updates) == (0.99, "cosine", 200 * 312)


def test_swav_starts_to_learn_prototypes_and_to_use_the_queue_as_published():
    head = build("swav_r50_200e").head
    assert head.freeze_iters == 5005
    assert head.queue_start == 15 * (NUM_IMAGES // 256)
    assert head.queue.shape == (3840, 2, 128)


@pytest.mark.parametrize("name", RECIPES)
def test_batch_norm_is_synchronised_everywhere(name):
    norms = {type(module).__name__ for module in build(name).modules() if "BatchNorm" in type(module).__name__}
    assert norms == {"SyncBatchNorm", "SyncBatchNorm1d"}


@pytest.mark.parametrize(("name", "is_zero"), [(name, name != "byol_r50_200e") for name in RECIPES])
def test_residual_branches_of_all_but_byol_start_at_0(name, is_zero):
    cfg = read(name)
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4, 4
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 1
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SSL.NECK.HID_CHANNELS = cfg.MODEL.SSL.NECK.OUT_CHANNELS = 8
    last_scale = build_model(cfg).backbone.res5[2].conv3.norm.weight
    assert (last_scale == 0).all() if is_zero else (last_scale == 1).all()


# The views.

JITTER = {
    "barlow_twins_r50_300e": (0.4, 0.4, 0.2, 0.1),
    "byol_r50_200e": (0.4, 0.4, 0.2, 0.1),
    "simsiam_r50_100e": (0.4, 0.4, 0.4, 0.1),
    "swav_r50_200e": (0.8, 0.8, 0.8, 0.2),
}


def steps_of(view):
    """Name of an augmentation -> its probability and itself, in the order in which they come."""
    steps = {}
    for augmentation in view.augmentations.augs:
        prob = getattr(augmentation, "prob", 1.0)
        inner = augmentation.aug if isinstance(augmentation, T.RandomApply) else augmentation
        steps[type(inner).__name__] = (prob, inner)
    return steps


def probabilities(view):
    return {name: prob for name, (prob, _) in steps_of(view).items()}


def crop_of(view):
    _, crop = steps_of(view)["RandomResizedCrop"]
    return (*crop.size, *crop.scale, crop.interp.name.lower())


@pytest.mark.parametrize("name", JITTER)
def test_colors_and_blur_have_their_published_strengths(name):
    for view in build_views(read(name)):
        steps = steps_of(view)
        (_, jitter), (_, blur) = steps["ColorJitter"], steps["GaussianBlur"]
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == JITTER[name]
        assert blur.sigma == (0.1, 2.0)


@pytest.mark.parametrize("name", ["barlow_twins_r50_300e", "byol_r50_200e"])
def test_first_view_is_always_blurred_and_the_second_sometimes_solarized(name):
    first, second = build_views(read(name))
    assert (first.count, second.count) == (1, 1)
    assert crop_of(first) == crop_of(second) == (224, 224, 0.08, 1.0, "bicubic")
    shared = {"RandomResizedCrop": 1, "RandomFlip": 0.5, "ColorJitter": 0.8, "RandomGrayscale": 0.2}
    assert list(probabilities(first).items()) == list({**shared, "GaussianBlur": 1}.items())
    assert list(probabilities(second).items()) == list({**shared, "GaussianBlur": 0.1, "Solarize": 0.2}.items())
    assert steps_of(second)["Solarize"][1].threshold == 128


MOCO_V2 = {"RandomResizedCrop": 1, "ColorJitter": 0.8, "RandomGrayscale": 0.2, "GaussianBlur": 0.5, "RandomFlip": 0.5}


def test_views_of_simsiam_are_those_of_moco_v2():
    (view,) = build_views(read("simsiam_r50_100e"))
    assert view.count == 2
    assert crop_of(view) == (224, 224, 0.2, 1.0, "bilinear")
    assert list(probabilities(view).items()) == list(MOCO_V2.items())


def test_crops_of_swav_are_two_large_and_six_small_ones():
    large, small = build_views(read("swav_r50_200e"))
    assert (large.count, small.count) == (2, 6)
    assert crop_of(large) == (224, 224, 0.14, 1.0, "bilinear")
    assert crop_of(small) == (96, 96, 0.05, 0.14, "bilinear")
    for view in (large, small):
        assert list(probabilities(view).items()) == list(MOCO_V2.items())
        images, _ = view.images(np.zeros((60, 80, 3), dtype=np.uint8))
        assert images[0].shape == (*crop_of(view)[:2], 3)
