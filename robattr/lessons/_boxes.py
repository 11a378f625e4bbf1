"""The zip of a lesson: laid out in a folder, and packed so that the same sources make the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

from robattr._files import beside
from robattr.exercises import Edition
from robattr.lessons._slides import deck, document
from robattr.lessons._texts import Lesson, LessonError, notebook

__all__ = ["make"]

_MOMENT = (1980, 1, 1, 0, 0, 0)  # the first that a zip can name
_PACKAGE = ("pyproject.toml", "README.md", "LICENSE", "robattr")
_NOTEBOOKS: tuple[tuple[str, Edition, str], ...] = (
    ("students/notebook.ipynb", "student", "data"),
    ("teacher/notebook.ipynb", "teacher", "../students/data"),
    ("teacher/nbgrader.ipynb", "nbgrader", "data"),
)
_README = """\
# {title}

{summary} {minutes} minutes.

For the teacher: `teacher/plan.html` says what to do when, `teacher/slides.html` are the slides (arrow keys turn them, N
shows notes, printing gives a page a slide), `teacher/notebook.ipynb` has all solutions, and `teacher/nbgrader.ipynb` is
the source of an assignment of nbgrader. Hand out the folder `students`, and nothing else.

## Once, with a network

Python 3.11 or newer. In the folder `students`:

    python -m venv .venv
    .venv/bin/pip install ./{wheel} jupyterlab

On Windows it is `.venv\\Scripts\\pip`. PyTorch's build for processors is enough, and on Linux a tenth of the size of
the one with GPU libraries: install that one first, with the command that pytorch.org shows for CPU.

## In the lesson, without a network

    .venv/bin/jupyter lab notebook.ipynb

All cells together take a processor core at most {seconds} seconds. For the teacher's notebook start the same in the
folder `teacher`, with `../students/.venv/bin/jupyter`.
"""


def make(found: Lesson, path: Path, *, root: Path, force: bool = False) -> Path:
    """Write the zip of a lesson; the slides' code is executed for it.

    Args:
        found: one of :func:`robattr.lessons.lessons`.
        path: of the zip; its folder is made.
        root: the project's folder.
        force: write over a file that is there.

    Returns:
        the path.

    Raises:
        LessonError: a file is there, or a source has a mistake, or the zip is larger than the plan says.
        OSError: it cannot be written.
    """
    if path.suffix != ".zip":
        raise LessonError(f"{path} is no name of a lesson's file; wanted is one that ends in .zip")
    if path.exists() and not force:
        raise LessonError(f"{path} is there already; choose another name with -o, or write over it with --force")
    wheel, content = _wheel(root)
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "README.md", _README.format(
            title=found.title, summary=found.summary, minutes=found.minutes, seconds=found.seconds, wheel=wheel
        ))  # fmt: skip
        data = folder / "students" / "data"
        data.mkdir(parents=True)
        (folder / "students" / wheel).write_bytes(content)
        for file, place in found.data.items():
            (data / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, data / place)
        for where, edition, seen in _NOTEBOOKS:
            made = notebook(found, edition, data=seen)
            _write(folder / where, nbformat.writes(made) + "\n")  # type: ignore[no-untyped-call]
        _write(folder / "teacher" / "plan.html", document(found.title, f"# {found.title}\n\n{found.plan}"))
        _write(folder / "teacher" / "slides.html", deck(found, data))
        with beside(path) as temporary:
            _pack(folder, temporary, found.name)
            if (size := temporary.stat().st_size) > found.megabytes * 1_000_000:
                raise LessonError(
                    f"{found.name} has {size / 1e6:.1f} MB; its plan says at most {found.megabytes}: leave out data, "
                    "or change the plan"
                )
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _pack(folder: Path, path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for each in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry = zipfile.ZipInfo(f"{name}/{each.relative_to(folder).as_posix()}", _MOMENT)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, each.read_bytes())


@cache
def _wheel(root: Path) -> tuple[str, bytes]:
    """The package itself, since a classroom installs what its lesson was made with: the wheel's name and content."""
    with TemporaryDirectory() as name:
        source, made = Path(name) / "source", Path(name) / "made"
        source.mkdir()
        for each in _PACKAGE:
            if (root / each).is_dir():
                shutil.copytree(root / each, source / each, ignore=shutil.ignore_patterns("__pycache__"))
            elif (root / each).is_file():
                shutil.copy(root / each, source / each)
            else:
                raise LessonError(f"{root} has no {each}; a lesson brings the package, and is made in its checkout")
        build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", build, str(made)], cwd=source, capture_output=True, text=True, check=False,
            env={**os.environ, "SOURCE_DATE_EPOCH": "315532800"},
        )  # fmt: skip
        if done.returncode:
            raise LessonError(f"the package's wheel cannot be built: {done.stderr.strip().splitlines()[-1]}")
        (wheel,) = made.glob("*.whl")
        return wheel.name, wheel.read_bytes()
