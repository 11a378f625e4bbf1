"""YAML as every part of the project reads it: numbers as people spell them, no key twice, mistakes in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

__all__ = ["YamlError", "one_line", "parse", "read", "whole"]


class YamlError(ValueError):
    """A text is not YAML, or has a key twice; the message is one line with its source, the line and the key."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of numbers and booleans: 1e-3 is a number, and ``on`` is a word. A key twice is a mistake."""

    def get_single_node(self) -> Any:
        # Here, before construction: that folds merged mappings into each other, where a key may come again.
        root = super().get_single_node()
        waiting, seen = [root], set()
        while waiting:
            node = waiting.pop()
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                waiting += node.value
            elif isinstance(node, yaml.MappingNode):
                self._refuse_twins(node)
                waiting += [part for pair in node.value for part in pair]
        return root

    def _refuse_twins(self, node: yaml.MappingNode) -> None:
        first: dict[Any, Any] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # construction refuses it as a key
            special = key.tag in {"tag:yaml.org,2002:merge", "tag:yaml.org,2002:value"}
            # Keys are compared as Python does, because a dict would keep one of 1, 1.0 and true.
            name = key.value if special else self.construct_object(key)
            if name in first:
                raise _Twice(name, first[name].line, key.start_mark)
            first[name] = key.start_mark


class _Twice(yaml.MarkedYAMLError):
    def __init__(self, key: object, first: int, mark: Any) -> None:
        super().__init__(problem_mark=mark)
        self.key, self.first = key, first


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


def parse(text: str, source: str, *, line: int = 1) -> Any:
    """The value that ``text`` spells in YAML.

    Args:
        text: one document.
        source: what messages call it: a file's name, or what the text is.
        line: number of the text's first line within its source.

    Raises:
        YamlError: the text is not YAML, or a mapping at any depth has a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except _Twice as error:
        here = error.problem_mark.line  # type: ignore[union-attr]
        raise YamlError(
            f"{source}: not valid YAML: line {here + line}: the key {error.key!r} is there twice, first in line "
            f"{error.first + line}; keep one of them"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + line}: " if mark else ""
        raise YamlError(f"{source}: not valid YAML: {where}{one_line(error.problem or error)}") from None
    except RecursionError:
        raise YamlError(f"{source}: not valid YAML: too many collections inside each other") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a day or a number that is none
        raise YamlError(f"{source}: not valid YAML: {one_line(error)}") from None


def whole(text: str, source: str) -> Any:
    """As :func:`parse`, of a text without comments: a # in it is part of the value, as in the name of a folder.

    Raises:
        YamlError: see :func:`parse`.
    """
    # The parser ends a value at a # behind a blank: it gets a letter that means nothing, and gives it back.
    other = next(letter for letter in map(chr, range(0xE000, 0xF900)) if letter not in text)

    def back(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(other, "#")
        if isinstance(value, dict):
            return {back(key): back(each) for key, each in value.items()}
        return [back(each) for each in value] if isinstance(value, list) else value

    try:
        return back(parse(text.replace("#", other), source))
    except YamlError as error:
        raise YamlError(back(str(error))) from None


def read(path: Path | str, source: str | None = None) -> Any:
    """The value that a file spells in YAML.

    Args:
        path: the file, in UTF-8.
        source: what messages call it; its path by default.

    Raises:
        YamlError: it is not UTF-8 or not YAML, or a mapping at any depth has a key twice.
        OSError: it cannot be read.
    """
    source = source or str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise YamlError(f"{source}: not valid YAML: not UTF-8 at byte {error.start}") from None
    return parse(text, source)


def one_line(value: object, limit: int = 200) -> str:
    """``value`` as text in one line of at most ``limit`` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
