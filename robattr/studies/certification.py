"""Certificates of trained networks, and attacks that try to break them: protocol of Wang & Kong 2024, and beyond.

A certification is a validated configuration of one network: some images are certified at several radii, with uniform
noise and with Gaussian noise of the same variance; some are attacked within several l2 balls, and what the attacks
reach stands beside what was certified. With ``heatmaps``, the spectral certificate and those of mass, center and top
pixels are measured too, from the same samples. A grid is a YAML file of networks that share one measurement; each
becomes one JSON record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from robattr._files import keep_values, kept_values, locked
from robattr.attributions import METHODS, Attribution, gradient, heatmap
from robattr.attributions.protocol import Target
from robattr.models import Classifier
from robattr.smoothing import Ball, Gaussian, Noise
from robattr.smoothing.heatmaps import rounded
from robattr.studies.breaking import QUANTITIES, attack_maps
from robattr.studies.fragility import OF_STEPS, bound_method
from robattr.studies.grids import Kind, Measured, Record, check_sizes
from robattr.studies.runs import public_name
from robattr.studies.trainings import Training

__all__ = [
    "ADVERSARIES",
    "KIND",
    "LAWS",
    "TARGETS",
    "Certification",
    "Check",
    "Heatmaps",
    "MapCheck",
    "attacked_maps",
    "certified",
    "certified_maps",
    "certified_of_map",
    "check",
    "derived",
    "gaps",
    "inverses",
    "lowest",
    "measure",
    "noise_of",
    "quoted",
    "smallest_radii",
    "violated",
]

Law = Literal["uniform", "gaussian"]
LAWS: tuple[Law, ...] = ("uniform", "gaussian")
"""Laws of the noise; the Gaussian one has the variance of the uniform one of the same radius."""

ADVERSARIES = ("adaptive", "transfer", "random")
"""The gradient through the smoothing; the attack on the plain gradient, transferred; random directions."""

Values = dict[str, NDArray[np.float64]]


class Heatmaps(BaseModel):
    """What is certified of smoothed heatmaps, and of the direction of the signed maps, with Gaussian noise."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    methods: tuple[str, ...] = Field(("gradient",), min_length=1, description="of attribution")
    sigmas: tuple[float, ...] = Field((0.1,), min_length=1, description="of the noise, in units of a [0, 1] image")
    epsilons: tuple[float, ...] = Field((0.05, 0.1), min_length=1)
    k: tuple[int, ...] = Field((1000,), min_length=1, description="numbers of top pixels")
    samples: int = Field(10_000, ge=2)
    choose: int = Field(1000, ge=1)
    alpha: float = Field(0.001, gt=0, lt=1)
    detail: int = Field(20, ge=1, description="how much of laws and of orders of pixels is kept")
    attribution_steps: int | None = Field(
        None, ge=1, description="integrated gradients, SmoothGrad: points; None for the method's own number"
    )
    power: int = Field(1, ge=1, le=2, description="of a map's values: 2 squares them, as SmoothGrad-Squared does")
    votes: bool = Field(False, description="certify votes for single pixels too, beside the other certificates")
    attacked: int = Field(0, ge=0, description="images whose certificates are attacked, all samples in memory")
    attack_iterations: int = Field(15, ge=1)

    @model_validator(mode="after")
    def _known(self) -> Heatmaps:
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"methods has {', '.join(unknown)}; accepted are {', '.join(METHODS)}")
        if min((*self.sigmas, *self.epsilons)) <= 0:
            raise ValueError("sigmas and epsilons are lengths > 0")
        if min(self.k) < 1:
            raise ValueError("k are numbers of pixels >= 1")
        return self

    def method(self, name: str) -> Attribution:
        """An attribution method with its options bound."""
        found = bound_method(name, self.attribution_steps if name in OF_STEPS else None)
        return partial(_squared, found) if self.power == 2 else found


def _squared(
    attribution: Attribution, model: torch.nn.Module, x: Tensor, target: Target, *, create_graph: bool = False
) -> Tensor:
    return attribution(model, x, target, create_graph=create_graph).square()


class Certification(BaseModel):
    """What is certified and attacked. Radii and epsilons are l2 lengths in units of a [0, 1] image.

    Images are a prefix of one draw of the test split; the explained class is the network's prediction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    seed: int = Field(0, ge=0, lt=2**32)
    heatmaps: Heatmaps | None = Field(None, description="certificates of heatmaps, and spectral ones of directions")

    @model_validator(mode="after")
    def _fits(self) -> Certification:
        if self.attacked > self.images:
            raise ValueError(f"attacked is {self.attacked}; it is at most images, {self.images}")
        if self.heatmaps is not None and self.heatmaps.attacked > self.images:
            raise ValueError(f"attacked of heatmaps is {self.heatmaps.attacked}; it is at most images, {self.images}")
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
    - ``smallest_radius/<cosine>/<law>``, ``round_trip_radius/...``: see :func:`smallest_radii`;
    - ``drift/<law>/<radius>``: cosine between the smoothed map and the plain gradient;
    - ``insertion/plain``, ``insertion/<law>/<radius>``: insertion score of their heatmaps;
    - ``attacked/<law>/<radius>/<epsilon>/<adversary>``: estimate of cos(h(x), h(x + delta)), without bias from finite
      samples; ``violated/...``: see :func:`violated`;
    - ``plain/<epsilon>``: cosine that the attack on the plain gradient reaches, without smoothing;
    - ``of_map/<statistic>/<method>/<sigma>``: statistics of :class:`robattr.smoothing.HeatmapCertificate`, rounded to 7
      digits to the side that certifies less, numbered where there are several for an image; from them follows
      ``certified/<quantity>/<method>/<sigma>/<epsilon>``, see :func:`certified_of_map`, and
      ``certified_epsilon/<cosine>/<method>/<sigma>`` of the spectral certificate;
    - ``votes/<statement>/<k>/<method>/<sigma>/<epsilon>``: what :func:`robattr.smoothing.certify_votes` says:
      ``overlap``, and the numbers of pixels that ``stay`` and that ``stay_out``; all of it follows from
      ``votes/top_with/<k>/<method>/<sigma>/image-<i>``, how many of an image's top pixels have 0, 1, ... votes, and
      ``votes/others_with/...``, how many of the others;
    - ``map_violated/<quantity>/<method>/<sigma>/<epsilon>/<aim>``: 1 where an attack on a heatmap went beyond what is
      certified by more than 5 standard errors, 0 where not, an entry for each attacked image of which something is
      certified; ``map_used/...``: the share that it reached of what is certified to be possible;
      ``map_caught/...``: the share from which on it would have counted as beyond.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        config: what is measured.
        training: of the network; nothing here depends on it.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        folder: where the certificates of single images are kept as they come, so that a stopped run goes on.
        max_batch: largest number of images in one pass; by default 128, of photographs 4 a thread; on a GPU 2,048
            and 128.
        progress: show bars with the time left.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.to(device)
    if max_batch is None:
        # What a network keeps of photographs, some 80 MB each, is to stay near a processor: 32 take twice as long as 4.
        small, photographs = (128, 4 * torch.get_num_threads()) if device.type == "cpu" else (2048, 128)
        max_batch = small if model.input_size[1] <= 64 else photographs
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
    if config.heatmaps is not None:
        found_values |= _heatmaps(model, config.heatmaps, config.seed, x, y, folder, max_batch, progress)
    return Measured(
        dimension=dimension,
        values=found_values | derived(found_values, dimension),
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


def quoted(values: Values, dimension: int) -> Values:
    """The formula that is quoted for uniform noise (:func:`robattr.smoothing.quoted_cosine`), at what was recorded.

    Returns:
        ``below_quoted/uniform/<radius>/<epsilon>/<adversary>``: 1 where an attack went below it, at the length of the
        estimate, 0 where not; an entry for each attacked image. ``quoted_broken/uniform/<radius>/<epsilon>``: 1 where
        some field with the same length at the same epsilon goes below it, since the tight certificate, which is
        attained, is lower.
    """
    found: Values = {}
    for name, cosines in values.items():
        if not name.startswith("attacked/uniform/"):
            continue
        _, law, radius, epsilon, adversary = name.split("/")
        length = values[f"norm/{law}/{radius}"][: len(cosines)]
        p = smoothing.overlap(dimension, float(radius), float(epsilon))
        said = smoothing.quoted_cosine(length, p)
        found[f"below_quoted/{law}/{radius}/{epsilon}/{adversary}"] = (cosines < said).astype(np.float64)
        found[f"quoted_broken/{law}/{radius}/{epsilon}"] = np.asarray(
            smoothing.certified_cosine(length, p) < said, dtype=np.float64
        )
    return found


def smallest_radii(values: Values, dimension: int) -> Values:
    """The third form of the certificate, the smallest radius for a cosine and an epsilon, from the recorded lengths.

    Of the first images, for a cosine of 0.9. The epsilon is nine tenths of the largest that any of the recorded radii
    certifies, so that there is such a radius.

    Returns:
        ``smallest_radius/<cosine>/<law>``: no array where some image has nothing certified at any radius.
        ``round_trip_radius/<cosine>/<law>``: of images whose radius is not the smallest recorded one, how far the
        cosine that is certified there is from the one that was asked for, or, where that is more, the largest epsilon
        that is certified there from this one, as a share of it.
    """
    found: Values = {}
    target = TARGETS[-1]
    for law in LAWS:
        radii = sorted(float(name.split("/")[2]) for name in values if name.startswith(f"norm_lower/{law}/"))
        if len(radii) < 2:
            continue
        lengths = np.stack([values[f"norm_lower/{law}/{radius:g}"][:_FIRST] for radius in radii])
        largest = np.stack([values[f"certified_epsilon/{target:g}/{law}/{radius:g}"][:_FIRST] for radius in radii])
        epsilons = 0.9 * largest.max(0)
        smallest, trips = [], []
        for h, epsilon in zip(lengths.T, epsilons.tolist(), strict=True):
            if epsilon == 0:
                continue
            radius = smoothing.min_radius(
                radii, h, target, dimension=dimension, epsilon=epsilon, law=partial(noise_of, law, dimension=dimension)
            )
            smallest.append(radius)
            if radius > radii[0]:
                noise, length = noise_of(law, radius, dimension), np.interp(radius, radii, h)
                back = float(noise.certified_cosine(length, dimension, epsilon))
                again = float(smoothing.max_epsilon(length, target, dimension=dimension, noise=noise))
                trips.append(max(abs(back - target), abs(again / epsilon - 1)))
        if len(smallest) == len(epsilons):
            found[f"smallest_radius/{target:g}/{law}"] = np.array(smallest)
        if trips:
            found[f"round_trip_radius/{target:g}/{law}"] = np.array(trips)
    return found


_FIRST = 8  # images whose smallest radius is sought: half a second each


def derived(values: Values, dimension: int) -> Values:
    """What follows from the other numbers of a record: :func:`violated`, :func:`quoted`, :func:`smallest_radii`."""
    return violated(values, dimension) | quoted(values, dimension) | smallest_radii(values, dimension)


# Statistics of which more certifies less; of the others less does. Estimates, of which nothing follows, are rounded.
_UP = ("deviation", "spread", "most", "variance")
_ESTIMATES = ("mass", "center")


def _heatmaps(
    model: Classifier,
    config: Heatmaps,
    seed: int,
    x: Tensor,
    y: Tensor,
    folder: Path | str | None,
    max_batch: int,
    progress: bool,
) -> Values:
    values: Values = {}
    bar = tqdm(
        total=len(config.methods) * len(config.sigmas) * len(x), desc="heatmaps", disable=None if progress else True
    )
    with bar:
        for method in config.methods:
            for sigma in config.sigmas:
                place = f"{method}/{sigma:g}"
                rows = []
                for i in range(len(x)):
                    make = partial(_map_row, model, config, method, sigma, seed, x[i : i + 1], y[i : i + 1], max_batch)
                    rows.append(_kept(folder, f"heatmaps-{method}-{sigma:g}", i, make))
                    bar.update()
                values |= {f"of_map/{name}/{place}": np.array([row[name] for row in rows]) for name in rows[0]}
                size = (int(x.shape[2]), int(x.shape[3]))
                said = _of_map(values, config, size, method, sigma, config.epsilons)
                values |= {
                    f"certified/{name}/{place}/{epsilon:g}": _cautious(bound[:, j], up=name in ("center", "disc"))
                    for name, bound in said.items()
                    for j, epsilon in enumerate(config.epsilons)
                }
                lower, spread = (values[f"of_map/direction_{name}/{place}"] for name in ("norm_lower", "spread_upper"))
                for target in TARGETS:
                    shift = smoothing.max_shift_spectral(lower, spread, target, bound=1.0)
                    epsilon = sigma * np.minimum(shift, 100.0)
                    values[f"certified_epsilon/{target:g}/{place}"] = _cautious(epsilon, up=False)
                if config.votes:
                    values |= _votes(model, config, method, sigma, seed, x, y, folder, max_batch)
                if config.attacked:
                    few = slice(config.attacked)
                    values |= _attack_maps(model, config, method, sigma, seed, x[few], y[few], max_batch, progress)
    return values


def _kept(folder: Path | str | None, name: str, image: int, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What was kept of an image in a folder; made, and kept, where nothing was. One process at a time."""
    if folder is None:
        return make()
    path = Path(folder) / name / f"{image}.json"
    with locked(path):
        row = kept_values(path)
        if row is None:
            row = make()
            keep_values(path, row)
    return row


def _map_row(*arguments: Any) -> dict[str, float]:
    return _row(certified_maps(*arguments).statistics)


def certified_maps(
    model: Classifier, config: Heatmaps, method: str, sigma: float, seed: int, x: Tensor, y: Tensor, max_batch: int
) -> smoothing.HeatmapCertificate:
    """The certificates of heatmaps of images x [N, C, H, W] with explained classes y [N], as ``config`` asks for."""
    return smoothing.certify_map(
        model,
        x,
        y,
        noise=Gaussian(sigma),
        epsilon=config.epsilons,
        k=config.k,
        cosine=True,
        samples=config.samples,
        choose=config.choose,
        alpha=config.alpha,
        attribution=config.method(method),
        detail=config.detail,
        seed=seed,
        max_batch=max_batch,
    )


def _votes(
    model: Classifier, config: Heatmaps, method: str, sigma: float, seed: int, x: Tensor, y: Tensor,
    folder: Path | str | None, max_batch: int,
) -> Values:  # fmt: skip
    """Votes for single pixels by as many samples as the other certificates have."""
    values: Values = {}
    for k in config.k:
        votes = partial(
            smoothing.certify_votes, model, noise=Gaussian(sigma), epsilon=config.epsilons, k=k, samples=config.samples,
            alpha=config.alpha, attribution=config.method(method), seed=seed, max_batch=max_batch,
        )  # fmt: skip
        rows = [
            _kept(folder, f"votes-{k}-{method}-{sigma:g}", i, partial(_votes_row, votes, x[i : i + 1], y[i : i + 1]))
            for i in range(len(x))
        ]
        for key in rows[0]:
            name, number = key.split("/")
            if name not in _PIXELS:
                values[f"votes/{name}/{k}/{method}/{sigma:g}/{number}"] = np.array([row[key] for row in rows])
        for i, row in enumerate(rows):
            for name in _PIXELS:
                counted = np.array([row[f"{name}/{count}"] for count in range(config.samples + 1)])
                values[f"votes/{name}/{k}/{method}/{sigma:g}/image-{i}"] = counted
    return values


_PIXELS = ("top_with", "others_with")


def _votes_row(votes: Callable[..., smoothing.VoteCertificate], x: Tensor, y: Tensor) -> dict[str, float]:
    found = votes(x, y)
    said = {"overlap": found.overlap}
    said |= {"stay": found.stays.flatten(2).sum(2), "stay_out": found.stays_out.flatten(2).sum(2)}
    row = {
        f"{name}/{epsilon:g}": rounded(float(value[0, j]), up=False)
        for name, value in said.items()
        for j, epsilon in enumerate(found.epsilon)
    }
    counts = (found.votes[0] * found.samples).round().long()
    for name, pixels in zip(_PIXELS, (found.top[0], ~found.top[0]), strict=True):
        counted = torch.bincount(counts[pixels], minlength=found.samples + 1)
        row |= {f"{name}/{count}": float(number) for count, number in enumerate(counted.tolist())}
    return row


def _attack_maps(
    model: Classifier, config: Heatmaps, method: str, sigma: float, seed: int, x: Tensor, y: Tensor, max_batch: int,
    progress: bool,
) -> Values:  # fmt: skip
    found = certified_maps(model, config, method, sigma, seed, x, y, max_batch)
    values: Values = {}
    for one in attack_maps(
        model, x, y, found, attribution=config.method(method), iterations=config.attack_iterations, restarts=1,
        random=1, seed=seed + 1, max_batch=max_batch, progress=progress,
    ):  # fmt: skip
        if one.said.any():
            place = f"{one.quantity}/{method}/{sigma:g}/{one.epsilon:g}/{one.aim}"
            values[f"map_violated/{place}"] = one.violated.astype(np.float64)
            values[f"map_used/{place}"] = one.used[one.said]
            values[f"map_caught/{place}"] = one.caught[one.said]
    return values


def _cautious(bounds: NDArray[np.float64], *, up: bool) -> NDArray[np.float64]:
    """Bounds with the digits of a record, none of which says more than was certified.

    A cosine so near 1 that floating point has none between them was less than 1.
    """
    return np.array([rounded(float(v) if up or v != 1 else np.nextafter(1.0, 0.0), up=up) for v in bounds])


def _row(statistics: dict[str, Tensor]) -> dict[str, float]:
    """One image's statistics by name, with 7 digits, rounded to the side that certifies less."""
    row: dict[str, float] = {}
    for name, value in statistics.items():
        # More pixels than there are others cannot leave, at any distance: JSON has no infinity.
        flat = value[0].flatten().clamp(max=1e9).tolist()
        for j, v in enumerate(flat):
            kept = float(f"{v:.7g}") if name in _ESTIMATES else rounded(v, up=any(part in name for part in _UP))
            row[name if len(flat) == 1 else f"{name}/{j}"] = kept
    return row


def certified_of_map(
    record: Record, method: str, sigma: float, epsilon: float | Sequence[float], *, size: tuple[int, int]
) -> Values:
    """What is certified of each image's smoothed heatmap at any epsilons, from a record's statistics.

    Args:
        record: of a certification with ``heatmaps``.
        method: of attribution.
        sigma: of the noise.
        epsilon: l2 lengths, >= 0.
        size: (height, width) of the maps.

    Returns:
        [N, E] each: ``cosine`` (-1 says nothing); ``mass-<k>``, the mass that stays in the map's own top k pixels;
        ``top-<k>`` and ``top-seen-<k>``, the share of the top k that stays there, in the expectation and in what a
        reader sees (0 says nothing); ``center`` and ``disc``, how far the center moves at most and the radius around
        its estimate, in pixels (the diagonal says nothing).

    Raises:
        ValueError: the record has none of that method and sigma.
    """
    config = record.config.heatmaps
    if config is None or method not in config.methods or sigma not in config.sigmas:
        there = "none" if config is None else f"{', '.join(config.methods)} at sigma {list(config.sigmas)}"
        raise ValueError(f"method is {method!r} and sigma {sigma}; the record has heatmaps of {there}")
    return _of_map(record.values, config, size, method, sigma, np.atleast_1d(epsilon).tolist())


def _of_map(
    values: Values, config: Heatmaps, size: tuple[int, int], method: str, sigma: float, epsilons: Sequence[float]
) -> Values:
    several: dict[str, list[tuple[int, NDArray[np.float64]]]] = {}
    statistics: Values = {}
    for name, value in values.items():
        kind, *parts = name.split("/")
        if kind != "of_map" or parts[-2:] != [method, f"{sigma:g}"]:
            continue
        named = 2 if parts[0] == "reach" else 1  # reach/<k>
        number = int(parts[named]) if len(parts) > named + 2 else 0
        several.setdefault("/".join(parts[:named]), []).append((number, value))
    for name, columns in several.items():
        shaped = np.stack([value for _, value in sorted(columns, key=lambda column: column[0])], 1)
        many = name.startswith(("mass", "reach"))
        statistics[name] = shaped if many or name == "center" else shaped[:, 0]
    count = len(config.k)
    statistics["mass_law"] = statistics["mass_law"].reshape(len(statistics["mass_law"]), count, -1)
    bounds = smoothing.map_bounds(
        statistics, noise=Gaussian(sigma), epsilon=epsilons, k=config.k, samples=config.samples, alpha=config.alpha,
        size=size,
    )  # fmt: skip
    diagonal = float(np.hypot(size[0] - 1, size[1] - 1))
    said = {
        "cosine": bounds["cosine"],
        "center": np.minimum(bounds["center_shift"], diagonal),
        "disc": np.minimum(bounds["center_disc"], diagonal),
    }
    for j, k in enumerate(config.k):
        said[f"mass-{k}"] = bounds["mass_lower"][:, j]
        said[f"top-{k}"] = bounds["intersection"][:, j]
        said[f"top-seen-{k}"] = bounds["intersection_estimates"][:, j]
    return said


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


@dataclass(frozen=True)
class MapCheck:
    """Attacked points of heatmaps, for one quantity.

    Attributes:
        points: a quantity of an image at a perturbation, where something is certified of it.
        violations: those beyond what is certified by more than 5 standard errors.
        used: the median share that was reached of what is certified to be possible.
        most: the largest such share; above 1 by no more than those errors where nothing is violated.
        caught: the median share from which on a point would have counted as a violation: how sharp the test is; NaN of
            records that do not have it.
    """

    points: int
    violations: int
    used: float
    most: float
    caught: float


def attacked_maps(runs: Sequence[Record]) -> dict[str, MapCheck]:
    """Count the attacked points of heatmaps of records, by quantity of :data:`robattr.studies.breaking.QUANTITIES`."""
    found: dict[str, MapCheck] = {}
    for quantity in QUANTITIES:
        violated, used, caught = (
            [v for run in runs for name, v in run.values.items() if name.startswith(f"{kind}/{quantity}/")]
            for kind in ("map_violated", "map_used", "map_caught")
        )
        if violated:
            share, least = np.concatenate(used), np.concatenate(caught or [np.array([np.nan])])
            count = int(np.concatenate(violated).sum())
            found[quantity] = MapCheck(
                len(share), count, float(np.median(share)), float(share.max()), float(np.median(least))
            )
    return found


def lowest(record: Record, law: str, epsilon: float) -> NDArray[np.float64]:
    """The lowest cosine that any adversary reached at an epsilon, an entry for each attacked image."""
    place = f"attacked/{law}/{record.config.attack_radius:g}/{epsilon:g}"
    return np.asarray(np.min([record.values[f"{place}/{adversary}"] for adversary in ADVERSARIES], axis=0))


def gaps(runs: Sequence[Record], law: str) -> NDArray[np.float64]:
    """How far attacks stay above the certificates, which a count of violations does not say.

    Args:
        runs: records of certifications with attacks.
        law: of the noise.

    Returns:
        The lowest cosine that any adversary reached less the certified one: an entry for each attacked image and
        epsilon at which something is certified. Negative is a violation.
    """
    found = [np.empty(0)]
    for record in runs:
        config = record.config
        if not config.attacked or law not in config.laws:
            continue
        for epsilon in config.epsilons:
            reached = lowest(record, law, epsilon)
            bound = certified(record, law, config.attack_radius, epsilon)[: len(reached)]
            found.append((reached - bound)[bound > -1])
    return np.concatenate(found)


# --------------------------------------------------------------------------------------------------------------------
# Records

_UNITS = {
    "certified_epsilon": "l2 length in a [0, 1] image",
    "insertion": "probability",
    "violated": "share of points",
    "map_violated": "share of points",
    "below_quoted": "share of points",
    "quoted_broken": "share of points",
    "smallest_radius": "l2 length in a [0, 1] image",
}


def _describe(quantity: str, config: Certification) -> dict[str, Any]:
    kind, *rest = quantity.split("/")
    if kind == "of_map":
        return {"unit": "pixel" if rest[0] == "center" else "square pixel" if rest[0] == "center_spread" else "1"}
    if kind == "votes" and rest[0] in _PIXELS:
        return {"unit": "pixels"}
    if kind == "votes":
        return {"unit": "1", "epsilon": float(rest[-1]), "norm": "l2"}
    if kind in ("map_violated", "map_used", "map_caught"):
        return {"unit": _UNITS.get(kind, "1"), "epsilon": float(rest[-2]), "norm": "l2"}
    if kind == "certified":
        unit = "pixel" if rest[0] in ("center", "disc") else "1"
        return {"unit": unit, "epsilon": float(rest[-1]), "norm": "l2"}
    at = {"plain": 0, "attacked": 2, "violated": 2, "below_quoted": 2, "quoted_broken": 2}
    epsilon = rest[at[kind] : at[kind] + 1] if kind in at else []
    perturbed = {"epsilon": float(epsilon[0]), "norm": "l2"} if epsilon else {}
    return {"unit": _UNITS.get(kind, "1"), **perturbed}


def _check(config: Certification, shape: tuple[int, int, int]) -> None:
    maps = config.heatmaps
    check_sizes(shape, fractions=config.fractions, k=() if maps is None else maps.k)
    if maps is not None and maps.attacked and shape[1] * shape[2] > 64 * 64:
        raise ValueError(
            f"attacked of heatmaps is {maps.attacked} and images have {shape[1]} x {shape[2]} pixels; accepted are up "
            "to 64 x 64, since all samples of an image are held at once: set it to 0"
        )


KIND = Kind("certification", Certification, measure, _describe, _check, digits=7)
"""What :mod:`robattr.studies.grids` needs to know."""
