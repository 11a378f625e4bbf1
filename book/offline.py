"""The built book to take along: all pages in a zip, or in one PDF that a Chromium on this machine prints.

make zip    _build/robattr-book.zip, to be unpacked and read from the disk
make pdf    _build/robattr-book.pdf, with an outline; a minute
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robattr import _yaml
from robattr._files import beside

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "_build" / "html"
_THEN = (1980, 1, 1, 0, 0, 0)  # the same book is the same file
_MARGIN = "16mm"


def contents(table: Any) -> Iterator[tuple[str | None, str]]:
    """Pages in the order of ``_toc.yml``, each with the caption of the part that begins with it, if one does."""
    yield None, table["root"]
    for part in table["parts"]:
        caption = part.get("caption")
        for page in _below(part["chapters"]):
            yield caption, page
            caption = None


def _below(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        yield entry["file"]
        yield from _below(entry.get("sections", []))


def packed(pages: Path, output: Path) -> None:
    """All files of the built book in a zip, in one folder."""
    with beside(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(each for each in pages.rglob("*") if each.is_file()):
            name = zipfile.ZipInfo(f"{output.stem}/{path.relative_to(pages).as_posix()}", _THEN)
            name.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(name, path.read_bytes())


def printed(pages: Path, table: Any, output: Path, chromium: Any) -> int:
    """The pages as one PDF with an outline by parts and pages; how many sheets it has.

    Args:
        pages: the built book.
        table: of contents, as read from ``_toc.yml``.
        output: the PDF.
        chromium: a browser of Playwright.
    """
    from pypdf import PdfWriter

    book = PdfWriter()
    part, starts = None, dict[str, int]()
    with tempfile.TemporaryDirectory() as folder:
        for caption, name in contents(table):
            sheets = Path(folder) / "page.pdf"
            title = _print(chromium, pages / f"{name}.html", sheets)
            start = starts[(pages / f"{name}.html").as_uri()] = len(book.pages)
            book.append(str(sheets), import_outline=False)
            if caption is not None:
                part = book.add_outline_item(title=caption, page_number=start)
            book.add_outline_item(title=title, page_number=start, parent=part)
    _lead_within(book, starts)
    with beside(output) as temporary:
        book.write(temporary)
    return len(book.pages)


def _lead_within(book: Any, starts: dict[str, int]) -> None:
    """Let links to pages lead to their first sheets; one to another file of this machine is none."""
    from pypdf.generic import ArrayObject, DictionaryObject, NameObject

    for sheet in book.pages:
        kept = ArrayObject()
        for note in sheet.get("/Annots", ()):
            action = note.get_object().get("/A", {})
            address = str(action.get("/URI", ""))
            if address.startswith("file:"):
                start = starts.get(address.partition("#")[0])
                if start is None:
                    continue
                to = ArrayObject([book.pages[start].indirect_reference, NameObject("/Fit")])
                go = {NameObject("/S"): NameObject("/GoTo"), NameObject("/D"): to}
                note.get_object()[NameObject("/A")] = DictionaryObject(go)
            kept.append(note)
        if "/Annots" in sheet:
            sheet[NameObject("/Annots")] = kept


def _print(chromium: Any, page: Path, sheets: Path) -> str:
    """Print a page as it looks in light, once its formulas are set; its title."""
    tab = chromium.new_page(color_scheme="light")
    tab.goto(page.as_uri())
    tab.evaluate("window.MathJax?.startup?.promise")
    for figure in tab.query_selector_all("img[loading=lazy]"):
        figure.evaluate("each => { each.loading = 'eager'; return each.decode(); }")
    tab.emulate_media(media="print")
    margin = dict.fromkeys(("top", "bottom", "left", "right"), _MARGIN)
    tab.pdf(path=str(sheets), format="A4", margin=margin, scale=0.85, print_background=True)
    title = str(tab.evaluate("document.querySelector('h1')?.firstChild?.textContent ?? document.title"))
    tab.close()
    return title.strip()


def main() -> None:
    """Make what is asked for, from the pages that are built."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["zip", "pdf"])
    kind = parser.parse_args().kind
    output = ROOT / "_build" / f"robattr-book.{kind}"
    if not (PAGES / "index.html").is_file():
        sys.exit("book/offline.py: there are no pages in _build/html; run make book first")
    if kind == "zip":
        packed(PAGES, output)
        print(output.relative_to(ROOT))
        return
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("book/offline.py: no chromium on PATH, which prints the pages; make zip needs none")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        sheets = printed(PAGES, _yaml.read(ROOT / "_toc.yml"), output, chromium)
        chromium.close()
    print(f"{output.relative_to(ROOT)}, {sheets} sheets")


if __name__ == "__main__":
    main()
