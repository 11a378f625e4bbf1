"""Models that return something else than logits: which numbers of it are explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robattr.models.classifier import Classifier

Read = str | int | Callable[[nn.Module, Tensor], Tensor]


class Output(nn.Module):
    """A model with what is to be explained of its output: a row an image, a column a scalar, as logits are.

    Attributions, attacks and certificates take a model with logits [N, classes]; a target is a column. This gives them
    one of any other model::

        Output(model, "logits")                                    # an object's .logits, or a dictionary's entry
        Output(model, 0)                                           # the first of a tuple
        Output(model, lambda f, x: f(x)["out"][:, 15].mean((1, 2)))  # segmentation: how much of class 15
        Output(model, lambda f, x: f(x)[:, 3] - f(x)[:, 5])        # why 3 rather than 5

    A model that needs more arguments, a text beside the image for example, is given them by such a function, too. It is
    handed the model as its first argument and has to use that one: methods work on copies.

    Args:
        model: from a batch x to anything.
        read: the name of an attribute or of an entry, the place in a tuple, or a function g(model, x) -> [N] or [N, K].

    Raises:
        ValueError: on a call, where the model's output has no such part, or what was read is not one row an image.
    """

    def __init__(self, model: nn.Module, read: Read) -> None:
        super().__init__()
        if not isinstance(read, (str, int)) and not callable(read):
            raise ValueError(f"read is {read!r}; accepted are a name, a place in a tuple, or a function g(model, x)")
        self.model = model
        self.read = read
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        found = self.read(self.model, x) if callable(self.read) else _part(self.model(x), self.read)
        if not isinstance(found, Tensor):
            raise ValueError(
                f"{self._said()} is a {type(found).__name__}; wanted is a tensor [N] or [N, K]: read it with a "
                "function g(model, x)"
            )
        if found.ndim not in (1, 2) or len(found) != len(x):
            raise ValueError(
                f"{self._said()} is {tuple(found.shape)} for {len(x)} images; wanted is [N] or [N, K]: choose or "
                "average in a function g(model, x)"
            )
        return found[:, None] if found.ndim == 1 else found

    def _said(self) -> str:
        name = getattr(self.read, "__qualname__", repr(self.read))
        return f"{name} of {type(self.model).__name__}"

    def extra_repr(self) -> str:
        """With what is read, a certificate's file is that of one question."""
        return f"read={self._said()}"


def _part(found: Any, read: str | int) -> Any:
    try:
        if isinstance(read, str) and not isinstance(found, Mapping):
            return getattr(found, read)
        if isinstance(found, Tensor):
            raise TypeError
        return found[read]
    except (AttributeError, LookupError, TypeError):
        if isinstance(found, Tensor):
            has = f"a tensor {tuple(found.shape)}, which is explained as it is where it is [N, classes]"
        elif isinstance(found, Mapping):
            has = f"a {type(found).__name__} with {', '.join(map(repr, found))}"
        else:
            has = f"a {type(found).__name__}" + (f" of {len(found)}" if isinstance(found, (tuple, list)) else "")
        raise ValueError(f"read is {read!r}, and the model returned {has}") from None


def example_of(model: nn.Module) -> Tensor | None:
    """A random image [1, C, H, W] for a model that knows the size of its images; None for any other."""
    while isinstance(model, Output):
        model = model.model
    if not isinstance(model, Classifier):
        return None
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.rand(1, *model.input_size, generator=torch.Generator().manual_seed(0)).to(like)
