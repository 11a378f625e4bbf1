"""Train a classifier by an objective of :mod:`robattr.regularizers`: one loop for a CPU, a GPU or several of them.

Lightning Fabric places the objective and sums its gradients; the loop is here. A data set in memory lies whole on the
device, and crops and flips are one gather a batch; of one that stays in its files (:class:`robattr.data.ImageStream`)
threads decode a few batches ahead. Every random number of a step comes from the seed and the step's own number,
so a run that was stopped goes on to exactly the numbers that it would have had, and several processes together use the
draws that one would use. The test set is not seen here: weights are selected on a validation set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from robattr import metrics
from robattr._files import keep_bytes, kept_bytes, write_text
from robattr._yaml import one_line
from robattr.attributions import gradient
from robattr.data import Corrupt, ImageSet, ImageStream
from robattr.regularizers import Losses, Objective, uniform

__all__ = [
    "Compute",
    "Epoch",
    "Job",
    "Schedule",
    "TrainingError",
    "TrainingResult",
    "crop_and_flip",
    "step_of",
    "train",
    "train_together",
]

T = TypeVar("T")


class TrainingError(RuntimeError):
    """A training that cannot go on; the message is one line and names the way out."""


class Schedule(BaseModel):
    """How to descend. The defaults are those of Joo et al. 2023 for LeNet on CIFAR-10."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(4e-5, ge=0)
    epochs: int = Field(300, ge=1)
    policy: Literal["milestones", "one-cycle"] = Field("milestones", description="how the rate goes")
    milestones: tuple[int, ...] = Field((100, 150), description="epochs after which the rate is multiplied by 0.1")
    warmup: float = Field(0.25, gt=0, lt=1, description="one-cycle: the share of all steps in which the rate rises")
    batch_size: int = Field(128, ge=1)
    clip: float | None = Field(0.5, gt=0, description="largest norm of the gradient")
    augment: bool = Field(
        True,
        description="random crop (4 pixels of padding) and horizontal flip; a set that stays in its files has its own",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Schedule:
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise ValueError(f"milestones are {self.milestones}; accepted are increasing epochs, from 1")
        return self

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0, by the milestones."""
        return self.learning_rate * 0.1 ** sum(epoch >= m for m in self.milestones)

    def rates(self, epoch: int, steps: int) -> list[float]:
        """The learning rate of each of the ``steps`` of an epoch, counted from 0.

        In one cycle it rises in a line from near 0 to ``learning_rate`` and falls in a line to near 0, over all steps.
        """
        if self.policy == "milestones":
            return [self.rate(epoch)] * steps
        total = self.epochs * steps
        top = self.warmup * total
        every = (epoch * steps + place + 0.5 for place in range(steps))
        return [self.learning_rate * min(at / top, (total - at) / (total - top)) for at in every]


@dataclass(frozen=True)
class Compute:
    """Where to train: what Lightning Fabric takes; and how images are read that stay in their files.

    ``precision`` is ``32-true`` or ``bf16-mixed``. In the latter only the network's passes are in bfloat16: losses,
    attribution distances and weights stay in float32. ``workers`` threads of each process decode; None is one a core.
    ``corrupt`` says what an image does that cannot be read: ``stop`` ends the training and names it; ``skip`` names and
    counts it, and another one takes its place, see :meth:`robattr.data.ImageStream.batches`.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    workers: int | None = None
    corrupt: Corrupt = "stop"


@dataclass(frozen=True)
class Epoch:
    """One line of the history; losses are means over the epoch's steps.

    Attributes:
        epoch: counted from 1.
        learning_rate: of its last step.
        total: the objective.
        cross_entropy: its first term.
        penalties: its other terms by name, before their weights.
        accuracy: on the training batches, as they passed.
        validation_loss: cross-entropy on the validation set after the epoch.
        validation_accuracy: likewise.
        alignment: mean cosine of the gradients at x and at x + U[-8, 8] / 255 over validation images; None where it was
            not measured.
        seconds: since the epoch began (of the last process, when it was interrupted).
    """

    epoch: int
    learning_rate: float
    total: float
    cross_entropy: float
    penalties: dict[str, float]
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    alignment: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A trained network.

    Attributes:
        history: one entry an epoch.
        best: the epoch, counted from 1, with the highest validation accuracy (the first of equals).
        weights: state of the model after that epoch, on the CPU.
        last: state of the model after the last epoch.
        seconds: wall time in all, over every process that worked on it.
    """

    history: tuple[Epoch, ...]
    best: int
    weights: dict[str, Tensor]
    last: dict[str, Tensor]
    seconds: float


def train(
    objective: Objective,
    images: ImageSet | ImageStream,
    validation: ImageSet | ImageStream,
    schedule: Schedule,
    *,
    seed: int = 0,
    compute: Compute | None = None,
    folder: Path | str | None = None,
    measure_every: int = 1,
    checkpoint_seconds: float = 30.0,
    progress: bool = True,
) -> TrainingResult:
    """Minimize the objective. A second call with the same folder goes on where the first was stopped.

    Layers that draw random numbers of their own (dropout) take them from PyTorch's global generator: of what is said
    here about the same numbers, networks with such layers are excepted.

    Args:
        objective: holds the model, whose parameters are changed.
        images: training set. A last batch that is not full is left out; each epoch has another order. Of one that
            stays in its files a few batches are in memory at a time, however many images it has.
        validation: held out of the training set; decides which epoch's weights are returned as ``weights``.
        schedule: optimizer, rates, epochs.
        seed: of order, crops and noise; the model's own initial weights are the caller's.
        compute: device and precision; one GPU, or the CPU, in float32 by default.
        folder: for ``history.jsonl``, a line an epoch, and ``checkpoint.pt``; None keeps nothing.
        measure_every: epochs between measurements of the alignment; the last epoch is always measured.
        checkpoint_seconds: time between checkpoints; the first is written after the first epoch at the latest.
        progress: show a bar with the time left.

    Raises:
        ValueError: schedule or folder do not fit the data or the processes; before the first step.
        DataError: an image cannot be read, and ``compute`` does not say to go on.
        TrainingError: a loss that is not finite; step, epoch and objective are named.
    """
    compute = compute or Compute()
    fabric = _fabric(compute)
    batch = min(schedule.batch_size, len(images))
    if batch % fabric.world_size:
        raise ValueError(f"batch_size is {batch}; accepted is a multiple of the {fabric.world_size} processes")
    run = _Run(
        Job(objective, images, validation, schedule, seed=seed, measure_every=measure_every),
        fabric,
        _Placed(fabric),
        _Reading.of(compute),
    )
    unreadable = [each.unreadable for each in (images, validation) if isinstance(each, ImageStream)]
    keeper = _Keeper(
        None if folder is None else Path(folder), fabric, objective, run.optimizer, checkpoint_seconds, unreadable
    )
    run.state = state = keeper.resume(schedule, seed, images, validation)
    check = 1 if fabric.device.type == "cpu" else 20
    bar = tqdm(
        total=run.steps * schedule.epochs,
        initial=state.step,
        desc=type(objective).__name__,
        unit="step",
        disable=None if progress and fabric.is_global_zero else True,
    )
    began = time.monotonic()
    with bar, ExitStack() as ending:
        ending.callback(run.stop_reading)
        for epoch in range(state.step // run.steps, schedule.epochs):
            run.begin(epoch)
            for place in range(state.step % run.steps, run.steps):
                run.step(place)
                bar.update()
                if state.step % check == 0 or place + 1 == run.steps:
                    run.refuse_nonfinite()
                if place + 1 < run.steps and keeper.due():
                    keeper.save(state, began)
            last = run.close()
            bar.set_postfix(loss=f"{last.total:.3f}", validation=f"{last.validation_accuracy:.3f}", refresh=False)
            keeper.write_history(state.history)
            if epoch == 0 or epoch + 1 == schedule.epochs or keeper.due():
                keeper.save(state, began)
    return run.result(state.seconds + time.monotonic() - began)


@dataclass(frozen=True, eq=False)
class Job:
    """What :func:`train` is told of one training; see there."""

    objective: Objective
    images: ImageSet | ImageStream
    validation: ImageSet | ImageStream
    schedule: Schedule
    seed: int = 0
    measure_every: int = 1


_ASK_SECONDS = 1.0  # between two questions whether the time is over


def train_together(
    jobs: Sequence[Job],
    *,
    compute: Compute | None = None,
    done: Callable[[int, TrainingResult], None] = lambda number, result: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> list[TrainingResult | Exception]:
    """Several trainings on one device at once, each the same training as :func:`train` makes of it alone.

    For networks whose steps are too small for a GPU. There the step of each is captured once as a CUDA graph, on a
    stream of its own; one loop launches the next step of each in turn, and what they leave free of the GPU the others
    use. A set that stays in its files cannot lie where a graph reads it: its steps are launched one by one. There are
    no checkpoints here, as ``train`` has them. A training that fails leaves the others alone.

    Args:
        jobs: what to train.
        compute: device and precision, of one process.
        done: told of each result, by the job's number, as soon as it is there.
        stop: asked after every epoch, and within one about every second; once it says so, nothing goes on. A GPU still
            ends the steps that wait for it.
        say: told how it goes, a line at a time.

    Returns:
        What came of each job: its result; or the error that ended it, a :class:`TrainingError` where the time was over.
    """
    compute = compute or Compute()
    fabric = _fabric(compute)
    if fabric.world_size != 1:
        raise ValueError(f"devices is {fabric.world_size}; trainings together share one")
    placed, began = _Placed(fabric), time.monotonic()
    found: list[TrainingResult | Exception | None] = [None] * len(jobs)
    runs: dict[int, _Run] = {}

    def attempt(number: int, what: Callable[[], T]) -> T | None:
        """What it returns; where it fails, the training is over."""
        try:
            with runs[number].on_its_stream() if number in runs else nullcontext():
                return what()
        except Exception as error:  # of whatever kind: the others go on
            found[number] = error
            if (failed := runs.pop(number, None)) is not None:
                failed.stop_reading()
            say(f"training {number} failed: {type(error).__name__}: {error}")
            return None

    for number, job in enumerate(jobs):
        capture = fabric.device.type == "cuda" and isinstance(job.images, ImageSet)
        run = attempt(number, partial(_Run, job, fabric, placed, _Reading.of(compute), capture=capture))
        if run is not None:
            runs[number] = run
            attempt(number, run.capture)
    try:
        say(f"{len(runs)} trainings ready after {time.monotonic() - began:.1f} s")
        while runs:
            turn = [number for number in runs if attempt(number, runs[number].begin_next) is not None]
            asked, over = time.monotonic(), False
            for place in range(max((runs[number].steps for number in turn), default=0)):
                # A clock of the processor's: looking at the device would wait for it.
                if time.monotonic() - asked >= _ASK_SECONDS:
                    asked, over = time.monotonic(), stop()
                    if over:
                        turn = [number for number in turn if number in runs and runs[number].steps <= place]
                        break
                for number in turn:
                    if number in runs and place < runs[number].steps:
                        attempt(number, partial(runs[number].step, place))
            for number in turn:
                run = runs.get(number)
                if (
                    run is None
                    or attempt(number, run.close) is None
                    or len(run.state.history) < run.job.schedule.epochs
                ):
                    continue
                result = attempt(number, partial(run.result, time.monotonic() - began))
                if result is not None:
                    found[number] = result
                    del runs[number]
                    attempt(number, partial(done, number, result))
            if turn and (lines := [f"{n}: {_line(runs[n].state.history[-1])}" for n in turn if n in runs]):
                say(f"{time.monotonic() - began:.1f} s; " + "; ".join(lines))
            if over or stop():
                for number in list(runs):
                    after = len(runs[number].state.history)
                    found[number] = TrainingError(
                        f"the time was over after epoch {after} of {runs[number].job.schedule.epochs}; give it more, "
                        "or train fewer at once"
                    )
                    runs.pop(number).stop_reading()
    finally:
        for run in runs.values():
            run.stop_reading()
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


def _line(epoch: Epoch) -> str:
    return f"epoch {epoch.epoch} loss {epoch.total:.3f} validation {epoch.validation_accuracy:.4f}"


def history_text(history: Sequence[Epoch]) -> str:
    """The content of a ``history.jsonl``: a line an epoch."""
    return "".join(json.dumps(asdict(epoch)) + "\n" for epoch in history)


def step_of(objective: Objective, schedule: Schedule, batch_size: int) -> Callable[[], None]:
    """One training step on random images of the model's size, to be called again and again: for timing."""
    device = next(objective.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    model: Any = objective.model
    x = torch.rand(batch_size, *model.input_size, generator=generator, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(model.num_classes, (batch_size,), generator=generator, device=device)
    optimizer = _optimizer(objective, schedule)

    def step() -> None:
        losses: Losses = objective(x, y, objective.draw(x.shape, generator, device))
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        if schedule.clip is not None:
            nn.utils.clip_grad_norm_(objective.parameters(), schedule.clip)
        optimizer.step()

    return step


# --------------------------------------------------------------------------------------------------------------------
# Random numbers that belong to a step


def _generator(device: torch.device | str, seed: int, kind: str, index: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{kind}/{index}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image shifted by up to ``padding`` pixels in both directions over black, and mirrored with probability 1/2.

    One gather for the whole batch [N, C, H, W]; ``generator`` is one of the CPU, so that every device has the same.
    """
    return _Shifts.draw(len(x), generator, padding).apply(x)


@dataclass(frozen=True)
class _Shifts:
    down: Tensor
    right: Tensor
    mirrored: Tensor
    padding: int

    @classmethod
    def draw(cls, n: int, generator: torch.Generator, padding: int = 4) -> _Shifts:
        down, right = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
        return cls(down, right, torch.randint(0, 2, (n,), generator=generator, dtype=torch.bool), padding)

    def each(self, change: Callable[[Tensor], Tensor]) -> _Shifts:
        return _Shifts(change(self.down), change(self.right), change(self.mirrored), self.padding)

    def apply(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        padded = F.pad(x, [self.padding] * 4)
        across = torch.arange(width, device=self.right.device).expand(n, width)
        across = torch.where(self.mirrored[:, None], across.flip(1), across) + self.right[:, None]
        along = torch.arange(height, device=self.down.device) + self.down[:, None]
        image = torch.arange(n, device=self.down.device)[:, None, None]
        index = [i.to(x.device) for i in (image, along[:, :, None], across[:, None, :])]
        # Channels come out last in memory, which is what convolutions want.
        return padded.permute(0, 2, 3, 1)[index[0], index[1], index[2]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Plan:
    """The random choices of an epoch, a row a step: which images, and how they are shifted."""

    rows: Tensor  # int64 [steps, batch]
    shifts: _Shifts | None  # of [steps, batch] each

    @classmethod
    def draw(cls, job: Job, epoch: int, steps: int, batch: int) -> _Plan:
        n = len(job.images)
        order = torch.randperm(n, generator=_generator("cpu", job.seed, "order", epoch))
        rows = order[: steps * batch].view(steps, batch)
        # A set that stays in its files has random numbers of its own.
        if not job.schedule.augment or isinstance(job.images, ImageStream):
            return cls(rows, None)
        drawn = [
            _Shifts.draw(batch, _generator("cpu", job.seed, "crop", step))
            for step in range(epoch * steps, (epoch + 1) * steps)
        ]
        down, right, mirrored = (
            torch.stack([getattr(each, name) for each in drawn]) for name in ("down", "right", "mirrored")
        )
        return cls(rows, _Shifts(down, right, mirrored, drawn[0].padding))

    def each(self, change: Callable[[Tensor], Tensor]) -> _Plan:
        return _Plan(change(self.rows), None if self.shifts is None else self.shifts.each(change))

    def tensors(self) -> list[Tensor]:
        s = self.shifts
        return [self.rows] if s is None else [self.rows, s.down, s.right, s.mirrored]


def _at(t: Tensor, place: int | Tensor) -> Tensor:
    """A row; on the device, where the place is a tensor there."""
    return t[place] if isinstance(place, int) else t.index_select(0, place).squeeze(0)


# --------------------------------------------------------------------------------------------------------------------
# The state of a run


class _State:
    """Where a run is, and the sums of the epoch that it is in."""

    def __init__(self) -> None:
        self.step = 0
        self.sums: dict[str, Tensor] = {}
        self.nonfinite: Tensor | None = None  # the first step whose loss was not finite, or -1
        self.here: Tensor | None = None  # the step, on the device
        self.history: list[Epoch] = []
        self.best, self.best_accuracy = 0, -1.0
        self.best_weights: dict[str, Tensor] = {}
        self.seconds = 0.0

    def add(self, losses: Losses) -> None:
        """Take in a step. In place and on the device: looking at every step would wait for the GPU at every step."""
        values = {"total": losses.total.detach(), "cross_entropy": losses.cross_entropy, "correct": losses.correct}
        values |= {f"penalty/{name}": value for name, value in losses.penalties.items()}
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value, dtype=torch.float64)
            self.sums[name] += value
        if self.nonfinite is None or self.here is None:
            self.here = torch.full_like(losses.correct, self.step, dtype=torch.int64)
            self.nonfinite = torch.full_like(self.here, -1)
        first = (self.nonfinite < 0) & ~values["total"].isfinite()
        self.nonfinite.copy_(torch.where(first, self.here, self.nonfinite))
        self.here += 1

    def clear(self) -> None:
        """Begin again to add, in the same tensors."""
        for value in self.sums.values():
            value.zero_()

    def means(self, fabric: Any, batch: int, steps: int) -> dict[str, Any]:
        sums = {name: float(fabric.all_reduce(value, reduce_op="mean")) for name, value in self.sums.items()}
        local = batch / fabric.world_size
        self.clear()
        return {
            "total": sums["total"] / steps,
            "cross_entropy": sums["cross_entropy"] / steps,
            "penalties": {name.removeprefix("penalty/"): value / steps for name, value in sums.items() if "/" in name},
            "accuracy": sums["correct"] / (steps * local),
        }


class _Placed:
    """Sets of images on the device, and plans of an epoch, that trainings of one seed share."""

    def __init__(self, fabric: Any) -> None:
        self._device = fabric.device
        self._sets: dict[int, tuple[ImageSet, ImageSet]] = {}
        self._plans: dict[tuple[int, bool, bool, int, int, int], tuple[int, _Plan]] = {}

    def images(self, images: ImageSet | ImageStream) -> ImageSet | ImageStream:
        if isinstance(images, ImageStream):
            return images
        if id(images) not in self._sets:
            self._sets[id(images)] = images, images.to(self._device)
        return self._sets[id(images)][1]

    def plan(self, job: Job, epoch: int, steps: int, batch: int) -> _Plan:
        streamed = isinstance(job.images, ImageStream)
        key = (job.seed, job.schedule.augment, streamed, len(job.images), steps, batch)
        if key not in self._plans or self._plans[key][0] != epoch:
            self._plans[key] = epoch, _Plan.draw(job, epoch, steps, batch)
        return self._plans[key][1]


@dataclass(frozen=True)
class _Reading:
    """How images are read that stay in their files."""

    workers: int
    corrupt: Corrupt

    @classmethod
    def of(cls, compute: Compute) -> _Reading:
        return cls(compute.workers or os.cpu_count() or 1, compute.corrupt)


class _Run:
    """A training on a device: what :func:`train` and :func:`train_together` both do."""

    def __init__(self, job: Job, fabric: Any, placed: _Placed, reading: _Reading, *, capture: bool = False) -> None:
        self.job, self.fabric, self._reading = job, fabric, reading
        objective, schedule = job.objective, job.schedule
        self.batch = min(schedule.batch_size, len(job.images))
        self.steps = len(job.images) // self.batch
        self._stream = torch.cuda.Stream(fabric.device) if capture else None  # type: ignore[no-untyped-call]
        if capture:
            objective.to(fabric.device)
        optimizer = _optimizer(objective, schedule, captured=capture)
        # Convolutions and their three derivatives are faster with channels last, on CPU and GPU.
        objective.to(memory_format=torch.channels_last)
        self._wrapped, self.optimizer = fabric.setup(objective, optimizer)
        self._placed = placed
        self._images, self._held = placed.images(job.images), placed.images(job.validation)
        local = self.batch // fabric.world_size
        self._mine = slice(fabric.global_rank * local, (fabric.global_rank + 1) * local)
        self.state = _State()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rates: list[float] = []
        self._plan = _Plan(torch.empty(0), None)
        self._decoded: Generator[tuple[Tensor, Tensor], None, None] | None = None
        self._started = time.monotonic()

    def begin(self, epoch: int) -> None:
        self._started = time.monotonic()
        self._rates = self.job.schedule.rates(epoch, self.steps)
        plan = self._placed.plan(self.job, epoch, self.steps, self.batch)
        if isinstance(self._images, ImageStream):
            self._decoded = self._images.batches(
                plan.rows[self.state.step % self.steps :, self._mine],  # where a stopped run was
                crops=(self.job.seed, epoch) if self.job.schedule.augment else None,
                workers=self._reading.workers,
                corrupt=self._reading.corrupt,
                full=True,
                device=self.fabric.device,
            )
        elif self._graph is None:
            self._plan = plan.each(lambda t: t.to(self.fabric.device))
        else:
            for mine, drawn in zip(self._plan.tensors(), plan.tensors(), strict=True):
                mine.copy_(drawn)
            self._every_rate.copy_(torch.tensor(self._rates))
            self._place.zero_()
        self.job.objective.train()

    def stop_reading(self) -> None:
        """End the threads that decode; the traceback of an error would keep them."""
        if self._decoded is not None:
            self._decoded.close()

    def begin_next(self) -> bool:
        self.begin(len(self.state.history))
        return True

    def step(self, place: int) -> None:
        generator = _generator(self.fabric.device, self.job.seed, "noise", self.state.step)
        noise = self._draw(generator)
        if self._graph is not None:
            if noise is not None:
                self._noise.copy_(noise)
            self._graph.replay()
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self._rates[place]
            self._descend(place, None if noise is None else noise[self._mine])
        self.state.step += 1

    def _draw(self, generator: torch.Generator) -> Tensor | None:
        images = self._images
        shape = images.shape if isinstance(images, ImageStream) else images.images.shape[1:]
        return self.job.objective.draw((self.batch, *shape), generator, self.fabric.device)

    def _descend(self, place: int | Tensor, noise: Tensor | None) -> None:
        """Nothing here waits for the device, so that all of it can be captured."""
        x, y = self._batch_at(place)
        losses: Losses = self._wrapped(x, y, noise)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(losses.total)
        if (clip := self.job.schedule.clip) is not None:
            self.fabric.clip_gradients(self._wrapped, self.optimizer, max_norm=clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.state.add(losses)

    def _batch_at(self, place: int | Tensor) -> tuple[Tensor, Tensor]:
        if self._decoded is not None:
            return next(self._decoded)
        assert isinstance(self._images, ImageSet)
        rows = _at(self._plan.rows, place)[self._mine]
        x = self._images.images[rows]
        if self._plan.shifts is not None:
            x = self._plan.shifts.each(lambda t: _at(t, place)[self._mine]).apply(x)
        return x, self._images.labels[rows]

    def on_its_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def capture(self) -> None:
        """On a GPU: make a CUDA graph of the step. What it reads and writes stays where it is from now on."""
        if self._stream is None:
            return
        objective, device = self.job.objective, self.fabric.device
        objective.train()
        self._plan = self._placed.plan(self.job, 0, self.steps, self.batch).each(lambda t: t.to(device))
        self._every_rate = torch.zeros(self.steps, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate
        drawn = self._draw(torch.Generator(device).manual_seed(0))
        noise = None if drawn is None else drawn.contiguous(memory_format=torch.channels_last).clone()
        if noise is not None:
            self._noise = noise

        def step() -> None:
            self._rate.copy_(_at(self._every_rate, self._place))
            self._descend(self._place, noise)
            self._place += 1

        initial = {name: value.clone() for name, value in objective.state_dict().items()}
        torch.cuda.synchronize(device)
        cudnn, chooses = torch.backends.cudnn, torch.backends.cudnn.benchmark
        graph = torch.cuda.CUDAGraph()
        try:
            cudnn.benchmark = True  # the first steps try its algorithms, the graph keeps the fastest
            for _ in range(3):
                step()
                self._place.zero_()  # an epoch may have fewer steps than are tried here
            torch.cuda.synchronize(device)
            with torch.cuda.graph(graph, stream=self._stream):
                step()
        finally:
            cudnn.benchmark = chooses
        # The first steps were none of the training's.
        objective.load_state_dict(initial)
        for values in self.optimizer.state.values():
            for value in values.values():
                value.zero_()
        self.state.clear()
        assert self.state.nonfinite is not None
        assert self.state.here is not None
        self.state.nonfinite.fill_(-1)
        self.state.here.zero_()
        torch.cuda.synchronize(device)
        self._graph = graph

    def refuse_nonfinite(self) -> None:
        step = -1 if self.state.nonfinite is None else int(self.state.nonfinite)
        if step >= 0:
            epoch, place = divmod(step, self.steps)
            rate = self.job.schedule.rates(epoch, self.steps)[place]
            raise TrainingError(
                f"the loss of {type(self.job.objective).__name__} is not finite at step {step + 1} (epoch {epoch + 1});"
                f" lower the learning rate of {rate:g} or the objective's weights"
            )

    def close(self) -> Epoch:
        """Enter an epoch into the history; remember the weights, where they are the best ones."""
        self.refuse_nonfinite()
        self.stop_reading()
        state, schedule, model = self.state, self.job.schedule, self.job.objective.model
        epoch = len(state.history) + 1
        measured = epoch == schedule.epochs or epoch % self.job.measure_every == 0
        loss, accuracy = _validate(model, self._held, self._reading)
        last = Epoch(
            epoch=epoch,
            learning_rate=self._rates[-1],
            **state.means(self.fabric, self.batch, self.steps),
            validation_loss=loss,
            validation_accuracy=accuracy,
            alignment=_alignment(model, self._held, self._reading) if measured else None,
            seconds=round(time.monotonic() - self._started, 3),
        )
        state.history.append(last)
        if accuracy > state.best_accuracy:
            state.best, state.best_accuracy, state.best_weights = epoch, accuracy, _weights(model)
        return last

    def result(self, seconds: float) -> TrainingResult:
        self.job.objective.eval()
        return TrainingResult(
            history=tuple(self.state.history),
            best=self.state.best,
            weights=self.state.best_weights,
            last=_weights(self.job.objective.model),
            seconds=round(seconds, 3),
        )


class _Keeper:
    """Writes and reads what a run needs to go on."""

    def __init__(
        self,
        folder: Path | None,
        fabric: Any,
        objective: Objective,
        optimizer: Any,
        every: float,
        unreadable: Sequence[dict[str, str]],
    ) -> None:
        self.folder, self.fabric, self.objective, self.optimizer = folder, fabric, objective, optimizer
        self._unreadable = unreadable
        self.every, self._last = every, time.monotonic()
        if folder is not None and fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)

    def due(self) -> bool:
        if self.folder is None:
            return False
        # All processes save, or none: the first one's clock decides.
        return bool(self.fabric.broadcast(time.monotonic() - self._last >= self.every))

    def save(self, state: _State, began: float) -> None:
        self._last = time.monotonic()
        if self.folder is None:
            return
        sums = {name: self.fabric.all_gather(value).reshape(-1).cpu() for name, value in state.sums.items()}
        if self.fabric.is_global_zero:
            content = {
                "run": self._run,
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": state.step,
                "sums": sums,
                "history": [asdict(epoch) for epoch in state.history],
                "best": (state.best, state.best_accuracy, state.best_weights),
                "unreadable": [dict(each) for each in self._unreadable],
                "seconds": state.seconds + time.monotonic() - began,
            }
            path = self.folder / "checkpoint.pt"

            def write(file: IO[bytes]) -> None:
                try:
                    torch.save(content, file)
                except RuntimeError as error:  # what the library makes of an error of the disk
                    raise OSError(f"{path} cannot be written: {one_line(error)}") from None

            keep_bytes(path, write)
        self.fabric.barrier()

    def resume(
        self, schedule: Schedule, seed: int, images: ImageSet | ImageStream, validation: ImageSet | ImageStream
    ) -> _State:
        """The state to go on from; a fresh one where there is no checkpoint, or a damaged one."""
        described = [schedule.model_dump(mode="json"), seed]
        described += [each.provenance["sha256"] for each in (images, validation)]
        # With the layers of its network.
        described += [type(self.objective).__name__, repr(self.objective)]
        self._run = json.dumps([*described, self.fabric.world_size, type(self.fabric._precision).__name__])
        state = _State()
        path = None if self.folder is None else self.folder / "checkpoint.pt"
        if path is None or not path.exists():
            return state
        whole = kept_bytes(path)
        try:
            # Of a file that was altered: whose it is. The reader itself would not see a changed number.
            found = torch.load(path if whole is None else BytesIO(whole), map_location="cpu", weights_only=True)
            ours = isinstance(found, dict) and found.get("run") == self._run
        except Exception:  # whatever a torn file makes the reader raise
            whole, ours = None, True
        if not ours:
            raise ValueError(
                f"{path} belongs to another objective, network, schedule, seed, data or number of processes; choose "
                "another folder, or delete it"
            )
        if whole is None:
            logging.getLogger("robattr").warning("%s is not what was kept: the training begins again", path)
            return state
        self.objective.load_state_dict(found["objective"])
        self.optimizer.load_state_dict(found["optimizer"])
        state.step = found["step"]
        device, rank = self.fabric.device, self.fabric.global_rank
        state.sums = {name: value[rank].to(device) for name, value in found["sums"].items()}
        state.history = [Epoch(**epoch) for epoch in found["history"]]
        state.best, state.best_accuracy, state.best_weights = found["best"]
        for mine, known in zip(self._unreadable, found.get("unreadable", []), strict=False):
            mine.update(known)
        state.seconds = found["seconds"]
        return state

    def write_history(self, history: Sequence[Epoch]) -> None:
        if self.folder is None or not self.fabric.is_global_zero:
            return
        write_text(self.folder / "history.jsonl", history_text(history))


def _fabric(compute: Compute) -> Any:
    from lightning_fabric import Fabric

    fabric = Fabric(
        accelerator=compute.accelerator,
        devices=compute.devices,
        num_nodes=compute.num_nodes,
        strategy=compute.strategy,
        precision=compute.precision,
    )
    fabric.launch()
    return fabric


def _optimizer(objective: nn.Module, schedule: Schedule, *, captured: bool = False) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if schedule.optimizer == "adam" else torch.optim.AdamW
    # One kernel, whose rate and count of steps lie on the device: what a CUDA graph wants.
    options: dict[str, Any] = {"fused": True, "capturable": True} if captured else {}
    return kind(objective.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, **options)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


# --------------------------------------------------------------------------------------------------------------------
# What is seen of a run


def _parts(
    model: nn.Module, held: ImageSet | ImageStream, reading: _Reading, *, size: int, images: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first images and their labels in parts, on the model's device; photographs in smaller ones."""
    n = len(held) if images is None else min(images, len(held))
    if isinstance(held, ImageSet):
        yield from zip(torch.split(held.images[:n], size), torch.split(held.labels[:n], size), strict=True)
        return
    rows = torch.split(torch.arange(n), 64)
    device = next(model.parameters()).device
    # What cannot be read is left out here; in its place another image would count twice.
    for x, y in held.batches(rows, workers=reading.workers, corrupt=reading.corrupt, device=device):
        if len(y):
            yield x, y


def _validate(model: nn.Module, held: ImageSet | ImageStream, reading: _Reading) -> tuple[float, float]:
    """Cross-entropy and accuracy; one wait for the device."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=next(model.parameters()).device)
    n = 0
    with torch.no_grad():
        for x, labels in _parts(model, held, reading, size=500):
            logits = model(x)
            sums[0] += F.cross_entropy(logits, labels, reduction="sum")
            sums[1] += (logits.argmax(1) == labels).sum()
            n += len(labels)
    if not n:
        raise TrainingError(f"none of the {len(held)} validation images of {held.name} can be read; look at its files")
    loss, accuracy = (sums / n).tolist()
    return loss, accuracy


def _alignment(model: nn.Module, held: ImageSet | ImageStream, reading: _Reading, images: int = 256) -> float:
    model.eval()
    generator = torch.Generator().manual_seed(0)
    found = []
    for x, y in _parts(model, held, reading, size=images, images=images):
        noise = uniform(x.shape, generator, torch.device("cpu")).to(x.device)
        near = torch.add(x, noise, alpha=8 / 255)
        found.append(metrics.cosine(gradient(model, x, y), gradient(model, near, y)))
    return float(torch.cat(found).mean())
