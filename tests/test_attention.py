"""Attention taken apart, rollout and AttnLRP, against hand calculations, conservation and independent libraries."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from robattr import attributions, models, smoothing
from robattr.attacks import TopK, cosine_attack, iterative_attack
from robattr.attributions import (
    NEEDS_ATTENTION,
    attention_rollout,
    attn_lrp,
    attnlrp,
    gradient,
    gradient_rollout,
    input_x_gradient,
    lrp,
)
from robattr.attributions.attention import Decomposed, _check_shares

METHODS = {name: attributions.METHODS[name] for name in ("attn_lrp", *sorted(NEEDS_ATTENTION))}


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module, size: float = 0.3) -> nn.Module:
    """All parameters drawn, in float64: some are initialized with zeros, for which nothing is relevant."""
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64, generator=generator) * size
    return model.double().eval()


def torchvision_vit() -> nn.Module:
    return filled(torchvision.models.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=3))


def timm_vit(pool: str = "token", **options: object) -> nn.Module:
    return filled(
        timm.models.vision_transformer.VisionTransformer(
            img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3, global_pool=pool, **options
        )
    )


def swin() -> nn.Module:
    blocks = torchvision.models.swin_transformer
    return filled(blocks.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=3))


def convnext() -> nn.Module:
    blocks = torchvision.models.convnext
    return filled(blocks.ConvNeXt([blocks.CNBlockConfig(8, 16, 1), blocks.CNBlockConfig(16, None, 1)], num_classes=3))


VITS = {
    "torchvision": torchvision_vit,
    "timm, token": timm_vit,
    "timm, mean": partial(timm_vit, "avg"),
    "timm, registers": partial(timm_vit, reg_tokens=2),
    "timm, gates": partial(timm_vit, mlp_layer=timm.layers.SwiGLU, init_values=0.1, qk_norm=True),
}
ANY = {**VITS, "swin": swin, "convnext": convnext}


# --- attention taken apart -----------------------------------------------------------------------------------------


class Named(Decomposed):
    """Notes the names of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def step(self, name: str, func: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        self.names.append(name)
        return func(*args, **kwargs)  # type: ignore[operator]


def triangle(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": triangle(5)},
        {"attn_mask": rand(2, 4, 5, 5, seed=4)},
        {"attn_mask": torch.zeros(5, 5, dtype=torch.float64).masked_fill(~triangle(5), -math.inf) + 0.5},
        {"enable_gqa": True},
    ],
    ids=["plain", "scale", "causal", "bool", "added", "both", "grouped"],
)
def test_attention_is_the_calls_that_it_is_made_of(options: dict[str, object]) -> None:
    heads = 2 if "enable_gqa" in options else 4
    q, k, v = rand(2, 4, 5, 3), rand(2, heads, 5, 3, seed=1), rand(2, heads, 5, 6, seed=2)
    wanted = F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]
    with Named() as mode:
        found = F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    assert [name for name in mode.names if name in ("matmul", "softmax")] == ["matmul", "softmax", "matmul"]


@pytest.mark.parametrize("kind", ["self", "cross", "other widths", "batch first", "no biases", "single"])
@pytest.mark.parametrize("mask", ["none", "bool", "added", "each head", "padding", "both"])
def test_multi_head_attention_is_the_calls_that_it_is_made_of(kind: str, mask: str) -> None:
    options: dict[str, object] = {"batch_first": kind == "batch first", "bias": kind != "no biases"}
    if kind == "other widths":
        options |= {"kdim": 6, "vdim": 10}
    layer = filled(nn.MultiheadAttention(8, 2, **options))  # type: ignore[arg-type]
    other = kind in ("cross", "other widths")
    q = rand(4, 3, 8)
    k, v = (rand(5, 3, options.get(w, 8), seed=1) if other else q for w in ("kdim", "vdim"))  # type: ignore[arg-type]
    if kind == "batch first":
        q = k = v = q.transpose(0, 1)
    if kind == "single":
        q = k = v = q[:, 0]
    n, length = 1 if kind == "single" else 3, 5 if other else 4
    given: dict[str, object] = {}
    if mask in ("bool", "both"):
        given["attn_mask"] = ~torch.ones(4, length, dtype=torch.bool).tril()
    if mask == "added":
        given["attn_mask"] = rand(4, length, seed=3)
    if mask == "each head":
        given["attn_mask"] = rand(2 * n, 4, length, seed=3)
    if mask in ("padding", "both"):
        padding = torch.zeros(n, length, dtype=torch.bool)
        padding[:, -1] = True
        given["key_padding_mask"] = padding[0] if kind == "single" else padding
    for need, average in ((False, True), (True, True), (True, False)):
        run = partial(layer, q, k, v, need_weights=need, average_attn_weights=average, **given)
        wanted = run()
        with Named() as mode:
            found = run()
        for a, b in zip(found, wanted, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert mode.names.count("softmax") == 1
        assert mode.names.count("linear") == 4


def test_a_layer_of_transformers_is_seen_in_evaluation() -> None:
    """Without gradients PyTorch takes a fused kernel for it, which says nothing; not where somebody looks."""
    layer = filled(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    x = rand(2, 4, 8)
    with torch.no_grad():
        wanted = layer(x)
        with Named() as mode:
            found = layer(x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    assert "softmax" in mode.names


def test_attention_that_is_not_known_is_refused() -> None:
    x = rand(4, 2, 8)
    for options, said in (
        ({"add_bias_kv": True}, "an nn.MultiheadAttention has bias_k"),
        ({"add_zero_attn": True}, "an nn.MultiheadAttention has add_zero_attn"),
    ):
        layer = filled(nn.MultiheadAttention(8, 2, **options))
        with Named(), pytest.raises(ValueError, match=said):
            layer(x, x, x)
    with Named(), pytest.raises(ValueError, match=r"a dropout of 0\.1 in evaluation mode"):
        F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)


# --- rollout -------------------------------------------------------------------------------------------------------


def seen_weights(model: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Each layer's attention of a timm network that calls its parts, by hooks, and the logits."""
    kept: list[Tensor] = []
    handles = []
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda module, args, out: kept.append(out)))
    logits = model(x)
    for handle in handles:
        handle.remove()
    return kept, logits


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["timm, token", "timm, mean", "timm, registers"])
def test_rollout_is_the_product_of_what_hooks_see(name: str, fused: bool) -> None:
    model, x = VITS[name](), rand(2, 3, 16, 16)
    first = 3 if "registers" in name else 1
    weights, logits = seen_weights(copy.deepcopy(model), x)
    slopes = torch.autograd.grad(logits[:, 1].sum(), weights)
    for block in model.blocks:
        block.attn.fused_attn = fused
    eye = torch.eye(4 + first, dtype=torch.float64)
    plain = (0.5 * weights[1].mean(1) + 0.5 * eye) @ (0.5 * weights[0].mean(1) + 0.5 * eye)
    steps = [(w * g).clamp(min=0).mean(1) for w, g in zip(weights, slopes, strict=True)]
    weighted = eye + steps[0] + steps[1] @ (eye + steps[0])
    for method, total in ((attention_rollout, plain), (gradient_rollout, weighted)):
        row = total[:, first:].mean(1) if "mean" in name else total[:, 0]
        places = row[:, first:].detach().view(2, 1, 2, 2)
        wide = F.interpolate(places, size=(16, 16), mode="bilinear", align_corners=False)
        found = method(model, x, 1)
        torch.testing.assert_close(found, (wide / 3).expand_as(x), rtol=1e-11, atol=1e-14)
        assert found.shape == x.shape
        assert not found.requires_grad


class Two(nn.Module):
    """One attention of one head over two tokens, whose scores are 0 and log 3 for the first: weights 1/4 and 3/4."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 1, 1, bias=False)
        self.patches.weight.data.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        v = self.patches(x).flatten(2).transpose(1, 2)  # [N, 2, 1]
        keys = torch.tensor([[0.0], [math.log(3)]], dtype=x.dtype).expand(len(x), 1, 2, 1)
        out = F.scaled_dot_product_attention(torch.ones_like(keys), keys, v[:, None])[:, 0]
        logits: Tensor = (out + v).mean(1)
        return logits


def test_rollout_by_hand() -> None:
    """Both tokens attend with (1/4, 3/4). With the residual the rows are (5/8, 3/8) and (1/8, 7/8), in the mean
    (3/8, 5/8). The logit is the mean of what they see plus themselves: its slope by each weight is half the value
    (1/4 and 1/8), so the rows of the rollout by gradient are (1 + 1/16, 3/32) and (1/16, 1 + 3/32)."""
    x = torch.tensor([[[[0.5, 0.25]]]], dtype=torch.float64)
    row = lambda *v: torch.tensor([[[v]]], dtype=torch.float64)  # noqa: E731
    model = Two().double().eval()
    close = partial(torch.testing.assert_close, rtol=1e-14, atol=0)
    close(attention_rollout(model, x, 0), row(3 / 8, 5 / 8))
    close(attention_rollout(model, x, 0, pool=0), row(5 / 8, 3 / 8))
    close(attention_rollout(model, x, 0, pool=-1), row(1 / 8, 7 / 8))
    close(gradient_rollout(model, x, 0), row(9 / 16, 19 / 32))
    close(gradient_rollout(model, x, 0, pool=0), row(17 / 16, 3 / 32))


def test_all_tokens_that_are_read_count() -> None:
    """A distilled network reads two: the map is the mean of theirs."""
    model = filled(
        timm.models.deit.VisionTransformerDistilled(
            img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3
        )
    )
    x = rand(2, 3, 16, 16)
    both = (attention_rollout(model, x, 1, pool=0) + attention_rollout(model, x, 1, pool=1)) / 2
    torch.testing.assert_close(attention_rollout(model, x, 1), both, rtol=1e-12, atol=0)


def test_rollout_refuses_other_networks_by_name() -> None:
    x = rand(2, 3, 16, 16)
    for method in (attention_rollout, gradient_rollout):
        for model, said in (
            (swin(), r"features\.1\.0\.attn \(ShiftedWindowAttention\) attends with weights of shape .*not in windows"),
            (convnext(), "ConvNeXt calls no attention that rollout can see"),
        ):
            with pytest.raises(ValueError, match=said) as error:
                method(model, x, 1)
            assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match="pool is 7; the model has tokens 0 to 4"):
            method(torchvision_vit(), x, 1, pool=7)
        with pytest.raises(ValueError, match=r"pool is 'first'; accepted are .*'mean'"):
            method(torchvision_vit(), x, 1, pool="first")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"not seen how VisionTransformer pools its tokens; pass pool=0"):
            method(timm_vit("max"), x, 1)
        assert method(timm_vit("max"), x, 1, pool="mean").shape == x.shape


def test_shares_that_are_none_are_refused() -> None:
    _check_shares(torch.full((1, 2, 2), 0.5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"sum to 1 but for 0\.2: what was taken for attention is none"):
        _check_shares(torch.full((1, 2, 2), 0.6, dtype=torch.float64))


# --- AttnLRP -------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A pre-norm attention block with one head and a gated MLP, over patches, with a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(6), nn.LayerNorm(6), nn.RMSNorm(6)
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.up, self.gate, self.down = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patches(x).flatten(2).transpose(1, 2)
        n = self.norm1(t)
        t = t + self.o(F.scaled_dot_product_attention(self.q(n), self.k(n), self.v(n)))
        n = self.norm2(t)
        t = t + self.down(self.up(n) * F.silu(self.gate(n)))
        logits: Tensor = self.head(self.norm3(t).mean(1))
        return logits


def test_attn_lrp_by_hand() -> None:
    """Each rule written out as sums over indices, for every number of a small block."""
    m, x = filled(Block()), rand(2, 3, 8, 8)

    def linear(layer: nn.Linear, v: Tensor, r: Tensor) -> Tensor:
        # R_i = sum_j w_ji v_i R_j / z_j
        return v * torch.einsum("...j,ji->...i", r / layer(v), layer.weight)

    def norm(layer: nn.LayerNorm, v: Tensor, r: Tensor) -> Tensor:
        # The scale that is learned and the centering are linear; the deviation takes nothing.
        y = layer(v)
        centered = v - v.mean(-1, keepdim=True)
        c = r * (y - layer.bias) / y / centered
        return v * torch.einsum("...j,ji->...i", c, torch.eye(6, dtype=v.dtype) - 1 / 6)

    with torch.no_grad():
        patches = m.patches(x)
        t0 = patches.flatten(2).transpose(1, 2)
        n1 = m.norm1(t0)
        q, k, v = m.q(n1), m.k(n1), m.v(n1)
        scores = q @ k.mT / 6**0.5
        a = scores.softmax(-1)
        seen = a @ v
        t1 = t0 + m.o(seen)
        n2 = m.norm2(t1)
        up, gate = m.up(n2), m.gate(n2)
        hidden = up * F.silu(gate)
        t2 = t1 + m.down(hidden)
        n3 = m.norm3(t2)
        pooled = n3.mean(1)
        logit = m.head(pooled)
        r = linear(m.head, pooled, torch.zeros_like(logit).index_fill(1, torch.tensor(1), 1) * logit)
        r = n3 / 4 * (r / pooled)[:, None]  # the mean of four tokens; the RMS norm hands on what it gets
        into, past = r * m.down(hidden) / t2, r * t1 / t2
        r_hidden = linear(m.down, hidden, into)
        r_n2 = linear(m.up, n2, r_hidden / 2) + linear(m.gate, n2, r_hidden / 2)
        r = past + norm(m.norm2, t1, r_n2)
        into, past = r * m.o(seen) / t1, r * t0 / t1
        c = linear(m.o, seen, into) / (2 * seen)
        r_v = torch.einsum("njd,nji,nid->nid", c, a, v)
        r_a = torch.einsum("njd,nji,nid->nji", c, a, v)
        r_scores = scores * (r_a - a * r_a.sum(-1, keepdim=True))
        c = r_scores / (2 * q @ k.mT)
        r_q, r_k = torch.einsum("nji,njd,nid->njd", c, q, k), torch.einsum("nji,njd,nid->nid", c, q, k)
        r_n1 = linear(m.q, n1, r_q) + linear(m.k, n1, r_k) + linear(m.v, n1, r_v)
        r = past + norm(m.norm1, t0, r_n1)
        c = r.transpose(1, 2).view_as(patches) / patches
        expected = x * F.conv_transpose2d(c, m.patches.weight, stride=4)
    found = attn_lrp(m, x, 1, epsilon=1e-14)
    # A quotient by a number of 1e-3 of the terms that it is a sum of loses three digits; there are six in a row.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 * expected.abs().max().item())
    assert expected.abs().max() > 0


def test_attn_lrp_equals_lxt() -> None:
    """The rules of the authors' package, put together as the block is."""
    rules = pytest.importorskip("lxt.explicit.functional")
    identity = pytest.importorskip("lxt.explicit.rules").identity
    m, x = Block(), rand(2, 3, 8, 8)
    m.norm3 = nn.LayerNorm(6)  # their RMS norm is in float32
    filled(m).requires_grad_(False)
    linear = lambda layer, v: rules.linear_epsilon(v, layer.weight, layer.bias, 1e-14)  # noqa: E731
    norm = lambda layer, v: rules.layer_norm_grad_fn.apply(v, layer.weight, layer.bias, layer.eps, 1e-14)  # noqa: E731
    product, add = partial(rules.matmul, epsilon=1e-14), partial(rules.add2, epsilon=1e-14)
    z = x.clone().requires_grad_()
    cut = F.unfold(z, 4, stride=4).transpose(1, 2)  # a patch a row: the convolution as a linear layer
    t = rules.linear_epsilon(cut, m.patches.weight.flatten(1), m.patches.bias, 1e-14)
    n = norm(m.norm1, t)
    q, k, v = (linear(layer, n) for layer in (m.q, m.k, m.v))
    a = rules.softmax(rules.mul2(product(q, k.mT), torch.tensor(6**-0.5, dtype=x.dtype)), -1)
    t = add(t, linear(m.o, product(a, v)))
    n = norm(m.norm2, t)
    gate = linear(m.gate, n)
    t = add(t, linear(m.down, rules.mul2(linear(m.up, n), identity(F.silu, gate))))
    logits = linear(m.head, rules.mean(norm(m.norm3, t), 1, False, 1e-14))
    torch.testing.assert_close(logits, m(x), rtol=1e-10, atol=1e-12)
    seed = torch.zeros_like(logits)
    seed[:, 1] = logits[:, 1].detach()
    (theirs,) = torch.autograd.grad(logits, z, seed)
    ours = attn_lrp(m, x, 1, epsilon=1e-14)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7 * theirs.abs().max().item())


@pytest.mark.parametrize("name", ANY)
def test_relevance_is_conserved_or_the_map_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives, and what biases, constants, softmaxes and stabilizers took, is each image's logit, to rounding."""
    found: list[float] = []

    def look(ruled: attnlrp._Ruled, r: Tensor, logit: Tensor) -> list[int]:
        missed, size, *_ = ruled.balance(r, logit)
        found.extend((missed / size).tolist())
        return []

    monkeypatch.setattr(attnlrp._Ruled, "missed", look)
    model, x = ANY[name](), rand(2, 3, 16, 16)
    a = attn_lrp(model, x, torch.tensor([1, 2]))
    assert len(found) == 2
    assert max(found) < 1e-12  # of 1e-16 a sum, what cancels on the way costs four digits at most
    assert a.abs().max() > 0


def test_a_normalization_takes_nothing_wherever_it_stands() -> None:
    """In a classifier of this package, in a layer of one's own, or in place."""
    network, x = torchvision_vit(), rand(2, 3, 16, 16)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    model = models.Classifier(network, mean=mean, std=std, name="v", input_size=(3, 16, 16), num_classes=3)
    model = model.double().eval()
    wanted = attn_lrp(model, x, 1)
    m, s = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (mean, std))
    # The parameters of the classifier's normalization are rounded to float32 first.
    m, s = m.float().double(), s.float().double()

    class Own(nn.Module):
        def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.network, self.change = network, change

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.network(self.change(x))
            return y

    for change in (lambda v: (v - m) / s, lambda v: v.sub_(m).div_(s), lambda v: -(m / s) + v.clone() * (1 / s)):
        found = attn_lrp(Own(change).eval(), x, 1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9 * wanted.abs().max().item())


def test_a_constant_has_its_share_of_what_was_written_over_the_image() -> None:
    """``tanh(x) + 1`` is no normalization, though it stands where the image stood: a pixel has tanh / (tanh + 1)."""

    class Sums(nn.Module):
        def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.change = change

        def forward(self, x: Tensor) -> Tensor:
            return self.change(x).flatten(1).sum(1, keepdim=True)

    x = rand(2, 1, 2, 2)
    for change in (lambda v: v.tanh_().add_(1), lambda v: v.tanh() + 1):
        found = attn_lrp(Sums(change).eval(), x, 0, epsilon=1e-14)
        torch.testing.assert_close(found, x.tanh(), rtol=1e-12, atol=0)


def test_attention_conserves_relevance_where_nothing_takes_any() -> None:
    """With constant weights, no biases and no norm all of the logit arrives at the pixels, but for stabilizers."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 6, 4, 4, bias=False)
            self.o, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)
            self.queries = nn.Parameter(torch.zeros(1, 4, 6))

        def forward(self, x: Tensor) -> Tensor:
            t = self.patches(x).flatten(2).transpose(1, 2)
            q = self.queries.expand(len(x), -1, -1)
            t = t + F.gelu(self.o(F.scaled_dot_product_attention(q, q.flip(1), t)))
            logits: Tensor = self.head(t[:, 0])
            return logits

    model, x = filled(Plain()), rand(2, 3, 8, 8)
    a = attn_lrp(model, x, 1, epsilon=1e-14)
    torch.testing.assert_close(a.flatten(1).sum(1), model(x)[:, 1].detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["lenet", "resnet18-cifar", "efficientnet-lite0"])
def test_attn_lrp_of_a_convolutional_network_is_lrp(name: str) -> None:
    """By the epsilon rule a batch normalization that is folded is the same as one more linear layer."""
    options = {"weights": "random", "num_classes": 5} if "lite" in name else {}
    model = models.build(name, seed=3, **options).double()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    x = rand(1, 3, 32, 32)
    folded = models.fold_batchnorm(model)
    # With zennit's stabilizer, and the same layers.
    a, b = attn_lrp(folded, x, 1, epsilon=1e-6), lrp(model, x, 1, epsilon=1e-6)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-8 * b.abs().max().item())
    # With next to none, and the normalizations' own quotients.
    a, b = (attn_lrp(each, x, 1, epsilon=1e-14) for each in (model, folded))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * b.abs().max().item())
    assert b.abs().max() > 0


def test_without_biases_attn_lrp_of_straight_pieces_is_input_x_gradient() -> None:
    class Straight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 3, bias=False)
            self.norm = nn.BatchNorm2d(3, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, x.flip(2)], 2)
            y = torch.relu(self.conv(self.norm(x)))
            y = 2 * y / 3 - y.abs()
            y += y / 4
            z: Tensor = self.fc(F.max_pool2d(y, 2).mean((2, 3)))
            return z

    model, x = filled(Straight()), rand(2, 3, 8, 8)
    a = attn_lrp(model, x, 1, epsilon=1e-14)
    torch.testing.assert_close(a, input_x_gradient(model, x, 1), rtol=0, atol=1e-9 * a.abs().max().item())
    torch.testing.assert_close(a.flatten(1).sum(1), model(x)[:, 1].detach(), rtol=1e-9, atol=0)


class Unseen(torch.autograd.Function):
    """A call that no mode sees, and whose derivative is twice what it should be."""

    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return 2 * g


def test_relevance_that_is_made_on_the_way_is_refused_with_its_error() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 1, bias=False)
            self.fc.weight.data.fill_(1.0)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(Unseen.apply(x).flatten(1))
            return y

    x = torch.tensor([[[[0.5, 0.25]]]], dtype=torch.float64)
    model = Doubled().double().eval()
    # 1.5 for .75: .75 too much, of 1.5 + .75.
    with pytest.raises(
        ValueError, match=r"image 0 sums to 1\.5, .*for a logit of 0\.75: a relative error of 0\.33.*check=False"
    ):
        attn_lrp(model, x, 0)
    torch.testing.assert_close(attn_lrp(model, x, 0, check=False), 2 * x, rtol=1e-5, atol=0)


class Opposed(torch.autograd.Function):
    """As :class:`Unseen`, but what the first image gains the second loses."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, images: int) -> Tensor:
        ctx.images = images
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        factors = g.new_tensor([2.0, 0.0]) if g.shape[ctx.images] == 2 else g.new_tensor([2.0])
        return g * factors.view(-1, *[1] * (g.ndim - 1 - ctx.images)), None


class Sequence(nn.Module):
    """Tokens before images, [T, N, C], as PyTorch's own attention has them by default; or after."""

    def __init__(self, first: bool, wrong: bool) -> None:
        super().__init__()
        self.first, self.wrong = first, wrong
        self.patches, self.fc = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=not first)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patches(x).flatten(2)
        t = t.permute(2, 0, 1) if self.first else t.permute(0, 2, 1)
        if self.wrong:
            t = Opposed.apply(t, 1 if self.first else 0)
        t = t + self.attention(t, t, t)[0]
        y: Tensor = self.fc(t.mean(0 if self.first else 1))
        return y


@pytest.mark.parametrize("first", [False, True], ids=["images first", "tokens first"])
def test_errors_of_two_images_do_not_cancel(first: bool) -> None:
    """The same image twice: relevance that one has too much the other lacks, and their sum is right."""
    x = rand(1, 3, 8, 8).repeat(2, 1, 1, 1)
    model, wrong = filled(Sequence(first, False)), filled(Sequence(first, True))
    right = attn_lrp(model, x, 1)
    found = attn_lrp(wrong, x, 1, check=False)
    torch.testing.assert_close(found.sum(0), right.sum(0), rtol=1e-9, atol=1e-12)
    assert found[1].abs().max() == 0
    assert right[0].abs().max() > 0
    with pytest.raises(ValueError, match=r"the relevance of image 0 sums to"):
        attn_lrp(wrong, x, 1)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_where_images_lie_is_all_the_same(n: int) -> None:
    """Sums of images are told apart by the first dimension; where that is not theirs, one by one. None is refused."""
    x = rand(n, 3, 8, 8)
    model, other = filled(Sequence(True, False)), filled(Sequence(False, False))
    torch.testing.assert_close(attn_lrp(model, x, 1), attn_lrp(other, x, 1), rtol=1e-9, atol=1e-12)


class Calls(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.LazyLinear(3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.function(self.conv(x)).flatten(1))  # type: ignore[operator]
        return y


def calling(function: object) -> nn.Module:
    model = Calls(function).double()
    model(rand(1, 3, 6, 6))
    return filled(model)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda z: z.exp(), "no rule for exp, which the model itself (Calls) calls"),
        (lambda z: z / z.abs().amax(), "no rule for div, which the model itself (Calls) calls"),
        (lambda z: z.cumsum(2), "no rule for cumsum"),
        (lambda z: torch.where(z > 0, z, 0), "no rule for where"),
        (lambda z: z.std(1), "no rule for std"),
        (lambda z: z.log_softmax(1), "no rule for log_softmax"),
        (lambda z: z.square(), "no rule for square"),
        (lambda z: F.glu(z, 1), "no rule for glu"),
        (lambda z: torch.einsum("nchw,nchw,nchw->nc", z, z, z), "no rule for einsum"),
        (
            lambda z: F.conv2d(z, torch.ones(1, 4, 1, 1, dtype=z.dtype), z.mean((0, 1, 2, 3))[None]),
            "no rule for conv2d",
        ),
        (lambda z: torch.div(z, 2, rounding_mode="floor") + z, "no rule for div"),
        (nn.Tanhshrink(), "no rule for tanhshrink, which function (Tanhshrink) calls"),
        (nn.LSTM(4, 4).double(), "no rule for lstm"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(function: object, said: str) -> None:
    if isinstance(function, nn.LSTM):
        layer = function
        function = lambda z: layer(z.flatten(2).transpose(1, 2))[0]  # noqa: E731
    with pytest.raises(ValueError, match="integrated_gradients or smoothgrad") as error:
        attn_lrp(calling(function), rand(2, 3, 6, 6), 1)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


KERNEL = rand(4, 2, 2, 2, seed=5) - 0.5
PLAIN = {
    "relu": (torch.relu, [lambda z: F.relu(z, inplace=True), lambda z: F.relu(input=z), lambda z: z.relu_()]),
    "sum": (lambda z: z + 2 * z, [lambda z: torch.add(input=z, other=z, alpha=2), lambda z: z - -2 * z]),
    "difference": (lambda z: 1 - z, [lambda z: torch.rsub(z, 1), lambda z: -z + 1, lambda z: torch.sub(1 + 0 * z, z)]),
    "product": (lambda z: z * z.sigmoid(), [lambda z: torch.mul(z, z.sigmoid()), lambda z: z.sigmoid().mul_(z)]),
    "mean": (lambda z: z.mean((2, 3)), [lambda z: F.adaptive_avg_pool2d(z, 1), lambda z: z.sum((2, 3)) / 16]),
    "norm": (nn.GroupNorm(1, 4, affine=False), [lambda z: F.layer_norm(z, z.shape[1:])]),
    "single": (nn.InstanceNorm2d(4), [nn.GroupNorm(4, 4, affine=False)]),
    "contraction": (
        lambda z: z.flatten(2) @ z.flatten(2).mT,
        [
            lambda z: torch.einsum("nip,njp->nij", z.flatten(2), z.flatten(2)),
            lambda z: torch.bmm(z.flatten(2), z.flatten(2).mT),
        ],
    ),
    "transposed": (
        lambda z: F.conv_transpose2d(z, KERNEL, torch.ones(2, dtype=z.dtype)),
        [lambda z: F.conv2d(F.pad(z, (1, 1, 1, 1)), KERNEL.transpose(0, 1).flip(2, 3), torch.ones(2, dtype=z.dtype))],
    ),
    "quotient": (lambda z: z / 3, [lambda z: torch.div(input=z, other=3), lambda z: z.true_divide_(3)]),
    "softmax": (lambda z: z.softmax(1), [lambda z: torch.softmax(z, dim=-3), nn.Softmax(1)]),
    "copy": (
        lambda z: 2 * torch.sigmoid(z[:, :1]).expand_as(z),
        [lambda z: z.copy_(torch.sigmoid(z[:, :1]).clone()).mul_(2), lambda z: 2 * z.copy_(other=z[:, :1].sigmoid())],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_a_call_is_the_same_however_it_is_made(name: str) -> None:
    plain, others = PLAIN[name]
    x = rand(2, 3, 6, 6)
    wanted = attn_lrp(calling(plain), x, 1, epsilon=1e-14)
    for other in others:
        model = calling(other)
        torch.testing.assert_close(model(x), calling(plain)(x), rtol=1e-10, atol=1e-12)
        found = attn_lrp(model, x, 1, epsilon=1e-14)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8 * wanted.abs().max().item())
    assert wanted.abs().max() > 0


def test_impossible_options_of_attn_lrp_are_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon is 0\.0; the stabilizer"):
        attn_lrp(torchvision_vit(), rand(1, 3, 16, 16), 1, epsilon=0.0)


# --- all three -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", VITS)
def test_a_batch_is_its_images(name: str, method: str) -> None:
    model, x, y = VITS[name](), rand(3, 3, 16, 16), torch.tensor([0, 2, 1])
    whole = METHODS[method](model, x, y)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-9 * whole.abs().max().item())
    close(torch.cat([METHODS[method](model, x[i : i + 1], y[i : i + 1]) for i in range(3)]), whole)
    close(METHODS[method](model, x, y, max_batch=2), whole)  # type: ignore[call-arg]
    assert not whole.requires_grad
    assert whole.abs().max() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ANY)
def test_the_derivative_is_that_of_central_differences(name: str, method: str) -> None:
    if method in NEEDS_ATTENTION and name not in VITS:
        return  # refused, see above
    # Without poles nearby: a stabilizer that is no small number smooths the quotients of relevance.
    options = {"epsilon": 0.1} if method == "attn_lrp" else {}
    model, x = ANY[name](), rand(2, 3, 16, 16)
    run = partial(METHODS[method], model, target=torch.tensor([1, 2]), **options)
    v, weight = rand(*x.shape, seed=1) - 0.5, rand(*x.shape, seed=2)
    z = x.clone().requires_grad_()
    a = run(x=z, create_graph=True)
    torch.testing.assert_close(a.detach(), run(x=x), rtol=0, atol=1e-10 * a.abs().max().item())
    (d,) = torch.autograd.grad((a * weight).sum(), z)
    # Central differences at two steps, whose h^2 terms cancel.
    near, far = (((run(x=x + h * v) - run(x=x - h * v)) * weight).sum() / (2 * h) for h in (1e-5, 2e-5))
    numeric = (4 * near - far) / 3
    torch.testing.assert_close((d * v).sum(), numeric, rtol=1e-5, atol=1e-7 * a.abs().max().item())
    assert d.abs().max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_attacks_move_it_and_keep_the_class(method: str) -> None:
    model, x = torchvision_vit(), rand(2, 3, 16, 16)
    options = {"attribution": METHODS[method], "iterations": 8}
    found = iterative_attack(model, x, objective=TopK(20), epsilon=8 / 255, step=2 / 255, **options)  # type: ignore[arg-type]
    assert found.success.all()
    assert (found.objective > found.trace[0]).all()
    turned = cosine_attack(model, x, epsilon=0.1, restarts=1, **options)  # type: ignore[arg-type]
    assert (turned.cosine < turned.trace[0, 0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_its_smoothed_map_is_certified(method: str) -> None:
    """A certificate is no more than the cosine of the two smoothed maps, whatever changes the image within it."""
    model, x = torchvision_vit(), rand(1, 3, 16, 16)
    noise = smoothing.Gaussian(0.2)
    options = {"attribution": METHODS[method], "noise": noise, "samples": 200}
    certified = smoothing.certify(model, x, torch.tensor([1]), epsilon=[0.02], **options)  # type: ignore[arg-type]
    assert -1 <= certified.expectation.min() <= certified.expectation.max() <= 1
    assert gradient(model, x, 1).shape == METHODS[method](model, x, 1).shape
