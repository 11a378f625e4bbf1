"""How many attacked points break a certificate of heatmaps: none should.

    python benchmarks/violations.py [--images 50] [--samples 1000] [--random 14] [--weaken 1] [--seed 0] [--device cpu]

Certifies images of digits with a small network, attacks each certified quantity through the smoothing within four l2
lengths, adds random directions, and compares what is measured with fresh noise at each of them with all bounds: 24,000
points by default. Used is the median share of what is certified to be possible that was reached, caught the share from
which on a point counts as beyond its bound. Bounds of a smaller perturbation, ``--weaken 0.3``, are what such a check
has to find. Everything follows from the seed.
"""

from __future__ import annotations

import argparse

import torch

from robattr import models
from robattr.smoothing import Gaussian, certify_map
from robattr.studies.breaking import Broken, attack_maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--random", type=int, default=14)
    parser.add_argument("--weaken", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1).to(options.device)
    x = models.load_images(model, "digits", limit=options.images, seed=options.seed).images.to(options.device)
    labels = model(x).argmax(1)
    found = certify_map(
        model, x, labels, noise=Gaussian(0.2), epsilon=[0.05, 0.1, 0.2, 0.3], k=20, cosine=True,
        samples=options.samples, choose=300, seed=options.seed, max_batch=1024,
    )  # fmt: skip
    broken = Broken.count(attack_maps(
        model, x, labels, found, restarts=options.restarts, random=options.random, weaken=options.weaken,
        seed=options.seed + 1, progress=True,
    ))  # fmt: skip
    print(f"{'quantity':10s} {'points':>7s} {'silent':>7s} {'broken':>7s} {'margin':>9s} {'used':>6s} {'caught':>6s}")
    for name, points in broken.points.items():
        print(
            f"{name:10s} {points:7d} {broken.silent[name]:7d} {broken.violations[name]:7d} "
            f"{broken.margins[name]:9.2g} {broken.used[name]:6.2f} {broken.caught[name]:6.2f}"
        )
    print(f"{sum(broken.violations.values())} of {sum(broken.points.values())} attacked points beyond their bound")


if __name__ == "__main__":
    main()
