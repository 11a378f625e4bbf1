"""Verdicts in words, tables and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robattr.studies.claims.judging import Outcome, Verdict

PAPERS = {
    "ghorbani2019interpretation": "Ghorbani, Abid & Zou 2019",
    "joo2023towards": "Joo et al. 2023",
    "wang2024certified": "Wang & Kong 2024",
    "ours": "this book",
}
"""Keys of the bibliography, as they are written in tables."""


def effect_text(outcome: Outcome) -> str:
    """The effect of a comparison with its interval, and what was asked of it; or why there is none."""
    c, effect = outcome.comparison, outcome.effect
    if effect is None:
        return f"no records: {outcome.reason}" if outcome.reason.startswith("0 ") else f"too few: {outcome.reason}"
    if c.direction == "never":
        happened = round(effect.mean * effect.n)
        return f"{happened:,} of {effect.n:,} points; the rate is below {effect.high:.1g}"
    times = " times" if c.ratio else ""
    sign = "" if c.ratio else "+"
    wanted = {
        "greater": f"more than {c.by:g}",
        "less": f"less than {1 / c.by if c.ratio else -c.by or 0:g}",
        "within": f"from {1 / c.by:.3g} to {c.by:g}" if c.ratio else f"from {-c.by:g} to {c.by:g}",
    }[c.direction]
    mean, low, high = (f"{v:{sign}.3g}" for v in (effect.mean, effect.low, effect.high))
    return f"{mean} [{low}, {high}]{times}; asked for: {wanted}"


def summary(verdicts: Sequence[Verdict]) -> str:
    """A Markdown table, a claim a row: the one of the README."""
    lines = ["| Claim | Paper | Verdict | Runs |", "| --- | --- | --- | --- |"]
    for v in verdicts:
        lines.append(
            f"| {v.claim.sentence} | {PAPERS.get(v.claim.paper, v.claim.paper)} | **{v.name}** | {v.networks} |"
        )
    return "\n".join(lines) + "\n"


def table(verdicts: Sequence[Verdict]) -> str:
    """The table of the book: every verdict is a reference to the cell that it rests on."""
    lines = ["| Claim | Verdict, and where | Paper |", "| --- | --- | --- |"]
    for v in verdicts:
        where = f"{{ref}}`{v.name} <{v.claim.anchor}>`"
        lines.append(f"| {v.claim.sentence} | {where} | {PAPERS.get(v.claim.paper, v.claim.paper)} |")
    return "\n".join(lines) + "\n"


def details(verdict: Verdict) -> str:
    """What one verdict comes from, as Markdown: its comparisons, runs, code, machine, records and command."""
    claim = verdict.claim
    lines = [f"**{claim.sentence}** {str(verdict.name).capitalize()}.", "", "| Comparison | Effect, 95 % interval | |"]
    lines.append("| --- | --- | --- |")
    lines += [f"| {o.comparison.label} | {effect_text(o)} | {o.state} |" for o in verdict.outcomes]
    lines += [
        "",
        f"{claim.population}; asked for at least {claim.evidence.runs} runs and {claim.evidence.images:,} images.",
    ]
    if verdict.networks:
        commits = ", ".join(f"`{commit}`" for commit in verdict.commits)
        lines[-1] += (
            f" {verdict.networks} run{'s' if verdict.networks > 1 else ''}, code of {commits}, on "
            f"{'; '.join(verdict.hardware)}. [Records](../records/{claim.id}.jsonl)."
        )
    lines[-1] += f" Measure it again: `{claim.command}`."
    return "\n".join(lines) + "\n"


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Verdicts with everything that they come from, as JSON."""
    found = []
    for v in verdicts:
        outcomes = [
            {
                "comparison": o.comparison.model_dump(mode="json", exclude_none=True),
                "state": str(o.state),
                "effect": None if o.effect is None else vars(o.effect),
                "runs": list(o.runs),
                "reason": o.reason,
            }
            for o in v.outcomes
        ]
        found.append(
            {
                "id": v.claim.id,
                "paper": v.claim.paper,
                "sentence": v.claim.sentence,
                "population": v.claim.population,
                "verdict": str(v.name),
                "outcomes": outcomes,
                "networks": v.networks,
                "commits": list(v.commits),
                "hardware": list(v.hardware),
                "chapter": v.claim.chapter,
                "anchor": v.claim.anchor,
                "command": v.claim.command,
            }
        )
    return found
