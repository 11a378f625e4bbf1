"""Networks that a page carries: the reader attacks them in the browser, from the disk and offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from robattr.attacks import TopK
from robattr.models import Classifier
from robattr.pages.figures.style import MAP
from robattr.pages.figures.widgets import _embedded, _encoded

__all__ = ["attack_in_page", "live_network"]


def live_network(model: Classifier) -> dict[str, Any]:
    """A network as ``book/_static/live-network.js`` takes it: its layers, and its weights in 16 bits.

    Returns:
        ``shape``, ``mean``, ``std``, ``classes``, ``layers`` (in turn, each with its ``kind`` and its sizes) and
        ``weights``, base64 of little-endian IEEE halves: of each layer its weight and its bias.

    Raises:
        ValueError: a layer is none of those that the script has: unpadded or zero-padded convolutions without groups
            and dilation, linear layers, max-pooling without overlap, ReLU and Softplus, all in a sequence; or a weight
            is too large for 16 bits.
    """
    shape = list(model.input_size)
    layers: list[dict[str, Any]] = []
    values: list[Tensor] = []
    if not isinstance(model.network, nn.Sequential):
        raise ValueError(f"network is {type(model.network).__name__}; accepted is nn.Sequential, a row of layers")
    for name, layer in model.network.named_children():
        found = _described(layer, shape)
        if found is None:
            raise ValueError(
                f"layer {name} is {layer}; accepted are Conv2d (zeros around, no groups, no dilation), Linear, "
                "MaxPool2d without overlap, ReLU and Softplus"
            )
        described, shape = found
        layers += [described] if described else []
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert layer.bias is not None
            values += [layer.weight.detach().flatten(), layer.bias.detach().flatten()]
    weights = torch.cat(values).cpu().half()
    if not weights.isfinite().all():
        raise ValueError("weights has values beyond 65,504 or NaN; accepted are those that 16 bits can hold")
    return {
        "shape": list(model.input_size),
        "mean": model.normalize.mean.flatten().tolist(),
        "std": model.normalize.std.flatten().tolist(),
        "classes": model.num_classes,
        "layers": layers,
        "weights": base64.b64encode(weights.numpy().astype("<f2").tobytes()).decode(),
    }


def _described(layer: nn.Module, shape: list[int]) -> tuple[dict[str, Any], list[int]] | None:
    """A layer as the script takes it, empty where it does nothing, and the shape after it; None for an unknown one."""
    if isinstance(layer, nn.Flatten):
        return {}, [int(np.prod(shape))]
    if isinstance(layer, nn.ReLU):
        return {"kind": "activation", "beta": None}, shape
    if isinstance(layer, nn.Softplus):
        return {"kind": "activation", "beta": float(layer.beta)}, shape
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        return {"kind": "linear", "inputs": layer.in_features, "outputs": layer.out_features}, [layer.out_features]
    if isinstance(layer, nn.MaxPool2d):
        across = layer.kernel_size
        if not isinstance(across, int) or layer.stride != across or layer.padding != 0 or layer.ceil_mode:
            return None
        after = [shape[0], shape[1] // across, shape[2] // across]
        return {"kind": "max-pool", "shape": shape, "side": across}, after
    if isinstance(layer, nn.Conv2d):
        kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
        square = all(isinstance(v, tuple) and v[0] == v[1] for v in (kernel, stride, padding))
        if not square or layer.groups != 1 or layer.dilation != (1, 1) or layer.bias is None:
            return None
        if layer.padding_mode != "zeros" or isinstance(padding, str):
            return None
        sizes = {"filters": layer.out_channels, "kernel": kernel[0], "stride": stride[0], "padding": padding[0]}
        rows, columns = ((side + 2 * padding[0] - kernel[0]) // stride[0] + 1 for side in shape[1:])
        return {"kind": "convolution", "shape": shape, **sizes}, [layer.out_channels, rows, columns]
    return None


def attack_in_page(
    networks: Mapping[str, Classifier],
    images: Tensor,
    *,
    class_names: Sequence[str],
    label: str,
    k: int,
    norm: Literal["linf", "l2"] = "linf",
    epsilons: Sequence[float] = (2, 4, 8, 16),
    epsilon: float = 8,
    step: float = 1.0,
    iterations: int = 30,
    sigma: float = 0.1,
    choose: int = 50,
    samples: int = 200,
    alpha: float = 0.05,
    shifts: Sequence[float] = (0.25, 0.5),
    drawable: bool = False,
) -> str:
    """HTML in which a reader picks a picture and a network, attacks its map, and smooths it.

    ``live-network.js`` computes everything in the browser and ``live-attack.js`` shows it.

    Args:
        networks: name to network, of the same images; their largest logit is explained.
        images: [N, C, H, W] in [0, 1], rounded to 8 bits.
        class_names: of the logits.
        label: what a reader who cannot see the maps is told.
        k: pixels that the attack goes for.
        norm: of a change. ``l2`` asks of the change that was found what is certified of its length: the cosine of the
            two gradients, that of the smoothed ones, and the bound below it.
        epsilons: that can be chosen, in 1/255; of ``l2`` lengths in units of a [0, 1] image.
        epsilon: one of them, to begin with.
        step: of the attack, in the same units.
        iterations: of the attack.
        sigma: of the noise that smooths.
        choose: samples that choose the direction.
        samples: that certify.
        alpha: probability that what is certified fails.
        shifts: l2 lengths in sigma that are certified, where the norm is not ``l2``.
        drawable: offer an empty picture, too, that the reader draws on.
    """
    if epsilon not in epsilons:
        raise ValueError(f"epsilon is {epsilon:g}; accepted are {', '.join(f'{each:g}' for each in epsilons)}")
    channels, height, width = images.shape[1:]
    TopK(k).check(len(images), height, width)
    pixels = (images.detach().cpu() * 255).round().to(torch.uint8).numpy()
    colors = (np.asarray(plt.get_cmap(MAP)(np.linspace(0, 1, 256)))[:, :3] * 255).round().astype(np.uint8)
    content = {
        "networks": [{"name": name, **live_network(network)} for name, network in networks.items()],
        "shape": [channels, height, width],
        "pictures": base64.b64encode(pixels.tobytes()).decode(),
        "count": len(images),
        "drawable": drawable,
        "classes": list(class_names),
        "colors": base64.b64encode(colors.tobytes()).decode(),
        "attack": {"k": k, "step": step, "iterations": iterations, "l2": norm == "l2"},
        "smoothing": {"sigma": sigma, "choose": choose, "samples": samples, "alpha": alpha, "shifts": list(shifts)},
    }
    thumbnails = [
        f'<button type="button" class="live-picture" data-picture="{i}" aria-pressed="{str(i == 0).lower()}">'
        f'<img alt="picture {i + 1}" src="{_encoded(picture.transpose(1, 2, 0).squeeze(), "PNG")}"></button>'
        for i, picture in enumerate(pixels)
    ]
    if drawable:
        thumbnails.append(
            '<button type="button" class="live-picture" data-picture="drawn" aria-pressed="false">draw</button>'
        )
    options = "".join(f"<option>{escape(name)}</option>" for name in networks)
    unit, size = ("/255", "largest change") if norm == "linf" else ("", "ε₂, l2 length")
    sizes = "".join(
        f'<option value="{each:g}"{" selected" if each == epsilon else ""}>{each:g}{unit}</option>' for each in epsilons
    )
    return (
        f'<div class="live-attack" role="group" aria-label="{escape(label)}">'
        f'<div class="live-pictures" role="group" aria-label="pictures">{"".join(thumbnails)}</div>'
        f'<div class="live-controls"><label>network <select data-name="network">{options}</select></label>'
        f'<label>{size} <select data-name="epsilon">{sizes}</select></label>'
        '<button type="button" data-do="attack">Attack</button>'
        '<button type="button" data-do="smooth">Smooth</button>'
        '<button type="button" data-do="reset">Reset</button></div>'
        '<div class="live-views">'
        + "".join(
            f'<figure><canvas width="{width}" height="{height}" data-view="{view}" role="img" aria-label="{text}">'
            f"</canvas><figcaption>{text}</figcaption></figure>"
            for view, text in (
                ("image", "picture"), ("map", "its map"), ("attacked", "attacked"), ("attacked-map", "its map"),
            )
        )
        + '</div><p class="live-values" role="status" aria-live="polite">This part of the page needs JavaScript.</p>'
        f"{_embedded(content, compact=True)}</div>"
    )  # fmt: skip
