import pytest
import torch
from torch import nn

from detlib.config import get_cfg
from detlib.solver import build_lr_scheduler, build_optimizer
from detlib.utils.errors import ConfigError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 8.0
    return cfg


@pytest.fixture
def model():
    """A backbone with a normalisation, and a head."""
    backbone = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    return nn.ModuleDict({"backbone": backbone, "head": nn.Linear(1, 1)})


def built(cfg, model, *entries):
    cfg.SOLVER.PARAM_OPTIONS = list(entries)
    return build_optimizer(cfg, model)


def option(model, optimizer, key):
    """Parameter name -> an option of its group."""
    values = {param: group.get(key) for group in optimizer.param_groups for param in group["params"]}
    return {name: values[param] for name, param in model.named_parameters() if param in values}


def test_factor_multiplies_the_rate_of_matching_parameters_alone(cfg, model):
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    rates = option(model, built(cfg, model, {"PARAMS": r"^head\.", "LR_FACTOR": 5.0}), "lr")
    assert rates == {
        "backbone.0.weight": 8,
        "backbone.0.bias": 16,
        "backbone.1.weight": 8,
        "backbone.1.bias": 16,
        "head.weight": 40,
        "head.bias": 80,
    }


def test_max_ndim_1_takes_biases_and_scales_of_normalisation(cfg, model):
    rates = option(model, built(cfg, model, {"PARAMS": ".", "MAX_NDIM": 1, "LR_FACTOR": 0.5}), "lr")
    assert {name for name, rate in rates.items() if rate == 8} == {"backbone.0.weight", "head.weight"}
    assert set(rates.values()) == {4, 8}


def test_decay_and_momentum_replace_those_of_the_config(cfg, model):
    cfg.SOLVER.NO_WEIGHT_DECAY = ["weight"]
    optimizer = built(cfg, model, {"PARAMS": r"^head\.", "WEIGHT_DECAY": 0.5, "MOMENTUM": 0})
    decay, momentum = (option(model, optimizer, key) for key in ("weight_decay", "momentum"))
    assert decay["head.weight"] == decay["head.bias"] == 0.5 and decay["backbone.0.weight"] == 0
    assert momentum["head.weight"] == momentum["head.bias"] == 0 and momentum["backbone.0.weight"] == 0.9


@pytest.mark.parametrize("name", ["SGD", "LARS"])
def test_momentum_0_of_a_part_forgets_the_gradients_before(cfg, model, name):
    cfg.SOLVER.OPTIMIZER = name
    optimizer = built(cfg, model, {"PARAMS": r"^head\.bias", "MOMENTUM": 0.0, "WEIGHT_DECAY": 0.0})
    bias = model["head"].bias
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    bias.grad.zero_()
    before = bias.item()
    optimizer.step()
    assert bias.item() == before


def test_later_entries_replace_the_same_option_and_keep_the_others(cfg, model):
    first = {"PARAMS": r"^head\.", "LR_FACTOR": 5.0, "WEIGHT_DECAY": 0.5}
    optimizer = built(cfg, model, first, {"PARAMS": r"\.bias$", "LR_FACTOR": 2.0})
    rates, decay = (option(model, optimizer, key) for key in ("lr", "weight_decay"))
    assert (rates["head.weight"], rates["head.bias"], rates["backbone.0.bias"]) == (40, 16, 16)
    assert decay["head.bias"] == 0.5


def test_factor_multiplies_that_of_the_module(cfg, model):
    model.lr_factors = {"head.": 0.25}
    assert option(model, built(cfg, model, {"PARAMS": "head", "LR_FACTOR": 2.0}), "lr")["head.bias"] == 8 * 0.25 * 2


def test_parameters_with_equal_options_share_a_group(cfg, model):
    optimizer = built(cfg, model, {"PARAMS": r"^head\.", "FIXED_LR": True})
    assert [len(group["params"]) for group in optimizer.param_groups if group.get("fixed_lr")] == [2]


def test_names_have_no_prefix_of_a_wrapper(cfg, model):
    wrapped = nn.DataParallel(model)
    rates = option(wrapped, built(cfg, wrapped, {"PARAMS": r"^head\.", "LR_FACTOR": 0.5}), "lr")
    assert rates["module.head.weight"] == 4 and rates["module.backbone.0.weight"] == 8


def test_frozen_parameters_may_be_named(cfg, model):
    model["head"].requires_grad_(False)
    assert len(option(model, built(cfg, model, {"PARAMS": "head", "MOMENTUM": 0.0}), "lr")) == 4


def test_one_mapping_stands_for_a_list(cfg, model, tmp_path):
    (tmp_path / "a.yaml").write_text("SOLVER: {PARAM_OPTIONS: {PARAMS: head, LR_FACTOR: 2}}")
    cfg.merge_from_file(tmp_path / "a.yaml")
    assert option(model, build_optimizer(cfg, model), "lr")["head.weight"] == 16


def schedule(cfg, optimizer):
    cfg.merge_from_list(["SOLVER.MAX_ITER", 4, "SOLVER.STEPS", (2,), "SOLVER.WARMUP_ITERS", 1])
    return build_lr_scheduler(cfg, optimizer)


def test_fixed_rate_is_kept_out_of_warmup_and_schedule(cfg, model):
    optimizer = built(cfg, model, {"PARAMS": r"^head\.", "FIXED_LR": True, "LR_FACTOR": 0.5})
    scheduler = schedule(cfg, optimizer)
    fixed, scheduled = [], []
    for _ in range(4):
        rates = option(model, optimizer, "lr")
        fixed.append(rates["head.weight"])
        scheduled.append(rates["backbone.0.weight"])
        optimizer.step()
        scheduler.step()
    assert fixed == [4.0] * 4
    assert scheduled == pytest.approx([0.008, 8, 0.8, 0.8])


def test_fixed_rate_stays_fixed_after_resuming(cfg, model):
    entry = {"PARAMS": r"^head\.", "FIXED_LR": True}
    optimizer = built(cfg, model, entry)
    scheduler = schedule(cfg, optimizer)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    resumed = built(cfg, model, entry)
    resumed_scheduler = schedule(cfg, resumed)
    resumed.load_state_dict(optimizer.state_dict())
    resumed_scheduler.load_state_dict(scheduler.state_dict())
    resumed.step()
    resumed_scheduler.step()
    rates = option(model, resumed, "lr")
    assert rates["head.weight"] == 8
    assert rates["backbone.0.weight"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"PARAMS": r"^heads\.", "LR_FACTOR": 2.0}, r"no parameter matches PARAMS .*; close names are head"),
        ({"PARAMS": "xyz", "LR_FACTOR": 2.0}, "names start with backbone, head"),
        ({"PARAMS": r"weight", "MAX_NDIM": 0, "LR_FACTOR": 2.0}, "none has MAX_NDIM 0"),
        ({"PARAMS": "(", "LR_FACTOR": 2.0}, "no regular expression"),
        ({"PARAMS": "head"}, "needs PARAMS and one or more of LR_FACTOR"),
        ({"LR_FACTOR": 2.0}, "has LR_FACTOR; it needs PARAMS"),
        ({"PARAMS": "head", "LR": 2.0}, "unknown key 'LR'"),
        ({"PARAMS": "head", "LR_FACTOR": -1}, "LR_FACTOR is -1; it must be a number of at least 0"),
        ({"PARAMS": "head", "FIXED_LR": 1}, "FIXED_LR is 1; it must be true or false"),
        ("head", "is 'head'; it must be a mapping"),
    ],
)
def test_unusable_entries_are_refused(cfg, model, entry, message):
    with pytest.raises(ConfigError, match=rf"PARAM_OPTIONS\[0\].*{message}"):
        built(cfg, model, entry)


def test_errors_name_the_line_of_the_config(cfg, model, tmp_path):
    (tmp_path / "a.yaml").write_text("SOLVER:\n  PARAM_OPTIONS:\n    - {PARAMS: nose, LR_FACTOR: 2.0}\n")
    cfg.merge_from_file(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"a.yaml:3: SOLVER.PARAM_OPTIONS\[0\]: no parameter matches PARAMS 'nose'"):
        build_optimizer(cfg, model)


def test_momentum_of_adamw_is_refused(cfg, model):
    cfg.SOLVER.OPTIMIZER = "AdamW"
    with pytest.raises(ConfigError, match="AdamW has no MOMENTUM"):
        built(cfg, model, {"PARAMS": "head", "MOMENTUM": 0.0})
