"""Copies of networks that compute the same with other weights: batch normalization folded, the output rescaled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robattr._calls import Calls
from robattr.models.outputs import example_of

M = TypeVar("M", bound=nn.Module)


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
    if example is None:
        example = example_of(model)
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
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


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


class _Readers(Calls):
    """Which functions read the outputs of layers, apart from batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[str, Tensor]] = {}  # kept alive: an id is of no use after that
        self.readers: dict[str, set[str]] = {}

    def call(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and func is not F.batch_norm:
            given = [*args, *kwargs.values()]
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


def _fold(layer: nn.Conv1d | nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
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
