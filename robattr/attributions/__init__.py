"""Attribution methods that can be differentiated: which pixels does a logit depend on, and how would that change?

Every method is called as ``method(model, x, target, *, create_graph=False, ...)`` and returns a tensor shaped like x
[N, C, H, W]. With ``create_graph=True`` the result is a differentiable function of x - what an attack on, or a training
for, an explanation needs. Images of a batch never influence one another, so a batch equals its single images.

Methods that average over points keep memory bounded: no pass holds more than ``max_batch`` images, and with
``create_graph=True`` what does not fit is computed again in the backward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from robattr._second_order import SecondOrder
from robattr.models import Classifier, SoftClip, fold_batchnorm

__all__ = [
    "METHODS",
    "Attribution",
    "deep_taylor",
    "deeplift",
    "gradient",
    "guided_backpropagation",
    "heatmap",
    "input_x_gradient",
    "integrated_gradients",
    "lrp",
    "smoothgrad",
]

Normalization = Literal["sum", "max", "l2"]
Target = Tensor | int
M = TypeVar("M", bound=nn.Module)
# A point to average over: the images of the batch's given rows -> as many images.
_Point = Callable[[Tensor, slice], Tensor]


class Attribution(Protocol):
    """What an attack or a chapter takes as an attribution method; bind other options with ``functools.partial``."""

    def __call__(self, model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False) -> Tensor: ...


# --------------------------------------------------------------------------------------------------------------------
# Methods that are means of gradients


def gradient(
    model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False, max_batch: int | None = None
) -> Tensor:
    """The simple gradient of the target's logit with respect to the image (Simonyan et al. 2014).

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, classes].
        x: images. Their range is not checked here, because noise may leave it.
        target: class of each image, int64 [N], or one int for all.
        create_graph: return a differentiable function of x (and of parameters that require a gradient).
        max_batch: largest number of images in one pass; None for all at once.

    Returns:
        [N, C, H, W], in units of logit per unit of pixel intensity.

    Raises:
        ValueError: x is not a finite floating batch of images, or target does not fit it.
    """
    return _mean_gradient(model, x, target, [lambda z, rows: z], [1.0], create_graph, max_batch)


def input_x_gradient(
    model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False, max_batch: int | None = None
) -> Tensor:
    """Gradient times the [0, 1] image (Shrikumar et al. 2016); arguments and errors as for :func:`gradient`."""
    g = gradient(model, x, target, create_graph=create_graph, max_batch=max_batch)
    return (x if create_graph else x.detach()) * g


def integrated_gradients(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    steps: int = 50,
    baseline: Tensor | float = 0.0,
    rule: Literal["midpoint", "gauss-legendre"] = "gauss-legendre",
    max_batch: int = 64,
) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017): ``(x - b) * mean over a of grad f(b + a (x - b))``.

    Completeness: the sum of the result is ``f(x) - f(b)`` up to the quadrature error, which falls with ``steps``.

    Args:
        steps: number of points on the path, >= 1.
        baseline: b, a number or a tensor that broadcasts to x; black by default.
        rule: quadrature on (0, 1); Gauss-Legendre is exact for polynomials up to degree 2 steps - 1.

    Other arguments, errors and the shape of the result are those of :func:`gradient`.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; integrated gradients take at least 1")
    if rule == "midpoint":
        nodes = (np.arange(steps) + 0.5) / steps
        weights = np.full(steps, 1 / steps)
    elif rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        nodes, weights = (nodes + 1) / 2, weights / 2
    else:
        raise ValueError(f"rule is {rule!r}; accepted are 'midpoint' and 'gauss-legendre'")
    start = _baseline(baseline, x)

    def at(a: float) -> _Point:
        return lambda z, rows: start[rows] + a * (z - start[rows])

    mean = _mean_gradient(model, x, target, [at(a) for a in nodes], weights.tolist(), create_graph, max_batch)
    return ((x if create_graph else x.detach()) - start) * mean


def smoothgrad(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    samples: int = 50,
    sigma: float = 0.15,
    seed: int = 0,
    max_batch: int = 64,
) -> Tensor:
    """SmoothGrad (Smilkov et al. 2017): the mean gradient at ``samples`` copies of x with Gaussian noise.

    The noise depends on ``seed`` alone and is shared by all images, so that two maps differ by their images and not by
    their noise, and a batch equals its single images.

    Args:
        samples: number of noisy copies, >= 1.
        sigma: standard deviation of the noise in pixel units (the image range is 1), >= 0.

    Other arguments, errors and the shape of the result are those of :func:`gradient`.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; SmoothGrad takes at least 1")
    if not sigma >= 0:
        raise ValueError(f"sigma is {sigma}; a standard deviation is >= 0, in pixel units of a [0, 1] image")
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (samples,), generator=generator).tolist()

    def at(seed: int) -> _Point:
        def noisy(z: Tensor, rows: slice) -> Tensor:
            # Drawn on the CPU: the same noise on every device.
            noise = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=z.dtype)
            return z + sigma * noise.to(z.device)

        return noisy

    return _mean_gradient(model, x, target, [at(s) for s in seeds], [1 / samples] * samples, create_graph, max_batch)


def _mean_gradient(
    model: nn.Module,
    x: Tensor,
    target: Target,
    points: list[_Point],
    weights: list[float],
    create_graph: bool,
    max_batch: int | None,
) -> Tensor:
    """``sum_i w_i grad f(p_i(x))`` where each p_i shifts or scales; at most ``max_batch`` images a pass."""
    labels = check_target(x, target)
    limit = len(x) * len(points) if max_batch is None else max_batch
    together = max(1, limit // len(x))  # points that share a pass
    blocks = []
    one_pass = limit >= len(x) * len(points)
    for part in parts_of(len(x), limit):
        block, block_labels = x[part], labels[part]
        total: Tensor | None = None
        for j in range(0, len(points), together):
            run = _one_pass(
                model, points[j : j + together], weights[j : j + together], part, block_labels, create_graph
            )
            if create_graph and not one_pass:
                # Otherwise the graphs of all passes would be held until the backward pass.
                g = checkpoint(run, block, use_reentrant=False, preserve_rng_state=False)
            else:
                g = run(block)
            total = g if total is None else total + g
        assert total is not None
        blocks.append(total)
    return torch.cat(blocks) if len(blocks) > 1 else blocks[0]


def _one_pass(
    model: nn.Module, points: list[_Point], weights: list[float], rows: slice, labels: Tensor, create_graph: bool
) -> Callable[[Tensor], Tensor]:
    def run(z: Tensor) -> Tensor:
        batch = torch.cat([p(z, rows) for p in points]) if len(points) > 1 else points[0](z, rows)
        g = _input_gradient(model, batch, labels.repeat(len(points)), create_graph)
        if len(points) == 1:
            return g * weights[0]
        w = torch.tensor(weights, dtype=g.dtype, device=g.device)
        return torch.einsum("p,pnchw->nchw", w, g.view(len(points), *z.shape))

    return run


def _input_gradient(model: nn.Module, x: Tensor, labels: Tensor, create_graph: bool) -> Tensor:
    """The gradient of each image's logit; the sum over the batch separates because images do not interact."""
    if not (create_graph and x.requires_grad):
        x = x.detach().requires_grad_()
    if not create_graph:
        with torch.enable_grad():
            logits = target_logits(model(x), labels)
        return torch.autograd.grad(logits.sum(), x)[0]
    with torch.enable_grad(), SecondOrder() as mode, mode.inputs_only():
        logits = target_logits(model(x), labels)
        (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return g


# --------------------------------------------------------------------------------------------------------------------
# DeepLIFT


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
_Linearized = Callable[[Tensor], Tensor]


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
    """Max-pooling gives ``max(y, y0) - y0`` to the image's winner, ``y - max(y, y0)`` to the baseline's: complete."""

    def winners(v: Tensor) -> Tensor:
        return F.max_pool2d(
            v.detach(),
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            ceil_mode=module.ceil_mode,
            return_indices=True,
        )[1].flatten(2)

    i, i0 = winners(z), winners(z0).expand(len(z), -1, -1)
    top = torch.maximum(y, y0)
    delta = (z - z0).flatten(2)

    def weight(index: Tensor, share: Tensor) -> Tensor:
        d = delta.gather(2, index)
        close = d.abs() < _CLOSE
        return torch.where(close, 0, share.flatten(2)) / torch.where(close, 1, d)

    w, w0 = weight(i, top - y0), weight(i0, y - top)

    def linear(u: Tensor) -> Tensor:
        flat = u.flatten(2)
        return (w * flat.gather(2, i) + w0 * flat.gather(2, i0)).view_as(y)

    return linear


def _multipliers(model: nn.Module, x: Tensor, labels: Tensor, calls: list[_Linearized], create_graph: bool) -> Tensor:
    order = iter(calls)
    leaf = x.detach().requires_grad_()

    def replace(module: nn.Module, z: Tensor, out: Tensor) -> Tensor:
        return next(order)(z)

    with torch.enable_grad(), _hooks(model, replace), SecondOrder():
        logits = target_logits(model(leaf), labels)
    (g,) = torch.autograd.grad(logits.sum(), leaf, create_graph=create_graph)
    return g


# --------------------------------------------------------------------------------------------------------------------
# Guided backpropagation


def guided_backpropagation(
    model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False, max_batch: int | None = None
) -> Tensor:
    """Guided backpropagation (Springenberg et al. 2015): only positive signals pass back through an activation.

    An activation ``y = a(z)`` passes back ``a'(z) * max(dy, 0)`` in place of ``a'(z) * dy``. For a ReLU that is the
    gradient where both z and dy are positive, and 0 elsewhere. The smooth activations, Softplus and SoftClip among
    them, weigh the positive part with their slope in (0, 1), and tend to the ReLU's or ReLU6's as beta grows. Guided
    are all activation modules that :func:`deeplift` supports.

    The derivative of the result is its true one: signals are clipped in the pass that forms the result, and not in a
    later pass over the same graph.

    Arguments and the shape of the result are those of :func:`gradient`.

    Raises:
        ValueError: as for :func:`gradient`, or the model has no activation modules, so that nothing could be guided.
    """
    labels = check_target(x, target)
    if not any(isinstance(m, _ELEMENTWISE) for m in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has no activation modules to guide; write its activations as nn.ReLU modules, or "
            "take the gradient of a linear model"
        )
    parts = []
    for part in parts_of(len(x), max_batch):
        with _guided(model):
            parts.append(_input_gradient(model, x[part], labels[part], create_graph))
    return torch.cat(parts)


@contextmanager
def _guided(model: nn.Module) -> Iterator[None]:
    """Backward passes in here, over graphs made in here, are guided; the graphs are ordinary ones afterwards."""
    handles = []

    def guide(module: nn.Module, z: Tensor, out: Tensor) -> None:
        if out.requires_grad and not isinstance(module, nn.MaxPool2d):
            handles.append(out.register_hook(lambda d: d.clamp(min=0)))  # type: ignore[no-untyped-call]

    try:
        with _hooks(model, guide):
            yield
    finally:
        for handle in handles:
            handle.remove()


# --------------------------------------------------------------------------------------------------------------------
# Layer-wise relevance propagation


def lrp(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    rule: Literal["epsilon", "epsilon-plus", "alpha2-beta1"] = "epsilon",
    epsilon: float = 1e-6,
    max_batch: int | None = None,
) -> Tensor:
    """Layer-wise relevance propagation (Bach et al. 2015), with zennit's rules.

    Relevance starts as the target's logit and ends on the pixels (normalization is a bijection of each pixel and keeps
    it). Batch normalizations are folded first; sums of residual branches share relevance in proportion.

    Args:
        rule: ``epsilon`` everywhere, ``epsilon-plus`` (z+ for convolutions) or ``alpha2-beta1`` (for convolutions).
        epsilon: stabilizer of the epsilon rule, in units of the pre-activation, > 0.

    Other arguments, errors and the shape of the result are those of :func:`gradient`. With ``create_graph`` the result
    is a function of x only: the parameters are constants.
    """
    from zennit.composites import EpsilonAlpha2Beta1, EpsilonPlus, LayerMapComposite, layer_map_base
    from zennit.rules import Epsilon, Pass
    from zennit.types import Linear

    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; the stabilizer of the epsilon rule is > 0, for example 1e-6")
    own = [((SoftClip,), Pass())]
    options = {"layer_map": own, "epsilon": epsilon, "canonizers": _canonizers()}
    if rule == "epsilon":
        layers = [*own, *layer_map_base(), (Linear, Epsilon(epsilon))]
        composite = LayerMapComposite(layers, canonizers=_canonizers())
    elif rule == "epsilon-plus":
        composite = EpsilonPlus(**options)
    elif rule == "alpha2-beta1":
        composite = EpsilonAlpha2Beta1(**options)
    else:
        raise ValueError(f"rule is {rule!r}; accepted are 'epsilon', 'epsilon-plus' and 'alpha2-beta1'")
    return _relevance(model, x, target, lambda low, high: composite, create_graph, max_batch)


def deep_taylor(
    model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False, max_batch: int | None = None
) -> Tensor:
    """Deep Taylor decomposition (Montavon et al. 2017): the z+ rule, and the z-box rule at the pixels.

    The box of the first layer is the range of a [0, 1] image after the model's own normalization. Relevance is
    conserved up to biases and is not negative where the logit is positive. Rules are zennit's; arguments, errors and
    the shape of the result are those of :func:`lrp`.
    """
    from zennit.composites import SpecialFirstLayerMapComposite, layer_map_base
    from zennit.rules import Pass, ZBox, ZPlus
    from zennit.types import Linear

    def composite(low: Tensor, high: Tensor) -> Any:
        return SpecialFirstLayerMapComposite(
            layer_map=[((SoftClip,), Pass()), *layer_map_base(), (Linear, ZPlus())],
            first_map=[(Linear, ZBox(low, high))],
            canonizers=_canonizers(),
        )

    return _relevance(model, x, target, composite, create_graph, max_batch)


def _canonizers() -> list[Any]:
    from zennit.canonizers import AttributeCanonizer
    from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer

    return [AttributeCanonizer(_residual), ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]


def _residual(name: str, module: nn.Module) -> dict[str, Any] | None:
    """Inverted residual blocks (timm, torchvision) add their input behind a flag; make that sum a layer with a rule."""
    from zennit.layer import Sum

    for flag in ("has_skip", "use_res_connect"):
        if getattr(module, flag, False):
            branch = copy.copy(module)  # shares the layers, and the hooks that are put on them
            setattr(branch, flag, False)
            total = Sum()

            def forward(x: Tensor, branch: nn.Module = branch, total: nn.Module = total) -> Tensor:
                out: Tensor = total(torch.stack([branch.forward(x), x], dim=-1))
                return out

            return {"forward": forward, "canonizer_sum": total}
    return None


def _relevance(
    model: nn.Module,
    x: Tensor,
    target: Target,
    composite_for: Callable[[Tensor, Tensor], Any],
    create_graph: bool,
    max_batch: int | None,
) -> Tensor:
    labels = check_target(x, target)
    # A copy, because hooks and canonizers change modules while they are in use; the caller's model stays as it is.
    model = fold_batchnorm(model).requires_grad_(False)
    network: nn.Module = model
    normalize: nn.Module = nn.Identity()
    if isinstance(model, Classifier):
        model.check_shape(x)
        network, normalize = model.network, model.normalize
    parts = []
    for part in parts_of(len(x), max_batch):
        leaf = x[part] if create_graph and x.requires_grad else x[part].detach().requires_grad_()
        with torch.enable_grad():
            z = normalize(leaf)
            low, high = normalize(torch.zeros_like(leaf)).detach(), normalize(torch.ones_like(leaf)).detach()
            composite = composite_for(low, high)
            # The hooks die with the context, so that a later derivative of the result is the true one.
            with composite.context(network) as hooked:
                out = hooked(z)
                logit = target_logits(out, labels[part])
                seed = torch.zeros_like(out).scatter(1, labels[part, None], logit[:, None])
                (r,) = torch.autograd.grad(out, z, seed, create_graph=create_graph)
        parts.append(r)
    return torch.cat(parts)


# --------------------------------------------------------------------------------------------------------------------
# Maps


def heatmap(attribution: Tensor, normalize: Normalization | None = "sum") -> Tensor:
    """One number a pixel: the sum over channels of absolute values, divided by its sum, maximum or l2 norm.

    Args:
        attribution: [N, C, H, W].
        normalize: ``sum`` (Ghorbani et al. 2019), ``max`` (Joo et al. 2023), ``l2`` or None.

    Returns:
        [N, H, W], not negative; a map that is zero everywhere stays zero.
    """
    if attribution.ndim != 4:
        raise ValueError(f"attribution has shape {tuple(attribution.shape)}; a heatmap takes [N, C, H, W]")
    h = attribution.abs().sum(1)
    if normalize is None:
        return h
    peak = h.amax((1, 2), keepdim=True)
    peak = torch.where(peak > 0, peak, 1)
    if normalize == "max":
        return h / peak
    # First by the maximum, as a constant: sums and squares of very small or very large values stay in range.
    h = h / peak.detach()
    if normalize == "sum":
        scale = h.sum((1, 2), keepdim=True)
    elif normalize == "l2":
        scale = (h * h).sum((1, 2), keepdim=True).clamp_min(torch.finfo(h.dtype).tiny).sqrt()
    else:
        raise ValueError(f"normalize is {normalize!r}; accepted are 'sum', 'max', 'l2' and None")
    return h / torch.where(scale > 0, scale, 1)


METHODS: dict[str, Attribution] = {
    "gradient": gradient,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": smoothgrad,
    "guided_backpropagation": guided_backpropagation,
    "deeplift": deeplift,
    "lrp": lrp,
    "deep_taylor": deep_taylor,
}
"""Every method by name, for parameters that are plain literals."""


# --------------------------------------------------------------------------------------------------------------------


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


def parts_of(n: int, max_batch: int | None) -> Iterator[slice]:
    """The rows of each pass, at most ``max_batch`` of n."""
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}; a pass takes at least 1 image")
    size = max_batch or n
    return (slice(i, i + size) for i in range(0, n, size))


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
