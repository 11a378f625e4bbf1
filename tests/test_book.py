"""The built book in a browser: every page complete, silent, offline, legible in both themes and on a phone."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import axe_playwright_python
import nbformat
import numpy as np
import pytest
import torch
from conftest import PATIENCE_S, REPOSITORY, lay_out_book
from fontTools.ttLib import TTFont
from PIL import Image

from robattr import _yaml, models
from robattr.pages import chapters, figures
from robattr.studies import claims as judged

pytestmark = pytest.mark.browser

HTML = REPOSITORY / "_build" / "html"
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
HEAVIEST = 3_000_000
"""Bytes that a page loads at most, all scripts, styles and fonts included."""
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


def pages() -> list[str]:
    """Pages of the table of contents, without their suffix."""
    contents = _yaml.read(REPOSITORY / "_toc.yml")
    parts = [contents, *contents.get("parts", [])]
    entries = [entry for part in parts for entry in part.get("chapters", [])]
    return [contents["root"], *(page["file"] for entry in entries for page in (entry, *entry.get("sections", [])))]


@dataclass
class Visit:
    """A page as the browser saw it."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Any:
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built (make book)")
    return request.getfixturevalue("chromium")


def new_context(browser: Any, **options: Any) -> Any:
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_S * 1000)
    return context


def visit(browser: Any, name: str, size: dict[str, int], theme: str) -> Visit:
    """Open a page from the disk and let its scripts finish."""
    context = new_context(browser, viewport=size)
    context.add_init_script(
        f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}');"
        "document.documentElement && (document.documentElement.dataset.mode = '" + theme + "');"
    )
    seen = Visit(context.new_page())
    seen.page.on("console", lambda message: message.type == "error" and seen.complaints.append(message.text))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("requestfailed", lambda request: seen.complaints.append(f"failed: {request.url}"))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto((HTML / f"{name}.html").as_uri(), wait_until="load")
    if "MathJax" in seen.page.content():
        seen.page.wait_for_function("window.MathJax === undefined || MathJax.startup?.promise !== undefined")
        seen.page.evaluate("window.MathJax?.startup?.promise")
    return seen


@pytest.fixture(params=pages())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stumbles(page: Any) -> list[str]:
    """What axe-core finds: rules for readers with a keyboard or a screen reader that the page breaks, and where."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'], preload: false })")
    return [f"{each['id']}: {node['html'][:200]}" for each in found["violations"] for node in each["nodes"]]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_is_complete_and_legible(browser: Any, name: str, theme: str) -> None:
    seen = visit(browser, name, DESK, theme)
    page = seen.page
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.title().strip()
    assert page.locator("article h1").count() == 1

    # Formulas: as many typeset as there are in the source, none with an error.
    assert page.locator("mjx-container").count() == page.locator(".math").count()
    assert page.locator("mjx-merror").count() == 0
    assert page.locator(".math", has_text=re.compile(r"\\[(\[]")).count() == 0

    for picture in page.locator("article img").all():
        assert (picture.get_attribute("alt") or "").strip(), picture.get_attribute("src")
        assert picture.evaluate("each => each.decode().then(() => each.naturalWidth)") > 0

    assert page.locator("html").get_attribute("data-theme") == theme
    assert brightness(page.locator("body").evaluate("each => getComputedStyle(each).backgroundColor")) == pytest.approx(
        {"light": 1.0, "dark": 0.08}[theme], abs=0.08
    )
    assert page.evaluate(CONTRASTS) == []
    assert stumbles(page) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert [each for each, count in Counter(ids).items() if count > 1] == []
    assert len(page.locator("meta[name=description]").get_attribute("content")) > 30
    assert page.locator("mjx-container[tabindex='0']:not([data-scrolls])").count() == 0  # a formula is no stop

    # All that was asked for, the page too: what is written into it as well as what stands beside it.
    loaded = {urlsplit(url).path for url in seen.requests if url.startswith("file:")}
    assert sum(Path(unquote(path)).stat().st_size for path in loaded) <= HEAVIEST
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_fits_a_phone(browser: Any, name: str, theme: str) -> None:
    page = visit(browser, name, PHONE, theme).page
    assert stumbles(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("document.body.scrollWidth") <= PHONE["width"]
    page.context.close()


FIGURES = "article a.enlarge"
COLUMN = figures.style.COLUMN
"""Pixels at which a figure's smallest text has nine (tests/test_figures.py)."""


def least_text(link: Any, width: float) -> float:
    """Pixels of the smallest text of a figure that is shown so wide: of a drawing as it says, of a picture at most."""
    file = HTML / "_images" / Path(unquote(urlsplit(link.evaluate("each => each.href")).path)).name
    natural = link.locator("img").evaluate("each => each.naturalWidth")
    if file.suffix != ".svg":
        return figures.style.LEAST * width / min(natural, COLUMN)
    text = file.read_text(encoding="utf-8")
    sizes = [float(size) for size in re.findall(r"font(?:-size|): ?(?:\d+ )?([\d.]+)px", text)]
    sizes += [float(size) for size in re.findall(r'font-size="([\d.]+)"', text)]
    assert sizes or "<text" not in text, file.name
    return min(sizes, default=math.inf) * width / natural


def legible(page: Any) -> Iterator[Any]:
    """The figures of a page, each once its text was seen to be large enough in the page."""
    for link in page.locator(FIGURES).all():
        image = link.locator("img")
        image.evaluate("each => each.decode()")
        padding = 2 * image.evaluate("each => parseFloat(getComputedStyle(each).paddingLeft)")
        assert least_text(link, image.bounding_box()["width"] - padding) >= figures.style.LEAST - 0.01
        yield link


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_of_figures_is_legible_on_a_phone(browser: Any, name: str, theme: str) -> None:
    """In the page, which scrolls it sideways in its own box, and enlarged."""
    page = visit(browser, name, PHONE, theme).page
    for link in legible(page):
        assert link.bounding_box()["width"] <= PHONE["width"]
        link.click(position={"x": 20, "y": 20})
        enlarged = page.locator("dialog.enlarged img")
        assert least_text(link, enlarged.bounding_box()["width"]) >= figures.style.LEAST - 0.01
        page.keyboard.press("Escape")
        enlarged.wait_for(state="hidden")
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_figure_is_legible_and_whole_at_a_desk(browser: Any, name: str, theme: str) -> None:
    page = visit(browser, name, DESK, theme).page
    for link in legible(page):
        assert link.evaluate("each => each.scrollWidth <= each.clientWidth"), link.get_attribute("href")
    page.context.close()


def first_line(picture: Path) -> tuple[int, int]:
    """First and last column of the ink of a picture's first line of text."""
    ink = np.asarray(Image.open(picture).convert("L")) < 128
    inked = ink.any(1)
    top = int(inked.argmax())
    columns = ink[top : top + int((~inked[top:]).argmax())].any(0).nonzero()[0]
    return int(columns[0]), int(columns[-1])


@pytest.mark.parametrize("name", [path.stem for path in sorted((REPOSITORY / "notebooks").glob("*.md"))])
def test_the_finding_of_a_figure_is_read_on_a_phone_without_scrolling(browser: Any, name: str) -> None:
    """What a figure says stands in its title, which begins at its left edge and ends within the view."""
    page = visit(browser, f"notebooks/{name}", PHONE, "dark").page
    links = page.locator(f".cell_output {FIGURES.removeprefix('article ')}").all()
    assert links
    for link in links:
        image = link.locator("img")
        image.evaluate("each => each.decode()")
        natural, padding = image.evaluate("each => [each.naturalWidth, parseFloat(getComputedStyle(each).paddingLeft)]")
        scale = (image.bounding_box()["width"] - 2 * padding) / natural
        file = HTML / "_images" / Path(unquote(urlsplit(link.evaluate("each => each.href")).path)).name
        left, right = (padding + scale * column for column in first_line(file))
        assert left < 30, file.name
        assert right <= link.evaluate("each => each.clientWidth"), file.name
    page.context.close()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_figure_opens_enlarged_and_gives_the_place_back(browser: Any, theme: str, size: dict[str, int]) -> None:
    page = visit(browser, "notebooks/02_fragile", size, theme).page
    link = page.locator(FIGURES).nth(1)
    box = page.locator("dialog.enlarged")
    focused = "each => each === document.activeElement"
    page.add_style_tag(content="html { scroll-behavior: auto !important; }")
    link.focus()
    place = page.evaluate("scrollY")
    page.keyboard.press("Enter")
    assert box.evaluate("each => each.matches(':modal')")
    assert box.locator("img").get_attribute("alt") == link.locator("img").get_attribute("alt")
    view = box.locator("div")
    assert view.evaluate(focused)
    assert stumbles(page) == []
    if size is PHONE:
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('dialog.enlarged > div').scrollLeft > 0")
    for _ in range(3):  # the tab key stays inside, or leads out of the page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    box.wait_for(state="hidden")
    assert link.evaluate(focused)
    assert page.evaluate("scrollY") == place
    link.click()
    box.get_by_role("button", name="Close").click()
    box.wait_for(state="hidden")
    assert link.evaluate(focused)
    page.context.close()


def test_without_scripts_a_figure_is_a_link_to_its_picture(browser: Any) -> None:
    context = new_context(browser, java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    page.goto((HTML / "notebooks" / "02_fragile.html").as_uri())
    page.locator(FIGURES).first.click()
    page.wait_for_url("**/_images/*")
    context.close()


def test_every_picture_of_a_page_can_be_enlarged(browser: Any, name: str) -> None:
    page = visit(browser, name, DESK, "light").page
    assert page.locator("article img[src*='_images/']").count() == page.locator(f"{FIGURES} > img").count()
    page.context.close()


def test_from_a_row_of_the_ledger_to_the_executed_cell_in_two_clicks(browser: Any) -> None:
    """Every row links to its anchor; of each chapter one link is clicked, and all its anchors are looked at there."""
    claims = _yaml.read(REPOSITORY / "results" / "claims.yaml")
    # Two tables below each other: experiments, then theorems and code.
    claims.sort(key=lambda claim: claim.get("kind", "experiment") != "experiment")
    rows: dict[str, list[int]] = {}
    for row, claim in enumerate(claims):
        rows.setdefault(claim["chapter"], []).append(row)
    for chapter, places in rows.items():
        page = visit(browser, "notebooks/ledger", DESK, "light").page
        table = page.locator("article table:has(thead :text('Verdict, and where')) tbody tr")
        assert table.count() == len(claims)
        for row in places:
            link = table.nth(row).locator("a")
            assert link.evaluate("each => each.href").endswith(f"/notebooks/{chapter}.html#{claims[row]['anchor']}")
        link.click()
        page.wait_for_url(f"**/notebooks/{chapter}.html#{claims[places[-1]]['anchor']}")
        for claim in (claims[row] for row in places):
            target = page.locator(f"[id='{claim['anchor']}']")
            assert target.count() == 1, claim["id"]
            # The figure's own cell, or the first one of the section.
            cell = target.locator("xpath=ancestor-or-self::*[contains(concat(' ', @class, ' '), ' cell ')]")
            if cell.count() == 0:
                cell = target.locator(
                    "xpath=(following::div | descendant::div)[contains(concat(' ', @class, ' '), ' cell ')]"
                )
            source = cell.first.locator(".cell_input").first
            if not source.locator("pre").first.is_visible():
                page.get_by_role("button", name="Show code").click()
            assert source.locator("pre").first.is_visible(), claim["id"]
        page.context.close()


def test_the_ledger_links_to_the_records_of_every_verdict(browser: Any) -> None:
    page = visit(browser, "notebooks/ledger", DESK, "light").page
    found = page.locator("article a", has_text=re.compile("^Records"))
    links = [link.get_attribute("href") for link in found.all()]
    assert links
    for link in links:
        file = HTML / "notebooks" / link
        lines = file.read_text(encoding="utf-8").splitlines()
        assert lines
        assert all(json.loads(line)["quantity"] for line in lines)
    page.context.close()


def test_each_row_of_the_ledger_has_a_receipt(browser: Any) -> None:
    """Closed until it is asked for, opened by a key, and with what the records say."""
    verdicts, _ = judged.read_ledger(REPOSITORY / "results" / "claims.yaml", REPOSITORY / "results" / "reference")
    verdicts.sort(key=lambda verdict: verdict.claim.kind != "experiment")
    page = visit(browser, "notebooks/ledger", DESK, "light").page
    rows = page.locator("article table:has(thead :text('Verdict, and where')) tbody tr")
    assert rows.count() == len(verdicts)
    for row, verdict in zip(rows.all(), verdicts, strict=True):
        receipt = row.locator("details.receipt")
        assert receipt.count() == bool(verdict.receipts), verdict.claim.id
        for each in verdict.receipts:
            assert not receipt.evaluate("each => each.open")
            receipt.locator("summary").focus()
            page.keyboard.press("Enter")
            said = receipt.inner_text()
            for text in (each.records, each.command, each.minutes, *each.commits, *each.machines):
                assert text in said, (verdict.claim.id, text)
    page.context.close()


# How a chapter reads records, in the cell that shows what they say.
READS = re.compile(r"\b(mean_of|load_records|beside_of|all_of|spread|cross_table|read_ledger|multiverse)\(")


@pytest.mark.parametrize("name", [path.stem for path in sorted((REPOSITORY / "notebooks").glob("*.md"))])
def test_what_comes_from_records_has_a_receipt(name: str) -> None:
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built (make book)")
    text = (HTML / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
    cells = re.split(r'<div class="[^"]*\bcell docutils container', text)[1:]
    missing = []
    for cell in cells:
        source = html.unescape(re.sub(r"<[^>]+>", "", cell.partition('class="cell_output')[0]))
        shown = 'class="cell_output' in cell
        if shown and READS.search(source) and 'class="receipt"' not in cell:
            missing.append(source.strip()[-200:])
    assert missing == []
    # Not only cells that read: those that show what was read before, too.
    assert text.count('<details class="receipt">') >= LEAST.get(name, 0)


LEAST = {"02_fragile": 4, "03_influence": 4, "04_why": 4, "06_small_hessian": 6, "07_aligned_gradients": 8,
         "09_under_attack": 6, "11_beyond": 7, "cross_table": 3, "how_sure": 3, "ledger": 10}  # fmt: skip


def test_chapters_have_the_numbers_of_their_files(browser: Any) -> None:
    page = visit(browser, pages()[0], DESK, "light").page
    for name, number in chapters.contents(REPOSITORY).items():
        shown = page.locator(f"nav a[href$='notebooks/{name}.html']").first.text_content()
        found = re.match(r"(\d+)\. ", shown.strip())
        assert (int(found[1]) if found else None) == number == chapters.number_of(name), shown
    page.context.close()


def test_the_front_door_leads_to_the_first_page(browser: Any) -> None:
    context = new_context(browser)
    page = context.new_page()
    page.goto((HTML / "index.html").as_uri())
    page.wait_for_url(f"**/{pages()[0]}.html")
    context.close()


def test_the_search_finds_excerpts_on_the_disk(browser: Any) -> None:
    context = new_context(browser)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{(HTML / 'search.html').as_uri()}?q=heatmap")
    page.locator("#search-results > p", has_text="Search finished").wait_for()
    found = page.locator("#search-results ul.search li:has(.context)").all()
    excerpts = [each.locator(".context").inner_text() for each in found]
    assert all(len(text) > 40 for text in excerpts)
    assert sum("heatmap" in text.lower() for text in excerpts) > 3  # of a word in code alone a page shows its beginning
    assert complaints == []
    assert stumbles(page) == []
    context.close()


def test_a_search_for_nothing_says_so(browser: Any) -> None:
    context = new_context(browser)
    page = context.new_page()
    for blank in ("", "%20"):
        page.goto(f"{(HTML / 'search.html').as_uri()}?q={blank}")
        page.get_by_text("what you look for").wait_for()
        assert page.locator("#search-results li").count() == 0
    context.close()


def test_icons_are_drawn_from_what_is_left_of_their_font(browser: Any) -> None:
    """Of each icon a rule and its character, and nothing of the hundreds that no page has."""
    page = visit(browser, "notebooks/ledger", DESK, "light").page
    drawn = page.locator("[class*='fa-']").evaluate_all(
        "all => all.map((each) => getComputedStyle(each, '::before').content.replaceAll('\"', ''))"
    )
    (font,) = HTML.glob("_static/vendor/fontawesome/*/webfonts/*")
    characters = {chr(code) for code in TTFont(font).getBestCmap()}
    assert len(drawn) > 5
    assert set(drawn) <= characters
    assert len(characters) < 50
    page.context.close()


def test_one_switch_shows_the_code_of_all_pages(browser: Any) -> None:
    """Hidden until it is asked for; the switch is a stop of the tab key, and the next page remembers."""
    page = visit(browser, "notebooks/01_attributions", DESK, "light").page
    code = page.locator("div.cell_input pre")
    assert code.count() > 5
    assert not any(each.is_visible() for each in code.all())
    assert page.locator("article summary", has_text="code").count() == 0
    switch = page.get_by_role("button", name="Show code")
    switch.focus()
    page.keyboard.press("Enter")
    assert all(each.is_visible() for each in code.all())
    page.goto((HTML / "notebooks" / "ledger.html").as_uri())
    page.locator("div.cell_input pre").first.wait_for(state="visible")
    page.get_by_role("button", name="Hide code").click()
    page.reload()
    page.locator("div.cell_input pre").first.wait_for(state="hidden")
    page.context.close()


def test_a_page_is_printed_as_it_was_left(browser: Any) -> None:
    """Its number, no switch and no bar; code and hints only where the reader has opened them."""
    page = visit(browser, "notebooks/01_attributions", DESK, "light").page
    page.emulate_media(media="print")
    title = page.locator("article h1").text_content().rstrip("#")
    assert title.startswith("1. ")
    assert [each.inner_text() for each in page.locator("h1").all() if each.is_visible()] == [title]
    assert page.locator("div.cell_output").first.is_visible()
    assert not page.locator("div.cell_input").first.is_visible()
    assert not page.locator(".page-switches").is_visible()
    page.goto((HTML / "book" / "exercises_01_attributions.html").as_uri())
    hints = page.locator("details.sd-dropdown > .sd-summary-content")
    assert hints.count() > 3
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert not any(hint.is_visible() for hint in hints.all())
    page.context.close()


def test_no_page_names_another_host_as_a_source() -> None:
    if not (HTML / "index.html").exists():
        pytest.skip("the book is not built (make book)")
    source = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    assert [found for path in HTML.rglob("*.html") for found in source.findall(path.read_text(encoding="utf-8"))] == []


def brightness(colour: str) -> float:
    """Mean of an ``rgb(...)`` in [0, 1]."""
    parts = [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]
    return sum(parts) / (255 * len(parts))


HOSTILE = ("<img src=x onerror=document.title='run'>", "a|b $x$ **c** `d` {{e}}", "<!--<script>")
SHOWS_HOSTILE = "<b>bold</b> & <script>document.title='run'</script>"


def test_names_from_outside_are_text(chromium: Any, tmp_path: Path) -> None:
    """A chapter on a folder whose classes are named to do harm, and figures that a reader moves, in a built book."""
    generator = torch.Generator().manual_seed(0)
    for channel, name in enumerate(sorted(HOSTILE)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(2):
            pixels = torch.randint(0, 128, (16, 16, 3), generator=generator, dtype=torch.uint8)
            pixels[..., channel] += 127
            Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / name / f"{i}.png")
    # The class is the brightest channel.
    (tmp_path / "<u>.py").write_text(
        "from torch import nn\n\n\ndef brightest():\n"
        "    return nn.Sequential(nn.Softplus(beta=5), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    values = {"dataset": f"folder:{tmp_path / 'pictures'}", "images": 6, "k": 20, "samples": 64, "choose": 32}
    values |= {
        "model": {"name": f"{tmp_path / '<u>.py'}:brightest", "input_size": 16, "class_names": sorted(HOSTILE)},
        "weights": None,
    }
    words = [word for name, value in values.items() for word in ("-p", name, json.dumps(value))]
    executed = tmp_path / "10_photographs.ipynb"
    command = [sys.executable, "-m", "robattr.cli", "run", "10_photographs", *words, "--output", str(executed)]
    subprocess.run(command, cwd=REPOSITORY, check=True)

    # Its prose refers to pages that are not here.
    notebook = nbformat.read(executed, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [nbformat.v4.new_markdown_cell("# Names"), *code, *map(shown, moved())]
    nbformat.write(notebook, executed)
    book = tmp_path / "project"
    lay_out_book(book, "10_photographs")
    command = [sys.executable, "book/build.py", "--profile", "<b>own</b>", "--output", "html", str(executed)]
    subprocess.run(command, cwd=book, check=True, capture_output=True)

    page = chromium.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.goto((book / "html" / "notebooks" / "10_photographs.html").as_uri(), wait_until="load")
    assert page.title() != "run"
    assert page.locator("article img[src='x'], article .cell_output u, article .cell_output b").count() == 0
    cells = page.locator("article table tbody tr td:first-child").all_inner_texts()
    names = [re.sub(r"^\d+: ", "", text) for text in cells]  # after the number of the picture
    typed = {text.translate({0x2018: "'", 0x2019: "'", 0x2013: "--"}).strip() for text in names}  # pages are typeset
    assert set(HOSTILE) <= typed
    # What follows the figures that a reader moves is still there, and they say what they say.
    live = page.locator(".live-attack")
    live.scroll_into_view_if_needed()
    live.locator(".live-values", has_text="%").wait_for()
    assert any(name in live.locator(".live-values").inner_text() for name in HOSTILE)
    assert live.locator("select[data-name='network'] option").all_inner_texts() == [SHOWS_HOSTILE]
    assert page.locator(".frame-slider .widget-title").inner_text() == SHOWS_HOSTILE
    assert page.locator("article :text('The end.')").count() == 1
    page.goto((book / "html" / "book" / "status.html").as_uri(), wait_until="load")
    assert page.locator("article :text('<b>own</b>')").count() > 0
    assert complaints == []
    page.close()


def moved() -> list[dict[str, str]]:
    """Outputs: figures that a reader moves, with text from outside, and one below them."""
    network = models.build("lenet-narrow", weights="random", activation="softplus", num_classes=3)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    live = figures.attack_in_page({SHOWS_HOSTILE: network}, pictures, class_names=HOSTILE, label=SHOWS_HOSTILE, k=20)
    slider = figures.slider([("1", pictures[0], pictures[1, 0])], title=SHOWS_HOSTILE, label=SHOWS_HOSTILE)
    return [{"text/html": live}, {"text/html": slider}, {"text/markdown": "The end."}]


def shown(data: dict[str, str]) -> Any:
    """A cell with one output."""
    output = nbformat.v4.new_output("display_data", data)
    return nbformat.v4.new_code_cell("shown", outputs=[output])


# Text of the article whose contrast to what is behind it is below WCAG's 4.5 : 1, as "contrast colour ground text".
CONTRASTS = r"""() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return { r, g, b, a }; };
  const over = (top, below) => ({
    r: top.r * top.a + below.r * (1 - top.a),
    g: top.g * top.a + below.g * (1 - top.a),
    b: top.b * top.a + below.b * (1 - top.a),
    a: 1,
  });
  const luminance = ({ r, g, b }) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    if (!element) return { r: 255, g: 255, b: 255, a: 1 };
    const own = parse(getComputedStyle(element).backgroundColor);
    return own.a === 1 ? own : over(own, ground(element.parentElement));
  };
  const faint = new Set();
  const walker = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const hidden = !element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
    const other = element.closest("script, style, svg, button, .headerlink");
    if (!walker.currentNode.data.trim() || hidden || other) continue;
    const behind = ground(element);
    const text = over(parse(getComputedStyle(element).color), behind);
    const [low, high] = [luminance(text), luminance(behind)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) {
      const colours = `${getComputedStyle(element).color} on ${JSON.stringify(behind)}`;
      faint.add(`${contrast.toFixed(2)} ${colours} ${walker.currentNode.data.trim().slice(0, 30)}`);
    }
  }
  return [...faint];
}"""
