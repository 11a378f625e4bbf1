"""Proofs are folded: a reader passes over them, opens one or all, and has them on paper."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import REPOSITORY, draw_book

sys.path.insert(0, str(REPOSITORY / "book"))
import offline

from robattr.pages import alone

TEXT = """\
# One

A chapter that has two proofs, and a hint to a question.

```{prf:theorem} A sum
:label: thm-sum
One and one are two.
```

```{prf:proof}
*First.* It is so, since

$$
1 + 1 = 2 .
$$

Nothing is left to show.
```

```{dropdown} Hint
Something that is not for paper.
```

```{prf:proof}
Another one, with $x$.
```
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_book(tmp_path_factory.mktemp("book"), TEXT, code="pass")


def test_proofs_are_folded_under_the_name_of_what_they_prove(pages: Path) -> None:
    soup = BeautifulSoup((pages / "notebooks" / "01_one.html").read_text(encoding="utf-8"), "html.parser")
    first, second = soup.select("details.proof-folded")
    assert not first.has_attr("open")
    assert [each.summary.get_text() for each in (first, second) if each.summary] == ["Proof of Theorem 1", "Proof"]
    assert first.p is not None
    assert first.p.get_text() == "First. It is so, since"
    assert second.p is not None
    assert second.p.get_text().startswith("Another one")
    assert soup.select("div.proof.theorem > .admonition-title")  # what is proven stays in sight
    status = BeautifulSoup((pages / "book" / "status.html").read_text(encoding="utf-8"), "html.parser")
    assert status.select(".proofs-switch") == []


@pytest.fixture(params=[("light", 1280), ("dark", 1280), ("light", 390)], ids=lambda each: f"{each[0]}-{each[1]}")
def page(request: pytest.FixtureRequest, chromium: Any, pages: Path) -> Iterator[Any]:
    theme, width = request.param
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=theme)
    page = context.new_page()
    page.goto((pages / "notebooks" / "01_one.html").as_uri(), wait_until="load")
    page.evaluate("window.MathJax?.startup?.promise")
    yield page
    context.close()


def test_one_switch_opens_all_proofs_and_is_remembered(page: Any) -> None:
    test_book = pytest.importorskip("test_book")
    proofs, ends = page.locator("details.proof-folded"), page.get_by_text("Nothing is left to show.")
    assert not ends.is_visible()
    assert test_book.stumbles(page) == []
    # One by itself, with the keyboard.
    proofs.first.locator("summary").focus()
    page.keyboard.press("Enter")
    assert ends.is_visible()
    assert proofs.evaluate_all("all => all.map((each) => each.open)") == [True, False]
    assert page.get_by_role("button", name="Show code").is_visible()
    switch = page.get_by_role("button", name="Show proofs")
    switch.focus()
    page.keyboard.press("Enter")
    assert proofs.evaluate_all("all => all.every((each) => each.open)")
    assert page.locator("details.proof-folded mjx-container").first.bounding_box()["height"] > 10
    assert test_book.stumbles(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.reload(wait_until="load")
    assert ends.is_visible()
    page.get_by_role("button", name="Hide proofs").click()
    assert not ends.is_visible()


def test_printed_pages_have_the_proofs_and_no_hints(chromium: Any, pages: Path, tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    table = {"root": "notebooks/01_one", "parts": []}
    offline.printed(pages, table, tmp_path / "book.pdf", chromium)
    text = " ".join(" ".join(each.extract_text() for each in pypdf.PdfReader(tmp_path / "book.pdf").pages).split())
    assert "Nothing is left to show." in text
    assert "Hint" in text
    assert "not for paper" not in text


def test_a_page_that_stands_alone_folds_proofs_and_prints_them(chromium: Any, tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    text = TEXT.replace("```{dropdown} Hint\nSomething that is not for paper.\n```\n", "")
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("secret = 1")]
    path = tmp_path / "one.html"
    path.write_text(alone.chapter_page(nbformat.v4.new_notebook(cells=cells), "One", tmp_path), encoding="utf-8")
    page = chromium.new_page()
    page.goto(path.as_uri())
    proofs, ends = page.locator("details.proof-folded"), page.get_by_text("Nothing is left to show.")
    assert proofs.locator("summary").all_inner_texts() == ["Proof of the theorem (A sum)", "Proof"]
    assert page.get_by_text("One and one are two.").is_visible()
    assert not ends.is_visible()
    page.pdf(path=str(tmp_path / "one.pdf"))
    sheets = " ".join(" ".join(each.extract_text() for each in pypdf.PdfReader(tmp_path / "one.pdf").pages).split())
    assert "Nothing is left to show." in sheets
    assert "Another one, with" in sheets
    assert "secret" not in sheets
    assert not ends.is_visible()  # as it was
    proofs.first.locator("summary").click()
    assert ends.is_visible()
    page.close()


def test_after_printing_proofs_are_as_they_were(page: Any) -> None:
    proofs = page.locator("details.proof-folded")
    proofs.nth(1).locator("summary").click()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert proofs.evaluate_all("all => all.map((each) => each.open)") == [True, True]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert proofs.evaluate_all("all => all.map((each) => each.open)") == [False, True]
