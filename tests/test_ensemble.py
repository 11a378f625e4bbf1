"""The worst over an ensemble: never weaker than an attack of its own, and counted only where it counts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robattr import attacks, metrics, models
from robattr.attacks import MEASURES, Harm, Judged, MassCenter, Targeted, TopK, judge, worst_of
from robattr.attributions import Attribution, gradient, heatmap, input_x_gradient

EPSILON, K = 8 / 255, 100
OPTIONS: dict[str, Any] = {"epsilon": EPSILON, "step": 2 / 255, "iterations": 4}


def smooth_lenet() -> models.Classifier:
    return models.build("lenet", activation="softplus", beta=3.0, seed=3)


@pytest.fixture
def images() -> Tensor:
    """Random images of 8 bits, with black and white among them."""
    x = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float().div_(255)
    x[0, :, :8] = 0
    x[1, :, :8] = 1
    return x


def singles(model: nn.Module, x: Tensor, attribution: Attribution) -> dict[str, Tensor]:
    """Every attack of the package in this ball, called as its users call it."""
    beta = None if models.is_smooth(model) else (3.0, 30.0)
    with torch.no_grad():
        labels = model(x).argmax(1)
    corner = attacks.emptiest_corner(heatmap(attribution(model, x, labels)))
    walk = partial(attacks.iterative_attack, model, x, attribution=attribution, beta=beta, **OPTIONS)
    frame = attacks.frame(32, 32, 5)
    manipulated = attacks.manipulate(
        model, x, target_map=frame, epsilon=EPSILON, attribution=attribution, learning_rate=2 / 255, iterations=4,
        beta=beta,
    )  # fmt: skip
    signs = attacks.random_sign(model, x, objective=TopK(K), epsilon=EPSILON, draws=3, attribution=attribution)
    return {
        "top-k": walk(objective=TopK(K)).images,
        "mass-center": walk(objective=MassCenter()).images,
        "targeted": walk(objective=Targeted(corner)).images,
        "manipulation": manipulated.images,
        "random-sign": signs.images,
    }


def harm_by_hand(model: nn.Module, x: Tensor, z: Tensor, attribution: Attribution) -> dict[str, Tensor]:
    """The four measures where the prediction stays; those of an unchanged map elsewhere."""
    with torch.no_grad():
        labels, after = model(x).argmax(1), model(z).argmax(1)
    z = torch.where((labels == after)[:, None, None, None], z, x)
    a, b = (heatmap(attribution(model, v, labels)) for v in (x, z))
    return {
        "topk_intersection": metrics.topk_intersection(a, b, K),
        "rank_correlation": metrics.spearman(a, b),
        "cosine": metrics.cosine(a, b),
        "center_shift": metrics.center_shift(a, b),
    }


def at_least_as_bad(name: str, worst: Tensor, other: Tensor) -> bool:
    """No tolerance but that of a sum of 1,024 products of float32 formed in another batch."""
    slack = 1024 * torch.finfo(torch.float32).eps * (32 if name == "center_shift" else 1)
    sign = -1 if name == "center_shift" else 1
    return bool((sign * worst <= sign * other + slack).all())


@pytest.mark.parametrize("attribution", [gradient, input_x_gradient])
@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_the_ensemble_is_never_weaker_than_an_attack_of_the_package(
    images: Tensor, attribution: Attribution, activation: str
) -> None:
    model = smooth_lenet() if activation == "softplus" else models.build("lenet", seed=3)
    found = attacks.ensemble(
        model, images, k=K, attribution=attribution, restarts=2, draws=3, batch_size=len(images), **OPTIONS
    )
    alone = singles(model, images, attribution)
    assert set(found.names) == {*alone, "top-k-2", "mass-center-2"}
    strict = 0
    for name, changed in alone.items():
        # The very images: the ensemble calls the attacks as a user does.
        mine = found.each[found.names.index(name)]
        assert torch.equal(mine.images[mine.success], changed[mine.success])
        for measure, value in harm_by_hand(model, images, changed, attribution).items():
            assert at_least_as_bad(measure, getattr(found.harm, measure), value), (name, measure)
            strict += int((getattr(found.harm, measure) != value).sum())
    assert strict > 0  # an ensemble of one attack alone would pass the rest


def test_images_of_8_bits_are_those_of_the_attacks_on_the_grid(images: Tensor) -> None:
    """Steps of whole levels stay on the grid: what a file holds is what the attack found, but for a last bit."""
    model = smooth_lenet()
    found = attacks.ensemble(model, images, k=K, levels=255, draws=3, restarts=1, batch_size=len(images), **OPTIONS)
    for name, judged in zip(found.names, found.each, strict=True):
        steps = judged.images * 255
        assert torch.equal(steps.round() / 255, judged.images), name
        moved = (steps.round() - (images * 255).round()).abs()
        assert moved.max() <= 8, name
    raw = singles(model, images, gradient)
    for name in ("top-k", "mass-center", "targeted", "random-sign"):
        mine = found.each[found.names.index(name)]
        assert ((mine.images - raw[name])[mine.success].abs() < 1e-6).all(), name


def test_what_leaves_the_ball_or_loses_the_prediction_changes_nothing(images: Tensor) -> None:
    model = smooth_lenet()
    outside = (images + 20 / 255).clamp(0, 1)
    for levels in (None, 255):
        judged = judge(model, images, outside, epsilon=EPSILON, k=K, levels=levels)
        assert not judged.inside.any()
        assert torch.equal(judged.images, images)
        assert judged.harm.topk_intersection.tolist() == [1] * 4
        assert judged.harm.center_shift.tolist() == [0] * 4

    unchanged = judge(model, images, images, epsilon=EPSILON, k=K)
    assert unchanged.inside.all()
    assert unchanged.kept.all()
    assert not unchanged.success.any()  # an attack that has failed returns the clean image

    class Moody(nn.Module):
        """Another class for every image but the clean ones."""

        def forward(self, x: Tensor) -> Tensor:
            same = (x - images[:1]).flatten(1).abs().amax(1) == 0
            score = x.square().flatten(1).sum(1)
            return torch.stack([torch.where(same, score, -score), torch.zeros_like(score)], 1)

    lost = judge(Moody().eval(), images[:1], (images[:1] + 1 / 255).clamp(0, 1), epsilon=EPSILON, k=K)
    assert lost.inside.all()
    assert not lost.kept.any()
    assert not lost.success.any()
    assert lost.harm.rank_correlation.tolist() == [1]


def test_one_last_bit_outside_is_outside(images: Tensor) -> None:
    model = smooth_lenet()
    corner = (images.double() + EPSILON).clamp(0, 1).float()
    beyond = corner.double() - images.double() > EPSILON
    assert beyond.any()  # rounding to float32 has put some outside
    assert not judge(model, images, corner, epsilon=EPSILON, k=K).inside.any()
    # As whole numbers the same image is 8 levels away, which is in the ball.
    assert judge(model, images, corner, epsilon=EPSILON, k=K, levels=255).inside.all()


def test_images_between_the_levels_are_rounded_into_the_ball() -> None:
    model = smooth_lenet()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 3, 32, 32, generator=generator)
    z = (x + EPSILON * (2 * torch.rand(x.shape, generator=generator) - 1).sign()).clamp(0, 1)
    judged = judge(model, x, z, epsilon=EPSILON, k=K, levels=255)
    assert judged.inside.all()
    levels = (judged.images.double() * 255).round()
    counted = judged.success[:, None, None, None]
    distance = (levels / 255 - x.double()).abs() * counted
    assert distance.max() <= EPSILON * (1 + 1e-12)


def judged_of(**values: list[float]) -> Judged:
    n = len(next(iter(values.values())))
    perfect = {"topk_intersection": 1.0, "rank_correlation": 1.0, "cosine": 1.0, "center_shift": 0.0}
    harm = Harm(**{name: torch.tensor(values.get(name, [perfect[name]] * n)) for name in MEASURES})
    yes = torch.ones(n, dtype=torch.bool)
    return Judged(torch.rand(n, 1, 2, 2), yes, yes, yes, harm)


def test_the_worst_by_hand() -> None:
    a = judged_of(topk_intersection=[0.5, 0.2], rank_correlation=[0.9, 0.1], center_shift=[1.0, 5.0])
    b = judged_of(topk_intersection=[0.4, 0.2], rank_correlation=[0.3, 0.0], center_shift=[2.0, 4.0])
    worst = worst_of({"a": a, "b": b})
    assert worst.harm.topk_intersection.tolist() == pytest.approx([0.4, 0.2])
    assert worst.harm.rank_correlation.tolist() == pytest.approx([0.3, 0.0])
    assert worst.harm.center_shift.tolist() == [2.0, 5.0]
    # Of equal shares of top pixels the one with the lower rank correlation; of equal cosines the first.
    assert worst.attack.tolist() == [[1, 1], [1, 1], [0, 0], [1, 0]]
    assert torch.equal(worst.images[3, 1], a.images[1])
    with pytest.raises(ValueError, match="takes at least one"):
        worst_of({})


def test_a_transfer_takes_part(images: Tensor) -> None:
    """What was found on a copy with other weights may be worse than what was found here."""
    model, other = smooth_lenet(), models.build("lenet", activation="softplus", beta=3.0, seed=4)
    strong = attacks.iterative_attack(other, images, objective=TopK(K), epsilon=EPSILON, step=2 / 255, iterations=4)
    options: dict[str, Any] = {"k": K, "restarts": 1, "draws": 1, **OPTIONS}
    without = attacks.ensemble(model, images, **options)
    found = attacks.ensemble(model, images, transfers={"other": strong.images}, **options)
    assert found.names[-1] == "other"
    for measure in MEASURES:
        assert at_least_as_bad(measure, getattr(found.harm, measure), getattr(without.harm, measure))
    with pytest.raises(ValueError, match="transfers has top-k, the name of an attack"):
        attacks.ensemble(model, images, transfers={"top-k": strong.images}, **options)


def test_a_walk_from_a_start_begins_there_and_stays_in_the_ball(images: Tensor) -> None:
    model = smooth_lenet()
    starts = torch.full_like(images, 1.0)  # far outside: it is put into the ball
    options: dict[str, Any] = {"objective": TopK(K), "epsilon": EPSILON, "step": 2 / 255, "iterations": 3}
    plain = attacks.iterative_attack(model, images, **options)
    found = attacks.iterative_attack(model, images, starts=starts, **options)
    assert ((found.images.double() - images.double()).abs() <= EPSILON).all()
    assert not torch.equal(found.trace[0], plain.trace[0])
    corner = (images + EPSILON).clamp(0, 1)
    labels = model(images).argmax(1)
    before, there = (heatmap(gradient(model, z, labels)) for z in (images, corner))
    assert found.trace[0].tolist() == pytest.approx(TopK(K).prepare(before, slice(0, 4))(there).tolist(), rel=1e-3)
    with pytest.raises(ValueError, match="starts has shape"):
        attacks.iterative_attack(model, images, starts=starts[:1], **options)


def test_the_corner_with_least_of_a_map() -> None:
    maps = torch.ones(2, 8, 8)
    maps[0, :2, -2:] = 0
    maps[1, -2:, :2] = 0
    found = attacks.emptiest_corner(maps)
    assert found.sum((1, 2)).tolist() == [4, 4]
    assert found[0, :2, -2:].all()
    assert found[1, -2:, :2].all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k is 0; accepted is an integer >= 1"),
        ({"levels": 0}, "levels is 0; accepted is a number of steps >= 1"),
        ({"reference": torch.ones(1, 2, 2)}, r"reference has shape \(1, 2, 2\)"),
        ({"epsilon": 2.0}, "epsilon is 2.0"),
    ],
)
def test_refusals(images: Tensor, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        judge(smooth_lenet(), images, images, **{"epsilon": EPSILON, "k": K, **options})
    with pytest.raises(ValueError, match="found has shape"):
        judge(smooth_lenet(), images, images[:1], epsilon=EPSILON, k=K)


def test_rows_of_a_table_go_through() -> None:
    """Too low for a frame to be drawn: every other attack takes part."""
    rows = torch.rand(3, 1, 1, 30, generator=torch.Generator().manual_seed(0))
    model = models.build("mlp", activation="softplus", input_size=(1, 1, 30), num_classes=2, seed=0)
    found = attacks.ensemble(model, rows, k=5, restarts=1, draws=3, **OPTIONS)
    assert found.names == ("top-k", "mass-center", "targeted", "random-sign")
    assert ((found.images.double() - rows.double()).abs() <= EPSILON).all()
