"""The command line: what it prints, and a line on stderr and a status for every wrong request."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from click.testing import CliRunner, Result
from conftest import WriteChapter

import robattr
from robattr import cli, data
from robattr.pages import chapters as book, timing


@pytest.fixture
def inside(project: Path, write_chapter: WriteChapter, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one chapter, as the working directory."""
    write_chapter("01_stub", code="print(count)")
    (project / "profiles" / "full.yaml").write_text("description: x\nparameters: {01_stub: {count: 8}}\n")
    monkeypatch.chdir(project)
    return project


def call(*words: str) -> Result:
    return CliRunner().invoke(cli.main, words)


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("robattr: ")
    return result.stderr


def test_the_first_help_says_each_command_whole() -> None:
    shown = CliRunner().invoke(cli.main, ["--help"], terminal_width=80).output
    assert set(re.findall(r"^  (\w+)  +\S", shown, re.MULTILINE)) >= cli.main.commands.keys()
    assert "..." not in shown.partition("Commands:")[2]


def test_version() -> None:
    assert call("--version").output == f"robattr, version {robattr.__version__}\n"


def test_the_commands_start_without_torch() -> None:
    code = "import sys, robattr.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_chapters_are_listed_with_their_claims(inside: Path) -> None:
    output = call("chapters").stdout
    assert "01_stub" in output
    assert "The title of 01_stub" in output
    assert "It runs." in output


def test_a_chapter_is_shown_with_its_parameters(inside: Path) -> None:
    output = call("chapters", "01").stdout
    for part in ("01_stub", "It runs.", "count", "3", "an integer >= 1 and <= 9", "how many"):
        assert part in output


def test_run_prints_where_the_notebook_is(inside: Path) -> None:
    result = call("run", "01_stub", "-p", "count", "5")
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.strip())
    assert path.parent == inside / "_build" / "executed" / "custom"
    assert nbformat.read(path, as_version=4).metadata["papermill"]["parameters"] == {"count": 5}
    assert (inside / "ran.txt").read_text() == "01_stub 5\n"


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ((), 3),
        (("--profile", "full"), 8),
        (("--profile", "full", "-f", "values.yaml"), 4),
        (("--profile", "full", "-f", "values.yaml", "-p", "count", "2"), 2),
    ],
)
def test_the_command_line_wins_over_the_file_and_that_over_the_profile(
    inside: Path, words: tuple[str, ...], count: int
) -> None:
    (inside / "values.yaml").write_text("count: 4\n")
    result = call("run", "01", "-o", "mine.ipynb", *words)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(inside / "mine.ipynb")
    assert (inside / "ran.txt").read_text() == f"01_stub {count}\n"


def test_a_run_starts_from_quick_unless_told_otherwise(inside: Path) -> None:
    (inside / "profiles" / "quick.yaml").write_text("description: x\nparameters: {01_stub: {count: 6}}\n")
    for words, count, name in (
        ((), 6, "quick"),
        (("--profile", "defaults"), 3, "defaults"),
        (("--profile", "full"), 8, "full"),
        (("-p", "count", "2"), 2, "custom"),
    ):
        assert call("run", "01", "-o", "mine.ipynb", *words).exit_code == 0
        notebook = nbformat.read(inside / "mine.ipynb", as_version=4)
        assert (inside / "ran.txt").read_text().splitlines()[-1] == f"01_stub {count}"
        assert notebook.metadata["robattr"]["run"]["profile"] == name


def test_a_run_says_first_how_long_it_takes(inside: Path, write_chapter: WriteChapter) -> None:
    """Three times what quick asks for takes three times as long; less than a fifth takes a fifth."""
    (inside / "profiles" / "quick.yaml").write_text("description: x\nparameters: {01_stub: {count: 2}}\n")
    source = (inside / "notebooks" / "01_stub.md").read_text()
    (inside / "notebooks" / "01_stub.md").write_text(source.replace("  claim:", "  cost: [count]\n  claim:", 1))
    times = {"machine": "a processor", "seconds": {"01_stub": 600}}
    (inside / "profiles" / "times.json").write_text(json.dumps(times))
    chapter = book.chapter(inside, "01")
    for values, said in (
        ({"count": 2}, "01_stub: about 10 minutes (10 minutes at quick on one core of a processor)"),
        ({"count": 6}, "01_stub: about 30 minutes with count 6 in place of 2 (10 minutes at quick on "),
        ({"count": 9}, "01_stub: about 45 minutes with count 9 in place of 2"),
        ({"count": 0.01}, "01_stub: about 2 minutes with count 0.01 in place of 2"),
    ):
        assert timing.estimate(chapter, values, inside).startswith(said)
    result = call("run", "01", "-p", "count", "6", "-o", "mine.ipynb")
    assert result.stderr.startswith("01_stub: about 30 minutes with count 6 in place of 2")
    wrong = source.replace("  claim:", "  cost: [number]\n  claim:", 1)
    (inside / "notebooks" / "01_stub.md").write_text(wrong)
    assert "'cost' names 'number', which is no parameter" in refused(call("run", "01"))


def test_times_are_those_of_the_executed_book(inside: Path) -> None:
    with pytest.raises(book.ChapterError, match="chapters of 0 machines"):
        timing.note_times(inside / "_build" / "executed" / "quick", inside)
    done = inside / "_build" / "executed" / "quick" / "01_stub.ipynb"
    assert call("run", "01", "-o", str(done)).exit_code == 0
    noted = json.loads(timing.note_times(done.parent, inside).read_text())
    duration = nbformat.read(done, as_version=4).metadata["papermill"]["duration"]
    assert noted["seconds"] == {"01_stub": round(duration)}


def test_a_run_can_be_a_page_that_stands_alone(inside: Path, write_chapter: WriteChapter) -> None:
    code = (
        "from IPython.display import HTML, Markdown, display\n"
        "print('<b>not bold</b>')\n"
        "display(Markdown('**bold** and $x^2$, see {ref}`the map <fig-map>` and [page](other.md)'))\n"
        "display(HTML('<em>said</em>'))\n"
        "import matplotlib.pyplot as plt\n"
        "_ = plt.plot([1, 2])"
    )
    write_chapter("01_stub", code=code)
    result = call("run", "01", "-o", "mine.ipynb", "--html", "out/mine.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "out/mine.html"
    page = (inside / "out" / "mine.html").read_text(encoding="utf-8")
    assert "<title>The title of 01_stub</title>" in page
    assert "&lt;b&gt;not bold&lt;/b&gt;" in page
    assert re.search(r"<strong>bold</strong> and (<span[^>]*>)?<math", page)
    assert "see the map and page" in page
    assert "<em>said</em>" in page
    assert '<img alt="" src="data:image/png;base64,' in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page), "nothing is loaded"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "02_none"), "no chapter '02_none'"),
        (("run", "01", "-p", "cuont", "5"), "no parameter 'cuont'; did you mean 'count'?"),
        (("run", "01", "-p", "count", "50"), "parameter 'count' cannot be 50; it accepts an integer >= 1 and <= 9"),
        (("run", "01", "-p", "count", "[1"), "parameter 'count': not valid YAML"),
        (("run", "01", "--profile", "none"), "no profile 'none'"),
        (("run", "01", "-f", "none.yaml"), "none.yaml"),
        (("run", "01", "--html", "profiles"), "--html is profiles; accepted is a file that ends in .html"),
        (("run", "01", "-f", "list.yaml"), "list.yaml: must map parameters to values"),
        (("chapters", "02"), "no chapter '02'"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(inside: Path, words: tuple[str, ...], said: str) -> None:
    (inside / "list.yaml").write_text("[1]\n")
    assert said in refused(call(*words))
    assert not (inside / "ran.txt").exists()
    assert not (inside / "_build").exists()


def test_a_chapter_that_fails_is_its_traceback_and_status_1(inside: Path, write_chapter: WriteChapter) -> None:
    write_chapter("01_stub", code="raise RuntimeError('no luck')")
    result = call("run", "01", "-o", "out.ipynb")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "raise RuntimeError('no luck')" in result.stderr
    assert result.stderr.endswith("robattr: 01_stub failed in cell [2]: RuntimeError: no luck\n")
    assert not (inside / "out.ipynb").exists()


def test_a_traceback_can_go_to_a_file(inside: Path, write_chapter: WriteChapter) -> None:
    write_chapter("01_stub", code="raise RuntimeError('no luck')")
    result = call("run", "01", "-o", "out.ipynb", "--errors", "logs/01.log")
    assert (result.exit_code, result.output) == (1, "")
    assert (inside / "logs" / "01.log").read_text().endswith("RuntimeError: no luck\n")


def test_data_sets_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [
        SimpleNamespace(name="digits", description="small", present=True, location="a wheel", size="1 MB"),
        SimpleNamespace(name="photos", description="large", present=False, location="nowhere", size="9 GB"),
    ]
    monkeypatch.setattr(data, "available", lambda root=None: sets)
    lines = call("data").stdout.splitlines()
    digits, photos = (next(line for line in lines if name in line) for name in ("digits", "photos"))
    assert [part.strip() for part in digits.strip("│").split("│")] == ["digits", "yes", "small", "1 MB", "a wheel"]
    assert [part.strip() for part in photos.strip("│").split("│")] == ["photos", "no", "large", "9 GB", "nowhere"]


def test_the_data_sets_there_really_are() -> None:
    output = call("data").stdout
    for each in data.available():
        assert each.name in output


def test_data_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data, "fetch", lambda name, root=None: Path(root) / name)
    assert call("data", "fetch", "digits", "--root", str(tmp_path)).stdout == f"{tmp_path / 'digits'}\n"


def test_data_that_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, root: Path | None = None) -> Path:
        raise data.DataError("it is\nnot there")

    monkeypatch.setattr(data, "fetch", fail)
    assert refused(call("data", "fetch", "digits")) == "robattr: it is not there\n"
