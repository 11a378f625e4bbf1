"""How an audit spends its minutes: decided once, from what a first image costs, before anything is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

__all__ = ["Clock", "Cost", "MethodPlan", "OutOfTime", "Plan", "make_plan", "top_pixels"]

# Of the time that is left when the first image has been measured. What is left of it all is for the page, and for a
# machine that has become slower.
_SHARES = {"attacks": 0.60, "noise": 0.06, "sanity": 0.12, "certificate": 0.12}
_LEAST_STEPS, _MOST_STEPS, _MOST_RESTARTS = 5, 40, 3
_MOST_DRAWS, _MOST_SANITY, _MOST_STAGES = 10, 8, 8
_SAMPLES, _CHOOSE, _LEAST_SAMPLES = 600, 100, 100
MAIN = ("random-sign", "top-k", "mass-center", "manipulation", "targeted")
"""Attacks of a method, those that are done first and kept longest in front."""
SMALLER = ("top-k", "mass-center")
"""Those that are run within the smaller epsilon too."""
# The order in which attacks are kept where the time does not suffice for all; True for those of the smaller epsilon.
_KEPT = (
    ("top-k", False),
    ("top-k", True),
    ("mass-center", False),
    ("mass-center", True),
    ("manipulation", False),
    ("targeted", False),
)


class OutOfTime(Exception):
    """The minutes of the audit are over in the middle of a part."""


class Clock:
    """Counts down.

    Args:
        seconds: how long there is.
        now: a clock in seconds.
        started: when it began to count; now by default.
    """

    def __init__(
        self, seconds: float, *, now: Callable[[], float] = time.monotonic, started: float | None = None
    ) -> None:
        self.now = now
        self._end = (now() if started is None else started) + seconds

    def left(self) -> float:
        return self._end - self.now()

    def check(self) -> None:
        """Raise :class:`OutOfTime` where nothing is left."""
        if self.left() <= 0:
            raise OutOfTime


@dataclass(frozen=True)
class Cost:
    """What a method costs for one image.

    Attributes:
        map: seconds of a map.
        step: seconds of a step of an attack; None where it is too dear to be tried, or refused.
        bytes: that a step holds for its derivatives.
        refused: why there are no maps.
        attack_refused: why no attack differentiates them.
    """

    map: float
    step: float | None = None
    bytes: int = 0
    refused: str | None = None
    attack_refused: str | None = None


class MethodPlan(BaseModel):
    """What is done to one method; empty ``attacks`` leave it to what was found for other methods.

    Steps are in 1/255, a whole number, so that images stay on the grid of 8 bits. ``smaller`` are the attacks within
    the smaller epsilon, of as many steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    attacks: tuple[str, ...] = ()
    smaller: tuple[str, ...] = ()
    iterations: int = 0
    step: int = 1
    smaller_step: int = 1
    restarts: int = 1
    signs: int = 1
    batch: int = 1


class Plan(BaseModel):
    """How many images, steps, draws and samples there are in an audit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    images: int
    passes: int
    draws: int
    sanity_images: int
    stages: int
    certified_images: int
    samples: int
    choose: int
    methods: dict[str, MethodPlan]


def top_pixels(height: int, width: int) -> int:
    """k: 1,000 of 224 x 224 pixels, as in the first paper, a fiftieth; 100 of 32 x 32, a tenth of small images."""
    pixels = height * width
    return max(1, round(pixels * (1000 / 224**2 if pixels >= 128**2 else 100 / 32**2)))


def make_plan(
    costs: Mapping[str, Cost],
    *,
    seconds: float,
    images: int,
    epsilon: float,
    smaller: float | None = None,
    memory: float,
    most_batch: int = 16,
) -> Plan:
    """Share seconds out.

    Every part has a minimum: a short audit has fewer images and steps, and no part less. Methods share the time of the
    attacks equally; what a cheap one leaves goes to the others. A method whose own attack does not fit is attacked by
    what was found for the others.

    Args:
        costs: of the methods that were not refused, in the order of the request.
        seconds: that are left.
        images: how many there are.
        epsilon: in 1/255.
        smaller: another one, in the same unit, at which there are attacks too; None for no other.
        memory: bytes that the derivatives of a batch may take.
        most_batch: images at once, where the memory allows for more.
    """
    fine = {name: cost for name, cost in costs.items() if cost.refused is None}
    attacked = {name: cost for name, cost in fine.items() if cost.step is not None}
    maps = sum(cost.map for cost in fine.values())
    share = {name: part * max(seconds, 0.0) for name, part in _SHARES.items()}
    n = images
    if attacked:
        first = next(iter(attacked.values()))
        assert first.step is not None
        least = first.map + _LEAST_STEPS * first.step
        n = min(images, max(1, int(share["attacks"] / len(attacked) / least)))
    # Where a method takes many points, its bytes are of several images: the least is of one.
    passes = max(1, int(memory / max(1, min((cost.bytes for cost in fine.values() if cost.bytes), default=memory))))

    left, methods = share["attacks"], {}
    # The cheap ones first: what they do not need is the others'.
    order = sorted(attacked, key=lambda name: attacked[name].step or 0.0)
    for place, name in enumerate(order):
        # The first method has an attack of its own, whatever it takes.
        methods[name], used = _method_plan(
            attacked[name], left / (len(order) - place), n, epsilon, smaller, name == next(iter(attacked))
        )
        left -= used
    planned = {
        name: methods.get(name, MethodPlan()).model_copy(
            update={"batch": int(min(most_batch, n, max(1, memory // max(1, cost.bytes))))}
        )
        for name, cost in fine.items()
    }
    draws = _between(1, share["noise"] / max(n * maps * (1 if smaller is None else 2), 1e-9), _MOST_DRAWS)
    gradient = min((cost.map for cost in fine.values()), default=0.0)
    of_one = maps * (_MOST_STAGES + 2) + sanity_extra(gradient) * len(fine)
    stages = _MOST_STAGES if share["sanity"] >= of_one else 4
    checked = _between(1, share["sanity"] / max(of_one, 1e-9), min(n, _MOST_SANITY))
    # A sample of the smoothed gradient costs about what the cheapest map does.
    each = gradient * (_SAMPLES + _CHOOSE)
    certified = _between(1, share["certificate"] / max(each, 1e-9), n)
    samples = _between(_LEAST_SAMPLES, share["certificate"] / max(gradient, 1e-9) * 6 / 7, _SAMPLES)
    return Plan(
        images=n,
        passes=passes,
        draws=draws,
        sanity_images=checked,
        stages=stages,
        certified_images=certified,
        samples=samples,
        choose=max(20, samples // 6),
        methods=planned,
    )


def sanity_extra(cheapest: float) -> float:
    """Seconds of the insertion scores of one image and method: thirty passes without a derivative."""
    return 12 * cheapest


def _method_plan(
    cost: Cost, seconds: float, n: int, epsilon: float, smaller: float | None, needed: bool
) -> tuple[MethodPlan, float]:
    assert cost.step is not None
    signs = 10 if 10 * n * cost.map <= 0.1 * seconds else 1
    left = seconds - n * cost.map * signs
    steps = left / (n * cost.step)  # for an image, of all walks together
    all_ = tuple(walk for walk in _KEPT if smaller is not None or not walk[1])
    walks = all_
    restarts = 1
    if steps < _LEAST_STEPS and not needed:
        return MethodPlan(), 0.0
    while len(walks) > 1 and steps / len(walks) < _LEAST_STEPS:
        walks = walks[:-1]
    # Twenty steps of each attack before any of them sets out again.
    while walks == all_ and restarts < _MOST_RESTARTS and steps / (len(walks) + 2 * restarts) >= 20:
        restarts += 1
    again = [f"{kind}-{i}" for i in range(2, restarts + 1) for kind in ("top-k", "mass-center")]
    iterations = _between(_LEAST_STEPS, steps / (len(walks) + len(again)), _MOST_STEPS)
    plan = MethodPlan(
        attacks=(MAIN[0], *(name for name, within in walks if not within), *again),
        smaller=tuple(name for name, within in walks if within),
        iterations=iterations,
        step=_step(epsilon, iterations),
        smaller_step=_step(epsilon if smaller is None else smaller, iterations),
        restarts=restarts,
        signs=signs,
    )
    return plan, n * (cost.map * signs + cost.step * iterations * (len(walks) + len(again)))


def _step(epsilon: float, iterations: int) -> int:
    """In whole levels, the steps together two and a half times the ball's radius; never too short to cross it."""
    return max(round(2.5 * epsilon / iterations), math.ceil(2 * epsilon / iterations))


def _between(least: int, value: float, most: int) -> int:
    return max(least, min(most, math.floor(value)))
