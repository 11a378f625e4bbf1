"""The reference of the package: signatures with their defaults, and a sentence for each module."""

from __future__ import annotations

import math
import sys

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "book"))
sys.path.insert(0, str(REPOSITORY / "book" / "_ext"))
import build
import plan
import robattr_book

from robattr.studies.certification import Heatmaps


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        (0.001, "0.001"),
        ((0.05, 0.1), "(0.05, 0.1)"),
        ("gradient", "'gradient'"),
        (..., "..."),
        (math.nan, "..."),
        (object(), "..."),
        (tuple(range(40)), "..."),
    ],
)
def test_defaults_are_shown_where_they_are_short_constants(value: object, shown: str) -> None:
    assert robattr_book.default(value) == f" = {shown}"


def test_a_configuration_is_signed_with_its_defaults() -> None:
    signature, _ = robattr_book.sign_fields(None, "class", "", Heatmaps, None, None, None)
    fields = Heatmaps.model_fields
    assert f"alpha: float = {fields['alpha'].default}" in signature
    assert f"votes: bool = {fields['votes'].default}" in signature


def test_each_module_of_the_reference_says_what_it_is_for() -> None:
    modules = plan.documented(plan.imports(REPOSITORY / "robattr"))
    rows = build.module_table(modules).splitlines()[2:]
    assert len(rows) == len(modules)
    for row in rows:
        assert len(row.split("|")) == 4, row
        assert row.rstrip(" |").endswith((".", "?")), row
        assert ":mod:" not in row
