"""Convolutions, Softplus and max-pooling of the package's own: PyTorch's values and derivatives, to any order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from arithmetic import gamma
from torch import Tensor, nn
from torch.nn import functional as F

from robattr._second_order import SecondOrder, _laid

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "same": {"padding": 1},
    "stride": {"stride": 2, "padding": 1},
    "uneven": {"stride": (2, 1), "padding": (0, 2)},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "stride": 2},
    "pixel": {"stride": 2},
}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Sums of at most a few hundred float64 products, in another order, through a few layers: 1e3 * 1e-16 and room.
CLOSE: dict[str, float] = {"rtol": 1e-11, "atol": 1e-11}


def kernel(geometry: str) -> tuple[int, int]:
    return (1, 1) if geometry == "pixel" else (3, 3)


def _layout_name(layout: torch.memory_format) -> str:
    return str(layout).removeprefix("torch.")


def normal(*shape: int, seed: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=layout) if len(shape) == 4 else values


def derivatives(function: Callable[..., Tensor], inputs: Sequence[Tensor], order: int, ours: bool) -> list[Tensor]:
    """The value and, up to an order, the gradients of one random combination of the gradients one order below."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    with SecondOrder() if ours else nullcontext():
        value = function(*leaves)
        found, scalar = [value.detach()], value.square().sum()
        for k in range(order):
            grads = torch.autograd.grad(scalar, leaves, create_graph=True, materialize_grads=True)
            found += [g.detach() for g in grads]
            scalar = torch.stack([(g * normal(*g.shape, seed=100 * k + i)).sum() for i, g in enumerate(grads)]).sum()
    return found


def assert_equal_derivatives(function: Callable[..., Tensor], inputs: Sequence[Tensor], order: int = 3) -> None:
    ours, plain = (derivatives(function, inputs, order, own) for own in (True, False))
    assert len(ours) == 1 + order * len(inputs)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    # The last order says something: not all of it is zero.
    assert max(float(b.abs().max()) for b in plain[-len(inputs) :]) > 1e-3


# --- one function ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_layout", LAYOUTS, ids=_layout_name)
@pytest.mark.parametrize("weight_layout", LAYOUTS, ids=_layout_name)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolution_to_the_third_derivative(
    geometry: str, bias: bool, weight_layout: torch.memory_format, image_layout: torch.memory_format
) -> None:
    options = GEOMETRIES[geometry]
    inputs = [
        normal(2, 4, 6, 5, seed=1, layout=image_layout),
        normal(4, 4 // options.get("groups", 1), *kernel(geometry), seed=2, layout=weight_layout) / 3,
        *([normal(4, seed=3)] if bias else []),
    ]
    # The cube of the outcome: a convolution alone has no third derivative.
    assert_equal_derivatives(lambda *given: F.conv2d(*given, **options).pow(3), inputs)


@pytest.mark.parametrize("image_layout", LAYOUTS, ids=_layout_name)
@pytest.mark.parametrize("weight_layout", LAYOUTS, ids=_layout_name)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_an_image_is_laid_out_anew_only_for_a_weight_that_has_an_order(
    geometry: str, weight_layout: torch.memory_format, image_layout: torch.memory_format
) -> None:
    """Kernels of one pixel or one channel are in both orders, and all that a mobile network has but the first."""
    x = normal(2, 4, 6, 5, seed=1, layout=image_layout)
    weight = normal(4, 4 // GEOMETRIES[geometry].get("groups", 1), *kernel(geometry), seed=2, layout=weight_layout)
    laid = _laid(x, weight)
    either = geometry in ("depthwise", "pixel")
    assert laid.is_contiguous(memory_format=image_layout if either else weight_layout)
    assert (laid.data_ptr() == x.data_ptr()) == (either or image_layout == weight_layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=_layout_name)
@pytest.mark.parametrize("geometry", ["same", "stride", "dilation", "groups"])
def test_convolution_against_differences(geometry: str, layout: torch.memory_format) -> None:
    options = GEOMETRIES[geometry]
    x = normal(1, 2, 4, 4, seed=1).requires_grad_()
    w = normal(2, 2 // options.get("groups", 1), 3, 3, seed=2, layout=layout).requires_grad_()
    b = normal(2, seed=3).requires_grad_()

    def ours(*given: Tensor) -> Tensor:
        with SecondOrder():
            return F.conv2d(*given, **options)

    assert torch.autograd.gradcheck(ours, (x, w, b))
    assert torch.autograd.gradgradcheck(ours, (x, w, b))


@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("threshold", [None, 2.0])
def test_softplus_to_the_third_derivative(beta: float, threshold: float | None) -> None:
    softplus = (
        partial(F.softplus, beta=beta) if threshold is None else partial(F.softplus, beta=beta, threshold=threshold)
    )
    assert_equal_derivatives(softplus, [normal(3, 50, seed=4)])
    with SecondOrder():
        x = normal(6, seed=5).requires_grad_()
        assert torch.autograd.gradgradcheck(softplus, (x,))


def test_softplus_beyond_its_threshold() -> None:
    """There PyTorch takes x itself, with slope 1; the sigmoid misses that by exp(-20) = 2.1e-9, and nothing is NaN."""
    x = torch.tensor([-1e4, -400.0, 30.0, 400.0, 1e4], dtype=torch.float64).requires_grad_()
    with SecondOrder():
        y = F.softplus(x, 3.0)
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.sum(), x)
    assert torch.equal(y, F.softplus(x, 3.0))
    torch.testing.assert_close(g, torch.tensor([0.0, 0, 1, 1, 1], dtype=torch.float64), rtol=0, atol=2.1e-9)
    torch.testing.assert_close(h, torch.zeros_like(h), rtol=0, atol=3 * 2.1e-9)


POOLS: dict[str, dict[str, Any]] = {
    "halves": {"kernel_size": 2},
    "overlaps": {"kernel_size": 3, "stride": 1, "padding": 1},
    "uneven": {"kernel_size": (2, 3), "stride": (1, 2)},
    "dilation": {"kernel_size": 2, "stride": 1, "dilation": 2},
    "ceil": {"kernel_size": 2, "ceil_mode": True},
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=_layout_name)
@pytest.mark.parametrize("pool", POOLS)
def test_max_pooling_to_the_third_derivative(pool: str, layout: torch.memory_format) -> None:
    x = normal(2, 3, 5, 6, seed=6, layout=layout)
    assert_equal_derivatives(lambda given: F.max_pool2d(given, **POOLS[pool]).pow(3), [x])
    # The gradient may come in another layout: behind a flattened pooling, for example.
    assert_equal_derivatives(lambda given: F.max_pool2d(given, **POOLS[pool]).flatten(1).pow(3), [x])
    with SecondOrder():
        small = normal(1, 2, 4, 4, seed=7, layout=layout).requires_grad_()
        assert torch.autograd.gradgradcheck(partial(F.max_pool2d, **POOLS[pool]), (small,))


def test_max_pooling_of_equal_values_and_with_indices() -> None:
    flat = torch.ones(1, 2, 4, 4, dtype=torch.float64)
    assert_equal_derivatives(lambda x: F.max_pool2d(x, 2).pow(3), [flat])
    with SecondOrder():
        y, index = F.max_pool2d(normal(1, 2, 4, 4, seed=8).requires_grad_(), 2, return_indices=True)
    assert y.shape == index.shape == (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((4, 6, 5), {}), ((2, 4, 6, 5), {"padding": "same"}), ((2, 4, 6, 5), {"padding": "valid", "stride": 2})],
    ids=["one image", "same", "valid"],
)
def test_what_is_left_to_pytorch(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    inputs = [normal(*shape, seed=1), normal(4, 4, 3, 3, seed=2)]
    assert_equal_derivatives(lambda x, w: F.conv2d(x, w, **options).pow(3), inputs, order=2)


ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.7},
    "causal": {"is_causal": True},
    "forbidden": {"attn_mask": torch.ones(4, 5, dtype=torch.bool).tril(1)},
    "biased": {"attn_mask": normal(4, 5, seed=12)},
}


def _attention_inputs() -> list[Tensor]:
    return [normal(2, 2, length, 3, seed=9 + i) for i, length in enumerate((4, 5, 5))]


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_against_differences(kind: str) -> None:
    inputs = [v.requires_grad_() for v in _attention_inputs()]

    def ours(*given: Tensor) -> Tensor:
        with SecondOrder():
            return F.scaled_dot_product_attention(*given, **ATTENTION[kind])

    assert torch.autograd.gradcheck(ours, inputs)
    assert torch.autograd.gradgradcheck(ours, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_is_that_of_the_fused_kernel(kind: str, dtype: torch.dtype) -> None:
    """A score is a sum of 3 products and a bias; weights, the exponentials of scores over their sum, add up to 1.

    With the error e of a score, of at most c = max |score|, a weight is wrong by a factor of 1 + 2 e and the rounding
    of an exponential, a sum of five and a quotient; the outcome, a mean of values, adds that of a sum of five products.
    """
    options = {key: v.to(dtype) if key == "attn_mask" and kind == "biased" else v for key, v in ATTENTION[kind].items()}
    q, k, v = (each.to(dtype).requires_grad_() for each in _attention_inputs())
    fused = F.scaled_dot_product_attention(q, k, v, **options)
    with SecondOrder():
        ours = F.scaled_dot_product_attention(q, k, v, **options)
    products = (q.abs() @ k.abs().transpose(2, 3)).max() * options.get("scale", 3**-0.5)
    bias = float(options["attn_mask"].abs().max()) if kind == "biased" else 0.0
    score = gamma(3 + 4, dtype) * (float(products.detach()) + bias)
    # Twice, for each of the two is rounded.
    bound = 2 * (2 * score + gamma(4 + 5 + 5, dtype)) * float(v.detach().abs().max())
    assert float((ours - fused).detach().abs().max()) <= bound


def _layers() -> dict[str, nn.Module]:
    """Layers of 6 features; what they call hides the attention, or the activation, inside of it."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return {
            "attention": nn.MultiheadAttention(6, 2, batch_first=True),
            "encoder": nn.TransformerEncoderLayer(6, 2, 8, activation="gelu", batch_first=True),
            "lstm": nn.LSTM(6, 3, batch_first=True),
            "gru": nn.GRU(6, 3, batch_first=True),
        }


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("kind", ["attention", "encoder", "lstm", "gru"])
def test_layers_that_call_another_function_against_differences(kind: str, weights: bool) -> None:
    layer = _layers()[kind].double().eval().requires_grad_(False)
    x = normal(2, 3, 6, seed=14).requires_grad_()

    def ours(z: Tensor) -> Tensor:
        with SecondOrder():
            out = layer(z, z, z, need_weights=weights) if kind == "attention" else layer(z)
            return out if isinstance(out, Tensor) else out[0]

    torch.testing.assert_close(ours(x.detach()), ours(x).detach(), **CLOSE)
    assert torch.autograd.gradcheck(ours, (x,))
    assert torch.autograd.gradgradcheck(ours, (x,))


@pytest.mark.parametrize("zeros", [False, True])
def test_vectors_are_normalized_with_all_derivatives(zeros: bool) -> None:
    """Value, slope and second derivative are PyTorch's; with a vector of zeros, where it has none, it is finite."""
    generator = torch.Generator().manual_seed(0)
    weight, v, w = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (3, 4, 4))
    if zeros:
        v[1] = 0

    def derivatives(mode: bool) -> tuple[Tensor, Tensor, Tensor]:
        x, a = v.clone().requires_grad_(), weight.clone().requires_grad_()
        with SecondOrder() if mode else nullcontext():
            y = F.normalize(x @ a, dim=1)
        (g,) = torch.autograd.grad((y.pow(3) * w).sum(), x, create_graph=True)
        return y.detach(), g.detach(), torch.autograd.grad((g * w).sum(), a)[0]

    found, theirs = derivatives(True), derivatives(False)
    torch.testing.assert_close(found[:2], theirs[:2], **CLOSE)
    if zeros:
        assert not theirs[2].isfinite().all()
        assert found[2].isfinite().all()
    else:
        torch.testing.assert_close(found[2], theirs[2], **CLOSE)


@pytest.mark.parametrize("inplace", [False, True])
def test_hard_sigmoid_against_differences(inplace: bool) -> None:
    x = torch.tensor([-7.0, -3.5, -2.9, -1.0, 0.3, 2.9, 3.1, 40.0], dtype=torch.float64).requires_grad_()

    def ours(z: Tensor) -> Tensor:
        with SecondOrder():
            return F.hardsigmoid(z * 1.0, inplace=inplace).pow(3)

    assert torch.equal(ours(x), F.hardsigmoid(x).pow(3))
    assert torch.autograd.gradcheck(ours, (x,))
    assert torch.autograd.gradgradcheck(ours, (x,))
    with SecondOrder():
        z = x * 1.0
        y = F.hardsigmoid(z, inplace=inplace)
    assert (y is z) is inplace
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(slope, (x.detach().abs() < 3).double() / 6)


# --- networks -------------------------------------------------------------------------------------------------------


def network(layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    """Convolutions of every kind, max-pooling, Softplus, then a linear layer: three logits of images [2, 8, 8]."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Softplus(beta=3),
            nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False),
            nn.Softplus(beta=3),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(24, 3),
        )
    return net.double().to(memory_format=layout)


@pytest.mark.parametrize("image_layout", LAYOUTS, ids=_layout_name)
@pytest.mark.parametrize("weight_layout", LAYOUTS, ids=_layout_name)
def test_network_to_the_third_derivative(weight_layout: torch.memory_format, image_layout: torch.memory_format) -> None:
    net = network(weight_layout)
    names = [name for name, _ in net.named_parameters()]

    def logits(x: Tensor, *weights: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x,))
        return result

    x = normal(2, 2, 8, 8, seed=9, layout=image_layout)
    assert_equal_derivatives(logits, [x, *(p.detach() for p in net.parameters())])


def penalty(net: nn.Module, x: Tensor, mode: SecondOrder | None) -> Tensor:
    """What training differentiates: a function of two orders of derivatives with respect to the image."""
    with mode or nullcontext():
        logits = net(x)
        with mode.inputs_only() if mode else nullcontext():
            (g,) = torch.autograd.grad(logits[:, 1].sum(), x, create_graph=True)
            (hv,) = torch.autograd.grad((g * normal(*x.shape, seed=10)).sum(), x, create_graph=True)
        return logits.logsumexp(1).sum() + g.square().sum() + hv.square().sum()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=_layout_name)
def test_graphs_of_inputs_only_have_all_gradients_outside(layout: torch.memory_format, training: bool) -> None:
    net = network(layout)
    x = normal(2, 2, 8, 8, seed=9).requires_grad_()
    parameters = tuple(net.parameters())
    plain = torch.autograd.grad(penalty(net, x, None), (x, *parameters))
    ours = torch.autograd.grad(penalty(net, x, SecondOrder(training)), (x, *parameters), allow_unused=True)
    for a, b in zip(ours[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
        assert b.abs().max() > 1e-3
    if training:
        assert ours[0] is None
    else:
        torch.testing.assert_close(ours[0], plain[0], **CLOSE)


def convolution() -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return nn.Conv2d(2, 3, 3, padding=1).double()


def test_inputs_only_forms_no_gradient_of_weights() -> None:
    conv = convolution()
    x = normal(2, 2, 5, 5, seed=1).requires_grad_()
    with SecondOrder() as mode:
        y = conv(x).square().sum()
        with mode.inputs_only():
            y.backward(retain_graph=True)
        assert conv.weight.grad is None
        assert conv.bias is not None
        assert conv.bias.grad is None
        inside, x.grad = x.grad, None
        y.backward()
    assert inside is not None
    assert torch.equal(inside, x.grad)
    plain = torch.autograd.grad(conv(x).square().sum(), (conv.weight, conv.bias))
    torch.testing.assert_close((conv.weight.grad, conv.bias.grad), plain, **CLOSE)


def test_inputs_only_ends_with_an_exception() -> None:
    conv = convolution()
    x = normal(1, 2, 5, 5, seed=1).requires_grad_()
    with SecondOrder() as mode:
        with pytest.raises(KeyError), mode.inputs_only():
            raise KeyError
        conv(x).sum().backward()
    assert conv.weight.grad is not None


def test_training_leaves_out_the_gradient_of_the_image_and_no_other() -> None:
    """Of images, shifted and scaled: yes. Behind a parameter, be it one that scales the image: no."""
    conv = convolution()
    factor = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    shift = nn.Parameter(normal(1, 2, 5, 5, seed=3))
    x = normal(2, 2, 5, 5, seed=1).requires_grad_()
    for before, left_out in (
        (lambda z: (z - 0.5) / 0.2, True),
        (lambda z: z, True),
        (lambda z: z * factor, False),
        (lambda z: (z / 0.2 + shift).flip(3), False),
        (lambda z: F.conv2d(z, conv.weight[:2], padding=1), True),
        (lambda z: F.softplus(z), False),
    ):
        results = []
        for mode in (SecondOrder(training=True), nullcontext()):
            with mode:
                y = conv(before(x)).pow(3).sum()
                results.append(torch.autograd.grad(y, (x, conv.weight, factor, shift), allow_unused=True))
        ours, plain = results
        assert (ours[0] is None) == left_out
        for a, b in zip(ours[1:] if left_out else ours, plain[1:] if left_out else plain, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, **CLOSE)


def test_without_gradients_nothing_is_different() -> None:
    net, x = network(), normal(2, 2, 8, 8, seed=9)
    with SecondOrder(), torch.no_grad():
        assert torch.equal(net(x), net(x.clone().requires_grad_()))
    with SecondOrder():
        assert torch.equal(net(x), net(x.clone().requires_grad_()))


@pytest.mark.parametrize("layout", LAYOUTS, ids=_layout_name)
def test_autocast_to_bfloat16(layout: torch.memory_format) -> None:
    """The type of the outcome is autocast's, gradients are those of the float32 parameters, and they are near."""
    net = network(layout).float()
    net[4] = nn.AvgPool2d(2)  # of two almost equal pixels, rounding may let the other one win
    x = normal(2, 2, 8, 8, seed=9).float().requires_grad_()
    parameters = tuple(net.parameters())
    with torch.autocast("cpu", torch.bfloat16), SecondOrder():
        assert net[0](x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), SecondOrder(training=True) as mode:
        logits = net(x)
        with mode.inputs_only():
            (g,) = torch.autograd.grad(logits[:, 1].sum(), x, create_graph=True)
        assert (logits.dtype, g.dtype) == (torch.bfloat16, torch.float32)
        loss = g.square().sum() + logits.float().square().sum()
    ours = torch.autograd.grad(loss, parameters)
    logits = net(x)
    (g,) = torch.autograd.grad(logits[:, 1].sum(), x, create_graph=True)
    plain = torch.autograd.grad(g.square().sum() + logits.square().sum(), parameters)
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == torch.float32
        # Eight bits of mantissa are 2^-8 = 0.4% a rounding; some twenty of them lie on the way.
        assert (a - b).norm() < 0.08 * b.norm()


# --- batch normalization --------------------------------------------------------------------------------------------


def normalized(norm: nn.BatchNorm2d, order: int, ours: bool) -> list[Tensor]:
    """As :func:`derivatives`, in the image and the layer's parameters."""
    x = normal(4, 3, 5, 6, seed=0, layout=torch.channels_last).requires_grad_()
    leaves = [x, *norm.parameters()]
    with SecondOrder() if ours else nullcontext():
        value = norm(x * x.cos())
        found, scalar = [value.detach()], (value.cos() * value).sum()
        for k in range(order):
            grads = torch.autograd.grad(scalar, leaves, create_graph=True, materialize_grads=True)
            found += [g.detach() for g in grads]
            scalar = torch.stack([(g * normal(*g.shape, seed=100 * k + i)).sum() for i, g in enumerate(grads)]).sum()
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalization_to_the_second_derivative(training: bool, affine: bool) -> None:
    """Of PyTorch's there is no third."""
    plain = nn.BatchNorm2d(3, affine=affine).double().train(training)
    with torch.no_grad():
        for values in (*plain.parameters(), plain.running_mean, plain.running_var):
            assert values is not None
            values.add_(normal(3, seed=7).abs())
    ours = copy.deepcopy(plain)
    found, expected = normalized(ours, 2, True), normalized(plain, 2, False)
    assert len(found) == len(expected) == 1 + 2 * (3 if affine else 1)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, **CLOSE)
    assert float(expected[-1].abs().max()) > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_has_a_third_derivative(training: bool) -> None:
    norm = nn.BatchNorm2d(2, track_running_stats=not training).double().train(training)
    direction = normal(3, 2, 2, 2, seed=1)

    def second(x: Tensor, weight: Tensor) -> Tensor:
        with SecondOrder():
            value = torch.func.functional_call(norm, {"weight": weight}, (x,)).exp().sum()
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            (h,) = torch.autograd.grad((g * direction).sum(), x, create_graph=True)
        return h

    weight = torch.tensor([0.5, 1.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(second, (normal(3, 2, 2, 2, seed=0).requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_batch_normalization_in_evaluation_is_no_worse_in_half_precision(kind: torch.dtype) -> None:
    """Of a network in half precision: a large mean is taken off in float32, so one rounding to the type is left."""
    norm = nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.running_mean.fill_(50)  # type: ignore[union-attr]
    norm = norm.to(kind)
    x = (normal(4, 3, 5, 5, seed=0) + 50).to(kind).requires_grad_()
    with SecondOrder():
        found = norm(x)
    exact = (x.double() - 50) / (1 + norm.eps) ** 0.5
    # Eps is not a number of the type; values up to 50 are rounded once to float32, the outcome once to the type.
    bound = torch.finfo(kind).eps * exact.abs() + 4 * 50 * 2.0**-24
    assert bool(((found.double() - exact).abs() <= bound).all())


def test_batch_normalization_leaves_to_pytorch_what_it_does_not_know() -> None:
    x = normal(2, 3, 4, 4, seed=0).float().requires_grad_()
    with SecondOrder():
        with pytest.raises((RuntimeError, ValueError)):
            nn.functional.batch_norm(x, None, None, training=False)
        with pytest.raises((RuntimeError, ValueError)):
            nn.functional.batch_norm(x, torch.zeros(1), torch.ones(1), training=False)
        with pytest.raises((RuntimeError, ValueError)):
            nn.functional.batch_norm(x.double(), None, None, torch.ones(3), training=True)
        norm = nn.BatchNorm2d(3)
        norm(x[:0])
    assert norm.running_mean is not None
    assert norm.running_mean.isfinite().all()


def test_batch_normalization_of_one_value_is_refused() -> None:
    x = normal(1, 3, 1, 1, seed=0).requires_grad_()
    with SecondOrder(), pytest.raises(ValueError, match=r"input is \[1, 3, 1, 1\]; .* several values"):
        nn.BatchNorm2d(3).double()(x)


def test_batch_normalization_in_bfloat16_keeps_its_statistics_in_float32() -> None:
    ours, plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    x = normal(8, 3, 5, 5, seed=0).to(torch.bfloat16).requires_grad_()
    with SecondOrder():
        found = ours(x)
    expected = plain(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    # Sums of 200 products in another order; then one rounding to 8 bits.
    torch.testing.assert_close(ours.running_var, plain.running_var, rtol=200 * 2.0**-24, atol=0)
    torch.testing.assert_close(found.float(), expected.float(), rtol=2.0**-7, atol=1e-6)
