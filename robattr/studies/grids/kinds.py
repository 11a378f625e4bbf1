"""What a kind of study is: a measurement of a network, with a configuration, units and a name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from robattr.studies.runs import code_digest

__all__ = ["KINDS", "Kind", "Measured", "Total", "Values", "check_sizes", "kind_named"]

KINDS = ("alignment", "certification", "conventions", "fragility", "importance")
"""Modules of :mod:`robattr.studies` that hold a ``KIND``."""

Values = dict[str, NDArray[np.float64]]
"""One array a quantity, an entry an image."""


@dataclass(frozen=True)
class Total:
    """A mean over more images than are kept one by one.

    Attributes:
        value: the mean.
        n: number of images.
    """

    value: float
    n: int


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured on a network.

    Attributes:
        dimension: number of values of an image.
        values: those of a :class:`Record`.
        dataset: provenance of the images, with their checksum.
        totals: those of a :class:`Record`.
        tensors: images and the like by name; a run in ``runs/`` keeps them, a record does not.
    """

    dimension: int
    values: Values
    dataset: dict[str, Any]
    totals: dict[str, Total] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of measurement.

    Attributes:
        name: of the experiment, of its module and of the key of a grid that configures it.
        config: of the measurement; with a field ``dataset``.
        measure: ``measure(model, config, training=, data_root=, device=, folder=, progress=)``; the training is that of
            the network, None for published weights; in the folder it may keep what a stopped run goes on from.
        describe: ``describe(quantity, config)``: the fields ``unit`` and, where there is one, ``epsilon`` and ``norm``.
        digits: significant digits that a record keeps.
        check: ``check(config, shape)``: whether it can be measured on images of (channels, height, width), before a
            network is trained for it; raises a ValueError.
        keeps_weights: the weights of a training are rounded to float16, measured like that, and kept beside the record:
            so everybody can measure them again.
        whole_split: some of it is measured on every image of the split, whatever number the configuration has.
    """

    name: str
    config: type[BaseModel]
    measure: Callable[..., Measured]
    describe: Callable[[str, Any], dict[str, Any]]
    check: Callable[[Any, tuple[int, int, int]], None]
    digits: int = 5
    keeps_weights: bool = False
    whole_split: bool = False

    @property
    def code(self) -> str:
        """A digest of what the code does that measures."""
        return code_digest(self.measure)


def check_sizes(
    shape: tuple[int, int, int], *, frame: int | None = None, fractions: int | None = None, k: Sequence[int] = ()
) -> None:
    """Whether what a measurement counts in pixels is there in maps of images of a shape.

    Args:
        shape: (channels, height, width) of the images.
        frame: width of a frame, which leaves an inside.
        fractions: into which the pixels are divided.
        k: numbers of top pixels.

    Raises:
        ValueError: the first that is not.
    """
    _, height, width = shape
    widest, pixels = (min(height, width) - 1) // 2, height * width
    if frame is not None and frame > widest:
        raise ValueError(f"frame is {frame}; accepted is from 1 to {widest} pixels in a map of {height} x {width}")
    if fractions is not None and fractions > pixels:
        raise ValueError(f"fractions is {fractions}; accepted is from 1 to {pixels}, the pixels of {height} x {width}")
    for each in k:
        if each > pixels:
            raise ValueError(f"k is {each}; accepted is from 1 to {pixels}, the pixels of {height} x {width}")


def kind_named(name: str) -> Kind:
    """A kind by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in KINDS:
        raise ValueError(f"no kind {name!r} of study (there are {', '.join(KINDS)})")
    # By name, because every kind imports this module.
    kind: Kind = importlib.import_module(f"robattr.studies.{name}").KIND
    return kind
