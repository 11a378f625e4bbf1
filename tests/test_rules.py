"""Rules of one's own for layer-wise relevance propagation, and networks of signals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from zennit import canonizers, composites, rules
from zennit.attribution import Gradient

from robattr import models
from robattr.attributions import attn_lrp, deep_taylor, input_x_gradient, lrp


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    return model.double().eval()


def without_biases(model: nn.Module) -> nn.Module:
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data.zero_()
    return model


def lenet() -> nn.Module:
    return models.build("lenet", seed=3).double()


COMPOSITES = {
    "epsilon-plus": composites.EpsilonPlus,
    "alpha2-beta1": composites.EpsilonAlpha2Beta1,
    "epsilon-plus-flat": composites.EpsilonPlusFlat,
    "alpha2-beta1-flat": composites.EpsilonAlpha2Beta1Flat,
}


def by_zennit(model: nn.Module, x: Tensor, target: int, composite: Any) -> Tensor:
    """What zennit says on its own."""
    z = model.normalize(x)
    logits = model(x).detach()
    seed = torch.zeros_like(logits)
    seed[:, target] = logits[:, target]
    with Gradient(model=model.network, composite=composite) as attributor:
        found: Tensor = attributor(z, seed)[1]
    return found.detach()


@pytest.mark.parametrize("name", [*COMPOSITES, "epsilon-gamma-box"])
def test_a_composite_by_name_is_that_of_zennit(name: str) -> None:
    model, x = lenet(), rand(2, 3, 32, 32)
    box = model.normalize(torch.zeros_like(x)), model.normalize(torch.ones_like(x))
    make = COMPOSITES.get(name, partial(composites.EpsilonGammaBox, *box))
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-13)
    theirs = by_zennit(model, x, 1, make())
    close(lrp(model, x, 1, rule=name), theirs)  # type: ignore[arg-type]
    # And handed over as it is.
    close(lrp(model, x, 1, rules=make()), theirs)
    assert theirs.abs().max() > 0


@pytest.mark.parametrize("objects", [True, False])
def test_rules_by_type_are_those_of_a_composite(objects: bool) -> None:
    model, x = lenet(), rand(2, 3, 32, 32)
    wanted = lrp(model, x, 1, rule="epsilon-plus")
    found = lrp(model, x, 1, rules={nn.Conv2d: rules.ZPlus() if objects else "z+"})
    assert torch.equal(found, wanted)
    flat = {"network.conv1": rules.Flat() if objects else "flat", nn.Conv2d: "z+"}
    assert torch.equal(lrp(model, x, 1, rules=flat), lrp(model, x, 1, rule="epsilon-plus-flat"))
    # A path comes before a type, and an earlier type before a later one.
    assert torch.equal(lrp(model, x, 1, rules={nn.Module: "z+", **flat} | {nn.Linear: "epsilon"}), lrp(
        model, x, 1, rules={"network.conv1": "flat", nn.Module: "z+"}
    ))  # fmt: skip
    assert not torch.equal(wanted, lrp(model, x, 1))


@pytest.mark.parametrize("name", ["epsilon", "z+", "gamma", "alpha2-beta1", "flat", "w2"])
def test_rules_by_name_conserve_relevance(name: str) -> None:
    """Without biases each hands on what it gets; zennit's stabilizers of 1e-6 keep little of it."""
    model, x = without_biases(lenet()), rand(2, 3, 32, 32)
    a = lrp(model, x, 1, rules={"network.conv1": name})
    torch.testing.assert_close(a.flatten(1).sum(1), model(x)[:, 1].detach(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("rule", ["pass", rules.Pass()])
def test_a_layer_without_a_rule_can_be_given_one(rule: object) -> None:
    """ConvNeXt under LRP: its normalizations hand on what they get, and relevance is conserved."""
    blocks = torchvision.models.convnext
    settings = [blocks.CNBlockConfig(8, 16, 1), blocks.CNBlockConfig(16, None, 1)]
    model = without_biases(seeded(lambda: blocks.ConvNeXt(settings, num_classes=3)))
    for module in model.modules():
        if isinstance(module, blocks.CNBlock):
            module.layer_scale.data.fill_(0.5)
    x = rand(2, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r"no rule for layer_norm, which features\.0\.1 .*give .* rules=, or take attn_"
    ):
        lrp(model, x, 1)
    a = lrp(model, x, 1, rules={nn.LayerNorm: rule}, epsilon=1e-9)
    torch.testing.assert_close(a.flatten(1).sum(1), model(x)[:, 1].detach(), rtol=1e-2, atol=0)


def test_a_rule_for_a_block_is_for_all_of_it() -> None:
    """As one function of its input, by the epsilon rule: ``x`` times the derivative of ``sum R / y * block``."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh(), nn.Conv2d(3, 3, 1))
        model = nn.Sequential(block, nn.Flatten(), nn.Linear(48, 2, bias=False)).double().eval()
    x = rand(2, 3, 4, 4).requires_grad_()
    y = block(x)
    (expected,) = torch.autograd.grad(y, x, model[2].weight[1].view(1, 3, 4, 4).expand_as(y))
    a = lrp(model, x.detach(), 1, rules={"0": rules.Epsilon(1e-14)}, epsilon=1e-14)
    torch.testing.assert_close(a, x.detach() * expected, rtol=1e-9, atol=1e-13)


def test_a_map_by_rules_of_ones_own_has_its_derivative() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(12, 2))
    )
    x = rand(2, 1, 4, 4)
    rule = {nn.GroupNorm: "pass", nn.Conv2d: rules.Epsilon(0.1), nn.Linear: rules.Gamma(stabilizer=0.1)}
    run = partial(lrp, model, target=1, rules=rule)
    v, weight = rand(*x.shape, seed=1) - 0.5, rand(*x.shape, seed=2)
    z = x.clone().requires_grad_()
    (d,) = torch.autograd.grad((run(x=z, create_graph=True) * weight).sum(), z)
    h = 1e-5
    numeric = ((run(x=x + h * v) - run(x=x - h * v)) * weight).sum() / (2 * h)
    torch.testing.assert_close((d * v).sum(), numeric, rtol=1e-5, atol=1e-8)
    assert d.abs().max() > 1e-3


class Normed(nn.Module):
    """A normalization before a convolution, which nothing here folds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.fc = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(torch.relu(self.conv(self.norm(x))).mean((2, 3)))
        return y


class Merged(canonizers.Canonizer):
    """Merges that normalization, which shifts nothing, into the convolution after it; or into another function."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def apply(self, root_module: nn.Module) -> list[canonizers.Canonizer]:
        norm, conv = root_module.norm, root_module.conv
        conv.weight.data *= (self.factor * norm.weight / (norm.running_var + norm.eps).sqrt()).view(1, -1, 1, 1)
        root_module.norm = nn.Identity()
        return [self.copy()]

    def register(self) -> None:
        pass

    def remove(self) -> None:
        pass

    def copy(self) -> Merged:
        return Merged(self.factor)


def test_canonizers_are_applied_to_a_copy_that_stays_the_same_function() -> None:
    model, x = seeded(Normed), rand(2, 3, 8, 8)
    model.norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="norm in Normed follows no convolution"):
        lrp(model, x, 1)
    found = lrp(model, x, 1, canonizers=[Merged(1.0)])
    by_hand = nn.Sequential(model.conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)
    scale = (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()).view(1, -1, 1, 1)
    with torch.no_grad():
        model.conv.weight.mul_(scale)
        wanted = lrp(by_hand, x, 1)
        model.conv.weight.copy_(state["conv.weight"])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"Normed is another function .*check=False"):
        lrp(model, x, 1, canonizers=[Merged(2.0)])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    # A rule of its own for the normalization, and nothing is folded.
    assert lrp(model, x, 1, rules={nn.BatchNorm2d: "pass"}).abs().max() > 0
    # zennit's own canonizer finds what is folded here.
    plain = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    )
    merged = lrp(plain, x, 1, canonizers=[canonizers.SequentialMergeBatchNorm()])
    torch.testing.assert_close(merged, lrp(plain, x, 1), rtol=1e-9, atol=1e-12)


def test_rules_that_are_none_are_refused_in_one_line() -> None:
    model, x = lenet(), rand(2, 3, 32, 32)
    both = nn.Bilinear(2, 2, 2)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = both

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.both(x.flatten(1), x.flatten(1))
            return y

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.rnn(x[:, 0])[0].flatten(1)
            return y

    for options, said in (
        (
            {"rules": {"network.conv9": "z+"}},
            "rules has 'network.conv9'; accepted are paths of the modules of Classifier",
        ),
        ({"rules": {"conv1": "z+"}}, "rules has 'conv1'; accepted are paths"),
        ({"rules": {nn.Conv3d: "z+"}}, "rules has Conv3d, and Classifier has no such module"),
        (
            {"rules": {nn.Conv2d: "z++"}},
            r"the rule of Conv2d is 'z\+\+'; accepted are rules of zennit and epsilon, z\+",
        ),
        ({"rules": {nn.Conv2d: rules.ZPlus}}, "the rule of Conv2d is <class"),
        ({"rules": {3: "z+"}}, "rules has the key 3; accepted are types of modules and paths"),
        ({"rules": ["z+"]}, "rules is a list; accepted are a mapping"),
        ({"canonizers": ["fold"]}, "canonizers has 'fold'; accepted are canonizers of zennit"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            lrp(model, x, 1, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    x = rand(2, 1, 1, 2)
    with pytest.raises(ValueError, match=r"both \(Bilinear\) takes several tensors"):
        lrp(Two().double().eval(), x, 1, rules={nn.Bilinear: "epsilon"})
    with pytest.raises(ValueError, match=r"rnn \(GRU\) returns a tuple"):
        lrp(Pair().double().eval(), x, 1, rules={nn.GRU: "epsilon"})


# --- signals -------------------------------------------------------------------------------------------------------


def signals() -> nn.Module:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(4, 4, 3), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(8, 3),
        )
    )  # fmt: skip
    model[1].running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
    return without_biases(model)


def test_lrp_of_signals_is_that_of_images_in_a_row() -> None:
    """Each layer of one dimension as one of two, and without biases input x gradient."""
    model, x = signals(), rand(2, 2, 16)
    flat = nn.Sequential(
        nn.Conv2d(2, 4, (1, 3), bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d((1, 2)),
        nn.Conv2d(4, 4, (1, 3)), nn.ReLU(), nn.AvgPool2d((1, 2)), nn.Flatten(), nn.Linear(8, 3),
    ).double().eval()  # fmt: skip
    flat.load_state_dict(
        {k: v.unsqueeze(2) if k in ("0.weight", "4.weight") else v for k, v in model.state_dict().items()}
    )
    for method in (partial(lrp, rule="epsilon-plus"), partial(lrp, rule="alpha2-beta1"), lrp):
        wanted = method(flat, x.unsqueeze(2), 1).squeeze(2)
        torch.testing.assert_close(method(model, x, 1), wanted, rtol=1e-9, atol=1e-12)
    a = lrp(model, x, 1)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-8 * a.abs().max().item())
    close(attn_lrp(models.fold_batchnorm(model, x), x, 1, epsilon=1e-6), a)
    close(attn_lrp(model, x, 1, epsilon=1e-14), input_x_gradient(model, x, 1))
    positive = model(x).argmax(1)
    r = deep_taylor(model, x, positive)
    torch.testing.assert_close(r.flatten(1).sum(1), model(x).amax(1).detach(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("example", [True, False])
def test_normalizations_of_signals_are_folded(example: bool) -> None:
    model, x = signals(), rand(2, 2, 16)
    folded = models.fold_batchnorm(model, x if example else None)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-14)
    assert isinstance(folded[1], nn.Identity)


@pytest.mark.parametrize("channels", [4, 32])
def test_an_attack_step_computes_no_convolution_for_each_group(channels: int) -> None:
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), depthwise, nn.ReLU(), nn.Flatten())
    model = model.append(nn.Linear(channels * 36, 2)).eval()
    z = torch.rand(2, 3, 6, 6, requires_grad=True)
    value = deep_taylor(model, z, 0, create_graph=True, check=False).square().sum()
    with torch.profiler.profile() as profile:
        torch.autograd.grad(value, z)
    calls = [event.name for event in profile.events() if event.name == "aten::_convolution"]
    # The rules have 2 passes of each layer, 4 where inputs have both signs; a derivative by the groups would add one a
    # channel and pass.
    assert len(calls) <= 16, len(calls)


@pytest.mark.parametrize("signed", [True, False])
def test_z_plus_has_no_pass_for_inputs_that_are_not_there(signed: bool) -> None:
    """Zennit's rule, with its derivative; of the last layer's two passes one, where no input of it is negative."""
    between = nn.Identity if signed else nn.ReLU
    end = [nn.Flatten(), nn.Linear(16, 2)]
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), between(), nn.Conv2d(3, 4, 3), *end))
    found = []
    for rule in ("z+", rules.ZPlus()):
        z = rand(2, 2, 6, 6).requires_grad_()
        with torch.profiler.profile() as profile:
            a = lrp(model, z, 1, rules={"2": rule}, create_graph=True, check=False)
        (slope,) = torch.autograd.grad(a.square().sum(), z)
        calls = sum(event.name == "aten::_convolution" for event in profile.events())
        found.append((a.detach(), slope, calls))
    for ours, theirs in zip(found[0][:2], found[1][:2], strict=True):
        assert bool(theirs.abs().max() > 0)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert found[1][2] - found[0][2] == (0 if signed else 1)
