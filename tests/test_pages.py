"""What a reader copies from a page runs: Python and commands of the README, of the book's pages and of the chapters."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from click.testing import CliRunner
from conftest import REPOSITORY
from PIL import Image

from robattr import cli, data
from robattr.pages import alone, chapters, execution
from robattr.pages.needs import check_needs
from robattr.studies.grids import load_grid

PAGES = [
    REPOSITORY / "README.md",
    *sorted(REPOSITORY.glob("book/*.md")),
    *sorted(REPOSITORY.glob("notebooks/*.md")),
]


def blocks(page: Path, language: str) -> list[str]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return pattern.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[str]:
    """``run CHAPTER ...`` of the lines that call the command line for a chapter."""
    found = []
    for block in blocks(page, "shell"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if len(words) > 1 and Path(words[0]).name == "robattr" and words[1] == "run":
                found.append(shlex.join(words[1:]))
    return found


CODE = [page for page in PAGES if blocks(page, "python")]
COMMANDS = sorted({command for page in PAGES for command in commands(page)})
GRIDS = sorted({grid for page in PAGES for grid in re.findall(r"GRID=([\w-]+)", page.read_text(encoding="utf-8"))})


def test_pages_have_code_and_commands() -> None:
    assert len(CODE) > 10
    assert len(COMMANDS) > 10
    assert len(GRIDS) > 4


def test_the_code_of_a_page_is_no_wider_than_its_column() -> None:
    """80 characters, beyond which a reader would have to scroll; the README has a page of its own."""
    said = []
    for page in {*PAGES, REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("book/contributing/*.md")} - {PAGES[0]}:
        for language in ("python", "shell"):
            lines = [line for each in blocks(page, language) for line in each.splitlines()]
            said += [(page.name, line) for line in lines if len(line) > 80]
    assert said == []


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block after another: later ones use names of earlier ones."""
    (tmp_path / "results").symlink_to(REPOSITORY / "results")  # names in the code are relative to the repository
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        exec(compile("\n".join(blocks(page, "python")), page.name, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("command", COMMANDS)
def test_chapters_accept_the_parameters_of_a_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def execute(chapter: chapters.Chapter, output: Path, values: dict[str, Any], **_: Any) -> Path:
        asked.append(values)
        return output

    monkeypatch.setattr(execution, "execute", execute)
    monkeypatch.setattr(alone, "write_page", lambda *_: "page.html")
    # Whether they fit each other is another question, and these networks would have to be downloaded.
    monkeypatch.setattr(cli, "check_needs", lambda *_: [])
    for name in ("net.py", "net.pt", "names.txt"):
        (tmp_path / name).touch()
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(REPOSITORY)
    words = [word.replace("/path/to/", f"{tmp_path}/") for word in shlex.split(command)]
    # What the profile sets besides is none of the command's.
    start = [] if "--profile" in words else ["--profile", "defaults"]
    done = CliRunner().invoke(cli.main, [*words, *start, "-o", str(tmp_path / "out.ipynb")])
    assert done.exit_code == 0, done.output
    assert len(asked[0]) == command.count(" -p ")


@pytest.mark.parametrize("name", [grid for grid in GRIDS if not grid.startswith("my-")])
def test_grids_that_pages_name_are_there(name: str) -> None:
    assert dict(load_grid(REPOSITORY / "results" / "reference" / f"{name}.yaml").runs())


@pytest.mark.parametrize("name", ["06_small_hessian", "07_aligned_gradients", "09_under_attack"])
def test_chapters_of_trained_networks_take_a_folder_of_the_same_classes(name: str, tmp_path: Path) -> None:
    """Of pictures of any size, which are made as large as those that the networks were trained on."""
    chapter = chapters.chapter(REPOSITORY, name)
    for i, each in enumerate(data.contents("cifar10-samples").class_names):
        (tmp_path / each).mkdir()
        Image.new("RGB", (40 + i, 50)).save(tmp_path / each / "0.png")
    given = {"dataset": f"folder:{tmp_path}"}
    given |= {"images": 3} if name.startswith("06") else {"shown": 3}
    (said,) = check_needs(chapter, given, REPOSITORY)
    assert "10 pictures of 10 classes" in said
    shutil.rmtree(tmp_path / "truck")
    with pytest.raises(
        chapters.ChapterError, match=r"9 classes; the networks of .* take 3 x 32 x 32 and 10 classes"
    ) as error:
        check_needs(chapter, given, REPOSITORY)
    assert "\n" not in str(error.value)


def test_a_page_that_stands_alone_names_papers_theorems_and_parameters(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "notation.md").write_text("```{prf:proposition} Two are one\n:label: prop-two\n```\n")
    code = nbformat.v4.new_code_cell
    shown = nbformat.v4.new_output("display_data", {"text/markdown": "As {prf:ref}`prop-two` says."})
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell(
            "Ng and Li {cite}`ng2019two,li2020one` by {prf:ref}`prop-two`, {prf:ref}`it <prop-two>`, "
            "{prf:ref}`prop-x`.\n\n"
            "Top-k\n: the largest"
        ),
        code("a = 1", metadata={"tags": ["parameters"]}),
        code("a = 2", metadata={"tags": ["injected-parameters"]}),
        code("b = a", outputs=[shown]),
    ])  # fmt: skip
    page = BeautifulSoup(alone.chapter_page(notebook, "One", tmp_path), "html.parser")
    assert page.p.text == "Ng and Li 2019, 2020 by Two are one, it, prop-x."
    assert (page.dt.text, page.dd.text.strip()) == ("Top-k", "the largest")
    assert [each.text for each in page("summary")] == ["Parameters", "Parameters of this run", "Code"]
    assert page("p")[-1].text == "As Two are one says."


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_that_stands_alone_can_be_read_in_both_themes(chromium: Any, tmp_path: Path, scheme: str) -> None:
    button = '<div class="live-attack"><button>Attack</button></div>'
    output = nbformat.v4.new_output("display_data", {"text/html": button})
    text = nbformat.v4.new_markdown_cell("# One\n\nA `name` and [a link](https://example.org).")
    notebook = nbformat.v4.new_notebook(cells=[text, nbformat.v4.new_code_cell("secret = 1", outputs=[output])])
    path = tmp_path / "one.html"
    path.write_text(alone.chapter_page(notebook, "One", REPOSITORY), encoding="utf-8")
    page = chromium.new_page(color_scheme=scheme)
    page.goto(path.as_uri())
    look = "e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor, s.borderTopWidth]; }"

    def light(color: str) -> float:
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 765

    ground = light(page.locator("body").evaluate(look)[1])
    assert (ground > 0.9) if scheme == "light" else (ground < 0.2)
    for each in ("h1", "p", "a", "summary", "button", "code >> nth=0"):
        assert abs(light(page.locator(each).first.evaluate(look)[0]) - ground) > 0.4, each
    assert page.locator("button").evaluate(look)[2] == "1px"
    page.close()
