"""Exercises: every solution is accepted, other right answers too, and typical wrong ones are told what is wrong."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import REPOSITORY

from robattr import _yaml, cli, data
from robattr.exercises import CHAPTERS, ExerciseError, check, exercise, exercises, notebook, page, plain
from robattr.exercises._answers import JUDGES
from robattr.exercises._editions import SETUP
from robattr.exercises._judging import choices, function, number, numbers, parts, thing, unit
from robattr.exercises._texts import TEXTS, read

Tensor = torch.Tensor
NAMES = [each.id for each in exercises()]


class Whole:
    """A wrong answer in place of the whole, where others are changes of the solution's parts."""

    def __init__(self, value: object) -> None:
        self.value = value


@cache
def setup() -> dict[str, Any]:
    """What the setup cell of every notebook defines."""
    names: dict[str, Any] = {}
    exec(SETUP, names)
    return names


@cache
def solved(name: str) -> Any:
    """The answer that the code of the solution sets."""
    names = dict(setup())
    with contextlib.redirect_stdout(io.StringIO()):
        exec(exercise(name).answer, names)
    return names["answer"]


def changed(solution: Any, change: object) -> object:
    """The solution with other parts; or another answer altogether."""
    if isinstance(change, Whole):
        return change.value
    if isinstance(solution, Mapping) and isinstance(change, Mapping):
        return {**solution, **change}
    return change


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def constant(_: Tensor) -> Tensor:
    return tensor(1.0)[0]


def hessian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.hessian(f, x)


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def quotient(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """H v as a difference quotient: right to more digits than are asked for."""
    return (gradient(f, x + 1e-5 * v) - gradient(f, x - 1e-5 * v)) / 2e-5


def integrated(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Integrated gradients at 50 points less gradient times input: zero up to rounding."""
    path = torch.stack([gradient(f, x * (i + 0.5) / 50) for i in range(50)])
    return path.mean(0) * x - gradient(f, x) * x


def loop_turnover(before: Tensor, after: Tensor, k: int) -> float:
    order = sorted(range(len(after)), key=lambda i: float(after[i]))[:k]
    return sum(i not in order for i in before.topk(k, largest=False).indices.tolist()) / k


def far() -> Tensor:
    """Digits with one value moved too far."""
    moved = data.load("digits", limit=50).images.clone()
    moved[3, 0, 4, 4] = (moved[3, 0, 4, 4] + 0.5) % 1
    return moved


def noisy() -> Tensor:
    """Digits with random signs: what chance does."""
    x = data.load("digits", limit=50).images
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (x + 5 / 255 * signs).clamp(0, 1)


HALF = Fraction(1, 2)
# Exercise -> other right answers, and wrong ones, each with a part of the word that it is given. Where a solution has
# parts, they are changes of some of them.
CASES: dict[str, tuple[list[Any], list[tuple[Any, str]]]] = {
    "ex-linear": (
        [{"gradient": tensor(2, -1), "relevance": [2, -HALF]}, {"complete": {"b", "c", "d"}, "moved": "b, c, d"}],
        [
            ({"gradient": (2, -0.5)}, "gradient times input"),
            ({"gradient": (2, 1)}, "gradients do"),
            ({"gradient": (-1, 2)}, "order is reversed"),
            ({"input_x_gradient": (2, -1)}, "multiply it by the image"),
            ({"relevance": (8 / 3, -2 / 3)}, "the bias takes part"),
            ({"relevance": (1, -0.25)}, "shares"),
            ({"complete": "abcd"}, "not a: the gradient sums to 1"),
            ({"moved": "bc"}, "d belongs to it"),
            ({"moved": ""}, "b belongs to it"),
            ({"gradient": 2}, "no row of numbers"),
        ],
    ),
    "ex-saturation": (
        [{"gradient": np.zeros(2), "deeplift": ["1/2", "1/2"], "blind": "(A)"}],
        [
            ({"gradient": (1, 1)}, "below the kink"),
            ({"integrated_gradients": (0, 0)}, "on the way"),
            ({"integrated_gradients": (1, 1)}, "first half"),
            ({"deeplift": (0, 0)}, "secant"),
            ({"deeplift": (1, 1)}, "changes by 2"),
            ({"deeplift": (-0.5, -0.5)}, "two signs"),
            ({"blind": "b"}, "the whole of the logit"),
        ],
    ),
    "ex-product": (
        [{"integrated_gradients": [0.667, 0.333]}, {"integrated_gradients": [0.666, 0.334], "sum_ig": 1.0}],
        [
            ({"input_x_gradient": (1, 1)}, "2 x_1 x_2"),
            ({"input_x_gradient": (2 / 3, 1 / 3)}, "integrated gradients"),
            ({"integrated_gradients": (2, 1)}, "integrate it"),
            ({"integrated_gradients": (1, 0.5)}, "a^2"),
            ({"integrated_gradients": (0.5, 0.5)}, "x_1 is squared"),
            ({"integrated_gradients": (1 / 3, 2 / 3)}, "order is reversed"),
            ({"sum_ig": 3}, "complete"),
            ({"sum_ixg": 1}, "other one"),
        ],
    ),
    "ex-ties": (
        [{"spearman": "-1/2", "shift": 0.721}, {"shift": torch.tensor([0.7211]), "top2": HALF}],
        [
            ({"spearman": -7 / 11}, "Pearson"),
            ({"spearman": 0.5}, "wrong sign"),
            ({"spearman": -0.4}, "2.5 each"),
            ({"top2": 1}, "last and its first"),
            ({"shift": 0.52}, "squared"),
            ({"shift": 13**0.5}, "sum of the map"),
            ({"zero_top2": 0}, "tied"),
            ({"zero_self": 0}, "convention"),
            ({"zero_cosine": 1}, "only two zero maps"),
        ],
    ),
    "ex-sanity": (
        [{"shows": ["d", "a"]}, {"depends": "B."}],
        [
            ({"depends": "a"}, "another network"),
            ({"depends": "c"}, "depends on the image"),
            ({"shows": "abd"}, "not b"),
            ({"shows": "acd"}, "not c"),
            ({"shows": "a"}, "d belongs"),
            ({"shows": "d"}, "a belongs"),
        ],
    ),
    "ex-heatmap": (
        [
            lambda a: torch.nan_to_num(a.abs().sum(0) / a.abs().sum()),
            lambda a: a.abs().sum(0).numpy() / max(1e-300, float(a.abs().sum())),
        ],
        [
            (lambda a: a.sum(0).abs() / a.sum(0).abs().sum(), "cancel"),
            (lambda a: a.abs().sum(0) / a.abs().sum(), "NaN"),
            (lambda a: a.abs().sum(0) / a.abs().sum(0).max().clamp(min=1e-300), "largest"),
            (lambda a: a.abs().sum(0), "not divided"),
            (lambda a: a.clamp(min=0).sum(0) / a.clamp(min=0).sum(), "negative"),
            (lambda a: a.abs() / a.abs().sum().clamp(min=1e-300), "shape [3, 4, 5]"),
            (lambda a: None, "return"),
            (lambda: 1, "TypeError"),
        ],
    ),
    "ex-use": (
        [
            lambda x: x[0] * 2 - torch.relu(0.9 - x[1]),
            lambda x: x[0] + (x[1] > 0.5).double() * 3,
            lambda x: x[0] - (1 - x[1]) ** 2,
        ],
        [
            (lambda x: x[0] + x[1], "let f be flat"),
            (lambda x: x[0], "has to use its second pixel"),
            (constant, "constant"),
            (lambda x: x[1].clamp(max=0.5), "map is empty"),
            (lambda x: x[0] + 0.2 * x[1].clamp(max=0.5), "at least 0.5"),
            (lambda x: x[0].item(), "tensor of no dimension"),
            (lambda x: x, "tensor of no dimension"),
            (3, "function"),
        ],
    ),
    "ex-agree": (
        [integrated],
        [
            (lambda f, x: gradient(f, x) * x, "one of the two maps"),
            (lambda f, x: -gradient(f, x) * x, "with a minus"),
            (lambda f, x: gradient(f, x), "x as a factor"),
            (lambda f, x: -gradient(f, x) * x / 2, "nothing is halved"),
            (lambda f, x: gradient(f, x) * (1 - x), "baseline is black"),
            (lambda f, x: 0.0, "shape []"),
        ],
    ),
    "ex-budget": (
        [{"longest": 12.2, "levels": 0.0329}, {"longest": 12.1}],
        [
            ({"longest": 8 / 255}, "one value"),
            ({"longest": 8 / 255 * 224}, "three values"),
            ({"longest": 8 / 255 * 150528}, "l1"),
            ({"longest": 8 * 150528**0.5}, "8/255"),
            ({"longest": 148.2}, "square"),
            ({"levels": 0.05 / 150528**0.5}, "in units of [0, 1]"),
            ({"levels": 12.75}, "root d"),
        ],
    ),
    "ex-chance-topk": (
        [{"share": 0.0199, "pixels": 19.9}, {"share": "1000/50176", "pixels": 20.0}],
        [
            ({"share": 1000 / 150528}, "one value a pixel"),
            ({"share": 0}, "chance shares some"),
            ({"share": 1.99}, "percent"),
            ({"share": "2%"}, "percent sign"),
            ({"pixels": 1000}, "that is k"),
            ({"read": "a"}, "not with zero"),
            ({"read": "c"}, "top thousand only"),
        ],
    ),
    "ex-flat": (
        [{"a": [5, 5, 5, 4.9, 4.9, 4.9, 5, 4.9, 4.9, 4.9], "b": tensor(*[4.9] * 7, 5, 5, 5)}, {"a": [1.0] * 10}],
        [
            ({"a": [1] * 10, "b": [1] * 10}, "share 3"),
            ({"a": [1, 1, 1] + [0] * 7, "b": [0] * 7 + [1, 1, 1]}, "cosine is 0.000"),
            ({"a": [1.1, 1.1, 1.1] + [1] * 6}, "9 values"),
            ({"a": [-1.1] * 10}, "negative"),
            ({"b": [1, 1, 1.1, 1.1, 1.1] + [1] * 5}, "share 1"),
            (Whole({"a": [1] * 10}), "b is missing"),
        ],
    ),
    "ex-project": (
        [
            lambda m, o, e: (o + (m - o).clamp(-e, e)).clamp(0, 1),
            lambda m, o, e: torch.minimum(torch.maximum(m.clamp(0, 1), o - e), o + e),
        ],
        [
            (lambda m, o, e: m.clamp(0, 1), "further than epsilon"),
            (lambda m, o, e: torch.minimum(torch.maximum(m, o - e), o + e), "may leave [0, 1]"),
            (lambda m, o, e: (o + e * (m - o).sign()).clamp(0, 1), "goes to the edge"),
            (lambda m, o, e: (o + (m - o) * min(1, e / (m - o).abs().max())).clamp(0, 1), "as a whole"),
            (lambda m, o, e: (o + (m - o) * min(1, e / (m - o).norm())).clamp(0, 1), "l2 ball"),
            (lambda m, o, e: (m - o).clamp(-e, e), "add it"),
            (lambda m, o, e: (o + (m - o).clamp(max=e)).clamp(0, 1), "bounded above only"),
            (lambda m, o, e: (o + (m - o).clamp(-e, e)).clamp(0, 1).float(), "float64"),
        ],
    ),
    "ex-ball": (
        [{"leaks": np.int64(52)}, {"leaks": "52"}],
        [
            ({"leaks": 0}, "float64"),
            ({"leaks": 1}, "more than x = 0"),
            ({"leaks": 256}, "not all"),
            ({"leaks": 53}, "near"),
            ({"why": "b"}, "adding zero is exact"),
            ({"why": "c"}, "edge"),
            ({"matter": "c"}, "hides"),
        ],
    ),
    "ex-success": (
        [{"success": torch.tensor(1.0), "changed": 0, "changed_ixg": 1}],
        [
            ({"success": 0}, "about the prediction"),
            ({"changed": 1}, "one gradient everywhere"),
            ({"changed_ixg": 0}, "as a factor"),
            ({"meaning": "a"}, "no map moved"),
            ({"meaning": "c"}, "opposite"),
            ({"success": "100%"}, "percent sign"),
        ],
    ),
    "ex-direction": (
        [],  # any images with the property; the solution's are one case of many, and those below the others
        [
            ({"left": "a"}, "does not follow a logit"),
            ({"left": "c"}, "random signs"),
            ({"images": data.load("digits", limit=50).images}, "still share 1.000"),
            ({"images": noisy()}, "still share 0.9"),
            ({"images": far()}, "more than 16/255"),
            ({"images": data.load("digits", limit=50).images - 0.01}, "outside of [0, 1]"),
            ({"images": data.load("digits", limit=10).images}, "shape"),
        ],
    ),
    "ex-influence": (
        [{"influence": tensor(1, 1, -2), "helpful": "3"}],
        [
            ({"theta": 0}, "median"),
            ({"theta": 1.5}, "three points"),
            ({"influence": (-1, -1, 2)}, "minus"),
            ({"influence": (1 / 3, 1 / 3, -2 / 3)}, "nothing is divided"),
            ({"influence": (0, 0, 3)}, "take their gradients"),
            ({"influence": (-2, 1, 1)}, "reversed"),
            ({"helpful": 1}, "harmful"),
        ],
    ),
    "ex-leave-out": (
        [{"predict": 0.667, "exact": "3/2"}],
        [
            ({"predict": -2 / 3}, "negative weight"),
            ({"predict": -2}, "that is the influence"),
            ({"predict": 2}, "1/3"),
            ({"predict": 1.5}, "exact change"),
            ({"exact": 2}, "loss before"),
            ({"exact": 2 / 3}, "train again"),
            ({"exact": 3}, "one half"),
        ],
    ),
    "ex-attacked-training": (
        [["c", "d"], {"d", "c"}, "c, d", "dc"],
        [
            ("acd", "nothing is trained"),
            ("bcd", "not touched"),
            ("d", "through its features"),
            ("c", "other images"),
            ("cde", "weights alone"),
            ("", "c belongs"),
            (7, "no choice"),
        ],
    ),
    "ex-turnover": (
        [loop_turnover, lambda b, a, k: 1 - np.isin(b.argsort()[:k].numpy(), a.argsort()[:k].numpy()).mean()],
        [
            (lambda b, a, k: loop_turnover(-b, -a, k), "most harmful"),
            (lambda b, a, k: loop_turnover(-b.abs(), -a.abs(), k), "by size"),
            (lambda b, a, k: 1 - loop_turnover(b, a, k), "share that stays"),
            (lambda b, a, k: k * loop_turnover(b, a, k), "divide by k"),
            (lambda b, a, k: float((b.argsort()[:k] != a.argsort()[:k]).double().mean()), "order within"),
            (lambda b, a, k: k * loop_turnover(b, a, k) / len(b), "number of images"),
        ],
    ),
    "ex-chance": (
        [{"worst": 388}, {"worst": 387.9}],
        [
            ({"identity": 150528**0.5}, "nothing is gained"),
            ({"one_pixel": 0}, "epsilon"),
            ({"worst": 150528}, "l1 norm"),
            ({"worst": 224}, "three values"),
            ({"worst": 1 / 388}, "not chance over attack"),
            ({"worst": 1}, "the least"),
            ({"says": "c"}, "depends on the network"),
        ],
    ),
    "ex-turn": (
        [{"cosine": 0.707, "stay": {"c", "b"}}],
        [
            ({"length": 2}, "1/2"),
            ({"rho": 0}, "does change"),
            ({"rho": 2**-0.5}, "not of the new"),
            ({"cosine": 45}, "degrees"),
            ({"cosine": 0.5}, "square"),
            ({"stay": "abc"}, "not a"),
            ({"stay": "c"}, "quotient stays"),
        ],
    ),
    "ex-pixels": (
        [{"heatmap": "1/200", "chance": "1/4"}],
        [
            ({"heatmap": 0.08}, "sixteenth"),
            ({"heatmap": 1.28}, "shared"),
            ({"worst": 16}, "mean of 16"),
            ({"worst": 1 / 16}, "all 16 change"),
            ({"chance": 1 / 16}, "variance"),
            ({"chance": 1}, "cancel"),
            ({"fragility": "a"}, "could do before"),
        ],
    ),
    "ex-softplus": (
        [{"gap": 0.0693}, {"bend": "5/2", "slope": HALF}],
        [
            ({"slope": 1}, "half way"),
            ({"slope": 5}, "cancels"),
            ({"bend": 10}, "1/2"),
            ({"bend": 0.25}, "factor of beta"),
            ({"gap": math.log(2)}, "divided by beta"),
            ({"gap": 0.0301}, "natural"),
            ({"gap": 0}, "by the most"),
        ],
    ),
    "ex-hvp": (
        [quotient, lambda f, x, v: hessian(f, x) @ v],
        [
            (lambda f, x, v: gradient(f, x), "that is the gradient"),
            (lambda f, x, v: gradient(f, x) * v, "value by value"),
            (lambda f, x, v: hessian(f, x).diagonal() * v, "diagonal"),
            (lambda f, x, v: v @ hessian(f, x) @ v, "v H v"),
            (lambda f, x, v: hessian(f, x) @ v / v.norm(), "divided by its length"),
            (lambda f, x, v: hessian(f, x), "whole Hessian"),
            (lambda f, x, v: x.backward(), "RuntimeError"),
        ],
    ),
    "ex-secant": (
        [{"limit": 0.375}],
        [
            ({"limit": 0.75}, "half of it"),
            ({"limit": 0.5}, "limit of m itself"),
            ({"limit": 0}, "does turn"),
            ({"quotient": "c"}, "square of d"),
            ({"quotient": "a"}, "grows"),
            ({"series": "a"}, "d^2 / 72"),
            ({"worst": "a"}, "about 18"),
        ],
    ),
    "ex-scale": (
        [{"nearer": "a", "steadier": "b"}],
        [
            ({"nearer": "B"}, "2"),
            ({"steadier": "A"}, "0.89"),
            ({"factor": 4}, "only their squares"),
            ({"factor": 0.5}, "larger"),
            ({"squared": 8}, "square of the factor"),
            ({"cosine": 8}, "directions stay"),
            ({"eight": "c"}, "order of the logits"),
        ],
    ),
    "ex-homogeneous": (
        [{"gradient": 2**-5, "l2": 0.000977}],
        [
            ({"gradient": 0.5}, "five layers"),
            ({"gradient": 0.1}, "multiply"),
            ({"l2": 1 / 32}, "squared"),
            ({"l2": 1024}, "smaller"),
            ({"l2": 1}, "not invariant"),
            ({"cosine_distance": 1 / 32}, "directions stay"),
        ],
    ),
    "ex-invariant": (
        [list("bcdg"), "b c d g", "GDCB"],
        [
            ("abcdg", "not a"),
            ("bcdeg", "not e"),
            ("bcdfg", "more certain"),
            ("bcd", "order of the logits"),
            ("bdg", "order of the pixels"),
            ("bcg", "d belongs"),
            ("bcdgh", "'h' is no option"),
        ],
    ),
    "ex-equalize": (
        [
            lambda a, b: torch.tensor(a / b, dtype=torch.float64).sqrt(),
            lambda a, b: math.exp((math.log(a) - math.log(b)) / 2),
        ],
        [
            (lambda a, b: a / b, "square of the factor"),
            (lambda a, b: (b / a) ** 0.5, "factor for A"),
            (lambda a, b: b / a, "other way round"),
            (lambda a, b: (a / b) ** 2, "not a square"),
            (lambda a, b: a - b, "not a difference"),
            (lambda a, b: (a / b) ** 0.25, "one root"),
        ],
    ),
    "ex-small-hessian": (
        [
            {"g": (0, 1e-6), "change": (0.003, -1e-6)},
            {"g": (1e-6, 0), "change": (-1e-6, 0.001)},
            {"g": [0.004, 0.003], "change": (-0.008, -0.006)},
        ],
        [
            ({"g": (1, 0)}, "how long"),
            ({"change": (-1, 0)}, "at most 0.01"),
            ({"g": (0, 0)}, "no direction"),
            ({"change": (-0.001, 0)}, "no direction"),
            ({"change": (0.005, 0)}, "cosine is positive"),
            ({"g": (1, 2, 3)}, "two finite numbers"),
            (Whole({"g": (1, 0)}), "change is missing"),
        ],
    ),
    "ex-large-hessian": (
        [{"g": (1e5, 0), "change": (0, 100)}, {"change": (300, 1)}],
        [
            ({"change": (0, 100)}, "make g longer"),
            ({"change": (1, 0)}, "at least 100"),
            ({"change": (-100, 0)}, "cosine is -1"),
            ({"g": (0, 0)}, "no direction"),
            ({"change": (70, 70)}, "at least 100"),
            ({"g": (1000, 0), "change": (0, 100)}, "cosine is 0.995"),
        ],
    ),
    "ex-ratio": (
        [{"cosine": "4/5", "degrees": 30.0}],
        [
            ({"cosine": 0.4}, "triangle"),
            ({"cosine": 0.6}, "sine"),
            ({"cosine": 0.64}, "root"),
            ({"degrees": math.pi / 6}, "radians"),
            ({"degrees": 60}, "not the cosine"),
            ({"degrees": 26.6}, "tangent"),
            ({"limit": 2}, "may already be zero"),
        ],
    ),
    "ex-identity": (
        [{"bound": 0.521, "distance": "1/2"}],
        [
            ({"squared": 5}, "it is squared"),
            ({"squared": 49}, "right angles"),
            ({"lengths": 49}, "minus"),
            ({"distance": 1}, "half of it"),
            ({"bound": 0.5}, "numerator"),
            ({"bound": 25 / 12}, "4 times 12"),
            ({"equal": "a"}, "parallel"),
        ],
    ),
    "ex-penalty": (
        [{"ratio": 2.0, "needed": "1/10"}],
        [
            ({"ratio": 0.5}, "above the line"),
            ({"ratio": 1 / 200}, "not a product"),
            ({"ratio": 0.1}, "shrank, too"),
            ({"says": "a"}, "no evidence"),
            ({"says": "c"}, "it is not the turn"),
            ({"needed": 0.05}, "what happened"),
        ],
    ),
    "ex-ratio-code": (
        [lambda g, m: math.cos(math.asin(r)) if (r := float((m - g).norm() / g.norm())) < 1 else -1],
        [
            (lambda g, m: max(0.0, 1 - float((m - g).norm() / g.norm()) ** 2) ** 0.5, "90 degrees"),
            (lambda g, m: 1 - r if (r := float((m - g).norm() / g.norm())) < 1 else -1, "too careful"),
            (lambda g, m: 1 - r**2 if (r := float((m - g).norm() / g.norm())) < 1 else -1, "squared cosine"),
            (lambda g, m: (1 - r**2) ** 0.5 if (r := float((m - g).norm() / m.norm())) < 1 else -1, "not of the moved"),
            (lambda g, m: float((g * m).sum() / (g.norm() * m.norm())), "from rho alone"),
            (lambda g, m: (1 - r) ** 0.5 if (r := float((m - g).norm() / g.norm())) < 1 else -1, "under the root"),
            (lambda g, m: (1 - ((m - g).norm() / g.norm()) ** 2).sqrt(), "not finite"),
        ],
    ),
    "ex-bound": (
        [{"below": torch.tensor(0)}],
        [
            ({"below": 1}, "none may be below"),
            ({"below": 200}, "right way round"),
            ({"why": "a"}, "every change"),
            ({"why": "c"}, "curved"),
            ({"limit": 0}, "both fall"),
            ({"limit": 2}, "first order"),
        ],
    ),
    "ex-units": (
        [{"l2": 6.25e-4, "hessian": 0.00391}],
        [
            ({"standardized": 16}, "1/sigma"),
            ({"standardized": 4}, "unit changed"),
            ({"l2": 0.01}, "another unit"),
            ({"l2": 0.16}, "other way round"),
            ({"cosine": 1 / 16}, "no unit"),
            ({"hessian": 1 / 16}, "four times"),
            ({"hessian": 1}, "has a unit"),
        ],
    ),
    "ex-nearly-linear": (
        [{"still": ["d", "a"]}],
        [
            ({"still": "abd"}, "nearly linear"),
            ({"still": "acd"}, "no direction"),
            ({"still": "a"}, "zero map"),
            ({"still": "d"}, "same at every image"),
            ({"equal": "a"}, "time says nothing"),
            ({"equal": "c"}, "lengths are free"),
        ],
    ),
    "ex-adversarial": (
        [
            {"f": lambda x: 2 - 3 * (x[0] - 0.51) ** 2, "moved": (0.6, 0.5)},
            {"f": lambda x: 1 + 0.1 * (x[1] - 0.45).abs(), "moved": tensor(0.5, 0.42)},
        ],
        [
            ({"f": lambda x: 1 + x[0]}, "cosine of the two gradients is 1"),
            ({"f": lambda x: 1 + 0 * x[0]}, "a gradient is zero"),
            ({"f": lambda x: torch.sin(20 * torch.pi * x[0])}, "not robust"),
            ({"moved": (0.7, 0.5)}, "within 0.1"),
            ({"f": constant}, "constant"),
            ({"f": lambda x: x + 1}, "no dimension"),
            ({"moved": (0.5, 0.5)}, "cosine of the two gradients is 1"),
            (Whole(lambda x: x.sum()), "'moved'"),
        ],
    ),
    "ex-objective": (
        [
            lambda g, m, a, b: (
                a * float(((g - m) ** 2).sum()) + b / 4 * float((g / g.norm() - m / m.norm()).square().sum())
            )
        ],
        [
            (lambda g, m, a, b: a * (g - m).square().sum() + b * (1 - (g * m).sum() / g.norm() / m.norm()), "half"),
            (
                lambda g, m, a, b: a * (g - m).norm() + b * (1 - (g * m).sum() / g.norm() / m.norm()) / 2,
                "norm is squared",
            ),
            (
                lambda g, m, a, b: a * (g - m).square().mean() + b * (1 - (g * m).sum() / g.norm() / m.norm()) / 2,
                "not a mean",
            ),
            (
                lambda g, m, a, b: b * (g - m).square().sum() + a * (1 - (g * m).sum() / g.norm() / m.norm()) / 2,
                "changed places",
            ),
            (lambda g, m, a, b: a * (g - m).square().sum(), "term is missing"),
            (lambda g, m, a, b: a * (g - m).square().sum() + b * (g * m).sum() / g.norm() / m.norm() / 2, "one minus"),
            (lambda g, m, a, b: a * (g - m) ** 2, "shape [2, 3, 3]"),
        ],
    ),
    "ex-intervals": (
        [{"share": "1/8", "largest": "3/5"}],
        [
            ({"share": 0.25}, "4 long"),
            ({"share": 0.5}, "that is the strip"),
            ({"largest": 1.2}, "2p"),
            ({"largest": 0.3}, "epsilon_2 / 2r"),
            ({"largest": 0.15}, "that is p"),
            ({"says": "a"}, "1 or -1"),
            ({"says": "c"}, "something"),
        ],
    ),
    "ex-quoted": (
        [{"quoted": 0.78}, {"quoted": 0.781}],
        [
            ({"proven": 0.781}, "quoted formula"),
            ({"proven": 0.8}, "sine"),
            ({"proven": 0.917}, "2p"),
            ({"quoted": 0.6}, "theorem"),
            ({"quoted": 0.61}, "root"),
            ({"quoted_short": -1}, "put the numbers in"),
            ({"adversary": 0}, "right round"),
        ],
    ),
    "ex-gaussian": (
        [{"limit": 0.5, "doubled": 1.0}],
        [
            ({"limit": 1}, "that is z"),
            ({"limit": 2}, "epsilon / sigma"),
            ({"limit": 0.683}, "that is H"),
            ({"doubled": 0.5}, "sigma times z"),
            ({"doubled": 0.25}, "more noise"),
            ({"as_a_rule": "c"}, "shorter"),
        ],
    ),
    "ex-hoeffding": (
        [{"bound": 0.845, "more": 0.873}],
        [
            ({"bound": 0.9}, "subtract"),
            ({"bound": 0.9547}, "minus"),
            ({"bound": 0.9 - math.sqrt(math.log(20) / 4000)}, "[-1, 1]"),
            ({"bound": 0.897}, "take the root"),
            ({"bound": 0.85}, "not within a unit"),
            ({"more": 0.886}, "root of 4"),
            ({"more": 0.845}, "lose less"),
            ({"why": "c"}, "along the mean"),
        ],
    ),
    "ex-reading": (
        [{"a", "e"}, "e, a"],
        [
            ("abe", "may turn as it likes"),
            ("ace", "of its own"),
            ("ade", "may be wrong"),
            ("aef", "far longer"),
            ("a", "whoever finds it"),
            ("e", "that is the statement"),
            ("abcdef", "not b"),
        ],
    ),
    "ex-longest": (
        [{"missed": 0.367, "mean": -0.001}, {"missed": 0.368}],
        [
            ({"missed": 0.001}, "of one sample"),
            ({"missed": 0.632}, "that it is met"),
            ({"missed": 0}, "no certainty"),
            ({"mean": 1}, "without the region"),
            ({"mean": 0.998}, "divided by its length"),
            ({"may": "a"}, "bounds nothing"),
            ({"may": "b"}, "no factor"),
        ],
    ),
    "ex-two-balls": (
        [lambda H, p, M: -1 if 2 * p * M >= H else math.cos(math.asin(2 * p * M / H))],
        [
            (lambda H, p, M: (1 - (p * M / H) ** 2) ** 0.5 if p * M < H else -1, "2p"),
            (lambda H, p, M: H / math.sqrt(H**2 + (2 * p * M) ** 2), "no bound"),
            (lambda H, p, M: (1 - (2 * p * M / H) ** 2) ** 0.5 if 2 * p * M < H else 0, "90 degrees"),
            (lambda H, p, M: (1 - (2 * p / H) ** 2) ** 0.5 if 2 * p < H else -1, "M is missing"),
            (lambda H, p, M: 1 - (2 * p * M / H) ** 2 if 2 * p * M < H else -1, "take its root"),
            (lambda H, p, M: 1 - 2 * p * M / H if 2 * p * M < H else -1, "sine"),
            (lambda H, p, M: math.sqrt(1 - (2 * p * M / H) ** 2), "ValueError"),
        ],
    ),
    "ex-certificate": (
        [{"length": 0.92}],
        [
            ({"epsilon": "c"}, "it grows with sigma"),
            ({"epsilon": "b"}, "distance of two digits"),
            ({"others": "a"}, "become the same"),
            ({"says": "a"}, "explains neither"),
            ({"says": "c"}, "it is right"),
            ({"length": 0.99}, "more than"),
            ({"length": 0.1}, "less than"),
        ],
    ),
    "ex-between": (
        [{"between": [0.8, 0.93], "tightened": ["0.8", "0.85"]}],
        [
            ({"between": (0.93, 1)}, "at most that"),
            ({"between": (0.8, 1)}, "the attack tells"),
            ({"between": (0.93, 0.8)}, "reversed"),
            ({"tightened": (0.85, 0.93)}, "upper end"),
            ({"follows": "a"}, "true bound"),
            ({"follows": "c"}, "whatever"),
            ({"stays": "a"}, "another attack"),
        ],
    ),
    "ex-noise": (
        [{"about": "0.91"}],
        [
            ({"about": 0.7}, "32 particular"),
            ({"about": 0.805}, "neither"),
            ({"why": "b"}, "did not choose"),
            ({"why": "c"}, "expectation"),
            ({"do": "b"}, "flatters"),
        ],
    ),
    "ex-violations": (
        [lambda n, a, s: sum(math.comb(n, k) * a**k * (1 - a) ** (n - k) for k in range(s, n + 1))],
        [
            (lambda n, a, s: math.comb(n, s) * a**s * (1 - a) ** (n - s), "at least so many"),
            (lambda n, a, s: sum(math.comb(n, k) * a**k * (1 - a) ** (n - k) for k in range(s)), "fewer"),
            (lambda n, a, s: sum(math.comb(n, k) * a**k * (1 - a) ** (n - k) for k in range(s + 1, n + 1)), "includes"),
            (lambda n, a, s: min(1.0, n * a), "at least one"),
            (lambda n, a, s: a**s, "binomial"),
            (lambda n, a, s: s / n, "which should be"),
        ],
    ),
    "ex-states": (
        [{"a": "Holds", "says": "(ii)"}],
        [
            ({"a": "undecided"}, "inside"),
            ({"b": "fails"}, "fall short"),
            ({"b": "holds"}, "past 0.05"),
            ({"c": "holds"}, "0.05 was asked for"),
            ({"d": "hold"}, "did you mean 'holds'"),
            ({"says": "i"}, "no 'no'"),
            ({"says": "iii"}, "procedure"),
        ],
    ),
    "ex-paired": (
        [{"difference": "1/10", "separate": 0.168}],
        [
            ({"difference": -0.1}, "B less A"),
            ({"separate": 0.337}, "root of n"),
            ({"separate": 0.1458}, "n - 1"),
            ({"separate": 0.02833}, "take the root"),
            ({"paired": 0.238}, "all 0.1"),
            ({"says": "a"}, "every image"),
            ({"says": "c"}, "differences do"),
        ],
    ),
    "ex-seeds": (
        [{"seeds": 0.0346, "images": 0.00949, "both": 0.0359, "remains": 0.0347}],
        [
            ({"seeds": 0.06}, "root of 3"),
            ({"seeds": 0.02}, "not 3"),
            ({"seeds": 0.001095}, "three networks"),
            ({"images": 0.005477}, "not 3000"),
            ({"both": 0.04413}, "not the sum"),
            ({"remains": 0.01135}, "stays as it was"),
            ({"add": "a"}, "3%"),
        ],
    ),
    "ex-bootstrap": (
        [{"same": 0.111, "without": 0.296, "outside": "1/4"}],
        [
            ({"draws": 6}, "with replacement"),
            ({"draws": 10}, "order"),
            ({"same": 1 / 27}, "three seeds"),
            ({"without": 2 / 3}, "power of three"),
            ({"without": 19 / 27}, "it is drawn"),
            ({"outside": 1 / 8}, "all below"),
            ({"outside": 0.05}, "compute it"),
        ],
    ),
    "ex-verdict": (
        [
            lambda s: (
                "Reproduced"
                if set(s) == {"holds"}
                else "not reproduced"
                if s.count("fails") > s.count("holds")
                else "partly reproduced"
                if "holds" in s
                else "undecided"
            )
        ],
        [
            (
                lambda s: (
                    "reproduced"
                    if "holds" in s and "fails" not in s
                    else "not reproduced"
                    if s.count("fails") > s.count("holds")
                    else "partly reproduced"
                    if "holds" in s
                    else "undecided"
                ),
                "keeps a claim",
            ),
            (
                lambda s: (
                    "reproduced"
                    if set(s) == {"holds"}
                    else "not reproduced"
                    if "fails" in s
                    else "partly reproduced"
                    if "holds" in s
                    else "undecided"
                ),
                "one failure",
            ),
            (
                lambda s: (
                    "reproduced"
                    if s.count("holds") > len(s) / 2
                    else "not reproduced"
                    if s.count("fails") > s.count("holds")
                    else "partly reproduced"
                    if "holds" in s
                    else "undecided"
                ),
                "majority",
            ),
            (
                lambda s: (
                    "undecided"
                    if "undecided" in s
                    else "reproduced"
                    if "fails" not in s
                    else "not reproduced"
                    if s.count("fails") > s.count("holds")
                    else "partly reproduced"
                ),
                "does not undo",
            ),
            (lambda s: "reproduced", "which should be"),
            (lambda s: len(s), "which should be"),
        ],
    ),
    "ex-many": (
        [{"any": 0.642, "positive": 0.397}, {"any": 0.641}],
        [
            ({"average": 0.05}, "twenty"),
            ({"any": 1}, "do not add up"),
            ({"any": 0.05}, "of one"),
            ({"any": 0.3585}, "none does"),
            ({"positive": 0.6415}, "either side"),
            ({"positive": 0.3208}, "2.5%"),
            ({"corrected": 0.0025}, "add up"),
        ],
    ),
    "ex-protocols": (
        [{"opposite": "6/200"}],
        [
            ({"opposite": 6}, "not a count"),
            ({"opposite": 3}, "percent"),
            ({"opposite": 0.3}, "6 of 200"),
            ({"tell": "a"}, "contradicts nothing"),
            ({"say": "b"}, "no law"),
            ({"say": "c"}, "no probability"),
            ({"why": "a"}, "would not make it one"),
        ],
    ),
}


def test_there_are_exercises_on_every_chapter_and_each_is_tried() -> None:
    assert len(NAMES) >= 40
    assert sorted(CASES) == sorted(NAMES) == sorted(JUDGES)
    assert min(len(exercises(chapter)) for chapter in CHAPTERS) >= 2
    assert sum(bool(each.belief) for each in exercises()) >= 15
    for belief in (
        "A small Hessian means a stable map.",
        "The map shows what the network uses.",
        "Adversarial training makes maps right",
    ):
        assert any(each.belief.startswith(belief) for each in exercises()), belief
    assert {each.kind for each in exercises()} == {"pencil", "python", "experiment"}


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_are_accepted_and_typical_wrong_ones_told_why(name: str) -> None:
    solution = solved(name)
    others, wrong = CASES[name]
    for answer in (solution, *(changed(solution, each) for each in others)):
        verdict = check(name, answer)
        assert verdict.right, f"{verdict} of {answer}"
    assert others or name == "ex-direction"
    assert len(wrong) >= 5
    for change, word in wrong:
        verdict = check(name, changed(solution, change))
        assert not verdict, change
        assert word in verdict.word, f"{change}: {verdict}"
        assert verdict.word.count("\n") == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_makes_no_sense_is_wrong_and_raises_nothing(name: str) -> None:
    solution = solved(name)
    senseless: list[object] = [
        None,
        ...,
        object(),
        math.nan,
        [[]],
        {"x": 1},
        b"a",
        lambda *a, **k: 1 / 0,
        torch.zeros(0),
        "?",
    ]
    if isinstance(solution, Mapping):
        senseless += [{}, *([{**solution, "surplus": 1}] if JUDGES[name].form.startswith('{"') else [])]
        senseless += [{**solution, part: None} for part in solution]
        senseless += [{key: value for key, value in solution.items() if key != part} for part in solution]
    for answer in senseless:
        verdict = check(name, answer)
        assert not verdict, answer
        assert verdict.word
        assert "\n" not in verdict.word


def test_the_solution_is_judged_twice_alike_and_left_as_it_was() -> None:
    answer = {"g": tensor(0.001, 0), "change": tensor(-0.002, 0)}
    before = copy.deepcopy(answer)
    assert check("ex-small-hessian", answer) == check("small-hessian", answer)
    assert all(torch.equal(answer[key], before[key]) for key in answer)


# --- what judges are made of -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.7211102550927978, 388.0, -0.00123456, 1.0, 12.17])
def test_three_digits_are_enough_rounded_or_cut_off(value: float) -> None:
    judge, last = number(value), unit(value)
    for answer in (
        value,
        float(f"{value:.3g}"),
        math.floor(value / last) * last,
        math.ceil(value / last) * last,
        f"{value:.4g}",
    ):
        assert judge(answer), answer
    for answer in (value + 1.5 * last, value - 1.5 * last, -value, 2 * value, 0):
        assert not judge(answer), answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (-0.4, "wrong sign"),
        (0.8, "factor of 2"),
        (0.2, "factor of 2"),
        (2.5, "reciprocal"),
        (0.16, "square"),
        (0.4**0.5, "root"),
        (40, "percent"),
        (0.41, "near"),
        (7, "too large"),
        (0.1, "too small"),
        (-3, "wrong sign"),
        (True, "bool"),
        ("four", "no number"),
        ("1/0", "no number"),
        (1j, "TypeError"),
        (math.inf, "not finite"),
        (torch.zeros(2), "2 numbers"),
        ([0.4], "list"),
    ],
)
def test_a_wrong_number_is_told_how_it_is_wrong_and_not_what_is_right(answer: object, said: str) -> None:
    verdict = number(0.4)(answer)
    assert not verdict
    assert said in verdict.word
    assert "0.4 " not in verdict.word.replace("-0.4 ", "").replace("0.41 ", "")


def test_a_row_of_numbers_names_the_place_that_is_wrong() -> None:
    judge = numbers(1, 2, 4)
    assert judge(torch.tensor([[1, 2, 4]]))
    assert judge(np.array([1, 2, 4]))
    assert judge([[1, 2, 4]])
    assert "number 3: 8 is wrong by a factor of 2" in judge([1, 2, 8]).word
    assert "order is reversed" in judge([4, 2, 1]).word
    assert "these are 2 numbers" in judge([1, 2]).word


def test_functions_that_fail_at_the_edge_alone_are_shown_the_edge() -> None:
    judge = function(abs, lambda g: (float(torch.rand((), generator=g)) + 1,), signature="f(x)", edges=[(-2.0,)])
    assert judge(math.fabs)
    assert "for -2 it returns -2.0, which should be 2.0" in judge(lambda x: x).word
    assert "it raises ZeroDivisionError" in judge(lambda x: 1 / 0).word


def test_a_judge_of_choices_names_one_that_is_missing_or_too_many() -> None:
    judge = choices("ac", {"a": "x", "b": "y", "c": "z"})
    assert judge("ca")
    assert judge(("A", "c"))
    assert judge("a").word == "c belongs to it: z"
    assert judge("abc").word == "not b: y"
    assert choices("", {"a": "x"})("")


def test_parts_are_named() -> None:
    judge = parts(first=number(1), second=thing("anything", lambda answer: "", word="yes"))
    assert judge({"first": 1, "second": 2})
    assert judge({"first": 1, "secnd": 2}).word == "'secnd' is no part; did you mean 'second'?"
    assert judge({"first": 1}).word.startswith("second is missing")


# --- texts -----------------------------------------------------------------------------------------------------------

TEXT = """\
---
title: A title
chapter: 01_attributions
kind: pencil
minutes: 5
---
The question.

## Hint
A hint.

## Answer
```python
### BEGIN SOLUTION
answer = 1
### END SOLUTION
```

## Solution
It is so.
"""


def test_a_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ex-one.md"
    path.write_text(TEXT)
    found = read(path)
    assert (found.id, found.title, found.kind, found.minutes, found.belief) == ("ex-one", "A title", "pencil", 5, "")
    assert (found.question, found.hints, found.solution) == ("The question.", ("A hint.",), "It is so.")
    assert found.answer == "### BEGIN SOLUTION\nanswer = 1\n### END SOLUTION\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("---\ntitle", "title", "must begin with title"),
        ("minutes: 5\n", "", "minutes is None; wanted is a int"),
        ("minutes: 5", "minutes: five", "minutes is 'five'"),
        ("01_attributions", "01_attribution", "chapter is '01_attribution'; there are 01_attributions"),
        ("pencil", "pen", "kind is 'pen'"),
        ("minutes: 5", "minutes: 5\ncolor: red", "'color' means nothing"),
        ("## Hint\nA hint.\n", "", "wanted are, in this order"),
        ("## Solution\nIt is so.\n", "", "wanted are, in this order"),
        ("### BEGIN SOLUTION\n", "", "must be one block of Python"),
        ("```\n\n## Solution", "```\nMore.\n\n## Solution", "must be one block of Python"),
    ],
)
def test_a_text_with_a_mistake_is_refused_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "ex-one.md"
    assert TEXT.count(old) == 1
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(ExerciseError, match=re.escape(said)) as error:
        read(path)
    assert str(error.value).startswith("ex-one.md: ")
    assert "\n" not in str(error.value)


def test_every_reference_of_a_text_leads_somewhere() -> None:
    sources = [*(REPOSITORY / "notebooks").glob("*.md"), *(REPOSITORY / "book").glob("*.md")]
    labels = set(re.findall(r"^:label: (\S+)$", "\n".join(path.read_text("utf-8") for path in sources), re.MULTILINE))
    for each in exercises():
        text = (TEXTS / f"{each.id}.md").read_text(encoding="utf-8")
        for label in re.findall(r"\{prf:ref\}`([^`]+)`", text):
            assert label in labels, f"{each.id}: {label}"
        for target in re.findall(r"\{doc\}`/([^`]+)`", text):
            assert (REPOSITORY / f"{target}.md").exists(), f"{each.id}: {target}"
        for name in re.findall(r"`(ex-[\w-]+)`", text):
            assert name in NAMES, f"{each.id}: {name}"


def test_part_names_of_answers_stand_in_the_question() -> None:
    for each in exercises():
        for part in re.findall(r'"(\w+)": ', JUDGES[each.id].form):
            assert f"`{part}`" in each.question, f"{each.id}: {part}"


def test_an_unknown_exercise_names_the_nearest() -> None:
    with pytest.raises(ExerciseError, match="no exercise 'ex-linaer'; did you mean 'ex-linear'"):
        check("ex-linaer", 1)
    with pytest.raises(ExerciseError, match="did you mean 'ex-saturation'"):
        exercise("saturaton")
    with pytest.raises(ExerciseError, match="lists them"):
        exercise("")
    with pytest.raises(ExerciseError, match="no chapter 'ledgr' has exercises; did you mean 'ledger'"):
        exercises("ledgr")
    assert exercises("1") == exercises("01_attributions")


# --- editions --------------------------------------------------------------------------------------------------------


def hidden(text: str) -> list[str]:
    """Lines of a solution that a student's edition may not have."""
    return [line.strip() for line in text.splitlines() if len(line.strip()) > 25]


def test_the_page_has_questions_and_closed_hints_and_no_solution() -> None:
    for chapter in CHAPTERS:
        chosen = exercises(chapter)
        text = page(chosen, "Exercises")
        assert text.count("{exercise}") == len(chosen)
        assert text.count("{dropdown} Hint") == sum(len(each.hints) for each in chosen)
        for each in chosen:
            assert f":label: {each.id}\n" in text
            assert each.question in text
            _, _, answer = each.answer.partition("### BEGIN SOLUTION\n")
            for line in hidden(answer.partition("### END")[0]) + hidden(each.solution):
                assert line not in text.replace(each.question, "").replace("\n".join(each.hints), ""), (
                    f"{each.id}: {line}"
                )


def cells(made: Any) -> dict[str, Any]:
    return {cell.metadata.nbgrader.grade_id: cell for cell in made.cells}


def test_the_notebook_of_students_has_gaps_and_that_of_teachers_runs() -> None:
    student, teacher, source = (cells(notebook(exercises(), edition)) for edition in ("student", "teacher", "nbgrader"))
    for each in exercises():
        gap = student[each.id].source
        assert "SOLUTION" not in gap
        with pytest.raises(NotImplementedError):
            exec(f"{gap}\nanswer()", dict(setup())) if "def " not in gap else try_gap(gap)
        assert f"{each.id}-solution" not in student
        assert f"{each.id}-solution" in teacher
        assert "SOLUTION" not in teacher[each.id].source
        assert source[each.id].source.count("### BEGIN SOLUTION") == 1
        assert each.solution not in "".join(cell.source for cell in (*student.values(), *source.values()))


def try_gap(gap: str) -> None:
    """Call the function of a gap, whatever it takes."""
    names = dict(setup())
    exec(gap, names)
    answer = names["answer"]["f"] if isinstance(names["answer"], dict) else names["answer"]
    answer(*range(answer.__code__.co_argcount))


def test_teachers_cells_run_and_pass_their_checks() -> None:
    made = notebook(exercises("ledger"), "teacher")
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for cell in made.cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
    assert output.getvalue().count("Right: ") == len(exercises("ledger"))


def test_metadata_are_those_of_nbgraders_schema() -> None:
    for edition in ("student", "teacher", "nbgrader"):
        made = notebook(exercises(), edition)  # type: ignore[arg-type]
        nbformat.validate(made)
        marks = [cell.metadata.nbgrader for cell in made.cells]
        assert len({each.grade_id for each in marks}) == len(marks)
        for cell, each in zip(made.cells, marks, strict=True):
            assert each.schema_version == 3
            assert re.fullmatch(r"[a-zA-Z0-9_\-]+", each.grade_id)
            assert {"grade", "solution", "locked", "task"} <= set(each)
            assert ("points" in each) == each.grade
            assert not (each.solution and each.locked)
            assert cell.cell_type == "code" or not (each.grade or each.solution)
        assert sum(each.get("points", 0) for each in marks) == len(NAMES)


def test_notebooks_refuse_what_they_cannot_be_made_of() -> None:
    with pytest.raises(ExerciseError, match="edition is 'pupil'; there are student, teacher, nbgrader"):
        notebook(exercises(), "pupil")  # type: ignore[arg-type]
    with pytest.raises(ExerciseError, match="at least one exercise"):
        notebook([])


def test_references_become_words_outside_of_the_book() -> None:
    for each in exercises():
        assert not re.search(r"\{[a-z:]+\}`", plain(each, solution=True)), each.id
    assert "prop-ratio" in plain(exercise("ex-small-hessian"), solution=True)
    assert exercise("ex-linear").solution not in plain(exercise("ex-linear"))


def test_an_exercise_in_a_terminal_says_what_its_code_starts_with() -> None:
    for each in exercises():
        shown = plain(each)
        assert (SETUP in shown) == (each.kind != "pencil"), each.id
        assert f"from robattr.exercises import check{'' if each.kind == 'pencil' else ', trained'}\n" in shown


def test_the_book_has_a_page_for_each_chapter_with_exercises() -> None:
    contents = (REPOSITORY / "_toc.yml").read_text(encoding="utf-8")
    shown = re.findall(r"- file: book/exercises_(\w+)\n", contents)
    assert tuple(shown) == CHAPTERS
    assert all(f"- file: notebooks/{chapter}\n" in contents for chapter in CHAPTERS)
    assert _yaml.read(REPOSITORY / "_toc.yml")["root"]


# --- the command line ------------------------------------------------------------------------------------------------


def call(*words: str) -> Result:
    return CliRunner().invoke(cli.main, ["exercises", *words])


def test_the_command_lists_exercises() -> None:
    output = call().stdout
    for each in exercises():
        assert each.id in output
    assert all(word in output for word in ("chapter", "minutes", "kind", "experiment"))
    one = call("--chapter", "ledger").stdout
    assert "ex-states" in one
    assert "ex-linear" not in one


def test_the_command_shows_one_with_its_hints_and_the_solution_when_asked() -> None:
    output = call("ex-linear").stdout
    assert "An image has two pixels" in output
    assert "Hint 2." in output
    assert "Solution." not in output
    assert "Solution." in call("linear", "--solution").stdout


def test_the_command_writes_notebooks(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ex.ipynb"
    result = call("--chapter", "1", "-o", str(path))
    assert result.stdout.strip() == str(path)
    made = nbformat.read(path, as_version=4)
    assert "raise NotImplementedError" in cells(made)["ex-linear"].source
    call("ex-ties", "-o", str(path), "--edition", "teacher")
    assert set(cells(nbformat.read(path, as_version=4))) == {
        "intro",
        "setup",
        "ex-ties",
        *(f"ex-ties-{x}" for x in ("question", "check", "solution")),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ex-linera",), "did you mean 'ex-linear'?"),
        (("--chapter", "12"), "no chapter '12' has exercises"),
        (("--edition", "teacher"), "--edition is for a notebook; say where to write it with -o"),
        (("--solution",), "--solution is for one exercise; say which"),
    ],
)
def test_a_wrong_request_is_one_line(words: tuple[str, ...], said: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
