"""Methods that pass a signal back through the layers by rules of their own in place of the derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from robattr._rows import parts_of
from robattr._second_order import SecondOrder
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
                if out._is_view() and not is_in_place(func, kwargs):
                    out = out.clone()  # who writes over a view takes its hook away
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


Rule = Literal["epsilon", "epsilon-plus", "alpha2-beta1", "epsilon-plus-flat", "alpha2-beta1-flat", "epsilon-gamma-box"]
"""Rules for a whole network, of which the last three have another one for the layer that reads the pixels."""


@explains
def lrp(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    rule: Rule = "epsilon",
    epsilon: float = 1e-6,
    rules: Mapping[str | type[nn.Module], Any] | Any = None,
    canonizers: Sequence[Any] = (),
    max_batch: int | None = None,
    check: bool = True,
) -> Tensor:
    """Layer-wise relevance propagation (Bach et al. 2015), with zennit's rules, or with rules of one's own.

    Relevance starts as the target's logit and ends on the pixels (normalization is a bijection of each pixel and keeps
    it). Batch normalizations are folded first (:func:`robattr.models.fold_batchnorm`); activations and multiplications
    by a constant hand relevance on, sums of branches share it in proportion, whether they are modules or functions.

    Checked are: the logits of the pass against the model's, the first time that a model with these weights is seen; and
    without biases, which take relevance, that what arrives is the logit, but for what stabilizers keep.

    Args:
        rule: ``epsilon`` everywhere, ``epsilon-plus`` (z+ for convolutions) or ``alpha2-beta1`` (for convolutions), as
            zennit's composites; with ``-flat`` the layer that reads the pixels shares its relevance evenly.
            ``epsilon-gamma-box`` is gamma for convolutions and z-box at the pixels, as in :func:`deep_taylor`.
        epsilon: stabilizer of the epsilon rule, in units of the pre-activation, > 0.
        rules: for some layers, or all, another rule: a mapping from a type of module, or the path of one as in
            ``model.named_modules()``, to a rule of zennit or the name of one (``epsilon``, ``z+``, ``gamma``,
            ``alpha2-beta1``, ``flat``, ``w2``, ``z-box``, ``pass``); or a composite of zennit. A path comes before a
            type, an earlier type before a later one. So can layers be explained that have no rule of their own:
            ``rules={torch.nn.LayerNorm: "pass"}``.
        canonizers: of zennit, which change a copy of the network before rules are put on it. Its logits have to stay.
        check: refuse a result that fails a check; False is for who wants it knowingly. Where ``rules`` has more than
            names, only the logits are checked: what such a rule keeps is its own affair.

    Other arguments and the shape of the result are those of :func:`gradient`. With ``create_graph`` the result is a
    function of x only: the parameters are constants.

    Raises:
        ValueError: as for :func:`gradient`; or the model calls what has no rule (softmax, a layer normalization, a
            product of two maps, a convolution as a function), named with its layer; or has a layer that runs twice; or
            a batch normalization that cannot be folded; or is compiled or scripted; or a check fails. Or ``rules``
            names what the model has not, or what is no rule, or a layer of several inputs or outputs.
    """
    from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, ZBox
    from zennit.types import Convolution, Linear

    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; the stabilizer of the epsilon rule is > 0, for example 1e-6")
    convolutions = {
        "epsilon": Epsilon(epsilon),
        "epsilon-plus": _z_plus()(),
        "alpha2-beta1": AlphaBeta(alpha=2, beta=1),
        "epsilon-gamma": Gamma(gamma=0.25),
    }
    firsts: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "flat": lambda low, high: Flat(),
        "box": lambda low, high: ZBox(low, high),
    }
    if rule not in get_args(Rule):
        raise ValueError(f"rule is {rule!r}; accepted are {', '.join(map(repr, get_args(Rule)))}")
    base, _, end = rule.rpartition("-")
    first = firsts.get(end)
    layers: _Layers = [(Convolution, convolutions[base if first else rule]), (Linear, Epsilon(epsilon))]
    own = _Own(rules, canonizers)
    return _relevance(model, x, target, lambda low, high: layers, first, create_graph, max_batch, check, own)


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
    from zennit.rules import ZBox
    from zennit.types import Linear

    def first(low: Tensor, high: Tensor) -> Any:
        return ZBox(low, high)

    rule = _z_plus()
    return _relevance(model, x, target, lambda low, high: [(Linear, rule())], first, create_graph, max_batch, check)


_Layers = list[tuple[Any, Any]]


class _Own:
    """Rules that somebody gave, looked up by the layer.

    Raises:
        ValueError: naming what is no rule.
    """

    def __init__(self, rules: Any, canonizers: Sequence[Any]) -> None:
        from zennit.canonizers import Canonizer
        from zennit.core import Composite, Hook

        self.composite = rules if isinstance(rules, Composite) else None
        if not (rules is None or self.composite or isinstance(rules, Mapping)):
            raise ValueError(
                f"rules is a {type(rules).__name__}; accepted are a mapping from a type of module, or a path, to a "
                "rule, and a composite of zennit"
            )
        self.rules: dict[Any, Any] = dict(rules) if isinstance(rules, Mapping) else {}
        for key, value in self.rules.items():
            if not (isinstance(value, Hook) or (isinstance(value, str) and value in _NAMED)):
                raise ValueError(
                    f"the rule of {_spelled(key)} is {value!r}; accepted are rules of zennit and {', '.join(_NAMED)}"
                )
            if not isinstance(key, (str, type)):
                raise ValueError(f"rules has the key {key!r}; accepted are types of modules and paths of them")
        self.named = self.composite is None and all(isinstance(value, str) for value in self.rules.values())
        self.canonizers = [*(self.composite.canonizers if self.composite else ()), *canonizers]
        for each in self.canonizers:
            if not isinstance(each, Canonizer):
                raise ValueError(f"canonizers has {each!r}; accepted are canonizers of zennit")

    def of_normalizations(self, model: nn.Module) -> bool:
        """Whether a rule is for a batch normalization, which then is not folded."""
        from zennit.types import BatchNorm

        return any(
            isinstance(module, BatchNorm) and (name in self.rules or any(_is(module, key) for key in self.rules))
            for name, module in model.named_modules()
        )

    def check(self, model: nn.Module, network: nn.Module, prefix: str) -> None:
        """Refuse rules for what is not in the network.

        Raises:
            ValueError: naming it.
        """
        modules = dict(network.named_modules())
        for key in self.rules:
            if isinstance(key, str) and (not key.startswith(prefix) or key[len(prefix) :] not in modules):
                raise ValueError(
                    f"rules has {key!r}; accepted are paths of the modules of {type(model).__name__}, as "
                    "model.named_modules() has them"
                )
            if not isinstance(key, str) and not any(_is(module, key) for module in modules.values()):
                raise ValueError(f"rules has {_spelled(key)}, and {type(model).__name__} has no such module")

    def mapped(self, usual: Any, prefix: str, low: Tensor, high: Tensor) -> _Mapped:
        return _Mapped(self, usual, prefix, low, high)


class _Mapped:
    """A rule for each module, in the order in which zennit asks.

    Attributes:
        ruled: those that have one.
        own: those of them for which somebody gave it.
    """

    def __init__(self, given: _Own, usual: Any, prefix: str, low: Tensor, high: Tensor) -> None:
        self.given = given
        self.usual = usual
        self.prefix = prefix
        self.box = low, high
        self.contexts: tuple[dict[Any, Any], dict[Any, Any]] = {}, {}
        self.ruled: set[nn.Module] = set()
        self.own: set[nn.Module] = set()
        self.parts: set[nn.Module] = set()  # what is within a layer that somebody gave a rule is part of it

    def __call__(self, ctx: dict[Any, Any], name: str, module: nn.Module) -> Any:
        hook = self.usual.module_map(self.contexts[0], name, module)
        if module in self.parts:
            return None
        given = self.given.rules.get(self.prefix + name)
        if given is None and self.given.composite is not None:
            given = self.given.composite.module_map(self.contexts[1], name, module)
        if given is None:
            given = next((rule for key, rule in self.given.rules.items() if _is(module, key)), None)
        if given is not None:
            hook = _rule_of(given, *self.box)
            self.own.add(module)
            self.parts.update(part for part in module.modules() if part is not module)
        if hook is not None:
            self.ruled.add(module)
            hook = _constant(hook)
        return hook


def _constant(hook: Any) -> Any:
    """The rule with weights that are constants: as parameters, each has a derivative in an attack, group by group."""
    from zennit.core import BasicHook, ParamMod

    if not isinstance(hook, BasicHook):
        return hook
    own = hook.copy()
    own.param_modifiers = [_constant_weights()(ParamMod.ensure(each)) for each in hook.param_modifiers]
    return own


@cache
def _z_plus() -> Any:
    """The class of zennit's z+ rule that leaves out its pass of negative inputs where, as after a ReLU, there are none.

    That pass has weights without a bias, and 0 for an input.
    """
    from zennit.core import BasicHook
    from zennit.rules import ZPlus

    class Half(ZPlus):  # type: ignore[misc]
        def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
            if bool((self.stored_tensors["input"][0] < 0).any()):
                return super().backward(module, grad_input, grad_output)
            positive = BasicHook(
                self.input_modifiers[:1],
                self.param_modifiers[:1],
                self.output_modifiers[:1],
                lambda grad, outputs: self.gradient_mapper(grad, outputs)[:1],
                lambda inputs, gradients: inputs[0] * gradients[0],
            )
            positive.stored_tensors = self.stored_tensors
            return positive.backward(module, grad_input, grad_output)

    return Half


@cache
def _constant_weights() -> Any:
    """The class of zennit's changes of weights, made once: zennit takes long to import where no rule is asked for."""
    from zennit.core import ParamMod

    class Constant(ParamMod):  # type: ignore[misc]
        def __init__(self, given: Any) -> None:
            super().__init__(None)
            self.given = given

        @contextmanager
        def __call__(self, module: nn.Module) -> Iterator[nn.Module]:
            # A mode does not reach into a backward pass, in which rules compute.
            with self.given(module) as changed, SecondOrder():
                yield changed.requires_grad_(False)

    return Constant


def _is(module: nn.Module, key: object) -> bool:
    return isinstance(key, type) and isinstance(module, key)


def _spelled(key: object) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)


_NAMED = ("epsilon", "z+", "gamma", "alpha2-beta1", "flat", "w2", "z-box", "pass")


def _rule_of(hook: Any, low: Tensor, high: Tensor) -> Any:
    """A rule by its name; the box is the range of a [0, 1] image after the model's normalization."""
    from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, Pass, WSquare, ZBox

    if not isinstance(hook, str):
        return hook
    makers: dict[str, Callable[[], Any]] = {
        "epsilon": Epsilon,
        "z+": _z_plus(),
        "gamma": Gamma,
        "alpha2-beta1": lambda: AlphaBeta(alpha=2, beta=1),
        "flat": Flat,
        "w2": WSquare,
        "z-box": lambda: ZBox(low, high),
        "pass": Pass,
    }
    return makers[hook]()


class _Shared(Calls):
    """The pass of the images whose calls outside of ruled layers get a rule of their own, or a refusal.

    Relevance travels as a gradient does, so what is not told otherwise gets the derivative: twice the relevance through
    a sum of two branches, half of it through ``x / 2``. Activations and multiplications by a constant hand on what they
    get; sums and average poolings share it in proportion.
    """

    def __init__(
        self, network: nn.Module, ruled: set[nn.Module], first: nn.Module | None, names: dict[nn.Module, str]
    ) -> None:
        from zennit.types import Linear

        super().__init__()
        self.network = network
        self.first = first
        self.names = names
        self.depth = 0
        self.ran: set[nn.Module] = set()
        self.handles: list[Any] = []
        self.rules: list[Any] = []  # zennit's hooks refer to them weakly
        for module in names:
            if module in ruled:
                # zennit's rules look at the graph's node behind an output, which has one value only after a copy.
                if not isinstance(module, Linear):
                    self.handles.append(module.register_forward_hook(_copied, prepend=True))
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
        if sum(isinstance(v, Tensor) for v in (*args, *kwargs.values())) != 1:
            raise ValueError(f"{name} takes several tensors, and a rule of LRP is for layers of one; take attn_lrp")
        self.ran.add(module)
        self.depth += 1
        # zennit looks for what a layer is given among the positional arguments.
        return (args, kwargs) if args or not kwargs else (tuple(kwargs.values()), {})

    def _leaves(self, module: nn.Module, args: Any, out: Any) -> None:
        self.depth -= 1
        if not isinstance(out, Tensor):
            raise ValueError(
                f"{self.names[module]} ({type(module).__name__}) returns a {type(out).__name__}, and a rule of LRP is "
                "for layers that return one tensor; take attn_lrp"
            )

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
        raise ValueError(
            f"LRP has no rule for {name}, which {place(self.network)} calls; give that layer one with rules=, or take "
            f"attn_lrp, {OTHERS}"
        )

    def _by(self, rule: Any, function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        module = _Call(function)
        self.handles.append(rule.register(module))
        self.rules += [rule, module]
        out: Tensor = module(z)
        return out


def _copied(module: nn.Module, args: Any, out: Any) -> Any:
    return out.clone() if isinstance(out, Tensor) else out


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
    own: _Own | None = None,
) -> Tensor:
    from zennit.composites import LayerMapComposite, SpecialFirstLayerMapComposite
    from zennit.core import Composite
    from zennit.rules import Norm
    from zennit.types import AvgPool, Linear

    check_calls_are_seen(model, "LRP")
    labels = check_target(x, target)
    state = tuple((id(v), v._version, v.data_ptr()) for v in (*model.parameters(), *model.buffers()))
    before, folds = _FOLDS.get(model, (None, {}))
    own = _Own(None, ()) if own is None else own
    # Who has canonizers, or a rule for normalizations, has another network than the one that was seen.
    kept = own.of_normalizations(model)
    usual = not own.canonizers and not kept
    known = usual and before == state
    if not usual:
        folds = {}
    if not known and not kept:
        try:
            folds = folds_of(model, x[:1].detach())
        except ValueError:
            if usual:
                raise
    # A copy, because hooks change modules while they are in use; the caller's model stays as it is.
    caller, model = model, apply_folds(model, folds).requires_grad_(False)
    network: nn.Module = model
    normalize: nn.Module = nn.Identity()
    prefix = ""
    if isinstance(model, Classifier):
        model.check_shape(x)
        network, normalize, prefix = model.network, model.normalize, "network."
    own.check(caller, network, prefix)
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
        mapped = own.mapped(composite, prefix, low, high)
        # The hooks die with the context, so that a later derivative of the result is the true one.
        with Composite(mapped, own.canonizers).context(network) as hooked:
            names = {module: name or "the model itself" for name, module in hooked.named_modules()}
            linear = [module for module in names if isinstance(module, Linear)]
            biases = [getattr(module, "bias", None) for module in (*linear, *mapped.own)]
            unbiased = not any(isinstance(bias, Tensor) and bool(bias.any()) for bias in biases)
            first = linear[0] if first_for and linear and linear[0] not in mapped.own else None
            shared = _Shared(hooked, mapped.ruled, first, names)
            try:
                with shared:
                    out = called(hooked, z)
                logit = target_logits(out, labels[part])
                if check and not known:
                    with torch.no_grad():
                        check_same_logits(out, caller(x[part].detach().clone()), type(caller).__name__)
                    known = True
                    if usual:
                        _FOLDS[caller] = state, folds
                seed = torch.zeros_like(out).scatter(1, labels[part, None], logit[:, None])
                (r,) = torch.autograd.grad(out, z, seed, create_graph=create_graph)
            finally:
                shared.remove()
        if check and unbiased and own.named:
            _check_conserved(r, logit, part.start)
        parts.append(r)
    return torch.cat(parts)
