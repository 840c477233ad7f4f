import pytest
import torch

from detlib.modeling import build_model
from detlib.modeling.meta_arch.dense_detector import permute_to_N_HWA_K


def test_permute_to_N_HWA_K_keeps_anchors_of_one_cell_together():
    x = torch.arange(8.0).view(1, 4, 1, 2)  # (N=1, A*K=4, H=1, W=2): A = 2, K = 2
    expected = torch.tensor([[[0.0, 2.0], [4.0, 6.0], [1.0, 3.0], [5.0, 7.0]]])  # cell 0, then cell 1
    torch.testing.assert_close(permute_to_N_HWA_K(x, 2), expected)


def test_permute_refuses_channels_that_are_no_multiple_of_K():
    with pytest.raises(ValueError, match=r"expected a shape \(N, A \* 3, H, W\), got \(1, 4, 1, 2\)"):
        permute_to_N_HWA_K(torch.zeros(1, 4, 1, 2), 3)


def test_moving_average_starts_from_the_initial_value(tiny_cfg):
    model = build_model(tiny_cfg)
    assert float(model._ema_update("average", torch.tensor(20.0), initial_value=10.0)) == pytest.approx(11.0)
    assert float(model._ema_update("average", torch.tensor(1.0), initial_value=10.0)) == pytest.approx(10.0)
    assert "average" not in model.state_dict()


def test_all_feature_maps_are_used_by_default(tiny_cfg):
    model = build_model(tiny_cfg)
    detector = type(model).__mro__[1](model.backbone, model.head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    assert detector.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
