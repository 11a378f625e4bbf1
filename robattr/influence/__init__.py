"""Influence functions: which training points would a test point's loss miss, and how fragile that explanation is.

The influence of training point z_i on the loss at test point z_t (Koh & Liang 2017, equation 2) is

    ``I(z_i, z_t) = - grad L(z_t)^T H^{-1} grad L(z_i)``

with gradients and the Hessian H of the mean training loss with respect to parameters, at the trained parameters. It is
the derivative of the test loss with respect to additional weight of z_i. **A negative value is a helpful point**: more
of it lowers the test loss, and to leave it out would change the test loss by about ``-I / n``, a rise. A positive value
is a harmful point. Ghorbani, Abid & Zou 2019 call the most helpful points the most influential ones, and so does
:meth:`Influence.top`.

- :class:`LastLayer` takes the features before the last linear layer as given, as Ghorbani et al. do. Gradients and
  Hessian-vector products are closed forms there: thousands of training points cost a few matrix products.
- :func:`influence` takes any parameters of a small network, by automatic differentiation.
- :func:`influence_attack` perturbs a test image so that its most influential training points lose their influence and
  the prediction stays (Ghorbani et al. 2019, the section on influence functions); :func:`influence_random_sign` is the
  baseline. :func:`rank_correlation` and :func:`turnover` say how much of the explanation is left.

Linear systems are solved in float64 by conjugate gradients, many right-hand sides at once; what is not solved raises a
:class:`SolverError` and is never an answer. The solver is written here because SciPy's takes one right-hand side at a
time, on the CPU, and does not say when the Hessian is indefinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional as F

from robattr import metrics
from robattr.attacks import Seen, check_attack, climb
from robattr.attributions import Target, check_target, frozen, parts_of
from robattr.data import check_images, check_labels

__all__ = [
    "Influence",
    "InfluenceAttackResult",
    "LastLayer",
    "SolverError",
    "influence",
    "influence_attack",
    "influence_random_sign",
    "rank_correlation",
    "turnover",
]

Loss = Literal["cross-entropy", "squared"]
Solver = Literal["cg", "exact"]
Which = Literal["helpful", "harmful"]

# Numbers in one intermediate result of the last layer's products: 32 MiB in float64.
_NUMBERS = 2**22
# Slopes below this count as none; its inverse times a large feature is a number still.
_TINY = 1e-280
# Parameters for which the Hessian is formed: 128 MiB in float64.
_MOST_EXACT = 4096


class SolverError(RuntimeError):
    """A linear system with the Hessian was not solved; the message is one line and names the way out.

    Attributes:
        residual: the largest relative residual ``||H s - g|| / ||g||`` that was left; NaN where no solution was tried.
        iterations: how many steps were taken.
    """

    def __init__(self, message: str, residual: float, iterations: int) -> None:
        super().__init__(message)
        self.residual = residual
        self.iterations = iterations


@dataclass(frozen=True, eq=False)
class Influence:
    """The influence of n training points on the loss at T test points.

    Attributes:
        values: float64 [T, n]; the derivative of the test loss with respect to epsilon when the parameters minimize
            ``mean training loss + epsilon * loss of z_i``. Negative for helpful points, positive for harmful ones.
        labels: of the test loss: int64 [T], or float [T, outputs] for the squared loss.
        residual: float64 [T]; ``||H s - g|| / ||g||`` of the solution s for the test point's gradient g.
        iterations: int64 [T]; of conjugate gradients, 0 for an exact solution.
    """

    values: Tensor
    labels: Tensor
    residual: Tensor
    iterations: Tensor

    def top(self, k: int, which: Which = "helpful") -> Tensor:
        """The k most influential training points of each test point, int64 [T, k], the most influential one first.

        Args:
            k: from 1 to n.
            which: ``helpful`` are those with the lowest values, the order of Ghorbani et al. 2019; ``harmful`` those
                with the highest. Of equal values the one with the lower index comes first.

        Raises:
            ValueError: k or which is not what is accepted.
        """
        _check_top(k, self.values.shape[1], which)
        order = self.values.sort(dim=1, descending=which == "harmful", stable=True)
        return order.indices[:, :k]

    def removal(self) -> Tensor:
        """The change of the test loss to expect when a training point is left out, to first order: float64 [T, n].

        ``-values / n`` (Koh & Liang 2017, section 2.1): as if the weight 1/n of the point in the mean became 0 and
        those of the others, and the weight decay, stayed what they are.
        """
        return -self.values / self.values.shape[1]


def rank_correlation(before: Influence, after: Influence) -> Tensor:
    """Spearman's rank correlation of all training points' influences, [T]; 1 where no rank has changed."""
    return metrics.spearman(before.values, after.values)


def turnover(before: Influence, after: Influence, k: int, which: Which = "helpful") -> Tensor:
    """Share of the k most influential training points that are no longer among them, [T], from 0 to 1.

    Ghorbani et al. 2019 look at few points, such as 3 or 10. Arguments are those of :meth:`Influence.top`.

    Raises:
        ValueError: k or which is not what is accepted, or the two are of different numbers of points.
    """
    _check_top(k, before.values.shape[1], which)
    sign = -1 if which == "helpful" else 1
    return 1 - metrics.topk_intersection(sign * before.values, sign * after.values, k)


# --------------------------------------------------------------------------------------------------------------------
# The last layer


class LastLayer:
    """Influence through the last linear layer: its weight and bias are the parameters, the features are given.

    With features phi (and a 1 for the bias), logits z and the derivative ``r = dL/dz`` (``p - y`` for cross-entropy),
    a point's gradient is the outer product ``r phi^T``, and the Hessian times V is

        ``mean_i (diag(p_i) - p_i p_i^T) V phi_i phi_i^T + (weight_decay + damping) V``

    All of it is read from the training images once, when the object is made; features of n images are held as float64
    [n, features + 1]. Methods can be called for any number of test points.

    Args:
        model: images in [0, 1] to logits, in evaluation mode, with an ``nn.Linear`` as its last step. It is copied.
        images: [n, C, H, W] in [0, 1]; the training set, or the part of it that stands for the mean training loss.
        labels: int64 [n]; or float [n, outputs] for the squared loss.
        damping: added to the Hessian's diagonal, >= 0. It bounds what nearly flat directions contribute; cross-entropy
            has flat ones (the same added to every class), so the sum of damping and weight decay should be > 0.
        weight_decay: of the training, in the objective as ``weight_decay / 2 * ||parameters||^2``, the bias included,
            as in torch's optimizers; >= 0.
        loss: ``cross-entropy`` of the logits, or ``squared``: half the squared distance of the outputs to the labels.
        solver: ``cg`` are conjugate gradients; ``exact`` forms the Hessian and its Cholesky factor once, for at most
            4,096 parameters.
        tolerance: largest relative residual of a solution, between 0 and 1.
        max_iterations: of conjugate gradients, >= 1.
        max_batch: images in one pass, and test points solved at once, at most.

    Attributes:
        shape: (outputs, features), with a feature of 1 as the last one where there is a bias: of a gradient.
        damping, weight_decay, loss: as given.

    Raises:
        ValueError: an argument is not what is accepted, before any work starts; or the model does not end with a linear
            layer, or has outputs that are not finite.
        SolverError: the Hessian is singular or indefinite (``exact`` only; conjugate gradients find out later).
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        damping: float,
        weight_decay: float = 0.0,
        loss: Loss = "cross-entropy",
        solver: Solver = "cg",
        tolerance: float = 1e-8,
        max_iterations: int = 1000,
        max_batch: int = 256,
    ) -> None:
        check_images(images)
        _check_numbers(damping, weight_decay, loss, tolerance, max_iterations, max_batch)
        if solver not in get_args(Solver):
            raise ValueError(f"solver is {solver!r}; accepted are 'cg' and 'exact'")
        self._model = frozen(model)
        linear = [module for module in self._model.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(f"{type(model).__name__} has no nn.Linear; use influence() for its other parameters")
        self._linear = linear[-1]
        self.shape = (
            self._linear.out_features,
            self._linear.in_features + (self._linear.bias is not None),
        )
        count = math.prod(self.shape)
        if solver == "exact" and count > _MOST_EXACT:
            raise ValueError(
                f"solver is 'exact' for {count} parameters; accepted are at most {_MOST_EXACT}: take solver='cg'"
            )
        _check_labels(loss, labels, len(images), self.shape[0])
        self.damping, self.weight_decay, self.loss = damping, weight_decay, loss
        self._cg = _ConjugateGradients(tolerance, max_iterations, damping)
        self._max_batch = max_batch
        with torch.no_grad():
            read = [self._read(images[rows]) for rows in parts_of(len(images), max_batch)]
        self._features = torch.cat([features for features, _ in read])
        logits = torch.cat([logits for _, logits in read])
        self._slopes = _slopes(loss, logits, labels.to(logits.device))
        # What the Hessian of a point's loss with respect to its logits is made of.
        self._probability = logits.softmax(1) if loss == "cross-entropy" else None
        self._factor = self._cholesky() if solver == "exact" else None

    def __len__(self) -> int:
        """The number of training points."""
        return len(self._features)

    def loss_gradients(self, x: Tensor, labels: Target | None = None) -> Tensor:
        """Each image's gradient of the loss with respect to the parameters, float64 [T, outputs, features].

        Images and labels are those of :meth:`influence`.
        """
        return self._with_gradients(x, labels)[0]

    def hessian_product(self, directions: Tensor) -> Tensor:
        """H, with damping and weight decay, times each direction: float64 [T, outputs, features], as ``directions``.

        Raises:
            ValueError: directions are not of that shape.
        """
        if directions.ndim != 3 or directions.shape[1:] != self.shape:
            raise ValueError(
                f"directions have shape {tuple(directions.shape)}; accepted is [T, outputs, features] with "
                f"(outputs, features) = {self.shape}"
            )
        flat = directions.to(self._features).flatten(1)
        return self._product(flat).view(-1, *self.shape)

    @torch.no_grad()
    def influence(self, x: Tensor, labels: Target | None = None) -> Influence:
        """The influence of every training point on the loss at each test image.

        Args:
            x: images [T, C, H, W] in [0, 1].
            labels: of the test loss: int64 [T] or one int for all; by default the predicted classes. The squared loss
                takes float [T, outputs], and has no default.

        Raises:
            ValueError: an argument is not what is accepted.
            SolverError: a system was not solved to the tolerance, or the Hessian is singular or indefinite.
        """
        gradients, used = self._with_gradients(x, labels)
        values, residual, iterations = [], [], []
        for rows in self._blocks(len(x)):
            solution = self._solve(gradients[rows].flatten(1))
            values.append(self._values(solution.s))
            residual.append(solution.residual)
            iterations.append(solution.iterations)
        return Influence(torch.cat(values), used, torch.cat(residual), torch.cat(iterations))

    # --- for the attack

    @torch.no_grad()
    def _direction(self, points: Tensor) -> Tensor:
        """``H^{-1} sum_j grad L(z_j)`` over each row of training points [T, k]: [T, outputs, features]."""
        found = []
        for rows in self._blocks(len(points)):
            chosen = points[rows]
            total = torch.einsum("tkc,tkd->tcd", self._slopes[chosen], self._features[chosen])
            found.append(self._solve(total.flatten(1)).s.view(-1, *self.shape))
        return torch.cat(found)

    def _along(self, x: Tensor, labels: Tensor, direction: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
        """``- <grad L(x), direction>`` of each image, [T], differentiable in x; its scale; the predicted classes.

        A function of features and logits: a piecewise linear network has a gradient here and needs no smooth copy.
        With ``normalize`` the gradient is divided by its length. Over its scale, what is differentiated is of moderate
        size, so a float32 network gets a direction from gradients far too small for its numbers.
        """
        features, logits = self._read(x)
        slopes = _slopes(self.loss, logits, labels)
        scale = slopes.detach().abs().amax(1).clamp_min(_TINY)
        if normalize:
            slopes, features = F.normalize(slopes / scale[:, None], dim=1), F.normalize(features, dim=1)
            scale = torch.ones_like(scale)
        return -torch.einsum("tc,tcd,td->t", slopes, direction, features), scale, logits.argmax(1)

    # --- what it is made of

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features with a 1 for the bias, and logits, in float64; differentiable in x where gradients are enabled."""
        seen: list[tuple[Tensor, Tensor]] = []
        handle = self._linear.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
        try:
            logits = self._model(x)
        finally:
            handle.remove()
        if not bool(torch.isfinite(logits).all()):
            raise ValueError("the model has logits that are NaN or infinite; influence is defined for finite ones")
        if len(seen) != 1 or seen[0][0].ndim != 2 or not torch.equal(seen[0][1], logits):
            raise ValueError(
                f"{type(self._model).__name__} does not end with its last nn.Linear; accepted is a network whose "
                "logits are what that layer returns, or use influence() for other parameters"
            )
        features = seen[0][0].double()
        if self._linear.bias is not None:
            features = torch.cat([features, features.new_ones(len(features), 1)], 1)
        return features, logits.double()

    @torch.no_grad()
    def _with_gradients(self, x: Tensor, labels: Target | None) -> tuple[Tensor, Tensor]:
        check_images(x)
        outputs = self.shape[0]
        given: Tensor | None = None
        if labels is None:
            if self.loss == "squared":
                raise ValueError("labels is None; the squared loss takes float labels [T, outputs] of the test images")
        else:
            given = check_target(x, labels) if self.loss == "cross-entropy" else torch.as_tensor(labels)
            _check_labels(self.loss, given, len(x), outputs)
        gradients, used = [], []
        for rows in parts_of(len(x), self._max_batch):
            features, logits = self._read(x[rows])
            y = logits.argmax(1) if given is None else given[rows].to(logits.device)
            gradients.append(_slopes(self.loss, logits, y)[:, :, None] * features[:, None, :])
            used.append(y)
        return torch.cat(gradients), torch.cat(used)

    def _blocks(self, tests: int) -> list[slice]:
        """Test points that are solved together: their directions are no more than ``_NUMBERS``."""
        return list(parts_of(tests, max(1, min(self._max_batch, _NUMBERS // math.prod(self.shape)))))

    def _rows(self, tests: int) -> list[slice]:
        """Training points whose products with so many directions are no more than ``_NUMBERS``."""
        return list(parts_of(len(self), max(1, _NUMBERS // (tests * self.shape[0]))))

    def _product(self, flat: Tensor) -> Tensor:
        """H times each direction [T, P]."""
        t, (outputs, features) = len(flat), self.shape
        v = flat.view(t * outputs, features)
        total = torch.zeros_like(v)
        for rows in self._rows(t):
            phi = self._features[rows]
            u = (phi @ v.T).view(-1, t, outputs)  # the change of the logits
            if self._probability is not None:
                p = self._probability[rows][:, None]
                u = p * (u - (p * u).sum(2, keepdim=True))
            total += u.view(-1, t * outputs).T @ phi
        return total.view_as(flat) / len(self) + (self.weight_decay + self.damping) * flat

    def _values(self, s: Tensor) -> Tensor:
        """``- grad L(z_i)^T s`` of every training point, [T, n], for solutions s [T, P]."""
        t, (outputs, features) = len(s), self.shape
        v = s.view(t * outputs, features)
        parts = [
            -torch.einsum("itc,ic->ti", (self._features[rows] @ v.T).view(-1, t, outputs), self._slopes[rows])
            for rows in self._rows(t)
        ]
        return torch.cat(parts, 1)

    def _cholesky(self) -> Tensor:
        """The Cholesky factor of the Hessian, which is formed a row of blocks, one class with the others, at a time."""
        outputs, features = self.shape
        count = outputs * features
        hessian = self._features.new_zeros(outputs, features, outputs, features)
        for rows in parts_of(len(self), max(1, _NUMBERS // count)):
            phi = self._features[rows]
            for c in range(outputs):
                # The weights of the blocks (c, c), (c, c + 1), ... of the upper triangle.
                weight = torch.zeros_like(self._slopes[rows, c:])
                weight[:, 0] = 1
                if self._probability is not None:
                    p = self._probability[rows]
                    weight = p[:, c, None] * (weight - p[:, c:])
                weighted = (weight[:, :, None] * phi[:, None]).flatten(1)
                hessian[c, :, c:] += (phi.T @ weighted).view(features, -1, features)
        hessian = hessian.view(count, count) / len(self)
        hessian.diagonal().add_(self.weight_decay + self.damping)
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(hessian, upper=True)
        if int(info) != 0:
            raise SolverError(
                f"the Hessian is singular or indefinite with damping = {self.damping}; take a larger damping",
                math.nan,
                0,
            )
        return factor

    def _solve(self, b: Tensor) -> _Solution:
        if self._factor is None:
            return self._cg.solve(self._product, b)
        unit, norm = _unit(b)
        s = torch.cholesky_solve(unit.T, self._factor, upper=True).T.contiguous()
        residual = torch.linalg.vector_norm(self._product(s) - unit, dim=1)
        worst = float(residual.max())
        if not worst <= self._cg.tolerance:
            raise SolverError(
                f"the Hessian is singular to working precision with damping = {self.damping}: the residual is "
                f"{worst:.2e}, the tolerance {self._cg.tolerance:.2e}; take a larger damping",
                worst,
                0,
            )
        return _Solution(s * norm, residual, torch.zeros(len(b), dtype=torch.int64, device=b.device))


def _slopes(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """The derivative of each row's loss with respect to its logits, [N, outputs]."""
    if loss == "squared":
        return logits - labels.to(logits)
    # p - 1 as minus the sum of the others: what is left of a certain prediction's gradient keeps its digits.
    index = labels[:, None]
    others = logits.softmax(1).scatter(1, index, 0)
    return others.scatter(1, index, -others.sum(1, keepdim=True))


# --------------------------------------------------------------------------------------------------------------------
# Any parameters


def influence(
    model: nn.Module,
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Target,
    *,
    damping: float,
    parameters: Sequence[str] | None = None,
    weight_decay: float = 0.0,
    loss: Loss = "cross-entropy",
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    max_batch: int = 64,
) -> Influence:
    """The influence of training points through any parameters of a small network, by automatic differentiation.

    Hessian-vector products are derivatives of the gradient, in float64, with a pass over the training images for every
    step of conjugate gradients. Away from a minimum, and in most deep networks also where training ended, the Hessian
    is indefinite: then the damping has to exceed its most negative curvature, or a :class:`SolverError` says so.

    Args:
        model: images in [0, 1] to outputs, in evaluation mode, of operations that ``torch.func`` can transform. Its
            copy is float64.
        train_images: [n, C, H, W] in [0, 1].
        train_labels: int64 [n]; or float [n, outputs] for the squared loss.
        test_images: [T, C, H, W] in [0, 1].
        test_labels: as ``train_labels``; or one int for all.
        damping: added to the Hessian's diagonal, >= 0.
        parameters: names of parameters, or of modules for all of theirs, such as ``network.fc1``; None for all.
        max_batch: a pass holds at most so many pairs of an image and a test point's direction.

    Other arguments and errors are those of :class:`LastLayer`.
    """
    check_images(train_images, "train_images")
    check_images(test_images, "test_images")
    _check_numbers(damping, weight_decay, loss, tolerance, max_iterations, max_batch)
    model = frozen(model)
    named = dict(model.named_parameters())
    chosen = list(named) if parameters is None else _chosen(list(named), parameters)
    if not chosen:
        raise ValueError(f"parameters is {parameters!r}; accepted is at least one name, or None for all")
    with torch.no_grad():
        outputs = model(train_images[:1]).shape[1]
    y_test = check_target(test_images, test_labels) if loss == "cross-entropy" else torch.as_tensor(test_labels)
    for name, labels, images in (
        ("train_labels", train_labels, train_images),
        ("test_labels", y_test, test_images),
    ):
        _check_labels(loss, labels, len(images), outputs, name)
    model = model.double()
    x_train, x_test = train_images.detach().double(), test_images.detach().double()
    n, t = len(x_train), len(x_test)
    y_train, y_test = train_labels.to(x_train.device), y_test.to(x_test.device)
    shapes = {name: model.get_parameter(name).shape for name in chosen}
    theta = torch.cat([model.get_parameter(name).flatten() for name in chosen])

    def losses(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Of each image, [N], as a function of the chosen parameters."""
        pieces = torch.split(flat, [shape.numel() for shape in shapes.values()])
        values = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        out: Tensor = functional_call(model, values, (x,))
        if loss == "squared":
            return (out - y.to(out)).square().sum(1) / 2
        return F.cross_entropy(out, y, reduction="none")

    def one_loss(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return losses(flat, x[None], y[None]).sum()

    def product(v: Tensor) -> Tensor:
        total = (weight_decay + damping) * v
        for rows in parts_of(n, max(1, max_batch // len(v))):
            x, y = x_train[rows], y_train[rows]
            # The Hessian is symmetric: its transpose, which the backward pass applies, is itself.

            def total_loss(flat: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
                return losses(flat, x, y).sum()

            pull = vjp(grad(total_loss), theta)[1]
            total = total + vmap(pull)(v)[0] / n
        return total

    per_image = vmap(grad(one_loss), in_dims=(None, 0, 0))
    solver = _ConjugateGradients(tolerance, max_iterations, damping)
    values, residual, iterations = [], [], []
    # A square root of the pairs is test points, so that a pass has training images enough.
    for rows in parts_of(t, max(1, math.isqrt(max_batch))):
        solution = solver.solve(product, per_image(theta, x_test[rows], y_test[rows]))
        # Every training point's gradient is one more row of parameters: as few at a time as their number asks.
        columns = [
            -solution.s @ per_image(theta, x_train[part], y_train[part]).T
            for part in parts_of(n, max(1, min(max_batch, _NUMBERS // len(theta))))
        ]
        values.append(torch.cat(columns, 1))
        residual.append(solution.residual)
        iterations.append(solution.iterations)
    return Influence(torch.cat(values).detach(), y_test, torch.cat(residual), torch.cat(iterations))


def _chosen(names: list[str], wanted: Sequence[str]) -> list[str]:
    """The parameters that are wanted, by their names or those of their modules, in the model's order."""
    if isinstance(wanted, str):
        raise ValueError(f"parameters is {wanted!r}; accepted is a sequence of names, for example [{wanted!r}]")
    for prefix in wanted:
        if not any(name == prefix or name.startswith(f"{prefix}.") for name in names):
            raise ValueError(f"parameters has {prefix!r}; accepted are names or modules of {', '.join(names)}")
    return [name for name in names if any(name == prefix or name.startswith(f"{prefix}.") for prefix in wanted)]


# --------------------------------------------------------------------------------------------------------------------
# Conjugate gradients


@dataclass(frozen=True, eq=False)
class _Solution:
    """s [T, P] with ``H s = b``; the relative residual, formed from s itself, [T]; and the steps taken [T]."""

    s: Tensor
    residual: Tensor
    iterations: Tensor


def _unit(b: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over their length, and the length [T, 1]; rows of zeros stay.

    First over the largest value: a certain prediction has a gradient so small that its square is zero.
    """
    peak = b.abs().amax(1, keepdim=True)
    scaled = b / torch.where(peak > 0, peak, 1)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1), length * peak


@dataclass(frozen=True)
class _ConjugateGradients:
    """Hestenes & Stiefel 1952 for many right-hand sides, each with steps of its own: they do not influence another."""

    tolerance: float
    max_iterations: int
    damping: float

    def solve(self, product: Callable[[Tensor], Tensor], b: Tensor) -> _Solution:
        """Solve ``product(s) = b`` for rows b [T, P]; a SolverError where that fails."""
        unit, norm = _unit(b)
        s, steps = torch.zeros_like(unit), torch.zeros(len(b), dtype=torch.int64, device=b.device)
        r, taken = unit.clone(), 0
        residual = torch.linalg.vector_norm(r, dim=1)
        while not bool((residual <= self.tolerance).all()):
            if taken == self.max_iterations:
                worst = float(residual.max())
                raise SolverError(
                    f"conjugate gradients reached a residual of {worst:.2e} in {taken} iterations, not the tolerance "
                    f"of {self.tolerance:.2e}; take more max_iterations, or a larger damping than {self.damping}",
                    worst,
                    taken,
                )
            # What the recursion below calls the residual drifts from the true one: begin again there.
            d, rr = r.clone(), residual.square()
            while taken < self.max_iterations:
                (rows,) = (rr.sqrt() > self.tolerance).nonzero(as_tuple=True)
                if not len(rows):
                    break
                taken += 1
                hd = product(d[rows])
                curvature = (d[rows] * hd).sum(1)
                if not bool((curvature > 0).all()):
                    self._refuse(curvature / d[rows].square().sum(1), rr, taken)
                alpha = (rr[rows] / curvature)[:, None]
                s[rows] += alpha * d[rows]
                r[rows] -= alpha * hd
                fresh = r[rows].square().sum(1)
                d[rows] = r[rows] + (fresh / rr[rows])[:, None] * d[rows]
                rr[rows] = fresh
                steps[rows] += 1
            r = unit - product(s)
            residual = torch.linalg.vector_norm(r, dim=1)
        return _Solution(s * norm, residual, steps)

    def _refuse(self, curvature: Tensor, rr: Tensor, taken: int) -> None:
        lowest = float(curvature.min())
        raise SolverError(
            f"the Hessian is not positive definite with damping = {self.damping}: a direction has curvature "
            f"{lowest:.3g}; take a damping larger by more than that, or parameters at a minimum of the training loss",
            float(rr.max().sqrt()),
            taken,
        )


# --------------------------------------------------------------------------------------------------------------------
# The attack


@dataclass(frozen=True, eq=False)
class InfluenceAttackResult:
    """What an attack on influences found, a row an image, in the order of the batch.

    Attributes:
        images: [N, C, H, W]; exactly within epsilon of the clean images and within [0, 1]. Where the attack failed it
            is the clean image.
        success: bool [N]; False where no perturbed iterate kept the prediction.
        prediction: int64 [N]; the class predicted for the clean image, which is the label of the test loss throughout.
        points: int64 [N, top]; the training points under attack, the most influential ones of the clean image.
        before: influences on the clean images.
        after: influences on the returned images.
        objective: float64 [N]; D of the returned image.
        trace: float64 [iterations + 1, N]; D of every iterate, the clean image first.
        kept: bool [iterations + 1, N]; whether the iterate has the prediction of the clean image.
        best: int64 [N]; the iterate that is returned, 0 where the attack failed.
        epsilon: largest change of a value, in units of a [0, 1] image.
    """

    images: Tensor
    success: Tensor
    prediction: Tensor
    points: Tensor
    before: Influence
    after: Influence
    objective: Tensor
    trace: Tensor
    kept: Tensor
    best: Tensor
    epsilon: float


def influence_attack(
    layer: LastLayer,
    images: Tensor,
    *,
    epsilon: float,
    top: int = 3,
    which: Which = "helpful",
    normalize: bool = False,
    step: float | None = None,
    iterations: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> InfluenceAttackResult:
    """Take the influence from a test image's most influential training points (Ghorbani et al. 2019).

    ``x <- clip(x + step * sign(grad D(x)))`` to the ball of radius epsilon around the image and to [0, 1], with

        ``D(x) = sum over the top points of I(z_i, (x, y))``

    and y the class predicted for the clean image: D rises as helpful points lose their help. (For harmful points D is
    minus the sum.) D is linear in the test gradient, so one linear system for each image is solved before the first
    step and D is a function of features and logits from then on. The published attack takes one step of epsilon.

    D also rises where the prediction becomes more certain: then the whole test gradient shrinks, all influences with
    it, and their ranks stay. With ``normalize`` D takes the test gradient divided by its length, on which ranks do not
    depend, and steps go into its direction alone.

    As in :func:`robattr.attacks.iterative_attack`, the iterate with the largest D that keeps the prediction is
    returned, a step where the gradient is zero or not finite has random signs, and images do not influence one another.

    Args:
        layer: training points, model and Hessian; with cross-entropy.
        images: test images [N, C, H, W] in [0, 1].
        epsilon: largest change of a value in units of a [0, 1] image, for example ``8 / 255``; > 0.
        top: number of training points under attack, from 1 to n.
        which: ``helpful`` or ``harmful`` points, see :meth:`Influence.top`.
        normalize: divide the test gradient in D by its length.
        step: in the same units as epsilon, > 0; by default 2.5 * epsilon / iterations, or epsilon where that is less.
        iterations: number of steps, >= 1.
        seed: of the random signs.
        batch_size: images attacked at once; bounds the memory.

    Raises:
        ValueError: an argument is not what is accepted; before any work starts.
        SolverError: a linear system was not solved.
    """
    _check_attack(layer, images, epsilon, top, which, batch_size)
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; an attack takes at least 1 step")
    if step is None:
        step = min(2.5 / iterations, 1) * epsilon
    elif not 0 < step < math.inf:
        raise ValueError(f"step is {step}; accepted is a step > 0 in units of a [0, 1] image, or None")
    return _search(layer, images, epsilon, top, which, normalize, step, iterations, seed, batch_size)


def influence_random_sign(
    layer: LastLayer,
    images: Tensor,
    *,
    epsilon: float,
    top: int = 3,
    which: Which = "helpful",
    normalize: bool = False,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> InfluenceAttackResult:
    """The baseline without a gradient: +epsilon or -epsilon at random for every value, clipped to [0, 1].

    With more ``draws`` than one, the one with the largest D that keeps the prediction is returned. Other arguments,
    errors and the result are those of :func:`influence_attack`.
    """
    _check_attack(layer, images, epsilon, top, which, batch_size)
    if draws < 1:
        raise ValueError(f"draws is {draws}; the baseline takes at least 1")
    return _search(layer, images, epsilon, top, which, normalize, None, draws, seed, batch_size)


def _search(
    layer: LastLayer,
    images: Tensor,
    epsilon: float,
    top: int,
    which: Which,
    normalize: bool,
    step: float | None,
    iterations: int,
    seed: int,
    batch_size: int,
) -> InfluenceAttackResult:
    """Climb D in steps, or draw random signs where ``step`` is None; keep the best iterate with the same prediction."""
    parts = []
    for rows in parts_of(len(images), batch_size):
        start = images[rows].detach()
        before = layer.influence(start)
        labels, points = before.labels, before.top(top, which)
        direction = layer._direction(points) * (1 if which == "helpful" else -1)

        def look(x: Tensor, p: int, climbs: bool, labels: Tensor = labels, direction: Tensor = direction) -> Seen:
            z = x.detach().requires_grad_(climbs)
            with torch.set_grad_enabled(climbs):
                d, scale, now = layer._along(z, labels, direction, normalize)
            slope = None
            if climbs:
                # Features of a constant network are no function of the image at all.
                above = (d / scale).sum()
                slope = torch.zeros_like(z)
                if above.requires_grad:
                    (slope,) = torch.autograd.grad(above, z, materialize_grads=True)
            return Seen(d.detach(), now == labels, slope)

        found = climb(start, look, epsilon=epsilon, step=step, iterations=iterations, seed=seed)
        parts.append(
            InfluenceAttackResult(
                prediction=labels,
                points=points,
                before=before,
                after=layer.influence(found.images, labels),
                epsilon=epsilon,
                **vars(found),
            )
        )
    return _joined(parts)


def _joined(parts: list[InfluenceAttackResult]) -> InfluenceAttackResult:
    def cat(name: str, dim: int = 0) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim)

    def influences(which: Literal["before", "after"]) -> Influence:
        each: list[Influence] = [getattr(part, which) for part in parts]
        return Influence(
            torch.cat([part.values for part in each]),
            torch.cat([part.labels for part in each]),
            torch.cat([part.residual for part in each]),
            torch.cat([part.iterations for part in each]),
        )

    return InfluenceAttackResult(
        images=cat("images"),
        success=cat("success"),
        prediction=cat("prediction"),
        points=cat("points"),
        before=influences("before"),
        after=influences("after"),
        objective=cat("objective"),
        trace=cat("trace", 1),
        kept=cat("kept", 1),
        best=cat("best"),
        epsilon=parts[0].epsilon,
    )


# --------------------------------------------------------------------------------------------------------------------


def _check_attack(layer: LastLayer, images: Tensor, epsilon: float, top: int, which: Which, batch_size: int) -> None:
    check_attack(images, epsilon, batch_size)
    _check_top(top, len(layer), which, "top")
    if layer.loss != "cross-entropy":
        raise ValueError(f"the layer's loss is {layer.loss!r}; an attack keeps a predicted class, of 'cross-entropy'")


def _check_top(k: int, n: int, which: Which, name: str = "k") -> None:
    if not 1 <= k <= n:
        raise ValueError(f"{name} is {k}; accepted is from 1 to {n}, the number of training points")
    if which not in get_args(Which):
        raise ValueError(f"which is {which!r}; accepted are 'helpful' and 'harmful'")


def _check_numbers(
    damping: float, weight_decay: float, loss: Loss, tolerance: float, max_iterations: int, max_batch: int
) -> None:
    for name, value in (("damping", damping), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; accepted is a finite number >= 0, for example 0.01")
    if loss not in get_args(Loss):
        raise ValueError(f"loss is {loss!r}; accepted are 'cross-entropy' and 'squared'")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; accepted is a relative residual between 0 and 1, such as 1e-8")
    if max_iterations < 1:
        raise ValueError(f"max_iterations is {max_iterations}; conjugate gradients take at least 1")
    if max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}; a pass takes at least 1 image")


def _check_labels(loss: Loss, labels: Tensor, n: int, outputs: int, name: str = "labels") -> None:
    if loss == "cross-entropy":
        check_labels(labels, n, outputs, name)
    elif labels.shape != (n, outputs) or not labels.is_floating_point() or not bool(labels.isfinite().all()):
        raise ValueError(
            f"{name} are {labels.dtype} of shape {tuple(labels.shape)}; the squared loss takes finite floats "
            f"[N, outputs] = [{n}, {outputs}]"
        )
