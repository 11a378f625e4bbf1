"""Training objectives that make explanations hold still, each one module: images and labels to named losses.

An objective holds the model and computes everything a step needs in one ``forward``, second derivatives included. That
is what DistributedDataParallel wraps correctly under double backpropagation: wrap the objective, not the model, call
nothing but its ``forward``, and never say ``static_graph=True``.

Units. Images are in [0, 1] and models normalize inside, so a gradient here is one per *pixel*. Joo et al. 2023 take it
per *standardized* pixel, which is the pixel's gradient times the standard deviation of its channel, and their weights
(lambda) belong to that unit. The objectives convert by ``scale``, one factor a channel: by default the ``std`` of the
model's own normalization, so that published weights can be used as they stand; 1 leaves gradients per pixel.

Randomness comes in from outside as a tensor: :meth:`Objective.draw` makes it for a batch, ``forward`` uses it. So a
step can be repeated exactly, and several processes can share one draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robattr._second_order import SecondOrder
from robattr.models import Classifier

__all__ = [
    "AdversarialTraining",
    "AttributionAdversary",
    "CrossEntropy",
    "GradientAlignment",
    "HessianPenalty",
    "Losses",
    "Objective",
    "cosine_distance",
    "hessian_norm",
    "l2_distance",
]

Scale = float | Sequence[float] | Tensor | None


class Losses(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
        total: scalar; what is minimized.
        cross_entropy: scalar, mean over the batch, without a graph.
        penalties: the other terms by name, each its mean over the batch before its weight, without a graph.
        correct: scalar; the number of correct predictions (on adversarial images where those are trained on).
    """

    total: Tensor
    cross_entropy: Tensor
    penalties: dict[str, Tensor]
    correct: Tensor


# --------------------------------------------------------------------------------------------------------------------
# Distances and curvature


def l2_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distance of two batches of attributions [N, ...]: [N] (Joo et al. 2023, the l2 criterion)."""
    return (a - b).flatten(1).square().sum(1)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """``(1 - cos) / 2`` of two batches of attributions [N, ...]: [N], in [0, 1] (Joo et al. 2023).

    A zero attribution has no direction: its cosine with anything is taken as 0, with gradient 0.
    """
    return (1 - (_unit(a) * _unit(b)).sum(1)) / 2


def _unit(a: Tensor) -> Tensor:
    flat = a.flatten(1)
    # Not a floor under the norm: the direction of a small gradient is a direction. Over its largest entry, a constant
    # that no direction depends on, because the third power of a small norm is zero.
    largest = flat.detach().abs().amax(1, keepdim=True)
    flat = flat / torch.where(largest > 0, largest, 1)
    squares = flat.square().sum(1, keepdim=True)
    return flat * torch.where(squares > 0, torch.where(squares > 0, squares, 1).rsqrt(), 0)


def hessian_norm(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    draws: int = 1,
    scale: Scale = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An unbiased estimate of ``||Hess||_F^2``, Hess the Hessian of the target's logit with respect to the image.

    ``E ||Hess v||^2 = ||Hess||_F^2`` for standard normal v; the mean over ``draws`` of them. Differentiable with
    respect to parameters that require a gradient.

    Args:
        model: images [N, C, H, W] to logits [N, classes], twice differentiable.
        x: images.
        target: class of each image, int64 [N].
        draws: number of random directions, >= 1.
        scale: D of ``D H D``, one factor a channel, see the module's text; 1 by default.
        generator: of the directions, on x's device.

    Returns:
        [N], in units of (logit per squared pixel) squared.
    """
    _check_mode("hessian_norm")
    if draws < 1:
        raise ValueError(f"draws is {draws}; an estimate takes at least 1")
    graph = torch.is_grad_enabled()
    with torch.enable_grad(), SecondOrder(training=True) as mode:
        z = x.detach().requires_grad_()
        _, g = _input_gradient(model, z, target, mode, create_graph=True)
        total = torch.zeros(len(x), dtype=g.dtype, device=g.device)
        for _ in range(draws):
            v = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            hv = _hessian_product(g, z, v, _factor(scale, x), mode, graph=graph)
            total = total + hv.flatten(1).square().sum(1)
    return total / draws if graph else total.detach() / draws


def _factor(scale: Scale, x: Tensor) -> Tensor | float:
    if scale is None or isinstance(scale, (int, float)):
        return 1.0 if scale is None else float(scale)
    return torch.as_tensor(scale, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)


def _hessian_product(g: Tensor, z: Tensor, v: Tensor, scale: Tensor | float, mode: SecondOrder, graph: bool) -> Tensor:
    if not g.requires_grad:
        return torch.zeros_like(z)
    with mode.inputs_only():
        # Zeros, too, where no image is behind the gradient: that of a linear model.
        (hv,) = torch.autograd.grad(g, z, v * scale, create_graph=graph, retain_graph=True, materialize_grads=True)
    return hv * scale


def _input_gradient(
    model: nn.Module, z: Tensor, target: Tensor, mode: SecondOrder, *, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """Logits, with their graph, and the gradient of the target's with respect to the leaf z, in float32 at least."""
    logits: Tensor = model(z)
    with mode.inputs_only():
        chosen = logits.gather(1, target[:, None]).sum()
        (g,) = torch.autograd.grad(chosen, z, create_graph=create_graph, retain_graph=True)
    return logits, _wide(g)


def _wide(t: Tensor) -> Tensor:
    """float32 at least: what bfloat16 computed is compared and summed in float32."""
    return t if t.dtype == torch.float64 else t.float()


# --------------------------------------------------------------------------------------------------------------------
# Objectives


class Objective(nn.Module):
    """Base of the objectives: holds ``model``; ``forward(x, y, noise=None)`` returns :class:`Losses`.

    Args of ``forward``:
        x: images [N, C, H, W] in [0, 1].
        y: labels, int64 [N].
        noise: what :meth:`draw` returned for the shape of x; drawn from PyTorch's global generator when None.
    """

    option_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def extra_repr(self) -> str:
        """The options, which with the model say what is minimized."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.option_names)

    def draw(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor | None:
        """The random numbers of a step on a batch of this shape; None when the objective uses none."""
        return None


class _UniformNoise(Objective):
    def draw(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Standard uniform in [-1, 1]."""
        return uniform(shape, generator, device)


class CrossEntropy(Objective):
    """Plain training: the mean cross-entropy."""

    def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
        logits = self.model(x)
        ce = F.cross_entropy(_wide(logits), y)
        return Losses(ce, ce.detach(), {}, _correct(logits, y))


class _Scaled(Objective):
    def __init__(self, model: nn.Module, scale: Scale) -> None:
        super().__init__(model)
        if scale is None:
            # Without a normalization that is known here, pixels are what the network sees.
            scale = model.normalize.std if isinstance(model, Classifier) else 1.0
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32).reshape(1, -1, 1, 1).clone(), False)

    scale: Tensor


class GradientAlignment(_Scaled, _UniformNoise):
    """Cross-entropy plus local gradient alignment (Joo et al. 2023, section 4).

    ``CE + l2 * mean ||g(x) - g(x + delta)||^2 + cosine * mean (1 - cos(g(x), g(x + delta))) / 2``, with g the gradient
    of the true class's logit and delta uniform in [-epsilon, epsilon] for every value. As published g(x) is held
    constant in the two distances, so only the second gradient keeps a graph.

    Args:
        model: a twice differentiable network (Softplus, not ReLU) of images in [0, 1].
        l2: weight of the squared distance, >= 0.
        cosine: weight of the cosine distance, >= 0.
        epsilon: largest change of a value, in units of a [0, 1] image.
        detach: hold g(x) constant.
        scale: unit of the gradients, see the module's text; None is the paper's.

    Raises:
        ValueError: a weight is negative, or epsilon is not in (0, 1].
    """

    option_names = ("l2", "cosine", "epsilon", "detach")

    def __init__(
        self,
        model: nn.Module,
        *,
        l2: float = 0.01,
        cosine: float = 1.0,
        epsilon: float = 4 / 255,
        detach: bool = True,
        scale: Scale = None,
    ) -> None:
        super().__init__(model, scale)
        _check_weight("l2", l2)
        _check_weight("cosine", cosine)
        _check_epsilon(epsilon)
        self.l2, self.cosine, self.epsilon, self.detach = l2, cosine, epsilon, detach

    def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
        _check_mode(type(self).__name__)
        u = self.draw(x.shape, None, x.device) if noise is None else noise
        with torch.enable_grad(), SecondOrder(training=True) as mode:
            near = torch.add(x, u, alpha=self.epsilon).requires_grad_()
            _, h = _input_gradient(self.model, near, y, mode, create_graph=True)
            here = x.detach().requires_grad_()
            logits, g = _input_gradient(self.model, here, y, mode, create_graph=not self.detach)
        ce = F.cross_entropy(_wide(logits), y)
        g, h = (g.detach() if self.detach else g) * self.scale, h * self.scale
        l2, cosine = l2_distance(g, h).mean(), cosine_distance(g, h).mean()
        total = ce + self.l2 * l2 + self.cosine * cosine
        return Losses(total, ce.detach(), {"l2": l2.detach(), "cosine": cosine.detach()}, _correct(logits, y))


class HessianPenalty(_Scaled):
    """Cross-entropy plus ``weight * mean ||Hess v||^2``, v standard normal: the Hessian's squared Frobenius norm.

    The smoothness baseline of Joo et al. 2023 (their weight: 1e-3 for LeNet, 1e-4 for ResNet-18). H is that of the true
    class's logit; ``scale`` as in :class:`GradientAlignment`.
    """

    option_names = ("weight",)

    def __init__(self, model: nn.Module, *, weight: float = 1e-3, scale: Scale = None) -> None:
        super().__init__(model, scale)
        _check_weight("weight", weight)
        self.weight = weight

    def draw(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Standard normal."""
        return torch.randn(tuple(shape), generator=generator, device=device)

    def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
        _check_mode(type(self).__name__)
        v = self.draw(x.shape, None, x.device) if noise is None else noise
        with torch.enable_grad(), SecondOrder(training=True) as mode:
            z = x.detach().requires_grad_()
            logits, g = _input_gradient(self.model, z, y, mode, create_graph=True)
            hv = _hessian_product(g, z, v, self.scale, mode, graph=True)
        ce = F.cross_entropy(_wide(logits), y)
        hessian = hv.flatten(1).square().sum(1).mean()
        return Losses(ce + self.weight * hessian, ce.detach(), {"hessian": hessian.detach()}, _correct(logits, y))


class AttributionAdversary(_Scaled, _UniformNoise):
    """Cross-entropy plus the largest attribution distance that an inner attack finds in the ball around the image.

    ``CE + weight * mean max over ||d||_inf <= epsilon of distance(g(x), g(x + d))``: adversarial training of the
    attribution, as robust attribution regularization (Chen et al. 2019) and its successors do with integrated
    gradients. g(x) is held constant. The inner maximization starts at a random point of the ball and takes ``steps``
    signed-gradient steps.

    Args:
        weight: of the distance, >= 0.
        distance: ``cosine``, or ``l2`` for the squared Euclidean one.
        epsilon: radius of the ball, in units of a [0, 1] image.
        steps: of the inner maximization, >= 1.
        step: length of one, in the same units; by default ``2 epsilon / steps``.
        scale: as in :class:`GradientAlignment`.
    """

    option_names = ("weight", "distance", "epsilon", "steps", "step")

    def __init__(
        self,
        model: nn.Module,
        *,
        weight: float = 1.0,
        distance: Literal["cosine", "l2"] = "cosine",
        epsilon: float = 4 / 255,
        steps: int = 3,
        step: float | None = None,
        scale: Scale = None,
    ) -> None:
        super().__init__(model, scale)
        _check_weight("weight", weight)
        _check_epsilon(epsilon)
        _check_steps(steps)
        if distance not in ("cosine", "l2"):
            raise ValueError(f"distance is {distance!r}; accepted are 'cosine' and 'l2'")
        self.weight, self.distance, self.epsilon, self.steps = weight, distance, epsilon, steps
        self.step = 2 * epsilon / steps if step is None else step

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (cosine_distance if self.distance == "cosine" else l2_distance)(a * self.scale, b * self.scale)

    def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
        _check_mode(type(self).__name__)
        u = self.draw(x.shape, None, x.device) if noise is None else noise
        with torch.enable_grad(), SecondOrder(training=True) as mode:
            here = x.detach().requires_grad_()
            logits, g = _input_gradient(self.model, here, y, mode, create_graph=False)
            z = torch.add(x, u, alpha=self.epsilon)
            for _ in range(self.steps):
                z = z.detach().requires_grad_()
                _, h = _input_gradient(self.model, z, y, mode, create_graph=True)
                with mode.inputs_only():
                    (d,) = torch.autograd.grad(self._distance(g, h).sum(), z, materialize_grads=True)
                z = _within(z.detach() + self.step * d.sign(), x, self.epsilon)
            z = z.detach().requires_grad_()
            _, h = _input_gradient(self.model, z, y, mode, create_graph=True)
        ce = F.cross_entropy(_wide(logits), y)
        distance = self._distance(g, h).mean()
        return Losses(ce + self.weight * distance, ce.detach(), {self.distance: distance.detach()}, _correct(logits, y))


class AdversarialTraining(_UniformNoise):
    """The cross-entropy of the worst image that projected gradient descent finds (Madry et al. 2018).

    Args:
        epsilon: radius of the l-infinity ball, in units of a [0, 1] image.
        steps: signed-gradient steps from a random point of the ball, >= 1.
        step: length of one; by default ``2.5 epsilon / steps``.
    """

    option_names = ("epsilon", "steps", "step")

    def __init__(
        self, model: nn.Module, *, epsilon: float = 4 / 255, steps: int = 3, step: float | None = None
    ) -> None:
        super().__init__(model)
        _check_epsilon(epsilon)
        _check_steps(steps)
        self.epsilon, self.steps = epsilon, steps
        self.step = 2.5 * epsilon / steps if step is None else step

    def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
        _check_mode(type(self).__name__)
        u = self.draw(x.shape, None, x.device) if noise is None else noise
        with torch.enable_grad():
            z = _within(torch.add(x, u, alpha=self.epsilon), x, self.epsilon)
            for _ in range(self.steps):
                z = z.detach().requires_grad_()
                (d,) = torch.autograd.grad(F.cross_entropy(_wide(self.model(z)), y, reduction="sum"), z)
                z = _within(z.detach() + self.step * d.sign(), x, self.epsilon)
            logits = self.model(z.detach())
        ce = F.cross_entropy(_wide(logits), y)
        return Losses(ce, ce.detach(), {}, _correct(logits, y))


def uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(tuple(shape), generator=generator, device=device).mul_(2).sub_(1)


def _within(z: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """z projected to the ball of radius epsilon around x and to [0, 1]."""
    return torch.clamp(z, (x - epsilon).clamp_(0, 1), (x + epsilon).clamp_(0, 1))


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.detach().argmax(1) == y).sum()


def _check_mode(name: str) -> None:
    """What is made in inference mode cannot be differentiated, and a loss is made of derivatives."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name} takes derivatives, for which nothing is kept in torch.inference_mode(); torch.no_grad() around it "
            "gives its value"
        )


def _check_weight(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}; a weight is a finite number >= 0")


def _check_epsilon(epsilon: float) -> None:
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}; accepted is 0 < epsilon <= 1 in units of a [0, 1] image, e.g. 4 / 255")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; an inner attack takes at least 1")
