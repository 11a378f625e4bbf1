"""What a training step costs under each objective: ratios to plain cross-entropy, in one run.

    python benchmarks/training.py [--model lenet] [--batch 128] [--rounds 7] [--device cpu] [--plain]

Prints, with the hardware and n, the time of a step (forward, backward, clipping, optimizer; float32) over that of
cross-entropy. The objectives take turns in every round, so that a slow moment of the machine hits all of them; each
number is the ratio of medians. With --plain the same objectives are also timed with PyTorch's own double backward.

On 2 cores of an Intel Xeon with AMX (torch 2.15, LeNet, batch 128, Softplus(3), n = 7): see the book's chapter on
aligned gradients, which runs the same function.
"""

from __future__ import annotations

import argparse
import json
from typing import Any
from unittest import mock

import torch

from robattr import _second_order
from robattr.studies import trainings
from robattr.studies.runs import environment
from robattr.studies.trainings import OBJECTIVES, Training


class _Plain(_second_order.SecondOrder):
    """PyTorch's own operators under the same interface."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    configs = [Training(model=options.model, objective=objective) for objective in OBJECTIVES]
    common = {"batch_size": options.batch, "repeats": options.rounds, "device": options.device}
    seconds = trainings.step_seconds(configs, **common)
    base = seconds["cross-entropy"]
    print(json.dumps({"n": options.rounds, "device": options.device, **environment()}))
    print(f"{'objective':24} {'ratio':>6} {'ms':>8}")
    for name, value in seconds.items():
        print(f"{name:24} {value / base:6.2f} {value * 1000:8.1f}")
    if options.plain:
        with mock.patch("robattr.regularizers.SecondOrder", _Plain):
            plain = trainings.step_seconds(configs, **common)
        print("\nwith PyTorch's own double backward")
        for name, value in plain.items():
            print(f"{name:24} {value / base:6.2f} {value * 1000:8.1f}")


if __name__ == "__main__":
    main()
