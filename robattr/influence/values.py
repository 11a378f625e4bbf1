"""The influence of training points on the loss at test points, as numbers to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from robattr import metrics

Which = Literal["helpful", "harmful"]


@dataclass(frozen=True, eq=False)
class Influence:
    """The influence of n training points on the loss at T test points.

    Attributes:
        values: float64 [T, n]; the derivative of the test loss with respect to epsilon when the parameters minimize
            ``mean training loss + epsilon * loss of z_i``. Negative for helpful points, positive for harmful ones.
        labels: of the test loss: int64 [T], or float [T, outputs] for the squared loss.
        residual: float64 [T]; ``||Hess s - g|| / ||g||`` of the solution s for the test point's gradient g.
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


def _check_top(k: int, n: int, which: Which, name: str = "k") -> None:
    if not 1 <= k <= n:
        raise ValueError(f"{name} is {k}; accepted is from 1 to {n}, the number of training points")
    if which not in get_args(Which):
        raise ValueError(f"which is {which!r}; accepted are 'helpful' and 'harmful'")
