"""A quarter of an hour on one GPU, used well: all of some grids that is not recorded yet, within a number of minutes.

    python -m robattr.studies.gpu run --minutes 12 GRID.yaml ...     train, measure, write the records beside the grids
    python -m robattr.studies.gpu rates GRID.yaml 0.001 0.002 ...    which learning rate serves cross-entropy best
    python -m robattr.studies.gpu precision GRID.yaml                what a precision does to the gradients of a loss
    python -m robattr.studies.gpu pack FOLDER GRID.yaml ...          records, weights and runs as archives to take back

Trainings share the card in one process, see :func:`robattr.training.train_together`; other processes measure each
network as soon as it is there. Everything is kept as soon as it is made, so that a cut loses only what was going on,
and a second call goes on. What has to be there: this package, the grids, and the data sets below ``ROBATTR_DATA``.
A refusal is one line on stderr and exit status 2; 1 says that runs are left.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import signal
import sys
import tarfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from robattr import data
from robattr._files import free, write_text
from robattr._yaml import one_line
from robattr.data import ImageSet, ImageStream
from robattr.models import ModelError, check_allowed
from robattr.regularizers import Losses
from robattr.studies.grids import Grid, Network, load_grid, run_record
from robattr.studies.grids.making import check_before
from robattr.studies.grids.measured import record_of_weights, said
from robattr.studies.runs import environment, tf32
from robattr.studies.trainings import Training, run_trainings
from robattr.training import Compute, Job, TrainingResult, train_together

__all__ = ["main", "pack", "precision", "rates", "within"]

Say = Callable[[str], None]


def _say(line: str) -> None:
    print(line, flush=True)


def _device(compute: Compute) -> str:
    """PyTorch's word for the device; raises a ValueError where it is not there."""
    if compute.accelerator not in ("auto", "cpu", "cuda", "gpu"):
        raise ValueError(f"accelerator is {compute.accelerator}; accepted are auto, cpu, cuda and gpu")
    there = torch.cuda.is_available()
    if compute.accelerator in ("cuda", "gpu") and not there:
        raise ValueError(
            f"accelerator is {compute.accelerator}; no CUDA device is here: leave it out for what there is"
        )
    return "cuda" if there and compute.accelerator != "cpu" else "cpu"


# --------------------------------------------------------------------------------------------------------------------
# Everything that is not recorded


_LONGEST = 100_000  # minutes; what waits for processes takes no more than some weeks


def within(
    paths: Sequence[Path | str],
    minutes: float,
    *,
    workers: int = 4,
    together: int = 12,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    compute: Compute | None = None,
    say: Say = _say,
) -> list[str]:
    """Make every record of grids that is not there, or was of another configuration, as far as the minutes go.

    Trained is what such a record needs: no network whose records are all there, nor one that another grid's record
    keeps with its weights. Runs that cannot be made, for want of a data set perhaps, are named on stderr, a line a
    grid, before the work begins; the others are made.

    Args:
        paths: YAML files, the most worth first. Of a grid of trainings, the objectives come in its own order, each with
            all its seeds.
        minutes: when they are over, what goes on is ended.
        workers: processes that measure.
        together: trainings that share the device.
        root: folder of the runs.
        data_root: see :func:`robattr.data.load`.
        compute: where.
        say: told how it goes, a line at a time.

    Returns:
        The runs that were not reached or cannot be made, ``<grid>/<run>``.

    Raises:
        ValueError: a number or the device that cannot be had; a grid cannot be read, or names a file of Python code,
            see :func:`robattr.models.check_allowed`. Before work starts.
    """
    began = time.monotonic()
    compute = compute or Compute()
    if not 0 < minutes <= _LONGEST:
        raise ValueError(f"minutes is {minutes:g}; accepted is more than 0, up to {_LONGEST:,}")
    for option, number in (("workers", workers), ("together", together)):
        if number < 1:
            raise ValueError(f"{option} is {number}; accepted is a whole number from 1")
    device = _device(compute)
    files = [Path(path) for path in paths]
    grids = {file: load_grid(file) for file in files}
    for file, grid in grids.items():
        for name, network in grid.networks.items():
            check_allowed(network.code, f"{file}: {name}")
    deadline = began + 60 * minutes
    runs = _unrecorded(grids)
    refused = _refused(grids, runs, data_root)
    for line in _complaints(runs, refused):
        print(f"robattr: {line}", file=sys.stderr, flush=True)
    tasks = _tasks(grids, [run for run in runs if run not in refused], root, data_root)

    def stamped(line: str) -> None:
        say(f"[{time.monotonic() - began:6.1f} s] {line}")

    context = multiprocessing.get_context("spawn")
    trained = context.Event()
    measuring = [
        context.Process(
            target=_measure,
            args=(number, tasks, Path(root), data_root, device, deadline - time.monotonic(), trained),
            daemon=True,
        )
        for number in range(workers if tasks else 0)
    ]
    sets: dict[str, tuple[ImageSet | ImageStream, ImageSet | ImageStream]] = {}
    with _beside(measuring):
        for trainings in _wanted(tasks).values():
            for wave in _waves(trainings, together):
                if time.monotonic() > deadline:
                    break
                try:
                    failed = run_trainings(
                        wave,
                        root=root,
                        data_root=data_root,
                        compute=compute,
                        stop=lambda: time.monotonic() > deadline,
                        say=stamped,
                        sets=sets,
                    )
                except Exception as error:  # of whatever kind: the other trainings go on
                    stamped(f"{len(wave)} trainings failed: {type(error).__name__}: {one_line(error)}")
                    continue
                for each in failed.values():
                    stamped(f"a training failed: {each}")
        trained.set()
        stamped("trained")
        for process in measuring:
            process.join(max(0.0, deadline - time.monotonic()))
    left = [f"{file.stem}/{name}" for file, name in _unrecorded(grids)]
    stamped(f"not reached: {', '.join(left)}" if left else "everything is recorded")
    return left


@contextmanager
def _beside(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Processes that work meanwhile, and are ended however this ends."""
    try:
        with _deaf():
            for process in processes:
                process.start()
        yield
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started in here do not hear Ctrl-C, from their first moment on: their parent ends them."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_with_parent() -> None:
    """Let this process end as soon as the one that started it does, even where that one is killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


_Run = tuple[Path, str]  # the file of a grid, and a name in it


def _unrecorded(grids: Mapping[Path, Grid]) -> list[_Run]:
    """Runs without a record, in the order of the grids."""
    return [(file, name) for file, grid in grids.items() for name in grid.networks if not _record(grid, file, name)]


def _refused(grids: Mapping[Path, Grid], runs: Sequence[_Run], data_root: Path | str | None) -> dict[_Run, str]:
    """Why runs cannot be made, as far as that can be known before; a data set that can be fetched is."""
    known: dict[str, str | None] = {}
    found = {}
    for file, name in runs:
        grid, training = grids[file], grids[file].networks[name].training
        config, kept = dict(grid.runs())[name], grid.recorded.get(name)
        trains = training is not None and not _keeps(kept, training)
        # Seeds and objectives of a grid share what is looked at: a folder is listed once.
        drawn = training and training.model_dump(mode="json", include={"dataset", "images", "validation", "size"})
        asked = json.dumps([grid.kind.name, config.model_dump(mode="json"), drawn, trains])
        if asked not in known:
            try:
                check_before(grid.kind, grid.networks[name], config, data_root)
                _check_data(config.dataset, getattr(config, "split", "test"), data_root)
                if training is not None and trains:
                    _check_data(training.dataset, "train", data_root)
                known[asked] = None
            except (ValueError, OSError) as error:
                known[asked] = one_line(error, 400)
        if (reason := known[asked]) is not None:
            found[file, name] = reason
    return found


def _check_data(dataset: str, split: str, data_root: Path | str | None) -> None:
    """Whether a data set is here, once it was fetched where that can be done; raises a DataError."""
    if any(each.name == dataset and not each.present for each in data.available(data_root)):
        data.fetch(dataset, data_root, split)
    data.contents(dataset, split, root=data_root)


def _complaints(runs: Sequence[_Run], refused: Mapping[_Run, str]) -> Iterator[str]:
    """A line a grid of which runs cannot be made."""
    for file in dict.fromkeys(file for file, _ in refused):
        names = [name for each, name in refused if each == file]
        missing = sum(each == file for each, _ in runs)
        said = f"none of its {missing} runs without a record" if len(names) == missing else f"not {', '.join(names)}"
        reasons = dict.fromkeys(reason for (each, _), reason in refused.items() if each == file)
        yield f"{file}: {said} can be made: {'; '.join(reasons)}"


@dataclass(frozen=True)
class _Task:
    """A run that is to be made.

    Attributes:
        file: of its grid.
        name: of the run.
        training: of its network, where that has to be trained for it.
        needed: the file that is there once there is a network to measure; None where it is there from the start.
        after: file and name of the run of another grid whose record has to be made first: it keeps the network.
    """

    file: Path
    name: str
    training: Training | None = None
    needed: Path | None = None
    after: _Run | None = None


def _tasks(
    grids: Mapping[Path, Grid], runs: Sequence[_Run], root: Path | str, data_root: Path | str | None
) -> list[_Task]:
    """Runs, and what has to be there before each."""
    places = {_path(file, name).resolve(): (file, name) for file, name in runs}
    found = []
    for file, name in runs:
        network, kept = grids[file].networks[name], grids[file].recorded.get(name)
        if network.training is None:
            found.append(_Task(file, name, needed=None if network.record is None else Path(network.record)))
        elif _keeps(kept, network.training):
            found.append(_Task(file, name, needed=kept))
        elif kept is not None and kept.resolve() in places:
            found.append(_Task(file, name, after=places[kept.resolve()]))
        else:
            needed = Path(root) / f"training-{network.training.key_under(data_root)}" / "training.json"
            found.append(_Task(file, name, network.training, needed))
    return found


def _keeps(path: Path | None, training: Training) -> bool:
    """Whether there is a record that names weights of a training."""
    try:
        return path is not None and record_of_weights(path, training) is not None
    except (OSError, ValueError):
        return False


def _wanted(tasks: Sequence[_Task]) -> dict[Path, list[Training]]:
    """What has to be trained, each network once, by the file of the first grid that needs it."""
    seen: list[Training] = []
    found: dict[Path, list[Training]] = {}
    for task in tasks:
        if task.training is not None and task.training not in seen:
            seen.append(task.training)
            found.setdefault(task.file, []).append(task.training)
    return found


def _trainings(grid: Grid) -> dict[str, Training]:
    """What a grid trains itself: not the networks whose weights another one's records keep."""
    found = {name: network.training for name, network in grid.networks.items() if name not in grid.recorded}
    return {name: training for name, training in found.items() if training is not None}


def _waves(trainings: Sequence[Training], together: int) -> Iterator[list[Training]]:
    """Trainings of one precision that share the device, those of the first objectives first."""
    objectives = list(dict.fromkeys(training.objective for training in trainings))
    ordered = sorted(trainings, key=lambda training: (training.precision, objectives.index(training.objective)))
    for _, same in itertools.groupby(ordered, key=lambda training: training.precision):
        each = list(same)
        yield from (each[i : i + together] for i in range(0, len(each), together))


def _path(file: Path, name: str) -> Path:
    return file.with_suffix("") / f"{name}.json"


def _record(grid: Grid, file: Path, name: str) -> bool:
    """Whether a run has its record, whole; one that the grid asked for before it was changed is none."""
    path = _path(file, name)
    if not path.exists() or not path.with_suffix(".jsonl").exists():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        network = Network.model_validate(content["network"])
        config = grid.kind.config.model_validate(content["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return network == grid.networks[name] and config == dict(grid.runs())[name]


def _ready(grids: Mapping[Path, Grid], task: _Task) -> bool:
    """Whether there is a network to measure."""
    if task.after is not None:
        file, name = task.after
        return _record(grids[file], file, name)
    return task.needed is None or task.needed.exists()


def _measure(
    worker: int,
    tasks: Sequence[_Task],
    root: Path,
    data_root: Path | str | None,
    device: str,
    seconds: float,
    trained: Any,
) -> None:
    """A process that measures: the next run, in the order of the grids, whose network is there and nobody measures."""
    began = time.monotonic()
    _end_with_parent()
    torch.set_num_threads(max(1, min(2, (os.cpu_count() or 1) // 2)))
    grids = {file: load_grid(file) for file in dict.fromkeys(task.file for task in tasks)}
    failed: set[_Run] = set()
    while time.monotonic() - began < seconds:
        last = trained.is_set()
        found = False
        for task in tasks:
            file, name = task.file, task.name
            if (file, name) in failed or _record(grids[file], file, name):
                continue
            # What shares the device with trainings delays them: until they are done, only their own records are made.
            if (not last and task.training is None) or not _ready(grids, task):
                continue
            with free(_path(file, name)) as mine:
                if not mine or _record(grids[file], file, name):
                    continue
                started, found = time.monotonic(), True
                try:
                    _make(grids[file], name, _path(file, name), root, data_root, device)
                    _say(f"  worker {worker}: {file.stem}/{name} measured in {time.monotonic() - started:.1f} s")
                except Exception:
                    failed.add((file, name))
                    _say(f"  worker {worker}: {file.stem}/{name} failed\n{traceback.format_exc()}")
                break
        if not found:
            if last:
                return
            time.sleep(0.2)


def _make(grid: Grid, name: str, path: Path, root: Path, data_root: Path | str | None, device: str) -> None:
    compute = Compute(accelerator=device)
    # Steps are not timed: other work goes on beside them.
    options: dict[str, Any] = {"timed": False} if grid.kind.name in ("alignment", "fragility") else {}
    run_record(grid, name, path, root=root, data_root=data_root, compute=compute, progress=False, **options)


# --------------------------------------------------------------------------------------------------------------------
# Before it


def rates(
    grid: Grid,
    candidates: Sequence[float],
    *,
    seed: int = 0,
    changed: dict[str, Any] | None = None,
    data_root: Path | str | None = None,
    compute: Compute | None = None,
    say: Say = _say,
) -> dict[str, Any]:
    """Cross-entropy by learning rate, all at once, judged on the validation set.

    Args:
        grid: whose schedule it is for.
        candidates: learning rates.
        seed: of the training.
        changed: fields of the training that differ, such as the number of images.

    Returns:
        ``training``, ``rates``: for each its history's last and best validation accuracy; ``best``: the rate with the
        highest last one.

    Raises:
        ValueError: the grid has no such training; the device is not there; a rate that is none, or two that have one
            name here.
    """
    _device(compute or Compute())
    for rate in candidates:
        if not 0 < rate < math.inf:
            raise ValueError(f"rates has {rate:g}; accepted are numbers > 0")
    named = [f"{rate:g}" for rate in candidates]
    if twice := [name for name in named if named.count(name) > 1]:
        raise ValueError(f"rates has {twice[0]} twice, in the six digits that count; give it once")
    trained = _trainings(grid).values()
    base = next((each for each in trained if (each.objective, each.seed) == ("cross-entropy", seed)), None)
    if base is None:
        raise ValueError(f"the grid trains nothing with cross-entropy and seed {seed}")
    config = Training.model_validate(base.model_dump() | (changed or {}))
    images, validation = config.sets(data_root)
    jobs = [
        Job(
            config.objective_for(config.build(len(images.class_names))),
            images,
            validation,
            config.schedule.model_copy(update={"learning_rate": rate}),
            config.seed,
            config.measure_every,
        )
        for rate in candidates
    ]
    compute = Compute(**(asdict(compute or Compute()) | {"precision": config.precision}))
    found: dict[str, dict[str, Any]] = {}
    for rate, result in zip(candidates, train_together(jobs, compute=compute, say=say), strict=True):
        if isinstance(result, TrainingResult):
            last = result.history[-1]
            found[f"{rate:g}"] = {
                "last": last.validation_accuracy,
                "best": result.history[result.best - 1].validation_accuracy,
                "cross_entropy": last.cross_entropy,
                "alignment": last.alignment,
                "seconds": result.seconds,
            }
        else:
            found[f"{rate:g}"] = {"error": str(result)}
    if all("last" not in each for each in found.values()):
        raise ValueError(f"no rate could be trained with: {next(iter(found.values()))['error']}")
    best = max((rate for rate in found if "last" in found[rate]), key=lambda rate: float(found[rate]["last"]))
    return {
        "training": config.model_dump(mode="json"),
        "images": len(images),
        "rates": found,
        "best": float(best),
        **environment(),
    }


def precision(
    grid: Grid, *, data_root: Path | str | None = None, device: str = "cuda", images: int = 128
) -> dict[str, dict[str, float]]:
    """How far gradients of the loss turn in a lower precision: cosines with those in float32, by run.

    Initial networks, one batch of at most ``images``, the same noise. ``tf32`` is that of convolutions and products,
    which only a GPU has; ``bf16`` what ``bf16-mixed`` computes.
    """
    found: dict[str, dict[str, float]] = {}
    batches: dict[int, Any] = {}
    for name, config in _trainings(grid).items():
        if config.seed not in batches:
            drawn = config.sets(data_root)[0]
            chosen = drawn.select(torch.arange(min(images, len(drawn))))
            batches[config.seed] = chosen.read() if isinstance(chosen, ImageStream) else chosen
        batch = batches[config.seed].to(device)
        objective = config.objective_for(config.build(len(batch.class_names))).to(device)
        objective.to(memory_format=torch.channels_last).train()
        noise = objective.draw(batch.images.shape, torch.Generator(device).manual_seed(0), torch.device(device))
        gradients = {}
        for kind, allowed, bf16 in (("float32", False, False), ("tf32", True, False), ("bf16", False, True)):
            with tf32(allowed):
                with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
                    losses: Losses = objective(batch.images, batch.labels, noise)
                gradients[kind] = _gradient(losses.total, objective)
        exact = gradients.pop("float32")
        found[name] = {
            kind: float(nn.functional.cosine_similarity(g.double(), exact.double(), dim=0))
            for kind, g in gradients.items()
        }
    return found


def _gradient(loss: Tensor, objective: nn.Module) -> Tensor:
    parts = torch.autograd.grad(loss, list(objective.parameters()))
    return torch.cat([part.flatten() for part in parts])


# --------------------------------------------------------------------------------------------------------------------
# After it


def pack(
    folder: Path | str, paths: Sequence[Path | str], *, root: Path | str = "runs", largest: int = 15
) -> list[Path]:
    """Archives of all records with their weights; and of the trainings and the parts of those that were not reached.

    Args:
        folder: where they go.
        paths: YAML files of grids.
        root: folder of the runs; trainings that are recorded stay there.
        largest: size of an archive in MiB, but for single larger files.

    Returns:
        The archives, in the order in which they are worth something.
    """
    files = [file for path in paths for file in sorted(Path(path).with_suffix("").rglob("*")) if file.is_file()]
    files += [file for file in sorted(Path(root).glob("*/*.json*")) if not file.parent.name.startswith("training-")]
    grids = {Path(path): load_grid(path) for path in paths}
    waiting = itertools.chain(*_wanted(_tasks(grids, _unrecorded(grids), root, None)).values())
    files += [file for each in waiting for file in sorted((Path(root) / f"training-{each.key}").glob("*"))]
    files = [file for file in files if not file.name.startswith(".")]
    groups: list[list[Path]] = []
    room = 0
    for file in files:
        # Text is packed to a quarter at most, weights hardly; the sizes are known only afterwards.
        size = file.stat().st_size // (1 if file.suffix == ".safetensors" else 4)
        if size > room:
            groups.append([])
            room = largest * 2**20
        groups[-1].append(file)
        room -= size
    Path(folder).mkdir(parents=True, exist_ok=True)
    made = []
    for number, group in enumerate(groups, 1):
        made.append(Path(folder) / f"records-{number}.tar.gz")
        with tarfile.open(made[-1], "w:gz", compresslevel=4) as archive:
            for file in group:
                archive.add(file)
    return made


class _Parser(argparse.ArgumentParser):
    """One whose refusals are one line, as all of this program's."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def main(words: Sequence[str] | None = None) -> int:
    """The command line; a refusal is one line on stderr and 2, Ctrl-C one line and 130."""
    try:
        return _do(_parser().parse_args(words))
    except (ValueError, OSError, ModelError) as error:
        print(f"robattr: {said(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robattr: interrupted; records and trainings that are finished are kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m robattr.studies.gpu", description="One GPU, used well.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "rates", "precision", "pack"):
        command = commands.add_parser(name)
        command.add_argument("--root", type=Path, default=Path("runs"))
        command.add_argument("--accelerator", default="auto", help="auto, cpu, cuda or gpu")
        if name == "run":
            command.add_argument("--minutes", type=float, default=12)
            command.add_argument("--workers", type=int, default=4)
            command.add_argument("--together", type=int, default=12)
            command.add_argument("--skip-corrupt", action="store_true", help="name and count such images, and go on")
        if name == "pack":
            command.add_argument("folder", type=Path)
        command.add_argument(
            "grids" if name in ("run", "pack") else "grid", type=Path, nargs="+" if name in ("run", "pack") else None
        )
        if name == "rates":
            command.add_argument("rates", type=float, nargs="+")
            command.add_argument("--images", type=int)
            command.add_argument("--validation", type=int)
        if name in ("rates", "precision"):
            command.add_argument("--output", type=Path)
    return parser


def _do(chosen: argparse.Namespace) -> int:
    compute = Compute(accelerator=chosen.accelerator)
    if chosen.command == "run":
        left = within(
            chosen.grids,
            chosen.minutes,
            workers=chosen.workers,
            together=chosen.together,
            root=chosen.root,
            compute=replace(compute, corrupt="skip" if chosen.skip_corrupt else "stop"),
        )
        return 1 if left else 0
    if chosen.command == "pack":
        for path in pack(chosen.folder, chosen.grids, root=chosen.root):
            _say(str(path))
        return 0
    if chosen.output is not None and chosen.output.is_dir():
        raise ValueError(f"--output is {chosen.output}; accepted is a file")
    grid = load_grid(chosen.grid)
    found: dict[str, Any]
    if chosen.command == "rates":
        asked = {"images": chosen.images, "validation": chosen.validation}
        changed = {name: value for name, value in asked.items() if value is not None}
        found = rates(grid, chosen.rates, changed=changed, compute=compute)
    else:
        device = _device(compute)
        cosines = precision(grid, device=device)
        name = torch.cuda.get_device_name() if device == "cuda" else device
        found = {"device": name, "cosines": cosines, **environment()}
    text = json.dumps(found, indent=1)
    if chosen.output is not None:
        write_text(chosen.output, text + "\n")
    _say(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
