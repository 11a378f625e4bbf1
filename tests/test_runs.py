"""What results are keyed by: definitions of code, contents of files; and folders that are whole or not there."""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from robattr import _files, models, training
from robattr.studies import _code, alignment, fragility
from robattr.studies._code import code_digest
from robattr.studies.runs import environment, files_digest, public_name, state_digest
from robattr.studies.trainings import Training


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's sources that may be changed; digests are of the copy."""
    package = Path(str(_code.__file__)).parents[1]
    copy = tmp_path / "robattr"
    for file in package.rglob("*.py"):
        target = copy / file.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())

    def of_copy(module: str) -> Path:
        path = copy.joinpath(*module.split(".")[1:])
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    monkeypatch.setattr(_code, "_file", of_copy)
    return copy


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def home(source: Path, name: str) -> Path:
    """The file of the copy that defines a name."""
    (found,) = [file for file in source.rglob("*.py") if f"\ndef {name}(" in file.read_text(encoding="utf-8")]
    return found


@pytest.mark.parametrize("threads", ["2,1", ""])
def test_the_environment_is_noted_however_threads_are_named(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert environment()["threads"] == torch.get_num_threads()


def test_the_copy_says_what_the_package_says(source: Path) -> None:
    here = code_digest(training.train)
    assert len(here) == 12
    assert here == code_digest(training.train)


def test_a_digest_follows_every_definition_that_is_reached(source: Path) -> None:
    def aligned() -> str:
        return Training(objective="l2+cosine").code

    plain, before = Training().code, aligned()
    assert plain != before
    # In another module, two calls away, through an imported name and through an imported module's attribute.
    change(home(source, "cosine_distance"), "def cosine_distance(", "def cosine_distance_(")
    path = home(source, "l2_distance")
    change(path, "def cosine_distance_(", "def cosine_distance(")
    assert aligned() == before
    change(path, "alpha=self.epsilon", "alpha=2 * self.epsilon")
    assert aligned() != before
    change(path, "alpha=2 * self.epsilon", "alpha=self.epsilon")
    assert aligned() == before
    change(source / "_second_order.py", "sigmoid_()", "tanh_()")
    assert aligned() != before


def test_what_is_not_reached_does_not_count(source: Path) -> None:
    before = Training().code
    change(home(source, "spearman"), "def spearman(", "def spearman(extra: int, ")  # no training ranks anything
    change(home(source, "ssim"), "sigma: float = 1.5", "sigma: float = 2.5")
    assert Training().code == before
    measured = code_digest(alignment.measure)
    assert measured != code_digest(fragility.measure)
    change(source / "studies" / "_code.py", "[:12]", "[:8] + 4 * '0'")  # how digests are made
    assert code_digest(alignment.measure) == measured


def test_neither_comments_nor_places_count(source: Path) -> None:
    before = Training(objective="l2").code
    path = home(source, "l2_distance")
    text = path.read_text(encoding="utf-8")
    path.write_text('"""Another text."""\n' + text.split('"""', 2)[2].replace("\n\n\ndef ", "\n\n# A comment.\ndef "))
    assert Training(objective="l2").code == before
    # The definition moves to a module of its own, and its old place imports it.
    text = path.read_text(encoding="utf-8")
    start = text.index("def l2_distance(")
    end = text.index("\ndef ", start)
    module = path.with_name("_moved.py")
    module.write_text("from torch import Tensor\n\n\n" + text[start:end])
    name = ".".join(("robattr", *module.relative_to(source).with_suffix("").parts))
    path.write_text(text[:start] + text[end:].replace("\n", f"\nfrom {name} import l2_distance\n", 1))
    assert Training(objective="l2").code == before
    change(module, "return ", "return 2 * ")
    assert Training(objective="l2").code != before


def test_registrations_count_with_their_module(tmp_path: Path, source: Path) -> None:
    module = source / "toy.py"
    module.write_text("RULES = {}\n\n\ndef use():\n    return RULES\n\n\nRULES.update(a=1)\n")

    def digest() -> str:
        use = type("use", (), {})
        use.__module__, use.__qualname__ = "robattr.toy", "use"
        return code_digest(use)

    before = digest()
    change(module, "a=1", "a=2")
    assert digest() != before
    now = digest()
    change(module, "def use", "def rule(f):\n    return f\n\n\ndef use")
    assert digest() == now
    change(module, "RULES.update(a=2)", "RULES.update(a=2)\n\n\n@rule\ndef other():\n    return 3\n")
    with_rule = digest()
    assert with_rule != now
    change(module, "return 3", "return 4")
    assert digest() != with_rule


SYNTAX = r"""
@wraps(1, *more, k=2, **kw)
async def use(x: int = 1, /, y=None, *, z: "s", w=..., **q) -> None:
    async with a as b, c:
        await x
    match x:
        case None | True | 1: return None
        case [1, *_]: return {**x, 1: 2}
        case {"a": b, **r}: del b
        case K(a=1) as k if k: raise V from e
    try: pass
    except* E as e: pass
    for i in x[1:, ::2]: continue
    lambda *, a=1: (a := 2)
    return f"{x!r:>{w}}" "lit" f'{x=} {{}} {x:%Y}' u"uni" f"" "" f"a" "b" f"{x:{y}.{z}f}", u"u", 1e400, 2j, -0.0, b""


class K(B, metaclass=M):
    a: int
    def m(self): yield
"""


def test_every_python_has_the_same_digests(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "toy.py").write_text(SYNTAX, encoding="utf-8")
    assert toy_digest() == "4929746db330"
    (source / "toy.py").write_text(SYNTAX + "\n", encoding="utf-8")  # which is not in the cache
    parse = ast.parse

    def as_another(text: bytes) -> ast.Module:
        """With what some version has and others have not."""
        tree = parse(text)
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                node._fields = (*(name for name in node._fields if name != "type_params"), "type_params")
                node.type_params = []  # type: ignore[attr-defined, unused-ignore]
            elif isinstance(node, ast.JoinedStr):
                node.values.append(ast.Constant(""))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.kind = "u"
        return tree

    monkeypatch.setattr(ast, "parse", as_another)
    assert toy_digest() == "4929746db330"


def test_type_parameters_count() -> None:
    (plain,) = ast.parse("def use(x): pass").body
    generic = ast.parse("def use(x): pass").body[0]
    generic._fields = (*generic._fields, "type_params")
    generic.type_params = [ast.Name("T")]  # type: ignore[attr-defined]
    assert _code._dumped(plain) != _code._dumped(generic)


def test_only_definitions_of_the_package_have_a_digest() -> None:
    with pytest.raises(ValueError, match="is no function or class at the top level of a module of robattr") as error:
        code_digest(len)
    assert "\n" not in str(error.value)


def test_keys_follow_the_contents_of_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    (pictures / "cat").mkdir(parents=True)
    elsewhere.mkdir()
    (pictures / "cat" / "a.png").write_bytes(b"one")
    (elsewhere / "b.png").write_bytes(b"two")
    (pictures / "dog").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(pictures)  # a circle
    name = f"folder:{pictures}"
    before = files_digest(name)
    assert before != files_digest("digits")
    (elsewhere / "b.png").write_bytes(b"tWo")  # behind a link, of the same size
    assert files_digest(name) != before
    (elsewhere / "b.png").write_bytes(b"two")
    assert files_digest(name) == before
    moved = tmp_path / "moved"
    pictures.rename(moved)
    assert files_digest(f"folder:{moved}") == before
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files_digest("folder:~/moved") == before
    # The same pictures again, as a second class.
    (moved / "eel").symlink_to(elsewhere)
    assert files_digest("folder:~/moved") != before
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"1")
    one, stat = files_digest("digits", str(weights)), weights.stat()
    weights.write_bytes(b"2")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size, and said to be of the same time
    assert files_digest("digits", str(weights)) != one
    assert files_digest("digits", "random") == files_digest("digits", None)


def test_a_picture_of_another_split_does_not_change_the_key_of_a_training(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "a.png").write_bytes(b"one")
    config = Training(dataset=f"folder:{tmp_path}", size=8, model="linear")
    before, both = config.key, files_digest(config.dataset)
    (tmp_path / "test" / "cat" / "a.png").write_bytes(b"two")
    assert config.key == before
    assert files_digest(config.dataset) != both
    (tmp_path / "train" / "cat" / "a.png").write_bytes(b"two")
    assert config.key != before


def test_names_of_folders_are_said_without_their_paths() -> None:
    assert public_name("folder:/home/somebody/pictures") == "folder:pictures"
    assert public_name("cifar10") == "cifar10"


def test_state_digests_take_a_single_number() -> None:
    """As the count of batches that a batch normalization keeps."""
    one, other = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    assert state_digest(one) == state_digest(other)
    assert other.num_batches_tracked is not None
    other.num_batches_tracked += 1
    assert state_digest(one) != state_digest(other)


def test_state_digests_are_of_values_however_they_lie() -> None:
    one, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    one.bias.data = torch.arange(6.0)[::2]
    other.bias.data = torch.tensor([0.0, 2.0, 4.0])
    assert state_digest(one) == state_digest(other)


def test_state_digests_follow_every_value() -> None:
    one, same, other = (models.build("digits-mlp", weights="random", seed=seed) for seed in (0, 0, 1))
    assert state_digest(one) == state_digest(same) != state_digest(other)


def test_locks_stores_and_digests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def half(folder: Path) -> None:
        (folder / "a").write_text("1")
        raise KeyboardInterrupt

    def whole(folder: Path) -> None:
        (folder / "b").write_text("2")

    run = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        assert not _files.intact(run)  # nothing is there, which nobody has to be told
        assert not caplog.messages
    with _files.locked(run):
        _files.store(run, whole)
        with pytest.raises(KeyboardInterrupt):
            _files.store(run, half)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["run"]
    assert sorted(path.name for path in run.iterdir()) == ["b", "digests.json"]
    assert _files.file_digest(run / "b") == hashlib.sha256(b"2").hexdigest()
    assert _files.intact(run)


def test_what_a_killed_writer_left_is_neither_stored_nor_kept(tmp_path: Path) -> None:
    code = """
import os, pathlib, signal, sys
from robattr import _files

def write(folder):
    (folder / "left").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)

run = pathlib.Path(sys.argv[1])
with _files.locked(run):
    _files.store(run, write)
"""
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", code, str(run)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not run.exists()
    with _files.locked(run):  # which nobody holds any more
        _files.store(run, lambda folder: (folder / "b").write_text("2") and None)
    assert sorted(path.name for path in run.iterdir()) == ["b", "digests.json"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["run"]


@pytest.mark.parametrize("damage", ["changed", "gone", "more", "undigested", "torn"])
def test_a_folder_that_was_altered_is_not_intact(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    _files.store(run, lambda folder: (folder / "b").write_text("2") and None)
    if damage == "changed":
        (run / "b").write_text("3")
    elif damage == "gone":
        (run / "b").unlink()
    elif damage == "more":
        (run / "c").write_text("2")
    elif damage == "undigested":
        (run / "digests.json").unlink()
    else:
        (run / "digests.json").write_text("{")
    assert not _files.intact(run)
    assert caplog.messages == [f"{run} does not match its digests: it is made again"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("studies/trainings.py", "n = len(loaded) - self.validation", "n = len(loaded) - 1"),  # which images
        ("studies/trainings.py", "seed=self.seed,\n        )", "seed=0,\n        )"),  # which initial weights
        ("studies/trainings.py", '["epsilon"] / 255', '["epsilon"] / 256'),  # which radius
        ("models/networks.py", "def takes_input_size(", "@cache\ndef takes_input_size("),
        ("regularizers.py", "alpha=self.epsilon", "alpha=2 * self.epsilon"),
        ("data/cifar10.py", "def _read_cifar10(", "@cache\ndef _read_cifar10("),
    ],
)
def test_what_trains_is_what_the_key_of_a_training_covers(name: str, old: str, new: str, source: Path) -> None:
    aligned = Training(objective="l2")
    before, others = aligned.code, Training(objective="hessian").code
    change(source / name, old, new)
    assert aligned.code != before
    # What only one objective does counts for that one.
    assert (Training(objective="hessian").code == others) == ("epsilon" in old)


TOY: dict[str, str] = {
    "toy": """
from robattr import other
from robattr.other import helper as used
from math import sqrt


def use():
    return used(sqrt(2)), other.shown
""",
    "other": """
def helper(x):
    return x


shown = 1
""",
}


def toy_digest() -> str:
    use = type("use", (), {})
    use.__module__, use.__qualname__ = "robattr.toy", "use"
    return code_digest(use)


@pytest.mark.parametrize(
    ("files", "change_in", "old", "new"),
    [
        # Another package's function under the same name.
        ({}, "toy", "from math import", "from cmath import"),
        ({}, "other", "return x", "return -x"),
        # A module that a function imports.
        (
            {"toy": "def use():\n    from robattr import other\n    return other.helper(1)\n"},
            "other", "return x", "return -x",
        ),
        # A module by its whole name, a module in a package, a module as a value.
        ({"toy": "import robattr.other\n\n\ndef use():\n    return robattr.other.shown\n"}, "other", "= 1", "= 2"),
        (
            {"toy": "from robattr import attacks\n\n\ndef use():\n    return attacks.toys.shown\n",
             "attacks/toys": "shown = 1\n"},
            "attacks/toys", "= 1", "= 2",
        ),
        ({"toy": "from robattr import other\n\n\ndef use(n):\n    return getattr(other, n)\n"}, "other", "= 1", "= 2"),
        # Definitions in a condition, and the imports in it.
        (
            {"other": "try:\n    import numba\nexcept ImportError:\n    shown = 1\n\n    def helper(x): return x\n"},
            "other", "return x", "return -x",
        ),
        (
            {"toy": "if True:\n    from robattr import other\n\n\ndef use():\n    return other.shown\n"},
            "other", "= 1", "= 2",
        ),
        # A loop that fills a registry, one that is filled by assignment, one through which a name passes.
        (
            {"toy": "KNOWN = {}\n\n\ndef use():\n    return KNOWN\n\n\nfor n in range(3):\n    KNOWN[n] = 3 * n\n"},
            "toy", "3 * n", "4 * n",
        ),
        ({"toy": "A = [1]\nA += [2]\n\n\ndef use():\n    return A\n"}, "toy", "[2]", "[3]"),
        ({"toy": "A: dict = {}\nA[1] = 2\n\n\ndef use():\n    return A\n"}, "toy", "= 2", "= 3"),
        ({"toy": "a, (b, *c) = 1, (2, 3, 4)\n\n\ndef use():\n    return c\n"}, "toy", "4", "5"),
        (
            {"toy": "from robattr.between import shown\n\n\ndef use():\n    return shown\n",
             "between": "from robattr import other\nfrom robattr.other import shown\n\nshown.append(1)\n",
             "other": "shown = []\n"},
            "between", "append(1)", "append(2)",
        ),
        # What a class is made of.
        ({"toy": "def use():\n    return K.a\n\n\nclass K:\n    a = 1\n"}, "toy", "a = 1", "a = 2"),
        ({"toy": "def use():\n    return K.a\n\n\nclass K:\n    pass\n\n\nK.a = 1\n"}, "toy", "a = 1", "a = 2"),
        ({"toy": "from .other import helper\n\n\ndef use():\n    return helper\n"}, "other", "return x", "return -x"),
    ],
)  # fmt: skip
def test_every_way_to_reach_a_definition_is_followed(
    files: dict[str, str], change_in: str, old: str, new: str, source: Path
) -> None:
    for name, text in (TOY | files).items():
        (source / f"{name}.py").write_text(text, encoding="utf-8")
    before = toy_digest()
    change(source / f"{change_in}.py", old, new)
    assert toy_digest() != before


def test_definitions_of_one_name_do_not_change_places_unseen(source: Path) -> None:
    text = "def helper(x):\n    return {}\n\n\ndef {}(x):\n    return helper(x)\n"
    uses = "from robattr.one import first\nfrom robattr.two import second\n\n\ndef use(x):\n"
    (source / "toy.py").write_text(uses + "    return first(x), second(x)\n")
    (source / "one.py").write_text(text.format("x", "first"))
    (source / "two.py").write_text(text.format("-x", "second"))
    before = toy_digest()
    (source / "one.py").write_text(text.format("-x", "first"))
    (source / "two.py").write_text(text.format("x", "second"))
    assert toy_digest() != before
    # But the modules may, as a whole.
    (source / "one.py").write_text(text.format("-x", "second"))
    (source / "two.py").write_text(text.format("x", "first"))
    change(source / "toy.py", "robattr.one import first", "robattr.two import first")
    change(source / "toy.py", "robattr.two import second", "robattr.one import second")
    assert toy_digest() == before
