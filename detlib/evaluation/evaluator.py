"""The evaluator contract, and the loop that runs a model over a dataset for it."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from detlib.evaluation.progress import InferenceProgress
from detlib.utils.comm import get_world_size

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset"]

logger = logging.getLogger(__name__)

NUM_WARMUP_BATCHES = 5  # Their time says more about caches and worker start-up than about the model.


class DatasetEvaluator:
    """Collects what a model predicts on a dataset, batch by batch, and turns it into metrics."""

    def reset(self) -> None:
        """Forget what was collected; called before the first batch."""

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take in one batch.

        Args:
            inputs: what the model was given.
            outputs: what it returned, in the same order.
        """

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics, after the last batch.

        Returns:
            task name -> metric name -> value, such as ``{"bbox": {"AP50": 80.1}}``. With several processes, those
            other than the main one may return nothing.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators that see the same predictions; their results are put together."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        results: dict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            for task, metrics in (evaluator.evaluate() or {}).items():
                if task in results:
                    raise ValueError(
                        f"Two evaluators report results named {task!r}, the second is {type(evaluator).__name__}; "
                        "run them one after the other or rename the task that one of them returns"
                    )
                results[task] = metrics
        return results


def inference_on_dataset(
    model: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    data_loader: Iterable[list[dict[str, Any]]],
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Run a model over all batches and evaluate what it predicts.

    A module is in evaluation mode meanwhile and afterwards back in the mode it was in.

    Args:
        model: a module or any callable from a batch to its predictions.
        data_loader: gives batches; its length, where it has one, is used to show progress.
        evaluator: ``None`` only runs (and times) the model.
        callbacks: functions to call at ``"on_start"``, ``"before_inference"``, ``"after_inference"`` (around each
            batch) and ``"on_end"``.

    Returns:
        What the evaluator returns; an empty dict where it returns nothing.
    """
    evaluator = _as_evaluator(evaluator)
    evaluator.reset()
    notify = _notifier(callbacks or {})
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        progress = stack.enter_context(InferenceProgress(length_of(data_loader), NUM_WARMUP_BATCHES))
        wait_for_device = _device_barrier(model)
        logger.info("Start inference on %s batches", "?" if progress.num_batches is None else progress.num_batches)
        notify("on_start")
        for inputs in progress.timed_batches(data_loader):
            start = time.perf_counter()
            notify("before_inference")
            outputs = model(inputs)
            wait_for_device()
            notify("after_inference")
            middle = time.perf_counter()
            evaluator.process(inputs, outputs)
            progress.step(len(inputs), model=middle - start, evaluation=time.perf_counter() - middle)
        notify("on_end")
    logger.info(progress.summary(get_world_size()))
    results = evaluator.evaluate()
    return {} if results is None else results


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Hold a module in evaluation mode; each submodule gets its own mode back at the end."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _as_evaluator(evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None) -> DatasetEvaluator:
    if evaluator is None:
        return DatasetEvaluators([])
    return DatasetEvaluators(evaluator) if isinstance(evaluator, (list, tuple)) else evaluator


def _notifier(callbacks: Mapping[str, Callable[[], Any]]) -> Callable[[str], None]:
    return lambda event: callbacks[event]() if event in callbacks else None


def length_of(data_loader: Iterable[Any]) -> int | None:
    """How many batches a loader gives, if it can tell."""
    try:
        return len(data_loader)  # type: ignore[arg-type]
    except TypeError:  # A loader over a stream.
        return None


def _device_barrier(model: Any) -> Callable[[], None]:
    """A function that waits for the model's accelerator: without it, times would be those of launching kernels."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if parameter is None or parameter.device.type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(parameter.device)
