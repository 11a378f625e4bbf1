"""What a step of an attack costs on large networks, in gradients: ratios of times taken in turn, in one run.

    python benchmarks/networks.py [--models efficientnet-lite0 torchvision/resnet50 vit_b_16] [--batch 1] [--rounds 5]

Prints, with the hardware and n, how long a step of the top-k attack takes (the gradient of a score of the gradient's
heatmap, on the smooth copy) against two gradients of the network itself, a forward and a backward pass each; what the
look at a network's activations, once an attack, adds in steps; and what attention composed of matrix products costs in
a gradient beside the fused kernel, which has no second derivative. Each ratio is the median over rounds in which the
variants follow one another, so that a slow moment of the machine hits all. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from timing import seconds
from torch import Tensor, nn

from robattr import models
from robattr._second_order import SecondOrder
from robattr.attacks import TopK
from robattr.attributions import frozen, gradient, heatmap
from robattr.studies.runs import environment


def first_order(model: nn.Module, x: Tensor, composed: bool) -> Tensor:
    """The gradient of a logit, with attention composed of matrix products or fused."""
    z = x.clone().requires_grad_()
    if not composed:
        return torch.autograd.grad(model(z)[:, 1].sum(), z)[0]
    with SecondOrder() as mode, mode.inputs_only():
        return torch.autograd.grad(model(z)[:, 1].sum(), z)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["efficientnet-lite0", "torchvision/resnet50", "vit_b_16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = environment()
    print(f"batch {options.batch}, {about['cpu']}, {about['threads']} threads, GPU {about['gpu']}, float32")
    for name in options.models:
        model = frozen(models.build(name, weights="random", num_classes=1000)).to(device)
        for module in model.modules():
            if isinstance(module, nn.Linear) and not bool(module.weight.any()):
                nn.init.normal_(module.weight, std=0.02)
        x = torch.rand(options.batch, *model.input_size, generator=torch.Generator().manual_seed(0)).to(device)
        smooth = models.softplus_surrogate(model, 30.0, x[:1])
        score = TopK(1000).prepare(heatmap(gradient(model, x, 1)), slice(0, len(x)))

        def step(smooth: nn.Module = smooth, x: Tensor = x, score: Callable[[Tensor], Tensor] = score) -> object:
            z = x.clone().requires_grad_()
            return torch.autograd.grad(score(heatmap(gradient(smooth, z, 1, create_graph=True))).sum(), z)

        def two(model: nn.Module = model, x: Tensor = x) -> object:
            return first_order(model, x, False), first_order(model, x, False)

        def look(model: nn.Module = model, x: Tensor = x) -> object:
            return models.is_smooth(model, x[:1]), models.softplus_surrogate(model, 30.0, x[:1])

        def composed(model: nn.Module = model, x: Tensor = x) -> object:
            return first_order(model, x, True)

        def fused(model: nn.Module = model, x: Tensor = x) -> object:
            return first_order(model, x, False)

        pairs = {
            "a step of an attack / two gradients": (step, two),
            "the look at activations, once / a step": (look, step),
            "a gradient that can be differentiated / a plain one": (composed, fused),
        }
        for what, (a, b) in pairs.items():
            a(), b()
            ratios = [seconds(a) / seconds(b) for _ in range(options.rounds)]
            print(f"{name}: {what}: {statistics.median(ratios):.2f} (n = {options.rounds} rounds)", flush=True)


if __name__ == "__main__":
    main()
