"""Exercises that check themselves: misconceptions first, from a pencil to experiments of a minute.

Each has a question, hints, a solution and a judge. ``check("ex-linear", answer)`` says whether an answer is right, and
a word that helps where it is not. Numbers count to three significant digits, the last rounded or cut off; functions are
tried on random inputs; of things that can be right in many ways the property is checked that was asked for.

The pages of the book, a notebook for students, one with solutions and one for nbgrader are made from the same texts,
one file each in ``robattr/exercises/texts``; the judges stand in ``robattr/exercises/_answers.py``.
"""

from __future__ import annotations

from robattr.exercises._answers import JUDGES as _JUDGES
from robattr.exercises._editions import Edition, Passage, notebook, page, plain
from robattr.exercises._judging import Verdict
from robattr.exercises._networks import trained
from robattr.exercises._texts import CHAPTERS, Exercise, ExerciseError, Kind, exercise, exercises

__all__ = [
    "CHAPTERS",
    "Edition",
    "Exercise",
    "ExerciseError",
    "Kind",
    "Passage",
    "Verdict",
    "check",
    "exercise",
    "exercises",
    "notebook",
    "page",
    "plain",
    "trained",
]


def check(name: str, answer: object) -> Verdict:
    """Whether an answer is right, and a word.

    Args:
        name: of the exercise, such as ``ex-linear``.
        answer: what the exercise asks for: a number, a row of numbers, letters, a function, or a dictionary of them.

    Returns:
        the verdict, which is true where the answer is right. No answer raises.

    Raises:
        ExerciseError: there is no such exercise; the message names the nearest.
    """
    return _JUDGES[exercise(name).id](answer)
