"""Grad-CAM and the attributions of a layer against hand calculations, identities and independent libraries."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from arithmetic import distance_from_kinks, gamma
from torch import Tensor, nn
from torch.nn import functional as F

from robattr import models
from robattr.attributions import (
    grad_cam,
    guided_grad_cam,
    heatmap,
    layer_activation_x_gradient,
    layer_integrated_gradients,
)

LAYERED = [grad_cam, layer_activation_x_gradient, layer_integrated_gradients]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(make: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = make()  # type: ignore[operator]
    return model.double().eval()


def two_channels(first: float, second: float) -> nn.Module:
    """A = (x, -2 x), their means, and ``first * mean(A_1) + second * mean(A_2)``."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1, bias=False)
    ).double()
    model[0].weight.data = torch.tensor([1.0, -2.0], dtype=torch.float64).view(2, 1, 1, 1)
    model[3].weight.data = torch.tensor([[first, second]], dtype=torch.float64)
    return model.eval()


def test_grad_cam_by_hand() -> None:
    """Of two places each has half of the mean's slope: a = (first, second) / 2, and the map is a_1 x - 2 a_2 x."""
    x = torch.tensor([[[[0.5, 0.25]]]], dtype=torch.float64)
    row = lambda *v: torch.tensor([[[v]]], dtype=torch.float64)  # noqa: E731
    for name in (None, "0"):
        assert torch.equal(grad_cam(two_channels(3, 1), x, 0, layer=name), row(0.25, 0.125))
        # 1 / 2 - 2 / 2 is below zero everywhere: no place speaks for the class.
        assert torch.equal(grad_cam(two_channels(1, 1), x, 0, layer=name), row(0.0, 0.0))
        assert torch.equal(grad_cam(two_channels(1, 1), x, 0, layer=name, relu=False), row(-0.25, -0.125))
        # A value times its own slope, summed over channels: the same, where slopes are alike at all places.
        assert torch.equal(layer_activation_x_gradient(two_channels(3, 1), x, 0, layer=name), row(0.25, 0.125))
    # From x = 0.1 the values of A rise by x - 0.1 and -2 (x - 0.1).
    found = layer_integrated_gradients(two_channels(3, 1), x, 0, baseline=0.1, steps=3)
    torch.testing.assert_close(found, row(0.2, 0.075), rtol=1e-14, atol=0)


def test_the_heatmap_of_a_layer_is_its_map() -> None:
    """Three channels have a third each, and the places of a layer are drawn as large as the image, bilinearly."""
    model, x = seeded(lambda: models.build("resnet18-cifar", num_classes=4)), rand(2, 3, 32, 32)
    stages = dict(model.named_modules())
    kept: list[Tensor] = []
    handle = stages["network.layer4"].register_forward_hook(lambda module, args, out: kept.append(out))
    logits = model(x)
    handle.remove()
    (g,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    cam = (g.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()
    wide = F.interpolate(cam[:, None], size=(32, 32), mode="bilinear", align_corners=False)[:, 0].detach()
    found = grad_cam(model, x, 1)
    torch.testing.assert_close(heatmap(found, None), wide, rtol=1e-10, atol=1e-14)
    assert torch.equal(found[:, 0], found[:, 2])
    # What is pooled by a mean and read by one linear layer has weights for slopes (Zhou et al. 2016).
    weight = model.network.fc.weight[1].view(1, -1, 1, 1)
    torch.testing.assert_close(cam, (weight * kept[0]).sum(1).relu() / kept[0][0, 0].numel(), rtol=1e-10, atol=1e-14)


LAST = {
    "resnet18": ("layer4", 1),
    "vgg11": ("avgpool", 1),
    "squeezenet1_1": ("classifier.2", 1),
    "shufflenet_v2_x0_5": ("conv5", 1),
    "mobilenet_v3_small": ("features", 1),
    "convnext_tiny": ("features", 1),
    "swin_t": ("norm", -1),
    "timm:mobilenetv4_conv_small_035": ("blocks", 1),
    "timm:convnext_atto": ("stages", 1),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_map_is_found_by_what_runs(name: str) -> None:
    """Poolings inside of blocks (squeeze-and-excitation) are none, whoever averages, and in whatever layout."""
    make = (
        partial(timm.create_model, name[5:], num_classes=3)
        if name.startswith("timm:")
        else partial(torchvision.models.get_model, name, weights=None, num_classes=3)
    )
    model, x = seeded(make).float(), rand(1, 3, 64, 64).float()
    layer, channels = LAST[name]
    found = grad_cam(model, x, 1, relu=False)
    named = grad_cam(model, x, 1, relu=False, layer=layer, channels=channels)
    assert torch.equal(found, named)
    assert found.abs().max() > 0


def tokens() -> nn.Module:
    return seeded(lambda: torchvision.models.VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=3))


def filled(model: nn.Module) -> nn.Module:
    """All parameters drawn: some are initialized with zeros, for which nothing is relevant."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=p.dtype, generator=generator) * 0.3
    return model


def test_the_tokens_of_a_transformer_lie_on_the_grid_of_its_patches() -> None:
    model, x = filled(tokens()), rand(2, 3, 16, 16)
    layer = "encoder.layers.encoder_layer_1.ln_1"
    kept: list[Tensor] = []
    handle = dict(model.named_modules())[layer].register_forward_hook(lambda module, args, out: kept.append(out))
    logits = model(x)
    handle.remove()
    (g,) = torch.autograd.grad(logits[:, 2].sum(), kept[0])
    # The first token is that of the class; 16 patches are left, in rows of four.
    a, slope = kept[0][:, 1:].detach(), g[:, 1:]
    cam = torch.einsum("nk,ntk->nt", slope.mean(1), a).view(2, 1, 4, 4)
    wide = F.interpolate(cam, size=(16, 16), mode="bilinear", align_corners=False)
    found = grad_cam(model, x, 2, layer=layer, relu=False)
    torch.testing.assert_close(found.sum(1, keepdim=True), wide, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"reads one token.*layer='encoder.layers.encoder_layer_1.ln_1'.*rollout"):
        grad_cam(model, x, 2)


@pytest.mark.parametrize("method", [*LAYERED, guided_grad_cam])
def test_a_token_layer_has_its_derivative(method: object) -> None:
    """Of attention too, against central differences in float64."""
    model, x = filled(tokens()), rand(2, 3, 16, 16)
    run = partial(method, model, target=1, layer="encoder.layers.encoder_layer_1.ln_1")  # type: ignore[call-overload]
    v, weight = rand(*x.shape, seed=1) - 0.5, rand(*x.shape, seed=2)
    z = x.clone().requires_grad_()
    (d,) = torch.autograd.grad((run(x=z, create_graph=True) * weight).sum(), z)
    h = 1e-5
    numeric = ((run(x=x + h * v) - run(x=x - h * v)) * weight).sum() / (2 * h)
    torch.testing.assert_close((d * v).sum(), numeric, rtol=1e-6, atol=1e-8)
    assert d.abs().max() > 0


@pytest.mark.parametrize("rule", ["midpoint", "gauss-legendre"])
@pytest.mark.parametrize("layer", [None, "1", "2"])
def test_the_integrated_gradients_of_a_layer_are_complete(layer: str | None, rule: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.Softplus(beta=3), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
        )
    model = model.double().eval()
    x, baseline = rand(3, 2, 8, 8), rand(3, 2, 8, 8, seed=1)
    y = torch.tensor([0, 2, 1])
    steps, tolerance = {"midpoint": (400, 1e-4), "gauss-legendre": (40, 1e-10)}[rule]  # O(1 / steps^2), and geometric
    run = partial(layer_integrated_gradients, model, x, y, layer=layer, baseline=baseline, steps=steps, rule=rule)
    a = run(at="layer")
    change = (model(x) - model(baseline)).gather(1, y[:, None]).squeeze(1).detach()
    assert (a.flatten(1).sum(1) - change).abs().max() < tolerance
    assert change.abs().min() > 0.01
    torch.testing.assert_close(run(at="layer", max_batch=5), a, rtol=1e-10, atol=1e-14)


class Beside(nn.Module):
    """A block that the image goes through, and beside which it goes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.block, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc((torch.tanh(self.block(x)) * x).mean((2, 3)))
        return y


def test_what_goes_beside_a_layer_stays_that_of_the_image() -> None:
    """Of ``tanh(A) x`` only A runs its path: the sum is the change for this x."""
    model, x = Beside().double().eval(), rand(2, 3, 8, 8)
    a = layer_integrated_gradients(model, x, 1, layer="block", at="layer", steps=40)
    with torch.no_grad():
        ends = [model.fc((torch.tanh(model.block(v)) * x).mean((2, 3)))[:, 1] for v in (x, torch.zeros_like(x))]
    torch.testing.assert_close(a.flatten(1).sum(1), ends[0] - ends[1], rtol=1e-10, atol=1e-13)


def test_a_layer_that_is_written_over_is_seen_before() -> None:
    plain = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)))
    written = copy.deepcopy(plain)
    written[1] = nn.ReLU(inplace=True)
    x = rand(2, 3, 8, 8)
    for method in LAYERED:
        assert torch.equal(method(written, x, 1, layer="0"), method(plain, x, 1, layer="0"))
    # And what is flattened before it is written over.
    plain = nn.Sequential(plain[0], nn.Flatten(), nn.ReLU(), plain[3]).eval()
    written = nn.Sequential(plain[0], nn.Flatten(), nn.ReLU(inplace=True), plain[3]).eval()
    for method in LAYERED:
        assert torch.equal(method(written, x, 1), method(plain, x, 1))


# --- independent implementations -----------------------------------------------------------------------------------


def _captum(name: str, model: nn.Module, layer: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
    import captum.attr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum announces its hooks
        return getattr(captum.attr, name)(model, layer).attribute(x.clone().requires_grad_(), target=y, **options)


@pytest.mark.parametrize("layer", ["network.conv1", "network.pool2", "network.conv2"])
def test_equals_captum(layer: str) -> None:
    """In float64; the path of integrated gradients in the layer's space, as Captum's."""
    model = models.build("lenet", activation="softplus", seed=3).double()
    x, y = rand(3, 3, 32, 32), torch.tensor([1, 7, 3])
    module = dict(model.named_modules())[layer]
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-13)
    raw = _captum("LayerGradCam", model, module, x, y, relu_attributions=True).detach()
    wide = F.interpolate(raw, size=(32, 32), mode="bilinear", align_corners=False)
    close(grad_cam(model, x, y, layer=layer).sum(1, keepdim=True), wide)
    close(
        layer_activation_x_gradient(model, x, y, layer=layer, at="layer"),
        _captum("LayerGradientXActivation", model, module, x, y).detach(),
    )
    a = layer_integrated_gradients(model, x, y, layer=layer, at="layer", steps=20)
    b = _captum("LayerIntegratedGradients", model, module, x, y, n_steps=20).detach()
    # Captum rounds the weights of a path's points to float32.
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * b.abs().max().item())


def test_guided_grad_cam_equals_captum() -> None:
    """Of a network of ReLUs, which Captum guides, further from every kink than rounding reaches."""
    model, x, y = models.build("lenet", seed=3).double(), rand(3, 3, 32, 32), torch.tensor([1, 7, 3])
    found: list[Tensor] = []
    near = distance_from_kinks(model, lambda: found.append(guided_grad_cam(model, x, y, layer="network.conv2")))
    assert near > 2 * gamma(4096, torch.float64)
    theirs = _captum("GuidedGradCam", model, model.network.conv2, x, y, interpolate_mode="bilinear").detach()
    torch.testing.assert_close(found[0], theirs, rtol=0, atol=1e-9 * theirs.abs().max().item())
    assert theirs.abs().max() > 0


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_equals_pytorch_grad_cam(name: str) -> None:
    oracle = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    if name == "vit":
        model, layer, size = filled(tokens()), "encoder.layers.encoder_layer_1.ln_1", 16
        reshape = lambda v: v[:, 1:].transpose(1, 2).reshape(len(v), -1, 4, 4)  # noqa: E731
    else:
        model = seeded(partial(torchvision.models.resnet18, weights=None, num_classes=3))
        layer, size, reshape = "layer4", 64, None
    x = rand(2, 3, size, size).float()
    model = model.float()
    with oracle.GradCAM(model, [dict(model.named_modules())[layer]], reshape_transform=reshape) as cam:
        theirs = torch.from_numpy(cam(input_tensor=x, targets=[targets.ClassifierOutputTarget(1)] * 2)).double()
    ours = grad_cam(model, x, 1, layer=layer).sum(1).double()
    # Theirs is scaled by its least and largest, with 1e-7 beside the latter, and rounded to float32 on the way.
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    bound = 2e-7 / (high - low).min().item() + gamma(512 * 9, torch.float32)
    torch.testing.assert_close(theirs, (ours - low) / (high - low), rtol=0, atol=bound)
    assert bound < 1e-3


# --- refusals ------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.fc, self.other = nn.Conv2d(3, 3, 1), nn.Linear(3, 2), nn.Conv2d(3, 3, 1)
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "twice":
            x = self.conv(x)
        if self.kind == "pair":
            x, _ = self.pair(x)
        if self.kind == "constant":
            x = x + self.other(torch.ones_like(x))
        y: Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return y


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize("method", [*LAYERED, guided_grad_cam])
def test_layers_that_cannot_be_explained_are_refused_by_name(method: object) -> None:
    def run(kind: str, **options: object) -> None:
        model = Odd(kind).double().eval().requires_grad_(False)
        method(model, rand(2, 3, 8, 8), 1, **options)  # type: ignore[operator]

    for kind, options, said in (
        ("plain", {"layer": "convs"}, r"layer is 'convs'; accepted are paths of the modules of Odd.*: conv"),
        ("plain", {"layer": ""}, "layer is ''; accepted are paths"),
        ("plain", {"layer": "other"}, "other runs 0 times in a pass; accepted are layers that run once"),
        ("twice", {"layer": "conv"}, "conv runs 2 times in a pass"),
        ("pair", {"layer": "pair"}, "pair returns a tuple; accepted are layers that return a tensor"),
        ("constant", {"layer": "other"}, "other does not depend on the images"),
        ("plain", {"layer": "fc"}, r"fc gives \(2, 2\), of which it is not known where it lies in the image"),
        ("plain", {"channels": 2}, "channels is 2; accepted are 1"),
    ):
        if method is layer_integrated_gradients and kind == "constant":
            continue  # its path has no length, and its sum is the change of the logit: nothing
        with pytest.raises(ValueError, match=said) as error:
            run(kind, **options)
        assert "\n" not in str(error.value)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double()
    with pytest.raises(ValueError, match="pools and flattens no map that a layer made"):
        method(linear, rand(2, 3, 8, 8), 1)  # type: ignore[operator]


def test_impossible_options_are_refused() -> None:
    model, x = Odd("plain").double().eval(), rand(2, 3, 8, 8)
    for method in (layer_activation_x_gradient, layer_integrated_gradients):
        with pytest.raises(ValueError, match="at is 'image'; accepted are 'pixels' and 'layer'"):
            method(model, x, 1, at="image")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps is 0"):
        layer_integrated_gradients(model, x, 1, steps=0)
    with pytest.raises(ValueError, match="rule is 'simpson'"):
        layer_integrated_gradients(model, x, 1, rule="simpson")  # type: ignore[arg-type]
    # An output without places has values all the same.
    assert layer_activation_x_gradient(model, x, 1, layer="fc", at="layer").shape == (2, 2)


def test_integrated_gradients_of_a_layer_that_are_not_complete_are_refused() -> None:
    """At the middle of its path ``A^9`` has the slope ``9 / 2^8`` of its rise."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            self.conv.weight.data.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).pow(9).flatten(1)

    model, x = Steep().double().eval(), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    run = partial(layer_integrated_gradients, model, x, 0, layer="conv", rule="midpoint")
    with pytest.raises(ValueError, match=r"image 0 sum to 0\.0351562 .* changes by 1; take more steps.*check=False"):
        run(steps=1)
    assert run(steps=1, check=False).item() == 9 / 2**8
    assert run(steps=100).item() == pytest.approx(1, abs=9 * 8 / 24 / 100**2)  # f'' h^2 / 24


def test_no_hook_is_left_on_the_model() -> None:
    model, x = Odd("plain").double().eval(), rand(2, 3, 8, 8)
    for method in (*LAYERED, guided_grad_cam):
        method(model, x, 1, layer="conv")
        with pytest.raises(ValueError, match="0 to 1"):
            method(model, x, 5, layer="conv")
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
