"""What every attribution method takes and refuses: images, classes, a model, and how many images share a pass.

Everything that reads a gradient goes through here: :func:`explains` is on each method, :func:`differentiates` on each
attack, :func:`frozen` in whatever works on a copy of the model, :func:`check_target` and :func:`target_logits` in all.
One rule for modes: a model is explained in evaluation mode. One in training mode is refused, unless it is made of
layers of PyTorch alone that are the same in both. ``torch.no_grad()`` and ``torch.inference_mode()`` around a call
change nothing.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from robattr.models import Normalize, SoftClip

Normalization = Literal["sum", "max", "l2"]
Target = Tensor | int | np.integer[Any] | np.ndarray[Any, Any] | Sequence[int]
M = TypeVar("M", bound=nn.Module)
P = ParamSpec("P")
R = TypeVar("R")


class Attribution(Protocol):
    """What an attack or a chapter takes as an attribution method; bind other options with ``functools.partial``."""

    def __call__(self, model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False) -> Tensor: ...


def explains(method: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """A method that checks the model's mode, runs as if nobody had turned gradients off, and fails in one line."""

    def check(model: object, x: object) -> None:
        check_evaluation(model)
        if not isinstance(x, Tensor):
            raise ValueError(f"x is a {type(x).__name__}; accepted is a floating batch [N, ...], N >= 1")

    return _guarded(method, check)


def differentiates(search: Callable[P, R]) -> Callable[P, R]:
    """An attack, or another search, that runs as if nobody had turned gradients off, and fails in one line."""
    return _guarded(search, lambda model, images: None)


def _guarded(function: Callable[P, R], check: Callable[[object, object], None]) -> Callable[P, R]:
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        check(args[0] if args else kwargs.get("model"), args[1] if len(args) > 1 else kwargs.get("x"))
        with torch.inference_mode(False), torch.enable_grad():
            given: Any = [_ordinary(value) for value in args]
            options: Any = {key: _ordinary(value) for key, value in kwargs.items()}
            try:
                return function(*given, **options)
            except RuntimeError as error:
                values = (*given, *options.values())
                _explain(
                    error, *(next((v for v in values if isinstance(v, kind)), None) for kind in (nn.Module, Tensor))
                )
                raise

    return run


V = TypeVar("V")


def _ordinary(value: V) -> V:
    """A tensor that was made in inference mode as one that a gradient can be taken of."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value  # type: ignore[return-value]


def _explain(error: RuntimeError, model: object, x: object) -> None:
    """Raise a ValueError of one line where a raw error has a known cause."""
    if not (isinstance(model, nn.Module) and isinstance(x, Tensor)):
        return
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weights is None:
        return
    if weights.is_inference():
        raise ValueError(
            "the model was made in torch.inference_mode(), so nothing of it can be differentiated; make it outside, or "
            "pass copy.deepcopy(model) made outside"
        ) from error
    if weights.dtype != x.dtype:
        raise ValueError(
            f"x is {x.dtype} and the model's parameters are {weights.dtype}; convert one, for example "
            f"x.to({weights.dtype})"
        ) from error
    if weights.device != x.device:
        raise ValueError(
            f"x is on {x.device} and the model's parameters are on {weights.device}; move one, for example "
            f"x.to({str(weights.device)!r})"
        ) from error
    said = str(error).splitlines()[0]
    if "is not implemented" in said:
        raise ValueError(
            f"{type(model).__name__} calls what PyTorch has no second derivative of ({said}); this method, or an "
            "attack on it, needs one: replace that layer by one of ordinary operations"
        ) from error


def check_evaluation(model: object) -> None:
    """Refuse a model in training mode, unless it is made of layers of PyTorch alone that are the same in both modes.

    Raises:
        ValueError: naming the layer.
    """
    if not isinstance(model, nn.Module):
        return
    if not any(module.training for module in model.modules()):
        return
    for name, module in model.named_modules():
        if module.training and _depends_on_mode(module):
            raise ValueError(
                f"the model is in training mode ({name or 'the model itself'}, {type(module).__name__}), where images "
                "of a batch influence one another or noise is drawn; call model.eval()"
            )


_OF_TWO_MODES = ("Dropout", "Norm", "RReLU", "Attention", "Transformer", "RNN", "LSTM", "GRU", "Lazy", "FeatureAlpha")


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether a layer may be another function in training mode; what is not PyTorch's own may."""
    name = type(module).__name__
    if isinstance(module, (Normalize, SoftClip)) or name in ("LayerNorm", "GroupNorm", "RMSNorm"):
        return False
    return not type(module).__module__.startswith("torch.nn.") or any(part in name for part in _OF_TWO_MODES)


def called(model: Callable[[Tensor], Any], x: Tensor) -> Any:
    """What the model gives for x, which stays as it is even if the model writes over its input.

    Raises:
        ValueError: it did so behind the back of the derivative, through ``x.data``.
    """
    z = x.clone()
    version = z._version
    out = model(z)
    if z._version == version and not torch.equal(z, x):
        raise ValueError(
            f"{type(model).__name__} writes over its input through x.data, which no derivative sees; let it compute a "
            "new tensor"
        )
    return out


def check_target(x: Tensor, target: Target) -> Tensor:
    """The labels as int64 [N] on x's device, when images and target fit each other; a ValueError otherwise.

    A target is one class for all images, or one an image: integers of Python or numpy, a list or tuple of them, an
    array or a tensor of shape [N], or [N, 1] as ``argmax(1, keepdim=True)`` gives.
    """
    if x.ndim < 2 or not x.is_floating_point() or x.numel() == 0:
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; accepted is a floating batch of images [N, C, H, W], signals "
            "[N, C, L] or features [N, F], N >= 1"
        )
    if not torch.isfinite(x).all():
        raise ValueError("x has NaN or infinite values; attributions are defined for finite images")
    if isinstance(target, (int, np.integer)) and not isinstance(target, bool):
        return torch.full((len(x),), int(target), device=x.device)
    try:
        given = target if isinstance(target, Tensor) else torch.as_tensor(np.asarray(target))
    except (TypeError, ValueError):
        given = torch.empty(0)
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if whole and given.ndim == 0:
        return given.to(x.device, torch.int64).expand(len(x))
    if not whole or given.shape not in ((len(x),), (len(x), 1)):
        what = f"{given.dtype} of shape {tuple(given.shape)}" if given.numel() else f"{target!r}"
        raise ValueError(f"target is {what}; accepted is one class an image, int64 [{len(x)}], or one int for all")
    return given.flatten().to(x.device, torch.int64)


def frozen(model: M) -> M:
    """A copy whose parameters are constants, for derivatives with respect to images only.

    Raises:
        ValueError: the model is in training mode, whatever its layers.
    """
    check_evaluation(model)
    if model.training:
        raise ValueError("the model is in training mode; call model.eval()")
    return copy.deepcopy(model).requires_grad_(False)


def _baseline(value: Tensor | float, x: Tensor) -> Tensor:
    start = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    try:
        return start.expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"baseline has shape {tuple(start.shape)}; accepted is a number or what broadcasts to {tuple(x.shape)}"
        ) from None


def target_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Each row's logit of its class, [N]; a ValueError where there is no such class, or no number."""
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"the model returned a {type(logits).__name__}; attributions take a model with logits [N, classes]: name "
            "them, for example models.Output(model, 'logits')"
        )
    if logits.ndim != 2:
        raise ValueError(
            f"the model returned {tuple(logits.shape)}; attributions take a model with logits [N, classes]: choose a "
            "number a row with models.Output"
        )
    if len(logits) != len(labels):
        raise ValueError(
            f"the model returned {tuple(logits.shape)} for {len(labels)} images; attributions take one row an image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        wrong = low if low < 0 else high
        raise ValueError(f"target has class {wrong}; the model has classes 0 to {logits.shape[1] - 1}")
    found = logits.gather(1, labels[:, None]).squeeze(1)
    finite = torch.isfinite(found)
    if not bool(finite.all()):
        i = int((~finite).nonzero()[0])
        raise ValueError(
            f"the model's logit of image {i} is {float(found[i].detach())}; attributions are defined "
            "for finite logits: look at the model's weights"
        )
    return found
