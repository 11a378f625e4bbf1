"""What a stored run depends on and what made it: keys of code, files and weights; versions, hardware, commit."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robattr import data
from robattr._files import file_digest
from robattr.studies._code import code_digest

__all__ = ["code_digest", "environment", "files_digest", "public_name", "state_digest", "tf32"]


def files_digest(
    dataset: str, weights: str | None = None, *, split: str | None = None, data_root: Path | str | None = None
) -> str:
    """A digest of what names only point to: the contents of pictures of a ``folder:`` and of a weights file; names and
    sizes of the files of a set that stays in them, see :func:`robattr.data.listing_digest`.

    Links are followed, ``~`` is the reader's home, and where a folder stands does not count. With a ``split``, files of
    others do not either.
    """
    digest = hashlib.sha256()
    if data.is_streamed(dataset):
        digest.update(data.listing_digest(dataset, data_root, split).encode())
    kind, _, path = dataset.partition(":")
    files = _files_below(Path(path).expanduser() / (split or "")) if kind == "folder" else {}
    if weights not in (None, "random"):
        files["weights"] = Path(str(weights)).expanduser()
    for name, file in files.items():
        if file.is_file():
            digest.update(f"{name} {_digest_now(file)}\n".encode())
    return digest.hexdigest()[:12]


def _files_below(root: Path) -> dict[str, Path]:
    """Files by their names below a folder, in order; folders that links lead back to are left out."""
    found: dict[str, Path] = {}
    # Two links to one folder are two folders of pictures: only a folder inside of itself is left out.
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(root, ())]
    while waiting:
        folder, above = waiting.pop(0)
        real = folder.resolve()
        if real in above or not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                waiting.append((path, (*above, real)))
            else:
                found[path.relative_to(root).as_posix()] = path
    return found


def _digest_now(file: Path) -> str:
    stat = file.stat()
    # A program may set the time of the contents back; that of the change itself it cannot.
    return _digest_of(file.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns)


@cache
def _digest_of(file: Path, *_state: int) -> str:
    """Of a file's contents, read once in a process."""
    return file_digest(file)


def public_name(dataset: str) -> str:
    """A data set's name as a record may say it: a ``folder:`` by its own name, its path is nobody else's business."""
    kind, _, path = dataset.partition(":")
    return f"{kind}:{Path(path).name}" if path else kind


def state_digest(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers by name, hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        )
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
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "commit": _commit(root or Path(__file__).parents[2]),
    }


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether convolutions and products of float32 may be rounded to TF32 on a GPU; as before afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


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
    commit = _output_of("git", "rev-parse", "--short=10", "HEAD", cwd=root) or _archived()
    changed = _output_of("git", "status", "--porcelain", "--untracked-files=no", cwd=root)
    return f"{commit or 'unknown'}{' with changes' if changed else ''}"


def _archived() -> str:
    """The commit of which this is a copy without git: ``git archive`` writes it into a file."""
    said = Path(__file__).with_name("archived.txt")
    commit = said.read_text(encoding="utf-8").strip() if said.exists() else ""
    return "" if commit.startswith("$") else commit[:10]
