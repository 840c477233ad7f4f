import math

import pytest
import torch
from torch.nn import functional as F

from detlib.modeling import build_model
from detlib.modeling.self_supervised import ContrastiveHead, KeyQueue
from detlib.utils.errors import ConfigError


@pytest.fixture
def moco(ssl_cfg):
    def make(queue_len=8, temperature=0.2):
        torch.manual_seed(0)
        cfg = ssl_cfg(
            "MoCo",
            NECK={"NAME": "MoCoV2Neck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8},
            HEAD={"NAME": "ContrastiveHead", "TEMPERATURE": temperature},
            QUEUE_LEN=queue_len,
        )
        return build_model(cfg)

    return make


def test_loss_is_that_of_queries_against_the_keys_and_the_queue_of_before(moco, samples):
    model, batch = moco(), samples(4)
    views = model.preprocess_views(batch)
    # Equal networks: no update changes the copy, and batch statistics do not depend on the order of the images.
    queries, keys = (F.normalize(model.neck(model.feature_map(view)), dim=1) for view in views)
    logits = torch.cat([(queries * keys).sum(dim=1, keepdim=True), queries @ model.queue.keys], dim=1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(model(batch), {"loss": expected})


def test_one_step_enqueues_the_keys_of_the_second_view(moco, samples):
    model, batch = moco(), samples(4)
    before = model.queue.keys.clone()
    keys = F.normalize(model.neck(model.feature_map(model.preprocess_views(batch)[1])), dim=1)
    model(batch)
    torch.testing.assert_close(model.queue.keys[:, :4], keys.T)
    assert torch.equal(model.queue.keys[:, 4:], before[:, 4:])
    assert model.queue.pointer == 4


def test_pointer_wraps(moco, samples):
    model = moco(queue_len=8)
    for _ in range(3):
        model(samples(4))
    assert model.queue.pointer == 4


def test_queue_that_batches_do_not_divide_is_an_error(moco, samples):
    with pytest.raises(ConfigError, match=r"MODEL.SSL.QUEUE_LEN is 6; it must be a multiple of the 4 images"):
        moco(queue_len=6)(samples(4))


def test_first_loss_of_random_data_is_near_the_log_of_the_queue():
    torch.manual_seed(0)
    queries = F.normalize(torch.randn(4, 8), dim=1)
    similarities = KeyQueue(65536, 8).similarities(queries)
    loss = ContrastiveHead(temperature=50.0)(torch.zeros(4, 1), similarities)
    assert loss.item() == pytest.approx(math.log(65537), abs=0.01)  # 11.09


def test_momentum_encoder_moves_before_the_keys_are_made(moco, samples):
    model, batch = moco(), samples(4)
    with torch.no_grad():
        model.neck.mlp[2].weight.fill_(5.0)
        model.encoder_k.neck.mlp[2].weight.fill_(2.0)
    model.encoder_k.follows = True
    model(batch)
    torch.testing.assert_close(model.encoder_k.neck.mlp[2].weight, torch.full((8, 16), 2.003))  # 0.999 * 2 + 0.001 * 5
    # All 8 channels of a key are alike but for the bias, so they can be told from those of an encoder not yet moved.
    model.encoder_k.momentum = 1.0
    keys = model.encode_keys(model.preprocess_views(batch)[1])
    torch.testing.assert_close(model.queue.keys[:, :4], keys.T)


def test_gradient_reaches_the_network_and_not_its_copy(moco, samples):
    model = moco()
    model(samples(4))["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in [*model.backbone.parameters(), *model.neck.parameters()])
    assert all(p.grad is None for p in model.encoder_k.parameters())


def test_evaluation_mode_measures_the_loss_and_changes_nothing(moco, samples):
    model = moco().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert model(samples(4), mode="loss")["loss"] > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_is_predicted(moco, samples):
    with pytest.raises(NotImplementedError, match="MoCo predicts nothing"):
        moco()(samples(4), mode="predict")
