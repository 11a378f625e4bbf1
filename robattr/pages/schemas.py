"""JSON Schemas of parameters: what they accept, in words, and why a value does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

from robattr._yaml import one_line

Schema = Mapping[str, Any]


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_: object, value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# JSON Schema takes 2.0 for an integer and YAML can spell infinities; neither is meant by a chapter's author.
Validator = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_integer, "number": _is_number}
    ),
)

_FORMATS = {
    "dataset": ("the name of a data set (robattr data), or folder:PATH with an existing folder", "names of data sets"),
    "model": (
        "the name of a model (robattr.models.available(), timm:NAME, or path/to/module.py:function, which is run)",
        "names of models",
    ),
}
# Those of robattr.studies.subjects, which takes seconds to import.
MODEL_FIELDS = ("name", "weights", "num_classes", "class_names", "input_size", "mean", "std")
_FORMAT_CHECKER = jsonschema.FormatChecker(formats=())


@_FORMAT_CHECKER.checks("dataset")
def _is_dataset(value: object) -> bool:
    from robattr import data

    if not isinstance(value, str):
        return True  # the type is for "type" to check
    kind, _, path = value.partition(":")
    if kind == "folder" and path:
        return Path(path).expanduser().is_dir()
    return value in {each.name for each in data.available()}


@_FORMAT_CHECKER.checks("model", raises=ValueError)
def _is_model(value: object) -> bool:
    from robattr.studies.subjects import specification

    if isinstance(value, (str, Mapping)):
        specification(value)  # says what is wrong
    return True


def _is_beyond(value: object) -> bool:
    """Whether there is an integer in a value that no generator, tensor or counter could take."""
    if isinstance(value, Mapping):
        return any(map(_is_beyond, value.values()))
    if isinstance(value, list):
        return any(map(_is_beyond, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


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
    if kind == "object" and schema.get("format") == "model":
        return "mappings of models" if plural else f"a mapping of {', '.join(MODEL_FIELDS)}"
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


def reason_against(schema: Schema, value: Any) -> str | None:
    """Why ``value`` does not fit ``schema``: None where it fits, "" where the value as a whole is at fault."""
    if _is_beyond(value):
        return " (64 bits do not hold it)"
    error = next(iter(Validator(schema, format_checker=_FORMAT_CHECKER).iter_errors(value)), None)
    if error is None:
        return None
    if isinstance(error.cause, ValueError):
        return f" ({one_line(error.cause)})"
    if not error.absolute_path:
        return ""
    where = "".join(f"[{step!r}]" for step in error.absolute_path)
    return f" (its {where} is {shown(error.instance)})"


def code_named(schema: Schema, value: Any) -> str | None:
    """The model that a parameter's value names, alone or in a mapping, where it is in a file of Python code."""
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if schema.get("format") == "model" and isinstance(name, str) and ".py" in name else None


def shown(value: object) -> str:
    """``value`` in a message: its representation, cut where it is long."""
    return one_line(repr(value), 80)
