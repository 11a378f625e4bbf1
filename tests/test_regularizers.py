"""Objectives against formulas written out by hand, differences of values, and what no rescaling may change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robattr.models import Classifier
from robattr.regularizers import (
    AdversarialTraining,
    AttributionAdversary,
    CrossEntropy,
    GradientAlignment,
    HessianPenalty,
    Losses,
    Objective,
    cosine_distance,
    hessian_norm,
    l2_distance,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EPSILON = 8 / 255
IMAGES, CLASSES = 6, 4


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def smooth(pool: nn.Module | None = None) -> nn.Module:
    """A network with curvature everywhere, whose last layer has a bias."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.Softplus(beta=3),
            pool or nn.AvgPool2d(2),
            nn.Conv2d(5, 4, 3, padding=1, stride=2),
            nn.Softplus(beta=3),
            nn.Flatten(),
            nn.Linear(16, CLASSES),
        )
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(3)  # initial weights make almost linear networks
    return network


def classifier(network: nn.Module | None = None) -> Classifier:
    model = Classifier(network or smooth(), mean=MEAN, std=STD, name="small", input_size=(3, 8, 8), num_classes=CLASSES)
    return model.double()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """For objectives that draw their own noise, and layers with initial weights."""
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    """Images in the middle of [0, 1], so that no ball is cut."""
    return 0.1 + 0.8 * torch.rand(IMAGES, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def y() -> Tensor:
    return torch.randint(CLASSES, (IMAGES,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def noise() -> Tensor:
    return torch.rand(IMAGES, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def assert_near(ours: list[Tensor], theirs: list[Tensor], relative: float) -> None:
    """Parameter by parameter, relative to the norm of its gradient."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= relative * b.norm()
    assert max(float(b.norm()) for b in theirs) > 1e-3


# --- distances ------------------------------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    # Images of two pixels: (3, 4) and (4, 3); (1, 0) and (-2, 0); (1, 0) and (0, 5).
    a = torch.tensor([[[[3.0, 4.0]]], [[[1.0, 0.0]]], [[[1.0, 0.0]]]])
    b = torch.tensor([[[[4.0, 3.0]]], [[[-2.0, 0.0]]], [[[0.0, 5.0]]]])
    torch.testing.assert_close(l2_distance(a, b), torch.tensor([2.0, 9.0, 26.0]))
    # The cosines are 24/25, -1 and 0.
    torch.testing.assert_close(cosine_distance(a, b), torch.tensor([0.02, 1.0, 0.5]))
    torch.testing.assert_close(cosine_distance(a, 7 * a), torch.zeros(3), rtol=0, atol=3e-7)


def test_a_zero_attribution_has_distance_half_and_gradient_zero() -> None:
    a = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]], requires_grad=True)
    b = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]], requires_grad=True)
    distance = cosine_distance(a, b)
    assert torch.equal(distance, torch.tensor([0.5, 0.5]))
    for found in torch.autograd.grad(distance.sum(), (a, b)):
        assert torch.equal(found, torch.zeros(2, 3))
    assert torch.equal(cosine_distance(torch.zeros(1, 3), torch.zeros(1, 3)), torch.tensor([0.5]))


@pytest.mark.parametrize("size", [1e-25, 1e-13, 1e-3, 1e15])
def test_cosine_distance_of_any_size(size: float) -> None:
    """The direction of a small gradient is one: the distance stays, its gradient grows as one over the size."""
    a, b = random(3, 20, seed=1, dtype=torch.float32), random(3, 20, seed=2, dtype=torch.float32)
    (plain,) = torch.autograd.grad(cosine_distance(a.requires_grad_(), b).sum(), a)
    small = (a.detach() * size).requires_grad_()
    distance = cosine_distance(small, b)
    torch.testing.assert_close(distance, cosine_distance(a, b).detach())
    (g,) = torch.autograd.grad(distance.sum(), small)
    torch.testing.assert_close(g.double() * size, plain.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", [l2_distance, cosine_distance])
def test_derivatives_of_distances(distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = random(3, 2, 4, seed=1).requires_grad_(), random(3, 2, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(distance, (a, b))
    assert torch.autograd.gradgradcheck(distance, (a, b))


# --- the Hessian ----------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """Two logits ``x A x / 2 + b x``, each with a symmetric A."""

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        a = random(2, size, size, seed=4)
        self.a = nn.Parameter((a + a.mT) / 2)
        self.b = nn.Parameter(random(2, size, seed=5))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        return torch.einsum("ni,cij,nj->nc", z, self.a, z) / 2 + z @ self.b.mT


def test_hessian_norm_of_a_quadratic_on_average() -> None:
    """``v H^2 v`` has mean tr H^2 and variance 2 tr H^4: 20,000 draws, within five standard errors."""
    model, copies, draws = Quadratic().requires_grad_(False), 5000, 4
    generator = torch.Generator().manual_seed(0)
    x = random(1, 1, 2, 3, seed=6).expand(copies, 1, 2, 3)
    for label in (0, 1):
        y = torch.full((copies,), label)
        found = hessian_norm(model, x, y, draws=draws, generator=generator).mean()
        squared = model.a[label] @ model.a[label]
        exact, error = squared.trace(), (2 * squared.square().sum() / (copies * draws)).sqrt()
        assert error < 0.02 * exact
        assert abs(found - exact) < 5 * error


@pytest.mark.parametrize("activation", ["softplus", "tanh"])
@pytest.mark.parametrize("scale", [1.0, (0.5, 3.0), torch.tensor([0.5, 3.0])], ids=["1", "tuple", "tensor"])
def test_hessian_norm_of_two_layers_by_hand(activation: str, scale: Any) -> None:
    """H = W1' diag(w2 a''(W1 x + b1)) W1, and the draws are the generator's."""
    beta = 3.0
    w1, b1, w2 = random(7, 8, seed=1) / 2, random(7, seed=2), random(3, 7, seed=3)
    first, last = nn.Linear(8, 7).double(), nn.Linear(7, 3).double()
    with torch.no_grad():
        for parameter, value in ((first.weight, w1), (first.bias, b1), (last.weight, w2)):
            parameter.copy_(value)
    model = nn.Sequential(nn.Flatten(), first, nn.Softplus(beta) if activation == "softplus" else nn.Tanh(), last)
    x, y = random(5, 2, 2, 2, seed=4), torch.tensor([0, 1, 2, 1, 0])
    z = x.flatten(1) @ w1.mT + b1
    s = (z * beta).sigmoid()
    curved = beta * s * (1 - s) if activation == "softplus" else -2 * z.tanh() * (1 - z.tanh() ** 2)
    h = torch.einsum("ki,nk,kj->nij", w1, w2[y] * curved, w1)
    # D H D, with one factor a channel of two pixels by two.
    d = torch.ones(8) if isinstance(scale, float) else torch.tensor([0.5] * 4 + [3.0] * 4)
    h = d.double()[:, None] * h * d.double()
    generator = torch.Generator().manual_seed(9)
    draws = [torch.randn(x.shape, dtype=torch.float64, generator=generator).flatten(1) for _ in range(3)]
    by_hand = sum(torch.einsum("nij,nj->ni", h, v).square().sum(1) for v in draws) / 3
    found = hessian_norm(model, x, y, draws=3, scale=scale, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=0)


def test_hessian_norm_has_a_graph_where_one_is_asked_for(x: Tensor, y: Tensor) -> None:
    model = classifier()
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    found = hessian_norm(model, x, y, generator=seeded())
    (g,) = torch.autograd.grad(found.sum(), model.network[0].weight)
    assert g.norm() > 0
    with torch.no_grad():
        without = hessian_norm(model, x, y, generator=seeded())
    assert not without.requires_grad
    torch.testing.assert_close(without, found.detach())
    with pytest.raises(ValueError, match="draws is 0") as error:
        hessian_norm(model, x, y, draws=0)
    assert "\n" not in str(error.value)


def test_a_linear_model_has_no_hessian() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.rand(2, 3, 2, 2), torch.tensor([0, 2])
    assert torch.equal(hessian_norm(model, x, y), torch.zeros(2))
    assert torch.equal(hessian_norm(model.requires_grad_(False), x, y), torch.zeros(2))
    model.requires_grad_()
    for objective in (HessianPenalty(model), GradientAlignment(model), AttributionAdversary(model, distance="l2")):
        losses = objective(x, y)
        # Equal gradients have a cosine of 1 up to the rounding of a sum in float32.
        torch.testing.assert_close(losses.total.detach(), losses.cross_entropy, rtol=0, atol=1e-6)
        losses.total.backward()


# --- published formulas, in standardized units ----------------------------------------------------------------------


def standardized(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v, dtype=torch.float32).double().view(1, 3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std, std


def logit_gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(network(z).gather(1, y[:, None]).sum(), z, create_graph=True)
    return g


def published_cosine(a: Tensor, b: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(a.flatten(1), b.flatten(1), eps=1e-300)) / 2


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("weights", [(0.01, 1.0), (0.3, 0.0), (0.0, 2.0)])
def test_alignment_is_the_published_formula(
    x: Tensor, y: Tensor, noise: Tensor, weights: tuple[float, float], detach: bool
) -> None:
    """Gradients per standardized pixel, and a radius divided by the deviation of each channel."""
    model = classifier(smooth(nn.MaxPool2d(2)))
    l2, cosine = weights
    losses = GradientAlignment(model, l2=l2, cosine=cosine, epsilon=EPSILON, detach=detach)(x, y, noise)
    z, std = standardized(x)
    g = logit_gradient(model.network, z, y)
    g = g.detach() if detach else g
    h = logit_gradient(model.network, z + noise * EPSILON / std, y)
    squared, angle = (g - h).flatten(1).norm(dim=1).square().mean(), published_cosine(g, h).mean()
    expected = F.cross_entropy(model.network(z), y) + l2 * squared + cosine * angle
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.penalties["l2"].item() == pytest.approx(squared.item(), rel=1e-5)
    assert losses.penalties["cosine"].item() == pytest.approx(angle.item(), rel=1e-5)
    assert_near(gradients(losses.total, model), gradients(expected, model), 1e-5)


def test_hessian_penalty_is_the_published_formula(x: Tensor, y: Tensor) -> None:
    model, v = classifier(smooth(nn.MaxPool2d(2))), random(IMAGES, 3, 8, 8, seed=8)
    losses = HessianPenalty(model, weight=0.1)(x, y, v)
    z = standardized(x)[0].requires_grad_()
    (g,) = torch.autograd.grad(model.network(z).gather(1, y[:, None]).sum(), z, create_graph=True)
    (hv,) = torch.autograd.grad((g * v).sum(), z, create_graph=True)
    hessian = hv.flatten(1).norm(dim=1).square().mean()
    expected = F.cross_entropy(model.network(z), y) + 0.1 * hessian
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.penalties["hessian"].item() == pytest.approx(hessian.item(), rel=1e-5)
    assert_near(gradients(losses.total, model), gradients(expected, model), 1e-5)


def test_scale_is_the_unit_of_gradients(x: Tensor, y: Tensor, noise: Tensor) -> None:
    """A factor c a channel: l2 by c^2, the Hessian's norm by c^4, the cosine by nothing; 1 is per pixel."""
    model = classifier()
    for scale, factor in ((2.0, 2.0), ((2.0, 2.0, 2.0), 2.0), (torch.full((3,), 2.0), 2.0)):
        one, other = (GradientAlignment(model, scale=s)(x, y, noise).penalties for s in (1.0, scale))
        torch.testing.assert_close(other["l2"], one["l2"] * factor**2)
        torch.testing.assert_close(other["cosine"], one["cosine"])
        one, other = (HessianPenalty(model, scale=s)(x, y, noise).penalties for s in (1.0, scale))
        torch.testing.assert_close(other["hessian"], one["hessian"] * factor**4)
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(z).gather(1, y[:, None]).sum(), z, create_graph=True)
    (hv,) = torch.autograd.grad((g * noise).sum(), z)
    assert HessianPenalty(model, scale=1.0)(x, y, noise).penalties["hessian"].item() == pytest.approx(
        hv.flatten(1).square().sum(1).mean().item(), rel=1e-9
    )
    # A network whose normalization is not known sees pixels.
    network = smooth().double()
    default, pixels = (GradientAlignment(network, scale=s)(x, y, noise).total for s in (None, 1.0))
    assert torch.equal(default, pixels)


# --- derivatives ----------------------------------------------------------------------------------------------------


def slope(value: Callable[[], Tensor], model: nn.Module, directions: list[Tensor], h: float = 1e-5) -> float:
    """Central difference of a value when the parameters move along the directions."""
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(model.parameters(), directions, strict=True):
                p.add_(d, alpha=sign * h)
        ends.append(float(value()))
        with torch.no_grad():
            for p, d in zip(model.parameters(), directions, strict=True):
                p.add_(d, alpha=-sign * h)
    return (ends[0] - ends[1]) / (2 * h)


def assert_slopes(objective: Objective, value: Callable[[], Tensor], x: Tensor, y: Tensor, total: Tensor) -> None:
    """The gradient of the total is that of the cross-entropy, by PyTorch, and the differences of the rest.

    The objectives take the cross-entropy in float32, which is too coarse for differences.
    """
    model = objective.model
    found = gradients(total, model)
    clean = gradients(F.cross_entropy(model(x), y), model)
    # One direction a parameter, and one through all of them.
    for k in range(len(found) + 1):
        directions = [
            random(*p.shape, seed=20 + i) if k in (i, len(found)) else torch.zeros_like(p)
            for i, p in enumerate(model.parameters())
        ]
        length = sum(float(d.square().sum()) for d in directions) ** 0.5
        directions = [d / length for d in directions]
        exact = sum(float((g * d).sum()) for g, d in zip(found, directions, strict=True))
        cross_entropy = sum(float((g * d).sum()) for g, d in zip(clean, directions, strict=True))
        rest = slope(value, model, directions)
        # Float32 rounds the cross-entropy's gradient by 1e-7; the differences are good to h^2 and 1e-16 / h.
        assert exact == pytest.approx(cross_entropy + rest, rel=1e-6, abs=1e-6)
    assert abs(rest) > 1e-3


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 5.0), (1.0, 5.0)])
def test_derivative_of_the_alignment(x: Tensor, y: Tensor, noise: Tensor, weights: tuple[float, float]) -> None:
    model = classifier()
    l2, cosine = weights
    objective = GradientAlignment(model, l2=l2, cosine=cosine, epsilon=0.2, detach=False)

    def value() -> Tensor:
        p = objective(x, y, noise).penalties
        return l2 * p["l2"] + cosine * p["cosine"]

    assert_slopes(objective, value, x, y, objective(x, y, noise).total)


def test_derivative_of_the_alignment_with_one_gradient_held(x: Tensor, y: Tensor, noise: Tensor) -> None:
    model = classifier()
    objective = GradientAlignment(model, l2=0.3, cosine=2.0, epsilon=EPSILON, scale=1.0)
    assert objective.detach
    held = logit_gradient(model, x, y).detach()

    def value() -> Tensor:
        h = logit_gradient(model, x + EPSILON * noise, y).detach()
        return 0.3 * l2_distance(held, h).mean() + 2 * cosine_distance(held, h).mean()

    losses = objective(x, y, noise)
    assert_slopes(objective, value, x, y, losses.total)
    # The loss is that of both gradients moving; its gradient is not.
    moving = GradientAlignment(model, l2=0.3, cosine=2.0, epsilon=EPSILON, scale=1.0, detach=False)(x, y, noise)
    torch.testing.assert_close(losses.total, moving.total)
    pairs = zip(gradients(objective(x, y, noise).total, model), gradients(moving.total, model), strict=True)
    assert any((a - b).norm() > 0.1 * b.norm() for a, b in pairs)


def test_derivative_of_the_hessian_penalty(x: Tensor, y: Tensor) -> None:
    model, v = classifier(), random(IMAGES, 3, 8, 8, seed=8)
    objective = HessianPenalty(model, weight=0.5)
    assert_slopes(objective, lambda: 0.5 * objective(x, y, v).penalties["hessian"], x, y, objective(x, y, v).total)


def test_derivative_of_the_hessian_penalty_through_a_batch_normalization(x: Tensor, y: Tensor) -> None:
    """It takes a third derivative, which PyTorch's layer has not."""
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten())
    network.append(nn.Linear(4 * 6 * 6, CLASSES))
    model, v = classifier(network).train(), random(IMAGES, 3, 8, 8, seed=8)
    objective = HessianPenalty(model, weight=0.5)
    assert_slopes(objective, lambda: 0.5 * objective(x, y, v).penalties["hessian"], x, y, objective(x, y, v).total)


def transcribed_attack(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, distance: str, steps: int) -> Tensor:
    """The image after signed-gradient steps of ``2 epsilon / steps`` on the distance, by PyTorch alone."""
    std = standardized(x)[1]
    g = logit_gradient(model, x, y).detach() * std
    z = x + EPSILON * noise
    for _ in range(steps):
        z = z.detach().requires_grad_()
        (h,) = torch.autograd.grad(model(z).gather(1, y[:, None]).sum(), z, create_graph=True)
        h = h * std
        apart = (g - h).square().sum() if distance == "l2" else published_cosine(g, h).sum()
        (d,) = torch.autograd.grad(apart, z)
        z = (z + 2 * EPSILON / steps * d.sign()).detach()
        z = torch.minimum(torch.maximum(z, x - EPSILON), x + EPSILON).clamp(0, 1)
    return z


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_attribution_adversary_is_its_formula(x: Tensor, y: Tensor, noise: Tensor, distance: Any) -> None:
    """Value, and gradient with the attacked image and the clean attribution held."""
    model = classifier()
    objective = AttributionAdversary(model, weight=3.0, distance=distance, epsilon=EPSILON, steps=3)
    losses = objective(x, y, noise)
    end, std = transcribed_attack(model, x, y, noise, distance, 3), standardized(x)[1]
    held = logit_gradient(model, x, y).detach() * std

    def value() -> Tensor:
        h = logit_gradient(model, end, y).detach() * std
        return (l2_distance(held, h) if distance == "l2" else published_cosine(held, h)).mean()

    torch.testing.assert_close(losses.penalties[distance], value())
    assert_slopes(objective, lambda: 3 * value(), x, y, losses.total)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_the_inner_attack_finds_more_than_noise(x: Tensor, y: Tensor, noise: Tensor, distance: Any) -> None:
    model = classifier()
    objective = AttributionAdversary(model, distance=distance, epsilon=EPSILON, steps=5, scale=1.0)
    worst = objective(x, y, noise).penalties[distance]
    g = logit_gradient(model, x, y)
    found = []
    for draw in range(20):
        corner = x + EPSILON * random(*x.shape, seed=draw).sign()  # as far as noise can go
        h = logit_gradient(model, corner, y)
        found.append((l2_distance(g, h) if distance == "l2" else cosine_distance(g, h)).mean().item())
    assert worst > max(found)


@pytest.mark.parametrize("near_the_edge", [False, True])
def test_adversarial_training_stays_in_the_ball_and_is_no_easier(y: Tensor, noise: Tensor, near_the_edge: bool) -> None:
    model = classifier()
    x = torch.rand(IMAGES, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    x = x.round() if near_the_edge else x
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach().clone()))
    losses = AdversarialTraining(model, epsilon=EPSILON, steps=3)(x, y, noise)
    handle.remove()
    assert len(seen) == 4
    for image in seen:
        # 1e-16 a rounding of a sum of numbers below 1.
        assert ((image - x).abs() <= EPSILON + 1e-15).all()
        assert ((image >= 0) & (image <= 1)).all()
    clean = F.cross_entropy(model(x), y)
    assert losses.total > clean
    # The gradient is that of the last image, held.
    assert_near(gradients(losses.total, model), gradients(F.cross_entropy(model(seen[-1]), y), model), 1e-5)
    assert losses.correct == (model(seen[-1]).argmax(1) == y).sum()


def test_adversarial_training_is_projected_gradient_descent(x: Tensor, y: Tensor, noise: Tensor) -> None:
    model = classifier()
    z = x + EPSILON * noise
    for _ in range(2):
        z = z.detach().requires_grad_()
        (d,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        z = (z + 0.01 * d.sign()).detach()
        z = torch.minimum(torch.maximum(z, x - EPSILON), x + EPSILON)
    found = AdversarialTraining(model, epsilon=EPSILON, steps=2, step=0.01)(x, y, noise).total
    assert found.item() == pytest.approx(F.cross_entropy(model(z), y).item(), rel=1e-6)


# --- what rescaling changes -----------------------------------------------------------------------------------------


def scaled_last_layer(model: Classifier, c: float) -> None:
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        for p in last.parameters():
            p.mul_(c)


@pytest.mark.parametrize("c", [0.1, 7.0])
def test_scaling_the_last_layer_scales_l2_and_leaves_the_cosine(x: Tensor, y: Tensor, noise: Tensor, c: float) -> None:
    model = classifier()
    # The adversary's signs are the same for both: its distance is scaled where every point's is.
    objectives: tuple[Objective, ...] = (
        GradientAlignment(model, epsilon=EPSILON),
        AttributionAdversary(model, distance="l2", epsilon=EPSILON),
        AttributionAdversary(model, distance="cosine", epsilon=EPSILON),
        HessianPenalty(model),
    )
    before = [objective(x, y, noise).penalties for objective in objectives]
    scaled_last_layer(model, c)
    after = [objective(x, y, noise).penalties for objective in objectives]
    factor = {"l2": c**2, "hessian": c**2, "cosine": 1.0}
    for one, other in zip(before, after, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value * factor[name], rtol=1e-9, atol=0)


def test_scaling_a_homogeneous_network(x: Tensor, y: Tensor, noise: Tensor) -> None:
    """Three layers without biases, each times c: gradients by c^3, l2 by c^6, and the same cosine."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 6, 3, bias=False),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(6, CLASSES, bias=False),
        )
    model = classifier(network)
    objective = GradientAlignment(model, epsilon=32 / 255)
    before, c = objective(x, y, noise).penalties, 1.7
    assert before["l2"] > 1e-6
    assert before["cosine"] > 1e-4
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(c)
    after = objective(x, y, noise).penalties
    torch.testing.assert_close(after["l2"], before["l2"] * c**6, rtol=1e-9, atol=0)
    torch.testing.assert_close(after["cosine"], before["cosine"], rtol=1e-9, atol=0)


# --- interface ------------------------------------------------------------------------------------------------------


OBJECTIVES: dict[str, tuple[Callable[..., Objective], set[str]]] = {
    "cross-entropy": (CrossEntropy, set()),
    "alignment": (GradientAlignment, {"l2", "cosine"}),
    "hessian": (HessianPenalty, {"hessian"}),
    "adversary-cosine": (AttributionAdversary, {"cosine"}),
    "adversary-l2": (partial(AttributionAdversary, distance="l2"), {"l2"}),
    "adversarial": (AdversarialTraining, set()),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_are_named_and_only_the_total_has_a_graph(name: str, x: Tensor, y: Tensor) -> None:
    make, penalties = OBJECTIVES[name]
    model = classifier().float()
    x = x.float()
    objective = make(model)
    losses = objective(x, y)
    assert isinstance(losses, Losses)
    assert losses._fields == ("total", "cross_entropy", "penalties", "correct")
    assert set(losses.penalties) == penalties
    assert losses.total.requires_grad
    for value in (losses.total, losses.cross_entropy, losses.correct, *losses.penalties.values()):
        assert value.shape == ()
    assert not any(v.requires_grad for v in (losses.cross_entropy, losses.correct, *losses.penalties.values()))
    if name != "adversarial":
        torch.testing.assert_close(losses.cross_entropy, F.cross_entropy(model(x), y).detach())
        assert losses.correct == (model(x).argmax(1) == y).sum()
    # Weights times penalties are the rest of the total.
    weights = {name: float(getattr(objective, name, getattr(objective, "weight", 0))) for name in penalties}
    rest = sum(weights[name] * losses.penalties[name] for name in penalties)
    torch.testing.assert_close(losses.total.detach(), losses.cross_entropy + rest)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not x.requires_grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_can_be_repeated(name: str, x: Tensor, y: Tensor) -> None:
    """The same draw gives the same losses; another one does not; validation may run without gradients."""
    model = classifier().float()
    x = x.float()
    objective = OBJECTIVES[name][0](model)
    one, two, three = (
        objective.draw(x.shape, torch.Generator().manual_seed(seed), torch.device("cpu")) for seed in (0, 0, 1)
    )
    if one is None:
        assert name == "cross-entropy"
        return
    assert two is not None
    assert three is not None
    assert one.shape == x.shape
    if name == "hessian":
        assert one.abs().max() > 2
        assert abs(one.std() - 1) < 0.1  # 1,152 draws: five standard errors of 1 / sqrt(2 n)
    else:
        assert -1 <= one.min() < -0.98
        assert 0.98 < one.max() <= 1
    first, second, other = (objective(x, y, draw) for draw in (one, two, three))
    assert torch.equal(first.total, second.total)
    assert not torch.equal(first.total, other.total)
    with torch.no_grad():
        torch.testing.assert_close(objective(x, y, one).total.detach(), first.total.detach())


def test_objectives_hold_nothing_but_the_model() -> None:
    """The unit of gradients is no part of the state: weights of one objective go into another."""
    model = classifier()
    keys = {f"model.{name}" for name in model.state_dict()}
    for make, _ in OBJECTIVES.values():
        objective = make(model)
        assert objective.model is model
        assert set(objective.state_dict()) == keys
        assert len(list(objective.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(GradientAlignment, l2=-0.1), "l2 is -0.1"),
        (partial(GradientAlignment, cosine=float("nan")), "cosine is nan"),
        (partial(GradientAlignment, cosine=float("inf")), "cosine is inf"),
        (partial(GradientAlignment, epsilon=0.0), "epsilon is 0.0"),
        (partial(GradientAlignment, epsilon=4.0), "epsilon is 4.0"),
        (partial(HessianPenalty, weight=-1.0), "weight is -1.0"),
        (partial(AttributionAdversary, weight=-1.0), "weight is -1.0"),
        (partial(AttributionAdversary, epsilon=-0.1), "epsilon is -0.1"),
        (partial(AttributionAdversary, steps=0), "steps is 0"),
        (partial(AttributionAdversary, distance="l1"), "distance is 'l1'; accepted are 'cosine' and 'l2'"),
        (partial(AdversarialTraining, epsilon=2.0), "epsilon is 2.0"),
        (partial(AdversarialTraining, steps=-1), "steps is -1"),
    ],
)
def test_impossible_options_are_refused_in_one_line(make: Callable[..., Objective], message: str) -> None:
    with pytest.raises(ValueError, match=r"accepted|a weight is|takes") as error:
        make(classifier())
    assert message in str(error.value)
    assert "\n" not in str(error.value)
