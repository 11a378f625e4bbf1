"""Lessons in a box: plan, slides, notebooks for students and teachers, data and the package, in one zip.

A lesson is a folder ``lessons/NAME`` of a checkout with three files: ``plan.md``, ``slides.md`` and ``notebook.md``.
:func:`make` executes what the slides show, and puts everything that a classroom without a network needs into a file.
"""

from __future__ import annotations

from robattr.lessons._boxes import make
from robattr.lessons._slides import deck
from robattr.lessons._texts import Lesson, LessonError, lesson, lessons, notebook, page

__all__ = ["Lesson", "LessonError", "deck", "lesson", "lessons", "make", "notebook", "page"]
