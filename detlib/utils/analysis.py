"""Count the parameters, floating point operations and activations of a model, also of one that takes ``list[dict]``.

A multiplication with its addition counts as one operation.
"""

import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import nn


@contextmanager
def _without_script_warnings() -> Iterator[None]:
    """fvcore's losses at import and torchvision's NMS in tracing call torch.jit.script, which torch 2.14 deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


with _without_script_warnings():
    from fvcore.nn import ActivationCountAnalysis as _ActivationCountAnalysis
    from fvcore.nn import FlopCountAnalysis as _FlopCountAnalysis
    from fvcore.nn import flop_count_table, parameter_count, parameter_count_table
    from fvcore.nn.jit_handles import conv_flop_count, generic_activation_jit, get_shape

__all__ = [
    "ActivationCountAnalysis",
    "FlopCountAnalysis",
    "activation_count_operators",
    "flop_count_operators",
    "flop_count_table",
    "parameter_count",
    "parameter_count_table",
]

logger = logging.getLogger(__name__)

# An operator without a handle is worth a warning only if it multiplies; the cost of all others is small beside these.
_COSTLY = (
    "conv",
    "mm",
    "matmul",
    "dot",
    "linear",
    "einsum",
    "attention",
    "transformer",
    "lstm",
    "gru",
    "rnn",
    "PythonOp",
)


class _ListOfDictsMixin:
    """Traces a model on nested inputs: only tensors go in and out, while the model still sees its usual arguments."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self._arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        super().__init__(model, tuple(_tensors_in(self._arguments)))

    def _analyze(self) -> Any:
        with _taking_tensors(self._model, self._arguments), _without_script_warnings():
            return super()._analyze()

    def _warn_unsupported_ops(self, ops: "Counter[str]") -> None:
        missed = [f"{op} ({count}x)" for op, count in ops.items() if any(part in op for part in _COSTLY)]
        if missed and self._enable_warn_unsupported_ops:
            logger.warning(
                "The sum leaves out operators without a count: %s. Give set_op_handle() a function for each.",
                ", ".join(missed),
            )


class FlopCountAnalysis(_ListOfDictsMixin, _FlopCountAnalysis):
    """Operations per module and operator: ``total()``, ``by_module()``, ``by_operator()`` as in fvcore.

    Args:
        model: in eval mode, as losses are not worth counting.
        inputs: the only argument of the model, such as ``[{"image": tensor}]``, or a tuple of all arguments.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__(model, inputs)
        self.set_op_handle(**_FLOP_HANDLES)


class ActivationCountAnalysis(_ListOfDictsMixin, _ActivationCountAnalysis):
    """Number of values that convolutions and matrix products give, with the methods of :class:`FlopCountAnalysis`."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__(model, inputs)
        self.set_op_handle(**{"aten::_convolution_mode": generic_activation_jit("conv")})


def flop_count_operators(model: nn.Module, inputs: list[Any]) -> defaultdict[str, float]:
    """Operations per operator, in units of 10^9, of the model in eval mode.

    Args:
        model: any model of detlib.
        inputs: the ``list[dict]`` that it takes.
    """
    return _count(FlopCountAnalysis, 1e9, model, inputs)


def activation_count_operators(model: nn.Module, inputs: list[Any], **kwargs: Any) -> defaultdict[str, float]:
    """Number of values that convolutions and matrix products give, in units of 10^6, of the model in eval mode.

    Args:
        model: any model of detlib.
        inputs: the ``list[dict]`` that it takes.
        **kwargs: ``supported_ops``, name of an operator -> handle as in fvcore.
    """
    return _count(ActivationCountAnalysis, 1e6, model, inputs, **kwargs)


def _count(
    analysis: type[Any], unit: float, model: nn.Module, inputs: Any, supported_ops: dict[str, Any] | None = None
) -> defaultdict[str, float]:
    was_training = model.training
    model.eval()
    try:
        counts = analysis(model, inputs).set_op_handle(**(supported_ops or {})).by_operator()
    finally:
        model.train(was_training)
    return defaultdict(float, {operator: count / unit for operator, count in counts.items()})


@contextmanager
def _taking_tensors(model: nn.Module, arguments: tuple[Any, ...]) -> Iterator[None]:
    """While open, the model maps the tensors of its arguments to the tensors of its outputs, as tracing demands.

    Hooks do this rather than a module around the model, so that names of modules stay as they are. Outputs are copied,
    as tracing demands that they are made while it runs, which a tensor that a module keeps is not.
    """
    hooks = [
        model.register_forward_pre_hook(lambda module, tensors: _with_tensors(arguments, iter(tensors))),
        model.register_forward_hook(lambda module, tensors, outputs: tuple(x.clone() for x in _tensors_in(outputs))),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers, Instances (by ``get_fields``) and Boxes or masks (by ``tensor``)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif hasattr(value, "get_fields"):
        yield from _tensors_in(value.get_fields())
    elif isinstance(getattr(value, "tensor", None), torch.Tensor):
        yield value.tensor


def _with_tensors(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """A copy of nested containers with the tensors replaced, in the order of :func:`_tensors_in`."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, (list, tuple)):
        return type(value)([_with_tensors(item, tensors) for item in value])
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    # Annotations stay as they are; their tensors are passed over.
    for _ in _tensors_in(value):
        next(tensors)
    return value


def _conv_flops(inputs: list[Any], outputs: list[Any]) -> "Counter[str]":
    """Of convolutions whose first two arguments are the image and the weight."""
    flops = conv_flop_count(get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0]))
    return Counter({"conv": flops})


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Of the product of queries (..., L, E) and keys (..., S, E), and that with the values (..., S, V)."""
    queries, keys, values = (get_shape(value) for value in inputs[:3])
    return prod(queries[:-1]) * keys[-2] * (keys[-1] + values[-1])


def _baddbmm_flops(inputs: list[Any], outputs: list[Any]) -> int:
    left, right = (get_shape(value) for value in inputs[1:3])
    return prod(left) * right[-1]


_FLOP_HANDLES = {
    "aten::_convolution_mode": _conv_flops,  # padding="same"
    "torchvision::deform_conv2d": _conv_flops,
    "aten::scaled_dot_product_attention": _attention_flops,
    "aten::baddbmm": _baddbmm_flops,
}
