"""The largest eigenvalue of a mean of ``y y'`` over many maps y, bounded from above, in bounded memory.

Maps are kept in half precision, with what that loses added to the result, or they are made again for each pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

__all__ = ["EXACT", "Eigenvalue", "Maps", "Stream", "largest_eigenvalue"]

Stream = Callable[[Callable[[Tensor], None]], None]
"""A pass: calls what it is given with blocks [k, d] of the same maps, in any order, each map once."""

EXACT = 1024
"""Up to this many values the matrix itself is formed."""

_WIDTH = 8  # random starts that go together
_BLOCK = 128  # kept maps in a step of a pass
# Sums of float32 products: their error is about 1e-6 of the result.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Eigenvalue:
    """The largest eigenvalue of ``A = (1 / n) sum y y'``.

    Attributes:
        value: what was found, at most the eigenvalue up to rounding.
        upper: the eigenvalue is at most this, with probability at least 1 - alpha over the random starts.
        samples: the n of A.
        passes: over the maps.
        alpha: 0 where the matrix was formed and nothing is left to chance.
    """

    value: float
    upper: float
    samples: int
    passes: int
    alpha: float


def largest_eigenvalue(
    stream: Stream, dimension: int, *, alpha: float = 1e-5, tolerance: float = 0.05, seed: int = 0
) -> Eigenvalue:
    """Bound the largest eigenvalue of the mean of ``y y'`` from above.

    Up to 1,024 values the matrix is formed. Beyond, a block Lanczos method with 8 random starts. A residual would say
    how near *some* eigenvalue is; what excludes a larger one is that a random start sees it. Let theta be the largest
    Ritz value after k passes from one start, and beta the part of that (normalized) start along the top eigenvector,
    with eigenvalue mu > theta. For every polynomial p of degree below k the vector p(A) start has a Rayleigh quotient
    of at most theta, so ``beta^2 p(mu)^2 (mu - theta) <= sum over eigenvalues x below theta of (their part)^2 p(x)^2
    (theta - x)``. Choose p with ``p(x)^2 (theta - x) = theta T(sqrt(1 - x / theta))^2``, T the Chebyshev polynomial of
    degree 2 k - 1: at most theta on [0, theta], and ``theta sinh^2((2 k - 1) arsinh(sqrt(mu / theta - 1)))`` in size
    at mu. Hence

        ``|beta| <= 1 / cosh((2 k - 1) arsinh(sqrt(mu / theta - 1)))``,

    the optimum of Kuczynski & Wozniakowski 1992. A start without direction has ``|beta| <= s`` with probability
    the beta law with parameters 1/2 and (dimension - 1)/2 at s^2, and all 8 starts with the 8th power of it: s is
    chosen so that this is alpha, k so that mu / theta - 1 is ``tolerance``. The bound is on the exact theta; a factor
    1.0001 covers the rounding of sums.

    Args:
        stream: see :data:`Stream`; it is called once a pass, with at least one map each time.
        dimension: d, of each map.
        alpha: probability that the bound is wrong, between 0 and 1; only beyond 1,024 values.
        tolerance: by which share the bound is above what was found, > 0; only beyond 1,024 values.
        seed: of the starts; they have to be independent of the maps.

    Raises:
        ValueError: an argument is not what is accepted.
    """
    if dimension < 1:
        raise ValueError(f"dimension is {dimension}; accepted is a number of values >= 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; accepted is a probability between 0 and 1, for example 1e-5")
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; accepted is a share > 0, for example 0.05")
    if dimension <= EXACT:
        # The product of all blocks with the unit vectors is the matrix.
        product, n = _product(stream, None, dimension)
        value = max(float(torch.linalg.eigvalsh((product + product.T) / 2)[-1]), 0.0)
        return Eigenvalue(value, value * (1 + _ROUNDING), n, 1, 0.0)
    share = np.sqrt(special.betaincinv(0.5, (dimension - 1) / 2, alpha ** (1 / _WIDTH)))
    growth = np.arccosh(1 / share)
    passes = int(np.ceil((growth / np.arcsinh(np.sqrt(tolerance)) + 1) / 2))
    excess = float(np.sinh(growth / (2 * passes - 1)) ** 2)
    generator = torch.Generator().manual_seed(seed)
    # Vectors are rows: long ones that lie in memory as they are read, several times as fast as few columns.
    start = torch.randn(dimension, _WIDTH, generator=generator, dtype=torch.float64)
    known, products = torch.empty(2, passes * _WIDTH, dimension, dtype=torch.float64)
    known[:_WIDTH] = torch.linalg.qr(start).Q.T
    n = 0
    for last in range(_WIDTH, passes * _WIDTH + 1, _WIDTH):
        product, n = _product(stream, known[last - _WIDTH : last], dimension)
        products[last - _WIDTH : last] = product
        if last < len(known):
            basis = known[:last]
            for _ in range(2):  # once leaves rounding, twice does not
                product.addmm_(product @ basis.T, basis, alpha=-1)
            new = known[last : last + _WIDTH]
            new[:] = torch.linalg.qr(product.T).Q.T
            # A product that has vanished leaves rows that need not be orthogonal to the others.
            overlap = new @ basis.T
            if float(overlap.abs().max()) > 1e-8:
                new[:] = torch.linalg.qr((new - overlap @ basis).T).Q.T
    small = products @ known.T
    gram = known @ known.T
    weights, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    kept = weights > 1e-6
    root = vectors[:, kept] / weights[kept].sqrt()
    ritz = root.T @ ((small + small.T) / 2) @ root
    value = max(float(torch.linalg.eigvalsh(ritz)[-1]), 0.0)
    return Eigenvalue(value, value * (1 + excess) * (1 + _ROUNDING), n, passes, alpha)


def _product(stream: Stream, rows: Tensor | None, dimension: int) -> tuple[Tensor, int]:
    """(1 / n) sum (rows y) y', [k, d] float64 on the CPU, and n; without rows the matrix itself."""
    total: list[Tensor] = []
    count = 0
    given: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def add(block: Tensor) -> None:
        nonlocal count
        y = block if block.dtype == torch.float64 else block.float()
        if rows is None:
            new = (y.T @ y).double()
        else:
            key = (y.device, y.dtype)
            if key not in given:
                given[key] = rows.to(y)
            new = ((given[key] @ y.T) @ y).double()
        total[:] = [new if not total else total[0].add_(new)]
        count += len(y)

    stream(add)
    if not count:
        raise ValueError("stream gave no maps; accepted is at least one in every pass")
    return total[0].cpu() / count, count


class Maps:
    """Maps that were seen, kept for further passes: in their own precision if memory allows, else in half.

    Half precision is rounding: with rows y = kept + lost, the root of the largest eigenvalue of the mean of ``y y'`` is
    at most that of the kept plus the root of the mean of ``||lost||^2``, which is measured. Maps are scaled by the root
    of their number of values first, so that the values of a map of length 1 are about 1: :attr:`scale`.

    10,000 maps of a 3 x 224 x 224 image take 10,000 x 150,528 x 2 bytes, 3.0 GB.

    Args:
        samples: how many there will be.
        dimension: values of each.
        itemsize: bytes of a value as they come.
        memory: bytes that may be used.

    Raises:
        MemoryError: not even half precision fits.
    """

    def __init__(self, samples: int, dimension: int, *, itemsize: int = 4, memory: float = 4e9) -> None:
        if not self.fit(samples, dimension, memory):
            raise MemoryError(
                f"{samples} maps of {dimension} values take {2e-9 * samples * dimension:.3g} GB in half precision; "
                f"allowed are {memory / 1e9:.3g} GB"
            )
        # A quarter is left for the passes.
        self.half = samples * dimension * itemsize > 0.75 * memory
        self.scale = float(np.sqrt(dimension))
        self.lost = 0.0  # sum of squared lengths, of scaled maps
        self.count = 0
        self._shape = (samples, dimension)
        self._kept: Tensor | None = None

    @staticmethod
    def fit(samples: int, dimension: int, memory: float) -> bool:
        """Whether that many maps can be kept."""
        return 2 * samples * dimension <= 0.8 * memory

    def add(self, maps: Tensor) -> None:
        """Keep a block [k, d]."""
        if self._kept is None:
            # All at once: pieces among what comes and goes with every pass would scatter over several times the memory.
            self._kept = maps.new_empty(self._shape, dtype=torch.half if self.half else maps.dtype)
        rows = self._kept[self.count : self.count + len(maps)]
        self.count += len(maps)
        if not self.half:
            rows.copy_(maps)
            return
        scaled = maps * self.scale
        rows.copy_(scaled)
        self.lost += float((scaled - rows.to(scaled)).square().sum(dtype=torch.float64))

    def stream(self, use: Callable[[Tensor], None]) -> None:
        """A pass over what is kept (not scaled back), in blocks."""
        if self._kept is not None:
            for block in torch.split(self._kept[: self.count], _BLOCK):
                use(block)

    def upper(self, found: Eigenvalue) -> float:
        """The bound for the maps as they were, from the one for what is kept."""
        if not self.half:
            return found.upper
        return float((np.sqrt(found.upper) + np.sqrt(self.lost / self.count)) ** 2 / self.scale**2)
