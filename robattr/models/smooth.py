"""Smooth copies of networks: Softplus for ReLU, so that there is a second derivative to lead an attack."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

from robattr.models.clipping import SoftClip
from robattr.models.softening import Softened, activations, soften

M = TypeVar("M", bound=nn.Module)


def softplus_surrogate(model: M, beta: float = 10.0, example: Tensor | None = None) -> M:
    """A copy of ``model`` whose ReLUs are Softplus and whose ReLU6s are a difference of two Softplus.

    A piecewise linear network has a zero second derivative almost everywhere, so nothing that descends on its
    *attribution* can get going; the copy shares every weight's value and has one (Ghorbani et al. 2019, section 3).
    As beta grows its logits tend to the original's.

    Activations are found where they are called in a pass over one image, be they modules or functions, in place or
    not: ReLU, ReLU6, LeakyReLU, PReLU, Hardtanh, Hardsigmoid, Hardswish, ``abs``, the larger or smaller of two maps,
    and ``clamp`` to [0, inf), (-inf, 0] or between two numbers. Other clamps guard a logarithm or a division and stay,
    as do max-pooling, comparisons and ``torch.where``. What an ``autograd.Function`` computes is not seen.

    Args:
        model: a network; it is not changed.
        beta: sharpness in inverse units of the pre-activation, > 0.
        example: images [N, ...] of which the first is passed; by default a random one for a :class:`Classifier`, which
            knows its size, and none, but a trace by ``torch.fx``, for any other module.

    Raises:
        ValueError: beta is not positive; or the network calls no activation; or it calls one that has no smooth form
            here (Hardshrink, Softshrink, RReLU, Threshold), named with its layer; or a part is compiled or scripted, so
            that nobody sees what it calls; or there is no example and the network cannot be traced.
    """
    if not 0 < beta < math.inf:
        raise ValueError(f"beta is {beta}; a Softplus takes a finite beta > 0, for example 10")
    smooth = copy.deepcopy(model)
    modes = [(module, module.training) for module in smooth.modules()]
    smooth.eval()
    in_place: dict[nn.Module, nn.Module] = {}
    for parent, name, child in list(_children(smooth)):
        if isinstance(child, (nn.ReLU, nn.ReLU6)) and not isinstance(child, Softened):
            new = SoftClip(beta) if isinstance(child, nn.ReLU6) else nn.Softplus(beta=beta)
            setattr(parent, name, new)
            if child.inplace:
                in_place[new] = child
    set_beta(smooth, beta)
    found, read_again = activations(smooth, example, in_place.keys())
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no activation that can be made smooth, neither modules nor functions: there "
            "is no ReLU or the like in what runs"
        )
    for each in found:
        if each.kind == "kink":
            soften(each.module, beta)
    if read_again:
        # What comes later reads what the activation left there, so that is what it has to leave.
        for parent, name, child in list(_children(smooth)):
            if child in read_again:
                setattr(parent, name, in_place[child])
                soften(in_place[child], beta)
    if read_again or any(each.kind == "kink" for each in found):
        found, _ = activations(smooth, example)
    for each in found:
        if each.kind != "smooth":
            raise ValueError(
                f"{each.path} ({type(each.module).__name__}) calls {each.name}, which has no smooth form here; replace "
                "it by a smooth activation, or attack with beta=None, which differentiates the network as it is"
            )
    for module, training in modes:
        module.training = training
    return smooth


def is_smooth(model: nn.Module, example: Tensor | None = None) -> bool:
    """Whether a network calls activations, all of them smooth: its own second derivative leads an attack.

    Activations are found as by :func:`softplus_surrogate`, whose ``example`` and errors these are. A model in training
    mode is looked at in evaluation mode.
    """
    if any(module.training for module in model.modules()):
        model = copy.deepcopy(model).eval()
    found, _ = activations(model, example)
    return bool(found) and all(each.kind == "smooth" for each in found)


def set_beta(model: nn.Module, beta: float) -> None:
    """Set the beta of every Softplus, :class:`SoftClip` and smooth call in ``model``, in place: a schedule over an
    attack.
    """
    for module in model.modules():
        if isinstance(module, (nn.Softplus, SoftClip)):
            module.beta = beta
        elif isinstance(module, Softened):
            module.beta_of_calls = beta


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) over the tree, depth first, in the order of registration; a child at each of its places."""
    for name, child in model._modules.items():
        if child is not None:
            yield model, name, child
            yield from _children(child)
