"""What makes pages easy to read: the finding first, one spelling, and words that lead to where they are defined."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import REPOSITORY

from robattr.pages import chapters

sys.path.insert(0, str(REPOSITORY / "book"))
import mending
import reading

GLOSSARY = REPOSITORY / "book" / "glossary.md"
PROSE = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(
        path
        for folder in ("book", "notebooks", "lessons", "robattr")
        for path in sorted((REPOSITORY / folder).rglob("*.md"))
    ),
]
# British forms, as beginnings of words; names of papers, of parameters and of data sets keep theirs.
BRITISH = re.compile(
    r"\b(?:analys(?:e[ds]?|ing)\b(?<!analyses)|artefact|behaviour|cancell(?:ed|ing)|catalogue|centr(?:e[ds]?|ing)\b|colour|defence"
    r"|favour|grey|honour|judgement|label(?:led|ling)\b(?!:)|modell(?:ed|ing)|neighbour|programme\b|travell|whilst"
    r"|(?:emphas|general|initial|maxim|minim|normal|optim|organ|penal|random|recogn|regular|summar|visual)is(?:e[ds]?|ing|ation)\b)",
    re.IGNORECASE,
)


def unquoted(text: str) -> str:
    """Markdown without code and its front matter."""
    text = re.sub(r"\A---\n.*?^---$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(
        r"^(`{3,}|~{3,})(?!\{(?:prf|figure|glossary|note|admonition|exercise)).*?^\1[ ]*$", "", text, flags=re.M | re.S
    )
    return re.sub(r"`[^`]*`", "", text)


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def prose() -> Iterator[tuple[str, str]]:
    """Every text for readers, and the file that it is from."""
    for path in PROSE:
        yield str(path.relative_to(REPOSITORY)), unquoted(path.read_text(encoding="utf-8"))
    for path in sorted((REPOSITORY / "robattr").rglob("*.py")):
        yield str(path.relative_to(REPOSITORY)), re.sub(r"`[^`]*`", "", "\n".join(docstrings(path)))


def test_the_list_of_british_forms_finds_them() -> None:
    for word in ("Behaviour", "colours", "normalised", "centre", "analysed", "labelled", "defence", "neighbouring"):
        assert BRITISH.search(f"the {word} of"), word
    for word in (
        "behavior",
        "center",
        "analyses",
        "advertise",
        "precise",
        "labeled",
        "analysis",
        "otherwise",
        "concise",
    ):
        assert not BRITISH.search(f"the {word} of"), word


def test_spelling_is_american() -> None:
    assert [(name, match[0]) for name, text in prose() for match in BRITISH.finditer(text)] == []


def test_a_percent_sign_follows_its_number_without_a_space() -> None:
    apart = re.compile(r"(?:\d|\}) %(?![\w(%])")
    texts = [*PROSE, *(REPOSITORY / "robattr" / "pages").rglob("*.py"), *(REPOSITORY / "book" / "_static").glob("*.js")]
    assert [(path.name, found) for path in texts if (found := apart.findall(path.read_text(encoding="utf-8")))] == []


def test_gradient_times_input_has_one_name() -> None:
    other = re.compile(r"input\s*(?:×|x|times|\*)\s*gradient|gradient\s+(?:x|times|\*)\s+input", re.IGNORECASE)
    assert [(name, match[0]) for name, text in prose() for match in other.finditer(text)] == []
    for path in REPOSITORY.glob("notebooks/*.md"):
        assert other.findall(path.read_text(encoding="utf-8").replace("input_x_gradient", "")) == [], path.name


def test_every_term_that_is_linked_is_defined_once() -> None:
    names = [name.lower() for name in reading.terms(GLOSSARY)]
    assert len(names) > 30
    assert len(set(names)) == len(names)
    for path in PROSE:
        for used in re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", path.read_text(encoding="utf-8")):
            assert used.lower() in names, f"{path.name}: {used}"


@pytest.mark.parametrize(
    "term", ["RPS", "AAM", "Adv-Insertion", "attrition", "top-k intersection", "mass center", "spread"]
)
def test_the_glossary_has_what_readers_asked_for(term: str) -> None:
    assert term in reading.terms(GLOSSARY)


def test_first_uses_lead_to_the_glossary() -> None:
    texts = [
        "# RPS in a title\n\n`RPS` in code, $RPS$ in a formula, [RPS](x) in a link, then RPS and RPS.",
        "| RPS |\n\nHessian penalties and a Hessian; Adv-Insertion before Insertion. ```\nspread\n```",
    ]
    names = ["Hessian penalty", "Adv-Insertion", "Insertion", "Hessian", "RPS", "spread"]
    first, second = reading.link_terms(texts, names)
    assert first == texts[0].replace("then RPS", "then {term}`RPS <RPS>`")
    assert "{term}`Hessian penalties <Hessian penalty>` and a {term}`Hessian <Hessian>`;" in second
    assert second.startswith("| RPS |")
    assert "; {term}`Adv-Insertion <Adv-Insertion>` before" in second
    assert "before {term}`Insertion <Insertion>`" in second
    receipt = '<details class="receipt">heatmap: `results`</details>'
    assert reading.link_terms([receipt, "a heatmap"], ["heatmap"]) == [receipt, "a {term}`heatmap <heatmap>`"]
    assert reading.link_terms(["two heatmaps"], ["heatmap"]) == ["two {term}`heatmaps <heatmap>`"]
    assert reading.link_terms(["```{math}\nheatmap\n```\n\n    heatmap"], ["logit"]) == [
        "```{math}\nheatmap\n```\n\n    heatmap"
    ]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "notebooks").glob("*.md")), ids=lambda path: path.stem)
def test_a_cell_of_a_named_figure_shows_only_that(path: Path) -> None:
    """Whatever else it showed would be a second target of the figure's name."""
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "code" and "figure" in cell.metadata.get("mystnb", {}):
            assert "Markdown(" not in cell.source


def test_the_finding_comes_before_how_it_was_found() -> None:
    new = nbformat.v4
    receipt = new.new_markdown_cell('<details class="receipt"></details>')
    found = new.new_code_cell("finding", metadata={"tags": ["finding"]})
    figure = new.new_code_cell(
        "figure", metadata={"tags": ["hide-input", "finding"], "mystnb": {"figure": {"name": "fig-x"}}}
    )
    notebook = new.new_notebook(
        cells=[
            new.new_markdown_cell("# Title\n\nText."),
            new.new_code_cell("p"),
            figure,
            new.new_markdown_cell("x"),
            found,
            receipt,
        ]
    )
    reading.finding_first(notebook)
    assert [cell.source for cell in notebook.cells] == [
        "# Title",
        "finding",
        receipt.source,
        "figure",
        "Text.",
        "p",
        "x",
    ]


@pytest.mark.parametrize("name", sorted(chapters.chapter_names(REPOSITORY)))
def test_every_chapter_has_a_finding_and_its_figure(name: str) -> None:
    """Both come from cells: the numbers are computed."""
    text = (REPOSITORY / "notebooks" / f"{name}.md").read_text(encoding="utf-8")
    cells = [
        cell
        for cell in re.findall(r"^```\{code-cell\}.*?^```$", text, re.M | re.S)
        if re.search(r"tags: \[.*\bfinding\b", cell)
    ]
    assert len(cells) == 2
    said, drawn = sorted(cells, key=lambda cell: "name: fig-" in cell)
    assert "display(Markdown(" in said
    assert "name: fig-" in drawn


def test_excerpts_have_sentences() -> None:
    text = '<p>A length of <span class="math">\\(\\ell_2\\)</span> 1.</p><details class="receipt">runs</details>'
    assert mending.words(BeautifulSoup(f"<article>{text}</article>", "html.parser")) == "A length of … 1."


def test_long_names_in_tables_break_where_one_expects_it_and_are_found_whole() -> None:
    name = '<code><span class="pre">tests/test_a.py::test_b</span></code>'
    soup = BeautifulSoup(
        f"<article><table class='promises'><td>{name}</td></table><p>{name}</p></article>", "html.parser"
    )
    mending.break_names(soup)
    in_table, in_text = soup.select(".pre")
    assert str(in_table.decode_contents()).split("<wbr/>") == ["tests/", "test_", "a.", "py::", "test_", "b"]
    assert in_text.decode_contents() == "tests/test_a.py::test_b"
    assert mending.words(soup) == "tests/test_a.py::test_b tests/test_a.py::test_b"
