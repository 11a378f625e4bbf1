"""Claims as data, and verdicts that are computed from records only.

A claim is a sentence of a paper with the comparisons that would bear it out: which quantity, of which runs, against
which, in which direction and by how much at least. Of an experiment the verdict is

- *reproduced* where every comparison holds;
- *not reproduced* where more of them fail than hold;
- *partly reproduced* where some hold and no more fail; what does not hold is part of the verdict;
- *undecided* where none holds or fails, since intervals reach over the minimal effect;
- *too little data* where there are fewer runs or images than were asked for;
- *not tried* where nothing measures it, with the reason.

A theorem or a piece of code is *checked*, or *violated* by one comparison that fails, and is not counted among
experiments.
"""

from __future__ import annotations

from robattr.studies.claims.crossing import Column, cross_table, effect, effects, mean_of, measured_in, rank_agreement
from robattr.studies.claims.history import (
    HISTORY as HISTORY,
    History,
    Registration,
    comparison_digest,
    history_of,
    read_history,
    registration_key,
    write_history,
)
from robattr.studies.claims.judging import Outcome, State, Verdict, VerdictName, judge, read_ledger, used
from robattr.studies.claims.multiverse import DEPENDS as DEPENDS, Multiverse, multiverse
from robattr.studies.claims.schema import Claim, Comparison, Evidence, check_claims, load_claims
from robattr.studies.claims.tables import PAPERS, as_json, details, effect_text, found, summary, table, verdict_text

__all__ = [
    "PAPERS",
    "Claim",
    "Column",
    "Comparison",
    "Evidence",
    "History",
    "Multiverse",
    "Outcome",
    "Registration",
    "State",
    "Verdict",
    "VerdictName",
    "as_json",
    "check_claims",
    "comparison_digest",
    "cross_table",
    "details",
    "effect",
    "effect_text",
    "effects",
    "found",
    "history_of",
    "judge",
    "load_claims",
    "mean_of",
    "measured_in",
    "multiverse",
    "rank_agreement",
    "read_history",
    "read_ledger",
    "registration_key",
    "summary",
    "table",
    "used",
    "verdict_text",
    "write_history",
]
