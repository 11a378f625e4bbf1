"""The losses whose influence is asked for, by a network's outputs."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from robattr.data import check_labels

Loss = Literal["cross-entropy", "squared"]


def _slopes(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """The derivative of each row's loss with respect to its logits, [N, outputs]."""
    if loss == "squared":
        return logits - labels.to(logits)
    # p - 1 as minus the sum of the others: what is left of a certain prediction's gradient keeps its digits.
    index = labels[:, None]
    others = logits.softmax(1).scatter(1, index, 0)
    return others.scatter(1, index, -others.sum(1, keepdim=True))


def _check_labels(loss: Loss, labels: Tensor, n: int, outputs: int, name: str = "labels") -> None:
    if loss == "cross-entropy":
        check_labels(labels, n, outputs, name)
    elif labels.shape != (n, outputs) or not labels.is_floating_point() or not bool(labels.isfinite().all()):
        raise ValueError(
            f"{name} are {labels.dtype} of shape {tuple(labels.shape)}; the squared loss takes finite floats "
            f"[N, outputs] = [{n}, {outputs}]"
        )
