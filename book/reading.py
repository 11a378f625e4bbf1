"""What makes an executed chapter easy to read: the finding first, and words that lead to the glossary."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat

# What holds no prose: receipts, code, directives, roles, formulas, links, headings, tables, labels, HTML.
NO_PROSE = re.compile(
    r"<details class=.receipt.>.*?</details>"
    r"|^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ ]*$|\{[\w:-]+\}`[^`]*`"
    r"|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)"
    r"|^[#|][^\n]*$|^\([\w-]+\)=$|<[^>]+>",
    re.MULTILINE | re.DOTALL,
)


def finding_first(notebook: Any) -> None:
    """Move the cells tagged ``finding`` up to the title: what was found, then its figure, come before how.

    The order in which cells were executed is that of the source.
    """
    groups: list[list[Any]] = []
    for cell in notebook.cells:
        if groups and cell.source.startswith('<details class="receipt">'):
            groups[-1].append(cell)  # it belongs to what stands above it
        else:
            groups.append([cell])
    found = [group for group in groups if "finding" in group[0].metadata.get("tags", [])]
    if not found:
        return
    found.sort(key=lambda group: "figure" in group[0].metadata.get("mystnb", {}))
    rest = [cell for group in groups if group not in found for cell in group]
    title, _, text = rest[0].source.partition("\n\n")
    rest[0].source = title
    after = [nbformat.v4.new_markdown_cell(text)] if text.strip() else []
    notebook.cells = [rest[0], *(cell for group in found for cell in group), *after, *rest[1:]]


def terms(page: Path) -> list[str]:
    """The terms of a glossary, the longest first: of two that begin at one place the longer one is meant."""
    blocks = re.findall(r"^```\{glossary\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = [line for block in blocks for line in block.splitlines() if line and not line.startswith(" ")]
    return sorted(names, key=len, reverse=True)


def link_terms(texts: Iterable[str], names: Iterable[str]) -> list[str]:
    """Markdown texts of one page with the first use of each term as a link to the glossary."""
    left = list(names)
    linked = []
    for text in texts:
        parts, end = [], 0
        for gap in [*NO_PROSE.finditer(text), None]:
            start = len(text) if gap is None else gap.start()
            parts.append(_linked(text[end:start], left))
            if gap is not None:
                parts.append(gap[0])
                end = gap.end()
        linked.append("".join(parts))
    return linked


def _linked(prose: str, left: list[str]) -> str:
    """Prose without code, with links; the terms that have one now leave the list."""
    if not left:
        return prose
    match = re.search("|".join(rf"(?<![\w-]){_forms(name)}(?![\w-])" for name in left), prose, re.IGNORECASE)
    if match is None:
        return prose
    name = next(each for each in left if re.fullmatch(_forms(each), match[0], re.IGNORECASE))
    left.remove(name)
    link = f"{{term}}`{match[0]} <{name}>`"
    return prose[: match.start()] + link + _linked(prose[match.end() :], left)


def _forms(name: str) -> str:
    """A pattern for one and several of a term."""
    return rf"(?:{re.escape(name)}(?:s|es)?|{re.escape(name.removesuffix('y'))}ies)"
