"""Receipts: which runs a cell's numbers come from, where that is known, and in an executed notebook."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from conftest import WriteChapter
from test_claims import STEADIER, claim, measured, verdict

from robattr.pages import chapters as book, execution, receipts as beneath
from robattr.studies import claims, receipts, records

A, B = frozenset({"a/1"}), frozenset({"b/1", "b/2"})
READ = [
    ("from x import read\none = read('a')\ntwo = read('b')", {2: A, 3: B}),
]


@pytest.mark.parametrize(
    ("cells", "shown"),
    [
        (["one.mean()"], [A]),
        (["display(two)"], [B]),
        (["display(one); f'{two}'"], [A | B]),
        # What is only computed is not shown, and carries its runs on.
        (["three = one + two", "print(three)"], [set(), A | B]),
        # A name that is made again carries nothing of what it was.
        (["one = 3", "one"], [set(), set()]),
        (["if two:\n    one = 3", "one"], [set(), A | B]),
        # Functions carry what their bodies name, and their own names are nobody else's.
        (["def f(two):\n    own = one\n    return own + two", "f(1)", "own = 2", "own"], [set(), A, set(), set()]),
        (["f = lambda two: one", "f(1)"], [set(), A]),
        (["lines = []\nfor each in two:\n    lines.append(each)", "lines"], [set(), B]),
        (["table = {}\ntable['x'] = one", "table"], [set(), A]),
        (["total = 0\ntotal += one", "total"], [set(), A]),
        # The names of a comprehension end with it.
        (["n = [one for one in range(3)]", "n"], [set(), set()]),
        (["n = [each for each in two]", "n", "each"], [set(), B, set()]),
        (["5"], [set()]),
        (["%time one"], [set()]),
    ],
)
def test_runs_are_followed_through_names(cells: list[str], shown: list[set[str]]) -> None:
    found = beneath.runs_shown([*READ, *((source, {}) for source in cells)])
    assert found == [set(), *shown]


def test_what_a_cell_reads_itself_counts_where_it_is_shown() -> None:
    assert beneath.runs_shown([("kept = read('a')\nshow(\n    read('b')\n)", {1: A, 3: B})]) == [B]
    assert beneath.runs_shown([("%time read('b')", {1: B})]) == [B]


def test_the_receipt_of_a_notebook_s_own_run_names_its_folder_and_no_grid() -> None:
    (m,) = measured("new", 0.8, seeds=1)
    (found,) = receipts.receipts([m.model_copy(update={"run": f"{receipts.OWN}/fragility-1"})])
    assert (found.records, found.command) == ("runs/fragility-1/record.jsonl", "")
    assert "Command: executing this page" in beneath.html([found])


def test_a_receipt_sums_the_runs_of_a_grid() -> None:
    lines = [
        m.model_copy(update={"run": run, "seconds": seconds, "commit": commit, "date": date})
        for m in measured("new", 0.8, seeds=1)
        for run, seconds, commit, date in (
            ("b/2", 60.0, "c2", "2026-01-02"),
            ("b/1", 30.0, "c1", "2026-01-01"),
            ("b/1", 30.0, "c1", "2026-01-01"),
            ("a/1", 6.0, "c1", "2026-01-03"),
        )
    ]
    b, a = receipts.receipts(lines)
    assert (b.grid, b.runs, b.seconds, b.commits) == ("b", ("1", "2"), 90, ("c1", "c2"))
    assert b.dates == ("2026-01-01", "2026-01-02")
    assert (b.command, b.records, b.minutes) == (
        "make reference GRID=b INTO=again",
        "results/reference/b/*.jsonl",
        "2 min",
    )
    assert (a.records, a.minutes) == ("results/reference/a/1.jsonl", "0.1 min")


def test_a_row_of_the_ledger_has_its_receipt() -> None:
    found = verdict(claim(STEADIER), measured("new", 0.85), measured("old", 0.8))
    (receipt,) = found.receipts
    assert len(receipt.runs) == found.networks > 1
    row = claims.table([found]).splitlines()[2]
    assert f"<summary>{found.networks} runs</summary>" in row
    for said in (receipt.command, f"{receipt.minutes} of measuring", *receipt.commits):
        assert said in row
    assert row.count(" | ") == 3
    assert f"{receipt.minutes} of measuring" in claims.details(found)
    # Text from records does not end a cell or open a tag.
    bad = [m.model_copy(update={"hardware": "a | <img src=x onerror=alert(1)>"}) for m in measured("new", 0.85)]
    row = claims.table([verdict(claim(STEADIER), bad, measured("old", 0.8))]).splitlines()[2]
    assert r"\<img" in row
    assert row.count(" | ") == 3
    assert "<img" not in beneath.html(receipts.receipts(bad))


def test_nothing_is_noted_outside_of_a_notebook() -> None:
    before = receipts.noted()
    receipts.note(measured("new", 0.8))
    assert receipts.noted() == before


def test_an_executed_notebook_knows_what_it_read(project: Path, write_chapter: WriteChapter) -> None:
    """From the records of a folder to the receipt beneath the one cell that shows a number of them."""
    lines = [m.model_copy(update={"run": m.run.replace("grid/", "seen/")}) for m in measured("new", 0.8)]
    records.write(project / "records" / "seen.jsonl", lines)
    path = write_chapter("02_stub", "\n    n: {type: integer}", "n = 1")
    cells = (
        "from robattr.studies import records\n\n\ndef mean():\n    return records.read('records')[0].value",
        "'no number'",
        "found = (\n    mean()\n)",
        "f'{found:.2f}'",
    )
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "".join(f"\n```{{code-cell}} ipython3\n{each}\n```\n" for each in cells), encoding="utf-8")
    output = execution.execute(book.chapter(project, "02_stub"), project / "out.ipynb")
    notebook = nbformat.read(output, as_version=4)  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "receipts" not in code[-1].source, "the hidden cell is gone"
    assert beneath.add(notebook) == 1
    assert [len(cell.outputs) for cell in code[-4:]] == [0, 1, 0, 1]
    assert notebook.cells[-2] is code[-1]
    said = notebook.cells[-1].source
    (receipt,) = receipts.receipts(lines)
    assert f"Receipt: {len(receipt.runs)} runs" in said
    assert receipt.command in said
    assert all(commit in said for commit in receipt.commits)
    nbformat.validate(notebook)  # type: ignore[no-untyped-call]
