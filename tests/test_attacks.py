"""Attacks: exact constraints, hand-computed objectives, models that cannot be attacked, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robattr import data, metrics, models
from robattr.attacks import AttackResult, MassCenter, Objective, Targeted, TopK, iterative_attack, random_sign
from robattr.attributions import METHODS, Attribution, gradient, heatmap, integrated_gradients, smoothgrad
from robattr.experiments import interval

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


@pytest.mark.parametrize("objective", [TopK(100), MassCenter(), Targeted(torch.arange(1024).view(32, 32) < 100)])
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


def test_a_batch_is_its_single_images(images: Tensor) -> None:
    model = lenet().double()
    x = images.double()
    for run in (partial(attack, model), lambda x, **o: random_sign(model, x, objective=TopK(9), epsilon=0.1, **o)):
        whole = run(x, batch_size=5)
        for batch_size in (1, 2):
            part = run(x, batch_size=batch_size)
            assert torch.equal(part.best, whole.best)
            torch.testing.assert_close(part.images, whole.images, rtol=0, atol=0)
            torch.testing.assert_close(part.trace, whole.trace)
        alone = run(x[3:4])
        assert torch.equal(alone.images[0], whole.images[3])


def test_a_mask_for_each_image_goes_with_its_batch(images: Tensor) -> None:
    masks = torch.zeros(5, 32, 32, dtype=torch.bool)
    for i in range(5):
        masks[i, 5 * i : 5 * i + 5] = True
    whole = attack(lenet(), images, Targeted(masks), batch_size=5)
    parts = attack(lenet(), images, Targeted(masks), batch_size=2)
    torch.testing.assert_close(parts.trace, whole.trace, rtol=1e-3, atol=1e-5)


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
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:8, :8] = True
    for objective in (TopK(100), MassCenter(), Targeted(mask)):
        ours = attack(model, images, objective, iterations=15)
        search = random_sign(model, images, objective=objective, epsilon=EPSILON, draws=15)
        assert ours.objective.mean() > search.objective.mean()
        assert (ours.objective > ours.trace[0]).all()


@pytest.mark.parametrize("name", METHODS)
def test_any_attribution_can_be_attacked(name: str, images: Tensor) -> None:
    short: dict[str, Attribution] = {
        "integrated_gradients": partial(integrated_gradients, steps=5),
        "smoothgrad": partial(smoothgrad, samples=5, sigma=0.05),
    }
    result = attack(lenet(), images[3:], TopK(100), attribution=short.get(name, METHODS[name]), iterations=10)
    assert result.success.all()
    assert (result.objective > result.trace[0]).all()


def test_photographs_lose_their_map_and_keep_their_class() -> None:
    """The claim of Ghorbani et al. 2019 on every correctly classified photograph, at epsilon = 8/255.

    The top-k attack leaves at most 0.05 of the top 1000 pixels on average, random signs at least 0.10, with 95 %
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


# --- refusals ------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_in_one_line_before_work_starts(images: Tensor) -> None:
    nan = images.clone()
    nan[0, 0, 0, 0] = float("nan")

    class Untouchable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("work started")

    model = nn.Sequential(Untouchable(), nn.ReLU()).eval()
    cases: list[tuple[dict[str, object], str]] = [
        ({"x": images[0]}, "[N, C, H, W]"),
        ({"x": images * 255}, "[0, 1]"),
        ({"x": images - 0.5}, "[0, 1]"),
        ({"x": nan}, "NaN"),
        ({"objective": TopK(1025)}, "1024"),
        ({"objective": TopK(0)}, "k is 0"),
        ({"objective": Targeted(torch.ones(31, 32))}, "(31, 32)"),
        ({"epsilon": -8 / 255}, "epsilon is -0.03"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": 8.0}, "8 / 255"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"step": 0.0}, "step is 0.0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"beta": (1.0, 0.0)}, "beta is (1.0, 0.0)"),
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
