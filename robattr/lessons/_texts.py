"""The sources of lessons: read, checked, and made into the page of a plan and the notebooks of each edition."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

from robattr import _yaml, exercises
from robattr.exercises import Edition, Passage
from robattr.pages.chapters import ChapterError, chapter_names, read_notebook

__all__ = ["Lesson", "LessonError", "lesson", "lessons", "notebook", "page"]

FOLDER = "lessons"
RECORDS = "results/reference"
_FIELDS = {
    "number": int,
    "title": str,
    "summary": str,
    "minutes": int,
    "seconds": int,
    "megabytes": int,
    "chapters": list,
    "data": list,
}
_HEADINGS = ("Goals", "Before", "Minutes", "What students get wrong", "Shorter, longer", "Grading")
_EXERCISE = re.compile(r"```\{exercise\} (\S+)\n```\n?")
_SETUP = """
from pathlib import Path

DATA = Path("{data}")
"""


class LessonError(ValueError):
    """A lesson is not there, or its sources are not what is accepted; the message is one line."""


@dataclass(frozen=True)
class Lesson:
    """A lesson, by its sources.

    Attributes:
        folder: where ``plan.md``, ``slides.md`` and ``notebook.md`` lie; its name is the lesson's.
        number: place among the lessons.
        title: a few words.
        summary: a sentence.
        minutes: how long it takes; what the plan's table adds up to.
        seconds: how long a processor core needs for the teacher's notebook, at most.
        megabytes: of the zip, at most.
        chapters: of the book, that it goes with.
        data: files that it brings, and where they lie in its folder of data.
        plan: the text of the plan, in MyST.
    """

    folder: Path
    number: int
    title: str
    summary: str
    minutes: int
    seconds: int
    megabytes: int
    chapters: tuple[str, ...]
    data: Mapping[Path, str]
    plan: str

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.name

    @property
    def exercises(self) -> list[str]:
        """The exercises of its notebook, in their order."""
        return _EXERCISE.findall((self.folder / "notebook.md").read_text(encoding="utf-8"))


def lessons(root: Path) -> list[Lesson]:
    """All lessons, in their order.

    Args:
        root: the project's folder, as :func:`robattr.pages.chapters.find_root` finds it.

    Raises:
        LessonError: there is none, or one has a mistake.
    """
    found = [_read(path.parent, root) for path in (root / FOLDER).glob("*/plan.md")]
    if not found:
        raise LessonError(f"{root / FOLDER} has no lessons; they are looked for in a checkout of the project")
    return sorted(found, key=lambda each: each.number)


def lesson(root: Path, name: str) -> Lesson:
    """The lesson called ``name``, or with that number.

    Args:
        root: the project's folder.
        name: of the lesson's folder, ``fragility``, or its number.

    Raises:
        LessonError: there is none; the message names the nearest.
    """
    known = lessons(root)
    for each in known:
        if name in (each.name, str(each.number)):
            return each
    names = [each.name for each in known]
    near = get_close_matches(name, names, 1, 0.4)
    raise LessonError(
        f"no lesson {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}")
    )


def _read(folder: Path, root: Path) -> Lesson:
    path = folder / "plan.md"
    text = path.read_text(encoding="utf-8")
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    where = f"{FOLDER}/{folder.name}/plan.md"
    fields: Any = _yaml.parse(head, where, line=2)
    if not text.startswith("---\n") or not isinstance(fields, dict):
        raise LessonError(f"{where}: must begin with {', '.join(_FIELDS)} between two lines '---'")
    for name, kind in _FIELDS.items():
        if not isinstance(fields.get(name), kind):
            raise LessonError(f"{where}: {name} is {fields.get(name)!r}; wanted is a {kind.__name__}")
    if unknown := set(fields) - set(_FIELDS):
        raise LessonError(f"{where}: {sorted(unknown)[0]!r} means nothing; there are {', '.join(_FIELDS)}")
    names = chapter_names(root)
    for each in fields["chapters"]:
        if each not in names:
            raise LessonError(f"{where}: there is no chapter {each!r}")
    for each in ("slides.md", "notebook.md"):
        if not (folder / each).is_file():
            raise LessonError(f"{where}: there is no {each} beside it")
    data: dict[Path, str] = {}
    for each in fields["data"]:
        files = sorted((root / RECORDS).glob(str(each)))
        if not files:
            raise LessonError(f"{where}: there is no file {RECORDS}/{each}")
        data |= {file: file.relative_to(root / RECORDS).as_posix() for file in files}
    if (headings := tuple(re.findall(r"^## (.+)$", body, re.MULTILINE))) != _HEADINGS:
        raise LessonError(f"{where}: headings are {', '.join(headings)}; wanted are {', '.join(_HEADINGS)}")
    total = sum(int(each) for each in re.findall(r"^\| *(\d+) *\|", body, re.MULTILINE))
    if total != fields["minutes"]:
        raise LessonError(f"{where}: the table has {total} minutes; the lesson has {fields['minutes']}")
    found = {**fields, "chapters": tuple(fields["chapters"]), "data": data}
    return Lesson(folder=folder, plan=body.strip() + "\n", **found)


def page(found: Lesson) -> str:
    """The plan as a page of the book, in MyST: exercises are links to their pages."""
    made = f"```shell\nrobattr lesson {found.name} -o {found.name}.zip\n```"
    plan = re.sub(r"`(ex-[\w-]+)`", r"[`\1`](page-\1)", found.plan)
    return f"# Lesson: {found.title}\n\n*{found.minutes} minutes.* {found.summary}\n\n{made}\n\n{plan}"


def notebook(found: Lesson, edition: Edition = "student", *, data: str = "data") -> Any:
    """The lesson's notebook in an edition of :mod:`robattr.exercises`, which nbformat writes.

    Args:
        found: one of :func:`lessons`.
        edition: student, teacher or nbgrader.
        data: the folder of its data, as seen from the notebook.

    Raises:
        LessonError: the source has a mistake.
        ExerciseError: it names an exercise that is not there, or there is no such edition.
    """
    introduction, *rest = _passages(found)
    if not isinstance(introduction, Passage) or introduction.kind != "text":
        raise LessonError(f"{_source(found)}: must begin with text")
    text = re.sub(r"\A# .+\n", "", introduction.text).strip()
    return exercises.notebook(
        rest,
        edition,
        introduction=f"# {found.title}\n\n{text}",
        setup=_SETUP.format(data=data),
    )


def _source(found: Lesson) -> str:
    return f"{FOLDER}/{found.name}/notebook.md"


def _passages(found: Lesson) -> Iterator[exercises.Exercise | Passage]:
    try:
        cells = read_notebook(found.folder / "notebook.md").cells
    except ChapterError as error:
        raise LessonError(f"{FOLDER}/{found.name}/{error}") from None
    kinds = get_args(get_type_hints(Passage)["kind"])
    count = 0
    for cell in cells:
        if cell.cell_type == "code":
            tags = [tag for tag in cell.metadata.get("tags", []) if tag in kinds]
            count += 1
            yield Passage(tags[0] if tags else "code", cell.source, f"cell-{count}")
            continue
        pieces = _EXERCISE.split(cell.source)
        for i, piece in enumerate(pieces):
            if i % 2:
                yield exercises.exercise(piece)
            elif piece.strip():
                count += 1
                yield Passage("text", piece.strip(), f"cell-{count}")
