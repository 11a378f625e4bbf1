"""Any network under every attack on its explanations: protocol of Ghorbani et al. 2019, and what goes with it.

Explanations of one network are attacked with several methods, attacks and epsilons. Beside them stand the accuracy
under attacks on the prediction (by foolbox), how the two criteria of Joo et al. 2023 react to a rescaling of the
logits, and the cost of a training step. Compare
:mod:`robattr.studies.experiments`, which runs one attack at a time for a
chapter.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from tqdm import tqdm

from robattr import attacks, metrics, models, regularizers
from robattr._files import free, write_text
from robattr.attributions import METHODS, Attribution, gradient, heatmap
from robattr.models import Classifier
from robattr.studies import alignment, networks
from robattr.studies.alignment import Training
from robattr.studies.experiments import AttackName, Region, attack_objective, bound_method, check_region, region_mask
from robattr.studies.networks import Measured, Record
from robattr.studies.runs import public_name

__all__ = ["ATTACKS", "KIND", "Fragility", "load_grid", "load_records", "measure"]

_PATHS = ("integrated_gradients", "smoothgrad")  # methods that take many points for one image
ATTACKS: tuple[AttackName, ...] = ("top-k", "mass-center", "targeted", "random-sign")


class Fragility(BaseModel):
    """What is attacked, and how. Epsilons and the step are in 1/255.

    Images are a prefix of one draw; the explained class, which an attack has to keep, is the network's prediction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = "cifar10"
    images: int = Field(100, ge=1)
    correct_only: bool = Field(False, description="leave out images whose prediction is not the label")
    attributions: tuple[str, ...] = Field(("gradient",), min_length=1)
    attribution_steps: int = Field(16, ge=1, description="integrated gradients, SmoothGrad: points")
    attacks: tuple[AttackName, ...] = ATTACKS
    epsilons: tuple[float, ...] = (8.0,)
    k: int = Field(100, ge=1, description="number of top pixels")
    region: Region = Field(
        (0.0, 0.0, 0.25, 0.25), description="top, left, bottom, right of the target, as fractions of the image"
    )
    step: float = Field(0.5, gt=0)
    iterations: int = Field(50, ge=1)
    beta: float | tuple[float, float] | None = Field(
        None, description="sharpness of the smooth copy that directs an attack, for networks of ReLUs"
    )
    adversarial_images: int = Field(0, ge=0, description="for the accuracy under attacks on the prediction; 0 for none")
    adversarial_epsilon: float = Field(2.0, gt=0)
    adversarial_steps: int = Field(20, ge=1)
    rescaled: int = Field(0, ge=0, description="images on which both criteria see the logits doubled; 0 for none")
    cost: bool = Field(False, description="time a training step against one of cross-entropy")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Fragility:
        if unknown := set(self.attributions) - set(METHODS):
            raise ValueError(f"attributions has {', '.join(sorted(unknown))}; accepted are {', '.join(METHODS)}")
        if min(self.epsilons, default=1) <= 0:
            raise ValueError(f"epsilons are {list(self.epsilons)}; accepted are numbers > 0, in 1/255")
        if self.rescaled > self.images:
            raise ValueError(f"rescaled is {self.rescaled}; it is at most images, {self.images}")
        check_region(self.region)
        return self

    def method(self, name: str) -> Attribution:
        """An attribution method with its options bound."""
        return bound_method(name, self.attribution_steps if name in _PATHS else None)

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
    progress: bool = False,
) -> Measured:
    """Attack the explanations of one network.

    The values are, an entry an image:

    - ``<attribution>/<attack>/<epsilon>/<quantity>``: ``success`` (the prediction was kept), ``topk_intersection``,
      ``rank_correlation``, ``cosine`` and ``center_shift`` of the map before and after; with the targeted attack also
      ``mass_before`` and ``mass_after``, the share inside the region. A failed attack returns the clean image. With the
      gradient of a smooth network also ``relative_change``, ``||g' - g|| / ||g||``, and ``first_order``, what its
      Hessian predicts of that: ``||H delta|| / ||g||``;
    - ``correct``; ``accuracy/clean``, ``accuracy/adversarial``: whether the label is predicted, without an attack and
      under the strongest of two;
    - ``plain/l2_distance``, ``plain/cosine``, ``rescaled/...``: of the gradients at the image and at the image with
      uniform noise of the largest epsilon, before and after the logits are doubled;
    - ``cost/step``, an entry a round: see :func:`robattr.studies.alignment.step_cost`.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        config: what is measured.
        training: of the network; None for published weights, which have no cost.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        folder: where finished parts are kept, so that a stopped run goes on; several processes may share it.
        max_batch: images attacked at once, also the part that is kept; fewer with methods that take many points for
            one image. By default 50; on a GPU as many small images as have the pixels of 50 of 224 x 224, 1,000 at
            most.
        progress: show a bar with the time left.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = model.to(device)
    if max_batch is None:
        side = 224**2 / (model.input_size[1] * model.input_size[2])
        max_batch = 50 if device.type == "cpu" else min(1000, max(1, int(50 * side)))
    wanted = max(config.images, config.adversarial_images)
    drawn = models.load_images(model, config.dataset, root=data_root, limit=wanted, seed=config.seed)
    x, labels = drawn.images, drawn.labels
    with torch.no_grad():
        prediction = torch.cat([model(part.to(device)).argmax(1).cpu() for part in torch.split(x, max_batch)])
    correct = prediction == labels
    values: dict[str, Tensor] = {"correct": correct[: config.images]}
    rows = torch.arange(min(config.images, len(x)))
    if config.correct_only:
        rows = rows[correct[: config.images]]
        if not len(rows):
            raise ValueError(f"none of {len(x)} images of {config.dataset} is classified correctly")
    chosen = x[rows]
    for (method, attack, epsilon), part in _parts(model, config, chosen, device, folder, max_batch, progress):
        for name, found in part.items():
            values[f"{method}/{attack}/{epsilon:g}/{name}"] = torch.tensor(found, dtype=torch.float64)
    if config.adversarial_images:
        n = config.adversarial_images
        values["accuracy/clean"] = correct[:n]
        values["accuracy/adversarial"] = _withstood(model, config, x[:n], labels[:n], device)
    if config.rescaled:
        values |= _rescaled(model, config, x[: config.rescaled].to(device), prediction[: config.rescaled].to(device))
    if config.cost and training is not None:
        cost = alignment.step_cost(training, device=device)
        values |= {} if cost is None else {"cost/step": torch.from_numpy(cost)}
    return Measured(
        dimension=x[0].numel(),
        values={name: v.double().cpu().numpy() for name, v in values.items()},
        dataset={"name": public_name(config.dataset), "split": "test", **drawn.provenance},
    )


_Combination = tuple[str, AttackName, float]
_Part = dict[str, list[float]]


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
        points = config.attribution_steps if combination[0] in _PATHS else 1
        return range(0, len(x), max(1, max_batch // points))

    def take(combination: _Combination, start: int, wait: bool) -> _Part | None:
        """The part that was measured before, or is now; None where another process measures it."""

        def measured() -> _Part:
            rows = slice(start, start + starts(combination).step)
            return _attacked(model, config, x[rows].to(device), *combination)

        if folder is None:
            return measured()
        method, attack, epsilon = combination
        path = Path(folder) / f"{method}-{attack}-{epsilon:g}-{start}.json"
        if (part := _kept(path)) is not None:
            return part
        with free(path, wait=wait) as mine:
            if not mine:
                return None
            if (part := _kept(path)) is None:  # still, now that nobody else has it
                part = measured()
                write_text(path, json.dumps(part))
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
        yield combination, {name: [v for part in parts for v in part[name]] for name in parts[0]}


def _kept(path: Path) -> _Part | None:
    """A part that was measured before; None where there is none, or where it is damaged."""
    try:
        found: _Part = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _attacked(model: nn.Module, config: Fragility, x: Tensor, method: str, attack: AttackName, epsilon: float) -> _Part:
    mask = config.mask(*x.shape[2:]).to(x.device)
    attribution = config.method(method)
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
    before, after = (heatmap(attribution(model, z, found.prediction)) for z in (x, found.images))
    measured = {
        "success": found.success,
        "topk_intersection": metrics.topk_intersection(before, after, config.k),
        "rank_correlation": metrics.spearman(before, after),
        "cosine": metrics.cosine(before, after),
        "center_shift": metrics.center_shift(before, after),
    }
    if attack == "targeted":
        measured |= {"mass_before": (before * mask).sum((1, 2)), "mass_after": (after * mask).sum((1, 2))}
    if method == "gradient" and config.beta is None:
        bent = metrics.curvature(model, x, found.prediction, found.images - x, max_batch=len(x))
        change = torch.where(bent.l2_distance == 0, 0, bent.l2_distance / bent.gradient_norm)
        measured |= {"first_order": bent.ratio, "relative_change": change}
    return {name: v.double().tolist() for name, v in measured.items()}


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
    for name, network in (("plain", model), ("rescaled", _Doubled(model))):
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
    "topk_intersection": "share of pixels",
    "mass_before": "share of the map",
    "mass_after": "share of the map",
    "center_shift": "pixels",
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
    return {"unit": _UNITS.get(parts[-1], "1"), **perturbed}


KIND = networks.Kind(
    "fragility",
    Fragility,
    measure,
    _describe,
    digits=5,
    code=(
        "data", "models", "_second_order", "attributions", "metrics", "attacks", "regularizers", "studies/fragility",
    ),
)  # fmt: skip
"""What :mod:`robattr.studies.networks` needs to know."""


def load_grid(path: Path | str) -> networks.Grid:
    """Read and check a grid of attacks; see :func:`robattr.studies.networks.load_grid`."""
    return networks.load_grid(path, KIND)


def load_records(folder: Path | str) -> list[Record]:
    """Every record of a folder, by name; see :func:`robattr.studies.networks.load_records`."""
    return networks.load_records(folder, KIND)
