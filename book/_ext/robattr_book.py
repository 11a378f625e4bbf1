"""What the book's pages need beside Jupyter Book: the scripts of the figures that a reader moves, signatures that a
reader can use, and a search that finds excerpts on the disk.

Such a figure is HTML with all that it needs inside; a page loads the scripts of those that it has, and no others.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from typing import Any

import pydantic
from sphinx.application import Sphinx

# By the class of the figure.
SCRIPTS = {
    "frame-slider": ("frame-slider.js",),
    "certificate-explorer": ("certificate-explorer.js",),
    "protocol-explorer": ("protocol-explorer.js",),
    "live-attack": ("live-network.js", "live-attack.js"),
}


def add_scripts(app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    """Load the scripts on pages that need them."""
    if page == "search":
        app.add_js_file("search-excerpts.js")
        app.add_js_file("search-page.js")
    for name, scripts in SCRIPTS.items():
        if f'class="{name}"' in context.get("body", ""):
            for script in scripts:
                app.add_js_file(script, loading_method="defer")


def sign_fields(
    _app: Sphinx, what: str, _name: str, thing: object, _options: object, _signature: str | None, _returns: str | None
) -> tuple[str, None] | None:
    """The signature of a dataclass or pydantic model with the types that its author wrote.

    Of a model it is left out where the docstring has the fields.
    """
    if what != "class" or not isinstance(thing, type):
        return None
    if getattr(thing, "_is_protocol", False):
        return "", None  # nobody makes one
    types = {name: text for each in reversed(thing.__mro__) for name, text in inspect.get_annotations(each).items()}
    if issubclass(thing, pydantic.BaseModel):
        if "Attributes:" in (thing.__doc__ or ""):
            return "", None
        start = ["*"]
        given = {
            name: "" if field.is_required() else default(... if field.default_factory else field.default)
            for name, field in thing.model_fields.items()
        }
    elif dataclasses.is_dataclass(thing):
        start = []
        given = {
            each.name: ""
            if each.default is each.default_factory is dataclasses.MISSING
            else default(... if each.default is dataclasses.MISSING else each.default)
            for each in dataclasses.fields(thing)
            if each.init
        }
    else:
        return None
    parts = []
    for name, value in given.items():
        text = types[name] if isinstance(types[name], str) else inspect.formatannotation(types[name])
        # Annotated[type, what pydantic checks]
        text = re.sub(r"^Annotated\[(.*), \w+\(.*\)\]$", r"\1", text)
        text = re.sub(r"(?<![\w.'])[A-Z]\w*", lambda match: full_name(match[0], thing), text)
        parts.append(f"{name}: {text}{value}")
    return f"({', '.join(start + parts)})", None


def describe_fields(_app: Sphinx, what: str, _name: str, thing: object, _options: object, lines: list[str]) -> None:
    """The fields of a pydantic model, by the descriptions that its author gave them."""
    if what == "class" and isinstance(thing, type) and issubclass(thing, pydantic.BaseModel):
        said = {name: field.description for name, field in thing.model_fields.items() if field.description}
        if said and "Attributes:" not in lines:
            lines += ["", "Args:", *(f"    {name}: {text}" for name, text in said.items()), ""]


def keep_sentences(_app: Sphinx, what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """What is returned, and what an attribute is, without a type: napoleon takes all before a colon for one.

    It finds none before a colon that comes first.
    """
    if what in ("attribute", "property", "data") and lines:
        lines[0] = f": {lines[0]}"
    for i, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:"):
            indent = len(lines[i + 1]) - len(lines[i + 1].lstrip())
            lines[i + 1] = f"{' ' * indent}: {lines[i + 1].lstrip()}"


def default(value: object) -> str:
    """`` = value`` as one would write it; an ellipsis for what is made anew, or is no short constant."""
    try:
        short = len(repr(value)) <= 40 and ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        short = False
    return f" = {value!r}" if short else " = ..."


def full_name(name: str, thing: type) -> str:
    """A class of the package by its module, as ``~robattr.module.Name``: several modules have an ``Objective``."""
    for each in thing.__mro__:
        found = getattr(sys.modules[each.__module__], name, None)
        if isinstance(found, type) and found.__module__.startswith("robattr."):
            return f"~{found.__module__}.{found.__qualname__}"
    return name


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.connect("html-page-context", add_scripts)
    app.connect("autodoc-process-signature", sign_fields)
    for change in (describe_fields, keep_sentences):
        app.connect("autodoc-process-docstring", change, priority=400)  # before napoleon, at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
