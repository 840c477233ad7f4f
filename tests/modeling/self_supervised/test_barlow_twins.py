import pytest
import torch

from detlib.modeling import build_model
from detlib.modeling.self_supervised import CrossCorrelationLoss, LatentCrossCorrelationHead

# Each column has mean 0 and variance 1, and no two are correlated: those of a Hadamard matrix.
DECORRELATED = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]])


def loss(z1, z2):
    return LatentCrossCorrelationHead(z1.shape[1])(z1, z2)


def random_views(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 4, generator=generator) for _ in range(2)]


def test_loss_is_the_sum_over_the_diagonal_and_the_weighted_sum_beside_it():
    correlation = torch.tensor([[0.5, 0.1, 0.2], [0.3, 1.0, 0.4], [0.0, -0.5, -1.0]])
    # 0.25 + 0 + 4, and 0.01 * (0.01 + 0.04 + 0.09 + 0.16 + 0 + 0.25)
    assert CrossCorrelationLoss(0.01)(correlation).item() == pytest.approx(4.25 + 0.01 * 0.55, rel=1e-6)


def test_default_weight_is_that_of_the_paper():
    assert CrossCorrelationLoss().off_diagonal_weight == 0.0051


def test_equal_decorrelated_embeddings_have_no_loss():
    assert loss(DECORRELATED, DECORRELATED).item() == pytest.approx(0, abs=1e-9)  # 3e-10 is that of the norm's epsilon


def test_opposite_decorrelated_embeddings_have_four_for_each_channel():
    assert loss(DECORRELATED, -DECORRELATED).item() == pytest.approx(12, rel=1e-4)


def test_constant_embeddings_have_one_for_each_channel():
    assert loss(torch.full((4, 3), 2.0), torch.full((4, 3), 2.0)).item() == pytest.approx(3)


def test_views_may_be_swapped():
    z1, z2 = random_views()
    torch.testing.assert_close(loss(z1, z2), loss(z2, z1))


def test_scale_and_shift_of_a_channel_do_not_matter():
    z1, z2 = random_views()
    changed = z1 * torch.tensor([1.0, 5.0, 1.0, 0.5]) + torch.tensor([0.0, 0.0, 3.0, -1.0])
    torch.testing.assert_close(loss(changed, z2), loss(z1, z2), rtol=1e-4, atol=1e-4)


def test_order_of_the_images_does_not_matter():
    z1, z2 = random_views()
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    torch.testing.assert_close(loss(z1[order], z2[order]), loss(z1, z2))


def test_correlation_is_computed_in_float32_under_autocast():
    z1, z2 = random_views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = loss(z1, z2)
    torch.testing.assert_close(under_autocast, loss(z1, z2), rtol=1e-6, atol=0)


def test_correlation_of_short_floats_is_computed_in_float32():
    z1, z2 = (z.bfloat16() for z in random_views())
    torch.testing.assert_close(loss(z1, z2), loss(z1.float(), z2.float()), rtol=0, atol=0)


@pytest.fixture
def barlow_twins(ssl_cfg):
    torch.manual_seed(0)
    neck = {"NAME": "NonLinearNeck", "HID_CHANNELS": 96, "OUT_CHANNELS": 96, "NUM_LAYERS": 3, "WITH_LAST_BN": False}
    return build_model(ssl_cfg("BarlowTwins", NECK=neck, HEAD={"NAME": "LatentCrossCorrelationHead"}))


def test_model_compares_the_embeddings_of_both_views(barlow_twins, samples):
    batch = samples(4)
    z1, z2 = (barlow_twins.neck(barlow_twins.feature_map(view)) for view in barlow_twins.preprocess_views(batch))
    torch.testing.assert_close(barlow_twins(batch), {"loss": loss(z1, z2)})


def test_linear_layers_of_the_neck_start_he_uniform(barlow_twins):
    weight = barlow_twins.neck.mlp[3].weight  # of 96 inputs: up to sqrt(6 / 96) = 0.25, where torch's default has 0.102
    assert weight.abs().max() <= 0.25
    assert weight.abs().max() > 0.245


def test_gradient_reaches_all_layers(barlow_twins, samples):
    barlow_twins(samples(4))["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in barlow_twins.parameters())
