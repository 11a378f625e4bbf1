"""Verdicts in words, tables and JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from robattr._text import markdown
from robattr.studies.claims.judging import Outcome, State, Verdict, VerdictName
from robattr.studies.claims.schema import Comparison
from robattr.studies.intervals import Interval

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
        rate = f"{effect.mean:.1%} of them" if happened else f"the rate is below {effect.high:.1g}"
        return f"{happened:,} of {effect.n:,} points; {rate}"
    wanted = {
        "greater": f"more than {c.by:g}",
        "less": f"less than {1 / c.by if c.ratio else -c.by or 0:g}",
        "within": f"from {1 / c.by:.3g} to {c.by:g}" if c.ratio else f"from {-c.by:g} to {c.by:g}",
    }[c.direction]
    return f"{_numbers(c, effect)}; asked for: {wanted}"


def _numbers(comparison: Comparison, effect: Interval) -> str:
    # A plus is for differences.
    alone = comparison.against is None and comparison.baseline is None and comparison.rank_with is None
    sign, times = ("", " times") if comparison.ratio else ("" if alone else "+", "")
    ends = effect.low, effect.high
    asked = {comparison.by, -comparison.by, *([1 / comparison.by] if comparison.ratio and comparison.by else [])}
    # An end is not written as what was asked for where it is on one side of it.
    digits = next((d for d in range(3, 6) if not any(float(f"{v:.{d}g}") in asked and v not in asked for v in ends)), 6)
    mean, low, high = (f"{v:{sign}.{digits}g}" for v in (effect.mean, *ends))
    return f"{mean} [{low}, {high}]{times}"


def verdict_text(verdict: Verdict) -> str:
    """The verdict, and where it is partly so, what does not hold; of what was not tried, why."""
    if verdict.claim.untried:
        return f"{verdict.name}: {verdict.claim.untried}"
    if verdict.name is not VerdictName.PARTLY:
        return str(verdict.name)
    parts = []
    for state, word in ((State.FAILS, "fails"), (State.OPEN, "undecided"), (State.MISSING, "too little data")):
        labels = [o.comparison.label or o.comparison.quantity for o in verdict.outcomes if o.state is state]
        if labels:
            parts.append(f"{word}: {', '.join(labels)}")
    return f"{verdict.name} ({'; '.join(parts)})"


def summary(verdicts: Sequence[Verdict]) -> str:
    """Markdown tables, a claim a row: those of the README. Theorems and code are apart from experiments."""
    lines = ["| Claim | Paper | Verdict | Runs |", "| --- | --- | --- | --- |"]
    lines += [_row(v) for v in verdicts if v.claim.kind == "experiment"]
    rest = [_row(v) for v in verdicts if v.claim.kind != "experiment"]
    if rest:
        lines += ["", "Proved, and checked on records:", "", "| Statement | Paper | Check | Runs |"]
        lines += ["| --- | --- | --- | --- |", *rest]
    return "\n".join(lines) + "\n"


def _row(verdict: Verdict) -> str:
    head, _, tail = markdown(verdict_text(verdict)).partition(str(verdict.name))
    return (
        f"| {markdown(verdict.claim.sentence)} | {_paper(verdict)} | {head}**{verdict.name}**{tail} "
        f"| {verdict.networks} |"
    )


def _paper(verdict: Verdict) -> str:
    return PAPERS.get(verdict.claim.paper) or markdown(verdict.claim.paper)


def table(verdicts: Sequence[Verdict]) -> str:
    """The table of the book: every verdict is a reference to the cell that it rests on."""
    lines = ["| Claim | Verdict, and where | Paper | From |", "| --- | --- | --- | --- |"]
    for v in verdicts:
        rest = markdown(verdict_text(v)).removeprefix(str(v.name))
        where = f"{{ref}}`{v.name} <{v.claim.anchor}>`{rest}"
        lines.append(f"| {markdown(v.claim.sentence)} | {where} | {_paper(v)} | {_receipt(v)} |")
    return "\n".join(lines) + "\n"


def _receipt(verdict: Verdict) -> str:
    """The runs of a verdict in a cell that opens on a click or a key: HTML, since Markdown has nothing that opens."""
    if not verdict.receipts:
        return "no run"
    runs = _many(verdict.networks, "run")
    said = []
    for r in verdict.receipts:
        commits = ", ".join(r.commits)
        said += [r.records, r.command, f"{r.minutes} of measuring", "; ".join(r.machines), f"code of {commits}"]
    lines = "<br>".join(map(markdown, said))
    return f'<details class="receipt"><summary>{runs}</summary>{lines}</details>'


def found(paper: str, verdicts: Sequence[Verdict], chosen: Collection[str]) -> str:
    """What became of a paper's claims in a few lines of Markdown: how many of each verdict, and some with a number.

    Args:
        paper: key of the bibliography.
        verdicts: of all claims.
        chosen: ids of the claims that are told, each with the comparison that decided it.

    Raises:
        ValueError: there is no such claim.
    """
    if verdicts and (unknown := set(chosen) - {v.claim.id for v in verdicts}):
        raise ValueError(f"no claim {min(unknown)!r} in results/claims.yaml")
    own = [v for v in verdicts if v.claim.paper == paper]
    tried = [v.name for v in own if v.claim.kind == "experiment" and v.networks]
    said = f"**Found.** Tried by experiment: {_many(len(tried), 'claim')}, {_counts(tried)}."
    if proved := [v.name for v in own if v.claim.kind != "experiment"]:
        said += f" About theorems or code: {_many(len(proved), 'claim')}, {_counts(proved)}."
    lines = [f"{said} For example:", ""]
    for v in own:
        if v.claim.id not in chosen:
            continue
        said = markdown(verdict_text(v))
        line = f"- *{markdown(v.claim.sentence)}* **{said[0].upper()}{said[1:]}**"
        # What decided it: where something fails, that.
        shown = sorted((o for o in v.outcomes if o.effect is not None), key=lambda o: o.state is not State.FAILS)
        if shown:
            effects = [
                f"{o.comparison.label or o.comparison.quantity}: {effect_text(o).partition('; asked for')[0]}"
                for o in shown[: 2 if len(shown) == 2 else 1]
            ]
            line += f": {markdown('; '.join(effects))}"
        lines.append(f"{line}.")
    return "\n".join(lines) + "\n"


def _many(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _counts(names: Sequence[VerdictName]) -> str:
    return ", ".join(f"{names.count(name)} {name}" for name in VerdictName if name in names) or "none"


def details(verdict: Verdict) -> str:
    """What one verdict comes from, as Markdown: its comparisons, runs, code, machine, records and command."""
    claim = verdict.claim
    said = str(verdict.name).capitalize()
    if claim.untried:
        return f"**{markdown(claim.sentence)}** {said}: {markdown(claim.untried)}.\n"
    lines = [f"**{markdown(claim.sentence)}** {said}.", ""]
    if claim.kind != "experiment":
        violated = verdict.name is VerdictName.VIOLATED
        proved = "Proved; the records" if claim.kind == "theorem" and not violated else "The records"
        lines[0] += f" {proved} check {'the statement' if violated else 'the code'}."
    lines += ["| Comparison | Effect, 95% interval | | Fixed |", "| --- | --- | --- | --- |"]
    for o in verdict.outcomes:
        state = str(o.state)
        if o.corrected is not None and o.corrected is not o.state:
            state += f" ({o.corrected} among all)"
        name, effect = (markdown(text) for text in (o.comparison.label or o.comparison.quantity, effect_text(o)))
        lines.append(f"| {name} | {effect} | {state} | {_fixed(o)} |")
    if at := [o for o in verdict.outcomes if o.smaller]:
        lines += ["", "The same at smaller scales, which decide nothing:", ""]
        for o in at:
            each = "; ".join(f"{_numbers(o.comparison, effect)} (`{grid}`)" for grid, effect in o.smaller)
            lines.append(f"- {markdown(o.comparison.label or o.comparison.quantity)}: {each}")
    evidence = claim.evidence
    lines += [
        "",
        f"{markdown(claim.population)}; asked for at least {_many(evidence.runs, 'run')} and "
        f"{_many(evidence.images, 'image')}.",
    ]
    if verdict.lowered:
        lines[-1] += f" It once asked for {verdict.lowered}."
    if claim.known:
        lines[-1] += f" Known when the thresholds were set: {markdown(claim.known)}."
    if claim.note:
        lines[-1] += f" {markdown(claim.note)}"
    if verdict.networks:
        cost = ", ".join(r.minutes for r in verdict.receipts)
        commits = ", ".join(f"`{commit}`" for commit in verdict.commits)
        lines[-1] += (
            f" {verdict.networks} run{'s' if verdict.networks > 1 else ''}, {cost} of measuring, code of {commits}, on "
            f"{markdown('; '.join(verdict.hardware))}. [Records](../records/{claim.id}.jsonl)."
        )
    if verdict.receipts:
        lines[-1] += f" Measure it again: `{verdict.receipts[0].command}`."
    else:
        lines[-1] += f" Measure it: `{claim.command}`."
    return "\n".join(lines) + "\n"


def _fixed(outcome: Outcome) -> str:
    """When a comparison was fixed, and on which side of its records."""
    if outcome.registered is None:
        return ""
    side = {True: ", before its records", False: ", after its records", None: ""}[outcome.fixed_before]
    return f"{outcome.registered.date[:10]}{side}"


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
                "corrected": None if o.corrected is None else str(o.corrected),
                "registered": None if o.registered is None else vars(o.registered),
                "measured": o.measured,
                "fixed_before": o.fixed_before,
                "smaller": {grid: vars(effect) for grid, effect in o.smaller},
            }
            for o in v.outcomes
        ]
        found.append(
            {
                "id": v.claim.id,
                "paper": v.claim.paper,
                "kind": v.claim.kind,
                "sentence": v.claim.sentence,
                "population": v.claim.population,
                "known": v.claim.known,
                "untried": v.claim.untried,
                "verdict": str(v.name),
                "outcomes": outcomes,
                "networks": v.networks,
                "lowered": v.lowered,
                "commits": list(v.commits),
                "hardware": list(v.hardware),
                "minutes": [round(r.seconds / 60, 2) for r in v.receipts],
                "chapter": v.claim.chapter,
                "anchor": v.claim.anchor,
                "command": v.claim.command,
            }
        )
    return found
