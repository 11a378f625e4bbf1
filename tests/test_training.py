"""The training loop: a plain loop's numbers, the same ones after an interruption and on two processes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PATIENCE_S
from interrupted import Stop, StopsAt
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from robattr import data, training
from robattr.data import ImageSet
from robattr.models import Classifier
from robattr.regularizers import CrossEntropy, GradientAlignment, HessianPenalty, Losses, Objective
from robattr.training import (
    Compute,
    Epoch,
    Job,
    Schedule,
    TrainingError,
    TrainingResult,
    crop_and_flip,
    train,
    train_together,
)

CPU = Compute(accelerator="cpu")
STEPS = 3  # an epoch, of the images and the schedule below


def small(norm: bool = False) -> Classifier:
    """A smooth network for digits; with a batch normalization its state is more than its parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, stride=2),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.Softplus(beta=3),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
    return Classifier(network, mean=(0.3,), std=(0.4,), name="small", input_size=(1, 8, 8), num_classes=10)


def load_sets() -> tuple[ImageSet, ImageSet]:
    digits = data.load("digits", "train", limit=164)
    return digits.select(torch.arange(100)), digits.select(torch.arange(100, 164))


@pytest.fixture(scope="module")
def sets() -> tuple[ImageSet, ImageSet]:
    return load_sets()


def schedule(**changes: Any) -> Schedule:
    return Schedule(**({"epochs": 4, "batch_size": 32, "learning_rate": 0.02, "milestones": (2,)} | changes))


def run(objective: Objective, sets: tuple[ImageSet, ImageSet], plan: Schedule, **options: Any) -> TrainingResult:
    return train(objective, *sets, plan, **({"compute": CPU, "progress": False} | options))


def timeless(history: tuple[Epoch, ...]) -> list[Epoch]:
    return [dataclasses.replace(epoch, seconds=0) for epoch in history]


def assert_same(one: TrainingResult, other: TrainingResult) -> None:
    """Everything, to the last bit, except for the time it took."""
    assert timeless(one.history) == timeless(other.history)
    assert one.best == other.best
    for a, b in ((one.weights, other.weights), (one.last, other.last)):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


# --- the numbers ----------------------------------------------------------------------------------------------------


def test_a_rate_goes_up_and_down_once() -> None:
    plan = schedule(policy="one-cycle", warmup=0.25, epochs=4, learning_rate=0.8)
    rates = [rate for epoch in range(4) for rate in plan.rates(epoch, 10)]
    top = max(range(40), key=rates.__getitem__)
    assert top in (9, 10)
    # From the middle of a step: a quarter of 40 steps up, 30 down.
    assert rates[0] == pytest.approx(0.8 * 0.5 / 10, rel=1e-12)
    assert rates[9] == pytest.approx(0.8 * 9.5 / 10, rel=1e-12)
    assert rates[39] == pytest.approx(0.8 * 0.5 / 30, rel=1e-12)
    assert all(a < b for a, b in itertools.pairwise(rates[:10]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert schedule().rates(2, 3) == [schedule().rate(2)] * 3


def test_one_cycle_trains(sets: tuple[ImageSet, ImageSet]) -> None:
    plan = schedule(policy="one-cycle", epochs=20, augment=False)
    result = run(CrossEntropy(small()), sets, plan)
    assert [epoch.learning_rate for epoch in result.history] == [plan.rates(e, STEPS)[-1] for e in range(20)]
    assert result.history[-1].cross_entropy < 0.8 * result.history[0].cross_entropy


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_loop_is_a_plain_one(optimizer: Any, sets: tuple[ImageSet, ImageSet]) -> None:
    """Adam with decayed rates and clipped gradients, in PyTorch alone, on the same order of images."""
    images, validation = sets
    plan = schedule(optimizer=optimizer, augment=False, weight_decay=0.01, clip=0.5)
    result = run(CrossEntropy(small()), sets, plan, seed=5)
    model = small()
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
    descent = kind(model.parameters(), lr=0.02, weight_decay=0.01)
    clipped = 0
    for epoch in range(4):
        descent.param_groups[0]["lr"] = 0.02 if epoch < 2 else 0.002
        order = torch.randperm(100, generator=training._generator("cpu", 5, "order", epoch))
        losses, right = [], 0
        for rows in order[:96].split(32):
            logits = model(images.images[rows])
            loss = F.cross_entropy(logits, images.labels[rows])
            descent.zero_grad()
            loss.backward()
            clipped += bool(nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5)
            descent.step()
            losses.append(loss.item())
            right += int((logits.argmax(1) == images.labels[rows]).sum())
        found = result.history[epoch]
        with torch.no_grad():
            logits = model(validation.images)
        # Twelve steps in float32, whose convolutions may sum in another order.
        assert found.cross_entropy == pytest.approx(sum(losses) / 3, rel=1e-4)
        assert found.total == found.cross_entropy
        assert found.accuracy == right / 96
        assert found.validation_loss == pytest.approx(F.cross_entropy(logits, validation.labels).item(), rel=1e-4)
        assert found.validation_accuracy == (logits.argmax(1) == validation.labels).double().mean().item()
        assert (found.epoch, found.learning_rate) == (epoch + 1, pytest.approx(0.02 if epoch < 2 else 0.002))
    assert 0 < clipped < 12
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result.last[name], value, rtol=1e-3, atol=1e-5)


def test_penalties_are_in_the_history(sets: tuple[ImageSet, ImageSet]) -> None:
    result = run(GradientAlignment(small(), l2=0.5, cosine=2.0), sets, schedule(augment=False))
    assert len(result.history) == 4
    for epoch in result.history:
        assert epoch.penalties.keys() == {"l2", "cosine"}
        total = epoch.cross_entropy + 0.5 * epoch.penalties["l2"] + 2 * epoch.penalties["cosine"]
        assert epoch.total == pytest.approx(total, rel=1e-5)
        assert epoch.alignment is not None
        assert 0 < epoch.alignment <= 1
    assert result.history[-1].cross_entropy < result.history[0].cross_entropy
    assert math.fsum(epoch.seconds for epoch in result.history) <= result.seconds + 0.01


def test_the_seed_decides(sets: tuple[ImageSet, ImageSet]) -> None:
    plan = schedule(epochs=2)
    one, same, other = (run(GradientAlignment(small()), sets, plan, seed=seed) for seed in (1, 1, 2))
    assert_same(one, same)
    assert not torch.equal(one.last["network.4.weight"], other.last["network.4.weight"])


def test_global_random_numbers_are_neither_used_nor_moved(sets: tuple[ImageSet, ImageSet]) -> None:
    torch.manual_seed(1)
    one = run(HessianPenalty(small()), sets, schedule(epochs=1))
    first = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(first, torch.rand(3))
    assert_same(one, run(HessianPenalty(small()), sets, schedule(epochs=1)))


# --- several at once -----------------------------------------------------------------------------------------------


def test_trainings_together_are_those_alone(sets: tuple[ImageSet, ImageSet]) -> None:
    """Objectives with and without noise, two seeds, other numbers of epochs and steps, batch normalization."""
    makers = [
        lambda: (CrossEntropy(small(norm=True)), schedule(augment=False), 1),
        lambda: (GradientAlignment(small()), schedule(epochs=2, optimizer="adamw"), 2),
        lambda: (HessianPenalty(small()), schedule(batch_size=20, policy="one-cycle", warmup=0.3), 1),
    ]
    alone = []
    for make in makers:
        objective, plan, seed = make()
        alone.append(run(objective, sets, plan, seed=seed, measure_every=2))
    jobs = [
        Job(objective, *sets, plan, seed=seed, measure_every=2) for objective, plan, seed in (make() for make in makers)
    ]
    told: dict[int, TrainingResult] = {}
    lines: list[str] = []
    together = train_together(jobs, compute=CPU, done=told.__setitem__, say=lines.append)
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert isinstance(other, TrainingResult)
        assert_same(one, other)
        assert told[number] is other
    assert list(told) == [1, 0, 2]  # in the order in which they were finished
    assert len(lines) >= 4


def test_one_that_fails_leaves_the_others(sets: tuple[ImageSet, ImageSet]) -> None:
    images, validation = sets
    broken = Watching(small())
    broken.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("out of something"))  # type: ignore[method-assign]
    jobs = [
        Job(CrossEntropy(small()), images, validation, schedule(learning_rate=1e30, clip=None)),
        Job(broken, images, validation, schedule()),
        Job(CrossEntropy(small()), images, validation, schedule(), seed=4),
    ]
    first, second, third = train_together(jobs, compute=CPU)
    assert isinstance(first, TrainingError)
    assert "CrossEntropy is not finite at step" in str(first)
    assert isinstance(second, RuntimeError)
    assert isinstance(third, TrainingResult)
    assert_same(third, run(CrossEntropy(small()), sets, schedule(), seed=4))


def test_time_that_is_over_ends_what_goes_on(sets: tuple[ImageSet, ImageSet]) -> None:
    jobs = [Job(CrossEntropy(small()), *sets, schedule(epochs=epochs)) for epochs in (1, 4)]
    answers = iter([False, True])
    first, second = train_together(jobs, compute=CPU, stop=lambda: next(answers))
    assert isinstance(first, TrainingResult)
    assert isinstance(second, TrainingError)
    assert str(second).startswith("the time was over after epoch 2 of 4")


def test_time_that_is_over_within_an_epoch_keeps_what_is_finished(
    sets: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_ASK_SECONDS", 0.0)
    # Of 3 and of 100 steps an epoch: when the question comes the sixth time, the short one's epoch is done.
    long = Watching(small())
    jobs = [
        Job(CrossEntropy(small()), *sets, schedule(epochs=1)),
        Job(long, *sets, schedule(epochs=1, batch_size=1)),
        Job(CrossEntropy(small()), *sets, schedule(epochs=2)),
    ]
    answers = iter([*[False] * 5, True])
    first, second, third = train_together(jobs, compute=CPU, stop=lambda: next(answers))
    assert isinstance(first, TrainingResult)
    assert_same(first, run(CrossEntropy(small()), sets, schedule(epochs=1)))
    assert str(second).startswith("the time was over after epoch 0 of 1")
    assert str(third).startswith("the time was over after epoch 1 of 2")
    assert len(long.seen) == 5


def test_steps_before_a_capture_stay_within_an_epoch(
    sets: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, where a graph that is captured is a step that is done."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    fabric = training._fabric(CPU)
    job = Job(CrossEntropy(small()), *sets, schedule(batch_size=100))
    one = training._Run(job, fabric, training._Placed(fabric), training._Reading.of(CPU))
    assert one.steps == 1
    before = {name: value.clone() for name, value in job.objective.state_dict().items()}
    monkeypatch.setattr(one, "_stream", "stream")
    one.capture()
    assert all(torch.equal(value, before[name]) for name, value in job.objective.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [CrossEntropy, GradientAlignment, HessianPenalty], ids=lambda make: make.__name__)
def test_a_captured_step_is_the_step(make: Any, sets: tuple[ImageSet, ImageSet]) -> None:
    """On a GPU; sums of float32 in another order there, so equal only to some digits after three epochs."""
    gpu = Compute(accelerator="cuda")
    plan = schedule(epochs=3, learning_rate=1e-3)
    alone = run(make(small()), sets, plan, compute=gpu)
    (together,) = train_together([Job(make(small()), *sets, plan)], compute=gpu)
    assert isinstance(together, TrainingResult)
    for one, other in zip(alone.history, together.history, strict=True):
        assert other.total == pytest.approx(one.total, rel=1e-3)
        assert other.learning_rate == one.learning_rate


class Watching(CrossEntropy):
    """Keeps the labels of every batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
        self.seen.append(y.clone())
        return super().forward(x, y, noise)


def test_a_last_batch_that_is_not_full_is_left_out(sets: tuple[ImageSet, ImageSet]) -> None:
    images = dataclasses.replace(
        sets[0], labels=torch.arange(100), class_names=tuple(map(str, range(100))), provenance={}
    )
    model = small()
    model.network[4] = nn.Linear(64, 100)
    objective = Watching(model)
    run(objective, (images, sets[1]), schedule(epochs=2))
    assert [len(y) for y in objective.seen] == [32] * 6
    epochs = torch.cat(objective.seen).view(2, 96)
    assert all(len(rows.unique()) == 96 for rows in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    # A batch larger than the set is the set.
    objective = Watching(small())
    run(objective, sets, schedule(epochs=1, batch_size=256))
    assert [len(y) for y in objective.seen] == [100]


def test_the_best_epoch_is_the_first_with_the_highest_validation_accuracy(
    sets: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    after_two = run(CrossEntropy(small()), sets, schedule(epochs=2)).last
    accuracies = iter([0.2, 0.5, 0.5, 0.3])
    monkeypatch.setattr(training, "_validate", lambda model, held, reading: (1.0, next(accuracies)))
    result = run(CrossEntropy(small()), sets, schedule())
    assert result.best == 2
    assert all(torch.equal(result.weights[name], value) for name, value in after_two.items())
    assert not torch.equal(result.last["network.4.weight"], after_two["network.4.weight"])


def test_the_best_weights_have_the_accuracy_of_the_history(sets: tuple[ImageSet, ImageSet]) -> None:
    result = run(CrossEntropy(small(norm=True)), sets, schedule(learning_rate=0.1))
    accuracies = [epoch.validation_accuracy for epoch in result.history]
    assert result.best == 1 + accuracies.index(max(accuracies))
    model = small(norm=True).eval()
    for weights, accuracy in ((result.weights, max(accuracies)), (result.last, accuracies[-1])):
        model.load_state_dict(weights)
        with torch.no_grad():
            right = model(sets[1].images).argmax(1) == sets[1].labels
        assert right.double().mean().item() == accuracy


def test_the_alignment_is_measured_as_often_as_asked(sets: tuple[ImageSet, ImageSet]) -> None:
    result = run(CrossEntropy(small()), sets, schedule(epochs=5), measure_every=2)
    assert [epoch.alignment is not None for epoch in result.history] == [False, True, False, True, True]
    model = small()
    model.load_state_dict(result.last)
    noise = 2 * torch.rand(sets[1].images.shape, generator=torch.Generator().manual_seed(0)) - 1
    gradients = []
    for x in (sets[1].images, sets[1].images + 8 / 255 * noise):
        z = x.requires_grad_()
        gradients.append(torch.autograd.grad(model(z).gather(1, sets[1].labels[:, None]).sum(), z)[0].flatten(1))
        z.requires_grad_(False)
    assert result.history[-1].alignment == pytest.approx(F.cosine_similarity(*gradients).mean().item(), abs=1e-5)


def test_bfloat16_leaves_weights_in_float32(sets: tuple[ImageSet, ImageSet]) -> None:
    plan = schedule(epochs=2)
    compute = dataclasses.replace(CPU, precision="bf16-mixed")
    types = []
    model = small()
    model.network[0].register_forward_hook(lambda module, given, out: types.append((model.training, out.dtype)))
    result = run(GradientAlignment(model), sets, plan, compute=compute)
    # Only the passes that train are in bfloat16.
    assert set(types) == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(value.dtype == torch.float32 for value in result.last.values())
    plain = run(GradientAlignment(small()), sets, plan)
    # Eight bits of mantissa move a loss by less than a percent.
    assert result.history[0].total == pytest.approx(plain.history[0].total, rel=0.02)
    assert result.history[0].total != plain.history[0].total


def test_nothing_is_said_without_progress(
    sets: tuple[ImageSet, ImageSet], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(GradientAlignment(small()), sets, schedule(epochs=1), folder=tmp_path)
    assert capfd.readouterr() == ("", "")


# --- schedules ------------------------------------------------------------------------------------------------------


def test_rates_of_the_published_schedule() -> None:
    plan = Schedule()
    assert (plan.optimizer, plan.epochs, plan.batch_size, plan.clip, plan.weight_decay) == ("adam", 300, 128, 0.5, 4e-5)
    rates = {0: 1e-3, 99: 1e-3, 100: 1e-4, 149: 1e-4, 150: 1e-5, 299: 1e-5}
    for epoch, rate in rates.items():
        assert plan.rate(epoch) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"milestones": (3, 2)}, "accepted are increasing epochs"),
        ({"milestones": (2, 2)}, "accepted are increasing epochs"),
        ({"milestones": (0,)}, "from 1"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"weight_decay": float("inf")}, "weight_decay"),
        ({"clip": 0.0}, "clip"),
        ({"optimizer": "sgd"}, "adamw"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_impossible_schedules_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        schedule(**change)


def test_a_batch_that_processes_cannot_share_is_refused(
    sets: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning_fabric

    class Three(lightning_fabric.Fabric):
        world_size = 3

    monkeypatch.setattr(lightning_fabric, "Fabric", Three)
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="batch_size is 32; accepted is a multiple of the 3 processes"):
        run(CrossEntropy(model), sets, schedule())
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_loss_that_is_not_finite_is_named(sets: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    class Breaking(Watching):
        def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
            losses = super().forward(x, y, noise)
            return losses._replace(total=losses.total / (0 if len(self.seen) == 5 else 1))

    objective = Breaking(small())
    with pytest.raises(TrainingError) as error:
        run(objective, sets, schedule(), folder=tmp_path)
    said = str(error.value)
    assert said.startswith("the loss of Breaking is not finite at step 5 (epoch 2); lower the learning rate of 0.02")
    assert "\n" not in said
    assert len(objective.seen) == 5
    # What was kept is from before.
    assert all(v.isfinite().all() for v in torch.load(tmp_path / "checkpoint.pt")["objective"].values())


# --- interruptions --------------------------------------------------------------------------------------------------


class Stopping(StopsAt, GradientAlignment):
    pass


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    ("stops", "every", "left"),
    [
        ((8,), 0.0, 12 - 7),  # the middle of the third epoch
        ((10,), 0.0, 12 - 9),  # between two epochs
        ((8,), 1e9, 12 - STEPS),  # only the first epoch is kept by then
        ((5, 2, 3), 0.0, 12 - 4 - 1 - 2),
    ],
    ids=["middle", "between", "seldom", "again and again"],
)
def test_an_interrupted_training_goes_on_to_the_same_bits(
    stops: tuple[int, ...], every: float, left: int, sets: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    plan = schedule()
    whole = run(Stopping(small(norm=True)), sets, plan, seed=3)
    for at in stops:
        stopped = Stopping(small(norm=True))
        stopped.at = at
        with pytest.raises(Stop):
            run(stopped, sets, plan, seed=3, folder=tmp_path, checkpoint_seconds=every)
    torch.rand(17)  # the state of the global generator is no part of it
    resumed = Stopping(small(norm=True))
    result = run(resumed, sets, plan, seed=3, folder=tmp_path, checkpoint_seconds=every)
    assert_same(result, whole)
    assert resumed.steps == left
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [Epoch(**json.loads(line)) for line in lines] == list(result.history)
    # A third call finds it finished.
    third = Stopping(small(norm=True))
    assert_same(run(third, sets, plan, seed=3, folder=tmp_path), whole)
    assert third.steps == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "history.jsonl"]


def script(folder: Path, code: str) -> list[str]:
    path = folder / "script.py"
    path.write_text("import sys\nimport test_training as tests\n" + code)
    return [sys.executable, str(path)]


def environment() -> dict[str, str]:
    """As many threads as here, for the same sums; this folder, for its functions."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": path}


KILLED = """
import time
draw = tests.GradientAlignment.draw
steps = []
def slowly(*given):
    steps.append(1)
    time.sleep(0.05 if len(steps) < 45 else 1e6)
    return draw(*given)
tests.GradientAlignment.draw = slowly
tests.run(
    tests.GradientAlignment(tests.small()), tests.load_sets(), tests.schedule(epochs=30), seed=8, folder=sys.argv[1],
    checkpoint_seconds=0,
)
"""


@pytest.mark.elsewhere
def test_a_killed_training_goes_on_to_the_same_bits(
    sets: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*script(tmp_path, KILLED), str(folder)], env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        # Killed wherever it is, in the 45th of 90 steps at the latest: there it waits for it.
        while not (folder / "checkpoint.pt").exists() and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        said = process.communicate()
    assert (process.returncode, *said) == (-signal.SIGKILL, b"", b"")
    step = torch.load(folder / "checkpoint.pt")["step"]
    assert 0 < step <= 45
    steps, draw = [], GradientAlignment.draw
    monkeypatch.setattr(GradientAlignment, "draw", lambda *given: steps.append(1) or draw(*given))
    plan = schedule(epochs=30)
    result = run(GradientAlignment(small()), sets, plan, seed=8, folder=folder)
    assert len(steps) == 90 - step
    assert_same(result, run(GradientAlignment(small()), sets, plan, seed=8))


TWO = """
import dataclasses, os, torch
folder = sys.argv[1]
compute = tests.Compute(accelerator="cpu", devices=2, strategy="ddp")
for at in (5, 0):
    objective = tests.Stopping(tests.small().double())
    objective.at = at
    try:
        result = tests.run(
            objective, tests.load_sets(), tests.schedule(), seed=6, compute=compute, folder=folder, checkpoint_seconds=0
        )
    except tests.Stop:
        assert at == 5
rank = torch.distributed.get_rank()
assert torch.distributed.get_world_size() == 2
content = {
    "model": objective.model.state_dict(),
    "weights": result.weights,
    "best": result.best,
    "steps": objective.steps,
    "history": [dataclasses.asdict(epoch) for epoch in result.history],
}
torch.save(content, f"{folder}/rank{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.elsewhere
def test_two_processes_do_what_one_does(sets: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    """Double backpropagation under DistributedDataParallel, interrupted once: one process's numbers in float64."""
    folder = tmp_path / "run"
    folder.mkdir()
    done = subprocess.run(
        [*script(tmp_path, TWO), str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    # The processes hold the same parameters, to the last bit.
    for part in ("model", "weights"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items())
    assert (first["best"], first["steps"]) == (second["best"], second["steps"])
    assert first["steps"] == 12 - 4
    single = run(Stopping(small().double()), sets, schedule(), seed=6)
    assert first["best"] == single.best
    for name, value in single.last.items():
        torch.testing.assert_close(first["model"][name], value, rtol=1e-7, atol=1e-9)
    found = [Epoch(**epoch) for epoch in first["history"]]
    for one, two in zip(single.history, found, strict=True):
        assert two.accuracy == one.accuracy
        assert two.validation_accuracy == one.validation_accuracy
        for name in ("total", "cross_entropy", "validation_loss", "alignment"):
            # The cross-entropy of a step is a number in float32.
            assert getattr(two, name) == pytest.approx(getattr(one, name), rel=1e-6)
        assert two.penalties == pytest.approx(one.penalties, rel=1e-6)
    assert timeless(tuple(Epoch(**epoch) for epoch in second["history"])) == timeless(tuple(found))
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert [Epoch(**json.loads(line)) for line in lines] == found


def test_a_checkpoint_of_other_options_is_refused(sets: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    plan = schedule(epochs=1)
    run(GradientAlignment(small(), l2=0.01), sets, plan, folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another objective"):
        run(GradientAlignment(small(), l2=100.0), sets, plan, folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another objective"):
        run(
            GradientAlignment(small(), l2=0.01), sets, plan, folder=tmp_path,
            compute=Compute(accelerator="cpu", precision="bf16-mixed"),
        )  # fmt: skip


def test_a_file_that_is_no_checkpoint_is_refused(sets: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    torch.save({"something": torch.zeros(1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="belongs to another objective"):
        run(CrossEntropy(small()), sets, schedule(epochs=1), folder=tmp_path)


@pytest.mark.parametrize("damage", ["torn", "empty", "text"])
def test_a_damaged_checkpoint_is_a_fresh_start(damage: str, sets: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    plan = schedule(epochs=2)
    whole = run(Stopping(small()), sets, plan, folder=tmp_path)
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes({"torn": content[: len(content) // 2], "empty": b"", "text": b"not a checkpoint"}[damage])
    again = Stopping(small())
    assert_same(run(again, sets, plan, folder=tmp_path), whole)
    assert again.steps == 2 * STEPS
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2


def test_a_checkpoint_of_something_else_is_refused(sets: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    plan = schedule(epochs=2)
    run(CrossEntropy(small()), sets, plan, folder=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for objective, images, other, seed in (
        (CrossEntropy(small()), sets[0], schedule(epochs=3), 0),
        (CrossEntropy(small()), sets[0], schedule(epochs=2, learning_rate=0.1), 0),
        (CrossEntropy(small()), sets[0], plan, 1),
        (CrossEntropy(small()), sets[0].select(torch.arange(99)), plan, 0),
        (CrossEntropy(small()), sets[0].select(torch.arange(100).flip(0)), plan, 0),  # as many, and others
        (CrossEntropy(small(norm=True)), sets[0], plan, 0),
        (GradientAlignment(small()), sets[0], plan, 0),
    ):
        with pytest.raises(ValueError, match="belongs to another objective, network, schedule, seed") as error:
            run(objective, (images, sets[1]), other, seed=seed, folder=tmp_path)
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


# --- crops and flips ------------------------------------------------------------------------------------------------


def possible(x: Tensor, padding: int) -> list[Tensor]:
    """Every crop of one image [C, H, W] over black, and its mirror image."""
    _, height, width = x.shape
    padded = F.pad(x, [padding] * 4)
    crops = [padded[:, i : i + height, j : j + width] for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
    return [*crops, *(crop.flip(2) for crop in crops)]


def test_crops_and_flips_by_hand() -> None:
    """One pixel of padding: all nine shifts of [[1, 2], [3, 4]] and their mirror images appear, and nothing else."""
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    by_hand = torch.tensor(
        [[0, 0, 0, 1], [0, 0, 1, 2], [0, 0, 2, 0], [0, 1, 0, 3], [1, 2, 3, 4], [2, 0, 4, 0], [0, 3, 0, 0], [3, 4, 0, 0],
         [4, 0, 0, 0]],
        dtype=torch.float32,
    )  # fmt: skip
    by_hand = torch.cat([by_hand, by_hand[:, [1, 0, 3, 2]]])
    assert torch.equal(by_hand, torch.stack(possible(x, 1)).flatten(1))
    n = 3600
    found = crop_and_flip(x.expand(n, 1, 2, 2), torch.Generator().manual_seed(0), padding=1).flatten(1)
    counts = (found[:, None] == by_hand).all(2).sum(0)
    assert counts.sum() == n
    # Each is one of 18 and equally likely: 200 of them, five standard deviations of sqrt(200 * 17 / 18) about that.
    assert (counts - 200).abs().max() < 5 * (200 * 17 / 18) ** 0.5


def test_crops_and_flips_move_pixels_and_do_so_again() -> None:
    x = torch.rand(40, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    found = crop_and_flip(x, torch.Generator().manual_seed(2))
    assert found.shape == x.shape
    for image, moved in zip(x, found, strict=True):
        assert sum(torch.equal(moved, each) for each in possible(image, 4)) == 1
    assert torch.equal(found, crop_and_flip(x, torch.Generator().manual_seed(2)))
    assert not torch.equal(found, crop_and_flip(x, torch.Generator().manual_seed(3)))
    assert torch.equal(crop_and_flip(x, torch.Generator().manual_seed(2), padding=0).sort(3).values, x.sort(3).values)


def test_every_step_has_crops_of_its_own(sets: tuple[ImageSet, ImageSet]) -> None:
    """Of the only image, eight times; without augmentation it is as it is."""

    class Keeping(CrossEntropy):
        def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
            kept.append(x.clone())
            return super().forward(x, y, noise)

    image = sets[0].select([0])
    for augment in (True, False):
        kept: list[Tensor] = []
        run(Keeping(small()), (image, sets[1]), schedule(epochs=8, augment=augment))
        assert len(kept) == 8
        if augment:
            # 162 crops are possible: the same one twice among eight, but not eight times.
            assert len(torch.cat(kept).unique(dim=0)) > 4
            for moved in kept:
                assert any(torch.equal(moved[0], each) for each in possible(image.images[0], 4))
        else:
            assert all(torch.equal(batch, image.images) for batch in kept)
