"""The reference of the package: signatures with their defaults, and a sentence for each module."""

from __future__ import annotations

import math
import sys

import pytest
from conftest import REPOSITORY
from sphinx.ext.napoleon import Config, GoogleDocstring

sys.path.insert(0, str(REPOSITORY / "book"))
sys.path.insert(0, str(REPOSITORY / "book" / "_ext"))
import build
import plan
import robattr_book

from robattr.studies.certification import Heatmaps
from robattr.studies.receipts import Source


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


def test_sentences_with_a_colon_are_no_types() -> None:
    lines = ["Attack it.", "", "Returns:", "    Of three: the first.", "    And more."]
    robattr_book.keep_sentences(None, "function", "", None, None, lines)
    config = Config(napoleon_use_rtype=True)
    assert ":returns: Of three: the first." in str(GoogleDocstring(lines, config, what="function"))
    lines = ["It keeps: what it had."]
    robattr_book.keep_sentences(None, "property", "", None, None, lines)
    assert str(GoogleDocstring(lines, config, what="property", name="x")).strip() == "It keeps: what it had."


def test_fields_are_described_by_their_author() -> None:
    lines = ["What is certified."]
    robattr_book.describe_fields(None, "class", "", Heatmaps, None, lines)
    assert f"    k: {Heatmaps.model_fields['k'].description}" in lines


def test_a_protocol_is_not_made() -> None:
    assert robattr_book.sign_fields(None, "class", "", Source, None, None, None) == ("", None)
