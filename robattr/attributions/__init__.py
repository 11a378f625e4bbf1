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
from robattr.attributions.attention import attention_rollout, gradient_rollout
from robattr.attributions.attnlrp import attn_lrp
from robattr.attributions.gradients import gradient, input_x_gradient, integrated_gradients, smoothgrad
from robattr.attributions.layers import (
    grad_cam,
    guided_grad_cam,
    layer_activation_x_gradient,
    layer_integrated_gradients,
)
from robattr.attributions.maps import heatmap, heatmaps
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
    "NEEDS_ATTENTION",
    "Attribution",
    "attention_rollout",
    "attn_lrp",
    "deep_taylor",
    "deeplift",
    "grad_cam",
    "gradient",
    "gradient_rollout",
    "guided_backpropagation",
    "guided_grad_cam",
    "heatmap",
    "heatmaps",
    "input_x_gradient",
    "integrated_gradients",
    "layer_activation_x_gradient",
    "layer_integrated_gradients",
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
    "attn_lrp": attn_lrp,
    "grad_cam": grad_cam,
    "guided_grad_cam": guided_grad_cam,
    "layer_activation_x_gradient": layer_activation_x_gradient,
    "layer_integrated_gradients": layer_integrated_gradients,
    "attention_rollout": attention_rollout,
    "gradient_rollout": gradient_rollout,
}
"""Every method by name, for parameters that are plain literals."""

NEEDS_ATTENTION = frozenset({"attention_rollout", "gradient_rollout"})
"""Those of the methods that are for vision transformers alone, and refuse any other network."""
