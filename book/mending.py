"""What Sphinx and its theme leave to be mended in the built pages: weight, and what stands in the way of readers with a
keyboard, a screen reader, a phone, or the book on a disk.

Each mend says why. ``tests/test_book.py`` looks at the pages with axe-core, and weighs them.
"""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

from bs4 import BeautifulSoup, NavigableString, Tag
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image

# Of these every page has one, or a page has one for each theorem and exercise, and none is linked to.
REPEATED_IDS = ("exercise-content", "proof-content", "search-input", "solution-content")
LOSSLESS = 60_000
ICON_CLASS = re.compile(r'<(i|span) class="([^"]*\bfa-[^"]*)"(?=[^>]*></\1>)')
PRIVATE_USE = re.compile("[\ue000-\uf8ff]")


def mend(folder: Path) -> None:
    """Mend every page of a built book in place, and put its icons and the excerpts for its search beside it."""
    texts, excerpts = [], {}
    smaller = shrink_pictures(folder / "_images")
    for path in sorted(folder.rglob("*.html")):
        if "_static" in path.relative_to(folder).parts:
            continue
        text = re.sub(r"(?<=_images/)[\w.-]+\.png", lambda m: smaller.get(m[0], m[0]), path.read_text(encoding="utf-8"))
        soup = BeautifulSoup(text, "html.parser")
        for each in (one_head, describe, switch_code, fold_proofs, name_landmarks, name_toggles, head_tables,
                     break_names, plain_roles, lists_of_parameters, unique_ids, link_pictures):  # fmt: skip
            each(soup)
        texts.append(hide_icons(str(soup)))
        path.write_text(texts[-1], encoding="utf-8")
        excerpts[path.relative_to(folder).with_suffix("").as_posix()] = words(soup)
    trim_styles(folder / "_static", texts)
    subset_icons(folder / "_static", texts)
    script = f"const EXCERPTS = {json.dumps(excerpts, ensure_ascii=False)};\n".replace("</", "<\\/")
    (folder / "_static" / "search-excerpts.js").write_text(script, encoding="utf-8")


def shrink_pictures(folder: Path) -> dict[str, str]:
    """Put WebP in place of each PNG that it makes smaller: maps are grainy, and a PNG of them weighs up to 2.3 MB.

    Nothing is lost up to :data:`LOSSLESS` bytes; beyond, a quality of 85 does for the eye.

    Returns:
        old name to new name.
    """
    found = {}
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            best = webp(image, lossless=True)
            if len(best) > LOSSLESS:
                best = min(best, webp(image, quality=85), key=len)
        if len(best) < path.stat().st_size:
            path.with_suffix(".webp").write_bytes(best)
            path.unlink()
            found[path.name] = path.with_suffix(".webp").name
    return found


def webp(image: Image.Image, **options: int) -> bytes:
    """A picture as WebP."""
    content = io.BytesIO()
    image.save(content, "WEBP", **options)
    return content.getvalue()


def one_head(soup: BeautifulSoup) -> None:
    """Take out of the head what hinders or repeats.

    A browser refuses to preload fonts for pages from the disk, and says so; the icons need no script of 1.3 MB, since
    the style sheet draws them; MathJax comes in parts (``_config.yml`` says which), of which the menu, a third of it,
    is not needed; one viewport is enough.
    """
    for link in soup.select('link[rel="preload"][as="font"]'):
        link.decompose()
    for script in soup.select('script[src*="/fontawesome/"]'):
        script.decompose()
    for script in soup.select('script[src*="/mathjax/tex-chtml.js"]'):
        script["src"] = script["src"].replace("tex-chtml.js", "startup.js")
    for again in soup.select('meta[name="viewport"]')[1:]:
        again.decompose()


def link_pictures(soup: BeautifulSoup) -> None:
    """Make each figure a link to its picture, which page.js opens enlarged: a phone shows wide ones too small."""
    for image in soup.select("article img[src*='_images/']"):
        link = image.find_parent("a")
        if link is None and image.find_parent("button") is None:
            link = image.wrap(soup.new_tag("a", href=image["src"]))
        if link is not None and link.get("href") == image["src"]:
            link["class"] = [*link.get("class", []), "enlarge"]


def describe(soup: BeautifulSoup) -> None:
    """Say in the head what the page is about, with its first sentence: results of a search show it."""
    head = soup.head
    if head is None or soup.select_one('meta[name="description"]'):
        return
    paragraphs = soup.select("article p:not(td p, th p, details p, figcaption p)")
    texts = (re.sub(r"\s+", " ", re.sub(r"\\[()]", "", paragraph.get_text())).strip() for paragraph in paragraphs)
    text = next((text for text in texts if len(text) > 40), "")
    if text:
        shown = text if len(text) <= 200 else text[:199].rpartition(" ")[0] + "…"
        head.append(soup.new_tag("meta", attrs={"name": "description", "content": shown}))


def switch_code(soup: BeautifulSoup) -> None:
    """One switch shows and hides the code of a page, instead of a bar over each cell; ``page.js`` remembers it."""
    for details in soup.select("div.cell details.hide"):
        summary = details.find("summary", recursive=False)
        if isinstance(summary, Tag):
            summary.decompose()
        details.unwrap()
    if soup.select_one("div.cell_input"):
        add_switch(soup, "code")


def break_names(soup: BeautifulSoup) -> None:
    """Long names in narrow tables break where a reader expects it: behind a point, a slash, a colon, an underscore."""
    for name in soup.select(":is(table.promises, #where-is table) code .pre"):
        first, *rest = re.split(r"(?<=[./:_])(?=[^./:_])", name.get_text())
        name.string = first
        for part in rest:
            name.append(soup.new_tag("wbr"))
            name.append(part)


def fold_proofs(soup: BeautifulSoup) -> None:
    """Who passes over proofs is not stopped by them: each opens by itself, and one switch opens all of a page."""
    for proof in soup.select('div[class="proof admonition"]'):
        proven = proof.find_previous_sibling()
        number = proven.select_one(".admonition-title > .caption-number") if proven is not None else None
        proof.name = "details"
        proof.attrs = {"class": "proof-folded"}
        first = proof.find("p")
        if isinstance(first, Tag) and isinstance(first.contents[0], NavigableString):
            first.contents[0].replace_with(first.contents[0].removeprefix("Proof. "))
        summary = soup.new_tag("summary")
        summary.string = "Proof" if number is None else f"Proof of {number.get_text(strip=True)}"
        proof.insert(0, summary)
    if soup.select_one("details.proof-folded"):
        add_switch(soup, "proofs")


def add_switch(soup: BeautifulSoup, what: str) -> None:
    """A button in the bar above the page that ``page.js`` knows."""
    buttons = soup.select_one(".article-header-buttons")
    if buttons is None:
        return
    switches = buttons.select_one(".page-switches") or soup.new_tag("div", attrs={"class": "page-switches"})
    button = soup.new_tag("button", attrs={"type": "button", "class": f"btn btn-sm {what}-switch", "hidden": ""})
    button.string = f"Show {what}"
    switches.append(button)
    buttons.insert(0, switches)


def name_landmarks(soup: BeautifulSoup) -> None:
    """The side bar is a landmark of its own, so that what stands in it can be found and skipped."""
    for name, label in (("bd-sidebar-primary", "Book"), ("bd-sidebar-secondary", "On this page")):
        bar = soup.select_one(f"div.{name}")
        if bar is not None:
            bar.attrs |= {"role": "region", "aria-label": label}


def name_toggles(soup: BeautifulSoup) -> None:
    """A toggle in the table of contents says whose pages it shows."""
    for summary in soup.select("nav details > summary"):
        link = summary.find_previous("a")
        if link is not None and not summary.get_text(strip=True):
            summary["aria-label"] = f"Pages of: {link.get_text(strip=True)}"


def head_tables(soup: BeautifulSoup) -> None:
    """A header without a word heads nothing: it is a cell."""
    for header in soup.select("article th"):
        if not header.get_text(strip=True) and not header.find("img"):
            header.name = "td"
            header.attrs.pop("scope", None)


def plain_roles(soup: BeautifulSoup) -> None:
    """Entries of the bibliography have roles that are deprecated, in a list that has other things, too."""
    for each in soup.select('[role="doc-biblioentry"], .citation-list[role="list"]'):
        del each["role"]


def lists_of_parameters(soup: BeautifulSoup) -> None:
    """Parameters of a signature are no definitions: a list that has only those is invalid."""
    for each in soup.select("dt > dl"):
        for line in each.find_all("dd", recursive=False):
            line.name = "div"
        each.name = "div"
        each["class"] = "sig-params"


def unique_ids(soup: BeautifulSoup) -> None:
    """An id is one of its kind; what the extensions for proofs and exercises repeat, nothing links to."""
    for name in REPEATED_IDS:
        for again in soup.select(f'[id="{name}"]')[1:]:
            del again["id"]


def hide_icons(page: str) -> str:
    """Icons say nothing aloud; some are written by scripts, so this looks at the text."""
    return ICON_CLASS.sub(r'<\1 aria-hidden="true" class="\2"', page)


def words(soup: BeautifulSoup) -> str:
    """The text of a page, for the excerpts of a search: without code and receipts, and with dots for formulas."""
    article = soup.select_one("article")
    if article is None:
        return ""
    for each in article.select("script, style, .headerlink, .cell_input, div.highlight, svg, wbr, details.receipt"):
        each.decompose()
    for each in article.select(".math"):
        each.replace_with(" … ")
    article.smooth()  # a name that could break is one word
    return re.sub(r"\s+", " ", html.unescape(article.get_text(" ")).replace("\\(", "").replace("\\)", "")).strip()


def trim_styles(static: Path, pages: Iterable[str]) -> None:
    """Take out of the style sheets the rules for classes that no page and no script has: 0.3 MB of 0.45 MB.

    A class counts as used where its name stands anywhere, so that what scripts put together of whole names stays.
    """
    scripts = (path.read_text(encoding="utf-8") for path in static.rglob("*.js") if "mathjax" not in path.parts)
    used = {word for text in (*pages, *scripts) for word in re.findall(r"[\w-]+", text)}

    def classes(selector: str) -> set[str]:
        """Names of classes that an element needs for a selector, or one around it."""
        plain = re.sub(
            r"/\*.*?\*/|:(?:not|is|where|has)\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\]", "", selector, flags=re.DOTALL
        )
        return set(re.findall(r"\.((?:[\w-]|\\.)+)", plain))

    def kept(rule: re.Match[str]) -> str:
        selectors = [each for each in re.split(r",(?![^(]*\))", rule[1]) if classes(each) <= used]
        return f"{','.join(selectors)}{{{rule[2]}}}" if selectors else ""

    for path in [*static.glob("*.css"), *static.glob("styles/*.css")]:
        style = re.sub(r"/\*(?!!).*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)  # they have commas
        style = re.sub(r"([^{}]+)\{([^{}]*)\}", kept, style)
        path.write_text(re.sub(r"@(?:media|supports)[^{}]*\{\s*\}", "", style), encoding="utf-8")


def subset_icons(static: Path, pages: Iterable[str]) -> None:
    """Keep of the icons' fonts and style sheet what the pages and the theme's style sheets use: 16 KB of 1.4 MB."""
    used = {name for page in pages for name in re.findall(r"\bfa-[\w-]+", page)}
    sheets = [path.read_text(encoding="utf-8") for path in sorted((static / "styles").glob("*.css"))]
    characters = {character for sheet in sheets for character in PRIVATE_USE.findall(sheet)}
    for sheet in sheets:
        characters |= {chr(int(code, 16)) for code in re.findall(r'"\\([ef][0-9a-f]{3})"', sheet)}
    (vendor,) = (static / "vendor" / "fontawesome").iterdir()
    style = (vendor / "css" / "all.min.css").read_text(encoding="utf-8")

    def kept(rule: re.Match[str]) -> str:
        names = {name.removesuffix(":before").lstrip(".") for name in rule[1].split(",")}
        if not names & used:
            return ""
        characters.add(chr(int(rule[2], 16)) if len(rule[2]) > 1 else rule[2])
        return rule[0].replace(rule[1], ",".join(f".{name}:before" for name in sorted(names & used)))

    style = re.sub(r"@font-face\{[^}]*\}", "", style)
    style = re.sub(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\?([^"]+)"\}', kept, style)
    face = (
        '@font-face{font-family:"Font Awesome 6 Free";font-style:normal;font-weight:900;font-display:block;'
        'src:url("../webfonts/icons.woff") format("woff")}\n'
    )
    font = TTFont(vendor / "webfonts" / "fa-solid-900.ttf")
    options = subset.Options(flavor="woff", layout_features=[], hinting=False, notdef_outline=True)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=[ord(character) for character in characters])
    cutter.subset(font)
    font.flavor = "woff"
    content = io.BytesIO()
    font.save(content)
    for path in [*vendor.glob("webfonts/*"), *vendor.glob("js/*")]:
        path.unlink()
    (vendor / "webfonts" / "icons.woff").write_bytes(content.getvalue())
    (vendor / "css" / "all.min.css").write_text(style + face, encoding="utf-8")
