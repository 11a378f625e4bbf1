"""Smooth forms of ReLU6 and Hardswish, as functions that a ``TorchFunctionMode`` sees as it sees those of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary


class SoftClip(nn.Module):
    """A smooth ReLU6, ``softplus(x) - softplus(x - cap)`` at the given beta; tends to ``clamp(x, 0, cap)``.

    With the sigmoids s of ``beta x`` and u of ``beta (x - cap)``, and their slope ``p = s - u`` and bend
    ``q = 1 - s - u``, the value is ``clamp(x, 0, cap) + log(max(u, 1 - u) / max(s, 1 - s)) / beta``: one logarithm in
    place of two, no overflow, no denormal numbers. Derivatives need no further exponential: ``p' = beta p q`` and
    ``q' = -beta (1 - p^2 - q^2) / 2``. An attack on EfficientNet-Lite0 spends a large part of its time here.
    """

    def __init__(self, beta: float, cap: float = 6.0) -> None:
        super().__init__()
        self.beta = beta
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return softclip(x, self.beta, self.cap)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, cap={self.cap}"


def softclip(x: Tensor, beta: float, cap: float = 6.0) -> Tensor:
    """The function of :class:`SoftClip`, which a ``TorchFunctionMode`` sees as it sees those of PyTorch."""
    if has_torch_function_unary(x):
        seen: Tensor = handle_torch_function(softclip, (x,), x, beta, cap)
        return seen
    y: Tensor = _SoftClip.apply(x, beta, cap)[0]
    return y.view_as(y)  # a node of its own in the graph, with one output: zennit's rules hook there


def softswish(x: Tensor, beta: float) -> Tensor:
    """A smooth Hardswish, ``x softclip(x + 3) / 6``; one function, and not a product of two maps."""
    if has_torch_function_unary(x):
        seen: Tensor = handle_torch_function(softswish, (x,), x, beta)
        return seen
    return x * softclip(x + 3, beta) / 6


class _SoftClip(torch.autograd.Function):
    """Value, slope and bend; the two are outputs so that their own derivatives are known, to any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float, cap: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        s, u = torch.mul(x, beta).sigmoid_(), torch.sub(x, cap).mul_(beta).sigmoid_()
        bend, rest = 1 - s, 1 - u
        upper, lower = torch.maximum(u, rest, out=rest), torch.maximum(s, bend)
        y = upper.div_(lower).log_().div_(beta).add_(x.clamp(0, cap))
        if not ctx.needs_input_grad[0]:
            return y, None, None
        bend.sub_(u)
        # What is nothing beside one is set to zero: products of such slopes are denormal numbers, and slow.
        slope = F.hardshrink(s.sub_(u), torch.finfo(x.dtype).eps)
        ctx.save_for_backward(slope, bend)
        ctx.beta = beta
        return y, slope, bend

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gp: Tensor | None, gq: Tensor | None) -> tuple[Tensor | None, None, None]:
        slope, bend = ctx.saved_tensors
        g = gy
        if gp is not None:
            g = gp * bend * ctx.beta if g is None else torch.addcmul(g, gp, bend, value=ctx.beta)
        g = None if g is None else g * slope
        if gq is not None:
            turned = gq * (1 - slope.square() - bend.square()) * (-ctx.beta / 2)
            g = turned if g is None else g + turned
        return g, None, None
