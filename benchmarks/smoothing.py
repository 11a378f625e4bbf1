"""What smoothing costs beyond its gradients: ratios of times taken in turn, in one run.

    python benchmarks/smoothing.py [--model lenet] [--images 4] [--samples 128] [--rounds 7] [--law ball] [--device cpu]
    python benchmarks/smoothing.py --certify [--samples 4096] [--images 1] ...

Prints, with the hardware and n, how long :func:`robattr.smoothing.smooth` takes against a plain loop over the samples
of each image, and against nothing but the gradients of as many images in passes of the same size. Each ratio is the
median over rounds in which the variants follow one another, so that a slow moment of the machine hits all of them.

With ``--certify`` the same of :func:`robattr.smoothing.certify` with Gaussian noise: the gradients of as many images in
passes of the same size, over its time without the spread and with it, and what the spread adds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from timing import seconds
from torch import Tensor

from robattr import models
from robattr.attributions import frozen, gradient
from robattr.smoothing import Ball, Gaussian, Noise, certify, smooth
from robattr.studies.runs import environment


def loop(model: torch.nn.Module, x: Tensor, noise: Noise, samples: int) -> Tensor:
    """One gradient at a time."""
    draws = torch.Generator(x.device).manual_seed(0)
    means = []
    for image in x:
        total = torch.zeros_like(image)
        for _ in range(samples):
            g = gradient(model, image[None] + noise.sample((1, *image.shape), draws), 0)[0]
            total += g / g.norm()
        means.append(total / samples)
    return torch.stack(means)


def certifying(model: torch.nn.Module, x: Tensor, options: argparse.Namespace) -> None:
    """Certificates against nothing but their gradients; a tenth of the samples choose."""
    choose = max(1, options.samples // 10)
    total = options.images * (options.samples + choose)
    noise = Gaussian.matching(1.0, x[0].numel())
    passes = [x[:1].expand(min(options.max_batch, total - i), *x.shape[1:]) for i in range(0, total, options.max_batch)]

    def run(spectral: bool) -> object:
        return certify(
            model, x, 0, noise=noise, epsilon=0.01, samples=options.samples, choose=choose, spectral=spectral,
            max_batch=options.max_batch,
        )  # fmt: skip

    variants: dict[str, Callable[[], object]] = {
        "gradients": lambda: [gradient(model, images.contiguous(), 0) for images in passes],
        "length": lambda: run(False),
        "spread": lambda: run(True),
    }
    for each in variants.values():
        each()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, each in variants.items():
            times[name].append(seconds(each))
    about = environment()
    print(f"{options.model}, {about['cpu']}, {about['threads']} threads, GPU {about['gpu']}")
    print(f"{options.images} images, {options.samples} samples and {choose} that choose, passes of {options.max_batch}")

    def ratio(above: str, beneath: str) -> float:
        return statistics.median(a / b for a, b in zip(times[above], times[beneath], strict=True))

    n = f"median of {options.rounds} rounds"
    print(f"certify by the length: {ratio('gradients', 'length'):.1%} of the gradient rate ({n})")
    print(f"certify with the spread: {ratio('gradients', 'spread'):.1%} of the gradient rate ({n})")
    print(f"the spread adds {ratio('spread', 'length') - 1:.1%} ({n})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--law", choices=["ball", "gaussian"], default="ball")
    parser.add_argument("--certify", action="store_true")
    parser.add_argument("--max-batch", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model = frozen(models.build(options.model, activation="softplus", beta=3.0)).to(options.device)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(options.images, *model.input_size, generator=generator).to(options.device)
    noise: Noise = Ball(1.0) if options.law == "ball" else Gaussian.matching(1.0, x[0].numel())
    if options.certify:
        certifying(model, x, options)
        return
    many = x.repeat_interleave(options.samples, 0)

    variants: dict[str, Callable[[], object]] = {
        "smooth": lambda: smooth(model, x, 0, noise=noise, samples=options.samples, max_batch=options.max_batch),
        "loop": lambda: loop(model, x, noise, options.samples),
        "gradients": lambda: gradient(model, many, 0, max_batch=options.max_batch),
    }
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, run in variants.items():
            times[name].append(seconds(run))
    about = environment()
    n = f"n = {options.rounds} rounds"
    print(f"{options.model}, {about['cpu']}, {about['threads']} threads, GPU {about['gpu']}")
    print(f"{options.images} images, {options.samples} samples each, passes of at most {options.max_batch}, {noise}")
    each = statistics.median(times["smooth"]) / len(many)
    print(f"smooth: {each * 1e6:.0f} us a sample (median, {n})")
    for name, text in (("loop", "a plain loop"), ("gradients", "the gradients alone, in batches")):
        ratio = statistics.median(b / a for a, b in zip(times["smooth"], times[name], strict=True))
        print(f"{text}: {ratio:.2f} x as long as smooth (median of ratios, {n})")


if __name__ == "__main__":
    main()
