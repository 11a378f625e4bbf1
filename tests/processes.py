"""Runs of `robattr reference` as processes: killed, two at once, without room on the disk.

They are forked from one process that has imported everything and computed nothing, since an import takes longer than
such a run. ``python processes.py FOLDER SEED`` leaves in FOLDER what tests look at, and ``said.json``.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PATIENCE_S = 1800
GRIDS = {
    "fragility": "{dataset: digits, images: 2, attacks: [top-k, random-sign], k: 5, iterations: 2}",
    "certification": "{dataset: digits, images: 2, radii: [0.5], laws: [uniform], samples: 20, choose: 5, attacked: 0, "
    "check_samples: 4, fractions: 2, "
    "heatmaps: {epsilons: [0.01], k: [5], samples: 20, choose: 5, detail: 2}}",
    "alignment": "{dataset: digits, images: 4, epsilons: [8], draws: 1, methods: [], method_images: 1, manipulated: 1, "
    "manipulation_iterations: 1, frame: 1, fractions: 2}",
}
GRID = """description: a small {kind}
networks:
  net:
    training: {{dataset: digits, images: 64, validation: 20, model: digits-mlp,
      schedule: {{epochs: 4, batch_size: 16, milestones: [], augment: false}}}}
{kind}: {config}
"""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_TEMPORARY = re.compile(r"\..*(-\d+|\.new)")


@dataclass
class Process:
    """A forked process: its number, and the end of a pipe that has what it says on stderr."""

    pid: int
    said: int

    def end(self) -> tuple[int, str]:
        """Its exit status, negative for a signal, and what it said."""
        with os.fdopen(self.said, "rb") as pipe:
            text = pipe.read().decode()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text


def fork(job: Callable[[], object], watch: Callable[[str, str], object] = lambda event, path: None) -> Process:
    """Run a job in a process. ``watch`` is told of each change of a file before it is made: what, and of which."""
    here, there = os.pipe()
    pid = os.fork()
    if pid:
        os.close(there)
        return Process(pid, here)
    status = 1
    try:
        os.dup2(there, 2)
        os.close(there)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate", "shutil.rmtree")
            if changes or (event == "open" and args[2] and args[2] & _WRITES):
                path = args[1] if event == "os.rename" else args[0]
                if isinstance(path, str | os.PathLike):
                    watch(event, os.fspath(path))

        sys.addaudithook(hook)
        job()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def reference(folder: Path, kind: str, room: int = resource.RLIM_INFINITY) -> Callable[[], None]:
    """`robattr reference` of a grid, with all its files below ``folder``; none has more bytes than ``room``."""

    def job() -> None:
        from robattr.cli import main

        grid = folder / "grid.yaml"
        if not grid.exists():
            grid.write_text(GRID.format(kind=kind, config=GRIDS[kind]), encoding="utf-8")
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        main(["reference", str(grid), "net", "--root", str(folder / "runs"), "--accelerator", "cpu"])

    return job


def killed_at(count: int, below: Path) -> Callable[[str, str], None]:
    """For :func:`fork`: kill -9 before the change of that number."""
    left = [count]

    def watch(event: str, path: str) -> None:
        if path.startswith(str(below)):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    return watch


def kill_after(process: Process, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)


def kills(folder: Path, draw: random.Random, repeats: int) -> dict[str, Any]:
    """Each grid undisturbed in ``whole``, and killed three times in a row in ``killed-0`` and so on."""
    found: dict[str, Any] = {}
    for kind in GRIDS:
        changes: Path = folder / f"{kind}.changes"
        whole = folder / kind / "whole"
        whole.mkdir(parents=True)

        def counted(event: str, path: str, changes: Path = changes, whole: Path = whole) -> None:
            if path.startswith(str(whole)):
                with changes.open("a") as file:
                    file.write(f"{event} {path}\n")

        began = time.monotonic()
        ends = [fork(reference(whole, kind), counted).end()]
        took, number = time.monotonic() - began, len(changes.read_text().splitlines())
        for repeat in range(repeats):
            again = folder / kind / f"killed-{repeat}"
            again.mkdir()
            for turn in range(3):
                if turn == 1:
                    process = fork(reference(again, kind))
                    kill_after(process, draw.random() * took)
                else:
                    process = fork(reference(again, kind), killed_at(1 + draw.randrange(number), again))
                ends.append(process.end())
            ends.append(fork(reference(again, kind)).end())
        found[kind] = ends
    return found


def two(folder: Path) -> dict[str, Any]:
    """Each grid by two processes at once, which have both begun before either measures; and the files they put down."""
    from robattr.studies.grids import making

    found: dict[str, Any] = {}
    for kind in GRIDS:
        both, log = folder / kind / "two", folder / f"{kind}.made"
        both.mkdir(parents=True)
        barrier = multiprocessing.get_context("fork").Barrier(2, timeout=PATIENCE_S)
        check = making.check_before

        def waiting(*args: Any, check: Any = check, barrier: Any = barrier) -> None:
            check(*args)
            barrier.wait()

        making.check_before = waiting
        processes = [fork(reference(both, kind), made_in(log, both)) for _ in range(2)]
        making.check_before = check
        found[kind] = [process.end() for process in processes]
    return found


def made_in(log: Path, below: Path) -> Callable[[str, str], None]:
    def watch(event: str, path: str) -> None:
        if event == "os.rename" and path.startswith(str(below)):
            with log.open("a") as file:
                file.write(f"{os.getpid()} {path}\n")

    return watch


def shared(folder: Path) -> list[tuple[int, str]]:
    """One measurement by two processes that share a folder of parts, and are both at work in it."""
    from robattr import models
    from robattr.studies import fragility

    barrier = multiprocessing.get_context("fork").Barrier(2, timeout=PATIENCE_S)
    config = fragility.Fragility(dataset="digits", images=6, k=5, iterations=2, epsilons=(4.0, 8.0))
    real, calls = fragility.attack_images, []

    def measure(name: str, parts: Path) -> None:
        def attacking(*args: Any) -> Any:
            calls.append(1)
            if len(calls) == 1 and name != "alone":
                barrier.wait()
            return real(*args)

        fragility.attack_images = attacking
        model = models.build("digits-mlp", weights="random", activation="softplus", seed=1)
        values = fragility.measure(model, config, device="cpu", folder=parts, max_batch=2).values
        content = {name: value.tolist() for name, value in values.items()}
        (folder / f"{name}.json").write_text(json.dumps(content))

    parts = folder / "parts"
    processes = [
        fork(functools.partial(measure, name, parts), made_in(folder / "shared.made", parts))
        for name in ("one", "other")
    ]
    ends = [process.end() for process in processes]
    return [*ends, fork(functools.partial(measure, "alone", folder / "alone")).end()]


def full(folder: Path, draw: random.Random, repeats: int) -> dict[str, Any]:
    """Each grid with room for more and more bytes in a file, at last for all; and what temporary files are left."""
    found: dict[str, Any] = {}
    for kind in GRIDS:
        again = folder / kind / "full"
        again.mkdir(parents=True)
        ends: list[tuple[int, str, list[str]]] = []
        sizes = sorted(int(10 ** draw.uniform(3, 5)) for _ in range(repeats))
        for size in (*sizes, resource.RLIM_INFINITY):
            status, said = fork(reference(again, kind, size)).end()
            left = [str(path) for path in again.rglob("*") if _TEMPORARY.fullmatch(path.name)]
            ends.append((status, said, left))
        found[kind] = ends
    return found


def main(folder: Path, seed: int, repeats: int) -> None:
    torch.set_num_threads(1)
    import lightning_fabric  # noqa: F401
    import sklearn.datasets  # noqa: F401

    from robattr import cli  # noqa: F401
    from robattr.studies import grids, trainings
    from robattr.studies.grids import making

    # Neither hardware nor code change meanwhile, and nothing is computed here: threads do not live on in a fork.
    trainings.environment = making.environment = functools.cache(trainings.environment)
    digest = functools.cache(trainings.code_digest)
    trainings.code_digest = making.code_digest = grids.kinds.code_digest = digest
    making.environment()
    assert all(grids.kind_named(kind).code for kind in GRIDS)
    assert trainings.Training().code
    draw = random.Random(seed)
    said = {
        "kills": kills(folder / "kills", draw, repeats),
        "two": two(folder / "two"),
        "shared": shared(folder),
        "full": full(folder / "full", draw, 3 * repeats),
    }
    (folder / "said.json").write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
