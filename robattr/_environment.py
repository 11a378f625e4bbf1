"""What a result may depend on beside the project's code: versions, hardware, commit."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["environment"]

VERSIONS = ("torch", "torchvision", "numpy", "scipy", "timm", "captum", "zennit", "papermill", "jupyter-book")
"""Distributions whose versions are noted, where installed."""


def environment(root: Path | None = None) -> dict[str, Any]:
    """Versions, hardware, date and the commit of the checkout at ``root`` (by default the one this package is in)."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "versions": _versions(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "commit": _commit(root or Path(__file__).parents[1]),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cpu() -> str:
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def _output_of(*command: str, cwd: Path) -> str:
    """What a command prints, or "" where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _gpu() -> str:
    lines = _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader", cwd=Path.cwd()).splitlines()
    return ", ".join(sorted(set(lines))) or "none"


def _commit(root: Path) -> str:
    commit = _output_of("git", "rev-parse", "--short=10", "HEAD", cwd=root)
    changed = _output_of("git", "status", "--porcelain", "--untracked-files=no", cwd=root)
    return f"{commit or 'unknown'}{' with changes' if changed else ''}"
