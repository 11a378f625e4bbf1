"""What a stored run depends on and what made it: keys of code, files and weights; versions, hardware, commit."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["code_digest", "environment", "files_digest", "public_name", "state_digest"]


def code_digest(*modules: str) -> str:
    """Twelve hexadecimal digits of what these modules of robattr do: comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    files = [file for name in modules for file in sorted((root / name).glob("*.py")) or [root / f"{name}.py"]]
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                # Docstrings, and the strings below attributes that document them.
                node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:12]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def files_digest(dataset: str, weights: str | None) -> str:
    """A digest of what names only point to: pictures of a ``folder:`` and a weights file, as they are now."""
    digest = hashlib.sha256()
    kind, _, path = dataset.partition(":")
    files = sorted(p for p in Path(path).rglob("*") if p.is_file()) if kind == "folder" else []
    if weights not in (None, "random"):
        files.append(Path(str(weights)))
    for file in files:
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def public_name(dataset: str) -> str:
    """A data set's name as a record may say it: a ``folder:`` by its own name, its path is nobody else's business."""
    kind, _, path = dataset.partition(":")
    return f"{kind}:{Path(path).name}" if path else kind


def state_digest(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers by name, hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


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
        "commit": _commit(root or Path(__file__).parents[2]),
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
