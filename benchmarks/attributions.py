"""What the short ways save in one step of an attack: ratios of times taken in turn, in one run.

    python benchmarks/attributions.py [--model efficientnet-lite0] [--batch 4] [--rounds 5]

Prints, with the hardware and n, how many times longer a step takes without each of them: convolutions differentiated as
linear maps, batch normalization folded, images in one batch. Each ratio is the median over rounds in which the two
variants follow one another, so that a slow moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from timing import seconds
from torch import Tensor, nn

from robattr import models
from robattr._second_order import SecondOrder
from robattr.studies.runs import environment


def step(model: nn.Module, x: Tensor, context: Callable[[], AbstractContextManager[object]]) -> Tensor:
    """The gradient of a function of the gradient, which is what a step of an attack costs most for."""
    z = x.clone().requires_grad_()
    with context():
        logits = model(z).amax(1)
    (g,) = torch.autograd.grad(logits.sum(), z, create_graph=True)
    return torch.autograd.grad(g.abs().sum(), z)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def smooth(fold: bool) -> nn.Module:
        built = models.build(options.model, activation="softplus", beta=30.0, fold=fold)
        return built.to(device).requires_grad_(False)

    folded, plain = smooth(True), smooth(False)
    size = models.build(options.model).input_size
    x = torch.rand(options.batch, *size, generator=torch.Generator().manual_seed(0)).to(device)

    def short() -> object:
        return step(folded, x, SecondOrder)

    variants: dict[str, Callable[[], object]] = {
        "plain double backward of convolutions": lambda: step(folded, x, nullcontext),
        "batch normalization not folded": lambda: step(plain, x, SecondOrder),
        "one image at a time": lambda: [step(folded, image[None], SecondOrder) for image in x],
    }
    short()
    about = environment()
    print(f"{options.model}, batch {options.batch}, {about['cpu']}, {about['threads']} threads, GPU {about['gpu']}")
    print(f"a step of an attack: {min(seconds(short) for _ in range(3)) / options.batch:.4f} s an image")
    for name, run in variants.items():
        run()
        ratios = [seconds(run) / seconds(short) for _ in range(options.rounds)]
        print(f"{name}: {statistics.median(ratios):.2f} x as long (n = {options.rounds} rounds)")


if __name__ == "__main__":
    main()
