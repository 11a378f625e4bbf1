"""What is kept survives: bits that flip, disks that are full, processes that are killed or that are two."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE_S, room
from interrupted import Stop
from safetensors.torch import load_file

from robattr import _files, regularizers
from robattr.studies import grids, trainings
from robattr.studies.grids import KINDS, Network, kind_named, making
from robattr.studies.trainings import Training, run_training
from robattr.training import Compute

TRAINING = Training.model_validate(
    {
        "dataset": "digits", "images": 64, "validation": 20, "model": "digits-mlp",
        "schedule": {"epochs": 2, "batch_size": 32, "milestones": [], "augment": False},
    }
)  # fmt: skip
STUDIES: dict[str, dict[str, Any]] = {
    "alignment": {
        "images": 4, "epsilons": [8.0], "draws": 1, "methods": [], "method_images": 1, "method_draws": 1,
        "manipulated": 1, "manipulation_iterations": 1, "frame": 1, "fractions": 2,
    },
    "certification": {
        "images": 2, "radii": [0.5], "laws": ["uniform"], "samples": 20, "choose": 5, "attacked": 0,
        "check_samples": 4, "fractions": 2,
        "heatmaps": {"epsilons": [0.01], "k": [5], "samples": 20, "choose": 5, "detail": 2},
    },
    "conventions": {"images": 2, "draws": 1, "manipulation_iterations": 1, "frame": 1, "fractions": 2},
    "fragility": {"images": 2, "attacks": ["top-k", "random-sign"], "k": 5, "iterations": 2, "keep_images": True},
    "importance": {"images": 2, "epsilons": [1.0], "iterations": 1},
}  # fmt: skip
KEEP_NOTHING = {"alignment", "conventions", "importance"}
"""Before they are over: they take minutes."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither hardware nor code change while a test runs."""
    digest = functools.cache(trainings.code_digest)
    for module in (trainings, making, grids.kinds):
        monkeypatch.setattr(module, "code_digest", digest)
    found = functools.cache(trainings.environment)
    for module in (trainings, making):
        monkeypatch.setattr(module, "environment", found)


def study(name: str, root: Path) -> None:
    kind = kind_named(name)
    config = kind.config.model_validate({"dataset": "digits", **STUDIES[name]})
    grids.run(kind, Network(training=TRAINING), config, root=root, device="cpu", progress=False)


def numbers(root: Path) -> dict[str, Any]:
    """What a study leaves when it is over: the values of its record, the tensors beside it, its network."""
    found: dict[str, Any] = {}
    for path in root.glob("*/record.json"):
        found |= grids.load_record(path).values
        found |= load_file(path.with_name("tensors.safetensors"))
    network = run_training(TRAINING, root=root, compute=Compute(accelerator="cpu"), progress=False)
    found |= network.model.state_dict()
    return found | {f"last/{name}": value for name, value in network.last.items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(value, other[name]) for name, value in one.items())


def files_of(root: Path) -> list[Path]:
    """Every file that is kept, by its path below ``root``; locks hold nothing."""
    found = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(path.relative_to(root) for path in found)


def stopped_in_training(name: str, root: Path, patch: pytest.MonkeyPatch) -> None:
    forward, steps = regularizers.CrossEntropy.forward, []

    def stopping(*args: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise Stop
        return forward(*args)

    patch.setattr(regularizers.CrossEntropy, "forward", stopping)
    with pytest.raises(Stop):
        study(name, root)


def stopped_at_the_end(name: str, root: Path, patch: pytest.MonkeyPatch) -> None:
    """All is measured, nothing of it is a record yet."""

    def stopping(*args: Any) -> None:
        raise Stop

    patch.setattr(making, "_keep", stopping)
    with pytest.raises(Stop):
        study(name, root)


def over(name: str, root: Path, patch: pytest.MonkeyPatch) -> None:
    study(name, root)


def flips(size: int, several: int, draw: random.Random) -> Iterator[int]:
    """Bits of a file of ``size`` bytes: of the first and the last byte, and wherever they are drawn."""
    yield from (draw.randrange(8), 8 * (size - 1) + draw.randrange(8))
    yield from (draw.randrange(8 * size) for _ in range(several))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "stopped"),
    [("fragility", stopped_in_training), ("fragility", over), *((name, stopped_at_the_end) for name in KINDS)],
)
def test_a_flipped_bit_in_any_kept_file_changes_no_number(
    name: str,
    stopped: Callable[[str, Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever files a study keeps: they are found by looking."""
    whole, kept, root = tmp_path / "whole", tmp_path / "kept", tmp_path / "runs"
    study(name, whole)
    undisturbed = numbers(whole)
    with monkeypatch.context() as patch:
        stopped(name, kept, patch)
    draw, refused = random.Random(name + stopped.__name__), 0
    files = files_of(kept)
    if name != "fragility":  # where the training is looked at, which is that of every study
        files = [file for file in files if not file.parts[0].startswith("training-")]
    # When a process began is noted by every study.
    assert bool([file for file in files if file.name != ".begun.json"]) == (name not in KEEP_NOTHING)
    for file in files:
        for bit in flips((kept / file).stat().st_size, 2, draw):
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(kept, root)
            content = bytearray((root / file).read_bytes())
            content[bit // 8] ^= 1 << bit % 8
            (root / file).write_bytes(content)
            said = ""
            try:
                study(name, root)
            except (OSError, ValueError) as error:
                said = str(error)
                refused += 1
            if said:
                assert "\n" not in said
                assert str(root / file) in said
            else:
                assert same(numbers(root), undisturbed), f"bit {bit} of {file}"
    # Most of it is made good, and not refused.
    assert refused <= len(files)


# --- a disk that is full --------------------------------------------------------------------------------------------


def write_folder(path: Path, n: int) -> None:
    _files.store(path, lambda folder: (folder / "a").write_text("x" * n) and None)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "text": lambda path, n: _files.write_text(path, "x" * n),
    "tensors": lambda path, n: _files.write_tensors(path, {"a": torch.zeros(n, dtype=torch.uint8)}),
    "values": lambda path, n: _files.keep_values(path, {"a": [0] * n}),
    "bytes": lambda path, n: _files.keep_bytes(path, lambda file: file.write(bytes(n)) and None),
    "checkpoint": lambda path, n: _files.keep_bytes(path, lambda file: torch.save(torch.zeros(n), file)),
    "folder": write_folder,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_on_a_full_disk_the_old_file_stays(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    WRITERS[kind](path, 1)
    before = {file: (tmp_path / file).read_bytes() for file in files_of(tmp_path)}
    with room(4096), pytest.raises((OSError, RuntimeError)) as error:
        WRITERS[kind](path, 100_000)
    if kind != "checkpoint":  # whose error is made one of the disk where it is written
        assert isinstance(error.value, OSError)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    assert {file: (tmp_path / file).read_bytes() for file in files_of(tmp_path)} == before
    assert {each.name for each in tmp_path.iterdir()} == {"kept"}


def test_on_a_full_disk_whole_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    _files.append_line(path, "a" * 3000)
    with room(4096), pytest.raises(OSError, match="lines cannot be written: File too large"):
        _files.append_line(path, "b" * 3000)
    assert path.read_text() == "a" * 3000 + "\n"
    _files.append_line(path, "c")
    assert path.read_text().splitlines() == ["a" * 3000, "c"]


# --- processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What ``processes.py`` leaves, and what it says."""
    folder = tmp_path_factory.mktemp("processes")
    repeats = os.environ.get("KILLS", "1")
    script = Path(__file__).with_name("processes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), "0", repeats],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "said.json").read_text())


def left_by(folder: Path) -> dict[str, Any]:
    """Record and weights of a run, without what says when it was, and how long it took."""
    found: dict[str, Any] = {}
    for path in files_of(folder):
        content = (folder / path).read_bytes()
        if path.parts[0] != "grid":
            continue
        if path.suffix in (".json", ".jsonl"):
            lines = [content] if path.suffix == ".json" else content.splitlines()
            found[str(path)] = [untimed(json.loads(line)) for line in lines]
        else:
            found[str(path)] = content
    return found


def untimed(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: untimed(value) for name, value in content.items() if name not in ("date", "seconds")}
    return [untimed(each) for each in content] if isinstance(content, list) else content


@pytest.mark.elsewhere
def test_after_kills_at_any_moment_a_run_goes_on_to_the_same_record(processes: tuple[Path, dict[str, Any]]) -> None:
    folder, said = processes
    for kind, ends in said["kills"].items():
        whole = left_by(folder / "kills" / kind / "whole")
        assert {"grid/net.json", "grid/net.jsonl"} <= whole.keys()
        again = sorted((folder / "kills" / kind).glob("killed-*"))
        assert len(ends) == 1 + 4 * len(again)
        # The last of four goes on to its end; the others do where they are there before they are killed.
        assert all(status in (0, -signal.SIGKILL) for status, _ in ends), ends
        assert all(ends[number][0] == 0 for number in range(0, len(ends), 4)), ends
        assert any(status for status, _ in ends)
        for each in again:
            assert left_by(each) == whole, each


@pytest.mark.elsewhere
def test_two_processes_make_one_record_and_nothing_twice(processes: tuple[Path, dict[str, Any]]) -> None:
    folder, said = processes
    for kind, ends in said["two"].items():
        assert [status for status, _ in ends] == [0, 0], ends
        assert left_by(folder / "two" / kind / "two") == left_by(folder / "kills" / kind / "whole")
        made = [line.split(" ", 1) for line in (folder / "two" / f"{kind}.made").read_text().splitlines()]
        # Weights are rounded before their digest is known, by which the others wait.
        results = [(pid, path) for pid, path in made if "/weights/" not in path]
        assert any(path.endswith("/grid/net.json") for _, path in results)
        for path in {path for _, path in results}:
            assert len({pid for pid, other in results if other == path}) == 1, path


@pytest.mark.elsewhere
def test_two_processes_take_parts_in_turn(processes: tuple[Path, dict[str, Any]]) -> None:
    folder, said = processes
    assert [status for status, _ in said["shared"]] == [0, 0, 0], said["shared"]
    one, other, alone = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "other", "alone"))
    assert one == other == alone
    made = [line.split(" ", 1) for line in (folder / "shared.made").read_text().splitlines()]
    # Four attacks, two epsilons, three parts of two images.
    assert len(made) == 4 * 2 * 3
    assert set(Counter(path for _, path in made).values()) == {1}
    assert len({pid for pid, _ in made}) == 2


@pytest.mark.elsewhere
def test_on_a_full_disk_a_run_says_one_line_and_goes_on_later(processes: tuple[Path, dict[str, Any]]) -> None:
    folder, said = processes
    refused = 0
    for kind, ends in said["full"].items():
        again = folder / "full" / kind / "full"
        for status, line, left in ends[:-1]:
            assert not left
            assert status in (0, 2), line
            if status:
                assert line.startswith(f"robattr: {again}"), line
                assert "cannot be written: " in line, line
                assert line.count("\n") == 1
                refused += 1
        assert ends[-1][0] == 0, ends[-1]
        assert left_by(again) == left_by(folder / "kills" / kind / "whole")
    assert refused
