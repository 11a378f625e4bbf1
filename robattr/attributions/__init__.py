"""Attribution methods that can be differentiated: which pixels does a logit depend on, and how would that change?

Every method is called as ``method(model, x, target, *, create_graph=False, ...)`` and returns a tensor shaped like x:
images [N, C, H, W], or signals [N, C, L], or features [N, F]; heatmaps, and the attacks on them, are for images. With
``create_graph=True`` the result is a differentiable function of x - what an attack on, or a training for, an
explanation needs. Images of a batch never influence one another, so a batch equals its single images. What is explained
is one logit an image; :class:`robattr.models.Output` reads a number from models that return something else.

Methods that average over points keep memory bounded: no pass holds more than ``max_batch`` images, and with
``create_graph=True`` what does not fit is computed again in the backward pass.
"""

from __future__ import annotations

from robattr._rows import parts_of as parts_of
from robattr.attributions.gradients import gradient, input_x_gradient, integrated_gradients, smoothgrad
from robattr.attributions.maps import heatmap
from robattr.attributions.protocol import (
    Attribution,
    Normalization as Normalization,
    Target as Target,
    check_evaluation as check_evaluation,
    check_target as check_target,
    differentiates as differentiates,
    frozen as frozen,
    target_logits as target_logits,
)
from robattr.attributions.rules import deep_taylor, guided_backpropagation, lrp
from robattr.attributions.secants import deeplift

__all__ = [
    "METHODS",
    "Attribution",
    "deep_taylor",
    "deeplift",
    "gradient",
    "guided_backpropagation",
    "heatmap",
    "input_x_gradient",
    "integrated_gradients",
    "lrp",
    "smoothgrad",
]

METHODS: dict[str, Attribution] = {
    "gradient": gradient,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": smoothgrad,
    "guided_backpropagation": guided_backpropagation,
    "deeplift": deeplift,
    "lrp": lrp,
    "deep_taylor": deep_taylor,
}
"""Every method by name, for parameters that are plain literals."""
