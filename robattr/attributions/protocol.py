"""What every attribution method takes and refuses: images, classes, a model, and how many images share a pass."""

from __future__ import annotations

import copy
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

Normalization = Literal["sum", "max", "l2"]
Target = Tensor | int
M = TypeVar("M", bound=nn.Module)


class Attribution(Protocol):
    """What an attack or a chapter takes as an attribution method; bind other options with ``functools.partial``."""

    def __call__(self, model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False) -> Tensor: ...


def check_target(x: Tensor, target: Target) -> Tensor:
    """The labels as int64 [N] on x's device, when images and target fit each other; a ValueError otherwise."""
    if x.ndim != 4 or not x.is_floating_point() or len(x) == 0:
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; accepted is a floating batch [N, C, H, W], N >= 1")
    if not torch.isfinite(x).all():
        raise ValueError("x has NaN or infinite values; attributions are defined for finite images")
    if isinstance(target, int):
        return torch.full((len(x),), target, device=x.device)
    if target.shape != (len(x),) or target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"target is {target.dtype} of shape {tuple(target.shape)}; accepted is one class an image, int64 [{len(x)}]"
        )
    return target.to(x.device, torch.int64)


def frozen(model: M) -> M:
    """A copy whose parameters are constants, for derivatives with respect to images only.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError(
            "the model is in training mode, where images of a batch influence one another; call model.eval()"
        )
    return copy.deepcopy(model).requires_grad_(False)


def _baseline(value: Tensor | float, x: Tensor) -> Tensor:
    start = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    try:
        return start.expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"baseline has shape {tuple(start.shape)}; accepted is a number or what broadcasts to {tuple(x.shape)}"
        ) from None


def target_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Each row's logit of its class, [N]; a ValueError where there is no such class."""
    if logits.ndim != 2:
        raise ValueError(
            f"the model returned {tuple(logits.shape)}; attributions take a model with logits [N, classes]"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        wrong = low if low < 0 else high
        raise ValueError(f"target has class {wrong}; the model has classes 0 to {logits.shape[1] - 1}")
    return logits.gather(1, labels[:, None]).squeeze(1)
