"""A digest of what code does, wherever it stands: long results are keyed by it, and must not be orphaned by a move.

From the functions and classes that make a result, every definition of the package that they mention is followed: names
of the same module, imported names, attributes of imported modules. What is digested are the definitions that are
reached, without comments, docstrings, layout, imports and the names of modules.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["code_digest"]

_PACKAGE = __name__.partition(".")[0]
_Place = tuple[str, str]  # module and name


def code_digest(*roots: Callable[..., Any]) -> str:
    """Twelve hexadecimal digits of what these functions and classes of the package do.

    Statements of a module that define nothing, such as a registration, count with the first definition of that module
    that is reached, and so do definitions with a decorator of the package, which may register them.

    Args:
        roots: functions or classes at the top level of modules of the package.

    Raises:
        ValueError: one of them is not.
    """
    places = []
    for root in roots:
        module, name = root.__module__, root.__qualname__
        if module.partition(".")[0] != _PACKAGE or name not in _read(module).definitions:
            raise ValueError(f"{module}.{name} is no function or class at the top level of a module of {_PACKAGE}")
        places.append((module, name))
    # Each definition by itself, in an order that no module's name and no place in a module decides.
    dumps = sorted(f"{name}\n{dump}" for (_, name), dump in _reached(places).items())
    return hashlib.sha256("\n".join(dumps).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class _Module:
    """The source of a module, taken apart.

    Attributes:
        definitions: statements by the name that they bind.
        always: names of those that count as soon as the module does.
        imports: what names of the package's own stand for: a module, or a name in one.
    """

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    always: list[str] = field(default_factory=list)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def _reached(places: list[_Place]) -> dict[_Place, str]:
    found: dict[_Place, str] = {}
    open_, modules = list(places), set[str]()
    while open_:
        place = open_.pop()
        if place in found:
            continue
        module, name = place
        source = _read(module)
        found[place] = "\n".join(ast.dump(statement) for statement in source.definitions[name])
        if module not in modules:
            modules.add(module)
            open_ += [(module, each) for each in source.always]
        for statement in source.definitions[name]:
            open_ += _mentioned(statement, module, source)
    return found


def _mentioned(statement: ast.stmt, module: str, source: _Module) -> Iterator[_Place]:
    """Every definition of the package that a statement mentions; one too many does no harm."""
    for node in ast.walk(statement):
        if isinstance(node, (ast.Import, ast.ImportFrom)):  # inside a function
            for imported in _imported(node, module).values():
                yield from _resolved(*imported)
        elif isinstance(node, ast.Name):
            if node.id in source.definitions:
                yield module, node.id
            elif node.id in source.imports:
                yield from _resolved(*source.imports[node.id])
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            target, name = source.imports.get(node.value.id, ("", ""))
            if target and name is None:
                yield from _resolved(target, node.attr)


def _resolved(module: str, name: str | None) -> Iterator[_Place]:
    """Where a name of a module is defined, through modules that hand it on; nothing for a module as such."""
    if name is None:
        return
    source = _read(module)
    if name in source.definitions:
        yield module, name
    elif name in source.imports:
        target, inner = source.imports[name]
        yield from _resolved(target, inner)


def _read(module: str) -> _Module:
    return _parsed(module, _file(module).read_bytes())


def _file(module: str) -> Path:
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        root = Path(str(sys.modules[_PACKAGE].__file__)).parent
        path = root.joinpath(*module.split(".")[1:])
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return Path(file)


@cache
def _parsed(module: str, text: bytes) -> _Module:
    found = _Module()
    for statement in _without_text(ast.parse(text)).body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            found.imports.update(_imported(statement, module))
            continue
        names = _bound(statement)
        if "__all__" in names:
            continue
        decorators = getattr(statement, "decorator_list", [])
        own = {each.id for d in decorators for each in ast.walk(d) if isinstance(each, ast.Name)}
        for name in names or [""]:
            found.definitions.setdefault(name, []).append(statement)
        if not names or own & (found.definitions.keys() | found.imports.keys()):
            found.always.extend(names or [""])
    return found


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    nodes = [node for target in targets if target is not None for node in ast.walk(target)]
    return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _imported(node: ast.Import | ast.ImportFrom, module: str) -> dict[str, tuple[str, str | None]]:
    """Names that an import binds to modules of the package, or to names in them."""
    found: dict[str, tuple[str, str | None]] = {}
    if isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            parent = module.split(".") if _file(module).name == "__init__.py" else module.split(".")[:-1]
            source = ".".join([*parent[: len(parent) - node.level + 1], *source.split(".")]).rstrip(".")
        if source.partition(".")[0] == _PACKAGE:
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                is_module = _file(inner).is_file()
                found[alias.asname or alias.name] = (inner, None) if is_module else (source, alias.name)
    else:
        for alias in node.names:
            if alias.asname and alias.name.partition(".")[0] == _PACKAGE:
                found[alias.asname] = (alias.name, None)
    return found


def _without_text(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Docstrings, and the strings below attributes that document them.
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
    return tree


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
