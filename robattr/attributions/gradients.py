"""The gradient of a logit, and methods that are means of it over points near the image or on a path to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robattr._rows import parts_of
from robattr._second_order import SecondOrder
from robattr.attributions.protocol import Target, _baseline, called, check_target, explains, target_logits

# A point to average over: the images of the batch's given rows -> as many images.
_Point = Callable[[Tensor, slice], Tensor]


@explains
def gradient(
    model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False, max_batch: int | None = None
) -> Tensor:
    """The simple gradient of the target's logit with respect to the image (Simonyan et al. 2014).

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, classes].
        x: images [N, C, H, W], or any other batch: signals [N, C, L], features [N, F]. Their range is not checked
            here, because noise may leave it.
        target: class of each image, int64 [N], or one int for all.
        create_graph: return a differentiable function of x (and of parameters that require a gradient).
        max_batch: largest number of images in one pass; None for all at once.

    Returns:
        Like x, in units of logit per unit of pixel intensity.

    Raises:
        ValueError: x is not a finite floating batch of images, or target does not fit it.
    """
    return _mean_gradient(model, x, target, [lambda z, rows: z], [1.0], create_graph, max_batch)


@explains
def input_x_gradient(
    model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False, max_batch: int | None = None
) -> Tensor:
    """Gradient times the [0, 1] image (Shrikumar et al. 2016); arguments and errors as for :func:`gradient`."""
    g = gradient(model, x, target, create_graph=create_graph, max_batch=max_batch)
    return (x if create_graph else x.detach()) * g


@explains
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
    nodes, weights = _quadrature(steps, rule)
    start = _baseline(baseline, x)

    def at(a: float) -> _Point:
        return lambda z, rows: start[rows] + a * (z - start[rows])

    mean = _mean_gradient(model, x, target, [at(a) for a in nodes], weights, create_graph, max_batch)
    return ((x if create_graph else x.detach()) - start) * mean


def _quadrature(steps: int, rule: str) -> tuple[list[float], list[float]]:
    """Points in (0, 1) and their weights, which sum to 1.

    Raises:
        ValueError: naming the argument.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; integrated gradients take at least 1")
    if rule == "midpoint":
        return [(i + 0.5) / steps for i in range(steps)], [1 / steps] * steps
    if rule == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
    raise ValueError(f"rule is {rule!r}; accepted are 'midpoint' and 'gauss-legendre'")


@explains
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
        return torch.einsum("p,p...->...", w, g.view(len(points), *z.shape))

    return run


def _input_gradient(model: Callable[[Tensor], Any], x: Tensor, labels: Tensor, create_graph: bool) -> Tensor:
    """The gradient of each image's logit; the sum over the batch separates because images do not interact."""
    if not (create_graph and x.requires_grad):
        x = x.detach().requires_grad_()
    if not create_graph:
        with torch.enable_grad():
            logits = target_logits(called(model, x), labels)
        return torch.autograd.grad(logits.sum(), x)[0]
    with torch.enable_grad(), SecondOrder() as mode, mode.inputs_only():
        logits = target_logits(called(model, x), labels)
        (g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return g
