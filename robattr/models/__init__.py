"""Classifiers that take images in [0, 1], their smooth copies and their copies without batch normalization.

Every network that :func:`build` returns is a :class:`Classifier`: the per-channel normalization is its first layer, so
an epsilon is in pixel units everywhere and a gradient is one with respect to pixels.
"""

from __future__ import annotations

from robattr.models.building import available, build, known, load_images
from robattr.models.classifier import Classifier, ModelError, Normalize
from robattr.models.folding import (
    apply_folds as apply_folds,
    check_same_logits as check_same_logits,
    fold_batchnorm,
    folds_of as folds_of,
    rescale_output,
)
from robattr.models.networks import CIFAR10_MEAN as CIFAR10_MEAN, CIFAR10_STD as CIFAR10_STD, takes_input_size
from robattr.models.smooth import SoftClip, is_smooth, set_beta, softclip as softclip, softplus_surrogate

__all__ = [
    "Classifier",
    "ModelError",
    "Normalize",
    "SoftClip",
    "available",
    "build",
    "fold_batchnorm",
    "is_smooth",
    "known",
    "load_images",
    "rescale_output",
    "set_beta",
    "softplus_surrogate",
    "takes_input_size",
]
