import math

import pytest
import torch
from torch.nn import functional as F

from detlib.modeling import build_model
from detlib.modeling.self_supervised import NCE, ContrastiveHead
from detlib.utils.errors import ConfigError, DatasetError


@pytest.fixture
def npid(ssl_cfg):
    def make(**ssl):
        torch.manual_seed(0)
        return build_model(
            ssl_cfg(
                "NPID",
                NECK={"NAME": "LinearNeck", "OUT_CHANNELS": 8},
                HEAD={"NAME": "ContrastiveHead", "TEMPERATURE": 0.07},
                MEMORY={"NAME": "SimpleMemory", "LENGTH": 6, "NUM_NEGATIVES": 5},
                **ssl,
            )
        )

    return make


def test_loss_of_a_remembered_image_among_unlike_ones_has_its_closed_form():
    loss = ContrastiveHead(0.2)(torch.ones(3, 1), torch.zeros(3, 1000))
    assert loss.item() == pytest.approx(math.log(1 + 1000 * math.exp(-5)), rel=1e-5)  # 2.046


def test_loss_is_that_of_the_bank_before_the_update(npid, samples):
    model, batch = npid(), samples(4)
    embeddings = F.normalize(model.neck(model.feature_map(model.preprocess_views(batch)[0])), dim=1)
    torch.manual_seed(1)
    negatives = model.memory_bank.draw_negatives(torch.arange(4))
    to_bank = embeddings @ model.memory_bank.features.T / 0.07
    logits = torch.cat([to_bank.gather(1, torch.arange(4)[:, None]), to_bank.gather(1, negatives)], dim=1)
    torch.manual_seed(1)
    expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(model(batch), {"loss": expected})


def test_step_changes_the_rows_of_its_samples_only(npid, samples):
    model, batch = npid(), samples(4)
    before = model.memory_bank.features.clone()
    embeddings = F.normalize(model.neck(model.feature_map(model.preprocess_views(batch)[0])), dim=1)
    for sample, index in zip(batch, (5, 0, 3, 2)):
        sample["sample_idx"] = index
    model(batch)
    after = model.memory_bank.features
    torch.testing.assert_close(after[[5, 0, 3, 2]], F.normalize(before[[5, 0, 3, 2]] + embeddings, dim=1))
    assert torch.equal(after[[1, 4]], before[[1, 4]])
    torch.testing.assert_close(after.norm(dim=1), torch.ones(6))


def test_gradient_reaches_network_and_not_the_bank(npid, samples):
    model = npid()
    model(samples(4))["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert not model.memory_bank.features.requires_grad


def test_memory_that_is_shorter_than_the_dataset_is_an_error(npid, samples):
    with pytest.raises(DatasetError, match=r"a sample_idx is 6, but MODEL.SSL.MEMORY remembers 6 samples"):
        npid()(samples(7))


def h(logit, normalizer, noise):
    return math.exp(logit) / normalizer / (math.exp(logit) / normalizer + noise)


def test_nce_estimates_z_from_the_first_batch_and_keeps_it():
    loss = NCE(num_samples=10)
    loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0]))
    z = 10 * (math.e + 1 + 1 / math.e) / 3
    assert loss.normalizer.item() == pytest.approx(z, rel=1e-6)
    loss(torch.tensor([[5.0, 5.0, 5.0]]), torch.tensor([0]))
    assert loss.normalizer.item() == pytest.approx(z, rel=1e-6)


def test_nce_asks_of_each_similarity_whether_it_is_of_the_data():
    loss = NCE(num_samples=10)
    loss.normalizer.fill_(4.0)
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 0.3]])
    noise = 2 / 10  # K / n
    expected = 0.0
    for positive, *negatives in logits.tolist():
        expected -= math.log(h(positive, 4, noise)) + sum(math.log(1 - h(x, 4, noise)) for x in negatives)
    assert loss(logits, torch.tensor([0, 0])).item() == pytest.approx(expected / 2, rel=1e-5)


def test_nce_that_is_only_measured_keeps_no_z():
    loss = NCE(num_samples=10).eval()
    assert loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).isfinite()
    assert loss.normalizer == 0


def test_nce_is_an_option_of_the_config_and_its_z_is_saved(npid, samples):
    model = npid(LOSS={"NAME": "NCE", "NUM_SAMPLES": 6})
    model(samples(4))["loss"].backward()
    assert model.state_dict()["head.loss_module.normalizer"] > 0


def test_nce_for_another_number_of_samples_than_are_remembered_is_an_error(npid):
    with pytest.raises(ConfigError, match=r"MODEL.SSL.LOSS.NUM_SAMPLES is 7, but MODEL.SSL.MEMORY remembers 6"):
        npid(LOSS={"NAME": "NCE", "NUM_SAMPLES": 7})
