import math

import pytest
import torch
from torch.nn import functional as F

from detlib.modeling import build_model
from detlib.modeling.self_supervised.swav import SwAVHead, SwAVLoss, sinkhorn
from detlib.solver import LARS
from detlib.utils.errors import ConfigError


def sinkhorn_of_the_paper(scores, epsilon, num_iters):
    """By scaling rows and columns of Q (K, B) in turn."""
    q = (scores / epsilon).exp().T
    q = q / q.sum()
    for _ in range(num_iters):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def cosines(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("num_iters", [1, 3])
def test_sinkhorn_scales_rows_and_columns_in_turn(num_iters):
    scores = cosines(7, 4)
    torch.testing.assert_close(sinkhorn(scores, 0.05, num_iters), sinkhorn_of_the_paper(scores, 0.05, num_iters))


def test_codes_of_a_sample_sum_to_1():
    torch.testing.assert_close(sinkhorn(cosines(7, 4), 0.05, 3).sum(dim=1), torch.ones(7))


def test_prototypes_are_used_alike_after_many_iterations():
    codes = sinkhorn(cosines(8, 4), 0.5, 100)
    torch.testing.assert_close(codes.sum(dim=0), torch.full((4,), 2.0))  # B / K


def test_equal_scores_give_equal_codes():
    torch.testing.assert_close(sinkhorn(torch.full((6, 5), 0.3), 0.05, 3), torch.full((6, 5), 0.2))


def test_sinkhorn_takes_scores_that_overflow_as_exponentials():
    codes = sinkhorn(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), 0.05, 3)
    torch.testing.assert_close(codes, torch.eye(2))


def test_samples_that_do_not_count_change_nothing():
    scores = cosines(9, 4)
    counts = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3, counts)[2:], sinkhorn(scores[2:], 0.05, 3))


def test_crops_have_codes_of_their_own():
    scores = cosines(6, 2, 4)
    together = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(together[:, 1], sinkhorn(scores[:, 1], 0.05, 3))


def test_uniform_codes_and_predictions_have_the_log_of_the_number_of_prototypes():
    loss = SwAVLoss()(torch.zeros(8, 3, 5), torch.full((2, 3, 5), 0.2))
    assert loss.item() == pytest.approx(math.log(5), rel=1e-6)


def test_loss_is_the_mean_over_code_crops_of_the_mean_over_the_other_crops():
    scores = cosines(3, 4, 5)
    codes = torch.stack([sinkhorn(scores[0], 0.05, 3), sinkhorn(scores[1], 0.05, 3)])

    def cross_entropy(code, crop):
        return F.cross_entropy(scores[crop] / 0.1, codes[code])

    of_first = (cross_entropy(0, 1) + cross_entropy(0, 2)) / 2
    of_second = (cross_entropy(1, 0) + cross_entropy(1, 2)) / 2
    torch.testing.assert_close(SwAVLoss(temperature=0.1)(scores, codes), (of_first + of_second) / 2)


def test_short_floats_are_computed_in_float32():
    scores = cosines(3, 4, 5).bfloat16()
    codes = sinkhorn(scores[0], 0.05, 3)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes, sinkhorn(scores[0].float(), 0.05, 3), rtol=0, atol=0)
    codes = codes.expand(2, -1, -1)
    torch.testing.assert_close(SwAVLoss()(scores, codes), SwAVLoss()(scores.float(), codes), rtol=0, atol=0)


def test_defaults_are_those_of_the_paper():
    swav = SwAVHead(3)
    assert (swav.prototypes.out_features, swav.epsilon, swav.sinkhorn_iters) == (3000, 0.05, 3)
    assert swav.loss_module.temperature == 0.1


def head(**kwargs):
    torch.manual_seed(0)
    return SwAVHead(in_channels=3, num_prototypes=4, **kwargs)


def embeddings(num_views=3, n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num_views, n, 3, generator=generator), dim=2)


def test_prototypes_have_length_1_after_a_loss():
    swav = head()
    swav(embeddings())
    torch.testing.assert_close(swav.prototypes.weight.norm(dim=1), torch.ones(4))
    assert swav.prototypes.bias is None


def test_codes_come_from_the_scores_of_the_first_two_crops_and_carry_no_gradient():
    swav, z = head(), embeddings().requires_grad_()
    swav.normalize_prototypes()
    codes = swav.codes(z[:2])
    assert not codes.requires_grad
    for crop in (0, 1):
        torch.testing.assert_close(codes[crop], sinkhorn(z[crop] @ swav.prototypes.weight.T, 0.05, 3))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: torch.optim.SGD(params, lr=0.5, momentum=0.9, weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1),
        lambda params: LARS(params, lr=50.0, weight_decay=0.1),
    ],
)
def test_frozen_prototypes_stay_for_their_steps_and_learn_then(optimizer):
    swav = head(freeze_iters=3)
    swav.normalize_prototypes()
    before = swav.prototypes.weight.detach().clone()
    steps = optimizer(swav.parameters())
    unchanged = []
    for seed in range(5):
        steps.zero_grad()
        swav(embeddings(seed=seed)).backward()
        steps.step()
        swav.normalize_prototypes()
        unchanged.append(torch.allclose(swav.prototypes.weight, before, atol=1e-6))
    assert unchanged == [True, True, True, False, False]


def test_frozen_prototypes_pass_the_gradient_on():
    z = embeddings().requires_grad_()
    swav = head(freeze_iters=1)
    swav(z).backward()
    frozen, z.grad = z.grad, None
    assert (swav.prototypes.weight.grad == 0).all()  # and not None, which DDP would wait for
    head()(z).backward()
    torch.testing.assert_close(frozen, z.grad)


def test_queue_takes_new_embeddings_at_the_front():
    swav = head(queue_len=4)
    batches = [embeddings(seed=seed) for seed in range(3)]
    for z in batches:
        swav(z)
    for crop in (0, 1):
        torch.testing.assert_close(swav.queue[:, crop], torch.cat([batches[2][crop], batches[1][crop]]))


def test_queue_is_used_once_it_is_full_and_has_started():
    swav = head(queue_len=4, queue_start=3)
    for step in range(5):
        swav.normalize_prototypes()
        z = embeddings(seed=step)
        queue, weight = swav.queue.clone(), swav.prototypes.weight
        codes = swav.codes(z[:2])
        swav.num_steps += 1
        samples = torch.cat([queue[:, 0], z[0]]) if step >= 3 else z[0]
        torch.testing.assert_close(codes[0], sinkhorn(samples @ weight.T, 0.05, 3)[-2:])


def test_queue_that_is_not_full_is_not_used():
    swav = head(queue_len=4)
    swav.normalize_prototypes()
    swav.codes(embeddings(seed=0)[:2])
    z = embeddings(seed=1)
    codes = swav.codes(z[:2])
    torch.testing.assert_close(codes[0], sinkhorn(z[0] @ swav.prototypes.weight.T, 0.05, 3))


def test_queue_is_rounded_down_to_whole_batches():
    swav = head(queue_len=5)
    for seed in range(3):
        swav(embeddings(seed=seed))
    assert swav.queue[:4].abs().sum(dim=(1, 2)).min() > 0
    assert (swav.queue[4:] == 0).all()
    too_short = head(queue_len=1)
    too_short(embeddings())
    assert (too_short.queue == 0).all()


def test_evaluation_mode_neither_enqueues_nor_counts():
    swav = head(queue_len=4).eval()
    swav(embeddings())
    assert (swav.queue == 0).all()
    assert swav.num_steps == 0


def test_queue_and_count_are_saved():
    swav, resumed = head(queue_len=4, queue_start=2, freeze_iters=1), head(queue_len=4, queue_start=2, freeze_iters=1)
    for seed in range(2):
        swav(embeddings(seed=seed))
    resumed.load_state_dict(swav.state_dict())
    torch.testing.assert_close(resumed(embeddings(seed=2)), swav(embeddings(seed=2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_prototypes": 1}, "MODEL.SSL.HEAD has NUM_PROTOTYPES 1, .*they must be at least 2"),
        ({"sinkhorn_iters": 0}, "SINKHORN_ITERS 0"),
        ({"queue_len": -4}, "QUEUE_LEN -4"),
        ({"epsilon": 0.0}, "EPSILON 0.0; .*the last above 0"),
        ({"loss": {"NAME": "SwAVLoss", "TEMPERATURE": 0.0}}, "MODEL.SSL.LOSS.TEMPERATURE is 0.0; it must be above 0"),
    ],
)
def test_options_that_make_no_sense_are_an_error(options, message):
    with pytest.raises(ConfigError, match=message):
        SwAVHead(3, **options)


@pytest.fixture
def swav_model(ssl_cfg):
    torch.manual_seed(0)
    neck = {"NAME": "SwAVNeck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8}
    return build_model(ssl_cfg("SwAV", NECK=neck, HEAD={"NAME": "SwAVHead", "NUM_PROTOTYPES": 12}))


def test_eight_crops_pass_the_backbone_twice_and_are_ordered_by_crop(swav_model, samples, monkeypatch):
    sizes = []
    monkeypatch.setattr(swav_model, "feature_map", lambda x: sizes.append(tuple(x.shape)) or x)
    batch = samples(3, sizes=[32] * 2 + [16] * 6)
    views = swav_model.preprocess_views(batch)
    pooled = swav_model.pooled_features(views)
    assert sizes == [(6, 3, 32, 32), (18, 3, 16, 16)]
    assert pooled.shape == (24, 3)
    for crop, view in enumerate(views):
        torch.testing.assert_close(pooled[crop * 3 : crop * 3 + 3], view.mean(dim=(2, 3)))


def test_gradient_reaches_all_parameters(swav_model, samples):
    loss = swav_model(samples(4, sizes=[32, 32, 16]))["loss"]
    loss.backward()
    assert all(p.grad is not None for p in swav_model.parameters())
    assert swav_model.head.prototypes.weight.grad.abs().sum() > 0
