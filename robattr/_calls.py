"""Sees what a network calls while it runs, whoever makes the call: a module, or a function in a forward method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["Calls", "is_in_place", "unseen_part"]


class Calls(TorchFunctionMode):
    """Sees each call of a PyTorch function, by a name that is the same for ``F.relu``, ``torch.relu`` and ``x.relu_``.

    Within it the mode itself is off. It has to be entered after :class:`robattr._second_order.SecondOrder`, which
    replaces the functions that it sees.
    """

    def __enter__(self) -> Calls:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name: str = getattr(func, "__name__", "")
        if not name.startswith("__"):
            name = "threshold" if name == "_threshold" else name.rstrip("_")
        return self.call(name, func, tuple(args), dict(kwargs or {}))

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


def is_in_place(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    name: str = getattr(func, "__name__", "")
    return bool(kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))


def unseen_part(model: nn.Module) -> tuple[str, str, str] | None:
    """A part whose calls nobody sees: its name, what it is (compiled or scripted), when it was still seen."""
    for name, module in model.named_modules():
        scripted = isinstance(module, torch.jit.ScriptModule)
        compiled = not scripted and (
            module.__dict__.get("_compiled_call_impl") is not None or "_orig_mod" in module._modules
        )
        if compiled or scripted:
            what, way = ("compiled", "before torch.compile") if compiled else ("scripted", "before torch.jit")
            return name or type(module).__name__, what, way
    return None
