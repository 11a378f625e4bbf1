"""Sums in another order, as another processor, batch or number of threads forms them: ``pytest --reorder SEED``.

A sum of products can be formed in any order, and libraries choose one for each processor and shape. Here half of the
elements of every result, drawn for the operation and the shapes, are the sum of two partial sums whose terms are drawn,
too. Where arithmetic is exact nothing changes, and the same operation on tensors of the same shapes rounds alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
Operation = Callable[..., Any]


class Reordered(TorchDispatchMode):
    """Within this context convolutions, products of matrices, sums and means on the CPU round otherwise."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.other: dict[Operation, Callable[..., Any]] = {
            ATEN.convolution.default: self.convolution,
            ATEN.convolution_backward.default: self.convolution_backward,
            **dict.fromkeys((ATEN.mm.default, ATEN.bmm.default, ATEN.mv.default, ATEN.dot.default), self.product),
            ATEN.addmm.default: self.addmm,
            **dict.fromkeys((ATEN.sum.default, ATEN.sum.dim_IntList), self.sum),
            **dict.fromkeys((ATEN.mean.default, ATEN.mean.dim), self.mean),
        }

    def __torch_dispatch__(
        self, func: Operation, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        other = self.other.get(func)
        tensors = [v for v in args if isinstance(v, Tensor)]
        if other is None or not all(v.is_floating_point() and v.is_cpu and v.isfinite().all() for v in tensors):
            return out
        shapes = [tuple(v.shape) for v in tensors]
        self.draws = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {func} {shapes}".encode()))
        return other(func, out, *args, **(kwargs or {}))

    def halves(self, v: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(v.shape, generator=self.draws) < 0.5
        return v.where(chosen, 0), v.where(~chosen, 0)

    def mixed(self, out: Tensor, other: Tensor) -> Tensor:
        return torch.where(torch.rand(out.shape, generator=self.draws) < 0.5, out, other)

    def convolution(
        self, func: Operation, out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, *rest: Any
    ) -> Tensor:
        one, two = (func(x, half, None, *rest) for half in self.halves(w))
        other = one + two
        return self.mixed(out, other if bias is None else other + bias.view(-1, *[1] * (out.ndim - 2)))

    def convolution_backward(
        self, func: Operation, out: tuple[Any, ...], g: Tensor, x: Tensor, w: Tensor, *rest: Any
    ) -> tuple[Any, ...]:
        sizes, *geometry, asked = rest
        found = list(out)
        if asked[0]:
            one, two = (func(g, x, half, sizes, *geometry, [True, False, False])[0] for half in self.halves(w))
            found[0] = self.mixed(out[0], one + two)
        if asked[1]:
            one, two = (func(half, x, w, sizes, *geometry, [False, True, False])[1] for half in self.halves(g))
            found[1] = self.mixed(out[1], one + two)
        if asked[2]:
            one, two = (half.sum([0, *range(2, g.ndim)]) for half in self.halves(g))
            found[2] = self.mixed(out[2], one + two)
        return tuple(found)

    def product(self, func: Operation, out: Tensor, a: Tensor, b: Tensor) -> Tensor:
        one, two = (func(half, b) for half in self.halves(a))
        return self.mixed(out, one + two)

    def addmm(self, func: Operation, out: Tensor, c: Tensor, a: Tensor, b: Tensor, **scales: Any) -> Tensor:
        if scales:
            return out
        one, two = (ATEN.mm.default(half, b) for half in self.halves(a))
        return self.mixed(out, one + two + c)

    def sum(self, func: Operation, out: Tensor, x: Tensor, *options: Any, **more: Any) -> Tensor:
        one, two = (func(half, *options, **more) for half in self.halves(x))
        return self.mixed(out, one + two)

    def mean(self, func: Operation, out: Tensor, x: Tensor, *options: Any, **more: Any) -> Tensor:
        if not out.numel():
            return out
        plain = ATEN.sum.default if func is ATEN.mean.default else ATEN.sum.dim_IntList
        one, two = (plain(half, *options, **more) for half in self.halves(x))
        return self.mixed(out, (one + two) / (x.numel() // out.numel()))
