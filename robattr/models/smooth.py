"""Smooth copies of networks: Softplus for ReLU, so that there is a second derivative to lead an attack."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

M = TypeVar("M", bound=nn.Module)


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


def softplus_surrogate(model: M, beta: float = 10.0) -> M:
    """A copy of ``model`` whose ReLUs are Softplus and whose ReLU6s are a difference of two Softplus.

    A piecewise linear network has a zero second derivative almost everywhere, so nothing that descends on its
    *attribution* can get going; the copy shares every weight's value and has one (Ghorbani et al. 2019, section 3).
    As beta grows its logits tend to the original's.

    Args:
        model: a network whose activations are modules; it is not changed.
        beta: sharpness in inverse units of the pre-activation, > 0.

    Raises:
        ValueError: beta is not positive, or the network has neither ReLU modules to replace nor smooth ones.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; a Softplus takes beta > 0, for example 10")
    smooth = copy.deepcopy(model)
    found = 0
    for parent, name, child in list(_children(smooth)):
        if isinstance(child, nn.ReLU6):
            setattr(parent, name, SoftClip(beta))
        elif isinstance(child, nn.ReLU):
            setattr(parent, name, nn.Softplus(beta=beta))
        elif isinstance(child, (nn.Softplus, SoftClip)):
            child.beta = beta
        elif not isinstance(child, _SMOOTH):
            continue
        found += 1
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no activation modules that can be made smooth; "
            "write its activations as nn.ReLU modules, not as calls of torch.relu"
        )
    return smooth


_SMOOTH = (nn.Softplus, SoftClip, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.ELU)


def is_smooth(model: nn.Module) -> bool:
    """Whether a network has activation modules, all of them smooth: its own second derivative leads an attack."""
    found = [module for module in model.modules() if isinstance(module, (*_SMOOTH, nn.ReLU, nn.ReLU6))]
    return bool(found) and all(isinstance(module, _SMOOTH) for module in found)


def set_beta(model: nn.Module, beta: float) -> None:
    """Set the beta of every Softplus and :class:`SoftClip` in ``model``, in place (for a schedule over an attack)."""
    for module in model.modules():
        if isinstance(module, (nn.Softplus, SoftClip)):
            module.beta = beta


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) over the tree, depth first, in the order of registration."""
    for name, child in model.named_children():
        yield model, name, child
        yield from _children(child)


# --------------------------------------------------------------------------------------------------------------------
