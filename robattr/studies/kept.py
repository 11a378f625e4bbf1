"""Attacked images of a few pictures, kept beside a record as whole numbers, so that everybody can see their effect.

The images of an attack by steps differ from the clean ones by whole numbers of steps, but for the edges of [0, 1],
which are whole numbers too where pictures have eight bits. These numbers are kept as PNG, 128 being none; what they do
to the map is then computed again with the weights of the network, in seconds and on any machine. Clean pictures are
kept beside them where they are small; others come from the data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robattr import data, metrics, models
from robattr._files import file_digest, write_bytes, write_text
from robattr.attacks.climbing import linf_ball
from robattr.attributions import heatmap
from robattr.models import Classifier
from robattr.studies import fragility
from robattr.studies.fragility import Fragility
from robattr.studies.grids import Record, load_record
from robattr.studies.runs import environment

__all__ = [
    "FOLDER",
    "Finding",
    "Kept",
    "clean_pictures",
    "drawn_images",
    "keep",
    "load_kept",
    "nearby",
    "network_of",
    "verify",
    "weights_place",
]

FOLDER = "images"
_NONE, _SMALL = 128, 64
ROUNDING = 1e-4
"""Largest difference of a float32 map on two processors, as a share of its largest value: each value of a gradient is a
sum of some thousand products, in several layers."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Attacked images of one record.

    Attributes:
        record: the record.
        folder: with the PNG files.
        index: of each picture among the attacked images of the record.
        seed: that chose them.
        clean: name and digest of the file of the clean pictures; None where they come from the data set.
        attacks: by ``<method>/<attack>/<epsilon>``: ``file`` and ``sha256``; ``unit`` of the whole numbers, in 1/255;
            ``values``, an entry a picture, by quantity.
    """

    record: Record
    folder: Path
    index: tuple[int, ...]
    seed: int
    clean: dict[str, str] | None
    attacks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """What became of one thing that was checked.

    Attributes:
        what: it is.
        state: ``ok``, ``differs`` or ``skipped``.
        said: the figures, or why it was skipped.
    """

    what: str
    state: str
    said: str = ""


def keep(
    path: Path | str,
    *,
    images: int = 16,
    seed: int = 0,
    attacks: tuple[str, ...] = ("top-k", "mass-center", "random-sign"),
    data_root: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Attack some pictures of a record again, and keep the changes and what they do.

    Args:
        path: of a record of the kind fragility, whose weights are here.
        images: how many; all where there are fewer.
        seed: that draws them among those of the record.
        attacks: those of the record that are kept, by name; with the gradient at its largest epsilon.
        data_root: see :func:`robattr.data.load`.
        device: where to compute.

    Returns:
        The file that says what was kept.

    Raises:
        ValueError: the record is of another kind, or an attack does not move by whole steps.
        DataError, ModelError: the pictures or the weights are not here, or not those that were measured.
    """
    path = Path(path)
    record = load_record(path)
    if record.kind.name != "fragility":
        raise ValueError(f"{path} is a record of {record.kind.name}; images are kept of the kind fragility")
    config: Fragility = record.config
    model = network_of(record, path.parent).to(device)
    drawn = drawn_images(record, model, data_root)
    epsilon = max(config.epsilons)
    method = config.attributions[0]
    places = [f"{method}/{attack}/{epsilon:g}" for attack in attacks if attack in config.attacks]
    if not places:
        raise ValueError(f"attacks is {', '.join(attacks)}; {path} has {', '.join(config.attacks)}")
    there = fragility.attacked(record, method, config.attacks[0], epsilon).index
    chosen = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed))[:images].sort().values.tolist()
    x = drawn[torch.as_tensor(there)[chosen]].to(device)
    folder = path.parent / FOLDER / path.stem
    # Files are written when all of them are there: until then those of an earlier call stay as they are.
    files: dict[str, bytes] = {}
    clean = None
    if max(x.shape[2:]) <= _SMALL:
        files["clean.png"] = _png(_levels(x))
        clean = _entry("clean.png", files)
    kept = {}
    for place in places:
        attack: Any = place.split("/")[1]
        _, moved = fragility.attack_images(model, config, x, method, attack, epsilon)
        # At the edges of [0, 1] a change is cut to whole 1/255.
        unit = 1.0 if attack == "random-sign" else min(config.step, 1.0)
        steps = _steps(x, moved, unit)
        values = _effect(_pair(model, config, x, _moved(x, steps, unit, epsilon), method), config.k)
        file = f"{place.replace('/', '-')}.png"
        files[file] = _png((steps + _NONE).to(torch.uint8))
        kept[place] = {
            **_entry(file, files),
            "unit": unit,
            "values": {name: [float(f"{v:.6g}") for v in found.tolist()] for name, found in values.items()},
        }
    name = f"{path.parent.name}/{path.stem}"
    content = {
        "record": name,
        "weights_sha256": record.weights["sha256"],
        "index": chosen,
        "seed": seed,
        "command": f"robattr keep results/reference/{name}.json --images {images} --seed {seed}",
        "clean": clean,
        "attacks": kept,
        "made": environment(),
    }
    for file, png in files.items():
        write_bytes(folder / file, png)
    said = folder.with_suffix(".json")
    write_text(said, json.dumps(content, indent=1) + "\n")
    return said


def load_kept(path: Path | str) -> Kept:
    """What :func:`keep` wrote.

    Raises:
        ValueError: the file holds something else, or was kept of other weights than those of the record.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = load_record(path.parents[1] / f"{path.stem}.json")
        if content["weights_sha256"] != record.weights["sha256"]:
            raise ValueError("it was kept of other weights than the record's; keep it again")
        fields = {name: content[name] for name in ("seed", "clean", "attacks")}
        return Kept(record, path.with_suffix(""), index=tuple(content["index"]), **fields)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no kept images ({' '.join(str(error).split())})") from None


def network_of(record: Record, folder: Path) -> Classifier:
    """The network of a record, with the weights that were measured: bundled, or kept by a grid beside this one.

    Args:
        record: of whatever kind.
        folder: of the record.

    Raises:
        ModelError: they are not here, or others.
    """
    if record.training is None:
        loaded = record.network.load()
        if loaded.source["weights"]["sha256"] != record.weights["sha256"]:
            raise models.ModelError(f"{record.network.model}: the weights here are not those that were measured")
        return loaded.model
    if (place := weights_place(record, folder)) is not None:
        return record.load_model(place)
    raise models.ModelError(f"{folder.name}/{record.name}: no grid here has kept its weights")


def weights_place(record: Record, folder: Path) -> Path | None:
    """The folder of a grid with the file of weights that were measured: the record's own or one beside it, if any."""
    file = record.weights.get("file")
    if file is not None:
        for place in (folder, *sorted(folder.parent.iterdir())):
            if (place / file).is_file() and file_digest(place / file) == record.weights["sha256"]:
                return place
    return None


def drawn_images(record: Record, model: Classifier, data_root: Path | str | None = None) -> Tensor:
    """The images that were drawn for a record [N, C, H, W], by their checksum. Nothing is fetched.

    A folder of pictures is looked for where the record has it, and in the data folder by its name, also with
    ``-samples``.

    Raises:
        DataError: they are not here, or others.
    """
    config, noted = record.config, record.provenance["dataset"]
    kind, _, path = config.dataset.partition(":")
    names = [config.dataset]
    if kind == "folder":
        root = data.data_root(data_root)
        names += [f"folder:{root / (Path(path).name + suffix)}" for suffix in ("", "-samples")]
        names = [name for name in names if Path(name.partition(":")[2]).is_dir()]
    else:
        there = {each.name for each in data.available(data_root) if each.present}
        names = [name for name in names if name in there]
    for name in names:
        found = models.load_images(
            model, name, getattr(config, "split", "test"), root=data_root, limit=config.images, seed=config.seed
        )
        if found.provenance["sha256"] == noted["sha256"]:
            return found.images
    raise data.DataError(f"{noted['name']} is not here" if not names else f"{noted['name']} here are other images")


def clean_pictures(kept: Kept, model: Classifier, data_root: Path | str | None = None) -> Tensor:
    """The clean pictures [N, C, H, W] in [0, 1].

    Raises:
        ValueError: the file of them is not the one that was kept.
        DataError: they come from the data set, which is not here.
    """
    if kept.clean is not None:
        return _read(kept, kept.clean).float() / 255
    return _of_data(kept, model, data_root)


def _of_data(kept: Kept, model: Classifier, data_root: Path | str | None) -> Tensor:
    method, attack, epsilon = next(iter(kept.attacks)).split("/")
    there = fragility.attacked(kept.record, method, attack, float(epsilon)).index  # type: ignore[arg-type]
    return drawn_images(kept.record, model, data_root)[torch.as_tensor(there)[list(kept.index)]]


def verify(kept: Kept, *, data_root: Path | str | None = None, at_most: int | None = None) -> list[Finding]:
    """Compute the effect of kept images again, with the weights that are here, and compare it with what was recorded.

    The bound on the change and the prediction have to be exact. The share of top pixels may differ by those pixels that
    rounding could put on either side, see :data:`ROUNDING`; beyond that, from the record's own run by what another path
    of the same attack can do, see :func:`robattr.studies.checking.drift`.

    Args:
        kept: the images.
        data_root: see :func:`robattr.data.load`.
        at_most: pictures that are looked at, from the first; None for all.
    """
    grid = kept.folder.parents[1]
    name = f"{grid.name}/{kept.folder.name}"
    try:
        model = network_of(kept.record, grid)
    except models.ModelError as error:
        return [Finding(f"images of {name}", "differs", str(error))]
    try:
        x = clean_pictures(kept, model, data_root)
    except data.DataError as error:
        return [Finding(f"images of {name}", "skipped", str(error))]
    except ValueError as error:
        return [Finding(f"images of {name}", "differs", str(error))]
    found = []
    if kept.clean is not None:
        found.append(_same_pictures(kept, x, model, data_root, name))
    x = x[:at_most]
    for place, entry in kept.attacks.items():
        what = f"images of {name}, {place}"
        try:
            steps = (_read(kept, entry).int() - _NONE)[:at_most]
        except ValueError as error:
            found.append(Finding(what, "differs", str(error)))
            continue
        method, _, epsilon = place.split("/")
        found.append(_looked_at(kept, entry, x, steps, model, method, float(epsilon), what))
    return found


def nearby(
    kept: Kept, reach: int, *, data_root: Path | str | None = None
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """How many of the top pixels have one of the changed map in their neighborhood, on the kept images.

    Records have the intersection alone, which says nothing of what is near.

    Args:
        kept: the images.
        reach: pixels to each side that are near, see :func:`robattr.metrics.nearby_intersection`.
        data_root: see :func:`robattr.data.load`.

    Returns:
        By attack: the share [n], and the same beyond chance [n].

    Raises:
        ValueError, DataError, ModelError: images, data or weights are not here, or not those that were kept.
    """
    model, config = network_of(kept.record, kept.folder.parents[1]), kept.record.config
    x = clean_pictures(kept, model, data_root)
    found = {}
    for place, entry in kept.attacks.items():
        method, attack, epsilon = place.split("/")
        moved = _moved(x, _read(kept, entry).int() - _NONE, float(entry["unit"]), float(epsilon))
        one, two = _pair(model, config, x, moved, method).maps
        share, beyond = (
            metrics.nearby_intersection(one, two, config.k, reach=reach, beyond_chance=b).double().numpy()
            for b in (False, True)
        )
        found[attack] = share, beyond
    return found


def _same_pictures(kept: Kept, x: Tensor, model: Classifier, data_root: Path | str | None, name: str) -> Finding:
    what = f"clean pictures of {name} are those of {kept.record.provenance['dataset']['name']}"
    try:
        same = torch.equal(_of_data(kept, model, data_root), x)
    except data.DataError as error:
        return Finding(what, "skipped", str(error))
    return Finding(what, "ok" if same else "differs", f"{len(x)} pictures")


def _looked_at(
    kept: Kept,
    entry: dict[str, Any],
    x: Tensor,
    steps: Tensor,
    model: Classifier,
    method: str,
    epsilon: float,
    what: str,
) -> Finding:
    unit = float(entry["unit"])
    longest = float(steps.abs().max()) * unit
    if longest > epsilon:
        return Finding(what, "differs", f"a value changes by {longest:g}/255, more than {epsilon:g}/255")
    config: Fragility = kept.record.config
    moved = _moved(x, steps, unit, epsilon)
    pair = _pair(model, config, x, moved, method)
    now, slack = _effect(pair, config.k), _slack(pair, config.k)
    noted = {quantity: torch.tensor(values[: len(x)]) for quantity, values in entry["values"].items()}
    lost = int((now["success"] < noted["success"]).sum())
    if lost:
        return Finding(what, "differs", f"{lost} of {len(x)} predictions are not kept")
    for quantity in ("topk_intersection", "cosine"):
        apart = (now[quantity] - noted[quantity]).abs() - slack[quantity]
        if bool((apart > 0).any()):
            worst = int(apart.argmax())
            return Finding(
                what, "differs",
                f"{quantity} of picture {kept.index[worst]} is {now[quantity][worst]:.4g} and was kept as "
                f"{noted[quantity][worst]:.4g}",
            )  # fmt: skip
    return Finding(what, "ok", f"{len(x)} pictures, {now['topk_intersection'].mean():.3f} of the top pixels left")


@dataclass(frozen=True, eq=False)
class _Pair:
    """Images before and after a change: whether the prediction is kept and the image another one, and both heatmaps."""

    success: Tensor
    maps: tuple[Tensor, Tensor]


def _pair(model: Classifier, config: Fragility, x: Tensor, moved: Tensor, method: str) -> _Pair:
    with torch.no_grad():
        labels, after = model(x).argmax(1), model(moved)
    attribution = config.method(method, model, x)
    # Two logits that rounding could put into the other order are no other prediction.
    top = after.max(1).values
    kept = top - after.gather(1, labels[:, None]).squeeze(1) <= ROUNDING * after.abs().amax(1)
    # An attack that failed returned the clean image.
    success = kept & (moved != x).flatten(1).any(1)
    return _Pair(success, (heatmap(attribution(model, x, labels)), heatmap(attribution(model, moved, labels))))


def _effect(pair: _Pair, k: int) -> dict[str, Tensor]:
    """What changed images do, as a record says it; of one whose prediction is lost, as it is."""
    return {
        "success": pair.success.double(),
        "topk_intersection": metrics.topk_intersection(*pair.maps, k).double(),
        "cosine": metrics.cosine(*pair.maps).double(),
    }


def _slack(pair: _Pair, k: int) -> dict[str, Tensor]:
    """How far rounding of either map may move each quantity; six digits are kept."""
    n = len(pair.success)
    either, length = torch.zeros(n), torch.zeros(n)
    for each in pair.maps:
        flat = each.flatten(1)
        error = ROUNDING * flat.amax(1, keepdim=True)
        edge = flat.topk(k).values[:, -1:]
        # Both the pixel and the edge can be off by the error.
        either += ((flat - edge).abs() <= 2 * error).sum(1).cpu() - 1
        length += (error.squeeze(1) * flat.shape[1] ** 0.5 / torch.linalg.vector_norm(flat, dim=1)).cpu()
    # Of unit vectors that each move by that length, the cosine moves by no more than their sum, and its square.
    return {"topk_intersection": either / k + 1e-5, "cosine": 2 * length + length**2 + 1e-5}


def _steps(x: Tensor, moved: Tensor, unit: float) -> Tensor:
    """Changes as whole numbers of units of 1/255.

    Raises:
        ValueError: they are none.
    """
    found = (moved.double() - x.double()) * (255 / unit)
    steps = found.round()
    if bool(((found - steps).abs() > 1e-3).any()):
        raise ValueError(f"changes are no whole numbers of {unit:g}/255: pictures of eight bits and steps are wanted")
    return steps.int().cpu()


def _moved(x: Tensor, steps: Tensor, unit: float, epsilon: float) -> Tensor:
    """The changed images, exactly within the ball and [0, 1]."""
    lower, upper = linf_ball(x, epsilon / 255)
    wide = x.double() + steps.to(x.device).double() * (unit / 255)
    return wide.to(x.dtype).clamp(lower, upper)


def _levels(x: Tensor) -> Tensor:
    levels = (x * 255).round()
    if not torch.equal(levels / 255, x):
        raise ValueError("clean pictures are not of eight bits; their changes cannot be kept as whole numbers")
    return levels.to(torch.uint8).cpu()


def _png(pictures: Tensor) -> bytes:
    """Pictures uint8 [N, C, H, W] as one PNG, below each other."""
    n, channels, height, width = pictures.shape
    sheet = pictures.permute(0, 2, 3, 1).reshape(n * height, width, channels).numpy()
    found = BytesIO()
    Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(found, format="PNG", optimize=True)
    return found.getvalue()


def _entry(file: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {"file": file, "sha256": hashlib.sha256(files[file]).hexdigest()}


def _read(kept: Kept, entry: dict[str, Any]) -> Tensor:
    path = kept.folder / entry["file"]
    if not path.is_file() or file_digest(path) != entry["sha256"]:
        raise ValueError(f"{path.name} is missing or not the file that was kept")
    with Image.open(path) as image:
        sheet = np.array(image)
    sheet = sheet[..., None] if sheet.ndim == 2 else sheet
    n = len(kept.index)
    rows = torch.from_numpy(sheet.reshape(n, sheet.shape[0] // n, *sheet.shape[1:]))
    return rows.permute(0, 3, 1, 2).contiguous()
