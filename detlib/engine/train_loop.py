"""What an iteration does: a batch, its losses, a step of the optimizer; in full or in mixed precision."""

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from detlib.engine.diagnosis import NonFiniteLossError, StepStart, check_gradients, check_losses, check_used
from detlib.engine.step import without_gradient_sync
from detlib.engine.trainer_base import HookBase, TrainerBase, is_due, is_finished, is_last_step
from detlib.engine.training_state import ProcessStates, TrainingState, unwrap_model
from detlib.utils import comm
from detlib.utils.accumulation import part_of_step
from detlib.utils.errors import DatasetError
from detlib.utils.events import get_event_storage

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


class SimpleTrainer(TrainerBase):
    """One optimizer, one data loader, one model that returns a dict of losses.

    Attributes:
        last_batch: what the model got last, for hooks that look at it.
        step_batches: what it got in the current iteration: one batch, or the parts of one.
        step_start: what the current iteration started from, so that it can be made again if it fails.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
        *,
        accumulation_steps: int = 1,
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
            accumulation_steps: from how many batches of the loader, one after the other, the gradients of a step are
                averaged. Models that do something once in a step ask :mod:`detlib.utils.accumulation`.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj: Iterator | None = None
        self._process_states = ProcessStates(model, data_loader)
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending_metrics: concurrent.futures.Future | None = None
        self.accumulation_steps = accumulation_steps
        self.last_batch: Any = None
        self.step_batches: list[Any] = []
        self.step_start = StepStart()

    def run_step(self) -> None:
        """A batch, or its parts in turn; their losses and gradients; one step of the optimizer."""
        self.step_batches = []
        data_time, means = 0.0, {}
        for part in range(self.accumulation_steps):
            data_time += self._load_batch()
            is_last = part + 1 == self.accumulation_steps
            with (
                part_of_step(part, self.accumulation_steps),
                contextlib.nullcontext() if is_last else without_gradient_sync(self.model),
            ):
                for name, loss in self._forward_backward(is_first=part == 0).items():
                    means[name] = means[name] + loss if name in means else loss
        check_used(self.model, self.iter)
        self._unscale()
        self.after_backward()
        self._write_metrics(means, data_time)
        self._check_gradients()
        self._update_weights()

    def _forward_backward(self, is_first: bool) -> dict[str, Tensor]:
        """Adds the gradients of ``last_batch`` to those of the step, and returns what its losses add to their means."""
        if is_first and self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses = self._forward()
        if is_first and not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        if self.accumulation_steps > 1:
            losses = {name: loss / self.accumulation_steps for name, loss in losses.items()}
        self._backward(sum(losses.values()))
        return losses if self.accumulation_steps == 1 else {n: torch.as_tensor(v).detach() for n, v in losses.items()}

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _unscale(self) -> None:
        """Brings the gradients of the step to their own scale."""

    def _check_gradients(self) -> None:
        """Where losses are checked at once, gradients are, too: the losses of the next step would tell too late."""
        if self._has_metrics(self.iter) and not self.async_write_metrics:
            check_gradients(self.model, self.iter)

    def _update_weights(self) -> None:
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
        check_losses(gathered, means, cur_iter)
        if comm.is_main_process():
            storage = get_event_storage()
            storage.put_scalar("data_time", slowest, cur_iter=cur_iter)
            storage.put_scalar(f"{prefix}total_loss", sum(means.values()), cur_iter=cur_iter)
            if means.keys() != {"total_loss"}:  # Also a single term: in other iterations there may be others.
                storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["optimizer"] = self.optimizer.state_dict()
        if buffers := TrainingState(self.model).state_dict():
            state["training_state"] = buffers
        return {**state, **self._states_of_processes().state_dict()}

    def gather_states(self) -> None:
        """Collect what each process has for itself, for a checkpoint after this step; all have to call it."""
        self._states_of_processes().gather()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        TrainingState(self.model).load_state_dict(state_dict.get("training_state", {}))
        if "processes" in state_dict:  # Not in checkpoints of detectron2.
            self._states_of_processes().load_state_dict(state_dict)

    def _states_of_processes(self) -> ProcessStates:
        self._process_states.model, self._process_states.data_loader = self.model, self.data_loader
        return self._process_states

    @property
    def _data_loader_iter(self) -> Iterator:
        if self._data_loader_iter_obj is None:  # only now, so that no worker starts for a trainer that only evaluates
            self._data_loader_iter_obj = iter(self.data_loader)
            self._process_states.restore_random_states()
        return self._data_loader_iter_obj

    def _load_batch(self) -> float:
        """Fills ``last_batch`` and returns the seconds that it took."""
        if not self.model.training:
            raise RuntimeError(
                "the model is in evaluation mode; a hook called model.eval() and not model.train() after"
            )
        start = time.perf_counter()
        self._process_states.forget_gathered()
        try:
            self.last_batch = next(self._data_loader_iter)
            self.step_batches.append(self.last_batch)
        except StopIteration:
            raise DatasetError(
                f"the training data ended before iteration {self.iter}; a training loader must not end: use "
                "TrainingSampler, or an endless generator"
            ) from None
        seconds = time.perf_counter() - start
        is_first = len(self.step_batches) == 1
        self.step_start.take(unwrap_model(self.model), self.iter, self.last_batch, is_first)
        return seconds

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

    def _has_metrics(self, iteration: int) -> bool:
        return (iteration + 1) % self.gather_metric_period == 0

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """``write_metrics`` in every ``gather_metric_period``-th iteration, at once or in the thread."""
        iteration = self.iter if iter is None else iter
        if not self._has_metrics(iteration):
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
        *,
        accumulation_steps: int = 1,
    ) -> None:
        """
        Args:
            grad_scaler: None for one that fits the model's device and ``precision``.
            precision: torch.float16, or torch.bfloat16, which needs no loss scaling.
            log_grad_scaler: store the scale of the loss as a metric.

        The others are those of :class:`SimpleTrainer`.
        """
        if isinstance(model, DataParallel) or (isinstance(model, DistributedDataParallel) and _num_devices(model) > 1):
            raise TypeError("AMPTrainer trains on one device per process; use DistributedDataParallel that way")
        super().__init__(
            model,
            data_loader,
            optimizer,
            gather_metric_period,
            zero_grad_before_forward,
            async_write_metrics,
            accumulation_steps=accumulation_steps,
        )
        self._device_type = next(model.parameters()).device.type
        if grad_scaler is None:
            grad_scaler = torch.amp.GradScaler(self._device_type, enabled=precision == torch.float16)
        self.grad_scaler = grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def _forward(self) -> dict[str, Tensor]:
        with torch.autocast(self._device_type, dtype=self.precision):
            return super()._forward()

    def _backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _unscale(self) -> None:
        """Before hooks and gradient clipping, which are to see the gradients at their own scale."""
        if self.log_grad_scaler:
            self.storage.put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.grad_scaler.unscale_(self.optimizer)

    def _check_gradients(self) -> None:
        if not self.grad_scaler.is_enabled():  # It leaves out steps whose gradients are not finite, and scales less.
            super()._check_gradients()

    def _update_weights(self) -> None:
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
