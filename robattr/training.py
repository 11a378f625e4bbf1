"""Train a classifier by an objective of :mod:`robattr.regularizers`: one loop for a CPU, a GPU or several of them.

Lightning Fabric places the objective and sums its gradients; the loop is here. The whole data set lies on the device,
and crops and flips are one gather a batch. Every random number of a step comes from the seed and the step's own number,
so a run that was stopped goes on to exactly the numbers that it would have had, and several processes together use the
draws that one would use. The test set is not seen here: weights are selected on a validation set.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from robattr import metrics
from robattr._files import write_text
from robattr.attributions import gradient
from robattr.data import ImageSet
from robattr.regularizers import Losses, Objective, uniform

__all__ = ["Compute", "Epoch", "Schedule", "TrainingError", "TrainingResult", "crop_and_flip", "step_of", "train"]


class TrainingError(RuntimeError):
    """A training that cannot go on; the message is one line and names the way out."""


class Schedule(BaseModel):
    """How to descend. The defaults are those of Joo et al. 2023 for LeNet on CIFAR-10."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(4e-5, ge=0)
    epochs: int = Field(300, ge=1)
    milestones: tuple[int, ...] = Field((100, 150), description="epochs after which the rate is multiplied by 0.1")
    batch_size: int = Field(128, ge=1)
    clip: float | None = Field(0.5, gt=0, description="largest norm of the gradient")
    augment: bool = Field(True, description="random crop (4 pixels of padding) and horizontal flip")

    @model_validator(mode="after")
    def _ordered(self) -> Schedule:
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise ValueError(f"milestones are {self.milestones}; accepted are increasing epochs, from 1")
        return self

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.learning_rate * 0.1 ** sum(epoch >= m for m in self.milestones)


@dataclass(frozen=True)
class Compute:
    """Where to train; what Lightning Fabric takes.

    ``precision`` is ``32-true`` or ``bf16-mixed``. In the latter only the network's passes are in bfloat16: losses,
    attribution distances and weights stay in float32.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"


@dataclass(frozen=True)
class Epoch:
    """One line of the history; losses are means over the epoch's steps.

    Attributes:
        epoch: counted from 1.
        learning_rate: of its steps.
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
    images: ImageSet,
    validation: ImageSet,
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
        images: training set. A last batch that is not full is left out; each epoch has another order.
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
        TrainingError: a loss that is not finite; step, epoch and objective are named.
    """
    from lightning_fabric import Fabric

    compute = compute or Compute()
    fabric = Fabric(
        accelerator=compute.accelerator,
        devices=compute.devices,
        num_nodes=compute.num_nodes,
        strategy=compute.strategy,
        precision=compute.precision,
    )
    fabric.launch()
    batch = min(schedule.batch_size, len(images))
    if batch % fabric.world_size:
        raise ValueError(f"batch_size is {batch}; accepted is a multiple of the {fabric.world_size} processes")
    optimizer = _optimizer(objective, schedule)
    # Convolutions and their three derivatives are faster with channels last, on CPU and GPU.
    objective.to(memory_format=torch.channels_last)
    wrapped, optimizer = fabric.setup(objective, optimizer)
    keeper = _Keeper(None if folder is None else Path(folder), fabric, objective, optimizer, checkpoint_seconds)
    state = keeper.resume(schedule, seed, len(images))

    x, y = images.images.to(fabric.device), images.labels.to(fabric.device)
    held = validation.to(fabric.device)
    local = batch // fabric.world_size
    mine = slice(fabric.global_rank * local, (fabric.global_rank + 1) * local)
    steps = len(images) // batch
    check = 1 if fabric.device.type == "cpu" else 20
    bar = tqdm(
        total=steps * schedule.epochs,
        initial=state.step,
        desc=type(objective).__name__,
        unit="step",
        disable=None if progress and fabric.is_global_zero else True,
    )
    began = time.monotonic()
    with bar:
        for epoch in range(state.step // steps, schedule.epochs):
            started = time.monotonic()
            rate = schedule.rate(epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            order = torch.randperm(len(images), generator=_generator("cpu", seed, "order", epoch))
            objective.train()
            for place in range(state.step % steps, steps):
                rows = order[place * batch : (place + 1) * batch][mine].to(fabric.device)
                inputs = x[rows]
                if schedule.augment:
                    shifts = _Shifts.draw(batch, _generator("cpu", seed, "crop", state.step))
                    inputs = shifts.select(mine).apply(inputs)
                noise = objective.draw(
                    (batch, *x.shape[1:]), _generator(fabric.device, seed, "noise", state.step), fabric.device
                )
                losses: Losses = wrapped(inputs, y[rows], None if noise is None else noise[mine])
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(losses.total)
                if schedule.clip is not None:
                    fabric.clip_gradients(wrapped, optimizer, max_norm=schedule.clip, error_if_nonfinite=False)
                optimizer.step()
                state.add(losses)
                bar.update()
                if state.step % check == 0 or place + 1 == steps:
                    state.refuse_nonfinite(objective, epoch, rate)
                if place + 1 < steps and keeper.due():
                    keeper.save(state, began)
            measured = epoch + 1 == schedule.epochs or (epoch + 1) % measure_every == 0
            loss, accuracy = _validate(objective.model, held)
            means = state.means(fabric, batch, steps)
            state.history.append(
                Epoch(
                    epoch=epoch + 1,
                    learning_rate=rate,
                    **means,
                    validation_loss=loss,
                    validation_accuracy=accuracy,
                    alignment=_alignment(objective.model, held) if measured else None,
                    seconds=round(time.monotonic() - started, 3),
                )
            )
            if accuracy > state.best_accuracy:
                state.best, state.best_accuracy, state.best_weights = epoch + 1, accuracy, _weights(objective.model)
            bar.set_postfix(loss=f"{means['total']:.3f}", validation=f"{accuracy:.3f}", refresh=False)
            keeper.write_history(state.history)
            if epoch == 0 or epoch + 1 == schedule.epochs or keeper.due():
                keeper.save(state, began)
    objective.eval()
    return TrainingResult(
        history=tuple(state.history),
        best=state.best,
        weights=state.best_weights,
        last=_weights(objective.model),
        seconds=round(state.seconds + time.monotonic() - began, 3),
    )


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

    def select(self, rows: slice) -> _Shifts:
        return _Shifts(self.down[rows], self.right[rows], self.mirrored[rows], self.padding)

    def apply(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        padded = F.pad(x, [self.padding] * 4)
        across = torch.arange(width).expand(n, width)
        across = torch.where(self.mirrored[:, None], across.flip(1), across) + self.right[:, None]
        along = torch.arange(height) + self.down[:, None]
        image = torch.arange(n)[:, None, None]
        index = [i.to(x.device) for i in (image, along[:, :, None], across[:, None, :])]
        # Channels come out last in memory, which is what convolutions want.
        return padded.permute(0, 2, 3, 1)[index[0], index[1], index[2]].permute(0, 3, 1, 2)


# --------------------------------------------------------------------------------------------------------------------
# The state of a run


class _State:
    """Where a run is, and the sums of the epoch that it is in."""

    def __init__(self) -> None:
        self.step = 0
        self.sums: dict[str, Tensor] = {}
        self.nonfinite: Tensor | None = None  # the first step whose loss was not finite
        self.history: list[Epoch] = []
        self.best, self.best_accuracy = 0, -1.0
        self.best_weights: dict[str, Tensor] = {}
        self.seconds = 0.0

    def add(self, losses: Losses) -> None:
        values = {"total": losses.total.detach(), "cross_entropy": losses.cross_entropy, "correct": losses.correct}
        values |= {f"penalty/{name}": value for name, value in losses.penalties.items()}
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value.double() if name in self.sums else value.double()
        # Kept on the device: looking at every step would wait for the GPU at every step.
        here = torch.where(values["total"].isfinite(), -1, self.step)
        self.nonfinite = here if self.nonfinite is None else torch.where(self.nonfinite < 0, here, self.nonfinite)
        self.step += 1

    def refuse_nonfinite(self, objective: Objective, epoch: int, rate: float) -> None:
        step = -1 if self.nonfinite is None else int(self.nonfinite)
        if step >= 0:
            raise TrainingError(
                f"the loss of {type(objective).__name__} is not finite at step {step + 1} (epoch {epoch + 1}); "
                f"lower the learning rate of {rate:g} or the objective's weights"
            )

    def means(self, fabric: Any, batch: int, steps: int) -> dict[str, Any]:
        sums = {name: float(fabric.all_reduce(value, reduce_op="mean")) for name, value in self.sums.items()}
        local = batch / fabric.world_size
        self.sums = {}
        return {
            "total": sums["total"] / steps,
            "cross_entropy": sums["cross_entropy"] / steps,
            "penalties": {name.removeprefix("penalty/"): value / steps for name, value in sums.items() if "/" in name},
            "accuracy": sums["correct"] / (steps * local),
        }


class _Keeper:
    """Writes and reads what a run needs to go on."""

    def __init__(self, folder: Path | None, fabric: Any, objective: Objective, optimizer: Any, every: float) -> None:
        self.folder, self.fabric, self.objective, self.optimizer = folder, fabric, objective, optimizer
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
                "seconds": state.seconds + time.monotonic() - began,
            }
            temporary = self.folder / f".checkpoint.{id(self)}"
            try:
                torch.save(content, temporary)
                temporary.replace(self.folder / "checkpoint.pt")
            finally:
                temporary.unlink(missing_ok=True)
        self.fabric.barrier()

    def resume(self, schedule: Schedule, seed: int, n: int) -> _State:
        """The state to go on from; a fresh one where there is no checkpoint, or a damaged one."""
        described = [schedule.model_dump(mode="json"), seed, n]
        described += [type(self.objective).__name__, self.objective.extra_repr()]
        self._run = json.dumps([*described, self.fabric.world_size, type(self.fabric._precision).__name__])
        state = _State()
        path = None if self.folder is None else self.folder / "checkpoint.pt"
        if path is None or not path.exists():
            return state
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # whatever a torn file makes the reader raise
            return state
        if not isinstance(found, dict) or found.get("run") != self._run:
            raise ValueError(
                f"{path} belongs to another objective, schedule, seed, data or number of processes; choose another "
                "folder, or delete it"
            )
        self.objective.load_state_dict(found["objective"])
        self.optimizer.load_state_dict(found["optimizer"])
        state.step = found["step"]
        device, rank = self.fabric.device, self.fabric.global_rank
        state.sums = {name: value[rank].to(device) for name, value in found["sums"].items()}
        state.history = [Epoch(**epoch) for epoch in found["history"]]
        state.best, state.best_accuracy, state.best_weights = found["best"]
        state.seconds = found["seconds"]
        return state

    def write_history(self, history: Sequence[Epoch]) -> None:
        if self.folder is None or not self.fabric.is_global_zero:
            return
        write_text(self.folder / "history.jsonl", history_text(history))


def _optimizer(objective: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if schedule.optimizer == "adam" else torch.optim.AdamW
    return kind(objective.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


# --------------------------------------------------------------------------------------------------------------------
# What is seen of a run


def _batches(n: int, size: int = 500) -> Iterator[slice]:
    return (slice(i, i + size) for i in range(0, n, size))


def _validate(model: nn.Module, held: ImageSet) -> tuple[float, float]:
    model.eval()
    loss = correct = 0.0
    with torch.no_grad():
        for rows in _batches(len(held)):
            logits, labels = model(held.images[rows]), held.labels[rows]
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
    return loss / len(held), correct / len(held)


def _alignment(model: nn.Module, held: ImageSet, images: int = 256) -> float:
    model.eval()
    x, y = held.images[:images], held.labels[:images]
    noise = uniform(x.shape, torch.Generator().manual_seed(0), torch.device("cpu")).to(x.device)
    near = torch.add(x, noise, alpha=8 / 255)
    return float(metrics.cosine(gradient(model, x, y), gradient(model, near, y)).mean())
