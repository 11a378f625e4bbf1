"""Weights from files: state dicts, never pickles of whole networks; published files are known by their digest."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robattr._files import file_digest
from robattr._yaml import one_line
from robattr.models.classifier import Classifier, ModelError

__all__ = ["check_published", "load_weights", "read_class_names", "read_state"]

_PICKLED = (".pt", ".pth", ".ckpt", ".bin")
_ACCEPTED = "a .safetensors file or a state dict in .pt, .pth, .ckpt or .bin"
# Under which a checkpoint has the state of its network, and what wrappers put before the names of parameters.
_WITHIN = ("state_dict", "model_state_dict", "model", "network")
_PREFIXES = ("module.", "_orig_mod.", "network.", "model.")


def check_path(path: Path | str) -> Path:
    """The path of a file of weights that may be read, as far as its name says.

    Raises:
        ValueError: another kind of file.
        ModelError: there is none.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".safetensors", *_PICKLED):
        raise ValueError(f"weights is {path}; accepted are {_ACCEPTED}, 'random' or None")
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}; give the path of {_ACCEPTED}")
    return path


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Parameters and buffers by name, from a ``.safetensors`` file or a state dict that ``torch.save`` wrote.

    The latter is read with ``weights_only=True``: nothing in it is run. Of a checkpoint the state under ``state_dict``,
    ``model_state_dict``, ``model`` or ``network`` is taken.

    Raises:
        ValueError: another kind of file.
        ModelError: there is no such file, or it holds something else, a pickle of a whole network for example.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = check_path(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is no whole .safetensors file: {one_line(error)}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what unpickling raises depends on the first byte that is wrong
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise ModelError(
                f"{path} holds more than tensors: a pickled network, perhaps, which runs code when it is read; save "
                "model.state_dict() instead"
            ) from None
        raise ModelError(f"{path} cannot be read as a state dict: {one_line(error)}") from None
    for _ in range(2):  # Lightning and others have a state dict in a mapping, some in two
        within = [key for key in _WITHIN if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
        if within:
            content = content[within[0]]
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise ModelError(f"{path} holds a {type(content).__name__} without tensors; save model.state_dict()")
    return state


def load_weights(model: Classifier, path: Path | str, state: Mapping[str, Tensor]) -> None:
    """Put a state into a classifier, or into the network within: whichever has these names.

    ``module.``, ``_orig_mod.``, ``network.`` and ``model.`` before all names are taken away where that makes them fit.
    A state with a normalization of its own (one of ours was saved) brings it along.

    Args:
        model: changed in place.
        path: of the state, for messages.
        state: see :func:`read_state`.

    Raises:
        ModelError: names are missing or unknown, or a shape is another; the first of each are named.
    """
    target, wanted, found = _fitted(model, state)
    # Where a tensor has two names, a file may have it by one of them.
    there = {value.data_ptr() for name, value in wanted.items() if name in found and value.numel()}
    missing = [name for name, value in wanted.items() if name not in found and value.data_ptr() not in there]
    said = []
    if missing := [name for name in missing if not name.endswith("num_batches_tracked")]:
        said.append(f"it lacks {_first(missing)}")
    if unknown := [name for name in found if name not in wanted]:
        said.append(f"it has {_first(unknown)}, which the network has not")
    if shapes := _reshaped(wanted, found):
        here, there_ = list(found[shapes[0]].shape), list(wanted[shapes[0]].shape)
        more = f", and {len(shapes) - 1} more differ" if shapes[1:] else ""
        said.append(f"{shapes[0]} is {here} in the file and {there_} in the network{more}")
    if said:
        raise ModelError(f"{path} does not hold the weights of {model.name}: {'; '.join(said)}")
    target.load_state_dict(found, strict=False)


def classes_in(model: Classifier, state: Mapping[str, Tensor]) -> int | None:
    """How many classes a state is for, where it is one of this network with another number of classes.

    That is so where all tensors of another shape have as first dimension the network's number of classes here and one
    number there, and are alike in the others. None where nothing differs, or something else does.
    """
    _, wanted, found = _fitted(model, state)
    pairs = [(tuple(found[name].shape), tuple(wanted[name].shape)) for name in _reshaped(wanted, found)]
    numbers = {there[0] for there, here in pairs if there and here and here[0] == model.num_classes}
    if len(numbers) != 1 or any(there[1:] != here[1:] or len(there) < 1 for there, here in pairs):
        return None
    number = numbers.pop()
    return number if all(there[0] == number and here[0] == model.num_classes for there, here in pairs) else None


def _reshaped(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    return [name for name in wanted if name in found and found[name].shape != wanted[name].shape]


def _fitted(
    model: Classifier, state: Mapping[str, Tensor]
) -> tuple[nn.Module, Mapping[str, Tensor], dict[str, Tensor]]:
    """Whose state it is, that module's own, and the one of the file by its names."""
    whole, within = model.state_dict(), model.network.state_dict()
    found = _stripped(dict(state), whole)
    ours = any(name.startswith("network.") for name in found) and "normalize.mean" in found
    if ours and "normalize.mean" not in within:
        return model, whole, found
    return model.network, within, _stripped(dict(state), within)


def _stripped(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state whose names fit best: without the prefix of a wrapper before all of them, where it has one."""
    best = state
    while True:
        prefix = next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), None)
        if prefix is None:
            return best
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        if len(state.keys() & wanted.keys()) > len(best.keys() & wanted.keys()):
            best = state


def _first(names: Sequence[str], most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def read_class_names(names: Path | str | Sequence[str]) -> tuple[str, ...]:
    """Names of classes in the order of the logits.

    Args:
        names: the names, or a file of them: text with one a line, or JSON (``.json``) with a list, or a mapping from
            number to name or from name to number, as torchvision's ``class_to_idx`` is.

    Raises:
        ModelError: there is no such file, it is something else, or a name is there twice.
    """
    where = "class_names"
    if isinstance(names, (str, Path)):
        path = Path(names).expanduser()
        where = str(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
            content = json.loads(text) if path.suffix == ".json" else [x.strip() for x in text.splitlines()]
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"class_names is {path}, which cannot be read: {one_line(error)}") from None
        if path.suffix != ".json":
            while content and not content[-1]:
                content.pop()
        names = _listed(content, where)
    found = tuple(names)
    if not found or not all(isinstance(name, str) and name for name in found):
        raise ModelError(f"{where} must hold a name for each class; got {one_line(repr(list(found)), 80)}")
    if twice := [name for name, n in Counter(found).items() if n > 1]:
        raise ModelError(f"{where} has {twice[0]!r} twice; each class needs a name of its own")
    return found


def _listed(content: Any, where: str) -> list[Any]:
    if isinstance(content, list):
        return content
    pairs = list(content.items()) if isinstance(content, dict) else []
    if pairs and all(isinstance(v, int) for _, v in pairs):
        pairs = [(v, k) for k, v in pairs]
    try:
        numbered = {int(k): v for k, v in pairs}
    except ValueError:
        numbered = {}
    if not pairs or sorted(numbered) != list(range(len(pairs))):
        raise ModelError(f"{where} must hold a list of names, or one name for each of the numbers 0, 1, ...")
    return [numbered[i] for i in range(len(numbered))]


def published_digest(name: str) -> str | None:
    """The beginning of the SHA-256 with which a published file's name ends, None where there is none."""
    match = re.search(r"-([0-9a-f]{8,})\.[^.]+$", name)
    return match[1] if match else None


def check_published(path: Path, prefix: str | None = None) -> None:
    """Whether a file of published weights has the contents that its name, or its place, promises.

    Args:
        path: a file whose name ends with the beginning of its SHA-256, as torchvision's do (``resnet50-11ad3fa6.pth``).
        prefix: the beginning of the SHA-256, where the name does not say it.

    Raises:
        ModelError: the contents have another digest, or none is known.
    """
    prefix = published_digest(path.name) if prefix is None else prefix
    if prefix is None or not re.fullmatch(r"[0-9a-f]{8,64}", prefix):
        raise ModelError(f"{path}: its SHA-256 is not published; give the file as weights=, if you trust it")
    if not file_digest(path).startswith(prefix):
        raise ModelError(
            f"{path} is not the published file (its SHA-256 does not begin with {prefix}); delete it, and it is "
            "downloaded again"
        )
