"""Verdicts under many protocols: each choice on records that say by hand what it does."""

from __future__ import annotations

import html
import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from scipy import stats
from test_claims import CONTEXT, STEADIER, claim, measured

from robattr.pages import figures
from robattr.studies import claims, records
from robattr.studies.claims import Comparison, Multiverse, VerdictName
from robattr.studies.records import Measurement


def run(name: str, seed: int, **values: Any) -> list[Measurement]:
    """One run with values of single images, by quantity; slashes are written as two underscores."""
    context = CONTEXT | {"run": f"grid/{name}-{seed}", "seed": seed}
    return [
        records.of_values(context, q.replace("__", "/").replace("_or_", "-"), np.asarray(v, float), unit="1")
        for q, v in values.items()
    ]


def only(of: Comparison, measurements: list[Measurement], **evidence: int) -> Multiverse:
    (found,) = claims.multiverse([claim(of, **evidence)], measurements)
    return found


def states(found: Multiverse, **options: str) -> set[VerdictName]:
    """The verdicts of the protocols with these options; underscores are spaces."""
    wanted = {name.replace("_", " "): option for name, option in options.items()}
    places = list(found.choices)
    return {
        verdict
        for protocol, verdict in found.verdicts.items()
        if all(protocol[places.index(name)] == option for name, option in wanted.items())
    }


NEW, OLD = measured("new", 0.85), measured("old", 0.8)


def test_a_clear_effect_is_the_same_under_nearly_every_protocol() -> None:
    found = only(STEADIER, [*NEW, *OLD])
    assert found.asked is VerdictName.REPRODUCED
    assert found.choices == {
        "threshold": ("as asked", "half", "double"),
        "interval": ("over seeds and images", "over images alone", "over seeds alone"),
        "seeds": ("all", "without 0", "without 1", "without 2"),
        "images": ("all", "first half", "second half"),
    }
    assert len(found.verdicts) == 108
    assert found.shares["opposite"] == 0
    assert found.turns is None
    assert not found.depends
    assert states(found, interval="over images alone") == {VerdictName.REPRODUCED}


def test_a_protocol_is_what_the_ledger_says_under_it() -> None:
    """Each threshold, and each seed left out, through :func:`judge` and a changed claim."""
    effect = 0.05
    of = STEADIER.model_copy(update={"by": 0.7 * effect})  # twice that is too much
    found = only(of, [*NEW, *OLD])
    for name, factor in (("as asked", 1), ("half", 0.5), ("double", 2)):
        changed = claim(of.model_copy(update={"by": of.by * factor}))
        for left_out in (None, 0, 1, 2):
            kept = [m for m in [*NEW, *OLD] if m.seed != left_out]
            evidence = changed.evidence.model_copy(update={"runs": 3 if left_out is None else 2})
            (expected,) = claims.judge([changed.model_copy(update={"evidence": evidence})], kept)
            seeds = "all" if left_out is None else f"without {left_out}"
            protocol = (name, "over seeds and images", seeds, "all")
            assert found.verdicts[protocol] is expected.name, protocol
    assert states(found, threshold="double", interval="over images alone", seeds="all", images="all") == {
        VerdictName.NOT
    }
    assert found.turns == ("threshold", "double")


def test_a_measure_that_says_the_opposite_turns_the_verdict() -> None:
    rng = np.random.default_rng(0)
    several: list[Measurement] = []
    for seed in range(3):
        for name, cosine, ssim in (("new", 0.9, 0.5), ("old", 0.8, 0.7)):
            noise = rng.normal(0, 0.01, 60)
            several += run(name, seed, rps__8__cosine=cosine + noise, rps__8__ssim=ssim + noise)
    of = STEADIER.model_copy(update={"quantity": "rps/8/cosine"})
    found = only(of, several)
    assert found.choices["measure"] == ("as asked", "ssim"), "pearson was not measured"
    assert found.asked is VerdictName.REPRODUCED
    assert states(found, measure="ssim", interval="over images alone") == {VerdictName.NOT}
    assert found.turns == ("measure", "ssim")
    assert found.depends
    assert found.under("measure", "ssim")["same"] == 0
    half = len(found.verdicts) / 2
    opposite = sum(found.agreement(p) == "opposite" for p in found.verdicts)
    assert found.shares["opposite"] == pytest.approx(opposite / (2 * half))


@pytest.mark.parametrize(("norm", "four"), [(None, "4"), ("linf", "4/255"), ("l2", "l2 4")])
def test_another_epsilon_is_another_quantity(norm: str | None, four: str) -> None:
    several = [
        m.model_copy(update={"norm": norm, "epsilon": norm and 0.1})
        for seed in range(3)
        for e, level in ((4, 0.6), (8, 0.9))
        for m in run("a", seed, **{f"attack__{e}__kept": np.full(30, level) + np.arange(30) * 1e-4})
    ]
    of = Comparison(quantity="attack/8/kept", of="*", direction="greater", by=0.7)
    found = only(of, several, images=30)
    assert found.choices["epsilon"] == ("as asked", four)
    assert states(found, epsilon="as asked", threshold="as asked") == {VerdictName.REPRODUCED}
    assert states(found, epsilon=four, threshold="as asked", interval="over images alone") == {VerdictName.NOT}


def test_what_can_be_one_at_most_is_not_asked_to_be_more() -> None:
    """Of more than .9, a tenth may be missing: twice as strict is .95 and half as strict is .8."""
    for level, expected in ((0.97, (True, True, True)), (0.93, (True, True, False)), (0.85, (False, True, False))):
        several = [m for seed in range(3) for m in run("a", seed, share=np.full(30, level) + np.arange(30) * 1e-5)]
        found = only(Comparison(quantity="share", of="*", direction="greater", by=0.9), several, images=30)
        held = tuple(
            states(found, threshold=name, interval="over images alone") == {VerdictName.REPRODUCED}
            for name in ("as asked", "half", "double")
        )
        assert held == expected


def test_images_whose_attack_failed_are_left_out_of_both_sides() -> None:
    """The attack does nothing where it failed, on the first 30 of 60 images; where it did not, it takes .4."""
    failed = np.arange(60) < 30
    several = []
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 0.01, 60)
        several += run("a", seed, strong__8__kept=np.where(failed, 1.0, 0.6) + noise, strong__8__success=~failed,
                       weak__8__kept=0.9 + noise / 2, weak__8__success=np.ones(60))  # fmt: skip
    of = Comparison(quantity="strong/8/kept", baseline="weak/8/kept", of="*", direction="less", by=0.2)
    found = only(of, several, images=60)
    assert found.choices["failed attacks"] == ("count as unchanged", "left out")
    kept: dict[str, Any] = {"threshold": "as asked", "interval": "over images alone", "images": "all", "seeds": "all"}
    assert states(found, failed_attacks="count as unchanged", **kept) == {VerdictName.NOT}
    assert states(found, failed_attacks="left out", **kept) == {VerdictName.REPRODUCED}
    # By hand: the mean over the 30 that are left.
    table = np.array([np.array(m.values)[~failed] for m in several if m.quantity == "strong/8/kept"]) - np.array(
        [np.array(m.values)[~failed] for m in several if m.quantity == "weak/8/kept"]
    )
    means = table.mean(0)
    t = stats.ttest_1samp(means, 0).confidence_interval()
    assert t.high < -0.2


def test_halves_are_the_first_and_the_last_images() -> None:
    values = np.r_[np.full(30, 0.9), np.full(30, 0.1)] + np.arange(60) * 1e-4
    several = [m for seed in range(3) for m in run("a", seed, kept=values)]
    found = only(Comparison(quantity="kept", of="*", direction="greater", by=0.4), several, images=60)
    kept = {"threshold": "as asked", "interval": "over images alone", "seeds": "all"}
    assert states(found, images="first half", **kept) == {VerdictName.REPRODUCED}
    assert states(found, images="second half", **kept) == {VerdictName.NOT}


def test_halves_are_of_what_is_compared() -> None:
    """Another quantity of the grid may have many entries, which are no images."""
    few = [*run("a", 0, kept=[0.9] * 8, votes=[1.0] * 400), *run("a", 1, kept=[0.8] * 8)]
    found = only(Comparison(quantity="kept", of="*", direction="greater", by=0.4), few, images=8, runs=1)
    assert "images" not in found.choices


def test_theorems_and_what_has_no_records_have_no_protocols() -> None:
    theorem = claim(STEADIER).model_copy(update={"kind": "theorem"})
    elsewhere = claim(STEADIER).model_copy(update={"grid": "none"})
    assert claims.multiverse([theorem, elsewhere], [*NEW, *OLD]) == []


@pytest.fixture(scope="module")
def book() -> list[Multiverse]:
    asked = claims.load_claims(REPOSITORY / "results" / "claims.yaml")
    return claims.multiverse(asked, records.read(REPOSITORY / "results" / "reference"))


def test_what_is_asked_is_the_ledgers_verdict(book: list[Multiverse]) -> None:
    asked = claims.load_claims(REPOSITORY / "results" / "claims.yaml")
    ledger = {v.claim.id: v.name for v in claims.judge(asked, records.read(REPOSITORY / "results" / "reference"))}
    assert len(book) > 10
    for each in book:
        assert each.asked is ledger[each.claim.id], each.claim.id
        assert len(each.verdicts) == np.prod([len(options) for options in each.choices.values()])
        assert sum(each.shares.values()) == pytest.approx(1)


def test_the_bars_are_the_shares(book: list[Multiverse]) -> None:
    figure = figures.protocol_bars(book, title="a finding")
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == pytest.approx([share for each in book for share in each.shares.values()])


def parts(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json">(.*)</script>', text)
    assert found
    table: dict[str, Any] = json.loads(found[1])
    return table


def test_the_explorer_holds_every_protocol_and_escapes_claims() -> None:
    hostile = claim(STEADIER).model_copy(update={"sentence": "<img src=x onerror=alert(1)>"})
    found = claims.multiverse([hostile], [*NEW, *OLD])
    text = figures.protocol_explorer(found)
    assert "<img" not in text
    assert html.escape("<img", quote=False) in text
    table = parts(text)
    for place, protocol in enumerate(itertools.product(*found[0].choices.values())):
        assert table["names"][table["claims"][0]["verdicts"][place]] == found[0].verdicts[protocol]
        assert table["claims"][0]["agreements"][place] == found[0].agreement(protocol)[0]


@pytest.mark.browser
def test_the_explorer_says_what_the_package_computes(chromium: Any, book: list[Multiverse]) -> None:
    page = chromium.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_content(f"<html><body>{figures.protocol_explorer(book)}</body></html>")
    page.add_script_tag(path=str(REPOSITORY / "book" / "_static" / "protocol-explorer.js"))
    rng = np.random.default_rng(0)
    for place, each in enumerate(book):
        page.locator("select[data-name=claim]").select_option(index=place)
        protocols = list(each.verdicts)
        for chosen in rng.choice(len(protocols), min(3, len(protocols)), replace=False):
            for i, option in enumerate(protocols[chosen]):
                label = figures.MEASURES.get(option, option)
                page.locator(".explorer-choices select").nth(i).select_option(label=label)
            said = page.locator(".explorer-values").inner_text()
            assert said.startswith(f"Under this protocol: {each.verdicts[protocols[chosen]]} ("), said
            assert f"As asked: {each.asked}, as in {round(100 * each.shares['same'] + 1e-9)}% of" in said
    # By keyboard alone: every list is a stop of the tab key.
    stops = page.locator(".protocol-explorer select")
    stops.first.focus()
    for _ in range(stops.count() - 1):
        page.keyboard.press("Tab")
    assert page.evaluate(
        "document.activeElement === [...document.querySelectorAll('.protocol-explorer select')].at(-1)"
    )
    assert errors == []
    page.close()


def test_other_top_pixels_and_other_channels_are_choices_where_they_were_measured() -> None:
    """By four times as many top pixels the opposite is so; a rank correlation has none, and stays what it is."""
    several: list[Measurement] = []
    for seed in range(3):
        for name, level, wide in (("new", 0.9, 0.5), ("old", 0.8, 0.7)):
            spread = np.arange(60) * 1e-5
            several += run(name, seed, a__topk_intersection=level + spread, a__topk_intersection_fourfold=wide + spread,
                           a__rank_correlation=level + spread, a__rank_correlation_signed=level + spread)  # fmt: skip
    top = STEADIER.model_copy(update={"quantity": "a/topk_intersection"})
    order = STEADIER.model_copy(update={"quantity": "a/rank_correlation"})
    (found,) = claims.multiverse([claim(top, order)], several)
    assert found.choices["top pixels"] == ("as asked", "4 k"), "a quarter was not measured"
    assert "channels" not in found.choices, "the intersection was not measured by signed sums"
    assert states(found, top_pixels="as asked", interval="over images alone") == {VerdictName.REPRODUCED}
    assert states(found, top_pixels="4 k", interval="over images alone", measure="as asked") == {VerdictName.PARTLY}
    alone = only(order, several)
    assert alone.choices["channels"] == ("as asked", "signed sum")
    assert "top pixels" not in alone.choices
    assert alone.shares["opposite"] == 0
