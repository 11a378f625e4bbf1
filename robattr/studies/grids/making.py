"""From a network and a measurement to a record: loaded, trained, measured, written."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from robattr import data, models
from robattr._files import intact, keep_values, kept_values, locked, store, write_bytes, write_tensors
from robattr.studies import trainings
from robattr.studies.grids.grid import Grid
from robattr.studies.grids.kinds import Kind
from robattr.studies.grids.measured import Loaded, Network, Record, load_record, save_record
from robattr.studies.receipts import OWN
from robattr.studies.runs import code_digest, environment, files_digest, public_name, tf32
from robattr.studies.trainings import Training
from robattr.training import Compute

__all__ = ["check_before", "run", "run_record"]


def run_record(
    grid: Grid,
    name: str,
    path: Path | str,
    *,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    compute: Compute | None = None,
    progress: bool = True,
    **options: Any,
) -> Record | None:
    """Load (or train) one network of a grid, measure it, and write its record to ``path``.

    What is measured image by image is kept in ``<root>/<kind>-<name>-<key>`` as it comes; the key is that of the
    network and the measurement. A file of Python code that the grid names as a network is run only where it is
    named besides, see :func:`robattr.models.allowed`. With several devices the first process
    measures and writes; the others return None.
    Options are those of the kind's ``measure`` that change no value, as ``max_batch``.

    Raises:
        ValueError: there is no such run, or it names a file of code that nobody else did.
    """
    path = Path(path)
    if name not in grid.networks:
        raise ValueError(f"no run {name!r} (there are {', '.join(grid.networks)})")
    before = _stamp(path)
    models.check_allowed(grid.networks[name].code, f"the run {name} of the grid")
    check_before(grid.kind, grid.networks[name], dict(grid.runs())[name], data_root)
    loaded = grid.networks[name].load(
        root, data_root=data_root, compute=compute, recorded=grid.recorded.get(name), progress=progress
    )
    if not trainings.is_first():
        return None
    weights = None
    if grid.kind.keeps_weights and loaded.history:
        loaded, weights = _rounded(loaded, path)
    config, device = dict(grid.runs())[name], _device(compute)
    text = json.dumps([config.model_dump(mode="json"), loaded.source["weights"]["sha256"]], sort_keys=True)
    text += grid.kind.code + files_digest(config.dataset, data_root=data_root)
    parts = Path(root) / f"{grid.kind.name}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    # Of two processes that ask at once one measures; the other waits, and reads what that one wrote.
    with locked(parts):
        if _stamp(path) != before and (found := _same(path, grid.kind, config, loaded)) is not None:
            return found
        record = _measured(
            grid.kind, name, grid.networks[name], loaded, config, parts, data_root, device, progress, options
        )
        if weights is not None:  # only now: until here an earlier record may stand there, with weights of its own
            write_bytes(path.parent / record.weights["file"], weights)
        save_record(record, path)
    return record


def _stamp(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _same(path: Path, kind: Kind, config: Any, loaded: Loaded) -> Record | None:
    """The record at ``path``, where it is of this measurement of these weights."""
    try:
        found = load_record(path)
    except (OSError, ValueError):
        return None
    same = (
        found.kind is kind
        and found.config == config
        and found.weights.get("sha256") == loaded.source["weights"]["sha256"]
        and found.provenance["code"] == kind.code
    )
    return found if same else None


def run(
    kind: Kind,
    network: Network,
    config: Any,
    *,
    root: Path | str = "runs",
    data_root: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    **options: Any,
) -> Record:
    """A grid of one network that is kept in ``runs/``: loaded where it exists, measured and kept where it does not.

    A run is made again where its configuration, what the code does, or the contents of the reader's files changed, or
    where its own files were altered. Of two processes that ask at once one measures and the other loads.

    Args:
        kind: of the measurement.
        network: what is measured.
        config: the kind's.
        root: folder of the results, one folder ``<kind>-<key>`` a run.
        data_root: see :func:`robattr.data.load`.
        device: where to compute; a GPU when there is one by default.
        progress: show a bar with the time left.
        options: of the kind's ``measure`` that change no result, as ``max_batch``.
    """
    trained = network.training
    of_network = network.public.model_dump_json() if trained is None else trained.key_under(data_root)
    text = json.dumps([config.model_dump(mode="json"), of_network, kind.code, code_digest(models.build)])
    text += network.files_digest(config.dataset, data_root=data_root)
    folder = Path(root) / f"{kind.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with locked(folder):
        found = _kept(folder)
        if found is None:
            check_before(kind, network, config, data_root)
            loaded = network.load(root, data_root=data_root, progress=progress)
            parts = folder.with_name(f".{folder.name}.parts")
            found = _measured(kind, folder.name, network, loaded, config, parts, data_root, chosen, progress, options)
            # Paths to a reader's files are nobody else's business.
            public = config.model_copy(update={"dataset": public_name(config.dataset)})
            source = dict(found.provenance["network"])
            if found.training is not None:
                source["training"] = found.training.public.model_dump(mode="json")
            provenance = found.provenance | {"network": source}
            found = replace(found, config=public, network=network.public, provenance=provenance)
            _keep(found, folder)
            shutil.rmtree(parts, ignore_errors=True)
    return found


def check_before(kind: Kind, network: Network, config: Any, data_root: Path | str | None) -> None:
    """What would be found out only when a training is over: pictures and sizes that do not fit its network, and
    pictures of the measurement that cannot be read.
    """
    if network.training is None:
        return
    training = network.training
    shape = data.image_shape(training.dataset, training.size)
    kind.check(config, shape)
    there, images = data.contents(training.dataset, "train", root=data_root).images, training.images
    if training.validation + (images or 1) > there:
        asked = f"images is {images} and validation" if images else "validation is"
        raise ValueError(
            f"{asked} {training.validation} of the training; {training.dataset} (train) has {there} images for both"
        )
    split = getattr(config, "split", "test")
    found = data.contents(config.dataset, split, root=data_root)
    if found.class_names != data.contents(training.dataset, "train", root=data_root).class_names:
        raise ValueError(
            f"dataset is {config.dataset}; its classes are not those of {training.dataset}, the training's"
        )
    if (own := data.image_shape(config.dataset)[0]) != shape[0]:
        raise ValueError(f"dataset is {config.dataset} with {own} channels; the network is trained on {shape[0]}")
    wanted = [getattr(config, field, None) or 0 for field in ("images", "adversarial_images")]
    if max(wanted) > found.images:
        raise ValueError(f"images is {max(wanted)}; {config.dataset} ({split}) has {found.images}")
    if config.dataset.startswith("folder:") or data.is_streamed(config.dataset):
        drawn = None if kind.whole_split or config.images is None else max(wanted)
        try:
            data.check_pictures(config.dataset, split, root=data_root, limit=drawn, seed=config.seed)
        except data.DataError as error:
            if not data.is_streamed(config.dataset):
                raise
            raise data.DataError(f"{error}; --skip-corrupt leaves out pictures of the training alone") from error


def _measured(
    kind: Kind,
    name: str,
    network: Network,
    loaded: Loaded,
    config: Any,
    parts: Path,
    data_root: Path | str | None,
    device: torch.device,
    progress: bool,
    options: Mapping[str, Any] | None = None,
) -> Record:
    kind.check(config, loaded.model.input_size)
    earlier, started = _begin(parts), time.monotonic()
    training = loaded.source.get("training")
    with tf32(False):  # what is measured is float32, and so are its products, whoever asks for the record
        measured = kind.measure(
            loaded.model.to(device),
            config,
            training=None if training is None else Training.model_validate(training),
            data_root=data_root,
            device=device,
            folder=parts,
            progress=progress,
            **(options or {}),
        )
    keeps = kind.keeps_weights
    return Record(
        kind=kind,
        name=name,
        network=network,
        config=config,
        dimension=measured.dimension,
        values=measured.values,
        totals=measured.totals,
        provenance={
            "network": loaded.source,
            "dataset": measured.dataset,
            "device": str(device),
            "code": kind.code,
            "tf32": False,
            "seconds": round(earlier + time.monotonic() - started, 3),
            **environment(),
        },
        history=loaded.history if keeps else (),
        best=loaded.best if keeps else None,
        tensors=measured.tensors,
    )


def _begin(parts: Path) -> float:
    """Note that a process begins to measure; seconds that earlier ones worked on what they kept, however they ended.

    One that did not end well worked until the last file that it wrote.
    """
    note, now = parts / ".begun.json", time.time()
    before = kept_values(note)
    earlier = 0.0
    if before is not None:
        files = [path.stat().st_mtime for path in parts.rglob("*") if path.is_file()]
        earlier = before["earlier"] + max(max(files, default=0.0) - before["at"], 0.0)
    keep_values(note, {"at": now, "earlier": earlier})
    return earlier


def _rounded(loaded: Loaded, path: Path) -> tuple[Loaded, bytes]:
    """The network with its weights rounded to float16, and the file of those, which is to stand beside the record."""
    state = {name: v.half() if v.is_floating_point() else v for name, v in loaded.model.state_dict().items()}
    loaded.model.load_state_dict(state)
    content = save({name: v.cpu().contiguous() for name, v in state.items()})
    weights = {"sha256": hashlib.sha256(content).hexdigest(), "file": f"weights/{path.stem}.safetensors"}
    return replace(loaded, source=loaded.source | {"weights": weights}), content


def _device(compute: Compute | None) -> torch.device:
    # "gpu" and "auto" are Fabric's words.
    if compute is None or compute.accelerator in ("auto", "gpu"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(compute.accelerator)


def _keep(record: Record, folder: Path) -> None:
    def write(temporary: Path) -> None:
        save_record(record, temporary / "record.json", f"{OWN}/{folder.name}")
        write_tensors(temporary / "tensors.safetensors", record.tensors)

    store(folder, write)


def _kept(folder: Path) -> Record | None:
    """The stored run; None where there is none, or where it has to be made again."""
    if not intact(folder):
        return None
    try:
        found = load_record(folder / "record.json")
        tensors = load_file(folder / "tensors.safetensors")
    except (OSError, ValueError, SafetensorError):
        return None
    found.tensors.update(tensors)
    return found
