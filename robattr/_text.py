"""Text in Markdown: what comes from outside, such as names of classes, and what is made between two marks."""

from __future__ import annotations

import re
from collections.abc import Mapping

_ROLE = re.compile(r"\{(?:prf:)?(ref|doc|cite|numref|term)(?::\w+)?\}`(?:([^`<]*?)\s*<)?([^`>]*)>?`")
_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|$~&])")


def markdown(text: str) -> str:
    """The text as Markdown that shows it as it is: in one line, without markup, HTML, mathematics or table cells."""
    return _ACTIVE.sub(r"\\\1", " ".join(text.split()))


def between_marks(text: str, command: str, made: str, name: str) -> str:
    """The text with what a command makes between its two marks, ``<!-- COMMAND -->`` on a line and ``<!-- end -->``.

    Args:
        text: of a page.
        command: that is named in the first mark.
        made: what comes between, with its line breaks.
        name: of the page, for the message.

    Raises:
        ValueError: the marks are not there.
    """
    head, start, rest = text.partition(f"<!-- {command} -->\n")
    _, end, tail = rest.partition("<!-- end -->")
    if not end:
        raise ValueError(f"{name} has no line '<!-- {command} -->' with '<!-- end -->' below it")
    return head + start + made + end + tail


def words(text: str, names: Mapping[str, str] | None = None) -> str:
    """References of the book as words: where a page has links, other places have names, and papers their year.

    Args:
        text: in MyST.
        names: of what is referred to, by its label; a label that has none stands for itself.
    """

    def named(found: re.Match[str]) -> str:
        if found[1] == "cite" and (years := re.findall(r"\d{4}", found[3])):
            return ", ".join(years)
        if names and found[3] in names and not found[2]:
            return f"*{names[found[3]]}*"
        return found[2] or (found[3] if found[1] == "term" else f"`{found[3].rpartition('/')[2]}`")

    return _ROLE.sub(named, text)
