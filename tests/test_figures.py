"""Figures say what the results say: data in the axes, intervals, legible text, nothing left open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from robattr.alignment import Evaluation, Record, Spread, Training
from robattr.experiments import Fragility, FragilityResult, Interval, Row, interval
from robattr.figures import (
    Panel,
    Published,
    agreement,
    bound_scatter,
    distributions,
    fragility_curves,
    fragility_table,
    histories,
    interval_text,
    map_grid,
    objective_dots,
    objective_table,
    pictures,
    rescaling,
    slider,
    spread_text,
)
from robattr.training import Epoch

LITERATURE = Path(__file__).parents[1] / "results" / "literature" / "ghorbani2019.json"


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    plt.close("all")
    yield
    assert not plt.get_fignums()


def result(attack: str, epsilon: float, base: float, failed: int = 0) -> FragilityResult:
    rows = tuple(
        Row(i, 3, 3, 0.9, 0.8, i >= failed, int(i >= failed), base + 0.01 * i, base, 0.5, 10 * base, None, None)
        for i in range(5)
    )
    config = Fragility(attack=attack, epsilon=epsilon, k=100)  # type: ignore[arg-type]
    return FragilityResult(config, rows, 7, 2, torch.empty(0), {})


RESULTS = [result(a, e, b / e) for a, b in (("top-k", 0.2), ("random-sign", 0.6)) for e in (1.0, 2.0)]


def test_curves_show_means_and_intervals() -> None:
    figure = fragility_curves(RESULTS, title="the finding")
    assert figure.get_suptitle() == "the finding"
    first = figure.axes[0]
    assert first.get_xlabel() == "epsilon (1/255)"
    assert first.get_ylabel() == "top-100 intersection (fraction)"
    line, *_ = first.containers[0]
    expected = [interval(r.values("topk_intersection")).mean for r in RESULTS[:2]]
    np.testing.assert_allclose(line.get_ydata(), expected)
    bars = first.containers[0][2][0].get_segments()
    found = interval(RESULTS[0].values("topk_intersection"))
    np.testing.assert_allclose(sorted(p[1] for p in bars[0]), [found.low, found.high])
    assert [t.get_text() for t in first.get_xticklabels()] == ["1", "2"]


def test_published_values_are_drawn_as_they_are() -> None:
    published = Published.read(LITERATURE, "gradient", "paper")
    figure = fragility_curves(RESULTS, published=published)
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(drawn["top-k, paper"].get_ydata(), [0.06, 0.005, 0.005, 0.006])
    with pytest.raises(ValueError, match="has no values for 'lrp'; it has gradient"):
        Published.read(LITERATURE, "lrp", "paper")


def test_published_file_is_whole() -> None:
    content = json.loads(LITERATURE.read_text())
    for method in content["curves"].values():
        assert set(method) == {"top-k", "mass-center", "random-sign"}
        for quantities in method.values():
            assert set(quantities) == {"topk_intersection", "rank_correlation", "center_shift"}
            assert all(list(curve) == ["1", "2", "4", "8"] for curve in quantities.values())


def test_the_table_counts_every_image() -> None:
    text = fragility_table([result("top-k", 8, 0.1, failed=2)])
    people, _, header, _, line = text.splitlines()
    assert people == (
        "Started from 7 images of `imagenet-samples`; 2 left out because the prediction was wrong; 5 remain."
    )
    names, cells = ([c.strip() for c in row.strip("|").split("|")] for row in (header, line))
    assert len(names) == len(cells) == 6
    assert cells[:3] == ["top-k", "8", "2 of 5"]
    assert cells[-1] == "1.00 [1.00, 1.00]"


def test_interval_text() -> None:
    assert interval_text(Interval(0.123, 0.1, 0.2, 9)) == "0.12 [0.10, 0.20]"
    assert interval_text(Interval(12.34, 9.0, 20.0, 9)) == "12.3 [9.0, 20.0]"


def test_pictures_and_grids_draw_color_gray_and_empty_maps() -> None:
    gray, color = torch.rand(1, 8, 8), torch.rand(3, 8, 8)
    rows = [
        [Panel(gray, "a"), Panel(torch.zeros(8, 8), region=(0, 0, 4, 4))],
        [Panel(color), Panel(gray)],
    ]
    figure = pictures(rows, title="the finding")
    assert figure.get_suptitle() == "the finding"
    assert len(figure.axes) == 4
    assert figure.axes[0].get_title() == "a"
    with pytest.raises(ValueError, match="every row takes as many"):
        pictures([[Panel(gray)], [Panel(gray), Panel(gray)]])
    maps = {"gradient": torch.rand(2, 8, 8), "LRP": torch.rand(2, 8, 8)}
    grid = map_grid(torch.rand(2, 3, 8, 8), maps, ["x", "y"], columns=2)
    assert [ax.get_title() for ax in grid.axes] == ["x", "gradient", "LRP", "", "y", "gradient", "LRP", ""]


def test_agreement_writes_every_pair_once() -> None:
    values = {
        ("a", "b"): Interval(0.25, 0.2, 0.3, 9),
        ("a", "c"): Interval(1, 1, 1, 9),
        ("b", "c"): Interval(0, 0, 0, 9),
    }
    figure = agreement(["a", "b", "c"], values, title="t", label="l")
    ax = figure.axes[0]
    texts = {t.get_position(): t.get_text().split("\n")[0] for t in ax.texts}
    assert texts == {(0, 1): "0.25", (0, 2): "1.00", (1, 2): "0.00"}
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "c"]


def test_the_slider_is_whole_html_with_its_data_inside() -> None:
    frames = [("0", torch.rand(3, 8, 8), torch.rand(8, 8)), ("8", torch.rand(3, 8, 8), torch.rand(8, 8))]
    html = slider(frames, title="</script><b>", label='say "so" <b>')
    assert html.count("<script") == html.count("</script>") == 1
    assert 'aria-label="say &quot;so&quot; &lt;b>"' in html
    content = json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])
    steps = content["layout"]["sliders"][0]["steps"]
    assert [s["label"] for s in steps] == ["0", "8"]
    assert len({image["source"] for s in steps for image in s["args"][0]["images"]}) == 4
    assert "http" not in html


def test_rescaling_shows_both_criteria_on_logarithmic_axes() -> None:
    figure = rescaling([0.1, 1, 10], [0.01, 1, 100], [0.2, 0.2, 0.2], title="a finding")
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    l2, cosine = ax.lines
    np.testing.assert_allclose(l2.get_ydata(), [0.01, 1, 100])
    np.testing.assert_allclose(cosine.get_ydata(), [0.2, 0.2, 0.2])
    assert ax.get_title() == "a finding"


def test_the_bound_is_drawn_with_every_point() -> None:
    points = {"hessian": ([0.1, 0.2], [0.05, 0.2]), "l2+cosine": ([0.3], [0.1])}
    figure = bound_scatter(points, title="0 violations")
    for ax, (bound, measured) in zip(figure.axes, points.values(), strict=True):
        np.testing.assert_allclose(ax.collections[0].get_offsets(), np.column_stack([bound, measured]))
        x, y = ax.lines[0].get_data()
        np.testing.assert_allclose(x, y)  # the diagonal
    assert [ax.get_title() for ax in figure.axes] == list(points)


def test_distributions_draw_medians_in_the_order_of_the_objectives() -> None:
    values = {"ratio": {"cross-entropy": [1.0, 2.0, 3.0], "hessian": [10.0, 20.0, 60.0]}}
    (ax,) = distributions(values, title="t").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["hessian", "cross-entropy"]  # from below
    medians = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1 and line.get_lw() == 1.4]
    assert medians == [20.0, 2.0]


SPREADS = {"cross-entropy": Spread(0.5, {0: 0.4, 1: 0.6}, 100), "l2+cosine": Spread(0.75, {0: 0.75}, 100)}


def test_dots_show_every_seed_and_the_mean() -> None:
    (ax,) = objective_dots({"test accuracy": SPREADS}, title="t").axes
    found = [sorted(c.get_offsets()[:, 0].tolist()) for c in ax.collections]
    assert found == [[0.75], [0.75], [0.4, 0.6], [0.5]]
    assert ax.get_xlabel() == "test accuracy"


def test_the_table_has_means_and_ranges() -> None:
    assert spread_text(SPREADS["cross-entropy"]) == "0.500 (0.400 to 0.600)"
    assert spread_text(SPREADS["l2+cosine"]) == "0.750"
    head, _, *lines = objective_table({"accuracy": SPREADS, "other": {"l2+cosine": SPREADS["l2+cosine"]}}).splitlines()
    assert head == "| objective | accuracy | other |"
    assert lines == ["| cross-entropy | 0.500 (0.400 to 0.600) |  |", "| l2+cosine | 0.750 | 0.750 |"]


def test_histories_leave_out_what_was_not_measured() -> None:
    def epoch(number: int, alignment: float | None) -> Epoch:
        return Epoch(number, 0.1, 1.0, 2.0 / number, {}, 0.5, 1.0, 0.5, alignment, 1.0)

    history = (epoch(1, 0.9), epoch(2, None), epoch(3, 0.8))
    record = Record(Training(), Evaluation(), history, 3, 0.5, 10, {}, None, {})
    left, right, against = histories([record, record], title="t").axes
    np.testing.assert_allclose(against.lines[0].get_xydata(), [[2, 0.9], [2 / 3, 0.8]])
    np.testing.assert_allclose(left.lines[0].get_ydata(), [2, 1, 2 / 3])
    np.testing.assert_allclose(right.lines[0].get_xdata(), [1, 3])
    assert [text.get_text() for text in left.get_figure().legends[0].get_texts()] == ["cross-entropy"]
