import pytest
import torch
from torch import nn

from detlib.modeling import build_model
from detlib.modeling.self_supervised.momentum import MomentumEncoder
from detlib.solver import build_optimizer
from detlib.utils.errors import ConfigError


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return {"map": self.norm(x)}


def linear(value):
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, 10 * value)
    return layer


def test_first_update_copies_as_the_network_may_have_got_weights_since():
    encoder = MomentumEncoder(linear(2.0), linear(1.0), momentum=0.999)
    encoder.update(linear(5.0), linear(0.3))
    assert torch.equal(encoder.backbone.weight, linear(5.0).weight)
    assert torch.equal(encoder.neck.bias, linear(0.3).bias)
    assert encoder.num_updates == 1


def test_first_update_after_a_checkpoint_is_no_copy():
    encoder = MomentumEncoder(linear(0.0), None, momentum=0.5)
    encoder.load_state_dict(encoder.state_dict() | {"num_updates": torch.tensor(1)})
    encoder.update(linear(8.0), None)
    assert encoder.backbone.weight.item() == 4.0


def test_parameters_move_by_the_rest_of_the_momentum():
    encoder = MomentumEncoder(linear(2.0), None, momentum=0.999)
    encoder.follows = True
    encoder.update(linear(5.0), None)
    # 0.999 * 2 + 0.001 * 5, and ten times that for the bias
    assert encoder.backbone.weight.item() == pytest.approx(2.003, rel=1e-6)
    assert encoder.backbone.bias.item() == pytest.approx(20.03, rel=1e-6)


def test_neck_moves_along():
    encoder = MomentumEncoder(linear(0.0), linear(0.0), momentum=0.75)
    encoder.follows = True
    encoder.update(linear(4.0), linear(8.0))
    assert (encoder.backbone.weight.item(), encoder.neck.weight.item()) == (1.0, 2.0)


def test_copy_of_equal_networks_stays_equal_to_the_last_bit():
    online = nn.Linear(50, 50)
    encoder = MomentumEncoder(online, None, momentum=0.99, schedule="cosine", max_updates=7)
    for _ in range(3):
        encoder.update(online, None)
    assert torch.equal(encoder.backbone.weight, online.weight)


@pytest.mark.parametrize(
    ("num_updates", "momentum"),
    # cos(0) = 1, cos(pi / 3) = 1 / 2, cos(pi / 2) = 0, cos(pi) = -1
    [(0, 0.996), (20, 0.997), (30, 0.998), (60, 1.0), (99, 1.0)],
)
def test_cosine_goes_from_the_momentum_to_1(num_updates, momentum):
    encoder = MomentumEncoder(linear(0.0), None, momentum=0.996, schedule="cosine", max_updates=60)
    encoder.num_updates.fill_(num_updates)
    assert float(encoder.current_momentum) == pytest.approx(momentum, abs=1e-6)


def test_update_keeps_the_share_that_the_cosine_says():
    encoder = MomentumEncoder(linear(0.0), None, momentum=0.5, schedule="cosine", max_updates=4)
    encoder.load_state_dict(encoder.state_dict() | {"num_updates": torch.tensor(2)})  # half-way: 0.75
    encoder.update(linear(8.0), None)
    assert encoder.backbone.weight.item() == pytest.approx(2.0)
    assert encoder.num_updates == 3


def test_constant_momentum_is_constant():
    encoder = MomentumEncoder(linear(0.0), None, momentum=0.9)
    encoder.num_updates.fill_(1000)
    assert encoder.current_momentum == 0.9


def test_schedule_goes_on_from_the_checkpoint():
    def encoder():
        return MomentumEncoder(linear(0.0), None, momentum=0.5, schedule="cosine", max_updates=4)

    first, second = encoder(), encoder()
    for _ in range(2):
        first.update(linear(1.0), None)
    second.load_state_dict(first.state_dict())
    assert second.num_updates == 2
    assert float(second.current_momentum) == pytest.approx(0.75)


def test_buffers_are_those_of_its_own_batches():
    online = Backbone()
    encoder = MomentumEncoder(online, None)
    online(torch.full((2, 3, 1, 1), 7.0))
    encoder.update(online, None)
    assert encoder.backbone.norm.running_mean.tolist() == [0, 0, 0]
    encoder(torch.full((2, 3, 1, 1), 20.0), "map")
    torch.testing.assert_close(encoder.backbone.norm.running_mean, torch.full((3,), 2.0))  # a tenth of 20
    torch.testing.assert_close(online.norm.running_mean, torch.full((3,), 0.7))


def test_output_has_no_gradient_and_comes_from_the_neck_if_there_is_one():
    images = torch.randn(2, 3, 2, 2, requires_grad=True)
    assert MomentumEncoder(Backbone(), None)(images, "map").shape == (2, 3, 2, 2)
    embeddings = MomentumEncoder(Backbone(), nn.Flatten())(images, "map")
    assert embeddings.shape == (2, 12)
    assert not embeddings.requires_grad


def test_evaluation_mode_moves_nothing():
    encoder = MomentumEncoder(linear(2.0), None, momentum=0.5).eval()
    encoder.update(linear(4.0), None)
    assert (encoder.backbone.weight.item(), encoder.num_updates.item()) == (2.0, 0)


def test_parts_follow_the_mode_of_the_model():
    encoder = MomentumEncoder(Backbone(), None)
    assert encoder.train().backbone.norm.training
    assert not encoder.eval().backbone.norm.training


def test_optimizer_does_not_know_it(ssl_cfg):
    cfg = ssl_cfg(
        "MoCo",
        NECK={"NAME": "LinearNeck", "OUT_CHANNELS": 4},
        HEAD={"NAME": "ContrastiveHead"},
        QUEUE_LEN=8,
    )
    model = build_model(cfg)
    optimized = {p for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    assert optimized == {*model.backbone.parameters(), *model.neck.parameters()}
    assert not any(p.requires_grad for p in model.encoder_k.parameters())
    assert len(list(model.encoder_k.parameters())) == len(optimized)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"schedule": "linear"}, "MOMENTUM_SCHEDULE is 'linear'; it must be one of constant, cosine"),
        ({"momentum": 1.5}, r"MODEL.SSL.MOMENTUM is 1.5; it must be in \[0, 1\]"),
        ({"schedule": "cosine"}, "SOLVER.MAX_ITER must be 1 or more"),
    ],
)
def test_schedule_that_makes_no_sense_is_an_error(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        MomentumEncoder(linear(0.0), None, **kwargs)
