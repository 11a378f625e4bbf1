"""The exercises as texts: one file each, with everything but the judge."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from robattr import _yaml

__all__ = ["CHAPTERS", "Exercise", "ExerciseError", "Kind", "exercise", "exercises", "read"]

TEXTS = Path(__file__).parent / "texts"
CHAPTERS = (
    "01_attributions",
    "02_fragile",
    "03_influence",
    "04_why",
    "05_not_invariant",
    "06_small_hessian",
    "07_aligned_gradients",
    "08_certified",
    "09_under_attack",
    "ledger",
    "how_sure",
)
"""Chapters with exercises, in the order in which they are read."""
KINDS = ("pencil", "python", "experiment")
Kind = Literal["pencil", "python", "experiment"]
"""By hand; a few lines of code; code that trains or attacks a network, for a minute at most."""
_FIELDS = {"title": str, "chapter": str, "kind": str, "minutes": int, "belief": str}


class ExerciseError(ValueError):
    """An exercise is not there, or its file is not what is accepted; the message is one line."""


@dataclass(frozen=True)
class Exercise:
    """One exercise, without its judge.

    Attributes:
        id: its name, ``ex-linear``.
        title: a few words.
        chapter: the chapter that it follows, such as ``01_attributions``.
        kind: pencil, python or experiment.
        minutes: what a reader needs, about.
        belief: what many believe and the exercise is about; empty where there is no such thing.
        question: in MyST.
        hints: each says more than the one before, in MyST.
        answer: code of a right answer, from ``### BEGIN SOLUTION`` on kept from students; it sets ``answer``.
        solution: why, in MyST; kept from students.
    """

    id: str
    title: str
    chapter: str
    kind: Kind
    minutes: int
    belief: str
    question: str
    hints: tuple[str, ...]
    answer: str
    solution: str


def read(path: Path) -> Exercise:
    """The exercise of a file, which is called as it is: ``ex-linear.md``.

    Between two lines ``---`` stand title, chapter, kind, minutes and perhaps a belief, in YAML. Below are the question,
    at least one section ``## Hint``, ``## Answer`` with one block of code, and ``## Solution``.

    Raises:
        ExerciseError: it is not like that.
        OSError: it cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    fields: Any = _yaml.parse(head, path.name, line=2)
    if not text.startswith("---\n") or not isinstance(fields, dict):
        raise ExerciseError(f"{path.name}: must begin with title, chapter, kind and minutes between two lines '---'")
    fields = {"belief": "", **fields}
    for name, kind in _FIELDS.items():
        if not isinstance(fields.get(name), kind):
            raise ExerciseError(f"{path.name}: {name} is {fields.get(name)!r}; wanted is a {kind.__name__}")
    for name, known in (("chapter", CHAPTERS), ("kind", KINDS)):
        if fields[name] not in known:
            raise ExerciseError(f"{path.name}: {name} is {fields[name]!r}; there are {', '.join(known)}")
    if unknown := set(fields) - set(_FIELDS):
        raise ExerciseError(f"{path.name}: {sorted(unknown)[0]!r} means nothing; there are {', '.join(_FIELDS)}")
    question, *rest = re.split(r"^## (Hint|Answer|Solution)\n", body, flags=re.MULTILINE)
    sections = [(name, text.strip()) for name, text in zip(rest[::2], rest[1::2], strict=True)]
    hints = tuple(text for name, text in sections if name == "Hint")
    if [name for name, _ in sections] != ["Hint"] * max(1, len(hints)) + ["Answer", "Solution"]:
        raise ExerciseError(
            f"{path.name}: wanted are, in this order, '## Hint' at least once, '## Answer', '## Solution'"
        )
    code = re.fullmatch(r"```python\n(.*\n)```", sections[-2][1], re.DOTALL)
    if code is None or "### BEGIN SOLUTION\n" not in code[1] or "### END SOLUTION\n" not in code[1]:
        raise ExerciseError(
            f"{path.name}: '## Answer' must be one block of Python, with '### BEGIN SOLUTION' and '### END SOLUTION'"
        )
    return Exercise(
        id=path.stem, question=question.strip(), hints=hints, answer=code[1], solution=sections[-1][1], **fields
    )


@cache
def _all() -> dict[str, Exercise]:
    found = [read(path) for path in TEXTS.glob("ex-*.md")]
    found.sort(key=lambda each: (CHAPTERS.index(each.chapter), KINDS.index(each.kind), each.minutes, each.id))
    return {each.id: each for each in found}


def exercises(chapter: str | None = None) -> list[Exercise]:
    """All exercises, or those of one chapter, in the order of the book: by chapter, from the pencil to the experiment.

    Args:
        chapter: its name or number, such as ``01_attributions``, ``1`` or ``ledger``.

    Raises:
        ExerciseError: no such chapter has exercises.
    """
    if chapter is None:
        return list(_all().values())
    wanted = f"{int(chapter):02d}_" if chapter.isdecimal() else chapter
    name = next(
        (each for each in CHAPTERS if each == wanted or (chapter.isdecimal() and each.startswith(wanted))), None
    )
    if name is None:
        near = get_close_matches(chapter, CHAPTERS, 1)
        raise ExerciseError(
            f"no chapter {chapter!r} has exercises; " + (f"did you mean {near[0]!r}?" if near else ", ".join(CHAPTERS))
        )
    return [each for each in _all().values() if each.chapter == name]


def exercise(name: str) -> Exercise:
    """The exercise called ``name``, with or without ``ex-`` before it.

    Raises:
        ExerciseError: there is none; the message names the nearest.
    """
    known = _all()
    for each in (name, f"ex-{name}"):
        if each in known:
            return known[each]
    near = get_close_matches(name, known, 1, 0.4) or (name and get_close_matches(f"ex-{name}", known, 1, 0.4))
    raise ExerciseError(
        f"no exercise {name!r}; " + (f"did you mean {near[0]!r}?" if near else "'robattr exercises' lists them")
    )
