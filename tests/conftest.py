"""Fixtures that several tests share: real data where it is, and small projects with chapters that need no network."""

from __future__ import annotations

import functools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from reordered import Reordered

from robattr import training
from robattr.studies import runs

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE_S = 1800
"""Until a process or a page is given up: what hangs is an error, what waits for a busy machine is not."""

WriteChapter = Callable[..., Path]

# Every run draws the same examples: who looks for others says --hypothesis-profile=default.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reorder", type=int, metavar="SEED", help="form sums in another order, drawn with this seed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    seed = item.config.getoption("--reorder")
    # Another process or thread would form its sums as they are, and be compared with sums that are not.
    plain = seed is None or item.get_closest_marker("elsewhere")
    with nullcontext() if plain else Reordered(seed):
        return (yield)


def pytest_runtest_setup() -> None:
    """What a test draws without a seed of its own depends on no other test."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real data sets; without one, the test is reported as skipped."""
    root = os.environ.get("ROBATTR_DATA")
    if not root:
        pytest.skip("ROBATTR_DATA is not set: no real data")
    if not Path(root).is_dir():
        pytest.skip(f"ROBATTR_DATA={root} is not a folder: no real data")
    return Path(root)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """An installed browser, one for all tests; without one, the test is reported as skipped."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project: notebooks/ and a profile that sets nothing."""
    return empty_project(tmp_path)


def empty_project(folder: Path) -> Path:
    (folder / "notebooks").mkdir()
    (folder / "profiles").mkdir()
    (folder / "profiles" / "quick.yaml").write_text("description: small\nparameters: {}\n")
    return folder


@pytest.fixture
def write_chapter(project: Path) -> WriteChapter:
    """Writes a chapter whose last cell leaves a line in ``ran.txt``, so that a test can see whether it ran."""
    return chapters_of(project)


def chapters_of(project: Path) -> WriteChapter:
    def write(
        name: str = "01_stub",
        schemas: str = "{count: {type: integer, minimum: 1, maximum: 9, description: how many}}",
        defaults: str | None = "count = 3",
        code: str = "print('nothing')",
        header: str | None = None,
    ) -> Path:
        path = project / "notebooks" / f"{name}.md"
        section = header if header is not None else f"robattr:\n  claim: It runs.\n  parameters: {schemas}"
        parameters = "" if defaults is None else f"```{{code-cell}} ipython3\n:tags: [parameters]\n{defaults}\n```\n"
        trace = f"open('ran.txt', 'a').write('{name} ' + repr(globals().get('count')) + '\\n');"
        path.write_text(
            f"---\nkernelspec: {{name: python3, display_name: Python 3}}\n{section}\n---\n# The title of {name}\n\n"
            f"{parameters}\n```{{code-cell}} ipython3\n{code}\n```\n\n```{{code-cell}} ipython3\n{trace}\n```\n"
        )
        return path

    return write


def lay_out_book(folder: Path, chapter: str, config: str | None = None) -> None:
    """The sources of a book of one chapter, ``notebooks/<chapter>``, without that chapter.

    Args:
        folder: an empty one, or none.
        chapter: its name.
        config: in place of the book's ``_config.yml``.
    """
    shutil.copytree(REPOSITORY / "book", folder / "book", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "robattr").symlink_to(REPOSITORY / "robattr")
    (folder / "notebooks").mkdir()
    (folder / "book" / "references.bib").write_text("")
    (folder / "book" / "introduction.md").write_text("# A book\n\nOf one chapter.\n")
    (folder / "_toc.yml").write_text(
        f"format: jb-book\nroot: book/introduction\nchapters:\n- file: notebooks/{chapter}\n- file: book/status\n"
    )
    config = config or (REPOSITORY / "_config.yml").read_text(encoding="utf-8")
    (folder / "_config.yml").write_text(config, encoding="utf-8")


def draw_book(folder: Path, text: str, code: str = "", config: str | None = None) -> Path:
    """Draw the pages of a book of one chapter, ``notebooks/01_one``, of a cell with text and one with code.

    Args:
        folder: an empty one.
        text: of the chapter, in MyST.
        code: that has been executed and showed nothing.
        config: in place of the book's ``_config.yml``.

    Returns:
        the folder of the pages.
    """
    import nbformat

    lay_out_book(folder, "01_one", config)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    if code:
        notebook.cells.append(nbformat.v4.new_code_cell(code))
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        "papermill": {"end_time": "2026-01-01T00:00:00+00:00", "duration": 1.0, "exception": None},
        "robattr": {"run": {"profile": "quick", "data": [], **runs.environment(REPOSITORY)}},
    }
    nbformat.write(notebook, folder / "01_one.ipynb")
    command = [sys.executable, "book/build.py", "--profile", "quick", "--output", "html", "01_one.ipynb"]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


class Counter:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0
        functools.update_wrapper(self, function)  # it is known by the name of what it stands for

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the trainings."""
    counter = Counter(training.train)
    monkeypatch.setattr(training, "train", counter)
    return counter


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file has more bytes meanwhile: whoever writes more is told that it cannot be."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
