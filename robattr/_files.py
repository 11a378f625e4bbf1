"""Files that are complete or not there at all, digests of them, and locks: one writer at a time."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "altered",
    "append_line",
    "beside",
    "file_digest",
    "free",
    "intact",
    "keep_bytes",
    "keep_values",
    "kept_bytes",
    "kept_values",
    "locked",
    "note_digests",
    "store",
    "write_bytes",
    "write_tensors",
    "write_text",
]

_DIGESTS = "digests.json"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Let ``write`` fill a temporary folder and put it in place of ``folder`` when it is whole.

    Beside what is written stands ``digests.json``, which :func:`intact` compares it with. The caller has the lock of
    the folder: what is left of a writer that was killed goes away.
    """
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with _named(folder):
            temporary.mkdir(parents=True)
            write(temporary)
            (temporary / _DIGESTS).write_text(json.dumps(_digests(temporary), indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def intact(folder: Path) -> bool:
    """Whether a folder holds what :func:`store` put there, to the last bit; a warning is logged where it does not."""
    try:
        noted = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = None
    if noted is not None and noted == _digests(folder):
        return True
    if folder.is_dir():
        logging.getLogger("robattr").warning("%s does not match its digests: it is made again", folder)
    return False


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _DIGESTS)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def note_digests(folder: Path, names: Iterable[str]) -> None:
    """Note the digests of some files of a folder beside them, for :func:`altered`."""
    keep_values(folder / _DIGESTS, {name: file_digest(folder / name) for name in names})


def altered(folder: Path) -> list[str]:
    """Names of files that are not what :func:`note_digests` saw, by a bit; what it wrote is one of them."""
    noted = kept_values(folder / _DIGESTS)
    if noted is None:
        return [_DIGESTS]
    files = {name: folder / name for name in noted}
    return [name for name, file in files.items() if not file.is_file() or file_digest(file) != noted[name]]


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name that is renamed when it is whole.

    Raises:
        OSError: it cannot be written, because the disk is full perhaps; one line names the path.
    """
    with beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """As :func:`write_text`."""
    with beside(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """As :func:`write_text`, tensors by name, from whichever device, as a ``.safetensors`` file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with beside(path) as temporary:
        try:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
        except SafetensorError as error:  # what the library makes of an error of the disk
            raise OSError(f"{path} cannot be written: {' '.join(str(error).split())}") from None


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, on the disk before this returns.

    Raises:
        OSError: it cannot be written, because the disk is full perhaps; what part of the line is there, goes away.
    """
    # Without a buffer, which would be written once more when the file is closed.
    with _named(path), path.open("ab", buffering=0) as file:
        before, left = file.tell(), line.encode() + b"\n"
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def keep_values(path: Path, content: Mapping[str, Any]) -> None:
    """As :func:`write_text`, values that JSON has, with their digest: what :func:`kept_values` reads."""
    # As they are read: tuples are lists then, and keys strings.
    content = json.loads(json.dumps(content))
    write_text(path, json.dumps({"sha256": _digest_of(content), "content": content}))


def kept_values(path: Path) -> dict[str, Any] | None:
    """What :func:`keep_values` wrote; None where there is nothing, or anything else, by a bit."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        content = found["content"]
        same = found.keys() == {"sha256", "content"} and found["sha256"] == _digest_of(content)
    except (OSError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    return content if same and isinstance(content, dict) else None


def _digest_of(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_SEAL = 64  # hexadecimal digits at the end


def keep_bytes(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """As :func:`write_text`, what ``write`` writes into an open file, and then its digest: see :func:`kept_bytes`."""
    with beside(path) as temporary, temporary.open("w+b") as file:
        write(file)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(digest.encode())


def kept_bytes(path: Path) -> bytes | None:
    """What was written into the file of :func:`keep_bytes`; None where it is anything else, by a bit.

    Raises:
        FileNotFoundError: there is none.
    """
    content = path.read_bytes()
    content, digest = content[:-_SEAL], content[-_SEAL:]
    return content if hashlib.sha256(content).hexdigest().encode() == digest else None


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it afterwards, or gone where something fails."""
    start = f".{path.name}.{platform.node()}-"
    temporary = path.with_name(f"{start}{os.getpid()}")
    try:
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # What is left of a writer on this machine that was killed.
            for left in path.parent.glob(f"{glob.escape(start)}*"):
                if left != temporary and _is_over(left.name.removeprefix(start)):
                    left.unlink(missing_ok=True)
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_over(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, ValueError):  # somebody else's, or no number
        pass
    return False


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error of the disk with the name of what was to be written: writing to an open file names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(f"{path} cannot be written: {error.strerror}") from error
