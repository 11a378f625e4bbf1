"""Linear systems with a Hessian, solved for many right-hand sides at once or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from robattr.influence.losses import Loss

# Numbers in one intermediate result: 32 MiB in float64.
_NUMBERS = 2**22


class SolverError(RuntimeError):
    """A linear system with the Hessian was not solved; the message is one line and names the way out.

    Attributes:
        residual: the largest relative residual ``||Hess s - g|| / ||g||`` that was left; NaN where no solution was
            tried. iterations: how many steps were taken.
    """

    def __init__(self, message: str, residual: float, iterations: int) -> None:
        super().__init__(message)
        self.residual = residual
        self.iterations = iterations


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
