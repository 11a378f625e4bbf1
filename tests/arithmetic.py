"""How far apart can two orders of one sum be, and how near is a kink? What a test compares to more than rounding.

A convolution of another batch, another number of threads and another processor sum the same products in another order.
In exact arithmetic nothing changes; in floating point the bounds here say how much can.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def gamma(terms: int, dtype: torch.dtype) -> float:
    """``n u / (1 - n u)`` with the unit roundoff u: a sum of n products, formed in any order, is wrong by at most this
    part of the sum of the products' sizes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
    """
    nu = terms * torch.finfo(dtype).eps / 2
    assert nu < 1
    return nu / (1 - nu)


def distance_from_kinks(model: nn.Module, run: Callable[[], object]) -> float:
    """The least distance of what ReLUs and max-poolings of ``model`` see from where their slope jumps, while ``run``.

    For a ReLU that is the size of its input; for a window of max-pooling the difference of its two largest values,
    where they differ. Equal values of a window are zeros of dead units, whose slope is zero whichever of them wins.
    Rounding far below this distance crosses no kink.
    """
    nearest = [float("inf")]

    def relu(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nearest.append(float(args[0].detach().abs().min()))

    def pool(module: nn.MaxPool2d, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert module.padding == 0
        windows = nn.functional.unfold(
            args[0].detach().flatten(0, 1)[:, None], module.kernel_size, stride=module.stride
        )
        first, second = windows.topk(2, dim=1).values.unbind(1)
        assert (first[first == second] == 0).all()
        nearest.append(float((first - second)[first > second].min()))

    handles = [
        m.register_forward_hook(pool if isinstance(m, nn.MaxPool2d) else relu)
        for m in model.modules()
        if isinstance(m, nn.ReLU | nn.MaxPool2d)
    ]
    assert handles, "no kinks to keep away from"
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return min(nearest)
