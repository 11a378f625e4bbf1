"""Perturb an image so that its explanation changes and its prediction does not.

One loop, :func:`iterative_attack`, climbs any objective of any attribution method's heatmap (Ghorbani, Abid & Zou
2019); :func:`random_sign` is the baseline without a gradient. Both return an :class:`AttackResult` in which a failed
attack is a row like every other. :func:`manipulate` draws a map of one's choice into the explanation (Dombrowski et al.
2019, in the form of Joo et al. 2023). :func:`cosine_attack` turns the signed attribution as far as an l2 ball allows,
with :func:`random_directions` as its baseline: what a certificate of the cosine has to stay below. :func:`ensemble` is
the worst of them all, image by image.
"""

from __future__ import annotations

from robattr.attacks.climbing import (
    Climb as Climb,
    RandomSigns as RandomSigns,
    Seen as Seen,
    check_attack as check_attack,
    climb as climb,
    linf_ball as linf_ball,
)
from robattr.attacks.direction import CosineAttackResult, cosine_attack, random_directions
from robattr.attacks.ensemble import (
    MEASURES as MEASURES,
    Harm,
    Judged,
    Search as Search,
    Worst,
    emptiest_corner as emptiest_corner,
    ensemble,
    harm_of as harm_of,
    judge,
    searches,
    worst_of,
)
from robattr.attacks.heatmaps import AttackResult, iterative_attack, random_sign
from robattr.attacks.manipulation import ManipulationResult, frame, manipulate
from robattr.attacks.objectives import MassCenter, Objective, Score as Score, Targeted, TopK

__all__ = [
    "AttackResult",
    "CosineAttackResult",
    "Harm",
    "Judged",
    "ManipulationResult",
    "MassCenter",
    "Objective",
    "Targeted",
    "TopK",
    "Worst",
    "cosine_attack",
    "ensemble",
    "frame",
    "iterative_attack",
    "judge",
    "manipulate",
    "random_directions",
    "random_sign",
    "searches",
    "worst_of",
]
