"""A digest of what code does, wherever it stands: long results are keyed by it, and must not be orphaned by a move.

From the functions and classes that make a result, every definition of the package that they mention is followed: names
of the same module, imported names, attributes of imported modules. What is digested are the definitions that are
reached, which of them each one mentions, and what each name of another package stands for; without comments,
docstrings, layout and the names of this package's modules.
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
_Imported = tuple[str, str | None]  # a module, or a name in one
_IMPORTS = (ast.Import, ast.ImportFrom)
_DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SCOPES = (*_DEFINED, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def code_digest(*roots: Callable[..., Any]) -> str:
    """Twelve hexadecimal digits of what these functions and classes of the package do.

    Statements of a module that define nothing, such as a registration, count with the first definition that is reached
    in that module or through it, and so do definitions in a condition or a loop, and those with a decorator of the
    package, which may register them. What is looked up by a string (``getattr``) is not seen, unless it is in a module
    that is mentioned as a value: then all of that module counts.

    Args:
        roots: functions, classes or their methods, at the top level of modules of the package.

    Raises:
        ValueError: one of them is not.
    """
    places = []
    for root in roots:
        module, name = root.__module__, root.__qualname__
        if module.partition(".")[0] != _PACKAGE or name not in _read(module).definitions:
            raise ValueError(f"{module}.{name} is no function or class at the top level of a module of {_PACKAGE}")
        places.append((module, name))
    return hashlib.sha256("\n".join(_reached(places)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class _Module:
    """The source of a module, taken apart.

    Attributes:
        definitions: statements by the name that they bind; those of a method by ``Class.method``.
        always: names of those that count as soon as the module does.
        imports: what imported names stand for.
    """

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    always: list[str] = field(default_factory=list)
    imports: dict[str, _Imported] = field(default_factory=dict)


def _reached(places: list[_Place]) -> list[str]:
    """What is reached, a text a definition, in an order that no module's name and no place in a module decides.

    Definitions have the number by which they are found first: two of one name in two modules must not change places
    without a trace.
    """
    numbers: dict[_Place, int] = {}
    modules: dict[str, None] = {}
    texts: list[str] = []

    def number(place: _Place) -> int:
        return numbers.setdefault(place, len(numbers))

    waiting = list(places)
    counted: set[str] = set()
    while waiting:
        for place in waiting:
            number(place)
        while len(texts) < len(numbers):
            module, name = list(numbers)[len(texts)]
            modules[module] = None
            statements = _read(module).definitions[name]
            mentions = set()
            for said, target in (pair for each in statements for pair in _mentioned(each, module)):
                if isinstance(target, str):
                    mentions.add((said, target))
                else:
                    through, found = target
                    modules.update(dict.fromkeys(through))
                    mentions.add((said, str(number(found))))
            text = "\n".join(_dumped(statement) for statement in statements)
            texts.append(f"{name}\n{text}\n{sorted(mentions)}")
        new = [module for module in modules if module not in counted]
        counted |= set(new)
        # By what they say, because modules have no order.
        always = {(module, name): None for module in new for name in _read(module).always}
        waiting = sorted(
            (place for place in always if place not in numbers),
            key=lambda place: [_dumped(statement) for statement in _read(place[0]).definitions[place[1]]],
        )
    return texts


def _dumped(node: object) -> str:
    """A tree as ``ast.dump`` of Python 3.11 writes it, in every Python: what is kept under a digest must be found from
    any of them, and they differ in what they say of nothing.
    """
    if isinstance(node, ast.AST):
        said = [f"{name}={_dumped(value)}" for name, value in ast.iter_fields(node) if _is_said(node, name, value)]
        return f"{type(node).__name__}({', '.join(said)})"
    if isinstance(node, list):
        return f"[{', '.join(_dumped(each) for each in node)}]"
    return repr(node)


def _is_said(node: ast.AST, name: str, value: object) -> bool:
    optional = getattr(type(node), name, ...) is None
    return not (value is None and optional) and (name != "type_params" or bool(value)) and name != "kind"


_Target = str | tuple[list[str], _Place]  # a name elsewhere; or modules on the way, and a definition


def _mentioned(statement: ast.stmt, module: str) -> Iterator[tuple[str, _Target]]:
    """What a statement mentions, by the words of it; one too many does no harm."""
    source = _read(module)
    nodes = list(ast.walk(statement))
    imports = dict(source.imports)
    for node in nodes:
        if isinstance(node, _IMPORTS):  # inside a function, or in a condition
            imports |= _imported(node, module)
    # Of a.b.c the whole is one mention.
    parts = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and id(node) not in parts:
            yield from _attribute(node, imports)
        if not isinstance(node, ast.Name):
            continue
        if node.id in source.definitions:
            yield node.id, ([], (module, node.id))
        if node.id in imports:
            target, name = imports[node.id]
            if name is not None or not _ours(target) or id(node) not in parts:
                yield from _resolved(node.id, target, name)


def _attribute(node: ast.Attribute, imports: dict[str, _Imported]) -> Iterator[tuple[str, _Target]]:
    """What an attribute of a module of the package, or of a module in it, stands for."""
    words: list[str] = []
    value: ast.expr = node
    while isinstance(value, ast.Attribute):
        words.insert(0, value.attr)
        value = value.value
    if not isinstance(value, ast.Name) or value.id not in imports:
        return
    module, name = imports[value.id]
    if name is not None or not _ours(module):
        return
    said = value.id
    for word in words:
        said += f".{word}"
        if word not in _read(module).definitions and _file(f"{module}.{word}").is_file():
            module = f"{module}.{word}"
            continue
        yield from _resolved(said, module, word)
        return
    yield from _resolved(said, module, None)


def _resolved(said: str, module: str, name: str | None) -> Iterator[tuple[str, _Target]]:
    """Where a name of a module is defined, through modules that hand it on; of a module as a value, all of it."""
    if not _ours(module):
        yield said, f"{module}.{name}" if name is not None else module
        return
    if name is None:
        for each in sorted(_read(module).definitions):
            yield f"{said}.{each}", ([module], (module, each))
        return
    through = [module]
    while _ours(module) and name is not None:
        source = _read(module)
        if name in source.definitions:
            yield said, (through, (module, name))
            return
        if name not in source.imports:
            return
        module, name = source.imports[name]
        through = [*through, module]
    if not _ours(module):
        yield said, f"{module}.{name}"


def _ours(module: str) -> bool:
    # How digests are made decides no result, and may change where the digests stay.
    return module.partition(".")[0] == _PACKAGE and module != __name__


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
        if isinstance(statement, _IMPORTS):
            found.imports.update(_imported(statement, module))
            continue
        names = list(dict.fromkeys(_bound(statement)))
        if "__all__" in names:
            continue
        for node in _outside_scopes(statement):
            if isinstance(node, _IMPORTS):
                found.imports.update(_imported(node, module))
        decorators = getattr(statement, "decorator_list", [])
        used = {each.id for d in decorators for each in ast.walk(d) if isinstance(each, ast.Name)}
        own = found.definitions.keys() | {name for name, (source, _) in found.imports.items() if _ours(source)}
        for name in names or [""]:
            found.definitions.setdefault(name, []).append(statement)
        if isinstance(statement, ast.ClassDef):
            for inner in statement.body:
                if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    found.definitions.setdefault(f"{statement.name}.{inner.name}", []).append(inner)
        simple = isinstance(statement, (*_DEFINED, ast.Assign, ast.AnnAssign, ast.AugAssign))
        if not names or not simple or used & own:
            found.always.extend(names or [""])
    return found


def _outside_scopes(statement: ast.stmt) -> Iterator[ast.AST]:
    """Nodes of a statement, not those inside of functions and classes."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, _SCOPES):
            waiting += ast.iter_child_nodes(node)


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement of a module binds, but for imports."""
    for node in _outside_scopes(statement):
        if isinstance(node, _DEFINED):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _imported(node: ast.Import | ast.ImportFrom, module: str) -> dict[str, _Imported]:
    """Names that an import binds, to modules or to names in them."""
    found: dict[str, _Imported] = {}
    if isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            parent = module.split(".") if _file(module).name == "__init__.py" else module.split(".")[:-1]
            source = ".".join([*parent[: len(parent) - node.level + 1], *source.split(".")]).rstrip(".")
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            is_module = _ours(source) and _file(inner).is_file()
            found[alias.asname or alias.name] = (inner, None) if is_module else (source, alias.name)
    else:
        for alias in node.names:
            first = alias.name.partition(".")[0]
            found[alias.asname or first] = (alias.name if alias.asname else first, None)
    return found


def _without_text(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Docstrings, and the strings below attributes that document them.
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
        if isinstance(node, ast.JoinedStr):
            # Some Pythons end a format that ends with a value by an empty text.
            node.values = [each for each in node.values if not (isinstance(each, ast.Constant) and each.value == "")]
    return tree


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
