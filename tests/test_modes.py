"""``torch.no_grad()`` and ``torch.inference_mode()`` around a call change nothing, of whatever reads a gradient.

A search that lost its slopes would walk at random without a word; a certificate would fail where its model is copied.
Methods of attribution have the same test in test_attributions.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robattr import attacks, influence, metrics, regularizers, sanity, smoothing
from robattr.attacks import TopK
from robattr.attributions import gradient, heatmap


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(3.0), nn.Flatten(), nn.Linear(144, 3))
    return made.eval().requires_grad_(False)


MODEL, X, Y = network(), seeded(2, 3, 8, 8), torch.tensor([0, 1])
TRAIN, LABELS = seeded(12, 3, 8, 8, seed=1), torch.arange(12) % 3
MAPS = heatmap(gradient(MODEL, X, Y)).detach()
DRAWN: dict[str, Any] = {"epsilon": 0.1, "samples": 24, "choose": 8}


def layer() -> influence.LastLayer:
    return influence.LastLayer(MODEL, TRAIN, LABELS, damping=1.0)


CALLS: dict[str, Callable[[], object]] = {
    "attacks.cosine_attack": lambda: attacks.cosine_attack(MODEL, X, epsilon=0.05, iterations=3),
    "attacks.ensemble": lambda: attacks.ensemble(MODEL, X, epsilon=0.05, k=5, iterations=2),
    "attacks.iterative_attack": lambda: attacks.iterative_attack(
        MODEL, X, objective=TopK(5), epsilon=0.05, iterations=3
    ),
    "attacks.judge": lambda: attacks.judge(MODEL, X, X.roll(1, 3), epsilon=1.0, k=5),
    "attacks.manipulate": lambda: attacks.manipulate(
        MODEL, X, target_map=MAPS.roll(1, 0), epsilon=0.05, iterations=3, beta=5.0
    ),
    "attacks.random_directions": lambda: attacks.random_directions(MODEL, X, epsilon=0.05, draws=2),
    "attacks.random_sign": lambda: attacks.random_sign(MODEL, X, objective=TopK(5), epsilon=0.05),
    "attacks.searches": lambda: attacks.searches(MODEL, epsilon=0.05, k=5, iterations=2)["mass-center"](X),
    "influence.influence": lambda: influence.influence(MODEL, TRAIN, LABELS, X, Y, damping=3.0),
    "influence.LastLayer": lambda: layer().influence(X),
    "influence.influence_attack": lambda: influence.influence_attack(layer(), X, epsilon=0.05, iterations=3),
    "influence.influence_random_sign": lambda: influence.influence_random_sign(layer(), X, epsilon=0.05, draws=2),
    "metrics.curvature": lambda: metrics.curvature(MODEL, X, Y, 0.01 * seeded(2, 3, 8, 8, seed=2)),
    "metrics.deletion": lambda: metrics.deletion(MODEL, X, Y, MAPS),
    "metrics.insertion": lambda: metrics.insertion(MODEL, X, Y, MAPS),
    "metrics.random_perturbation_similarity": lambda: metrics.random_perturbation_similarity(MODEL, X, Y, epsilon=0.05),
    "sanity.cascade": lambda: sanity.cascade(MODEL, X, Y, k=5, stages=2),
    "sanity.layers": lambda: sanity.layers(MODEL, X),
    "sanity.randomized": lambda: gradient(sanity.randomized(MODEL, ["0"]), X, Y),
    "smoothing.certify": lambda: smoothing.certify(MODEL, X, Y, noise=smoothing.Ball(0.5), **DRAWN),
    "smoothing.certify_map": lambda: smoothing.certify_map(MODEL, X, Y, k=5, noise=smoothing.Gaussian(0.2), **DRAWN),
    "smoothing.certify_votes": lambda: smoothing.certify_votes(
        MODEL, X, Y, k=5, noise=smoothing.Gaussian(0.2), epsilon=0.1, samples=24
    ),
    "smoothing.smooth": lambda: smoothing.smooth(MODEL, X, Y, noise=smoothing.Ball(0.5), samples=8),
    "smoothing.smoothed": lambda: smoothing.smoothed(MODEL, X, Y, noise=smoothing.Ball(0.5), samples=8),
}


OBJECTIVES: dict[str, Callable[[], object]] = {
    "hessian_norm": lambda: regularizers.hessian_norm(MODEL, X, Y, generator=torch.Generator().manual_seed(0)),
    **{
        made.__name__: lambda made=made: made(MODEL)(
            X, Y, made(MODEL).draw(X.shape, torch.Generator().manual_seed(0), X.device)
        )  # type: ignore[misc]
        for made in (
            regularizers.GradientAlignment,
            regularizers.HessianPenalty,
            regularizers.AttributionAdversary,
            regularizers.AdversarialTraining,
        )
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_has_its_value_without_gradients_and_is_refused_in_inference_mode(name: str) -> None:
    wanted = numbers(OBJECTIVES[name]())
    with torch.no_grad():
        found = numbers(OBJECTIVES[name]())
    assert wanted
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b)
    with torch.inference_mode(), pytest.raises(ValueError, match=rf"^{name} takes derivatives"):
        OBJECTIVES[name]()


def numbers(found: object) -> list[Tensor]:
    """Every tensor in a result, in its order."""
    if isinstance(found, Tensor):
        return [found.detach()]
    if isinstance(found, (list, tuple)):
        return [each for part in found for each in numbers(part)]
    if isinstance(found, dict):
        return numbers(list(found.values()))
    return numbers([getattr(found, each.name) for each in fields(found)]) if is_dataclass(found) else []


def test_every_public_function_of_a_model_is_called_here() -> None:
    there = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in (attacks, influence, metrics, sanity, smoothing)
        for name in module.__all__
        if callable(made := getattr(module, name)) and {"model", "layer"} & set(inspect.signature(made).parameters)
    }
    assert there == CALLS.keys()


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", CALLS)
def test_modes_around_a_call_change_nothing(name: str, around: Callable[[], AbstractContextManager[None]]) -> None:
    wanted = CALLS[name]()
    with around():
        found = CALLS[name]()
    a, b = numbers(wanted), numbers(found)
    assert len(a) == len(b)
    assert all(torch.equal(torch.nan_to_num(u), torch.nan_to_num(v)) for u, v in zip(a, b, strict=True))
    assert a or found == wanted
