import math

import pytest
import torch
from torch.nn import functional as F

from detlib.modeling import build_model
from detlib.modeling.self_supervised import ContrastiveHead
from detlib.modeling.self_supervised.simclr import pair_similarities


def nt_xent(views1, views2, temperature=0.5):
    """Of embeddings (N, d) of both views."""
    embeddings = F.normalize(torch.stack([views1, views2], dim=1).flatten(0, 1), dim=1)
    return ContrastiveHead(temperature)(*pair_similarities(embeddings))


def nt_xent_of_stacked_views(views1, views2, temperature=0.5):
    """The same from the definition: first all first views, then all second ones."""
    z = F.normalize(torch.cat([views1, views2]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    n = len(views1)
    return F.cross_entropy(logits, torch.cat([torch.arange(n) + n, torch.arange(n)]))


def views(n, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("n", [2, 5])
def test_interleaved_and_stacked_views_have_one_loss(n):
    torch.testing.assert_close(nt_xent(*views(n)), nt_xent_of_stacked_views(*views(n)))


def test_negatives_are_all_rows_but_the_own_and_the_other_view():
    # Six different directions, all of whose similarities are different numbers.
    angles = torch.tensor([0.0, 0.1, 0.3, 0.7, 1.2, 2.0])
    z = torch.stack([angles.cos(), angles.sin()], dim=1)
    positive, negative = pair_similarities(z)
    everything = z @ z.T
    pairs = [1, 0, 3, 2, 5, 4]
    torch.testing.assert_close(positive[:, 0], everything[range(6), pairs])
    for row in range(6):
        others = [column for column in range(6) if column not in (row, pairs[row])]
        torch.testing.assert_close(negative[row].sort().values, everything[row, others].sort().values)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equal_embeddings_have_the_log_of_all_other_rows(temperature):
    same = torch.ones(4, 3)
    assert nt_xent(same, same, temperature).item() == pytest.approx(math.log(2 * 4 - 1), rel=1e-6)


def test_neither_order_of_images_nor_of_views_matters():
    first, second = views(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    expected = nt_xent(first, second)
    torch.testing.assert_close(nt_xent(first[order], second[order]), expected)
    torch.testing.assert_close(nt_xent(second, first), expected)


def test_one_image_has_nothing_to_be_told_from():
    assert nt_xent(*views(1)) == 0


def test_aligned_views_of_distinct_images_reach_0_as_the_temperature_falls():
    z, _ = views(4)
    losses = [nt_xent(z, z, temperature).item() for temperature in (1.0, 0.1, 0.01)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 1e-6


def test_model_sends_both_views_through_the_network_at_once(ssl_cfg, samples):
    cfg = ssl_cfg(
        "SimCLR",
        NECK={"NAME": "NonLinearNeck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8},
        HEAD={"NAME": "ContrastiveHead", "TEMPERATURE": 0.5},
    )
    torch.manual_seed(0)
    model, batch = build_model(cfg), samples(4)
    embeddings = model.neck(model.feature_map(torch.cat(model.preprocess_views(batch))))  # the views stacked
    torch.testing.assert_close(model(batch), {"loss": nt_xent_of_stacked_views(*embeddings.chunk(2))})
