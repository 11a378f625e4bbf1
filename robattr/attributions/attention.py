"""Attention taken apart into the calls that it is made of, and rollout: which tokens does a class token come from?"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robattr._rows import parts_of
from robattr._second_order import SecondOrder
from robattr.attributions.calls import OTHERS, Calls, check_calls_are_seen, place
from robattr.attributions.maps import on_pixels
from robattr.attributions.protocol import Target, called, check_target, explains, target_logits

Call = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Decomposed(Calls):
    """Sees an attention as products, a softmax and linear layers, whether the network calls one function or several.

    ``F.scaled_dot_product_attention`` and ``F.multi_head_attention_forward`` become the calls that define them. These
    have second derivatives everywhere, which kernels that fuse them have not.
    """

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "scaled_dot_product_attention":
            return attend(self.call, *args, **kwargs)
        if name == "multi_head_attention_forward":
            return multi_head(self.call, *args, **kwargs)
        return self.step(name, func, args, kwargs)

    def step(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


def attend(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` as two products and a softmax, each made through ``call``.

    Raises:
        ValueError: it draws dropout.
    """
    if dropout_p:
        raise ValueError(f"an attention has a dropout of {dropout_p} in evaluation mode; let it be 0 there")
    if enable_gqa:
        key, value = (v.repeat_interleave(query.shape[-3] // v.shape[-3], -3) for v in (key, value))
    scores = call("matmul", torch.matmul, (query, key.transpose(-2, -1)), {})
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = call("mul", torch.mul, (scores, factor), {})
    if is_causal:
        rows, columns = scores.shape[-2:]
        attn_mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        shut = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask == -math.inf
        if attn_mask.dtype != torch.bool and bool((attn_mask.masked_fill(shut, 0) != 0).any()):
            scores = call("add", torch.add, (scores, attn_mask.masked_fill(shut, 0)), {})
        if bool(shut.any()):
            scores = call("masked_fill", torch.masked_fill, (scores, shut, -math.inf), {})
    weights = call("softmax", torch.softmax, (scores, -1), {})
    out: Tensor = call("matmul", torch.matmul, (weights, value), {})
    return out


_HEADS = inspect.signature(F.multi_head_attention_forward)


def multi_head(call: Call, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """``F.multi_head_attention_forward``, which ``nn.MultiheadAttention`` calls, as the calls that it is made of.

    Raises:
        ValueError: it adds keys and values of its own (``bias_k``, ``add_zero_attn``), or draws dropout.
    """
    bound = _HEADS.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    for name in ("bias_k", "bias_v", "static_k", "static_v"):
        if given[name] is not None:
            raise ValueError(f"an nn.MultiheadAttention has {name}, which is not known here; take {OTHERS}")
    if given["add_zero_attn"]:
        raise ValueError(f"an nn.MultiheadAttention has add_zero_attn, which is not known here; take {OTHERS}")
    single = given["query"].ndim == 2
    # [N, L, E], images first as in other calls.
    query, key, value = (
        given[name].unsqueeze(0) if single else given[name].transpose(0, 1) for name in ("query", "key", "value")
    )
    heads, bias = given["num_heads"], given["in_proj_bias"]
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    if given["use_separate_proj_weight"]:
        weights = [given[f"{name}_proj_weight"] for name in ("q", "k", "v")]
    else:
        weights = list(given["in_proj_weight"].chunk(3))

    def apart(x: Tensor, weight: Tensor, b: Tensor | None) -> Tensor:
        y: Tensor = call("linear", F.linear, (x, weight, b), {})
        n, length, width = y.shape
        return y.view(n, length, heads, width // heads).transpose(1, 2)  # [N, heads, L, d]

    q, k, v = (apart(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    mask = _mask(given["attn_mask"], given["key_padding_mask"], q, k)
    causal = given["is_causal"] and mask is None
    dropout = given["dropout_p"] if given["training"] else 0.0
    kept: list[Tensor] = []

    def noting(name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = call(name, func, args, kwargs)
        if name == "softmax":
            kept.append(out)
        return out

    out = attend(noting, q, k, v, mask, dropout, causal).transpose(1, 2).flatten(2)
    out = call("linear", F.linear, (out, given["out_proj_weight"], given["out_proj_bias"]), {})
    shares = None
    if given["need_weights"]:
        shares = kept[0].mean(1) if given["average_attn_weights"] else kept[0]
    if single:
        return out.squeeze(0), None if shares is None else shares.squeeze(0)
    return out.transpose(0, 1), shares


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Both masks of ``nn.MultiheadAttention`` in one that is added to the scores [N, heads, L, S]."""
    if attn_mask is None and padding is None:
        return None
    total = torch.zeros((), dtype=q.dtype, device=q.device)
    for mask, of_keys in ((attn_mask, False), (padding, True)):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, -math.inf)
        if of_keys:
            mask = mask.view(len(q), 1, 1, k.shape[2])
        elif mask.ndim == 3:
            mask = mask.view(len(q), q.shape[1], q.shape[2], k.shape[2])
        total = total + mask
    return total


class _Attentions(Decomposed):
    """A pass whose attentions over all tokens of an image are kept, with how the tokens are pooled after the last."""

    def __init__(self, model: nn.Module, n: int) -> None:
        super().__init__()
        self.model = model
        self.n = n
        self.weights: list[Tensor] = []
        self.grid: tuple[int, ...] | None = None
        self.pooled: list[Literal["mean"] | int] = []

    def step(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        if name in ("conv2d", "conv1d") and not self.weights and out.ndim > 2:
            self.grid = tuple(out.shape[2:])
        elif name == "softmax" and out.ndim > 2 and _dimension(out, args, kwargs) == out.ndim - 1:
            self._keep(out)
        elif self.weights and args and isinstance(args[0], Tensor) and args[0].ndim == 3 and len(args[0]) == self.n:
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if name == "__getitem__" and isinstance(dim, tuple) and len(dim) == 2 and dim[0] == slice(None):
                self.pooled += [dim[1]] if isinstance(dim[1], int) else []
            elif name == "mean" and dim in (1, (1,), [1], -2):
                self.pooled.append("mean")
            elif name == "select" and dim == 1:
                self.pooled.append(args[2] if len(args) > 2 else kwargs["index"])
        return out

    def _keep(self, weights: Tensor) -> None:
        size = tuple(weights.shape)
        tokens = self.weights[0].shape[-1] if self.weights else size[-1]
        if size[-2] != size[-1] or size[-1] != tokens or len(weights) != self.n or weights.ndim != 4:
            raise ValueError(
                f"{place(self.model)} attends with weights of shape {size} for {self.n} images, and rollout is for "
                f"attention over all tokens of an image, [{self.n}, heads, tokens, tokens], the same in all layers: "
                f"not in windows; take attn_lrp, {OTHERS}"
            )
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights.requires_grad_()  # the logit has a gradient by them even where they are constants
        self.pooled.clear()
        self.weights.append(weights)


def _dimension(out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Along which dimension a softmax runs."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return int(dim) % out.ndim if dim is not None else -1


@explains
def attention_rollout(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    pool: Literal["mean"] | int | None = None,
    max_batch: int | None = None,
    check: bool = True,
) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): how much of the token that is read comes from each patch.

    Each layer's attention, the mean over its heads, is averaged with the identity, which stands for the residual
    connection. The product over the layers says of each token which tokens of the first layer it is made of; its row
    for the class token, or the mean of the rows where tokens are averaged, is drawn on the pixels, between patches
    bilinearly. The map does not depend on the class: ``target`` is checked and not used.

    Attentions are seen where they are called: ``F.scaled_dot_product_attention``, ``nn.MultiheadAttention``, or a
    softmax of ``[N, heads, tokens, tokens]``. The tokens are a grid of patches, that of the output of the last
    convolution before them, after any number of others.

    Checked is that a token's shares sum to 1, as they do in every product of averages.

    Args:
        model: a vision transformer whose layers attend over all tokens, as torchvision's and timm's ViT and DeiT.
        pool: index of the token that is read, or ``mean``; None for what is seen in the pass, where several tokens
            that are read count alike.
        max_batch: largest number of images in one pass; None for all at once.
        check: refuse shares that do not sum to 1; False is for who wants them knowingly.

    Other arguments and errors are those of :func:`gradient`.

    Returns:
        [N, C, H, W], not negative: the share of each patch, spread over its pixels and channels alike.

    Raises:
        ValueError: as for :func:`gradient`; or the model attends in windows (Swin, MaxViT) or not at all, or it is not
            seen how tokens are pooled or where they lie; or is compiled or scripted; or the check fails.
    """
    return _rollout(model, x, target, _average, create_graph, pool, max_batch, check)


@explains
def gradient_rollout(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    pool: Literal["mean"] | int | None = None,
    max_batch: int | None = None,
) -> Tensor:
    """Rollout of attention weighted by its gradient (Chefer, Gur & Wolf 2021, for self-attention): one map a class.

    Each layer adds ``A R`` to the rollout R, with A the mean over heads of the positive part of attention times the
    derivative of the target's logit by it. Nothing is normalized: the identity keeps each token's own share, so there
    is no sum to check.

    Arguments, errors and the shape of the result are those of :func:`attention_rollout`.
    """
    return _rollout(model, x, target, _weighted, create_graph, pool, max_batch, False)


_Step = Callable[[list[Tensor], Tensor, bool], list[Tensor]]


def _average(weights: list[Tensor], logit: Tensor, create_graph: bool) -> list[Tensor]:
    return [(w.mean(1) + torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)) / 2 for w in weights]


def _weighted(weights: list[Tensor], logit: Tensor, create_graph: bool) -> list[Tensor]:
    # The last layer's other tokens may reach no logit at all.
    slopes = torch.autograd.grad(logit.sum(), weights, create_graph=create_graph, materialize_grads=True)
    return [
        (w * g).clamp(min=0).mean(1) + torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
        for w, g in zip(weights, slopes, strict=True)
    ]


def _rollout(
    model: nn.Module,
    x: Tensor,
    target: Target,
    steps: _Step,
    create_graph: bool,
    pool: Literal["mean"] | int | None,
    max_batch: int | None,
    check: bool,
) -> Tensor:
    if not (pool is None or pool == "mean" or (isinstance(pool, int) and not isinstance(pool, bool))):
        raise ValueError(f"pool is {pool!r}; accepted are the index of a token, 'mean' and None for what is seen")
    check_calls_are_seen(model, "rollout")
    labels = check_target(x, target)
    parts = []
    for part in parts_of(len(x), max_batch):
        z = x[part] if create_graph and x.requires_grad else x[part].detach().requires_grad_()
        with torch.set_grad_enabled(create_graph or steps is _weighted), SecondOrder():
            seen = _Attentions(model, len(z))
            with seen:
                logits = called(model, z)
            logit = target_logits(logits, labels[part])
            if not seen.weights:
                raise ValueError(
                    f"{type(model).__name__} calls no attention that rollout can see (scaled_dot_product_attention, "
                    f"nn.MultiheadAttention, a softmax over tokens); take attn_lrp, {OTHERS}"
                )
            total: Tensor | None = None
            for step in steps(seen.weights, logit, create_graph):
                total = step if total is None else step @ total
            assert total is not None
            if check:
                _check_shares(total)
            parts.append(_of_patches(total, seen, pool, z))
    out = torch.cat(parts)
    return out if create_graph else out.detach()


@torch.no_grad()
def _check_shares(total: Tensor) -> None:
    """The shares of each token sum to 1, to half of the digits."""
    worst = float((total.sum(-1) - 1).abs().max())
    if not worst <= torch.finfo(total.dtype).eps ** 0.5:
        raise ValueError(
            f"the shares of a token sum to 1 but for {worst:.2g}: what was taken for attention is none; take {OTHERS}, "
            "or check=False to go on knowingly"
        )


def before_patches(tokens: int, grid: tuple[int, ...] | None) -> int | None:
    """How many tokens come before those of the patches on a grid; None where the tokens are others."""
    first = tokens - math.prod(grid or ())
    # Those of classes and registers are fewer than the patches.
    return first if grid is not None and 0 <= first < math.prod(grid) else None


def _of_patches(total: Tensor, seen: _Attentions, pool: Literal["mean"] | int | None, x: Tensor) -> Tensor:
    tokens = total.shape[-1]
    first = before_patches(tokens, seen.grid)
    if first is None or seen.grid is None:
        raise ValueError(
            f"{type(seen.model).__name__} attends over {tokens} tokens, and no convolution before says on which grid "
            f"they lie; take {OTHERS}"
        )
    read = seen.pooled if pool is None else [pool]
    if not read:
        raise ValueError(
            f"it is not seen how {type(seen.model).__name__} pools its tokens; pass pool=0 for a class token that "
            "comes first, or pool='mean'"
        )
    rows = []
    for token in read:
        if token != "mean" and not -tokens <= token < tokens:
            raise ValueError(f"pool is {token}; the model has tokens 0 to {tokens - 1}")
        rows.append(total[:, first:].mean(1) if token == "mean" else total[:, token])
    row = torch.stack(rows).mean(0)
    return on_pixels(row[:, first:].view(len(x), *seen.grid), x)
