"""Verdicts follow from records: synthetic ones whose right verdict is known, and intervals that cover."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import REPOSITORY
from pydantic import ValidationError
from scipy import stats

from robattr import cli
from robattr.studies import claims, records
from robattr.studies.claims import Claim, Comparison, Evidence, State, VerdictName
from robattr.studies.intervals import Interval, interval, two_way_interval
from robattr.studies.records import Measurement

CONTEXT: dict[str, Any] = {
    "experiment": "alignment",
    "dataset": "digits test",
    "dataset_sha256": "0" * 64,
    "model": "digits-cnn",
    "profile": "grid",
    "seconds": 1.0,
    "device": "cpu",
    "hardware": "a processor",
    "versions": {},
    "commit": "abc",
    "date": "2026-01-01",
}
STEADIER = Comparison(quantity="rps", of="new-*", against="old-*", direction="greater", by=0.01)
KEPT = Comparison(quantity="accuracy", of="new-*", against="old-*", direction="within", by=0.02)


def claim(*comparisons: Comparison, runs: int = 3, images: int = 50) -> Claim:
    return Claim(
        id="a-claim",
        paper="ours",
        sentence="New is better.",
        population="made up",
        grid="grid",
        chapter="01_attributions",
        anchor="here",
        evidence=Evidence(runs=runs, images=images),
        comparisons=comparisons,
    )


def measured(
    name: str, level: float, *, quantity: str = "rps", seeds: int = 3, images: int = 50, **changes: Any
) -> list[Measurement]:
    """Runs of one group: seeds that differ by about .002 and images by about .05, which groups share."""
    image = np.random.default_rng(7).normal(0, 0.05, images)
    return [
        records.of_values(
            CONTEXT | {"run": f"grid/{name}-{seed}", "seed": seed} | changes,
            quantity,
            level
            + image
            + np.random.default_rng([seed, int(1e6 * level)]).normal(0, 0.01, images)
            + 0.002 * (seed % 2),
            unit="1",
        )
        for seed in range(seeds)
    ]


def accuracy(name: str, values: list[float]) -> list[Measurement]:
    return [
        Measurement(
            **CONTEXT,
            run=f"grid/{name}-{i}",
            seed=i,
            quantity="accuracy",
            value=value,
            unit="share of images",
            n=10_000,
        )
        for i, value in enumerate(values)
    ]


def verdict(of: Claim, *groups: list[Measurement]) -> claims.Verdict:
    (found,) = claims.judge([of], [m for group in groups for m in group])
    return found


def test_an_effect_in_every_seed_is_reproduced() -> None:
    found = verdict(claim(STEADIER), measured("new", 0.85), measured("old", 0.8))
    assert found.name is VerdictName.REPRODUCED
    (outcome,) = found.outcomes
    assert outcome.state is State.HOLDS
    assert outcome.effect is not None
    assert 0.04 < outcome.effect.low < outcome.effect.mean < outcome.effect.high < 0.06
    assert outcome.effect.n == 150
    assert (found.networks, found.commits, found.hardware) == (6, ("abc",), ("a processor, cpu",))


def test_a_reversed_effect_is_not_reproduced() -> None:
    found = verdict(claim(STEADIER), measured("new", 0.8), measured("old", 0.85))
    assert found.name is VerdictName.NOT
    assert found.outcomes[0].effect is not None
    assert found.outcomes[0].effect.high < 0


def test_no_effect_is_not_reproduced_although_it_is_not_zero() -> None:
    """.004 is surely above 0 here and surely below the .01 that was asked for."""
    found = verdict(claim(STEADIER), measured("new", 0.804), measured("old", 0.8))
    assert found.name is VerdictName.NOT


def test_of_two_comparisons_one_is_partly() -> None:
    other = STEADIER.model_copy(update={"against": "third-*"})
    found = verdict(claim(STEADIER, other), measured("new", 0.85), measured("old", 0.8), measured("third", 0.9))
    assert found.name is VerdictName.PARTLY
    assert [o.state for o in found.outcomes] == [State.HOLDS, State.FAILS]


def test_too_few_seeds_or_images_are_no_test() -> None:
    found = verdict(claim(STEADIER), measured("new", 0.85, seeds=2), measured("old", 0.8))
    assert found.name is VerdictName.TOO_LITTLE
    assert (found.outcomes[0].state, found.outcomes[0].reason) == (State.MISSING, "2 of 3 runs")
    found = verdict(claim(STEADIER, images=51), measured("new", 0.85), measured("old", 0.8))
    assert found.outcomes[0].reason == "50 of 51 images"
    assert verdict(claim(STEADIER)).name is VerdictName.TOO_LITTLE


def test_records_that_are_too_noisy_are_no_test() -> None:
    noisy = [0.5, 0.6, 0.7], [0.6, 0.5, 0.65]
    wanted = claim(KEPT.model_copy(update={"direction": "greater"}))
    found = verdict(wanted, accuracy("new", noisy[0]), accuracy("old", noisy[1]))
    assert (found.name, found.outcomes[0].state) == (VerdictName.UNDECIDED, State.OPEN)


def test_one_missing_comparison_makes_the_verdict_partly_at_best() -> None:
    found = verdict(claim(STEADIER, KEPT), measured("new", 0.85), measured("old", 0.8))
    assert found.name is VerdictName.PARTLY


def test_within_is_about_both_sides() -> None:
    new, low, high = [0.50, 0.51, 0.52], [0.499, 0.512, 0.52], [0.60, 0.61, 0.62]
    assert verdict(claim(KEPT), accuracy("new", new), accuracy("old", low)).name is VerdictName.REPRODUCED
    assert verdict(claim(KEPT), accuracy("new", new), accuracy("old", high)).name is VerdictName.NOT
    assert verdict(claim(KEPT), accuracy("new", high), accuracy("old", new)).name is VerdictName.NOT


def test_seeds_are_paired_by_hand() -> None:
    """Differences .1, .1, .1: nothing is left of what the seeds have in common."""
    found = verdict(
        claim(KEPT.model_copy(update={"direction": "greater", "by": 0.09})),
        accuracy("new", [0.5, 0.6, 0.7]),
        accuracy("old", [0.6, 0.4, 0.5])[::-1][:1] + accuracy("old", [0.4, 0.5])[:2],
    )
    effect = found.outcomes[0].effect
    assert effect is not None
    assert effect.mean == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    # Student's t of three differences, within the noise of 2,000 resamples.
    d = np.array([0.1, 0.1, 0.2])
    half = stats.t.ppf(0.975, 2) * d.std(ddof=1) / np.sqrt(3)
    assert effect.high - effect.mean == pytest.approx(half, rel=0.05)


def test_a_ratio_is_a_factor() -> None:
    slower = Comparison(quantity="time", of="new-*", against="old-*", direction="less", by=1.2, ratio=True)
    new, old = measured("new", 2.0, quantity="time"), measured("old", 4.0, quantity="time")
    found = verdict(claim(slower), new, old)
    assert found.name is VerdictName.REPRODUCED
    assert found.outcomes[0].effect is not None
    assert found.outcomes[0].effect.mean == pytest.approx(0.5, rel=0.01)
    assert verdict(
        claim(slower), measured("new", 4.0, quantity="time"), measured("old", 2.0, quantity="time")
    ).name is (VerdictName.NOT)
    near = Comparison(quantity="time", of="new-*", against="old-*", direction="within", by=2.1, ratio=True)
    assert verdict(claim(near), new, old).name is VerdictName.REPRODUCED


def test_other_images_are_paired_only_as_other_sizes_of_the_same() -> None:
    groups = measured("new", 0.85, dataset_sha256="1" * 64), measured("old", 0.8, dataset_sha256="2" * 64)
    with pytest.raises(ValueError, match="measured on different images"):
        verdict(claim(STEADIER), *groups)
    found = verdict(claim(STEADIER.model_copy(update={"across_sizes": True})), *groups)
    assert found.outcomes[0].effect == verdict(claim(STEADIER), *(
        [m.model_copy(update={"dataset_sha256": "1" * 64}) for m in group] for group in groups
    )).outcomes[0].effect  # fmt: skip


def test_an_image_without_a_quotient_leaves_the_quotient_of_means() -> None:
    twice = Comparison(quantity="doubled", of="*", baseline="plain", direction="greater", by=1.5, ratio=True)
    runs = []
    for seed, zeros in enumerate((0, 3, 1)):
        plain = np.r_[np.zeros(zeros), np.linspace(1, 2, 50 - zeros)]
        context = CONTEXT | {"run": f"grid/a-{seed}", "seed": seed}
        runs += [records.of_values(context, q, v, unit="1") for q, v in (("plain", plain), ("doubled", 2 * plain))]
    (outcome,) = verdict(claim(twice), runs).outcomes
    assert outcome.state is State.HOLDS
    assert outcome.effect is not None
    assert (outcome.effect.low, outcome.effect.high) == pytest.approx((2, 2), rel=1e-4)  # of five digits each
    # Where all are zero there is none.
    nothing = [m.model_copy(update={"values": [0.0] * 50, "value": 0.0}) for m in runs]
    (outcome,) = verdict(claim(twice), nothing).outcomes
    assert outcome.state is State.MISSING


def test_another_quantity_of_the_same_runs_is_subtracted() -> None:
    smoother = Comparison(quantity="smoothed", of="*", baseline="plain", direction="greater", by=0.02)
    found = verdict(
        claim(smoother), measured("a", 0.9, quantity="smoothed"), measured("a", 0.8, quantity="plain"),
        measured("b", 0.8, quantity="plain"),
    )  # fmt: skip
    assert found.name is VerdictName.REPRODUCED
    assert found.outcomes[0].runs == ("grid/a-0", "grid/a-1", "grid/a-2")


def test_one_violation_refutes_what_must_never_happen() -> None:
    never = Comparison(quantity="violated/*", of="*", direction="never")

    def counts(*numbers: int) -> list[Measurement]:
        return [
            Measurement(
                **CONTEXT,
                run=f"grid/x-{i}",
                seed=i,
                quantity=f"violated/{i}",
                value=n / 5000,
                unit="share of images",
                n=5000,
            )
            for i, n in enumerate(numbers)
        ]

    good, bad = (verdict(claim(never, images=10_000), counts(*n)) for n in ((0, 0, 0), (0, 1, 0)))
    assert (good.name, bad.name) == (VerdictName.REPRODUCED, VerdictName.NOT)
    effect = good.outcomes[0].effect
    assert effect is not None
    # Clopper and Pearson with no event in n: 1 - (alpha / 2)^(1 / n).
    assert (effect.low, effect.n) == (0, 15_000)
    assert effect.high == pytest.approx(1 - 0.025 ** (1 / 15_000), rel=1e-6)
    assert verdict(claim(never, images=10_000), counts(0, 0, 0)[:1]).name is VerdictName.TOO_LITTLE


def test_orders_are_compared_within_seeds() -> None:
    """Ranks by hand: 'one' orders four runs as the reference does (1), 'two' swaps a pair of neighbors (.8)."""
    better = Comparison(quantity="one", baseline="two", rank_with="truth", of="*", direction="greater", by=0.1)
    numbers = {"truth": [1, 2, 3, 4], "one": [10, 20, 30, 40], "two": [1, 3, 2, 4]}
    found = [
        Measurement(
            **CONTEXT, run=f"grid/{name}-{seed}", seed=seed, quantity=quantity, unit="1", n=50,
            value=values[i] + 100 * seed,
        )
        for quantity, values in numbers.items()
        for i, name in enumerate("abcd")
        for seed in range(3)
    ]  # fmt: skip
    result = verdict(claim(better), found)
    assert result.name is VerdictName.REPRODUCED
    assert result.outcomes[0].effect is not None
    assert result.outcomes[0].effect.mean == pytest.approx(0.2)
    assert result.networks == 12
    alone = better.model_copy(update={"baseline": None, "direction": "less"})
    assert verdict(claim(alone), found).name is VerdictName.NOT
    few = [m for m in found if not m.run.startswith(("grid/c", "grid/d"))]
    assert verdict(claim(better), few).outcomes[0].reason == "0 of 3 runs"


def test_runs_on_other_images_are_not_paired() -> None:
    with pytest.raises(ValueError, match="measured on different images"):
        verdict(claim(STEADIER), measured("new", 0.8), measured("old", 0.8, dataset_sha256="1" * 64))
    with pytest.raises(ValueError, match="50 values and grid/old-0 40"):
        verdict(claim(STEADIER, images=40), measured("new", 0.8), measured("old", 0.8, images=40))
    with pytest.raises(ValueError, match="several runs have one seed"):
        verdict(claim(STEADIER), measured("new", 0.8), measured("old", 0.8), measured("old-b", 0.8))


def test_only_the_claims_own_records_count() -> None:
    others = [m.model_copy(update={"run": m.run.replace("grid/", "other/")}) for m in measured("old", 0.8)]
    assert verdict(claim(STEADIER), measured("new", 0.85), others).name is VerdictName.TOO_LITTLE


def test_one_changed_record_changes_the_verdicts_that_depend_on_it_and_no_other() -> None:
    third = STEADIER.model_copy(update={"of": "third-*"})
    two = [claim(STEADIER), claim(third).model_copy(update={"id": "another"})]
    everything = [*measured("new", 0.85), *measured("old", 0.8), *measured("third", 0.9), *accuracy("new", [0.5] * 3)]
    before = claims.judge(two, everything)
    for i, each in enumerate(everything):
        changed = records.of_values(
            CONTEXT | {"run": each.run, "seed": each.seed},
            each.quantity,
            np.array(each.values or [0.1]) - 0.3,
            unit="1",
        )
        after = claims.judge(two, [*everything[:i], changed, *everything[i + 1 :]])
        touched = [a != b for a, b in zip(before, after, strict=True)]
        uses = [each.quantity == "rps" and any(each.run in o.runs for o in v.outcomes) for v in before]
        assert touched == uses, each.run


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"direction": "within"}, "takes a width"),
        ({"direction": "never", "against": "b"}, "counts one quantity"),
        ({"direction": "less", "against": "b", "rank_with": "q"}, "ranks are of the runs"),
        ({"direction": "less", "ratio": True, "by": 2}, "to divide by"),
        ({"direction": "less", "ratio": True, "against": "b"}, "factor of at least 1"),
    ],
)
def test_a_comparison_without_sense_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Comparison(quantity="q", of="a", **fields)


def test_a_file_of_claims_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    good = claim(STEADIER).model_dump(mode="json", exclude_none=True)
    path.write_text(yaml.safe_dump([good]))
    assert claims.load_claims(path) == [claim(STEADIER)]
    for content, said in (
        ([good, good], "a-claim is there twice"),
        ([good | {"surprise": 1}], "claim a-claim: .*surprise"),
        ([{"id": "x"}], "claim x: .*sentence"),
        ({}, "a list of claims"),
    ):
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ValueError, match=said):
            claims.load_claims(path)
    path.write_text("[")
    with pytest.raises(ValueError, match="not valid YAML"):
        claims.load_claims(path)


# --------------------------------------------------------------------------------------------------------------------
# Intervals


def test_one_run_has_the_interval_of_its_images() -> None:
    values = np.random.default_rng(0).normal(size=40)
    assert two_way_interval(values[None]) == interval(values)


def test_shares_have_exact_intervals() -> None:
    # Of n successes in n: the lower end is the p at which p^n is 2.5%.
    for table in (np.ones((1, 12)), np.ones((3, 12))):
        found = two_way_interval(table, shares=True)
        assert (found.mean, found.high, found.n) == (1.0, 1.0, table.size)
        assert found.low == pytest.approx(0.025 ** (1 / 12), abs=1e-12)
    nothing = two_way_interval(np.zeros((1, 5)), shares=True)
    assert (nothing.low, nothing.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 5)), abs=1e-12)
    # 8 of 10, from tables of the exact interval.
    some = two_way_interval(np.array([[1.0] * 8 + [0.0] * 2]), shares=True)
    assert (some.low, some.high) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    # Differences that are all zero, and measures that are 1 everywhere, are no shares.
    assert two_way_interval(np.zeros((2, 5))).high == 0
    with pytest.raises(ValueError, match="other numbers than 0 and 1"):
        two_way_interval(np.full((1, 5), 0.5), shares=True)


def test_equal_numbers_have_an_interval_of_no_length() -> None:
    found = two_way_interval(np.full((3, 4), 0.25))
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("table", [np.zeros(3), np.zeros((1, 1)), np.array([[1.0, np.nan]])])
def test_an_interval_needs_several_finite_numbers(table: Any) -> None:
    with pytest.raises(ValueError, match="several finite numbers"):
        two_way_interval(table)


@pytest.mark.parametrize(
    ("runs", "images", "over_runs", "over_images", "noise"),
    [
        (3, 40, 1.0, 0.0, 1.0),
        (3, 40, 0.1, 1.0, 0.3),
        (3, 60, 1.0, 5.0, 0.5),
        (5, 60, 0.5, 2.0, 1.0),
        (3, 1, 1.0, 0.0, 0.0),
    ],
)
def test_intervals_cover(runs: int, images: int, over_runs: float, over_images: float, noise: float) -> None:
    """95% nominal, and 92 to 98% asked for; the share of 1,500 draws has a standard error of half a point."""
    rng = np.random.default_rng(5)
    draws, inside = 1500, 0
    for _ in range(draws):
        table = over_runs * rng.normal(size=(runs, 1)) + over_images * rng.normal(size=(1, images))
        found = two_way_interval(table + noise * rng.normal(size=(runs, images)))
        inside += found.low <= 0 <= found.high
    assert 0.92 <= inside / draws <= 0.98


@pytest.fixture(scope="module")
def ledger() -> list[Claim]:
    return claims.load_claims(REPOSITORY / "results" / "claims.yaml")


def test_every_claim_of_the_book_names_a_chapter_and_a_cell_of_it(ledger: list[Claim]) -> None:
    for each in ledger:
        text = (REPOSITORY / "notebooks" / f"{each.chapter}.md").read_text(encoding="utf-8")
        assert f"name: {each.anchor}" in text or f"({each.anchor})=" in text, each.id
        assert each.untried or (REPOSITORY / "results" / "reference" / f"{each.grid}.yaml").is_file(), each.id


def named_alike(claims: list[Claim]) -> list[str]:
    """Labels that are of several quantities, or of one quantity of the same records twice."""
    places: dict[str, dict[tuple[Any, ...], set[tuple[str, str, str | None]]]] = {}
    for claim in claims:
        for each in claim.comparisons:
            what = (each.quantity, each.baseline, each.rank_with, each.complement, each.ratio)
            places.setdefault(each.label, {}).setdefault(what, set()).add((claim.grid, each.of, each.against))
    return [
        label
        for label, quantities in places.items()
        if label and (len(quantities) > 1 or any(len({p[0] for p in of}) < len(of) for of in quantities.values()))
    ]


def test_one_name_is_one_number(ledger: list[Claim]) -> None:
    """Two rows of the ledger with one label say the same quantity of different records, which the row names."""
    assert named_alike(ledger) == []
    claim = next(each for each in ledger if each.id == "ours-alignment-certificate")
    (comparison,) = (
        each for each in claim.comparisons if each.quantity == "certified_epsilon/0.9/gaussian/1" and each.ratio
    )
    other = comparison.model_copy(update={"quantity": "certified_epsilon/0.9/gradient/0.1"})
    more = claim.model_copy(update={"id": "other", "comparisons": (other,)})
    assert named_alike([*ledger, more]) == [comparison.label]
    narrower = comparison.model_copy(update={"of": "l2+cosine-0"})
    assert named_alike([*ledger, claim.model_copy(update={"comparisons": (narrower,)})]) == [comparison.label]


def test_the_table_of_the_readme_is_that_of_the_records(ledger: list[Claim]) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    _, _, rest = readme.partition("<!-- robattr ledger --markdown -->\n")
    verdicts = claims.judge(ledger, records.read(REPOSITORY / "results" / "reference"))
    assert rest.partition("<!-- end -->")[0] == claims.summary(verdicts), "make ledger"


def test_the_committed_records_do_not_contradict_each_other() -> None:
    assert records.conflicts(records.read(REPOSITORY / "results" / "reference")) == []


def test_a_cross_table_has_means_and_intervals_of_every_objective() -> None:
    steadiness = claims.Column("steadiness", "grid", "rps", higher=True)
    gain = claims.Column("gain", "grid", "after", higher=True, baseline="before", runs="*-0")
    kept = claims.Column("accuracy", "grid", "accuracy", higher=True)
    everything = [
        *measured("new", 0.85, objective="l2"), *measured("old", 0.8, objective="cosine"),
        *measured("new", 0.9, quantity="after", objective="l2"),
        *measured("new", 0.4, quantity="before", objective="l2"),
        accuracy("new", [0.5])[0].model_copy(update={"objective": "l2"}),
    ]  # fmt: skip
    found = claims.cross_table(everything, [steadiness, gain, kept], ["l2", "cosine", "hessian"])
    assert {label: list(cells) for label, cells in found.items()} == {
        "steadiness": ["l2", "cosine"], "gain": ["l2"], "accuracy": ["l2"],
    }  # fmt: skip
    table = np.array([m.values for m in everything[:3]])
    assert found["steadiness"]["l2"] == two_way_interval(table)
    assert found["gain"]["l2"].mean == pytest.approx(0.5, abs=0.01)
    assert found["gain"]["l2"].n == 50
    assert found["accuracy"]["l2"] == Interval(0.5, 0.5, 0.5, 1)
    assert claims.measured_in(everything, gain) == everything[6:7]
    mixed = [*everything, *measured("other", 0.1, objective="l2", dataset="cifar10 test")]
    with pytest.raises(ValueError, match="steadiness: runs are of several models or data sets"):
        claims.cross_table(mixed, [steadiness], ["l2"])


def test_a_mean_is_over_runs_and_images() -> None:
    everything = measured("new", 0.85)
    table = np.array([m.values for m in everything])
    assert claims.mean_of(everything, "rps", grid="grid", runs="new-*") == two_way_interval(table)
    with pytest.raises(ValueError, match="no records of rps of the runs old-"):
        claims.mean_of(everything, "rps", grid="grid", runs="old-*")


def test_an_effect_is_that_of_a_claim() -> None:
    new, old = measured("new", 0.85), measured("old", 0.8)
    everything = [*new, *old]
    found = claims.effect(everything, "rps", of="new-*", against="old-*")
    table = np.array([m.values for m in new]) - np.array([m.values for m in old])
    assert found == two_way_interval(table)
    assert claims.effect(everything, "rps", of="new-*", against="other-*") is None


def test_a_pair_of_lone_numbers_has_no_interval() -> None:
    one = [*accuracy("new", [0.9]), *accuracy("old", [0.8])]
    assert claims.effect(one, "accuracy", of="new-*", against="old-*") is None
    (found,) = verdict(claim(KEPT, runs=1), one).outcomes
    assert (found.state, found.reason) == (State.MISSING, "1 number, and an interval takes several")
    assert claims.effect(
        [*one, *accuracy("new", [0.9, 0.7])[1:], *accuracy("old", [0.8, 0.5])[1:]],
        "accuracy",
        of="new-*",
        against="old-*",
    )


def test_effects_in_several_grids() -> None:
    both = [*measured("new", 0.85), *measured("old", 0.8)]
    alone = measured("new", 0.9)
    found = claims.effects({"large": both, "small": alone}, {"RPS": "rps"}, of="new", rivals=["old", "other"])
    effect = claims.effect(both, "rps", of="new-*", against="old-*")
    assert effect is not None
    assert found == {"RPS": {"old": {"large": effect, "small": None}, "other": {"large": None, "small": None}}}


def test_one_changed_record_changes_its_cell_of_a_table_and_no_other() -> None:
    columns = [
        claims.Column("steadiness", "grid", "rps", higher=True),
        claims.Column("time", "grid", "time", higher=False),
    ]
    everything = [
        m
        for name in ("l2", "cosine")
        for quantity in ("rps", "time")
        for m in measured(name, 0.8, quantity=quantity, objective=name)
    ]
    before = claims.cross_table(everything, columns, ["l2", "cosine"])
    for i, each in enumerate(everything):
        context = CONTEXT | {"run": each.run, "seed": each.seed, "objective": each.objective}
        changed = records.of_values(context, each.quantity, np.array(each.values) / 2, unit="1")
        after = claims.cross_table([*everything[:i], changed, *everything[i + 1 :]], columns, ["l2", "cosine"])
        different = {
            (c.quantity, name)
            for c in columns
            for name in before[c.label]
            if before[c.label][name] != after[c.label][name]
        }
        assert different == {(each.quantity, each.objective)}


def test_columns_agree_on_who_is_robust() -> None:
    columns = [claims.Column(name, "grid", name, higher=name != "moved") for name in ("kept", "moved", "other", "few")]
    numbers = {"kept": [1, 2, 3, 4], "moved": [9, 7, 5, 3], "other": [1, 3, 2, 4], "few": [1, 2]}
    table = {
        name: {o: Interval(v, v, v, 1) for o, v in zip("abcd", values, strict=False)}
        for name, values in numbers.items()
    }
    found = claims.rank_agreement(table, columns)
    assert found.keys() == {("kept", "moved"), ("kept", "other"), ("moved", "other")}
    assert found["kept", "moved"] == (pytest.approx(1.0), 4)
    assert found["kept", "other"] == (pytest.approx(0.8), 4)


# --------------------------------------------------------------------------------------------------------------------
# Texts and the command


def test_what_a_verdict_was_computed_from() -> None:
    everything = [*measured("new", 0.85), *measured("old", 0.8), *measured("third", 0.9), *accuracy("new", [0.5] * 3)]
    (found,) = claims.judge([claim(STEADIER)], everything)
    assert claims.used(found, everything) == everything[:6]


@pytest.mark.parametrize(
    ("changes", "new", "old", "text"),
    [
        ({}, 0.85, 0.8, r"\+0\.05\d+ \[\+0\.04\d+, \+0\.05\d+\]; asked for: more than 0\.01"),
        ({"direction": "less"}, 0.85, 0.8, r"asked for: less than -0\.01"),
        ({"direction": "within"}, 0.85, 0.8, r"asked for: from -0\.01 to 0\.01"),
        ({"ratio": True, "by": 1.25}, 0.8, 0.4, r"\d\.\d+ \[\d\.\d+, \d\.\d+\] times; asked for: more than 1\.25"),
        ({"ratio": True, "by": 1.25, "direction": "less"}, 0.8, 0.4, r"asked for: less than 0\.8"),
        ({"ratio": True, "by": 1.25, "direction": "within"}, 0.8, 0.4, r"asked for: from 0\.8 to 1\.25"),
    ],
)
def test_effects_in_words(changes: dict[str, Any], new: float, old: float, text: str) -> None:
    of = claim(STEADIER.model_copy(update=changes))
    said = claims.effect_text(verdict(of, measured("new", new), measured("old", old)).outcomes[0])
    assert re.search(text, said), said


def test_no_effect_in_words() -> None:
    assert claims.effect_text(verdict(claim(STEADIER)).outcomes[0]) == "no records: 0 of 3 runs"
    few = verdict(claim(STEADIER), measured("new", 0.85, seeds=2), measured("old", 0.8)).outcomes[0]
    assert claims.effect_text(few) == "too few: 2 of 3 runs"


def test_tables_name_claim_verdict_and_where(ledger: list[Claim]) -> None:
    found = verdict(claim(STEADIER), measured("new", 0.85), measured("old", 0.8))
    assert claims.summary([found]).splitlines()[2] == "| New is better. | this book | **reproduced** | 6 |"
    row = claims.table([found]).splitlines()[2]
    assert row.partition(" | <details")[0] == "| New is better. | {ref}`reproduced <here>` | this book"
    text = claims.details(found)
    for part in (
        "Reproduced.",
        "made up",
        "`abc`",
        "../records/a-claim.jsonl",
        "again: `make reference GRID=grid INTO=again`",
        "holds",
    ):
        assert part in text
    (as_json,) = claims.as_json([found])
    assert (as_json["verdict"], as_json["outcomes"][0]["runs"][0]) == ("reproduced", "grid/new-0")
    json.dumps(as_json)


def call(*words: str) -> Any:
    return CliRunner().invoke(cli.main, ["ledger", *words])


def test_the_command_prints_every_form(tmp_path: Path) -> None:
    file, folder = tmp_path / "claims.yaml", tmp_path / "records"
    file.write_text(yaml.safe_dump([claim(STEADIER).model_dump(mode="json", exclude_none=True)]))
    records.write(folder / "a.jsonl", [*measured("new", 0.85), *measured("old", 0.8)])
    places = ("--claims", str(file), "--records", str(folder))
    done = call(*places)
    assert done.exit_code == 0, done.output
    assert "New is better." in done.stdout
    assert re.search(r"│ a-claim +│", done.stdout)
    assert "holds: +0.0" in done.stdout
    assert call(*places, "--markdown").stdout == claims.summary(
        claims.judge(claims.load_claims(file), records.read(folder))
    )
    assert json.loads(call(*places, "--json").stdout)[0]["id"] == "a-claim"
    assert json.loads(call("--schema").stdout) == records.schema()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- robattr ledger --markdown -->\nold\n<!-- end -->\nafter\n")
    assert call(*places, "--into", str(page)).exit_code == 0
    table = call(*places, "--markdown").stdout
    assert page.read_text() == f"before\n<!-- robattr ledger --markdown -->\n{table}<!-- end -->\nafter\n"
    page.write_text("no markers")
    assert "has no line" in call(*places, "--into", str(page)).stderr
    # Contradiction: said, and seen by a program.
    both = [*measured("new", 0.85), *measured("old", 0.8), *measured("new", 0.7)]
    records.write(folder / "a.jsonl", both)
    done = call(*places)
    assert done.exit_code == 3
    assert "robattr: grid/new-0: rps is " in done.stderr
    # A run in another file as well, whatever it says there, is refused.
    records.write(folder / "b.jsonl", measured("new", 0.7))
    done = call(*places)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "the run grid/new-0 stands in" in done.stderr
    (folder / "b.jsonl").write_text("{}\n")
    done = call(*places)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "b.jsonl, line 1" in done.stderr
