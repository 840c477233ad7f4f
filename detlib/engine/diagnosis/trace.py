"""Where in a model numbers stop being finite, found by hooks in a pass that is made for this alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detlib.utils.events import EventStorage

__all__ = ["Trace", "non_finite_names", "tensors_in", "trace"]


@dataclass
class Trace:
    """What a pass gave, and where it first was not finite; texts are empty where all was finite."""

    losses: dict[str, float] = field(default_factory=dict)
    forward_fault: str = ""
    backward_fault: str = ""
    # Parameters whose gradients are not finite.
    gradients: list[str] = field(default_factory=list)
    # What the pass raised, if it did not come to its end.
    error: str = ""

    @property
    def is_faulty(self) -> bool:
        return bool(self.forward_fault or self.backward_fault or self.gradients or self.error)


def trace(model: nn.Module, compute_losses: Callable[[], Mapping[str, Tensor]], *, backward: bool = False) -> Trace:
    """Makes a pass and looks at what each module gives; every look waits for the device.

    Args:
        model: not wrapped for several processes.
        compute_losses: calls the model.
        backward: also look at gradients, which takes the memory that a step takes.
    """
    found = Trace()
    handles = [
        module.register_forward_hook(_Look(found, name, backward), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        # What the model logs belongs to the step, not to its repetition.
        with _uncompiled(), EventStorage(), torch.set_grad_enabled(backward):
            losses = compute_losses()
            found.losses = {name: float(torch.as_tensor(loss).detach()) for name, loss in losses.items()}
            if backward:
                _look_at_gradients(model, sum(losses.values()), found)
    except Exception as error:  # The fault may make the pass fail before its end.
        found.error = f"{type(error).__name__}: {error}"
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Look:
    """A forward hook. Modules end after those inside them, so that the first to note something is the culprit."""

    def __init__(self, found: Trace, name: str, backward: bool) -> None:
        self._found = found
        self._name = name
        self._backward = backward

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tensors = [tensor for _, tensor in tensors_in(output)]
        what = f"{self._name} ({type(module).__name__})" if self._name else f"{type(module).__name__} as a whole"
        if not self._found.forward_fault:
            for tensor in tensors:
                if not _is_finite(tensor):
                    self._found.forward_fault = f"{what}: {_counts(tensor)}; {_origin(module, args, kwargs)}"
                    break
        if self._backward:
            for tensor in tensors:
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._look_at(gradient, what))

    def _look_at(self, gradient: Tensor, what: str) -> None:
        if not self._found.backward_fault and not _is_finite(gradient):
            self._found.backward_fault = f"the output of {what}: {_counts(gradient)}"


def non_finite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in dicts, lists and detlib's structures, with where they are."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from tensors_in(item, f"{path}[{i}]")
    elif hasattr(value, "get_fields"):  # Instances
        yield from tensors_in(value.get_fields(), path)
    elif isinstance(getattr(value, "tensor", None), Tensor):  # Boxes, BitMasks, Keypoints, ImageList
        yield path, value.tensor


def _uncompiled() -> AbstractContextManager[Any]:
    """Code that was compiled without hooks may pass by them, and to compile it again takes minutes."""
    set_stance = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on
    return set_stance("force_eager") if set_stance else nullcontext()


def _look_at_gradients(model: nn.Module, loss: Tensor, found: Trace) -> None:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # Other than backward(), it leaves the gradients of the step alone, and the hooks of DistributedDataParallel.
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    found.gradients = non_finite_names(
        {name: gradient for name, gradient in zip(trained, gradients, strict=True) if gradient is not None}
    )


def _is_finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.detach().isfinite().all())


def _counts(tensor: Tensor) -> str:
    tensor = tensor.detach()
    num_nan, num_inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    shape = " x ".join(map(str, tensor.shape)) or "one number"
    return f"{num_nan} NaN and {num_inf} Inf of {tensor.numel()} values ({shape}, {str(tensor.dtype).split('.')[-1]})"


def _origin(module: nn.Module, args: Any, kwargs: Any) -> str:
    """What is known of where a module has it from."""
    inputs = [tensor for _, tensor in tensors_in([args, kwargs])]
    if not all(map(_is_finite, inputs)):
        return "its input is not finite either, and comes from code outside of modules"
    if bad := non_finite_names(dict(module.named_parameters())):
        return f"its input is finite, its {bad[0]} is not"
    if next(module.children(), None) is not None:
        return "the modules in it give finite numbers, so it is in its own code"
    largest = max((float(t.detach().abs().max()) for t in inputs if t.is_floating_point() and t.numel()), default=0.0)
    return f"its input is finite, at most {largest:.3g}"
