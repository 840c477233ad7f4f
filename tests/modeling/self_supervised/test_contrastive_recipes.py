"""The recipes of the contrastive algorithms are those that were published, in the notation of the papers."""

from pathlib import Path

import pytest
import torch
from torch import nn

from detlib.config import get_cfg
from detlib.modeling import build_model
from detlib.modeling.self_supervised import KeyQueue, MomentumEncoder
from detlib.solver import build_lr_scheduler, build_optimizer

CONFIGS = Path(__file__).parents[3] / "configs" / "SelfSupervised"
NUM_IMAGES = 1281167

MOCO_V2_VIEW = "RRC(224, .2..1) CJ(.4, .4, .4, .1)@.8 Gray@.2 Blur@.5 Flip"
NPID_VIEW = "RRC(224, .2..1) Gray@.2 CJ(.4, .4, .4, .4)@1 Flip"
SIMCLR_VIEW = "RRC(224, .08..1) Flip CJ(.8, .8, .8, .2)@.8 Gray@.2 Blur@.5"
V3_VIEWS = (
    "RRC(224, {}..1) CJ(.4, .4, .2, .1)@.8 Gray@.2 Blur@1 Flip",
    "RRC(224, {}..1) CJ(.4, .4, .2, .1)@.8 Gray@.2 Blur@.1 Solar@.2 Flip",
)
VIEWS = {
    "densecl_r50_200e": [MOCO_V2_VIEW] * 2,
    "moco_v1_r50_200e": [NPID_VIEW] * 2,
    "moco_v2_r50_200e": [MOCO_V2_VIEW] * 2,
    "mocov3_r50_100e": [view.format(".2") for view in V3_VIEWS],
    "mocov3_vit_small_p16_300e": [view.format(".08") for view in V3_VIEWS],
    "npid_r50_200e": [NPID_VIEW],
    "simclr_r50_200e": [SIMCLR_VIEW] * 2,
}

# Optimizer, batch, rate after the warm-up, epochs of the warm-up and of all, weight decay of weights and of the rest.
TRAINING = {
    "densecl_r50_200e": ("SGD", 256, 0.03, 0, 200, 1e-4, 1e-4),
    "moco_v1_r50_200e": ("SGD", 256, 0.03, 0, 200, 1e-4, 1e-4),
    "moco_v2_r50_200e": ("SGD", 256, 0.03, 0, 200, 1e-4, 1e-4),
    "mocov3_r50_100e": ("LARS", 4096, 9.6, 10, 100, 1e-6, 0),
    "mocov3_vit_small_p16_300e": ("AdamW", 4096, 2.4e-3, 40, 300, 0.1, 0),
    "npid_r50_200e": ("SGD", 256, 0.03, 0, 200, 1e-4, 1e-4),
    "simclr_r50_200e": ("LARS", 4096, 4.8, 10, 200, 1e-6, 0),
}

# Part of that rate after parts of the epochs that follow the warm-up: steps at 120 and 160 of 200, or half a cosine.
STEPS = {0.59: 1, 0.61: 0.1, 0.79: 0.1, 0.81: 0.01}
COSINE = {1 / 3: 0.75, 1 / 2: 0.5, 2 / 3: 0.25}
SCHEDULES = {name: STEPS if name in ("moco_v1_r50_200e", "npid_r50_200e") else COSINE for name in TRAINING}

# Temperature, parameters of neck and of head.
PARTS = {
    "densecl_r50_200e": (0.2, 8_917_248, 0),
    "moco_v1_r50_200e": (0.07, 262_272, 0),
    "moco_v2_r50_200e": (0.2, 4_458_624, 0),
    "mocov3_r50_100e": (1.0, 9_445_376, 2_105_344),
    "mocov3_vit_small_p16_300e": (0.2, 19_415_040, 2_105_344),
    "npid_r50_200e": (0.07, 262_272, 0),
    "simclr_r50_200e": (0.1, 4_460_800, 0),
}
MOMENTUMS = {
    "densecl_r50_200e": (0.999, "constant"),
    "moco_v1_r50_200e": (0.999, "constant"),
    "moco_v2_r50_200e": (0.999, "constant"),
    "mocov3_r50_100e": (0.99, "cosine"),
    "mocov3_vit_small_p16_300e": (0.99, "cosine"),
}


@pytest.fixture(params=VIEWS)
def name(request):
    return request.param


@pytest.fixture
def cfg(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "meta"
    return cfg


@pytest.fixture
def model(cfg):
    with torch.device("meta"):
        return build_model(cfg)


def short(value):
    """0.2 as .2 and 1.0 as 1."""
    return f"{value:g}".removeprefix("0")


def notation(augmentation):
    name, prob = augmentation["NAME"], augmentation.get("PROB", 1)
    if name == "RandomApply":
        inner, _, _ = notation(augmentation["TFM_OR_AUG"]).partition("@")
        return f"{inner}@{short(prob)}"
    if name == "RandomResizedCrop":
        return f"RRC({augmentation['SIZE']}, {'..'.join(map(short, augmentation['SCALE']))})"
    if name == "ColorJitter":
        ranges = [short(augmentation[key]) for key in ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE")]
        return f"CJ({', '.join(ranges)})@1"
    if name == "GaussianBlur":
        assert augmentation["SIGMA"] == [0.1, 2.0]
        return "Blur@1"
    if name == "Solarize":
        assert augmentation["THRESHOLD"] == 128
        return "Solar@1"
    return {"RandomFlip": "Flip", "RandomGrayscale": f"Gray@{short(prob)}"}[name]


def test_views_are_the_published_ones(name, cfg):
    views = []
    for pipeline in cfg.INPUT.VIEWS:
        views += [" ".join(notation(augmentation) for augmentation in pipeline["AUGMENTATIONS"])] * pipeline["COUNT"]
    assert views == VIEWS[name]
    assert cfg.INPUT.FORMAT == "RGB"


def test_network_and_temperature_are_the_published_ones(name, model):
    temperature, num_neck, num_head = PARTS[name]
    assert [module.temperature for module in model.head.modules() if hasattr(module, "temperature")] == [temperature]
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.neck, model.head)]
    assert counts == [num_neck, num_head]


def test_momentum_and_queues_are_the_published_ones(name, cfg, model):
    if name in MOMENTUMS:
        momentum, schedule = MOMENTUMS[name]
        encoder = next(module for module in model.modules() if isinstance(module, MomentumEncoder))
        assert (encoder.momentum, encoder.schedule) == (momentum, schedule)
        assert encoder.max_updates == cfg.SOLVER.MAX_ITER
    queues = [tuple(module.keys.shape) for module in model.modules() if isinstance(module, KeyQueue)]
    assert queues == [(128, 65536)] * {"MoCo": 1, "DenseCL": 2}.get(cfg.MODEL.META_ARCHITECTURE, 0)


def test_statistics_of_all_processes_are_used_where_published(name, cfg, model):
    kinds = {type(module).__name__ for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {
        "mocov3_vit_small_p16_300e": {"SyncBatchNorm1d"},  # a transformer has no other
        "mocov3_r50_100e": {"SyncBatchNorm", "SyncBatchNorm1d"},
        "simclr_r50_200e": {"SyncBatchNorm", "SyncBatchNorm1d"},
        "npid_r50_200e": {"SyncBatchNorm"},
    }.get(name, {"BatchNorm2d"})
    starts_without_branches = name == "simclr_r50_200e"
    assert cfg.MODEL.RESNETS.ZERO_INIT_RESIDUAL is starts_without_branches


def test_optimizer_is_the_published_one(name, cfg, model):
    kind, batch, _, _, _, decay, decay_of_the_rest = TRAINING[name]
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer).__name__ == kind
    assert batch == cfg.SOLVER.IMS_PER_BATCH
    expected = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_weight = parameter.dim() > 1 and parameter is not getattr(model.backbone, "cls_token", None)
            expected[parameter] = decay if is_weight else decay_of_the_rest
    assert {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]} == expected


def test_schedule_is_the_published_one(name, cfg):
    _, batch, rate, warmup_epochs, epochs, *_ = TRAINING[name]
    iters_per_epoch = NUM_IMAGES // batch
    assert warmup_epochs * iters_per_epoch == cfg.SOLVER.WARMUP_ITERS
    assert epochs * iters_per_epoch == cfg.SOLVER.MAX_ITER
    scheduler = build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], cfg.SOLVER.BASE_LR))
    for part, factor in {0: 1, **SCHEDULES[name]}.items():
        scheduler.last_epoch = round(iters_per_epoch * (warmup_epochs + part * (epochs - warmup_epochs)))
        assert scheduler.get_lr()[0] == pytest.approx(rate * factor, rel=1e-3)
