"""The judge of each exercise: what is right, and what is said of wrong answers that are well known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robattr import attributions, data, metrics, models, smoothing
from robattr.exercises._judging import Judge, choice, choices, function, number, numbers, parts, thing
from robattr.exercises._networks import trained

__all__ = ["JUDGES"]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _integer(generator: torch.Generator, low: int, high: int) -> int:
    """From low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _gradient(f: Callable[[Tensor], Any], x: Tensor) -> Tensor | str:
    """The gradient of an answer's function, or what is wrong with the function."""
    x = x.clone().requires_grad_()
    value = f(x)
    if not isinstance(value, Tensor) or value.ndim != 0:
        return (
            f"f must return a tensor of no dimension; it returns {type(value).__name__} {getattr(value, 'shape', '')}"
        )
    if not value.requires_grad:
        return "PyTorch cannot differentiate f: it returns a constant, or leaves the graph with .item() or .detach()"
    (found,) = torch.autograd.grad(value, x, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


# --- 1: attributions -------------------------------------------------------------------------------------------------

_IMAGE_IN_MAP = "it has the image as a factor, so it changes with the image"


def _right_heatmap(a: Tensor) -> Tensor:
    mass = a.abs().sum(0)
    return mass / mass.sum() if mass.sum() > 0 else mass


def _unused_pixel(f: Any) -> str:
    if not callable(f):
        return f"wanted is a function of a tensor of two values; this is a {type(f).__name__}"
    x = torch.ones(2, dtype=torch.float64)
    without = torch.tensor([1.0, 0.0], dtype=torch.float64)
    g = _gradient(f, x)
    if isinstance(g, str):
        return g
    lost = float(f(x)) - float(f(without))
    if lost < 0.5:
        return f"f(1, 1) - f(1, 0) is {lost:.3g}; f has to use its second pixel, by at least 0.5"
    if g[1] != 0:
        return (
            f"the gradient in the second pixel is {float(g[1]):.3g}; it has to be 0 at (1, 1), so let f be flat there"
        )
    if g[0] == 0:
        return "the gradient in the first pixel is 0 too: then the map is empty, and nobody is led astray by it"
    return ""


def _homogeneous(generator: torch.Generator) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    first, last = _normal(generator, 6, 4), _normal(generator, 6)

    def f(x: Tensor) -> Tensor:
        return last @ torch.relu(first @ x)

    return f, _normal(generator, 4)


def _ray(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found = _gradient(f, x)
    assert isinstance(found, Tensor)
    return found


# --- 2: fragile ------------------------------------------------------------------------------------------------------


def _two_flat(answer: Any) -> str:
    maps = []
    for name in ("a", "b"):
        if not isinstance(answer, Mapping) or name not in answer:
            return f"{name} is missing; wanted is {{'a': ten numbers, 'b': ten numbers}}"
        value = torch.as_tensor(answer[name], dtype=torch.float64).flatten()
        if len(value) != 10:
            return f"{name} has {len(value)} values; wanted are ten"
        if bool((value < 0).any()) or not bool(value.isfinite().all()):
            return f"{name} has a value that is negative or not finite; heatmaps have none"
        maps.append(value[None])
    shared, cosine = float(metrics.topk_intersection(maps[0], maps[1], 3)), float(metrics.cosine(maps[0], maps[1]))
    if shared > 0:
        return (
            f"they share {round(3 * shared)} of the three largest pixels; of tied pixels the first one counts as larger"
        )
    if cosine < 0.99:
        return f"their cosine is {cosine:.3f}; it has to be at least 0.99: let nearly all values be nearly equal"
    return ""


def _step(generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    original = _uniform(generator, 3, 4)
    epsilon = float(0.05 + 0.3 * torch.rand((), generator=generator, dtype=torch.float64))
    return original + 3 * epsilon * _normal(generator, 3, 4), original, epsilon


def _right_project(moved: Tensor, original: Tensor, epsilon: float) -> Tensor:
    return torch.minimum(torch.maximum(moved, original - epsilon), original + epsilon).clamp(0, 1)


def _leaks() -> int:
    """Of 256 values, how many leave the ball of 8/255 when it is added in float32: arithmetic of IEEE 754 alone."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    moved = values + np.float32(8 / 255)
    return int((moved.astype(np.float64) - values.astype(np.float64) > 8 / 255).sum())


def _found_images(answer: Any) -> str:
    x = data.load("digits", limit=50).images
    moved = torch.as_tensor(answer).to(x.dtype)
    if moved.shape != x.shape:
        return f"they have the shape {list(moved.shape)}; the originals have {list(x.shape)}"
    if not 0 <= float(moved.min()) <= float(moved.max()) <= 1:
        return "a value is outside of [0, 1]: that is no image"
    largest = float((moved.double() - x.double()).abs().max())
    if largest > 16 / 255:
        return f"a value changed by {255 * largest:.6g}/255, more than 16/255"
    model = trained()
    y = model(x).argmax(1)
    if kept := int((model(moved).argmax(1) != y).sum()):
        return f"the prediction changed in {kept} of the 50; an attack on the map has to keep it"
    before, after = (attributions.heatmap(attributions.gradient(model, z, y)) for z in (x, moved))
    shared = float(metrics.topk_intersection(before, after, 10).mean())
    if shared > 0.9:
        return f"the maps still share {shared:.3f} of their top ten; a direction from a Softplus copy gets below 0.9"
    return ""


# --- 3: influence ----------------------------------------------------------------------------------------------------


def _ranked(generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    count = _integer(generator, 8, 20)
    return _normal(generator, count), _normal(generator, count), _integer(generator, 2, 5)


def _turnover(before: Tensor, after: Tensor, k: int) -> float:
    first, then = (set(v.argsort()[:k].tolist()) for v in (before, after))
    return len(first - then) / k


# --- 4: why ----------------------------------------------------------------------------------------------------------


def _curved(generator: torch.Generator) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    weights, mixed = _normal(generator, 5), _normal(generator, 5, 5) / 3

    def f(x: Tensor) -> Tensor:
        return (weights * torch.tanh(mixed @ x)).sum() + (x**3).sum() / 6

    return f, _normal(generator, 5), _normal(generator, 5)


def _product(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    return torch.autograd.functional.hvp(f, x, v)[1]  # type: ignore[no-any-return, no-untyped-call]


def _hessian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(f, x)  # type: ignore[no-any-return, no-untyped-call]


# --- 6: small Hessian ------------------------------------------------------------------------------------------------


def _pair(answer: Any) -> tuple[Tensor, Tensor] | str:
    found = []
    for name in ("g", "change"):
        if not isinstance(answer, Mapping) or name not in answer:
            return f"{name} is missing; wanted is {{'g': two numbers, 'change': two numbers}}"
        value = torch.as_tensor(answer[name], dtype=torch.float64).flatten()
        if len(value) != 2 or not bool(value.isfinite().all()):
            return f"{name} must be two finite numbers"
        found.append(value)
    g, change = found
    if float(g.norm()) == 0 or float((g + change).norm()) == 0:
        return "one of the two gradients is zero, and has no direction; choose another"
    return g, change


def _turned(answer: Any) -> str:
    pair = _pair(answer)
    if isinstance(pair, str):
        return pair
    g, change = pair
    if float(change.norm()) > 0.01 * (1 + 1e-12):
        return f"the change is {float(change.norm()):.4g} long; at most 0.01 is asked for"
    if float(g @ (g + change)) > 0:
        quotient = float(change.norm() / g.norm())
        return f"the cosine is positive: the change is {quotient:.3g} times as long as g; how long does g have to be?"
    return ""


def _unturned(answer: Any) -> str:
    pair = _pair(answer)
    if isinstance(pair, str):
        return pair
    g, change = pair
    if float(change.norm()) < 100 * (1 - 1e-12):
        return f"the change is {float(change.norm()):.4g} long; at least 100 is asked for"
    cosine = float(g @ (g + change) / (g.norm() * (g + change).norm()))
    if cosine < 0.999:
        return f"the cosine is {cosine:.4f}; make g longer, or let the change go along it"
    return ""


def _rho(g: Tensor, moved: Tensor) -> float:
    return float((moved - g).norm() / g.norm())


def _floor(g: Tensor, moved: Tensor) -> float:
    rho = _rho(g, moved)
    return math.sqrt(1 - rho**2) if rho < 1 else -1.0


def _near_and_far(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    g = 3 * _normal(generator, 2, 3)
    return g, g + g.norm() * float(1.3 * torch.rand((), generator=generator)) * _unit(_normal(generator, 2, 3))


def _unit(x: Tensor) -> Tensor:
    found: Tensor = x / x.norm()
    return found


# --- 7: aligned gradients --------------------------------------------------------------------------------------------


def _wave(answer: Any) -> str:
    if not isinstance(answer, Mapping) or not {"f", "moved"} <= set(answer):
        return "wanted is {'f': a function, 'moved': two numbers}"
    f, center = answer["f"], torch.full((2,), 0.5, dtype=torch.float64)
    if not callable(f):
        return f"f is a {type(f).__name__}; wanted is a function of a tensor of two values"
    moved = torch.as_tensor(answer["moved"], dtype=torch.float64).flatten()
    if len(moved) != 2 or float((moved - center).abs().max()) > 0.1 + 1e-12:
        return "moved must be two numbers within 0.1 of (0.5, 0.5)"
    gradients = [_gradient(f, x) for x in (center, moved)]
    for each in gradients:
        if isinstance(each, str):
            return each
        if float(each.norm()) == 0:
            return "a gradient is zero at (0.5, 0.5) or at moved, and has no direction"
    line = torch.linspace(0.4, 0.6, 41, dtype=torch.float64)
    generator = torch.Generator().manual_seed(20)
    points = [moved, *torch.cartesian_prod(line, line), *(0.4 + 0.2 * _uniform(generator, 200, 2))]
    for x in points:
        if float(f(x)) < 0.5:
            return (
                f"f is {float(f(x)):.3g} at ({float(x[0]):.3f}, {float(x[1]):.3f}): the prediction is not robust there"
            )
    before, after = gradients
    cosine = float(before @ after / (before.norm() * after.norm()))  # type: ignore[operator, union-attr]
    if cosine > -0.9:
        return f"the cosine of the two gradients is {cosine:.3f}; at most -0.9 is asked for: let f go up and down"
    return ""


def _cosine(g: Tensor, moved: Tensor) -> Tensor:
    found: Tensor = (g * moved).sum() / (g.norm() * moved.norm())
    return found


def _alignment(g: Tensor, moved: Tensor, l2: float, cos: float) -> Tensor:
    return l2 * (g - moved).square().sum() + cos * (1 - _cosine(g, moved)) / 2


def _weighed(generator: torch.Generator) -> tuple[Tensor, Tensor, float, float]:
    weights = _uniform(generator, 2).tolist()
    return _normal(generator, 2, 3, 3), _normal(generator, 2, 3, 3), weights[0], 1 + weights[1]


# --- 8: certificates -------------------------------------------------------------------------------------------------


def _certified(H: float, p: float, M: float) -> float:
    return math.sqrt(1 - (2 * p * M / H) ** 2) if 2 * p * M < H else -1.0


def _lengths(generator: torch.Generator) -> tuple[float, float, float]:
    H, p, M = _uniform(generator, 3).tolist()
    return (0.3 + 0.7 * H) * (1 + M), 0.35 * p, 1 + M


@cache
def _lengths_at_ten() -> Tensor:
    smooth = models.softplus_surrogate(trained(), beta=10)
    x = data.load("digits", limit=10).images
    return smoothing.certify(
        smooth, x, smooth(x).argmax(1), noise=smoothing.Gaussian(10.0), epsilon=0.01, samples=2000
    ).norm_lower


def _length_at_ten(answer: Any) -> str:
    got, found = float(answer), _lengths_at_ten()
    # Other samples of the noise move each bound by less than the ten differ, so a median lies among them.
    low, high = float(found.min()), float(found.max())
    if low <= got <= high:
        return ""
    than = "more" if got > high else "less"
    return f"{got:.4g} is {than} than for any of the ten digits; is this norm_lower, at sigma 10?"


def _chance(n: int, alpha: float, seen: int) -> float:
    return 1 - sum(math.comb(n, k) * alpha**k * (1 - alpha) ** (n - k) for k in range(seen))


def _failures(generator: torch.Generator) -> tuple[int, float, int]:
    n = _integer(generator, 5, 60)
    return n, 0.02 + 0.3 * float(_uniform(generator)), _integer(generator, 1, n // 3)


# --- the ledger ------------------------------------------------------------------------------------------------------

_STATE = {
    "holds": "the whole interval would have to be past 0.05",
    "fails": "all of it would have to fall short of 0.05",
    "undecided": "0.05 would have to lie inside of it",
}


def _verdict(states: list[str]) -> str:
    hold, fail = states.count("holds"), states.count("fails")
    if hold == len(states):
        return "reproduced"
    if fail > hold:
        return "not reproduced"
    return "partly reproduced" if hold else "undecided"


def _some_states(generator: torch.Generator) -> tuple[list[str]]:
    return ([list(_STATE)[_integer(generator, 0, 2)] for _ in range(_integer(generator, 1, 5))],)


JUDGES: dict[str, Judge] = {
    "ex-linear": parts(
        gradient=numbers(
            2,
            -1,
            wrong={
                (2, -0.5): "that is gradient times input; the gradient alone does not know the image",
                (2, 1): "heatmaps have no sign, gradients do",
                (1, -0.5): "these are half of the weights; what is the derivative of 2 x_1?",
            },
        ),
        input_x_gradient=numbers(
            2,
            -0.5,
            wrong={
                (2, -1): "that is the gradient; multiply it by the image",
                (2, 0.5): "the weight of x_2 is negative",
            },
        ),
        integrated_gradients=numbers(
            2,
            -0.5,
            wrong={
                (2, -1): "that is the mean of the gradient; it is multiplied by x minus the baseline",
                (1, -0.25): "the gradient is the same on the whole path, so nothing is halved",
            },
        ),
        relevance=numbers(
            2,
            -0.5,
            wrong={
                (8 / 3, -2 / 3): "the bias takes part in the sum below the line: 3/2 + 1/2",
                (1, -0.25): "these are the shares; the logit that is shared out is 2",
            },
        ),
        complete=choices(
            "bcd",
            {
                "a": "the gradient sums to 1, and f(x) - f(0) is 3/2",
                "b": "2 - 1/2 is f(x) - f(0)",
                "c": "integrated gradients always sum to f(x) - f(baseline)",
                "d": "its bias takes 1/2, the pixels get 3/2",
            },
        ),
        moved=choices(
            "bcd",
            {
                "a": "the gradient of an affine function is the same at every image",
                "b": _IMAGE_IN_MAP,
                "c": _IMAGE_IN_MAP,
                "d": _IMAGE_IN_MAP,
            },
            word="a linear model's gradient cannot be attacked, what contains the image can",
        ),
    ),
    "ex-saturation": parts(
        gradient=numbers(
            0,
            0,
            wrong={
                (1, 1): "that is the gradient below the kink; at (1, 1) the maximum is 0",
                (0.5, 0.5): "on which side of the kink is (1, 1)?",
            },
        ),
        integrated_gradients=numbers(
            0.5,
            0.5,
            wrong={
                (0, 0): "that is the gradient at the end; what is it on the way?",
                (1, 1): "the gradient is 1 on the first half of the way only",
                (0.25, 0.25): "half of the way with a gradient of 1, times x = 1",
            },
        ),
        deeplift=numbers(
            0.5,
            0.5,
            wrong={
                (0, 0): "that is the derivative; DeepLIFT takes the secant from black",
                (1, 1): "the input of the ReLU changes by 2, not by 1",
                (-0.5, -0.5): "f subtracts the ReLU: two signs",
            },
        ),
        blind=choice(
            "a",
            {
                "a": "a zero gradient says that no small change matters, not that the pixels don't",
                "b": "integrated gradients sum to 1, the whole of the logit",
                "c": "DeepLIFT sums to 1, the whole of the logit",
            },
        ),
    ),
    "ex-product": parts(
        input_x_gradient=numbers(
            2, 1, wrong={(1, 1): "d/dx_1 of x_1^2 x_2 is 2 x_1 x_2", (2 / 3, 1 / 3): "that is integrated gradients"}
        ),
        integrated_gradients=numbers(
            2 / 3,
            1 / 3,
            wrong={
                (2, 1): "that is the gradient at the end of the path; integrate it",
                (1, 0.5): "on the path the gradient is (2 a^2, a^2): integrate a^2, not a",
                (0.5, 0.5): "the pixels do not share equally: x_1 is squared",
            },
        ),
        sum_ixg=number(3, exact=True, wrong={1: "only one of the sums is f(x) - f(0), and it is the other one"}),
        sum_ig=number(1, exact=True, wrong={3: "integrated gradients are complete: they sum to f(x) - f(0)"}),
    ),
    "ex-ties": parts(
        spearman=number(
            -0.5,
            wrong={
                0: "the middle ranks are shared: 2.5 and 2.5",
                -0.6: "give tied values the mean of their ranks, 2.5 each, not 2 and 3",
                -0.4: "give tied values the mean of their ranks, 2.5 each, not 2 and 3",
                -7 / 11: "that is Pearson's correlation of the values; take ranks first",
            },
        ),
        top2=number(
            0.5,
            exact=True,
            wrong={
                1: "the largest two of b are its last and its first pixel",
                0: "a tie goes to the first pixel: (0, 0) is in both",
                2: "divide by k",
            },
        ),
        shift=number(
            13**0.5 / 5,
            wrong={
                13 / 25: "that is the squared distance",
                1.0: "it is a distance in the plane: the root of the sum of squares, not their sum",
                13**0.5: "divide by the sum of the map, which is 5",
            },
        ),
        zero_cosine=number(
            0,
            exact=True,
            wrong={1: "only two zero maps are alike by convention", -1: "a zero map points nowhere, not the other way"},
        ),
        zero_top2=number(
            1,
            exact=True,
            wrong={
                0: "all pixels of z are tied, so its first two are on top, and they are those of a",
                0.5: "the first two of z, by the rule for ties, are both on top of a",
            },
        ),
        zero_self=number(
            1,
            exact=True,
            word="a perfect score for a map that says nothing: look at more than one measure",
            wrong={0: "by convention two zero maps are alike"},
        ),
    ),
    "ex-sanity": parts(
        depends=choice(
            "b",
            {
                "a": "another network gives the same outline, so it does not depend on the network",
                "b": "a detector of edges",
                "c": "it outlines the dog of this image, so it depends on the image",
            },
        ),
        shows=choices(
            "ad",
            {
                "a": "a map about the network has to change with it",
                "b": "people judge by what they would look at, not the network",
                "c": "a detector of edges does that for every network",
                "d": "it asks the network itself",
            },
        ),
    ),
    "ex-heatmap": function(
        _right_heatmap,
        lambda g: (_normal(g, 3, 4, 5),),
        signature="heatmap(a) from [C, H, W] to [H, W]",
        edges=[(torch.zeros(3, 2, 2, dtype=torch.float64),), (torch.tensor([[[1.0]], [[-1.0]]], dtype=torch.float64),)],
        wrong=[
            (
                lambda a: a.sum(0).abs() / a.sum(0).abs().sum(),
                "channels of opposite sign cancel: absolute values first",
            ),
            (
                lambda a: a.sum(0).abs() / a.sum(0).abs().sum().clamp(min=1e-300),
                "channels of opposite sign cancel: absolute values first",
            ),
            (lambda a: a.abs().sum(0) / a.abs().sum(), "a zero map becomes NaN: zero divided by zero"),
            (
                lambda a: a.abs().sum(0) / a.abs().sum(0).max().clamp(min=1e-300),
                "divided by the largest value; the sum is asked for",
            ),
            (lambda a: a.abs().sum(0) / a.abs().sum(0).max(), "divided by the largest value; the sum is asked for"),
            (lambda a: a.abs().sum(0), "it is not divided by its sum"),
            (lambda a: a.abs().mean(0), "it is not divided by its sum"),
            (
                lambda a: a.clamp(min=0).sum(0) / a.clamp(min=0).sum(),
                "negative attribution is cut off; take its absolute value",
            ),
        ],
    ),
    "ex-use": thing(
        "a function of a tensor of two values",
        _unused_pixel,
        word="used, and not in the map: a gradient sees small changes only",
    ),
    "ex-agree": function(
        lambda f, x: torch.zeros_like(x),
        _homogeneous,
        signature="difference(f, x) to a tensor like x",
        wrong=[
            (lambda f, x: _ray(f, x) * x, "that is one of the two maps; take the other from it"),
            (lambda f, x: -_ray(f, x) * x, "that is one of the two maps, with a minus; the other is not zero"),
            (lambda f, x: _ray(f, x), "that is the gradient; both maps have x as a factor"),
            (lambda f, x: -_ray(f, x) * x / 2, "along the ray the gradient is the same, so nothing is halved"),
            (lambda f, x: _ray(f, x) * (1 - x), "both maps have x as a factor; the baseline is black"),
        ],
        word="two methods that must agree give no second opinion",
    ),
    "ex-budget": parts(
        longest=number(
            8 / 255 * 150528**0.5,
            wrong={
                8 / 255: "that is the change of one value; all of them may change",
                8 / 255 * 224: "each pixel has three values: 150,528 in all",
                8 / 255 * 150528: "that is the l1 norm; the l2 norm has a root",
                8 * 150528**0.5: "epsilon is 8/255 of a [0, 1] image",
                64 / 65025 * 150528: "that is the square of the length",
            },
        ),
        levels=number(
            255 * 0.05 / 150528**0.5,
            wrong={
                0.05 / 150528**0.5: "that is in units of [0, 1]; in 1/255 it is 255 times that",
                255 * 0.05: "that is for one value; a change of all is root d times as long",
                255 * 0.05 / 224: "each pixel has three values",
                255 * 0.05 / 150528: "divide by the root of d",
            },
            word="an l2 certificate of 0.05 does not reach a thirtieth of a level of 255",
        ),
    ),
    "ex-chance-topk": parts(
        share=number(
            1000 / 50176,
            wrong={
                1000 / 150528: "a heatmap has one value a pixel, not three",
                0: "chance shares some: each of the second thousand may be among the first",
                (1000 / 50176) ** 2: "one factor k/n, not two: divide the shared pixels by k",
                0.5: "a half would be chance for two halves of the pixels; k is far less",
            },
        ),
        pixels=number(
            1000**2 / 50176,
            wrong={
                1000: "that is k; of these a share k/n is shared",
                1000**2 / 150528: "a heatmap has one value a pixel",
            },
        ),
        read=choice(
            "b",
            {
                "a": "compare with chance, which is 0.0199, and not with zero",
                "b": "0.02 is what chance shares",
                "c": "the measure sees the top thousand only; the rest may be as before",
            },
        ),
    ),
    "ex-flat": thing(
        "{'a': ten numbers, 'b': ten numbers}",
        _two_flat,
        word="a threshold makes much of little where values are nearly equal",
    ),
    "ex-project": function(
        _right_project,
        _step,
        signature="project(moved, original, epsilon) to a tensor like moved",
        edges=[(torch.ones(1, 2, dtype=torch.float64), torch.tensor([[0.1, 0.95]], dtype=torch.float64), 0.1)],
        wrong=[
            (lambda m, o, e: m.clamp(0, 1), "it is in [0, 1], and may be further than epsilon from the original"),
            (lambda m, o, e: torch.minimum(torch.maximum(m, o - e), o + e), "it is in the ball, and may leave [0, 1]"),
            (
                lambda m, o, e: (o + e * (m - o).sign()).clamp(0, 1),
                "every value goes to the edge, also those that were inside",
            ),
            (
                lambda m, o, e: (o + (m - o) * min(1.0, e / float((m - o).abs().max()))).clamp(0, 1),
                "scaled as a whole: in the ball, but values that fitted are moved too",
            ),
            (
                lambda m, o, e: (o + (m - o) * min(1.0, e / float((m - o).norm()))).clamp(0, 1),
                "that is the l2 ball; here every value has its own bound",
            ),
            (lambda m, o, e: (m - o).clamp(-e, e), "that is the change; add it to the original"),
            (
                lambda m, o, e: (o + (m - o).clamp(max=e)).clamp(0, 1),
                "the change is bounded above only; it may be negative, too",
            ),
        ],
    ),
    "ex-ball": parts(
        leaks=number(
            _leaks(),
            exact=True,
            wrong={
                0: "compare in float64: in float32 the difference is rounded once more",
                256: "not all of them: at most places the sum is rounded down or is exact enough",
                1: "more than x = 0",
            },
        ),
        why=choice(
            "a",
            {
                "a": "the float32 next to 8/255 lies above it",
                "b": "adding zero is exact; look at epsilon itself",
                "c": "the edge has nothing to do with it: 0 + epsilon is inside",
            },
        ),
        matter=choice(
            "b",
            {
                "a": "the excess is in the last bit, far below one level of 255",
                "b": "a check without a tolerance is worth a careful last bit",
                "c": "a check then needs a tolerance, and a tolerance hides real mistakes",
            },
        ),
    ),
    "ex-success": parts(
        success=number(1, exact=True, wrong={0: "success is about the prediction and the ball, not about the map"}),
        changed=number(
            0,
            exact=True,
            wrong={1: "a linear layer has one gradient everywhere; were the heatmaps of the same class compared?"},
        ),
        changed_ixg=number(
            1, exact=True, wrong={0: "gradient times input has the image as a factor, and the image changed"}
        ),
        meaning=choice(
            "b",
            {
                "a": "here it is 1, and no map moved at all",
                "b": "how far the map moved is for the metrics to say",
                "c": "the prediction has to stay; that is the opposite",
            },
        ),
    ),
    "ex-direction": parts(
        left=choice(
            "b",
            {
                "a": "the attack does not follow a logit, and its own gradient is zero",
                "b": "random signs, of which the best is kept",
                "c": "where the gradient is zero it takes random signs, and keeps the best image",
            },
        ),
        images=thing(
            "a tensor like digits.images", _found_images, word="the Softplus copy sees kinks before they come"
        ),
    ),
    "ex-influence": parts(
        theta=number(
            1,
            exact=True,
            wrong={
                0: "that is the median; squares are least at the mean",
                3: "all three points count",
                1.5: "there are three points: 3/3",
            },
        ),
        influence=numbers(
            1,
            1,
            -2,
            exact=True,
            wrong={
                (-1, -1, 2): "there is a minus before the formula: a helpful point has a negative influence",
                (1 / 3, 1 / 3, -2 / 3): "the Hessian of the mean loss is 1, and nothing is divided by n here",
                (0, 0, 3): "these are the points; take their gradients, theta - z",
            },
        ),
        helpful=number(
            3, exact=True, wrong={1: "a positive influence is harmful", 2: "a positive influence is harmful"}
        ),
    ),
    "ex-leave-out": parts(
        predict=number(
            2 / 3,
            wrong={
                -2 / 3: "leaving out is a negative weight: the loss rises without a helpful point",
                2: "its weight in the mean is 1/3",
                -2: "that is the influence; the weight changes by -1/3",
                1.5: "that is the exact change; to first order it is less",
            },
        ),
        exact=number(
            1.5,
            wrong={
                2: "that is the loss afterwards; take from it the loss before, 1/2",
                2 / 3: "that is the prediction; train again",
                -1.5: "the loss rises: the point was helpful",
                3.0: "the loss has a factor of one half",
            },
            word="the sign is right, the size is not: a third of the data is no small weight",
        ),
    ),
    "ex-attacked-training": choices(
        "cd",
        {
            "a": "nothing is trained again",
            "b": "the training images are not touched",
            "c": "the influence sees the test image through its features",
            "d": "other images come first: that is what was observed",
            "e": "it is made of training images and weights alone",
        },
        word="the same vectors are ranked by another one",
    ),
    "ex-turnover": function(
        _turnover,
        _ranked,
        signature="turnover(before, after, k) to a number",
        edges=[
            (torch.arange(6, dtype=torch.float64), torch.arange(6, dtype=torch.float64), 3),
            (torch.arange(6, dtype=torch.float64), -torch.arange(6, dtype=torch.float64), 3),
        ],
        wrong=[
            (lambda b, a, k: _turnover(-b, -a, k), "those are the most harmful: a negative influence is helpful"),
            (
                lambda b, a, k: _turnover(-b.abs(), -a.abs(), k),
                "by size the harmful ones come in too; only negative ones help",
            ),
            (lambda b, a, k: 1 - _turnover(b, a, k), "that is the share that stays; the turnover is what is gone"),
            (lambda b, a, k: k * _turnover(b, a, k), "that is a count; divide by k"),
            (
                lambda b, a, k: float((b.argsort()[:k] != a.argsort()[:k]).double().mean()),
                "the order within the first k does not count",
            ),
            (lambda b, a, k: k * _turnover(b, a, k) / len(b), "divide by k, not by the number of images"),
        ],
    ),
    "ex-chance": parts(
        identity=number(
            1, exact=True, wrong={150528**0.5: "random signs give the same length here, so nothing is gained"}
        ),
        one_pixel=number(
            1,
            exact=True,
            wrong={
                0: "both are epsilon: the pixel changes by that, whichever sign",
                150528**0.5: "one pixel is one pixel: its norms are 1",
            },
        ),
        worst=number(
            150528**0.5,
            wrong={
                150528: "the l1 norm of d entries of 1/root d",
                1: "that is the least; spread u over all values",
                224: "each pixel has three values: the root of 150,528",
                1 / 150528**0.5: "attack over chance, not chance over attack",
            },
        ),
        says=choice(
            "b",
            {
                "a": "the quotient may be as large as the root of d",
                "b": "the quotient may be anything from 1 to 388",
                "c": "for the identity it does not: the quotient depends on the network",
            },
        ),
    ),
    "ex-turn": parts(
        length=number(
            1,
            exact=True,
            wrong={
                2: "the Hessian times delta is 2 times 1/2",
                0.5: "the second derivative of x^2 is 2",
                0.25: "that is f; take two derivatives",
            },
        ),
        rho=number(
            1,
            exact=True,
            wrong={
                0: "the gradient does change: from (0, 1) to (1, 1)",
                2**-0.5: "divide by the length of g(x), not of the new gradient",
                0.5: "the gradient of x_1^2 is 2 x_1",
            },
        ),
        cosine=number(
            2**-0.5,
            wrong={
                45: "that is the angle in degrees",
                0: "rho = 1 allows 0, and here it is 45 degrees",
                1: "the gradient turns from (0, 1) to (1, 1)",
                0.5: "that is the square",
            },
        ),
        stay=choices(
            "bc",
            {
                "a": "the Hessian times delta is multiplied by 100, as the gradient is",
                "b": "both lengths are multiplied by 100, their quotient stays",
                "c": "directions stay",
            },
        ),
    ),
    "ex-pixels": parts(
        heatmap=number(
            0.005,
            wrong={
                0.08: "each pixel has a sixteenth of what the block has",
                1.28: "the value is shared, not multiplied",
                0.02: "divided by 16, not by 4",
            },
        ),
        worst=number(
            1,
            exact=True,
            wrong={
                16: "a mean of 16 equal numbers is that number",
                4: "a mean of 16 equal numbers is that number",
                1 / 16: "all 16 change, and the mean with them",
            },
        ),
        chance=number(
            0.25,
            wrong={
                1 / 16: "the variance is divided by 16, the deviation by 4",
                1: "signs cancel in the mean",
                4: "the mean varies less, not more",
            },
        ),
        fragility=choice(
            "b",
            {
                "a": "what the attack can do to f is what it could do before",
                "b": "only chance became weaker",
                "c": "an attack sets all 16 alike, and loses nothing; chance does",
            },
        ),
    ),
    "ex-softplus": parts(
        slope=number(
            0.5,
            exact=True,
            wrong={
                1: "at 0 the Softplus is half way between slopes 0 and 1",
                0: "at 0 the Softplus is half way between slopes 0 and 1",
                5: "beta cancels in the first derivative",
            },
        ),
        bend=number(
            2.5,
            wrong={
                10: "beta times 1/2 times 1/2",
                5: "sigma (1 - sigma) is 1/4 at 0",
                0.25: "the inner derivative gives a factor of beta",
                0.025: "beta is a factor here, not a divisor",
            },
        ),
        gap=number(
            math.log(2) / 10,
            wrong={
                math.log(2): "divided by beta",
                0.1: "the logarithm of 1 + 1",
                math.log10(2) / 10: "the natural logarithm",
                0: "at 0 it is above the ReLU by the most",
                10 * math.log(2): "divided by beta, not multiplied",
            },
        ),
    ),
    "ex-hvp": function(
        _product,
        _curved,
        signature="product(f, x, v) to a tensor like x",
        rounding=1e-5,  # a difference quotient in float64 is right to about 1e-8, and right
        wrong=[
            (lambda f, x, v: _ray(f, x), "that is the gradient"),
            (lambda f, x, v: _ray(f, x) * v, "that is the gradient times v, value by value"),
            (lambda f, x, v: _hessian(f, x).diagonal() * v, "that is the diagonal of the Hessian times v"),
            (lambda f, x, v: v @ _hessian(f, x) @ v, "that is the number v H v; the product with one v is a vector"),
            (lambda f, x, v: _hessian(f, x) @ _unit(v), "v is divided by its length; it should not be"),
            (lambda f, x, v: _hessian(f, x), "that is the whole Hessian; of a photograph it does not fit anywhere"),
            (lambda f, x, v: (_ray(f, x) * v).sum(), "that is <g, v>; differentiate it by x"),
        ],
    ),
    "ex-secant": parts(
        limit=number(
            3 / 8,
            wrong={
                0.75: "that is a''(0); the secant has half of it",
                0.5: "that is a'(0), the limit of m itself",
                1.5: "a''(0) is beta/4, and the limit is half of that",
                0: "the secant does turn: by half of a''(0)",
                1 / 8: "beta is 3",
            },
        ),
        quotient=choice(
            "d",
            {
                "a": "it grows: rounding errors are divided by ever less",
                "b": "it grows: rounding errors are divided by ever less",
                "c": "m' has the square of d below the line",
                "d": "an error of rounding is divided by d squared",
            },
        ),
        series=choice(
            "b",
            {
                "a": "the bound is M d^2 / 72: with the square of d",
                "b": "with the square of d",
                "c": "the series is the better the smaller d is",
                "d": "the series is the better the smaller d is",
            },
        ),
        worst=choice(
            "b",
            {
                "a": "3 epsilon / d^2 is about 18, and the derivative is 3/8",
                "b": "the error is far larger than the derivative",
            },
        ),
    ),
    "ex-scale": parts(
        nearer=choice("a", {"a": "1 against 2", "b": "its distance is |(0, 2)| = 2"}),
        steadier=choice("b", {"a": "its cosine is 0.71, that of B is 0.89", "b": "0.89 against 0.71"}),
        factor=number(
            2,
            exact=True,
            wrong={
                0.5: "A has to become larger",
                4: "distances scale by c, only their squares by c^2",
                2**0.5: "distances scale by c",
                1: "at 1 nothing changed",
            },
        ),
        squared=number(
            64,
            exact=True,
            wrong={
                8: "the square of the distance has the square of the factor",
                512: "8 squared",
                1: "gradients are multiplied by 8",
                16: "8 squared is 64",
            },
        ),
        cosine=number(
            1,
            exact=True,
            wrong={
                8: "directions stay",
                64: "directions stay",
                1 / 8: "directions stay",
                0: "it stays, so it is multiplied by 1",
            },
        ),
        eight=choice(
            "b",
            {
                "a": "the size does not matter; what is special about 8 in binary?",
                "b": "only the exponent changes",
                "c": "10 keeps the order of the logits, too",
            },
        ),
    ),
    "ex-homogeneous": parts(
        gradient=number(
            1 / 32,
            wrong={
                0.5: "each of the five layers has a factor",
                1 / 10: "factors multiply, they do not add up",
                32: "weights became smaller",
                1 / 16: "five layers",
            },
        ),
        l2=number(
            1 / 1024,
            wrong={
                1 / 32: "the criterion is squared",
                1 / 64: "the square of 1/32",
                1024: "smaller, not larger",
                1: "the l2 criterion is not invariant",
                0.25: "each of five layers has a factor, and it is squared",
            },
        ),
        cosine_distance=number(
            1,
            exact=True,
            wrong={1 / 1024: "directions stay", 1 / 32: "directions stay", 0: "it stays, so its factor is 1"},
        ),
    ),
    "ex-invariant": choices(
        "bcdg",
        {
            "a": "a distance of gradients is multiplied by 10",
            "b": "directions stay",
            "c": "the order of the pixels stays",
            "d": "both lengths are multiplied by 10",
            "e": "the Hessian is multiplied by 10, as the gradient is",
            "f": "a softmax of ten times the logits is more certain",
            "g": "the order of the logits stays",
        },
    ),
    "ex-equalize": function(
        lambda a, b: math.sqrt(a / b),
        lambda g: tuple((0.1 + 9 * _uniform(g, 2)).tolist()),
        signature="factor(a, b) to a number",
        edges=[(2.0, 2.0)],
        wrong=[
            (lambda a, b: a / b, "the criterion is multiplied by the square of the factor"),
            (lambda a, b: (b / a) ** 0.5, "that is the factor for A; B is to be multiplied"),
            (lambda a, b: b / a, "the other way round, and with a root"),
            (lambda a, b: (a / b) ** 2, "a root, not a square"),
            (lambda a, b: a - b, "a factor, not a difference"),
            (lambda a, b: (a / b) ** 0.25, "one root is enough: the criterion has a square"),
        ],
        word="with a little less, B wins",
    ),
    "ex-small-hessian": thing(
        "{'g': two numbers, 'change': two numbers}",
        _turned,
        word="where the network is flat, a tiny curvature turns the map",
    ),
    "ex-large-hessian": thing(
        "{'g': two numbers, 'change': two numbers}",
        _unturned,
        word="a large Hessian is no evidence of a fragile map either",
    ),
    "ex-ratio": parts(
        cosine=number(
            0.8,
            wrong={
                0.4: "1 - rho is no cosine; draw the triangle",
                0.6: "that is the sine",
                0.64: "take the root",
                0.36: "1 minus that, and its root",
                0.82: "rho is the sine of the angle, not its tangent or the angle",
            },
        ),
        degrees=number(
            30,
            wrong={
                math.pi / 6: "that is in radians",
                60: "rho is the sine, not the cosine",
                26.565: "rho is the sine, not the tangent",
                45: "at rho = 0.707 it would be",
                0.866: "that is the cosine",
            },
        ),
        limit=number(
            1,
            exact=True,
            wrong={
                2: "at rho = 1 the new gradient may already be zero",
                0: "a small rho does bound the angle",
                2**-0.5: "there 45 degrees are certain",
            },
        ),
    ),
    "ex-identity": parts(
        squared=number(
            25,
            exact=True,
            wrong={
                5: "that is the distance; it is squared",
                1: "the vectors, not their lengths",
                7: "3^2 + 4^2",
                49: "they are at right angles: 9 + 16",
            },
        ),
        lengths=number(
            1,
            exact=True,
            wrong={49: "minus, not plus", -1: "it is squared", 25: "the difference of the lengths, 3 and 4"},
        ),
        distance=number(
            0.5,
            exact=True,
            wrong={1: "half of it", 0: "the cosine is 0, its distance is not", 0.25: "1 - 0, and a half of that"},
        ),
        bound=number(
            25 / 48,
            wrong={
                25 / 12: "4 times 12 below the line",
                5 / 48: "the distance is squared",
                25 / 28: "the product of the lengths, 12, not their sum",
                24 / 48: "the term of the lengths is not left out of the numerator: 25",
            },
        ),
        equal=choice(
            "b",
            {
                "a": "parallel gradients of different lengths have a distance of 0 and a bound above it",
                "b": "then the term that is left out is zero",
                "c": "the term that is left out can be zero",
            },
        ),
    ),
    "ex-penalty": parts(
        ratio=number(
            2,
            exact=True,
            wrong={
                0.5: "above the line a tenth, below it a twentieth",
                1 / 200: "a quotient, not a product",
                0.1: "the gradient shrank, too",
                10: "a tenth divided by a twentieth",
            },
        ),
        says=choice(
            "b",
            {
                "a": "a smaller Hessian is no evidence while the gradient shrank even more",
                "b": "the bound doubled; the turn may have, or not",
                "c": "the ratio bounds the turn, it is not the turn: a part may lie along the gradient",
            },
        ),
        needed=number(
            0.1,
            exact=True,
            wrong={
                0.05: "that is what happened",
                2: "as much as the Hessian: a tenth",
                1: "then the bound would have become better",
                0.5: "as much as the Hessian: a tenth",
            },
        ),
    ),
    "ex-ratio-code": function(
        _floor,
        _near_and_far,
        signature="floor(g, moved) to a number",
        edges=[(torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([-1.0, 0.0], dtype=torch.float64))],
        draws=24,
        wrong=[
            (
                lambda g, m: math.sqrt(max(0.0, 1 - _rho(g, m) ** 2)),
                "0 is a claim of 90 degrees; where nothing is certain the floor is -1",
            ),
            (
                lambda g, m: 1 - r if (r := _rho(g, m)) < 1 else -1.0,
                "1 - rho is too careful: rho is the sine",
            ),
            (
                lambda g, m: 1 - r**2 if (r := _rho(g, m)) < 1 else -1.0,
                "that is the squared cosine; take its root",
            ),
            (
                lambda g, m: math.sqrt(1 - r**2) if (r := _rho(m, g)) < 1 else -1.0,
                "divide by the length of g, not of the moved gradient",
            ),
            (
                lambda g, m: float(_cosine(g, m)),
                "that is the cosine itself; asked for is what is certain from rho alone",
            ),
            (
                lambda g, m: math.sqrt(1 - r) if (r := _rho(g, m)) < 1 else -1.0,
                "rho is squared under the root",
            ),
        ],
    ),
    "ex-bound": parts(
        below=number(
            0,
            exact=True,
            wrong={
                1: "none may be below: is the cosine that of the same class, and rho relative to g at the original?",
                200: "none may be below; is the comparison the right way round?",
            },
        ),
        why=choice(
            "b",
            {
                "a": "it is proven for every change, small or not",
                "b": "a bound is attained in the worst case only",
                "c": "a Softplus network is curved; the Hessian product is not zero",
            },
        ),
        limit=number(
            1,
            exact=True,
            wrong={
                0: "numerator and denominator both fall",
                2: "to first order they are equal",
                0.5: "to first order they are equal",
            },
        ),
    ),
    "ex-units": parts(
        standardized=number(
            1,
            exact=True,
            wrong={
                16: "a standardized pixel changes by more: 1/sigma of the pixel",
                4: "the unit changed",
                0.25: "sigma squared is for squares",
            },
        ),
        l2=number(
            0.01 / 16,
            wrong={
                0.01: "squared gradients have another unit",
                0.16: "the other way round: sigma squared times",
                0.0025: "squared: sigma twice",
                0.01 / 256: "that would be for a Hessian",
            },
        ),
        cosine=number(
            1,
            exact=True,
            wrong={1 / 16: "a cosine has no unit", 0.25: "a cosine has no unit", 16: "a cosine has no unit"},
        ),
        hessian=number(
            1 / 256,
            wrong={
                1 / 16: "two derivatives, and squared: sigma four times",
                1 / 64: "sigma four times",
                256: "the other way round",
                1: "a Hessian has a unit",
            },
        ),
    ),
    "ex-nearly-linear": parts(
        still=choices(
            "ad",
            {
                "a": "its gradient is the same at every image",
                "b": "nearly linear is not linear: its maps turn a little",
                "c": "rescaling changes no direction, for better or worse",
                "d": "a zero map stays zero",
            },
        ),
        equal=choice(
            "b",
            {
                "a": "time says nothing of how much was learned",
                "b": "steadiness is cheap for whoever has not learned yet",
                "c": "lengths are free, as rescaling shows",
            },
        ),
    ),
    "ex-adversarial": thing(
        "{'f': a function of a tensor of two values, 'moved': two numbers}",
        _wave,
        word="values bounded in a ball bound no gradient at a point",
    ),
    "ex-objective": function(
        _alignment,
        _weighed,
        signature="alignment(g, moved, l2, cos) to a number",
        wrong=[
            (
                lambda g, m, a, b: a * (g - m).square().sum() + b * (1 - _cosine(g, m)),
                "the cosine distance has a half before it",
            ),
            (lambda g, m, a, b: a * (g - m).norm() + b * (1 - _cosine(g, m)) / 2, "the norm is squared"),
            (
                lambda g, m, a, b: a * (g - m).square().mean() + b * (1 - _cosine(g, m)) / 2,
                "a sum over the values, not a mean",
            ),
            (lambda g, m, a, b: _alignment(g, m, b, a), "the two weights have changed places"),
            (lambda g, m, a, b: a * (g - m).square().sum() + b * _cosine(g, m) / 2, "a distance: one minus the cosine"),
            (lambda g, m, a, b: a * (g - m).square().sum(), "the cosine's term is missing"),
            (lambda g, m, a, b: b * (1 - _cosine(g, m)) / 2, "the l2 term is missing"),
            (
                lambda g, m, a, b: a * (g.norm() - m.norm()) ** 2 + b * (1 - _cosine(g, m)) / 2,
                "the norm of the difference, not the difference of the norms",
            ),
        ],
    ),
    "ex-intervals": parts(
        share=number(
            1 / 8,
            wrong={
                0.25: "the interval is 2r = 4 long",
                0.5: "that is the strip; divide it by the interval's length",
                7 / 8: "that is what they share",
            },
        ),
        largest=number(
            0.6,
            wrong={
                1.2: "both strips count: h falls by 2p, not by p",
                0.3: "p is epsilon_2 / 2r, and 2p = H",
                0.15: "that is p; epsilon is 2r times it",
                0.075: "H = 2p, and p = epsilon_2 / 2r",
            },
        ),
        says=choice(
            "b",
            {
                "a": "a cosine of two numbers is 1 or -1",
                "b": "a direction on a line is a sign",
                "c": "a sign is something",
            },
        ),
    ),
    "ex-quoted": parts(
        proven=number(
            0.6,
            wrong={
                0.781: "that is the quoted formula",
                0.8: "that is 2p/H, the sine",
                0.917: "2p, not p",
                0.36: "take the root",
                0.2: "a root of one minus a square",
            },
        ),
        quoted=number(
            0.5 / 0.41**0.5,
            wrong={0.6: "that is the theorem's", 0.928: "2pM, not pM", 0.61: "take the root: 0.5 / 0.640"},
        ),
        quoted_short=number(
            0.6,
            wrong={
                -1: "the formula does not know that it is wrong: put the numbers in",
                0: "the formula does not know that it is wrong: put the numbers in",
            },
        ),
        adversary=number(
            -1,
            exact=True,
            wrong={
                0.6: "the formula is no bound here: H is below 2pM",
                0: "further: the map can be turned right round",
                1: "the lowest cosine that can be reached",
            },
            word="a formula that never abstains certifies what is false",
        ),
    ),
    "ex-gaussian": parts(
        limit=number(
            0.5,
            wrong={
                1: "that is z; epsilon is sigma times it",
                2: "z = epsilon / sigma",
                0.6827: "that is H; which z has 2 Phi(z) - 1 = H?",
                0.25: "z is 1",
            },
        ),
        doubled=number(
            1,
            wrong={
                0.5: "epsilon is sigma times z",
                2: "z = 1 as before, and sigma is 1 now",
                0.25: "more noise certifies more, with the same H",
            },
        ),
        as_a_rule=choice(
            "b",
            {
                "a": "the same H at more noise is luck: more directions are averaged",
                "b": "so there is a best sigma",
                "c": "a mean of more different directions is shorter",
            },
        ),
    ),
    "ex-hoeffding": parts(
        bound=number(
            0.9 - math.sqrt(2 * math.log(20) / 2000),
            wrong={
                0.9: "the mean is above H every second time; subtract",
                0.9 + math.sqrt(2 * math.log(20) / 2000): "a lower bound: minus",
                0.9 - math.sqrt(math.log(20) / 4000): "that is for draws in [0, 1]; these lie in [-1, 1]",
                0.9 - 2 * math.log(20) / 2000: "take the root",
                0.9 - math.sqrt(2 * math.log10(20) / 2000): "the natural logarithm",
            },
        ),
        more=number(
            0.9 - math.sqrt(2 * math.log(20) / 8000),
            wrong={
                0.9 - math.sqrt(2 * math.log(20) / 2000) / 4: "four times the samples halve it: the root of 4",
                0.9 - math.sqrt(2 * math.log(20) / 2000): "more samples lose less",
            },
        ),
        why=choice(
            "b",
            {
                "a": "it costs samples, and time",
                "b": "the direction has to be fixed before the samples are seen",
                "c": "any direction is allowed, if it does not know the samples; a good one is along the mean",
            },
        ),
    ),
    "ex-reading": choices(
        "ae",
        {
            "a": "that is the statement",
            "b": "it is about the mean over noise; the gradient at x may turn as it likes",
            "c": "that would be a certificate of its own",
            "d": "a still map may be wrong",
            "e": "it holds for every change in the ball, whoever finds it",
            "f": "0.02 in each of many values is far longer than 0.02",
        },
    ),
    "ex-longest": parts(
        missed=number(
            0.999**1000,
            wrong={
                0.001: "of one sample; of a thousand that all miss it?",
                0.999: "that is for one sample",
                0: "1000 times 0.001 is an average, no certainty",
                0.6323: "that is the probability that it is met",
            },
        ),
        mean=number(
            -0.001,
            wrong={
                1: "that is what is seen without the region",
                0.001: "the long ones point the other way",
                1.999: "the long ones point the other way",
                0.998: "that is the mean after each was divided by its length",
            },
        ),
        may=choice(
            "c",
            {
                "a": "the region has gradients of 1000; a sample bounds nothing that it missed",
                "b": "the region has gradients of 1000; no factor is safe",
                "c": "then it is a bound, exactly",
            },
        ),
    ),
    "ex-two-balls": function(
        _certified,
        _lengths,
        signature="certified(H, p, M) to a number",
        edges=[(0.0, 0.1, 1.0), (0.5, 0.25, 1.0), (1.0, 0.0, 1.0)],
        draws=24,
        wrong=[
            (lambda H, p, M: math.sqrt(1 - (p * M / H) ** 2) if p * M < H else -1.0, "two lunes, so 2p"),
            (lambda H, p, M: H / math.sqrt(H**2 + (2 * p * M) ** 2), "that is the quoted formula, which is no bound"),
            (
                lambda H, p, M: math.sqrt(1 - (2 * p * M / H) ** 2) if 2 * p * M < H else 0.0,
                "0 is a claim of 90 degrees; where nothing is proven it is -1",
            ),
            (lambda H, p, M: math.sqrt(1 - (2 * p / H) ** 2) if 2 * p < H else -1.0, "M is missing"),
            (
                lambda H, p, M: 1 - (2 * p * M / H) ** 2 if 2 * p * M < H else -1.0,
                "that is the squared cosine; take its root",
            ),
            (lambda H, p, M: 1 - 2 * p * M / H if 2 * p * M < H else -1.0, "2pM/H is the sine of the angle"),
        ],
    ),
    "ex-certificate": parts(
        epsilon=choice(
            "a",
            {
                "a": "without end",
                "b": "compare it with the distance of two digits at sigma 10",
                "c": "at the same H it grows with sigma, and here H does not fall to nothing",
            },
        ),
        others=choice(
            "b",
            {
                "a": "averages over ever larger neighborhoods become the same",
                "b": "one map a class",
                "c": "print the cosine of the maps of x and of x.roll(1, 0)",
            },
        ),
        says=choice(
            "b",
            {
                "a": "an explanation that is the same for two digits explains neither",
                "b": "what does not depend on the image cannot be moved by it",
                "c": "it is right, and about a map that says little",
            },
        ),
        length=thing("a number", _length_at_ten, word="still, and hardly an explanation"),
    ),
    "ex-between": parts(
        between=numbers(
            0.8,
            0.93,
            exact=True,
            wrong={
                (0.93, 1): "an attack that reached 0.93 shows that the worst is at most that",
                (0.8, 1): "the attack tells something, too",
                (-1, 0.93): "the certificate tells something, too",
                (0, 0.8): "no cosine is below the certificate",
            },
        ),
        tightened=numbers(
            0.8,
            0.85,
            exact=True,
            wrong={
                (0.85, 0.93): "an attack lowers the upper end",
                (0.8, 0.93): "the better attack counts",
                (0.85, 1): "an attack bounds the worst from above",
            },
        ),
        follows=choice(
            "b",
            {
                "a": "no attack, however strong, can be below a true bound",
                "b": "there is a mistake, and it is worth finding",
                "c": "a bound holds whatever the attack draws",
            },
        ),
        stays=choice(
            "c",
            {
                "a": "another attack may do better",
                "b": "another attack may do better, and a bound may not",
                "c": "the gap does not say which of the two is weak",
            },
        ),
    ),
    "ex-noise": parts(
        about=number(
            0.91,
            exact=True,
            wrong={0.7: "that is about 32 particular samples", 0.805: "a mean of the two is about neither"},
        ),
        why=choice(
            "a",
            {
                "a": "as a network fits its training set",
                "b": "for an image that the attack did not choose, both would agree up to chance",
                "c": "a certificate is about the expectation, and 0.70 is none",
            },
        ),
        do=choice(
            "a",
            {
                "a": "as a test set is kept",
                "b": "that flatters the attack",
                "c": "the smoothed map is what was asked about",
            },
        ),
    ),
    "ex-violations": function(
        _chance,
        _failures,
        signature="chance(n, alpha, seen) to a number",
        edges=[(10, 0.05, 0), (3, 0.1, 3)],
        wrong=[
            (
                lambda n, a, s: math.comb(n, s) * a**s * (1 - a) ** (n - s),
                "that is exactly so many; asked for is at least so many",
            ),
            (lambda n, a, s: 1 - _chance(n, a, s), "that is fewer than so many"),
            (lambda n, a, s: _chance(n, a, s + 1), "more than so many; at least includes the number itself"),
            (lambda n, a, s: 1 - _chance(n, a, s + 1), "that is at most so many"),
            (lambda n, a, s: min(1.0, n * a), "that bounds the probability of at least one"),
            (lambda n, a, s: a**s, "which of the n fail is not fixed: the binomial coefficients are missing"),
        ],
    ),
    "ex-states": parts(
        a=choice("holds", {**_STATE, "holds": "all of it is past 0.05"}),
        b=choice("undecided", {**_STATE, "undecided": "0.05 is inside"}),
        c=choice(
            "fails",
            {
                "holds": "it is past zero, but 0.05 was asked for",
                "fails": "all of it falls short of 0.05",
                "undecided": "0.05 is not inside",
            },
        ),
        d=choice("undecided", {**_STATE, "undecided": "0.05 is inside"}),
        says=choice(
            "ii",
            {
                "i": "0.2 is inside as well; undecided is no 'no'",
                "ii": "as far as one can tell",
                "iii": "an interval of 95% is about the procedure, and zero is inside",
            },
        ),
    ),
    "ex-paired": parts(
        difference=number(0.1, wrong={-0.1: "B less A", 0.4: "the mean, not the sum"}),
        separate=number(
            (0.34 / 12) ** 0.5,
            wrong={
                (0.34 / 3) ** 0.5: "that is the standard deviation; divide by the root of n",
                (0.34 / 16) ** 0.5: "the variance has n - 1 = 3 below it",
                0.34 / 12: "take the root",
                (0.34 / 6) ** 0.5: "of one mean, not of the difference of two",
            },
        ),
        paired=number(
            0,
            exact=True,
            wrong={
                (0.34 / 6) ** 0.5: "that is for different images; the four differences are all 0.1",
                (0.34 / 12) ** 0.5: "that is of one method; take the four differences first",
            },
        ),
        says=choice(
            "b",
            {
                "a": "the difference is 0.1 on every image",
                "b": "differences first",
                "c": "overlap says neither; the differences do",
            },
        ),
    ),
    "ex-seeds": parts(
        seeds=number(
            0.06 / 3**0.5,
            wrong={
                0.06: "divide by the root of 3",
                0.02: "the root of 3, not 3",
                0.06 / 3000**0.5: "there are three networks, not three thousand",
            },
        ),
        images=number(
            0.3 / 1000**0.5,
            wrong={
                0.3 / 3000**0.5: "the same 1000 images were measured three times; they are not 3000",
                0.0003: "the root of 1000",
                0.3: "divide by the root of 1000",
            },
        ),
        both=number(
            ((0.06 / 3**0.5) ** 2 + (0.3 / 1000**0.5) ** 2) ** 0.5,
            wrong={
                0.06 / 3**0.5 + 0.3 / 1000**0.5: "the root of the sum of squares, not the sum",
                0.001290: "take the root",
            },
        ),
        remains=number(
            ((0.06 / 3**0.5) ** 2 + 0.09 / 10000) ** 0.5,
            wrong={
                0.0359 / 10**0.5: "the error from the seeds stays as it was",
                0.0359 / 10: "the error from the seeds stays as it was",
                0.003: "and the seeds?",
            },
        ),
        add=choice(
            "b",
            {
                "a": "ten times as many images took 3% off the error",
                "b": "a sentence about an objective is about other networks",
                "c": "the same image again is nothing new",
            },
        ),
    ),
    "ex-bootstrap": parts(
        draws=number(
            27,
            exact=True,
            wrong={
                6: "with replacement: a seed may come again",
                3: "three times three times three",
                9: "three draws, not two",
                10: "with their order",
            },
        ),
        same=number(
            1 / 9,
            wrong={
                1 / 27: "there are three seeds that it may be",
                1 / 3: "the second and the third have to be the same, too",
                3: "divide by 27",
            },
        ),
        without=number(
            8 / 27,
            wrong={
                2 / 3: "three draws: to the power of three",
                1 / 27: "the probability that it is missing each time is 2/3",
                19 / 27: "that is the probability that it is drawn",
                1 / 3: "three draws",
            },
        ),
        outside=number(
            0.25,
            exact=True,
            wrong={
                1 / 8: "all above it, or all below it",
                0.05: "that is what is written beside an interval; compute it",
                0.5: "(1/2)^3, twice",
                0: "the three draws may all lie on one side",
            },
        ),
    ),
    "ex-verdict": function(
        _verdict,
        _some_states,
        signature="verdict(states) to a word",
        edges=[
            (["holds"],),
            (["undecided"],),
            (["fails"],),
            (["holds", "fails"],),
            (["holds", "holds", "fails"],),
            (["holds", "undecided"],),
            (["fails", "undecided"],),
            (["fails", "fails", "holds"],),
        ],
        draws=40,
        wrong=[
            (
                lambda s: "reproduced" if "fails" not in s and "holds" in s else _verdict(s),
                "an undecided comparison keeps a claim from being reproduced",
            ),
            (
                lambda s: "not reproduced" if "fails" in s else _verdict(s),
                "one failure is not enough: more have to fail than hold",
            ),
            (
                lambda s: "reproduced" if s.count("holds") > len(s) / 2 else _verdict(s),
                "a majority is not enough: all have to hold",
            ),
            (
                lambda s: "undecided" if "undecided" in s else _verdict(s),
                "one undecided comparison does not undo the others",
            ),
            (
                lambda s: "not reproduced" if s.count("fails") >= s.count("holds") and "fails" in s else _verdict(s),
                "as many fail as hold: partly reproduced",
            ),
            (lambda s: "not reproduced" if _verdict(s) == "undecided" else _verdict(s), "undecided is not a no"),
        ],
    ),
    "ex-many": parts(
        average=number(
            1,
            exact=True,
            wrong={
                0.05: "that is of one; there are twenty",
                0: "an interval of 95% misses in one case of twenty",
                0.5: "on either side",
            },
        ),
        any=number(
            1 - 0.95**20,
            wrong={
                1: "the probabilities do not add up: several may miss at once",
                0.05: "that is of one",
                0.95**20: "that none does",
                1 - 0.975**20: "that is one side only",
            },
        ),
        positive=number(
            1 - 0.975**20,
            wrong={
                1 - 0.95**20: "that is either side",
                0.5: "not the average: the probability of at least one",
                0.025: "that is of one",
                0.975**20: "that none does",
                (1 - 0.95**20) / 2: "both sides may be missed by different intervals; compute it from 2.5%",
            },
        ),
        corrected=number(
            0.05,
            wrong={
                0.0025: "that is of one; twenty of them add up",
                0.05 * 20: "each has a twentieth",
                0.6415: "that was before the correction",
            },
        ),
    ),
    "ex-protocols": parts(
        opposite=number(
            0.03,
            wrong={
                0.3: "6 of 200, and not all that differ",
                6: "a share, not a count",
            },
        ),
        tell=choice(
            "b",
            {
                "a": "half of the data decides less; it contradicts nothing",
                "b": "more is needed than half",
                "c": "it tells how much the data decides",
            },
        ),
        say=choice(
            "a",
            {
                "a": "where they are matters more than how many",
                "b": "5% is no law for protocols, which nobody drew",
                "c": "protocols are not drawn, so the share is no probability",
            },
        ),
        why=choice(
            "b",
            {
                "a": "more of them would not make it one",
                "b": "a list is made, not drawn",
                "c": "they were, from stored values",
            },
        ),
    ),
}
"""Exercise -> its judge."""
