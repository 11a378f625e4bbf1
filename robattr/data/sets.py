"""Labeled images, checked when a set of them is made."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class DataError(ValueError):
    """A data set, a file of it, or an argument about images that cannot be used. One line, with the way out."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labeled images and where they come from. Checked when made; a `DataError` names what does not fit.

    Attributes:
        images: float32 ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``, indices into ``class_names``.
        class_names: One name per class.
        name: The name that `load` was given.
        split: The split that `load` was given.
        provenance: ``source``, ``licence``, ``prepared`` (how pixels were made from the source), ``selection`` (where
            not all images were taken) and ``sha256`` (of shape, image and label bytes; computed where absent).
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    name: str
    split: str
    provenance: Mapping[str, str]

    def __post_init__(self) -> None:
        check_images(self.images)
        if self.images.dtype != torch.float32:
            raise DataError(f"images of a set must be float32; got {self.images.dtype} (call .float())")
        check_labels(self.labels, len(self.images), len(self.class_names))
        if self.images.device != self.labels.device:
            devices = f"{self.images.device} and {self.labels.device}"
            raise DataError(f"images and labels must be on the same device; got {devices}")
        provenance = dict(self.provenance)
        if "sha256" not in provenance:
            provenance["sha256"] = _digest(self.images, self.labels)
        object.__setattr__(self, "provenance", provenance)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Tensor | Sequence[int]) -> "ImageSet":
        """The images at ``indices`` (0 to N-1), in that order, as a set of their own with its own checksum."""
        index = torch.as_tensor(indices)
        return self._select(index, f"{index.numel()} of {len(self)} by index")

    def subset(self, limit: int, seed: int = 0) -> "ImageSet":
        """``limit`` images drawn at random: what ``load(..., limit=limit, seed=seed)`` draws from the whole set.

        The first ``limit`` of a seeded permutation, in its order: a smaller draw is the beginning of a larger one.
        """
        draw = _Draw(self.name, limit, seed)
        return self._select(draw.indices(len(self)), draw.note(len(self))["selection"])

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on another device."""
        return dataclasses.replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def _select(self, index: Tensor, how: str) -> "ImageSet":
        integers = index.ndim == 1 and index.numel() > 0 and index.dtype in (torch.int32, torch.int64)
        if not integers or not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise DataError(f"indices must be a non-empty list of integers from 0 to {len(self) - 1}")
        index = index.to(self.images.device)
        provenance = {key: value for key, value in self.provenance.items() if key != "sha256"}
        provenance["selection"] = "; ".join(filter(None, [provenance.get("selection"), how]))
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index], provenance=provenance)


def check_images(x: Tensor, name: str = "images") -> None:
    """Raise a `DataError` unless ``x`` is a batch of images as models take them.

    Args:
        x: Must be ``[N, C, H, W]``, floating point, not empty, finite, in [0, 1].
        name: What to call it in the message.
    """
    if not isinstance(x, Tensor):
        raise DataError(f"{name} must be a torch.Tensor [N, C, H, W]; got {type(x).__name__}")
    if x.ndim != 4:
        hint = " (one image? add the batch with x[None])" if x.ndim == 3 else ""
        raise DataError(f"{name} must be [N, C, H, W]; got shape {list(x.shape)}{hint}")
    if x.numel() == 0:
        raise DataError(f"{name} must not be empty; got shape {list(x.shape)}")
    if not x.is_floating_point():
        hint = " (convert with x.float() / 255?)" if x.dtype == torch.uint8 else ""
        raise DataError(f"{name} must be floating point; got {x.dtype}{hint}")
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name} must be finite; got NaN or infinite values")
    if low < 0:
        raise DataError(f"{name} must be in [0, 1]; got values down to {low:.4g} (models take un-normalized images)")
    if high > 1:
        raise DataError(f"{name} must be in [0, 1]; got values up to {high:.4g} (divide by 255?)")


def check_labels(labels: Tensor, n: int, classes: int, name: str = "labels") -> None:
    """Raise a `DataError` unless ``labels`` is int64 ``[n]`` with values from 0 to ``classes - 1``.

    Args:
        labels: One class index per image.
        n: How many images there are.
        classes: How many classes there are.
        name: What to call them in the message.
    """
    if not isinstance(labels, Tensor):
        raise DataError(f"{name} must be a torch.Tensor [{n}]; got {type(labels).__name__}")
    if labels.shape != (n,):
        raise DataError(f"{name} must be [{n}], one per image; got shape {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise DataError(f"{name} must be int64; got {labels.dtype} (call .long())")
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.numel():
        raise DataError(f"{name} must be from 0 to {classes - 1}, for {classes} classes; got {int(outside[0])}")


@dataclass(frozen=True)
class _Draw:
    """Which images of the set called ``name`` to take."""

    name: str
    limit: int | None
    seed: int
    lenient: bool = False

    def indices(self, n: int) -> Tensor:
        if self.limit is None:
            return torch.arange(n)
        if not 0 <= self.seed < 2**63:
            raise DataError(f"seed must be from 0 to 2**63 - 1; got {self.seed}")
        if self.lenient and self.limit >= 1:
            return torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[: self.limit]
        if not 1 <= self.limit <= n:
            raise DataError(f"limit must be from 1 to {n}, the number of images in {self.name}; got {self.limit}")
        return torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))[: self.limit]

    def note(self, n: int) -> dict[str, str]:
        return {} if self.limit is None else {"selection": f"{self.limit} of {n}, drawn with seed {self.seed}"}


def _digest(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for tensor in (images, labels):
        digest.update(tensor.detach().cpu().flatten().numpy().data)
    return digest.hexdigest()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
