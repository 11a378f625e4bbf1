"""Influence through any parameters of a small network, by automatic differentiation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from robattr._rows import parts_of
from robattr.attributions import Target, check_target, differentiates, frozen
from robattr.data import check_images
from robattr.influence.losses import Loss, _check_labels
from robattr.influence.solver import _NUMBERS, _check_numbers, _ConjugateGradients
from robattr.influence.values import Influence


@differentiates
def influence(
    model: nn.Module,
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Target,
    *,
    damping: float,
    parameters: Sequence[str] | None = None,
    weight_decay: float = 0.0,
    loss: Loss = "cross-entropy",
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    max_batch: int = 64,
) -> Influence:
    """The influence of training points through any parameters of a small network, by automatic differentiation.

    Hessian-vector products are derivatives of the gradient, in float64, with a pass over the training images for every
    step of conjugate gradients. Away from a minimum, and in most deep networks also where training ended, the Hessian
    is indefinite: then the damping has to exceed its most negative curvature, or a :class:`SolverError` says so.

    Args:
        model: images in [0, 1] to outputs, in evaluation mode, of operations that ``torch.func`` can transform. Its
            copy is float64.
        train_images: [n, C, H, W] in [0, 1].
        train_labels: int64 [n]; or float [n, outputs] for the squared loss.
        test_images: [T, C, H, W] in [0, 1].
        test_labels: as ``train_labels``; or one int for all.
        damping: added to the Hessian's diagonal, >= 0.
        parameters: names of parameters, or of modules for all of theirs, such as ``network.fc1``; None for all. One
            that several modules share is meant by each of its names, and counts once.
        max_batch: a pass holds at most so many pairs of an image and a test point's direction.

    Other arguments and errors are those of :class:`LastLayer`.
    """
    check_images(train_images, "train_images")
    check_images(test_images, "test_images")
    _check_numbers(damping, weight_decay, loss, tolerance, max_iterations, max_batch)
    model = frozen(model).double()
    x_train, x_test = train_images.detach().double(), test_images.detach().double()
    chosen = _chosen(model, parameters)
    if not chosen:
        raise ValueError(f"parameters is {parameters!r}; accepted is at least one name, or None for all")
    with torch.no_grad():
        outputs = model(x_train[:1]).shape[1]
    y_test = check_target(test_images, test_labels) if loss == "cross-entropy" else torch.as_tensor(test_labels)
    for name, labels, images in (
        ("train_labels", train_labels, train_images),
        ("test_labels", y_test, test_images),
    ):
        _check_labels(loss, labels, len(images), outputs, name)
    n, t = len(x_train), len(x_test)
    y_train, y_test = train_labels.to(x_train.device), y_test.to(x_test.device)
    shapes = {name: model.get_parameter(name).shape for name in chosen}
    theta = torch.cat([model.get_parameter(name).flatten() for name in chosen])

    def losses(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Of each image, [N], as a function of the chosen parameters."""
        pieces = torch.split(flat, [shape.numel() for shape in shapes.values()])
        values = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
            out: Tensor = functional_call(model, values, (x,))
        if loss == "squared":
            return (out - y.to(out)).square().sum(1) / 2
        return F.cross_entropy(out, y, reduction="none")

    def one_loss(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return losses(flat, x[None], y[None]).sum()

    def product(v: Tensor) -> Tensor:
        total = (weight_decay + damping) * v
        for rows in parts_of(n, max(1, max_batch // len(v))):
            x, y = x_train[rows], y_train[rows]
            # The Hessian is symmetric: its transpose, which the backward pass applies, is itself.

            def total_loss(flat: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
                return losses(flat, x, y).sum()

            pull = vjp(grad(total_loss), theta)[1]
            total = total + vmap(pull)(v)[0] / n
        return total

    per_image = vmap(grad(one_loss), in_dims=(None, 0, 0))
    solver = _ConjugateGradients(tolerance, max_iterations, damping)
    values, residual, iterations = [], [], []
    # A square root of the pairs is test points, so that a pass has training images enough.
    for rows in parts_of(t, max(1, math.isqrt(max_batch))):
        solution = solver.solve(product, per_image(theta, x_test[rows], y_test[rows]))
        # Every training point's gradient is one more row of parameters: as few at a time as their number asks.
        columns = [
            -solution.s @ per_image(theta, x_train[part], y_train[part]).T
            for part in parts_of(n, max(1, min(max_batch, _NUMBERS // len(theta))))
        ]
        values.append(torch.cat(columns, 1))
        residual.append(solution.residual)
        iterations.append(solution.iterations)
    return Influence(torch.cat(values).detach(), y_test, torch.cat(residual), torch.cat(iterations))


def _chosen(model: nn.Module, wanted: Sequence[str] | None) -> list[str]:
    """The parameters that are wanted, by their names or those of their modules, in the model's order.

    A parameter with several names is there by its first one, whichever was asked for.
    """
    if isinstance(wanted, str):
        raise ValueError(f"parameters is {wanted!r}; accepted is a sequence of names, for example [{wanted!r}]")
    first: dict[int, str] = {}
    named = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    if wanted is None:
        return list(first.values())
    for prefix in wanted:
        if not any(name == prefix or name.startswith(f"{prefix}.") for name in named):
            raise ValueError(f"parameters has {prefix!r}; accepted are names or modules of {', '.join(named)}")
    return list(
        dict.fromkeys(
            own
            for name, own in named.items()
            if any(name == prefix or name.startswith(f"{prefix}.") for prefix in wanted)
        )
    )
