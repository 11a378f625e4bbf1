"""Claims as data, and verdicts that are computed from records only.

A claim is a sentence of a paper with the comparisons that would bear it out: which quantity, of which runs, against
which, in which direction and by how much at least. A verdict is *reproduced* where every comparison holds, *not
reproduced* where none does and at least one fails, *partly reproduced* where some hold, and *not tested at this scale*
where the records are too few, or too noisy, to say.
"""

from __future__ import annotations

from robattr.studies.claims.crossing import Column, cross_table, effect, mean_of, measured_in, rank_agreement
from robattr.studies.claims.judging import Outcome, State, Verdict, VerdictName, judge, used
from robattr.studies.claims.schema import Claim, Comparison, Evidence, load_claims
from robattr.studies.claims.tables import as_json, details, effect_text, summary, table

__all__ = [
    "Claim",
    "Column",
    "Comparison",
    "Evidence",
    "Outcome",
    "State",
    "Verdict",
    "VerdictName",
    "as_json",
    "cross_table",
    "details",
    "effect",
    "effect_text",
    "judge",
    "load_claims",
    "mean_of",
    "measured_in",
    "rank_agreement",
    "summary",
    "table",
    "used",
]
