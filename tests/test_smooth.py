"""Activations by what a network calls: made smooth wherever they are called; nothing with a kink passes as smooth."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from robattr import models
from robattr.attacks import TopK, iterative_attack
from robattr.attributions import deeplift, gradient, guided_backpropagation, lrp
from robattr.models import Classifier, is_smooth, set_beta, softplus_surrogate


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Calls(nn.Module):
    """A network that is one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# How each can be called, and how far its smooth form can be from it, in units of log(2) / beta, where |x| <= 8: a
# Softplus is off by at most 1, and of the two of a SoftClip, which have opposite signs, so is the difference.
CALLS: dict[str, tuple[float, list[Callable[[Tensor], Any]]]] = {
    "relu": (1, [F.relu, torch.relu, lambda x: x.relu(), lambda x: x.clone().relu_(), nn.ReLU(), lambda x: x.clamp(0)]),
    "relu, in place": (1, [lambda x: F.relu(x.clone(), inplace=True), lambda x: torch.relu_(x.clone())]),
    "threshold": (1, [lambda x: F.threshold(x, 0, 0), nn.Threshold(0, 0), lambda x: torch.clamp_min(x, 0)]),
    "larger": (1, [lambda x: torch.maximum(x, torch.zeros_like(x)), lambda x: torch.max(x, 0 * x)]),
    "relu6": (1, [F.relu6, nn.ReLU6(), lambda x: x.clamp(0, 6), lambda x: torch.clip(x, min=0.0, max=6.0)]),
    "hardtanh": (1, [F.hardtanh, nn.Hardtanh(), lambda x: x.clamp(-1, 1), lambda x: x.clone().clamp_(-1, 1)]),
    "up to 0": (1, [lambda x: x.clamp(max=0), lambda x: torch.clamp_max(x, 0), lambda x: torch.min(x, 0 * x)]),
    "hardsigmoid": (1 / 6, [F.hardsigmoid, nn.Hardsigmoid(), lambda x: F.hardsigmoid(x.clone(), inplace=True)]),
    "hardswish": (8 / 6, [F.hardswish, nn.Hardswish(), lambda x: F.hardswish(x.clone(), True)]),
    "leaky": (0.9, [partial(F.leaky_relu, negative_slope=0.1), nn.LeakyReLU(0.1), lambda x: F.leaky_relu(x, 0.1)]),
    "prelu": (0.75, [nn.PReLU(init=0.25).double(), lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype))]),
    "abs": (2, [torch.abs, lambda x: x.abs(), lambda x: x.clone().abs_()]),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_call_is_smooth_and_tends_to_the_call(name: str) -> None:
    off, calls = CALLS[name]
    x = torch.linspace(-8, 8, 201, dtype=torch.float64)[None]
    plain = calls[0](x)
    for call in calls:
        model = Calls(call)
        assert torch.equal(model(x), plain)
        assert not is_smooth(model, x)
        for beta in (2.0, 50.0):
            smooth = softplus_surrogate(model, beta, x)
            assert is_smooth(smooth, x)
            worst = float((smooth(x) - plain).detach().abs().max())
            # A hundredth is not reached by a form that stands for the call as it is; 1e-12 is rounding.
            assert 0.01 * off * math.log(2) / beta < worst <= off * math.log(2) / beta + 1e-12
        z = x.clone().requires_grad_()
        assert torch.autograd.gradgradcheck(lambda v, smooth=smooth: smooth(v * 1.0)[:, ::20], (z,))


def test_guards_and_parameters_stay() -> None:
    scale = nn.Parameter(torch.tensor(7.0, dtype=torch.float64))

    def guarded(x: Tensor) -> Tensor:
        return torch.tanh(x) / x.norm(dim=1, keepdim=True).clamp_min(1e-3) * scale.clamp(max=4.6) * scale.clamp(0, 6)

    class Guarded(Calls):
        def __init__(self) -> None:
            super().__init__(guarded)

    x = normal(3, 4)
    assert is_smooth(Guarded(), x)
    assert torch.equal(softplus_surrogate(Guarded(), 1.0, x)(x), guarded(x))


class Mixed(nn.Module):
    """An nn.ReLU, and one that is a call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.first(x))
        pooled: Tensor = self.last(F.relu(self.second(z)).mean((2, 3)))
        return pooled


class Hidden(nn.Module):
    """Chooses its way by its input: no trace."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if bool((x.mean() > -1e9).item()) else x


@pytest.fixture
def mixed() -> Mixed:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Mixed().double().eval()


@pytest.mark.parametrize("example", [None, normal(1, 2, 6, 6)], ids=["traced", "seen"])
def test_a_network_with_one_call_does_not_pass_as_smooth(mixed: Mixed, example: Tensor | None) -> None:
    assert not is_smooth(mixed, example)
    smooth = softplus_surrogate(mixed, 3.0, example)
    assert is_smooth(smooth, example)
    x = normal(2, 2, 6, 6)
    z = F.softplus(mixed.first(x), 3.0)
    wanted = mixed.last(F.softplus(mixed.second(z), 3.0).mean((2, 3)))
    torch.testing.assert_close(smooth(x), wanted, rtol=1e-12, atol=1e-12)
    assert type(mixed) is Mixed
    assert isinstance(mixed.act, nn.ReLU)
    assert smooth.state_dict().keys() == mixed.state_dict().keys()


def test_a_smooth_copy_is_copied_pickled_and_told_apart_by_its_beta(mixed: Mixed) -> None:
    x = normal(2, 2, 6, 6)
    smooth = softplus_surrogate(mixed, 3.0)
    assert isinstance(smooth, Mixed)
    for twin in (copy.deepcopy(smooth), pickle.loads(pickle.dumps(smooth)), softplus_surrogate(smooth, 3.0)):
        assert torch.equal(twin(x), smooth(x))
        assert repr(twin) == repr(smooth)
        set_beta(twin, 5.0)
        assert repr(twin) != repr(smooth)
        assert torch.equal(twin(x), softplus_surrogate(mixed, 5.0)(x))
        assert not torch.equal(twin(x), smooth(x))


def test_the_copy_is_in_the_mode_of_the_model_and_shares_no_state(mixed: Mixed) -> None:
    network = nn.Sequential(mixed.first, nn.BatchNorm2d(4).double(), nn.ReLU(inplace=True), nn.Dropout(0.5))
    network.train()
    before = copy.deepcopy(network.state_dict())
    smooth = softplus_surrogate(network, 3.0, normal(2, 2, 6, 6))
    assert all(module.training for module in smooth.modules())
    assert not is_smooth(network, normal(2, 2, 6, 6))
    assert all(module.training for module in network.modules())
    for state in (network.state_dict(), smooth.state_dict()):
        assert all(torch.equal(value, before[key]) for key, value in state.items())


@pytest.mark.parametrize("example", [None, normal(1, 3)], ids=["traced", "seen"])
def test_what_an_activation_writes_over_is_read_again_as_it_was_left(example: Tensor | None) -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU(inplace=True)
            self.last = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            z = x * 1.0
            y = self.act(z) * 2.0 + z  # z is no longer what it was
            return self.last(y)

    x = normal(5, 3)
    smooth = softplus_surrogate(Shortcut(), 4.0, example)
    assert torch.equal(Shortcut()(x), 3 * x.relu())
    torch.testing.assert_close(smooth(x), F.softplus(3 * F.softplus(x, 4.0), 4.0), rtol=1e-12, atol=1e-12)
    assert type(smooth.last) is nn.Softplus  # nobody reads what it has left


def test_an_activation_at_two_places_and_one_that_never_runs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = nn.ReLU()
            self.unused = nn.Hardshrink()

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.other(self.one(x) - 1)
            return z

    x = normal(4, 3)
    smooth = softplus_surrogate(Twice(), 2.0)
    torch.testing.assert_close(smooth(x), F.softplus(F.softplus(x, 2.0) - 1, 2.0), rtol=1e-12, atol=1e-12)


def test_an_encoder_whose_fast_kernel_hides_its_activation() -> None:
    """Without gradients PyTorch runs one fused function with the ReLU in it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).double().eval()
    x = normal(2, 3, 6)
    assert not is_smooth(layer, x)
    smooth = softplus_surrogate(layer, 2.0, x)
    assert is_smooth(smooth, x)
    with torch.no_grad():
        quiet = smooth(x)
        assert (quiet - layer(x)).abs().max() > 1e-3
    # Sums of at most 8 products in another order, through four layers.
    torch.testing.assert_close(smooth(x.clone().requires_grad_()), quiet, rtol=1e-12, atol=1e-12)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (F.hardshrink, r"the model itself \(Calls\) calls hardshrink, which has no smooth form"),
        (F.softshrink, "calls softshrink, which has no smooth form"),
        (lambda x: F.rrelu(torch.relu(x)), "calls rrelu, which has no smooth form"),
        (lambda x: F.threshold(x, 0.5, 0.0), "calls threshold, which has no smooth form"),
        (lambda x: 2 * x, "has no activation that can be made smooth"),
    ],
)
def test_what_has_no_smooth_form_is_named(function: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        softplus_surrogate(Calls(function), 2.0, normal(1, 3))
    assert "\n" not in str(error.value)
    assert not is_smooth(Calls(function), normal(1, 3))


def test_what_cannot_be_traced_wants_an_example() -> None:
    for look in (softplus_surrogate, is_smooth):
        with pytest.raises(ValueError, match=r"Hidden cannot be traced .* pass example=images") as error:
            look(Hidden())
        assert "\n" not in str(error.value)
    x = normal(2, 3)
    assert not is_smooth(Hidden(), x)
    torch.testing.assert_close(softplus_surrogate(Hidden(), 2.0, x)(x), F.softplus(x, 2.0), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_what_nobody_sees_is_refused(mixed: Mixed) -> None:
    scripted = nn.Sequential(torch.jit.script(nn.ReLU()), nn.Softplus())
    compiled = torch.compile(nn.Sequential(mixed.first, nn.ReLU()), backend="eager")
    for model, said in ((scripted, "0 is scripted"), (compiled, "is compiled")):
        for look in (softplus_surrogate, is_smooth):
            with pytest.raises(ValueError, match=f"{said}, so nobody sees its activations"):
                look(model)


# --- networks -------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "googlenet": ("torchvision", 32, {"init_weights": False}),
    "inception_v3": ("torchvision", 75, {"init_weights": False, "aux_logits": False}),
    "densenet121": ("torchvision", 32, {}),
    "mobilenet_v3_small": ("torchvision", 32, {}),
    "regnet_x_400mf": ("torchvision", 32, {}),
    "shufflenet_v2_x0_5": ("torchvision", 32, {}),
    "mobilenetv4_conv_small_035": ("timm", 32, {}),
    "resnet10t": ("timm", 32, {}),
    "mobilenetv3_small_050": ("timm", 32, {}),
}
ALREADY_SMOOTH: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": ("timm", 32, {"img_size": 32, "depth": 2}),
    "convnext_atto": ("timm", 32, {}),
    "swin_t": ("torchvision", 32, {}),
    "efficientnet_b0": ("torchvision", 32, {}),
}


def network(name: str, library: str, options: dict[str, Any]) -> nn.Module:
    """With random weights, and the batch statistics of random images, so that values keep their size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: nn.Module
        if library == "timm":
            made = timm.create_model(name, num_classes=4, **options)
        else:
            made = torchvision.models.get_model(name, weights=None, num_classes=4, **options)
    return made.double()


def settled(model: nn.Module, size: int) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.train()(torch.rand(8, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_call_functions_are_made_smooth(name: str) -> None:
    library, size, options = NETWORKS[name]
    model = settled(network(name, library, options), size)
    x = torch.rand(1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert not is_smooth(model, x)
    smooth = softplus_surrogate(model, 1e9, x)
    assert is_smooth(smooth, x)
    logits, plain = smooth(x), model(x)
    # An activation of |x| < 10 is off by at most 10 / 6 log(2) / beta = 1.2e-9; a thousandfold is left to the layers.
    assert float((logits - plain).abs().max()) < 1e-6 * float(plain.abs().max())
    set_beta(smooth, 3.0)
    assert float((smooth(x) - plain).abs().max()) > 1e-3 * float(plain.abs().max())
    z = x.clone().requires_grad_()
    (turned,) = torch.autograd.grad(gradient(smooth, z, 1, create_graph=True).square().sum(), z)
    assert turned.isfinite().all()
    assert turned.abs().max() > 0


@pytest.mark.parametrize("name", ALREADY_SMOOTH)
def test_networks_of_smooth_activations_stay_as_they_are(name: str) -> None:
    library, size, options = ALREADY_SMOOTH[name]
    model = settled(network(name, library, options), size)
    x = torch.rand(1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert is_smooth(model, x)
    assert torch.equal(softplus_surrogate(model, 3.0, x)(x), model(x))


# --- methods and attacks --------------------------------------------------------------------------------------------


@pytest.fixture
def classifier(mixed: Mixed) -> Classifier:
    model = Classifier(mixed, mean=(0.4, 0.5), std=(0.2, 0.3), name="mixed", input_size=(2, 6, 6), num_classes=3)
    return model.double().eval().requires_grad_(False)


def test_methods_see_the_smooth_calls(classifier: Classifier) -> None:
    """LRP runs the network inside of the classifier, DeepLIFT and guided backpropagation see its functions."""
    x = torch.rand(2, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    by_calls = softplus_surrogate(classifier, 3.0)
    by_modules = copy.deepcopy(classifier)
    by_modules.network = nn.Sequential(
        mixed_layer(classifier, "first"),
        nn.Softplus(3.0),
        mixed_layer(classifier, "second"),
        nn.Softplus(3.0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        mixed_layer(classifier, "last"),
    )
    # Sums of at most 36 products in another order, through three layers and back.
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(by_calls(x), by_modules(x), **close)
    for method in (gradient, deeplift, guided_backpropagation, lrp):
        torch.testing.assert_close(method(by_calls, x, 1), method(by_modules, x, 1), **close)


def mixed_layer(model: Classifier, name: str) -> Any:
    return getattr(model.network, name)


def test_an_attack_on_a_network_of_functions_climbs(classifier: Classifier) -> None:
    x = torch.rand(3, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    attack = partial(iterative_attack, objective=TopK(6), epsilon=0.05, step=0.01, iterations=4, seed=1)
    found = attack(classifier, x)
    assert torch.equal(found.trace, attack(classifier, x, beta=(3.0, 30.0)).trace)
    assert found.success.all()
    assert (found.trace.amax(0) > found.trace[0]).all()


def test_a_classifier_brings_its_own_example() -> None:
    """It is no trace: this network chooses its way by what it sees."""
    model = Classifier(Hidden(), mean=(0.0,), std=(1.0,), name="hidden", input_size=(1, 4, 4), num_classes=3)
    assert not is_smooth(model)
    x = normal(2, 1, 4, 4)
    torch.testing.assert_close(softplus_surrogate(model, 2.0)(x), F.softplus(x, 2.0), rtol=1e-12, atol=1e-12)
    assert models.is_smooth(softplus_surrogate(model, 2.0))
    assert not is_smooth(models.Output(model, lambda f, z: f(z).mean((1, 2, 3))))
