"""The small networks of the papers and of the tests, for the size of their images."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from robattr.models.classifier import Classifier

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training set, per pixel


Shape = tuple[int, int, int]


def _lenet(classes: int, shape: Shape, width: int = 32, hidden: int = 256) -> nn.Module:
    """The LeNet of Joo et al. 2023: convolutions 32-32-pool-64-64-pool, then a hidden layer of 256.

    Pooling comes before the activation: the activation is monotone, so it is the same function, at a quarter of the
    activation's cost. A ``width`` other than 32 is another network of the same form.
    """
    channels, rows, columns = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, width, 3, padding=1),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(width, width, 3, padding=1),
            pool1=nn.MaxPool2d(2),
            act2=nn.ReLU(),
            conv3=nn.Conv2d(width, 2 * width, 3, padding=1),
            act3=nn.ReLU(),
            conv4=nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            pool2=nn.MaxPool2d(2),
            act4=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(2 * width * (rows // 4) * (columns // 4), hidden),
            act5=nn.ReLU(),
            fc2=nn.Linear(hidden, classes),
        )
    )


def _lenet_narrow(classes: int, shape: Shape) -> nn.Module:
    """Half of LeNet's filters, a quarter of its hidden units, 148,442 weights and not 1,116,970: pages can carry it."""
    return _lenet(classes, shape, width=16, hidden=64)


def _resnet18(classes: int, shape: Shape) -> nn.Module:
    """ResNet-18 with the 3x3 stem and no max-pooling that 32-pixel images want."""
    from torchvision.models import resnet18

    network: nn.Module = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def _digits_cnn(classes: int, shape: Shape) -> nn.Module:
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, 3, padding=1),
            act1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, padding=1, stride=2),
            act2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(32 * -(-height // 2) * -(-width // 2), classes),
        )
    )


def _digits_mlp(classes: int, shape: Shape) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(), fc1=nn.Linear(math.prod(shape), 64), act1=nn.ReLU(), fc2=nn.Linear(64, classes)
        )
    )


def _linear(classes: int, shape: Shape) -> nn.Module:
    """Multinomial logistic regression: its gradient is the same at every image."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(math.prod(shape), classes)))


def _mlp(classes: int, shape: Shape) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(math.prod(shape), 64),
            act1=nn.ReLU(),
            fc2=nn.Linear(64, 64),
            act2=nn.ReLU(),
            fc3=nn.Linear(64, classes),
        )
    )


@dataclass(frozen=True)
class _Own:
    make: Callable[[int, Shape], nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: Shape
    multiple: int = 1  # of which height and width are


_OWN: dict[str, _Own] = {
    "lenet": _Own(_lenet, CIFAR10_MEAN, CIFAR10_STD, (3, 32, 32), multiple=4),
    "lenet-narrow": _Own(_lenet_narrow, CIFAR10_MEAN, CIFAR10_STD, (3, 32, 32), multiple=4),
    "resnet18-cifar": _Own(_resnet18, CIFAR10_MEAN, CIFAR10_STD, (3, 32, 32)),
    "digits-cnn": _Own(_digits_cnn, (0.0,), (1.0,), (1, 8, 8)),
    "digits-mlp": _Own(_digits_mlp, (0.0,), (1.0,), (1, 8, 8)),
    "linear": _Own(_linear, (0.0,), (1.0,), (1, 8, 8)),
    "mlp": _Own(_mlp, (0.0,), (1.0,), (1, 8, 8)),
}


def _own(name: str) -> _Own | None:
    return _OWN.get(name)


def takes_input_size(name: str) -> bool:
    """Whether a network is made for the size of its images: those of ours are, published ones have theirs."""
    return _own(name) is not None


def _make_own(name: str, own: _Own, classes: int, shape: Shape) -> Classifier:
    if min(shape) < 1 or any(side % own.multiple for side in shape[1:]):
        multiples = f" with sides that are multiples of {own.multiple}" if own.multiple > 1 else ""
        raise ValueError(f"input_size is {shape}; {name} takes (channels, height, width){multiples}")
    # The statistics of color images say nothing about images with other channels.
    same = shape[0] == own.input_size[0]
    mean, std = (own.mean, own.std) if same else ((0.0,) * shape[0], (1.0,) * shape[0])
    return Classifier(own.make(classes, shape), mean=mean, std=std, name=name, input_size=shape, num_classes=classes)
