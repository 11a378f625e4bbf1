"""Each metric against hand-computed values, an independent implementation and the properties it promises."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
import torchmetrics.functional
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor

from robattr.metrics import center_of_mass, center_shift, cosine, pearson, spearman, ssim, topk_intersection

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
