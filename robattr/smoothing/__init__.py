"""Smoothed attributions, and how far a perturbation of the image can turn them: a bound that is proven.

The map ``h(x) = E[g(x + noise)]`` is the mean of an attribution over a neighborhood (Wang & Kong 2024 take the uniform
law on an l2 ball; Gaussian noise certifies more). When no g is longer than a bound M, the length of h(x) alone bounds
the angle between h(x) and h(x + delta) for all ``||delta||_2 <= epsilon``. Divided by its own length, every gradient is
at most 1 long: then M = 1 exactly, and the length of h(x) says how aligned the gradients around x are.

- :class:`Ball` and :class:`Gaussian` are the noise and what it certifies.
- :func:`smooth` takes the mean over any number of samples in bounded memory; :func:`smoothed` is the same as an
  attribution method, for attacks.
- :func:`certify` turns samples into certificates with a stated probability of failure, or abstains.
- :func:`worst_field`, :func:`worst_field_gaussian` and :func:`worst_field_spectral` are the adversaries that attain the
  certificates.

A second number about the noisy maps bounds the angle much further where images have many values, and needs no bound on
g: the *spread*, the largest variance of g along one direction (:func:`certified_cosine_spectral`). With it
:func:`certify_map` certifies what attacks on explanations aim at: the mass, center and top pixels of a heatmap. Beside
it :func:`certify_votes` has the certificates of Levine et al. 2019 and Anani et al. 2025, of votes for single pixels.
"""

from __future__ import annotations

from robattr.smoothing.adversaries import Field, worst_field, worst_field_gaussian, worst_field_spectral
from robattr.smoothing.certificates import (
    Method as Method,
    certified_cosine,
    certified_cosine_gaussian,
    mean_lower_bound,
    mean_lower_bound_of_moments,
    overlap,
    quoted_cosine,
    sampling_error,
)
from robattr.smoothing.certifying import Certificate, certify
from robattr.smoothing.eigenvalue import Eigenvalue, Maps, largest_eigenvalue
from robattr.smoothing.functionals import (
    certified_displacement,
    certified_intersection,
    certified_mean,
    certified_mean_of_values,
)
from robattr.smoothing.heatmaps import HeatmapCertificate, certified_pixels, certify_map, map_bounds, map_split
from robattr.smoothing.inverse import max_epsilon, min_radius
from robattr.smoothing.noise import Ball, Gaussian, Noise, sample_ball
from robattr.smoothing.sampling import Smoothed, smooth, smoothed
from robattr.smoothing.spectral import (
    certified_cosine_spectral,
    max_shift_spectral,
    shifted_spread,
    spread_upper_bound,
)
from robattr.smoothing.votes import VoteCertificate, certified_overlap, certified_votes, certify_votes, vote_bounds

__all__ = [
    "Ball",
    "Certificate",
    "Eigenvalue",
    "Field",
    "Gaussian",
    "HeatmapCertificate",
    "Maps",
    "Noise",
    "Smoothed",
    "VoteCertificate",
    "certified_cosine",
    "certified_cosine_gaussian",
    "certified_cosine_spectral",
    "certified_displacement",
    "certified_intersection",
    "certified_mean",
    "certified_mean_of_values",
    "certified_overlap",
    "certified_pixels",
    "certified_votes",
    "certify",
    "certify_map",
    "certify_votes",
    "largest_eigenvalue",
    "map_bounds",
    "map_split",
    "max_epsilon",
    "max_shift_spectral",
    "mean_lower_bound",
    "mean_lower_bound_of_moments",
    "min_radius",
    "overlap",
    "quoted_cosine",
    "sample_ball",
    "sampling_error",
    "shifted_spread",
    "smooth",
    "smoothed",
    "spread_upper_bound",
    "vote_bounds",
    "worst_field",
    "worst_field_gaussian",
    "worst_field_spectral",
]
