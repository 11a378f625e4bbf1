"""Each metric against hand-computed values, an independent implementation and the properties it promises."""

import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import astuple
from functools import partial

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
import torchmetrics.functional
from hypothesis import given, settings, strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from robattr import models
from robattr.attributions import gradient, heatmap, integrated_gradients
from robattr.metrics import (
    Curvature,
    Curve,
    Similarity,
    attrition,
    center_of_mass,
    center_shift,
    cosine,
    curvature,
    deletion,
    insertion,
    nearby_intersection,
    pearson,
    random_perturbation_similarity,
    similarity as three_measures,
    spearman,
    ssim,
    topk_intersection,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
EPS32 = torch.finfo(torch.float32).eps
EPS64 = torch.finfo(torch.float64).eps
Metric = Callable[[Tensor, Tensor], Tensor]


def top3(a: Tensor, b: Tensor) -> Tensor:
    return topk_intersection(a, b, 3)


def ssim3(a: Tensor, b: Tensor) -> Tensor:
    return ssim(a, b, window=3)


PAIRWISE: dict[str, tuple[Metric, float]] = {  # and what identical maps get
    "cosine": (cosine, 1.0),
    "pearson": (pearson, 1.0),
    "spearman": (spearman, 1.0),
    "topk_intersection": (top3, 1.0),
    "center_shift": (center_shift, 0.0),
    "ssim": (ssim3, 1.0),
}
SIMILARITIES = ["cosine", "pearson", "spearman"]
every = pytest.mark.parametrize(("metric", "perfect"), PAIRWISE.values(), ids=PAIRWISE.keys())
similarity = pytest.mark.parametrize("metric", [PAIRWISE[name][0] for name in SIMILARITIES], ids=SIMILARITIES)


def random_maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tied_maps(*shape: int, levels: int = 4, seed: int = 0) -> Tensor:
    return torch.randint(levels, shape, generator=torch.Generator().manual_seed(seed)).double()


@st.composite
def map_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two batches of non-negative float32 maps: smooth, tied, sparse or constant, at any of many scales."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(3, 6)), draw(st.integers(3, 6)))
    pair = []
    for _ in range(2):
        seed = draw(st.integers(0, 2**31))
        kind = draw(st.sampled_from(["smooth", "tied", "sparse", "constant", "zero"]))
        maps = random_maps(*shape, seed=seed, dtype=torch.float32)
        if kind == "tied":
            maps = (maps * 3).floor() / 2
        elif kind == "sparse":
            maps = torch.where(maps > 0.8, maps, torch.zeros_like(maps))
        elif kind == "constant":
            maps = maps[:, :1, :1].expand(shape).contiguous()
        elif kind == "zero":
            maps = torch.zeros(shape)
        pair.append(maps * 10.0 ** draw(st.integers(-35, 2)))
    return pair[0], pair[1]


# ---------------------------------------------------------------- values worked out by hand


def test_cosine_by_hand() -> None:
    a = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    b = torch.tensor([[[4.0, 3.0], [0.0, 0.0]], [[2.0, 1.0], [-2.0, 0.0]], [[-5.0, 0.0], [0.0, 0.0]]])
    # (12 + 12)/(5*5) = 0.96; (2 + 2 - 4)/(3*3) = 0; opposite directions: -1
    torch.testing.assert_close(cosine(a, b), torch.tensor([0.96, 0.0, -1.0]), rtol=0, atol=4 * EPS32)


def test_pearson_by_hand() -> None:
    a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    b = torch.tensor([[[2.0, 1.0], [4.0, 3.0]]])
    # centred: (-1.5, -.5, .5, 1.5) and (-.5, -1.5, 1.5, .5); products .75 + .75 + .75 + .75 = 3; each square sum is 5
    torch.testing.assert_close(pearson(a, b), torch.tensor([0.6]), rtol=0, atol=4 * EPS32)


def test_spearman_by_hand() -> None:
    a = torch.tensor([[[0.1, 100.0], [3.0, 5.0]], [[7.0, 7.0], [1.0, 9.0]]])
    b = torch.tensor([[[1.0, 2.0], [4.0, 3.0]], [[1.0, 2.0], [3.0, 4.0]]])
    # ranks (1, 4, 2, 3) and (1, 2, 4, 3), no ties: 1 - 6 * (0 + 4 + 4 + 0)/(4 * 15) = 0.2
    # ranks (2.5, 2.5, 1, 4) and (1, 2, 3, 4), centred (0, 0, -1.5, 1.5) and (-1.5, -.5, .5, 1.5):
    # products -.75 + 2.25 = 1.5; squares 4.5 and 5; 1.5/sqrt(22.5) = 0.1 * sqrt(10)
    torch.testing.assert_close(spearman(a, b), torch.tensor([0.2, 0.1 * math.sqrt(10)]), rtol=0, atol=4 * EPS32)


def test_topk_intersection_by_hand() -> None:
    a = torch.tensor([[[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]]])
    b = torch.tensor([[[1.0, 8.0, 7.0], [9.0, 2.0, 3.0]]])
    # tops by flat index: k=1: {0} and {3}; k=2: {0,1} and {3,1}; k=3: {0,1,2} and {3,1,2}; k=4: {0,1,2,5} and {3,1,2,5}
    for k, shared in {1: 0.0, 2: 1 / 2, 3: 2 / 3, 4: 3 / 4, 5: 4 / 5, 6: 1.0}.items():
        torch.testing.assert_close(topk_intersection(a, b, k), torch.tensor([shared]), rtol=0, atol=EPS32)


def test_topk_gives_ties_to_the_lower_index() -> None:
    a = torch.tensor([[[5.0, 1.0], [5.0, 5.0]]])  # top 2 of the three fives: 0 and 2
    assert topk_intersection(a, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), 2).tolist() == [1.0]  # 0 and 2
    assert topk_intersection(a, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), 2).tolist() == [0.5]  # 0 and 3
    zeros = torch.zeros(1, 2, 2)  # top 2: 0 and 1
    assert topk_intersection(zeros, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]), 2).tolist() == [1.0]
    assert topk_intersection(zeros, torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), 2).tolist() == [0.0]


def test_topk_compares_signed_values() -> None:
    a = torch.tensor([[[-9.0, 1.0], [0.0, -1.0]]])  # top 1 is index 1, not the largest magnitude
    assert topk_intersection(a, torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), 1).tolist() == [1.0]


def test_center_of_mass_by_hand() -> None:
    a = torch.tensor(
        [
            [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]],  # one pixel, at row 0, column 2
            [[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]],  # a quarter of (0, 0) and three of (1, 2)
            [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]],  # the middle of 2 rows and 3 columns
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],  # no mass: the middle
        ]
    )
    expected = torch.tensor([[0.0, 2.0], [0.75, 1.5], [0.5, 1.0], [0.5, 1.0]])
    torch.testing.assert_close(center_of_mass(a), expected, rtol=0, atol=4 * EPS32)


def test_center_shift_by_hand() -> None:
    a, b = torch.zeros(2, 4, 5), torch.zeros(2, 4, 5)
    a[0, 0, 0] = 2.0
    b[0, 3, 4] = 7.0  # 3 rows and 4 columns away: 5 pixels
    a[1, 3, 2] = 1.0  # b has no mass, so its center is (1.5, 2): 1.5 pixels away
    torch.testing.assert_close(center_shift(a, b), torch.tensor([5.0, 1.5]), rtol=0, atol=8 * EPS32)


def test_ssim_by_hand() -> None:
    # A window of one pixel sees no variance, so only luminance counts; c1 = 1e-4.
    a, b = torch.tensor([[[0.5, 1.0]]]).double(), torch.tensor([[[1.0, 1.0]]]).double()
    # pixel 1: (2 * 0.5 * 1 + 1e-4)/(0.25 + 1 + 1e-4); pixel 2 is equal: 1; their mean
    expected = ((1 + 1e-4) / (1.25 + 1e-4) + 1) / 2
    assert ssim(a, b, window=1).item() == pytest.approx(expected, abs=4 * EPS64)


def test_ssim_of_one_window_by_hand() -> None:
    # sigma so wide that the 3 x 3 weights are 1/9: plain means. a has one 1, b has two, one of them shared.
    a, b = torch.zeros(1, 3, 3).double(), torch.zeros(1, 3, 3).double()
    a[0, 0, 0] = b[0, 0, 0] = b[0, 1, 1] = 1.0
    # means 1/9, 2/9; variances 1/9 - 1/81 = 8/81, 2/9 - 4/81 = 14/81; covariance 1/9 - 2/81 = 7/81
    c1, c2 = 1e-4, 9e-4
    expected = ((4 / 81 + c1) * (14 / 81 + c2)) / ((5 / 81 + c1) * (22 / 81 + c2))
    # taps differ from 1/3 by about 1/(2 sigma^2) = 5e-13 for sigma = 1e6
    assert ssim(a, b, window=3, sigma=1e6).item() == pytest.approx(expected, abs=1e-11)


# ---------------------------------------------------------------- independent implementations


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("levels", [2, 3, 10, 1000])
def test_spearman_agrees_with_scipy_under_ties(levels: int, device: str) -> None:
    a, b = tied_maps(6, 9, 7, levels=levels, seed=1), tied_maps(6, 9, 7, levels=levels, seed=2)
    b[:3] += a[:3]
    expected = [
        scipy.stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    # both sum P = 63 rounded products three times
    torch.testing.assert_close(
        spearman(a.to(device), b.to(device)).cpu(), torch.tensor(expected).double(), rtol=0, atol=200 * EPS64
    )


@pytest.mark.parametrize("device", DEVICES)
def test_pearson_agrees_with_scipy(device: str) -> None:
    a = random_maps(5, 8, 9, seed=1) * 1e3 - 20
    b = a.roll(1, dims=2) + 300 * random_maps(5, 8, 9, seed=2)
    pairs = zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True)
    expected = [scipy.stats.pearsonr(x, y).statistic for x, y in pairs]
    torch.testing.assert_close(
        pearson(a.to(device), b.to(device)).cpu(), torch.tensor(expected).double(), rtol=0, atol=200 * EPS64
    )


def test_agrees_with_torchmetrics_and_torch() -> None:
    a, b = random_maps(4, 6, 6, seed=3), random_maps(4, 6, 6, seed=4)
    rows_a, rows_b = a.flatten(1), b.flatten(1)
    tolerance = {"rtol": 0.0, "atol": 200 * EPS64}
    columns = rows_a.T.contiguous(), rows_b.T.contiguous()  # torchmetrics has the outputs last
    torch.testing.assert_close(pearson(a, b), torchmetrics.functional.pearson_corrcoef(*columns), **tolerance)
    torch.testing.assert_close(cosine(a, b), torch.nn.functional.cosine_similarity(rows_a, rows_b), **tolerance)
    ranked = torchmetrics.functional.spearman_corrcoef(*columns)  # in float32, from means over 36 ranks
    torch.testing.assert_close(spearman(a, b).float(), ranked, rtol=0, atol=36 * EPS32)


# Rounding of squares of up to L^2 against the constant 9e-4 L^2 is of order 10 eps/9e-4 = 2e-12.
SSIM_TOLERANCE = {"rtol": 0.0, "atol": 1e-11}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("window", "sigma", "data_range"), [(11, 1.5, 2.0), (7, 0.8, 255.0), (5, 0.5, 1.0)])
def test_ssim_agrees_with_scikit_image(window: int, sigma: float, data_range: float, device: str) -> None:
    a = random_maps(3, 20, 23, seed=5) * data_range
    b = (a + 0.3 * data_range * random_maps(3, 20, 23, seed=6)).clamp(max=data_range)
    # It cuts its Gaussian at radius int(3.5 sigma + 0.5), so these are the sigmas that have the wanted windows.
    options = {"gaussian_weights": True, "sigma": sigma, "use_sample_covariance": False, "data_range": data_range}
    expected = [structural_similarity(x, y, **options) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    ours = ssim(a.to(device), b.to(device), window=window, sigma=sigma, data_range=data_range)
    torch.testing.assert_close(ours.cpu(), torch.tensor(expected).double(), **SSIM_TOLERANCE)


def test_ssim_agrees_with_scipy_filters_at_the_default_window() -> None:
    a, b = random_maps(3, 20, 23, seed=5), random_maps(3, 20, 23, seed=6)
    b[0] = 0.5 * (a[0] + b[0])

    def blurred(x: np.ndarray) -> np.ndarray:  # radius int(2 * 1.5 + 0.5) = 3: 7 pixels; the border has no full window
        return scipy.ndimage.gaussian_filter(x, 1.5, truncate=2.0)[3:-3, 3:-3]

    expected = []
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        mx, my = blurred(x), blurred(y)
        vx, vy, cov = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
        index = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        expected.append(index.mean())
    torch.testing.assert_close(ssim(a, b), torch.tensor(expected), **SSIM_TOLERANCE)


def test_ssim_agrees_with_torchmetrics_inside_its_padding() -> None:
    a, b = random_maps(3, 16, 18, seed=7), random_maps(3, 16, 18, seed=8)
    _, index = torchmetrics.functional.image.structural_similarity_index_measure(
        a[:, None], b[:, None], sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    # kernel_size is ignored for a Gaussian: its window is 11 for sigma 1.5, so 5 pixels of each border are padding
    inside = index[:, 0, 5:-5, 5:-5].mean((1, 2))
    torch.testing.assert_close(ssim(a, b, window=11), inside, **SSIM_TOLERANCE)


def test_float32_ssim_is_close_to_float64() -> None:
    a, b = random_maps(3, 12, 12, seed=9), random_maps(3, 12, 12, seed=10)
    a[0], b[0] = 0.9 + 0.01 * a[0], 0.9 + 0.01 * b[0]  # little contrast on a bright ground is the hard case
    # a variance is off by about 4 eps * mean^2, against at least c2 = 9e-4, in numerator and denominator
    bound = 2 * 4 * EPS32 / 9e-4
    torch.testing.assert_close(ssim(a.float(), b.float()).double(), ssim(a, b), rtol=0, atol=bound)


# ---------------------------------------------------------------- properties


@every
@settings(max_examples=60, deadline=None)
@given(pair=map_pairs())
def test_identical_maps_are_perfect_and_swapping_changes_nothing(
    metric: Metric, perfect: float, pair: tuple[Tensor, Tensor]
) -> None:
    a, b = pair
    assert metric(a, a.clone()).tolist() == [perfect] * len(a)
    assert torch.equal(metric(a, b), metric(b, a))


@every
@settings(max_examples=30, deadline=None)
@given(pair=map_pairs())
def test_bounds_and_batch_equals_single(metric: Metric, perfect: float, pair: tuple[Tensor, Tensor]) -> None:
    a, b = pair
    together = metric(a, b)
    assert together.shape == (len(a),)
    assert together.isfinite().all()
    if metric is center_shift:
        assert (together >= 0).all()
    elif metric is not ssim3:
        assert (together.abs() <= 1).all()
    alone = torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
    # P <= 36 rounded terms of size 1, or 6 pixels for the shift; ssim divides them by 9e-4
    atol = 36 * EPS32 * {center_shift: 6.0, ssim3: 1 / 9e-4}.get(metric, 1.0)
    torch.testing.assert_close(together, alone, rtol=0, atol=atol)


@similarity
@settings(max_examples=40, deadline=None)
@given(pair=map_pairs(), scale=st.floats(0.01, 100.0), seed=st.integers(0, 2**31))
def test_positive_scale_and_common_permutation_change_nothing(
    metric: Metric, pair: tuple[Tensor, Tensor], scale: float, seed: int
) -> None:
    a, b = pair[0].double(), pair[1].double()  # so that scaling rounds by EPS64 only
    value = metric(a, b)
    # Spearman sees order alone, and a scaled map's order can only differ in ties made by rounding: none here, as
    # distinct float32 values stay distinct in float64. The others divide P <= 36 terms rounded to EPS64; values of
    # float32 maps differ by EPS32 of their size at least, so centring loses up to 1/EPS32 of that and no more.
    exact = metric is spearman
    torch.testing.assert_close(metric(scale * a, b), value, rtol=0, atol=4 * EPS64 if exact else 36 * EPS64 / EPS32)
    order = torch.randperm(a[0].numel(), generator=torch.Generator().manual_seed(seed))
    shuffled = metric(a.flatten(1)[:, order], b.flatten(1)[:, order])
    torch.testing.assert_close(shuffled, value, rtol=0, atol=36 * EPS64 if exact else 36 * EPS64 / EPS32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [1e-30, 1e-38, 2.0**-100, 1e30])
def test_cosine_and_pearson_do_not_see_the_scale(scale: float, device: str) -> None:
    a, b = (random_maps(4, 8, 8, seed=s, dtype=torch.float32).to(device) for s in (11, 12))
    for metric in (cosine, pearson):
        # each scaled pixel is rounded by eps/2 of itself (1e-38 has lost one more bit), means of 64 add a few
        torch.testing.assert_close(metric(scale * a, b), metric(a, b), rtol=0, atol=16 * EPS32)
        torch.testing.assert_close(metric(a, scale * a), torch.ones(4, device=device), rtol=0, atol=16 * EPS32)
    assert torch.equal(cosine(2.0**-100 * a, b), cosine(a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_magnitudes_stay_exact(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    x = torch.zeros(2, 3, 3, dtype=dtype)
    x[0, 0, 0], x[0, 1, 2] = info.max, -info.max
    x[1, 2, 2] = info.tiny * info.eps  # the smallest positive number
    for metric in (cosine, pearson, spearman, top3):
        assert metric(x, x.clone()).tolist() == [1.0, 1.0]
    assert center_of_mass(x.abs())[1].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("device", DEVICES)
@every
def test_identical_maps_are_perfect_at_image_size(metric: Metric, perfect: float, device: str) -> None:
    for side in (7, 32, 57, 224):
        a = random_maps(2, side, side, seed=side, dtype=torch.float32).to(device)
        assert metric(a, a.clone()).tolist() == [perfect] * 2


@similarity
def test_zero_and_constant_maps(metric: Metric) -> None:
    zero, other = torch.zeros(1, 3, 3), random_maps(1, 3, 3, dtype=torch.float32)
    assert metric(zero, zero).item() == 1
    assert metric(zero, other).item() == 0
    assert metric(other, zero).item() == 0
    if metric is not cosine:
        tenth, third = torch.full((1, 3, 3), 0.1), torch.full((1, 3, 3), 1 / 3)  # their means round
        assert metric(tenth, third).item() == 1
        assert metric(tenth, other).item() == 0


def test_spearman_sees_order_alone() -> None:
    a, b = random_maps(3, 5, 5, seed=13), random_maps(3, 5, 5, seed=14)
    assert torch.equal(spearman(a.exp(), b), spearman(a, b))
    assert torch.equal(spearman(-a, b), -spearman(a, b))


@every
def test_half_precision_is_computed_in_float32_and_float64_stays(metric: Metric, perfect: float) -> None:
    a, b = random_maps(2, 4, 4, seed=15), random_maps(2, 4, 4, seed=16)
    for half in (torch.float16, torch.bfloat16):
        expected = metric(a.to(half).float(), b.to(half).float())
        assert torch.equal(metric(a.to(half), b.to(half)), expected)
    assert metric(a, b).dtype == torch.float64
    assert metric(a.float(), b).dtype == torch.float64


def test_maps_of_any_shape_are_flattened() -> None:
    a, b = random_maps(2, 3, 4, 4, seed=17), random_maps(2, 3, 4, 4, seed=18)
    for metric in (cosine, pearson, spearman, top3):
        assert torch.equal(metric(a, b), metric(a.flatten(1), b.flatten(1)))
        transposed = metric(a.transpose(1, 3), b.transpose(1, 3))  # not contiguous
        torch.testing.assert_close(transposed, metric(a, b), rtol=0, atol=48 * EPS64)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("metric", [cosine, pearson, center_shift, ssim3])
def test_gradients(metric: Metric) -> None:
    a, b = random_maps(2, 4, 5, seed=19).requires_grad_(), random_maps(2, 4, 5, seed=20).requires_grad_()
    assert torch.autograd.gradcheck(metric, (a, b))
    assert torch.autograd.gradgradcheck(metric, (a, b))


@pytest.mark.parametrize("metric", [cosine, pearson, center_shift, ssim3])
def test_gradients_are_finite_at_degenerate_maps(metric: Metric) -> None:
    zero, other = torch.zeros(1, 4, 4), random_maps(1, 4, 4, dtype=torch.float32)
    for a, b in ((zero, other), (zero, zero), (other, other)):
        a = a.clone().requires_grad_()
        metric(a, b.clone()).sum().backward()
        assert a.grad is not None
        assert a.grad.isfinite().all()
        if metric in (cosine, pearson) and a.detach().equal(zero):
            assert not a.grad.any()


def test_rank_metrics_carry_no_gradient() -> None:
    a, b = random_maps(2, 4, 4).requires_grad_(), random_maps(2, 4, 4, seed=1)
    assert not spearman(a, b).requires_grad
    assert not top3(a, b).requires_grad


# ---------------------------------------------------------------- errors


@every
def test_unusable_maps_are_named(metric: Metric, perfect: float) -> None:
    good = random_maps(3, 5, 5)
    nan, infinite = good.clone(), good.clone()
    nan[1, 0, 0], infinite[2, 0, 0] = math.nan, math.inf
    cases: list[tuple[object, object, str]] = [
        (nan, good, r"a has a NaN or infinite value in sample 1"),
        (good, infinite, r"b has a NaN or infinite value in sample 2"),
        (good, good[:2], r"same shape; got \[3, 5, 5\] and \[2, 5, 5\]"),
        (good[:0], good[:0], r"a must be a non-empty batch of maps"),
        (good[:, :0], good[:, :0], r"a must be a non-empty batch of maps"),
        (good[0, 0], good[0, 0], r"a must be a non-empty batch of maps"),
        (good.long(), good, r"a must be floating point; got torch.int64"),
        (good, good.numpy(), r"b must be a torch.Tensor of maps; got ndarray"),
    ]
    for a, b, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            metric(a, b)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("k", [0, -1, 26])
def test_k_out_of_range(k: int) -> None:
    a = random_maps(2, 5, 5)
    with pytest.raises(ValueError, match=rf"k must be from 1 to 25, .*; got {k}"):
        topk_intersection(a, a, k)


def test_planes_are_needed_for_positions() -> None:
    a = random_maps(2, 3, 5, 5)
    for metric in (ssim3, center_shift):
        with pytest.raises(ValueError, match=r"maps must be \[N, H, W\]; got shape \[2, 3, 5, 5\]"):
            metric(a, a)


def test_center_of_mass_refuses_negative_mass() -> None:
    a = random_maps(2, 5, 5) - 0.5
    with pytest.raises(ValueError, match=r"must not have negative values"):
        center_of_mass(a)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, r"window must be odd and from 1 to 5"),
        ({"window": 7}, r"window must be odd and from 1 to 5"),
        ({"window": -1}, r"window must be odd and from 1 to 5"),
        ({"window": 3, "sigma": 0.0}, r"sigma must be positive"),
        ({"window": 3, "sigma": math.nan}, r"sigma must be positive"),
        ({"window": 3, "data_range": 0.0}, r"data_range must be positive"),
    ],
)
def test_ssim_options_out_of_range(options: dict[str, float], message: str) -> None:
    a = random_maps(2, 5, 6)
    with pytest.raises(ValueError, match=message):
        ssim(a, a, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- a network's maps


def soft_lenet(**options: int) -> nn.Module:
    return models.build("lenet", activation="softplus", beta=3, seed=3, **options)  # type: ignore[arg-type]


def digit_images(n: int, seed: int = 0) -> Tensor:
    """Random 8 x 8 images in float64, a fifth of their pixels black or white."""
    return (random_maps(n, 1, 8, 8, seed=seed) * 1.25 - 0.125).clamp(0, 1)


def digit_net(seed: int = 0) -> nn.Module:
    return models.build("digits-cnn", activation="softplus", beta=5, seed=seed).double()


def assert_rows_agree(a: object, b: object, **tolerance: float) -> None:
    for x, y in zip(astuple(a), astuple(b), strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(x, y, **tolerance)


def test_similarity_is_the_three_measures_of_the_paper() -> None:
    a, b = random_maps(3, 9, 9, seed=1), random_maps(3, 9, 9, seed=2)
    found = three_measures(a, b)
    assert torch.equal(found.cosine, cosine(a, b))
    assert torch.equal(found.pearson, pearson(a, b))
    assert torch.equal(found.ssim, ssim(a, b, window=7, sigma=1.5, data_range=1.0))


@pytest.mark.parametrize("max_batch", [1, 3, 4, 9, 64])
def test_random_perturbation_similarity_equals_a_loop_over_single_draws(max_batch: int) -> None:
    model, x, labels, epsilon, draws, seed = digit_net(), digit_images(3), torch.tensor([1, 7, 3]), 0.1, 4, 5
    found = random_perturbation_similarity(
        model, x, labels, epsilon=epsilon, draws=draws, seed=seed, max_batch=max_batch
    )
    for i in range(3):
        image, y = x[i : i + 1], labels[i : i + 1]
        clean = heatmap(gradient(model, image, y), "max")
        generator = torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes(), seed))
        values = []
        for _ in range(draws):
            noise = torch.rand(image.shape, generator=generator, dtype=image.dtype) * 2 * epsilon - epsilon
            moved = heatmap(gradient(model, (image + noise).clamp(0, 1), y), "max")
            values.append(torch.cat([cosine(clean, moved), pearson(clean, moved), ssim(clean, moved)]))
        expected = torch.stack(values).mean(0)
        row = torch.stack([found.cosine[i], found.pearson[i], found.ssim[i]])
        # maps differ by sums of 1e2 products in another order, which SSIM divides by 9e-4
        torch.testing.assert_close(row, expected, rtol=0, atol=1e2 * EPS64 / 9e-4)
        assert (row < 0.9999).all()


def test_random_perturbations_are_what_they_should_be() -> None:
    """Uniform within epsilon, clipped to [0, 1], different for each draw; the clean image is explained once."""
    x = torch.full((5, 3, 32, 32), 0.5)
    x[1], x[2, :, :16] = 1.0, 0.0
    x[3] += 0.01
    x[4] += 0.02
    passes: list[Tensor] = []

    def probe(model: nn.Module, images: Tensor, target: Tensor | int, *, create_graph: bool = False) -> Tensor:
        passes.append(images)
        return images

    epsilon, draws = 0.2, 6
    state = torch.random.get_rng_state()
    random_perturbation_similarity(soft_lenet(), x, 0, epsilon=epsilon, attribution=probe, draws=draws, max_batch=12)
    assert torch.equal(torch.random.get_rng_state(), state)
    # 5 clean images at once, then the 6 draws of two images at a time.
    assert [len(p) for p in passes] == [5, 12, 12, 6]
    assert torch.equal(passes[0], x)
    noisy = torch.cat(passes[1:]).view(5, draws, 3, 32, 32)
    assert noisy.min() == 0
    assert noisy.max() == 1
    noise = (noisy - x[:, None])[[0, 3, 4]]  # nothing clipped
    assert noise.abs().max() <= epsilon + EPS32
    assert noise.abs().max() > 0.99 * epsilon
    # n uniform draws have mean 0 +- epsilon/sqrt(3 n) and mean square epsilon^2/3 +- epsilon^2 sqrt(4/(45 n)); 5 sigma
    n = noise.numel()
    assert abs(noise.mean().item()) < 5 * epsilon / math.sqrt(3 * n)
    assert abs(noise.square().mean().item() - epsilon**2 / 3) < 5 * epsilon**2 * math.sqrt(4 / (45 * n))
    # different images and different draws are independent: correlations of 3072 values are 0 +- 1/sqrt(3072)
    rows = noise.reshape(3 * draws, -1)
    others = torch.corrcoef(rows) - torch.eye(3 * draws)
    assert others.abs().max() < 6 / math.sqrt(3072)


def test_random_perturbation_similarity_of_a_linear_model_is_perfect() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double().eval()
    for perfect in astuple(random_perturbation_similarity(linear, digit_images(4), 2, epsilon=0.3)):
        assert perfect.tolist() == [1.0] * 4


def test_random_perturbation_similarity_falls_with_epsilon_and_knows_its_seed() -> None:
    model, x = soft_lenet(), random_maps(4, 3, 32, 32, dtype=torch.float32)
    run = partial(random_perturbation_similarity, model, x, torch.tensor([1, 2, 3, 4]), draws=3)
    little, much, again, other = run(epsilon=2 / 255), run(epsilon=32 / 255), run(epsilon=32 / 255), None
    other = run(epsilon=32 / 255, seed=1)
    for a, b, c, d in zip(*map(astuple, (little, much, again, other)), strict=True):
        assert (b < a).all()
        assert (a < 1).all()
        assert torch.equal(b, c)
        assert (b != d).all()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_batch_of_images_is_its_single_images() -> None:
    model, x, labels = digit_net(), digit_images(5), torch.tensor([1, 7, 3, 0, 9])
    maps, delta = random_maps(5, 8, 8, seed=1), 0.1 * random_maps(5, 1, 8, 8, seed=2)
    runs: list[Callable[..., Similarity | Curve | Curvature]] = [
        lambda rows, **o: random_perturbation_similarity(model, x[rows], labels[rows], epsilon=0.1, draws=3, **o),
        lambda rows, **o: insertion(model, x[rows], labels[rows], maps[rows], **o),
        lambda rows, **o: deletion(model, x[rows], labels[rows], maps[rows], **o),
        lambda rows, **o: curvature(model, x[rows], labels[rows], delta[rows], **o),
    ]
    for run in runs:
        whole = run(slice(0, 5))
        # rounding of sums of 1e2 terms, which SSIM divides by 9e-4
        tolerance = {"rtol": 1e2 * EPS64 / 9e-4, "atol": 1e2 * EPS64 / 9e-4}
        for max_batch in (1, 2, 7):
            assert_rows_agree(run(slice(0, 5), max_batch=max_batch), whole, **tolerance)
        alone = run(slice(2, 3))
        for name, value in vars(alone).items():
            if name != "fractions":
                torch.testing.assert_close(value, getattr(whole, name)[2:3], **tolerance)


def test_any_attribution_can_be_perturbed() -> None:
    method = partial(integrated_gradients, steps=4)
    found = random_perturbation_similarity(digit_net(), digit_images(2), 1, epsilon=0.1, attribution=method, draws=2)
    assert (found.cosine < 1).all()
    assert (found.cosine > 0.5).all()


# ---------------------------------------------------------------- insertion and deletion


def four_pixels(*weights: float) -> nn.Module:
    """Two classes on images of 2 x 2 pixels; the first has the logit w . x, the second 0."""
    linear = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([weights, [0.0] * 4]))
    return nn.Sequential(nn.Flatten(), linear).double().eval()


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_insertion_and_deletion_by_hand() -> None:
    model = four_pixels(1.0, 2.0, -4.0, 8.0)
    x = torch.tensor([[[[1.0, 0.5], [0.5, 0.25]]]]).double()  # the pixels bring 1, 1, -2 and 2
    maps = torch.tensor([[[2.0, 9.0], [-5.0, 2.0]]])  # in order: 1, then the tie of 0 and 3, then 2
    kept = insertion(model, x, 0, maps, fractions=4, fill=0.0)
    gone = deletion(model, x, 0, maps, fractions=4, fill=0.0)
    expected_kept = [sigmoid(z) for z in (1, 1 + 1, 1 + 1 + 2, 1 + 1 + 2 - 2)]
    expected_gone = [sigmoid(z) for z in (1 + 2 - 2, 2 - 2, -2, 0)]
    for found, expected in ((kept, expected_kept), (gone, expected_gone)):
        assert found.fractions.tolist() == [0.25, 0.5, 0.75, 1.0]
        assert found.probability[0].tolist() == pytest.approx(expected, rel=8 * EPS64)
        assert found.area.tolist() == pytest.approx([sum(expected) / 4], rel=8 * EPS64)
    # The other class has what is left.
    other = insertion(model, x, 1, maps, fractions=4, fill=0.0)
    torch.testing.assert_close(other.probability, 1 - kept.probability, rtol=0, atol=4 * EPS64)


def test_what_pixels_are_replaced_by() -> None:
    model = four_pixels(1.0, 2.0, -4.0, 8.0)
    x = torch.tensor([[[[1.0, 0.5], [0.5, 0.0]]], [[[0.0, 0.0], [0.0, 1.0]]]]).double()
    maps = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]).expand(2, 2, 2)  # pixel 0 first
    one = partial(insertion, model, x, 0, maps, fractions=4)
    # Pixel 0 is kept, the rest has weights that sum to 6; the images' own means are 1/2 and 1/4.
    for fill, expected in (
        (None, [1 + 6 / 2, 0 + 6 / 4]),
        (0.25, [1 + 6 / 4, 0 + 6 / 4]),
        (torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), [1 + 0, 0 + 6]),
        (torch.tensor([[0.0, 0.5], [1.0, 0.0]]), [1 + 1 - 4, 0 + 1 - 4]),
    ):
        found = one(fill=fill).probability[:, 0].tolist()
        assert found == pytest.approx([sigmoid(z) for z in expected], rel=8 * EPS64)


@pytest.mark.parametrize(
    ("fractions", "pixels"), [(1, [12]), (5, [2, 5, 7, 10, 12]), (8, [2, 3, 5, 6, 8, 9, 11, 12]), (12, [*range(1, 13)])]
)
def test_fractions_are_whole_numbers_of_pixels(fractions: int, pixels: list[int]) -> None:
    """Of 12 pixels in 5 steps 2.4, 4.8, 7.2, 9.6 and 12; in 8 steps 1.5, 3, 4.5 and so on, where halves go up."""
    passes = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            passes.append(x)
            return x.flatten(1)[:, :2]

    model, x, maps = Recorder().eval(), torch.ones(1, 3, 3, 4), random_maps(1, 3, 4)
    kept = insertion(model, x, 0, maps, fractions=fractions, fill=0.0, max_batch=7)
    assert [len(p) for p in passes] == ([7] * (fractions // 7) + [fractions % 7])
    images = torch.cat(passes)
    assert images.sum((1, 2, 3)).tolist() == [3.0 * k for k in pixels]
    assert torch.equal(images, images[:, :1].expand_as(images))  # all channels of a pixel go together
    passes.clear()
    gone = deletion(model, x, 0, maps, fractions=fractions, fill=0.0)
    assert torch.equal(torch.cat(passes), 1 - images)
    torch.testing.assert_close(kept.fractions, torch.tensor(pixels) / 12)
    assert torch.equal(kept.fractions, gone.fractions)


def test_insertion_ends_at_the_image_and_deletion_keeps_what_a_reversed_insertion_does() -> None:
    model, x, labels = digit_net(), digit_images(4), torch.tensor([1, 7, 3, 0])
    maps = random_maps(4, 8, 8, seed=3)
    with torch.no_grad():
        clean = model(x).softmax(1).gather(1, labels[:, None])[:, 0]
        plain = model(x.mean((2, 3), keepdim=True).expand_as(x)).softmax(1).gather(1, labels[:, None])[:, 0]
    kept = insertion(model, x, labels, maps, fractions=16)
    gone = deletion(model, x, labels, maps, fractions=16)
    torch.testing.assert_close(kept.probability[:, -1], clean, rtol=1e2 * EPS64, atol=0)
    torch.testing.assert_close(gone.probability[:, -1], plain, rtol=1e2 * EPS64, atol=0)
    # Without the i/16 on top are left the 1 - i/16 on top of the negative map (no ties here).
    backwards = insertion(model, x, labels, -maps, fractions=16).probability[:, :-1].flip(1)
    torch.testing.assert_close(gone.probability[:, :-1], backwards, rtol=1e2 * EPS64, atol=0)
    torch.testing.assert_close(kept.area, kept.probability.mean(1), rtol=1e2 * EPS64, atol=0)


def test_a_better_map_has_the_larger_insertion_area() -> None:
    model = four_pixels(1.0, 2.0, -4.0, 8.0)
    x = torch.tensor([[[[1.0, 0.5], [0.5, 0.25]]]]).double()
    best = torch.tensor([[[1.0, 1.0], [-2.0, 2.0]]])
    curve = {s: (insertion(model, x, 0, s * best, fill=0, fractions=4).area.item()) for s in (1, -1)}
    assert curve[1] > curve[-1]
    curve = {s: (deletion(model, x, 0, s * best, fill=0, fractions=4).area.item()) for s in (1, -1)}
    assert curve[1] < curve[-1]


# ---------------------------------------------------------------- curvature


class Quadratic(nn.Module):
    """Logit i is x' A_i x / 2 + b_i . x, with gradient A_i x + b_i and Hessian A_i."""

    def __init__(self, matrices: Tensor, vectors: Tensor) -> None:
        super().__init__()
        self.matrices, self.vectors = nn.Parameter(matrices), nn.Parameter(vectors)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return torch.einsum("np,cpq,nq->nc", flat, self.matrices, flat) / 2 + flat @ self.vectors.T


def quadratic(seed: int = 0) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    matrices = rng.normal(size=(3, 12, 12))
    matrices = matrices + matrices.transpose(0, 2, 1)
    vectors = rng.normal(size=(3, 12))
    return Quadratic(torch.from_numpy(matrices), torch.from_numpy(vectors)).eval(), matrices, vectors


@pytest.mark.parametrize("kind", ["random", "ones", "identity"])
def test_an_attack_beats_chance_by_at_most_the_root_of_the_dimension(kind: str) -> None:
    """All 2^8 sign vectors at once: the worst of them against their root mean square, which is eps ||H||_F."""
    d, eps = 8, 0.03
    raw = np.random.default_rng(3).normal(size=(d, d))
    h = {"random": raw + raw.T, "ones": np.ones((d, d)), "identity": np.eye(d)}[kind]
    model = Quadratic(torch.from_numpy(h)[None], torch.zeros(1, d, dtype=torch.float64)).eval()
    signs = torch.tensor(list(itertools.product((-eps, eps), repeat=d)), dtype=torch.float64).reshape(-1, 1, 2, 4)
    x = torch.full_like(signs, 0.5)
    turned = curvature(model, x, 0, signs).hessian_product.numpy()
    chance = np.sqrt(np.mean(turned**2))
    assert chance == pytest.approx(eps * np.linalg.norm(h), rel=1e-12)
    factor = turned.max() / chance
    # The largest of a convex function on the cube is at a corner: no other change does more.
    expected = {"ones": math.sqrt(d), "identity": 1.0}
    assert factor <= math.sqrt(d) * (1 + 1e-12)
    if kind in expected:
        assert factor == pytest.approx(expected[kind], rel=1e-12)


def test_curvature_of_a_quadratic() -> None:
    model, matrices, vectors = quadratic()
    x, delta = random_maps(5, 1, 3, 4, seed=1), random_maps(5, 1, 3, 4, seed=2) - 0.5
    labels = torch.tensor([0, 2, 1, 2, 0])
    found = curvature(model, x, labels, delta)
    for i, y in enumerate(labels.tolist()):
        point, step = x[i].flatten().numpy(), delta[i].flatten().numpy()
        g, moved = matrices[y] @ point + vectors[y], matrices[y] @ (point + step) + vectors[y]
        norm, norm_moved, change = (np.linalg.norm(v) for v in (g, moved, matrices[y] @ step))
        assert found.hessian_product[i].item() == pytest.approx(change, rel=1e-13)
        assert found.l2_distance[i].item() == pytest.approx(change, rel=1e-13)  # H is the same everywhere
        assert found.gradient_norm[i].item() == pytest.approx(norm, rel=1e-13)
        assert found.ratio[i].item() == pytest.approx(change / norm, rel=1e-13)
        expected = (1 - g @ moved / (norm * norm_moved)) / 2
        assert found.cosine_distance[i].item() == pytest.approx(expected, rel=1e-12)
        assert found.cosine_bound[i].item() == pytest.approx(change**2 / (4 * norm * norm_moved), rel=1e-13)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_and_angles_of_gradients_belong_together(dtype: torch.dtype) -> None:
    """||g - g'||^2 = (||g|| - ||g'||)^2 + 2 ||g|| ||g'|| (1 - cos): to float64 precision whatever the network's is."""
    x = random_maps(6, 3, 32, 32, seed=1).to(dtype)
    for scale in (1e-4, 1e-2, 1.0):
        delta = (scale * (random_maps(6, 3, 32, 32, seed=2) - 0.5)).to(dtype)
        model = soft_lenet().to(dtype)
        found = curvature(model, x, 4, delta)
        after = gradient(model, x + delta, 4).double().flatten(1).norm(dim=1)
        norm, cos_gap = found.gradient_norm, 2 * found.cosine_distance
        whole = (norm - after) ** 2 + 2 * norm * after * cos_gap
        # Gradients that differ by a part of 1e-2 scale and more lose as much in differences of norms and unit vectors.
        torch.testing.assert_close(found.l2_distance**2, whole, rtol=1e3 * EPS64 / (1e-2 * scale), atol=0)
        assert (found.cosine_bound >= found.cosine_distance * (1 - 1e-12)).all()


def random_network(kind: int, seed: int) -> nn.Module:
    if kind == 0:
        return models.build("digits-cnn", activation="softplus", beta=10, seed=seed)
    if kind == 1:
        return models.build("digits-mlp", activation="softplus", beta=30, seed=seed)
    return models.build("digits-mlp", seed=seed)  # piecewise linear: gradients jump


def test_the_bound_on_the_angle_is_never_violated() -> None:
    """1,440 points of 12 networks; rounding may show where the norms, and so the two sides, are equal: 1e-12."""
    points = 0
    for kind in range(3):
        for seed in range(4):
            model = random_network(kind, seed)
            x = digit_images(30, seed=seed).float()
            for scale in (1e-5, 1e-3, 0.1, 1.0):
                delta = scale * (random_maps(30, 1, 8, 8, seed=seed + 10, dtype=torch.float32) - 0.5)
                found = curvature(model, x, 3, delta)
                assert (found.cosine_distance <= found.cosine_bound * (1 + 1e-12)).all()
                assert found.cosine_distance.max() <= 1
                points += len(x)
                if kind == 2:
                    assert not found.hessian_product.any()
                elif scale >= 1e-3:
                    assert (found.hessian_product > 0).all()
                    assert (found.cosine_distance > 0).all()
    assert points == 1440


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**-4, 2.0**20])
def test_scaling_the_last_layer_moves_numerator_and_denominator_together(factor: float) -> None:
    """Powers of two change no digit: the ratio, the angle and its bound are equal bit by bit, the rest is scaled."""
    model = soft_lenet()
    x, delta = random_maps(3, 3, 32, 32, dtype=torch.float32), 0.05 * random_maps(3, 3, 32, 32, seed=1).float()
    before = curvature(model, x, 1, delta)
    with torch.no_grad():
        for p in model.network.fc2.parameters():  # type: ignore[union-attr]
            p.mul_(factor)
    after = curvature(model, x, 1, delta)
    for name in ("hessian_product", "gradient_norm", "l2_distance"):
        assert torch.equal(getattr(after, name), factor * getattr(before, name))
    for name in ("ratio", "cosine_distance", "cosine_bound"):
        assert torch.equal(getattr(after, name), getattr(before, name))


def test_the_hessian_product_is_the_limit_of_differences() -> None:
    model, x = digit_net(), 0.1 + 0.8 * random_maps(3, 1, 8, 8)
    direction = random_maps(3, 1, 8, 8, seed=1) - 0.5
    h = 1e-5
    numeric = (gradient(model, x + h * direction, 2) - gradient(model, x - h * direction, 2)).flatten(1).norm(dim=1)
    # h^2 of the fourth derivative, and rounding of 1e-16/h
    torch.testing.assert_close(curvature(model, x, 2, direction).hessian_product, numeric / (2 * h), rtol=1e-6, atol=0)
    # For a small step it is the distance of the gradients, up to a part h.
    small = curvature(model, x, 2, h * direction)
    torch.testing.assert_close(small.hessian_product, small.l2_distance, rtol=1e-3, atol=0)


@pytest.mark.parametrize("t", [1.0, 1e-4, 1e-8, 1e-100])
def test_nearly_parallel_gradients_keep_their_digits(t: float) -> None:
    """g = e_1 and g' = e_1 + t e_2: (1 - cos)/2 = (1 - 1/sqrt(1 + t^2))/2, which is t^2/4 where 1 - cos rounds to 0."""
    matrix = torch.zeros(1, 2, 2).double()
    matrix[0, 1, 1] = t
    model = Quadratic(matrix, torch.tensor([[1.0, 0.0]]).double()).eval()
    found = curvature(model, torch.zeros(1, 1, 1, 2).double(), 0, torch.tensor([[[[0.0, 1.0]]]]))
    expected = (1 - 1 / math.sqrt(1 + t * t)) / 2 if t > 1e-3 else t * t / 4 * (1 - 0.75 * t * t)
    assert found.cosine_distance.item() == pytest.approx(expected, rel=1e-7 if t > 1e-5 else 1e-14)
    assert found.ratio.item() == pytest.approx(t, rel=1e-14)


def test_curvature_where_gradients_vanish() -> None:
    """f = x.x / 2 at 0: g = 0 and g' = delta. For delta = 0 both are zero; a linear model's gradient never turns."""
    model = Quadratic(torch.eye(4).double()[None], torch.zeros(1, 4).double()).eval()
    delta = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0] * 4]).double().view(2, 1, 2, 2)
    found = curvature(model, torch.zeros(2, 1, 2, 2).double(), 0, delta)
    assert found.hessian_product.tolist() == found.l2_distance.tolist() == [5.0, 0.0]
    assert found.gradient_norm.tolist() == [0.0, 0.0]
    assert found.ratio.tolist() == found.cosine_bound.tolist() == [math.inf, 0.0]
    assert found.cosine_distance.tolist() == [0.5, 0.0]
    linear = curvature(four_pixels(1.0, 2.0, 2.0, 0.0), torch.rand(2, 1, 2, 2).double(), 0, delta)
    assert linear.gradient_norm.tolist() == [3.0, 3.0]
    for name in ("hessian_product", "ratio", "l2_distance", "cosine_distance", "cosine_bound"):
        assert getattr(linear, name).tolist() == [0.0, 0.0]


# ---------------------------------------------------------------- errors of the functions of a network


class Untouchable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("work started")


def test_bad_arguments_are_refused_before_work_starts() -> None:
    x = random_maps(3, 1, 8, 8)
    maps = x[:, 0]
    nan = x.clone()
    nan[0, 0, 0, 0] = math.nan
    perturb = partial(random_perturbation_similarity, epsilon=0.1)
    insert, delete, curve = (partial(f, heatmaps=maps) for f in (insertion, deletion, insertion))
    turn = partial(curvature, delta=x)
    cases: list[tuple[Callable[..., object], dict[str, object], str]] = [
        (perturb, {"x": x[:, :, :6]}, "6 x 8 pixels"),
        (perturb, {"epsilon": 0.0}, "epsilon is 0.0"),
        (perturb, {"epsilon": 8.0}, "8 / 255"),
        (perturb, {"epsilon": math.nan}, "epsilon is nan"),
        (perturb, {"draws": 0}, "draws is 0"),
        (insert, {"heatmaps": maps[:2]}, "[2, 8, 8]"),
        (delete, {"heatmaps": x}, "[3, 8, 8]"),
        (insert, {"heatmaps": nan[:, 0]}, "heatmaps has a NaN or infinite value in sample 0"),
        (insert, {"fractions": 0}, "fractions is 0"),
        (delete, {"fractions": 65}, "from 1 to 64"),
        (insert, {"fill": math.inf}, "fill has NaN or infinite"),
        (delete, {"fill": torch.zeros(5)}, "fill has shape [5]"),
        (turn, {"delta": x[:2]}, "delta has shape [2, 1, 8, 8]"),
        (turn, {"delta": nan}, "delta has NaN"),
    ]
    for run in (perturb, curve, turn):
        cases += [
            (run, {"x": x[0]}, "[N, C, H, W]"),
            (run, {"x": x * 255}, "[0, 1]"),
            (run, {"x": nan}, "finite"),
            (run, {"target": torch.tensor([1, 2])}, "int64 [3]"),
            (run, {"max_batch": 0}, "max_batch is 0"),
            (run, {"model": models.build("digits-cnn").train()}, "model.eval()"),
        ]
    for run, options, message in cases:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            run(**{"model": Untouchable().eval(), "x": x, "target": 0, **options})
        assert message in str(caught.value), (options, message)
        assert "\n" not in str(caught.value)


def test_a_class_that_the_model_does_not_have_is_named() -> None:
    x = digit_images(2)
    model = digit_net()
    for run in (
        partial(random_perturbation_similarity, epsilon=0.1),
        partial(insertion, heatmaps=x[:, 0]),
        partial(curvature, delta=x),
    ):
        with pytest.raises(ValueError, match="target has class 10; the model has classes 0 to 9"):
            run(model, x, torch.tensor([1, 10]))  # type: ignore[operator]


# --------------------------------------------------------------------------------------------------------------------
# Near one another, and attacks that fail


@pytest.mark.parametrize("reach", [0, 1, 2, 5])
def test_the_nearby_intersection_by_hand(reach: int) -> None:
    """Against a loop over pairs of pixels."""
    torch.manual_seed(0)
    a, b = torch.rand(3, 7, 9, dtype=torch.float64), torch.rand(3, 7, 9, dtype=torch.float64)
    k = 6
    found = nearby_intersection(a, b, k, reach=reach)
    for i in range(3):
        tops = [[divmod(p, 9) for p in m[i].flatten().topk(k).indices.tolist()] for m in (a, b)]
        near = [any(max(abs(r - s), abs(c - d)) <= reach for s, d in tops[1]) for r, c in tops[0]]
        assert float(found[i]) == sum(near) / k


def test_the_nearby_intersection_begins_with_the_intersection_and_does_not_fall() -> None:
    torch.manual_seed(1)
    a, b = torch.rand(5, 8, 8), torch.rand(5, 8, 8)
    assert torch.equal(nearby_intersection(a, b, 9, reach=0), topk_intersection(a, b, 9))
    steps = [nearby_intersection(a, b, 9, reach=reach) for reach in range(8)]
    assert all(bool((more >= less).all()) for less, more in itertools.pairwise(steps))
    assert torch.equal(steps[7], torch.ones(5)), "all of an 8 x 8 map is within 7 pixels"
    assert torch.equal(nearby_intersection(a, a, 9), torch.ones(5))


def test_a_map_that_moved_by_a_pixel_is_nearby_and_not_the_same() -> None:
    a = torch.zeros(1, 9, 9)
    a[0, ::3, ::3] = 1  # nine pixels, none beside another
    b = a.roll(1, 2)
    assert float(topk_intersection(a, b, 9)) == 0
    assert float(nearby_intersection(a, b, 9)) == 1
    # Recall and precision: one pixel of many is near the only other one.
    c = torch.zeros(1, 9, 9)
    c[0, 4, :2] = torch.tensor([2.0, 1.0])
    d = torch.zeros(1, 9, 9)
    d[0, 4, 0], d[0, 0, 8] = 2, 1
    assert float(nearby_intersection(c, d, 2)) == 1
    assert float(nearby_intersection(d, c, 2)) == 0.5


def test_pixels_at_random_are_nearby_as_often_as_chance_has_it() -> None:
    """Over all maps with one top pixel, the mean is the share of the map that is near: exactly 0 beyond chance."""
    single = torch.eye(36, dtype=torch.float64).view(36, 6, 6)
    b = torch.rand(1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(36, 6, 6)
    # k is 1 for each map: its largest pixel is each pixel once.
    found = nearby_intersection(single, b, 1, reach=1)
    beyond = nearby_intersection(single, b, 1, reach=1, beyond_chance=True)
    assert 0 < float(found.mean()) < 1
    assert float(beyond.mean()) == pytest.approx(0, abs=1e-12)
    assert float(beyond.max()) == 1
    assert torch.equal(
        nearby_intersection(single, b, 1, reach=6, beyond_chance=True), torch.ones(36, dtype=torch.float64)
    )


def test_what_the_nearby_intersection_refuses() -> None:
    a = torch.rand(1, 4, 4)
    for maps, k, reach, said in (
        (a, 17, 1, "k must be from 1 to 16"),
        (a, 0, 1, "k must be from 1 to 16"),
        (a, 2, -1, "reach must be a whole number of pixels >= 0; got -1"),
        (a, 2, 0.5, "got 0.5"),
        (a.flatten(1), 2, 1, r"maps must be \[N, H, W\]"),
    ):
        with pytest.raises(ValueError, match=said):
            nearby_intersection(maps, maps, k, reach=reach)


def test_attrition_by_hand() -> None:
    found = attrition(torch.tensor([0.2, 0.4, 1.0, 1.0]), torch.tensor([True, True, False, False]))
    assert (found.kept, found.floor) == (0.5, pytest.approx(0.15))
    assert (found.unchanged, found.left_out) == (pytest.approx(0.65), pytest.approx(0.3))
    all_kept = attrition(torch.tensor([0.2, 0.4]), torch.tensor([True, True]))
    assert all_kept.unchanged == all_kept.left_out == all_kept.floor
    assert math.isnan(attrition(torch.ones(2), torch.zeros(2, dtype=torch.bool)).left_out)
    with pytest.raises(ValueError, match="one number each an image"):
        attrition(torch.ones(2), torch.zeros(3, dtype=torch.bool))
