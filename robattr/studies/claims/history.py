"""When a threshold was set: the commit since which a comparison stands as it is, read from the history of the claims.

A comparison that was fixed before its records could not be fitted to them. What counts is what is compared, by how much
and on how much evidence; not the words, and not the grid: the same comparison may move to records at a larger scale.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robattr import _yaml
from robattr._files import write_text
from robattr.studies.claims.schema import Claim, Comparison, Evidence

CLAIMS, REGISTRATIONS = "results/claims.yaml", "results/registrations.json"


@dataclass(frozen=True)
class Registration:
    """Since when a comparison stands.

    Attributes:
        commit: the first one of those in which it stands without a break until today, abbreviated.
        date: of that commit, ISO 8601.
    """

    commit: str
    date: str


def digest(comparison: Comparison, evidence: Evidence) -> str:
    """Twelve hexadecimal digits of a comparison and of what it asks for, without its words."""
    fields = comparison.model_dump(mode="json", exclude={"label"}, exclude_defaults=True)
    return _digest(fields, evidence.model_dump(mode="json"))


def registrations(repository: Path | str) -> dict[str, Registration]:
    """Since when each comparison stands, by :func:`digest`, from the history of a git repository.

    Comparisons of today's file that no commit has yet are not there.

    Raises:
        ValueError: it is no repository, or one without the history.
    """
    log = _git(repository, "log", "--reverse", "--format=%h%x09%cI", "--", CLAIMS)
    if _git(repository, "rev-parse", "--is-shallow-repository").strip() == "true" or not log:
        raise ValueError(f"{repository} has not the history of {CLAIMS}; git fetch --unshallow")
    stands: dict[str, Registration] = {}
    for line in log.splitlines():
        commit, date = line.split("\t")
        here = _digests(_git(repository, "show", f"{commit}:{CLAIMS}"))
        stands = {d: stands.get(d, Registration(commit, date)) for d in here}
    return stands


def read_registrations(path: Path | str) -> dict[str, Registration]:
    """What :func:`write_registrations` wrote; nothing where there is no such file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {d: Registration(**fields) for d, fields in content.items()}


def write_registrations(path: Path | str, found: Mapping[str, Registration]) -> None:
    """Keep registrations, so that a reader without the history has them."""
    write_text(Path(path), json.dumps({d: asdict(found[d]) for d in sorted(found)}, indent=1) + "\n")


def wanted(claims: list[Claim]) -> dict[str, str]:
    """The claim of each comparison of a ledger, by :func:`digest`."""
    return {digest(c, claim.evidence): claim.id for claim in claims for c in claim.comparisons}


def _digests(text: str) -> list[str]:
    """Of an older file, whose fields may be other ones than today's: read as data, not as claims."""
    found = []
    for claim in _yaml.parse(text, "claims.yaml"):
        evidence = {"runs": 1, "images": 1} | (claim.get("evidence") or {})
        found += [_digest({k: v for k, v in c.items() if k != "label"}, evidence) for c in claim.get("comparisons", [])]
    return found


def _digest(comparison: Mapping[str, Any], evidence: Mapping[str, Any]) -> str:
    defaults = {name: field.default for name, field in Comparison.model_fields.items()}
    fields = {k: float(v) if k == "by" else v for k, v in comparison.items() if v != defaults.get(k)}
    text = json.dumps([fields, evidence], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _git(repository: Path | str, *arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(repository), *arguments], check=True, capture_output=True, text=True, encoding="utf-8"
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{repository} is no git repository, or git is not there ({error})") from None
