"""Classifiers that take images in [0, 1], their smooth copies and their copies without batch normalization.

Every network that :func:`build` returns is a :class:`Classifier`: the per-channel normalization is its first layer, so
an epsilon is in pixel units everywhere and a gradient is one with respect to pixels.
"""

from __future__ import annotations

from robattr.models.building import Activation, available, build, check_name, check_pass, known
from robattr.models.classifier import Classifier, ModelError, Normalize
from robattr.models.clipping import SoftClip, softclip as softclip, softswish as softswish
from robattr.models.code import NAMED, allowed, check_allowed, code_digests, names_code, public_name
from robattr.models.folding import (
    apply_folds as apply_folds,
    check_same_logits as check_same_logits,
    fold_batchnorm,
    folds_of as folds_of,
    rescale_output,
)
from robattr.models.images import load_images
from robattr.models.networks import CIFAR10_MEAN as CIFAR10_MEAN, CIFAR10_STD as CIFAR10_STD, takes_input_size
from robattr.models.outputs import Output
from robattr.models.smooth import is_smooth, set_beta, softplus_surrogate
from robattr.models.weights import read_class_names, read_state

__all__ = [
    "NAMED",
    "Activation",
    "Classifier",
    "ModelError",
    "Normalize",
    "Output",
    "SoftClip",
    "allowed",
    "available",
    "build",
    "check_allowed",
    "check_name",
    "check_pass",
    "code_digests",
    "fold_batchnorm",
    "is_smooth",
    "known",
    "load_images",
    "names_code",
    "public_name",
    "read_class_names",
    "read_state",
    "rescale_output",
    "set_beta",
    "softplus_surrogate",
    "takes_input_size",
]
