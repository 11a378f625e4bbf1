"""Attacks: exact constraints, hand-computed objectives, models that cannot be attacked, and refusals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robattr import attacks, data, metrics, models
from robattr.attacks import (
    AttackResult,
    ManipulationResult,
    MassCenter,
    Objective,
    Score,
    Targeted,
    TopK,
    cosine_attack,
    frame,
    iterative_attack,
    manipulate,
    random_directions,
    random_sign,
)
from robattr.attributions import (
    METHODS as ALL_METHODS,
    NEEDS_ATTENTION,
    Attribution,
    gradient,
    guided_backpropagation,
    heatmap,
    input_x_gradient,
    integrated_gradients,
    layer_integrated_gradients,
    smoothgrad,
)
from robattr.studies.intervals import interval

# Those of the vision transformers are attacked in test_attention.py.
METHODS = {name: method for name, method in ALL_METHODS.items() if name not in NEEDS_ATTENTION}
EPSILON = 8 / 255
SHORT = {"step": 2 / 255, "iterations": 5}


def lenet() -> models.Classifier:
    return models.build("lenet", seed=3)


@pytest.fixture
def images() -> Tensor:
    """Random images with black, white and subnormal values among them: the corners of the constraints."""
    x = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x[0, :, :8] = 0
    x[1, :, :8] = 1
    x[2, 0, 0, 0] = 1e-42
    return x


def attack(model: nn.Module, x: Tensor, objective: Objective | None = None, **options: object) -> AttackResult:
    settings: dict[str, object] = {"objective": objective or TopK(100), "epsilon": EPSILON, **SHORT, **options}
    return iterative_attack(model, x, **settings)  # type: ignore[arg-type]


# --- constraints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-9, 1 / 255, EPSILON, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_image_is_inside_the_ball_exactly(images: Tensor, epsilon: float, dtype: torch.dtype) -> None:
    """No tolerance: the difference of two float32 numbers, formed in float64, is at most the epsilon that was asked."""
    x, model = images.to(dtype), lenet().to(dtype)
    results = [
        attack(model, x, epsilon=epsilon, step=epsilon),
        random_sign(model, x, objective=TopK(100), epsilon=epsilon, draws=3),
    ]
    for result in results:
        assert result.images.dtype == dtype
        assert result.images.min() >= 0
        assert result.images.max() <= 1
        assert ((result.images.double() - x.double()).abs() <= epsilon).all()


def test_random_sign_uses_the_whole_budget(images: Tensor) -> None:
    """Away from black and white every value moves by epsilon, up to the float32 below it."""
    x = images.clamp(0.1, 0.9)
    result = random_sign(lenet(), x, objective=MassCenter(), epsilon=EPSILON)
    moved = (result.images - x)[result.success]
    assert result.success.any()
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, EPSILON), rtol=0, atol=1.2e-7)
    # A fair coin for each of n values: five deviations of the mean sign.
    assert abs(moved.sign().mean().item()) < 5 / moved.numel() ** 0.5


# --- what is returned ----------------------------------------------------------------------------------------------


OBJECTIVES = [TopK(100), MassCenter(), Targeted(torch.arange(1024).view(32, 32) < 100)]


def test_every_objective_is_tried() -> None:
    public = {name: getattr(attacks, name) for name in attacks.__all__}
    objectives = {name for name, each in public.items() if hasattr(each, "prepare") and each is not Objective}
    assert {type(each).__name__ for each in OBJECTIVES} == objectives


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: type(each).__name__)
def test_the_best_iterate_with_the_same_prediction_is_returned(images: Tensor, objective: Objective) -> None:
    model = lenet()
    result = attack(model, images, objective, iterations=8)
    assert result.trace.shape == result.kept.shape == (9, 5)
    assert result.kept[0].all()
    rows = torch.arange(5)
    allowed = result.trace.masked_fill(~result.kept, -torch.inf)[1:]
    assert torch.equal(result.success, result.kept[1:].any(0))
    for i in rows[result.success]:
        assert result.best[i] == 1 + allowed[:, i].argmax()
        assert result.objective[i] == allowed[:, i].max()
    with torch.no_grad():
        assert torch.equal(model(result.images).argmax(1), result.prediction)
    # D of the returned image, computed again from the definition.
    reference = heatmap(gradient(model, images, result.prediction))
    now = heatmap(gradient(model, result.images, result.prediction))
    torch.testing.assert_close(objective.prepare(reference, slice(0, 5))(now), result.objective)


class Brittle(nn.Module):
    """Predicts class 1 for the one image it was made for, and class 0 for everything else."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.register_buffer("image", image)
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(image.numel(), 2))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.image, Tensor)
        same = (x == self.image).flatten(1).all(1)
        return self.inner(x) * 1e-3 + torch.stack([~same, same], 1) * 10.0


@pytest.mark.parametrize("run", [partial(attack, beta=None), partial(random_sign, objective=TopK(3), epsilon=EPSILON)])
def test_a_prediction_that_cannot_be_kept_is_a_failed_attack(run: Callable[..., AttackResult]) -> None:
    image = torch.full((1, 1, 4, 4), 0.5)
    x = torch.cat([image, torch.full((1, 1, 4, 4), 0.4)])
    result = run(Brittle(image).eval(), x, objective=TopK(3))
    assert result.prediction.tolist() == [1, 0]
    assert result.success.tolist() == [False, True]
    assert len(result.images) == 2
    assert torch.equal(result.images[0], image[0])
    assert result.best[0] == 0
    assert result.objective[0] == result.trace[0, 0]
    assert not result.kept[1:, 0].any()


@pytest.fixture
def speckled() -> Tensor:
    """In float64, for what two batches must do alike: black and white values, but no area of one color.

    There windows of max-pooling tie, and rounding, which differs from batch to batch, chooses the pixel with the slope.
    """
    draw = torch.rand(2, 5, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.where(draw[1] < 0.1, 0, torch.where(draw[1] > 0.9, 1, draw[0]))


def test_a_batch_is_its_single_images(speckled: Tensor) -> None:
    model, x = lenet().double(), speckled
    for run in (partial(attack, model), lambda x, **o: random_sign(model, x, objective=TopK(9), epsilon=0.1, **o)):
        whole = run(x, batch_size=5)
        for batch_size in (1, 2):
            part = run(x, batch_size=batch_size)
            assert torch.equal(part.best, whole.best)
            torch.testing.assert_close(part.images, whole.images, rtol=0, atol=0)
            torch.testing.assert_close(part.trace, whole.trace)
        alone = run(x[3:4])
        assert torch.equal(alone.images[0], whole.images[3])


def test_a_mask_for_each_image_goes_with_its_batch(speckled: Tensor) -> None:
    masks = torch.zeros(5, 32, 32, dtype=torch.bool)
    for i in range(5):
        masks[i, 5 * i : 5 * i + 5] = True
    model = lenet().double()
    whole = attack(model, speckled, Targeted(masks), batch_size=5)
    parts = attack(model, speckled, Targeted(masks), batch_size=2)
    torch.testing.assert_close(parts.trace, whole.trace)


def test_same_seed_same_result_and_no_global_state(images: Tensor) -> None:
    model = lenet()
    state = torch.random.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    a, b = (random_sign(model, images, objective=TopK(9), epsilon=0.1, seed=4) for _ in range(2))
    attack(model, images)
    assert torch.equal(a.images, b.images)
    other = random_sign(model, images, objective=TopK(9), epsilon=0.1, seed=5)
    assert not torch.equal(a.images, other.images)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


# --- objectives ----------------------------------------------------------------------------------------------------


def test_objectives_by_hand() -> None:
    reference = torch.tensor([[[0.5, 0.1], [0.3, 0.1]]])
    h = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    # The two largest of the reference are (0, 0) and (1, 0): 0.1 + 0.3.
    assert TopK(2).prepare(reference, slice(0, 1))(h).item() == pytest.approx(-0.4, rel=1e-6)
    # Centers: rows .4 and .7, columns .2 and .6; the distance of (.4, .2) and (.7, .6) is .5.
    assert MassCenter().prepare(reference, slice(0, 1))(h).item() == pytest.approx(0.5, rel=1e-6)
    mask = torch.tensor([[False, True], [False, True]])
    assert Targeted(mask).prepare(reference, slice(0, 1))(h).item() == pytest.approx(0.6, rel=1e-6)


def test_every_objective_grows_under_its_attack(images: Tensor) -> None:
    """Each attack improves every image, and on average beats a random search of as many evaluations."""
    model = lenet()
    for objective in OBJECTIVES:
        ours = attack(model, images, objective, iterations=15)
        search = random_sign(model, images, objective=objective, epsilon=EPSILON, draws=15)
        assert ours.objective.mean() > search.objective.mean()
        assert (ours.objective > ours.trace[0]).all()


@pytest.mark.parametrize("name", METHODS)
def test_any_attribution_can_be_attacked(name: str, images: Tensor) -> None:
    short: dict[str, Attribution] = {
        "integrated_gradients": partial(integrated_gradients, steps=5),
        "layer_integrated_gradients": partial(layer_integrated_gradients, steps=5),
        "smoothgrad": partial(smoothgrad, samples=5, sigma=0.05),
    }
    result = attack(lenet(), images[3:], TopK(100), attribution=short.get(name, METHODS[name]), iterations=10)
    assert result.success.all()
    assert (result.objective > result.trace[0]).all()


def test_photographs_lose_their_map_and_keep_their_class() -> None:
    """The claim of Ghorbani et al. 2019 on every correctly classified photograph, at epsilon = 8/255.

    The top-k attack leaves at most 0.05 of the top 1000 pixels on average, random signs at least 0.10, with 95%
    intervals that do not overlap.
    """
    photographs = data.load("imagenet-samples")
    model = models.build("efficientnet-lite0").requires_grad_(False)
    with torch.no_grad():
        prediction = model(photographs.images).argmax(1)
    correct = prediction == photographs.labels
    x, prediction = photographs.images[correct], prediction[correct]
    before = heatmap(gradient(model, x, prediction))
    found = {}
    for name, result in (
        ("top-k", attack(model, x, TopK(1000), step=1 / 255, iterations=8, batch_size=4)),
        ("random", random_sign(model, x, objective=TopK(1000), epsilon=EPSILON)),
    ):
        with torch.no_grad():
            assert torch.equal(model(result.images).argmax(1), prediction)
        after = heatmap(gradient(model, result.images, prediction))
        found[name] = interval(metrics.topk_intersection(before, after, 1000).numpy())
    assert len(x) == 18
    assert found["top-k"].mean <= 0.05
    assert found["random"].mean >= 0.10
    assert found["top-k"].high < found["random"].low


# --- drawing a map into the explanation ----------------------------------------------------------------------------


class HalfSquares(nn.Module):
    """Logits (x.x / 2, 0): the gradient of the first is the image, and its heatmap the image over its maximum."""

    def forward(self, x: Tensor) -> Tensor:
        energy = x.flatten(1).square().sum(1) / 2
        return torch.stack([energy, torch.zeros_like(energy)], 1)


def soft_digits(seed: int = 0) -> nn.Module:
    return models.build("digits-cnn", activation="softplus", beta=5, seed=seed).double()


@pytest.fixture
def digits() -> Tensor:
    return torch.rand(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


DIGIT_FRAME = frame(8, 8, 2)


def test_frame_by_hand() -> None:
    rows = ["11111", "11111", "11011", "11111", "11111"]
    assert frame(5, 5, 2).tolist() == [[float(c) for c in row] for row in rows]
    assert frame(4, 5, 1).tolist() == [[1.0] * 5, *[[1.0, 0.0, 0.0, 0.0, 1.0]] * 2, [1.0] * 5]
    assert frame(32, 32, 5).sum() == 32 * 32 - 22 * 22
    assert frame(224, 224, 35).sum() == 224 * 224 - 154 * 154
    for border in (0, -1, 2, 3):
        with pytest.raises(ValueError, match=f"border is {border} pixels; accepted is from 1 to 1 in a map of 4 x 5"):
            frame(4, 5, border)


def test_a_map_is_drawn_as_far_as_the_ball_allows() -> None:
    """Where the map is the image over its maximum, the best one is a corner of the ball: bright frame, dark inside."""
    x = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    x[1] = 0.7
    epsilon = 1 / 16
    result = manipulate(
        HalfSquares().eval(), x, target_map=DIGIT_FRAME, epsilon=epsilon, gamma=1.0, learning_rate=0.01, iterations=40
    )
    inside, outside = DIGIT_FRAME == 0, DIGIT_FRAME == 1
    for i, level in enumerate((0.5, 0.7)):
        assert (result.images[i, 0, inside] == x[i, 0, 0, 0] - epsilon).all()
        assert (result.images[i, 0, outside] == x[i, 0, 0, 0] + epsilon).all()
        # 16 of 64 pixels are inside. A constant map is 1 on all, a step is (level - epsilon)/(level + epsilon) there.
        step = (level - epsilon) / (level + epsilon)
        assert result.loss[0, i].item() == 16.0
        assert result.loss[:, i].min().item() == pytest.approx(16 * step**2, rel=1e-14)
        assert result.target.cosine[i].item() == pytest.approx(48 / (48 * (48 + 16 * step**2)) ** 0.5, rel=1e-14)
        assert result.target.pearson[i].item() == pytest.approx(1, rel=1e-14)
    assert result.original.pearson.tolist() == [0.0, 0.0]  # the clean maps are constant
    assert result.kept.all()
    # A small part of the distance is a small part of the way: h = 1 - 2 epsilon/level inside, to first order.
    weak = manipulate(
        HalfSquares().eval(), x, target_map=DIGIT_FRAME, epsilon=1e-6, gamma=1.0, learning_rate=1e-6, iterations=5
    )
    assert weak.loss.min(0).values[0].item() == pytest.approx(16 * (1 - 2e-6 / 0.5) ** 2, abs=1e-9)


def test_every_manipulated_image_is_inside_the_ball_exactly(images: Tensor) -> None:
    model = models.build("lenet", activation="softplus", beta=3, seed=3)
    for dtype in (torch.float32, torch.float64):
        for epsilon in (1e-9, EPSILON, 1.0):
            x = images.to(dtype)
            result = manipulate(
                model.to(dtype), x, target_map=frame(32, 32, 5), epsilon=epsilon, learning_rate=epsilon, iterations=2
            )
            assert result.images.dtype == dtype
            assert result.images.min() >= 0
            assert result.images.max() <= 1
            assert ((result.images.double() - x.double()).abs() <= epsilon).all()
            if epsilon == EPSILON:
                assert (result.images != x).flatten(1).any(1).all()


@pytest.mark.parametrize("beta", [None, 4.0, (2.0, 9.0)])
def test_manipulation_equals_a_loop_with_the_optimizer_of_torch(
    digits: Tensor, beta: float | tuple[float, float] | None
) -> None:
    """Image by image, the two terms from two plain passes, torch.optim.Adam, and the best iterate by hand."""
    model = soft_digits() if beta is None else models.build("digits-cnn", seed=1).double()
    gamma, rate, epsilon, steps = 0.3, 2 / 255, 16 / 255, 12
    labels = torch.tensor([3, 1, 4, 1])
    options = {"gamma": gamma, "learning_rate": rate, "epsilon": epsilon, "iterations": steps, "beta": beta}
    result = manipulate(model, digits, target_map=DIGIT_FRAME, labels=labels, **options)  # type: ignore[arg-type]

    def loss_of(network: nn.Module, z: Tensor, clean: Tensor, y: int) -> Tensor:
        (g,) = torch.autograd.grad(network(z)[0, y], z, create_graph=True)
        h = g.abs().sum((0, 1)) / g.abs().sum((0, 1)).max()
        return gamma * ((h - DIGIT_FRAME) ** 2).sum() + (1 - gamma) * ((network(z) - network(clean)) ** 2).sum()

    for i, y in enumerate(labels.tolist()):
        clean = digits[i : i + 1]
        z = clean.clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=rate)
        trace, iterates = [], []
        for p in range(steps + 1):
            trace.append(loss_of(model, z, clean, y).item())
            iterates.append(z.detach().clone())
            network = model
            if beta is not None:
                first, last = beta if isinstance(beta, tuple) else (beta, beta)
                network = models.softplus_surrogate(model, first * (last / first) ** (p / (steps - 1)))
            (z.grad,) = torch.autograd.grad(loss_of(network, z, clean, y), z)
            adam.step()
            with torch.no_grad():
                z.copy_(z.clamp(clean - epsilon, clean + epsilon).clamp(0, 1))
        # Rounding of sums of 1e2 products, which steps of Adam carry on as they are.
        torch.testing.assert_close(result.loss[:, i], torch.tensor(trace, dtype=torch.float64), rtol=1e-7, atol=1e-9)
        best = min(range(steps + 1), key=lambda p: trace[p])
        assert sorted(trace)[1] - trace[best] > 1e-6  # the premise: not rounding decides which is the best
        assert result.best[i] == best
        torch.testing.assert_close(result.images[i], iterates[best][0], rtol=0, atol=1e-9)
        h = heatmap(gradient(model, iterates[best], y), "max")
        h0 = heatmap(gradient(model, clean, y), "max")
        for name in ("cosine", "pearson", "ssim"):
            measure = getattr(metrics, name)
            for found, other in ((result.original, h0), (result.target, DIGIT_FRAME[None].double())):
                assert getattr(found, name)[i].item() == pytest.approx(measure(h, other).item(), abs=1e-7)
    with torch.no_grad():
        assert torch.equal(result.prediction, model(digits).argmax(1))
        assert torch.equal(result.kept, model(result.images).argmax(1) == result.prediction)
    assert torch.equal(result.labels, labels)


def test_a_manipulated_batch_is_its_single_images(digits: Tensor) -> None:
    """Adam's state and the best iterate belong to an image, as do targets and labels."""
    goals = torch.stack([frame(8, 8, border) for border in (1, 3, 2, 3)])
    labels = torch.tensor([3, 1, 4, 1])
    run = partial(manipulate, soft_digits(), epsilon=EPSILON, iterations=6)  # which do not fill the ball: no two tie
    whole = run(digits, target_map=goals, labels=labels)
    parts: list[tuple[ManipulationResult, slice]] = [
        (run(digits, target_map=goals, labels=labels, batch_size=3), slice(0, 4)),
        (run(digits[2:3], target_map=goals[2:3], labels=4), slice(2, 3)),
        (run(digits[2:3], target_map=goals[2], labels=labels[2:3]), slice(2, 3)),
    ]
    for part, rows in parts:
        assert torch.equal(part.best, whole.best[rows])
        torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-9)
        torch.testing.assert_close(part.loss, whole.loss[:, rows], rtol=1e-7, atol=0)
        torch.testing.assert_close(part.original.ssim, whole.original.ssim[rows], rtol=1e-6, atol=0)
        torch.testing.assert_close(part.target.cosine, whole.target.cosine[rows], rtol=1e-6, atol=0)
    assert (whole.best > 0).all()


@pytest.mark.parametrize("method", [gradient, input_x_gradient, guided_backpropagation])
def test_logits_from_the_pass_of_the_attribution_change_nothing(method: Attribution, digits: Tensor) -> None:
    """These methods' own pass gives the logits; wrapped, they are taken for others and cost a second one."""
    calls = []

    def wrapped(model: nn.Module, x: Tensor, target: Tensor | int, *, create_graph: bool = False) -> Tensor:
        return method(model, x, target, create_graph=create_graph)

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = soft_digits()

        def forward(self, x: Tensor) -> Tensor:
            calls.append(x.requires_grad)
            return self.network(x)  # type: ignore[no-any-return]

    run = partial(manipulate, Counted().eval(), digits, target_map=DIGIT_FRAME, epsilon=EPSILON, iterations=6)
    ours = run(attribution=method)
    count = len(calls)
    plain = run(attribution=wrapped)
    assert len(calls) - count == count + 7  # one for each iterate
    torch.testing.assert_close(ours.loss, plain.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.images, plain.images, rtol=0, atol=1e-9)
    assert (ours.loss.min(0).values < ours.loss[0]).all()


def test_manipulation_moves_the_map_of_a_network(images: Tensor) -> None:
    model = models.build("lenet", activation="softplus", beta=3, seed=3)
    goal = frame(32, 32, 5)
    state = torch.random.get_rng_state()
    result = manipulate(model, images, target_map=goal, epsilon=EPSILON, iterations=15)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    before = heatmap(gradient(model, images, result.prediction), "max")
    assert (result.target.pearson > metrics.pearson(before, goal.expand_as(before)) + 0.05).all()
    assert (result.original.cosine < 0.99).all()
    assert torch.equal(result.loss.min(0).values, result.loss.gather(0, result.best[None])[0])


def test_the_term_of_the_logits_holds_them(images: Tensor) -> None:
    """Logits a thousand times as large have the same map, over its maximum, and a million times the distance."""
    model = models.build("lenet", activation="softplus", beta=3, seed=3)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        for p in last.parameters():
            p *= 1e3
    goal = frame(32, 32, 5)
    run = partial(manipulate, model, images, target_map=goal, epsilon=EPSILON, iterations=15)
    held, free = run(gamma=0.5), run(gamma=1.0)
    with torch.no_grad():
        distances = [(model(result.images) - model(images)).square().sum(1) for result in (held, free)]
    assert (distances[0] < distances[1] / 4).all()
    before = heatmap(gradient(model, images, held.prediction), "max")
    for result in (held, free):  # neither stands still
        assert (result.target.pearson > metrics.pearson(before, goal.expand_as(before)) + 0.05).all()


def test_the_smooth_copy_gives_a_relu_network_its_direction(images: Tensor) -> None:
    run = partial(manipulate, lenet(), images, target_map=frame(32, 32, 5), epsilon=EPSILON, iterations=8)
    assert (run(beta=(3.0, 30.0)).loss.min(0).values < run().loss.min(0).values).all()


@pytest.mark.parametrize("name", METHODS)
def test_any_attribution_can_be_manipulated(name: str, digits: Tensor) -> None:
    short: dict[str, Attribution] = {
        "integrated_gradients": partial(integrated_gradients, steps=5),
        "layer_integrated_gradients": partial(layer_integrated_gradients, steps=5),
        "smoothgrad": partial(smoothgrad, samples=5, sigma=0.05),
    }
    result = manipulate(
        soft_digits(),
        digits[2:],
        target_map=DIGIT_FRAME,
        epsilon=EPSILON,
        attribution=short.get(name, METHODS[name]),
        iterations=8,
    )
    assert (result.best > 0).all()
    assert (result.original.cosine < 1).all()


def test_what_cannot_be_manipulated_is_returned_as_it_was(digits: Tensor) -> None:
    """A linear model's map is a constant; and with gamma = 0 the clean image has nothing to gain."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double().eval()
    for model, gamma in ((linear, 0.5), (soft_digits(), 0.0)):
        result = manipulate(model, digits, target_map=DIGIT_FRAME, epsilon=EPSILON, gamma=gamma, iterations=5)
        assert torch.equal(result.images, digits)
        assert result.best.tolist() == [0] * 4
        assert result.original.cosine.tolist() == result.original.ssim.tolist() == [1.0] * 4
        assert result.kept.all()
        assert torch.equal(result.loss, result.loss[:1].expand_as(result.loss))


# --- the lowest cosine in an l2 ball -------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """Logits (x.Ax / 2 + b.x, level) of images with two pixels; the gradient of the first is Ax + b."""

    def __init__(self, a: list[list[float]], b: list[float], level: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("a", torch.tensor(a, dtype=torch.float64))
        self.register_buffer("b", torch.tensor(b, dtype=torch.float64))
        self.level = level

    def slope(self, x: Tensor) -> Tensor:
        assert isinstance(self.a, Tensor)
        assert isinstance(self.b, Tensor)
        return x.flatten(1) @ self.a + self.b

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.b, Tensor)
        value = (x.flatten(1) * (self.slope(x) + self.b)).sum(1) / 2
        return torch.stack([value, torch.full_like(value, self.level)], 1)

    def lowest(self, x: Tensor, epsilon: float, clip: bool) -> tuple[float, Tensor]:
        """The lowest cosine on a fine grid of the disc around one image [2], and the delta that has it."""
        angle = torch.linspace(0, 2 * torch.pi, 2001, dtype=torch.float64)
        radius = epsilon * torch.linspace(0, 1, 41, dtype=torch.float64)
        delta = (radius[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)).flatten(0, 1)
        if clip:
            delta = delta.clamp(-x, 1 - x)
        found = nn.functional.cosine_similarity(self.slope(x[None]), self.slope(x + delta))
        return float(found.min()), delta[found.argmin()]


QUADRATICS = [
    Quadratic([[1.0, 0.0], [0.0, 1.0]], [0.3, 0.1]),
    Quadratic([[2.0, 0.7], [0.7, 0.5]], [0.0, 1.0]),
    Quadratic([[1.0, -2.0], [-2.0, 0.5]], [1.5, 0.2]),  # a saddle
    Quadratic([[0.4, 0.1], [0.1, -0.3]], [-0.2, 0.8]),
]
PAIRS = torch.tensor([[0.5, 0.5], [0.4, 0.7], [0.95, 0.6], [0.05, 0.9]], dtype=torch.float64)


@pytest.mark.parametrize("quadratic", QUADRATICS)
@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.3])
def test_the_lowest_cosine_of_a_quadratic_is_found(quadratic: Quadratic, epsilon: float) -> None:
    """Against every point of a disc, cut by [0, 1] or not; what lies outside can only help.

    Around an image there can be two minima: six restarts find the lower one.
    """
    x = PAIRS.view(-1, 1, 1, 2)
    run = partial(
        cosine_attack, quadratic.eval(), x, epsilon=epsilon, iterations=30, restarts=6, step=epsilon / 4, labels=0
    )
    clipped, free = run(clip=True), run(clip=False)
    for result, clip in ((clipped, True), (free, False)):
        for i, pair in enumerate(PAIRS):
            lowest, _ = quadratic.lowest(pair, epsilon, clip)
            slack = 1e-3 * min(1, 1 - lowest)
            assert lowest - slack <= result.cosine[i].item() <= lowest + slack
    assert (free.cosine <= clipped.cosine + 1e-3 * (1 - clipped.cosine)).all()
    if quadratic is QUADRATICS[1] and epsilon == 0.3:  # the last image lies in a corner
        assert free.cosine[3] < clipped.cosine[3] - 0.04


def test_the_lowest_cosine_around_a_gradient_that_is_the_image(digits: Tensor) -> None:
    """The tangent from the origin to the ball: sin = epsilon / ||x||, in 64 dimensions."""
    for epsilon in (0.1, 1.0):
        sine = epsilon / digits.flatten(1).norm(dim=1)
        result = cosine_attack(
            HalfSquares().eval(), digits, epsilon=epsilon, iterations=30, step=epsilon / 4, labels=0, clip=False
        )
        exact = (1 - sine**2).sqrt()
        assert (result.cosine >= exact).all()
        torch.testing.assert_close(1 - result.cosine, 1 - exact, rtol=1e-3, atol=0)


def test_starting_at_the_optimum_finds_at_least_that() -> None:
    for quadratic in QUADRATICS:
        found = [quadratic.lowest(pair, 0.2, clip=True) for pair in PAIRS]
        x, starts = PAIRS.view(-1, 1, 1, 2), torch.stack([delta for _, delta in found]).view(-1, 1, 1, 2)
        lowest = torch.tensor([value for value, _ in found])
        for restarts in (0, 2):
            run = partial(cosine_attack, quadratic.eval(), x, epsilon=0.2, iterations=1, labels=0, restarts=restarts)
            result = run(starts=starts)
            assert result.trace.shape == (restarts + 1, 2, 4)
            torch.testing.assert_close(result.trace[restarts, 0], lowest.double(), rtol=0, atol=1e-6)
            assert (result.cosine <= lowest + 1e-6).all()
        # From outside of the ball a start is projected: the same direction, at the radius.
        far = cosine_attack(
            quadratic.eval(), x, epsilon=0.02, iterations=1, labels=0, restarts=0, starts=9 * starts, clip=False
        )
        ends = x + 0.02 * starts / starts.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        expected = metrics.cosine(quadratic.slope(ends), quadratic.slope(x))
        torch.testing.assert_close(far.trace[0, 0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("epsilon", [1e-9, 1e-3, 0.5, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_image_is_inside_the_l2_ball_exactly(images: Tensor, epsilon: float, dtype: torch.dtype) -> None:
    """No tolerance: the l2 norm of the difference, formed in float64, is at most the epsilon that was asked."""
    x, model = images.to(dtype), models.build("lenet", activation="softplus", beta=3, seed=3).to(dtype)
    for clip in (True, False):
        for result in (
            cosine_attack(model, x, epsilon=epsilon, step=epsilon, iterations=1, restarts=1, clip=clip, starts=-x),
            random_directions(model, x, epsilon=epsilon, draws=2, clip=clip),
        ):
            assert result.images.dtype == dtype
            distance = (result.images.double() - x.double()).flatten(1).norm(dim=1)
            assert (distance <= epsilon).all()
            assert not clip or (result.images.min() >= 0 and result.images.max() <= 1)
            if epsilon > 1e-9 and not clip:  # and uses it, up to the float32 next to it
                assert (distance >= epsilon * (1 - 1e-2 if dtype == torch.float32 else 1 - 1e-9)).any()


def test_a_linear_model_keeps_its_gradient_everywhere() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).double().eval()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for result in (cosine_attack(linear, x, epsilon=3.0), random_directions(linear, x, epsilon=3.0, draws=5)):
        torch.testing.assert_close(result.trace, torch.ones_like(result.trace), rtol=0, atol=1e-12)
        assert result.images.isfinite().all()
        assert result.images.min() >= 0
        assert result.images.max() <= 1
        assert (result.images != x).flatten(1).any(1).all()


@pytest.mark.parametrize("beta", [None, 4.0, (2.0, 9.0)])
@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_the_cosine_attack_equals_a_loop_by_hand(
    digits: Tensor, beta: float | tuple[float, float] | None, momentum: float
) -> None:
    """Image by image: the step on the direction's sum, the projection, clipping, and the best iterate."""
    model = soft_digits() if beta is None else models.build("digits-cnn", seed=1).double()
    epsilon, step, steps = 0.8, 0.15, 9
    labels = torch.tensor([3, 1, 4, 1])
    starts = torch.randn(digits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 9
    result = cosine_attack(
        model,
        digits,
        epsilon=epsilon,
        step=step,
        iterations=steps,
        restarts=0,
        momentum=momentum,
        beta=beta,
        labels=labels,
        starts=starts,
    )

    def slope(network: nn.Module, z: Tensor, y: int) -> Tensor:
        return torch.autograd.grad(network(z)[0, y], z, create_graph=True)[0].flatten()

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b) / (a.norm() * b.norm())

    for i, y in enumerate(labels.tolist()):
        clean = digits[i : i + 1].clone().requires_grad_()
        reference = slope(model, clean, y).detach()
        delta, m = starts[i : i + 1], torch.zeros_like(starts[:1])
        trace, iterates = [], []
        for p in range(steps + 1):
            delta = delta * min(1, epsilon / float(delta.norm()))
            delta = (clean.detach() + delta).clamp(0, 1) - clean.detach()
            z = (clean.detach() + delta).requires_grad_()
            trace.append(cosine(reference, slope(model, z, y)).item())
            iterates.append(z.detach())
            network = model
            if beta is not None:
                first, last = beta if isinstance(beta, tuple) else (beta, beta)
                network = models.softplus_surrogate(model, first * (last / first) ** (p / (steps - 1)))
            (g,) = torch.autograd.grad(cosine(reference, slope(network, z, y)), z)
            m = momentum * m + g / g.norm()
            delta = delta - step * m / m.norm()
        expected = torch.tensor(trace, dtype=torch.float64)
        torch.testing.assert_close(result.trace[0, :, i], expected, rtol=0, atol=1e-7)
        best = min(range(steps + 1), key=lambda p: trace[p])
        assert sorted(trace)[1] - trace[best] > 1e-5  # the premise: not rounding decides which is the best
        assert result.iterate[i] == best
        torch.testing.assert_close(result.images[i], iterates[best][0], rtol=0, atol=1e-7)


def test_what_the_cosine_attack_returns(digits: Tensor) -> None:
    model = soft_digits()
    for labels in (None, 3, torch.tensor([3, 1, 4, 1])):
        attacked = cosine_attack(model, digits, epsilon=1.0, iterations=6, labels=labels)
        drawn = random_directions(model, digits, epsilon=1.0, draws=5, labels=labels)
        assert attacked.trace.shape == (3, 7, 4)
        assert drawn.trace.shape == (5, 1, 4)
        for result in (attacked, drawn):
            columns = torch.arange(4)
            assert torch.equal(result.cosine, result.trace[result.restart, result.iterate, columns])
            assert torch.equal(result.cosine, result.trace.flatten(0, 1).min(0).values)
            with torch.no_grad():
                assert torch.equal(result.prediction, model(digits).argmax(1))
                assert torch.equal(result.kept, model(result.images).argmax(1) == result.prediction)
            expected = result.prediction if labels is None else torch.as_tensor(labels).expand(4)
            assert torch.equal(result.labels, expected)
            again = metrics.cosine(gradient(model, digits, expected), gradient(model, result.images, expected))
            torch.testing.assert_close(result.cosine, again, rtol=0, atol=1e-12)
            assert result.epsilon == 1.0


def test_a_lost_class_is_marked_and_returned() -> None:
    """The tangent's point has the logit (||x||^2 - epsilon^2) / 2: 0.73 for one image, 0.17 for the other; 0.2 wins."""
    model = Quadratic([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], level=0.2).eval()
    x = torch.tensor([[0.9, 0.9], [0.5, 0.5]], dtype=torch.float64).view(2, 1, 1, 2)
    result = cosine_attack(model, x, epsilon=0.4, step=0.1, clip=False)
    assert result.prediction.tolist() == result.labels.tolist() == [0, 0]
    assert result.kept.tolist() == [True, False]
    exact = (1 - 0.4**2 / x.flatten(1).square().sum(1)).sqrt()
    torch.testing.assert_close(result.cosine, exact, rtol=0, atol=1e-3)


def test_restarts_begin_on_the_sphere_and_the_first_halfway(digits: Tensor) -> None:
    """The starts are the draws of the baseline, whose every point has the radius that was asked."""
    model = soft_digits()
    attacked = cosine_attack(model, digits, epsilon=0.6, iterations=2, clip=False)
    drawn = random_directions(model, digits, epsilon=0.6, draws=3, clip=False)
    half = random_directions(model, digits, epsilon=0.3, draws=1, clip=False)
    starts = torch.cat([half.trace[:, 0], drawn.trace[1:, 0]])
    torch.testing.assert_close(attacked.trace[:, 0], starts, rtol=0, atol=1e-12)
    for result, radius in ((drawn, 0.6), (half, 0.3)):
        distance = (result.images - digits).flatten(1).norm(dim=1)
        torch.testing.assert_close(distance, torch.full_like(distance, radius), rtol=1e-9, atol=0)
    assert (drawn.trace[0] != drawn.trace[1]).all()


def test_the_cosine_attack_beats_random_directions_of_as_many_evaluations(digits: Tensor) -> None:
    """In each image, and by a factor of two in 1 - cosine."""
    model = soft_digits()
    for epsilon in (0.1, 1.0):
        ours = cosine_attack(model, digits, epsilon=epsilon, iterations=20, restarts=2)
        search = random_directions(model, digits, epsilon=epsilon, draws=2 * 21)
        assert ours.trace[..., 0].numel() == search.trace[..., 0].numel()
        assert (1 - ours.cosine > 2 * (1 - search.cosine)).all()


def test_a_cosine_attack_on_a_batch_is_its_single_images(digits: Tensor) -> None:
    model = soft_digits()
    labels = torch.tensor([3, 1, 4, 1])
    starts = torch.randn(digits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    attack_ = partial(cosine_attack, model, epsilon=0.5, iterations=8)
    search = partial(random_directions, model, epsilon=0.5, draws=4)
    for run, more in ((attack_, {"starts": starts}), (search, {})):
        whole = run(digits, labels=labels, **more)
        parts = [(run(digits, labels=labels, batch_size=size, **more), slice(0, 4)) for size in (1, 3)]
        alone = {name: value[2:3] for name, value in more.items()}
        parts.append((run(digits[2:3], labels=4, **alone), slice(2, 3)))
        for part, rows in parts:
            assert torch.equal(part.restart, whole.restart[rows])
            assert torch.equal(part.iterate, whole.iterate[rows])
            assert torch.equal(part.labels, whole.labels[rows])
            torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-9)
            torch.testing.assert_close(part.trace, whole.trace[:, :, rows], rtol=0, atol=1e-9)


def test_same_seed_same_cosines_and_no_global_state(digits: Tensor) -> None:
    model = soft_digits()
    state = torch.random.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for run in (
        partial(cosine_attack, model, digits, epsilon=0.5, iterations=2),
        partial(random_directions, model, digits, epsilon=0.5, draws=2),
    ):
        a, b, other = run(seed=4), run(seed=4), run(seed=5)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.trace, b.trace)
        assert (a.trace[:, 0] != other.trace[:, 0]).all()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_attributions_that_are_zero_have_the_cosine_of_the_metrics() -> None:
    """At black the image's own gradient is zero, and nowhere else; that of the constant logit is zero everywhere."""
    black = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    for label, expected in ((0, 0.0), (1, 1.0)):
        for result in (
            cosine_attack(HalfSquares().eval(), black, epsilon=0.5, iterations=3, labels=label),
            random_directions(HalfSquares().eval(), black, epsilon=0.5, draws=3, labels=label),
        ):
            assert torch.equal(result.trace, torch.full_like(result.trace, expected))
    # A point where the map vanishes can be reached: -1 on its other side, 0 on it.
    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    at = cosine_attack(HalfSquares().eval(), x, epsilon=0.6, iterations=1, restarts=0, starts=-x, labels=0)
    assert at.trace[0, 0].tolist() == [0.0]


def test_without_a_direction_the_steps_are_random(digits: Tensor) -> None:
    """A gradient that is zero, or not finite; also what the attribution is asked for, and how often."""
    seen: list[tuple[bool, Tensor]] = []

    def recorded(model: nn.Module, x: Tensor, target: Tensor | int, *, create_graph: bool = False) -> Tensor:
        seen.append((create_graph, x.detach()))
        return torch.ones_like(x)

    def sharp(model: nn.Module, x: Tensor, target: Tensor | int, *, create_graph: bool = False) -> Tensor:
        seen.append((create_graph, x.detach()))
        return x + (0 * x).sqrt()  # the derivative is 1 + 0 / 0

    def steep(model: nn.Module, x: Tensor, target: Tensor | int, *, create_graph: bool = False) -> Tensor:
        seen.append((create_graph, x.detach()))
        return x + (x - x.detach()).sqrt()  # the derivative is 1 + 1 / 0

    for attribution in (recorded, sharp, steep):
        seen.clear()
        result = cosine_attack(
            soft_digits(), digits, epsilon=0.5, attribution=attribution, iterations=4, restarts=2, momentum=0.0
        )
        assert [graph for graph, _ in seen] == [False, *([True] * 4 + [False]) * 2]
        assert torch.equal(seen[0][1], digits)
        for (_, a), (_, b) in pairwise(seen):
            assert b.isfinite().all()
            assert ((a - b).flatten(1).norm(dim=1) > 0.05).all()
        assert ((result.images - digits).flatten(1).norm(dim=1) <= 0.5).all()
        assert result.cosine.isfinite().all()


def test_the_smooth_copy_gives_the_cosine_attack_its_direction(images: Tensor) -> None:
    run = partial(cosine_attack, lenet(), images[2:], epsilon=0.5, iterations=8, restarts=1)
    assert (run(beta=10.0).cosine < run().cosine).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_cosine_of_any_attribution_can_be_attacked(name: str, digits: Tensor) -> None:
    short: dict[str, Attribution] = {
        "integrated_gradients": partial(integrated_gradients, steps=5),
        "layer_integrated_gradients": partial(layer_integrated_gradients, steps=5),
        "smoothgrad": partial(smoothgrad, samples=5, sigma=0.25),
    }
    method = short.get(name, METHODS[name])
    # The quotients of LRP have poles, and a far start can lie near one.
    result = cosine_attack(soft_digits(), digits[2:], epsilon=0.02, attribution=method, iterations=8, restarts=1)
    assert (result.cosine < result.trace[0, 0]).all()
    maps = [method(soft_digits(), v, result.labels).detach() for v in (digits[2:], result.images)]
    torch.testing.assert_close(result.cosine, metrics.cosine(*maps), rtol=0, atol=1e-9)


# --- what cannot be attacked ---------------------------------------------------------------------------------------


def test_a_linear_model_cannot_be_attacked() -> None:
    """Its gradient is a constant: whatever the attack does, the map stays, bit for bit (Ghorbani et al. 2019)."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    clean = heatmap(gradient(linear, x, linear(x).argmax(1)))
    for objective in (TopK(5), MassCenter()):
        for result in (
            attack(linear, x, objective, beta=None, epsilon=0.05),
            random_sign(linear, x, objective=objective, epsilon=0.05, draws=5),
        ):
            now = heatmap(gradient(linear, result.images, result.prediction))
            assert torch.equal(now, clean)
            assert (metrics.topk_intersection(clean, now, 5) == 1).all()
            assert torch.equal(result.trace, result.trace[:1].expand_as(result.trace))


def test_without_a_surrogate_a_relu_network_gives_no_direction(images: Tensor) -> None:
    """The reason for the smooth copy: the plain network's second derivative is zero and the steps are random signs."""
    x = images.clamp(0.2, 0.8)
    plain = attack(lenet(), x, beta=None, iterations=1, step=EPSILON, seed=7)
    draw = random_sign(lenet(), x, objective=TopK(100), epsilon=EPSILON, seed=7)
    torch.testing.assert_close(plain.trace, draw.trace, rtol=1e-4, atol=1e-6)
    smooth = attack(lenet(), x, beta=30.0, iterations=1, step=EPSILON, seed=7)
    assert smooth.trace[1].mean() > plain.trace[1].mean()


@pytest.mark.parametrize(("activation", "beta"), [("softplus", None), ("relu", (3.0, 30.0))])
def test_by_default_a_smooth_network_leads_itself_and_a_relu_network_has_a_copy(
    images: Tensor, activation: Literal["softplus", "relu"], beta: tuple[float, float] | None
) -> None:
    model = models.build("lenet", activation=activation, seed=3)
    assert models.is_smooth(model) is (beta is None)
    other = (3.0, 30.0) if beta is None else None
    default, same, different = (attack(model, images, **kind) for kind in ({}, {"beta": beta}, {"beta": other}))
    assert torch.equal(default.trace, same.trace)
    assert not torch.equal(default.trace, different.trace)


def test_a_network_without_activations_is_refused_by_default(images: Tensor) -> None:
    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    assert not models.is_smooth(Linear())
    with pytest.raises(ValueError, match="has no activation that can be made smooth"):
        attack(Linear().eval(), images)


# --- refusals ------------------------------------------------------------------------------------------------------


class Untouchable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("work started")


def test_objectives_are_asked_before_work_starts_and_prepared_batch_by_batch(images: Tensor) -> None:
    prepared = []

    class Recorded(TopK):
        def prepare(self, reference: Tensor, rows: slice) -> Score:
            prepared.append(len(reference))
            return super().prepare(reference, rows)

    attack(lenet(), images, Recorded(100), iterations=1, batch_size=2)
    assert prepared == [2, 2, 1]

    class Own:  # an objective with nothing but prepare
        def prepare(self, reference: Tensor, rows: slice) -> Score:
            if reference.shape[1] != 8:
                raise ValueError(f"wants 8 rows, not {reference.shape[1]}")
            return lambda h: h[:, 0].sum(1)

    for run in (partial(attack, objective=Own()), partial(random_sign, objective=Own(), epsilon=0.1)):
        with pytest.raises(ValueError, match="wants 8 rows, not 32"):
            run(nn.Sequential(Untouchable(), nn.ReLU()).eval(), images)
    with pytest.raises(ValueError, match=r"k is 5; the map has 4 pixels"):
        TopK(5).prepare(torch.ones(1, 2, 2), slice(0, 1))


def test_bad_input_is_refused_in_one_line_before_work_starts(images: Tensor) -> None:
    nan = images.clone()
    nan[0, 0, 0, 0] = float("nan")

    model = nn.Sequential(Untouchable(), nn.ReLU()).eval()
    cases: list[tuple[dict[str, object], str]] = [
        ({"x": images[0]}, "[N, C, H, W]"),
        ({"x": images * 255}, "[0, 1]"),
        ({"x": images - 0.5}, "[0, 1]"),
        ({"x": nan}, "NaN"),
        ({"objective": TopK(1025)}, "1024"),
        ({"objective": Targeted(torch.ones(31, 32))}, "(31, 32)"),
        ({"objective": Targeted(torch.ones(1, 32, 32)), "batch_size": 2}, "(1, 32, 32)"),
        ({"epsilon": -8 / 255}, "epsilon is -0.03"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": 8.0}, "8 / 255"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"step": 0.0}, "step is 0.0"),
        ({"step": math.inf}, "step is inf"),
        ({"iterations": 0}, "iterations is 0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"beta": (1.0, 0.0)}, "beta is (1.0, 0.0)"),
        ({"beta": math.inf}, "beta is inf"),
        ({"batch_size": 0}, "batch_size is 0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            attack(model, **{"x": images, **options})  # type: ignore[arg-type]
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        attack(lenet().train(), images)
    with pytest.raises(ValueError, match="draws is 0"):
        random_sign(model, images, objective=TopK(5), epsilon=0.1, draws=0)


@pytest.mark.parametrize("k", [0, -1, True, 1.0, 2.5, "5", None, np.bool_(True)])
def test_numbers_of_pixels_that_are_none_are_refused_at_once(k: Any) -> None:
    with pytest.raises(ValueError, match=rf"^k is {re.escape(repr(k))}; accepted is an integer >= 1, of pixels$"):
        TopK(k)
    TopK(np.int64(5)).check(1, 5, 1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(4, 4), "mask has 0 of 16 pixels"),
        (torch.zeros(4, 4, dtype=torch.bool), "mask has 0 of 16 pixels"),
        (torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]), "mask of image 1 has 0 of 16 pixels"),
        (torch.full((4, 4), torch.nan), "mask has a NaN"),
        (torch.ones(4), "mask has shape"),
    ],
)
def test_a_target_has_pixels(mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Targeted(mask)
    assert "\n" not in str(error.value)


def test_bad_manipulations_are_refused_in_one_line_before_work_starts(digits: Tensor) -> None:
    model = nn.Sequential(Untouchable(), nn.ReLU()).eval()
    cases: list[tuple[dict[str, object], str]] = [
        ({"images": digits[0]}, "[N, C, H, W]"),
        ({"images": digits * 255}, "[0, 1]"),
        ({"images": digits[:, :, :6]}, "6 x 8 pixels"),
        ({"target_map": frame(8, 9, 2)}, "target_map has shape (8, 9)"),
        ({"target_map": torch.ones(3, 8, 8)}, "target_map has shape (3, 8, 8)"),
        ({"target_map": 2 * DIGIT_FRAME}, "values from 0 to 2"),
        ({"target_map": -DIGIT_FRAME}, "values from -1 to"),
        ({"target_map": DIGIT_FRAME / 0}, "values from nan to nan"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": 4.0}, "8 / 255"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "int64 [4]"),
        ({"labels": torch.zeros(4)}, "float32"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"model": soft_digits().train()}, "model.eval()"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            manipulate(
                **{"model": model, "images": digits, "target_map": DIGIT_FRAME, "epsilon": 0.1, **options}  # type: ignore[arg-type]
            )
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="target has class 10; the model has classes 0 to 9"):
        manipulate(soft_digits(), digits, target_map=DIGIT_FRAME, epsilon=0.1, labels=10)


def test_bad_cosine_attacks_are_refused_in_one_line_before_work_starts(digits: Tensor) -> None:
    model = nn.Sequential(Untouchable(), nn.ReLU()).eval()
    nan = torch.full_like(digits, float("nan"))
    both: list[tuple[dict[str, object], str]] = [
        ({"images": digits[0]}, "[N, C, H, W]"),
        ({"images": digits * 255}, "[0, 1]"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": -1.0}, "epsilon is -1.0"),
        ({"epsilon": float("inf")}, "epsilon is inf"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "int64 [4]"),
        ({"labels": torch.zeros(4)}, "float32"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"model": soft_digits().train()}, "model.eval()"),
    ]
    ours: list[tuple[dict[str, object], str]] = [
        ({"step": 0.0}, "step is 0.0"),
        ({"step": float("nan")}, "step is nan"),
        ({"iterations": 0}, "iterations is 0"),
        ({"restarts": 0}, "restarts is 0"),
        ({"restarts": -1, "starts": 0 * digits}, "restarts is -1"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"starts": digits[:1]}, "starts has shape (1, 1, 8, 8)"),
        ({"starts": nan}, "starts has NaN"),
    ]
    theirs: list[tuple[dict[str, object], str]] = [({"draws": 0}, "draws is 0")]
    runs: list[tuple[Callable[..., object], list[tuple[dict[str, object], str]]]] = [
        (cosine_attack, both + ours),
        (partial(random_directions, draws=1), both + theirs),
    ]
    for run, cases in runs:
        for options, message in cases:
            with pytest.raises(ValueError) as error:  # noqa: PT011
                run(**{"model": model, "images": digits, "epsilon": 0.1, **options})
            assert message in str(error.value)
            assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match="target has class 10; the model has classes 0 to 9"):
            run(model=soft_digits(), images=digits, epsilon=0.1, labels=10)


def test_pixels_that_are_averaged_change_no_attack() -> None:
    """A network behind a layer that averages blocks: the same attack finds the same change (Pixels alone)."""
    net = models.build("digits-cnn", activation="softplus", beta=10.0, seed=2).double()
    block, k = 2, 5
    averaged = nn.Sequential(nn.AvgPool2d(block), net).eval()
    x = data.load("digits", limit=6).images.double()
    large = x.repeat_interleave(block, 2).repeat_interleave(block, 3)
    options = {"epsilon": 0.1, "step": 0.03, "iterations": 6, "beta": None}
    found = iterative_attack(net, x, objective=TopK(k), **options)
    wide = iterative_attack(averaged, large, objective=TopK(k * block**2), **options)
    assert torch.equal(found.success, wide.success)
    # The ball's ends are floats of the pixels: a mean of equal ones is rounded once more.
    torch.testing.assert_close(nn.functional.avg_pool2d(wide.images, block), found.images, rtol=0, atol=1e-12)
    torch.testing.assert_close(wide.objective, found.objective, rtol=1e-9, atol=1e-12)
