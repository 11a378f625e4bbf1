"""Text from outside, such as names of classes and sentences of claims, where it becomes Markdown."""

from __future__ import annotations

import re

_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|$~&])")


def markdown(text: str) -> str:
    """The text as Markdown that shows it as it is: in one line, without markup, HTML, mathematics or table cells."""
    return _ACTIVE.sub(r"\\\1", " ".join(text.split()))
