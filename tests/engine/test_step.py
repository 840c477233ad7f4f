import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from detlib.data import build_detection_train_loader
from detlib.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer
from detlib.engine.step import step_options
from detlib.modeling import build_model
from detlib.modeling.self_supervised.momentum import MomentumEncoder
from detlib.utils.accumulation import is_first_part, is_last_part
from detlib.utils.errors import ConfigError

from .toy import Batches, KeepStorage, ToyModel, toy_trainer


class MeanModel(nn.Module):
    """The loss is the mean over the images of the batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, batch):
        return {"loss": self.layer(torch.stack([sample["x"] for sample in batch])).square().mean()}


def samples(num):
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(3, generator=generator)} for _ in range(num)]


def train_mean_model(batches, steps=1, trainer_class=SimpleTrainer, model=None, num_iter=3, **kwargs):
    torch.manual_seed(0)
    model = model or MeanModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = trainer_class(model, itertools.cycle(batches), optimizer, accumulation_steps=steps, **kwargs)
    trainer.train(0, num_iter)
    return model


def test_step_of_parts_is_that_of_the_joint_batch():
    batch = samples(8)
    joint = train_mean_model([batch])
    parts = train_mean_model([batch[:2], batch[2:4], batch[4:6], batch[6:]], steps=4)
    torch.testing.assert_close(parts.layer.weight, joint.layer.weight)
    torch.testing.assert_close(parts.layer.weight.grad, joint.layer.weight.grad)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_mixed_precision_takes_parts_too(precision):
    batch = samples(4)
    joint = train_mean_model([batch], trainer_class=AMPTrainer, precision=precision)
    parts = train_mean_model([batch[:2], batch[2:]], steps=2, trainer_class=AMPTrainer, precision=precision)
    torch.testing.assert_close(parts.layer.weight, joint.layer.weight, rtol=0.02, atol=0.002)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_metrics_are_means_over_the_parts_one_for_each_step(asynchronous):
    trainer, keep = toy_trainer(1, 3, lr=0.25, accumulation_steps=2, async_write_metrics=asynchronous), KeepStorage()
    trainer.register_hooks([keep])
    trainer.train(0, 2)
    # Gradients are (1 + 3) / 2, so that the weight is 1 and then 0.5.
    assert keep.storage.history("total_loss").values() == [(2.0, 0), (1.0, 1)]
    assert trainer.model.weight.item() == 0


def test_term_that_only_one_part_has_is_divided_by_all_parts():
    class Alternating(ToyModel):
        def forward(self, batch):
            losses = super().forward(batch)
            return {"other": losses["loss"]} if batch[0]["x"] == 4 else losses

    model, keep = Alternating(), KeepStorage()
    trainer = SimpleTrainer(model, Batches(2, 4), torch.optim.SGD(model.parameters(), lr=0.1), accumulation_steps=2)
    trainer.register_hooks([keep])
    trainer.train(0, 1)
    latest = keep.storage.latest()
    assert (latest["loss"][0], latest["other"][0], latest["total_loss"][0]) == (1.0, 2.0, 3.0)


def test_hooks_see_the_last_part_and_all_of_the_step():
    class Look(HookBase):
        def after_backward(self):
            self.last = self.trainer.last_batch[0]["x"].item()
            self.all = [batch[0]["x"].item() for batch in self.trainer.step_batches]

    trainer, look = toy_trainer(1, 2, 3, accumulation_steps=3), Look()
    trainer.register_hooks([look])
    trainer.train(0, 2)
    assert look.last == 3 and look.all == [1, 2, 3]


def test_model_can_tell_first_and_last_part():
    class Telling(ToyModel):
        told = ()

        def forward(self, batch):
            self.told += ((is_first_part(), is_last_part()),)
            return super().forward(batch)

    model = Telling()
    SimpleTrainer(model, Batches(1), torch.optim.SGD(model.parameters(), lr=0.1), accumulation_steps=3).train(0, 1)
    assert model.told == ((True, False), (False, False), (False, True))
    assert is_first_part() and is_last_part()


def test_momentum_encoder_moves_once_in_a_step():
    class Student(ToyModel):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1)
            self.teacher = MomentumEncoder(self.net, None, momentum=0.5)

        def forward(self, batch):
            self.teacher.update(self.net, None)
            return super().forward(batch)

    model = Student()
    SimpleTrainer(model, Batches(1), torch.optim.SGD([model.weight], lr=0.1), accumulation_steps=4).train(0, 3)
    assert model.teacher.num_updates == 3


def test_loader_gives_the_parts_and_tells_what_does_not_divide(tiny_cfg):
    cfg, samples = tiny_cfg, [{"file_name": "1.png", "image_id": 1, "width": 8, "height": 8}]
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS = 6, 3
    assert build_detection_train_loader(cfg, dataset=samples).batch_size == 2
    cfg.SOLVER.ACCUMULATION_STEPS = 4
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH 6 cannot be split into SOLVER.ACCUMULATION_STEPS 4"):
        build_detection_train_loader(cfg, dataset=samples)


class ToyTrainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        return ToyModel()

    @classmethod
    def build_train_loader(cls, cfg):
        return Batches(1, 3)


class OwnStep(ToyTrainer):
    def run_step(self):
        batch = next(self._trainer._data_loader_iter)
        self._trainer.optimizer.zero_grad()
        self._trainer.model(batch)["loss"].backward()
        self._trainer.optimizer.step()


def test_config_reaches_the_trainer(tiny_cfg, tmp_path):
    tiny_cfg.OUTPUT_DIR, tiny_cfg.SOLVER.MAX_ITER, tiny_cfg.SOLVER.ACCUMULATION_STEPS = str(tmp_path), 1, 2
    tiny_cfg.SOLVER.WARMUP_ITERS, tiny_cfg.SOLVER.BASE_LR, tiny_cfg.SOLVER.WEIGHT_DECAY = 0, 0.25, 0.0
    trainer = ToyTrainer(tiny_cfg)
    trainer.train()
    assert trainer.model.weight.item() == 1 - 0.25 * 2


def test_run_step_of_the_user_takes_whole_batches_only(tiny_cfg, tmp_path):
    tiny_cfg.OUTPUT_DIR, tiny_cfg.SOLVER.MAX_ITER, tiny_cfg.SOLVER.STEPS = str(tmp_path), 1, ()
    OwnStep(tiny_cfg).train()
    tiny_cfg.SOLVER.ACCUMULATION_STEPS = 2
    with pytest.raises(ConfigError, match=r"did not take 2 parts.*run_step of its own"):
        OwnStep(tiny_cfg).train()


def test_loss_that_compares_images_is_warned_of(tiny_cfg, log):
    tiny_cfg.SOLVER.ACCUMULATION_STEPS = 2
    model = ToyModel()
    assert step_options(tiny_cfg, model) == {"accumulation_steps": 2} and not log.records
    model.compares_samples = True
    step_options(tiny_cfg, model)
    assert "compares only the 1 of a part" in log.text


def test_retinanet_differs_from_the_joint_batch_by_its_normaliser_alone(tiny_cfg, sample):
    batch = [sample(64, 64, [[4, 4, 40, 40]], [0]), sample(64, 64, [[8, 20, 60, 60], [0, 0, 30, 30]], [1, 2])]
    tiny_cfg.MODEL.RESNETS.NORM = "FrozenBN"
    torch.manual_seed(0)
    model = build_model(tiny_cfg)

    def gradient(batches):
        model.zero_grad()
        for part in batches:
            # As the average were if all batches had had as many objects for each image.
            model.loss_normalizer = torch.tensor(10.0 * len(part))
            model._ema_update = lambda name, *args, **kwargs: getattr(model, name)
            (sum(model(part).values()) / len(batches)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    joint = gradient([batch])
    torch.testing.assert_close(gradient([batch[:1], batch[1:]]), joint, rtol=0, atol=1e-4 * joint.abs().max().item())


def test_processes_exchange_gradients_once_in_a_step():
    exchanges = []

    def count_and_exchange(state, bucket):
        exchanges.append(bucket.index())
        return allreduce_hook(None, bucket)

    batch = samples(4)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(MeanModel())
        model.register_comm_hook(None, count_and_exchange)
        train_mean_model([batch[:2], batch[2:]], steps=2, model=model)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(model.module.layer.weight, train_mean_model([batch]).layer.weight)
    assert exchanges == [0, 0, 0]  # of 3 steps


def test_wrapper_that_keeps_parts_of_the_model_is_told_when_to_exchange_gradients():
    class Sharded(ToyModel):
        told = ()

        def set_requires_gradient_sync(self, value):
            self.told += (value,)

    model = Sharded()
    SimpleTrainer(model, Batches(1), torch.optim.SGD(model.parameters(), lr=0.1), accumulation_steps=3).train(0, 1)
    assert model.told == (False, True, False, True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("bf16", "did you mean 'bfloat16'"), ("float15", "did you mean 'float16'"), ("int8", "one of float16, bfloat16")],
)
def test_unknown_precision_is_refused_with_a_suggestion(tiny_cfg, name, hint):
    tiny_cfg.SOLVER.AMP.PRECISION = name
    with pytest.raises(ConfigError, match=hint):
        step_options(tiny_cfg, ToyModel())


def test_bfloat16_trains_without_scaling_of_the_loss(tiny_cfg, tmp_path, sample):
    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            # On a map of 1 x 1, the gradient of a convolution with stride 2 is not finite at times (torch 2.14, CPU).
            return itertools.repeat([sample(128, 128, [[4, 4, 40, 40]], [0])])

    tiny_cfg.OUTPUT_DIR, tiny_cfg.SOLVER.MAX_ITER = str(tmp_path), 2
    tiny_cfg.SOLVER.AMP.ENABLED, tiny_cfg.SOLVER.AMP.PRECISION = True, "bfloat16"
    trainer = Trainer(tiny_cfg)
    dtypes, before = [], trainer.model.head.cls_score.weight.clone()
    trainer.model.head.cls_score.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    trainer.train()
    assert set(dtypes) == {torch.bfloat16} and trainer.model.head.cls_score.weight.dtype == torch.float32
    assert not trainer._trainer.grad_scaler.is_enabled()
    assert not torch.equal(trainer.model.head.cls_score.weight, before)
