"""Slides and plans as HTML files that stand alone: formulas are MathML, figures are in the file, nothing is loaded.

Slides are sections that the browser's scroll snapping holds in place. A framework for slides, such as the reveal.js
that nbconvert refers to, would be a second program in every file, or an address that a classroom without a network
cannot reach.
"""

from __future__ import annotations

import ast
import base64
import io
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from robattr._text import words
from robattr.lessons._texts import FOLDER, Lesson, LessonError
from robattr.pages.alone import html_page, renderer
from robattr.pages.chapters import ChapterError, read_notebook

__all__ = ["deck", "document"]

_LOOK = (Path(__file__).parent / "slides.css", Path(__file__).parent / "plan.css")
_MOVES = Path(__file__).parent / "slides.js"
_DPI = 150


def document(title: str, text: str) -> str:
    """Markdown with formulas as a page that stands alone.

    Args:
        title: of the page.
        text: in MyST; references are written out.
    """
    return html_page(title, f"<main>{renderer().render(words(text))}</main>", _LOOK[1].read_text(encoding="utf-8"))


def deck(found: Lesson, data: Path) -> str:
    """The slides of a lesson as an HTML file that stands alone; their code is run for it.

    A slide begins at each heading. The last expression of a cell of code is a matplotlib figure, or text in Markdown;
    the code itself is shown where the cell is tagged ``show``.

    Args:
        found: one of :func:`robattr.lessons.lessons`.
        data: the folder of the lesson's data, which the code knows as ``DATA``.

    Raises:
        LessonError: the source has a mistake, or its code fails.
    """
    source = f"{FOLDER}/{found.name}/slides.md"
    try:
        cells = read_notebook(found.folder / "slides.md").cells
    except ChapterError as error:
        raise LessonError(f"{FOLDER}/{found.name}/{error}") from None
    names: dict[str, Any] = {"DATA": data}
    slides: list[str] = []
    for cell in cells:
        if cell.cell_type == "code":
            if not slides:
                raise LessonError(f"{source}: code comes before the first heading")
            slides[-1] += _shown(cell, names, source)
            continue
        for piece in re.split(r"^(?=##? )", cell.source, flags=re.MULTILINE):
            rendered = renderer().render(words(piece))
            if piece.startswith("#"):
                slides.append(rendered)
            elif piece.strip():
                if not slides:
                    raise LessonError(f"{source}: text comes before the first heading")
                slides[-1] += rendered
    look, moves = (path.read_text(encoding="utf-8") for path in (_LOOK[0], _MOVES))
    return html_page(found.title, _sections(slides), look, moves)


def _sections(slides: Iterable[str]) -> str:
    made = [f'<section id="{i}" tabindex="-1">\n{slide}</section>' for i, slide in enumerate(slides, 1)]
    return "<main>\n" + "\n".join(made) + "\n</main>"


def _shown(cell: Any, names: dict[str, Any], source: str) -> str:
    """What a cell shows, as HTML."""
    code = f"<pre><code>{escape(cell.source)}</code></pre>" if "show" in cell.metadata.get("tags", []) else ""
    try:
        value = _last(cell.source, names)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise LessonError(f"{source}: a cell fails with {line}") from error
    if value is None:
        return code
    if isinstance(value, str):
        return code + str(renderer().render(value))
    alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
    if not isinstance(value, Figure) or not alt:
        without = "" if alt else " without alternative text"
        raise LessonError(
            f"{source}: a cell ends in a {type(value).__name__}{without}; wanted is text, or a figure with "
            "mystnb: {image: {alt: ...}}"
        )
    picture = io.BytesIO()
    value.savefig(picture, format="png", dpi=_DPI)
    encoded = base64.b64encode(picture.getvalue()).decode()
    return f'{code}<img alt="{escape(" ".join(alt.split()))}" src="data:image/png;base64,{encoded}">'


def _last(code: str, names: dict[str, Any]) -> object:
    """Run code and return the value of the expression in its last line, if it is one."""
    tree = ast.parse(code)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "<slide>", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "<slide>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<slide>", "eval"), names)
