"""Any network under every attack on its explanations: protocol of Ghorbani et al. 2019, and what goes with it.

Explanations of one network are attacked with several methods, attacks and epsilons. Beside them stand the accuracy
under attacks on the prediction (by foolbox), how the two criteria of Joo et al. 2023 react to a rescaling of the
logits, and the cost of a training step.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from robattr import attacks, data, metrics, regularizers
from robattr._files import file_digest, free, keep_values, kept_values, write_tensors
from robattr.attributions import (
    METHODS,
    Attribution,
    gradient,
    heatmap,
    integrated_gradients,
    layer_integrated_gradients,
    smoothgrad,
)
from robattr.models import Classifier
from robattr.studies.grids import Kind, Measured, Record, check_sizes
from robattr.studies.runs import public_name
from robattr.studies.subjects import subject_of
from robattr.studies.trainings import Training, step_cost

__all__ = ["ATTACKS", "KIND", "Attacked", "Fragility", "attack_images", "attacked", "every_attack", "measure"]

AttackName = Literal["top-k", "mass-center", "targeted", "random-sign"]
ATTACKS: tuple[AttackName, ...] = ("top-k", "mass-center", "targeted", "random-sign")

# Methods that take many points for one image.
OF_STEPS = ("integrated_gradients", "smoothgrad", "layer_integrated_gradients")
_POINTS = 50  # of them, at most, where their own number is left to them

# Methods that explain the difference to a baseline.
FROM_BASELINE = ("integrated_gradients", "layer_integrated_gradients", "deeplift")
BaselineName = Literal["black", "network-zero", "own-mean"]

Region = tuple[float, float, float, float]
"""Top, left, bottom and right of a target, as fractions of the image."""


def check_region(region: Region) -> None:
    """Refuse what is no region.

    Raises:
        ValueError: it is not top < bottom and left < right, all from 0 to 1.
    """
    top, left, bottom, right = region
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ValueError(f"region is {region}; accepted is top < bottom and left < right, all from 0 to 1")


def region_mask(region: Region, height: int, width: int) -> Tensor:
    """A region as bool [height, width]; at least one pixel."""
    top, left, bottom, right = region
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows = slice(int(top * height), max(int(top * height) + 1, round(bottom * height)))
    columns = slice(int(left * width), max(int(left * width) + 1, round(right * width)))
    mask[rows, columns] = True
    return mask


def bound_method(name: str, steps: int | None) -> Attribution:
    """An attribution method with its number of points bound.

    Args:
        name: of :data:`robattr.attributions.METHODS`.
        steps: points of integrated gradients, of pixels or of a layer, and SmoothGrad; None for the method's default.

    Raises:
        ValueError: steps are given to a method that has none.
    """
    if steps is None:
        return METHODS[name]
    if name == "integrated_gradients":
        return partial(integrated_gradients, steps=steps)
    if name == "layer_integrated_gradients":
        return partial(layer_integrated_gradients, steps=steps)
    if name == "smoothgrad":
        return partial(smoothgrad, samples=steps)
    raise ValueError(f"attribution_steps is {steps}; {name} has no steps: leave it out")


def attack_objective(attack: AttackName, k: int, mask: Tensor | None) -> attacks.Objective:
    """The objective of an attack by its name; that of top-k for random signs, which choose by nothing else."""
    if attack == "mass-center":
        return attacks.MassCenter()
    if attack == "targeted":
        assert mask is not None
        return attacks.Targeted(mask)
    if attack == "top-k" or attack == "random-sign":
        return attacks.TopK(k)
    assert_never(attack)


class Fragility(BaseModel):
    """What is attacked, and how. Epsilons and the step are in 1/255.

    Images are a prefix of one draw; the explained class, which an attack has to keep, is the network's prediction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str = "cifar10"
    split: str = "test"
    images: int | None = Field(100, ge=1, description="number of images drawn; None for all")
    correct_only: bool = Field(False, description="leave out images whose prediction is not the label")
    attributions: tuple[str, ...] = Field(("gradient",), min_length=1)
    attribution_steps: int | None = Field(
        16, ge=1, description="integrated gradients, SmoothGrad: points; None for the method's own number"
    )
    attribution_baseline: BaselineName = Field(
        "black",
        description="of integrated gradients and DeepLIFT: black; the color that the network sees as zero; or the mean "
        "color of the clean image, which its attacked copy keeps",
    )
    attacks: tuple[AttackName, ...] = ATTACKS
    epsilons: tuple[float, ...] = (8.0,)
    k: int = Field(100, ge=1, description="number of top pixels")
    region: Region = Field(
        (0.0, 0.0, 0.25, 0.25), description="top, left, bottom, right of the target, as fractions of the image"
    )
    step: float = Field(0.5, gt=0, le=255, description="tau, in 1/255")
    iterations: int = Field(50, ge=1)
    beta: float | tuple[float, float] | Literal["auto"] | None = Field(
        None, description="sharpness of the smooth copy that directs an attack, as in attacks.iterative_attack"
    )
    adversarial_images: int = Field(0, ge=0, description="for the accuracy under attacks on the prediction; 0 for none")
    adversarial_epsilon: float = Field(2.0, gt=0)
    adversarial_steps: int = Field(20, ge=1)
    rescaled: int = Field(0, ge=0, description="images on which both criteria see the logits doubled; 0 for none")
    variants: bool = Field(
        False, description="compare maps in other ways too: k / 4 and 4 k top pixels, the largest channel, signed sums"
    )
    cost: bool = Field(False, description="time a training step against one of cross-entropy")
    keep_images: bool = Field(False, description="keep the attacked images, in a run; a record has none")
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _fits(self) -> Fragility:
        if unknown := set(self.attributions) - set(METHODS):
            raise ValueError(f"attributions has {', '.join(sorted(unknown))}; accepted are {', '.join(METHODS)}")
        if self.attribution_baseline != "black" and not set(self.attributions) & set(FROM_BASELINE):
            raise ValueError(
                f"attribution_baseline is {self.attribution_baseline}; {', '.join(self.attributions)} have none: it is "
                f"accepted with {', '.join(FROM_BASELINE)}"
            )
        if not all(0 < epsilon <= 255 for epsilon in self.epsilons):
            raise ValueError(f"epsilons are {list(self.epsilons)}; accepted are numbers > 0 and <= 255, in 1/255")
        if self.images is not None and self.rescaled > self.images:
            raise ValueError(f"rescaled is {self.rescaled}; it is at most images, {self.images}")
        check_region(self.region)
        return self

    def method(self, name: str, model: nn.Module, clean: Tensor) -> Attribution:
        """An attribution method with its options bound.

        Args:
            name: of the method.
            model: of which the color that it sees as zero is known, where that is the baseline.
            clean: the images [N, C, H, W] without an attack, where their mean color is.

        Raises:
            ValueError: the color that the model sees as zero is asked for, and it is black or not known.
        """
        bound: Callable[..., Tensor] = bound_method(name, self.attribution_steps if name in OF_STEPS else None)
        if self.attribution_baseline == "black" or name not in FROM_BASELINE:
            return bound
        if self.attribution_baseline == "own-mean":
            return partial(bound, baseline=clean.mean((2, 3), keepdim=True))
        zero = getattr(getattr(model, "normalize", None), "mean", None)
        if zero is None or not zero.any():
            raise ValueError(
                f"attribution_baseline is network-zero; {type(model).__name__} subtracts nothing from images: accepted "
                "is a network of robattr.models that does, or another baseline"
            )
        return partial(bound, baseline=zero)

    def mask(self, height: int, width: int) -> Tensor:
        """The target region, bool [height, width]; at least one pixel."""
        return region_mask(self.region, height, width)


def measure(
    model: Classifier,
    config: Fragility,
    *,
    training: Training | None = None,
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    max_batch: int | None = None,
    timed: bool = True,
    progress: bool = False,
) -> Measured:
    """Attack the explanations of one network.

    The values are, an entry an image:

    - ``<attribution>/<attack>/<epsilon>/<quantity>``: ``success`` (the prediction was kept), ``topk_intersection``,
      ``rank_correlation``, ``cosine`` and ``center_shift`` of the map before and after, ``probability`` and
      ``attacked_probability`` of the class, and ``iterate``, the step whose image is returned; with the targeted
      attack also ``mass_before`` and ``mass_after``, the share inside the region. A failed attack returns the clean
      image. With the gradient of a smooth network also ``relative_change``, ``||g' - g|| / ||g||``, and
      ``first_order``, what its Hessian predicts of that: ``||Hess delta|| / ||g||``;
    - with ``variants`` also ``<quantity><k><map>`` of the intersection, the rank correlation and the cosine: k is
      nothing, ``_quarter`` or ``_fourfold`` (of the intersection alone, where the map has as many pixels), and the map
      is nothing, ``_largest`` (the largest absolute value of the channels in place of their sum) or ``_signed`` (the
      signed sum);
    - ``correct``; ``accuracy/clean``, ``accuracy/adversarial``: whether the label is predicted, without an attack and
      under the strongest of two;
    - ``plain/l2_distance``, ``plain/cosine``, ``rescaled/...``: of the gradients at the image and at the image with
      uniform noise of the largest epsilon, before and after the logits are doubled;
    - ``cost/step``, an entry a round: see :func:`robattr.studies.trainings.step_cost`.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        config: what is measured.
        training: of the network; None for published weights, which have no cost.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        folder: where finished parts are kept, so that a stopped run goes on; several processes may share it.
        max_batch: images attacked at once, also the part that is kept; fewer with methods that take many points for
            one image.
        timed: measure the cost, where it is asked for; not where other work goes on beside it.
        progress: show a bar with the time left.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.to(device)
    if max_batch is None:
        side = 224**2 / (model.input_size[1] * model.input_size[2])
        # Second derivatives of a photograph keep a quarter of a GB: 4 GB on a CPU.
        most, of_photographs = (50, 16) if device.type == "cpu" else (1000, 50)
        max_batch = min(most, max(1, int(of_photographs * side)))
    wanted = None if config.images is None else max(config.images, config.adversarial_images)
    subject = subject_of(
        model, config.dataset, split=config.split, images=wanted, seed=config.seed, data_root=data_root,
        batch_size=max_batch,
    )  # fmt: skip
    x, labels, prediction = subject.images.images, subject.images.labels, subject.prediction
    n = len(x) if config.images is None else config.images
    values: dict[str, Tensor] = {"correct": subject.correct[:n]}
    tensors: dict[str, Tensor] = {}
    chosen = x[:n]
    if config.correct_only:
        chosen = chosen[subject.correct[:n]]
        if not len(chosen):
            raise ValueError(f"none of {n} images of {config.dataset} is classified correctly")
    for (method, attack, epsilon), part in _parts(model, config, chosen, device, folder, max_batch, progress):
        place = f"{method}/{attack}/{epsilon:g}"
        for name, found in part.values.items():
            values[f"{place}/{name}"] = torch.tensor(found, dtype=torch.float64)
        if part.images is not None:
            tensors[place] = part.images
    if config.adversarial_images:
        n = config.adversarial_images
        values["accuracy/clean"] = subject.correct[:n]
        values["accuracy/adversarial"] = _withstood(model, config, x[:n], labels[:n], device)
    if config.rescaled:
        values |= _rescaled(model, config, x[: config.rescaled].to(device), prediction[: config.rescaled].to(device))
    if config.cost and timed and training is not None:
        cost = step_cost(training, device=device)
        values |= {} if cost is None else {"cost/step": torch.from_numpy(cost)}
    return Measured(
        dimension=x[0].numel(),
        values={name: v.double().cpu().numpy() for name, v in values.items()},
        dataset={"name": public_name(config.dataset), "split": config.split, **subject.images.provenance},
        tensors=tensors,
    )


_Combination = tuple[str, AttackName, float]


@dataclass(frozen=True, eq=False)
class _Part:
    values: dict[str, list[float]]
    images: Tensor | None


def _parts(
    model: nn.Module,
    config: Fragility,
    x: Tensor,
    device: torch.device,
    folder: Path | str | None,
    max_batch: int,
    progress: bool,
) -> Iterator[tuple[_Combination, _Part]]:
    """Every method, attack and epsilon with its values for all images.

    Processes that measure the same thing in one folder share the work: each takes the next part that nobody has.
    """
    combinations = list(itertools.product(config.attributions, config.attacks, config.epsilons))

    def starts(combination: _Combination) -> range:
        # A path of points takes the memory of as many images.
        points = (config.attribution_steps or _POINTS) if combination[0] in OF_STEPS else 1
        return range(0, len(x), max(1, max_batch // points))

    def take(combination: _Combination, start: int, wait: bool) -> _Part | None:
        """The part that was measured before, or is now; None where another process measures it."""

        def measured() -> _Part:
            rows = slice(start, start + starts(combination).step)
            values, images = attack_images(model, config, x[rows].to(device), *combination)
            return _Part(values, images.cpu() if config.keep_images else None)

        if folder is None:
            return measured()
        method, attack, epsilon = combination
        path = Path(folder) / f"{method}-{attack}-{epsilon:g}-{start}.json"
        if (part := _kept(path, config.keep_images)) is not None:
            return part
        with free(path, wait=wait) as mine:
            if not mine:
                return None
            if (part := _kept(path, config.keep_images)) is None:  # still, now that nobody else has it
                part = measured()
                _keep(path, part)
            return part

    found: dict[tuple[_Combination, int], _Part] = {}
    pending, wait = [(combination, start) for combination in combinations for start in starts(combination)], False
    with tqdm(total=len(pending), desc="attacks", disable=None if progress else True) as bar:
        while pending:
            for each in pending:
                if (part := take(*each, wait)) is not None:
                    found[each] = part
                    bar.update()
            busy = [each for each in pending if each not in found]
            # Where all that is left is in other hands: wait for them, and do what one of them does not finish.
            pending, wait = busy, len(busy) == len(pending)
    for combination in combinations:
        parts = [found[combination, start] for start in starts(combination)]
        images = [part.images for part in parts if part.images is not None]
        joined = {name: [v for part in parts for v in part.values[name]] for name in parts[0].values}
        yield combination, _Part(joined, torch.cat(images) if images else None)


def _keep(path: Path, part: _Part) -> None:
    images = path.with_suffix(".safetensors")
    if part.images is not None:
        write_tensors(images, {"images": part.images})
    # Last: where it is, the part is whole.
    keep_values(path, {"values": part.values, "images": None if part.images is None else file_digest(images)})


def _kept(path: Path, images: bool) -> _Part | None:
    """A part that was measured before; None where there is none, or where it is not what was kept."""
    content = kept_values(path)
    if content is None or not images:
        return None if content is None else _Part(content["values"], None)
    kept = path.with_suffix(".safetensors")
    try:
        return _Part(content["values"], load_file(kept)["images"]) if file_digest(kept) == content["images"] else None
    except (OSError, KeyError, SafetensorError):
        return None


def attack_images(
    model: nn.Module, config: Fragility, x: Tensor, method: str, attack: AttackName, epsilon: float
) -> tuple[dict[str, list[float]], Tensor]:
    """Attack images as :func:`measure` does.

    Args:
        model: in evaluation mode.
        config: of the attack.
        x: images [N, C, H, W] on the device of the model; attacked at once.
        method: of attribution.
        attack: by name.
        epsilon: in 1/255.

    Returns:
        The values of :func:`measure`, an entry an image, by quantity; and the attacked images.
    """
    data.check_images(x)
    mask = config.mask(*x.shape[2:]).to(x.device)
    attribution = config.method(method, model, x)
    common: dict[str, Any] = {
        "objective": attack_objective(attack, config.k, mask),
        "epsilon": epsilon / 255,
        "attribution": attribution,
        "seed": config.seed,
        "batch_size": len(x),
    }
    if attack == "random-sign":
        found = attacks.random_sign(model, x, **common)
    else:
        found = attacks.iterative_attack(
            model, x, step=config.step / 255, iterations=config.iterations, beta=config.beta, **common
        )
    signed = tuple(attribution(model, z, found.prediction) for z in (x, found.images))
    before, after = heatmap(signed[0]), heatmap(signed[1])
    ks = {"": config.k}
    if config.variants:
        others = {"_quarter": max(config.k // 4, 1), "_fourfold": 4 * config.k}
        ks |= {name: k for name, k in others.items() if k <= before[0].numel()}
    measured: dict[str, Tensor] = {
        "success": found.success,
        **_alike(before, after, ks),
        "center_shift": metrics.center_shift(before, after),
        "probability": _probability(model, x, found.prediction),
        "attacked_probability": _probability(model, found.images, found.prediction),
        "iterate": found.best,
    }
    if attack == "targeted":
        measured |= {"mass_before": (before * mask).sum((1, 2)), "mass_after": (after * mask).sum((1, 2))}
    if config.variants:
        for end, reduced in (("_largest", _largest), ("_signed", _signed)):
            varied = _alike(reduced(signed[0]), reduced(signed[1]), ks)
            measured |= {f"{name}{end}": v for name, v in varied.items()}
    if method == "gradient" and config.beta is None:
        bent = metrics.curvature(model, x, found.prediction, found.images - x, max_batch=len(x))
        change = torch.where(bent.l2_distance == 0, 0, bent.l2_distance / bent.gradient_norm)
        measured |= {"first_order": bent.ratio, "relative_change": change}
    return {name: v.double().tolist() for name, v in measured.items()}, found.images


def _alike(before: Tensor, after: Tensor, ks: Mapping[str, int]) -> dict[str, Tensor]:
    """How alike two maps are; of the intersection by numbers of top pixels, whose names end as said."""
    return {
        **{f"topk_intersection{end}": metrics.topk_intersection(before, after, k) for end, k in ks.items()},
        "rank_correlation": metrics.spearman(before, after),
        "cosine": metrics.cosine(before, after),
    }


def _largest(attribution: Tensor) -> Tensor:
    return attribution.abs().amax(1)


def _signed(attribution: Tensor) -> Tensor:
    return attribution.sum(1)


def _probability(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        p: Tensor = model(x).softmax(1).gather(1, labels[:, None]).squeeze(1)
    return p


def _withstood(model: nn.Module, config: Fragility, x: Tensor, labels: Tensor, device: torch.device) -> Tensor:
    """Whether the label is predicted, and still is after each of two attacks of foolbox: PGD and DeepFool."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of names of SciPy that foolbox 3.3.4 uses
        import foolbox

    wrapped = foolbox.models.pytorch.PyTorchModel(model, bounds=(0, 1), device=device)
    n = config.adversarial_steps
    tried = (
        # Steps that cross the ball two and a half times, as in Madry et al. 2018.
        foolbox.attacks.LinfPGD(steps=n, rel_stepsize=2.5 / n),
        foolbox.attacks.deepfool.LinfDeepFoolAttack(steps=n),
    )
    stood = []
    generator = torch.random.get_rng_state()
    torch.manual_seed(config.seed)  # foolbox draws its starts from the global generator
    try:
        for part, truth in zip(torch.split(x, 250), torch.split(labels, 250), strict=True):
            part, truth = part.to(device), truth.to(device)
            robust = torch.ones_like(truth, dtype=torch.bool)
            for attack in tried:
                _, _, fooled = attack(wrapped, part, truth, epsilons=config.adversarial_epsilon / 255)
                robust &= ~fooled
            stood.append(robust.cpu())
    finally:
        torch.random.set_rng_state(generator)
    return torch.cat(stood)


class _Doubled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 2 * self.model(x)
        return logits


def _rescaled(model: nn.Module, config: Fragility, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(config.seed)
    noise = regularizers.uniform(x.shape, generator, torch.device("cpu")).to(x) * (max(config.epsilons) / 255)
    values = {}
    for name, network in (("plain", model), ("rescaled", _Doubled(model).eval())):
        here, there = (gradient(network, z, labels) for z in (x, x + noise))
        values[f"{name}/l2_distance"] = torch.linalg.vector_norm((there - here).flatten(1), dim=1)
        values[f"{name}/cosine"] = metrics.cosine(here, there)
    return values


# --------------------------------------------------------------------------------------------------------------------
# Records

_UNITS = {
    "correct": "share of images",
    "success": "share of images",
    "clean": "share of images",
    "adversarial": "share of images",
    "mass_before": "share of the map",
    "mass_after": "share of the map",
    "center_shift": "pixels",
    "probability": "probability",
    "attacked_probability": "probability",
    "iterate": "steps",
    "l2_distance": "logits per pixel value",
    "step": "times that of cross-entropy",
}


def _describe(quantity: str, config: Fragility) -> dict[str, Any]:
    parts = quantity.split("/")
    epsilon = None
    if len(parts) == 4:
        epsilon = float(parts[2])
    elif quantity == "accuracy/adversarial":
        epsilon = config.adversarial_epsilon
    elif parts[0] in ("plain", "rescaled"):
        epsilon = max(config.epsilons)
    perturbed = {} if epsilon is None else {"epsilon": epsilon / 255, "norm": "linf"}
    unit = "share of pixels" if parts[-1].startswith("topk_intersection") else _UNITS.get(parts[-1], "1")
    return {"unit": unit, **perturbed}


def _check(config: Fragility, shape: tuple[int, int, int]) -> None:
    check_sizes(shape, k=(config.k,))


KIND = Kind("fragility", Fragility, measure, _describe, _check)
"""What :mod:`robattr.studies.grids` needs to know."""


# --------------------------------------------------------------------------------------------------------------------
# One attack of a record


@dataclass(frozen=True, eq=False)
class Attacked:
    """What one attack did to one attribution method at one epsilon.

    A failed attack returned the clean image, so its similarities are those of an unchanged map.

    Attributes:
        attribution: the method.
        attack: by name.
        epsilon: largest change of a value, in 1/255.
        k: number of top pixels.
        dataset: the images' true name.
        values: one array a quantity of :func:`measure`, an entry an attacked image.
        index: of each attacked image in the draw.
        started: number of images drawn.
        images: the attacked images [n, C, H, W]; None where they were not kept.
    """

    attribution: str
    attack: AttackName
    epsilon: float
    k: int
    dataset: str
    values: dict[str, NDArray[np.float64]]
    index: NDArray[np.int64]
    started: int
    images: Tensor | None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def wrong(self) -> int:
        """How many images were left out because their prediction was wrong."""
        return self.started - len(self)

    @property
    def failed(self) -> int:
        """How many attacks never kept the prediction; they count as unchanged maps."""
        return int((self.values["success"] == 0).sum())


def attacked(record: Record, attribution: str, attack: AttackName, epsilon: float) -> Attacked:
    """One attack of a record.

    Raises:
        ValueError: the record has no such attack; those that it has are named.
    """
    place = f"{attribution}/{attack}/{epsilon:g}"
    values = {name.rpartition("/")[2]: v for name, v in record.values.items() if name.startswith(f"{place}/")}
    if not values:
        raise ValueError(f"no attack {place} in {record.name} (there are {', '.join(_places(record))})")
    correct = record.values["correct"]
    index = np.flatnonzero(correct) if record.config.correct_only else np.arange(len(correct))
    return Attacked(
        attribution=attribution,
        attack=attack,
        epsilon=epsilon,
        k=record.config.k,
        dataset=record.provenance["dataset"]["name"],
        values=values,
        index=index,
        started=len(correct),
        images=record.tensors.get(place),
    )


def every_attack(record: Record) -> list[Attacked]:
    """All attacks of a record, in its order."""
    return [attacked(record, *_split(place)) for place in _places(record)]


def _places(record: Record) -> list[str]:
    return list(dict.fromkeys(name.rpartition("/")[0] for name in record.values if name.count("/") == 3))


def _split(place: str) -> tuple[str, Any, float]:
    method, attack, epsilon = place.split("/")
    return method, attack, float(epsilon)
