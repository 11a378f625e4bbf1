"""What a network calls while it runs: activations, poolings and products, as modules or as functions, and where.

A hook on a module sees neither ``torch.relu(x)`` in a forward method nor a module that is called by keyword. Every call
of a PyTorch function passes a ``TorchFunctionMode``, whoever makes it; so the rules of this package look there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robattr._calls import Calls as Calls, is_in_place as is_in_place, unseen_part
from robattr.models import softclip, softswish

PIECEWISE_LINEAR = frozenset(
    {
        "relu",
        "leaky_relu",
        "hardtanh",
        "relu6",
        "hardsigmoid",
        "clamp",
        "clamp_min",
        "clamp_max",
        "clip",
        "abs",
        "prelu",
    }
)
SMOOTH = frozenset(
    {
        "elu",
        "selu",
        "celu",
        "silu",
        "gelu",
        "mish",
        "softplus",
        "sigmoid",
        "tanh",
        "hardswish",
        "softsign",
        "log_sigmoid",
        "softclip",
        "softswish",
    }
)
ELEMENTWISE = PIECEWISE_LINEAR | SMOOTH
"""Activations, by the name of the function: one number in, one number out."""

MIXING = frozenset(
    {
        "softmax",
        "log_softmax",
        "softmin",
        "logsumexp",
        "layer_norm",
        "group_norm",
        "instance_norm",
        "rms_norm",
        "normalize",
        "local_response_norm",
        "scaled_dot_product_attention",
        "multi_head_attention_forward",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "glu",
        "max_pool1d",
        "max_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "max_pool1d_with_indices",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "fractional_max_pool2d",
        "lp_pool1d",
        "lp_pool2d",
        "amax",
        "amin",
        "max",
        "min",
        "maximum",
        "minimum",
        "median",
        "sort",
        "topk",
        "where",
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "pow",
        "square",
        "sin",
        "cos",
        "erf",
        "norm",
        "vector_norm",
        "std",
        "var",
        "std_var",
        "cumprod",
        "prod",
        "hardshrink",
        "softshrink",
        "tanhshrink",
        "threshold",
        "rrelu",
        "logaddexp",
        "cosine_similarity",
        "sign",
        "round",
        "floor",
        "ceil",
    }
)
"""Functions that are neither linear nor element-wise activations; no method here has a rule for one of them."""

PRODUCTS = frozenset({"mul", "multiply", "__mul__", "__rmul__", "__imul__"})
QUOTIENTS = frozenset({"div", "divide", "true_divide", "__truediv__", "__itruediv__"})
CONTRACTIONS = frozenset(
    {
        "matmul",
        "__matmul__",
        "bmm",
        "mm",
        "baddbmm",
        "addmm",
        "einsum",
        "bilinear",
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
    }
)
SUMS = frozenset({"add", "__add__", "__iadd__", "__radd__"})


def of_input(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What an activation is called with, and the activation as a function of it alone that changes nothing."""
    rest = {key: value for key, value in kwargs.items() if key not in ("input", "self", "inplace")}
    z: Tensor = args[0] if args else kwargs.get("input", kwargs.get("self"))  # type: ignore[assignment]
    options = args[1:]
    function: Callable[..., Tensor]
    if name in ("softclip", "softswish"):
        function = softclip if name == "softclip" else softswish
    elif name == "log_sigmoid":
        function = F.logsigmoid
    else:
        function = getattr(F if hasattr(F, name) else torch, name)
    return z, lambda v: function(v, *options, **rest)


def place(model: nn.Module) -> str:
    """The innermost module of ``model`` that is running, as its path and its type."""
    names = {id(module): name for name, module in model.named_modules()}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names:
            return f"{names[id(module)] or 'the model itself'} ({type(module).__name__})"
        frame = frame.f_back
    return f"the model itself ({type(model).__name__})"


def check_calls_are_seen(model: nn.Module, method: str) -> None:
    """Refuse networks, or parts of them, that were compiled or scripted: their calls are seen by nobody.

    Raises:
        ValueError: naming the part.
    """
    found = unseen_part(model)
    if found is not None:
        name, what, way = found
        raise ValueError(
            f"{name} is {what}, so {method} cannot see what it calls; pass the model as it was {way}, or take {OTHERS}"
        )


OTHERS = "gradient, input_x_gradient, integrated_gradients or smoothgrad, which need no rule for a layer"
