"""When a threshold was set: the commit since which a comparison stands as it is, read from the history of the claims.

A comparison that was fixed before its records could not be fitted to them. What counts is what is compared, by how much
and of which grid; not the words. The same comparison may move to records at a larger scale, where the claim names those
that it comes from as smaller ones; asked of any other grid it is a new one. The evidence that a claim asks for may
rise; where it fell, that is kept too.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robattr import _yaml
from robattr._files import write_text
from robattr.studies.claims.schema import Claim, Comparison

CLAIMS, HISTORY = "results/claims.yaml", "results/claims-history.json"


@dataclass(frozen=True)
class Registration:
    """Since when a comparison stands.

    Attributes:
        commit: the first one of those in which it stands without a break until today, abbreviated.
        date: of that commit, ISO 8601.
    """

    commit: str
    date: str


@dataclass(frozen=True)
class History:
    """What the history of the claims says.

    Attributes:
        comparisons: since when each stands, by :func:`registration_key`.
        lowered: of each claim that asks for less evidence than it once did, what it asked for.
    """

    comparisons: Mapping[str, Registration] = field(default_factory=dict)
    lowered: Mapping[str, str] = field(default_factory=dict)


def comparison_digest(comparison: Comparison) -> str:
    """Twelve hexadecimal digits of a comparison without its words."""
    return _digest(comparison.model_dump(mode="json", exclude={"label"}))


def registration_key(claim: Claim, comparison: Comparison) -> str:
    """Name of a comparison of a claim, of the records of its grid, in a :class:`History`."""
    return f"{claim.id}/{claim.grid}/{comparison_digest(comparison)}"


def history_of(repository: Path | str) -> History:
    """Read since when comparisons stand, and where evidence was lowered, from a git repository.

    Comparisons of today's file that no commit has yet are not there.

    Raises:
        ValueError: it is no repository, or one without the history.
    """
    shallow = _git(repository, "rev-parse", "--is-shallow-repository").strip() == "true"
    log = _git(repository, "log", "--reverse", "--format=%h%x09%cI", "--", CLAIMS)
    if shallow or not log:
        raise ValueError(f"{repository} has not the history of {CLAIMS}; git fetch --unshallow")
    asked_at: list[tuple[Registration, set[tuple[str, str]]]] = []
    content: list[dict[str, Any]] = []
    most: dict[str, tuple[int, int]] = {}
    now: dict[str, tuple[int, int]] = {}
    for line in log.splitlines():
        commit, date = line.split("\t")
        # An older file has other fields than today's: it is read as data, not as claims.
        content = _yaml.parse(_git(repository, "show", f"{commit}:{CLAIMS}"), CLAIMS)
        here = {(_digest(c), claim.get("grid", "")) for claim in content for c in claim.get("comparisons", [])}
        asked_at.append((Registration(commit, date), here))
        now = {}
        for claim in content:
            evidence = claim.get("evidence") or {}
            asked = now[claim["id"]] = (evidence.get("runs", 1), evidence.get("images", 1))
            before = most.get(claim["id"], (0, 0))
            most[claim["id"]] = (max(asked[0], before[0]), max(asked[1], before[1]))
    lowered = {
        name: f"{most[name][0]} run{'s' if most[name][0] > 1 else ''} and {most[name][1]:,} images"
        for name, asked in now.items()
        if asked[0] < most[name][0] or asked[1] < most[name][1]
    }
    stands = {
        f"{claim['id']}/{claim.get('grid', '')}/{digest}": _since(
            digest, {claim.get("grid", ""), *claim.get("smaller", [])}, asked_at
        )
        for claim in content
        for digest in map(_digest, claim.get("comparisons", []))
    }
    return History(stands, lowered)


def _since(digest: str, grids: set[str], asked_at: Sequence[tuple[Registration, set[tuple[str, str]]]]) -> Registration:
    """The first of the last commits in all of which one of the grids was asked for a comparison."""
    since = asked_at[-1][0]
    for registration, here in reversed(asked_at):
        if not any((digest, grid) in here for grid in grids):
            break
        since = registration
    return since


def read_history(path: Path | str) -> History:
    """What :func:`write_history` wrote; nothing where there is no such file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return History()
    return History({d: Registration(**fields) for d, fields in content["comparisons"].items()}, content["lowered"])


def write_history(path: Path | str, found: History) -> None:
    """Keep it, so that a reader without the repository's history has it."""
    comparisons = {d: asdict(found.comparisons[d]) for d in sorted(found.comparisons)}
    content = {"comparisons": comparisons, "lowered": dict(sorted(found.lowered.items()))}
    write_text(Path(path), json.dumps(content, indent=1) + "\n")


def _digest(comparison: Mapping[str, Any]) -> str:
    defaults = {name: value.default for name, value in Comparison.model_fields.items()}
    fields = {
        name: float(value) if name == "by" else value
        for name, value in comparison.items()
        if name != "label" and value != defaults.get(name)
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def _git(repository: Path | str, *arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(repository), *arguments], check=True, capture_output=True, text=True, encoding="utf-8"
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{repository} is no git repository, or git is not there ({error})") from None
