"""Folders of results: one writer at a time, complete or not there at all, with keys of what a result depends on."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn

__all__ = [
    "code_digest",
    "file_digest",
    "files_digest",
    "free",
    "locked",
    "public_name",
    "state_digest",
    "store",
    "write_text",
]


def code_digest(*modules: str) -> str:
    """Twelve hexadecimal digits of what these modules of robattr do: comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for name in modules:
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
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


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digest(model: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers by name, hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time works on ``folder``; the others wait."""
    with free(folder, wait=True):
        yield


@contextmanager
def free(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether no other process works on the file ``path``; while in here none does. With ``wait``, once it is so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def store(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder and put it in place of ``folder`` when it is whole."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name that is renamed when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
