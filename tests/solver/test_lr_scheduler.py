import math

import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from detlib.solver import LRMultiplier, WarmupCosineLR, WarmupMultiStepLR, WarmupParamScheduler
from detlib.solver.lr_scheduler import _get_warmup_factor_at_iter


def rates(optimizer, scheduler, num_iter):
    """The rate before each iteration, and the one after the last."""
    seen = []
    for _ in range(num_iter):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5.0)


def test_multi_step_multiplier_warms_up_to_the_base_rate_and_decays_at_milestones(optimizer):
    steps = MultiStepParamScheduler(values=[1, 0.1, 0.01], milestones=[10, 15], num_updates=20)
    scheduler = LRMultiplier(optimizer, WarmupParamScheduler(steps, 0.2, 4 / 20), max_iter=20)
    expected = [1.0, 2.0, 3.0, 4.0] + [5.0] * 6 + [0.5] * 5 + [0.05] * 6
    assert rates(optimizer, scheduler, 20) == pytest.approx(expected)


def test_linear_warmup_ends_on_the_cosine_at_that_point(optimizer):
    warmup = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.0, 0.5)
    lr = rates(optimizer, LRMultiplier(optimizer, warmup, max_iter=8), 8)
    # Half way the cosine is at 0.5, so the warm-up rises to 2.5 in 4 iterations.
    assert lr[:5] == pytest.approx([0, 0.625, 1.25, 1.875, 2.5])
    assert lr[5:] == pytest.approx([2.5 * (1 + math.cos(math.pi * i / 8)) for i in (5, 6, 7, 8)])


def test_rescaled_schedule_starts_after_the_warmup(optimizer):
    warmup = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.5, "constant", rescale_interval=True)
    lr = rates(optimizer, LRMultiplier(optimizer, warmup, max_iter=4), 4)
    assert lr == pytest.approx([0.5, 0.5, 5.0, 2.5, 0.0], abs=1e-6)


def test_rescaled_cosine_is_at_the_base_after_the_warmup_and_at_half_of_it_midway(optimizer):
    warmup = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 10 / 110, "linear", rescale_interval=True)
    lr = rates(optimizer, LRMultiplier(optimizer, warmup, max_iter=110), 110)
    # The warm-up is a straight line to the base rate itself, from 0.5 over 2.75.
    assert [lr[t] for t in (0, 5, 10, 60, 110)] == pytest.approx([0.5, 2.75, 5.0, 2.5, 0.0])


def test_multiplier_resumes_where_its_state_was_saved(optimizer):
    def build():
        return LRMultiplier(optimizer, CosineParamScheduler(1, 0), max_iter=10)

    first = build()
    rates(optimizer, first, 4)
    state = first.state_dict()
    second = build()
    second.load_state_dict(state)
    assert set(state) == {"base_lrs", "last_epoch"}
    assert second.get_lr() == first.get_lr() == [2.5 * (1 + math.cos(math.pi * 0.4))]


def test_multiplier_refuses_what_is_no_schedule(optimizer):
    with pytest.raises(TypeError, match="float"):
        LRMultiplier(optimizer, 0.5, max_iter=10)


def test_warmup_multi_step_lr(optimizer):
    scheduler = WarmupMultiStepLR(optimizer, [4, 6], gamma=0.1, warmup_factor=0.5, warmup_iters=2)
    assert rates(optimizer, scheduler, 6) == pytest.approx([2.5, 3.75, 5, 5, 0.5, 0.5, 0.05])


def test_warmup_multi_step_lr_refuses_falling_milestones(optimizer):
    with pytest.raises(ValueError, match=r"\[6, 4\]"):
        WarmupMultiStepLR(optimizer, [6, 4])


def test_warmup_cosine_lr_multiplies_warmup_and_cosine(optimizer):
    scheduler = WarmupCosineLR(optimizer, 4, warmup_factor=0.5, warmup_iters=2)
    cosine = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(5)]
    expected = [5 * w * c for w, c in zip([0.5, 0.75, 1, 1, 1], cosine, strict=True)]
    assert rates(optimizer, scheduler, 4) == pytest.approx(expected)


def test_warmup_factors():
    assert _get_warmup_factor_at_iter("linear", 5, 10, 0.2) == pytest.approx(0.6)
    assert _get_warmup_factor_at_iter("constant", 5, 10, 0.2) == 0.2
    assert _get_warmup_factor_at_iter("constant", 10, 10, 0.2) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: _get_warmup_factor_at_iter("slow", 0, 2, 0.1),
        lambda: WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.5, "slow"),
    ],
)
def test_unknown_warmup_method_is_named(call):
    with pytest.raises(ValueError, match="'slow'"):
        call()
