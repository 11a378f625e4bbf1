"""Influence through the last linear layer: closed forms for thousands of training points."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robattr._rows import parts_of
from robattr.attributions import Target, check_target, differentiates, frozen
from robattr.data import check_images
from robattr.influence.losses import Loss, _check_labels, _slopes
from robattr.influence.solver import _NUMBERS, SolverError, _check_numbers, _ConjugateGradients, _Solution, _unit
from robattr.influence.values import Influence

Solver = Literal["cg", "exact"]
# Slopes below this count as none; its inverse times a large feature is a number still.
_TINY = 1e-280
# Parameters for which the Hessian is formed: 128 MiB in float64.
_MOST_EXACT = 4096


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

    @differentiates
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
        """``Hess^{-1} sum_j grad loss(x_j)`` over each row of training points [T, k]: [T, outputs, features]."""
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
            logits = self._model(x.to(self._linear.weight.dtype))
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
