"""The training loop, and the hooks that do everything beside it."""

import concurrent.futures
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from detlib.engine.training_state import TrainingState, unwrap_model
from detlib.utils import comm
from detlib.utils.errors import DatasetError, DetlibError
from detlib.utils.events import EventStorage, get_event_storage

__all__ = [
    "AMPTrainer",
    "HookBase",
    "NonFiniteLossError",
    "SimpleTrainer",
    "TrainerBase",
    "is_due",
    "is_finished",
    "is_last_step",
]

logger = logging.getLogger(__name__)


class NonFiniteLossError(DetlibError, FloatingPointError):
    """A loss became NaN or infinite."""


class HookBase:
    """Work beside the loop: override the events you need, and read what you need from :attr:`trainer`.

    The trainer calls ``before_train`` and ``after_train`` once (the latter also if the training fails), the others
    in each iteration, each event for all hooks in the order in which they were registered. ``trainer.iter`` is the
    current iteration; in ``after_train`` it equals ``trainer.max_iter`` only if the training went to its end.
    """

    trainer: "TrainerBase" = None

    def before_train(self) -> None: ...

    def after_train(self) -> None: ...

    def before_step(self) -> None: ...

    def after_backward(self) -> None: ...

    def after_step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to resume; an empty dict if there is nothing."""
        return {}


class TrainerBase:
    """The loop, its hooks and its storage; a subclass says in ``run_step`` what an iteration does."""

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Adds hooks, to be called in this order after those that are there. None is left out."""
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise TypeError(f"a hook must derive from HookBase, but a {type(hook).__name__} came")
            # A strong reference would be a cycle that keeps the model in memory after the trainer is gone.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Runs iterations ``start_iter`` to ``max_iter - 1``."""
        logger.info("Training from iteration %d to %d.", start_iter, max_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max(start_iter, max_iter)
            except DetlibError as error:
                logger.error("The training stopped in iteration %d: %s", self.iter, error)
                raise
            except Exception:
                logger.exception("The training failed in iteration %d.", self.iter)
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define run_step()")

    def state_dict(self) -> dict[str, Any]:
        """The iteration that finished last and the state of the hooks, by class name."""
        hooks = {}
        for hook in self._hooks:
            if state := hook.state_dict():
                hooks.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, "hooks": hooks} if hooks else {"iteration": self.iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logger.warning("The checkpoint has a state for the hook %s, which this training does not use.", name)
            else:
                hook.load_state_dict(state)


def is_due(hook: HookBase, period: int) -> bool:
    """Whether this iteration is the last of a period; 0 is none."""
    return period > 0 and (hook.trainer.iter + 1) % period == 0


def is_last_step(hook: HookBase) -> bool:
    """Whether, in a step, this is the last one."""
    return hook.trainer.iter + 1 == hook.trainer.max_iter


def is_finished(hook: HookBase) -> bool:
    """Whether, in ``after_train``, the training went to its end."""
    return hook.trainer.iter >= hook.trainer.max_iter


class SimpleTrainer(TrainerBase):
    """One optimizer, one data loader, one model that returns a dict of losses.

    ``last_batch`` is the batch of the current iteration, for hooks that look at it.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            model: is set to training mode; takes a batch, returns losses by name (or one loss).
            data_loader: yields batches without end.
            gather_metric_period: losses are collected from all processes, checked and stored in every such iteration.
                Each time waits for the device.
            zero_grad_before_forward: free the gradients before the forward pass instead of after it.
            async_write_metrics: store metrics in a thread, so that nothing waits for the device. A loss that is not
                finite is then reported one iteration late. Not together with hooks that communicate in several
                processes, such as evaluation.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator | None = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending_metrics: concurrent.futures.Future | None = None
        self.last_batch: Any = None

    def run_step(self) -> None:
        """A batch, its losses, their gradients, one step of the optimizer."""
        data_time = self._load_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses = self._forward()
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()

    def after_train(self) -> None:
        self.finish_metrics()
        super().after_train()
        self.concurrent_executor.shutdown(wait=True)

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Replaces the data loader, freeing the old one and its workers first."""
        self.data_loader = self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def finish_metrics(self) -> None:
        """Waits until metrics that are written asynchronously are there, and raises what their check raised."""
        if self._pending_metrics is not None:
            pending, self._pending_metrics = self._pending_metrics, None
            pending.result()

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Stores the means of the losses over all processes, their sum and the slowest data time.

        Args:
            loss_dict: scalar losses by name.
            data_time: seconds that this process waited for the batch.
            cur_iter: the iteration to which the values belong.
            prefix: of the stored name "total_loss".

        Raises:
            NonFiniteLossError: in all processes, if the sum is not finite in one of them.
        """
        # One copy from the device for all terms together.
        values = torch.stack([torch.as_tensor(loss).detach().float().reshape(()) for loss in loss_dict.values()])
        gathered = comm.all_gather({**dict(zip(loss_dict, values.tolist(), strict=True)), "data_time": data_time})
        slowest = max(metrics.pop("data_time") for metrics in gathered)
        # A process may lack a term, for instance if its images have no object.
        names = dict.fromkeys(name for metrics in gathered for name in metrics)
        means = {name: sum(m.get(name, 0.0) for m in gathered) / len(gathered) for name in names}
        total = sum(means.values())
        if not math.isfinite(total):
            terms = ", ".join(f"{name}={value:.4g}" for name, value in means.items())
            raise NonFiniteLossError(
                f"the loss is not finite in iteration {cur_iter}: {terms}. Most often SOLVER.BASE_LR is too high for "
                "SOLVER.IMS_PER_BATCH (scale both alike), the warm-up is too short, or boxes in the data have no area"
            )
        if comm.is_main_process():
            storage = get_event_storage()
            storage.put_scalar("data_time", slowest, cur_iter=cur_iter)
            storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
            if means.keys() != {"total_loss"}:  # Also a single term: in other iterations there may be others.
                storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["optimizer"] = self.optimizer.state_dict()
        if buffers := TrainingState(self.model).state_dict():
            state["training_state"] = buffers
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        TrainingState(self.model).load_state_dict(state_dict.get("training_state", {}))

    @property
    def _data_loader_iter(self) -> Iterator:
        if self._data_loader_iter_obj is None:  # only now, so that no worker starts for a trainer that only evaluates
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def _load_batch(self) -> float:
        """Fills ``last_batch`` and returns the seconds that it took."""
        if not self.model.training:
            raise RuntimeError(
                "the model is in evaluation mode; a hook called model.eval() and not model.train() after"
            )
        start = time.perf_counter()
        try:
            self.last_batch = next(self._data_loader_iter)
        except StopIteration:
            raise DatasetError(
                f"the training data ended before iteration {self.iter}; a training loader must not end: use "
                "TrainingSampler, or an endless generator"
            ) from None
        return time.perf_counter() - start

    def _forward(self) -> dict[str, Tensor]:
        losses = self.model(self.last_batch)
        if isinstance(losses, Tensor):
            return {"total_loss": losses}
        if not isinstance(losses, Mapping) or not losses:
            raise TypeError(
                f"{type(unwrap_model(self.model)).__name__} must return a dict of losses in training mode, but "
                f"returned {losses if isinstance(losses, Mapping) else type(losses).__name__}"
            )
        return losses

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """``write_metrics`` in every ``gather_metric_period``-th iteration, at once or in the thread."""
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period != 0:
            return
        if not self.async_write_metrics:
            self.write_metrics(loss_dict, data_time, iteration, prefix)
            return
        self.finish_metrics()
        detached = {name: loss.detach() for name, loss in loss_dict.items()}
        self._pending_metrics = self.concurrent_executor.submit(
            self.write_metrics, detached, data_time, iteration, prefix
        )


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with a forward pass in mixed precision, and loss scaling if that is float16."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            grad_scaler: None for one that fits the model's device and ``precision``.
            precision: torch.float16, or torch.bfloat16, which needs no loss scaling.
            log_grad_scaler: store the scale of the loss as a metric.
        """
        if isinstance(model, DataParallel) or (isinstance(model, DistributedDataParallel) and _num_devices(model) > 1):
            raise TypeError("AMPTrainer trains on one device per process; use DistributedDataParallel that way")
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self._device_type = next(model.parameters()).device.type
        if grad_scaler is None:
            grad_scaler = torch.amp.GradScaler(self._device_type, enabled=precision == torch.float16)
        self.grad_scaler = grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        """As in the base class, with the forward pass under autocast."""
        data_time = self._load_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.autocast(self._device_type, dtype=self.precision):
            losses = self._forward()
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        if self.log_grad_scaler:
            self.storage.put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        # Hooks and gradient clipping are to see the gradients at their own scale.
        self.grad_scaler.unscale_(self.optimizer)
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _num_devices(model: DistributedDataParallel) -> int:
    return len(model.device_ids or [None])
