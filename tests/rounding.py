"""How far two correct computations of one figure may lie apart: from the arithmetic alone, so that it holds on any processor.

Which kernel takes a sum, in which order and with how many lanes, is the processor's. So where two programs are to be equal, they
are compared in float64; where float32 itself is the subject, the bound counts its roundings.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from models.shapes import Shape


def rounding(count: int, magnitude: Any, dtype: torch.dtype = torch.float32) -> float:
    """`count` roundings of numbers up to `magnitude`, all in one direction: each is off by half a unit in the last place at most.

    A sum of n terms takes n of them at most, in whatever order (Higham 2002, section 4.2).
    """
    return count * torch.finfo(dtype).eps / 2 * float(torch.as_tensor(magnitude).detach().abs().max())


def through(shape: Shape) -> int:
    """Roundings on the way to a logit, for `rounding`: the sums that follow on each other, each as long as the longest.

    A layer has eight (norm, query, scores, weighted values, output; norm, gate, down), the end two (norm, head). Errors of both
    signs cancel for the most part. That leaves room for what is not counted: a layer may magnify the error of the one before.
    """
    return (8 * shape.num_layers + 2) * max(shape.hidden_size, shape.intermediate_size, shape.context)


@contextlib.contextmanager
def float64_by_default() -> Iterator[None]:
    """Whoever asks for no dtype gets float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Whoever asks for float32, or for no dtype, gets float64; a tensor that is there already stays what it is.

    transformers' Llama narrows its norms and angles, and we our logits before a loss, whatever dtype the weights have.
    """
    with float64_by_default(), _NoFloat32():
        yield


class _NoFloat32(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        return func(*args, **{key: torch.float64 if arg is torch.float32 else arg for key, arg in (kwargs or {}).items()})
