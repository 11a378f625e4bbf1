"""Receipts beneath what an executed notebook shows: which runs it comes from, followed through the names of its cells.

What was noted while it ran (:func:`robattr.studies.receipts.note`) says which line read which runs. A name carries the
runs of the statement that made it, and of the names in that statement; what a cell shows carries those of the
statements that show it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from robattr.studies.receipts import Receipt, receipts, sources_of

__all__ = ["add", "html", "runs_shown"]

_CHANGES = ("append", "extend", "update", "add", "setdefault", "insert")
_SHOWS = ("display", "print", "show")
_HIDDEN = {"remove-cell", "remove-output"}
Noted = Mapping[int, Iterable[str]]


def runs_shown(cells: Sequence[tuple[str, Noted]]) -> list[set[str]]:
    """The runs that what each cell shows comes from.

    Args:
        cells: the source of each, in order, and the runs that its lines read.
    """
    carried: dict[str, set[str]] = {}
    found = []
    for source, read in cells:
        try:
            statements = ast.parse(source).body
        except SyntaxError:  # of the notebook's own language, as %time
            found.append({run for runs in read.values() for run in runs})
            continue
        shown: set[str] = set()
        for i, statement in enumerate(statements):
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                continue
            names = _Names(statement)
            runs = {run for line, each in read.items() if _within(line, statement) for run in each}
            runs |= {run for name in names.read for run in carried.get(name, ())}
            for name in names.made:
                carried[name] = set(runs)
            for name in names.changed:
                carried[name] = carried.get(name, set()) | runs
            if names.shows or (i == len(statements) - 1 and isinstance(statement, ast.Expr)):
                shown |= runs
        found.append(shown)
    return found


def _within(line: int, statement: ast.stmt) -> bool:
    return statement.lineno <= line <= (statement.end_lineno or statement.lineno)


class _Names(ast.NodeVisitor):
    """Names of a notebook that a statement reads, makes and changes, and whether it shows something."""

    def __init__(self, statement: ast.stmt) -> None:
        self.read: set[str] = set()
        self.made: set[str] = set()
        self.changed: set[str] = set()
        self.shows = False
        self._own: set[str] = set()
        self.visit(statement)
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            # What its body makes is gone when it returns.
            self.read -= self.made
            self.made, self.changed, self.shows = {statement.name}, set(), False
        for names in (self.read, self.made, self.changed):
            names -= self._own
        if not isinstance(statement, (ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)):
            # Of a loop or a condition what it makes may not be made; what was there before stays.
            self.changed |= self.made
            self.made = set()

    def visit_Name(self, node: ast.Name) -> None:
        (self.made if isinstance(node.ctx, ast.Store) else self.read).add(node.id)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._own |= {each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)}
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        self._own.add(node.arg)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._target(node)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._target(node)
        self.generic_visit(node)

    def _target(self, node: ast.Subscript | ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Store) and (name := _base(node)):
            self.changed.add(name)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in _CHANGES and (name := _base(called.value)):
            self.changed.add(name)
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        self.shows |= name in _SHOWS
        self.generic_visit(node)


def _base(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def add(notebook: Any) -> int:
    """Put a receipt beneath all that an executed notebook shows of records; how many there are.

    Args:
        notebook: of nbformat, changed in place.
    """
    consulted = notebook.metadata.get("robattr", {}).get("consulted", {})
    known, lines = sources_of(consulted), consulted.get("cells", {})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    cells = [
        (cell.source, {int(n): runs for n, runs in lines.get(str(cell.execution_count), {}).items()}) for cell in code
    ]
    import nbformat

    beneath = {}
    for cell, runs in zip(code, runs_shown(cells), strict=True):
        shows = any(output.output_type in ("display_data", "execute_result", "stream") for output in cell.outputs)
        if not runs or not shows or _HIDDEN & set(cell.metadata.get("tags", [])):
            continue
        text = html(receipts(known[run] for run in sorted(runs)))
        # A cell of its own: an output more would get the name and the caption of the figure, too.
        beneath[id(cell)] = nbformat.v4.new_markdown_cell(text)  # type: ignore[no-untyped-call]
    notebook.cells = [each for cell in notebook.cells for each in (cell, beneath.get(id(cell))) if each is not None]
    return len(beneath)


def html(found: Sequence[Receipt]) -> str:
    """Receipts as HTML that opens on a click or a key, without a script."""
    runs = sum(len(each.runs) for each in found)
    title = f"Receipt: {runs} run{'s' if runs > 1 else ''}"
    return f'<details class="receipt"><summary>{title}</summary>{"".join(map(_one, found))}</details>'


def _one(receipt: Receipt) -> str:
    days = sorted({date[:10] for date in receipt.dates})
    lines = {
        "Records": f"<code>{escape(receipt.records)}</code> ({escape(', '.join(receipt.runs))})",
        "Command": f"<code>{escape(receipt.command)}</code>" if receipt.command else "executing this page",
        "Cost": f"{receipt.minutes} of measuring, trainings not counted",
        "Machine": escape("; ".join(receipt.machines)),
        "Code": ", ".join(f"<code>{escape(each)}</code>" for each in receipt.commits),
        "Date": " to ".join(days),
    }
    return f"<ul>{''.join(f'<li>{name}: {text}</li>' for name, text in lines.items())}</ul>"
