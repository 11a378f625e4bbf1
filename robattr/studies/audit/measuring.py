"""Everything that an audit measures, within its minutes: parts, their order, and the record that they become."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robattr import attacks
from robattr._files import altered, free
from robattr.data import ImageSet
from robattr.models import Classifier
from robattr.studies.audit.parts import Parts
from robattr.studies.audit.pieces import (
    LEVELS,
    MEMORY,
    PATHS,
    POINTS,
    Bench,
    State,
    attacked,
    bound,
    clean_maps,
    floored,
    sane,
    transferred,
    under_noise,
)
from robattr.studies.audit.planning import (
    MAIN,
    SMALLER,
    Clock,
    Cost,
    OutOfTime,
    Plan,
    make_plan,
    sanity_extra,
    top_pixels,
)
from robattr.studies.audit.recording import record
from robattr.studies.audit.results import Audit, Audited
from robattr.studies.runs import code_digest, state_digest

__all__ = ["audit"]

Say = Callable[[str], None]
_MOST_STARTS = 6


@dataclass(frozen=True)
class _Task:
    """A part that may be measured: its name, what it is in words, and about how many seconds it takes."""

    name: str
    words: str
    seconds: float
    run: Callable[[], tuple[dict[str, Any], dict[str, Tensor]]]
    extra: bool = False  # beyond the plan


def audit(
    model: Classifier,
    images: ImageSet,
    config: Audit,
    folder: Path | str,
    *,
    say: Say = lambda line: None,
    started: float | None = None,
    now: Callable[[], float] = time.monotonic,
    device: torch.device | str = "cpu",
    source: dict[str, Any] | None = None,
) -> Audited:
    """Audit the maps of a network: how far attacks turn them, what noise does, whether they are about the network.

    Images that are classified right are explained; where none is, the predictions are, as they are. The minutes are
    those of this call. What they did not suffice for is not there, and the description says so; what they leave when
    all is done that was planned goes into further restarts. Where the same audit
    was begun in the folder, it goes on; ``KeyboardInterrupt`` ends it with what there is.

    Args:
        model: in evaluation mode.
        images: candidates; the first of them are taken, see :attr:`Audit.most_images`.
        config: methods, minutes, epsilon.
        folder: of the report; it keeps the parts in ``parts/``.
        say: takes lines that say what goes on and how much time is left.
        started: what ``now()`` was when the command began; now by default.
        now: the clock, in seconds. ``time.process_time`` counts what this process computes, not what it waits for.
        device: where to compute.
        source: what is known of where network and pictures are from, for the description.

    Raises:
        ValueError: network and images do not fit each other, or the folder holds another audit; before any work starts.
    """
    began = now() if started is None else started
    clock = Clock(60 * config.minutes, now=now, started=began)
    folder = Path(folder)
    model = model.to(device).eval().requires_grad_(False)
    drawn = images.select(range(min(len(images), config.most_images)))
    _check(model, drawn)
    weights = state_digest(model)
    request = {
        # What a file of code computes may change without its layers and weights.
        "model": [model.name, hashlib.sha256(repr(model).encode()).hexdigest()[:12], weights, *model.code.values()],
        "data": drawn.provenance["sha256"],
        "methods": list(config.methods),
        "minutes": config.minutes,
        "settings": [config.epsilon, config.seed],
    }
    with free(folder / "parts") as mine:
        if not mine:
            raise ValueError(f"{folder} is in use by another audit; wait for it, or name another folder with -o")
        parts = Parts(folder / "parts", request, code_digest(audit))
        run = _Run(model, drawn, config, folder, parts, torch.device(device), clock=clock, say=say)
        stopped = run.measure()
        spent = now() - began
        before = parts.get("spent")
        seconds = spent + (float(before[0]["seconds"]) if before else 0.0)
        parts.put("spent", {"seconds": seconds})
        if (folder / "audit.json").exists():
            for name in altered(folder):
                logging.getLogger("robattr").warning("%s is not what was written: it is made again", folder / name)
        files = {f"SHA-256 of {name}": digest for name, digest in model.code.items()}
        return record(run, stopped, seconds, weights, (source or {}) | files)


def _check(model: Classifier, drawn: ImageSet) -> None:
    _, channels, height, width = drawn.images.shape
    if channels not in (1, 3) or min(height, width) < 7:
        raise ValueError(
            f"images are {channels} x {height} x {width}; an audit takes pictures with 1 or 3 channels of at least 7 x "
            "7 pixels (tables: robattr.attacks.ensemble)"
        )
    model.check_shape(drawn.images)
    if len(drawn.class_names) != model.num_classes:
        raise ValueError(
            f"{drawn.name} has {len(drawn.class_names)} classes and the model has {model.num_classes}; choose a model "
            "that was trained on these classes, or name the folders of ImageNet's classes by their WordNet ids"
        )


@dataclass
class _Run(State):
    """One call of an audit."""

    clock: Clock = field(kw_only=True)
    say: Say = field(kw_only=True)

    def measure(self) -> str | None:
        """Do what there is to do; why it stopped before it was through, or None."""
        # The page takes a little, too.
        reserve = 3 + 0.03 * 60 * self.config.minutes
        clock = Clock(self.clock.left() - reserve, now=self.clock.now)
        stopped = None
        try:
            with _watched(self.model, clock):
                self._prepare(clock)
            assert self.bench is not None
            tasks = list(self._tasks(self.bench))
            open_ = [task for task in tasks if self.parts.get(task.name) is None]
            planned, done = sum(task.seconds for task in open_ if not task.extra), 0.0
            began, slower = clock.now(), 1.0
            for task in open_:
                if clock.left() < 0.5 * slower * task.seconds:
                    stopped = stopped if task.extra else "time"
                    continue  # a shorter one may still fit
                self.say(f"{_minutes(clock.left())} left, {min(done / max(planned, 1e-9), 1):.0%} done: {task.words}")
                try:
                    with _watched(self.model, clock):
                        self.parts.put(task.name, *task.run())
                except OutOfTime:
                    stopped = stopped if task.extra else "time"
                    break
                except ValueError as error:
                    self.parts.put(task.name, {"refused": " ".join(str(error).split())})
                done += task.seconds
                slower = max(0.2, (clock.now() - began) / max(done, 1e-9))
        except OutOfTime:
            stopped = "time"
        except KeyboardInterrupt:
            stopped = "interrupted"
        return stopped

    # ----------------------------------------------------------------------------------------------------------------

    def _prepare(self, clock: Clock) -> None:
        """Predictions, what a first image costs, and the plan that follows."""
        x = self.drawn.images
        part = self.parts.get("subject")
        if part is None:
            self.say(f"{_minutes(clock.left())} left: predictions of {len(x)} images")
            with torch.no_grad():
                logits = torch.cat([self.model(rows.to(self.device)).cpu() for rows in torch.split(x, 8)])
            part = self.parts.put(
                "subject",
                {
                    "prediction": logits.argmax(1).tolist(),
                    "probability": logits.double().softmax(1).amax(1).tolist(),
                    "finite": bool(logits.isfinite().all()),
                },
            )
        if not part[0]["finite"]:
            raise ValueError(f"{self.model.name} has logits that are not finite for these images: look at its weights")
        self.prediction = torch.tensor(part[0]["prediction"])
        right = (self.prediction == self.drawn.labels).nonzero().flatten().tolist()
        self.chosen = right or list(range(len(x)))
        first = self.parts.get("first")
        if first is None:
            first = self.parts.put("first", self._first_image(clock))
        self.costs = {name: Cost(**cost) for name, cost in first[0]["costs"].items()}
        plan = self.parts.get("plan")
        if plan is None:
            made = make_plan(
                self.costs, seconds=clock.left(), images=len(self.chosen), epsilon=self.config.epsilon,
                smaller=self.config.smaller, memory=MEMORY,
            )  # fmt: skip
            plan = self.parts.put("plan", made.model_dump(mode="json"))
        decided = Plan.model_validate(plan[0])
        rows = self.chosen[: decided.images]
        self.bench = Bench(
            model=self.model,
            config=self.config,
            x=x[rows].to(self.device),
            labels=self.prediction[rows].to(self.device),
            k=top_pixels(*x.shape[2:]),
            plan=decided,
            parts=self.parts,
        )

    def _first_image(self, clock: Clock) -> dict[str, Any]:
        index = self.chosen[:1]
        x, y = self.drawn.images[index].to(self.device), self.prediction[index].to(self.device)
        costs: dict[str, Cost] = {}
        walk = partial(
            attacks.iterative_attack, self.model, x, objective=attacks.TopK(top_pixels(*x.shape[2:])),
            epsilon=self.config.epsilon / LEVELS, step=1 / LEVELS,
        )  # fmt: skip
        # The simple gradient first: what a path of many points costs follows from it.
        order = sorted(self.config.methods, key=lambda name: name in PATHS)
        for name in order:
            self.say(f"{_minutes(clock.left())} left: what {name} costs for a first image")
            known = [cost for cost in costs.values() if cost.bytes]
            passes = max(1, MEMORY // max(cost.bytes for cost in known)) if known else 1
            method = bound(name, int(passes))
            try:
                seconds = _seconds(clock, partial(clean_maps, method, self.model, x, y, name))
            except ValueError as error:
                costs[name] = Cost(0.0, refused=" ".join(str(error).split()))
                continue
            steps = [cost.step for cost in known if cost.step is not None]
            if name in PATHS and steps and 2 * POINTS * min(steps) > 0.05 * clock.left():
                costs[name] = Cost(seconds, bytes=known[0].bytes)
                continue
            try:
                with _counted(self.model) as held:
                    walk(attribution=method, iterations=1)
                step = _seconds(clock, lambda method=method: walk(attribution=method, iterations=2)) / 2  # type: ignore[misc]
            except ValueError as error:
                costs[name] = Cost(seconds, bytes=1, attack_refused=" ".join(str(error).split()))
                continue
            costs[name] = Cost(seconds, step, int(1.5 * held[0]))
        return {"costs": {name: dataclasses.asdict(costs[name]) for name in self.config.methods}}

    # ----------------------------------------------------------------------------------------------------------------

    def _tasks(self, bench: Bench) -> Iterator[_Task]:
        """All parts in the order in which they are done: the least of each first."""
        fine = [name for name, cost in self.costs.items() if cost.refused is None]
        own = [name for name in fine if bench.plan.methods[name].attacks]
        # Methods whose own attack is too dear take long in everything: what is least comes first.
        rest = sorted((name for name in fine if name not in own), key=lambda name: self.costs[name].map)
        for name in own:
            yield from self._noise(bench, name)
        for attack in MAIN[:2]:
            for name in own:
                yield from self._attack(bench, name, attack)
        for name in own:
            if SMALLER[0] in bench.plan.methods[name].smaller:
                yield from self._attack(bench, name, SMALLER[0], smaller=True)
        for name in own:
            yield self._sanity(bench, name)
        yield from self._floors(bench, range(1))
        for attack in MAIN[2:]:
            for name in own:
                if attack in bench.plan.methods[name].attacks:
                    yield from self._attack(bench, name, attack)
        for attack in SMALLER[1:]:
            for name in own:
                if attack in bench.plan.methods[name].smaller:
                    yield from self._attack(bench, name, attack, smaller=True)
        for name in rest:
            yield from self._noise(bench, name)
            yield self._sanity(bench, name)
        for name in fine:
            yield from self._transfers(bench, name, own)
        yield from self._floors(bench, range(1, bench.plan.certified_images))
        for name in own:
            for attack in bench.plan.methods[name].attacks[len(MAIN) :]:
                yield from self._attack(bench, name, attack)
        # What is left of the time is spent on what the plan had no room for, and on further restarts.
        for attack in SMALLER if bench.smaller is not None else ():
            for name in own:
                if attack not in bench.plan.methods[name].smaller:
                    yield from self._attack(bench, name, attack, extra=True, smaller=True)
        for attack in MAIN[1:]:
            for name in own:
                if attack not in bench.plan.methods[name].attacks:
                    yield from self._attack(bench, name, attack, extra=True)
        for number in range(2, _MOST_STARTS + 1):
            for name in own:
                if number > bench.plan.methods[name].restarts:
                    for kind in ("top-k", "mass-center"):
                        yield from self._attack(bench, name, f"{kind}-{number}", extra=True)

    def _noise(self, bench: Bench, name: str) -> Iterator[_Task]:
        """Clean maps, and how far those of images with random noise are from them."""
        for i, rows in enumerate(bench.rows(name)):
            n = len(bench.x[rows])
            yield _Task(
                f"noise/{name}/{i}",
                f"{name} under random noise",
                n * self.costs[name].map * (1 + bench.plan.draws * (1 if bench.smaller is None else 2)),
                partial(under_noise, bench, name, rows),
            )

    def _attack(
        self, bench: Bench, name: str, attack: str, extra: bool = False, smaller: bool = False
    ) -> Iterator[_Task]:
        planned = bench.plan.methods[name]
        cost = self.costs[name]
        assert cost.step is not None
        each = cost.map * (planned.signs + 1) if attack == "random-sign" else cost.step * planned.iterations
        for i, rows in enumerate(bench.rows(name)):
            yield _Task(
                f"{'smaller' if smaller else 'attack'}/{name}/{attack}/{i}",
                f"{attack} against {name}{', of smaller changes' if smaller else ''}",
                len(bench.x[rows]) * each,
                partial(attacked, bench, name, attack, rows, i, smaller),
                extra,
            )

    def _transfers(self, bench: Bench, name: str, own: Sequence[str]) -> Iterator[_Task]:
        """What was found for other methods, on this one; all of it where this one has no attack of its own."""
        for i, rows in enumerate(bench.rows(name)):
            n = len(bench.x[rows])
            for other in own:
                if other != name:
                    yield _Task(
                        f"transfer/{name}/{other}/{i}",
                        f"what was found for {other}, on {name}",
                        n * self.costs[name].map * (2 if name in own else len(MAIN)),
                        partial(transferred, bench, name, other, rows, i),
                    )

    def _sanity(self, bench: Bench, name: str) -> _Task:
        cheapest = min(cost.map for cost in self.costs.values() if cost.refused is None)
        each = self.costs[name].map * (bench.plan.stages + 2) + sanity_extra(cheapest)
        return _Task(
            f"sanity/{name}",
            f"is {name} about the network?",
            bench.plan.sanity_images * each,
            partial(sane, bench, name),
        )

    def _floors(self, bench: Bench, images: Iterable[int]) -> Iterator[_Task]:
        first = min((cost.map for cost in self.costs.values() if cost.refused is None), default=0.0)
        for i in images:
            if i < len(bench.x):
                yield _Task(
                    f"floor/{i}",
                    "certified floors of the smoothed gradient",
                    first * (bench.plan.samples + bench.plan.choose),
                    partial(floored, bench, i),
                )


def _minutes(seconds: float) -> str:
    return f"{max(0, int(seconds)) // 60}:{max(0, int(seconds)) % 60:02d}"


def _seconds(clock: Clock, run: Callable[[], object]) -> float:
    """What a call takes; the less of two times, where there is time: the first may prepare what others need not."""
    least = float("inf")
    for _ in range(2):
        began = clock.now()
        run()
        least = min(least, clock.now() - began)
        if least > 0.01 * clock.left():
            break
    return least


@contextmanager
def _watched(model: nn.Module, clock: Clock) -> Iterator[None]:
    """Every pass of the model, and of copies of it that are made in here, looks at the clock."""

    def look(module: nn.Module, args: object) -> None:
        clock.check()

    handle = model.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _counted(model: nn.Module) -> Iterator[list[int]]:
    """Bytes that are held for derivatives at once in here, without the model's own."""
    held = [0]
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own and place not in seen:
            seen.add(place)
            held[0] += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield held
