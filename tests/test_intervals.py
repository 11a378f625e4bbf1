"""Intervals that cover: over images, and over runs and images."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from robattr.studies.intervals import interval


def test_intervals_cover_at_their_level() -> None:
    """Coverage of the 95% interval of the mean for 18 skewed values: 500 draws, within 92 to 98%."""
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(500):
        found = interval(rng.beta(2, 3, 18), seed=draw)
        covered += found.low <= 0.4 <= found.high
    assert 0.92 <= covered / 500 <= 0.98


def test_interval_of_equal_values_and_refusals() -> None:
    assert dataclasses.astuple(interval([0.25, 0.25])) == (0.25, 0.25, 0.25, 2)
    assert interval([1.0]).n == 1
    one, two = interval([0.0, 1.0, 3.0], seed=1), interval([0.0, 1.0, 3.0], seed=1)
    assert one == two
    assert math.isclose(one.mean, 4 / 3)
    for values in ([], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="at least one finite number"):
            interval(values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([1.0, 2.0], level=95)
