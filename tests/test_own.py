"""A reader's own network: from a file of code, with weights from a file, on the reader's pictures."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import REPOSITORY, WriteChapter
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from robattr import cli, influence, models, smoothing
from robattr.models import Classifier, ModelError
from robattr.pages import chapters as book, execution, schemas
from robattr.studies import fragility, grids, subjects
from robattr.studies.grids import Network
from robattr.studies.subjects import load_subject, names_of, resolve
from robattr.studies.trainings import Training, step_seconds

CODE = """
    from torch import nn
    from layers import block

    def small(num_classes=4):
        return nn.Sequential(*block(3, 8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes))

    def fixed():
        return small(4)

    def broken():
        raise KeyError("depth")

    def needs(depth):
        return small()

    def wrapped():
        from robattr.models import Classifier
        return Classifier(
            small(2), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), name="x", input_size=(3, 16, 16), num_classes=2,
            class_names=("dog", "cat"),
        )

    def number():
        return 3

    def two():
        class Two(nn.Module):
            def forward(self, x):
                return x, x
        return Two()
"""
LAYERS = """
    from torch import nn

    def block(i, o):
        return [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "layers.py").write_text(textwrap.dedent(LAYERS))
    (folder / "net.py").write_text(textwrap.dedent(CODE))
    return folder / "net.py"


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    generator = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            pixels = torch.randint(0, 256, (20, 24, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / name / f"{i}.png")
    return f"folder:{tmp_path / 'pictures'}"


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_network_from_a_file_of_code(code: Path) -> None:
    model = models.build(f"{code}:small", input_size=(3, 16, 16), num_classes=7)
    assert (model.name, model.num_classes, model.input_size) == ("net.py:small", 7, (3, 16, 16))
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), model.network(x))  # images in [0, 1] as they are
    assert not model.training
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    again = models.build(f"{code}:small", input_size=16, num_classes=7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    wrapped = models.build(f"{code}:wrapped")
    assert wrapped.class_names == ("dog", "cat")
    torch.testing.assert_close(wrapped(x), wrapped.network((x - 0.5) / 0.2))


def test_a_network_that_reads_what_an_activation_left_stays_the_function_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.act, self.last = nn.ReLU(inplace=True), nn.Linear(12, 3)\n\n"
        "    def forward(self, x):\n        z = x.flatten(1) - 0.5\n        return self.last(self.act(z) + z)\n"
    )
    model = models.build(f"{tmp_path}/net.py:Net", input_size=2)
    x = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), model.network.last(2 * (x.flatten(1) - 0.5).relu()))


def test_two_networks_may_import_files_of_one_name(code: Path, tmp_path: Path) -> None:
    models.build(f"{code}:fixed", input_size=16)
    other = tmp_path / "other" / "net.py"
    other.parent.mkdir()
    other.write_text(code.read_text())
    (other.parent / "layers.py").write_text(
        (code.parent / "layers.py").read_text().replace("ReLU(inplace=True)", "Tanh()")
    )
    assert any(isinstance(m, nn.Tanh) for m in models.build(f"{other}:fixed", input_size=16).modules())
    assert "layers" not in sys.modules
    assert "net" not in sys.modules
    assert str(code.parent) not in sys.path
    assert models.code_digests(f"{code}:fixed").keys() == {"net.py", "layers.py"}
    assert models.code_digests(f"{code}:fixed")["net.py"] == models.code_digests(f"{other}:small")["net.py"]
    assert models.code_digests(f"{code}:fixed")["layers.py"] != models.code_digests(f"{other}:small")["layers.py"]
    assert not list(code.parent.glob("__pycache__"))


def test_a_file_within_a_package(tmp_path: Path) -> None:
    for name, text in {
        "mine/__init__.py": "",
        "mine/nets/__init__.py": "",
        "mine/nets/net.py": "from ..parts import width\nfrom torch import nn\n\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, width))\n",
        "mine/parts.py": "width = 5\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    name = f"{tmp_path}/mine/nets/net.py:make"
    assert models.build(name, input_size=2).num_classes == 5
    assert "mine/parts.py" in models.code_digests(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py:small", "there is no file"),
        ("net.py", "path/to/module.py:function"),
        ("net.py:smal", r"has no function 'smal' \(it has small, fixed"),
        ("net.py:broken", "net.py:broken fails: KeyError: 'depth'"),
        ("net.py:needs", "net.py:needs wants depth"),
        ("net.py:number", "returned a int; it must return an nn.Module"),
        ("net.py:two", "returned a tuple; it must return logits"),
        ("bad.py:make", "bad.py fails when it is run: ZeroDivisionError"),
    ],
)
def test_code_that_does_not_do_is_refused_in_one_line(code: Path, name: str, message: str) -> None:
    (code.parent / "bad.py").write_text("1 / 0\n")
    with pytest.raises((ValueError, ModelError), match=message) as error:
        models.build(f"{code.parent}/{name}", input_size=16)
    one_line(error)


def test_the_size_of_the_images_is_asked_for_and_checked(code: Path) -> None:
    with pytest.raises(ValueError, match="Give input_size"):
        models.build(f"{code}:small")
    with pytest.raises(ModelError, match=r"net\.py:small fails on an image of 1 x 16 x 16") as error:
        models.build(f"{code}:small", input_size=(1, 16, 16))
    one_line(error)
    with pytest.raises(ValueError, match=r"input_size is .* accepted is"):
        models.build(f"{code}:small", input_size=(16, 16))  # type: ignore[arg-type]


def test_normalization_is_what_is_given(code: Path) -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = models.build(f"{code}:small", input_size=16, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    by_hand = model.network(
        (x - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    )
    torch.testing.assert_close(model(x), by_hand)
    for options in ({"mean": (0.5,)}, {"mean": (0.5,), "std": (1.0,)}, {"mean": (0.5,) * 3, "std": (0.0, 1.0, 1.0)}):
        with pytest.raises(ValueError, match=r"mean|std"):
            models.build(f"{code}:small", input_size=16, **options)  # type: ignore[arg-type]


def saved(model: Classifier, folder: Path) -> dict[str, Path]:
    """The weights of a network in all the ways in which people keep them."""
    state = model.network.state_dict()
    files = {
        "plain.safetensors": state,
        "plain.pt": state,
        "ours.safetensors": model.state_dict(),
        "parallel.pth": {f"module.{k}": v for k, v in state.items()},
        "network.pt": {f"network.{k}": v for k, v in state.items()},
        "compiled.pt": {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}, "epoch": 3},
        "lightning.ckpt": {"state_dict": {f"model.{k}": v for k, v in state.items()}, "epoch": 3, "loops": {"a": [1]}},
    }
    for name, content in files.items():
        if name.endswith(".safetensors"):
            save_file(content, folder / name)  # type: ignore[arg-type]
        else:
            torch.save(content, folder / name)
    return {name: folder / name for name in files}


@pytest.mark.parametrize("kind", ["code", "lenet"])
def test_weights_in_every_form_and_number_of_classes(kind: str, code: Path, tmp_path: Path) -> None:
    name = f"{code}:small" if kind == "code" else "lenet"
    model = models.build(name, input_size=(3, 16, 16), num_classes=6, seed=3)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for path in saved(model, tmp_path).values():
        loaded = models.build(name, input_size=(3, 16, 16), weights=path)  # the file says that there are six
        assert loaded.num_classes == 6
        assert torch.equal(loaded(x), model(x)), path.name


def test_weights_that_do_not_fit_are_named(code: Path, tmp_path: Path) -> None:
    model = models.build(f"{code}:small", input_size=16)
    state = model.network.state_dict()

    def refused(content: object, name: str, message: str, model: str = f"{code}:fixed") -> None:
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match=message) as error:
            models.build(model, input_size=16, weights=tmp_path / name)
        assert name in one_line(error)

    refused({k: v for k, v in state.items() if k != "5.bias"}, "less.pt", "it lacks 5.bias")
    refused({**state, "head.weight": torch.ones(1)}, "more.pt", "it has head.weight, which the network has not")
    wide = {**state, "0.weight": torch.zeros(9, 3, 3, 3)}
    refused(wide, "wide.pt", r"0.weight is \[9, 3, 3, 3\] in the file and \[8, 3, 3, 3\] in the network")
    other = models.build(f"{code}:small", input_size=16, num_classes=9).network.state_dict()
    refused(other, "nine.pt", r"5.weight is \[9, 32\] in the file and \[4, 32\]")
    refused(model.network, "whole.pt", "save model.state_dict\\(\\) instead")
    refused([1, 2], "list.pt", "holds a list without tensors")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "wide.pt").read_bytes()[:-300])
    with pytest.raises(ModelError, match=r"cut\.pt cannot be read as a state dict") as error:
        models.build(f"{code}:fixed", input_size=16, weights=tmp_path / "cut.pt")
    one_line(error)


def test_a_pickle_does_not_run(code: Path, tmp_path: Path) -> None:
    class Writes:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"state_dict": {}, "extra": Writes()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="holds more than tensors"):
        models.build(f"{code}:small", input_size=16, weights=tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "dog\ncat\nbird\n\n"),
        ("names.json", json.dumps(["dog", "cat", "bird"])),
        ("names.json", json.dumps({"0": "dog", "2": "bird", "1": "cat"})),
        ("names.json", json.dumps({"bird": 2, "cat": 1, "dog": 0})),
    ],
)
def test_class_names_from_a_file(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    assert models.read_class_names(tmp_path / file) == ("dog", "cat", "bird")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.txt", "dog\ncat\ndog\n", "has 'dog' twice"),
        ("a.txt", "dog\n\ncat\n", "a name for each class"),
        ("a.txt", "", "a name for each class"),
        ("a.json", "{", "cannot be read"),
        ("a.json", '{"0": "dog", "2": "cat"}', "one name for each of the numbers"),
        ("a.json", "3", "a list of names"),
        ("a.json", "[1, 2]", "a name for each class"),
    ],
)
def test_class_names_that_are_none_are_refused(file: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ModelError, match=message) as error:
        models.read_class_names(tmp_path / file)
    assert file in one_line(error)


def test_pictures_get_the_classes_of_the_network(code: Path, pictures: str, tmp_path: Path) -> None:
    # The folders are cat, dog; the network's order is another, and it knows more.
    names = tmp_path / "names.txt"
    names.write_text("bird\ndog\nfish\ncat\n")
    model, images = resolve(f"{code}:small", pictures, class_names=names, input_size=16)
    assert model.num_classes == 4
    assert model.class_names == images.class_names == ("bird", "dog", "fish", "cat")
    assert images.labels.tolist() == [3, 3, 3, 1, 1, 1]
    assert images.images.shape == (6, 3, 16, 16)
    spelled = {"name": f"{code}:small", "class_names": ["bird", "dog", "fish", "cat"], "input_size": 16}
    assert torch.equal(resolve(spelled, pictures)[1].labels, images.labels)
    assert resolve(f"{code}:wrapped", pictures)[1].labels.tolist() == [1, 1, 1, 0, 0, 0]
    # Without names, by the order of the folders and as many.
    model, images = resolve(f"{code}:small", pictures, input_size=16)
    assert names_of(model, pictures, images) == ("class 0", "class 1")
    assert model.num_classes == 2
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    subject = load_subject(pictures, {"name": f"{code}:small", "input_size": 16})
    assert torch.equal(subject.prediction, model(images.images).argmax(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "net.py:fixed"}, "pictures has 2 classes and net.py:fixed has 4"),
        ({"class_names": ["dog", "bird"]}, "the class 'cat', which net.py:small has not .*dog, bird"),
        ({"class_names": ["dog", "cats"]}, "did you mean 'cats'"),
        ({"input_size": (1, 16, 16)}, "fails on an image of 1 x 16 x 16|takes 1"),
        ({"input_size": (3, 16, 12)}, "images of .* are made square"),
        ({"input_size": None}, "Give input_size"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std go together"),
        ({"weights": "none.pt"}, "there is no such file"),
        ({"model": {"name": "net.py:small", "beta": 3}}, "model has beta; accepted are name, weights"),
        ({"model": {"name": "net.py:small", "input_size": 8}}, "input_size is 16, and 8 in model"),
        ({"model": {"weights": "a.pt"}}, "a mapping with a name"),
        ({"model": "resnet18"}, "resnet18-cifar, ours for small images, or torchvision:resnet18"),
    ],
)
def test_what_does_not_fit_the_pictures_is_refused(
    options: dict[str, object], message: str, code: Path, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(code.parent)
    arguments = {"model": "net.py:small", "input_size": 16} | options
    with pytest.raises((ValueError, ModelError), match=message) as error:
        resolve(dataset=pictures, **arguments)  # type: ignore[arg-type]
    one_line(error)


def test_the_classes_are_checked_before_the_pictures_are_read(code: Path, pictures: str) -> None:
    # The last picture is damaged: who learns of the classes first has not waited for it.
    last = sorted(Path(pictures.removeprefix("folder:")).rglob("*.png"))[-1]
    last.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="classes"):
        resolve(f"{code}:fixed", pictures, input_size=16)
    with pytest.raises(ValueError, match=last.name):
        resolve(f"{code}:small", pictures, input_size=16)


def test_code_named_in_a_file_is_not_run_unless_a_person_named_it(code: Path) -> None:
    name = f"{code}:small"
    with pytest.raises(ValueError, match=r"grid\.yaml names a file of Python code, .*net\.py") as error:
        models.check_allowed(name, "grid.yaml")
    one_line(error)
    other = code.with_name("layers.py")
    with models.allowed([other]), pytest.raises(ValueError, match="names a file of Python code"):
        models.check_allowed(name, "grid.yaml")
    with models.allowed([code.parent / ".." / "code" / "net.py"]):
        models.check_allowed(name, "grid.yaml")
    with pytest.raises(ValueError, match="names a file of Python code"):
        models.check_allowed(name, "grid.yaml")
    models.check_allowed("lenet", "grid.yaml")
    models.check_allowed(None, "grid.yaml")


# --- published weights ----------------------------------------------------------------------------------------------


def test_random_weights_under_a_published_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / Path(SqueezeNet1_1_Weights.DEFAULT.url).name
    cached.parent.mkdir(parents=True)
    torch.save(squeezenet1_1().state_dict(), cached)
    with pytest.raises(ModelError, match="is not the published file") as error:
        models.build("squeezenet1_1")
    assert str(cached) in one_line(error)
    # A file whose digest is in its name is taken.
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    renamed = cached.with_name(f"squeezenet1_1-{digest[:8]}.pth")
    cached.rename(renamed)
    weights = SqueezeNet1_1_Weights.DEFAULT.value
    monkeypatch.setattr(
        SqueezeNet1_1_Weights.DEFAULT, "_value_", type(weights)(f"x/{renamed.name}", weights.transforms, weights.meta)
    )
    assert models.build("squeezenet1_1").num_classes == 1000


def test_every_published_file_of_torchvision_says_its_digest() -> None:
    from torchvision import models as theirs
    from torchvision.models import get_model_weights, list_models

    from robattr.models.weights import published_digest

    names = list_models(module=theirs)
    assert len(names) > 50
    for name in names:
        for weights in get_model_weights(name):
            assert published_digest(Path(weights.url).name), weights.url


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of huggingface_hub with weights of one of timm's networks, made here; offline."""
    import timm
    from huggingface_hub import constants

    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    torch.manual_seed(0)
    state = timm.create_model("test_vit").state_dict()
    revision = "0" * 40
    for folder in ("blobs", "refs", f"snapshots/{revision}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    save_file(state, tmp_path / "blob")
    digest = hashlib.sha256((tmp_path / "blob").read_bytes()).hexdigest()
    blob = repository / "blobs" / digest
    (tmp_path / "blob").rename(blob)
    (repository / "snapshots" / revision / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return blob


def test_published_weights_of_timm_are_those_of_their_digest(hub: Path) -> None:
    from safetensors.torch import load_file

    model = models.build("timm:test_vit")
    assert (model.name, model.num_classes, model.input_size) == ("timm:test_vit", 1000, (3, 160, 160))
    state = load_file(hub)
    assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())
    content = bytearray(hub.read_bytes())
    content[-1] ^= 1
    hub.write_bytes(content)
    with pytest.raises(ModelError, match="is not the published file") as error:
        models.build("timm:test_vit")
    one_line(error)


def test_timm_without_a_network_says_what_to_do(hub: Path) -> None:
    with pytest.raises(ModelError, match="timm:test_efficientnet could not be downloaded") as error:
        models.build("timm:test_efficientnet")
    one_line(error)
    model = models.build("timm:test_efficientnet", weights="random", num_classes=5, input_size=64)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert models.build("timm:test_vit", weights="random", input_size=32)(torch.rand(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_vitt", "did you mean 'timm:test_vit'"),
        ("timm:test_vit.none", "timm has no weights 'none' of test_vit .there are r160_in1k"),
        ("torchvision:resnet5O", "is unknown; did you mean 'torchvision:resnet50'"),
        ("resnet18", "resnet18-cifar, ours for small images, or torchvision:resnet18"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        models.build(name)
    one_line(error)


def test_old_spellings_go_on() -> None:
    theirs = models.build("torchvision/resnet18", weights="random", num_classes=3)
    assert theirs.network.conv1.kernel_size == (7, 7)  # type: ignore[union-attr]
    assert theirs.name == models.build("torchvision:resnet18", weights="random").name
    old, new = Training(model="resnet18"), Training(model="resnet18-cifar")
    assert old.options == new.options
    assert all(torch.equal(a, b) for a, b in zip(old.build().parameters(), new.build().parameters(), strict=True))
    assert old.build().network.conv1.kernel_size == (3, 3)  # type: ignore[union-attr]
    for name in ("resnet18-cifar", "torchvision:resnet18", "torchvision/resnet18", "resnet50"):
        assert models.known(name)
    assert not models.known("resnet18")
    assert "resnet18" not in models.available()


# --- studies --------------------------------------------------------------------------------------------------------


ATTACK = fragility.Fragility.model_validate(
    {"dataset": "digits", "images": 4, "attacks": ("random-sign",), "k": 5, "iterations": 1, "beta": "auto"}
)
DIGITS = """
    from torch import nn

    def digits(num_classes=10):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, object]:
    """A network of digits in a file of code, with weights in a file and names of classes in another order."""
    (tmp_path / "digits.py").write_text(textwrap.dedent(DIGITS))
    names = [str(i) for i in reversed(range(10))]
    (tmp_path / "names.txt").write_text("\n".join(names))
    spelled: dict[str, object] = {
        "name": f"{tmp_path / 'digits.py'}:digits",
        "class_names": str(tmp_path / "names.txt"),
    }
    model, images = resolve(spelled, "digits", split="train")
    optimizer = torch.optim.Adam(model.network.requires_grad_(True).parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.images), images.labels).backward()
        optimizer.step()
    torch.save(model.network.state_dict(), tmp_path / "digits.pt")
    return spelled | {"weights": str(tmp_path / "digits.pt")}


def test_a_study_of_a_network_of_ones_own(trained: dict[str, object], tmp_path: Path) -> None:
    options: dict[str, object] = {"root": tmp_path / "runs", "device": "cpu", "progress": False}
    network = Network.of(trained, "digits")
    found = grids.run(fragility.KIND, network, ATTACK, **options)  # type: ignore[arg-type]
    assert found.values["correct"].mean() == 1.0  # the labels are found by name: reversed they would all be wrong
    source = found.provenance["network"]
    assert source["model"] == "digits.py:digits"
    assert source["code"] == {"digits.py": hashlib.sha256((tmp_path / "digits.py").read_bytes()).hexdigest()}
    assert len(source["weights"]["sha256"]) == 64
    (text,) = [path.read_text() for path in (tmp_path / "runs").rglob("record.json")]
    assert str(tmp_path) not in text
    assert found.network.class_names == "names.txt"

    def runs() -> int:
        return len([path for path in (tmp_path / "runs").iterdir() if path.is_dir()])

    assert runs() == 1
    grids.run(fragility.KIND, network, ATTACK, **options)  # type: ignore[arg-type]
    assert runs() == 1
    # The contents of each file are in the key.
    for count, name in enumerate(("digits.py", "names.txt", "digits.pt"), 2):
        before = (tmp_path / name).read_bytes()
        changed = {"digits.py": before + b"\n# changed\n", "names.txt": before + b"\n"}
        if name in changed:
            (tmp_path / name).write_bytes(changed[name])
        else:
            state = torch.load(tmp_path / name, weights_only=True)
            torch.save({key: value * 1.5 for key, value in state.items()}, tmp_path / name)
        grids.run(fragility.KIND, network, ATTACK, **options)  # type: ignore[arg-type]
        assert runs() == count, name


@pytest.mark.parametrize("model", ["record", "training"])
def test_a_network_is_one_thing(model: str) -> None:
    other = {"record": "a.json"} if model == "record" else {"training": Training()}
    with pytest.raises(ValueError, match="input_size goes with a model"):
        Network.model_validate({**other, "input_size": 8})


def test_a_grid_that_names_code_runs_it_only_where_a_person_did(
    trained: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file leaves a trace when it runs.
    code = tmp_path / "digits.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n" + code.read_text())
    content = {
        "description": "Mine.",
        "networks": {"mine": {"model": trained["name"], "weights": trained["weights"], "input_size": [1, 8, 8]}},
        "fragility": ATTACK.model_dump(mode="json"),
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(content))
    grid = grids.load_grid(tmp_path / "grid.yaml")
    options: dict[str, object] = {"root": tmp_path / "runs", "progress": False}
    with pytest.raises(
        ValueError, match=r"the run mine of the grid names a file of Python code, .*digits\.py"
    ) as error:
        grids.run_record(grid, "mine", tmp_path / "mine.json", **options)  # type: ignore[arg-type]
    one_line(error)
    assert not (tmp_path / "ran").exists()
    with models.allowed([code]):
        record = grids.run_record(grid, "mine", tmp_path / "mine.json", **options)  # type: ignore[arg-type]
    assert (tmp_path / "ran").exists()
    assert record is not None
    assert grids.load_record(tmp_path / "mine.json").network == grid.networks["mine"]
    monkeypatch.setenv(models.NAMED, os.pathsep.join([str(tmp_path / "other.py"), str(code)]))
    assert grids.run_record(grid, "mine", tmp_path / "again.json", **options) is not None  # type: ignore[arg-type]


def test_a_training_of_a_network_of_ones_own(trained: dict[str, object], tmp_path: Path) -> None:
    training = {
        "dataset": "digits", "images": 200, "validation": 50, "model": trained["name"],
        "schedule": {"epochs": 1, "learning_rate": 0.01}, "objective": "l2",
    }  # fmt: skip
    measured = {
        "dataset": "digits", "images": 2, "epsilons": [8], "draws": 1, "methods": ["lrp"], "method_images": 1,
        "method_draws": 1, "manipulated": 1, "manipulation_iterations": 1, "frame": 1, "fractions": 2,
    }  # fmt: skip
    content = {
        "description": "Mine.",
        "training": training,
        "objectives": {"l2": None},
        "seeds": [0],
        "alignment": measured,
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(content))
    grid = grids.load_grid(tmp_path / "grid.yaml")
    code, path = tmp_path / "digits.py", tmp_path / "record.json"
    with pytest.raises(ValueError, match="names a file of Python code"):
        grids.run_record(grid, "l2-0", path, root=tmp_path / "runs", progress=False)
    with models.allowed([code]):
        record = grids.run_record(grid, "l2-0", path, root=tmp_path / "runs", progress=False)
    assert record is not None
    assert record.provenance["network"]["network"].keys() == {"digits.py"}
    loaded = grids.load_record(path)
    with pytest.raises(ValueError, match="the record l2-0 names a file of Python code"):
        loaded.load_model(tmp_path)
    assert loaded.training is not None
    for use in (loaded.training.build, lambda: step_seconds([loaded.training], repeats=1)):  # type: ignore[list-item]
        with pytest.raises(ValueError, match="a training names a file of Python code"):
            use()
    with models.allowed([code]):
        model = loaded.load_model(tmp_path)
    assert model.num_classes == 10
    assert grids.measurements(loaded, "grid/l2-0")[0].model == "digits.py:digits, softplus(3)"
    # Another file of code is another training.
    key = loaded.training.key  # type: ignore[union-attr]
    code.write_text(code.read_text() + "\n# changed\n")
    assert loaded.training.key != key  # type: ignore[union-attr]


# --- chapters -------------------------------------------------------------------------------------------------------


def test_the_fields_of_a_model_are_those_that_a_chapter_accepts() -> None:
    assert schemas.MODEL_FIELDS == subjects.FIELDS


NAMES = """
    dataset: {type: string, format: dataset}
    model: {type: [string, object], format: model}
    weights: {type: [string, "null"], format: weights}"""


@pytest.fixture
def chapter(
    project: Path, write_chapter: WriteChapter, code: Path, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A chapter about a model, and a reader elsewhere, in a folder with ``net.py`` and ``pictures``."""
    write_chapter(
        "01_stub",
        NAMES,
        "dataset = 'digits'\nmodel = 'digits-cnn'\nweights = 'none.safetensors'",
        code="import json; open('ran.json', 'w').write(json.dumps([dataset, model, weights]))",
    )
    monkeypatch.setattr(cli.book, "find_root", lambda start=None: project)
    monkeypatch.setenv(models.NAMED, "")  # it is set while a command runs
    (code.parent / "pictures").symlink_to(pictures.removeprefix("folder:"))
    monkeypatch.chdir(code.parent)
    return project


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, ("run", "1", "-p", "dataset", "folder:pictures", *words))


MINE = "{name: net.py:small, input_size: 16, class_names: [dog, cat, bird]}"


def test_a_chapter_gets_paths_that_hold_where_it_runs(chapter: Path, code: Path) -> None:
    model = models.build(f"{code}:small", input_size=16, num_classes=3)
    torch.save(model.network.state_dict(), "net.pt")
    result = run("-p", "model", MINE, "-p", "weights", "net.pt")
    assert result.exit_code == 0, result.output
    dataset, given, weights = json.loads((chapter / "ran.json").read_text())
    assert dataset == f"folder:{code.parent / 'pictures'}"
    assert given == {"name": f"{code}:small", "input_size": 16, "class_names": ["dog", "cat", "bird"]}
    assert weights == str(code.parent / "net.pt")
    # The weights that a chapter has by default are those of its own model.
    assert run("-p", "model", MINE).exit_code == 0
    assert json.loads((chapter / "ran.json").read_text())[2] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-p", "model", "net.py:small"), "Give input_size"),
        (("-p", "model", "none.py:small"), "there is no file"),
        (("-p", "model", "{name: net.py:small, size: 16}"), "model has size; accepted are name, weights"),
        (("-p", "model", "{name: net.py:broken, input_size: 16}"), "net.py:broken fails: KeyError"),
        (("-p", "model", "{name: net.py:small, input_size: 16, weights: a.pt}"), "there is no such file"),
        (("-p", "model", "{name: net.py:fixed, input_size: 16}"), "has 2 classes and net.py:fixed has 4"),
        (("-p", "model", MINE, "-p", "weights", "none.pt"), "there is no such file"),
        (("-p", "model", MINE, "--code", "none.py"), "--code is none.py; there is no such file"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line_before_a_chapter_runs(
    chapter: Path, words: tuple[str, ...], said: str
) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (chapter / "ran.json").exists()


@pytest.mark.parametrize("where", ["file", "profile"])
def test_code_that_a_file_names_runs_only_where_the_command_line_does(chapter: Path, code: Path, where: str) -> None:
    code.write_text(f"open({str(code.parent / 'ran')!r}, 'w').close()\n" + code.read_text())
    if where == "file":
        Path("values.yaml").write_text(f"model: {MINE}\n")
        words = ["-f", "values.yaml"]
    else:
        mine = MINE.replace("net.py", str(code))
        (chapter / "profiles" / "mine.yaml").write_text(f"description: x\nparameters:\n  01_stub:\n    model: {mine}\n")
        words = ["--profile", "mine"]
    result = run(*words)
    assert result.exit_code == 2
    assert "names a file of Python code" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("ran").exists()
    assert run(*words, "--code", "layers.py").exit_code == 2
    assert not Path("ran").exists()
    # What the command line replaces is not looked at.
    assert run(*words, "-p", "model", "{name: digits-cnn, input_size: [3, 8, 8]}").exit_code == 0
    assert not Path("ran").exists()
    result = run(*words, "--code", "net.py")
    assert result.exit_code == 0, result.output
    assert Path("ran").exists()


def test_no_chapter_has_code_as_a_default(project: Path, write_chapter: WriteChapter, code: Path) -> None:
    write_chapter("01_stub", NAMES, f"dataset = 'digits'\nmodel = '{code}:fixed'\nweights = None")
    with pytest.raises(
        book.ChapterError, match="the default of parameter 'model' names a file of Python code"
    ) as error:
        book.chapter(project, "1")
    one_line(error)


def test_a_grid_runs_code_where_the_command_line_names_it(
    trained: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(models.NAMED, "")
    content = {
        "description": "Mine.",
        "networks": {"mine": {"model": trained["name"], "weights": trained["weights"], "input_size": [1, 8, 8]}},
        "fragility": ATTACK.model_dump(mode="json"),
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(content))
    words = ("reference", str(tmp_path / "grid.yaml"), "mine", "--root", str(tmp_path / "runs"), "--accelerator", "cpu")
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 2
    assert "names a file of Python code" in result.stderr
    result = CliRunner().invoke(cli.main, (*words, "--code", str(tmp_path / "digits.py")))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "grid" / "mine.json").exists()


def test_the_steps_of_the_page_lead_to_a_chapter(
    tmp_path: Path, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the book's page says, with its own file of code and its own commands, up to where a kernel starts."""
    text = (REPOSITORY / "book" / "own_network.md").read_text(encoding="utf-8")
    assert pictures == f"folder:{tmp_path / 'pictures'}"
    (tmp_path / "net.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    model = models.build(f"{tmp_path / 'net.py'}:small", input_size=32, num_classes=3)
    torch.save(model.network.state_dict(), tmp_path / "net.pt")
    (tmp_path / "names.txt").write_text("dog\nbird\ncat\n")
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(execution, "execute", lambda chapter, output, values, **_: asked.append(values) or output)
    shells = "".join(re.findall(r"```shell\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in shells.splitlines() if " run " in line]
    assert len(commands) == 2
    for words in commands:
        arguments = [word.replace("/path/to/", f"{tmp_path}/") for word in words[1:]]
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 0, result.output
        # A class that the network has not is noticed, so what went through was looked at.
        (tmp_path / "names.txt").write_text("dog\nbird\nfish\n")
        assert "the class 'cat'" in CliRunner().invoke(cli.main, arguments).stderr
        (tmp_path / "names.txt").write_text("dog\nbird\ncat\n")
    assert len(asked) == 2


# --- beyond chapters ------------------------------------------------------------------------------------------------


def test_influence_and_certificates_of_a_network_of_ones_own(code: Path, trained: dict[str, object]) -> None:
    model, images = resolve(trained, "digits", images=8)
    layer = influence.LastLayer(model, images.images[:6], images.labels[:6], damping=0.1)
    # In the last layer's terms the network is its own features with nn.Linear behind them.
    by_hand = nn.Sequential(model.normalize, model.network).eval()
    same = influence.LastLayer(by_hand, images.images[:6], images.labels[:6], damping=0.1)
    found, expected = (each.influence(images.images[6:], images.labels[6:]).values for each in (layer, same))
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0
    certified = smoothing.certify(
        models.softplus_surrogate(model, 3.0),
        images.images[:2],
        images.labels[:2],
        noise=smoothing.Gaussian(0.1),
        epsilon=0.05,
        samples=64,
    )
    assert certified.expectation.shape == (2, 1)
    (code.parent / "headless.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softplus())\n"
    )
    other, images = resolve({"name": f"{code.parent / 'headless.py'}:make"}, "digits", images=8)
    with pytest.raises(ValueError, match=r"does not end with its last nn\.Linear") as error:
        influence.LastLayer(other, images.images, images.labels, damping=0.1)
    one_line(error)
