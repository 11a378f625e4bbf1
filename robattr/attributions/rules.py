"""Methods that pass a signal back through the layers by rules of their own in place of the derivative."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robattr._rows import parts_of
from robattr.attributions.calls import ELEMENTWISE, Calls, check_calls_are_seen
from robattr.attributions.gradients import _input_gradient
from robattr.attributions.protocol import Target, check_target, target_logits
from robattr.models import Classifier, SoftClip, fold_batchnorm


def guided_backpropagation(
    model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False, max_batch: int | None = None
) -> Tensor:
    """Guided backpropagation (Springenberg et al. 2015): only positive signals pass back through an activation.

    An activation ``y = a(z)`` passes back ``a'(z) * max(dy, 0)`` in place of ``a'(z) * dy``. For a ReLU that is the
    gradient where both z and dy are positive, and 0 elsewhere. The smooth activations, Softplus and SoftClip among
    them, weigh the positive part with their slope in (0, 1), and tend to the ReLU's or ReLU6's as beta grows. Guided
    are all activation modules that :func:`deeplift` supports.

    The derivative of the result is its true one: signals are clipped in the pass that forms the result, and not in a
    later pass over the same graph.

    Arguments and the shape of the result are those of :func:`gradient`.

    Raises:
        ValueError: as for :func:`gradient`, or the model has no activation modules, so that nothing could be guided.
    """
    check_calls_are_seen(model, "guided backpropagation")
    labels = check_target(x, target)
    guided = _Guided()
    parts = []
    for part in parts_of(len(x), max_batch):

        def run(z: Tensor) -> Any:
            with guided:
                return model(z)

        with guided.guiding():
            parts.append(_input_gradient(run, x[part], labels[part], create_graph))
            if not guided.found:
                raise ValueError(
                    f"{type(model).__name__} has no activation modules to guide, and calls none as functions; take the "
                    "gradient of a linear model"
                )
    return torch.cat(parts)


class _Guided(Calls):
    """Backward passes over graphs made in here are guided while :meth:`guiding`; the graphs are ordinary afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self._handles: list[Any] = []

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if name in ELEMENTWISE:
            self.found = True
            if isinstance(out, Tensor) and out.requires_grad:
                self._handles.append(out.register_hook(lambda d: d.clamp(min=0)))  # type: ignore[no-untyped-call]
        return out

    @contextmanager
    def guiding(self) -> Iterator[None]:
        try:
            yield
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()


def lrp(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    rule: Literal["epsilon", "epsilon-plus", "alpha2-beta1"] = "epsilon",
    epsilon: float = 1e-6,
    max_batch: int | None = None,
) -> Tensor:
    """Layer-wise relevance propagation (Bach et al. 2015), with zennit's rules.

    Relevance starts as the target's logit and ends on the pixels (normalization is a bijection of each pixel and keeps
    it). Batch normalizations are folded first; sums of residual branches share relevance in proportion.

    Args:
        rule: ``epsilon`` everywhere, ``epsilon-plus`` (z+ for convolutions) or ``alpha2-beta1`` (for convolutions).
        epsilon: stabilizer of the epsilon rule, in units of the pre-activation, > 0.

    Other arguments, errors and the shape of the result are those of :func:`gradient`. With ``create_graph`` the result
    is a function of x only: the parameters are constants.
    """
    from zennit.composites import EpsilonAlpha2Beta1, EpsilonPlus, LayerMapComposite, layer_map_base
    from zennit.rules import Epsilon, Pass
    from zennit.types import Linear

    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; the stabilizer of the epsilon rule is > 0, for example 1e-6")
    own = [((SoftClip,), Pass())]
    options = {"layer_map": own, "epsilon": epsilon, "canonizers": _canonizers()}
    if rule == "epsilon":
        layers = [*own, *layer_map_base(), (Linear, Epsilon(epsilon))]
        composite = LayerMapComposite(layers, canonizers=_canonizers())
    elif rule == "epsilon-plus":
        composite = EpsilonPlus(**options)
    elif rule == "alpha2-beta1":
        composite = EpsilonAlpha2Beta1(**options)
    else:
        raise ValueError(f"rule is {rule!r}; accepted are 'epsilon', 'epsilon-plus' and 'alpha2-beta1'")
    return _relevance(model, x, target, lambda low, high: composite, create_graph, max_batch)


def deep_taylor(
    model: nn.Module, x: Tensor, target: Target, *, create_graph: bool = False, max_batch: int | None = None
) -> Tensor:
    """Deep Taylor decomposition (Montavon et al. 2017): the z+ rule, and the z-box rule at the pixels.

    The box of the first layer is the range of a [0, 1] image after the model's own normalization. Relevance is
    conserved up to biases and is not negative where the logit is positive. Rules are zennit's; arguments, errors and
    the shape of the result are those of :func:`lrp`.
    """
    from zennit.composites import SpecialFirstLayerMapComposite, layer_map_base
    from zennit.rules import Pass, ZBox, ZPlus
    from zennit.types import Linear

    def composite(low: Tensor, high: Tensor) -> Any:
        return SpecialFirstLayerMapComposite(
            layer_map=[((SoftClip,), Pass()), *layer_map_base(), (Linear, ZPlus())],
            first_map=[(Linear, ZBox(low, high))],
            canonizers=_canonizers(),
        )

    return _relevance(model, x, target, composite, create_graph, max_batch)


def _canonizers() -> list[Any]:
    from zennit.canonizers import AttributeCanonizer
    from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer

    return [AttributeCanonizer(_residual), ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]


def _residual(name: str, module: nn.Module) -> dict[str, Any] | None:
    """Inverted residual blocks (timm, torchvision) add their input behind a flag; make that sum a layer with a rule."""
    from zennit.layer import Sum

    for flag in ("has_skip", "use_res_connect"):
        if getattr(module, flag, False):
            branch = copy.copy(module)  # shares the layers, and the hooks that are put on them
            setattr(branch, flag, False)
            total = Sum()

            def forward(x: Tensor, branch: nn.Module = branch, total: nn.Module = total) -> Tensor:
                out: Tensor = total(torch.stack([branch.forward(x), x], dim=-1))
                return out

            return {"forward": forward, "canonizer_sum": total}
    return None


def _relevance(
    model: nn.Module,
    x: Tensor,
    target: Target,
    composite_for: Callable[[Tensor, Tensor], Any],
    create_graph: bool,
    max_batch: int | None,
) -> Tensor:
    labels = check_target(x, target)
    # A copy, because hooks and canonizers change modules while they are in use; the caller's model stays as it is.
    model = fold_batchnorm(model).requires_grad_(False)
    network: nn.Module = model
    normalize: nn.Module = nn.Identity()
    if isinstance(model, Classifier):
        model.check_shape(x)
        network, normalize = model.network, model.normalize
    parts = []
    for part in parts_of(len(x), max_batch):
        leaf = x[part] if create_graph and x.requires_grad else x[part].detach().requires_grad_()
        with torch.enable_grad():
            z = normalize(leaf)
            low, high = normalize(torch.zeros_like(leaf)).detach(), normalize(torch.ones_like(leaf)).detach()
            composite = composite_for(low, high)
            # The hooks die with the context, so that a later derivative of the result is the true one.
            with composite.context(network) as hooked:
                out = hooked(z)
                logit = target_logits(out, labels[part])
                seed = torch.zeros_like(out).scatter(1, labels[part, None], logit[:, None])
                (r,) = torch.autograd.grad(out, z, seed, create_graph=create_graph)
        parts.append(r)
    return torch.cat(parts)
