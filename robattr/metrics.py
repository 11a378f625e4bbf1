"""How alike two attribution maps are: one number per sample, batched, on the device of the maps.

Every function takes two batches ``a`` and ``b`` of the same shape, sample first, and returns a tensor ``[N]``.
Common to all of them:

- maps are finite floating point; float16 and bfloat16 are computed in float32, float64 stays float64;
- identical maps get exactly the perfect value (1, or 0 for the shift), maps of zeros and constant maps included;
- swapping ``a`` and ``b`` gives exactly the same number;
- a batch gives what its samples give one at a time, up to rounding;
- an argument that cannot be used raises a one-line ``ValueError``.

Written here rather than taken from a library where the library's per-sample answer is not this one.
``torch.nn.functional.cosine_similarity`` floors the norms at 1e-8, so maps of tiny gradients lose their scale
invariance; torchmetrics' Pearson gives NaN or noise for a constant map, its Spearman loops over the samples in Python,
and its SSIM ignores the Gaussian window asked for (11 pixels at sigma 1.5, where 7 are wanted) and averages over
padding; SciPy and scikit-image work on the CPU, one sample at a time. The tests compare with each of them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["center_of_mass", "center_shift", "cosine", "pearson", "spearman", "ssim", "topk_intersection"]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of two batches of maps, in [-1, 1].

    Maps are scaled to a largest value near 1 before anything is squared, so the result does not depend on a positive
    scale of either map, however small. Differentiable.

    Zero norm: two zero maps give 1; a zero map and another give 0, with gradient 0.

    Args:
        a: Maps ``[N, ...]``, any unit.
        b: Maps of the same shape.

    Returns:
        ``[N]``.

    Raises:
        ValueError: shapes, devices or types differ from what is accepted, or a value is not finite.
    """
    a, b = _flat_pair(a, b)
    return _cosine(_rescaled(a), _rescaled(b))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the pixels of two batches of maps, in [-1, 1]. Differentiable.

    Zero variance: two constant maps give 1 (whatever their values); a constant map and another give 0, with gradient 0.

    Args, returns and errors as for `cosine`.
    """
    a, b = _flat_pair(a, b)
    return _cosine(_centred(a), _centred(b))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman rank correlation over the pixels of two batches of maps, in [-1, 1]: Pearson's of the ranks.

    Ties share the average of the ranks that they span. Not differentiable: the result carries no gradient.

    Zero variance: two constant maps give 1; a constant map and another give 0.

    Args, returns and errors as for `cosine`.
    """
    a, b = _flat_pair(a, b)
    return _cosine(_rescaled(_centred_ranks(a)), _rescaled(_centred_ranks(b)))


def topk_intersection(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Fraction of the ``k`` largest pixels that two batches of maps share, in [0, 1].

    Ties are broken by position: of equal pixels the one with the lower flat index counts as larger. So a constant map,
    zeros included, has its first ``k`` pixels on top. Not differentiable.

    Args:
        a: Maps ``[N, ...]``; values are compared as they are, with their sign.
        b: Maps of the same shape.
        k: How many pixels, from 1 to the number of values per map.

    Returns:
        ``[N]``.

    Raises:
        ValueError: as for `cosine`, or ``k`` is out of range.
    """
    a, b = _flat_pair(a, b)
    pixels = a.shape[1]
    if not 1 <= k <= pixels:
        raise ValueError(f"k must be from 1 to {pixels}, the number of pixels of a map; got {k}")
    return _divided((_top_mask(a, k) & _top_mask(b, k)).sum(1).to(a.dtype), k)


def center_of_mass(a: Tensor) -> Tensor:
    """Center of mass of each map in pixel units: ``(row, column)`` of the first pixel is ``(0, 0)``. Differentiable.

    Each map is normalized to sum 1 and taken as the weights of its pixels' positions (Ghorbani, Abid & Zou 2019).

    Zero mass: the geometric center ``((H - 1) / 2, (W - 1) / 2)``, with gradient 0.

    Args:
        a: Maps ``[N, H, W]`` without negative values, any unit.

    Returns:
        ``[N, 2]``.

    Raises:
        ValueError: not ``[N, H, W]``, not floating point, a value is not finite or is negative.
    """
    a = _checked(a, "a")
    _require_planes(a)
    if bool(a.amin() < 0):
        raise ValueError(f"a must not have negative values to have a center of mass (take abs()?); min {a.min():.4g}")
    _, height, width = a.shape
    mass = _rescaled(a.flatten(1)).view_as(a)
    total = mass.sum((1, 2))
    total = torch.where(total > 0, total, torch.ones_like(total))
    # Moments about the geometric center: symmetric maps balance exactly, and an empty one falls on it by itself.
    middle = a.new_tensor([(height - 1) / 2, (width - 1) / 2])
    rows = torch.arange(height, dtype=a.dtype, device=a.device) - middle[0]
    columns = torch.arange(width, dtype=a.dtype, device=a.device) - middle[1]
    moments = torch.stack([(mass.sum(2) * rows).sum(1), (mass.sum(1) * columns).sum(1)], dim=1)
    return middle + moments / total[:, None]


def center_shift(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance in pixels between the centers of mass of two batches of maps; 0 is perfect.

    Differentiable, with gradient 0 where the centers coincide. A map of zero mass has its center in the middle of the
    map, see `center_of_mass`.

    Args:
        a: Maps ``[N, H, W]`` without negative values.
        b: Maps of the same shape.

    Returns:
        ``[N]``, from 0 to the map's diagonal.

    Raises:
        ValueError: as for `cosine` and `center_of_mass`.
    """
    a, b = _pair(a, b)
    shift: Tensor = torch.linalg.vector_norm(center_of_mass(a) - center_of_mass(b), dim=1)
    return shift


def ssim(a: Tensor, b: Tensor, *, window: int = 7, sigma: float = 1.5, data_range: float = 1.0) -> Tensor:
    """Structural similarity (Wang, Bovik, Sheikh & Simoncelli 2004) of two batches of maps, in [-1, 1].

    Means, variances and the covariance are weighted by a ``window`` x ``window`` Gaussian that sums to 1, with
    K1 = 0.01 and K2 = 0.03, and the index is averaged over the windows that lie inside the map. Differentiable.

    Zero variance: the formula's constants keep it defined. Two equal constant maps give 1, two unequal ones the
    luminance term alone, a constant map and another a value below 1 that is small where the other has contrast.

    Args:
        a: Maps ``[N, H, W]``, in the unit of ``data_range``.
        b: Maps of the same shape.
        window: Side of the Gaussian window in pixels, odd, at most the smaller side of the map.
        sigma: Standard deviation of the Gaussian in pixels.
        data_range: Largest minus smallest value that a map can have: 1 for heatmaps divided by their maximum.

    Returns:
        ``[N]``.

    Raises:
        ValueError: as for `cosine`, maps are not ``[N, H, W]``, or an option is out of range.
    """
    a, b = _pair(a, b)
    _require_planes(a)
    side = min(a.shape[1:])
    if window % 2 == 0 or not 1 <= window <= side:
        raise ValueError(f"window must be odd and from 1 to {side}, the smaller side of a map; got {window}")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be positive and finite; got {sigma}")
    if not (data_range > 0 and math.isfinite(data_range)):
        raise ValueError(f"data_range must be positive and finite; got {data_range}")
    offsets = [(i - window // 2) / sigma for i in range(window)]
    bell = [math.exp(-z * z / 2) for z in offsets]
    taps = [value / sum(bell) for value in bell]
    mean_a, mean_b = _filtered(a, taps), _filtered(b, taps)
    var_a = _filtered(a * a, taps) - mean_a * mean_a
    var_b = _filtered(b * b, taps) - mean_b * mean_b
    cov = _filtered(a * b, taps) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    above = (2 * (mean_a * mean_b) + c1) * (2 * cov + c2)
    below = (mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2)
    index = (above / below).flatten(1)
    return _divided(index.sum(1), index.shape[1])


def _checked(x: Tensor, name: str) -> Tensor:
    """The maps in float32 at least, or a one-line error."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor of maps; got {type(x).__name__}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{name} must be a non-empty batch of maps, [N, H, W] or [N, ...]; got shape {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point; got {x.dtype} (call .float()?)")
    if not bool(torch.stack(torch.aminmax(x.detach())).isfinite().all()):  # several times faster than x.isfinite()
        sample = int(x.isfinite().flatten(1).all(1).logical_not().nonzero()[0])
        raise ValueError(f"{name} has a NaN or infinite value in sample {sample}; maps must be finite")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both batches, checked and in their common type."""
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must have the same shape; got {list(a.shape)} and {list(b.shape)}")
    if a.device != b.device:
        raise ValueError(f"a and b must be on the same device; got {a.device} and {b.device}")
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def _flat_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _pair(a, b)
    return a.flatten(1), b.flatten(1)


def _require_planes(a: Tensor) -> None:
    if a.ndim != 3:
        raise ValueError(f"maps must be [N, H, W]; got shape {list(a.shape)} (sum over the channels first?)")


def _rescaled(x: Tensor) -> Tensor:
    """Rows of ``[N, P]`` over a power of two each, so that the largest magnitude is in [1, 2); zero rows stay.

    Dividing by a power of two is exact. It is constant in the gradient: what is computed from the result does not
    depend on it.
    """
    peak = x.detach().abs().amax(1, keepdim=True)
    # peak = mantissa * 2**exponent, and 2**(exponent - 1) is a float even for the smallest and the largest peak.
    power = peak / (2 * torch.frexp(peak).mantissa)
    return x / torch.where(peak > 0, power, torch.ones_like(peak))


def _centred(x: Tensor) -> Tensor:
    """Rows minus their mean. Subtracting the minimum first makes a constant row exactly zero, and keeps digits."""
    x = _rescaled(x)
    x = _rescaled(x - x.detach().amin(1, keepdim=True))
    return x - x.mean(1, keepdim=True)


def _centred_ranks(x: Tensor) -> Tensor:
    """Twice the average ranks minus twice their mean: integers, so exact."""
    ordered, index = x.detach().sort(dim=1)
    pixels = x.shape[1]
    place = torch.arange(pixels, device=x.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)  # of a run of equal values
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = starts.roll(-1, dims=1)
    below = torch.where(starts, place, 0).cummax(1).values
    up_to = torch.where(ends, place + 1, pixels).flip(1).cummin(1).values.flip(1)
    # A run has the ranks below+1 .. up_to, on average (below + up_to + 1)/2; the mean of all P ranks is (P + 1)/2.
    return torch.empty_like(ordered).scatter_(1, index, (below + up_to - pixels).to(x.dtype))


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of rows whose largest magnitude is near 1, or which are zero."""
    aa, bb = (a * a).sum(1), (b * b).sum(1)
    zero_a, zero_b = aa == 0, bb == 0
    either = zero_a | zero_b
    # One root of the product, not the product of two roots: sqrt(s * s) is exactly s, so equal maps give exactly 1.
    norms = torch.where(either, torch.ones_like(aa), aa * bb).sqrt()
    value = ((a * b).sum(1) / norms).clamp(-1, 1)
    return torch.where(either, (zero_a & zero_b).to(value.dtype), value)


def _top_mask(x: Tensor, k: int) -> Tensor:
    # topk's choice among ties is unspecified and differs between devices; a stable sort's is not.
    index = x.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(x, dtype=torch.bool).scatter_(1, index, True)


def _filtered(x: Tensor, taps: Sequence[float]) -> Tensor:
    """Rows and columns of ``[N, H, W]`` correlated with ``taps``, windows inside the map only.

    Written tap by tap: conv2d may round to TF32 on a GPU, which the differences of squares in `ssim` do not survive.
    """
    for dim in (1, 2):
        size = x.shape[dim] - len(taps) + 1
        total = torch.zeros_like(x.narrow(dim, 0, size))
        for i, tap in enumerate(taps):
            total = torch.add(total, x.narrow(dim, i, size), alpha=tap)
        x = total
    return x


def _divided(total: Tensor, count: int) -> Tensor:
    """``total / count``, correctly rounded: for a Python divisor CUDA multiplies by the reciprocal, and 49/49 < 1."""
    return total / total.new_tensor(count)
