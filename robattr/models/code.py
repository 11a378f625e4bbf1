"""Networks from a file of Python code, ``path/to/module.py:function``.

Loading such a file **runs its code**, with all that its reader may do. It is run where a person named it: in a call of
Python, or on the command line. What only stands in another file (a profile, a grid, a record) is checked with
:func:`check_allowed` first.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from robattr._files import file_digest
from robattr._yaml import one_line
from robattr.models.classifier import ModelError

__all__ = ["allowed", "check_allowed", "code_digests", "load_code", "names_code", "place_of", "public_name"]


NAMED = "ROBATTR_CODE"
"""Environment variable: files of code that were named on the command line."""


def names_code(name: object) -> bool:
    """Whether a model's name is that of a function in a file of Python code: ``path/to/module.py:function``."""
    return isinstance(name, str) and (".py:" in name or name.endswith(".py"))


def public_name(name: str) -> str:
    """A model's name as a record may say it: where a file of code lies is nobody else's business."""
    if not names_code(name):
        return name
    path, _, function = name.rpartition(":")
    return f"{Path(path).name}:{function}" if path else Path(name).name


def place_of(name: str) -> tuple[Path, str]:
    """File and function that ``path/to/module.py:function`` names. Nothing is run.

    Raises:
        ValueError: the function is not named, or there is no such file.
    """
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not function.isidentifier():
        raise ValueError(
            f"model is {name!r}; code is named as path/to/module.py:function, a function that returns an nn.Module"
        )
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"model is {name!r}; there is no file {file}")
    return file, function


def check_allowed(name: str | None, where: str) -> None:
    """Refuse a model's name that was read from a file and means code, unless a person named the file of code.

    Args:
        name: of the model, or None.
        where: what names the model, for the message.

    Files are named with ``--code`` on the command line, or in Python with :func:`allowed`.

    Raises:
        ValueError: the file of code was not named.
    """
    if name is None or not names_code(name):
        return
    file = Path(name.rpartition(":")[0] or name).expanduser()
    named = filter(None, os.environ.get(NAMED, "").split(os.pathsep))
    if file.resolve() not in {Path(each).expanduser().resolve() for each in named}:
        raise ValueError(
            f"{where} names a file of Python code, {file}, which would be run; where you trust it, name it yourself: "
            f"--code {file}, or in Python with robattr.models.allowed([{str(file)!r}])"
        )


@contextmanager
def allowed(code: Collection[Path | str]) -> Iterator[None]:
    """Within, these files of Python code may be run where a configuration names them, see :func:`check_allowed`.

    Processes that are started within know it, too: the files are in the environment variable ``ROBATTR_CODE``.
    """
    before = os.environ.get(NAMED)
    os.environ[NAMED] = os.pathsep.join([*filter(None, [before]), *(str(Path(c).expanduser().resolve()) for c in code)])
    try:
        yield
    finally:
        if before is None:
            del os.environ[NAMED]
        else:
            os.environ[NAMED] = before


def code_digests(name: str) -> dict[str, str]:
    """SHA-256 of a network's file of code, and of those beside it that it imports, by their names.

    Empty for a network that is not from such a file. Nothing is run.

    Raises:
        ValueError: see :func:`place_of`.
    """
    if not names_code(name):
        return {}
    file, _ = place_of(name)
    base, _ = _base(file)
    return {path.relative_to(base).as_posix(): file_digest(path) for path in _reached(file.resolve(), base)}


def load_code(name: str, num_classes: int | None = None) -> nn.Module:
    """Run a file of code, call its function, and return the network.

    What the file imports must be installed, or lie beside it or, where it is part of a package, in that package. The
    modules of its folder are gone from ``sys.modules`` afterwards: two networks may each have a ``layers.py``.

    Args:
        name: ``path/to/module.py:function``; a class of networks will do.
        num_classes: passed to a function that has a parameter of that name; None leaves it to the function.

    Raises:
        ValueError: see :func:`place_of`; there is no such function, or it wants what is not known.
        ModelError: the code fails, or returns something else.
    """
    file, function = place_of(name)
    shown = public_name(name)
    with _importing(file) as run:
        try:
            module = run()
        except (Exception, SystemExit) as error:
            raise ModelError(f"{file} fails when it is run: {type(error).__name__}: {one_line(error)}") from error
        make = getattr(module, function, None)
        if not callable(make):
            raise ValueError(f"model is {name!r}; {file.name} has no function {function!r}{_offered(module)}")
        arguments = _arguments(make, shown, num_classes)
        try:
            network = make(**arguments)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{shown} fails: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{shown} returned a {type(network).__name__}; it must return an nn.Module")
    return network


def _offered(module: ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isroutine(value) and value.__module__ == module.__name__
    ]
    return f" (it has {', '.join(own)})" if own else ""


def _arguments(make: Callable[..., object], shown: str, num_classes: int | None) -> dict[str, int]:
    """What a function is called with; a ValueError where it wants more than is known."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return {}
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    found = {p.name: num_classes for p in by_name if p.name == "num_classes" and num_classes is not None}
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in needed if p.name not in found]
    if missing == ["num_classes"]:
        raise ValueError(f"{shown} wants num_classes; give it, or the file of its weights, which says it")
    if missing:
        raise ValueError(
            f"{shown} wants {', '.join(missing)}; name a function that needs no argument, or num_classes alone"
        )
    return found


def _base(file: Path) -> tuple[Path, str]:
    """The folder from which a file is imported, above the package that it is in, and its dotted name from there."""
    base, names = file.resolve().parent, [file.stem]
    while (base / "__init__.py").is_file():
        names.insert(0, base.name)
        base = base.parent
    dotted = ".".join(names)
    return base, f"{dotted}_py" if dotted in _SHARED else dotted


# A file of such a name beside a network's code is not what others import by it.
_SHARED = frozenset({"numpy", "robattr", "timm", "torch", "torchvision"}) | sys.stdlib_module_names


def _reached(file: Path, base: Path) -> list[Path]:
    """A file of code and those below ``base`` that its imports lead to, also within functions. Nothing is run."""
    found: dict[Path, None] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        found[path] = None
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # running it says what is wrong
        package = path.relative_to(base).parent.parts
        for node in ast.walk(tree):
            for parts in _imported(node, package):
                if parts and parts[0] not in _SHARED:
                    for depth in range(1, len(parts) + 1):
                        place = base.joinpath(*parts[:depth])
                        waiting += [p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()]
    return sorted(found)


def _imported(node: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What a statement imports, as parts of dotted names; names in a module may be modules themselves."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield tuple(alias.name.split("."))
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else ()
        start = (*above, *(node.module.split(".") if node.module else ()))
        for alias in node.names:
            yield (*start, alias.name)


@contextmanager
def _importing(file: Path) -> Iterator[Callable[[], ModuleType]]:
    """A function that runs a file of code as a module; within the context its own folder is imported from first."""
    base, dotted = _base(file)
    file = file.resolve()
    local = {path.relative_to(base).parts[0].removesuffix(".py") for path in _reached(file, base)} - _SHARED
    local.add(dotted.partition(".")[0])

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in local]

    hidden = {name: sys.modules.pop(name) for name in ours()}
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(base))
    importlib.invalidate_caches()

    def run() -> ModuleType:
        if "." in dotted:
            return importlib.import_module(dotted)
        spec = importlib.util.spec_from_file_location(dotted, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[dotted] = module
        spec.loader.exec_module(module)
        return module

    try:
        yield run
    finally:
        sys.path.remove(str(base))
        sys.dont_write_bytecode = writes
        for name in ours():
            del sys.modules[name]
        sys.modules.update(hidden)
