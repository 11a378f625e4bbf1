"""Sets that stay in their files: which images, prepared how, in bounded memory, and into a training."""

from __future__ import annotations

import functools
import logging
import math
import threading
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import REPOSITORY
from interrupted import Stop, StopsAt
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import functional

from robattr import cli, data, models, training
from robattr.data import DataError, ImageSet, ImageStream, imagenet, streams
from robattr.regularizers import CrossEntropy, Losses
from robattr.studies import grids, trainings
from robattr.studies.runs import files_digest
from robattr.studies.trainings import Training
from robattr.training import Compute, Schedule, TrainingResult

TINY = [f"n{9_000_000 + number:08d}" for number in range(100)]
OTHER = "n02123045"  # a class of ImageNet's that is none of the 100


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Coarse noise, so that a JPEG keeps it and a shift is seen."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write(root: Path, train: int = 3, test: int = 1) -> Path:
    """A small folder of the form of both sets: a few pictures in each of their 100 classes."""
    for folder, ids, side in (("imagenet", imagenet.IMAGENET100_CLASSES, None), ("tiny-imagenet-100", TINY, 64)):
        for part, images in (("train", train), ("val", test)):
            for label, wnid in enumerate([*ids, OTHER] if side is None else ids):
                (root / folder / part / wnid).mkdir(parents=True)
                for number in range(images):
                    seed = 1000 * label + 10 * number + (part == "val")
                    size = (side, side) if side else (40 + seed % 23, 40 + seed % 17)
                    picture(seed, *size).save(root / folder / part / wnid / f"{wnid}_{number}.JPEG", quality=90)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"))


def some(root: Path, n: int, folder: str = "tiny-imagenet-100") -> ImageStream:
    """``n`` images of the first classes of a folder that was written, at a handy size."""
    return data.stream(folder, root=root, size=16).select(torch.arange(n))


def rows(n: int, batch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(5))[: n // batch * batch].view(-1, batch)


def batches(found: ImageStream, index: Any, **options: Any) -> tuple[Tensor, Tensor]:
    images, labels = zip(*found.batches(index, **options), strict=True)
    return torch.cat(images), torch.cat(labels)


# --- which images ---------------------------------------------------------------------------------------------------


def test_the_classes_are_a_hundred_of_imagenets() -> None:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    known = {info.index_to_label_name(i) for i in range(1000)}
    classes = imagenet.IMAGENET100_CLASSES
    assert len(set(classes)) == len(classes) == 100
    assert set(classes) < known
    assert list(classes) == sorted(classes)


def test_of_imagenet_the_hundred_classes_are_taken(root: Path) -> None:
    train, test = data.stream("imagenet-100", root=root), data.stream("imagenet-100", "test", root=root)
    assert (len(train), len(test)) == (300, 100)
    assert train.shape == (3, 224, 224)
    for found, part in ((train, "train"), (test, "val")):
        for name, label in zip(found.names.tolist(), found.labels.tolist(), strict=True):
            folder, wnid, _ = name.decode().split("/")
            assert (folder, wnid) == (part, imagenet.IMAGENET100_CLASSES[label])
    assert train.class_names[:2] == ("tench", "goldfish")
    assert len(train.class_names) == 100


def test_draws_are_those_of_a_set_in_memory(root: Path) -> None:
    whole = data.stream("tiny-imagenet-100", root=root)
    drawn = data.stream("tiny-imagenet-100", root=root, limit=7, seed=3)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))[:7]
    assert drawn.names.tolist() == whole.names[order.numpy()].tolist()
    assert drawn.labels.tolist() == whole.labels[order].tolist()
    assert drawn.provenance == whole.subset(7, 3).provenance
    assert drawn.provenance["selection"] == "7 of 300, drawn with seed 3"
    held = data.load("tiny-imagenet-100", "train", root=root, limit=7, seed=3)
    assert torch.equal(held.labels, drawn.labels)
    for bad in ([], [300], [-1], [0.5]):
        with pytest.raises(DataError, match="indices must be a non-empty list of integers from 0 to 299"):
            whole.select(bad)


def test_the_checksum_is_of_names_and_sizes_and_says_so(tmp_path: Path) -> None:
    write(tmp_path, train=1)
    whole = data.stream("tiny-imagenet-100", root=tmp_path)
    first = whole.provenance["sha256"]
    assert whole.provenance["sha256_of"].startswith("names and sizes")
    assert whole.select([0]).provenance["sha256"] != first
    assert whole.select(torch.arange(100)).provenance["sha256"] == first
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert data.stream("tiny-imagenet-100", root=moved).provenance["sha256"] == first
    with next((moved / "tiny-imagenet-100" / "train" / TINY[4]).iterdir()).open("ab") as file:
        file.write(b"\0")
    streams._listed_class.cache_clear()  # another process would not have listed it
    assert data.stream("tiny-imagenet-100", root=moved).provenance["sha256"] != first
    held = data.load("tiny-imagenet-100", root=moved, limit=3)
    assert isinstance(held, ImageSet)
    assert "sha256_of" not in held.provenance  # of pixels, as everywhere


def test_what_is_not_there_is_answered_with_its_place(tmp_path: Path) -> None:
    for name, folder in (("imagenet-100", "imagenet"), ("tiny-imagenet-100", "tiny-imagenet-100")):
        assert not {info.name: info.present for info in data.available(tmp_path)}[name]
        for call in (data.load, data.fetch, data.stream):
            with pytest.raises(DataError, match=r"train/<WordNet id>/\*\.JPEG and val/") as error:
                call(name, root=tmp_path)
            assert str(tmp_path / folder) in str(error.value)
            assert "\n" not in str(error.value)
    write(tmp_path)
    listed = {info.name: info for info in data.available(tmp_path)}
    assert listed["imagenet-100"].present
    assert listed["tiny-imagenet-100"].present
    assert data.fetch("imagenet-100", tmp_path) == tmp_path / "imagenet"
    for wnid, part in ((imagenet.IMAGENET100_CLASSES[7], "val"), (TINY[9], "val")):
        folder = next(tmp_path.glob(f"*/{part}/{wnid}"))
        for file in folder.iterdir():
            file.unlink()
        with pytest.raises(DataError, match=f"{wnid} has no images"):
            data.stream("imagenet-100" if "tiny" not in str(folder) else "tiny-imagenet-100", "test", root=tmp_path)
        folder.rmdir()
    assert not any(info.present for info in data.available(tmp_path) if "imagenet-100" in info.name)


def test_a_split_with_other_classes_is_refused_by_their_names(tmp_path: Path) -> None:
    folder = write(tmp_path, train=1) / "tiny-imagenet-100"
    (folder / "val" / TINY[3]).rename(folder / "val" / "n00000001")
    for split, order in (("train", ("train", "val")), ("test", ("val", "train"))):
        names = (TINY[3], "n00000001") if split == "train" else ("n00000001", TINY[3])
        said = f"only {order[0]} has {names[0]}; only {order[1]} has {names[1]}; give both the same folders"
        for call in (data.load, data.stream, data.contents):
            with pytest.raises(DataError, match=rf"^tiny-imagenet-100 has other classes in [^\n]+: {said}$"):
                call("tiny-imagenet-100", split, root=tmp_path)
    assert not {info.name: info.present for info in data.available(tmp_path)}["tiny-imagenet-100"]
    for number in range(4, 9):
        (folder / "val" / TINY[number]).rename(folder / "val" / f"n0000000{number}")
    with pytest.raises(DataError, match=rf"only train has {TINY[3]}, {TINY[4]}, {TINY[5]} and 3 more; only val has"):
        data.fetch("tiny-imagenet-100", tmp_path)
    # One split alone is enough for what reads that one.
    (folder / "val").rename(tmp_path / "elsewhere")
    assert len(data.stream("tiny-imagenet-100", root=tmp_path)) == 100


def test_other_classes_than_the_hundred_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, train=1) / "imagenet" / "val" / imagenet.IMAGENET100_CLASSES[5]
    folder.rename(folder.with_name("n00000001"))
    for call in (data.load, data.contents):
        with pytest.raises(DataError, match=rf"imagenet-100 has no [^\n]+/val/{folder.name}; put ImageNet"):
            call("imagenet-100", "test", root=tmp_path)
    assert not {info.name: info.present for info in data.available(tmp_path)}["imagenet-100"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar10", {}, "cifar10 is loaded into memory; take data.load"),
        ("imagenet-100", {"split": "val"}, "imagenet-100 has no split 'val'; it has: train, test"),
        ("imagenet-100", {"size": 0}, "size must be at least 1 pixel; got 0"),
        ("imagenet-100", {"limit": 301}, "limit must be from 1 to 300, the number of images in imagenet-100; got 301"),
        ("imagenet", {}, "did you mean 'imagenet-100'"),
    ],
)
def test_impossible_streams_are_refused(name: str, options: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(DataError, match=r"^[^\n]+$") as error:
        data.stream(name, root=root, **options)
    assert message in str(error.value)


def test_too_much_for_memory_is_refused_before_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_MOST_BYTES", 4 * 3 * 224**2 * 20)
    monkeypatch.setattr(streams, "_opened", lambda path: pytest.fail("it was read"))
    with pytest.raises(DataError, match=r"for 21 images.*give a limit, or take data\.stream"):
        data.load("imagenet-100", root=root, limit=21)
    monkeypatch.undo()
    assert len(data.load("imagenet-100", root=root, limit=2)) == 2


# --- prepared how ---------------------------------------------------------------------------------------------------


def test_for_testing_photographs_are_what_torchvision_makes_of_them(root: Path) -> None:
    found = data.stream("imagenet-100", "test", root=root, limit=8)
    images, labels = batches(found, torch.arange(8).view(2, 4))
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    for image, name in zip(images, found.names.tolist(), strict=True):
        with Image.open(root / "imagenet" / name.decode()) as file:
            assert torch.equal((image * 255).round().to(torch.uint8), reference(file.convert("RGB")))
    assert torch.equal(labels, found.labels)
    assert images.is_contiguous(memory_format=torch.channels_last)
    held = data.load("imagenet-100", root=root, limit=8)
    assert torch.equal(held.images, images)
    assert "256 px (bilinear), center crop of 224 px" in held.provenance["prepared"]


def test_for_testing_small_images_are_as_they_are(root: Path) -> None:
    found = data.stream("tiny-imagenet-100", "test", root=root, limit=4)
    for image, name in zip(found.read().images, found.names.tolist(), strict=True):
        with Image.open(root / "tiny-imagenet-100" / name.decode()) as file:
            pixels = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
        assert torch.equal((image * 255).round().to(torch.uint8), pixels)


def test_for_training_photographs_are_parts_of_them(root: Path) -> None:
    found = data.stream("imagenet-100", root=root, limit=12)
    images, _ = batches(found, torch.arange(12).view(3, 4), crops=(7, 2))
    mirrored = 0
    for index, (image, name) in enumerate(zip(images, found.names.tolist(), strict=True)):
        with Image.open(root / "imagenet" / name.decode()) as file:
            rgb = file.convert("RGB")
        numbers = streams._numbers(7, 2, index)
        left, top, right, bottom = streams._random_box(*rgb.size, numbers)
        part = functional.resized_crop(rgb, top, left, bottom - top, right - left, [224, 224])
        if numbers[-1] < 0.5:
            part, mirrored = functional.hflip(part), mirrored + 1
        assert torch.equal((image * 255).round().to(torch.uint8), functional.pil_to_tensor(part))
    assert 0 < mirrored < 12


def test_parts_are_drawn_as_torchvision_draws_them() -> None:
    width, height, n = 500, 375, 3000
    ours = np.array([streams._random_box(width, height, streams._numbers(0, 0, index)) for index in range(n)])
    torch.manual_seed(1)
    size = torch.empty(3, height, width)
    theirs = [transforms.RandomResizedCrop.get_params(size, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    boxes = np.array([(left, top, left + w, top + h) for top, left, h, w in theirs])
    # Both follow one distribution: a p-value below this would come once in a thousand times as many tests.
    for mine, reference in ((ours, boxes), (ours[:, 2:] - ours[:, :2], boxes[:, 2:] - boxes[:, :2])):
        for a, b in zip(mine.T, reference.T, strict=True):
            assert ks_2samp(a, b).pvalue > 1e-4
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2] <= width).all()
    assert (ours[:, 3] <= height).all()


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000)])
def test_where_no_part_fits_the_center_is_taken_as_torchvision_does(width: int, height: int) -> None:
    # A part of 8% of 10 x 1,000 pixels has sides of at least sqrt(800 * 3 / 4) pixels: more than ten.
    top, left, h, w = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), [0.08, 1], [3 / 4, 4 / 3])
    assert streams._random_box(width, height, streams._numbers(0, 0, 0)) == (left, top, left + w, top + h)


def test_for_training_small_images_are_shifted_over_black(root: Path) -> None:
    found = data.stream("tiny-imagenet-100", root=root, limit=40)
    images, _ = batches(found, torch.arange(40).view(4, 10), crops=(0, 0))
    plain = found.read().images
    shifts = set()
    for image, original in zip(images, plain, strict=True):
        padded = nn.functional.pad(original, [8] * 4)
        places = [
            (down, right, mirrored)
            for down in range(17)
            for right in range(17)
            for mirrored, seen in ((False, image), (True, image.flip(2)))
            if torch.equal(padded[:, down : down + 64, right : right + 64], seen)
        ]
        assert len(places) == 1
        shifts.add(places[0])
    assert len(shifts) > 30  # of 578 that are possible
    assert {mirrored for _, _, mirrored in shifts} == {False, True}
    assert "up to 8 px" in found.provenance["augmented"]


# --- random numbers -------------------------------------------------------------------------------------------------


def test_a_batch_depends_on_seed_epoch_and_images_alone(root: Path) -> None:
    found = some(root, 24, "imagenet-100")
    index = rows(24, 4)
    images, labels = batches(found, index, crops=(1, 5))
    assert torch.equal(labels, found.labels[index.flatten()])
    for workers in (2, 5):
        assert torch.equal(batches(found, index, crops=(1, 5), workers=workers)[0], images)
    # From the middle, in another order, in other batches.
    assert torch.equal(batches(found, index[3:], crops=(1, 5))[0], images[12:])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(batches(found, index.flatten()[order].view(3, 8), crops=(1, 5))[0], images[order])
    for other in ((1, 6), (2, 5), None):
        again, _ = batches(found, index, crops=other)
        assert not any(torch.equal(a, b) for a, b in zip(again, images, strict=True))


# --- what cannot be read --------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> ImageStream:
    """Twelve images, a class each three; the fifth and the sixth and the last cannot be read."""
    found = some(write(tmp_path, train=3), 12)
    for index in (4, 5, 11):
        path = tmp_path / "tiny-imagenet-100" / found.names[index].decode()
        path.write_bytes(path.read_bytes()[:200])
    return found


def test_a_corrupt_image_stops_and_is_named(damaged: ImageStream) -> None:
    for workers in (1, 3):
        with pytest.raises(DataError, match="with --skip-corrupt a training goes on without it"):
            batches(damaged, torch.arange(12).view(3, 4), workers=workers, crops=(0, 0))
        with pytest.raises(DataError, match=r"cannot be read as an image .*; replace or remove it$") as error:
            batches(damaged, torch.arange(12).view(3, 4), workers=workers)
        assert damaged.names[4].decode() in str(error.value)
        assert "\n" not in str(error.value)


def test_corrupt_images_are_left_out_named_and_counted(damaged: ImageStream, caplog: pytest.LogCaptureFixture) -> None:
    whole = [0, 1, 2, 3, 6, 7, 8, 9, 10]
    with caplog.at_level(logging.WARNING, "robattr"):
        images, labels = batches(damaged, torch.arange(12).view(3, 4), corrupt="skip", workers=2)
        assert torch.equal(images, damaged.select(whole).read().images)
        assert torch.equal(labels, damaged.labels[whole])
        batches(damaged.select([4, 0]), torch.tensor([[0, 1]]), corrupt="skip")
    names = {damaged.names[index].decode() for index in (4, 5, 11)}
    assert set(damaged.unreadable) == names
    assert len(caplog.records) == 3  # once each
    assert all(any(name in line.getMessage() for line in caplog.records) for name in names)
    assert "(3 so far in tiny-imagenet-100)" in caplog.records[-1].getMessage()


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write(tmp_path, train=1) / "tiny-imagenet-100" / "train" / TINY[0]
    (folder / "a.JPEG").symlink_to(tmp_path / "not there")
    (folder / "b.JPEG").symlink_to("b.JPEG")
    found = some(tmp_path, 3)
    assert found.sizes.tolist()[:2] == [-1, -1]
    with pytest.raises(DataError, match=r"a\.JPEG cannot be read as an image"):
        found.read()
    assert len(batches(found, torch.arange(3).view(1, 3), corrupt="skip")[1]) == 1
    assert [name.split("/")[-1] for name in found.unreadable] == ["a.JPEG", "b.JPEG"]


def test_the_place_of_a_corrupt_image_is_taken_by_the_next(damaged: ImageStream) -> None:
    taken = [0, 1, 2, 3, 6, 6, 6, 7, 8, 9, 10, 0]
    for workers in (1, 3):
        options: dict[str, Any] = {"corrupt": "skip", "full": True, "crops": (0, 0), "workers": workers}
        images, labels = batches(damaged, torch.arange(12).view(3, 4), **options)
        assert torch.equal(labels, damaged.labels[taken])
        assert torch.equal(images, batches(damaged, torch.tensor(taken).view(3, 4), crops=(0, 0))[0])
    none = damaged.select([4, 5])
    with pytest.raises(DataError, match="none of the 2 images of tiny-imagenet-100 can be read"):
        batches(none, torch.tensor([[0, 1]]), corrupt="skip", full=True)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many decoded images there were at once, counted whenever a batch was made or given out."""
    counts: list[int] = []
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    image, batch, given = ImageStream._image, ImageStream._batch, ImageStream.batches

    class Pixels(np.ndarray):  # type: ignore[type-arg]
        """An array that takes an attribute."""

    def one(self: ImageStream, *arguments: Any) -> Any:
        pixels = image(self, *arguments).view(Pixels)
        alive.add(weigh(pixels, 1))
        return pixels

    class Weight:
        def __init__(self, images: int) -> None:
            self.images = images

    def weigh(of: Any, images: int) -> Weight:
        of.weight = Weight(images)  # lives as long
        return of.weight  # type: ignore[no-any-return]

    def follow(images: Tensor) -> None:
        alive.add(weigh(images, len(images)))
        counts.append(sum(each.images for each in list(alive)))

    def made(self: ImageStream, *arguments: Any) -> tuple[Tensor, Tensor]:
        found = batch(self, *arguments)
        follow(found[0])
        return found

    def handed(self: ImageStream, *arguments: Any, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for found in given(self, *arguments, **options):
            follow(found[0])
            yield found
            del found

    monkeypatch.setattr(ImageStream, "_image", one)
    monkeypatch.setattr(ImageStream, "_batch", made)
    monkeypatch.setattr(ImageStream, "batches", handed)
    return counts


@pytest.mark.parametrize("n", [16, 64, 280])
def test_memory_does_not_grow_with_the_number_of_images(n: int, root: Path, living: list[int]) -> None:
    workers, size = 2, 4
    found = data.stream("tiny-imagenet-100", root=root, size=16)
    train_on(found.select(torch.arange(n)), found.select(torch.arange(280, 288)), workers=workers, epochs=2)
    assert len(living) >= 2 * n // size
    # A batch that each thread makes, images and their stack; as many that wait; one in use, and what it was made of.
    assert max(living) <= size * (3 * workers + 2)


def test_who_stops_listening_stops_the_reading(root: Path, living: list[int]) -> None:
    reading = some(root, 280).batches(torch.arange(280).view(70, 4), workers=2)
    next(reading)
    reading.close()
    assert len(living) <= 1 + 3  # one was given out; three were begun


# --- training -------------------------------------------------------------------------------------------------------


class Counting(StopsAt, CrossEntropy):
    pass


def train_on(
    images: ImageStream | ImageSet,
    validation: ImageStream | ImageSet,
    *,
    workers: int = 1,
    corrupt: Any = "stop",
    epochs: int = 3,
    augment: bool = True,
    at: int = 0,
    **options: Any,
) -> TrainingResult:
    objective = Counting(models.build("linear", num_classes=100, input_size=(3, 16, 16)))
    objective.at = at
    plan = Schedule(epochs=epochs, batch_size=4, learning_rate=0.01, milestones=(), augment=augment)
    compute = Compute(accelerator="cpu", workers=workers, corrupt=corrupt)
    return training.train(objective, images, validation, plan, compute=compute, progress=False, **options)


def assert_same(one: TrainingResult, other: TrainingResult) -> None:
    for a, b in zip(one.history, other.history, strict=True):
        assert {**asdict(a), "seconds": 0} == {**asdict(b), "seconds": 0}
    assert all(torch.equal(one.last[name], value) for name, value in other.last.items())


def test_training_does_with_files_what_it_does_in_memory(root: Path) -> None:
    found = some(root, 30)
    images, held = found.select(torch.arange(18)), found.select(torch.arange(18, 30))
    # A batch of validation images here and there, and a linear network: sums are formed in the same order.
    streamed = train_on(images, held, augment=False, workers=2)
    assert_same(streamed, train_on(images.read(), held.read(), augment=False))
    assert streamed.history[-1].cross_entropy < streamed.history[0].cross_entropy
    moving = train_on(images, held)
    assert not torch.equal(moving.last["network.fc.weight"], streamed.last["network.fc.weight"])


def test_trainings_together_are_those_alone(root: Path) -> None:
    found = some(root, 30)
    images, held = found.select(torch.arange(18)), found.select(torch.arange(18, 30))
    plan = Schedule(epochs=2, batch_size=4, learning_rate=0.01, milestones=())
    jobs = [
        training.Job(
            Counting(models.build("linear", num_classes=100, input_size=(3, 16, 16))), images, held, plan, seed
        )
        for seed in (0, 1)
    ]
    both = training.train_together(jobs, compute=Compute(accelerator="cpu", workers=2))
    for seed, result in enumerate(both):
        assert isinstance(result, TrainingResult)
        assert_same(result, train_on(images, held, epochs=2, seed=seed))


@pytest.mark.parametrize("at", [6, 5], ids=["within an epoch", "between two"])
def test_a_stopped_training_goes_on_to_the_same_bits(at: int, root: Path, tmp_path: Path) -> None:
    found = some(root, 30)
    images, held = found.select(torch.arange(18)), found.select(torch.arange(18, 30))
    whole = train_on(images, held)
    with pytest.raises(Stop):
        train_on(images, held, at=at, folder=tmp_path, checkpoint_seconds=0.0, workers=3)
    assert (tmp_path / "checkpoint.pt").is_file()
    assert_same(train_on(images, held, folder=tmp_path, workers=2), whole)


@pytest.mark.parametrize("together", [False, True])
def test_ctrl_c_ends_the_threads(together: bool, root: Path) -> None:
    class Interrupted(Counting):
        def forward(self, x: Tensor, y: Tensor, noise: Tensor | None = None) -> Losses:
            assert reading()
            raise KeyboardInterrupt

    def reading() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]

    found = some(root, 30)
    job = training.Job(
        Interrupted(models.build("linear", num_classes=100, input_size=(3, 16, 16))),
        found.select(torch.arange(28)),
        found.select([28, 29]),
        Schedule(epochs=1, batch_size=4, milestones=()),
    )
    compute = Compute(accelerator="cpu", workers=2)
    alone = functools.partial(training.train, job.objective, job.images, job.validation, job.schedule, progress=False)
    run: Any = functools.partial(training.train_together, [job]) if together else alone
    with pytest.raises(KeyboardInterrupt) as error:
        run(compute=compute)
    assert error.tb is not None  # which holds all that was there
    assert not reading()


def test_who_goes_on_knows_what_could_not_be_read_before(damaged: ImageStream, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train_on(damaged, damaged.select([0]), corrupt="skip", at=9, folder=tmp_path / "run", checkpoint_seconds=0.0)
    assert len(damaged.unreadable) == 3
    anew = some(tmp_path, 12)
    last = training._Plan.draw(
        training.Job(CrossEntropy(models.build("digits-mlp")), anew, anew, Schedule(milestones=())), 2, 3, 4
    ).rows[2]
    assert not {4, 5, 11} <= set(last.tolist())  # the step that is left does not meet them all
    train_on(anew, anew.select([0]), corrupt="skip", folder=tmp_path / "run")
    assert anew.unreadable == damaged.unreadable


def test_training_stops_at_a_corrupt_image_or_goes_on(damaged: ImageStream) -> None:
    held = damaged.select([0, 4, 8])
    with pytest.raises(DataError, match="cannot be read as an image"):
        train_on(damaged, held)
    result = train_on(damaged, held, corrupt="skip", workers=2)
    assert len(damaged.unreadable) == 3
    assert math.isfinite(result.history[-1].total)
    # Of the validation images two can be read: shares are halves.
    assert all(epoch.validation_accuracy in (0, 0.5, 1) for epoch in result.history)
    with pytest.raises(training.TrainingError, match="none of the 2 validation images of tiny-imagenet-100"):
        train_on(damaged, damaged.select([4, 5]), corrupt="skip")


# --- configurations and grids ---------------------------------------------------------------------------------------


def small(**changes: Any) -> Training:
    fields: dict[str, Any] = {
        "dataset": "imagenet-100", "images": 16, "validation": 8, "size": 16, "model": "linear",
        "schedule": {"epochs": 1, "milestones": (), "batch_size": 8},
    }  # fmt: skip
    return Training.model_validate(fields | changes)


def test_published_weights_follow_the_network() -> None:
    for name in ("torchvision:resnet18", "torchvision/resnet18"):
        made = {
            each: Training(dataset="imagenet-100", model=name, objective=each).options
            for each in ("hessian", "l2+cosine")
        }
        assert made == {"hessian": {"hessian": 1e-3}, "l2+cosine": {"l2": 1.0, "cosine": 0.01, "epsilon": 4.0}}
    assert Training(dataset="imagenet-100", model="resnet18-cifar", objective="hessian").options == {"hessian": 1e-4}
    given = Training(dataset="imagenet-100", model="torchvision:resnet18", objective="l2", options={"l2": 3})
    assert given.options["l2"] == 3


@pytest.mark.parametrize(("name", "side", "reduced"), [("tiny-imagenet-100", 64, 2), ("imagenet-100", 224, 7)])
def test_the_network_is_imagenets_at_the_size_of_the_images(name: str, side: int, reduced: int) -> None:
    network = Training(dataset=name, model="torchvision:resnet18").build(7)
    assert network.input_size == (3, side, side)
    conv = network.network.conv1
    assert (conv.kernel_size, conv.stride) == ((7, 7), (2, 2))
    assert torch.equal(network.normalize.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert torch.equal(network.normalize.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    seen: list[Tensor] = []
    network.network.layer4.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        assert network(torch.rand(1, 3, side, side)).shape == (1, 7)
    assert seen[0].shape[2:] == (reduced, reduced)
    assert models.is_smooth(network)


def test_training_and_validation_images_are_disjoint(root: Path) -> None:
    images, held = small().sets(root)
    assert isinstance(images, ImageStream)
    assert isinstance(held, ImageStream)
    assert (len(images), len(held)) == (16, 8)
    assert not set(images.names.tolist()) & set(held.names.tolist())
    images, held = small(images=None).sets(root)
    assert len(images) + len(held) == 300
    assert not set(images.names.tolist()) & set(held.names.tolist())


def test_the_key_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "code_digest", functools.cache(trainings.code_digest))
    absent = small().key_under(tmp_path)
    write(tmp_path, train=1)
    first = small().key_under(tmp_path)
    assert absent != first
    monkeypatch.setenv("ROBATTR_DATA", str(tmp_path))
    assert small().key == first
    assert files_digest("imagenet-100") == files_digest("imagenet-100", data_root=tmp_path)
    # A test picture is none of what is trained on; what is measured on it has a digest of both.
    both = files_digest("imagenet-100")
    picture(1, 50, 50).save(tmp_path / "imagenet" / "val" / imagenet.IMAGENET100_CLASSES[0] / "new.JPEG")
    streams._listed_class.cache_clear()
    assert small().key == first
    assert files_digest("imagenet-100") != both
    picture(1, 50, 50).save(tmp_path / "imagenet" / "train" / imagenet.IMAGENET100_CLASSES[0] / "new.JPEG")
    streams._listed_class.cache_clear()
    second = small().key
    assert second != first
    # What is none of the 100 classes is not read.
    picture(1, 50, 50).save(tmp_path / "imagenet" / "train" / OTHER / "new.JPEG")
    assert small().key == second


def test_what_was_left_out_is_in_the_provenance(tmp_path: Path) -> None:
    write(tmp_path / "data")
    config = small(dataset="tiny-imagenet-100")
    images, _ = config.sets(tmp_path / "data")
    assert isinstance(images, ImageStream)
    name = images.names[3].decode()
    (tmp_path / "data" / "tiny-imagenet-100" / name).write_bytes(b"no picture")
    options: dict[str, Any] = {"root": tmp_path / "runs", "data_root": tmp_path / "data", "progress": False}
    with pytest.raises(DataError, match="cannot be read as an image"):
        trainings.run_training(config, **options, compute=Compute(accelerator="cpu"))
    made = trainings.run_training(config, **options, compute=Compute(accelerator="cpu", corrupt="skip"))
    assert made.provenance["unreadable"] == {"images": 1, "names": [name]}
    assert made.provenance["dataset"]["sha256_of"].startswith("names and sizes")


PLANNED = ("imagenet-100-resnet18", "tiny-imagenet-100-resnet18")


def shrunk(name: str) -> dict[str, Any]:
    """A grid of the repository, a few images of 64 px for a moment."""
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / "results" / "reference" / f"{name}.yaml").read_text())
    content["training"] |= {"images": 16, "validation": 8, "size": 64}
    content["training"]["schedule"] |= {"epochs": 1, "batch_size": 8, "milestones": []}
    content["seeds"] = [0]
    content["alignment"] |= {
        "images": 4, "epsilons": [8], "draws": 1, "methods": ["lrp"], "method_images": 2, "method_draws": 1,
        "manipulated": 2, "manipulation_iterations": 1, "fractions": 3, "frame": 10,
    }  # fmt: skip
    return content


@pytest.mark.parametrize("name", PLANNED)
def test_the_grids_run_on_a_small_folder_of_the_same_form(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBATTR_DATA", str(root))
    monkeypatch.setattr(trainings, "step_cost", lambda *_, **__: None)
    monkeypatch.setattr("robattr.studies.alignment.step_cost", lambda *_, **__: None)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(shrunk(name), sort_keys=False))
    for objective in ("cross-entropy", "hessian", "l2+cosine"):
        arguments = ["reference", str(path), f"{objective}-0", "--accelerator", "cpu", "--workers", "2"]
        done = CliRunner().invoke(cli.main, [*arguments, "--root", str(tmp_path / "runs")])
        assert done.exit_code == 0, done.output
        record = grids.load_record(tmp_path / name / f"{objective}-0.json")
        assert record.totals["accuracy"].n == 100
        assert record.dimension == 3 * 64 * 64
        assert len(record.history) == 1


@pytest.mark.parametrize("skip", [[], ["--skip-corrupt"]])
def test_a_test_picture_that_cannot_be_read_is_refused_before_the_training(
    skip: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBATTR_DATA", str(write(tmp_path / "data", train=1)))
    monkeypatch.setattr(trainings, "run_training", lambda *_, **__: pytest.fail("it was trained"))
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(shrunk("imagenet-100-resnet18"), sort_keys=False))
    wnid = imagenet.IMAGENET100_CLASSES[60]
    damaged = tmp_path / "data" / "imagenet" / "val" / wnid / f"{wnid}_0.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    done = CliRunner().invoke(cli.main, ["reference", str(path), "hessian-0", *skip, "--root", str(tmp_path / "runs")])
    assert done.exit_code == 2, done.output
    (line,) = done.output.splitlines()
    assert line.startswith(f"robattr: {damaged} cannot be read as an image (")
    assert line.endswith("; replace or remove it; --skip-corrupt leaves out pictures of the training alone")
    # What is not drawn is not asked of.
    place = data.load("tiny-imagenet-100", "test", root=tmp_path / "data", limit=100).labels.tolist().index(60)
    data.check_pictures("imagenet-100", root=tmp_path / "data", limit=place)
    with pytest.raises(DataError, match=f"{wnid}_0.JPEG cannot be read"):
        data.check_pictures("imagenet-100", root=tmp_path / "data", limit=place + 1)


def test_the_planned_grids_have_the_published_protocol() -> None:
    for name in PLANNED:
        grid = grids.load_grid(REPOSITORY / "results" / "reference" / f"{name}.yaml")
        for run, network in grid.networks.items():
            config = network.training
            assert config is not None
            assert config.dataset == name.removesuffix("-resnet18")
            assert (config.model, config.activation, config.beta) == ("torchvision:resnet18", "softplus", 3.0)
            plan = config.schedule
            assert (plan.optimizer, plan.weight_decay, plan.batch_size, plan.clip) == ("adamw", 1e-2, 64, 0.5)
            published = {"hessian": 1e-3, "l2": 1.0, "cosine": 0.01, "epsilon": 4.0}
            assert config.options == {key: published[key] for key in config.options}, run
    whole = grids.load_grid(REPOSITORY / "results" / "reference" / "imagenet-100-resnet18.yaml").networks
    plan = next(iter(whole.values())).training.schedule  # type: ignore[union-attr]
    assert (plan.learning_rate, plan.epochs, plan.milestones) == (1e-3, 90, (40, 60, 80))


@pytest.fixture
def tiny(data_root: Path) -> ImageStream:
    if not (data_root / "tiny-imagenet-100").is_dir():
        pytest.skip("tiny-imagenet-100 is not under ROBATTR_DATA")
    return data.stream("tiny-imagenet-100", root=data_root)


@pytest.mark.data
def test_the_real_small_set_is_whole(tiny: ImageStream) -> None:
    assert len(tiny) == 50_000
    assert torch.bincount(tiny.labels).tolist() == [500] * 100
    assert not any(name.startswith("n0") for name in tiny.class_names)  # every id is one of ImageNet's
    drawn = tiny.subset(256, seed=0)
    images, labels = batches(drawn, torch.arange(256).view(4, 64), crops=(0, 0), workers=2)
    assert torch.equal(labels, drawn.labels)
    assert images.shape == (256, 3, 64, 64)
