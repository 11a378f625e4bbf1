"""The rules of the ledger, each on records whose right answer is known: kinds, corrections, names, history, text."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY
from pydantic import ValidationError
from scipy import stats
from test_claims import CONTEXT, KEPT, STEADIER, claim, measured, verdict

from robattr._text import markdown
from robattr.pages import figures
from robattr.studies import claims, records
from robattr.studies.claims import Claim, Comparison, State, VerdictName
from robattr.studies.intervals import Interval, two_way_interval
from robattr.studies.records import Measurement

OLD, NEW, THIRD = measured("old", 0.8), measured("new", 0.85), measured("third", 0.9)
AGAINST_THIRD = STEADIER.model_copy(update={"against": "third-*", "label": "against the third"})


# --------------------------------------------------------------------------------------------------------------------
# Verdicts


def test_more_failures_than_successes_are_not_reproduced() -> None:
    again = AGAINST_THIRD.model_copy(update={"by": 0.02})
    assert verdict(claim(STEADIER, AGAINST_THIRD), NEW, OLD, THIRD).name is VerdictName.PARTLY
    assert verdict(claim(STEADIER, AGAINST_THIRD, again), NEW, OLD, THIRD).name is VerdictName.NOT


def test_partly_says_what_does_not_hold() -> None:
    missing = KEPT.model_copy(update={"label": "accuracy"})
    found = verdict(claim(STEADIER, AGAINST_THIRD, missing), NEW, OLD, THIRD)
    said = "partly reproduced (fails: against the third; too little data: accuracy)"
    assert claims.verdict_text(found) == said
    row = claims.summary([found]).splitlines()[2]
    assert "| **partly reproduced** (fails: against the third; too little data: accuracy) |" in row
    assert f"<here>` {said.removeprefix('partly reproduced ')} |" in claims.table([found])


@pytest.mark.parametrize("kind", ["theorem", "implementation"])
def test_theorems_are_checked_or_violated_and_stand_apart(kind: Any) -> None:
    of = claim(STEADIER).model_copy(update={"kind": kind})
    good, bad = (
        verdict(of, NEW, OLD),
        verdict(of, OLD, [m.model_copy(update={"run": f"grid/new-{i}"}) for i, m in enumerate(OLD)]),
    )
    assert (good.name, bad.name) == (VerdictName.CHECKED, VerdictName.VIOLATED)
    # One that holds does not outweigh one that fails.
    both = claim(STEADIER, AGAINST_THIRD).model_copy(update={"kind": kind})
    assert verdict(both, NEW, OLD, THIRD).name is VerdictName.VIOLATED
    assert verdict(of).name is VerdictName.TOO_LITTLE
    text = claims.summary([good, verdict(claim(STEADIER), NEW, OLD)])
    experiments, proved = text.split("\n\nProved, and checked on records:\n\n")
    assert "**reproduced**" in experiments
    assert "**checked**" in proved
    assert "checked" not in experiments


def test_what_was_not_tried_says_why() -> None:
    of = claim(STEADIER).model_copy(update={"comparisons": (), "untried": "it takes a week", "grid": ""})
    found = verdict(of, NEW, OLD)
    assert (found.name, found.networks, of.command) == (VerdictName.UNTRIED, 0, "")
    assert "**not tried**: it takes a week |" in claims.summary([found])
    assert "Not tried: it takes a week." in claims.details(found)
    fields = claim(STEADIER).model_dump()
    for changes, said in (
        ({"untried": "why"}, "either comparisons, or 'untried'"),
        ({"comparisons": ()}, "either comparisons, or 'untried'"),
        ({"grid": ""}, "give its name as 'grid'"),
    ):
        with pytest.raises(ValidationError, match=said):
            Claim.model_validate(fields | changes)


def test_the_correction_is_for_all_experiments_of_the_ledger() -> None:
    """By hand: the interval of one claim among m has the level 1 - .05 / m, and theorems do not count."""
    of = [claim(STEADIER).model_copy(update={"id": f"c{i}"}) for i in range(40)]
    theorem = claim(STEADIER).model_copy(update={"id": "t", "kind": "theorem"})
    new, old = measured("new", 0.85, seeds=12), measured("old", 0.8, seeds=12)
    found = claims.judge([*of, theorem], [*new, *old])
    table = np.array([m.values for m in new]) - np.array([m.values for m in old])
    wide = two_way_interval(table, level=1 - 0.05 / 40)
    assert 0 < STEADIER.by < wide.low < two_way_interval(table).low
    between = (wide.low + two_way_interval(table).low) / 2
    of = [c.model_copy(update={"comparisons": (STEADIER.model_copy(update={"by": between}),)}) for c in of]
    few, many = claims.judge(of[:1], [*new, *old]), claims.judge(of, [*new, *old])
    assert (few[0].outcomes[0].state, few[0].outcomes[0].corrected) == (State.HOLDS, State.HOLDS)
    assert (many[0].outcomes[0].state, many[0].outcomes[0].corrected) == (State.HOLDS, State.OPEN)
    assert found[-1].outcomes[0].corrected is None
    assert "holds (open among all)" in claims.details(many[0])


def test_what_a_cosine_lacks_to_one_is_compared_as_a_factor() -> None:
    """1 - .9 against 1 - .8 is one half, whatever the images."""
    smooth, plain = (
        [
            records.of_values(CONTEXT | {"run": f"grid/a-{seed}", "seed": seed}, name, np.full(20, value), unit="1")
            for seed in range(3)
        ]
        for name, value in (("smooth", 0.9), ("plain", 0.8))
    )
    comparison = Comparison(
        quantity="smooth", baseline="plain", of="*", complement=True, ratio=True, direction="less", by=1.5
    )
    (outcome,) = verdict(claim(comparison, images=20), smooth, plain).outcomes
    assert outcome.effect is not None
    assert outcome.effect.mean == pytest.approx(0.5, rel=1e-9)
    assert outcome.state is State.HOLDS
    for fields, said in (
        ({"direction": "never"}, "and complement"),
        ({"direction": "less", "rank_with": "q"}, "leave out complement"),
    ):
        with pytest.raises(ValidationError, match=said):
            Comparison(quantity="q", of="a", complement=True, **fields)  # type: ignore[arg-type]


def test_orders_within_a_run_are_over_its_images() -> None:
    """A quantity that ranks the images of each run and says nothing about runs, against one that does the reverse."""
    rng = np.random.default_rng(0)
    found: list[Measurement] = []
    expected = []
    for seed in range(3):
        for network in range(3):
            turn = rng.normal(network, 0.1, 60)
            inside, across = turn - network + rng.normal(0, 0.05, 60), rng.normal(network, 0.1, 60)
            context = CONTEXT | {"run": f"grid/{network}-{seed}", "seed": seed}
            found += [
                records.of_values(context, name, values, unit="1")
                for name, values in (("turn", turn), ("inside", inside), ("across", across))
            ]
            kept = {m.quantity: m.values for m in found[-3:]}
            expected.append(
                stats.spearmanr(kept["inside"], kept["turn"])[0] - stats.spearmanr(kept["across"], kept["turn"])[0]
            )
    fields: dict[str, Any] = {"of": "*", "rank_with": "turn", "direction": "greater", "by": 0.1}
    within = Comparison(quantity="inside", baseline="across", within_runs=True, **fields)
    over = Comparison(quantity="across", baseline="inside", **fields)
    for comparison in (within, over):
        assert verdict(claim(comparison, images=60), found).outcomes[0].state in (State.HOLDS, State.OPEN)
    (outcome,) = verdict(claim(within, images=60), found).outcomes
    assert outcome.effect is not None
    assert outcome.effect.mean == pytest.approx(np.mean(expected), abs=1e-12)
    assert outcome.state is State.HOLDS
    single = [m.model_copy(update={"values": None}) for m in found]
    (outcome,) = verdict(claim(within, images=60), single).outcomes
    assert outcome.reason == "grid/0-0 has no values of single images to rank"
    with pytest.raises(ValidationError, match="give rank_with"):
        Comparison(quantity="q", of="a", direction="less", within_runs=True)


def test_an_interval_of_shares_ends_at_zero_and_one() -> None:
    table = np.ones((3, 100))
    table[0, :3] = 0
    found = two_way_interval(table, shares=True)
    assert found.high == 1.0
    assert found.low < found.mean < 1
    assert two_way_interval(table).high > 1, "without being told it is any number"
    assert two_way_interval(1 - table, shares=True).low == 0.0


# --------------------------------------------------------------------------------------------------------------------
# Names


def test_a_name_that_is_spelled_wrong_is_refused_with_the_nearest() -> None:
    measurements = [*NEW, *OLD]
    claims.check_claims([claim(STEADIER)], measurements, [])
    claims.check_claims([claim(STEADIER)], [], ["grid"])  # nothing recorded yet
    for changes, said in (
        ({"quantity": "rsp"}, "claim a-claim: grid has no quantity 'rsp'; the nearest is 'rps'"),
        ({"baseline": "rsp", "against": None}, "no quantity 'rsp'"),
        ({"of": "nev-*"}, "claim a-claim: grid has no run 'nev-\\*'; the nearest is 'new-"),
        ({"against": "odl-*"}, "no run 'odl-\\*'; the nearest is '"),
    ):
        with pytest.raises(ValueError, match=said):
            claims.check_claims([claim(STEADIER.model_copy(update=changes))], measurements, [])
    # What is measured of one run only may come with it.
    half = claim(STEADIER.model_copy(update={"of": "later", "quantity": "later/rps"}))
    claims.check_claims([half], measurements, [], asked_for=lambda _: ["later"])
    with pytest.raises(ValueError, match="no run 'later'"):
        claims.check_claims([half], measurements, [], asked_for=lambda _: ["later-0"])
    with pytest.raises(ValueError, match="there is no grid 'grid'; the nearest is 'gird'"):
        claims.check_claims([claim(STEADIER)], [], ["gird", "another"])


def test_a_run_that_a_grid_asks_for_may_have_no_record_yet(tmp_path: Path) -> None:
    """Of a grid with one of its two runs recorded; a run that it does not ask for stays a mistake."""
    (tmp_path / "grid.yaml").write_text(
        "description: x\nfragility: {dataset: digits}\n"
        "networks: {new-0: {model: digits-cnn}, old-0: {model: digits-mlp}}\n"
    )
    (tmp_path / "grid.jsonl").write_text("".join(m.model_dump_json() + "\n" for m in measured("new", 0.8, seeds=1)))
    for against, said in (("old-*", None), ("odl-*", "grid has no run 'odl-\\*'; the nearest is 'new-0'")):
        asked = claim(STEADIER.model_copy(update={"against": against})).model_dump(mode="json")
        (tmp_path / "claims.yaml").write_text(yaml.safe_dump([asked]))
        if said is None:
            (found,), _ = claims.read_ledger(tmp_path / "claims.yaml", tmp_path)
            assert found.name is VerdictName.TOO_LITTLE
        else:
            with pytest.raises(ValueError, match=said):
                claims.read_ledger(tmp_path / "claims.yaml", tmp_path)


def test_the_claims_of_the_book_name_what_there_is() -> None:
    folder = REPOSITORY / "results" / "reference"
    asked = claims.load_claims(REPOSITORY / "results" / "claims.yaml")
    verdicts, _ = claims.read_ledger(REPOSITORY / "results" / "claims.yaml", folder)
    assert [each.claim for each in verdicts] == asked


HOSTILE = "<img src=x onerror=alert(1)> | *x* `y` $z$ [a](b) {ref}`c`\nnext"


def test_text_from_claims_is_shown_and_not_run() -> None:
    """Through an independent reader of Markdown: one row, four cells, no tag but those of the table."""
    from markdown_it import MarkdownIt

    of = claim(STEADIER.model_copy(update={"label": HOSTILE})).model_copy(
        update={"sentence": HOSTILE, "population": HOSTILE, "known": HOSTILE, "note": HOSTILE}
    )
    found = verdict(of, NEW, OLD)
    for text in (claims.summary([found]), claims.table([found]).replace("{ref}", ""), claims.details(found)):
        html = MarkdownIt("commonmark").enable("table").render(text)
        assert "<img" not in html
        assert "<em>" not in html
        assert 'href="b"' not in html
        assert "&lt;img src=x onerror=alert(1)&gt; | *x* `y` $z$ [a](b) {ref}`c` next" in html
    assert MarkdownIt("commonmark").enable("table").render(claims.summary([found])).count("<td>") == 4
    assert markdown("LeNet, l2 + cosine (8/255).") == "LeNet, l2 + cosine (8/255)."


# --------------------------------------------------------------------------------------------------------------------
# History


def git(folder: Path, *words: str, date: str = "2026-01-01T00:00:00+00:00") -> None:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    when = {"GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date}
    subprocess.run(command, check=True, capture_output=True, env=os.environ | when)


def commit(folder: Path, day: int, *asked: Claim, **extra: Any) -> None:
    path = folder / "results" / "claims.yaml"
    path.parent.mkdir(exist_ok=True)
    content = [c.model_dump(mode="json", exclude_defaults=True) | extra for c in asked]
    path.write_text(yaml.safe_dump(content))
    git(folder, "add", ".")
    git(folder, "commit", "-m", f"day {day}", date=f"2026-01-{day:02}T00:00:00+00:00")


def test_a_threshold_is_as_old_as_it_stands_unchanged(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    other = STEADIER.model_copy(update={"by": 0.5})
    commit(tmp_path, 1, claim(STEADIER, KEPT), a_field_of_old=1)
    commit(
        tmp_path, 2, claim(STEADIER.model_copy(update={"label": "other words"})).model_copy(update={"grid": "larger"})
    )
    commit(tmp_path, 3, claim(STEADIER, KEPT, other))
    commit(tmp_path, 4, claim(STEADIER, KEPT))
    commit(tmp_path, 5, claim(STEADIER, KEPT, other))
    asked = claim(STEADIER, KEPT, other).model_copy(update={"smaller": ("larger",)})
    commit(tmp_path, 6, asked)
    found = claims.history_of(tmp_path)

    def since(of: Claim) -> dict[str, str]:
        return {
            c.label or str(c.by): found.comparisons[claims.registration_key(of, c)].date[:10] for c in of.comparisons
        }

    names = [c.label or str(c.by) for c in asked.comparisons]
    assert since(asked) == dict(zip(names, ("2026-01-01", "2026-01-03", "2026-01-05"), strict=True))
    # The same comparison asked of a grid that the claim does not come from is a new one.
    elsewhere = claim(STEADIER).model_copy(update={"id": "elsewhere", "grid": "another"})
    commit(tmp_path, 7, asked, elsewhere)
    found = claims.history_of(tmp_path)
    assert since(elsewhere) == {names[0]: "2026-01-07"}
    assert since(asked)[names[0]] == "2026-01-01"
    # A claim by another name is the same one; what was not committed of another grid has no date.
    renamed = asked.model_copy(update={"id": "renamed"})
    commit(tmp_path, 8, renamed)
    found = claims.history_of(tmp_path)
    assert since(renamed)[names[0]] == "2026-01-01"
    assert claims.registration_key(renamed.model_copy(update={"grid": "new"}), STEADIER) not in found.comparisons
    assert found.lowered == {}
    path = tmp_path / "history.json"
    claims.write_history(path, found)
    assert claims.read_history(path) == found
    assert claims.read_history(tmp_path / "none.json").comparisons == {}


def test_evidence_that_fell_is_remembered(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    commit(tmp_path, 1, claim(STEADIER, runs=3, images=300))
    commit(tmp_path, 2, claim(STEADIER, runs=3, images=10))
    commit(tmp_path, 3, claim(STEADIER, runs=3, images=50))
    past = claims.history_of(tmp_path)
    assert past.lowered == {"a-claim": "3 runs and 300 images"}
    (found,) = claims.judge([claim(STEADIER)], [*NEW, *OLD], past=past)
    assert "It once asked for 3 runs and 300 images." in claims.details(found)


def test_fixed_before_or_after_the_first_record() -> None:
    for date, before, said in (
        ("2025-12-31T23:00:00+00:00", True, "2025-12-31, before its records"),
        ("2026-01-01T00:30:00+02:00", True, "before its records"),  # an hour and a half before midnight in UTC
        ("2026-01-02T00:00:00+00:00", False, "after its records"),
    ):
        past = claims.History({claims.registration_key(claim(STEADIER), STEADIER): claims.Registration("abc", date)})
        records_ = [m.model_copy(update={"date": "2026-01-01T00:00:00+00:00"}) for m in [*NEW, *OLD]]
        (found,) = claims.judge([claim(STEADIER)], records_, past=past)
        assert found.outcomes[0].fixed_before is before
        assert said in claims.details(found)
    (found,) = claims.judge([claim(STEADIER)], [*NEW, *OLD])
    assert found.outcomes[0].fixed_before is None


def test_a_folder_without_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no git repository"):
        claims.history_of(tmp_path)


@pytest.fixture(scope="module")
def past() -> claims.History:
    return claims.read_history(REPOSITORY / claims.HISTORY)


def test_the_committed_history_is_that_of_the_repository(past: claims.History) -> None:
    try:
        found = claims.history_of(REPOSITORY)
    except ValueError as error:
        pytest.skip(str(error))
    missing = [d for d in past.comparisons if d not in found.comparisons]
    assert not missing, "robattr ledger --register"
    # What is not committed yet has no date; dates of commits do not change when branches are joined.
    assert {d: found.comparisons[d].date for d in past.comparisons} == {d: r.date for d, r in past.comparisons.items()}
    assert past.lowered == found.lowered


def test_what_was_fixed_after_its_records_says_what_was_known(past: claims.History) -> None:
    asked = claims.load_claims(REPOSITORY / "results" / "claims.yaml")
    for found in claims.judge(asked, records.read(REPOSITORY / "results" / "reference"), past=past):
        late = [o.comparison.label for o in found.outcomes if o.fixed_before is False]
        assert not late or found.claim.known, (found.claim.id, late)
        for outcome in found.outcomes:
            assert outcome.registered is not None, (found.claim.id, "commit it, then make ledger")


# --------------------------------------------------------------------------------------------------------------------
# The picture


@pytest.mark.parametrize(
    ("fields", "effect", "expected"),
    [
        ({"direction": "greater", "by": 0.1}, (0.3, 0.2, 0.4), (2, 1, 3)),
        ({"direction": "less", "by": 0.1}, (-0.3, -0.4, -0.2), (2, 1, 3)),
        ({"direction": "greater"}, (0.05, -0.1, 0.2), (0.5, -1, 2)),
        ({"direction": "within", "by": 0.1}, (0.05, -0.02, 0.12), (0.5, -0.2, 1)),
        ({"direction": "within", "by": 0.1}, (0.3, 0.2, 0.4), (-2, -3, -1)),
        ({"direction": "greater", "by": 2, "ratio": True}, (8, 4, 16), (2, 1, 3)),
        ({"direction": "less", "by": 2, "ratio": True}, (1 / 8, 1 / 16, 1 / 4), (2, 1, 3)),
        ({"direction": "within", "by": 2, "ratio": True}, (1, 1 / 2, 2**0.5), (1, 0, 1)),
    ],
)
def test_a_margin_by_hand(fields: Any, effect: tuple[float, ...], expected: tuple[float, ...]) -> None:
    comparison = Comparison(quantity="q", baseline="b", of="*", **fields)
    found = figures.margin(comparison, Interval(*effect, 9))
    assert (found.mean, found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_what_holds_is_right_of_the_line_and_what_fails_left_of_it() -> None:
    asked = claims.load_claims(REPOSITORY / "results" / "claims.yaml")
    found = claims.judge(asked, records.read(REPOSITORY / "results" / "reference"))
    shown = [o for v in found for o in v.outcomes if o.effect is not None and o.comparison.direction != "never"]
    assert shown
    for outcome in shown:
        assert outcome.effect is not None
        at = figures.margin(outcome.comparison, outcome.effect)
        state = State.HOLDS if at.low > 0 else State.FAILS if at.high <= 0 else State.OPEN
        assert state is outcome.state, outcome.comparison.label


def test_the_forest_has_a_line_for_each_comparison_of_an_experiment() -> None:
    theorem = claim(STEADIER).model_copy(update={"kind": "theorem", "sentence": "Proved."})
    found = claims.judge([claim(STEADIER, AGAINST_THIRD), theorem], [*NEW, *OLD, *THIRD])
    figure = figures.forest(found, title="One of two holds")
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert "New is better." in texts
    assert "against the third" in texts
    assert "Proved." not in texts
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["past it: holds", "short of it: fails"]
    with pytest.raises(ValueError, match="no margin"):
        figures.margin(Comparison(quantity="q", of="*", direction="never"), Interval(0, 0, 0, 1))


def test_the_small_forest_is_that_of_the_records() -> None:
    found, _ = claims.read_ledger(REPOSITORY / "results" / "claims.yaml", REPOSITORY / "results" / "reference")
    drawn = figures.small_forest(found)
    assert (REPOSITORY / "book" / "_static" / "forest.svg").read_text(encoding="utf-8") == drawn, "make ledger"
    for page in ("README.md", "book/introduction.md"):
        assert "_static/forest.svg" in (REPOSITORY / page).read_text(encoding="utf-8")


def test_the_small_forest_has_a_mark_for_each_comparison_on_its_side() -> None:
    theorem = claim(STEADIER).model_copy(update={"kind": "theorem"})
    svg = figures.small_forest(claims.judge([claim(STEADIER, AGAINST_THIRD), theorem], [*NEW, *OLD, *THIRD]))
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    texts = [each.text for each in root.iter(f"{space}text")]
    above = ["what was asked for", "short of it: fails", "past it: holds"]
    assert texts == [*above, "this book", "1 hold", "1 fail", "0 undecided"]
    zero = int(next(root.iter(f"{space}text")).attrib["x"])
    holds = next(root.iter(f"{space}circle"))
    cross = next(each for each in root.iter(f"{space}path") if each.attrib.get("stroke-width") == "3")
    assert int(holds.attrib["cx"]) > zero > int(cross.attrib["d"].removeprefix("M").split()[0])


def test_the_first_page_tells_what_decided() -> None:
    """Counts of all claims of a paper; of the chosen ones the comparison that failed, where one did."""
    good, bad = claim(STEADIER), claim(STEADIER, AGAINST_THIRD).model_copy(update={"id": "other"})
    verdicts = claims.judge([good, bad], [*NEW, *OLD, *THIRD])
    of_both = claims.found(good.paper, verdicts, [good.id, bad.id])
    assert len(of_both.splitlines()) == 4
    assert of_both.startswith("**Found.** Tried by experiment: 2 claims, 1 reproduced, 1 partly reproduced.")
    assert claims.effect_text(verdicts[0].outcomes[0]).partition(";")[0] in of_both.splitlines()[2].replace("\\", "")
    failed = next(o for o in verdicts[1].outcomes if o.state is State.FAILS)
    assert claims.effect_text(failed).partition(";")[0] in of_both.splitlines()[3].replace("\\", "")
    assert len(claims.found(good.paper, verdicts, [good.id]).splitlines()) == 3
    theorem = good.model_copy(update={"kind": "theorem", "id": "theorem"})
    proved = claims.judge([good, theorem], [*NEW, *OLD])
    assert claims.found(good.paper, proved, []).startswith(
        "**Found.** Tried by experiment: 1 claim, 1 reproduced. About theorems or code: 1 claim, 1 checked."
    )
    assert claims.found("nobody", verdicts, []).startswith("**Found.** Tried by experiment: 0 claims, none.")
    with pytest.raises(ValueError, match="no claim 'misspelled'"):
        claims.found(good.paper, verdicts, ["misspelled"])
    never = Comparison(quantity="q", of="*", direction="never")
    some = claims.Outcome(never, State.FAILS, Interval(0.25, 0.1, 0.4, 8))
    assert claims.effect_text(some) == "2 of 8 points; 25.0% of them"


def test_what_is_not_there_has_its_row() -> None:
    """ImageNet-100, ResNet-18, memory, ATEX, and certificates on MNIST and ImageNet: asked, and open until measured."""
    found, _ = claims.read_ledger(REPOSITORY / "results" / "claims.yaml", REPOSITORY / "results" / "reference")
    rows = {v.claim.id: v for v in found}
    text = claims.summary(found)
    for name in ("joo-imagenet", "joo-resnet18", "joo-memory", "joo-atex", "wang-mnist", "wang-imagenet"):
        assert markdown(rows[name].claim.sentence) in text
        if not rows[name].networks:
            assert rows[name].name in (VerdictName.UNTRIED, VerdictName.TOO_LITTLE)


def test_smaller_scales_stand_beneath_and_decide_nothing() -> None:
    """The same effect of +.05 at three scales: one network of 30 images is enough to be drawn."""
    smaller = [
        each.model_copy(update={"run": each.run.replace("grid/", "tiny/")})
        for each in (*measured("new", 0.85, seeds=1, images=30), *measured("old", 0.8, seeds=1, images=30))
    ]
    of = claim(STEADIER, KEPT).model_copy(update={"smaller": ("medium", "tiny")})
    found = verdict(of, NEW, OLD, smaller)
    first, second = found.outcomes
    ((grid, effect),) = first.smaller
    assert (grid, effect.n) == ("tiny", 30)
    assert first.effect is not None
    assert effect.mean == pytest.approx(first.effect.mean, abs=0.01)
    assert second.smaller == (), "without an effect there is nothing to compare with"
    alone = verdict(claim(STEADIER, KEPT), NEW, OLD, smaller)
    assert (found.name, first.effect) == (alone.name, alone.outcomes[0].effect)
    assert "`tiny`" in claims.details(found)
    assert "smaller" not in claims.details(alone)
    (legend,) = figures.forest([found], title="It holds").legends
    assert [t.get_text() for t in legend.get_texts()] == ["past it: holds", "at smaller scales"]
    with pytest.raises(ValueError, match="there is no grid 'tinny'; the nearest is 'tiny'"):
        claims.check_claims([of.model_copy(update={"smaller": ("tinny",)})], [*NEW, *OLD], ["medium", "tiny"])
    with pytest.raises(ValidationError, match="each grid stands once"):
        Claim.model_validate(of.model_dump() | {"smaller": ["grid"]})
