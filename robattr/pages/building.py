"""One build at a time in a checkout, and none that waits for one that was killed.

    python -m robattr.pages.building "make book" python -m snakemake --cores 2 html

runs the command while no other build works in the working directory. Where one does, a line says so and this one waits.
What a build that was killed has left is ended first: its processes, known by a variable of their environment, and
Snakemake's locks, once nobody lives who could have made them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from robattr._files import free, write_text

__all__ = ["build", "leftovers"]

_MARK = "ROBATTR_BUILD"
"""Variable that every process of a build has, with the folder it builds in."""
_PATIENCE_S = 10  # from asking a process to end until it is ended
_NOTE = "_build/building.json"


def build(what: str, command: Sequence[str], root: Path) -> int:
    """Run a command that builds, once no other build works in a folder.

    Args:
        what: it is called in messages.
        command: with its arguments.
        root: the folder, where the command runs.

    Returns:
        Its exit status; 128 and the number of the signal that ended it.
    """
    root = root.resolve()
    with _alone(root, what):
        _say_ended(_end(leftovers(root)))
        _wait_for_others(root)
        shutil.rmtree(root / ".snakemake" / "locks", ignore_errors=True)
        process = subprocess.Popen(list(command), cwd=root, env=os.environ | {_MARK: str(root)})

        def forward(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        # A terminal sends Ctrl-C to the command as well, which ends in its own way.
        before = {each: signal.signal(each, forward) for each in (signal.SIGTERM, signal.SIGHUP)}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
        try:
            status = process.wait()
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        if status < 0:
            _say_ended(_end(leftovers(root)))
        return status if status >= 0 else 128 - status


@contextmanager
def _alone(root: Path, what: str) -> Iterator[None]:
    """The lock of a folder's builds: it is gone with who holds it, however that one ended."""
    note = root / _NOTE
    with free(note) as mine:
        if mine:
            with _noted(note, what):
                yield
            return
    _say(f"{_holder(note)} works in {root}; waiting for it (Ctrl-C leaves it alone)")
    with free(note, wait=True), _noted(note, what):
        yield


@contextmanager
def _noted(note: Path, what: str) -> Iterator[None]:
    write_text(note, json.dumps({"what": what, "process": os.getpid(), "since": time.strftime("%H:%M:%S")}))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def _holder(note: Path) -> str:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return f"`{found['what']}` (process {found['process']}, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun, or is about to end
        return "another build"


def leftovers(root: Path) -> list[psutil.Process]:
    """Living processes of builds in a folder, other than this one and those that it was started by.

    Whoever has the lock of the builds knows that theirs is dead.
    """
    found = []
    for process in _others():
        try:
            if process.environ().get(_MARK) == str(root.resolve()):
                found.append(process)
        except (psutil.Error, OSError):  # somebody else's, or gone
            continue
    return found


def _others() -> Iterator[psutil.Process]:
    """All processes but this one and those that it was started by."""
    own = {os.getpid(), *(each.pid for each in psutil.Process().parents())}
    return (process for process in psutil.process_iter() if process.pid not in own)


def _end(processes: Sequence[psutil.Process]) -> int:
    for process in processes:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(list(processes), timeout=_PATIENCE_S)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=_PATIENCE_S)
    return len(processes)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:  # gone meanwhile
        return


def _wait_for_others(root: Path) -> None:
    """Wait for a Snakemake that somebody has started by hand in the folder: its locks are its own."""
    said = False
    while (other := _snakemake(root)) is not None:
        if not said:
            _say(f"snakemake (process {other.pid}) works in {root}; waiting for it (Ctrl-C leaves it alone)")
        said = True
        psutil.wait_procs([other], timeout=60)


def _snakemake(root: Path) -> psutil.Process | None:
    for process in _others():
        try:
            words = process.cmdline()
            # ``python -m snakemake`` and ``python /path/bin/snakemake``.
            called = any(Path(word).name == "snakemake" for word in words[:3])
            if called and Path(process.cwd()) == root:
                return process
        except (psutil.Error, OSError):
            continue
    return None


def _say_ended(count: int) -> None:
    if count:
        _say(f"ended {count} process{'es' * (count != 1)} of a build that was killed")


def _say(line: str) -> None:
    print(f"robattr: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(build(sys.argv[1], sys.argv[2:], Path.cwd()))
    except KeyboardInterrupt:
        sys.exit(130)
