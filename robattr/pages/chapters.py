"""Chapters of the book: which there are, what their parameters accept, and how one is executed.

A chapter is ``notebooks/NN_claim.md``, a notebook in MyST Markdown. Its YAML header says under ``robattr:`` what it
claims and, as JSON Schema, what each of its parameters accepts; the defaults are plain literals in the one cell tagged
``parameters``. Everything is checked before a kernel starts, and every refusal is a :class:`ChapterError` whose message
is one line.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import difflib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from robattr.studies.runs import environment

Schema = Mapping[str, Any]

NO_WIDGETS = "ignore:IProgress not found"
"""Warning filter: tqdm asks for progress bars as widgets, which no page could show."""


class ChapterError(ValueError):
    """A chapter, a profile or a parameter is refused; the message is one line."""


class ExecutionError(RuntimeError):
    """A chapter failed while it ran; the message is one line and ``traceback`` is what the kernel reported."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


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
class Chapter:
    """A notebook with a claim and parameters."""

    name: str
    path: Path
    title: str
    claim: str
    parameters: Mapping[str, Parameter]


# --- YAML ------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of numbers and booleans: 1e-3 is a number, and ``on`` is a word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.rpartition(":")[2] not in {"bool", "int", "float"}]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), "-+0123456789")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    "-+.0123456789",
)


def parse_yaml(text: str, source: str) -> Any:
    """The value that ``text`` spells in YAML.

    Raises:
        ChapterError: it is not YAML; ``source`` says in the message where it comes from.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ChapterError(f"{source}: not valid YAML: {_one_line(error)}") from None


def _one_line(value: object, limit: int = 200) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _shown(value: object) -> str:
    return _one_line(repr(value), 80)


# --- schemas ---------------------------------------------------------------------------------------------------------


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_: object, value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# JSON Schema takes 2.0 for an integer and YAML can spell infinities; neither is meant by a chapter's author.
_Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_integer, "number": _is_number}
    ),
)

_FORMATS = {
    "dataset": ("the name of a data set (robattr data), or folder:PATH with an existing folder", "names of data sets"),
    "model": ("the name of a model that robattr.models.available() lists", "names of models"),
}
_FORMAT_CHECKER = jsonschema.FormatChecker(formats=())


@_FORMAT_CHECKER.checks("dataset")
def _is_dataset(value: object) -> bool:
    from robattr import data

    if not isinstance(value, str):
        return True  # the type is for "type" to check
    kind, _, path = value.partition(":")
    return Path(path).is_dir() if kind == "folder" and path else value in {each.name for each in data.available()}


@_FORMAT_CHECKER.checks("model")
def _is_model(value: object) -> bool:
    from robattr import models

    return not isinstance(value, str) or value in models.available()


_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_NOUNS = {
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "string": ("a string", "strings"),
    "boolean": ("true or false", "true or false values"),
    "null": ("null", "nulls"),
    "array": ("a list", "lists"),
    "object": ("a mapping", "mappings"),
}


def accepted(schema: Schema, *, plural: bool = False) -> str:
    """What a parameter's JSON Schema accepts, in words: "an integer >= 1", "a list of numbers > 0 and <= 255"."""
    if "enum" in schema:
        choices = ", ".join(repr(choice) for choice in schema["enum"])
        if len(schema["enum"]) == 1:
            return choices
        return f"values out of {choices}" if plural else f"one of {choices}"
    if "const" in schema:
        return repr(schema["const"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(accepted(option, plural=plural) for option in schema[union])
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(accepted({**schema, "type": one}, plural=plural) for one in kind)
    if kind not in _NOUNS:
        return "values of any kind" if plural else "any value"
    if kind == "string" and schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]][plural]
    words = _NOUNS[kind][plural]
    if kind == "array":
        return _list_words(schema, words)
    if kind in {"integer", "number"}:
        bounds = [f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema]
        if bounds:
            words += f" {' and '.join(bounds)}"
        if "multipleOf" in schema:
            words += f", a multiple of {schema['multipleOf']}"
    if kind == "string" and "pattern" in schema:
        words += f" that matches {schema['pattern']}"
    return words


def _list_words(schema: Schema, words: str) -> str:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    count = ""
    if most is not None:
        count = f"exactly {most} " if least == most else f"{least} to {most} "
    elif least > 1:
        count = f"at least {least} "
    elif least == 1:
        words = "non-empty lists" if words == "lists" else "a non-empty list"
    distinct = "different " if schema.get("uniqueItems") else ""
    if "items" in schema:
        return f"{words} of {count}{distinct}{accepted(schema['items'], plural=True)}"
    return f"{words} of {count}{distinct}values" if count or distinct else words


def _reason(schema: Schema, value: Any) -> str | None:
    """Why ``value`` does not fit ``schema``: None where it fits, "" where the value as a whole is at fault."""
    error = next(iter(_Validator(schema, format_checker=_FORMAT_CHECKER).iter_errors(value)), None)
    if error is None:
        return None
    if not error.absolute_path:
        return ""
    where = "".join(f"[{step!r}]" for step in error.absolute_path)
    return f" (its {where} is {_shown(error.instance)})"


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
    """Names of all chapters, in the order of their numbers."""
    return sorted(path.stem for path in (root / "notebooks").glob("*.md"))


def chapters(root: Path) -> list[Chapter]:
    """All chapters, in the order of their numbers.

    Raises:
        ChapterError: one of them has a mistake in its header or its parameters.
    """
    return [chapter(root, name) for name in chapter_names(root)]


def chapter(root: Path, name: str) -> Chapter:
    """Read and check one chapter.

    Args:
        root: the project's folder.
        name: the chapter's name, or its number alone (``02`` for ``02_fragile``).

    Raises:
        ChapterError: there is no such chapter, or it has a mistake in its header or its parameters.
    """
    names = chapter_names(root)
    matches = [name] if name in names else [each for each in names if each.partition("_")[0] == name]
    if len(matches) != 1:
        raise ChapterError(f"no chapter {name!r}{_suggestion(name, names)} (there are {', '.join(names) or 'none'})")
    path = root / "notebooks" / f"{matches[0]}.md"
    notebook = _read_notebook(path)
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
    return Chapter(matches[0], path, heading[1].strip(), " ".join(claim.split()), _parameters(path, schemas, defaults))


def _read_notebook(path: Path) -> Any:
    import jupytext

    try:
        return jupytext.reads(path.read_text(encoding="utf-8"), fmt={"extension": ".md", "format_name": "myst"})
    except Exception as error:  # jupytext lets whatever its parsers raise through
        raise ChapterError(f"{path.name}: not a MyST notebook: {_one_line(error)}") from None


def _header(path: Path) -> Mapping[str, Any]:
    match = re.match(r"---\n(.*?\n)---\n", path.read_text(encoding="utf-8"), re.DOTALL)
    header = parse_yaml(match[1], path.name) if match else None
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
        raise ChapterError(f"{path.name}: the parameters cell is not Python: {_one_line(error)}") from None
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or not isinstance(value, ast.expr):
            raise ChapterError(
                f"{path.name}: the parameters cell may only hold lines 'name = literal', "
                f"not {_shown(ast.unparse(statement))}"
            )
        try:
            defaults[targets[0].id] = ast.literal_eval(value)
        except ValueError:
            raise ChapterError(
                f"{path.name}: the default of parameter {targets[0].id!r} must be a plain literal, "
                f"not {_shown(ast.unparse(value))}"
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
            raise ChapterError(f"{path.name}: the schema of parameter {name!r} must be a mapping, not {_shown(schema)}")
        try:
            _Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ChapterError(
                f"{path.name}: the schema of parameter {name!r} is not JSON Schema: {_one_line(error.message)}"
            ) from None
        reason = _reason(schema, defaults[name])
        if reason is not None:
            raise ChapterError(
                f"{path.name}: the default of parameter {name!r} is {_shown(defaults[name])}{reason}; "
                f"its schema accepts {accepted(schema)}"
            )
    return {name: Parameter(name, schema, defaults[name]) for name, schema in schemas.items()}


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
        reason = _reason(chapter.parameters[name].schema, value)
        if reason is not None:
            raise ChapterError(
                f"{chapter.name}: parameter {name!r} cannot be {_shown(value)}{reason}; "
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
    content = parse_yaml(path.read_text(encoding="utf-8"), f"profiles/{path.name}")
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
            raise ChapterError(f"profiles/{path.name}: {name} must map parameters to values, not {_shown(values)}")
    return {name: dict(values) for name, values in parameters.items()}


# --- execution -------------------------------------------------------------------------------------------------------


def custom_output(root: Path, chapter: Chapter, values: Mapping[str, Any]) -> Path:
    """Where a run outside the book goes: one file for each set of values."""
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
    return root / "_build" / "executed" / "custom" / f"{chapter.name}-{key}.ipynb"


def execute(
    chapter: Chapter,
    output: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    root: Path | None = None,
    profile: str = "custom",
) -> Path:
    """Execute a chapter in a kernel of its own, with the interpreter that runs this and in the project's folder.

    Args:
        chapter: the chapter.
        output: the executed notebook; replaced as a whole once everything ran, and left as it is otherwise.
        parameters: values other than the defaults; checked before anything runs.
        root: the project's folder, and the kernel's working directory; by default the one that the chapter is in.
        profile: what the run is called in the notebook's metadata.

    Returns:
        ``output``.

    Raises:
        ChapterError: a parameter is refused.
        ExecutionError: a cell failed, or the kernel did.
    """
    import nbformat

    from robattr import data

    values = check_parameters(chapter, parameters or {})
    root = root or chapter.path.parents[1]
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run = {
        "profile": profile,
        "started": started,
        **environment(root),
        "data": [each.name for each in data.available() if each.present],
    }
    source = _read_notebook(chapter.path)
    source.metadata.pop("jupytext", None)
    source.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    with _working_copy(output) as temporary:
        notebook = _run(chapter, source, temporary, values, root)
        notebook.metadata["robattr"] = {"claim": chapter.claim, "run": run}
        _tidy(notebook, chapter, root, output)
        nbformat.write(notebook, temporary)  # type: ignore[no-untyped-call]
        temporary.replace(output)
    return output


def _run(chapter: Chapter, source: Any, temporary: Path, values: Mapping[str, Any], root: Path) -> Any:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        return papermill.execute_notebook(
            source,
            temporary,
            dict(values),
            kernel_name="python3",
            kernel_manager_class=_kernel_manager(),
            cwd=root,
            progress_bar=sys.stderr.isatty(),
            request_save_on_cell_execute=False,
        )
    except PapermillExecutionError as error:
        message = f"{chapter.name} failed in cell [{error.exec_count}]: {error.ename}: {_one_line(error.evalue)}"
        raise ExecutionError(message, str(error).strip()) from None
    except (DeadKernelError, CellTimeoutError) as error:
        message = f"{chapter.name} failed: {_one_line(error)}"
        raise ExecutionError(message, f"{type(error).__name__}: {error}") from error


def _kernel_manager() -> type:
    """Kernels of the interpreter that runs this, whatever a user's own kernel specs say ``python3`` is."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        transport_encryption = "auto"  # ipykernel warns of unencrypted connections

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(
                argv=command,
                display_name="Python 3",
                language="python",
                metadata={"supported_encryption": ["curve"]},
                env={"PYTHONWARNINGS": ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), NO_WIDGETS]))},
            )

    return ThisInterpreter


@contextlib.contextmanager
def _working_copy(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to before renaming, gone afterwards whatever happens."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.ipynb")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _tidy(notebook: Any, chapter: Chapter, root: Path, output: Path) -> None:
    """Leave in the notebook what a reader can use: no temporary or absolute paths, no timings of single cells."""
    record = notebook.metadata["papermill"]
    record["input_path"] = chapter.path.relative_to(root).as_posix() if chapter.path.is_relative_to(root) else None
    record["output_path"] = output.relative_to(root).as_posix() if output.is_relative_to(root) else output.name
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace("# Parameters\n", "# Values of this run, not the defaults above\n", 1)
