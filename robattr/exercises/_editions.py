"""What is made of the exercises: pages of the book, text for a terminal, notebooks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import nbformat

from robattr._text import words
from robattr.exercises._answers import JUDGES
from robattr.exercises._texts import Exercise, ExerciseError

__all__ = ["Edition", "Passage", "notebook", "page", "plain"]

Edition = Literal["student", "teacher", "nbgrader"]
"""Student: questions, hints and gaps. Teacher: with answers and solutions. nbgrader: the source of an assignment, whose
answers nbgrader itself takes out."""
SETUP = """\
import torch
from robattr import attacks, attributions, data, metrics, models
from robattr.exercises import check, trained

digits = data.load("digits", limit=50)  # of the test images
"""
"""What the code of every exercise starts with."""
_GAP = "# YOUR CODE HERE\nraise NotImplementedError()"  # what nbgrader puts there, too
_SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?### END SOLUTION\n", re.MULTILINE | re.DOTALL)
_MARKS = re.compile(r"[ \t]*### (BEGIN|END) SOLUTION\n")


def page(chosen: Iterable[Exercise], title: str) -> str:
    """A page of the book: questions, and hints that are closed. Solutions are not in it.

    Args:
        chosen: the exercises.
        title: of the page.
    """
    lines = [f"# {title}", "", INTRODUCTION, ""]
    for each in chosen:
        lines += [f"(page-{each.id})=", f"## {each.title}", "", f"*{each.kind}, {_minutes(each)}*", ""]
        lines += [f"``````{{exercise}}\n:label: {each.id}\n", _question(each), "``````", ""]
        for number, hint in enumerate(each.hints, 1):
            name = "Hint" if len(each.hints) == 1 else f"Hint {number}"
            lines += [f"``````{{dropdown}} {name}", hint, "``````", ""]
        form = JUDGES[each.id].form
        lines += ["```python", f'check("{each.id}", answer)', "```", "", f"where `answer` is `{form}`.", ""]
    return "\n".join(lines)


INTRODUCTION = f"""\
Try, then ask: `check` says whether an answer is right, and a word where it is not. Numbers count to three significant
digits. Solutions are not in the book; `robattr exercises ID --solution` shows one. All code starts with

```python
{SETUP}```"""


def plain(exercise: Exercise, *, solution: bool = False) -> str:
    """An exercise for a terminal or a notebook: in Markdown, without the directives of the book.

    Args:
        exercise: one of :func:`robattr.exercises.exercises`.
        solution: show an answer and why it is right, too.
    """
    parts = [f"{exercise.title} ({exercise.id}; {exercise.kind}, {_minutes(exercise)})", _question(exercise)]
    parts += [f"Hint {number}. {hint}" for number, hint in enumerate(exercise.hints, 1)]
    start = "from robattr.exercises import check\n" if exercise.kind == "pencil" else SETUP
    parts.append(f'{start}\ncheck("{exercise.id}", answer)\n\nwhere answer is\n{JUDGES[exercise.id].form}')
    if solution:
        code = _MARKS.sub("", exercise.answer)
        parts += ["Solution.", code.rstrip(), exercise.solution]
    return words("\n\n".join(parts)) + "\n"


@dataclass(frozen=True)
class Passage:
    """What stands between the exercises of a notebook.

    Attributes:
        kind: text in Markdown; code that runs as it is; a gap, code whose part between ``### BEGIN SOLUTION`` and
            ``### END SOLUTION`` is kept from students; a check, code that fails where the gap before it is not filled
            rightly, worth a point.
        text: of the cell.
        name: of the cell, a grade_id of nbgrader: letters, digits and hyphens.
    """

    kind: Literal["text", "code", "gap", "check"]
    text: str
    name: str


def notebook(
    chosen: Iterable[Exercise | Passage],
    edition: Edition = "student",
    *,
    introduction: str = "# Exercises\n\nWrite answers where it says so; each is checked in the cell below it.",
    setup: str = "",
) -> Any:
    """A notebook of exercises, which nbformat writes.

    Every edition has nbgrader's metadata (its schema 3), so an executed student's notebook can be graded by it.

    Args:
        chosen: the exercises, with what stands between them; at least one.
        edition: student, teacher or nbgrader.
        introduction: the first cell, in Markdown.
        setup: code that comes first, after what all exercises need.

    Raises:
        ExerciseError: no such edition, or no exercise.
    """
    chosen = list(chosen)
    if edition not in get_args(Edition):
        raise ExerciseError(f"edition is {edition!r}; there are {', '.join(get_args(Edition))}")
    if not chosen:
        raise ExerciseError("a notebook needs at least one exercise; none is chosen")
    cells = [_markdown(introduction, "intro"), _code(SETUP + setup, "setup", locked=True)]
    for each in chosen:
        cells += [_passage(each, edition)] if isinstance(each, Passage) else _cells(each, edition)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})  # type: ignore[no-untyped-call]
    nbformat.validate(made)
    return made


def _cells(exercise: Exercise, edition: Edition) -> list[Any]:
    """Question with hints, answer, check, and for teachers the solution."""
    name = exercise.id
    head = f"## {exercise.title}\n\n*{name}, {exercise.kind}, {_minutes(exercise)}*\n\n{_question(exercise)}"
    hints = "\n\n".join(
        f"<details><summary>Hint {number}</summary>\n\n{hint}\n\n</details>"
        for number, hint in enumerate(exercise.hints, 1)
    )
    answer = f"# answer: {JUDGES[name].form}\n{exercise.answer}"
    check = f'verdict = check("{name}", answer)\nprint(verdict)\nassert verdict.right, verdict.word'
    cells = [
        _markdown(words(f"{head}\n\n{hints}"), f"{name}-question"),
        _code(_edited(answer, edition), name, solution=True),
        _code(check, f"{name}-check", grade=True, locked=True),
    ]
    if edition == "teacher":
        cells.append(_markdown(words(f"**Solution.** {exercise.solution}"), f"{name}-solution"))
    return cells


def _passage(passage: Passage, edition: Edition) -> Any:
    if passage.kind == "text":
        return _markdown(words(passage.text), passage.name)
    if passage.kind == "gap":
        return _code(_edited(passage.text, edition), passage.name, solution=True)
    return _code(passage.text, passage.name, grade=passage.kind == "check", locked=True)


def _edited(answer: str, edition: Edition) -> str:
    """The code of an answer as an edition has it: with a gap, whole, or with the marks that nbgrader reads."""
    answer = answer.rstrip() + "\n"  # a mark may be the last line of a cell
    if edition == "student":
        return _SOLUTION.sub(_gap, answer)
    return _MARKS.sub("", answer) if edition == "teacher" else answer


def _gap(found: re.Match[str]) -> str:
    return "".join(f"{found[1]}{line}\n" for line in _GAP.split("\n"))


def _metadata(name: str, **given: bool | int) -> dict[str, Any]:
    marks = {"grade": False, "solution": False, "locked": False, "task": False, **given}
    return {"nbgrader": {"schema_version": 3, "grade_id": name, **marks}}


def _markdown(text: str, name: str) -> Any:
    cell: Any = nbformat.v4.new_markdown_cell(text, metadata=_metadata(name, locked=True))  # type: ignore[no-untyped-call]
    cell["id"] = _identity(name)
    return cell


def _code(text: str, name: str, *, grade: bool = False, solution: bool = False, locked: bool = False) -> Any:
    given: dict[str, bool | int] = {"grade": grade, "solution": solution, "locked": locked}
    if grade:
        given["points"] = 1
    cell: Any = nbformat.v4.new_code_cell(text.rstrip(), metadata=_metadata(name, **given))  # type: ignore[no-untyped-call]
    cell["id"] = _identity(name)
    return cell


def _identity(name: str) -> str:
    """A cell's id that is the same each time, where nbformat would draw one."""
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _question(exercise: Exercise) -> str:
    belief = f"*Many believe:* {exercise.belief}\n\n" if exercise.belief else ""
    return belief + exercise.question


def _minutes(exercise: Exercise) -> str:
    return "a minute" if exercise.minutes == 1 else f"{exercise.minutes} minutes"
