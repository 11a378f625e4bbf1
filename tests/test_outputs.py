"""Models of tables, signals and segmentations, and models that return more than logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robattr import attacks, attributions
from robattr.attributions import (
    METHODS,
    deeplift,
    gradient,
    heatmap,
    input_x_gradient,
    integrated_gradients,
    smoothgrad,
)
from robattr.data import DataError
from robattr.models import Output, softplus_surrogate
from robattr.smoothing import Ball, certify, smooth, smoothed


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).double().eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def table() -> tuple[nn.Module, Tensor]:
    return made(nn.Linear(7, 12), nn.Softplus(3.0), nn.Linear(12, 3)), rand(4, 7)


def signal() -> tuple[nn.Module, Tensor]:
    layers = (nn.Conv1d(2, 4, 3), nn.Softplus(3.0), nn.Conv1d(4, 4, 3, stride=2), nn.Softplus(3.0), nn.Flatten())
    return made(*layers, nn.Linear(12, 3)), rand(4, 2, 9)


def volume() -> tuple[nn.Module, Tensor]:
    return made(nn.Conv3d(1, 3, 2), nn.Softplus(3.0), nn.Flatten(), nn.Linear(24, 3)), rand(4, 1, 3, 3, 3)


KINDS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"table": table, "signal": signal, "volume": volume}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_any_batch_or_says_why_not(method: str, kind: str) -> None:
    model, x = KINDS[kind]()
    target = torch.tensor([0, 2, 1, 2])
    refused = ""
    try:
        a = METHODS[method](model, x, target)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert "\n" not in refused
        anything = ("gradient", "input_x_gradient", "integrated_gradients", "smoothgrad", "deeplift", "lrp", "attn_lrp")
        assert method not in anything
        return
    assert a.shape == x.shape
    assert a.isfinite().all()
    # Grad-CAM is zero for an image of which no place speaks for the class.
    some = (a.flatten(1) != 0).any(1)
    assert some.any() if "cam" in method else some.all()
    one = METHODS[method](model, x[2:3], 1)
    torch.testing.assert_close(one, a[2:3], rtol=1e-9, atol=1e-12)  # float64: sums of some twenty products
    z = x.clone().requires_grad_()
    (turned,) = torch.autograd.grad(METHODS[method](model, z, target, create_graph=True).square().sum(), z)
    assert turned.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_of_any_batch_are_complete(kind: str) -> None:
    model, x = KINDS[kind]()
    change = (model(x) - model(torch.zeros_like(x)))[:, 1]
    # Gauss-Legendre with 50 nodes on a path along which an analytic function hardly bends; DeepLIFT is exact.
    torch.testing.assert_close(integrated_gradients(model, x, 1).flatten(1).sum(1), change, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(deeplift(model, x, 1).flatten(1).sum(1), change, rtol=1e-9, atol=1e-12)
    g = gradient(model, x, 1)
    torch.testing.assert_close(input_x_gradient(model, x, 1), g * x, rtol=0, atol=0)
    torch.testing.assert_close(smoothgrad(model, x, 1, sigma=0.0, samples=3), g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_is_smoothed_and_certified(kind: str) -> None:
    model, x = KINDS[kind]()
    model, x = model.float(), x.float()
    noise = Ball(0.5)
    found = smooth(model, x, 1, noise=noise, samples=16)
    assert found.mean.shape == x.shape
    # With the graph a sample's map is divided by its length in float32; a mean of 16 unit maps of 27 values at most.
    torch.testing.assert_close(
        smoothed(model, x, 1, noise=noise, samples=16, create_graph=True).double(), found.mean, rtol=0, atol=1e-5
    )
    certificate = certify(model, x, 1, noise=noise, epsilon=[0.0, 0.01], samples=400, choose=50)
    assert certificate.expectation.shape == (4, 2)
    assert (certificate.expectation[:, 0] == 1).all()
    assert (certificate.expectation[:, 1] > 0).any()


def test_what_is_for_images_says_so() -> None:
    model, x = table()
    with pytest.raises(ValueError, match=r"a heatmap takes \[N, C, H, W\]"):
        heatmap(gradient(model, x, 1))
    with pytest.raises(DataError, match=r"images must be \[N, C, H, W\]"):
        attacks.iterative_attack(model, x, objective=attacks.TopK(2), epsilon=0.1)
    with pytest.raises(DataError, match=r"images must be \[N, C, H, W\]"):
        attacks.cosine_attack(model, x, epsilon=0.1)
    for wrong in (torch.rand(3), torch.zeros(2, 0), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"accepted is a floating batch of images") as error:
            gradient(model, wrong, 1)
        assert "\n" not in str(error.value)


# --- outputs --------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


class Returns(nn.Module):
    """Features [N, C, H, W] as logits, in many shapes."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.last = nn.Linear(5, 3)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        z = torch.relu(self.conv(x))
        return self.pack(self.last(z.mean((2, 3))), z)


def returns(pack: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    torch.manual_seed(5)
    return made(Returns(pack))[0]  # type: ignore[index]


PACKS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "tuple": (lambda y, z: (z, y), 1),
    "last of a list": (lambda y, z: [z, y], -1),
    "dictionary": (lambda y, z: {"out": y, "aux": z}, "out"),
    "object": (lambda y, z: Answer(y, z), "logits"),
    "function": (lambda y, z: {"deep": [(z, y)]}, lambda f, x: f(x)["deep"][0][1]),
}


@pytest.mark.parametrize("kind", PACKS)
def test_logits_are_read_from_what_a_model_returns(kind: str) -> None:
    pack, read = PACKS[kind]
    plain, model = returns(lambda y, z: y), returns(pack)
    x = rand(3, 2, 6, 6)
    output = Output(model, read)
    assert torch.equal(output(x), plain(x))
    for method in (gradient, integrated_gradients, deeplift):
        assert torch.equal(method(output, x, 2), method(plain, x, 2))
    found, wanted = (
        attacks.iterative_attack(m, x, objective=attacks.TopK(5), epsilon=0.05, iterations=3) for m in (output, plain)
    )
    assert torch.equal(found.trace, wanted.trace)
    assert (found.trace.amax(0) > found.trace[0]).any()
    with pytest.raises(ValueError, match=r"the model returned a .*: name them, for example models.Output\(model, "):
        gradient(model, x, 2)


def test_one_number_a_row_is_chosen_by_a_function() -> None:
    """A segmentation: how much of a class there is; a difference of two logits; a model that takes two arguments."""
    segmenting = returns(lambda y, z: {"out": z})
    x = rand(3, 2, 6, 6)
    for rows, wanted in (
        (lambda f, v: f(v)["out"][:, 4].mean((1, 2)), lambda v: segmenting(v)["out"].mean((2, 3))[:, 4]),
        (lambda f, v: f(v)["out"].mean((2, 3))[:, 4:], lambda v: segmenting(v)["out"].mean((2, 3))[:, 4]),
        (lambda f, v: (f(v)["out"][:, 0] - f(v)["out"][:, 1]).sum((1, 2)), lambda v: difference(segmenting, v)),
    ):
        output = Output(segmenting, rows)
        assert output(x).shape == (3, 1)
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(wanted(z).sum(), z)
        torch.testing.assert_close(gradient(output, x, 0), g, rtol=1e-9, atol=1e-12)
        total = integrated_gradients(output, x, 0, steps=2000, rule="midpoint").flatten(1).sum(1)
        change = wanted(x) - wanted(torch.zeros_like(x))
        # The integrand jumps where one of at most 5 x 36 pre-activations changes its sign, by less than its range.
        assert ((total - change).abs() <= 180 / 2000 * x.shape[1] * change.abs().max().clamp(min=1)).all()


def difference(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x)["out"]
    return (out[:, 0] - out[:, 1]).sum((1, 2))


def test_an_output_is_copied_with_its_model() -> None:
    """What is read is read from the copy: a smooth one is another function, and the caller's model stays."""
    model = returns(lambda y, z: (y, z))
    output = Output(model, lambda f, x: f(x)[0])
    x = rand(3, 2, 6, 6)
    before = output(x)
    smooth_one = softplus_surrogate(output, 1.0, x)
    assert not torch.equal(smooth_one(x), before)
    twin = copy.deepcopy(output)
    nn.init.zeros_(twin.model.last.weight)  # type: ignore[union-attr,arg-type]
    assert not torch.equal(twin(x), before)
    assert torch.equal(output(x), before)
    assert "lambda" in repr(output)


@pytest.mark.parametrize(
    ("pack", "read", "said"),
    [
        (
            lambda y, z: {"out": y, "aux": z},
            "logits",
            "read is 'logits', and the model returned a dict with 'out', 'aux'",
        ),
        (lambda y, z: (y, z), 2, "read is 2, and the model returned a tuple of 2"),
        (lambda y, z: (y, z), "logits", "read is 'logits', and the model returned a tuple of 2"),
        (lambda y, z: Answer(y, z), "out", "read is 'out', and the model returned a Answer"),
        (lambda y, z: y, 0, r"read is 0, and the model returned a tensor \(3, 3\), which is explained as it is"),
        (
            lambda y, z: {"out": z},
            "out",
            r"'out' of Returns is \(3, 5, 6, 6\) for 3 images; wanted is \[N\] or \[N, K\]",
        ),
        (lambda y, z: {"out": [y]}, "out", "'out' of Returns is a list; wanted is a tensor"),
        (lambda y, z: y, lambda f, x: f(x).sum(), r"lambda.* of Returns is \(\) for 3 images"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    pack: Callable[[Tensor, Tensor], Any], read: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as error:
        gradient(Output(returns(pack), read), rand(3, 2, 6, 6), 0)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="read is None; accepted are"):
        Output(returns(pack), None)  # type: ignore[arg-type]


def one_argument(y: Tensor) -> Tensor:
    return y[:, 0]


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (one_argument, r"read is one_argument\(y: .*\) -> .*; accepted is a function g\(model, x\) of two arguments"),
        (
            lambda x: x[:, 0],
            r"lambda.*\(x\); .*: for a function h of the model's output, lambda model, x: h\(model\(x\)\)",
        ),
        (lambda f, x, k: f(x)[:, k], r"lambda.*\(f, x, k\); accepted is a function g\(model, x\) of two arguments"),
        (lambda f, *, x: f(x), r"accepted is a function g\(model, x\) of two arguments"),
    ],
)
def test_a_function_of_other_arguments_is_refused_before_it_is_called(read: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        Output(returns(lambda y, z: y), read)
    assert "\n" not in str(error.value)


def test_whatever_takes_a_model_and_images_can_read() -> None:
    model, x = returns(lambda y, z: y), rand(3, 2, 6, 6)

    class Column:
        def __init__(self, k: int) -> None:
            self.k = k

        def __call__(self, f: nn.Module, x: Tensor) -> Tensor:
            return self.of(f, x)

        def of(self, f: nn.Module, x: Tensor, scale: float = 1.0) -> Tensor:
            out: Tensor = f(x)[:, self.k] * scale
            return out

    wanted = model(x)[:, 1:2]
    for read in (Column(1), Column(1).of, partial(Column(1).of, scale=1.0), lambda *given: given[0](given[1])[:, 1]):
        assert torch.equal(Output(model, read)(x), wanted)
    with pytest.raises(ValueError, match=r"model is a function; accepted is an nn.Module"):
        Output(one_argument, 0)  # type: ignore[arg-type]


class Demanding(nn.Module):
    """Takes images of one size alone."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 4:
            raise RuntimeError("four columns are wanted")
        return x.flatten(1)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda f, x: f(x, 3), "TypeError: .*positional argument"),
        (lambda f, x: f(x)["out"], "IndexError|TypeError"),
        (lambda f, x: {"aux": f(x)}["out"], "KeyError: 'out'"),
        (lambda f, x: f(x).logits, "AttributeError: .*'logits'"),
        (lambda f, x: f(x)[:, 7], "IndexError: index 7 is out of bounds"),
        (lambda f, x: f(x) @ torch.zeros(9, 2), "RuntimeError"),
        (lambda f, x: [a for a, b in [(1, 2, 3)]], "ValueError: too many values to unpack"),
        (lambda f, x: f(x) / (1 // 0), "ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("method", ["gradient", "deeplift"])
def test_a_function_that_fails_is_named_in_one_line(method: str, read: Any, said: str) -> None:
    output = Output(returns(lambda y, z: y), read)
    with pytest.raises(
        ValueError, match=rf"lambda.* of Returns fails: ({said}).*; it is called as g\(model, x\)"
    ) as error:
        METHODS[method](output, rand(3, 2, 6, 6), 0)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is not None


def test_what_a_model_or_a_method_says_is_not_taken_for_the_functions_mistake() -> None:
    with pytest.raises(RuntimeError, match=r"^four columns are wanted$"):
        Output(Demanding(), lambda f, x: f(x))(rand(1, 1, 2, 2))
    sorting = Output(returns(lambda y, z: y), lambda f, x: torch.sort(f(x)).values)
    with pytest.raises(ValueError, match="sort") as error:
        deeplift(sorting, rand(3, 2, 6, 6), 0)
    assert "it is called as" not in str(error.value)
    with pytest.raises(ValueError, match=r"x is torch.float32 and the model's parameters are torch.float64"):
        gradient(Output(returns(lambda y, z: y), lambda f, x: f(x)), rand(3, 2, 6, 6).float(), 0)


def test_a_model_in_training_mode_is_refused_behind_an_output() -> None:
    model = returns(lambda y, z: (y, z)).train()
    with pytest.raises(ValueError, match="training mode"):
        gradient(Output(model, 0), rand(1, 2, 6, 6), 0)
    assert attributions.gradient(Output(model.eval(), 0), rand(1, 2, 6, 6), 0).shape == (1, 2, 6, 6)
