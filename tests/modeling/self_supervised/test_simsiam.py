import pytest
import torch
from torch import nn

from detlib.modeling import build_model
from detlib.modeling.self_supervised import LatentPredictHead


@pytest.fixture
def simsiam(ssl_cfg):
    torch.manual_seed(0)
    predictor = {"NAME": "NonLinearNeck", "HID_CHANNELS": 4, "WITH_LAST_BIAS": True, "WITH_LAST_BN": False}
    cfg = ssl_cfg(
        "SimSiam",
        NECK={
            "NAME": "NonLinearNeck",
            "HID_CHANNELS": 16,
            "OUT_CHANNELS": 8,
            "NUM_LAYERS": 3,
            "WITH_LAST_BN_AFFINE": False,
        },
        HEAD={"NAME": "LatentPredictHead", "PREDICTOR": predictor},
    )
    return build_model(cfg)


def test_loss_is_half_of_both_directions(simsiam, samples):
    batch = samples(4)
    z = [simsiam.neck(simsiam.feature_map(view)) for view in simsiam.preprocess_views(batch)]
    p = [simsiam.head.predictor(embeddings) for embeddings in z]
    expected = -(torch.cosine_similarity(p[0], z[1]).mean() + torch.cosine_similarity(p[1], z[0]).mean()) / 2
    torch.testing.assert_close(simsiam(batch), {"loss": expected})


@pytest.mark.parametrize(("target", "loss"), [([0.0, 3.0], -1), ([2.0, 0.0], 0), ([0.0, -1.0], 1)])
def test_direction_is_minus_the_cosine(target, loss):
    head = LatentPredictHead(nn.Identity(), in_channels=2)
    assert head(torch.tensor([[0.0, 1.0]]), torch.tensor([target])).item() == pytest.approx(loss, abs=1e-6)


def test_swapped_views_have_the_same_loss(simsiam, samples):
    batch = samples(4)
    swapped = [{"views": sample["views"][::-1]} for sample in batch]
    torch.testing.assert_close(simsiam(batch), simsiam(swapped))


class Cut(nn.Module):
    def forward(self, x):
        return x.detach()


def test_targets_carry_no_gradient(simsiam, samples):
    simsiam.head.predictor = nn.Sequential(simsiam.head.predictor, Cut())
    assert not simsiam(samples(4))["loss"].requires_grad


def test_projector_has_no_bias_and_its_last_norm_no_parameters(simsiam):
    names = [name for name, _ in simsiam.neck.named_parameters()]
    assert names == [
        "mlp.0.weight",
        "mlp.1.weight",
        "mlp.1.bias",
        "mlp.3.weight",
        "mlp.4.weight",
        "mlp.4.bias",
        "mlp.6.weight",
    ]
    assert isinstance(simsiam.neck.mlp[7], nn.BatchNorm1d)
