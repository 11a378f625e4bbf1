"""What is audited, what an audit has found, and the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_validator
from safetensors.torch import load_file
from torch import Tensor

from robattr._files import altered, note_digests, write_tensors, write_text
from robattr.attributions import METHODS
from robattr.studies import records
from robattr.studies.records import Measurement

__all__ = ["DEFAULT_METHODS", "Audit", "Audited", "Case", "load", "save"]

DEFAULT_METHODS = ("gradient", "integrated_gradients", "deeplift", "lrp")
"""What is audited where nobody asks for others: what people use most, from the cheapest class to the dearest."""
_IMAGES_PER_MINUTE = 2
_CASES_FILE = "parts/cases.safetensors"
_PICTURES = ("image", "attacked", "before", "after")


class Audit(BaseModel):
    """What is audited: nothing here has to be tuned.

    Raises:
        pydantic.ValidationError: a method is unknown or named twice, or the minutes are not > 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = Field(DEFAULT_METHODS, min_length=1)
    minutes: float = Field(10.0, gt=0, allow_inf_nan=False)
    epsilon: float = Field(8.0, ge=1, le=255, multiple_of=1, description="in 1/255")
    seed: int = Field(0, ge=0)

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for i, name in enumerate(methods):
            if name not in METHODS:
                raise ValueError(f"methods has {name!r}; accepted are {', '.join(METHODS)}")
            if name in methods[:i]:
                raise ValueError(f"methods has {name!r} twice; name it once")
        return methods

    @computed_field(description="in 1/255")  # type: ignore[prop-decorator]
    @property
    def smaller(self) -> float | None:
        """A quarter of epsilon in whole levels, at which attacks are run too; None where that is not smaller.

        Where everything breaks at epsilon, this still tells maps apart.
        """
        quarter = float(max(1, round(self.epsilon / 4)))
        return quarter if quarter < self.epsilon else None

    @property
    def most_images(self) -> int:
        """Images that are drawn, at most: 20 for ten minutes, and never fewer than 8."""
        return max(8, round(_IMAGES_PER_MINUTE * self.minutes))


@dataclass(frozen=True, eq=False)
class Case:
    """An image whose map changed much.

    Attributes:
        method: of the map.
        attack: that found it.
        index: of the image in the draw.
        image, attacked: [C, H, W] in [0, 1], before and after.
        before, after: the maps [H, W], with sum 1.
    """

    method: str
    attack: str
    index: int
    image: Tensor
    attacked: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class Audited:
    """What an audit has found; :func:`load` reads it back.

    Attributes:
        folder: where it is: ``audit.jsonl``, ``audit.json`` and the attacked images.
        lines: every number.
        description: what was audited, what was left out and why; words, and counts that are settings.
        cases: the worst ones.
    """

    folder: Path
    lines: tuple[Measurement, ...]
    description: dict[str, Any]
    cases: tuple[Case, ...]

    def __getitem__(self, quantity: str) -> Measurement:
        """The line of a quantity."""
        return self._by_name[quantity]

    def get(self, quantity: str) -> Measurement | None:
        """The line of a quantity, or None."""
        return self._by_name.get(quantity)

    @cached_property
    def _by_name(self) -> dict[str, Measurement]:
        return {line.quantity: line for line in self.lines}


def save(folder: Path, lines: Sequence[Measurement], description: dict[str, Any], cases: Sequence[Case]) -> None:
    tensors: dict[str, Tensor] = {}
    for i, case in enumerate(cases):
        for key in _PICTURES:
            tensors[f"{i}/{key}"] = getattr(case, key).clone().contiguous()  # an image may be in two
    write_tensors(folder / _CASES_FILE, tensors)
    if lines:
        records.write(folder / "audit.jsonl", lines)
    else:
        write_text(folder / "audit.jsonl", "")
    records.write_description(folder / "audit.json", description)
    images = [name for files in description["files"].values() for name in files]
    note_digests(folder, (_CASES_FILE, "audit.jsonl", "audit.json", *images))


def load(folder: Path | str) -> Audited:
    """Read what an audit has left in its folder.

    Raises:
        ValueError: there is none, or a file of it was altered.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{folder} holds no audit ({error}); `robattr audit -o {folder}` makes one") from None
    except ValueError:
        description = {}
    if names := altered(folder):
        raise ValueError(
            f"{folder / names[0]} is not what the audit wrote; the same `robattr audit -o {folder}` makes it again"
        )
    tensors = load_file(folder / _CASES_FILE)
    lines = records.read(folder / "audit.jsonl")
    cases = [
        Case(each["method"], each["attack"], each["index"], *(tensors[f"{i}/{key}"] for key in _PICTURES))
        for i, each in enumerate(description["cases"])
    ]
    return Audited(folder, tuple(lines), description, tuple(cases))
