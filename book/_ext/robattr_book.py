"""What the book's pages need beside Jupyter Book: figures of plotly, signatures that a reader can use, and no
complaints when read from the disk.

A notebook emits a figure as HTML that holds its JSON and no script of its own::

    <div class="plotly-figure" role="img" aria-label="what it shows">
    <script type="application/json">{"data": [...], "layout": {...}}</script></div>

Pages with such a figure, and only those, load plotly.js and ``plotly-figure.js``, which draws it as the theme wants it.
The explorer of certificates is such a figure beside sliders, and ``certificate-explorer.js`` moves it; that of
protocols is a sentence beside lists, with ``protocol-explorer.js``. The attack in the page carries its networks, which
``live-network.js`` computes and ``live-attack.js`` shows.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import plotly
import pydantic
from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def add_scripts(app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    """Load the scripts on pages that need them."""
    if 'class="plotly-figure"' in context.get("body", ""):
        app.add_js_file(PLOTLY.name, loading_method="defer")
        app.add_js_file("plotly-figure.js", loading_method="defer")
    if 'class="certificate-explorer"' in context.get("body", ""):
        app.add_js_file("certificate-explorer.js", loading_method="defer")
    if 'class="protocol-explorer"' in context.get("body", ""):
        app.add_js_file("protocol-explorer.js", loading_method="defer")
    if 'class="live-attack"' in context.get("body", ""):
        app.add_js_file("live-network.js", loading_method="defer")
        app.add_js_file("live-attack.js", loading_method="defer")


def copy_plotly(app: Sphinx, failure: Exception | None) -> None:
    """Put plotly.js beside the book's own static files."""
    if failure is None:
        copy_asset(PLOTLY, Path(app.outdir) / "_static")


def drop_preloads(app: Sphinx, failure: Exception | None) -> None:
    """Take the theme's font preloads out of the pages: a browser refuses them for pages opened from the disk."""
    if failure is None:
        for path in Path(app.outdir).rglob("*.html"):
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(r'<link rel="preload" as="font"[^>]*>\s*', "", text), encoding="utf-8")


def sign_fields(
    _app: Sphinx, what: str, _name: str, thing: object, _options: object, _signature: str | None, _returns: str | None
) -> tuple[str, None] | None:
    """The signature of a dataclass or pydantic model with the types that its author wrote.

    Of a model it is left out where the docstring has the fields.
    """
    if what != "class" or not isinstance(thing, type):
        return None
    types = {name: text for each in reversed(thing.__mro__) for name, text in inspect.get_annotations(each).items()}
    if issubclass(thing, pydantic.BaseModel):
        if "Attributes:" in (thing.__doc__ or ""):
            return "", None
        start, given = ["*"], {name: not field.is_required() for name, field in thing.model_fields.items()}
    elif dataclasses.is_dataclass(thing):
        start = []
        given = {
            each.name: not each.default is each.default_factory is dataclasses.MISSING
            for each in dataclasses.fields(thing)
            if each.init
        }
    else:
        return None
    parts = []
    for name, has_default in given.items():
        text = types[name] if isinstance(types[name], str) else inspect.formatannotation(types[name])
        # Annotated[type, what pydantic checks]
        text = re.sub(r"^Annotated\[(.*), \w+\(.*\)\]$", r"\1", text)
        text = re.sub(r"(?<![\w.'])[A-Z]\w*", lambda match: full_name(match[0], thing), text)
        parts.append(f"{name}: {text}" + (" = ..." if has_default else ""))
    return f"({', '.join(start + parts)})", None


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
    app.connect("build-finished", copy_plotly)
    app.connect("build-finished", drop_preloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
