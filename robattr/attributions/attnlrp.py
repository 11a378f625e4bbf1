"""AttnLRP: layer-wise relevance propagation through attention, by rules for what a network calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robattr._rows import parts_of
from robattr._second_order import SecondOrder
from robattr.attributions.attention import Decomposed
from robattr.attributions.calls import (
    CONTRACTIONS,
    ELEMENTWISE,
    OTHERS,
    PRODUCTS,
    QUOTIENTS,
    SUMS,
    check_calls_are_seen,
    is_in_place,
    place,
)
from robattr.attributions.protocol import Target, called, check_target, explains, target_logits
from robattr.models import Classifier, check_same_logits


@explains
def attn_lrp(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    create_graph: bool = False,
    epsilon: float = 1e-6,
    max_batch: int | None = None,
    check: bool = True,
) -> Tensor:
    """AttnLRP (Achtibat et al. 2024): layer-wise relevance propagation that goes through attention, for any network.

    Relevance starts as the target's logit and is handed on by what the network calls, as modules or as functions:

    - linear layers, convolutions and means share it by the epsilon rule, where biases take theirs;
    - a product of two that both depend on the image (queries and keys, attention and values) does so too, and each of
      the two has half; a gate and what it gates have half each;
    - a softmax y of z hands ``z_i (R_i - y_i sum R)`` to z_i, by its Taylor expansion, whose constant takes the rest;
    - normalizations (layer, group, RMS) divide by a constant, as it were: the centering and the scale that is learned
      are linear, the deviation takes nothing;
    - activations and multiplications by a constant hand on what they get; sums share it in proportion, where a constant
      (an embedding of positions) takes its part as a bias does. What is added to the image before anything else
      normalizes it, and takes nothing;
    - a max-pooling gives it to the pixel that won.

    A batch normalization is one more linear layer, wherever it stands. By the epsilon rule that is the same as folding
    it, so for convolutional networks this method and :func:`lrp` agree, but for their stabilizers.

    Checked is that relevance is conserved: what arrives at the pixels and what biases, constants, softmaxes and
    stabilizers took is the logit, for each image, to half of the digits of what was added and subtracted.
    The logits of the pass are checked against the model's the first time that a model with these weights is seen.

    Args:
        epsilon: stabilizer of the epsilon rule, in units of what is shared, > 0.
        max_batch: largest number of images in one pass; None for all at once.
        check: refuse a result that fails a check; False is for who wants it knowingly.

    Other arguments and the shape of the result are those of :func:`gradient`. With ``create_graph`` the result is a
    function of x only: the parameters are constants.

    Raises:
        ValueError: as for :func:`gradient`; or the model calls what has no rule, named with its layer; or is compiled
            or scripted; or a check fails.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; the stabilizer of the epsilon rule is > 0, for example 1e-6")
    check_calls_are_seen(model, "AttnLRP")
    labels = check_target(x, target)
    state = tuple((id(v), v._version, v.data_ptr()) for v in (*model.parameters(), *model.buffers()))
    known = _KNOWN.get(model) == state
    constant = model
    if any(p.requires_grad for p in model.parameters()):
        constant = copy.deepcopy(model).requires_grad_(False)
    network: nn.Module = constant
    normalize: nn.Module = nn.Identity()
    if isinstance(constant, Classifier):
        constant.check_shape(x)
        network, normalize = constant.network, constant.normalize

    def explained(part: slice, graph: bool) -> tuple[Tensor, Tensor, Tensor, _Ruled]:
        """Relevance, the logit that it is of, all logits, and the pass."""
        z = normalize(x[part] if graph else x[part].detach())
        notes: list[_Note] | None = None
        with SecondOrder():
            logit = None
            if graph:
                # What the rules read is a function of the images with its true derivative; relevance has a graph of its
                # own, through which no derivative of it goes.
                watched = _Watched(network, epsilon, z)
                with watched:
                    logit = target_logits(called(network, z), labels[part])
                notes = watched.notes
            leaf = z.detach().requires_grad_()
            ruled = _Ruled(network, epsilon, leaf, notes)
            with torch.enable_grad(), ruled:
                out = called(network, leaf)
        own = target_logits(out, labels[part])
        logit = own.detach() if logit is None else logit
        seed = torch.zeros_like(out).scatter(1, labels[part, None], logit[:, None])
        if not out.requires_grad:
            raise ValueError(f"{type(model).__name__}'s logits do not depend on the images; nothing is relevant there")
        (r,) = torch.autograd.grad(out, leaf, seed, create_graph=graph)
        return r, logit.detach(), out, ruled

    parts = []
    for part in parts_of(len(x), max_batch):
        r, logit, out, ruled = explained(part, create_graph and x.requires_grad)
        if check:
            if not known:
                with torch.no_grad():
                    check_same_logits(out, model(x[part].detach().clone()), type(model).__name__)
                _KNOWN[model], known = state, True
            for i in ruled.missed(r.detach(), logit):
                place = part.start + i
                alone = explained(slice(place, place + 1), False) if len(r) > 1 else (r.detach(), logit, out, ruled)
                _check_conserved(alone[0], alone[1], alone[3], place)
        parts.append(r)
    return torch.cat(parts)


# The weights with which a network's logits were seen to be those of its pass.
_KNOWN: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


class _Note:
    """What went into a call that a rule is for, and what came out, as the rule reads it.

    Attributes:
        pull: the derivatives by each input of ``sum c * output``, as a function of c.
    """

    def __init__(self, inputs: list[Tensor], output: Tensor) -> None:
        self.inputs = inputs
        self.output = output
        self.pull: Callable[[Tensor], list[Tensor]] | None = None

    def pulled(self, c: Tensor) -> list[Tensor]:
        assert self.pull is not None
        return self.pull(c)

    def keep(self, target: Tensor) -> None:
        """Before somebody writes over a tensor: go on with a copy."""
        at = target.untyped_storage().data_ptr()
        self.inputs = [v.clone() if v.untyped_storage().data_ptr() == at else v for v in self.inputs]
        if self.output.untyped_storage().data_ptr() == at:
            self.output = self.output.clone()


# Relevance of a call's output, and what is noted of the call, to that of each input that depends on the images.
_Back = Callable[[Tensor, _Note], list[Tensor]]
_Function = Callable[..., Tensor]


@dataclass(frozen=True)
class _Rule:
    """How relevance goes back through a call, and whether the derivative of the call is asked for."""

    back: _Back
    derivative: bool = False


class _Noting(Decomposed):
    """A pass that tells calls apart: those that have a rule, those that move numbers about, those that are refused."""

    def __init__(self, network: nn.Module, epsilon: float, image: Tensor) -> None:
        super().__init__()
        self.network = network
        self.epsilon = epsilon
        self.notes: list[_Note] = []
        self.images = {id(image): image}  # and what is the image but for its normalization; kept, or an id says nothing

    def step(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in _ASKED or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        places = [at for at, v in _tensors(args, kwargs) if v.requires_grad]
        if not places:
            return func(*args, **kwargs)
        if is_in_place(func, kwargs) or name in _ONTO_ITSELF:
            return self._written(name, func, args, kwargs)
        inputs = dict(_tensors(args, kwargs))
        normalizes = len(places) == 1 and id(inputs[places[0]]) in self.images
        if name in _MOVING or name in _WINNERS:
            out = func(*args, **kwargs)
            if normalizes and name in _MOVING and isinstance(out, Tensor):
                self.images[id(out)] = out
            return out
        rule = self._rule(name, args, kwargs, places)
        normalizes &= name in SUMS or name in _DIFFERENCES or name in PRODUCTS or name in QUOTIENTS
        if rule is not None and normalizes:
            rule = _Rule(_identity)
        if rule is None:
            out = func(*args, **kwargs)
            several = out if isinstance(out, (tuple, list)) else (out,)
            if not any(isinstance(v, Tensor) and v.requires_grad for v in several):
                return out  # a comparison, a size
            raise ValueError(f"AttnLRP has no rule for {name}, which {place(self.network)} calls; take {OTHERS}")

        def function(*moved: Tensor) -> Tensor:
            given, options = _replaced(args, kwargs, dict(zip(places, moved, strict=True)))
            out: Tensor = func(*given, **options)
            return out

        found = self.by(rule, function, [inputs[at] for at in places])
        if normalizes:
            self.images[id(found)] = found
        return found

    def by(self, rule: _Rule, function: _Function, inputs: list[Tensor]) -> Tensor:
        raise NotImplementedError

    def _written(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        key = next((key for key in ("input", "self") if not args and key in kwargs), None)
        target: Tensor = kwargs[key] if key else args[0]
        options = {k: v for k, v in kwargs.items() if k not in ("inplace", key)}
        plain = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div"}.get(name, name)
        new: Tensor
        if name == "copy":  # of what is copied all is handed on: the derivative does that
            new = args[1] if len(args) > 1 else kwargs["other"]
        else:
            function = getattr(F, plain, None) or getattr(torch, plain, None)
            if function is None:
                raise ValueError(
                    f"AttnLRP has no rule for {func.__name__}, which {place(self.network)} calls; take {OTHERS}"
                )
            new = self.step(plain, function, (target, *args[1:]), options)
        if id(new) not in self.images:
            self.images.pop(id(target), None)
        for note in self.notes:
            note.keep(target)
        return target.copy_(new)

    def _rule(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], places: list[_Place]) -> _Rule | None:
        if name in ELEMENTWISE or name in ("normalize", "rms_norm") or name == "neg":
            return _Rule(_identity) if len(places) == 1 else None
        first = places in ([(0,)], [("input",)])
        if name in PRODUCTS or (name in QUOTIENTS and first and not kwargs.get("rounding_mode")):
            return _Rule(_halves if len(places) == 2 else _identity)
        if name in SUMS or name in _DIFFERENCES:
            alpha = float(kwargs.get("alpha", 1)) * (-1 if name in _DIFFERENCES else 1)
            one, two = (alpha, 1.0) if name in _REVERSED else (1.0, alpha)
            signs: dict[_Place, float] = {(0,): one, (1,): two, ("input",): one, ("other",): two}
            return _Rule(self._sum([signs[at] for at in places]))
        if name in CONTRACTIONS or name in _TRANSPOSED:
            maps = "conv" in name
            layered = maps or name == "linear"
            ends = {at[0] for at in places}
            if name in ("addmm", "baddbmm", "bilinear") or len(places) > 2 or (layered and ends & {2, "bias"}):
                return None
            if len(places) == 2:
                return _Rule(self._products, derivative=True)
            bias = (args[2] if len(args) > 2 else kwargs.get("bias")) if layered else None
            return _Rule(self._linear(bias, maps), derivative=True)
        if name in _AVERAGES:
            return _Rule(self._linear(None, False), derivative=True)
        if name == "batch_norm" and first:
            shift = _shift(args, kwargs)
            return None if shift is None else _Rule(self._linear(shift, True), derivative=True)
        if name == "softmax":
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return None if dim is None else _Rule(self._softmax(int(dim)))
        if name in ("layer_norm", "group_norm", "instance_norm") and first:
            return _Rule(self._normalized(name, args, kwargs))
        if name in _STACKING:
            return _Rule(self._stacked, derivative=True)
        return None

    # The rules. Each says what it does not hand on: see _Ruled.absorb.

    def absorb(self, taken: Tensor) -> None:
        """Some of the relevance that a rule keeps."""

    def absorb_rows(self, r: Tensor, handed: list[Tensor]) -> None:
        """What a rule keeps of r, which is all but what it hands on."""

    def stabilized(self, z: Tensor) -> Tensor:
        return z + torch.where(z.detach() < 0, -self.epsilon, self.epsilon)

    def _linear(self, bias: Tensor | None, maps: bool) -> _Back:
        def back(r: Tensor, note: _Note) -> list[Tensor]:
            stable = self.stabilized(note.output)
            c = r / stable
            kept = stable.detach() - note.output.detach()
            if bias is not None:
                kept = kept + (bias.view(-1, *[1] * (r.ndim - 2)) if maps else bias)
            self.absorb(c.detach() * kept)
            return [note.inputs[0] * g for g in note.pulled(c)]

        return back

    def _sum(self, signs: list[float]) -> _Back:
        def back(r: Tensor, note: _Note) -> list[Tensor]:
            stable = self.stabilized(note.output)
            c = r / stable
            shares = [sign * v for v, sign in zip(note.inputs, signs, strict=True)]
            # The stabilizer's, and that of a constant.
            self.absorb((c * (stable - sum(shares))).detach())
            return [(c * share).sum_to_size(share.shape) for share in shares]

        return back

    def _softmax(self, dim: int) -> _Back:
        def back(r: Tensor, note: _Note) -> list[Tensor]:
            z = torch.where(torch.isfinite(note.inputs[0]), note.inputs[0], 0)  # what is masked has no share
            found = z * (r - note.output * r.sum(dim, keepdim=True))
            self.absorb((r - found).detach())
            return [found]

        return back

    def _products(self, r: Tensor, note: _Note) -> list[Tensor]:
        stable = self.stabilized(note.output)
        c = r / stable
        self.absorb((c * (stable - note.output)).detach())
        return [v * g / 2 for v, g in zip(note.inputs, note.pulled(c), strict=True)]

    def _stacked(self, r: Tensor, note: _Note) -> list[Tensor]:
        found = note.pulled(r)
        # Constants' shares; a sum is taken of each image first.
        self.absorb_rows(r.detach(), [part.detach() for part in found])
        return found

    def _normalized(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Back:
        names = {
            "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
            "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
            "instance_norm": (
                *("input", "running_mean", "running_var", "weight", "bias"),
                *("use_input_stats", "momentum", "eps"),
            ),
        }[name]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        bias: Tensor | None = given.get("bias")

        def centered(v: Tensor) -> Tensor:
            if name == "layer_norm":
                return v - v.mean(tuple(range(v.ndim - len(given["normalized_shape"]), v.ndim)), keepdim=True)
            groups = given["num_groups"] if name == "group_norm" else v.shape[1]
            grouped = v.reshape(len(v), groups, -1)
            return (grouped - grouped.mean(2, keepdim=True)).view(v.shape)

        def back(r: Tensor, note: _Note) -> list[Tensor]:
            (v,) = note.inputs
            stable = self.stabilized(note.output)
            c = r / stable
            line = note.output
            kept = stable - line
            if bias is not None:
                b = bias if name == "layer_norm" else bias.view(-1, *[1] * (v.ndim - 2))
                line, kept = line - b, kept + b
            self.absorb((c * kept).detach())
            middle = centered(v)
            stable = self.stabilized(middle)
            c = line * c / stable
            self.absorb((c * (stable - middle)).detach())
            # Centering is its own transpose.
            return [v * centered(c)]

        return back


def _identity(r: Tensor, note: _Note) -> list[Tensor]:
    return [r.sum_to_size(note.inputs[0].shape)]


def _halves(r: Tensor, note: _Note) -> list[Tensor]:
    return [(r / 2).sum_to_size(v.shape) for v in note.inputs]


def _shift(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a batch normalization adds to a multiple of its input; None where it depends on the batch."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {"weight": None, "bias": None, "training": False, "eps": 1e-5, **dict(zip(names, args, strict=False))}
    given |= kwargs
    if given["training"] or given["running_mean"] is None:
        return None
    scale = (given["running_var"] + given["eps"]).rsqrt()
    shift: Tensor = -given["running_mean"] * (scale if given["weight"] is None else scale * given["weight"])
    return shift if given["bias"] is None else shift + given["bias"]


class _Watched(_Noting):
    """The pass that has the true derivative: what the rules read."""

    def by(self, rule: _Rule, function: _Function, inputs: list[Tensor]) -> Tensor:
        out = function(*inputs)
        self.notes.append(_Note(list(inputs), out))
        return out


class _Ruled(_Noting):
    """The pass that relevance goes back through.

    Args:
        noted: what the other pass noted; None where none was made, and the rules read the values of this one.
    """

    def __init__(self, network: nn.Module, epsilon: float, image: Tensor, noted: list[_Note] | None) -> None:
        super().__init__(network, epsilon, image)
        self.noted: Iterator[_Note] | None = None if noted is None else iter(noted)
        self.n = len(image)
        self.sums: list[Tensor] = []  # on the device, where no call waits for the one before

    def absorb(self, taken: Tensor) -> None:
        self.sums.append(torch.stack([self.rows(taken), self.rows(taken.abs())]))

    def absorb_rows(self, r: Tensor, handed: list[Tensor]) -> None:
        self.absorb(self.rows(r) - torch.stack([self.rows(v) for v in handed]).sum(0))

    def rows(self, v: Tensor) -> Tensor:
        """The sum of each image, [N], where images come first, if only as windows or heads of them."""
        if v.ndim == 0 or len(v) % self.n:
            v = v.sum().expand(self.n) / self.n
        return v.reshape(self.n, -1).sum(1, dtype=torch.float64)

    def missed(self, r: Tensor, logit: Tensor) -> list[int]:
        """Images whose relevance was lost or made, as far as :meth:`rows` tells images apart.

        Half of the digits have to be right, of what is added and subtracted.
        """
        missed, size = self.balance(r, logit)[:2]
        found: list[int] = (~(missed <= torch.finfo(r.dtype).eps ** 0.5 * size)).nonzero().flatten().tolist()
        return found

    def balance(self, r: Tensor, logit: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each image: what is missing, the size of all that counts, what has arrived and what rules have kept."""
        total, wanted = self.rows(r), logit.double()
        nothing = torch.zeros(2, self.n, dtype=torch.float64, device=r.device)
        taken, size = torch.stack([nothing, *self.sums]).sum(0)
        size = size + self.rows(r.abs()) + wanted.abs()
        return (total + taken - wanted).abs(), size, total, taken

    def by(self, rule: _Rule, function: _Function, inputs: list[Tensor]) -> Tensor:
        values = [v.detach() for v in inputs]
        noted = None if self.noted is None else next(self.noted)
        read = values if noted is None else noted.inputs
        ends: list[tuple[Tensor, Tensor]] = []
        if rule.derivative:
            with torch.enable_grad():
                for i, v in enumerate(values):
                    leaf = v.detach().requires_grad_()
                    ends.append((function(*(leaf if j == i else w for j, w in enumerate(read))), leaf))
            out = ends[0][0].detach()
        else:
            with torch.no_grad():
                out = function(*values)
        note = _Note(list(read), out.detach() if noted is None else noted.output)
        note.pull = lambda c: [
            torch.autograd.grad(end, leaf, c, create_graph=torch.is_grad_enabled(), retain_graph=True)[0]
            for end, leaf in ends
        ]
        self.notes.append(note)
        ruled: Tensor = _Backward.apply(rule.back, note, [out.clone() if out._is_view() else out], *inputs)
        return ruled


class _Backward(torch.autograd.Function):
    """A call whose backward pass is a rule's."""

    @staticmethod
    def forward(ctx: Any, back: _Back, note: _Note, out: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.back, ctx.note = back, note
        return out[0]  # in a list, because a tensor would be taken for an input, and its view may not be written over

    @staticmethod
    def backward(ctx: Any, r: Tensor) -> Any:
        return (None, None, None, *ctx.back(r, ctx.note))


_Place = tuple[Any, ...]


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[_Place, Tensor]]:
    """The floating tensors of a call, each with its place: a number or a name, and one more within a list."""
    found: list[tuple[_Place, Tensor]] = []
    for key, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor):
            found.append(((key,), value))
        elif isinstance(value, (tuple, list)):
            found += [((key, i), v) for i, v in enumerate(value) if isinstance(v, Tensor)]
    return [(at, v) for at, v in found if v.is_floating_point()]


def _replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], new: dict[_Place, Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def of(key: Any, value: Any) -> Any:
        if (key,) in new:
            return new[(key,)]
        if isinstance(value, (tuple, list)):
            return type(value)(new.get((key, i), v) for i, v in enumerate(value))
        return value

    return tuple(of(i, v) for i, v in enumerate(args)), {k: of(k, v) for k, v in kwargs.items()}


_DIFFERENCES = frozenset({"sub", "subtract", "__sub__", "__rsub__", "rsub"})
_REVERSED = frozenset({"rsub", "__rsub__"})
_ONTO_ITSELF = frozenset({"__iadd__", "__isub__", "__imul__", "__itruediv__"})
_AVERAGES = frozenset({"mean", "sum", "interpolate", "upsample"}) | {
    f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)
}
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_STACKING = frozenset({"cat", "concat", "concatenate", "stack"})
_WINNERS = frozenset({"amax", "max"}) | {
    f"{kind}max_pool{n}d{end}" for kind in ("", "adaptive_") for n in (1, 2, 3) for end in ("", "_with_indices")
}
_ASKED = frozenset({"__get__", "size", "dim", "numel", "shape", "is_floating_point", "stride", "type", "detach"})
_MOVING = frozenset(
    {
        "__getitem__",
        "broadcast_to",
        "channel_shuffle",
        "chunk",
        "clone",
        "contiguous",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "expand",
        "expand_as",
        "flatten",
        "flip",
        "float",
        "double",
        "gather",
        "index_select",
        "masked_fill",
        "moveaxis",
        "movedim",
        "narrow",
        "pad",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat",
        "repeat_interleave",
        "reshape",
        "roll",
        "select",
        "split",
        "squeeze",
        "swapaxes",
        "swapdims",
        "t",
        "tensor_split",
        "tile",
        "to",
        "transpose",
        "type_as",
        "unbind",
        "unflatten",
        "unfold",
        "unsqueeze",
        "view",
        "view_as",
    }
)
"""What takes numbers from one place to another, or copies them: relevance goes with them."""


def _check_conserved(r: Tensor, logit: Tensor, ruled: _Ruled, image: int) -> None:
    """Refuse relevance of one image, the only one of its pass, that was lost or made."""
    if not ruled.missed(r, logit):
        return
    if not bool(r.isfinite().all()):
        raise ValueError(
            f"the relevance of image {image} is not finite in {r.dtype}: what is shared by a sum near zero grows from "
            "layer to layer; take a larger epsilon, a smooth copy with a larger beta, or float64"
        )
    missed, size, total, taken = (float(v) for v in ruled.balance(r, logit))
    raise ValueError(
        f"the relevance of image {image} sums to {total:.6g}, and {taken:.6g} was taken on the way, for a logit of "
        f"{float(logit):.6g}: a relative error of {missed / size:.2g}; a layer is not known; take {OTHERS}, or "
        "check=False to go on knowingly"
    )
