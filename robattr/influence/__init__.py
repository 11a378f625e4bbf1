"""Influence functions: which training points would a test point's loss miss, and how fragile that explanation is.

The influence of training point x_i on the loss at test point x_t (Koh & Liang 2017, equation 2) is

    ``- grad loss(x_t)^T Hess^{-1} grad loss(x_i)``

with gradients and the Hessian Hess of the mean training loss with respect to parameters, at the trained parameters. It
is the derivative of the test loss with respect to additional weight of x_i. **A negative value is a helpful point**:
more of it lowers the test loss, and to leave it out would change the test loss by about minus this over n, a rise. A
positive value is a harmful point. Ghorbani, Abid & Zou 2019 call the most helpful points the most influential ones, and
so does :meth:`Influence.top`.

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

from robattr.influence.attack import InfluenceAttackResult, influence_attack, influence_random_sign
from robattr.influence.last_layer import LastLayer, Solver as Solver
from robattr.influence.losses import Loss as Loss
from robattr.influence.parameters import influence
from robattr.influence.solver import SolverError
from robattr.influence.values import Influence, Which as Which, rank_correlation, turnover

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
