"""A report card of a network's maps, in minutes: the worst over many attacks, noise, sanity checks, certified floors.

:func:`audit` measures, part by part on disk; :func:`load` reads what it has left; :func:`findings` says in words, with
their definitions, what was found, and :func:`standing` where the network stands among those of the book.
"""

from robattr.studies.audit.findings import (
    ENOUGH as ENOUGH,
    HALF as HALF,
    LEVEL as LEVEL,
    WORDS as WORDS,
    Finding,
    Peer,
    Recorded as Recorded,
    Standing,
    difference as difference,
    findings,
    measured as measured,
    peers,
    standing,
)
from robattr.studies.audit.measuring import audit
from robattr.studies.audit.pieces import ALPHA as ALPHA, floor
from robattr.studies.audit.planning import Clock, Cost, MethodPlan, OutOfTime, Plan, make_plan, top_pixels
from robattr.studies.audit.results import DEFAULT_METHODS, Audit, Audited, Case, load

__all__ = [
    "DEFAULT_METHODS",
    "Audit",
    "Audited",
    "Case",
    "Clock",
    "Cost",
    "Finding",
    "MethodPlan",
    "OutOfTime",
    "Peer",
    "Plan",
    "Standing",
    "audit",
    "findings",
    "floor",
    "load",
    "make_plan",
    "peers",
    "standing",
    "top_pixels",
]
