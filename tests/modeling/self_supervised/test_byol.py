import pytest
import torch
from torch import nn

from detlib.modeling import build_model
from detlib.modeling.self_supervised import BYOL, LatentPredictHead

LOSS = {"NAME": "CosineSimilarityLoss", "SHIFT": 2.0, "SCALE": 2.0}


@pytest.fixture
def byol(ssl_cfg):
    torch.manual_seed(0)
    cfg = ssl_cfg(
        "BYOL",
        NECK={"NAME": "NonLinearNeck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8, "WITH_BIAS": True, "WITH_LAST_BN": False},
        HEAD={
            "NAME": "LatentPredictHead",
            "PREDICTOR": {"NAME": "NonLinearNeck", "HID_CHANNELS": 16, "WITH_BIAS": True, "WITH_LAST_BN": False},
        },
        LOSS=LOSS,
        MOMENTUM=0.996,
        MOMENTUM_SCHEDULE="cosine",
    )
    return build_model(cfg)


class Constant(nn.Module):
    """A network that makes the same of every image."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, images, in_feature=None):
        embeddings = self.values.expand(len(images), -1)
        return embeddings if in_feature else {"map": embeddings}

    def update(self, backbone, neck): ...


@pytest.mark.parametrize(
    ("target", "loss"),
    [((0.0, 5.0), 0.0), ((0.0, -2.0), 8.0), ((3.0, 0.0), 4.0)],  # the same direction, the opposite, at a right angle
)
def test_loss_of_both_directions_is_in_0_to_8(target, loss, samples):
    model = BYOL(
        preprocessor=nn.Identity(),
        backbone=Constant(0.0, 1.0),
        in_feature="map",
        neck=nn.Identity(),
        head=LatentPredictHead(nn.Identity(), in_channels=2, loss=LOSS),
        target_net=Constant(*target),
    )
    views = [torch.zeros(3, 3, 2, 2), torch.zeros(3, 3, 2, 2)]
    assert model.loss(views, [])["loss"].item() == pytest.approx(loss, abs=1e-6)


def loss_with_equal_networks(model, batch):
    online = [model.neck(model.feature_map(view)) for view in model.preprocess_views(batch)]
    predicted = [model.head.predictor(z) for z in online]
    cosines = [torch.cosine_similarity(predicted[i], online[1 - i]).mean() for i in (0, 1)]
    return {"loss": 4 - 2 * sum(cosines)}


def test_loss_is_that_of_predictions_against_the_other_view_in_the_target_network(byol, samples):
    batch = samples(4)
    torch.testing.assert_close(byol(batch), loss_with_equal_networks(byol, batch))  # as they are at first


def test_target_network_moves_before_it_makes_the_targets(byol, samples):
    batch = samples(4)
    byol.target_net.momentum = 0.0  # It becomes the online network at once.
    with torch.no_grad():
        for parameter in byol.neck.parameters():
            parameter += torch.randn_like(parameter)
    torch.testing.assert_close(byol(batch), loss_with_equal_networks(byol, batch))
    assert byol.target_net.num_updates == 1


def test_swapped_views_have_the_same_loss(byol, samples):
    batch = samples(4)
    swapped = [{"views": sample["views"][::-1]} for sample in batch]
    torch.testing.assert_close(byol(batch), byol(swapped))


def test_target_network_gets_no_gradient_and_all_else_does(byol, samples):
    byol(samples(4))["loss"].backward()
    assert all(p.grad is None for p in byol.target_net.parameters())
    learning = [*byol.backbone.parameters(), *byol.neck.parameters(), *byol.head.parameters()]
    assert all(p.grad is not None for p in learning)


def online_and_target(model):
    online = [*model.backbone.parameters(), *model.neck.parameters()]
    return zip(online, model.target_net.parameters(), strict=True)


def test_target_network_starts_as_a_copy_and_is_one_after_the_first_loss(byol, samples):
    assert all(torch.equal(online, target) for online, target in online_and_target(byol))
    byol(samples(4))
    assert all(torch.equal(online, target) for online, target in online_and_target(byol))


def test_target_network_has_no_predictor_and_uses_the_statistics_of_its_batches(byol, samples):
    assert not any("predictor" in name for name, _ in byol.target_net.named_parameters())
    before = byol.target_net.neck.mlp[1].running_mean.clone()
    byol.train()(samples(4))
    assert not torch.equal(byol.target_net.neck.mlp[1].running_mean, before)


def test_momentum_is_halfway_to_1_at_half_of_the_training(byol):
    byol.target_net.num_updates.fill_(50)  # of SOLVER.MAX_ITER 100
    assert float(byol.target_net.current_momentum) == pytest.approx(0.998)
