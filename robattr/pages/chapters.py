"""Chapters of the book: which there are, and what their parameters accept.

A chapter is ``notebooks/NN_claim.md``, a notebook in MyST Markdown. Its YAML header says under ``robattr:`` what it
claims and, as JSON Schema, what each of its parameters accepts; the defaults are plain literals in the one cell tagged
``parameters``. Everything is checked before a kernel starts, and every refusal is a :class:`ChapterError` whose message
is one line.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from robattr._yaml import YamlError, one_line, parse
from robattr.pages.schemas import Schema, Validator, accepted, code_named, reason_against, shown


class ChapterError(ValueError):
    """A chapter, a profile or a parameter is refused; the message is one line."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a chapter."""

    name: str
    schema: Schema
    default: Any

    @property
    def description(self) -> str:
        return str(self.schema.get("description", ""))

    @property
    def accepts(self) -> str:
        """What the schema accepts, in words."""
        return accepted(self.schema)


@dataclass(frozen=True)
class Need:
    """What a parameter needs of another one, or of what follows from it: see :mod:`robattr.pages.needs`."""

    left: str
    sign: str
    right: str

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right}"


@dataclass(frozen=True)
class Chapter:
    """A notebook with a claim and parameters.

    ``cost`` names the parameters to whose product its time is about proportional: numbers, or the lengths of lists.
    """

    name: str
    path: Path
    title: str
    claim: str
    parameters: Mapping[str, Parameter]
    needs: tuple[Need, ...] = ()
    cost: tuple[str, ...] = ()

    def accepts(self, name: str) -> str:
        """What a parameter accepts, by itself and beside the others, in words."""
        beside = [f"{need.sign} {need.right}" for need in self.needs if need.left == name]
        return "; ".join([self.parameters[name].accepts, *beside])


def parse_yaml(text: str, source: str, *, line: int = 1) -> Any:
    """:func:`robattr._yaml.parse`, whose refusals are a chapter's.

    Raises:
        ChapterError: ``text`` is not YAML, or has a key twice.
    """
    try:
        return parse(text, source, line=line)
    except YamlError as error:
        raise ChapterError(str(error)) from None


# --- finding and reading chapters ------------------------------------------------------------------------------------


def find_root(start: Path | None = None) -> Path:
    """The project's folder: the nearest at or above ``start`` (or the working directory) that has ``notebooks/``.

    Raises:
        ChapterError: there is none, nor is the package run from a checkout.
    """
    here = (start or Path.cwd()).resolve()
    checkout = Path(__file__).resolve().parents[2]
    for folder in (here, *here.parents, checkout):
        if (folder / "notebooks").is_dir():
            return folder
    raise ChapterError(f"{here}: no notebooks/ folder here or above; run this in a checkout of the project")


def chapter_names(root: Path) -> list[str]:
    """Names of all chapters: those of the book in its order, then the others, those with numbers first.

    Raises:
        ChapterError: the table of contents has a mistake.
    """
    names = {path.stem for path in (root / "notebooks").glob("*.md")}
    in_book = [name for name, _ in _contents(root) if name in names]
    return in_book + sorted(names.difference(in_book), key=lambda name: (number_of(name) is None, name))


def contents(root: Path) -> dict[str, int | None]:
    """Chapters in the book's order, with the number that it shows for each, or None where it shows none.

    Jupyter Book counts the files of numbered parts, through all parts (``use_multitoc_numbering``).

    Raises:
        ChapterError: ``_toc.yml`` has a mistake or names a chapter that is not there.
    """
    found = dict(_contents(root))
    names = chapter_names(root)
    for name in found:
        if name not in names:
            raise ChapterError(f"_toc.yml: {_unknown(name, names)}")
    return found


def _contents(root: Path) -> Iterator[tuple[str, int | None]]:
    path = root / "_toc.yml"
    if not path.exists():
        return
    book = parse_yaml(_text(path, path.name), path.name)
    parts = [book, *book.get("parts", [])] if isinstance(book, Mapping) else []
    if not parts or not all(isinstance(part, Mapping) for part in parts):
        raise ChapterError("_toc.yml: must hold 'root' and 'parts', or 'root' and 'chapters'")
    count = 0
    for part in parts:
        for entry in part.get("chapters", []):
            count += bool(part.get("numbered"))
            file = Path(str(entry.get("file", "")))
            if file.parent.name == "notebooks":
                yield file.name, count if part.get("numbered") else None


def number_of(name: str) -> int | None:
    """The number that a chapter's name begins with: 5 for ``05_not_invariant``, None for ``ledger``."""
    number = name.partition("_")[0]
    return int(number) if number.isdecimal() else None


def _without_number(name: str) -> str:
    return name if number_of(name) is None else name.partition("_")[2]


def chapters(root: Path) -> list[Chapter]:
    """All chapters, in the order of :func:`chapter_names`.

    Raises:
        ChapterError: one of them has a mistake in its header or its parameters.
    """
    return [chapter(root, name) for name in chapter_names(root)]


def chapter(root: Path, name: str) -> Chapter:
    """Read and check one chapter.

    Args:
        root: the project's folder.
        name: the chapter's name (``02_fragile``), its number (``2`` or ``02``), or a part of its name that no other
            chapter's has (``fragile``).

    Raises:
        ChapterError: there is no such chapter or more than one, or it has a mistake in its header or its parameters.
    """
    name = _find(name, chapter_names(root))
    path = root / "notebooks" / f"{name}.md"
    notebook = read_notebook(path)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# +(.+)$", prose, re.MULTILINE)
    header = _header(path)
    claim, schemas = header.get("claim"), header.get("parameters", {})
    if heading is None:
        raise ChapterError(f"{path.name}: no title; the first heading must be '# Title'")
    if not isinstance(claim, str) or not claim.strip():
        raise ChapterError(f"{path.name}: the header has no 'claim' under 'robattr:'; one sentence is wanted")
    if not isinstance(schemas, Mapping):
        raise ChapterError(f"{path.name}: 'parameters' under 'robattr:' must map names to JSON Schemas")
    defaults = _defaults(notebook, path)
    parameters = _parameters(path, schemas, defaults)
    needs = _needs(path, header.get("needs", []), parameters)
    cost = _cost(path, header.get("cost", []), parameters)
    return Chapter(name, path, heading[1].strip(), " ".join(claim.split()), parameters, needs, cost)


def _find(name: str, names: list[str]) -> str:
    """The one of ``names`` that ``name`` means: by its number, else whole, else by a part of it."""
    if name.isdecimal():
        matches = [each for each in names if number_of(each) == int(name)]
    else:
        whole = [each for each in names if name in (each, _without_number(each))]
        matches = whole or [each for each in names if name and name in each]
    if len(matches) > 1:
        raise ChapterError(f"{name!r} may be {' or '.join(matches)}; give more of the name")
    if not matches:
        raise ChapterError(_unknown(name, names))
    return matches[0]


def _unknown(name: str, names: list[str]) -> str:
    words = {word: each for each in reversed(names) for word in (*each.split("_"), _without_number(each), each)}
    close = [] if name.isdecimal() else difflib.get_close_matches(name, words, n=1, cutoff=0.5)
    meant = f"; did you mean {words[close[0]]!r}?" if close else ""
    return f"no chapter {name!r}{meant} (there are {', '.join(names) or 'none'})"


def read_notebook(path: Path) -> Any:
    """A chapter's source as a notebook.

    Raises:
        ChapterError: it is not a MyST notebook, or the options of a cell have a mistake.
    """
    import jupytext

    text = _text(path, path.name)
    _check_cell_options(text, path.name)
    try:
        return jupytext.reads(text, fmt={"extension": ".md", "format_name": "myst"})
    except Exception as error:  # jupytext lets whatever its parsers raise through
        raise ChapterError(f"{path.name}: not a MyST notebook: {one_line(error)}") from None


def _text(path: Path, source: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ChapterError(f"{source}: not UTF-8 at byte {error.start}") from None


def _check_cell_options(text: str, source: str) -> None:
    """Read the YAML at the head of each code cell as jupytext does, which keeps the last of two equal keys."""
    lines = text.split("\n")
    for start, line in enumerate(lines, 1):
        if re.match(r"(`{3,}|~{3,})\{code-cell\}", line):
            cell = lines[start:]
            if cell and cell[0].startswith("---"):
                options = list(itertools.takewhile(lambda each: not each.startswith("---"), cell[1:]))
                start += 1
            else:
                options = [each[1:] for each in itertools.takewhile(lambda each: each.startswith(":"), cell)]
            parse_yaml("\n".join(options), source, line=start + 1)


def _header(path: Path) -> Mapping[str, Any]:
    match = re.match(r"---\n(.*?\n)---\n", path.read_text(encoding="utf-8"), re.DOTALL)
    header = parse_yaml(match[1], path.name, line=2) if match else None
    section = header.get("robattr") if isinstance(header, Mapping) else None
    if not isinstance(section, Mapping):
        raise ChapterError(f"{path.name}: the YAML header has no 'robattr:' section with 'claim' and 'parameters'")
    return section


def _defaults(notebook: Any, path: Path) -> dict[str, Any]:
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) > 1:
        raise ChapterError(f"{path.name}: {len(cells)} cells are tagged 'parameters'; one is wanted")
    if not cells:
        return {}
    defaults: dict[str, Any] = {}
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise ChapterError(f"{path.name}: the parameters cell is not Python: {one_line(error)}") from None
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or not isinstance(value, ast.expr):
            raise ChapterError(
                f"{path.name}: the parameters cell may only hold lines 'name = literal', "
                f"not {shown(ast.unparse(statement))}"
            )
        try:
            defaults[targets[0].id] = ast.literal_eval(value)
        except ValueError:
            raise ChapterError(
                f"{path.name}: the default of parameter {targets[0].id!r} must be a plain literal, "
                f"not {shown(ast.unparse(value))}"
            ) from None
    return defaults


def _parameters(path: Path, schemas: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Parameter]:
    for name in schemas:
        if name not in defaults:
            raise ChapterError(f"{path.name}: parameter {name!r} has no default in the cell tagged 'parameters'")
    for name in defaults:
        if name not in schemas:
            raise ChapterError(f"{path.name}: parameter {name!r} has no schema under 'robattr: parameters:'")
    for name, schema in schemas.items():
        if not isinstance(schema, Mapping):
            raise ChapterError(f"{path.name}: the schema of parameter {name!r} must be a mapping, not {shown(schema)}")
        try:
            Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ChapterError(
                f"{path.name}: the schema of parameter {name!r} is not JSON Schema: {one_line(error.message)}"
            ) from None
        reason = reason_against(schema, defaults[name])
        if reason is not None:
            raise ChapterError(
                f"{path.name}: the default of parameter {name!r} is {shown(defaults[name])}{reason}; "
                f"its schema accepts {accepted(schema)}"
            )
        if code_named(schema, defaults[name]) is not None:
            raise ChapterError(
                f"{path.name}: the default of parameter {name!r} names a file of Python code, "
                f"{shown(defaults[name])}; nobody else's code is run: name it on the command line, -p {name} ..."
            )
    return {name: Parameter(name, schema, defaults[name]) for name, schema in schemas.items()}


# What follows from a parameter of a format.
_FOLLOWS = {"dataset": ("images",), "model": ("pixels",), "grid": ("objectives", "seeds")}


def _needs(path: Path, lines: Any, parameters: Mapping[str, Parameter]) -> tuple[Need, ...]:
    if not isinstance(lines, list):
        raise ChapterError(f"{path.name}: 'needs' under 'robattr:' must be a list, not {shown(lines)}")
    found = []
    for line in lines:
        match = re.fullmatch(r"(\w+) (<=|in|fits) (\w+)(?:\.(\w+))?", str(line))
        if match is None:
            raise ChapterError(f"{path.name}: a need is 'a <= b', 'a in b.c' or 'a fits b', not {shown(line)}")
        left, sign, right, field = match.groups()
        for name in (left, right):
            if name not in parameters:
                raise ChapterError(f"{path.name}: the need {str(line)!r} names {name!r}, which is no parameter")
        follows = _FOLLOWS.get(parameters[right].schema.get("format", ""), ())
        fits = sign == "fits" and field is None and parameters[right].schema.get("format") == "grid"
        if not (fits or (sign == "<=" and field is None) or (sign != "fits" and field in follows)):
            there = f"{right} has {', '.join(follows)}" if follows else f"nothing follows from {right}"
            raise ChapterError(f"{path.name}: the need {str(line)!r} cannot be asked; {there}")
        found.append(Need(left, sign, right + (f".{field}" if field else "")))
    return tuple(found)


def _cost(path: Path, names: Any, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise ChapterError(f"{path.name}: 'cost' under 'robattr:' must be a list of parameters, not {shown(names)}")
    for name in names:
        if name not in parameters:
            raise ChapterError(f"{path.name}: 'cost' names {shown(name)}, which is no parameter")
    return tuple(names)


def _suggestion(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


# --- parameters ------------------------------------------------------------------------------------------------------


def check_parameters(chapter: Chapter, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as they go into ``chapter``, all of them names and values that it takes.

    Raises:
        ChapterError: the first unknown name, value of a wrong type or impossible value, with what is accepted.
    """
    names = list(chapter.parameters)
    for name, value in values.items():
        if name not in chapter.parameters:
            known = f"it takes {', '.join(names)}" if names else "it takes none"
            raise ChapterError(f"{chapter.name} has no parameter {name!r}{_suggestion(str(name), names)} ({known})")
        reason = reason_against(chapter.parameters[name].schema, value)
        if reason is not None:
            raise ChapterError(
                f"{chapter.name}: parameter {name!r} cannot be {shown(value)}{reason}; "
                f"it accepts {chapter.parameters[name].accepts}"
            )
    return dict(values)


def profile_names(root: Path) -> list[str]:
    """Names of the profiles there are."""
    return sorted(path.stem for path in (root / "profiles").glob("*.yaml"))


def profile_parameters(root: Path, profile: str) -> dict[str, dict[str, Any]]:
    """Parameters that a profile sets: ``{chapter: {parameter: value}}``, not yet checked against the chapters.

    Raises:
        ChapterError: there is no such profile, it is not of the form ``description`` and ``parameters``, or it names a
            chapter that does not exist.
    """
    path = root / "profiles" / f"{profile}.yaml"
    if profile not in profile_names(root):
        names = profile_names(root)
        raise ChapterError(
            f"no profile {profile!r}{_suggestion(profile, names)} (there are {', '.join(names) or 'none'})"
        )
    content = parse_yaml(_text(path, f"profiles/{path.name}"), f"profiles/{path.name}")
    if not isinstance(content, Mapping) or set(content) != {"description", "parameters"}:
        raise ChapterError(f"profiles/{path.name}: must hold 'description' and 'parameters', and nothing else")
    parameters = content["parameters"] or {}
    if not isinstance(parameters, Mapping):
        raise ChapterError(f"profiles/{path.name}: 'parameters' must map chapters to their parameters")
    names = chapter_names(root)
    for name, values in parameters.items():
        if name not in names:
            raise ChapterError(f"profiles/{path.name}: no chapter {name!r}{_suggestion(str(name), names)}")
        if not isinstance(values, Mapping):
            raise ChapterError(f"profiles/{path.name}: {name} must map parameters to values, not {shown(values)}")
    return {name: dict(values) for name, values in parameters.items()}
