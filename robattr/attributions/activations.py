"""The layers whose derivative a method replaces, found by hooks on their calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from robattr.models import SoftClip

_ELEMENTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SiLU,
    nn.GELU,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
    SoftClip,
)


@contextmanager
def _hooks(model: nn.Module, hook: Callable[[nn.Module, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    handles = [
        m.register_forward_hook(lambda module, args, out: hook(module, args[0], out))
        for m in model.modules()
        if isinstance(m, (*_ELEMENTWISE, nn.MaxPool2d))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
