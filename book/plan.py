"""The plan of the package, from its imports: which module reads which.

``make plan`` draws the picture ``plan.svg`` again and lists the reference's pages in ``_toc.yml``. The tests read the
same imports, and fail where one runs back or where the picture or the list is another.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "book" / "plan.svg"
CONTENTS = ROOT / "_toc.yml"
WINGS = ("core", "studies", "pages", "exercises", "lessons", "cli")
"""In the order of the arrows: a module imports from its own wing and from those before it."""
CORE = (
    ("data",),
    ("models",),
    ("attributions",),
    ("metrics",),
    ("attacks", "regularizers", "sanity", "smoothing", "influence"),
    ("training",),
)
"""The order within the core. Private modules come first: what they hold is nobody's alone."""

Imports = Mapping[str, set[str]]
"""Module, without the ``robattr.`` before it -> modules that it imports."""


def modules(package: Path) -> dict[str, Path]:
    """Modules of a package: dotted name below it, "" for itself -> file."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> dict[str, set[str]]:
    """What each module of a package imports of it, wherever the import stands: in a function, or for types only.

    ``from package import name`` is an import of the module ``name`` where there is one, else of the package.
    """
    files = modules(package)
    found = {}
    for name, path in files.items():
        # What a relative import starts from.
        here = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        found[name] = {each for each in _imported(tree, package.name, here, files) if each != name}
    return found


def _imported(tree: ast.AST, top: str, here: str, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            asked = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = [top, *here.split(".")] if here else [top]
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            asked = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            asked = [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
        else:
            continue
        for name in asked:
            first, _, rest = name.partition(".")
            if first == top:
                while rest not in files:
                    rest = rest.rpartition(".")[0]
                yield rest


def backward(found: Imports) -> list[str]:
    """Every import that runs against the plan, a line each; none where the house is in order."""
    lines = []
    for module, read in sorted(found.items()):
        for each in sorted(read):
            if WINGS.index(wing(each)) > WINGS.index(wing(module)):
                lines.append(f"{module} imports {each}: {wing(module)} may not know {wing(each)}")
            elif wing(module) == wing(each) == "core" and level(each) > level(module):
                lines.append(f"{module} imports {each}, which comes after it in the core")
    return lines + [f"imports run in a circle: {' -> '.join([*circle, circle[0]])}" for circle in circles(found)]


def level(module: str) -> int:
    """Place of a module of the core in :data:`CORE`; 0 for the package itself and for private modules.

    Raises:
        ValueError: a public module has no place there.
    """
    first = module.partition(".")[0]
    if not first or first.startswith("_"):
        return 0
    for place, names in enumerate(CORE, 1):
        if first in names:
            return place
    raise ValueError(f"robattr/{first} has no place in the plan: put it into CORE of book/plan.py, or into a wing")


def circles(found: Imports) -> list[list[str]]:
    """Imports that come back to where they began: for each group of modules that import each other, one way round."""
    reach = {module: _reach(found, module) for module in found}
    lines: list[list[str]] = []
    done: set[str] = set()
    for module in sorted(found):
        if module in reach[module] and module not in done:
            done |= {each for each in reach[module] if module in reach[each]}
            ways = [[module]]
            while module not in found[ways[0][-1]]:  # breadth first: the shortest way comes first
                way = ways.pop(0)
                ways += [[*way, each] for each in sorted(found[way[-1]]) if module in reach[each] and each not in way]
            lines.append(ways[0])
    return lines


def wing(module: str) -> str:
    """The wing that a module is in: the core where it is in no other."""
    first = module.partition(".")[0]
    return first if first in WINGS else "core"


def documented(found: Imports) -> list[str]:
    """Modules with a page in the reference: the public ones of the core, the studies and the exercises.

    Packages are one.
    """
    wings = ("core", "studies", "exercises")
    return sorted(
        (name for name in drawn(found) if wing(name) in wings), key=lambda name: (wings.index(wing(name)), name)
    )


def page(module: str) -> str:
    """Where the reference has a module's page, as ``_toc.yml`` spells it."""
    return f"book/api/{module.replace('.', '_')}"


def contents(text: str, found: Imports) -> str:
    """The table of contents with the reference's pages between its two marks, ``# make plan`` and ``# end``.

    Raises:
        ValueError: the marks are not there.
    """
    head, mark, rest = text.partition("# make plan\n")
    _, end, tail = rest.partition("# end\n")
    if not end:
        raise ValueError(f"{CONTENTS.name} has no line '# make plan' with '# end' below it")
    margin = head.rpartition("\n")[2]
    pages = "".join(f"{margin}- file: {page(module)}\n" for module in documented(found))
    return head + mark + pages + margin + end + tail


# --- the picture -----------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LANE, GAP, STEP = 88, 28, 2, 12, 64
COLORS = {
    "core": "#0072B2",
    "studies": "#009E73",
    "pages": "#D55E00",
    "exercises": "#A04878",
    "lessons": "#8C6D00",
    "cli": "#555555",
}


def drawn(found: Imports) -> dict[str, set[str]]:
    """The imports that the picture shows: among public modules, packages as one, less what follows from others.

    Where a module is not shown, those that it imports stand for it.

    Raises:
        ValueError: imports run in a circle.
    """

    def box(module: str) -> str:
        parts = module.split(".")
        return ".".join(parts[: 2 if wing(module) in WINGS[1:3] else 1])

    def shown(module: str) -> bool:
        return module not in ("", *WINGS[1:3]) and not any(part.startswith("_") for part in module.split("."))

    def direct(module: str) -> Iterator[str]:
        for each in found[module]:
            yield from [each] if shown(each) else direct(each)

    boxes: dict[str, set[str]] = {}
    for module in filter(shown, found):
        boxes.setdefault(box(module), set()).update(box(each) for each in direct(module) if box(each) != box(module))
    for circle in circles(boxes):
        raise ValueError(f"imports run in a circle, which no picture shows: {' -> '.join([*circle, circle[0]])}")
    below = {name: _reach(boxes, name) for name in boxes}
    return {
        name: {each for each in read if not any(each in below[other] for other in read - {each})}
        for name, read in boxes.items()
    }


def _reach(graph: Imports, start: str) -> set[str]:
    waiting, found = [*graph[start]], set()
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += graph[each]
    return found


def picture(found: Imports) -> str:
    """The plan as SVG: a band a wing, an arrow from each module to those that import it.

    Arrows from one module run together as far as they go the same way.
    """
    graph = dict(sorted(drawn(found).items()))
    rows = _rows(graph)
    lanes = _lanes(graph, rows)
    order = _ordered(lanes)
    sizes = [[LANE if is_lane else WIDTH for _, is_lane in row] for row in order]
    across = max(sum(row) + GAP * (len(row) + 1) for row in sizes)
    left = 74  # names of the wings
    place: dict[tuple[int, Node], float] = {}
    for level, (row, widths) in enumerate(zip(order, sizes, strict=True)):
        x = left + (across - sum(widths) - GAP * (len(row) - 1)) / 2
        for node, width in zip(row, widths, strict=True):
            place[level, node] = x + width / 2
            x += width + GAP
    tall = 24 + STEP * len(order)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + across:g} {tall:g}" width="{left + across:g}" '
        f'height="{tall:g}" font-family="sans-serif" font-size="12" text-anchor="middle">',
        "<title>The modules of robattr, with an arrow from each to those that import it</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#777777"/></marker></defs>',
        f'<rect width="{left + across:g}" height="{tall:g}" fill="#ffffff"/>',
    ]
    for name in WINGS:
        levels = [rows[each] for each in graph if wing(each) == name]
        if levels:
            top, bottom = 24 + STEP * min(levels) - 14, 24 + STEP * max(levels) + HEIGHT + 14
            parts.append(
                f'<rect x="4" y="{top:g}" width="{left + across - 8:g}" height="{bottom - top:g}" rx="6" '
                f'fill="{COLORS[name]}" fill-opacity="0.08"/>'
                f'<text x="{left / 2 + 4:g}" y="{(top + bottom) / 2 + 4:g}" fill="{COLORS[name]}" font-weight="bold">'
                f"{name}</text>"
            )
    for level, row in enumerate(lanes):
        for (name, is_lane), above in row.items():
            x, y = place[level, (name, is_lane)], 24 + STEP * level
            for each in above:
                start = place[level - 1, each], y - STEP + HEIGHT
                parts.append(_line(start, (x, y), HEIGHT if is_lane else 0))
    for name in graph:
        x, y = place[rows[name], (name, False)], 24 + STEP * rows[name]
        text = name.partition(".")[2] or name
        parts.append(
            f'<rect x="{x - WIDTH / 2:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="4" fill="#ffffff" '
            f'stroke="{COLORS[wing(name)]}"/><text x="{x:g}" y="{y + 18:g}" fill="#222222">{escape(text)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _rows(graph: Imports) -> dict[str, int]:
    """Each module below all that it imports, and below every module of the wings before its own."""
    rows: dict[str, int] = {}
    first = 0
    for name in WINGS:
        members = {each for each in graph if wing(each) == name}
        while missing := [each for each in members if each not in rows]:
            free = [each for each in missing if graph[each] & members <= rows.keys()]
            for each in free:
                rows[each] = max([first, *(rows[other] + 1 for other in graph[each] & members)])
        first = max([first, *(rows[each] + 1 for each in members)])
    return rows


Node = tuple[str, bool]
"""A module, and whether it is the lane of its arrows through a row rather than its box."""


def _lanes(graph: Imports, rows: Mapping[str, int]) -> list[dict[Node, list[Node]]]:
    """For each row what stands in it, with what leads there from the row above."""
    found: list[dict[Node, list[Node]]] = [{} for _ in range(max(rows.values()) + 1)]
    for name in sorted(graph):
        found[rows[name]][name, False] = []
    for source in sorted(graph):
        targets = [name for name in sorted(graph) if source in graph[name]]
        for level in range(rows[source] + 1, max((rows[name] for name in targets), default=0) + 1):
            above = (source, level > rows[source] + 1)
            for name in targets:
                if rows[name] == level:
                    found[level][name, False].append(above)
            if any(rows[name] > level for name in targets):
                found[level][source, True] = [above]
    return found


def _ordered(lanes: list[dict[Node, list[Node]]]) -> list[list[Node]]:
    """Rows in an order with few crossings: each node near the middle of its neighbors, down and up in turns."""
    order = [list(row) for row in lanes]
    below: list[dict[Node, list[Node]]] = [{node: [] for node in row} for row in lanes]
    for level, row in enumerate(lanes[1:]):
        for node, neighbors in row.items():
            for each in neighbors:
                below[level][each].append(node)

    def share(row: list[Node]) -> dict[Node, float]:
        return {node: (i + 0.5) / len(row) for i, node in enumerate(row)}

    for turn in range(24):
        levels = range(1, len(order)) if turn % 2 == 0 else range(len(order) - 2, -1, -1)
        for level in levels:
            near = share(order[level - 1 if turn % 2 == 0 else level + 1])
            own = share(order[level])
            beside = (lanes if turn % 2 == 0 else below)[level]
            middle = {}
            for node in order[level]:
                around = [near[each] for each in beside[node]]
                middle[node] = sum(around) / len(around) if around else own[node]
            order[level].sort(key=lambda node: middle[node])
    return order


def _line(start: tuple[float, float], end: tuple[float, float], further: float) -> str:
    """A line down, and through a row as far as ``further``; with a tip where it ends at a box."""
    (x, y), (to_x, to_y) = start, end
    half = (y + to_y) / 2
    path = f"M{x:g} {y:g}C{x:g} {half:g} {to_x:g} {half:g} {to_x:g} {to_y:g}"
    tail = f'V{to_y + further:g}"' if further else '" marker-end="url(#tip)"'
    return f'<path d="{path}{tail} fill="none" stroke="#777777" stroke-width="1.1"/>'


if __name__ == "__main__":
    now = imports(ROOT / "robattr")
    PICTURE.write_text(picture(now), encoding="utf-8")
    CONTENTS.write_text(contents(CONTENTS.read_text(encoding="utf-8"), now), encoding="utf-8")
