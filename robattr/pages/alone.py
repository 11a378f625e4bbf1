"""HTML files that stand alone: formulas are MathML, figures and scripts are in the file, nothing is loaded.

An executed chapter becomes one, for a reader who has no book around it: to send, to print, to keep. The pages of the
book itself are drawn by Jupyter Book.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.container import container_plugin
from mdit_py_plugins.deflist import deflist_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

from robattr._files import write_text
from robattr._text import words

__all__ = ["chapter_page", "html_page", "pieces", "proven", "renderer", "write_page"]

_LOOK, _PAPER = (Path(__file__).with_suffix(suffix) for suffix in (".css", ".js"))
_SCRIPTS = (
    "frame-slider.js",
    "certificate-explorer.js",
    "protocol-explorer.js",
    "live-network.js",
    "live-attack.js",
)
_PARAMETERS = {"parameters": "Parameters", "injected-parameters": "Parameters of this run"}
_DIRECTIVE = re.compile(r"^```\{(prf:)?(\w+)\} ?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r"\A(?::[\w-]+:.*\n)+")
_PAGE = re.compile(r"\[([^\]]+)\]\((?![a-z]+:|#)[^)]*\)")
_TARGET = re.compile(r"^\([\w:-]+\)=\n", re.MULTILINE)


def _math(text: str, options: Mapping[str, Any]) -> str:
    return str(convert(text, display="block" if options["display_mode"] else "inline"))


def renderer(*, html: bool = False) -> MarkdownIt:
    """Markdown to HTML, with tables, lists of definitions and formulas.

    Args:
        html: let HTML through; of texts that we wrote, in which what comes from outside is escaped.
    """
    made = MarkdownIt("commonmark", {"html": html}).enable("table")
    dollarmath_plugin(made, renderer=_math)
    return made.use(deflist_plugin).use(container_plugin, "notes")


def html_page(title: str, body: str, look: str, moves: str = "") -> str:
    """A page with its style and its scripts.

    Args:
        title: of the window, as text.
        body: HTML.
        look: CSS.
        moves: JavaScript.
    """
    script = f"<script>{moves}</script>" if moves else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{look}</style>\n<body>\n{body}\n{script}\n</body>\n</html>\n"
    )


def chapter_page(notebook: Any, title: str, root: Path) -> str:
    """An executed chapter; code and proofs can be opened one by one, references are names.

    On paper proofs are open, and code is where it was opened.

    Args:
        notebook: as :func:`robattr.pages.execution.execute` writes it, read by nbformat.
        title: of the chapter.
        root: the project's folder, with the scripts and the style of the book's figures and the names of its theorems.
    """
    names, static = proven(root), root / "book" / "_static"
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(_text(words(cell.source, names)))
        elif cell.cell_type == "code":
            parts.append(_code(cell, names))
    body = f"<main>\n{''.join(parts)}</main>"
    look, *scripts = (_there(static / name) for name in ("book.css", *_SCRIPTS))
    look += _LOOK.read_text(encoding="utf-8")
    return html_page(title, body, look, "\n".join([*scripts, _PAPER.read_text(encoding="utf-8")]))


def _there(path: Path) -> str:
    """A project of one's own may have chapters without the book's figures that move."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def proven(root: Path) -> dict[str, str]:
    """Names of the book's theorems, and of what else is proven in it, by label."""
    found: dict[str, str] = {}
    for path in (*root.glob("notebooks/*.md"), *root.glob("book/*.md")):
        text = path.read_text(encoding="utf-8")
        found |= {
            label: name for name, label in re.findall(r"^`{3,}\{prf:\w+\} (.+)\n:label: (\S+)$", text, re.MULTILINE)
        }
    return found


def write_page(executed: Path, title: str, root: Path, output: Path) -> Path:
    """Write :func:`chapter_page` of an executed notebook, whole.

    Args:
        executed: the notebook.
        title: of the chapter.
        root: see :func:`chapter_page`.
        output: the HTML file, replaced where there is one.

    Returns:
        ``output``.
    """
    import nbformat

    notebook = nbformat.read(executed, 4)  # type: ignore[no-untyped-call]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, chapter_page(notebook, title, root))
    return output


def pieces(source: str) -> Iterator[tuple[str, str, str]]:
    """The text of a chapter in order: kind, name and content of each directive, and what stands between.

    Args:
        source: MyST of a chapter, whose directives are theorems, proofs and formulas.

    Yields:
        ``("theorem", "name", text)`` or, of plain text, ``("", "", text)``; without labels and options.
    """
    source, end = _TARGET.sub("", source), 0
    for found in _DIRECTIVE.finditer(source):
        yield "", "", source[end : found.start()]
        yield found[2], found[3], _OPTION.sub("", found[4]).strip()
        end = found.end()
    yield "", "", source[end:]


def _text(source: str) -> str:
    parts, proven = [], ""
    for kind, name, content in pieces(source):
        if not kind and not content.strip():
            continue
        named = f"{kind} ({name})" if name else kind
        if kind == "math":
            parts.append(f"<p>{convert(content, display='block')}</p>\n")
        elif kind == "proof":
            head = renderer().renderInline(words(f"Proof of the {proven}" if proven else "Proof"))
            parts.append(f'<details class="proof-folded"><summary>{head}</summary>\n{_rendered(content)}</details>\n')
        elif kind:
            head = f"**{named[0].upper()}{named[1:]}.** "
            parts.append(f'<section class="{kind}">\n{_rendered(head + content)}</section>\n')
        else:
            parts.append(_rendered(content))
        proven = "" if kind in ("", "math", "proof") else named  # by a proof that follows
    return "".join(parts)


def _rendered(text: str) -> str:
    """Pages of the book are not beside this one: links to them are words."""
    return str(renderer(html=True).render(_PAGE.sub(r"\1", words(text))))


def _code(cell: Any, names: Mapping[str, str]) -> str:
    tags = cell.metadata.get("tags", [])
    if "remove-cell" in tags:
        return ""
    what = next((_PARAMETERS[tag] for tag in tags if tag in _PARAMETERS), "Code")
    code = f"<details><summary>{what}</summary><pre><code>{escape(cell.source)}</code></pre></details>\n"
    shown = "".join(_output(output, cell, names) for output in cell.outputs)
    return ("" if "remove-input" in tags else code) + ("" if "remove-output" in tags else shown)


def _output(output: Any, cell: Any, names: Mapping[str, str]) -> str:
    """The richest form of what a cell showed."""
    if output.output_type == "stream":
        return f"<pre>{escape(output.text)}</pre>\n"
    data = output.get("data", {})
    look = cell.metadata.get("mystnb", {})
    caption = look.get("figure", {}).get("caption", "")
    below = f"<figcaption>{renderer().renderInline(words(caption, names))}</figcaption>" if caption else ""
    for kind in ("image/png", "image/webp", "image/svg+xml"):
        if kind in data:
            alt = escape(look.get("image", {}).get("alt", ""), quote=True)
            content = data[kind].replace("\n", "")
            if kind == "image/svg+xml":
                return f'<figure role="img" aria-label="{alt}">{data[kind]}{below}</figure>\n'
            return f'<figure><img alt="{alt}" src="data:{kind};base64,{content}">{below}</figure>\n'
    if "text/html" in data:
        return f"<figure>{data['text/html']}{below}</figure>\n"
    if "text/markdown" in data:
        return _text(words(data["text/markdown"], names))
    return f"<pre>{escape(data['text/plain'])}</pre>\n" if "text/plain" in data else ""
