"""A model of one weight, whose training can be followed by hand."""

import itertools

import torch
from torch import nn

from detlib.engine import HookBase, SimpleTrainer


class ToyModel(nn.Module):
    """The loss is weight * x, so that its gradient is x."""

    training_state_buffers = ("num_calls",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("num_calls", torch.tensor(0.0), persistent=False)

    def forward(self, batch):
        self.num_calls += 1
        return {"loss": self.weight * batch[0]["x"]}


class Batches:
    """Batches of one sample each, in turn and without end."""

    def __init__(self, *values):
        self.values = values

    def __iter__(self):
        return ([{"x": torch.tensor(float(value))}] for value in itertools.cycle(self.values))


def toy_trainer(*values, trainer_class=SimpleTrainer, lr=0.1, **kwargs):
    """A trainer whose batches hold ``values``."""
    model = ToyModel()
    return trainer_class(model, Batches(*values), torch.optim.SGD(model.parameters(), lr=lr), **kwargs)


class KeepStorage(HookBase):
    """The storage is closed after training; this keeps it."""

    def before_train(self):
        self.storage = self.trainer.storage


def interrupted_and_resumed(trainer_class, cfg):
    """A trainer that is about to go on with what another one saved, which Ctrl-C ended before its iteration 3."""

    class Interrupt(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                raise KeyboardInterrupt

    first = trainer_class(cfg)
    first.register_hooks([Interrupt()])
    try:
        first.train()
    except KeyboardInterrupt:
        second = trainer_class(cfg)
        second.resume_or_load(resume=True)
        return second
    raise AssertionError("the training was to be interrupted")
