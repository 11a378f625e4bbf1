"""Figures say what the results say: data in the axes, intervals, legible text, nothing left open."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import PATIENCE_S, REPOSITORY
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Circle, Ellipse
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image
from scipy import special

from robattr import attributions, models, smoothing
from robattr.pages import chapters
from robattr.pages.figures import (
    CERTIFICATES,
    COLORS,
    METHODS,
    Panel,
    Published,
    agreement,
    bound_scatter,
    bound_text,
    center_discs,
    certificate_curves,
    certificate_explorer,
    certificate_tables,
    certificate_text,
    certified_and_attacked,
    cross_table,
    curves_of,
    distributions,
    effects_by_scale,
    ellipsoid,
    feature_bars,
    fragility_curves,
    fragility_table,
    heatmap_curves,
    histories,
    interval_curves,
    interval_text,
    kept_shares,
    map_grid,
    network_scatter,
    objective_dots,
    objective_table,
    pictures,
    population,
    quoted_region,
    rank_table,
    rescaling,
    sample_bounds,
    slider,
    spread_text,
    two_balls,
)
from robattr.pages.figures.style import MARKERS, closed
from robattr.smoothing import Gaussian
from robattr.studies import alignment, certification, fragility, importance
from robattr.studies.alignment import Alignment, Spread
from robattr.studies.fragility import Attacked
from robattr.studies.grids import Network, Record
from robattr.studies.intervals import Interval, interval
from robattr.studies.trainings import Training
from robattr.training import Epoch

Array = NDArray[np.float64]

LITERATURE = Path(__file__).parents[1] / "results" / "literature" / "ghorbani2019.json"


@pytest.fixture(autouse=True)
def _nothing_left_open() -> Iterator[None]:
    plt.close("all")
    yield
    assert not plt.get_fignums()


def result(attack: str, epsilon: float, base: float, failed: int = 0) -> Attacked:
    i = np.arange(5)
    values = {
        "success": (i >= failed).astype(float),
        "topk_intersection": base + 0.01 * i,
        "rank_correlation": np.full(5, base),
        "center_shift": np.full(5, 10 * base),
    }
    return Attacked("gradient", attack, epsilon, 100, "imagenet-samples", values, i, 7, None)  # type: ignore[arg-type]


RESULTS = [result(a, e, b / e) for a, b in (("top-k", 0.2), ("random-sign", 0.6)) for e in (1.0, 2.0)]


def test_curves_show_means_and_intervals() -> None:
    figure = fragility_curves({"gradient": curves_of(RESULTS)}, k=100, title="the finding")
    assert figure.get_suptitle() == "the finding"
    first = figure.axes[0]
    assert first.get_xlabel() == "epsilon (1/255)"
    assert first.get_ylabel() == "top-100 intersection (fraction)"
    line, *_ = first.containers[0]
    expected = [interval(r.values["topk_intersection"]).mean for r in RESULTS[:2]]
    np.testing.assert_allclose(line.get_ydata(), expected)
    bars = first.containers[0][2][0].get_segments()
    found = interval(RESULTS[0].values["topk_intersection"])
    np.testing.assert_allclose(sorted(p[1] for p in bars[0]), [found.low, found.high])
    assert [t.get_text() for t in first.get_xticklabels()] == ["1", "2"]


def test_published_values_are_drawn_as_they_are() -> None:
    published = Published.read(LITERATURE, "gradient", "paper")
    figure = fragility_curves({"gradient": curves_of(RESULTS)}, k=100, published={"gradient": published})
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


def test_a_population_is_said_by_what_the_reader_knows() -> None:
    assert population("folder:/home/me/my_pets", 2, 1) == (
        r"Started from 2 images of the folder my\_pets; 1 left out because the prediction was wrong; 1 remains."
    )
    assert population("digits", 1, 0).startswith("Started from 1 image of `digits`; 0 left out")


def test_interval_text() -> None:
    assert interval_text(Interval(0.123, 0.1, 0.2, 9)) == "0.12 [0.10, 0.20]"
    assert interval_text(Interval(12.34, 9.0, 20.0, 9)) == "12.3 [9.0, 20.0]"
    assert interval_text(Interval(0.1234, 0.1, 0.2, 9), 3) == "0.123 [0.100, 0.200]"


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


def test_curves_of_intervals_show_every_point() -> None:
    points = {1.0: Interval(0.9, 0.85, 0.95, 10), 8.0: Interval(0.4, 0.3, 0.6, 10)}
    figure = interval_curves(
        {"rank correlation": {"one-step": points}, "shift (pixels)": {"iterated": points}}, title="t"
    )
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("rank correlation", "shift (pixels)")
    line, _, (bars,) = left.containers[0]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=np.float64), [0.9, 0.4])
    ends = np.array([segment[:, 1] for segment in bars.get_segments()], dtype=np.float64)
    np.testing.assert_allclose(ends, [[0.85, 0.95], [0.3, 0.6]])
    assert [t.get_text() for t in left.get_xticklabels()] == ["1", "8"]


def test_effects_stand_at_their_scale_with_their_intervals() -> None:
    found = {"a": Interval(0.1, 0.05, 0.2, 3), "b": None, "c": Interval(-0.3, -0.4, -0.25, 3)}
    scales = {"a": "1k x 8", "b": "4k x 32", "c": "45k x 15"}
    figure = effects_by_scale({"RPS": {"hessian": found}, "accuracy": {"hessian": found}}, scales, title="the finding")
    assert figure.get_suptitle() == "the finding"
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("RPS", "accuracy")
    assert [tick.get_text() for tick in left.get_xticklabels()] == list(scales.values())
    line, _, (bars,) = left.containers[0]
    np.testing.assert_allclose(np.array(line.get_xdata(), float), [0, 2])
    np.testing.assert_allclose(np.array(line.get_ydata(), float), [0.1, -0.3])
    ends = [[float(y) for _, y in segment] for segment in bars.get_segments()]
    np.testing.assert_allclose(np.sort(ends, axis=1), [[0.05, 0.2], [-0.4, -0.25]])


def test_networks_are_points_of_their_objective() -> None:
    points = {"cross-entropy": [(1.0, 0.2), (2.0, 0.1)], "cosine": [(0.5, 0.4)]}
    ax, other = network_scatter(
        {"kept": points, "cosine": {"cosine": [(0.5, 0.9)]}}, horizontal="curvature", title="t"
    ).axes
    assert other.get_ylabel() == "cosine"
    drawn = {str(c.get_label()): np.asarray(c.get_offsets()).tolist() for c in ax.collections}
    assert drawn == {"cross-entropy": [[1.0, 0.2], [2.0, 0.1]], "cosine": [[0.5, 0.4]]}
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "curvature", "kept")


def test_methods_have_rows_with_their_own_published_values() -> None:
    doubled = [result(r.attack, r.epsilon, 0.5) for r in RESULTS]
    figure = fragility_curves(
        {"gradient": curves_of(RESULTS), "deep_taylor": curves_of(doubled)},
        k=100,
        published={"deep_taylor": Published("theirs", {("top-k", "center_shift"): {1.0: 21.5, 8.0: 37.0}})},
    )
    axes = np.array(figure.axes).reshape(2, 3)
    assert [ax.get_title() for ax in axes[0]] == [
        "top-100 intersection (fraction)", "rank correlation (Spearman)", "center shift (pixels)",
    ]  # fmt: skip
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["gradient", "deep Taylor"]
    line, *_ = axes[1, 0].containers[0]
    np.testing.assert_allclose(line.get_ydata(), [interval(doubled[0].values["topk_intersection"]).mean] * 2)
    assert axes[0, 2].get_ylim() == axes[1, 2].get_ylim()
    assert axes[0, 2].get_ylim()[1] >= 37
    hollow = {i: [line for line in axes[i, 2].lines if line.get_label() == "top-k, theirs"] for i in (0, 1)}
    assert not hollow[0]
    np.testing.assert_allclose([line.get_ydata() for line in hollow[1]], [[21.5, 37.0]])


def test_a_rank_correlation_below_zero_is_not_cut_off() -> None:
    curves = curves_of(RESULTS)
    curves = curves | {"rank_correlation": {"top-k": {1.0: Interval(-0.1, -0.2, 0.0, 5)}, "random-sign": {}}}
    axes = fragility_curves({"gradient": curves}, k=100).axes
    assert axes[0].get_ylim() == (0, 1.02)
    assert axes[1].get_ylim()[0] < -0.2


def test_every_method_has_a_name() -> None:
    assert set(METHODS) == set(attributions.METHODS)


def test_a_chapter_takes_every_method() -> None:
    fragile = chapters.chapter(REPOSITORY, "02_fragile")
    assert set(fragile.parameters["attribution"].schema["enum"]) == set(attributions.METHODS)


def test_every_attack_has_a_color_and_a_marker() -> None:
    names = {*get_args(fragility.AttackName), *importance.ATTACKS}
    assert names <= COLORS.keys()
    assert names <= MARKERS.keys()


def test_features_are_those_that_were_largest_before_or_after() -> None:
    names = ["a", "b", "c", "d"]
    columns = {"network": {"before": [0.1, 0.4, 0.2, 0.3], "after": [0.35, 0.3, 0.2, 0.1]}}
    (ax,) = feature_bars(names, columns, shown=2, title="t").axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    widths = [[bar.get_width() for bar in each] for each in ax.containers]
    assert widths == [[0.4, 0.1], [0.3, 0.35]]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["before", "after"]


def test_the_cross_table_colors_places_and_writes_numbers() -> None:
    values = {
        "accuracy": {"l2": Interval(0.4, 0.38, 0.42, 3), "cosine": Interval(0.5, 0.5, 0.5, 1)},
        "moved": {"l2": Interval(1.0, 0.5, 1.5, 3), "hessian": Interval(4.0, 3.0, 5.0, 3)},
    }
    rows = ["l2", "cosine", "hessian"]
    figure = cross_table(values, {"accuracy": True, "moved": False}, rows, title="the finding")
    ax = figure.axes[0]
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    assert texts == {
        (0, 0): "0.4\n± 0.02",
        (1, 0): "0.5",
        (0, 1): "1\n± 0.5",
        (2, 1): "4\n± 1",
    }
    # The best of a measure is 1, the worst 0, whichever direction is better.
    place = np.ma.filled(ax.images[0].get_array(), np.nan)
    np.testing.assert_array_equal(place, [[0, 1, np.nan], [1, np.nan, 0]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["accuracy ↑", "moved ↓"]


def test_rank_correlations_are_written_once() -> None:
    figure = rank_table(["a", "b", "c"], {("a", "b"): (-0.5, 7), ("c", "b"): (1.0, 3)}, title="t")
    texts = {t.get_position(): t.get_text() for t in figure.axes[0].texts}
    assert texts == {(0, 1): "-0.50", (1, 2): "1.00\nof 3"}


def test_the_slider_is_whole_html_with_its_data_inside() -> None:
    frames = [("0", torch.rand(3, 8, 8), torch.rand(8, 8)), ("8", torch.rand(3, 8, 8), torch.rand(8, 8))]
    html = slider(frames, title="</script><b>", label='say "so" <b>')
    assert "<b>" not in html
    assert 'aria-label="say &quot;so&quot; &lt;b&gt;"' in html
    assert re.findall(r'class="frame" data-name="(\d)"( hidden)?>', html) == [("0", ""), ("8", " hidden")]
    assert len(set(re.findall(r'<img alt="[^"]+" src="(data:[^"]+)"', html))) == 4
    assert "http" not in html
    photograph = base64.b64decode(re.findall(r'src="data:image/webp;base64,([^"]+)"', html)[1])
    exact = (frames[1][1].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(photograph))), exact)


def test_names_with_dollars_are_no_formulas() -> None:
    figure = pictures(
        [[Panel(torch.rand(3, 8, 8), "costs $1$ to $2$"), Panel(torch.rand(8, 8), "map")]], title="of $a$"
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    for text in ("costs $1$ to $2$", "of $a$"):
        assert f"<!-- {text} -->" in drawn.getvalue().decode()  # a formula is drawn in parts
    # The powers of 10 that matplotlib writes along an axis are.
    powers = rescaling([0.1, 1, 10], [0.01, 1, 100], [0.2, 0.2, 0.2], title="a finding")
    powers.savefig(drawn, format="svg", metadata={"Date": None})
    assert all(text.get_parse_math() for text in powers.axes[0].get_xticklabels())


@pytest.mark.browser
def test_the_slider_shows_one_pair_at_a_time(chromium: Any) -> None:
    frames = [(name, torch.rand(3, 8, 8), torch.rand(8, 8)) for name in ("0", "4", "8")]
    page = chromium.new_page()
    page.set_content(f"<html><body>{slider(frames, title='t', label='l')}</body></html>")
    page.add_script_tag(path=REPOSITORY / "book" / "_static" / "frame-slider.js")
    page.keyboard.press("Tab")
    for key, name in (("ArrowRight", "4"), ("End", "8"), ("Home", "0")):
        page.keyboard.press(key)
        assert page.locator(".frame:visible").evaluate_all("all => all.map((each) => each.dataset.name)") == [name]
        assert page.locator("input").get_attribute("aria-valuetext") == name
        assert page.locator("label").inner_text().strip() == f"epsilon in 1/255: {name}"
    page.close()


def test_rescaling_shows_both_criteria_on_logarithmic_axes() -> None:
    figure = rescaling([0.1, 1, 10], [0.01, 1, 100], [0.2, 0.2, 0.2], title="a finding")
    (ax,) = figure.axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    l2, cosine = ax.lines
    np.testing.assert_allclose(l2.get_ydata(), [0.01, 1, 100])
    np.testing.assert_allclose(cosine.get_ydata(), [0.2, 0.2, 0.2])
    assert figure.get_suptitle() == "a finding"


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
    source = {"network": {"training": Training().model_dump()}}
    network = Network(training=Training())
    record = Record(alignment.KIND, "x", network, Alignment(), 3072, {}, source, history=history, best=3)
    left, right, against = histories([record, record], title="t").axes
    np.testing.assert_allclose(against.lines[0].get_xydata(), [[2, 0.9], [2 / 3, 0.8]])
    np.testing.assert_allclose(left.lines[0].get_ydata(), [2, 1, 2 / 3])
    np.testing.assert_allclose(right.lines[0].get_xdata(), [1, 3])
    assert [text.get_text() for text in left.get_figure().legends[0].get_texts()] == ["cross-entropy"]


def test_two_balls_shows_the_worst_case() -> None:
    h, epsilon = 0.9, 0.5
    figure = two_balls(h, epsilon, title="the finding")
    assert figure.get_suptitle() == "the finding"
    left, right = figure.axes
    discs = [patch for patch in left.patches if isinstance(patch, Circle)]
    assert {disc.center for disc in discs} == {(0, 0), (epsilon, 0)}
    p = float(smoothing.overlap(2, 1.0, epsilon))
    assert any(f"{1 - p:.2f} of a disc" in text.get_text() for text in left.texts)

    around_h, around_v = (patch for patch in right.patches if isinstance(patch, Circle))
    np.testing.assert_allclose([around_h.radius, around_v.radius], p)
    np.testing.assert_allclose(around_h.center, [h, 0], atol=1e-12)
    # An arrow is an annotation without words, from its position to what it points at.
    arrows = [
        np.array([text.get_position(), text.xy]) for text in right.texts if hasattr(text, "xy") and not text.get_text()
    ]
    tips = [tip for tail, tip in arrows if not tail.any()]
    _, v, moved = tips
    assert np.linalg.norm(v) <= 1 - p + 1e-12
    np.testing.assert_allclose(np.linalg.norm(v - [h, 0]), p)
    np.testing.assert_allclose(np.linalg.norm(moved - v), p)
    cosine = moved[0] / np.linalg.norm(moved)
    np.testing.assert_allclose(cosine, smoothing.certified_cosine(h, p))
    assert f"{np.degrees(np.arccos(cosine)):.0f}°" in [text.get_text() for text in right.texts]
    with pytest.raises(ValueError, match="accepted is one > 0 for which"):
        two_balls(0.3, 0.5, title="")


def test_certificates_are_drawn_up_to_where_they_end() -> None:
    d, lengths = 64, [0.5, 0.95]
    figure = certificate_curves(d, lengths, title="t", points=12)
    assert [ax.get_title() for ax in figure.axes] == ["H = 0.5 M", "H = 0.95 M"]
    drawn = [name for kind, name in CERTIFICATES.items() if kind != "spectral"]  # of H alone
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == drawn
    law = Gaussian.matching(1.0, d)
    for ax, h in zip(figure.axes, lengths, strict=True):
        ball, tight, gaussian, share = ax.lines
        for line in (ball, tight, gaussian):
            assert line.get_xdata()[0] == 0
            assert line.get_ydata()[0] == 1
            assert line.get_ydata()[-1] == 0
        epsilon, p = share.get_data()
        np.testing.assert_allclose(p, smoothing.overlap(d, 1.0, epsilon))
        inner = tight.get_xdata()[:-1]
        np.testing.assert_allclose(tight.get_ydata()[:-1], smoothing.Ball(1.0).certified_cosine(h, d, inner))
        np.testing.assert_allclose(
            ball.get_ydata()[:-1], smoothing.Ball(1.0).certified_cosine(h, d, inner, method="ball")
        )
        inner = gaussian.get_xdata()[:-1]
        np.testing.assert_allclose(gaussian.get_ydata()[:-1], law.certified_cosine(h, d, inner))
        np.testing.assert_allclose(smoothing.overlap(d, 1.0, tight.get_xdata()[-1]), h / 2)
        np.testing.assert_allclose(special.erf(gaussian.get_xdata()[-1] / law.sigma / np.sqrt(2)), h)


def test_the_region_of_the_quoted_formula() -> None:
    """Sampled at the centers of the drawn areas: each has the color of what holds there."""
    figure = quoted_region({"recorded": (np.array([0.1]), np.array([0.95]))}, title="t", points=401)
    (ax,) = figure.axes
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["T is a true bound", "a field goes below T", "nothing can be certified", "recorded"]
    areas = [c for c in ax.collections if type(c).__name__ == "QuadContourSet"]
    where = {"bound": (0.1, 0.97), "broken": (0.1, 0.6), "nothing": (0.4, 0.3)}
    for (p, h), area in zip(where.values(), areas, strict=True):
        inside = [bool(each.get_paths()[0].contains_point((p, h))) for each in areas]
        assert inside == [each is area for each in areas]
    assert smoothing.quoted_cosine(0.97, 0.1) <= smoothing.certified_cosine(0.97, 0.1)
    assert smoothing.quoted_cosine(0.6, 0.1) > smoothing.certified_cosine(0.6, 0.1)
    assert smoothing.certified_cosine(0.3, 0.4) == -1


def test_what_is_certified_and_what_attacks_reach_are_drawn_together() -> None:
    config = certification.Certification(images=3, radii=(1.0,), attacked=2, epsilons=(0.02, 0.04))
    norms = np.array([0.9, 0.95, 0.99])
    reached = {"adaptive": [0.7, 0.9], "transfer": [0.8, 0.6], "random": [0.99, 0.99]}
    values = {f"norm_lower/{law}/1": norms for law in certification.LAWS} | {
        f"attacked/{law}/1/{e}/{name}": np.array(found) - 5 * (e - 0.02)
        for law in certification.LAWS
        for e in (0.02, 0.04)
        for name, found in reached.items()
    }
    record = Record(certification.KIND, "x", Network(model="digits-cnn"), config, 64, values, {})
    figure = certified_and_attacked({"cross-entropy": record}, title="the finding")
    assert figure.get_suptitle() == "the finding"
    assert [ax.get_xlabel() for ax in figure.axes] == ["epsilon (l2), uniform noise", "epsilon (l2), Gaussian noise"]
    for ax, law in zip(figure.axes, certification.LAWS, strict=True):
        certified, attacked = ax.get_lines()
        # The median image is the one with H = .95, and the lowest of the three adversaries is .7 and .6.
        grid = np.asarray(certified.get_xdata())
        np.testing.assert_allclose(certified.get_ydata(), certification.certified(record, law, 1.0, grid)[1])
        np.testing.assert_array_equal(attacked.get_xdata(), [0.02, 0.04])
        np.testing.assert_allclose(attacked.get_ydata(), [0.65, 0.55])


def test_an_ellipsoid_shows_the_samples_variances() -> None:
    """Three numbers with variances that are known exactly, by signs."""
    signs = torch.tensor([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=torch.float64)
    sizes = torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64)
    mean = torch.tensor([0.6, 0.0, 0.5], dtype=torch.float64)
    left, right = ellipsoid(mean + sizes * signs, title="the finding", upper=0.11).axes
    circle, inner = (patch for patch in left.patches if isinstance(patch, Ellipse))
    np.testing.assert_allclose([circle.width, circle.height], 2 * math.sqrt(1 - 0.61))
    np.testing.assert_allclose([inner.width, inner.height], [0.6, 0.4])
    np.testing.assert_allclose(np.abs(left.lines[0].get_xydata()), np.tile([0.3, 0.2], (8, 1)))
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.09, 0.04, 0.01])
    np.testing.assert_allclose([right.lines[i].get_ydata()[0] for i in (1, 2)], [0.39, 0.11])
    assert left.get_figure().get_suptitle() == "the finding"


SQUARE = (8, 8)


@pytest.fixture(scope="module")
def of_maps() -> Record:
    """A record of what is certified of two small maps."""
    heatmaps = certification.Heatmaps(sigmas=(0.5,), epsilons=(0.05, 0.1), k=(3, 20), samples=500, choose=100)
    config = certification.Certification(dataset="digits", images=2, laws=(), attacked=0, heatmaps=heatmaps)
    net = models.build("digits-cnn", activation="softplus", beta=3.0, seed=1)
    found = certification.measure(net, config, device="cpu")
    return Record(certification.KIND, "x", Network(model="digits-cnn"), config, 64, found.values, {})


def test_curves_of_heatmaps_show_medians_from_where_nothing_moves(of_maps: Record) -> None:
    figure = heatmap_curves(of_maps, "gradient", 0.5, size=SQUARE, title="the finding", points=3)
    assert figure.get_suptitle() == "the finding"
    cosine, center, top = figure.axes
    expected = certification.certified_of_map(of_maps, "gradient", 0.5, [0.0, 0.05, 0.1], size=SQUARE)
    for line, name in zip(
        [*cosine.lines, *center.lines, *top.lines], ["cosine", "center", "top-3", "top-20"], strict=True
    ):
        np.testing.assert_allclose(line.get_xdata(), [0, 0.05, 0.1])
        shown, middle = np.asarray(line.get_ydata()), np.median(expected[name], 0)
        said = ~np.isnan(shown)
        assert said[0]
        np.testing.assert_allclose(shown[said], middle[said])
        if name == "cosine":
            assert (middle[~said] < 0).all()
    assert [line.get_label() for line in top.lines] == ["top 3", "top 20"]
    assert center.get_ylabel() == "center moves at most (px)"


def test_shares_are_drawn_for_each_picture_and_in_the_mean() -> None:
    shares = {name: np.array([[1.0, 0.5], [1.0, i / 10]]) for i, name in enumerate(("a", "b", "c"))}
    (ax,) = kept_shares([0.0, 0.1], shares, title="t").axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]
    means = [line for line in ax.lines if line.get_label() in shares]
    np.testing.assert_allclose([line.get_ydata() for line in means], [[1, 0.25], [1, 0.3], [1, 0.35]])
    assert len({line.get_color() for line in means}) == 3
    assert len({str(line._dash_pattern) for line in means}) == 3  # type: ignore[attr-defined]
    assert len(ax.lines) == 9
    few = {name: values / 10 for name, values in shares.items()}
    assert 0.1 < kept_shares([0.0, 0.1], few, title="t").axes[0].get_ylim()[1] < 0.2


def test_discs_are_drawn_to_scale_and_those_without_are_counted() -> None:
    centers = np.array([[10.0, 20.0], [12.0, 3.0], [5.0, 5.0]])
    (ax,) = center_discs(centers, np.array([2.5, 4.0, 45.3]), size=(32, 32), title="t").axes
    discs = [patch for patch in ax.patches if isinstance(patch, Circle)]
    assert [(disc.center, disc.radius) for disc in discs] == [((20, 10), 2.5), ((3, 12), 4)]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 31.5), (31.5, -0.5))
    assert [text.get_text() for text in ax.texts] == ["1 without a disc"]


def test_panels_have_discs_outlines_and_points() -> None:
    area, marks = torch.zeros(2, 8, 8, dtype=torch.bool)
    area[2:4, 3:6], marks[2, 3] = True, True
    panel = Panel(torch.rand(8, 8), discs=[(3.0, 5.0, 1.5), (3.0, 5.0, 2.5)], area=area, marks=marks)
    ax = pictures([[panel]]).axes[0]
    circles = [patch for patch in ax.patches if isinstance(patch, Circle)]
    assert {(circle.center, circle.radius) for circle in circles} == {((5, 3), 1.5), ((5, 3), 2.5)}
    np.testing.assert_allclose(ax.lines[-1].get_xydata(), [[3, 2]])
    outline = np.concatenate([path.vertices for c in ax.collections for path in c.get_paths()])
    # Around the pixels, to within a quarter of one.
    np.testing.assert_allclose(outline.min(0), [2.5, 1.5], atol=0.25)
    np.testing.assert_allclose(outline.max(0), [5.5, 3.5], atol=0.25)


def test_sample_bounds_are_logarithmic_lines() -> None:
    (ax,) = sample_bounds([10, 100], {"Hoeffding": [0.5, 0.1], "betting": [0.4, 0.04]}, title="t").axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[10, 0.4], [100, 0.04]])
    assert [line.get_label() for line in ax.lines] == ["Hoeffding", "betting"]


def test_a_certificate_is_rounded_down() -> None:
    assert [bound_text(v) for v in (0.9999, 1.0, -1.0, 0.0)] == ["0.999", "1.000", "none", "0.000"]
    assert bound_text(0.129, 2) == "0.12"
    text = certificate_text(0.97, 3072, 1.0, 0.02, 0.02)
    assert text.startswith("Of each ball p = 0.42 lies outside of the other.")
    tight = float(smoothing.Ball(1.0).certified_cosine(0.97, 3072, 0.02))
    assert f"uniform noise, tight: {bound_text(tight, 2)}; Gaussian" in text
    assert text.count("none") == 0
    spectral = float(smoothing.certified_cosine_spectral(0.97, 0.02, 0.02 * np.sqrt(3074)))
    assert text.endswith(f"spectral: {bound_text(spectral, 2)}.")
    assert certificate_text(0.97, 3072, 1.0, 0.03, 0.02).count("none") == 2
    assert certificate_text(0.97, 3072, 1.0, 1.0, 0.02).count("none") == 4
    # Maps that are at most 1 long cannot vary more than 1 - H^2.
    assert certificate_text(0.97, 3072, 1.0, 0.02, 1.0) == certificate_text(0.97, 3072, 1.0, 0.02, 0.0591)


DIMENSIONS = (2, 3072, 150_528)


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(certificate_tables(DIMENSIONS)))
    return found


def between(table: Array, place: Array) -> Array:
    """As the page's script interpolates."""
    i = np.minimum(place.astype(int), len(table) - 2)
    share = place - i
    return table[i] * (1 - share) + table[i + 1] * share


def displaced_of(tables: dict[str, Any], z: Array, dimension: int) -> Array:
    return z * between(np.array(tables["displaced"][str(dimension)]), z / tables["step"])


def gaussian_of(tables: dict[str, Any], h: Array, z: float) -> Array:
    """As the page's script does; -1 for none."""
    odds = between(np.array(tables["odds"]), np.array(z / tables["step"]))
    t = np.exp(odds) * z**2 * (1 - h * h) / (h * h)
    table = np.array(tables["gaussian"])
    rows = between(table, np.array(z / tables["rowStep"]))
    inside = np.sqrt((1 - np.minimum(t, 1)) * between(rows, np.sqrt(np.minimum(t, 1)) * (table.shape[1] - 1)))
    return np.where(t < 1, inside, -1)


def agree(shown: Array, exact: Array) -> None:
    both = (shown > -1) & (exact > -1)
    assert np.abs(shown - exact)[both].max() < 0.005
    # Where only one of them certifies, it is almost nothing: at the very end.
    assert np.maximum(shown, exact)[~both].max(initial=-1) < 0.005


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("method", ["ball", "tight"])
def test_the_explorers_shares_certify_what_the_exact_ones_do(
    tables: dict[str, Any], dimension: int, method: smoothing.Method
) -> None:
    rng = np.random.default_rng(0)
    z = rng.uniform(1e-4, 3.29, 5000)
    exact = smoothing.overlap(dimension, np.sqrt(dimension + 2), z)
    shown = displaced_of(tables, z, dimension)
    np.testing.assert_allclose(shown, exact, rtol=3e-6)
    for h in (rng.uniform(0.05, 0.999, 5000), np.clip(2 * exact * (1 + 10 ** rng.uniform(-7, 0, 5000)), 0.05, 0.999)):
        agree(smoothing.certified_cosine(h, shown, method=method), smoothing.certified_cosine(h, exact, method=method))


def test_the_explorers_gaussian_table_is_within_its_tolerance(tables: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    for z in rng.uniform(0.001, 3.29, 25):
        least = float(special.erf(z / np.sqrt(2)))  # where the certificate ends
        near = least + (0.999 - least) * np.logspace(-6, 0, 15) if least < 0.999 else np.empty(0)
        h = np.clip(np.concatenate([rng.uniform(0.05, 0.999, 15), near, [least - 1e-4]]), 0.05, 0.999)
        agree(gaussian_of(tables, h, z), smoothing.certified_cosine_gaussian(h, z))


def test_beyond_the_explorers_tables_nothing_is_certified(tables: dict[str, Any]) -> None:
    furthest = tables["step"] * (len(tables["odds"]) - 1)
    assert tables["rowStep"] * (len(tables["gaussian"]) - 1) == pytest.approx(furthest)
    assert special.erf(furthest / np.sqrt(2)) > 0.999
    for dimension in DIMENSIONS:
        assert displaced_of(tables, np.array([furthest]), dimension)[0] > 0.5
    lengths = np.linspace(0.05, 0.999, 50)
    assert (smoothing.certified_cosine_spectral(lengths, 1e-4, furthest) == -1).all()


EXPLORER: dict[str, Any] = {"title": "</script><b>", "label": 'say "so" <b>', "dimensions": DIMENSIONS}


def test_the_explorer_is_whole_html_with_its_tables_inside() -> None:
    html = certificate_explorer(**EXPLORER)
    assert len(html) < 300_000
    assert "http" not in html
    assert html.count("<script") == html.count("</script>") == 1
    assert "<b>" not in html
    tables = json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])
    assert re.findall(r"</svg>([^<]+)</li>", html) == list(CERTIFICATES.values())
    assert re.findall(r'<path class="curve" data-kind="(\w+)"', html) == list(CERTIFICATES)
    assert set(tables["displaced"]) == {str(d) for d in DIMENSIONS}
    assert 'aria-label="say &quot;so&quot; &lt;b&gt;"' in html
    # Every slider has its label around it, and the values are announced.
    assert len(re.findall(r'<label [^>]*>(?:(?!</label>).)*<input type="range"[^>]*></label>', html)) == 5
    assert html.count("<input") == 5
    assert f'role="status" aria-live="polite">{certificate_text(0.97, 3072, 1.0, 0.01, 0.01)}</p>' in html
    with pytest.raises(ValueError, match="dimension is 5; accepted are 2, 3072, 150528"):
        certificate_explorer(dimension=5, **EXPLORER)


@pytest.mark.browser
def test_the_explorer_shows_what_the_package_computes(chromium: Any) -> None:
    static = REPOSITORY / "book" / "_static"
    page = chromium.new_page()
    page.set_default_timeout(PATIENCE_S * 1000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.set_content(f"<html><body>{certificate_explorer(**EXPLORER)}</body></html>")
    page.add_script_tag(path=static / "certificate-explorer.js")
    bottom, top = page.locator(".explorer-drawing .grid").evaluate_all(
        "all => all.map((each) => each.getAttribute('d').match(/^M\\S+ (\\S+)H/)?.[1]).filter(Boolean)"
    )[::5]

    def cosine(y: str) -> float:
        """Of a place in the drawing."""
        return (float(bottom) - float(y)) / (float(bottom) - float(top))

    def compare() -> None:
        values = [float(v) for v in page.locator("input").evaluate_all("all => all.map((each) => each.value)")]
        h, epsilon, radius, d = values[0], 10 ** values[1], 10 ** values[2], DIMENSIONS[int(values[3])]
        law, spread = Gaussian.matching(radius, d), min(10 ** values[4], (1 - values[0]) * (1 + values[0]))
        shown = re.findall(r"(none|[\d.]+)(?:;|\.$)", page.locator(".explorer-values").inner_text())
        p = smoothing.overlap(d, radius, epsilon)
        exact = [
            smoothing.certified_cosine(h, p, method="ball"),
            smoothing.certified_cosine(h, p),
            law.certified_cosine(h, d, epsilon),
            smoothing.certified_cosine_spectral(h, spread, epsilon / law.sigma),
        ]
        for text, value in zip(shown, exact, strict=True):
            if text == "none":
                assert value < 0.005
            else:
                assert value - 0.0151 < float(text) < value + 0.005  # it is rounded down to two digits
        # The markers are on the curves' values.
        markers = page.locator("circle[visibility=visible]").evaluate_all("all => all.map((p) => p.getAttribute('cy'))")
        np.testing.assert_allclose([cosine(y) for y in markers], [v for v in exact if v > -1], atol=0.005)
        # A curve ends at 0, or where the drawing does.
        for path in page.locator(".explorer-drawing .curve").all():
            if drawn := path.get_attribute("d"):
                x, y = drawn.rpartition("L")[2].split()
                assert cosine(y) == pytest.approx(0, abs=1e-4) or float(x) > 388

    compare()
    length, epsilon, radius, dimension, spread = page.locator("input").all()
    for place, keys in (
        (length, ["ArrowLeft"] * 20), (epsilon, ["ArrowRight"] * 10), (dimension, ["ArrowLeft"]),
        (spread, ["Home"]), (epsilon, ["ArrowRight"] * 60), (radius, ["ArrowRight"] * 5), (length, ["End"]),
        (dimension, ["End"]), (epsilon, ["ArrowLeft"] * 70), (length, ["Home"]),
        (spread, ["End"]), (spread, ["ArrowLeft"] * 40),
    ):  # fmt: skip
        place.focus()
        for key in keys:
            page.keyboard.press(key)
        compare()
    assert page.locator("label").nth(3).inner_text() == "d, values of an image = 150,528"
    assert dimension.get_attribute("aria-valuetext") == "150,528"
    assert complaints == []
    page.close()


@pytest.mark.parametrize("width", [4.0, 9.6, 13.0])
def test_no_text_is_shown_below_nine_pixels(width: float) -> None:
    """In a column of 656 pixels, to which wider figures are shrunk; what is larger stays as it is."""
    figure, ax = plt.subplots(figsize=(width, 3))
    ax.plot([0, 1000], [0, 1], label="a line")
    ax.legend(fontsize=7)
    ax.set_title("title", fontsize=20)
    ax.text(0, 0, "text", fontsize=6)
    ax.tick_params(axis="x", labelsize=5)
    closed(figure)
    FigureCanvasAgg(figure).draw()
    pixels = min(656 / (width * 72), 100 / 72)
    shown = {t.get_text(): t.get_fontsize() * pixels for t in figure.findobj(Text) if t.get_text()}
    assert min(shown.values()) >= 9 - 1e-9
    assert {"text", "a line", "title"} < set(shown)
    assert shown["title"] == pytest.approx(20 * pixels)


@pytest.mark.parametrize("width", [3.0, 6.4, 9.2, 16.0])
@pytest.mark.parametrize("layout", ["constrained", None])
def test_a_title_is_read_on_a_phone_without_scrolling(width: float, layout: Any) -> None:
    """There a figure is as wide as in the column and 342 pixels of it are seen, less margins."""
    figure, axes = plt.subplots(1, 2, figsize=(width, 6), layout=layout)
    figure.subplots_adjust(top=0.7) if layout is None else None
    finding, measured = (
        "Attacks leave 0.24 of the top pixels and random signs 0.87 of $them$",
        "(8 photographs, 2 left out)",
    )
    closed(figure, f"{finding}\n{measured}")
    FigureCanvasAgg(figure).draw()
    (title,) = (text for text in figure.texts if text.get_text() == figure.get_suptitle())
    assert title.get_text().split() == f"{finding} {measured}".split()
    assert f"\n{measured.split()[0]}" in title.get_text()
    box, whole = title.get_window_extent(), figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    shown = min(672 / (100 * width), 1)
    assert (box.x0 - whole.x0) * shown < 2
    assert (box.x1 - whole.x0) * shown <= min(342 - 8, 100 * width)
    assert whole.y1 - box.y1 < 15
    for ax in axes:
        above = ax.get_tightbbox()
        assert above is not None
        assert box.y0 > above.y1


def test_further_lines_of_a_title_take_no_room_from_the_axes() -> None:
    heights = []
    for words in (2, 60):
        figure = sample_bounds([10, 100], {"betting": [0.4, 0.04]}, title="so many words " * words)
        FigureCanvasAgg(figure).draw()
        heights.append(figure.axes[0].get_window_extent().height / figure.dpi)
    assert heights[1] >= heights[0] - 0.25  # inches, of which a line has a fifth
