"""Methods that pass a signal back through the layers by rules of their own in place of the derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from robattr._rows import parts_of
from robattr.attributions.calls import (
    CONTRACTIONS,
    ELEMENTWISE,
    MIXING,
    OTHERS,
    PRODUCTS,
    QUOTIENTS,
    SUMS,
    Calls,
    check_calls_are_seen,
    is_in_place,
    of_input,
    place,
)
from robattr.attributions.gradients import _input_gradient
from robattr.attributions.protocol import Target, called, check_target, explains, target_logits
from robattr.models import Classifier, apply_folds, check_same_logits, folds_of


@explains
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


@explains
def lrp(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    rule: Literal["epsilon", "epsilon-plus", "alpha2-beta1"] = "epsilon",
    epsilon: float = 1e-6,
    max_batch: int | None = None,
    check: bool = True,
) -> Tensor:
    """Layer-wise relevance propagation (Bach et al. 2015), with zennit's rules.

    Relevance starts as the target's logit and ends on the pixels (normalization is a bijection of each pixel and keeps
    it). Batch normalizations are folded first (:func:`robattr.models.fold_batchnorm`); activations and multiplications
    by a constant hand relevance on, sums of branches share it in proportion, whether they are modules or functions.

    Checked are: the logits of the pass against the model's, the first time that a model with these weights is seen; and
    without biases, which take relevance, that what arrives is the logit, but for what stabilizers keep.

    Args:
        rule: ``epsilon`` everywhere, ``epsilon-plus`` (z+ for convolutions) or ``alpha2-beta1`` (for convolutions).
        epsilon: stabilizer of the epsilon rule, in units of the pre-activation, > 0.
        check: refuse a result that fails a check; False is for who wants it knowingly.

    Other arguments and the shape of the result are those of :func:`gradient`. With ``create_graph`` the result is a
    function of x only: the parameters are constants.

    Raises:
        ValueError: as for :func:`gradient`; or the model calls what has no rule (softmax, a layer normalization, a
            product of two maps, a convolution as a function), named with its layer; or has a layer that runs twice; or
            a batch normalization that cannot be folded; or is compiled or scripted; or a check fails.
    """
    from zennit.rules import AlphaBeta, Epsilon, ZPlus
    from zennit.types import Convolution, Linear

    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; the stabilizer of the epsilon rule is > 0, for example 1e-6")
    layers: list[tuple[Any, Any]]
    if rule == "epsilon":
        layers = [(Linear, Epsilon(epsilon))]
    elif rule == "epsilon-plus":
        layers = [(Convolution, ZPlus()), (Linear, Epsilon(epsilon))]
    elif rule == "alpha2-beta1":
        layers = [(Convolution, AlphaBeta(alpha=2, beta=1)), (Linear, Epsilon(epsilon))]
    else:
        raise ValueError(f"rule is {rule!r}; accepted are 'epsilon', 'epsilon-plus' and 'alpha2-beta1'")
    return _relevance(model, x, target, lambda low, high: layers, None, create_graph, max_batch, check)


@explains
def deep_taylor(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    max_batch: int | None = None,
    check: bool = True,
) -> Tensor:
    """Deep Taylor decomposition (Montavon et al. 2017): the z+ rule, and the z-box rule at the pixels.

    The box of the first layer is the range of a [0, 1] image after the model's own normalization. Relevance is
    conserved up to biases and is not negative where the logit is positive. Rules are zennit's; arguments, errors and
    the shape of the result are those of :func:`lrp`.
    """
    from zennit.rules import ZBox, ZPlus
    from zennit.types import Linear

    def first(low: Tensor, high: Tensor) -> Any:
        return ZBox(low, high)

    return _relevance(model, x, target, lambda low, high: [(Linear, ZPlus())], first, create_graph, max_batch, check)


_Layers = list[tuple[Any, Any]]


class _Shared(Calls):
    """The pass of the images whose calls outside of ruled layers get a rule of their own, or a refusal.

    Relevance travels as a gradient does, so what is not told otherwise gets the derivative: twice the relevance through
    a sum of two branches, half of it through ``x / 2``. Activations and multiplications by a constant hand on what they
    get; sums and average poolings share it in proportion.
    """

    def __init__(self, network: nn.Module, ruled: Any, first: nn.Module | None, names: dict[nn.Module, str]) -> None:
        super().__init__()
        self.network = network
        self.first = first
        self.names = names
        self.depth = 0
        self.ran: set[nn.Module] = set()
        self.handles: list[Any] = []
        self.rules: list[Any] = []  # zennit's hooks refer to them weakly
        for module in names:
            if isinstance(module, ruled):
                self.handles.append(module.register_forward_pre_hook(self._enters, with_kwargs=True, prepend=True))
                self.handles.append(module.register_forward_hook(self._leaves))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.rules.clear()

    def _enters(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from zennit.types import Linear

        name = f"{self.names[module]} ({type(module).__name__})"
        if module in self.ran:
            raise ValueError(f"{name} runs more than once, and LRP keeps one input a layer; give each call its own")
        if self.first is not None and isinstance(module, Linear) and module is not self.first:
            raise ValueError(
                f"{name} reads the pixels, but {self.names[self.first]} is registered first: deep Taylor's box rule is "
                "for the layer that does; register it first"
            )
        if isinstance(module, Linear):
            self.first = None
        self.ran.add(module)
        self.depth += 1
        # zennit looks for what a layer is given among the positional arguments.
        return (args, kwargs) if args or not kwargs else (tuple(kwargs.values()), {})

    def _leaves(self, module: nn.Module, args: Any, out: Any) -> None:
        self.depth -= 1

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.depth or name in _UNTOUCHED:
            return func(*args, **kwargs)
        flat = [w for v in (*args, *kwargs.values()) for w in (v if isinstance(v, (tuple, list)) else (v,))]
        moved = [v for v in flat if isinstance(v, Tensor) and v.requires_grad]
        if not moved or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        out = self._ruled(name, func, args, kwargs, moved)
        if out is None:
            return func(*args, **kwargs)
        return args[0].copy_(out) if is_in_place(func, kwargs) or name in _ONTO_ITSELF else out

    def _ruled(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], moved: list[Tensor]
    ) -> Tensor | None:
        """What the call gives, by a rule; None for one that needs none."""
        from zennit.rules import Norm, Pass

        if name in ELEMENTWISE:
            z, function = of_input(name, args, kwargs)
            if moved[0] is z and len(moved) == 1:
                return self._by(Pass(), function, z)
        elif name in SUMS or name in _DIFFERENCES:
            if len(moved) < 2:
                forward = name not in _REVERSED and args[0] is moved[0]
                return (
                    None if forward or name in SUMS else self._by(Norm(), _with(func, args, kwargs, moved[0]), moved[0])
                )
            shape = torch.Size(np.broadcast_shapes(args[0].shape, args[1].shape))
            a, b = args[0].expand(shape), args[1].expand(shape)
            scale = kwargs.get("alpha", 1) * (1 if name in SUMS else -1)
            if scale != 1:
                b = self._by(Pass(), lambda v: v * scale, b)
            return self._by(Norm(), lambda v: v.sum(-1), torch.stack([a, b], -1))
        elif name in PRODUCTS or name in QUOTIENTS or name == "neg":
            if len(moved) == 1 and not (name in QUOTIENTS and args[0] is not moved[0]):
                return self._by(Pass(), _with(func, args, kwargs, moved[0]), moved[0])
        elif name in _POOLED:
            if len(moved) == 1:
                return self._by(Norm(), _with(func, args, kwargs, moved[0]), moved[0])
        elif (name not in MIXING and name not in CONTRACTIONS and name != "batch_norm") or (
            name in _WINNERS and len(moved) == 1
        ):
            return None
        raise ValueError(f"LRP has no rule for {name}, which {place(self.network)} calls; take {OTHERS}")

    def _by(self, rule: Any, function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        module = _Call(function)
        self.handles.append(rule.register(module))
        self.rules += [rule, module]
        out: Tensor = module(z)
        return out


class _Call(nn.Module):
    """A function as a layer, which zennit's rules can be put on."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)


def _with(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], moved: Tensor
) -> Callable[[Tensor], Tensor]:
    """A call as a function of one of its arguments that writes over nothing."""
    name = func.__name__.strip("_")
    plain = {"imul": "mul", "itruediv": "div", "isub": "sub", "rmul": "mul"}.get(name, name)
    function = getattr(torch, plain) if is_in_place(func, kwargs) or func.__name__ in _ONTO_ITSELF else func

    def run(v: Tensor) -> Tensor:
        given = tuple(v if each is moved else each for each in args)
        out: Tensor = function(*given, **{key: v if each is moved else each for key, each in kwargs.items()})
        return out

    return run


_DIFFERENCES = frozenset({"sub", "subtract", "__sub__", "__isub__", "rsub", "__rsub__"})
_REVERSED = frozenset({"rsub", "__rsub__"})
_ONTO_ITSELF = frozenset({"__iadd__", "__isub__", "__imul__", "__itruediv__"})
_POOLED = frozenset(
    {
        "sum",
        "mean",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
    }
)
_WINNERS = frozenset(name for name in MIXING if "max_pool" in name) | {"amax", "max"}
_UNTOUCHED = frozenset({"__get__", "size", "dim", "clone", "view", "flatten", "reshape", "permute", "contiguous"})


# A part that the rules' stabilizers, 1e-6 beside a pre-activation, may keep. What is no rule at all loses or gains a
# factor: 2 for each sum that is not shared, 1 / 2 for each ``x / 2``.
_ABSORBED = 0.1


@torch.no_grad()
def _check_conserved(r: Tensor, logit: Tensor, first: int) -> None:
    total, wanted = r.double().flatten(1).sum(1), logit.double()
    size = r.double().abs().flatten(1).sum(1) + wanted.abs()
    wrong = ~((total - wanted).abs() <= _ABSORBED * size)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        relative = float(((total - wanted) / wanted)[i].abs())
        raise ValueError(
            f"the relevance of image {first + i} sums to {float(total[i]):.6g} for a logit of {float(wanted[i]):.6g}, "
            f"a relative error of {relative:.2g}, though no bias takes any: a layer is not known, or values are so "
            f"small that the rules' stabilizers of 1e-6 take it; take {OTHERS}, or check=False to go on knowingly"
        )


# Of networks that were seen: their weights then, which normalizations were folded, and whether the pass had its logits.
_FOLDS: WeakKeyDictionary[nn.Module, tuple[Any, dict[str, str]]] = WeakKeyDictionary()


def _relevance(
    model: nn.Module,
    x: Tensor,
    target: Target,
    layers_for: Callable[[Tensor, Tensor], _Layers],
    first_for: Callable[[Tensor, Tensor], Any] | None,
    create_graph: bool,
    max_batch: int | None,
    check: bool,
) -> Tensor:
    from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
    from zennit.rules import Norm
    from zennit.types import AvgPool, Linear

    check_calls_are_seen(model, "LRP")
    labels = check_target(x, target)
    state = tuple((id(v), v._version, v.data_ptr()) for v in (*model.parameters(), *model.buffers()))
    before, folds = _FOLDS.get(model, (None, {}))
    known = before == state
    if not known:
        folds = folds_of(model, x[:1].detach())
    # A copy, because hooks change modules while they are in use; the caller's model stays as it is.
    caller, model = model, apply_folds(model, folds).requires_grad_(False)
    network: nn.Module = model
    normalize: nn.Module = nn.Identity()
    if isinstance(model, Classifier):
        model.check_shape(x)
        network, normalize = model.network, model.normalize
    names = {module: name or "the model itself" for name, module in network.named_modules()}
    linear = [module for module in names if isinstance(module, Linear)]
    unbiased = all(module.bias is None or not bool(module.bias.any()) for module in linear)
    parts = []
    for part in parts_of(len(x), max_batch):
        leaf = x[part] if create_graph and x.requires_grad else x[part].detach().requires_grad_()
        z = normalize(leaf)
        low, high = normalize(torch.zeros_like(leaf)).detach(), normalize(torch.ones_like(leaf)).detach()
        layers = [*layers_for(low, high), (AvgPool, Norm())]
        if first_for is None:
            composite: Any = LayerMapComposite(layers)
        else:
            composite = SpecialFirstLayerMapComposite(layers, first_map=[(Linear, first_for(low, high))])
        # The hooks die with the context, so that a later derivative of the result is the true one.
        with composite.context(network) as hooked:
            shared = _Shared(hooked, (Linear, AvgPool), linear[0] if first_for and linear else None, names)
            try:
                with shared:
                    out = called(hooked, z)
                logit = target_logits(out, labels[part])
                if check and not known:
                    with torch.no_grad():
                        check_same_logits(out, caller(x[part].detach().clone()), type(caller).__name__)
                    _FOLDS[caller], known = (state, folds), True
                seed = torch.zeros_like(out).scatter(1, labels[part, None], logit[:, None])
                (r,) = torch.autograd.grad(out, z, seed, create_graph=create_graph)
            finally:
                shared.remove()
        if check and unbiased:
            _check_conserved(r, logit, part.start)
        parts.append(r)
    return torch.cat(parts)
