"""What an attack sees of a model: maps with the logits of the same pass, the sharpness of a smooth copy."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robattr.attributions import (
    Attribution,
    Normalization,
    grad_cam,
    gradient,
    guided_backpropagation,
    heatmap,
    input_x_gradient,
    layer_activation_x_gradient,
)

# Their one pass over the images is an ordinary one, so its logits are the images' logits, graph included.
_ONE_PASS = (gradient, input_x_gradient, guided_backpropagation, grad_cam, layer_activation_x_gradient)


def _map_and_logits(
    model: nn.Module,
    attribution: Attribution,
    x: Tensor,
    labels: Tensor,
    graph: bool,
    normalize: Normalization = "max",
    logits_graph: bool = True,
) -> tuple[Tensor, Tensor]:
    """Normalized heatmaps, and the logits; with ``graph`` both can be differentiated, or the heatmaps alone."""
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        h = heatmap(attribution(model, x, labels, create_graph=graph), normalize)
    finally:
        handle.remove()
    if attribution in _ONE_PASS:
        (logits,) = seen
    else:
        with torch.set_grad_enabled(graph and logits_graph):
            logits = model(x)
    return h, logits if graph and logits_graph else logits.detach()


def _schedule(beta: float | tuple[float, float] | None, iterations: int) -> list[float]:
    if beta is None:
        return []
    first, last = beta if isinstance(beta, tuple) else (beta, beta)
    if not (0 < first < math.inf and 0 < last < math.inf):
        raise ValueError(f"beta is {beta}; accepted are a finite number > 0, a pair, or None for a smooth model")
    ratio = (last / first) ** (1 / max(1, iterations - 1))
    return [first * ratio**p for p in range(iterations)]
