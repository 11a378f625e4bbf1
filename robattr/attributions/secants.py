"""DeepLIFT: secants in place of slopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from robattr._rows import parts_of
from robattr._second_order import SecondOrder
from robattr.attributions.activations import _hooks
from robattr.attributions.protocol import Target, _baseline, check_target, target_logits


def deeplift(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    baseline: Tensor | float = 0.0,
    max_batch: int | None = None,
) -> Tensor:
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017), exactly differentiable.

    The derivative of each activation is replaced by its secant between the baseline's and the image's pre-activation,
    and the network that is linear in this way is differentiated: ``(x - b) * multipliers``. Libraries compute the
    multipliers with backward hooks, which leaves a result whose own derivative is missing or wrong. Here the secants
    come from ordinary passes over x and b, and another pass uses them as the constants they are, so the derivative of
    the result flows through the secants alone. It is accurate where x and b nearly agree, and can be taken once.

    Completeness: the sum of the result is ``f(x) - f(b)``, exactly, for networks made of affine layers, the supported
    activations (ReLU, ReLU6, LeakyReLU, ELU, SiLU, GELU, Softplus, Sigmoid, Tanh, as modules) and max-pooling.

    Max-pooling's change is shared by the pixels of its window that stand above the lower one of the two maxima, in
    proportion to how far. Where one stands there alone it has all, as in the rule for winners; where pixels tie, as
    they do in nearly every window at a baseline of one color, the shares are equal and not a matter of rounding.

    Args:
        baseline: b, a number or a tensor that broadcasts to x; black by default.

    Other arguments, errors and the shape of the result are those of :func:`gradient`.
    """
    labels = check_target(x, target)
    start = _baseline(baseline, x)
    parts = []
    for part in parts_of(len(x), max_batch):
        z = x[part] if create_graph else x[part].detach()
        with torch.set_grad_enabled(create_graph):
            # A baseline that all images share is seen once.
            shared = start.stride(0) == 0
            secants = _secants(model, z, start[:1] if shared else start[part])
        g = _multipliers(model, z, labels[part], secants, create_graph)
        parts.append((z - start[part]) * g)
    return torch.cat(parts)


_Linearized = Callable[[Tensor], Tensor]


def _secants(model: nn.Module, x: Tensor, baseline: Tensor) -> list[_Linearized]:
    """For each call of an activation or max-pooling, in order, the linear map that the rescale rule puts there."""
    starts: list[tuple[Tensor, Tensor]] = []
    calls: list[_Linearized] = []

    def note(module: nn.Module, z0: Tensor, y0: Tensor) -> None:
        starts.append((z0, y0))

    def record(module: nn.Module, z: Tensor, y: Tensor) -> None:
        z0, y0 = starts[len(calls)]
        if isinstance(module, nn.MaxPool2d):
            calls.append(_pooling_secant(module, z, z0, y, y0))
        else:
            m = _secant(module, z, z0, y, y0)
            calls.append(lambda u: m * u)

    with SecondOrder():
        with _hooks(model, note):
            model(baseline)
        with _hooks(model, record):
            model(x)
    return calls


# Below this difference of pre-activations a secant of straight pieces is rounding noise; the slope takes its place.
_CLOSE = 1e-6


def _near(module: nn.Module, dtype: torch.dtype) -> float:
    """Differences of pre-activations below which a series is more accurate than the quotient.

    The derivative of the quotient has an error of about ``3 eps / d^2``, that of the series ``d^2 a''''/ 72``, where
    the fourth derivative of a Softplus is at most ``beta^3 / 8``; here the two are about equal. That of every other
    activation is at most 4.1, of Tanh.
    """
    if isinstance(module, (nn.ReLU, nn.ReLU6, nn.LeakyReLU)):
        return _CLOSE
    steepness = float(getattr(module, "beta", 3.2))
    return float((1000 * torch.finfo(dtype).eps / steepness**3) ** 0.25)


def _secant(module: nn.Module, z: Tensor, z0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """``m = (y - y0) / (z - z0)``, whose derivative by z is that of the secant and not of its rounding errors.

    By ``a'(z) = m + (z - z0) dm/dz`` (proposition prop-secant of the book) the secant gives its derivative where z and
    z0 are far apart; where they are near, a series gives the derivative, and that gives the secant.
    """
    graph = torch.is_grad_enabled() and (z.requires_grad or z0.requires_grad)
    with torch.no_grad():
        d = z - z0
        near = d.abs() < _near(module, z.dtype)
        place = near.nonzero(as_tuple=True)
        close = bool(len(place[0]))
        m = (y - y0).div_(d)
        if close:
            here, start = z[place], z0.expand_as(z)[place]
            step = here - start
            turn = _derivative(module, start + step * (2 / 3), 2) / 2
            m[place] = _derivative(module, here, 1) - step * turn
    if not graph:
        return m
    slopes = [
        torch.autograd.grad(value.sum(), at, retain_graph=True)[0] if at.requires_grad else None
        for value, at in ((y, z), (y0, z0))
    ]
    with torch.no_grad():
        by_z = by_z0 = None
        if slopes[0] is not None:
            by_z = (slopes[0] - m).div_(d)
            if close:
                by_z[place] = turn
        if slopes[1] is not None:
            by_z0 = (m - slopes[1]).div_(d)
            if close:
                by_z0[place] = _derivative(module, start + step / 3, 2) / 2
    secant: Tensor = _Secant.apply(z, z0, m, by_z, by_z0)
    return secant


def _derivative(module: nn.Module, z: Tensor, order: int) -> Tensor:
    """The first or second derivative of an activation at each place."""
    with torch.enable_grad():
        v = z.detach().requires_grad_()
        # forward, not a call: the call would run the hook again.
        (g,) = torch.autograd.grad(module.forward(v).sum(), v, create_graph=order == 2)
        if order == 1:
            return g
        # The slope of straight pieces is no function of the place.
        return torch.autograd.grad(g.sum(), v)[0] if g.requires_grad else torch.zeros_like(z)


class _Secant(torch.autograd.Function):
    """A secant that was computed before, with its derivatives by both ends."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, z0: Tensor, m: Tensor, by_z: Tensor | None, by_z0: Tensor | None) -> Tensor:
        ctx.save_for_backward(by_z, by_z0)
        ctx.start = z0.shape
        return m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        by_z, by_z0 = ctx.saved_tensors
        return (
            None if by_z is None else g * by_z,
            None if by_z0 is None else (g * by_z0).sum_to_size(ctx.start),
            None,
            None,
            None,
        )


def _pooling_secant(module: nn.MaxPool2d, z: Tensor, z0: Tensor, y: Tensor, y0: Tensor) -> _Linearized:
    """Max-pooling's change ``y - y0``, shared by what stands above the lower maximum, in proportion to how far.

    The shares add up, so the rule is complete, and where one pixel alone stands above it has all, as winners do. But
    to give all to winners is no function of the images: a baseline of one color has ties in nearly every window, and
    which pixel wins them is decided by the rounding of a convolution. Here pixels that tie have equal shares.
    """
    windows = _windows(module, y)
    lower, change = torch.minimum(y, y0), y - y0
    ends = list(zip(windows(z, torch.finfo(z.dtype).min), windows(z0, torch.finfo(z.dtype).min), strict=True))
    above = [(torch.maximum(v, v0) - lower).clamp(min=0) for v, v0 in ends]
    total = torch.stack(above).sum(0)
    unit = change / torch.where(total > 0, total, 1)
    weights = []
    for (v, v0), share in zip(ends, above, strict=True):
        # The share is never larger than the pixel's own change d.
        d = v - v0
        close = d.abs() < _CLOSE
        weights.append(torch.where(close, 0, unit * share) / torch.where(close, 1, d))

    def linear(u: Tensor) -> Tensor:
        parts = windows(u, 0.0)
        return torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum(0)

    return linear


def _windows(module: nn.MaxPool2d, pooled: Tensor) -> Callable[[Tensor, float], list[Tensor]]:
    """Splits what is pooled, beyond whose edges lies ``fill``, by place in the window: tensors like ``pooled``."""

    def pair(value: Any) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else tuple(value)

    size, step, before, apart = (pair(v) for v in (module.kernel_size, module.stride, module.padding, module.dilation))

    def windows(v: Tensor, fill: float) -> list[Tensor]:
        reach = [(pooled.shape[2 + i] - 1) * step[i] + 1 for i in (0, 1)]  # from the first window's place to the last's
        after = [max(0, reach[i] + (size[i] - 1) * apart[i] - before[i] - v.shape[2 + i]) for i in (0, 1)]
        wide = F.pad(v, (before[1], after[1], before[0], after[0]), value=fill)
        starts = [(row * apart[0], column * apart[1]) for row in range(size[0]) for column in range(size[1])]
        return [wide[:, :, i : i + reach[0] : step[0], j : j + reach[1] : step[1]] for i, j in starts]

    return windows


def _multipliers(model: nn.Module, x: Tensor, labels: Tensor, calls: list[_Linearized], create_graph: bool) -> Tensor:
    order = iter(calls)
    leaf = x.detach().requires_grad_()

    def replace(module: nn.Module, z: Tensor, out: Tensor) -> Tensor:
        return next(order)(z)

    with torch.enable_grad(), _hooks(model, replace), SecondOrder():
        logits = target_logits(model(leaf), labels)
    (g,) = torch.autograd.grad(logits.sum(), leaf, create_graph=create_graph)
    return g
