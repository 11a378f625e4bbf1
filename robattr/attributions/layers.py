"""Attributions of a layer, drawn on the pixels: Grad-CAM, activation x gradient, integrated gradients of a layer."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robattr._rows import parts_of
from robattr._second_order import SecondOrder
from robattr.attributions.attention import before_patches
from robattr.attributions.calls import CONTRACTIONS, OTHERS, Calls, check_calls_are_seen
from robattr.attributions.gradients import _quadrature
from robattr.attributions.maps import on_pixels
from robattr.attributions.protocol import Target, _baseline, called, check_target, explains, target_logits
from robattr.attributions.rules import guided_backpropagation

At = Literal["pixels", "layer"]


@explains
def grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    layer: str | None = None,
    channels: int = 1,
    relu: bool = True,
    max_batch: int | None = None,
) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017): ``relu(sum_k a_k A_k)``, with a_k the mean gradient by the layer's channel k.

    The map has one number for each place of the layer's output, and is drawn at the size of the image, between places
    bilinearly. It is returned shaped like x, as by all methods, so that heatmaps, metrics, attacks and certificates
    take it: each channel of a pixel has an equal share, and the heatmap of the result is the map itself.

    Args:
        layer: path of a module, as in ``model.named_modules()``, whose output is a map [N, K, h, w] or, in a vision
            transformer, tokens [N, T, K] on the grid of the patches, after any number of others. By default it is what
            the last pooling or flattening reads, found in the pass: in a ResNet the output of ``layer4``.
        channels: the dimension of a named layer's channels; -1 for [N, h, w, K], as within Swin and ConvNeXt.
        relu: keep what speaks for the class alone; False for both signs.
        max_batch: largest number of images in one pass; None for all at once.

    Other arguments are those of :func:`gradient`.

    Returns:
        [N, C, H, W], in units of logit times activation, divided by C; not negative with ``relu``. A map that is zero
        everywhere is one in which no place speaks for the class.

    Raises:
        ValueError: as for :func:`gradient`; or no map is pooled or flattened, as where a class token is read; or there
            is no such layer, it does not run once, or its output has no places; or the model is compiled or scripted.
    """
    where = _Where(layer, channels)
    check_calls_are_seen(model, "Grad-CAM")
    labels = check_target(x, target)
    parts = []
    for part in parts_of(len(x), max_batch):
        seen, slope = _explained(model, x[part], labels[part], where, create_graph)
        places = tuple(range(2, seen.map(slope).ndim))
        weights = seen.map(slope).mean(places, keepdim=True)
        cam = (weights * seen.map(seen.value)).sum(1)
        parts.append(on_pixels(cam.clamp(min=0) if relu else cam, x[part]))
    return _given(torch.cat(parts), create_graph)


@explains
def guided_grad_cam(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    layer: str | None = None,
    channels: int = 1,
    max_batch: int | None = None,
) -> Tensor:
    """Guided Grad-CAM (Selvaraju et al. 2017): guided backpropagation times :func:`grad_cam`, pixel by pixel.

    Arguments, errors and the shape of the result are those of the two.
    """
    cam = grad_cam(
        model, x, target, create_graph=create_graph, layer=layer, channels=channels, max_batch=max_batch
    )  # [N, C, H, W], each channel an equal share
    return x.shape[1] * cam * guided_backpropagation(model, x, target, create_graph=create_graph, max_batch=max_batch)


@explains
def layer_activation_x_gradient(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    layer: str | None = None,
    channels: int = 1,
    at: At = "pixels",
    max_batch: int | None = None,
) -> Tensor:
    """A layer's output times the gradient by it; summed over channels and drawn on the pixels as :func:`grad_cam` is.

    Args:
        at: ``pixels`` for what is shaped like x; ``layer`` for what is shaped like the layer's output, one number for
            each value of it.

    Other arguments and errors are those of :func:`grad_cam`; with ``at="layer"`` an output without places will do.
    """
    where = _Where(layer, channels, _at(at))
    check_calls_are_seen(model, "a layer's attribution")
    labels = check_target(x, target)
    parts = []
    for part in parts_of(len(x), max_batch):
        seen, slope = _explained(model, x[part], labels[part], where, create_graph)
        parts.append(_drawn(seen, seen.value * slope, x[part], at))
    return _given(torch.cat(parts), create_graph)


@explains
def layer_integrated_gradients(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    layer: str | None = None,
    channels: int = 1,
    at: At = "pixels",
    steps: int = 50,
    baseline: Tensor | float = 0.0,
    rule: Literal["midpoint", "gauss-legendre"] = "gauss-legendre",
    max_batch: int = 64,
    check: bool = True,
) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017) of a layer's output, from what a baseline gives to what x gives.

    The path is straight in the space of the layer's output; what does not pass through the layer stays that of x. The
    result is summed over channels and drawn on the pixels as :func:`grad_cam` is.

    Completeness: with ``at="layer"`` the sum is the change of the logit when the layer's output is replaced by the
    baseline's, up to the quadrature. It is checked for each image, to a tenth of what is added and subtracted.

    Args:
        at: ``pixels``, or ``layer`` for one number for each value of the layer's output.
        steps: number of points on the path, >= 1.
        baseline: an image, a number or a tensor that broadcasts to x; black by default.
        rule: quadrature on (0, 1), as for :func:`integrated_gradients`.
        check: refuse a result that is not complete; False is for who wants it knowingly.

    Other arguments and errors are those of :func:`grad_cam`.
    """
    where = _Where(layer, channels, _at(at))
    nodes, weights = _quadrature(steps, rule)
    check_calls_are_seen(model, "a layer's attribution")
    labels = check_target(x, target)
    start = _baseline(baseline, x)
    parts = []
    for part in parts_of(len(x), max_batch):
        z = x[part] if create_graph and x.requires_grad else x[part].detach()
        with torch.set_grad_enabled(create_graph), SecondOrder():
            end = _run(model, z, labels[part], where)
        with torch.no_grad():
            first = _run(model, start[part], labels[part], where)
        if first.value.shape != end.value.shape:
            raise ValueError(
                f"{where} gives {tuple(end.value.shape)} for the images and {tuple(first.value.shape)} for the "
                "baseline; a path between them needs one shape"
            )
        mean = _mean_slope(model, z, labels[part], where, first, end, nodes, weights, create_graph, max_batch)
        a = (end.value - first.value) * mean
        if check:
            with torch.no_grad():
                bare = _run(model, z, labels[part], replace(where, instead=first.value, ordinal=end.ordinal))
            _check_complete(a, end.logit, bare.logit, part.start)
        parts.append(_drawn(end, a, z, at))
    return _given(torch.cat(parts), create_graph)


def _given(a: Tensor, create_graph: bool) -> Tensor:
    return a if create_graph else a.detach()


def _at(at: str) -> bool:
    if at not in ("pixels", "layer"):
        raise ValueError(f"at is {at!r}; accepted are 'pixels' and 'layer'")
    return at == "layer"


# --------------------------------------------------------------------------------------------------------------------
# Where the layer is


@dataclass(frozen=True)
class _Where:
    """A layer by its path, or what the last pooling reads; and what it is to give instead of what it does."""

    layer: str | None
    channels: int
    raw: bool = False  # no places are asked for
    instead: Tensor | None = None
    ordinal: int = -1  # of the poolings, the one whose input is replaced

    def __post_init__(self) -> None:
        if self.channels not in (1, -1):
            raise ValueError(f"channels is {self.channels}; accepted are 1 for [N, K, h, w] and -1 for [N, h, w, K]")

    def __str__(self) -> str:
        return self.layer or "what the last pooling reads"


@dataclass(frozen=True)
class _Seen:
    """A layer's output, the logits that came of it, and how its places lie.

    Attributes:
        value: the output, in the graph of the logits.
        logit: of the class, [N].
        order: its dimensions as N, channels, places; None for tokens.
        tokens: how many come before those of the patches, and the grid of these.
        ordinal: which pooling read it.
    """

    value: Tensor
    logit: Tensor
    order: tuple[int, ...] | None
    tokens: tuple[int, tuple[int, ...]] | None
    ordinal: int

    def map(self, v: Tensor) -> Tensor:
        """What is shaped like the output as [N, K, h, w]."""
        if self.order is not None:
            return v.permute(self.order)
        assert self.tokens is not None
        first, grid = self.tokens
        return v[:, first:].transpose(1, 2).reshape(len(v), -1, *grid)


@dataclass(frozen=True)
class _Pooled:
    """What a pooling or flattening reads."""

    value: Tensor
    order: tuple[int, ...] | None
    token: bool = False  # it reads one token alone
    grid: tuple[int, ...] | None = None  # of the output of the last convolution before


class _Poolings(Calls):
    """A pass in which the input of each pooling of all places, and of each flattening, is seen; the last one counts."""

    def __init__(self, n: int, instead: Tensor | None, ordinal: int) -> None:
        super().__init__()
        self.n = n
        self.instead = instead
        self.ordinal = ordinal
        self.layers = 0
        self.count = 0
        self.last: _Pooled | None = None
        self.grid: tuple[int, ...] | None = None

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = next((key for key in ("input", "self") if not args and key in kwargs), None)
        v = kwargs[key] if key else args[0] if args else None
        out = func(*args, **kwargs)
        if not isinstance(v, Tensor) or not isinstance(out, Tensor):
            return out
        if name in CONTRACTIONS or "attention" in name:
            self.layers += 1
            if name.startswith("conv") and out.ndim > 2:
                self.grid = tuple(out.shape[2:])
            return out
        if not self.layers or not v.is_floating_point() or len(v) != self.n:
            return out
        found = _pooled(name, v, out, args[1:], kwargs)
        if found is None:
            return out
        self.count += 1
        if self.count - 1 == self.ordinal and self.instead is not None:
            v = self.instead
        self.last = replace(found, value=v, grid=self.grid)
        # The model goes on with a copy, so that what it writes over is not what was seen.
        rest = {k: w for k, w in kwargs.items() if k != key}
        return func(v.clone(), *args[1:], **rest)


def _pooled(name: str, v: Tensor, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Pooled | None:
    """A call that ends the places of v, and which of its dimensions these are; None for any other call."""
    several = math.prod(v.shape[2:]) > 1
    first = tuple(range(v.ndim))
    if "_pool" in name:
        return _Pooled(v, first) if several and math.prod(out.shape[2:]) == 1 else None
    if name in ("flatten", "view", "reshape") and v.ndim > 2 and out.ndim == 2 and len(out) == len(v):
        return _Pooled(v, first) if several else None
    if name in ("mean", "sum", "amax"):
        dim = args[0] if args else kwargs.get("dim")
        if not isinstance(dim, (int, tuple, list)) or v.ndim < 3:
            return None
        over = {int(d) % v.ndim for d in ((dim,) if isinstance(dim, int) else dim)}
        left = [d for d in range(1, v.ndim) if d not in over]
        if 0 in over or len(left) != 1 or math.prod(v.shape[d] for d in over) == 1:
            return None
        tokens = v.ndim == 3 and over == {1}
        return _Pooled(v, None if tokens else (0, left[0], *sorted(over)))
    if name in ("__getitem__", "select") and v.ndim == 3 and out.ndim == 2 and out.shape[1] == v.shape[2]:
        return _Pooled(v, None, token=True)
    return None


@contextmanager
def _named(
    model: nn.Module, where: _Where, kept: list[tuple[Tensor, tuple[int, ...] | None]], poolings: _Poolings
) -> Iterator[None]:
    """While this lasts, the output of the named layer is kept, or replaced; and the grid of the convolution before."""
    modules = dict(model.named_modules())
    if where.layer not in modules or not where.layer:
        near = difflib.get_close_matches(str(where.layer), modules, n=3, cutoff=0.3)
        raise ValueError(
            f"layer is {where.layer!r}; accepted are paths of the modules of {type(model).__name__}, as "
            f"model.named_modules() has them{': ' if near else ''}{', '.join(near)}"
        )

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        if not isinstance(out, Tensor):
            raise ValueError(f"{where.layer} returns a {type(out).__name__}; accepted are layers that return a tensor")
        value = out if where.instead is None else where.instead
        kept.append((value, poolings.grid))
        return value.clone()

    handle = modules[where.layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _run(model: nn.Module, x: Tensor, labels: Tensor, where: _Where) -> _Seen:
    """One pass, the layer's output in it and the logits of it."""
    kept: list[tuple[Tensor, tuple[int, ...] | None]] = []
    poolings = _Poolings(len(x), where.instead if where.layer is None else None, where.ordinal)
    with ExitStack() as stack:
        if where.layer is not None:
            stack.enter_context(_named(model, where, kept, poolings))
        stack.enter_context(poolings)
        logits = called(model, x)
    logit = target_logits(logits, labels)
    order: tuple[int, ...] | None
    if where.layer is None:
        if poolings.last is None or poolings.last.token:
            why = "reads one token" if poolings.last else "pools and flattens no map that a layer made"
            raise ValueError(
                f"{type(model).__name__} {why}, so there is no last map to take; name a layer by its path, for example "
                f"layer={_suggested(model)!r}, or take attention_rollout"
            )
        value, order, grid = poolings.last.value, poolings.last.order, poolings.last.grid
    else:
        if len(kept) != 1:
            raise ValueError(f"{where.layer} runs {len(kept)} times in a pass; accepted are layers that run once")
        value, grid = kept[0]
        order = tuple(range(value.ndim))
        if value.ndim == x.ndim and where.channels == -1:
            order = (0, value.ndim - 1, *range(1, value.ndim - 1))
        elif value.ndim == 3 and x.ndim == 4:
            order = None
    if len(value) != len(x):
        raise ValueError(f"{where} gives {tuple(value.shape)} for {len(x)} images; accepted is one row an image")
    tokens = None
    if order is None and value.ndim == 3:
        first = before_patches(value.shape[1], grid)
        tokens = None if first is None or grid is None else (first, grid)
    if not where.raw and tokens is None and (order is None or len(order) < 3):
        raise ValueError(
            f"{where} gives {tuple(value.shape)}, of which it is not known where it lies in the image; accepted are "
            "maps [N, K, h, w], and tokens [N, T, K] on the grid of the last convolution before them"
        )
    return _Seen(value, logit, order, tokens, poolings.count - 1)


def _suggested(model: nn.Module) -> str:
    """A layer that somebody might have meant: the normalization before the last attention, or the last convolution."""
    named = [(name, type(module).__name__) for name, module in model.named_modules()]
    attends = [i for i, (_, kind) in enumerate(named) if "Attention" in kind]
    normed = [name for name, kind in named[: attends[-1] if attends else 0] if "Norm" in kind]
    convolutions = [name for name, kind in named if "Conv" in kind]
    found: str = (normed or convolutions or [named[-1][0]])[-1]
    return found


def _explained(model: nn.Module, x: Tensor, labels: Tensor, where: _Where, create_graph: bool) -> tuple[_Seen, Tensor]:
    """A layer's output, and the gradient of each image's logit by it."""
    z = x if create_graph and x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad(), ExitStack() as stack:
        if create_graph:
            mode = stack.enter_context(SecondOrder())
            stack.enter_context(mode.inputs_only())
        seen = _run(model, z, labels, where)
        if not seen.value.requires_grad:
            raise ValueError(f"{where} does not depend on the images; name a layer between them and the logits")
        (slope,) = torch.autograd.grad(seen.logit.sum(), seen.value, create_graph=create_graph, materialize_grads=True)
    return seen, slope


def _mean_slope(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    where: _Where,
    first: _Seen,
    end: _Seen,
    nodes: list[float],
    weights: list[float],
    create_graph: bool,
    max_batch: int,
) -> Tensor:
    """The mean gradient by the layer's output on the straight path; at most ``max_batch`` images a pass."""
    together = max(1, max_batch // len(x))
    total: Tensor | None = None
    for j in range(0, len(nodes), together):
        points, shares = nodes[j : j + together], weights[j : j + together]

        def run(z: Tensor, value: Tensor, points: list[float] = points, shares: list[float] = shares) -> Tensor:
            with torch.enable_grad(), SecondOrder() as mode, mode.inputs_only():
                path = torch.cat([first.value + a * (value - first.value) for a in points])
                if not (create_graph and path.requires_grad):
                    path = path.detach().requires_grad_()
                batch = z.repeat(len(points), *[1] * (z.ndim - 1))
                at = replace(where, instead=path, ordinal=end.ordinal)
                logit = _run(model, batch, labels.repeat(len(points)), at).logit
                (g,) = torch.autograd.grad(logit.sum(), path, create_graph=create_graph, materialize_grads=True)
            w = torch.tensor(shares, dtype=g.dtype, device=g.device)
            return torch.einsum("p,p...->...", w, g.view(len(points), len(z), *g.shape[1:]))

        if create_graph and together < len(nodes):
            # Otherwise the graphs of all passes would be held until the backward pass.
            g = checkpoint(run, x, end.value, use_reentrant=False, preserve_rng_state=False)
        else:
            g = run(x, end.value)
        total = g if total is None else total + g
    assert total is not None
    return total


def _drawn(seen: _Seen, values: Tensor, x: Tensor, at: At) -> Tensor:
    return values if at == "layer" else on_pixels(seen.map(values).sum(1), x)


# A part that the quadrature may miss. What is no integral at all misses most of it.
_MISSED = 0.1


@torch.no_grad()
def _check_complete(a: Tensor, end: Tensor, start: Tensor, first: int) -> None:
    total, change = a.double().flatten(1).sum(1), (end - start).double()
    size = a.double().abs().flatten(1).sum(1) + end.double().abs() + start.double().abs()
    wrong = ~((total - change).abs() <= _MISSED * size)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise ValueError(
            f"the layer's integrated gradients of image {first + i} sum to {float(total[i]):.6g} where the logit "
            f"changes by {float(change[i]):.6g}; take more steps, {OTHERS}, or check=False to go on knowingly"
        )
