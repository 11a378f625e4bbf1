"""Lessons in a box: each is made, runs without a network, keeps its solutions from students, and turns its slides."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import time
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner, Result
from conftest import REPOSITORY

from robattr import cli, exercises
from robattr.lessons import Lesson, LessonError, _boxes, deck, lesson, lessons, make, notebook, page

NAMES = ["map", "fragility", "criteria", "training", "certificates", "evidence"]
LARGEST = 25_000_000  # bytes of a zip
Unpacked = Callable[[str], Path]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """Makes a lesson once, and says where its files lie."""
    folder = tmp_path_factory.mktemp("lessons")

    def of(name: str) -> Path:
        path = folder / f"{name}.zip"
        if not path.exists():
            make(lesson(REPOSITORY, name), path, root=REPOSITORY)
            assert path.stat().st_size < LARGEST
            with zipfile.ZipFile(path) as packed:
                packed.extractall(folder)
        return folder / name

    return of


def test_there_are_six_lessons_in_their_order() -> None:
    found = lessons(REPOSITORY)
    assert [each.name for each in found] == NAMES
    assert [each.number for each in found] == list(range(1, 7))
    assert {each.minutes for each in found} <= {45, 90}


@pytest.mark.parametrize("name", NAMES)
def test_a_box_has_what_a_classroom_needs(name: str, unpacked: Unpacked) -> None:
    folder = unpacked(name)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wheel = next(each for each in files if each.endswith(".whl"))
    assert files - {each for each in files if each.startswith("students/data/")} == {
        "README.md", wheel, "students/notebook.ipynb", "teacher/notebook.ipynb", "teacher/nbgrader.ipynb",
        "teacher/plan.html", "teacher/slides.html",
    }  # fmt: skip
    assert wheel.startswith("students/robattr-")
    assert Path(wheel).name in (folder / "README.md").read_text(encoding="utf-8")
    with zipfile.ZipFile(folder / wheel) as packed:
        assert {"robattr/lessons/slides.css", "robattr/exercises/texts/ex-linear.md"} <= set(packed.namelist())


@pytest.mark.parametrize("name", NAMES)
def test_the_teachers_notebook_runs_without_a_network_in_its_seconds(
    name: str, unpacked: Unpacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blocked(*_: object, **__: object) -> None:
        raise OSError("a lesson asked for the network")

    folder = unpacked(name) / "teacher"
    monkeypatch.chdir(folder)
    for each in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, each, blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    started = time.process_time()  # of this process alone: a busy machine takes longer, and no more of this
    names: dict[str, Any] = {}
    made = nbformat.read(folder / "notebook.ipynb", as_version=4)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for cell in made.cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
    used = lesson(REPOSITORY, name)
    assert time.process_time() - started < used.seconds
    assert output.getvalue().count("Right: ") == len(used.exercises) > 0


@pytest.mark.parametrize("name", NAMES)
def test_students_get_gaps_and_no_solutions(name: str, unpacked: Unpacked) -> None:
    folder = unpacked(name)
    student = (folder / "students" / "notebook.ipynb").read_text(encoding="utf-8")
    source = nbformat.read(folder / "teacher" / "nbgrader.ipynb", as_version=4)
    assert "SOLUTION" not in student
    assert "**Solution.**" not in student
    answers = [cell.source for cell in source.cells if cell.metadata.nbgrader.solution]
    assert answers
    assert student.count("raise NotImplementedError()") == len(answers)
    written = " ".join(cell.source for cell in nbformat.reads(student, as_version=4).cells)
    for answer in answers:
        (kept,) = re.findall(r"### BEGIN SOLUTION\n(.*?)[ \t]*### END SOLUTION", answer, re.DOTALL)
        for line in map(str.strip, kept.splitlines()):
            assert len(line) < 20 or line not in written, line
    for each in lesson(REPOSITORY, name).exercises:
        assert exercises.exercise(each).solution not in written


@pytest.mark.parametrize("name", NAMES)
def test_a_gap_that_is_not_filled_fails_its_check(name: str) -> None:
    cells = notebook(lesson(REPOSITORY, name)).cells
    for cell, after in pairwise(cells):
        if cell.metadata.nbgrader.solution:
            assert after.metadata.nbgrader.grade, cell.metadata.nbgrader.grade_id
            assert after.metadata.nbgrader.points == 1
            assert "assert " in after.source


def test_the_same_sources_make_the_same_bytes(tmp_path: Path) -> None:
    found = lesson(REPOSITORY, "criteria")
    made = []
    for i in range(2):
        _boxes._wheel.cache_clear()
        made.append(make(found, tmp_path / str(i) / "lesson.zip", root=REPOSITORY).read_bytes())
    assert made[0] == made[1]


# --- the page for teachers -------------------------------------------------------------------------------------------

TEACH = (REPOSITORY / "book" / "teach.md").read_text(encoding="utf-8")


def test_what_the_page_for_teachers_names_is_there() -> None:
    linked = re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", TEACH)
    assert {each.removeprefix("lesson_") for each in linked if each.startswith("lesson_")} == set(NAMES)
    contents = (REPOSITORY / "_toc.yml").read_text(encoding="utf-8")
    for each in linked:
        path = each.removeprefix("/") if each.startswith("/") else f"book/{each}"
        assert f"- file: {path}\n" in contents, each
        assert each.startswith("lesson_") or (REPOSITORY / f"{path}.md").exists(), each
    named = re.findall(r"\[([^\]]+)\]\(page-([^)]+)\)", TEACH)
    assert len(named) > 20
    for shown, name in named:
        assert shown == exercises.exercise(name).id == name
    for command in re.findall(r"robattr lesson (\w+)", TEACH):
        assert command in NAMES


def test_minutes_of_the_syllabus_add_up() -> None:
    text = TEACH.partition("## One lecture")[2]
    lecture, rest = text.split("## A week")
    assert sum(map(int, re.findall(r"^\| (\d+) \|", lecture, re.MULTILINE))) == 90
    known = {each.name: each for each in lessons(REPOSITORY)}
    rows = re.findall(r"^\| \d+ \| (.+) \| (\d+) \| (.+) \| (\d+) \|$", rest, re.MULTILINE)
    assert len(rows) == 5 + 7
    for here, minutes, home, at_home in rows:
        taught = sum(known[name].minutes for name in re.findall(r"\{doc\}`lesson_(\w+)`", here))
        assert taught <= int(minutes) <= 90, here
        assert int(at_home) == sum(exercises.exercise(name).minutes for name in re.findall(r"page-([\w-]+)", home)), (
            home
        )


def test_a_lesson_gives_its_exercises_the_minutes_that_they_take() -> None:
    for each in lessons(REPOSITORY):
        core = (each.folder / "notebook.md").read_text(encoding="utf-8").partition("# If you are done")[0]
        needed = sum(exercises.exercise(name).minutes for name in each.exercises if f"{{exercise}} {name}\n" in core)
        assert 0 < needed <= 0.6 * each.minutes, each.name


def test_slides_and_parts_that_a_plan_names_are_there() -> None:
    for each in lessons(REPOSITORY):
        slides = len(re.findall(r"^##? ", (each.folder / "slides.md").read_text(encoding="utf-8"), re.MULTILINE))
        parts = re.findall(r"^# Part (\d)", (each.folder / "notebook.md").read_text(encoding="utf-8"), re.MULTILINE)
        shown: list[int] = []
        for first, last in re.findall(
            r"slides? (\d+)(?: (?:to|and) (\d+))?", each.plan.partition("## What students")[0]
        ):
            shown += range(int(first), int(last or first) + 1)
        assert sorted(set(shown)) == list(range(1, slides + 1)), each.name
        assert set(re.findall(r"part (\d)", each.plan)) == set(parts), each.name
        for name in re.findall(r"`(ex-[\w-]+)`", each.plan):
            assert exercises.exercise(name).id == name


# --- sources ---------------------------------------------------------------------------------------------------------

PLAN = """\
---
number: 1
title: A lesson
summary: A sentence.
minutes: 45
seconds: 30
megabytes: 2
chapters: [01_stub]
data: [grid/*.json]
---
## Goals

## Before

## Minutes

| Minutes | What |
| ---: | --- |
| 40 | talk |
| 5 | listen |

## What students get wrong

## Shorter, longer

## Grading
"""
SLIDES = """\
# The title

Text with $x^2$ and {doc}`/notebooks/01_stub`.

## Second

```{code-cell} ipython3
f"**{1 + 1}** of {len(list(DATA.iterdir()))}"
```

::: notes
For the speaker.
:::
"""
NOTEBOOK = """\
# The title

Introduction.

```{code-cell} ipython3
print(DATA)
```

```{exercise} ex-linear
```

```{code-cell} ipython3
:tags: [gap]
a = 0
### BEGIN SOLUTION
a = 1
### END SOLUTION
```

```{code-cell} ipython3
:tags: [check]
assert a == 1
```
"""


@pytest.fixture
def small(project: Path, write_chapter: Callable[..., Path]) -> Path:
    """A project with one lesson."""
    write_chapter("01_stub")
    folder = project / "lessons" / "small"
    folder.mkdir(parents=True)
    for name, text in {"plan": PLAN, "slides": SLIDES, "notebook": NOTEBOOK}.items():
        (folder / f"{name}.md").write_text(text)
    grid = project / "results" / "reference" / "grid"
    grid.mkdir(parents=True)
    (grid / "a.json").write_text("{}")
    return project


def test_a_lesson_is_read(small: Path) -> None:
    found = lesson(small, "small")
    assert (found.name, found.number, found.title, found.minutes) == ("small", 1, "A lesson", 45)
    assert list(found.data.values()) == ["grid/a.json"]
    assert found.exercises == ["ex-linear"]
    assert lesson(small, "1") == found
    text = page(found)
    assert text.startswith("# Lesson: A lesson\n\n*45 minutes.* A sentence.")
    assert "robattr lesson small" in text


def test_the_notebook_has_the_editions_of_exercises(small: Path) -> None:
    found = lesson(small, "small")
    student, teacher, source = (
        {cell.metadata.nbgrader.grade_id: cell for cell in notebook(found, edition, data="there").cells}
        for edition in ("student", "teacher", "nbgrader")
    )
    assert student["intro"].source == "# A lesson\n\nIntroduction."
    assert 'DATA = Path("there")' in student["setup"].source
    assert [name for name in teacher if name.startswith("ex-linear")] == [
        "ex-linear-question", "ex-linear", "ex-linear-check", "ex-linear-solution"
    ]  # fmt: skip
    (gap,) = [name for name, cell in source.items() if cell.source.startswith("a = 0")]
    assert student[gap].source == "a = 0\n# YOUR CODE HERE\nraise NotImplementedError()"
    assert teacher[gap].source == "a = 0\na = 1"
    assert "### BEGIN SOLUTION" in source[gap].source
    assert sum(cell.metadata.nbgrader.get("points", 0) for cell in student.values()) == 2


def test_slides_are_a_section_each_with_formulas_as_elements(small: Path) -> None:
    text = deck(lesson(small, "small"), small / "results" / "reference")
    assert re.findall(r'<section id="(\d+)"', text) == ["1", "2"]
    assert "<math" in text
    assert "01_stub</code>" in text
    assert "<strong>2</strong> of 1" in text
    assert '<div class="notes">' in text
    assert "src=" not in text


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("plan", "| 40 |", "| 35 |", "the table has 40 minutes; the lesson has 45"),
        ("plan", "## Before\n", "", "headings are Goals, Minutes"),
        ("plan", "number: 1\n", "", "number is None; wanted is a int"),
        ("plan", "number: 1\n", "number: 1\ncolor: red\n", "'color' means nothing"),
        ("plan", "---\nnumber", "number", "must begin with number"),
        ("plan", "01_stub", "02_stub", "there is no chapter '02_stub'"),
        ("plan", "grid/*", "grip/*", "there is no file results/reference/grip/*.json"),
    ],
)
def test_a_plan_with_a_mistake_is_refused_in_one_line(small: Path, file: str, old: str, new: str, said: str) -> None:
    path = small / "lessons" / "small" / f"{file}.md"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(LessonError, match=re.escape(said)) as error:
        lesson(small, "small")
    assert str(error.value).startswith("lessons/small/plan.md: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("1 + 1", "1 / 0", "a cell fails with ZeroDivisionError: division by zero"),
        ('f"**{1 + 1}** of {len(list(DATA.iterdir()))}"', "3", "a cell ends in a int"),
        (
            'f"**{1 + 1}** of {len(list(DATA.iterdir()))}"',
            "import matplotlib.figure\nmatplotlib.figure.Figure()",
            "a Figure without alternative text",
        ),
        ("# The title\n", "", "text comes before the first heading"),
    ],
)
def test_slides_with_a_mistake_are_refused_in_one_line(small: Path, old: str, new: str, said: str) -> None:
    path = small / "lessons" / "small" / "slides.md"
    path.write_text(SLIDES.replace(old, new, 1))
    with pytest.raises(LessonError, match=re.escape(said)) as error:
        deck(lesson(small, "small"), small)
    assert str(error.value).startswith("lessons/small/slides.md: ")
    assert "\n" not in str(error.value)


def test_where_there_are_no_lessons_it_says_so(project: Path) -> None:
    with pytest.raises(LessonError, match="has no lessons; they are looked for in a checkout of the project"):
        lessons(project)


# --- the command line ------------------------------------------------------------------------------------------------


def call(*words: str) -> Result:
    return CliRunner().invoke(cli.main, ["lesson", *words])


def test_the_command_lists_lessons() -> None:
    output = call().stdout
    for each in lessons(REPOSITORY):
        assert each.name in output
        assert each.title in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fragilty",), "no lesson 'fragilty'; did you mean 'fragility'?"),
        (("--force",), "-o and --force are for one lesson; say which"),
        (
            ("fragility", "-o", "lesson.tar"),
            "lesson.tar is no name of a lesson's file; wanted is one that ends in .zip",
        ),
    ],
)
def test_a_wrong_request_is_one_line(words: tuple[str, ...], said: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"robattr: {said}\n"


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.zip"
    path.write_text("mine")
    result = call("fragility", "-o", str(path))
    assert result.exit_code == 2
    assert "mine.zip is there already; choose another name with -o, or write over it with --force" in result.stderr
    assert path.read_text() == "mine"


def test_a_box_without_the_package_or_larger_than_its_plan_is_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lesson(small, "small")
    with pytest.raises(LessonError, match=r"has no pyproject.toml; a lesson brings the package"):
        make(found, tmp_path / "a.zip", root=small)
    monkeypatch.setattr(_boxes, "_wheel", lambda root: ("robattr.whl", b"\0" * 100))
    assert make(found, tmp_path / "a.zip", root=small).stat().st_size < 1e5
    large = Lesson(**{**vars(found), "megabytes": 0})
    with pytest.raises(LessonError, match="its plan says at most 0: leave out data, or change the plan"):
        make(large, tmp_path / "b.zip", root=small)
    assert sorted(path.name for path in tmp_path.glob("*.zip")) == ["a.zip"]


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_slides_turn_by_keyboard_and_print_a_page_each(name: str, unpacked: Unpacked, chromium: Any) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 720}, offline=True)
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: said.append(request.url) if request.url[:5] not in ("file:", "data:") else None)
    tab.goto((unpacked(name) / "teacher" / "slides.html").as_uri())
    count = tab.locator("section").count()
    assert count > 5
    seen = [tab.evaluate("scrollY")]
    for i in range(2, count + 1):
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate("location.hash") == f"#{i}"
        assert tab.evaluate("document.activeElement.id") == str(i)
        seen.append(tab.evaluate("scrollY"))
    assert seen == [720 * i for i in range(count)], "a slide is higher than the screen"
    for key, at in (
        ("ArrowRight", count),
        ("Home", 1),
        (" ", 2),
        ("Shift+Space", 1),
        ("End", count),
        ("PageUp", count - 1),
    ):
        tab.keyboard.press(key)
        assert tab.evaluate("location.hash") == f"#{at}", key
    assert not tab.locator(".notes").first.is_visible()
    tab.keyboard.press("n")
    assert tab.locator(".notes").first.evaluate("note => getComputedStyle(note).display") == "block"
    tab.keyboard.press("n")
    printed = tab.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == count
    assert all(tab.locator("img").evaluate_all("images => images.map(each => each.alt)"))
    context.close()
    assert said == []
