"""How long a chapter takes: measured at the profile quick, and by what its parameters ask for beyond that."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robattr._files import write_text
from robattr.pages.chapters import Chapter, ChapterError, profile_parameters

__all__ = ["PROFILE", "TIMES", "estimate", "note_times"]

PROFILE = "quick"
"""What a run starts from where nobody says otherwise."""

TIMES = "profiles/times.json"
_LEAST = 0.2  # of a chapter's time, which reading, drawing and importing take whatever is asked for


def estimate(chapter: Chapter, values: Mapping[str, Any], root: Path) -> str:
    """A line about the time that a run will take; empty where the chapter was never measured.

    The time at quick is multiplied by each parameter of the chapter's ``cost``, as a share of what it is at quick. That
    is an order of magnitude: other parameters, networks and machines count too.

    Args:
        chapter: that will be executed.
        values: all of its parameters that are not the defaults.
        root: the project's folder, with what :func:`note_times` wrote.
    """
    path = root / TIMES
    noted = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"seconds": {}}
    seconds = noted["seconds"].get(chapter.name)
    if seconds is None:
        return ""
    defaults = {name: parameter.default for name, parameter in chapter.parameters.items()}
    quick = defaults | profile_parameters(root, PROFILE).get(chapter.name, {})
    asked = defaults | dict(values)
    factor = math.prod(_size(name, asked) / _size(name, quick) for name in chapter.cost)
    pairs = [(name, _shown(asked[name]), _shown(quick[name])) for name in chapter.cost]
    changed = ", ".join(f"{name} {now} in place of {then}" for name, now, then in pairs if now != then)
    about, then = _minutes(seconds * max(factor, _LEAST)), _minutes(seconds)
    beyond = f" with {changed}" if changed else ""
    return f"{chapter.name}: about {about}{beyond} ({then} at {PROFILE} on one core of {noted['machine']})"


def _size(name: str, values: Mapping[str, Any]) -> float:
    """How much a parameter asks for; None for images is all of the data set."""
    value = values[name]
    if value is None and "dataset" in values:
        from robattr import data  # torch comes with it, and most runs are refused or asked for without

        try:
            value = data.contents(values["dataset"]).images
        except data.DataError:  # not here yet: how many there are is not known
            return 1.0
    if isinstance(value, list):
        return max(len(value), 1)
    return max(float(value), 1e-9) if isinstance(value, (int, float)) else 1.0


def _shown(value: Any) -> str:
    if value is None:
        return "all"
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _minutes(seconds: float) -> str:
    for size, name in ((3600, "hour"), (60, "minute")):
        if seconds >= 0.95 * size:
            number = round(seconds / size)
            return f"{number} {name}{'s' * (number > 1)}"
    return f"{max(round(seconds / 10) * 10, 10)} seconds"


def note_times(executed: Path, root: Path) -> Path:
    """Write how long each chapter took; at the profile quick, one thread each, on a machine with nothing else to do.

    They have to be executed in a checkout without ``runs/``: what is stored there takes no time.

    Args:
        executed: the folder of executed chapters, ``_build/executed/quick``.
        root: the project's folder.

    Raises:
        ChapterError: there is no executed chapter, or they are of several machines.
    """
    import nbformat

    seconds, machines = {}, set()
    for path in sorted(executed.glob("*.ipynb")):
        metadata = nbformat.read(path, 4).metadata  # type: ignore[no-untyped-call]
        seconds[path.stem] = round(metadata["papermill"]["duration"])
        machines.add(metadata["robattr"]["run"]["cpu"])
    if len(machines) != 1:
        raise ChapterError(f"{executed} has chapters of {len(machines)} machines; wanted are those of one: make book")
    target = root / TIMES
    write_text(target, json.dumps({"machine": machines.pop(), "seconds": seconds}, indent=1) + "\n")
    return target
