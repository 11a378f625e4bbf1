"""Convolutions with constant weights, differentiated twice at the price of a convolution.

PyTorch's double backward of a convolution also forms the mixed derivative with respect to the weight, group by group,
whether or not anybody asked for it: for the depthwise layers of EfficientNet-Lite0 that is 9,000 small convolutions
and more than half the time of an attack step. With constant weights a convolution is a linear map A of its input, its
backward pass is A^T and the backward pass of that is A again; saying so is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["LinearConvolutions"]

_Pair = Sequence[int]


class LinearConvolutions(TorchFunctionMode):
    """Within this context ``conv2d`` with a weight that requires no gradient is differentiated as a linear map.

    Values and derivatives stay what they are; convolutions whose weight is being trained are left alone.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return _conv2d(*args, **kwargs)
        return func(*args, **kwargs)


def _pair(value: int | _Pair) -> _Pair:
    return (value, value) if isinstance(value, int) else value


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | _Pair = 1,
    padding: str | int | _Pair = 0,
    dilation: int | _Pair = 1,
    groups: int = 1,
) -> Tensor:
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained or not input.requires_grad or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
    out: Tensor = _Map.apply(input, weight, bias, geometry)
    return out


class _Map(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.weight, ctx.geometry, ctx.shape = weight, geometry, x.shape
        return torch.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Transpose.apply(grad, ctx.weight, ctx.geometry, ctx.shape), None, None, None


class _Transpose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, geometry: tuple[Any, ...], shape: torch.Size) -> Tensor:
        ctx.weight, ctx.geometry = weight, geometry
        stride, padding, dilation, groups = geometry
        # The operator reads only the shape of its input when the weight's gradient is not asked for.
        like = grad.new_empty(1).expand(shape)
        out: Tensor = torch.ops.aten.convolution_backward(
            grad, like, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )[0]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Map.apply(grad, ctx.weight, None, ctx.geometry), None, None, None
