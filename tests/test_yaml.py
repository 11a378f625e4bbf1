"""YAML is read in one way everywhere, and nothing that the project reads has a key twice."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from robattr import _yaml
from robattr.pages import chapters


def test_yaml_spells_numbers_as_people_do() -> None:
    text = "[1e-3, 10, -0.5, .inf, on, 1:30, 010, true, 1_000]"
    assert _yaml.parse(text, "test") == [1e-3, 10, -0.5, float("inf"), "on", "1:30", "010", True, "1_000"]


@pytest.mark.parametrize(
    ("text", "line", "key", "first"),
    [
        ("a: 1\nb: 2\na: 3", 3, "'a'", 1),
        ("a: {b: 1, b: 1}", 1, "'b'", 1),
        ("a:\n  - x\n  - b:\n      c: 1\n      'c': 2", 5, "'c'", 4),
        ("a: 1\n? a\n: 2", 2, "'a'", 1),
        ("1: a\n1.0: b", 2, "1.0", 1),
        ("a: &x {b: 1,\n b: 2}\nc: *x", 2, "'b'", 1),
        ("<<: {a: 1}\n<<: {b: 1}", 2, "'<<'", 1),
    ],
)
def test_a_key_twice_is_refused_at_any_depth(text: str, line: int, key: str, first: int) -> None:
    with pytest.raises(_yaml.YamlError) as refusal:
        _yaml.parse(text, "here.yaml")
    assert str(refusal.value) == (
        f"here.yaml: not valid YAML: line {line}: the key {key} is there twice, first in line {first}; keep one of them"
    )


@pytest.mark.parametrize(
    "text",
    [
        "a: {x: 1}\nb: {x: 1}",  # in different mappings
        "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}",  # a merged key is there to be overridden
        "1: a\n'1': b",
        "- &a [1]\n- *a",
        "",
    ],
)
def test_what_only_looks_like_a_key_twice_is_read(text: str) -> None:
    assert _yaml.parse(text, "test") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [1", "line 2: expected ',' or ']'"),
        ("a: 1\n\tb: 1", "line 2: found character '\\t'"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        ("a: \x01", "unacceptable character"),
        ("a: 2026-13-01", "month must be in 1..12"),
        ("a: !!python/object:os.system x", "line 1: could not determine a constructor"),
        ("a: 1\n---\na: 1", "line 2: but found another document"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text: str, said: str) -> None:
    with pytest.raises(_yaml.YamlError) as refusal:
        _yaml.parse(text, "here.yaml")
    assert str(refusal.value).startswith(f"here.yaml: not valid YAML: {said}")
    assert "\n" not in str(refusal.value)


def test_lines_count_from_where_the_text_stands() -> None:
    with pytest.raises(_yaml.YamlError, match="line 12: the key 'a' is there twice, first in line 11"):
        _yaml.parse("a: 1\na: 2", "chapter.md", line=11)


def test_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(_yaml.YamlError, match=r"x\.yaml: not valid YAML: not UTF-8 at byte 3"):
        _yaml.read(path)
    with pytest.raises(FileNotFoundError, match=r"y\.yaml"):
        _yaml.read(tmp_path / "y.yaml")


def files() -> list[Path]:
    """What git tracks, or, in an unpacked archive, what is there."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    names = [name for name in done.stdout.split("\0") if name]
    if done.returncode == 0 and names:
        return [path for name in names if (path := REPOSITORY / name).is_file()]
    top = [path for path in REPOSITORY.iterdir() if path.name not in {".venv", "_build", ".git", ".snakemake"}]
    return [file for path in top for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]


YAML_FILES = sorted(path for path in files() if path.suffix in {".yaml", ".yml", ".cff"})
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.md"))


def test_there_are_files_to_read() -> None:
    names = {path.relative_to(REPOSITORY).as_posix() for path in YAML_FILES}
    assert {"_config.yml", "_toc.yml", "results/claims.yaml", "profiles/quick.yaml", "CITATION.cff"} <= names
    assert any(name.startswith(".github/workflows/") for name in names)
    assert any(name.startswith("results/reference/") for name in names)
    assert len(NOTEBOOKS) > 10


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_no_file_has_a_key_twice(path: Path) -> None:
    assert _yaml.read(path) is not None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_header_of_a_notebook_or_cell_has_a_key_twice(path: Path) -> None:
    assert chapters.chapter(REPOSITORY, path.stem).path == path


def test_there_is_one_reader() -> None:
    """Another one would keep the last of two equal keys."""
    code = [path for path in files() if path.suffix == ".py" or path.name == "Snakefile"]
    code = [path.relative_to(REPOSITORY) for path in code if "tests" not in path.parts]
    readers = [
        path for path in code if re.search(r"^ *(import|from) yaml\b", (REPOSITORY / path).read_text("utf-8"), re.M)
    ]
    assert len(code) > 30
    assert readers == [Path("robattr/_yaml.py")]
