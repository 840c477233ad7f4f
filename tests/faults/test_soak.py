import gc

import torch

from detlib.engine import HookBase, hooks
from detlib.utils.events import CommonMetricPrinter

from ..engine.toy import toy_trainer
from .soak import growth


class CountTensors(HookBase):
    def __init__(self):
        self.counts = []

    def after_step(self):
        if self.trainer.iter % 20 == 19:
            self.counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))


def test_training_keeps_no_tensors_of_earlier_steps():
    trainer, count = toy_trainer(1.0, 2.0), CountTensors()
    trainer.register_hooks([hooks.IterationTimer(), hooks.PeriodicWriter([CommonMetricPrinter(100)], period=20), count])
    trainer.train(0, 80)
    assert len(set(count.counts[1:])) == 1


def test_growth_is_of_each_process_since_the_warm_up():
    measured = [
        (4, {"main": 10.0, "worker 0": 5.0}),
        (6, {"main": 99.0, "worker 0": 5.0}),
        (8, {"main": 12.5, "worker 0": 4.0}),
    ]
    assert growth(measured) == {"main": 2.5, "worker 0": -1.0}
