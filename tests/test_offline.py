"""The book to take along: what is packed and printed is what was built."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from robattr import _yaml

sys.path.insert(0, str(REPOSITORY / "book"))
import offline

TABLE = {
    "root": "first",
    "parts": [{"caption": "A part", "chapters": [{"file": "in/second", "sections": [{"file": "third"}]}]}],
}


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    for name, body in (
        ("first", '<h1>One</h1><a href="in/second.html#there">next</a> <a href="gone.html">gone</a>'),
        ("in/second", '<h1>Two<a href="#x">#</a></h1><p style="break-before: page">more</p>'),
        ("third", '<h1>Three</h1><a href="https://example.org/">away</a>'),
    ):
        path = tmp_path / "html" / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<!doctype html><meta charset=utf-8><title>t</title>{body}")
    return tmp_path / "html"


def test_the_pages_are_those_of_the_table_of_contents() -> None:
    assert list(offline.contents(TABLE)) == [(None, "first"), ("A part", "in/second"), (None, "third")]
    named = [name for _, name in offline.contents(_yaml.read(REPOSITORY / "_toc.yml"))]
    assert len(named) == len(set(named)) > 30
    assert {f"notebooks/{path.stem}" for path in REPOSITORY.glob("notebooks/*.md")} <= set(named)


def test_the_zip_holds_every_file_and_is_the_same_each_time(pages: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b/a.zip"):
        offline.packed(pages, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b" / "a.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert file.namelist() == ["a/first.html", "a/in/second.html", "a/third.html"]
        assert file.read("a/third.html") == (pages / "third.html").read_bytes()


def test_the_pdf_has_an_outline_and_links_that_lead_within(chromium: Any, pages: Path, tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    assert offline.printed(pages, TABLE, tmp_path / "book.pdf", chromium) == 4
    book = pypdf.PdfReader(tmp_path / "book.pdf")
    first, part, (second, third) = book.outline
    assert [each.title for each in (first, part, second, third)] == ["One", "A part", "Two", "Three"]
    assert [book.get_destination_page_number(each) for each in (first, second, third)] == [0, 1, 3]
    (action,) = [note.get_object()["/A"] for note in book.pages[0]["/Annots"]]
    assert action["/S"] == "/GoTo"
    assert book.get_page_number(action["/D"][0].get_object()) == 1
    assert [note.get_object()["/A"]["/URI"] for note in book.pages[3]["/Annots"]] == ["https://example.org/"]
    assert str(tmp_path).encode() not in (tmp_path / "book.pdf").read_bytes(), "no path of this machine"
