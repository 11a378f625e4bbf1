"""Time per batch of each similarity metric, beside one-sample-at-a-time SciPy and scikit-image.

usage: python benchmarks/metrics.py [--batch 64] [--device cpu]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import scipy.stats
import torch
from skimage.metrics import structural_similarity

from robattr import metrics


def milliseconds(run: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Median wall time after one run to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, batch {options.batch}, float32; median of 5, ms")
    for side, k in ((32, 100), (224, 1000)):
        a, b = (torch.rand(options.batch, side, side, device=options.device) for _ in range(2))
        x, y = a.cpu().numpy(), b.cpu().numpy()
        timed: dict[str, Callable[[], object]] = {
            "cosine": lambda a=a, b=b: metrics.cosine(a, b),
            "pearson": lambda a=a, b=b: metrics.pearson(a, b),
            "spearman": lambda a=a, b=b: metrics.spearman(a, b),
            "spearman, SciPy": lambda x=x, y=y: [
                scipy.stats.spearmanr(p.ravel(), q.ravel()) for p, q in zip(x, y, strict=True)
            ],
            "topk_intersection": lambda a=a, b=b, k=k: metrics.topk_intersection(a, b, k),
            "center_shift": lambda a=a, b=b: metrics.center_shift(a, b),
            "ssim": lambda a=a, b=b: metrics.ssim(a, b),
            "ssim, scikit-image": lambda x=x, y=y: [
                structural_similarity(p, q, gaussian_weights=True, use_sample_covariance=False, data_range=1.0)
                for p, q in zip(x, y, strict=True)
            ],
        }
        for name, run in timed.items():
            print(f"{side:4d} x {side:<4d} {name:20s} {milliseconds(run, options.device):9.2f}")


if __name__ == "__main__":
    main()
