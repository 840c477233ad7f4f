import copy

import pytest
import torch
from torch import nn

from detlib.config import get_cfg
from detlib.solver import LARS, build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detlib.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from detlib.utils.errors import ConfigError


@pytest.fixture
def cfg():
    return get_cfg()


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def by_name(model, groups):
    """Parameter name -> options of its group."""
    return {
        name: {k: v for k, v in group.items() if k != "params"}
        for name, param in model.named_parameters()
        for group in groups
        if any(param is member for member in group["params"])
    }


def test_norm_layers_and_biases_get_their_own_options(model):
    groups = get_default_optimizer_params(
        model, base_lr=1.0, weight_decay=0.1, weight_decay_norm=0.0, bias_lr_factor=2.0, weight_decay_bias=0.5
    )
    assert by_name(model, groups) == {
        "0.weight": {"lr": 1.0, "weight_decay": 0.1},
        "0.bias": {"lr": 2.0, "weight_decay": 0.5},
        "1.weight": {"lr": 1.0, "weight_decay": 0.0},
        "1.bias": {"lr": 2.0, "weight_decay": 0.5},
    }


def test_lr_factor_func_sees_full_names_and_overrides_come_last(model):
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        lr_factor_func=lambda name: 0.5 if name.startswith("0.") else 1.0,
        overrides={"bias": {"lr": 7.0}},
    )
    assert {name: options["lr"] for name, options in by_name(model, groups).items()} == {
        "0.weight": 0.5,
        "0.bias": 7.0,
        "1.weight": 1.0,
        "1.bias": 7.0,
    }


def test_frozen_parameters_are_left_out_and_shared_ones_come_once(model):
    model[0].weight.requires_grad_(False)
    shared = nn.Sequential(model, model)
    groups = get_default_optimizer_params(shared, base_lr=1.0)
    assert [len(group["params"]) for group in groups] == [3]


def test_factors_without_a_base_rate_are_refused(model):
    with pytest.raises(ValueError, match="base_lr"):
        get_default_optimizer_params(model, bias_lr_factor=2.0)
    with pytest.raises(ValueError, match="base_lr"):
        get_default_optimizer_params(model, lr_factor_func=lambda name: 1.0)


def test_reduce_param_groups_merges_equal_options_and_lets_later_ones_win():
    a, b, c = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    groups = [{"params": [a, b], "lr": 1}, {"params": c, "lr": 2}, {"params": [b], "lr": 2}]
    merged = reduce_param_groups(groups)
    assert [(group["lr"], len(group["params"])) for group in merged] == [(1, 1), (2, 2)]
    assert merged[0]["params"][0] is a


def test_optimizer_of_a_frozen_model_is_an_error_that_says_so(cfg, model):
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(cfg, model.requires_grad_(False))


def test_adamw_from_the_config(cfg, model):
    cfg.merge_from_list(["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BETAS", (0.8, 0.9), "SOLVER.WEIGHT_DECAY", 0.3])
    cfg.SOLVER.NO_WEIGHT_DECAY = ["bias"]
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is torch.optim.AdamW
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    decay = {name: options["weight_decay"] for name, options in by_name(model, optimizer.param_groups).items()}
    assert decay == {"0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}


def test_lars_from_the_config_has_momentum_and_decay_of_the_config(cfg, model):
    cfg.merge_from_list(["SOLVER.OPTIMIZER", "LARS", "SOLVER.MOMENTUM", 0.7, "SOLVER.WEIGHT_DECAY", 0.3])
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, LARS)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}
    decay = {name: options["weight_decay"] for name, options in by_name(model, optimizer.param_groups).items()}
    assert decay == {"0.weight": 0.3, "0.bias": 0.3, "1.weight": 0.0, "1.bias": 0.0}


def test_unknown_optimizer_is_named(cfg, model):
    cfg.SOLVER.OPTIMIZER = "Adam"
    with pytest.raises(ConfigError, match=r"'Adam'.*SGD, LARS or AdamW"):
        build_optimizer(cfg, model)


class Graded(nn.Module):
    """Layers "0" and "1", the first of which lies one deeper."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))

    def lr_factor(self, name, decay):
        return decay if name == "layers.0.weight" else 1.0


def test_layer_decay_asks_the_modules_that_know_their_depth(cfg):
    cfg.merge_from_list(["SOLVER.LAYER_DECAY", 0.5, "SOLVER.BASE_LR", 8.0])
    rates = {"layers.0.weight": 4.0, "layers.1.weight": 8.0}
    for prefix, model in (("", Graded()), ("net.", nn.ModuleDict({"net": Graded(), "head": nn.Linear(1, 1)}))):
        options = by_name(model, build_optimizer(cfg, model).param_groups)
        assert {name: options[prefix + name]["lr"] for name in rates} == rates
    assert options["head.weight"]["lr"] == 8.0


class Factored(nn.Module):
    """Two parts, the first of which is to learn slowly."""

    def __init__(self, factor=0.1):
        super().__init__()
        self.nodes = nn.ModuleDict({"body": Graded(), "head": nn.Linear(1, 1)})
        self.lr_factors = {"nodes.body.": factor}


def rates_of(model, optimizer):
    return {name: options["lr"] for name, options in by_name(model, optimizer.param_groups).items()}


def test_factor_of_a_part_multiplies_layer_decay_and_the_factor_of_biases(cfg):
    cfg.merge_from_list(["SOLVER.LAYER_DECAY", 0.5, "SOLVER.BASE_LR", 8.0, "SOLVER.BIAS_LR_FACTOR", 2.0])
    model = Factored(factor=0.25)
    model.nodes["body"].layers[1].bias = nn.Parameter(torch.zeros(1))
    assert rates_of(model, build_optimizer(cfg, model)) == {
        "nodes.body.layers.0.weight": 8 * 0.25 * 0.5,
        "nodes.body.layers.1.weight": 8 * 0.25,
        "nodes.body.layers.1.bias": 8 * 2 * 0.25,
        "nodes.head.weight": 8,
        "nodes.head.bias": 8 * 2,
    }


def test_factor_of_a_part_leaves_weight_decay_alone(cfg):
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY", 0.3, "SOLVER.WEIGHT_DECAY_BIAS", 0.2])
    cfg.SOLVER.NO_WEIGHT_DECAY = ["weight"]
    model = Factored()
    options = by_name(model, build_optimizer(cfg, model).param_groups)
    assert {name: values["weight_decay"] for name, values in options.items()} == {
        "nodes.body.layers.0.weight": 0.0,
        "nodes.body.layers.1.weight": 0.0,
        "nodes.head.weight": 0.0,
        "nodes.head.bias": 0.2,
    }


def test_factor_of_a_part_is_found_in_wrappers(cfg):
    cfg.SOLVER.BASE_LR = 8.0
    wrapped = nn.DataParallel(Factored(factor=0.25))
    assert rates_of(wrapped, build_optimizer(cfg, wrapped))["module.nodes.body.layers.0.weight"] == 2.0


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_part_with_factor_0_stays_as_it_is(cfg, optimizer):
    cfg.merge_from_list(["SOLVER.OPTIMIZER", optimizer, "SOLVER.BASE_LR", 1.0, "SOLVER.WEIGHT_DECAY", 0.1])
    model = Factored(factor=0.0)
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    build_optimizer(cfg, model).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"nodes.head.weight", "nodes.head.bias"}


def test_schedule_keeps_the_ratio_of_the_rates(cfg):
    cfg.merge_from_list(["SOLVER.BASE_LR", 1.0, "SOLVER.MAX_ITER", 4, "SOLVER.STEPS", (2,)])
    cfg.merge_from_list(["SOLVER.WARMUP_ITERS", 2, "SOLVER.WARMUP_FACTOR", 0.5])
    model = Factored(factor=0.25)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    ratios = []
    for _ in range(4):
        rates = rates_of(model, optimizer)
        ratios.append(rates["nodes.body.layers.0.weight"] / rates["nodes.head.weight"])
        optimizer.step()
        scheduler.step()
    assert ratios == pytest.approx([0.25] * 4)


def test_layer_decay_of_a_model_without_depth_is_refused(cfg, model):
    cfg.SOLVER.LAYER_DECAY = 0.5
    with pytest.raises(ConfigError, match=r"LAYER_DECAY is 0.5, but no part"):
        build_optimizer(cfg, model)


def clipped_gradients(cfg, clip_type, as_object=False):
    """Gradients of two parameters after a step: 3, 4 in the first, 12 in the second, limited to 1."""
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    if as_object:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD(params, lr=1.0))
    else:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(params, lr=1.0)
    params[0].grad, params[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    optimizer.step()
    return [-value for param in params for value in param.tolist()]


@pytest.mark.parametrize("as_object", [False, True])
def test_gradient_clipping(cfg, as_object):
    assert clipped_gradients(cfg, "value", as_object) == [1, 1, 1]
    assert clipped_gradients(cfg, "norm", as_object) == pytest.approx([0.6, 0.8, 1])
    # The norm of (3, 4, 12) is 13.
    assert clipped_gradients(cfg, "full_model", as_object) == pytest.approx([3 / 13, 4 / 13, 12 / 13])


def test_gradient_clipping_passes_over_parameters_without_gradient(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    params = [nn.Parameter(torch.zeros(1))]
    maybe_add_gradient_clipping(cfg, torch.optim.SGD)(params, lr=1.0).step()
    assert params[0].item() == 0


def test_clipping_optimizer_shares_its_state_with_a_plain_one(cfg, model):
    plain = build_optimizer(cfg, model)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    clipping = build_optimizer(cfg, copy.deepcopy(model))
    clipping.load_state_dict(plain.state_dict())
    assert isinstance(clipping, torch.optim.SGD)


def test_unknown_clip_type_is_named(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "some"
    with pytest.raises(ConfigError, match=r"'some'.*value, norm, full_model"):
        maybe_add_gradient_clipping(cfg, torch.optim.SGD)


def run_schedule(cfg, num_iter):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    seen = []
    for _ in range(num_iter):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_fixed_gamma_schedule_runs_to_its_end(cfg):
    cfg.merge_from_list(
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 0]
    )
    cfg.merge_from_list(["SOLVER.BASE_LR", 8.0, "SOLVER.GAMMA", 0.5, "SOLVER.NUM_DECAYS", 3])
    assert run_schedule(cfg, 4) == pytest.approx([8, 4, 2, 1])


def test_steps_from_max_iter_on_do_not_count(cfg):
    cfg.merge_from_list(["SOLVER.MAX_ITER", 4, "SOLVER.STEPS", (2, 4, 9), "SOLVER.WARMUP_ITERS", 0])
    cfg.SOLVER.BASE_LR = 1.0
    assert run_schedule(cfg, 4) == pytest.approx([1, 1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.LR_SCHEDULER_NAME", "Cosine"], "'Cosine'.*WarmupCosineLR"),
        (["SOLVER.STEPS", (200, 100)], "must rise"),
        (["SOLVER.MAX_ITER", 0], "MAX_ITER is 0"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1.0], "BASE_LR_END 1.0"),
        (["SOLVER.RESCALE_INTERVAL", True, "SOLVER.WARMUP_ITERS", 40000], "shorten the warm-up"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.MAX_ITER", 3], "NUM_DECAYS 3"),
    ],
)
def test_unusable_schedules_are_refused(cfg, overrides, message):
    cfg.merge_from_list(overrides)
    with pytest.raises(ConfigError, match=message):
        run_schedule(cfg, 1)
