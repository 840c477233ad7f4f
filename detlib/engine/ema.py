"""A running average of the weights, which often evaluates better than the weights themselves."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import CfgNode
from detlib.engine.trainer_base import HookBase, is_finished
from detlib.engine.training_state import unwrap_model
from detlib.utils.errors import ConfigError

__all__ = ["ModelEMA", "build_ema", "load_averages"]

logger = logging.getLogger(__name__)

FILE = "model_ema_final"


class ModelEMA(HookBase):
    """Averages the weights that are trained, exponentially (Polyak and Juditsky, 1992; arXiv:1703.01780).

    Weights that are frozen, and buffers, such as running statistics, are those of the model. Register it before the
    hooks that save and evaluate. At the end, it writes ``model_ema_final.pth``, whose weights are the averages.

    Attributes:
        num_updates: so far. While they are few, the average keeps less: of update t, from 0, (1 + t) / (10 + t).
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9998, checkpointer: DetectionCheckpointer | None = None
    ) -> None:
        """
        Args:
            decay: share of the average that an update keeps, once there were many.
            checkpointer: tells where the file is written; None for none.
        """
        if not 0 <= decay < 1:
            raise ConfigError(f"MODEL_EMA.DECAY is {decay}; it must be in [0, 1), and near 1")
        self._model = unwrap_model(model)
        self._decay = decay
        self._checkpointer = checkpointer
        weights = {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}
        self._names = list(weights)
        self._weights = [weight.detach() for weight in weights.values()]
        self._averages = [weight.clone() for weight in self._weights]
        self._is_exchanged = False
        self.num_updates = 0

    @property
    def averages(self) -> dict[str, Tensor]:
        """By the names of the weights."""
        return dict(zip(self._names, self._weights if self._is_exchanged else self._averages, strict=True))

    def before_train(self) -> None:
        if self.num_updates == 0:  # The model may have got its weights since.
            torch._foreach_copy_(self._averages, self._weights)

    def after_step(self) -> None:
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)
        self.num_updates += 1

    def after_train(self) -> None:
        if self._checkpointer is not None and is_finished(self):
            # Of weights alone, from which no training goes on.
            writer = DetectionCheckpointer(self._checkpointer.model, self._checkpointer.save_dir)
            writer.metadata = self._checkpointer.metadata
            with self.applied():
                writer.save_aside(FILE, iteration=self.trainer.iter - 1)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """In this block the model has the averages, to be evaluated or saved."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_updates = state_dict["num_updates"]
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state_dict["averages"][name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in zip(self._weights, self._averages, strict=True):  # One by one: a copy of one at a time.
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        self._is_exchanged = not self._is_exchanged


def build_ema(cfg: CfgNode, checkpointer: DetectionCheckpointer) -> ModelEMA | None:
    """What MODEL_EMA says, of the model of a checkpointer; None if it is not enabled."""
    if not cfg.MODEL_EMA.ENABLED:
        return None
    if cfg.SOLVER.PARALLEL == "fsdp":
        raise ConfigError("MODEL_EMA averages whole weights; use SOLVER.PARALLEL: ddp, or set MODEL_EMA.ENABLED: False")
    return ModelEMA(checkpointer.model, cfg.MODEL_EMA.DECAY, checkpointer)


@torch.no_grad()
def load_averages(cfg: CfgNode, model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Gives a model the averages of a training from which its checkpoint is, if MODEL_EMA says to evaluate them.

    Args:
        checkpoint: what :meth:`DetectionCheckpointer.load` returns.
    """
    state = checkpoint.get("trainer", {}).get("hooks", {}).get(ModelEMA.__qualname__)
    if not (cfg.MODEL_EMA.ENABLED and cfg.MODEL_EMA.USE_FOR_EVAL and state):
        return
    weights = dict(unwrap_model(model).named_parameters())
    for name, average in state["averages"].items():
        weights[name].copy_(average)
    logger.info("The model has the %d averaged weights of the checkpoint, as MODEL_EMA.USE_FOR_EVAL.", len(weights))
