"""Second derivatives where PyTorch has none, and cheap ones of convolutions, norms, Softplus and max-pooling.

Training or attacking an explanation differentiates a gradient. PyTorch's double backward of a convolution forms the
mixed derivative with respect to the weight group by group, whether or not anybody asked for it (9,000 small
convolutions in an attack step on EfficientNet-Lite0), and reorders memory on the way. But a convolution is linear in
its input and linear in its weight: with the three maps

    forward    A(x, w)        transpose    B(d, w)        weight gradient    C(x, d)

each one's derivatives are the other two, to any order. Softplus gives its slope as a second output: the backward pass
is then a product with what was kept, and the double backward pass needs no exponential. Max-pooling picks pixels:
scattering and picking are each other's derivative, and neither changes the layout of memory. PyTorch's batch
normalization has no third derivative, which the gradient of a Hessian's norm needs; here it is one product and one sum
with numbers a channel, so that its derivatives of any order take few passes over the values and keep few of them.

The fused kernels of attention have a first derivative only; PyTorch's own composition of matrix products and a softmax
computes the same and has all. The derivative of a hard sigmoid is a constant almost everywhere, and is given as one.
A vector of zeros, as a window of attention beyond the image's edge has them, is normalized to zeros; PyTorch's second
derivative of its length is no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["SecondOrder"]

_Pair = Sequence[int]


class SecondOrder(TorchFunctionMode):
    """Within this context what requires a gradient has a second one, too.

    ``conv2d``, ``batch_norm``, ``softplus``, ``max_pool2d``, ``hardsigmoid`` and ``normalize`` are this module's,
    attention is composed of matrix products, and recurrent layers are not cuDNN's. Values and derivatives stay what
    they are. Graphs made within one mode belong together, see :meth:`inputs_only`.

    Args:
        training: backward passes outside of :meth:`inputs_only` are for parameters: a convolution of the image itself
            then forms no gradient for it.
    """

    def __init__(self, training: bool = False) -> None:
        super().__init__()
        self._switch = _Switch(training)

    @contextmanager
    def inputs_only(self) -> Iterator[None]:
        """Backward passes run in here skip the gradients of weights: for a gradient with respect to images.

        An autograd.Function is not told which gradients are asked for. Graphs created in here have all of them again
        when they are differentiated outside.
        """
        self._switch.inside = True
        try:
            yield
        finally:
            self._switch.inside = False

    def __enter__(self) -> SecondOrder:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return _conv2d(self._switch, *args, **kwargs)
        if func is F.softplus:
            return _softplus(*args, **kwargs)
        if func is F.max_pool2d:
            return _max_pool2d(*args, **kwargs)
        if func is F.hardsigmoid:
            return _hardsigmoid(*args, **kwargs)
        if func is F.normalize:
            return _normalize(*args, **kwargs)
        if func in _ATTENTION:
            if not torch.is_grad_enabled():
                return func(*args, **kwargs)
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        if func in _RECURRENT:
            with torch.backends.cudnn.flags(enabled=False):
                return func(*args, **kwargs)
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


# A function that calls another one hides it: nn.MultiheadAttention, and the attention in it.
_ATTENTION = frozenset({F.scaled_dot_product_attention, F.multi_head_attention_forward})
_RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})


class _Switch:
    """Which gradients backward passes form; an object, because CUDA's run in threads of their own."""

    def __init__(self, training: bool) -> None:
        self.training = training
        self.inside = False

    @property
    def weights(self) -> bool:
        return not self.inside

    @property
    def images(self) -> bool:
        return self.inside or not self.training


def _pair(value: int | _Pair) -> _Pair:
    return (value, value) if isinstance(value, int) else value


# --------------------------------------------------------------------------------------------------------------------
# Convolution


def _conv2d(
    switch: _Switch,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | _Pair = 1,
    padding: str | int | _Pair = 0,
    dilation: int | _Pair = 1,
    groups: int = 1,
) -> Tensor:
    # A single image without a batch, and padding by name, are left to PyTorch.
    if not input.requires_grad or input.ndim != 4 or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    kind = input.device.type
    if torch.is_autocast_enabled(kind):
        # Autocast does not see the operator of the backward passes: cast here, where it is differentiated.
        dtype = torch.get_autocast_dtype(kind)
        input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
    image = switch.training and _is_image(input)
    out: Tensor = _Forward.apply(_laid(input, weight), weight, bias, geometry, switch, image)
    return out


def _is_image(x: Tensor) -> bool:
    """Whether no parameter is behind x: it is the image, shifted and scaled at most."""
    nodes = [x.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if isinstance(getattr(node, "variable", None), torch.nn.Parameter) or hasattr(node, "saved_tensors"):
            return False  # a parameter, or one of the functions of this module
        nodes += [each for each, _ in node.next_functions]
    return True


def _layout(*tensors: Tensor) -> torch.memory_format:
    """The order in memory of the first tensor that is not in both, as kernels of one pixel or one channel are."""
    for x in tensors:
        plain, last = x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last)
        if plain != last:
            return torch.channels_last if last else torch.contiguous_format
    return torch.contiguous_format


def _laid(x: Tensor, weight: Tensor) -> Tensor:
    """x in the layer's order in memory: made outside of the functions below, where a copy still has a graph."""
    return x.contiguous(memory_format=_layout(weight, x))


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Any, ...], bias: bool, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation, groups = geometry
    sizes = [len(weight)] if bias else None
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, sizes, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return out


class _Forward(torch.autograd.Function):
    """A(x, w) + b."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[Any, ...],
        switch: _Switch,
        image: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.switch, ctx.image = geometry, switch, image
        return torch.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
        grad = _laid(grad, weight)
        g = w = b = None
        if need_x and (ctx.switch.images or not ctx.image):
            g = _Transpose.apply(grad, weight, ctx.geometry, x.shape, ctx.switch)
        if (need_weight or need_bias) and ctx.switch.weights:
            w, b = _WeightGradient.apply(x, grad, ctx.geometry, weight, need_bias, ctx.switch)
        return g, w if need_weight else None, b if need_bias else None, None, None, None


class _Transpose(torch.autograd.Function):
    """B(d, w): what the gradient of the output is to the input."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, weight: Tensor, geometry: tuple[Any, ...], shape: torch.Size, switch: _Switch
    ) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.geometry, ctx.switch = geometry, switch
        # The operator reads only the shape of its input when the weight's gradient is not asked for.
        like = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=_layout(weight, grad))
        return _backward(grad, like, weight, geometry, False, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad, weight = ctx.saved_tensors
        need_grad, need_weight, *_ = ctx.needs_input_grad
        u = _laid(u, weight)
        g = w = None
        if need_grad:
            g = _Forward.apply(u, weight, None, ctx.geometry, ctx.switch, False)
        if need_weight and ctx.switch.weights:
            w, _b = _WeightGradient.apply(u, grad, ctx.geometry, weight, False, ctx.switch)
        return g, w, None, None, None


class _WeightGradient(torch.autograd.Function):
    """C(x, d), and the sum of d for the bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, grad: Tensor, geometry: tuple[Any, ...], weight: Tensor, bias: bool, switch: _Switch
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, grad)
        ctx.geometry, ctx.switch = geometry, switch
        _, w, b = _backward(grad, x, weight, geometry, bias, [False, True, bias])
        return w, b if bias else None

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, vb: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        x, grad = ctx.saved_tensors
        need_x, need_grad, *_ = ctx.needs_input_grad
        g = d = None
        if v is not None and need_x:
            g = _Transpose.apply(_laid(grad, v), v, ctx.geometry, x.shape, ctx.switch)
        if v is not None and need_grad:
            d = _Forward.apply(_laid(x, v), v, None, ctx.geometry, ctx.switch, False)
        if vb is not None and need_grad:
            spread = vb.view(1, -1, 1, 1).expand_as(grad)
            d = spread if d is None else d + spread
        return g, d, None, None, None, None


# --------------------------------------------------------------------------------------------------------------------
# Softplus


def _softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    # Beyond a small threshold the slope is 1 and no sigmoid; beyond the usual 20 the two differ by 2e-9.
    if not input.requires_grad or threshold < 20:
        return F.softplus(input, beta, threshold)
    y: Tensor = _Softplus.apply(input, beta, threshold)[0]
    return y.view_as(y)  # a node of its own in the graph, with one output: zennit's rules hook there


class _Softplus(torch.autograd.Function):
    """Softplus and its slope, the sigmoid; the slope of that is beta s (1 - s)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float, threshold: float) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        slope = torch.mul(x, beta).sigmoid_()
        ctx.save_for_backward(slope)
        ctx.beta = beta
        return F.softplus(x, beta, threshold), slope

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gs: Tensor | None) -> tuple[Tensor | None, None, None]:
        (slope,) = ctx.saved_tensors
        if gs is None:
            return None if gy is None else gy * slope, None, None
        curved = torch.ops.aten.sigmoid_backward(gs, slope)  # gs s (1 - s)
        if gy is None:
            return curved * ctx.beta, None, None
        if torch.is_grad_enabled():
            return torch.addcmul(curved * ctx.beta, gy, slope), None, None
        return curved.mul_(ctx.beta).addcmul_(gy, slope), None, None


# --------------------------------------------------------------------------------------------------------------------
# Max-pooling


def _max_pool2d(
    input: Tensor,
    kernel_size: int | _Pair,
    stride: int | _Pair | None = None,
    padding: int | _Pair = 0,
    dilation: int | _Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if not input.requires_grad or input.ndim != 4 or return_indices:
        plain: Any = F.max_pool2d
        return plain(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    kernel = _pair(kernel_size)
    windows = (kernel, kernel if stride is None else _pair(stride), _pair(padding), _pair(dilation), ceil_mode)
    return _Pool.apply(input, windows)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: tuple[Any, ...]) -> Tensor:
        y: Tensor
        y, index = torch.ops.aten.max_pool2d_with_indices(x, *windows)
        ctx.save_for_backward(index)
        ctx.shape, ctx.windows = x.shape, windows
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _Scatter.apply(grad, index, ctx.shape, ctx.windows), None


class _Scatter(torch.autograd.Function):
    """Each value to the place that won; windows that overlap add up."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, index: Tensor, shape: torch.Size, windows: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.windows = shape, windows
        layout = _layout(index)
        # The operator reads only the shape and the layout of its input.
        like = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
        out: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            grad.contiguous(memory_format=layout), like, *windows, index
        )
        return out

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None, None, None]:
        (index,) = ctx.saved_tensors
        return _Pick.apply(u, index, ctx.shape, ctx.windows), None, None, None


class _Pick(torch.autograd.Function):
    """The value of the place that won."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, index: Tensor, shape: torch.Size, windows: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.windows = shape, windows
        n, channels, height, width = index.shape
        if _layout(index) is torch.contiguous_format:
            return u.flatten(2).gather(2, index.flatten(2)).view(index.shape)
        # As [N, H W, C], which is how the values lie in memory.
        values, places = u.permute(0, 2, 3, 1).flatten(1, 2), index.permute(0, 2, 3, 1).flatten(1, 2)
        return values.gather(1, places).view(n, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (index,) = ctx.saved_tensors
        return _Scatter.apply(grad, index, ctx.shape, ctx.windows), None, None, None


# --------------------------------------------------------------------------------------------------------------------
# Hard sigmoid


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    if not (input.requires_grad and torch.is_grad_enabled()):
        return F.hardsigmoid(input, inplace)
    y: Tensor = _HardSigmoid.apply(input.clone() if inplace else input)
    return input.copy_(y) if inplace else y


class _HardSigmoid(torch.autograd.Function):
    """Its slope, 1/6 between -3 and 3, is a constant: only the incoming gradient has a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.hardsigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x.detach().abs() < 3, grad / 6, 0)


# --------------------------------------------------------------------------------------------------------------------
# Vectors of length 1


def _normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    # Where squares are lost that eps would not hide, and for other lengths, PyTorch's.
    small = torch.finfo(input.dtype).tiny ** 0.5 if input.is_floating_point() else 1.0
    if p != 2 or out is not None or eps < small or not (input.requires_grad and torch.is_grad_enabled()):
        return F.normalize(input, p, dim, eps, out)
    square = input.square().sum(dim, keepdim=True)
    zero = square == 0
    length = torch.where(zero, 0, torch.where(zero, 1, square).sqrt())
    return input / length.clamp_min(eps)


# --------------------------------------------------------------------------------------------------------------------
# Batch normalization


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    half = input.dtype in (torch.bfloat16, torch.float16)
    kinds = (input.dtype, torch.float32) if half else (input.dtype,)
    fits = all(
        part is None or (part.dtype in kinds and part.shape == input.shape[1:2])
        for part in (running_mean, running_var, weight, bias)
    )
    tracked = running_mean is not None and running_var is not None
    if not (input.requires_grad and input.numel() and fits and (training or tracked)):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)  # or its refusal

    # As PyTorch's: all arithmetic on half-precision values is in float32.
    x = input.float() if half else input
    shift = None if bias is None else bias.to(x.dtype)
    if not training and running_mean is not None and running_var is not None:
        scale = (running_var.to(x.dtype) + eps).rsqrt()
    else:
        every = [dim for dim in range(x.ndim) if dim != 1]
        if (n := x.numel() // x.shape[1]) == 1:
            raise ValueError(
                f"input is {list(x.shape)}; batch normalization in training takes several values a channel"
            )
        # Division and negation of [channels]: those of all values would have derivatives of all values.
        mean = x.sum(every) / n
        x = x + _over_channels(-mean, x)
        variance: Tensor = _SquareSum.apply(x, every) / n
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(variance.to(running_var.dtype) * (n / (n - 1)), momentum)
        scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(x.dtype)
    if not training and running_mean is not None:  # a constant: taken off together with the bias
        moved = -running_mean.to(x.dtype) * scale
        shift = moved if shift is None else shift + moved
    out = x * _over_channels(scale, x)
    return (out if shift is None else out.add_(_over_channels(shift, x))).to(input.dtype)


def _over_channels(values: Tensor, x: Tensor) -> Tensor:
    """A value a channel, in a shape that goes with x."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


class _SquareSum(torch.autograd.Function):
    """Of each channel. Its gradient is one product, which has all derivatives as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, every: list[int]) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().sum(every)

    @staticmethod
    def backward(ctx: Any, gs: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return x * _over_channels(2 * gs, x), None
