"""A network with its normalization as first layer: images in [0, 1] to logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ModelError(RuntimeError):
    """A network or its weights cannot be had; the message is one line and names the way out."""


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel, for x in [N, C, H, W]; mean and std are buffers and move with the model."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Normalization followed by a network: images [N, C, H, W] in [0, 1] to logits [N, classes].

    Attributes:
        name: what :func:`build` was asked for.
        input_size: (C, H, W) of the images that the network was made for; fully convolutional ones take others too.
        num_classes: the number of logits.
        class_names: one name a class, or empty when they are not known.
        by_name: whether classes of pictures are found among them by name; by their number otherwise. True where a
            reader gave the names: published ones are spelled in many ways, and their order is everybody's.
        code: SHA-256 of the files of code that the network is from, by name; empty for a network by name.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
        input_size: tuple[int, int, int],
        num_classes: int,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.network = network
        self.name = name
        self.input_size = input_size
        self.num_classes = num_classes
        self.class_names = tuple(class_names)
        self.by_name = False
        self.code: dict[str, str] = {}

    def check_shape(self, x: Tensor) -> None:
        """Refuse what is not a batch of images with this network's channels, with a ValueError of one line."""
        channels = self.input_size[0]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f"images have shape {tuple(x.shape)}; {self.name} takes [N, {channels}, H, W] with values in [0, 1]"
            )

    def forward(self, x: Tensor) -> Tensor:
        self.check_shape(x)
        logits: Tensor = self.network(self.normalize(x))
        return logits
