"""What is made of the exercises: pages of the book, text for a terminal, notebooks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args

import nbformat

from robattr.exercises._answers import JUDGES
from robattr.exercises._texts import Exercise, ExerciseError

__all__ = ["Edition", "notebook", "page", "plain"]

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
_ROLE = re.compile(r"\{(?:prf:)?(ref|doc|cite)(?::\w+)?\}`(?:([^`<]*?)\s*<)?([^`>]*)>?`")


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
    parts.append(f'check("{exercise.id}", answer), where answer is\n{JUDGES[exercise.id].form}')
    if solution:
        code = _MARKS.sub("", exercise.answer)
        parts += ["Solution.", code.rstrip(), exercise.solution]
    return _without_roles("\n\n".join(parts)) + "\n"


def notebook(chosen: Iterable[Exercise], edition: Edition = "student") -> Any:
    """A notebook of exercises, which nbformat writes.

    Every edition has nbgrader's metadata (its schema 3), so an executed student's notebook can be graded by it.

    Args:
        chosen: the exercises; at least one.
        edition: student, teacher or nbgrader.

    Raises:
        ExerciseError: no such edition, or no exercise.
    """
    chosen = list(chosen)
    if edition not in get_args(Edition):
        raise ExerciseError(f"edition is {edition!r}; there are {', '.join(get_args(Edition))}")
    if not chosen:
        raise ExerciseError("a notebook needs at least one exercise; none is chosen")
    cells = [_markdown("# Exercises\n\nWrite answers where it says so; each is checked in the cell below it.", "intro")]
    cells.append(_code(SETUP, "setup", locked=True))
    for each in chosen:
        head = f"## {each.title}\n\n*{each.id}, {each.kind}, {_minutes(each)}*\n\n{_question(each)}"
        hints = "\n\n".join(
            f"<details><summary>Hint {number}</summary>\n\n{hint}\n\n</details>"
            for number, hint in enumerate(each.hints, 1)
        )
        cells.append(_markdown(_without_roles(f"{head}\n\n{hints}"), f"{each.id}-question"))
        answer = f"# answer: {JUDGES[each.id].form}\n{each.answer}"
        if edition == "student":
            answer = _SOLUTION.sub(_gap, answer)
        elif edition == "teacher":
            answer = _MARKS.sub("", answer)
        cells.append(_code(answer, each.id, solution=True))
        check = f'verdict = check("{each.id}", answer)\nprint(verdict)\nassert verdict.right, verdict.word'
        cells.append(_code(check, f"{each.id}-check", grade=True, locked=True))
        if edition == "teacher":
            cells.append(_markdown(_without_roles(f"**Solution.** {each.solution}"), f"{each.id}-solution"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})  # type: ignore[no-untyped-call]
    nbformat.validate(made)
    return made


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


def _without_roles(text: str) -> str:
    """References of the book as words: where a page has links, other places have names."""
    return _ROLE.sub(lambda found: found[2] or f"`{found[3].rpartition('/')[2]}`", text)
