"""Certificates of trained networks, and attacks that try to break them: protocol of Wang & Kong 2024, and beyond.

A certification is a validated configuration of one network: some images are certified at several radii, with uniform
noise and with Gaussian noise of the same variance; some are attacked within several l2 balls, and what the attacks
reach stands beside what was certified. A grid is a YAML file of networks that share one measurement; each becomes one
JSON record.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from tqdm import tqdm

from robattr import attacks, metrics, models, smoothing
from robattr._files import locked
from robattr.attributions import gradient, heatmap
from robattr.models import Classifier
from robattr.smoothing import Ball, Gaussian, Noise
from robattr.studies.grids import Kind, Measured, Record
from robattr.studies.runs import public_name
from robattr.studies.trainings import Training

__all__ = [
    "ADVERSARIES",
    "KIND",
    "LAWS",
    "TARGETS",
    "Certification",
    "Check",
    "certified",
    "check",
    "inverses",
    "measure",
    "noise_of",
    "violated",
]

Law = Literal["uniform", "gaussian"]
LAWS: tuple[Law, ...] = ("uniform", "gaussian")
"""Laws of the noise; the Gaussian one has the variance of the uniform one of the same radius."""

ADVERSARIES = ("adaptive", "transfer", "random")
"""The gradient through the smoothing; the attack on the plain gradient, transferred; random directions."""

Values = dict[str, NDArray[np.float64]]


class Certification(BaseModel):
    """What is certified and attacked. Radii and epsilons are l2 lengths in units of a [0, 1] image.

    Images are a prefix of one draw of the test split; the explained class is the network's prediction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = "cifar10"
    images: int = Field(16, ge=1, description="images that are certified")
    radii: tuple[float, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    laws: tuple[Law, ...] = LAWS
    samples: int = Field(10_000, ge=2)
    choose: int = Field(1000, ge=1)
    alpha: float = Field(0.001, gt=0, lt=1)
    attacked: int = Field(8, ge=0, description="images that are attacked")
    attack_radius: float = Field(1.0, gt=0)
    epsilons: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04)
    attack_samples: int = Field(32, ge=1, description="fixed noise that the adaptive attack differentiates")
    iterations: int = Field(20, ge=1)
    restarts: int = Field(2, ge=1)
    beta: float | None = Field(
        None, gt=0, description="sharpness of the smooth copy that directs the attack, for networks of ReLUs"
    )
    check_samples: int = Field(1000, ge=2, description="fresh samples that measure what an attack has reached")
    fractions: int = Field(20, ge=1, description="of the insertion score")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Certification:
        if self.attacked > self.images:
            raise ValueError(f"attacked is {self.attacked}; it is at most images, {self.images}")
        if self.attacked and self.attack_radius not in self.radii:
            raise ValueError(f"attack_radius is {self.attack_radius}; accepted is one of radii, {list(self.radii)}")
        if min((*self.radii, *self.epsilons), default=1) <= 0:
            raise ValueError("radii and epsilons are l2 lengths > 0")
        return self


TARGETS = (0.8, 0.9)
"""Cosines up to which the certified epsilon is recorded."""


def noise_of(law: str, radius: float, dimension: int) -> Noise:
    """The noise of a law: uniform in the ball of a radius, or the Gaussian of the same variance.

    Raises:
        ValueError: there is no such law.
    """
    if law == "uniform":
        return Ball(radius)
    if law == "gaussian":
        return Gaussian.matching(radius, dimension)
    raise ValueError(f"law is {law!r}; accepted are {', '.join(LAWS)}")


def measure(
    model: Classifier,
    config: Certification,
    *,
    training: Training | None = None,
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    max_batch: int | None = None,
    progress: bool = False,
) -> Measured:
    """Certify and attack one network.

    The values are, an entry an image:

    - ``norm/<law>/<radius>``, ``norm_lower/...``: length of the smoothed map, and its lower confidence bound;
    - ``certified_epsilon/<cosine>/<law>/<radius>``, ``round_trip/...``: see :func:`inverses`;
    - ``drift/<law>/<radius>``: cosine between the smoothed map and the plain gradient;
    - ``insertion/plain``, ``insertion/<law>/<radius>``: insertion score of their heatmaps;
    - ``attacked/<law>/<radius>/<epsilon>/<adversary>``: estimate of cos(h(x), h(x + delta)), without bias from finite
      samples; ``violated/...``: see :func:`violated`;
    - ``plain/<epsilon>``: cosine that the attack on the plain gradient reaches, without smoothing.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        config: what is measured.
        training: of the network; nothing here depends on it.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        folder: where the certificates of single images are kept as they come, so that a stopped run goes on.
        max_batch: largest number of images in one pass; by default 128, and for small images 2,048 on a GPU.
        progress: show bars with the time left.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.to(device)
    if max_batch is None:
        max_batch = 2048 if device.type != "cpu" and model.input_size[1] <= 64 else 128
    drawn = models.load_images(model, config.dataset, root=data_root, limit=config.images, seed=config.seed)
    x = drawn.images.to(device)
    y = torch.cat([model(part).argmax(1) for part in torch.split(x, max_batch)])
    dimension = x[0].numel()
    plain = torch.cat(
        [gradient(model, a, b) for a, b in zip(torch.split(x, max_batch), torch.split(y, max_batch), strict=True)]
    )
    insertion = partial(metrics.insertion, model, x, y, fractions=config.fractions, max_batch=max_batch)
    values: dict[str, Tensor] = {"insertion/plain": insertion(heatmap(plain)).area}
    for law in config.laws:
        for radius in config.radii:
            noise = noise_of(law, radius, dimension)
            place = f"{law}/{radius:g}"
            path = None if folder is None else Path(folder) / f"{law}-{radius:g}.jsonl"
            # Two processes that ask for one thing would write into one file.
            with nullcontext() if path is None else locked(path):
                found = smoothing.certify(
                    model,
                    x,
                    y,
                    noise=noise,
                    epsilon=config.epsilons,
                    samples=config.samples,
                    choose=config.choose,
                    alpha=config.alpha,
                    spectral=False,  # the records hold lengths, and what they certify alone
                    seed=config.seed,
                    max_batch=max_batch,
                    path=path,
                    progress=progress,
                )
            values[f"norm/{place}"], values[f"norm_lower/{place}"] = found.norm, found.norm_lower
            values |= {k: torch.from_numpy(v) for k, v in inverses(found.norm_lower.numpy(), dimension, place).items()}
            seen = smoothing.smooth(
                model, x, y, noise=noise, samples=config.check_samples, seed=config.seed + 1, max_batch=max_batch
            )
            values[f"drift/{place}"] = metrics.cosine(seen.mean.to(plain), plain)
            values[f"insertion/{place}"] = insertion(heatmap(seen.mean.to(plain))).area
    if config.attacked:
        values |= _attack(model, config, x[: config.attacked], y[: config.attacked], max_batch, progress)
    found_values = {name: v.double().cpu().numpy() for name, v in values.items()}
    return Measured(
        dimension=dimension,
        values=found_values | violated(found_values, dimension),
        dataset={"name": public_name(config.dataset), "split": "test", **drawn.provenance},
    )


def inverses(lower: NDArray[np.float64], dimension: int, place: str) -> Values:
    """The inverse forms at lower bounds on lengths, for one law and radius.

    Args:
        lower: [N], of the smoothed maps.
        dimension: of the images.
        place: law and radius, ``gaussian/1``.

    Returns:
        ``certified_epsilon/<cosine>/<place>``, and ``round_trip/<cosine>/<place>``: how far the cosine that is
        certified at that epsilon is from the one that was asked for, where the epsilon is above 0.
    """
    law, _, radius = place.partition("/")
    noise = noise_of(law, float(radius), dimension)
    found: Values = {}
    for target in TARGETS:
        epsilon = np.asarray(smoothing.max_epsilon(lower, target, dimension=dimension, noise=noise))
        found[f"certified_epsilon/{target:g}/{place}"] = epsilon
        if (some := epsilon > 0).any():
            back = np.asarray(noise.certified_cosine(lower[some], dimension, epsilon[some], method="tight"))
            found[f"round_trip/{target:g}/{place}"] = np.abs(back - target)
    return found


def violated(values: Values, dimension: int) -> Values:
    """``violated/<law>/<radius>/<epsilon>/<adversary>``: 1 where an attack went below the certificate, 0 where not.

    An entry for each attacked image that has a certificate; no array where none has.
    """
    found: Values = {}
    for name, cosines in values.items():
        if not name.startswith("attacked/"):
            continue
        _, law, radius, epsilon, adversary = name.split("/")
        lower = values[f"norm_lower/{law}/{radius}"][: len(cosines)]
        noise = noise_of(law, float(radius), dimension)
        bound = np.asarray(noise.certified_cosine(lower, dimension, np.asarray(float(epsilon)), method="tight"))
        if (said := bound > -1).any():
            found[f"violated/{law}/{radius}/{epsilon}/{adversary}"] = (cosines < bound)[said].astype(np.float64)
    return found


def _attack(
    model: Classifier, config: Certification, x: Tensor, y: Tensor, max_batch: int, progress: bool
) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    # Not clipped to [0, 1]: the certificate is about every delta, so every delta may try.
    attack = partial(
        attacks.cosine_attack,
        model,
        x,
        labels=y,
        iterations=config.iterations,
        restarts=config.restarts,
        beta=config.beta,
        clip=False,
        seed=config.seed,
    )
    fresh = partial(smoothing.smooth, model, target=y, samples=config.check_samples, max_batch=max_batch)
    bar = tqdm(total=len(config.epsilons) * (1 + len(config.laws)), desc="attack", disable=None if progress else True)
    with bar:
        transferred: dict[float, Tensor] = {}
        for epsilon in config.epsilons:
            found = attack(epsilon=epsilon, attribution=gradient, batch_size=max_batch)
            values[f"plain/{epsilon:g}"], transferred[epsilon] = found.cosine, found.images
            bar.update()
        for law in config.laws:
            noise = noise_of(law, config.attack_radius, x[0].numel())
            # Samples that neither the attack nor the other estimate has seen.
            clean = fresh(x=x, noise=noise, seed=config.seed + 2)
            for epsilon in config.epsilons:
                smoothed = partial(
                    smoothing.smoothed,
                    noise=noise,
                    samples=config.attack_samples,
                    seed=config.seed + 3,
                    max_batch=max_batch,
                )
                start = transferred[epsilon]
                together = max(1, max_batch // config.attack_samples)
                found = attack(epsilon=epsilon, attribution=smoothed, starts=start - x, batch_size=together)
                reached = {
                    "adaptive": found.images,
                    "transfer": start,
                    "random": attacks.random_directions(
                        model, x, epsilon=epsilon, draws=1, labels=y, clip=False, seed=config.seed
                    ).images,
                }
                for name, images in reached.items():
                    moved = fresh(x=images, noise=noise, seed=config.seed + 4)
                    place = f"{law}/{config.attack_radius:g}/{epsilon:g}/{name}"
                    inner = (clean.mean * moved.mean).sum((1, 2, 3))
                    # Independent noise: the product of the means has no bias, their lengths are corrected for it.
                    lengths = (clean.norm_squared.clamp_min(1e-12) * moved.norm_squared.clamp_min(1e-12)).sqrt()
                    values[f"attacked/{place}"] = (inner / lengths).clamp(-1, 1)
                bar.update()
    return values


def certified(
    record: Record,
    law: str,
    radius: float,
    epsilon: float | Sequence[float] | NDArray[np.float64],
    *,
    method: Literal["tight", "ball"] = "tight",
) -> NDArray[np.float64]:
    """What is certified of each image of a record, [N] or [N, E]: from the lower bound on the length of its map.

    It holds with probability at least 1 - alpha for an image, at all epsilons at once; -1 where nothing is certified.
    """
    lower = record.values[f"norm_lower/{law}/{radius:g}"]
    noise = noise_of(law, radius, record.dimension)
    if np.ndim(epsilon) == 0:
        return np.asarray(noise.certified_cosine(lower, record.dimension, np.asarray(epsilon), method=method))
    return np.asarray(
        noise.certified_cosine(lower[:, None], record.dimension, np.asarray(epsilon)[None], method=method)
    )


@dataclass(frozen=True)
class Check:
    """Attacked points against what was certified of them.

    Attributes:
        points: pairs of an image and a perturbation.
        covered: those of which something is certified.
        violations: those whose cosine is below what is certified. One is an error in the proof or in the code.
        margin: the smallest difference between a cosine and its certificate; infinite where nothing is covered.
    """

    points: int
    covered: int
    violations: int
    margin: float


def check(runs: Sequence[Record], *, weaken: float = 1.0) -> Check:
    """Count violations over every attacked point of records.

    Args:
        runs: records of certifications.
        weaken: the certificate is taken for this share of the epsilon that was attacked, which is wrong below 1: what
            this check has to find.

    Raises:
        ValueError: weaken is not in (0, 1].
    """
    if not 0 < weaken <= 1:
        raise ValueError(f"weaken is {weaken}; accepted is a share in (0, 1], 1 for the certificate itself")
    points = covered = wrong = 0
    margin = np.inf
    for record in runs:
        bounds: dict[tuple[str, ...], NDArray[np.float64]] = {}  # adversaries share them
        for name, cosines in record.values.items():
            if not name.startswith("attacked/"):
                continue
            _, *place, _ = name.split("/")
            law, radius, epsilon = place
            if (where := tuple(place)) not in bounds:
                bounds[where] = certified(record, law, float(radius), weaken * float(epsilon))
            bound = bounds[where][: len(cosines)]
            said = bound > -1
            points, covered = points + len(cosines), covered + int(said.sum())
            wrong += int((cosines < bound)[said].sum())
            margin = min(margin, float((cosines - bound)[said].min(initial=np.inf)))
    return Check(points, covered, wrong, margin)


# --------------------------------------------------------------------------------------------------------------------
# Records

_UNITS = {
    "certified_epsilon": "l2 length in a [0, 1] image",
    "insertion": "probability",
    "violated": "share of points",
}


def _describe(quantity: str, config: Certification) -> dict[str, Any]:
    kind, *rest = quantity.split("/")
    epsilon = {"plain": rest[:1], "attacked": rest[2:3], "violated": rest[2:3]}.get(kind, [])
    perturbed = {"epsilon": float(epsilon[0]), "norm": "l2"} if epsilon else {}
    return {"unit": _UNITS.get(kind, "1"), **perturbed}


KIND = Kind("certification", Certification, measure, _describe, digits=7)
"""What :mod:`robattr.studies.grids` needs to know."""
