"""From samples to certificates with a stated probability of failure."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from robattr._files import append_line, write_text
from robattr._rows import parts_of
from robattr.attributions import Attribution, Target, check_target, differentiates, frozen, gradient
from robattr.data import check_images
from robattr.models import Classifier, Output
from robattr.smoothing.certificates import NONE, Method, mean_lower_bound, sampling_error
from robattr.smoothing.eigenvalue import EXACT, Maps, largest_eigenvalue
from robattr.smoothing.noise import Ball, Gaussian, Noise
from robattr.smoothing.sampling import smooth
from robattr.smoothing.spectral import shifted_spread, spread_upper_bound


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is certified of each image, with probability at least 1 - alpha for each.

    Attributes:
        epsilon: [E]; l2 lengths of the perturbation, in units of a [0, 1] image.
        norm: [N] float64; length of the estimate of h(x). 0 where all maps that choose a direction were zero.
        norm_lower: [N] float64; what the length of h(x) is at least.
        spread_upper: [N] float64; what the spread is at most, the largest eigenvalue of the covariance of one map
            (:mod:`robattr.smoothing.spectral`). None where it was not estimated.
        spread: [N] float64; the eigenvalue that this follows from: of the samples, around the mean of those that
            choose. None where it was not estimated.
        expectation: [N, E] float64; lower bound on cos(h(x), h(x + delta)); -1 where it abstains.
        estimates: [N, E] float64; lower bound on the cosine of two estimates of ``samples`` samples each, for a delta
            that was chosen without their noise: what a reader sees. -1 where it abstains.
        samples: of each estimate.
        alpha: probability of failure.
        split: what of alpha each statement takes: ``norm`` and ``spread`` for the expectations, with ``estimate`` and
            ``estimate_moved`` for the estimates.
        noise: the law.
        labels: int64 [N]; the class explained.
    """

    epsilon: tuple[float, ...]
    norm: Tensor
    norm_lower: Tensor
    expectation: Tensor
    estimates: Tensor
    samples: int
    alpha: float
    noise: Noise
    labels: Tensor
    split: dict[str, float]
    spread_upper: Tensor | None = None
    spread: Tensor | None = None

    @property
    def abstains(self) -> Tensor:
        """bool [N, E]; where nothing can be said of the expectation."""
        return self.expectation <= NONE


@differentiates
def certify(
    model: nn.Module,
    x: Tensor,
    target: Target,
    *,
    noise: Noise,
    epsilon: float | Sequence[float],
    samples: int = 10_000,
    choose: int = 1000,
    alpha: float = 0.001,
    attribution: Attribution = gradient,
    method: Method = "tight",
    spectral: bool = True,
    memory: float = 4e9,
    seed: int = 0,
    max_batch: int = 128,
    path: Path | str | None = None,
    progress: bool = False,
) -> Certificate:
    """Certify the normalized, smoothed attribution of each image from samples, or abstain.

    Three statements, each wrong with probability at most alpha / 3, or alpha / 4 where there is a fourth:

    1. ``choose`` samples give a direction u. The projections on u of other, independent ``samples`` lie in [-1, 1],
       and their mean is at most ||h(x)||: a lower confidence bound on it (:func:`mean_lower_bound`) is one on the
       length of h(x). It enters the certificate, at every epsilon alike.
    2. The estimate at x is within :func:`sampling_error` of h, which is an angle.
    3. So is the estimate at x + delta.
    4. For Gaussian noise, unless ``spectral`` is false: the spread is at most :func:`spread_upper_bound` of the largest
       eigenvalue of the mean of ``(g - m)(g - m)'``, over the same ``samples``, with m the mean of those that chose. (A
       union of events needs no independence: samples may serve several.) Where the eigenvalue is bounded by
       :func:`largest_eigenvalue` with random starts, that takes a tenth of this share. What is certified is the better
       of the certificates by H alone and by H and the spread.

    Args:
        model: images to logits, in evaluation mode.
        x: images [N, C, H, W] in [0, 1], where the model is a :class:`robattr.models.Classifier`; what any other takes.
            float32 or float64: in half types the noise is rounded too, and has another law.
        target: class explained of each image, int64 [N], or one int for all.
        noise: :class:`Ball` or :class:`Gaussian`.
        epsilon: one or several l2 lengths, >= 0.
        samples: of the estimate, and for the certificate; >= 2.
        choose: further samples that choose the direction; >= 1.
        alpha: probability of failure for an image, between 0 and 1.
        attribution: a method of :mod:`robattr.attributions`; its maps are normalized.
        method: of the certificate by H alone.
        spectral: estimate the spread where the noise is Gaussian, which certifies far more of images with many values;
            takes a few more percent of time, and memory for the samples of one image. False leaves alpha / 3 to a
            statement.
        memory: bytes that these samples may take. More are computed again for each of some 20 passes.
        seed: of the noise.
        max_batch: largest number of images in one pass.
        path: a JSON-lines file that gets a row as soon as an image is done. Rows of the same request that are there
            already, each with a digest, are taken from it, so that a stopped run goes on. One writer at a time. The
            attribution then has to be a function of a module or a notebook, or a ``functools.partial`` of one. One of
            your own is known by its name and its source, not by what it calls or reads.
        progress: show a progress bar with the time left.

    Raises:
        ValueError: an argument is not what is accepted, or the file is of another request; before any work starts.
    """
    check_units(model, x)
    labels = check_target(x, target)
    lengths = l2_lengths(epsilon)
    if samples < 2 or choose < 1:
        raise ValueError(f"samples is {samples} and choose {choose}; accepted are at least 2 and 1")
    check_alpha(alpha)
    noise.certified_cosine(0.0, x[0].numel(), lengths, method=method)  # refuses what it does not accept
    parts_of(len(x), max_batch)
    model = frozen(model)
    spectral = spectral and isinstance(noise, Gaussian)
    names = ("norm", *(["spread"] if spectral else []), "estimate", "estimate_moved")
    split = {name: alpha / len(names) for name in names}
    seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    request: dict[str, object] = {
        "noise": {"law": type(noise).__name__, "scale": noise.scale}, "epsilon": list(lengths), "samples": samples,
        "choose": choose, "alpha": alpha, "method": method, "seed": seed,
        **({} if path is None else {"attribution": _described(attribution)}),
        **({"spectral": True} if spectral else {}),
    }  # fmt: skip
    rows = _Rows(path, request, model, x, labels, ("norm", "norm_lower", *(["spread", "center"] if spectral else [])))
    for i in tqdm(range(len(x)), desc="certify", disable=None if progress else True):
        if i in rows.found:
            continue
        take = partial(
            smooth, model, x[i : i + 1], labels[i : i + 1], noise=noise, attribution=attribution, max_batch=max_batch
        )
        chosen = take(samples=choose, seed=seeds[0])
        if chosen.norm.item() == 0:  # a gradient that is zero everywhere has no direction, and no certificate
            rows.add(i, norm=0.0, norm_lower=0.0, spread=1.0, center=0.0)
            continue
        take = partial(take, samples=samples, seed=seeds[1])
        spread = Spread(chosen.mean, samples, memory, take, split["spread"] / 10) if spectral else None
        options = {} if spread is None else {"each": spread.add}
        found = take(direction=chosen.mean / chosen.norm, **options)
        assert found.along is not None
        along = float(mean_lower_bound(_within(found.along[0], x[i]), split["norm"]))
        rows.add(
            i,
            norm=found.norm.item(),
            norm_lower=min(max(along, 0.0), 1.0),
            spread=0.0 if spread is None else spread.largest(),
            center=chosen.norm.item(),
        )
    norm, lower = rows.column("norm"), rows.column("norm_lower")
    largest = upper = None
    if spectral:
        largest, center = rows.column("spread"), rows.column("center")
        exact = x[0].numel() <= EXACT
        risk = split["spread"] * (1 if exact else 0.9)
        upper = torch.from_numpy(spread_upper_bound(largest.numpy(), samples, risk, limit=(1 + center.numpy()) ** 2))
    expectation, estimates = _certified(noise, norm, lower, upper, x[0].numel(), lengths, samples, split, method)
    return Certificate(
        lengths, norm, lower, expectation, estimates, samples, alpha, noise, labels.cpu(), split, upper, largest
    )


class Spread:
    """The largest eigenvalue of the mean of ``(g - m)(g - m)'`` over an image's samples, as they come.

    ``again`` calls its argument ``each`` with the same samples [1, k, d] once more, where they do not fit the memory.
    """

    def __init__(self, center: Tensor, samples: int, memory: float, again: Callable[..., object], alpha: float) -> None:
        self._center, self._again, self._alpha = center.flatten(), again, alpha
        d = center.numel()
        self._dimension, self._samples, self._memory = d, samples, memory
        self._kept: Maps | None = None

    def add(self, _: object, maps: Tensor) -> None:
        moved = self._moved(maps)
        if self._kept is None and Maps.fit(self._samples, self._dimension, self._memory):
            self._kept = Maps(self._samples, self._dimension, itemsize=moved.element_size(), memory=self._memory)
        if self._kept is not None:
            self._kept.add(moved)

    def _moved(self, maps: Tensor) -> Tensor:
        return maps[0] - self._center.to(maps)

    def _stream(self, use: Callable[[Tensor], None]) -> None:
        self._again(each=lambda _, maps: use(self._moved(maps)))

    def largest(self) -> float:
        if self._kept is None:
            return largest_eigenvalue(self._stream, self._dimension, alpha=self._alpha).upper
        return self._kept.upper(largest_eigenvalue(self._kept.stream, self._dimension, alpha=self._alpha))


def _certified(
    noise: Noise,
    norm: Tensor,
    lower: Tensor,
    spread: Tensor | None,
    d: int,
    epsilon: Sequence[float],
    samples: int,
    split: dict[str, float],
    method: Method,
) -> tuple[Tensor, Tensor]:
    """Bounds for the expectations and for the estimates, [N, E] each."""
    h, e = lower.numpy()[:, None], np.asarray(epsilon)[None]
    lam = None if spread is None else spread.numpy()[:, None]
    expectation = np.asarray(noise.certified_cosine(h, d, e, method=method, spread=lam))
    # The estimate at x: seen, so its own length or that of h, whichever is longer, bounds the angle.
    here = sampling_error(samples, split["estimate"], mean_norm=h, spread=lam)
    angle = _angle(here, np.maximum(h, norm.numpy()[:, None]))
    # At x + delta: h is at most 2 p shorter there.
    moved = 2 * noise.displaced(d, e)
    lam_there = None
    if lam is not None:
        shift = e / noise.scale
        with np.errstate(over="ignore"):
            moved = np.minimum(moved, np.sqrt(np.expm1(shift * shift)) * np.sqrt(lam))
        lam_there = shifted_spread(lam, shift)
    there = np.maximum(h - moved, 0.0)
    error_there = sampling_error(samples, split["estimate_moved"], mean_norm=there, spread=lam_there)
    total = np.arccos(expectation) + angle + _angle(error_there, there)
    estimates = np.where((expectation > NONE) & (total < np.pi), np.cos(total), NONE)
    return torch.from_numpy(expectation), torch.from_numpy(estimates)


def _angle(error: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The largest angle between a vector of the given length and one within the error of it."""
    fine = length > error
    return np.where(fine, np.arcsin(np.where(fine, error / np.where(fine, length, 1), 1)), np.pi)


class _Rows:
    """The rows of a certification, in memory and, with a path, on disk as they come."""

    def __init__(
        self,
        path: Path | str | None,
        request: dict[str, object],
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        names: Sequence[str],
    ) -> None:
        self.found: dict[int, dict[str, float]] = {}
        self._names, self._images = names, len(x)
        self._path = None if path is None else Path(path)
        if self._path is None:
            return
        # Two models may differ in what is no parameter: the sharpness of an activation.
        digests = {"images": _digest(x, labels), "model": _digest(repr(model), *model.state_dict().values())}
        head = json.dumps({**request, **digests}, sort_keys=True)
        lines: list[str] = []
        if self._path.exists():
            # What is no UTF-8 is no row either.
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        self._head = head
        for line in lines:
            try:
                row = json.loads(line)
                image, values = int(row["image"]), {name: float(row[name]) for name in names}
            except (ValueError, KeyError, TypeError, OverflowError):
                continue  # the last line of a process that was killed
            if line == self._row(image, values):  # not one that was altered
                self.found[image] = values
        # The digest of a row says whose it is: where one is of this request, it is the first line that was altered.
        if lines and lines[0] != head and not self.found:
            raise ValueError(f"path is {self._path}, which holds another request; name a new file or delete that one")
        kept = [self._row(image, values) for image, values in self.found.items()]
        write_text(self._path, "\n".join([head, *kept]) + "\n")

    def _row(self, image: int, values: dict[str, float]) -> str:
        row = {"image": image, **values}
        return json.dumps({**row, "sha256": _digest(self._head, json.dumps(row))})

    def add(self, image: int, **values: float) -> None:
        self.found[image] = {name: values[name] for name in self._names}
        if self._path is not None:
            append_line(self._path, self._row(image, self.found[image]))

    def column(self, name: str) -> Tensor:
        return torch.tensor([self.found[i][name] for i in range(self._images)], dtype=torch.float64)


def _digest(*parts: Tensor | str) -> str:
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(f"{part.dtype} {list(part.shape)}".encode())
            found.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_alpha(alpha: float) -> None:
    """Refuse a probability of failure that is none."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; accepted is a probability between 0 and 1, for example 0.001")


def check_pictures(x: Tensor) -> tuple[int, int]:
    """Refuse what has no heatmap of pixels; height and width of the others."""
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}; accepted are images [N, C, H, W], whose heatmaps have pixels")
    height, width = x.shape[2:]
    return height, width


def l2_lengths(epsilon: float | Sequence[float]) -> tuple[float, ...]:
    """One or several l2 lengths as a row.

    Raises:
        ValueError: there are none, or one is no number >= 0.
    """
    lengths = tuple(np.ravel(np.asarray(epsilon, dtype=np.float64)).tolist())
    if not lengths or any(not e >= 0 for e in lengths):
        raise ValueError(f"epsilon is {epsilon}; accepted are l2 lengths >= 0 in units of a [0, 1] image")
    return lengths


def check_units(model: nn.Module, x: Tensor) -> None:
    """Refuse images outside of [0, 1] where the model is known to take those: noise and lengths are in their units.

    Half types are refused too: noise that is rounded to three digits has another law, and the mean of projections that
    are may be above the length that it bounds.

    Raises:
        ValueError: with the largest or smallest value, or with the type.
    """
    if isinstance(x, Tensor):
        check_precision("x", x)
        if torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"torch.autocast is on, with {torch.get_autocast_dtype(x.device.type)}, which rounds too much to "
                "certify anything; leave it, or turn it on within the model's forward"
            )
    while isinstance(model, Output):
        model = model.model
    if isinstance(model, Classifier) and isinstance(x, Tensor):
        check_images(x, "x")


def check_precision(name: str, value: Tensor) -> None:
    """Refuse half types.

    Raises:
        ValueError: with the type.
    """
    if value.is_floating_point() and torch.finfo(value.dtype).bits < 32:
        raise ValueError(
            f"{name} is {value.dtype}, which rounds too much to certify anything; accepted are torch.float32 and "
            "torch.float64: convert it with .float(), and the model where it is of that type"
        )


def _within(along: Tensor, x: Tensor) -> NDArray[np.float64]:
    """Projections of unit vectors on one another, from -1 to 1: beyond is the rounding of a sum over the image."""
    values: NDArray[np.float64] = along.numpy()
    rounding = 2 * x.numel() * torch.finfo(x.dtype).eps
    return np.where(np.abs(values) <= 1 + rounding, np.clip(values, -1, 1), values)


# What repr says all of.
_PLAIN = (type(None), int, float, complex, str, bytes, Enum, np.generic, torch.dtype, torch.device, Ball, Gaussian)


def _described(value: object) -> str:
    """A method of attribution and its options, in words that are the same in every process and of nothing else.

    Raises:
        ValueError: there are none: of a function without a name, or of an object, which may have a state of its own.
    """
    if isinstance(value, partial):
        options = [f"{k}={_described(v)}" for k, v in sorted(value.keywords.items())]
        return f"{_described(value.func)}({', '.join([*map(_described, value.args), *options])})"
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _digest(f"{value.dtype} {list(value.shape)}", value.tobytes().hex())
    if type(value) in (list, tuple):
        assert isinstance(value, (list, tuple))
        parts = [_described(v) for v in value]
        return f"[{', '.join(parts)}]" if isinstance(value, list) else f"({', '.join(parts)}{',' * (len(parts) == 1)})"
    if type(value) is dict and all(isinstance(key, (str, int, type)) for key in value):
        return "{" + ", ".join(f"{key!r}: {_described(v)}" for key, v in value.items()) + "}"
    if isinstance(value, _PLAIN):
        return repr(value)
    named = value if inspect.isroutine(value) else type(value)
    name, module = f"{named.__module__}.{named.__qualname__}", str(named.__module__)
    try:
        found: Any = sys.modules[module]
        for part in named.__qualname__.split("."):
            found = getattr(found, part)
        if found is value:
            written: Any = inspect.unwrap(value)
            if module.partition(".")[0] == __name__.partition(".")[0] or not inspect.isfunction(written):
                return name
            return f"{name} {_digest(inspect.getsource(written))}"
    except (AttributeError, KeyError, OSError):
        pass  # it is not found under its name, or has no source
    raise ValueError(
        f"attribution is or has {name}, which a file cannot tell from another one of that name; with path accepted are "
        "functions of a module and functools.partial of them, with numbers, texts and tensors: define it with def in a "
        "module, or leave path out"
    )
