"""Models that return something else than logits: which numbers of it are explained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from robattr._yaml import one_line
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
        ValueError: the function does not take a model and a batch; on a call, where the model's output has no such
            part, the function fails, or what was read is not one row an image.
    """

    def __init__(self, model: nn.Module, read: Read) -> None:
        super().__init__()
        if not isinstance(read, (str, int)) and not callable(read):
            raise ValueError(f"read is {read!r}; accepted are a name, a place in a tuple, or a function g(model, x)")
        if not isinstance(model, nn.Module):
            raise ValueError(f"model is a {type(model).__name__}; accepted is an nn.Module")
        if callable(read):
            _check_arguments(read)
        self.model = model
        self.read = read
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        if callable(self.read):
            try:
                found: Any = self.read(self.model, x)
            except Exception as error:
                self._explain(error)
        else:
            found = _part(self.model(x), self.read)
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

    def _explain(self, error: Exception) -> NoReturn:
        """Raise a reader's mistake in one line; what the model, or a method that watches it, says goes on as it is."""
        mistake = isinstance(
            error, (TypeError, LookupError, AttributeError, NameError, AssertionError, ArithmeticError)
        )
        if not mistake and not (isinstance(error, (ValueError, RuntimeError)) and _raised_in(self.read, error)):
            raise error
        raise ValueError(
            f"{self._said()} fails: {type(error).__name__}: {one_line(error)}; it is called as g(model, x) with a "
            "batch of images, and gives [N] or [N, K]"
        ) from error

    def _said(self) -> str:
        name = getattr(self.read, "__qualname__", repr(self.read))
        return f"{name} of {type(self.model).__name__}"

    def extra_repr(self) -> str:
        """With what is read, a certificate's file is that of one question."""
        return f"read={self._said()}"


def _check_arguments(read: Callable[..., Any]) -> None:
    """Refuse a function that cannot be called with a model and a batch.

    One of a single argument may mean the model's output or the images. With the images it would have its model from
    elsewhere, and methods, which work on copies, would change another one than it calls.
    """
    try:
        signature = inspect.signature(read)
    except (TypeError, ValueError):
        return  # of a built-in, which says itself what it takes
    try:
        signature.bind(None, None)
    except TypeError:
        name = getattr(read, "__qualname__", repr(read))
        raise ValueError(
            f"read is {name}{signature}; accepted is a function g(model, x) of two arguments: for a function h of the "
            "model's output, lambda model, x: h(model(x))"
        ) from None


def _raised_in(read: object, error: Exception) -> bool:
    """Whether a function's own lines raised an error, or a call of torch in them; not the model that it calls.

    A method that watches refuses with a ValueError what the function calls: that one is not its own.
    """
    code = getattr(read, "__code__", getattr(type(read).__call__, "__code__", None))
    lines = {code, *getattr(code, "co_consts", ())}  # a comprehension in it has a code of its own
    frame, own, last = error.__traceback__, False, None
    while frame is not None:
        last = frame.tb_frame.f_code
        own = last in lines or (own and last.co_name != "_call_impl")
        frame = frame.tb_next
    return last in lines if isinstance(error, ValueError) else own


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
