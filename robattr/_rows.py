"""Rows of a batch: which of them share a pass, and the results of all passes as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["joined", "parts_of"]


class _Result(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


R = TypeVar("R", bound=_Result)


def parts_of(n: int, max_batch: int | None) -> Iterator[slice]:
    """The rows of each pass, at most ``max_batch`` of n."""
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}; a pass takes at least 1 image")
    size = max_batch or n
    return (slice(i, i + size) for i in range(0, n, size))


def joined(parts: Sequence[R], **along: int) -> R:
    """The results of passes, dataclasses of one kind with a row an image, as the result of all their images.

    Tensors are put side by side, along dimension 0 or the one that is named; results within results likewise. Anything
    else is the same for every pass and is that of the first.
    """

    def of(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], Tensor):
            return torch.cat(values, along.get(name, 0))
        return joined(values) if is_dataclass(values[0]) else values[0]

    return replace(parts[0], **{field.name: of(field.name) for field in fields(parts[0])})
