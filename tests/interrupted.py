"""Trainings that somebody stops: an objective that raises at a step."""

from __future__ import annotations

from torch import Tensor

from robattr.regularizers import Losses, Objective


class Stop(Exception):
    pass


class StopsAt(Objective):
    """Put before an objective: raises at the step ``at``, counted from 1."""

    at = 0
    steps = 0

    def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
        self.steps += 1
        if self.steps == self.at:
            raise Stop
        return super().forward(x, y, noise)
