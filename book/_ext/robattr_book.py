"""What the book's pages need beside Jupyter Book: plotly figures, drawn by the plotly.js that plotly's wheel carries.

A notebook emits a figure as HTML that holds its JSON and no script of its own::

    <div class="plotly-figure" role="img" aria-label="what it shows">
    <script type="application/json">{"data": [...], "layout": {...}}</script></div>

Pages with such a figure, and only those, load plotly.js and ``plotly-figure.js``, which draws it as the theme wants it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly
from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Load the scripts on pages with a plotly figure."""
    if 'class="plotly-figure"' in context.get("body", ""):
        app.add_js_file(PLOTLY.name, loading_method="defer")
        app.add_js_file("plotly-figure.js", loading_method="defer")


def copy_plotly(app: Sphinx, failure: Exception | None) -> None:
    """Put plotly.js beside the book's own static files."""
    if failure is None:
        copy_asset(PLOTLY, Path(app.outdir) / "_static")


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", copy_plotly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
