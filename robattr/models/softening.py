"""Activations by what a network calls, as a module or as a function: which bend suddenly, and their smooth forms."""

from __future__ import annotations

import copy
import copyreg
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robattr._calls import Calls, unseen_part
from robattr.models.clipping import SoftClip, softclip, softswish
from robattr.models.outputs import example_of

Kind = Literal["smooth", "kink", "no form"]

SMOOTH = frozenset(
    {
        "softplus",
        "softclip",
        "softswish",
        "silu",
        "gelu",
        "mish",
        "tanh",
        "sigmoid",
        "elu",
        "selu",
        "celu",
        "softsign",
        "tanhshrink",
        "log_sigmoid",
        "logsigmoid",
        "softmax",
        "log_softmax",
        "scaled_dot_product_attention",
        "multi_head_attention_forward",
        "erf",
    }
)
"""Functions whose second derivative leads an attack: it is zero on no piece."""

# The names of arguments after the first, where they stand.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "relu": ("inplace",),
    "relu6": ("inplace",),
    "hardtanh": ("min_val", "max_val", "inplace"),
    "hardswish": ("inplace",),
    "hardsigmoid": ("inplace",),
    "leaky_relu": ("negative_slope", "inplace"),
    "prelu": ("weight",),
    "abs": (),
    "clamp": ("min", "max"),
    "clip": ("min", "max"),
    "clamp_min": ("min",),
    "clamp_max": ("max",),
    "maximum": ("other",),
    "minimum": ("other",),
    "max": ("other",),
    "min": ("other",),
    "threshold": ("threshold", "value", "inplace"),
    "rrelu": (),
    "hardshrink": (),
    "softshrink": (),
}
_NO_FORM = frozenset({"rrelu", "hardshrink", "softshrink"})


@dataclass(frozen=True)
class _Call:
    """A call of an activation: what it is called with."""

    name: str
    z: Any
    options: Mapping[str, Any]

    @staticmethod
    def of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Call | None:
        """None for a call of anything else."""
        if name not in _OPTIONS:
            return None
        given = dict(kwargs)
        first = next((given.pop(key) for key in ("input", "self") if not args and key in given), None)
        z, rest = (args[0], args[1:]) if args else (first, ())
        return _Call(name, z, {**dict(zip(_OPTIONS[name], rest, strict=False)), **given})

    def bounds(self) -> tuple[float, float] | None:
        """Where values stop, as (-inf, +inf) where they do not; None for what is no clamp by numbers, or a guard.

        A lower bound above zero, or an upper one that stands alone, guards what comes next (a logarithm, a division):
        no activation, so it stays.
        """
        if self.name == "hardtanh":
            low, high = self.options.get("min_val", -1.0), self.options.get("max_val", 1.0)
        elif self.name in ("clamp", "clip", "clamp_min", "clamp_max"):
            low, high = self.options.get("min"), self.options.get("max")
        else:
            return None
        low, high = (-torch.inf if low is None else low), (torch.inf if high is None else high)
        if not all(isinstance(bound, (int, float)) for bound in (low, high)):
            return None
        both = low > -torch.inf and high < torch.inf
        return (float(low), float(high)) if both or low == 0 or high == 0 else None

    def kind(self, is_map: Callable[[Any], bool]) -> Kind | None:
        """None for a call that is no activation; ``is_map`` says what is computed by the network."""
        if self.name in _NO_FORM:
            return "no form"
        if self.name in ("max", "min", "maximum", "minimum"):
            return "kink" if is_map(self.options.get("other")) else None
        if not is_map(self.z):
            return None
        if self.name in ("hardtanh", "clamp", "clip", "clamp_min", "clamp_max"):
            return "kink" if self.bounds() else None
        if self.name == "threshold":
            zero = self.options.get("threshold") == 0 and self.options.get("value") == 0
            return "kink" if zero else "no form"
        return "kink"

    def smoothed(self, z: Tensor, beta: float) -> Any:
        """The smooth form, which tends to the call as beta grows. What it computes is made of Softplus."""
        name, options = self.name, self.options
        if name in ("relu", "threshold"):
            return F.softplus(z, beta)
        if name == "relu6":
            return softclip(z, beta)
        if name == "hardsigmoid":
            return softclip(z + 3, beta) / 6
        if name == "hardswish":
            return softswish(z, beta)
        if name == "leaky_relu":
            slope = options.get("negative_slope", 0.01)
            return slope * z + (1 - slope) * F.softplus(z, beta)
        if name == "prelu":
            w = options["weight"]
            w = w.view(-1, *[1] * (z.ndim - 2)) if w.numel() > 1 else w
            return w * z + (1 - w) * F.softplus(z, beta)
        if name == "abs":
            return 2 * F.softplus(z, beta) - z
        if name in ("max", "maximum"):
            return options["other"] + F.softplus(z - options["other"], beta)
        if name in ("min", "minimum"):
            return z - F.softplus(z - options["other"], beta)
        bounds = self.bounds()
        assert bounds is not None
        low, high = bounds
        if high == torch.inf:
            return low + F.softplus(z - low, beta)
        if low == -torch.inf:
            return high - F.softplus(high - z, beta)
        return low + softclip(z - low, beta, high - low)


def _is_map(value: object) -> bool:
    """Whether a value is computed, not a number or a parameter."""
    return isinstance(value, Tensor) and value.is_floating_point() and not isinstance(value, nn.Parameter)


class _Softening(Calls):
    """Within it activations that bend suddenly are their smooth forms; a call in place still writes in place."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = _Call.of(name, args, kwargs)
        if call is None or call.kind(_is_map) != "kink":
            return func(*args, **kwargs)
        in_place = call.options.get("inplace") or func.__name__.endswith("_")
        if not in_place:
            return call.smoothed(call.z, self.beta)
        return call.z.copy_(call.smoothed(call.z.clone(), self.beta))


class Softened:
    """What the class of a module gets in front of it whose own calls are made smooth, see :func:`soften`.

    Attributes:
        beta_of_calls: sharpness, in inverse units of the pre-activation.
    """

    beta_of_calls: float
    _hard: type[nn.Module]

    def extra_repr(self) -> str:
        said = self._hard.extra_repr(self)  # type: ignore[arg-type]
        return ", ".join(filter(None, [said, f"beta_of_calls={self.beta_of_calls}"]))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class is made as it is needed: copies and pickles name the one that it was made of."""
        made: Any = super().__reduce_ex__(protocol)
        make, args, *rest = made
        if make is not vars(copyreg)["__newobj__"]:
            raise TypeError(f"{type(self).__name__} says itself how it is copied, and so has no smooth copy")
        return (_new_softened, (self._hard, *args[1:]), *rest)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _softened_class(hard: type[nn.Module]) -> type[nn.Module]:
    if hard not in _CLASSES:

        @functools.wraps(hard.forward)  # a trace reads the names of the arguments
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _Softening(self.beta_of_calls):
                return hard.forward(self, *args, **kwargs)

        about = {name: getattr(hard, name) for name in ("__module__", "__qualname__", "__doc__")}
        _CLASSES[hard] = type(hard.__name__, (Softened, hard), {**about, "_hard": hard, "forward": forward})
    return _CLASSES[hard]


def _new_softened(hard: type[nn.Module], *args: Any) -> nn.Module:
    made = _softened_class(hard)
    return made.__new__(made, *args)


def soften(module: nn.Module, beta: float) -> None:
    """Make what a module calls by itself, or through functions, smooth, in place.

    Its class becomes one of the same name whose ``forward`` runs within a mode that replaces the calls.
    """
    if not isinstance(module, Softened):
        module.__class__ = _softened_class(type(module))
    module.beta_of_calls = beta  # type: ignore[assignment]


# --------------------------------------------------------------------------------------------------------------------
# What is called


@dataclass(frozen=True, eq=False)
class Found:
    """An activation that is called.

    Attributes:
        name: of the function.
        kind: whether it is smooth, bends suddenly, or bends and has no smooth form here.
        module: the innermost module that was running.
        path: of that module.
    """

    name: str
    kind: Kind
    module: nn.Module
    path: str


def activations(
    model: nn.Module, example: Tensor | None, writers: Collection[nn.Module] = ()
) -> tuple[list[Found], set[nn.Module]]:
    """Activations in the order of their calls; and those of ``writers`` whose input somebody reads again.

    Seen in a pass over an image, in the mode that the model is in, or else traced by ``torch.fx``.

    Raises:
        ValueError: a part is compiled or scripted; or there is no image and the model cannot be traced.
    """
    opaque = unseen_part(model)
    if opaque is not None:
        name, what, way = opaque
        raise ValueError(f"{name} is {what}, so nobody sees its activations; pass the model as it was {way}")
    if example is None:
        example = example_of(model)
    return _traced(model, writers) if example is None else _seen(model, example[:1], writers)


class _Look(Calls):
    def __init__(self, names: Mapping[nn.Module, str], writers: Collection[nn.Module]) -> None:
        super().__init__()
        self.names = names
        self.writers = writers
        self.running: list[nn.Module] = []
        self.found: list[Found] = []
        self.overwritten: dict[int, tuple[Tensor, nn.Module]] = {}  # kept alive: an id is of no use after that
        self.read_again: set[nn.Module] = set()

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.overwritten and name not in _OF_THE_SHAPE:
            flat = [w for v in (*args, *kwargs.values()) for w in (v if isinstance(v, (tuple, list)) else (v,))]
            for value in flat:
                tensor, module = self.overwritten.get(id(value), (None, None))
                if module is not None and tensor is value:
                    self.read_again.add(module)
        call = _Call.of(name, args, kwargs)
        kind: Kind | None = "smooth" if name in SMOOTH else None if call is None else call.kind(_is_map)
        if kind is not None:
            module = self.running[-1]
            self.found.append(Found(name, kind, module, self.names[module]))
        return func(*args, **kwargs)

    def enters(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)

    def leaves(self, module: nn.Module, args: Any, out: Any) -> None:
        self.running.pop()
        if module in self.writers and args:
            self.overwritten[id(args[0])] = (args[0], module)


_OF_THE_SHAPE = frozenset({"__get__", "size", "dim"})


@contextmanager
def _hooked(look: _Look) -> Iterator[None]:
    handles: list[Any] = []
    for module in look.names:
        handles.append(module.register_forward_pre_hook(look.enters, prepend=True))
        handles.append(module.register_forward_hook(look.leaves, always_call=True))
    try:
        with look:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _seen(model: nn.Module, example: Tensor, writers: Collection[nn.Module]) -> tuple[list[Found], set[nn.Module]]:
    look = _Look({module: name or "the model itself" for name, module in model.named_modules()}, writers)
    with torch.inference_mode(False), torch.no_grad(), _hooked(look):
        model(example.detach().clone())
    return look.found, look.read_again


# The function that a layer of PyTorch calls: a trace does not look into those.
_OF_LAYER: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardtanh: "hardtanh",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.RReLU: "rrelu",
    nn.Hardshrink: "hardshrink",
    nn.Softshrink: "softshrink",
    nn.Softplus: "softplus",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Mish: "mish",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.CELU: "celu",
    nn.Softsign: "softsign",
    nn.Tanhshrink: "tanhshrink",
    nn.LogSigmoid: "logsigmoid",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "log_softmax",
    nn.MultiheadAttention: "multi_head_attention_forward",
}


def _traced(model: nn.Module, writers: Collection[nn.Module]) -> tuple[list[Found], set[nn.Module]]:
    from torch import fx

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            if isinstance(m, Softened):
                return True
            return super().is_leaf_module(m, module_qualified_name) and not type(m).__name__.startswith("Transformer")

    try:
        graph = Tracer().trace(copy.deepcopy(model))
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({str(error).splitlines()[0]}), so what it calls is not known; "
            "pass example=images"
        ) from error
    modules = dict(model.named_modules())
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: list[Found] = []
    read_again: set[nn.Module] = set()

    def is_map(value: object) -> bool:
        return isinstance(value, fx.Node) and value.op != "get_attr"

    for node in graph.nodes:
        if node.op == "call_module":
            path = str(node.target)
            module = modules[path]
            name = _OF_LAYER.get(type(module), "")
            smooth = isinstance(module, (Softened, SoftClip)) or name in SMOOTH
            kind: Kind | None = "smooth" if smooth else None if not name else "no form" if name in _NO_FORM else "kink"
            if module in writers:
                given = node.all_input_nodes[0]
                if any(order[user] > order[node] for user in given.users):
                    read_again.add(module)
        elif node.op in ("call_function", "call_method"):
            target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            name = target if target.startswith("__") else target.rstrip("_")
            name = "threshold" if name == "_threshold" else name
            stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
            path = stack[-1] if stack else ""
            module = modules[path]
            call = _Call.of(name, node.args, node.kwargs)
            kind = "smooth" if name in SMOOTH else None if call is None else call.kind(is_map)
            if kind == "kink" and any(isinstance(modules[each], Softened) for each in ["", *stack]):
                kind = "smooth"  # methods of what stands for a map in a trace pass no mode
        else:
            continue
        if kind is not None:
            found.append(Found(name, kind, module, path or "the model itself"))
    return found, read_again
