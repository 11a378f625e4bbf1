"""A reader's own network: from a file of code, with weights from a file, on the reader's pictures."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from robattr import models
from robattr.models import Classifier, ModelError
from robattr.studies.subjects import load_subject, resolve

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
    with pytest.raises(ValueError, match="names a file of Python code"):
        models.check_allowed(name, "grid.yaml", [code.with_name("layers.py")])
    models.check_allowed(name, "grid.yaml", [code.parent / ".." / "code" / "net.py"])
    models.check_allowed("lenet", "grid.yaml")
    models.check_allowed(None, "grid.yaml")
