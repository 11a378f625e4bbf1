"""Figures of the book. Each function takes results and returns a matplotlib figure; words come from the caller.

A module for each thing shown: maps, tables, attacks, training, certificates; widgets are the figures that a reader
moves, live the networks that a page carries, style is what all share. Curves have units on both axes.
"""

from robattr._text import markdown
from robattr.pages.figures.attacks import (
    QUANTITIES,
    AttackCurves,
    Curve,
    Published,
    curves_of,
    feature_bars,
    fragility_curves,
    fragility_table,
    interval_curves,
    interval_text,
    population,
)
from robattr.pages.figures.certificates import (
    CERTIFICATES,
    bound_text,
    center_discs,
    certificate_curves,
    certificate_text,
    certified_and_attacked,
    ellipsoid,
    heatmap_curves,
    kept_shares,
    quoted_region,
    sample_bounds,
    two_balls,
)
from robattr.pages.figures.live import attack_in_page, live_network
from robattr.pages.figures.maps import Panel, map_grid, pictures
from robattr.pages.figures.style import COLORS, MEASURES, METHODS
from robattr.pages.figures.tables import agreement, cross_table, rank_table
from robattr.pages.figures.training import (
    bound_scatter,
    distributions,
    effects_by_scale,
    histories,
    network_scatter,
    objective_dots,
    objective_table,
    rescaling,
    spread_text,
)
from robattr.pages.figures.verdicts import forest, margin, protocol_bars, small_forest
from robattr.pages.figures.widgets import certificate_explorer, certificate_tables, protocol_explorer, slider

__all__ = [
    "CERTIFICATES",
    "COLORS",
    "MEASURES",
    "METHODS",
    "QUANTITIES",
    "AttackCurves",
    "Curve",
    "Panel",
    "Published",
    "agreement",
    "attack_in_page",
    "bound_scatter",
    "bound_text",
    "center_discs",
    "certificate_curves",
    "certificate_explorer",
    "certificate_tables",
    "certificate_text",
    "certified_and_attacked",
    "cross_table",
    "curves_of",
    "distributions",
    "effects_by_scale",
    "ellipsoid",
    "feature_bars",
    "forest",
    "fragility_curves",
    "fragility_table",
    "heatmap_curves",
    "histories",
    "interval_curves",
    "interval_text",
    "kept_shares",
    "live_network",
    "map_grid",
    "margin",
    "markdown",
    "network_scatter",
    "objective_dots",
    "objective_table",
    "pictures",
    "population",
    "protocol_bars",
    "protocol_explorer",
    "quoted_region",
    "rank_table",
    "rescaling",
    "sample_bounds",
    "slider",
    "small_forest",
    "spread_text",
    "two_balls",
]
