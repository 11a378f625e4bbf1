"""Influence functions: closed forms, retraining without a point, another implementation, refusals, and the attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
import torch
from captum.influence import NaiveInfluenceFunction
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from robattr import data, metrics, models
from robattr.influence import (
    Influence,
    InfluenceAttackResult,
    LastLayer,
    SolverError,
    influence,
    influence_attack,
    influence_random_sign,
    rank_correlation,
    turnover,
)
from robattr.influence.solver import _ConjugateGradients

DAMPING = 0.03
Loss = Literal["cross-entropy", "squared"]
LOSSES: list[Loss] = ["cross-entropy", "squared"]


def tiny(bias: bool = True, seed: int = 0) -> nn.Sequential:
    """Two layers for images [N, 1, 3, 4] and 3 outputs, smooth, in float64; module 3 is the last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Softplus(), nn.Linear(4, 3, bias=bias))
    return model.double().eval()


class Problem:
    """20 training and 5 test images, with labels for either loss."""

    def __init__(self, loss: Loss = "cross-entropy") -> None:
        g = torch.Generator().manual_seed(1)
        self.x, self.t = (torch.rand(n, 1, 3, 4, dtype=torch.float64, generator=g) for n in (20, 5))
        self.y, self.u = (torch.randint(0, 3, (n,), generator=g) for n in (20, 5))
        if loss == "squared":
            self.y, self.u = (torch.randn(n, 3, dtype=torch.float64, generator=g) for n in (20, 5))


def last_layer(problem: Problem, model: nn.Module | None = None, **options: Any) -> LastLayer:
    return LastLayer(model or tiny(), problem.x, problem.y, **{"damping": DAMPING, **options})


def by_autograd(
    model: nn.Module, names: list[str], problem: Problem, loss: Loss, ridge: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the training and of the test points, and the Hessian, all with respect to one flat vector."""
    theta = torch.cat([model.get_parameter(name).detach().flatten() for name in names])

    def one(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        values, start = {}, 0
        for name in names:
            like = model.get_parameter(name)
            values[name] = flat[start : start + like.numel()].view(like.shape)
            start += like.numel()
        out = functional_call(model, values, (x[None],))
        return F.cross_entropy(out, y[None]) if loss == "cross-entropy" else F.mse_loss(out[0], y, reduction="sum") / 2

    def mean(flat: Tensor) -> Tensor:
        return vmap(one, in_dims=(None, 0, 0))(flat, problem.x, problem.y).mean() + ridge / 2 * flat.square().sum()

    each = vmap(grad(one), in_dims=(None, 0, 0))
    return each(theta, problem.x, problem.y), each(theta, problem.t, problem.u), jacrev(jacrev(mean))(theta)


def flat(v: Tensor, bias: bool = True) -> Tensor:
    """Directions [T, outputs, features] in the order of autograd: the weight, then the bias."""
    return torch.cat([v[..., :-1].flatten(1), v[..., -1]], 1) if bias else v.flatten(1)


# --- closed forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_and_hessian_products_are_those_of_autograd(loss: Loss, bias: bool) -> None:
    problem, model = Problem(loss), tiny(bias)
    layer = last_layer(problem, model, loss=loss, weight_decay=0.02)
    names = ["3.weight", "3.bias"] if bias else ["3.weight"]
    train, test, h = by_autograd(model, names, problem, loss, DAMPING + 0.02)
    assert layer.shape == (3, 4 + bias)
    torch.testing.assert_close(flat(layer.loss_gradients(problem.t, problem.u), bias), test, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(flat(layer.loss_gradients(problem.x, problem.y), bias), train, rtol=1e-10, atol=1e-12)
    directions = torch.randn(7, *layer.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = flat(layer.hessian_product(directions), bias)
    torch.testing.assert_close(found, flat(directions, bias) @ h, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [True, False])
def test_both_solvers_give_the_solution_of_the_dense_system(loss: Loss, bias: bool) -> None:
    """An error of the solution is at most the residual over the damping, and of a value that times both gradients."""
    problem, model = Problem(loss), tiny(bias)
    names = ["3.weight", "3.bias"] if bias else ["3.weight"]
    decay = 0.02
    train, test, h = by_autograd(model, names, problem, loss, DAMPING + decay)
    expected = -test @ torch.linalg.solve(h, train.T)
    bound = test.norm(dim=1)[:, None] * train.norm(dim=1) / (DAMPING + decay)
    layer_of = partial(last_layer, problem, model, loss=loss, weight_decay=decay)
    for tolerance in (1e-3, 1e-10):
        found = layer_of(tolerance=tolerance).influence(problem.t, problem.u)
        assert found.values.shape == (5, 20)
        assert (found.residual <= tolerance).all()
        assert (found.iterations >= 1).all()
        assert ((found.values - expected).abs() <= (tolerance + 1e-13) * bound).all()
    exact = layer_of(solver="exact").influence(problem.t, problem.u)
    torch.testing.assert_close(exact.values, expected, rtol=1e-10, atol=1e-12)
    assert (exact.residual < 1e-12).all()
    assert not exact.iterations.any()


def test_gradients_of_certain_predictions_keep_their_digits() -> None:
    """Logits (0, a) have the gradient (p, -p) with p = 1/(1 + exp(a)): far below the rounding of a probability."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [700.0]]))
        model[1].bias.zero_()
    x = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    layer = LastLayer(model, x, torch.tensor([0, 1, 0]), damping=1.0)
    for image in x:
        p = 1 / (1 + math.exp(700 * image.item()))
        g = layer.loss_gradients(image[None], 1)[0]
        assert g[0, 1].item() == pytest.approx(p, rel=1e-12)
        assert g[1, 1].item() == pytest.approx(-p, rel=1e-12)
    # Their influences, too, which are linear in the gradient; squares of 1e-304 would be zero. Point 1 is the last one.
    found = layer.influence(x, torch.tensor([1, 1, 1]))
    s = torch.linalg.solve(dense(layer), layer.loss_gradients(x, 1).flatten(1).T).T
    expected = -s @ layer.loss_gradients(x, torch.tensor([0, 1, 0])).flatten(1).T
    torch.testing.assert_close(found.values[2, [0, 2]] / 1e-300, expected[2, [0, 2]] / 1e-300, rtol=1e-6, atol=0)
    assert (found.values[2, [0, 2]] != 0).all()


def dense(layer: LastLayer) -> Tensor:
    count = math.prod(layer.shape)
    unit = torch.eye(count, dtype=torch.float64).view(count, *layer.shape)
    return layer.hessian_product(unit).flatten(1)


def test_a_point_without_a_gradient_has_no_influence() -> None:
    problem = Problem("squared")
    model = tiny()
    with torch.no_grad():
        problem.u[2] = model(problem.t)[2]
    for solver in ("cg", "exact"):
        found = last_layer(problem, model, loss="squared", solver=solver).influence(problem.t, problem.u)
        assert not found.values[2].any()
        assert found.residual[2] == 0
        assert found.iterations[2] == 0
        assert (found.values[[0, 1, 3, 4]] != 0).all()


# --- leaving points out --------------------------------------------------------------------------------------------


def test_ridge_regression_has_the_closed_form_of_leaving_one_out() -> None:
    """With A = X^T X / n + ridge, leverage h_i = x_i^T A^-1 x_i / n and residuals r:

    the influence is ``- r_t x_t^T A^-1 x_i r_i``, and by Sherman & Morrison the prediction without point i changes by
    exactly ``x_t^T A^-1 x_i r_i / n / (1 - h_i)``.
    """
    rng = np.random.default_rng(0)
    n, d, ridge = 40, 6, 0.05
    x = rng.random((n, d))
    y = x @ rng.standard_normal(d) + 0.3 * rng.standard_normal(n)
    test, target = rng.random((3, d)), rng.standard_normal(3)
    a = x.T @ x / n + ridge * np.eye(d)
    theta = np.linalg.solve(a, x.T @ y / n)
    r, r_test = x @ theta - y, test @ theta - target
    model = nn.Sequential(nn.Flatten(), nn.Linear(d, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(theta[None]))

    def images(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows)[:, None, None]

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values)[:, None]

    first_order = -(r_test[:, None] * (test @ np.linalg.solve(a, x.T)) * r)
    leverage = (x * np.linalg.solve(a, x.T).T).sum(1) / n
    without = [(a - np.outer(x[i], x[i]) / n, (x.T @ y - x[i] * y[i]) / n) for i in range(n)]
    retrained = np.stack([np.linalg.solve(left, right) for left, right in without])
    actual = ((test @ retrained.T - target[:, None]) ** 2 - r_test[:, None] ** 2) / 2

    options: dict[str, Any] = {"loss": "squared", "damping": 0.0, "weight_decay": ridge, "tolerance": 1e-12}
    layer = LastLayer(model, images(x), column(y), **options)
    general = influence(model, images(x), column(y), images(test), column(target), **options)
    for found in (layer.influence(images(test), column(target)), general):
        np.testing.assert_allclose(found.values.numpy(), first_order, rtol=1e-8, atol=1e-11)
        removal = found.removal().numpy()
        np.testing.assert_allclose(removal, -first_order / n, rtol=1e-8, atol=1e-11)
        for one, other in zip(removal, actual, strict=True):
            assert np.corrcoef(one, other)[0, 1] > 0.99
        # The whole change of a squared loss: r_t times the change of the prediction, and half of its square.
        along = removal / (1 - leverage)
        np.testing.assert_allclose(along + (along / r_test[:, None]) ** 2 / 2, actual, rtol=1e-8, atol=1e-11)


def trained(x: Tensor, y: Tensor, weights: Tensor, decay: float) -> Tensor:
    """Multinomial logistic regression by Newton's method, for each row of weights [R, n] of the points: [R, 3, d]."""
    d = x.shape[1]

    def objective(theta: Tensor, weight: Tensor) -> Tensor:
        losses = F.cross_entropy(x @ theta.view(3, d).T, y, reduction="none")
        return (weight * losses).sum() + decay / 2 * theta.square().sum()

    theta = torch.zeros(len(weights), 3 * d, dtype=x.dtype)
    for _ in range(30):
        g = vmap(grad(objective))(theta, weights)
        if g.abs().max() < 1e-14:
            break
        p = (x @ theta.view(-1, 3, d).mT).softmax(2)
        curvature = weights[:, :, None, None] * (torch.diag_embed(p) - p[:, :, :, None] * p[:, :, None])
        h = torch.einsum("rnab,ni,nj->raibj", curvature, x, x).flatten(3).flatten(1, 2)
        theta = theta - torch.linalg.solve(h + decay * torch.eye(3 * d, dtype=x.dtype), g)
    assert g.abs().max() < 1e-14  # by autograd: the optimum, however it was found
    return theta.view(-1, 3, d)


def test_logistic_regression_on_digits_without_a_point() -> None:
    """30 of 120 points of three classes, from the most helpful to the most harmful, are left out and trained without.

    The prediction is the derivative of training, too: more or less weight of a point changes the loss as it says.
    """
    train, test = (data.load("digits", split) for split in ("train", "test"))
    rows = (train.labels < 3).nonzero().flatten()[:120]
    x, y = train.images[rows].double(), train.labels[rows]
    t_rows = (test.labels < 3).nonzero().flatten()[:60]
    t, u = test.images[t_rows].double(), test.labels[t_rows]
    n, decay = 120, 0.01
    features, t_features = (F.pad(v.flatten(1), (0, 1), value=1.0) for v in (x, t))
    even = torch.full((1, n), 1 / n, dtype=torch.float64)
    theta = trained(features, y, even, decay)

    def test_losses(parameters: Tensor) -> Tensor:
        logits = torch.einsum("td,rcd->rtc", t_features, parameters)
        return F.cross_entropy(logits.flatten(0, 1), u.repeat(len(parameters)), reduction="none").view(-1, len(u))

    # The test points that the model is least sure of: where a loss can change.
    hardest = test_losses(theta)[0].argsort(descending=True)[:3]
    t, u, t_features = t[hardest], u[hardest], t_features[hardest]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(theta[0, :, :-1])
        model[1].bias.copy_(theta[0, :, -1])
    found = LastLayer(model, x, y, damping=0.0, weight_decay=decay).influence(t, u)
    for i in range(3):
        ordered = found.values[i].argsort()
        points = ordered[torch.linspace(0, n - 1, 30).long()]
        without = even.repeat(30, 1)
        without[torch.arange(30), points] = 0
        actual = (test_losses(trained(features, y, without, decay)) - test_losses(theta))[:, i]
        predicted = found.removal()[i, points]
        assert np.corrcoef(predicted, actual)[0, 1] >= 0.95
        # One step of the difference quotient is off by its square, (n h)^2 = 1.4e-6 of the value.
        h, few = 1e-5, points[::6]
        up, down = even.repeat(5, 1), even.repeat(5, 1)
        up[torch.arange(5), few] += h
        down[torch.arange(5), few] -= h
        above, below = (test_losses(trained(features, y, weights, decay)) for weights in (up, down))
        slope = (above - below) / (2 * h)
        torch.testing.assert_close(found.values[i, few], slope[:, i], rtol=1e-5, atol=1e-7)


# --- any parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("names", [None, ["3"], ["1.weight", "3.bias"]])
def test_any_parameters_equal_the_dense_system(loss: Loss, names: list[str] | None) -> None:
    problem, model = Problem(loss), tiny()
    full = {None: ["1.weight", "1.bias", "3.weight", "3.bias"], "3": ["3.weight", "3.bias"]}
    every = full.get(names[0] if names else None, names) or []
    train, test, h = by_autograd(model, every, problem, loss, 2.0)
    expected = -test @ torch.linalg.solve(h, train.T)
    lowest = torch.linalg.eigvalsh(h)[0]
    assert lowest > 0.5  # the bound below
    bound = 1e-9 * test.norm(dim=1)[:, None] * train.norm(dim=1) / lowest
    options: dict[str, Any] = {"damping": 1.5, "weight_decay": 0.5, "loss": loss, "parameters": names}
    for max_batch in (5, 64):
        found = influence(
            model, problem.x, problem.y, problem.t, problem.u, max_batch=max_batch, tolerance=1e-10, **options
        )
        assert ((found.values - expected).abs() <= bound).all()
        assert (found.residual <= 1e-10).all()
    if names == ["3"]:
        layer = last_layer(problem, model, damping=1.5, weight_decay=0.5, loss=loss, tolerance=1e-10)
        assert ((layer.influence(problem.t, problem.u).values - found.values).abs() <= 2 * bound).all()


class Once(nn.Module):
    """A matrix that is used twice, as one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(12, 12) / 4)
        self.before, self.after = nn.Parameter(torch.randn(12) / 4), nn.Parameter(torch.randn(12) / 4)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.softplus(F.linear(x.flatten(1), self.matrix, self.before))
        out: Tensor = self.last(F.softplus(F.linear(z, self.matrix, self.after)))
        return out


class Shared(nn.Module):
    """The same network of modules that share their weight."""

    def __init__(self, once: Once) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.second.weight = self.first.weight
        with torch.no_grad():
            self.first.weight.copy_(once.matrix)
            self.first.bias.copy_(once.before)
            self.second.bias.copy_(once.after)
        self.last.load_state_dict(once.last.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.softplus(self.second(F.softplus(self.first(x.flatten(1))))))
        return out


@pytest.mark.parametrize(
    ("wanted", "means"),
    [
        (["second"], ["matrix", "after"]),
        (["first"], ["matrix", "before"]),
        (["second.weight"], ["matrix"]),
        (["first.weight", "second.weight"], ["matrix"]),
        (["first", "second"], ["matrix", "before", "after"]),
        (None, ["matrix", "before", "after", "last.weight", "last.bias"]),
    ],
)
def test_a_parameter_with_two_names_is_meant_by_both_and_counts_once(
    wanted: list[str] | None, means: list[str]
) -> None:
    """A module whose weight is another one's, too, is asked for whole: not its bias alone."""
    problem = Problem()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        once = Once().double().eval()
        model = Shared(once).double().eval()
    train, test, h = by_autograd(once, means, problem, "cross-entropy", 2.0)
    expected = -test @ torch.linalg.solve(h, train.T)
    lowest = torch.linalg.eigvalsh(h)[0]
    assert lowest > 0.5  # the bound below
    bound = 1e-9 * test.norm(dim=1)[:, None] * train.norm(dim=1) / lowest
    found = influence(
        model, problem.x, problem.y, problem.t, problem.u, damping=2.0, parameters=wanted, tolerance=1e-10
    )
    assert ((found.values - expected).abs() <= bound).all()
    frozen_ = Shared(once).double().eval().requires_grad_(False)
    again = influence(
        frozen_, problem.x, problem.y, problem.t, problem.u, damping=2.0, parameters=wanted, tolerance=1e-10
    )
    assert torch.equal(again.values, found.values)


@pytest.mark.parametrize("images", [torch.float32, torch.float64])
@pytest.mark.parametrize("numbers", [torch.float32, torch.float64])
def test_images_need_not_have_the_numbers_of_the_network(numbers: torch.dtype, images: torch.dtype) -> None:
    """Images of 8 bits are the same in both; so is what is computed in float64 of them."""
    problem, model = Problem(), tiny().float().to(numbers)
    x, t = ((each * 255).round() / 256 for each in (problem.x, problem.t))  # exact in float32
    exact, found = (
        influence(model, a, problem.y, b, problem.u, damping=2.0) for a, b in ((x, t), (x.to(images), t.to(images)))
    )
    assert torch.equal(found.values, exact.values)
    wanted, layer = (LastLayer(model, a, problem.y, damping=1.0) for a in (x.to(numbers), x.to(images)))
    assert torch.equal(
        layer.influence(t.to(images), problem.u).values, wanted.influence(t.to(numbers), problem.u).values
    )
    attacked = influence_attack(layer, t.to(images), epsilon=0.125, iterations=2)
    assert attacked.images.dtype == images
    assert ((attacked.images - t.to(images)).abs() <= 0.125).all()


def test_attention_has_the_influence_of_its_products() -> None:
    """The fused kernel has no second derivative; what it computes, written down, has."""

    class Attends(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.fused = fused
            self.into, self.last = nn.Linear(4, 4), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.into(x.flatten(1)[:, :8].unflatten(1, (2, 4)))
            if self.fused:
                y = F.scaled_dot_product_attention(z[:, None], z[:, None], z[:, None])[:, 0]
            else:
                y = (z @ z.transpose(1, 2) / 2).softmax(2) @ z
            out: Tensor = self.last(y.flatten(1))
            return out

    torch.manual_seed(3)
    fused, written = Attends(True).double().eval(), Attends(False).double().eval()
    written.load_state_dict(fused.state_dict())
    x, t = torch.rand(12, 1, 3, 3, dtype=torch.float64), torch.rand(2, 1, 3, 3, dtype=torch.float64)
    y, u = torch.arange(12) % 3, torch.tensor([0, 2])
    a, b = (influence(m, x, y, t, u, damping=2.0, tolerance=1e-12) for m in (fused, written))
    # Both systems are solved to 1e-12, of a matrix whose least eigenvalue damping keeps near 1.
    torch.testing.assert_close(a.values, b.values, rtol=1e-9, atol=1e-11)
    assert (b.values.abs() > 1e-6).all()


@pytest.mark.parametrize("layers", [None, ["3"]])
def test_captum_gives_minus_n_times_less(layers: list[str] | None) -> None:
    """Captum's influence has no sign and takes the sum of training losses: minus 1/n of ours.

    Its damping is made in float32, which 64 survives, and it inverts by eigenvectors.
    """
    problem, model = Problem(), tiny()
    count = sum(p.numel() for name, p in model.named_parameters() if layers is None or name.startswith("3."))
    with torch.random.fork_rng(devices=[]):  # it seeds the global generator
        theirs = NaiveInfluenceFunction(
            model,
            TensorDataset(problem.x, problem.y),
            "",
            lambda model, checkpoint: 1.0,
            layers=layers,
            loss_fn=nn.CrossEntropyLoss(reduction="none"),
            batch_size=7,
            projection_dim=count,
            hessian_reg=64.0,
            hessian_inverse_tol=1e-12,
        ).influence((problem.t, problem.u))
    ours = influence(
        model, problem.x, problem.y, problem.t, problem.u, damping=64 / 20, parameters=layers, tolerance=1e-11
    )
    torch.testing.assert_close(-ours.values / 20, theirs, rtol=1e-8, atol=1e-9)
    if layers:
        layer = last_layer(problem, model, damping=64 / 20, solver="exact").influence(problem.t, problem.u)
        torch.testing.assert_close(-layer.values / 20, theirs, rtol=1e-8, atol=1e-9)


def test_an_indefinite_hessian_is_an_error_that_names_the_damping() -> None:
    problem, model = Problem(), tiny()
    names = ["1.weight", "1.bias", "3.weight", "3.bias"]
    _, _, h = by_autograd(model, names, problem, "cross-entropy", 0.0)
    lowest = torch.linalg.eigvalsh(h)[0].item()
    assert lowest < -1e-2  # the premise: two layers, away from a minimum
    run = partial(influence, model, problem.x, problem.y, problem.t, problem.u)
    with pytest.raises(
        SolverError, match=r"not positive definite with damping = 0\.001: a direction has curva"
    ) as error:
        run(damping=1e-3)
    assert "\n" not in str(error.value)
    assert error.value.iterations >= 1
    assert error.value.residual > 1e-8
    curvature = float(str(error.value).split("curvature ")[1].split(";")[0])
    assert lowest + 1e-3 - 1e-4 <= curvature <= 0
    assert (run(damping=1e-2 - lowest).residual <= 1e-8).all()


def test_a_singular_hessian_is_an_error_that_names_the_damping() -> None:
    """A pixel that is black in all training images has no curvature; a test image in which it is lit has a slope."""
    problem = Problem("squared")
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double().eval()
    problem.x[:, 0, 1, 2] = 0
    options: dict[str, Any] = {"model": model, "loss": "squared", "damping": 0.0}
    with pytest.raises(SolverError, match=r"singular or indefinite with damping = 0\.0"):
        last_layer(problem, solver="exact", **options)
    with pytest.raises(SolverError, match=r"damping"):
        last_layer(problem, **options).influence(problem.t, problem.u)
    problem.t[:, 0, 1, 2] = 0  # where the pixel is black there, too, conjugate gradients never meet it
    assert (last_layer(problem, **options).influence(problem.t, problem.u).residual <= 1e-8).all()


def test_what_is_not_solved_is_no_answer() -> None:
    problem = Problem()
    layer = last_layer(problem, max_iterations=2, tolerance=1e-9)
    runs: list[Callable[[], object]] = [
        lambda: layer.influence(problem.t, problem.u),
        lambda: influence_attack(layer, problem.t, epsilon=0.1),
        lambda: influence(
            tiny(), problem.x, problem.y, problem.t, problem.u, damping=2.0, max_iterations=2, tolerance=1e-9
        ),
    ]
    for run in runs:
        with pytest.raises(
            SolverError, match=r"in 2 iterations, not the tolerance of 1\.00e-09; take more max_"
        ) as error:
            run()
        assert error.value.iterations == 2
        assert 1e-9 < error.value.residual < 1
        assert f"residual of {error.value.residual:.2e}" in str(error.value)
        assert "\n" not in str(error.value)
    # In exact arithmetic as many steps as parameters are enough, and a few more where there is rounding.
    assert (last_layer(problem, max_iterations=30).influence(problem.t, problem.u).iterations <= 20).all()


@pytest.mark.parametrize(("condition", "solved"), [(1e4, True), (1e8, False)])
def test_the_residual_is_that_of_the_solution(condition: float, solved: bool) -> None:
    """Not of the recursion of conjugate gradients, which says 1e-10 where rounding leaves a thousand times that.

    Rounding leaves about the condition number times 1e-16.
    """
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=g)).Q
    a = q @ torch.diag(torch.logspace(-math.log10(condition), 0, 40, dtype=torch.float64)) @ q.T
    b = torch.randn(3, 40, dtype=torch.float64, generator=g)
    solver = _ConjugateGradients(tolerance=1e-10, max_iterations=800, damping=0.0)
    if solved:
        solution = solver.solve(lambda v: v @ a, b)
        true = (solution.s @ a - b).norm(dim=1) / b.norm(dim=1)
        torch.testing.assert_close(solution.residual, true, rtol=0, atol=1e-16 * condition)
        assert (true <= 1e-10 + 1e-16 * condition).all()
    else:
        with pytest.raises(SolverError) as error:
            solver.solve(lambda v: v @ a, b)
        assert error.value.residual > 1e-10


def test_an_exact_solution_is_checked_too() -> None:
    """A factor that is 3/2 of the right one solves for 4/9 of the right-hand side: 5/9 are left."""
    problem = Problem()
    layer = last_layer(problem, solver="exact")
    assert layer._factor is not None
    layer._factor = 1.5 * layer._factor
    with pytest.raises(SolverError, match=r"with damping = 0\.03: the residual is 5\.56e-01") as error:
        layer.influence(problem.t, problem.u)
    assert error.value.residual == pytest.approx(5 / 9, rel=1e-10)


# --- batches and state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_change_nothing(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(loss)

    def runs(max_batch: int = 256) -> Iterator[Tensor]:
        for solver in ("cg", "exact"):
            layer = last_layer(problem, loss=loss, solver=solver, tolerance=1e-12, max_batch=max_batch)
            found = layer.influence(problem.t, problem.u)
            yield found.values
            # A batch is its single images.
            yield torch.cat([layer.influence(problem.t[i, None], problem.u[i, None]).values for i in range(5)])

    whole = list(runs())
    torch.testing.assert_close(whole[0], whole[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(whole[2], whole[3], rtol=1e-12, atol=1e-13)
    for max_batch, numbers in ((1, 2**22), (3, 40), (256, 1)):
        monkeypatch.setattr("robattr.influence.last_layer._NUMBERS", numbers)
        for one, other in zip(whole, runs(max_batch=max_batch), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_predicted_classes_are_the_default_labels() -> None:
    problem = Problem()
    layer = last_layer(problem)
    with torch.no_grad():
        predicted = tiny()(problem.t).argmax(1)
    found = layer.influence(problem.t)
    assert torch.equal(found.labels, predicted)
    assert torch.equal(found.values, layer.influence(problem.t, predicted).values)
    assert torch.equal(layer.influence(problem.t, 2).labels, torch.full((5,), 2))


def test_no_global_state_and_the_model_is_left_alone() -> None:
    problem, model = Problem(), tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    layer = last_layer(problem, model)
    first = layer.influence(problem.t)
    result = influence_attack(layer, problem.t, epsilon=0.1, iterations=2)
    influence_random_sign(layer, problem.t, epsilon=0.1)
    influence(model, problem.x, problem.y, problem.t, problem.u, damping=2.0)
    with torch.no_grad():
        model[3].weight.zero_()  # the layer has its own copy
    assert torch.equal(layer.influence(problem.t).values, first.values)
    model.load_state_dict(before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model[3].weight.dtype == torch.float64
    assert not problem.t.requires_grad
    assert not result.images.requires_grad
    assert not result.trace.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)


# --- what an influence says ----------------------------------------------------------------------------------------


def of(*rows: list[float]) -> Influence:
    values = torch.tensor(rows, dtype=torch.float64)
    nothing = torch.zeros(len(rows))
    return Influence(values, nothing.long(), nothing.double(), nothing.long())


def test_most_influential_points_by_hand() -> None:
    found = of([1.0, -3.0, 0.0, -3.0, 2.0])
    assert found.top(3).tolist() == [[1, 3, 2]]
    assert found.top(2, "harmful").tolist() == [[4, 0]]
    assert found.top(5).tolist() == [[1, 3, 2, 0, 4]]
    torch.testing.assert_close(found.removal(), torch.tensor([[-0.2, 0.6, 0.0, 0.6, -0.4]], dtype=torch.float64))
    after = of([1.0, 0.5, -1.0, -3.0, 2.0])
    assert turnover(found, after, 1).tolist() == [1.0]  # 1 -> 3
    assert turnover(found, after, 2).tolist() == [0.5]  # 1, 3 -> 3, 2
    assert turnover(found, after, 3).tolist() == [0.0]  # 1, 3, 2 -> 3, 2, 1
    assert turnover(found, after, 2, "harmful").tolist() == [0.0]
    assert turnover(found, found, 3).tolist() == [0.0]
    assert rank_correlation(found, found).tolist() == [1.0]
    assert rank_correlation(of([1.0, 2.0, 3.0]), of([3.0, 2.0, 1.0])).tolist() == [-1.0]
    # Without ties 1 - 6 sum d^2 / (n (n^2 - 1)): ranks 3 1 2 and 3 2 1.
    assert rank_correlation(of([0.9, -3.0, 0.0]), of([1.0, 0.5, -1.0])).tolist() == pytest.approx([0.5])


def test_a_helpful_point_has_a_negative_value() -> None:
    """More weight of the test point itself, as a training point, lowers its loss; of its twin of another class not."""
    problem = Problem()
    problem.x[0], problem.y[0] = problem.t[0], problem.u[0]
    problem.x[1], problem.y[1] = problem.t[0], (problem.u[0] + 1) % 3
    found = last_layer(problem).influence(problem.t[:1], problem.u[:1])
    assert found.values[0, 0] < 0 < found.values[0, 1]
    assert found.removal()[0, 0] > 0


# --- the attack ----------------------------------------------------------------------------------------------------


class Digits:
    """A small trained network, 200 of its training points with Hessian, and test images."""

    def __init__(self) -> None:
        train, test = (data.load("digits", split) for split in ("train", "test"))
        model = models.build("digits-cnn", seed=0)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        order = torch.Generator().manual_seed(0)
        for _ in range(6):
            for rows in torch.randperm(len(train), generator=order).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(train.images[rows]), train.labels[rows]).backward()
                optimizer.step()
        self.model = model
        self.points = train.select(torch.arange(200))
        self.layer = LastLayer(model, self.points.images, self.points.labels, damping=0.05, tolerance=1e-6)
        self.images = test.images[:16]


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def test_the_attack_beats_random_signs(digits: Digits) -> None:
    """The claim of Ghorbani et al. 2019: ranks change more than by random signs, and so do the top points."""
    epsilon = 0.1
    ours = influence_attack(digits.layer, digits.images, epsilon=epsilon)
    direction = influence_attack(digits.layer, digits.images, epsilon=epsilon, iterations=5, normalize=True)
    random = influence_random_sign(digits.layer, digits.images, epsilon=epsilon)
    for result in (ours, direction):
        assert result.success.float().mean() > 0.9
        less = rank_correlation(random.before, random.after) - rank_correlation(result.before, result.after)
        # Of the mean over images, five standard errors.
        assert less.mean() > 5 * less.std() / len(less) ** 0.5
        for k in (3, 10):
            more = turnover(result.before, result.after, k) - turnover(random.before, random.after, k)
            assert more.mean() > 0
    # Every attack raises D where it succeeds.
    assert (ours.objective > ours.trace[0])[ours.success].all()
    # The sum over the attacked points is D, from the first image to the returned one.
    for result, which in ((ours, "before"), (ours, "after")):
        values = getattr(result, which).values.gather(1, result.points).sum(1)
        expected = result.trace[0] if which == "before" else result.objective
        # Two linear systems, each solved to 1e-6 of gradients whose product over the damping is the scale.
        scale = getattr(result, which).values.norm(dim=1) * 10
        assert ((values - expected).abs() <= 1e-4 * scale).all()


@pytest.mark.parametrize("epsilon", [1e-9, 8 / 255, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_image_is_inside_the_ball_exactly_and_keeps_its_class(
    digits: Digits, epsilon: float, dtype: torch.dtype
) -> None:
    model, x = digits.model.to(dtype), digits.images[:6].to(dtype)
    layer = LastLayer(model, digits.points.images.to(dtype)[:50], digits.points.labels[:50], damping=0.1)
    with torch.no_grad():
        prediction = model(x).argmax(1)
    for result in (
        influence_attack(layer, x, epsilon=epsilon),
        influence_attack(layer, x, epsilon=epsilon, iterations=3, which="harmful"),
        influence_random_sign(layer, x, epsilon=epsilon, draws=2),
    ):
        assert result.images.dtype == dtype
        assert result.images.min() >= 0
        assert result.images.max() <= 1
        assert ((result.images.double() - x.double()).abs() <= epsilon).all()
        assert torch.equal(result.prediction, prediction)
        with torch.no_grad():
            assert torch.equal(model(result.images).argmax(1), prediction)
        assert torch.equal(result.images[~result.success], x[~result.success])
        assert torch.equal(result.success, result.kept[1:].any(0))
        assert torch.equal(result.after.labels, prediction)
    digits.model.float()


def test_the_best_iterate_with_the_same_prediction_is_returned(digits: Digits) -> None:
    result = influence_attack(digits.layer, digits.images, epsilon=0.4, iterations=6)
    assert result.trace.shape == result.kept.shape == (7, 16)
    assert result.kept[0].all()
    assert not result.kept.all()  # the premise: some iterates have lost the prediction
    allowed = result.trace.masked_fill(~result.kept, -torch.inf)[1:]
    for i in result.success.nonzero().flatten():
        assert result.best[i] == 1 + allowed[:, i].argmax()
        assert result.objective[i] == allowed[:, i].max()


@pytest.mark.parametrize("normalize", [False, True])
def test_certain_predictions_are_attacked_too(digits: Digits, normalize: bool) -> None:
    """Logits so far apart that the gradient is zero in float32: steps are those of the float64 network."""
    model = models.rescale_output(models.build("digits-mlp", seed=0), 3000)
    x, points = digits.images[:4], digits.points
    with torch.no_grad():
        ordered = model(x).sort(dim=1, descending=True).values
    assert (ordered[:, 0] - ordered[:, 1]).max() > 150  # the premise: exp(-150) is no float32
    found = []
    for dtype in (torch.float32, torch.float64):
        layer = LastLayer(model.to(dtype), points.images[:40].to(dtype), points.labels[:40], damping=1.0)
        found.append(influence_attack(layer, x.to(dtype), epsilon=1 / 8, normalize=normalize))
    assert found[0].images.dtype == torch.float32
    rows = found[0].success & found[1].success
    assert rows[(ordered[:, 0] - ordered[:, 1]).argmax()]
    same = ((found[0].images - found[1].images)[rows].abs() < 1e-6).float()
    assert same.mean() > 0.98  # all but pixels whose slope is rounding


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("which", ["helpful", "harmful"])
def test_steps_follow_the_gradient_of_the_objective(
    digits: Digits, which: Literal["helpful", "harmful"], normalize: bool
) -> None:
    """The sign of each pixel's step is that of a central difference of D, which is a sum of influences.

    A step so small that D is linear raises it by the l1 norm of the gradient.
    """
    model = models.build("digits-mlp", activation="softplus", beta=5, seed=0).double()
    x = digits.images[:3].double().clamp(0.1, 0.9)
    layer = LastLayer(model, digits.points.images[:40].double(), digits.points.labels[:40], damping=0.5, solver="exact")
    epsilon, h = 1e-6, 1e-4
    result = influence_attack(layer, x, epsilon=epsilon, top=5, which=which, normalize=normalize)
    assert torch.equal(result.points, layer.influence(x).top(5, which))

    def objective(images: Tensor) -> Tensor:
        copies = len(images) // 3
        points, labels = result.points.repeat(copies, 1), result.prediction.repeat(copies)
        d = layer.influence(images, labels).values.gather(1, points).sum(1)
        if normalize:
            d = d / layer.loss_gradients(images, labels).flatten(1).norm(dim=1)
        return d if which == "helpful" else -d

    steps = h * torch.eye(64, dtype=torch.float64).view(64, 1, 1, 8, 8)
    up, down = (objective((x + sign * steps).flatten(0, 1)).view(64, 3) for sign in (1, -1))
    slope = ((up - down) / (2 * h)).T
    torch.testing.assert_close(result.trace[0], objective(x), rtol=1e-8, atol=1e-10)
    # The error of the difference is of the order h^2, against the largest slope.
    clear = slope.abs() > 1e-5 * slope.abs().amax(1, keepdim=True)
    assert clear.float().mean() > 0.9
    moved = (result.images - x).flatten(1)
    assert torch.equal(moved.sign()[clear], slope.sign()[clear])
    rise = (result.trace[1] - result.trace[0]) / epsilon
    torch.testing.assert_close(rise, slope.abs().sum(1), rtol=1e-3, atol=0)


class Brittle(nn.Module):
    """Predicts class 1 for the one image it was made for, and class 0 for everything else."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.register_buffer("image", image)
        self.last = nn.Linear(image.numel() + 1, 2)
        with torch.no_grad():
            self.last.weight[:, -1] = torch.tensor([-9.0, 9.0])
            self.last.bias.copy_(torch.tensor([5.0, -5.0]))

    def forward(self, x: Tensor) -> Tensor:
        same = (x == self.image).flatten(1).all(1, keepdim=True)
        logits: Tensor = self.last(torch.cat([x.flatten(1), same.to(x)], 1))
        return logits


@pytest.mark.parametrize("run", [partial(influence_attack, iterations=3), partial(influence_random_sign, draws=3)])
def test_a_prediction_that_cannot_be_kept_is_a_failed_attack(run: Callable[..., InfluenceAttackResult]) -> None:
    image = torch.full((1, 1, 4, 4), 0.5)
    x = torch.cat([image, torch.full((1, 1, 4, 4), 0.4)])
    points = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    layer = LastLayer(Brittle(image).eval(), points, torch.tensor([0, 1, 0, 1, 0, 1]), damping=0.1)
    result = run(layer, x, epsilon=0.1, top=2)
    assert result.prediction.tolist() == [1, 0]
    assert result.success.tolist() == [False, True]
    assert torch.equal(result.images[0], image[0])
    assert result.best[0] == 0
    assert result.objective[0] == result.trace[0, 0]
    assert torch.equal(result.after.values[0], result.before.values[0])
    assert turnover(result.before, result.after, 2)[0] == 0
    assert not torch.equal(result.images[1], x[1])


def test_a_network_without_a_gradient_gets_random_signs() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
    x = torch.full((3, 1, 4, 4), 0.5)
    layer = LastLayer(model, x, torch.tensor([0, 1, 0]), damping=0.1)
    # Not the same points: signs are of the seed and of the image.
    t = torch.stack([x[0], x[0], x[0] + 0.1])
    result = influence_attack(layer, t, epsilon=0.125, seed=3, top=1)
    moved = result.images - t
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.125), rtol=0, atol=1e-7)
    assert moved.flatten(1).sign().sum(1).abs().max() < 16
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0].sign(), moved[2].sign())
    baseline = influence_random_sign(layer, t, epsilon=0.125, seed=3, top=1)
    assert torch.equal(baseline.images, result.images)
    other = influence_random_sign(layer, t, epsilon=0.125, seed=4, top=1)
    assert not torch.equal(baseline.images, other.images)


def test_an_attack_on_a_batch_is_one_on_its_single_images() -> None:
    problem = Problem()
    layer = last_layer(problem, solver="exact")
    for run in (partial(influence_attack, iterations=4), partial(influence_random_sign, draws=4)):
        whole = run(layer, problem.t, epsilon=0.05)
        for batch_size in (1, 2):
            parts = run(layer, problem.t, epsilon=0.05, batch_size=batch_size)
            assert torch.equal(parts.points, whole.points)
            assert torch.equal(parts.best, whole.best)
            torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=0)
            torch.testing.assert_close(parts.trace, whole.trace)
            torch.testing.assert_close(parts.after.values, whole.after.values)
        alone = run(layer, problem.t[3:4], epsilon=0.05)
        assert torch.equal(alone.images[0], whole.images[3])


def test_more_draws_are_a_search(digits: Digits) -> None:
    one = influence_random_sign(digits.layer, digits.images, epsilon=0.05)
    many = influence_random_sign(digits.layer, digits.images, epsilon=0.05, draws=8)
    assert torch.equal(one.trace[1], many.trace[1])
    assert (many.objective >= one.objective)[one.success].all()
    assert (many.objective > one.objective).any()
    # Away from black and white every value moves by epsilon, up to the float32 below it.
    inner = (digits.images > 0.05) & (digits.images < 0.95) & one.success[:, None, None, None]
    moved = (one.images - digits.images).abs()[inner]
    assert len(moved) > 300
    torch.testing.assert_close(moved, torch.full_like(moved, 0.05), rtol=0, atol=1.2e-7)


# --- refusals ------------------------------------------------------------------------------------------------------


class Untouchable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("work started")


def refused(message: str, run: Callable[[], object]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        run()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"damping": -0.1}, "damping is -0.1; accepted is a finite number >= 0"),
    ({"damping": math.nan}, "damping is nan"),
    ({"damping": math.inf}, "damping is inf"),
    ({"weight_decay": -1.0}, "weight_decay is -1.0"),
    ({"loss": "hinge"}, "loss is 'hinge'; accepted are 'cross-entropy' and 'squared'"),
    ({"tolerance": 0.0}, "tolerance is 0.0"),
    ({"tolerance": 1.0}, "tolerance is 1.0"),
    ({"max_iterations": 0}, "max_iterations is 0"),
    ({"max_batch": 0}, "max_batch is 0"),
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *NUMBERS,
        ({"images": torch.rand(3, 4)}, "[N, C, H, W]"),
        ({"images": 255 * torch.ones(20, 1, 3, 4)}, "[0, 1]"),
        ({"labels": torch.zeros(19, dtype=torch.int64)}, "labels must be [20]"),
        ({"labels": torch.full((20,), 3)}, "from 0 to 2"),
        ({"labels": torch.zeros(20)}, "int64"),
        ({"loss": "squared"}, "the squared loss takes finite floats [N, outputs] = [20, 3]"),
        ({"loss": "squared", "labels": torch.full((20, 3), math.nan)}, "finite floats"),
        ({"solver": "lu"}, "solver is 'lu'; accepted are 'cg' and 'exact'"),
        ({"model": nn.Sequential(Untouchable(), tiny()).train()}, "model.eval()"),
        ({"model": nn.Sequential(Untouchable(), nn.ReLU()).eval()}, "Sequential has no nn.Linear"),
        (
            {"model": nn.Sequential(Untouchable(), nn.Linear(5000, 3)).eval(), "solver": "exact"},
            "solver is 'exact' for 15003 parameters; accepted are at most 4096: take solver='cg'",
        ),
    ],
)
def test_a_bad_last_layer_is_refused_before_work_starts(options: dict[str, Any], message: str) -> None:
    problem = Problem()
    model = nn.Sequential(Untouchable(), tiny()).eval()
    settings = {"model": model, "images": problem.x, "labels": problem.y, "damping": DAMPING, **options}
    refused(message, lambda: LastLayer(**settings))


def test_a_network_that_does_not_end_with_its_last_linear_layer_is_refused() -> None:
    problem = Problem()
    message = "does not end with its last nn.Linear"
    refused(message, lambda: last_layer(problem, nn.Sequential(tiny(), nn.Softmax(1)).eval()))
    shared = nn.Linear(12, 12).double()
    refused(message, lambda: last_layer(problem, nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared).eval()))
    broken = tiny()
    with torch.no_grad():
        broken[3].bias[0] = math.nan
    refused("NaN or infinite", lambda: last_layer(problem, broken))


def test_bad_test_points_are_refused() -> None:
    problem = Problem()
    layer = last_layer(problem)
    for run in (layer.influence, layer.loss_gradients):
        refused("[0, 1]", lambda run=run: run(problem.t * 255))  # type: ignore[misc]
        refused("from 0 to 2", lambda run=run: run(problem.t, 3))  # type: ignore[misc]
        refused("int64 [5]", lambda run=run: run(problem.t, problem.u[:4]))  # type: ignore[misc]
    refused("directions have shape (2, 3, 4)", lambda: layer.hessian_product(torch.zeros(2, 3, 4)))
    squared = last_layer(Problem("squared"), loss="squared")
    refused("labels is None; the squared loss takes float labels", lambda: squared.influence(problem.t))
    refused("finite floats [N, outputs] = [5, 3]", lambda: squared.influence(problem.t, problem.u))
    found = layer.influence(problem.t)
    refused("k is 0; accepted is from 1 to 20", lambda: found.top(0))
    refused("k is 21", lambda: turnover(found, found, 21))
    refused("which is 'best'; accepted are 'helpful' and 'harmful'", lambda: found.top(3, "best"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *NUMBERS,
        ({"train_images": torch.rand(3, 4)}, "train_images must be [N, C, H, W]"),
        ({"test_images": 255 * torch.ones(5, 1, 3, 4)}, "test_images must be in [0, 1]"),
        ({"parameters": []}, "parameters is []"),
        ({"parameters": "3"}, "parameters is '3'; accepted is a sequence of names, for example ['3']"),
        ({"parameters": ["3", "fc"]}, "parameters has 'fc'; accepted are names or modules of 1.weight, 1.bias"),
        ({"parameters": ["3.w"]}, "parameters has '3.w'"),
        ({"train_labels": torch.full((20,), 3)}, "train_labels must be from 0 to 2"),
        ({"test_labels": torch.full((5,), 3)}, "test_labels must be from 0 to 2"),
        ({"test_labels": torch.zeros(4, dtype=torch.int64)}, "int64 [5]"),
        ({"loss": "squared"}, "train_labels are torch.int64"),
        ({"model": tiny().train()}, "model.eval()"),
    ],
)
def test_bad_arguments_of_the_general_version_are_refused(options: dict[str, Any], message: str) -> None:
    problem = Problem()
    settings = {
        "model": tiny(),
        "train_images": problem.x,
        "train_labels": problem.y,
        "test_images": problem.t,
        "test_labels": problem.u,
        "damping": 2.0,
        **options,
    }
    refused(message, lambda: influence(**settings))


def test_bad_attacks_are_refused_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem()
    layer = last_layer(problem)
    squared = last_layer(Problem("squared"), loss="squared")

    def work(*arguments: object) -> None:
        raise AssertionError("work started")

    monkeypatch.setattr(LastLayer, "influence", work)
    both: list[tuple[dict[str, Any], str]] = [
        ({"images": problem.t[0]}, "[N, C, H, W]"),
        ({"images": problem.t * 255}, "[0, 1]"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": 2.0}, "epsilon is 2.0"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"top": 0}, "top is 0; accepted is from 1 to 20"),
        ({"top": 21}, "top is 21"),
        ({"which": "best"}, "which is 'best'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"layer": squared}, "the layer's loss is 'squared'"),
    ]
    ours: list[tuple[dict[str, Any], str]] = [
        ({"step": 0.0}, "step is 0.0"),
        ({"step": math.nan}, "step is nan"),
        ({"iterations": 0}, "iterations is 0"),
    ]
    runs: list[tuple[Callable[..., object], list[tuple[dict[str, Any], str]]]] = [
        (influence_attack, both + ours),
        (influence_random_sign, [*both, ({"draws": 0}, "draws is 0")]),
    ]
    for run, cases in runs:
        for options, message in cases:
            settings = {"layer": layer, "images": problem.t, "epsilon": 0.1, **options}
            refused(message, lambda run=run, settings=settings: run(**settings))  # type: ignore[misc]


def test_ranks_are_those_of_the_maps() -> None:
    """One definition in the package: the measures of influences are those of attribution maps."""
    g = torch.Generator().manual_seed(0)
    a, b = (of(*torch.randn(4, 30, generator=g).tolist()) for _ in range(2))
    assert torch.equal(rank_correlation(a, b), metrics.spearman(a.values, b.values))
    for k in (3, 10):
        kept = [len(set(p.tolist()) & set(q.tolist())) / k for p, q in zip(a.top(k), b.top(k), strict=True)]
        assert (1 - turnover(a, b, k)).tolist() == pytest.approx(kept)
