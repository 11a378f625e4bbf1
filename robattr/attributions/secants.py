"""DeepLIFT: secants in place of slopes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from robattr._rows import parts_of
from robattr._second_order import SecondOrder
from robattr.attributions.calls import (
    CONTRACTIONS,
    ELEMENTWISE,
    MIXING,
    OTHERS,
    PIECEWISE_LINEAR,
    PRODUCTS,
    QUOTIENTS,
    Calls,
    check_calls_are_seen,
    is_in_place,
    of_input,
    place,
)
from robattr.attributions.protocol import Target, _baseline, called, check_target, explains, target_logits


@explains
def deeplift(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    baseline: Tensor | float = 0.0,
    max_batch: int | None = None,
    check: bool = True,
) -> Tensor:
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017), exactly differentiable.

    The derivative of each activation is replaced by its secant between the baseline's and the image's pre-activation,
    and the network that is linear in this way is differentiated: ``(x - b) * multipliers``. Libraries compute the
    multipliers with backward hooks, which leaves a result whose own derivative is missing or wrong. Here the secants
    come from ordinary passes over x and b, and another pass uses them as the constants they are, so the derivative of
    the result flows through the secants alone. It is accurate where x and b nearly agree, and can be taken once.

    Activations are found where they are called, as modules or as functions, in place or not: ReLU, ReLU6, LeakyReLU,
    PReLU, Hardtanh, Hardsigmoid, clamp, abs, ELU, SELU, CELU, SiLU, GELU, Mish, Softplus, Sigmoid, Tanh, Hardswish,
    Softsign, LogSigmoid and SoftClip. So are max-poolings of images, and products of two maps (a gate, as in
    squeeze-and-excitation), where ``ab - a0 b0 = (a - a0)(b + b0)/2 + (b - b0)(a + a0)/2`` is shared as it stands.

    Completeness: the sum of the result is ``f(x) - f(b)``, exactly, for networks made of these and of affine layers. It
    is checked for each image, by logits that the method has anyway, and half of the digits have to be right.

    Max-pooling's change is shared by the pixels of its window that stand above the lower one of the two maxima, in
    proportion to how far. Where one stands there alone it has all, as in the rule for winners; where pixels tie, as
    they do in nearly every window at a baseline of one color, the shares are equal and not a matter of rounding.

    Args:
        baseline: b, a number or a tensor that broadcasts to x; black by default.

        check: refuse a result that is not complete; False is for who wants it knowingly.

    Other arguments and the shape of the result are those of :func:`gradient`.

    Raises:
        ValueError: as for :func:`gradient`; or the model calls a function that is neither affine nor known (softmax,
            a layer normalization, attention), named with its layer; or is compiled or scripted; or the result is not
            complete, with the relative error.
    """
    check_calls_are_seen(model, "DeepLIFT")
    labels = check_target(x, target)
    start = _baseline(baseline, x)
    parts = []
    for part in parts_of(len(x), max_batch):
        z = x[part] if create_graph else x[part].detach()
        with torch.set_grad_enabled(create_graph):
            # A baseline that all images share is seen once.
            shared = start.stride(0) == 0
            calls, logits, logits0 = _passes(model, z, start[:1] if shared else start[part])
        g = _multipliers(model, z, labels[part], calls, create_graph)
        a = (z - start[part]) * g
        if check:
            _check_complete(model, z, a, logits, logits0, labels[part], part.start)
        parts.append(a)
    return torch.cat(parts)


_TOLERANCE = 1e-6
"""The least part by which completeness is missed in float64: a slope takes a secant's place below :data:`_CLOSE`."""


@torch.no_grad()
def _check_complete(
    model: nn.Module, x: Tensor, a: Tensor, logits: Tensor, logits0: Tensor, labels: Tensor, first: int
) -> None:
    """Refuse attributions whose sum is not the change of the logit.

    Half of the digits have to be right, relative to what is added and subtracted on the way: the terms of the sum, and
    the two logits. Rounding through tens of layers costs some digits; a rule for another layer costs them all. A logit
    that is small beside the values it was made of may be off by their rounding, which is looked up only then.
    """
    end = target_logits(logits, labels).double()
    start = target_logits(logits0.expand_as(logits), labels).double()
    change, total = end - start, a.double().flatten(1).sum(1)
    size = a.double().abs().flatten(1).sum(1) + end.abs() + start.abs()
    missed = (total - change).abs()
    wrong = ~(missed <= size * max(torch.finfo(a.dtype).eps ** 0.5, _TOLERANCE))
    for i in wrong.nonzero().flatten().tolist():
        if missed[i] <= 8 * torch.finfo(a.dtype).eps * _largest(model, x[i : i + 1]):
            continue
        raise ValueError(
            f"DeepLIFT's attributions of image {first + i} sum to {float(total[i]):.6g} where the logit changes by "
            f"{float(change[i]):.6g}, a relative error of {float(missed[i] / change[i].abs()):.2g}: the model has a "
            f"layer that DeepLIFT does not know; take {OTHERS}, or check=False to go on knowingly"
        )


def _largest(model: nn.Module, x: Tensor) -> float:
    """The largest size of what an activation of the model sees for one image."""
    found = [0.0]

    class Look(Calls):
        def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            found.extend(float(v.abs().max()) for v in _inputs(name, args, kwargs) if v.numel())
            return func(*args, **kwargs)

    with Look():
        called(model, x)
    return max(found)


@dataclass(frozen=True)
class _Seen:
    """A call that is no linear map: its function, what went in, what came out, and their versions then."""

    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    versions: tuple[int, ...]

    @staticmethod
    def of(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> _Seen:
        return _Seen(name, inputs, output, tuple(v._version for v in (*inputs, output)))

    @property
    def stale(self) -> bool:
        """Whether somebody has written into one of them since."""
        return any(v._version != was for v, was in zip((*self.inputs, self.output), self.versions, strict=True))


@dataclass(frozen=True)
class _Refused:
    """A call without a rule; an error if the logits turn out to depend on it by way of the images."""

    name: str


class _Changed(Exception):
    """What was seen of the baseline is of no use for the images: it was written over, or has another shape."""


# What takes a call's place in the last pass: its arguments to its output, whose derivative is that of the secant.
_Linearized = Callable[..., Tensor] | _Refused | None


class _Watched(Calls):
    """Notes each call of an activation, max-pooling, product or other non-linear map in a pass."""

    def __init__(self, model: nn.Module, copies: bool) -> None:
        super().__init__()
        self.model = model
        self.copies = copies

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = _inputs(name, args, kwargs)
        if not inputs:
            return func(*args, **kwargs)
        if is_in_place(func, kwargs) or name in _ONTO_ITSELF:
            return _written(func, args, kwargs, lambda f, a, k: self.call(_ONTO_ITSELF.get(name, name), f, a, k))
        kept = inputs
        if self.copies:
            # The call reads the copies, so that its slope by them is there.
            new = {id(v): v.clone() for v in inputs}
            kept = tuple(new[id(v)] for v in inputs)
            args, kwargs = _exchanged(args, new), _exchanged(kwargs, new)
        output = func(*args, **kwargs)
        value = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(value, Tensor):
            self.note(_Seen.of(name, kept, value.clone() if self.copies else value), args, kwargs)
        return output

    def note(self, seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise NotImplementedError


# Products and quotients that Python writes into their first factor.
_ONTO_ITSELF = {"__imul__": "mul", "__itruediv__": "div"}


def _written(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    call: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
) -> Tensor:
    """A call that writes over its first argument, as one that does not and a copy: what it needs of it is kept."""
    key = next((key for key in ("input", "self") if not args and key in kwargs), None)
    target: Tensor = kwargs[key] if key else args[0]
    options = {k: v for k, v in kwargs.items() if k not in ("inplace", key)}
    name = func.__name__ if func.__name__.startswith("__") else func.__name__.rstrip("_")
    plain = _ONTO_ITSELF.get(name, name)
    # An activation's own function, without the flag; a product or a quotient under its plain name.
    function = getattr(F if hasattr(F, plain) else torch, plain)
    return target.copy_(call(function, (target.clone(), *args[1:]), options))


def _inputs(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The tensors that a call which needs a secant depends on; nothing for the linear ones."""
    if name in ELEMENTWISE or name == "max_pool2d":
        z = args[0] if args else kwargs.get("input", kwargs.get("self"))
        return (z,) if isinstance(z, Tensor) and z.is_floating_point() else ()
    if name in MIXING:
        found = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
    elif name in PRODUCTS or name in QUOTIENTS or name in CONTRACTIONS:
        flat = [w for v in (*args, *kwargs.values()) for w in (v if isinstance(v, (tuple, list)) else (v,))]
        found = [v for v in flat if isinstance(v, Tensor) and v.is_floating_point()]
        # A map times a number or a parameter is linear; other constants are told by their values.
        if len(found) < 2 or any(isinstance(v, nn.Parameter) for v in found[:2]):
            return ()
    else:
        return ()
    return tuple(found)


C = TypeVar("C")


def _exchanged(values: C, new: Mapping[int, Tensor]) -> C:
    """Arguments with other tensors, by what they were."""
    found: Any = values
    if isinstance(values, dict):
        found = {key: _exchanged(v, new) for key, v in values.items()}
    elif isinstance(values, (tuple, list)):
        found = type(values)(_exchanged(v, new) for v in values)
    elif isinstance(values, Tensor):
        found = new.get(id(values), values)
    return found  # type: ignore[no-any-return]


class _Starts(_Watched):
    """The pass of the baseline."""

    def __init__(self, model: nn.Module, copies: bool) -> None:
        super().__init__(model, copies)
        self.seen: list[_Seen] = []

    def note(self, seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.append(seen)


class _Ends(_Watched):
    """The pass of the images, which forms for each call the linear map that takes its place; None for one that does not
    depend on the images."""

    def __init__(self, model: nn.Module, copies: bool, starts: list[_Seen]) -> None:
        super().__init__(model, copies)
        self.starts = starts
        self.outputs: list[tuple[Tensor, int]] = []
        self.calls: list[_Linearized] = []

    def note(self, seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        start = self.starts[len(self.calls)] if len(self.calls) < len(self.starts) else None
        if start is None or start.name != seen.name:
            raise ValueError(
                f"{place(self.model)} runs other layers for the images than for the baseline: DeepLIFT has no secants "
                f"between them; take {OTHERS}"
            )
        if any(v.shape[1:] != v0.shape[1:] or len(v0) not in (1, len(v)) for v, v0 in _pairs(start, seen)):
            raise _Changed
        if start.stale:
            raise _Changed
        self.outputs.append((seen.output, seen.output._version))
        self.calls.append(self._linear(start, seen, args, kwargs))

    def _linear(self, start: _Seen, seen: _Seen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Linearized:
        name = seen.name
        changed = [not _same(v, v0) for v, v0 in zip(seen.inputs, start.inputs, strict=True)]
        if name in ELEMENTWISE:
            if seen.inputs[0] is start.inputs[0]:
                return None
            z, z0, y = seen.inputs[0], start.inputs[0], seen.output
            given, function = of_input(name, args, kwargs)
            options = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v is not given]
            if name == "prelu":
                m = _prelu_secant(options[0], z, z0)
            elif options:
                return _Refused(f"{name} with bounds that are tensors")
            else:
                shape = _Shape(name, function, _steepness(name, args, kwargs), _KINKS.get(name, ()))
                m = _secant(shape, z, z0, y, start.output)
            return lambda u: _Line.apply(u, y, m)
        if name == "max_pool2d":
            if seen.inputs[0] is start.inputs[0]:
                return None
            pool = _Pool.of(args, kwargs)
            if pool is None:
                return _Refused(name)
            return _pooling_secant(pool, seen.inputs[0], start.inputs[0], seen.output, start.output)
        if name in PRODUCTS and len(seen.inputs) == 2:
            return _product(start, seen) if all(changed) else None
        if name in QUOTIENTS and not any(changed[1:]):
            return None
        if name in CONTRACTIONS and sum(changed) < 2:
            return None
        if not any(changed):
            return None
        return _Refused(name)


def _pairs(start: _Seen, seen: _Seen) -> list[tuple[Tensor, Tensor]]:
    if len(start.inputs) != len(seen.inputs):
        raise _Changed
    ends = zip((*seen.inputs, seen.output), (*start.inputs, start.output), strict=True)
    return [(v, v0) for v, v0 in ends if v is not v0 and v.ndim and v0.ndim]


def _same(v: Tensor, v0: Tensor) -> bool:
    """Whether a value is a constant of the network: one that two different images agree in."""
    return v is v0 or (v.shape == v0.shape and torch.equal(v, v0))


def _product(start: _Seen, seen: _Seen) -> _Linearized:
    """Two maps that both depend on the image: ``ab - a0 b0 = (a - a0)(b + b0)/2 + (b - b0)(a + a0)/2``, exactly."""
    (a, b), (a0, b0), y = seen.inputs, start.inputs, seen.output.detach()
    by_a, by_b = (b + b0) / 2, (a + a0) / 2
    return lambda u, v: _valued(y, u * by_a + v * by_b)


def _valued(value: Tensor, line: Tensor) -> Tensor:
    """What has the value of the first and the derivative of the second."""
    return value + (line - line.detach())


class _Line(torch.autograd.Function):
    """A line through what was seen: its value is the call's own, its derivative the secant."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, y: Tensor, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (m,) = ctx.saved_tensors
        return g * m, None, None


def _passes(
    model: nn.Module, x: Tensor, baseline: Tensor, copies: bool = False
) -> tuple[list[_Linearized], Tensor, Tensor]:
    """For each call that is no linear map, in order, what takes its place; and the logits of x and of the baseline."""
    starts = _Starts(model, copies)
    try:
        with SecondOrder():
            with starts:
                logits0 = called(model, baseline)
            ends = _Ends(model, copies, starts.seen)
            with ends:
                logits = called(model, x)
        if any(output._version != was for output, was in ends.outputs):
            raise _Changed
    except _Changed:
        if copies:
            raise ValueError(
                f"{type(model).__name__} writes over what it has computed, or lays out a baseline in another way than "
                f"an image: DeepLIFT has no secants there; take {OTHERS}"
            ) from None
        return _passes(model, x, baseline.expand_as(x), copies=True)
    return ends.calls, logits, logits0


# Below this difference of pre-activations a secant of straight pieces is rounding noise; the slope takes its place.
_CLOSE = 1e-6


_KINKS: dict[str, tuple[float, ...]] = {
    "elu": (0.0,),
    "selu": (0.0,),
    "celu": (0.0,),
    "softsign": (0.0,),
    "hardswish": (-3.0, 3.0),
}
"""Where the first or second derivative of an activation that is smooth elsewhere jumps."""


@dataclass(frozen=True)
class _Shape:
    """An activation: its function, how fast it bends, and the places where it does so suddenly."""

    name: str
    function: Callable[[Tensor], Tensor]
    steepness: float
    kinks: tuple[float, ...]

    def near(self, dtype: torch.dtype) -> float:
        """Differences of pre-activations below which a series is more accurate than the quotient.

        The derivative of the quotient has an error of about ``3 eps / d^2``, that of the series ``d^2 a''''/ 72``,
        where the fourth derivative of a Softplus is at most ``beta^3 / 8``; here the two are about equal.
        """
        if self.name in PIECEWISE_LINEAR:
            return _CLOSE
        return float((1000 * torch.finfo(dtype).eps / self.steepness**3) ** 0.25)

    def derivative(self, z: Tensor, order: int) -> Tensor:
        """The first or second derivative at each place."""
        if order == 2 and self.name in PIECEWISE_LINEAR:
            return torch.zeros_like(z)
        with torch.enable_grad():
            v = z.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.function(v).sum(), v, create_graph=order == 2)
            if order == 1:
                return g
            return torch.autograd.grad(g.sum(), v)[0] if g.requires_grad else torch.zeros_like(z)

    def series(self, z: Tensor, z0: Tensor) -> tuple[Tensor, Tensor]:
        """The secant between two near places, and its derivative by the first."""
        step = z - z0
        turn = self.derivative(z0 + step * (2 / 3), 2) / 2
        return self.derivative(z, 1) - step * turn, turn

    def crossed(self, z: Tensor, z0: Tensor, m: Tensor, turn: Tensor) -> None:
        """Mend what the series says where a kink lies between: each side has a series of its own, up to the kink."""
        for kink in self.kinks:
            at = ((z - kink) * (z0 - kink) <= 0) & (z != z0)
            if at.any():
                here, start = z[at], z0[at]
                end = torch.full_like(here, kink)
                sides = (here - end) * self.series(here, end)[0] + (end - start) * self.series(start, end)[0]
                m[at] = sides / (here - start)
                turn[at] = (self.derivative(here, 1) - m[at]) / (here - start)


def _steepness(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The ``beta`` of a Softplus whose fourth derivative, at most ``beta^3 / 8``, bounds that of the activation."""
    if name == "softplus":
        return float(args[1] if len(args) > 1 else kwargs.get("beta", 1.0))
    if name == "softclip":
        return float(args[1] if len(args) > 1 else kwargs["beta"])
    if name == "softswish":  # at most beta^3 / 16 + 0.07 beta^2, since it bends where |x| is near 3
        return max(1.1, float(args[1] if len(args) > 1 else kwargs["beta"]))
    alpha = float(args[1] if len(args) > 1 else kwargs.get("alpha", 1.0)) if name in ("elu", "celu") else 1.0
    usual = 3.2  # 4.1, of Tanh, is the largest fourth derivative of the others
    return max(usual, 2 / alpha) if name == "celu" else max(usual, (8 * abs(alpha)) ** (1 / 3))


def _secant(shape: _Shape, z: Tensor, z0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """``m = (y - y0) / (z - z0)``, whose derivative by z is that of the secant and not of its rounding errors.

    By ``a'(z) = m + (z - z0) dm/dz`` (proposition prop-secant of the book) the secant gives its derivative where z and
    z0 are far apart; where they are near, a series gives the derivative, and that gives the secant.
    """
    graph = torch.is_grad_enabled() and (z.requires_grad or z0.requires_grad)
    with torch.no_grad():
        d = z - z0
        at = (d.abs() < shape.near(z.dtype)).nonzero(as_tuple=True)
        close = bool(len(at[0]))
        m = (y - y0).div_(d)
        if close:
            here, start = z[at], z0.expand_as(z)[at]
            mean, turn = shape.series(here, start)
            shape.crossed(here, start, mean, turn)
            m[at] = mean
    if not graph:
        return m
    slopes = [
        torch.autograd.grad(value.sum(), end, retain_graph=True)[0] if end.requires_grad else None
        for value, end in ((y, z), (y0, z0))
    ]
    with torch.no_grad():
        by_z = by_z0 = None
        if slopes[0] is not None:
            by_z = (slopes[0] - m).div_(d)
            if close:
                by_z[at] = turn
        if slopes[1] is not None:
            by_z0 = (m - slopes[1]).div_(d)
            if close:
                turn = shape.derivative(start + (here - start) / 3, 2) / 2
                shape.crossed(start, here, mean, turn)
                by_z0[at] = turn
    secant: Tensor = _Secant.apply(z, z0, m, by_z, by_z0)
    return secant


def _prelu_secant(weight: Tensor, z: Tensor, z0: Tensor) -> Tensor:
    """A line of slope w below zero, with one w a channel; what is learned here has its derivative too."""
    w = weight.view(-1, *[1] * (z.ndim - 2)) if weight.numel() > 1 else weight
    d = z - z0
    close = d.abs() < _CLOSE
    rise = z.clamp(min=0) - z0.clamp(min=0)
    m = (rise + w * (z.clamp(max=0) - z0.clamp(max=0))) / torch.where(close, 1, d)
    return torch.where(close, torch.where(z > 0, 1, w), m)


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


@dataclass(frozen=True)
class _Pool:
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Pool | None:
        """The windows of a call; None for one that is not of images, or returns places too."""
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if given.get("return_indices") or given["input"].ndim != 4:
            return None
        size = given["kernel_size"]
        return _Pool(size, given.get("stride") or size, given.get("padding", 0), given.get("dilation", 1))


def _pooling_secant(module: _Pool, z: Tensor, z0: Tensor, y: Tensor, y0: Tensor) -> _Linearized:
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
    # Of what is too small to be shared: its square, by which a derivative divides, may be no number.
    near = total < _CLOSE
    unit = torch.where(near, 0, change / torch.where(near, 1, total))
    weights = []
    for (v, v0), share in zip(ends, above, strict=True):
        # The share is never larger than the pixel's own change d.
        d = v - v0
        close = d.abs() < _CLOSE
        weights.append(torch.where(close, 0, unit * share) / torch.where(close, 1, d))

    def linear(u: Tensor) -> Tensor:
        parts = windows(u, 0.0)
        return _valued(y.detach(), torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum(0))

    return linear


def _windows(module: _Pool, pooled: Tensor) -> Callable[[Tensor, float], list[Tensor]]:
    """Splits what is pooled, beyond whose edges lies ``fill``, by place in the window: tensors like ``pooled``."""

    def pair(value: Any) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]

    size, step, before, apart = (pair(v) for v in (module.kernel_size, module.stride, module.padding, module.dilation))

    def windows(v: Tensor, fill: float) -> list[Tensor]:
        reach = [(pooled.shape[2 + i] - 1) * step[i] + 1 for i in (0, 1)]  # from the first window's place to the last's
        after = [max(0, reach[i] + (size[i] - 1) * apart[i] - before[i] - v.shape[2 + i]) for i in (0, 1)]
        wide = F.pad(v, (before[1], after[1], before[0], after[0]), value=fill)
        starts = [(row * apart[0], column * apart[1]) for row in range(size[0]) for column in range(size[1])]
        return [wide[:, :, i : i + reach[0] : step[0], j : j + reach[1] : step[1]] for i, j in starts]

    return windows


class _Replaced(Calls):
    """The last pass: each call that was seen becomes the line through what was seen."""

    def __init__(self, model: nn.Module, calls: list[_Linearized]) -> None:
        super().__init__()
        self.model = model
        self.order = iter(calls)

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = _inputs(name, args, kwargs)
        if not inputs:
            return func(*args, **kwargs)
        line = next(self.order)
        if isinstance(line, _Refused) and any(v.requires_grad for v in inputs):
            raise ValueError(f"DeepLIFT has no rule for {line.name}, which {place(self.model)} calls; take {OTHERS}")
        if line is None or isinstance(line, _Refused):
            return func(*args, **kwargs)
        if not is_in_place(func, kwargs) and name not in _ONTO_ITSELF:
            return line(*inputs)
        return inputs[0].copy_(line(inputs[0].clone(), *inputs[1:]))


def _multipliers(model: nn.Module, x: Tensor, labels: Tensor, calls: list[_Linearized], create_graph: bool) -> Tensor:
    leaf = x.detach().requires_grad_()
    with torch.enable_grad(), SecondOrder(), _Replaced(model, calls):
        logits = target_logits(called(model, leaf), labels)
    (g,) = torch.autograd.grad(logits.sum(), leaf, create_graph=create_graph)
    return g
