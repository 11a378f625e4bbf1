"""Bad requests: each is one line on stderr and status 2 that names the value, before any work, and nothing is written.

Every case calls the command in this process; a kernel or a training that starts fails its case. No case reads more than
the data that the package carries.
"""

from __future__ import annotations

import functools
import os
import signal
import string
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import PATIENCE_S, REPOSITORY
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from robattr import cli, models, training
from robattr.pages import chapters as book, execution
from robattr.pages.needs import check_needs
from robattr.studies import subjects


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as the repository is, with the records and without what was built, and bad files beside it."""
    root = tmp_path_factory.mktemp("project")
    for name in ("lessons", "notebooks", "profiles", "results", "_toc.yml"):
        (root / name).symlink_to(REPOSITORY / name)
    bad = root / "bad"
    bad.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    for file in (
        "named/Goldfish/1.png",
        "named/great_white_shark/1.png",
        "pics/cat/1.png",
        "pics/dog/2.png",
        "pics2/n01440764/1.png",
        "pics2/n99999999/2.png",
        "pipe/a/1.png",
    ):
        path = bad / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    os.mkfifo(bad / "pipe/a/x.jpg")
    for folder in ("empty", "classless/cat", "broken/a", "cut/n01440764", "large/a", "large2/a", "deep/a"):
        (bad / folder).mkdir(parents=True)
    (bad / "broken/a/1.png").write_bytes(b"no picture")
    for number in range(2):  # in the first draw of one picture the whole one is drawn
        Image.fromarray(pixels.repeat(20, 0).repeat(20, 1)).save(bad / f"cut/n01440764/{number}.jpg")
    with (bad / "cut/n01440764/1.jpg").open("r+b") as file:
        file.truncate(2000)
    Image.new("1", (13_000, 13_000)).save(bad / "large/a/1.png")
    for number, side in enumerate((16, 13_000)):  # in the first draw of one picture the small one is drawn
        Image.new("1", (side, side)).save(bad / f"large2/a/{number}.png")
    (bad / "latin.yaml").write_bytes(b"seed: 1 # caf\xe9\n")
    (bad / "nested.yaml").write_text("[" * 5000 + "]" * 5000)
    (bad / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (bad / "list.yaml").write_text("[1]\n")
    (bad / "unknown.yaml").write_text("sead: 1\n")
    (bad / "negative.yaml").write_text("seed: -7\n")
    (bad / "words.txt").write_text("not weights")
    (bad / "garbage.safetensors").write_bytes(b"\xff" * 64)
    (bad / "empty.safetensors").write_bytes(b"")
    (bad / "garbage.pt").write_bytes(b"\x80garbage")
    (bad / "names.txt").write_text("cat\ncat\n")
    (bad / "nested.json").write_text("[" * 100_000)
    (bad / "code.py").write_text("def make():\n    return 3\n")
    (bad / "a file").write_text("where a folder belongs")
    for name, change in GRIDS.items():
        (bad / f"{name}.yaml").write_text(yaml.safe_dump(GRID | change))
    return root


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as the working directory; what would be work is a failure."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("ROBATTR_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(execution, "_run", lambda *given: pytest.fail("a kernel was started"))

    @functools.wraps(training.train)  # keys of trainings ask what it does
    def train(*given: object, **options: object) -> None:
        pytest.fail("a training was started")

    monkeypatch.setattr(training, "train", train)
    return place


def files_below(root: Path) -> dict[str, int]:
    # Locks of the runs' folders may stay; they hold nothing.
    return {
        str(path.relative_to(root)): path.lstat().st_mtime_ns
        for path in root.rglob("*")
        if path.suffix != ".lock" and not path.is_dir()
    }


def refused(place: Path, words: tuple[str, ...], *said: str) -> str:
    """Call the command; it must refuse in one line that has all of ``said``, and write nothing."""

    def give_up(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"no answer after {PATIENCE_S} s")

    before = files_below(place)
    old = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    try:
        result = CliRunner().invoke(cli.main, words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    # click's own refusals have its usage before the line that says what is wrong.
    lines = result.stderr.splitlines()
    assert len(lines) == 1 or lines[0].startswith("Usage: "), result.stderr
    for part in said:
        assert part in lines[-1]
    assert files_below(place) == before
    return lines[-1]


def run(chapter: str, *pairs: str) -> tuple[str, ...]:
    words: list[str] = ["run", chapter]
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        words += ["-p", name, value]
    return tuple(words)


HUGE = "1" + "0" * 22
CHAPTERS = [
    # Numbers that are more than there is, or than a generator takes.
    (run("1", "images", "21"), "21", "imagenet-samples has 20 images"),
    (run("2", "images", "1000"), "1000", "20 images"),
    (run("2", "images", HUGE), HUGE, "64 bits"),
    (run("2", "images", "0"), "0", "an integer >= 1"),
    (run("2", "images", "-3"), "-3", "an integer >= 1"),
    (run("2", "images", "2.0"), "2.0", "an integer >= 1"),
    (run("2", "images", "many"), "'many'", "an integer >= 1"),
    (run("2", "images", "5 # five"), "'5 # five'", "an integer >= 1"),
    (run("2", "images", "[5]"), "[5]", "an integer >= 1"),
    (run("2", "images", "true"), "True", "an integer >= 1"),
    (run("2", "targeted", "21"), "'targeted' cannot be 21", "20 images"),
    (run("2", "k", "50177"), "50177", "a map of efficientnet-lite0 has 50,176 pixels"),
    (run("2", "k", "0"), "'k' cannot be 0"),
    (run("2", "k", HUGE), HUGE, "64 bits"),
    (run("2", "iterations", HUGE), HUGE, "64 bits"),
    (run("2", "seed", str(2**32)), str(2**32), "<= 4294967295"),
    (run("2", "seed", "-1"), "-1", ">= 0"),
    (run("6", "seed", HUGE), HUGE),
    (run("2", "epsilons", "[]"), "[]", "non-empty"),
    (run("2", "epsilons", "[1, 1]"), "[1, 1]", "different"),
    (run("2", "epsilons", "[256]"), "[256]", "<= 255"),
    (run("2", "epsilons", "[.inf]"), "inf"),
    (run("2", "epsilons", "[.nan]"), "nan"),
    (run("2", "epsilons", "4"), "cannot be 4", "list"),
    (run("2", "epsilons", "[1"), "'epsilons'", "not valid YAML"),
    (run("2", "epsilons", "[" * 5000 + "]" * 5000), "'epsilons'"),
    (run("2", "beta", "[1]"), "[1]", "exactly 2"),
    (run("2", "beta", "[0, 1]"), "[0, 1]", "> 0"),
    (run("2", "step", "0"), "cannot be 0", "> 0"),
    (run("2", "attribution", "lime"), "'lime'", "gradient"),
    (run("2", "shown", "9"), "9", "<= 8"),
    (run("1", "sigma", "1e308"), "1e+308", "<= 1"),
    (run("1", "sigma", "-0.1"), "-0.1", ">= 0"),
    (run("1", "steps", "1"), "cannot be 1", ">= 2"),
    (run("3", "images", "501"), "501", "<= 500"),
    (run("3", "points", "99"), "99", ">= 100"),
    (run("4", "images", "501"), "501", "<= 500"),
    (run("4", "rows", "191"), "191", "<= 190"),
    (run("4", "percent", "[60]"), "[60]", "<= 50"),
    (run("5", "images", "21"), "21", "cifar10-samples has 20 images"),
    (run("5", "decades", "7"), "7", "<= 6"),
    (run("6", "images", "21"), "21", "20 images"),
    (run("6", "network_seed", "77"), "77", "cifar10-lenet has 0, 1, 2"),
    (run("6", "objectives", "[l3]"), "l3", "cross-entropy"),
    (run("6", "objectives", "[cosine, cosine]"), "cosine"),
    (run("7", "shown", "0"), "cannot be 0", ">= 1"),
    (run("8", "images", "21"), "21", "20 images"),
    (run("8", "alpha", "1"), "cannot be 1", "< 1"),
    (run("8", "points", "10001"), "10001", "multiple of 100"),
    (run("8", "worst_epsilon", "2"), "cannot be 2", "< 2"),
    (run("8", "radius", ".inf"), "inf", "> 0"),
    (run("9", "objectives", "[]"), "[]", "1 to 4 different values"),
    # Data sets that are none, or that the network does not take.
    (run("1", "dataset", "digit"), "'digit'", "the name of a data set"),
    (run("1", "dataset", "digits"), "digits has images with 1 channels"),
    (run("2", "dataset", "digits"), "digits has images with 1 channels"),
    (run("2", "dataset", "breast-cancer"), "breast-cancer"),
    (run("2", "dataset", "cifar10-samples"), "cifar10-samples has 10 classes and efficientnet-lite0 has 1000"),
    (run("2", "dataset", "2024"), "'2024'"),
    (run("2", "dataset", "null"), "'null'"),
    (run("2", "dataset", ""), "dataset"),
    (run("5", "dataset", "digits"), "dataset is digits", "does not hold the weights of lenet"),
    (run("6", "dataset", "digits"), "'digits'", "1 x 8 x 8 and 10 classes", "cifar10-lenet take 3 x 32 x 32"),
    (run("7", "dataset", "digits"), "'digits'", "1 x 8 x 8"),
    (run("8", "dataset", "digits"), "dataset is digits", "does not hold the weights of lenet"),
    (run("9", "dataset", "digits"), "'digits'", "1 x 8 x 8"),
    (run("9", "dataset", "imagenet-samples"), "'imagenet-samples'", "1000 classes"),
    (run("9", "dataset", "folder:bad/pics"), "bad/pics'", "2 classes", "airplane"),
    (run("6", "dataset", "folder:bad/pics"), "bad/pics'", "2 classes"),
    (run("2", "dataset", "folder:bad/pics"), "bad/pics has 2 classes and efficientnet-lite0 has 1000"),
    (run("2", "dataset", "folder:bad/named"), "(Goldfish is n01443537, great_white_shark is n01484850)"),
    (run("2", "dataset", "folder:bad/pics #2"), "'folder:bad/pics #2'", "an existing folder"),
    (run("2", "dataset", "folder:bad/none"), "'folder:bad/none'", "an existing folder"),
    (run("2", "dataset", "folder:"), "'folder:'"),
    (run("2", "dataset", "folder:bad/a file"), "'folder:bad/a file'"),
    (run("2", "dataset", "folder:bad/empty"), "bad/empty has no class folders"),
    (run("2", "dataset", "folder:bad/classless"), "bad/classless/cat has no images"),
    (run("2", "dataset", "folder:bad/pics2"), "n99999999", "no WordNet id of ImageNet's 1,000 classes"),
    (run("2", "dataset", "folder:bad/broken"), "bad/broken/a/1.png cannot be read as an image"),
    (run("2", "dataset", "folder:bad/cut"), "cut/n01440764/1.jpg cannot be read as an image (image file is truncated"),
    (run("2", "dataset", "folder:bad/cut", "images", "2"), "cut/n01440764/1.jpg cannot be read as an image"),
    (run("2", "dataset", "folder:bad/cut", "images", "1", "k", "0"), "'k' cannot be 0"),
    (run("2", "dataset", "folder:bad/pipe"), "bad/pipe/a/x.jpg cannot be read as an image (it is no regular"),
    (run("10", "dataset", "folder:bad/large2", "images", "2"), "13000 x 13000 pixels, where max_pixels is 80,000,000"),
    (run("10", "dataset", "folder:bad/large2", "images", "3"), "2 images"),
    (run("10", "k", "1025"), "'k'", "1,024 pixels"),
    (run("2", "dataset", "folder:bad/large"), "13000 x 13000 pixels, where max_pixels is 80,000,000"),
    (run("1", "dataset", "imagenet-100"), "imagenet-100"),
    # Networks and weights.
    (run("1", "model", "resnet5O"), "resnet5O", "did you mean"),
    (run("1", "model", "resnet18"), "resnet18-cifar"),
    (run("1", "model", "timm:no-such-network"), "no-such-network"),
    (run("1", "model", "7"), "'7'"),
    (run("1", "model", "{weights: a.pt}"), "name"),
    (run("1", "model", "{name: lenet, beta: 3}"), "beta"),
    (run("1", "model", "{name: lenet, num_classes: 0}"), "num_classes is 0"),
    (run("1", "model", "{name: lenet, input_size: [3, 33, 33]}"), "33"),
    (run("1", "model", "bad/none.py:make"), "none.py"),
    (run("1", "model", "bad/code.py"), "bad/code.py"),
    (run("1", "model", "bad/code.py:other"), "other"),
    (run("1", "model", "{name: 'bad/code.py:make', input_size: 8}"), "code.py:make", "int"),
    (run("1", "model", "{name: lenet, class_names: bad/names.txt}"), "names.txt", "twice"),
    (run("1", "model", "{name: lenet, class_names: bad/nested.json}"), "nested.json", "cannot be read"),
    (run("2", "weights", "yes"), "weights is yes"),
    (run("2", "weights", "/etc/passwd"), "weights is /etc/passwd"),
    (run("2", "weights", "bad/garbage.safetensors"), "garbage.safetensors is no whole .safetensors file"),
    (run("2", "weights", "bad/empty.safetensors"), "empty.safetensors is no whole .safetensors file"),
    (run("2", "weights", "bad/garbage.pt"), "garbage.pt"),
    (run("2", "weights", "bad"), "bad; there is no such file"),
    (run("5", "weights", "yes"), "weights is yes"),
    (run("5", "rival", "/etc/passwd"), "weights is /etc/passwd"),
    (run("8", "weights", "bad/words.txt"), "weights is bad/words.txt"),
    (
        run("5", "rival", "results/reference/certificates/weights/digits-cross-entropy-0.safetensors"),
        "digits-cross-entropy-0.safetensors",
    ),
    # Records.
    (run("2", "reference", "nowhere"), "'nowhere'", "there are no records"),
    (run("2", "recorded", "none"), "'none'", "make reference GRID=none"),
    (run("2", "recorded_methods", "none"), "'none'", "no records"),
    (run("3", "grid", "none"), "'none'", "no records"),
    (run("4", "trained", "none"), "'none'", "no records"),
    (run("6", "grid", "bad/empty"), "'bad/empty'", "no records"),
    (run("7", "attacked", "bad/none"), "'bad/none'", "no records"),
    (run("9", "grid", "/nowhere"), "'/nowhere'", "no records"),
    (run("9", "trained", "bad/a file"), "'bad/a file'", "no records"),
    (run("cross_table", "timed", "none"), "'none'", "no records"),
    (run("ledger", "claims", "bad/none.yaml"), "bad/none.yaml"),
    (run("how_sure", "claims", "results"), "'results'", "no file"),
    # Names of chapters and parameters, files of values, profiles, code.
    (run("99"), "'99'", "no chapter"),
    (run(""), "no chapter ''"),
    (run("0"), "'0'"),
    (run("2", "sead", "1"), "'sead'", "did you mean 'seed'?"),
    (("run", "2", "--profile", "none"), "'none'", "quick"),
    (("run", "2", "-f", "bad/none.yaml"), "none.yaml"),
    (("run", "2", "-f", "bad"), "bad"),
    (("run", "2", "-f", "bad/latin.yaml"), "latin.yaml", "not UTF-8"),
    (("run", "2", "-f", "bad/nested.yaml"), "nested.yaml", "not valid YAML"),
    (("run", "2", "-f", "bad/twice.yaml"), "twice.yaml", "'seed' is there twice"),
    (("run", "2", "-f", "bad/list.yaml"), "list.yaml", "must map"),
    (("run", "2", "-f", "bad/unknown.yaml"), "'sead'"),
    (("run", "2", "-f", "bad/negative.yaml"), "-7"),
    (("run", "2", "--code", "bad/none.py"), "bad/none.py"),
    (("run", "2", "--no-such-option"), "--no-such-option"),
    (("run",), "CHAPTER"),
    # Where what comes of it cannot be written, or would be written over something else.
    (("run", "2", "-o", "notebooks/02_fragile.md"), "notebooks/02_fragile.md", ".ipynb"),
    (("run", "2", "-o", "bad"), "--output is bad", "a file"),
    (("run", "2", "-o", "x.html", "--html", "x.html"), "--output is x.html", ".ipynb"),
    (("run", "2", "-o", "bad/words.txt/x.ipynb"), "bad/words.txt is a file"),
    (("run", "2", "--html", "bad/words.txt/x.html"), "bad/words.txt is a file"),
    (("run", "2", "--errors", "bad"), "--errors is bad", "a file"),
    (("run", "2", "--errors", "bad/words.txt/x"), "bad/words.txt is a file"),
    (run("2", "seed", "1", "seed", "2"), "-p seed is given twice"),
    (("chapters", "99"), "'99'"),
]

SCHEDULE = {"epochs": 1, "batch_size": 50, "augment": False, "milestones": []}
TRAINED = {"dataset": "digits", "images": 200, "validation": 50, "model": "digits-mlp", "schedule": SCHEDULE}
ALIGNED = {
    "dataset": "digits", "images": 10, "epsilons": [8], "draws": 1, "methods": [], "method_images": 5, "manipulated": 5,
    "manipulation_iterations": 2, "frame": 2, "fractions": 4,
}  # fmt: skip
GRID = {
    "description": "x", "training": TRAINED, "objectives": {"cross-entropy": None}, "seeds": [0], "alignment": ALIGNED,
}  # fmt: skip
GRIDS: dict[str, dict[str, object]] = {
    "frame": {"alignment": ALIGNED | {"frame": 5}},
    "fractions": {"alignment": ALIGNED | {"fractions": 65}},
    "measured": {"alignment": ALIGNED | {"images": 501}},
    "other": {"alignment": ALIGNED | {"dataset": "cifar10-samples"}},
    "nodata": {"training": TRAINED | {"dataset": "digit"}},
    "nomodel": {"training": TRAINED | {"model": "digits-mpl"}},
    "good": {},
    "novalidation": {"training": {"dataset": "digits", "model": "digits-mlp", "schedule": SCHEDULE}},
    "noimages": {"training": TRAINED | {"images": 5000}},
    "rate": {"training": TRAINED | {"schedule": SCHEDULE | {"learning_rate": float("inf")}}},
    "milestones": {"training": TRAINED | {"schedule": SCHEDULE | {"milestones": [3, 2]}}},
    "seed": {"seeds": [2**40]},
    "seeds": {"seeds": [0, 0]},
    "options": {"objectives": {"hessian": {"hesian": 1}}},
    "weight": {"objectives": {"hessian": {"hessian": float("nan")}}},
    "objective": {"objectives": {"l3": None}},
    "key": {"alignmnet": {}},
    "method": {"alignment": ALIGNED | {"methods": ["lime"]}},
    "epsilon": {"alignment": ALIGNED | {"epsilons": [0]}},
    "of": {"trainings": "no-such-grid"},
    "but": {"but": {"hessian-7": {"images": 3}}},
}
STUDIES = [
    (("reference", "bad/frame.yaml", "cross-entropy-0"), "frame is 5", "1 to 3 pixels"),
    (("reference", "bad/frame.yaml"), "frame is 5"),
    (("reference", "bad/fractions.yaml"), "fractions is 65", "64"),
    (("reference", "bad/measured.yaml", "cross-entropy-0"), "501", "500"),
    (("reference", "bad/other.yaml", "cross-entropy-0"), "cifar10-samples", "digits"),
    (("reference", "bad/nodata.yaml"), "digit;"),
    (("reference", "bad/nomodel.yaml", "cross-entropy-0"), "digits-mpl"),
    (("reference", "bad/noimages.yaml", "cross-entropy-0"), "images is 5000 and validation 50 ", "1297 images"),
    (("reference", "bad/novalidation.yaml", "cross-entropy-0"), "validation is 5000 ", "1297 images"),
    (("reference", "bad/good.yaml", "cross-entropy-0", "-o", "x.jsonl"), "x.jsonl", ".json"),
    (("reference", "bad/good.yaml", "cross-entropy-0", "-o", "bad/words.txt/x.json"), "bad/words.txt", "is a file"),
    (("reference", "bad/good.yaml", "-o", "x.json"), "--output is for one run"),
    (("reference", "bad/words.txt/x.yaml"), "robattr: bad/words.txt is a file"),
    (("reference", "bad/good.yaml", "cross-entropy-0", "--devices", "-1"), "--devices", "x>=1"),
    (
        ("reference", "bad/good.yaml", "cross-entropy-0", "--accelerator", "tpu"),
        "--accelerator is tpu",
        "cannot be had",
    ),
    (("reference", "bad/good.yaml", "cross-entropy-0", "--strategy", "foo"), "--strategy foo", "cannot be had"),
    (("check", "--rerun", "nan"), "--rerun is nan", "above 0"),
    (("check", ""), "no claim ''"),
    (("keep", "bad/nested.json", "--seed", str(2**70)), str(2**70)),
    (("exercises", "-o", "x.txt"), "x.txt", ".ipynb"),
    (("exercises", "-o", "bad"), "--output is bad", "a file"),
    (("exercises", "ex-linear", "--chapter", "3"), "--chapter", "ex-linear"),
    (("reference", "bad/rate.yaml"), "learning_rate"),
    (("reference", "bad/milestones.yaml"), "(3, 2)"),
    (("reference", "bad/seed.yaml"), "seed"),
    (("reference", "bad/seeds.yaml"), "[0, 0]"),
    (("reference", "bad/options.yaml"), "hesian"),
    (("reference", "bad/weight.yaml"), "hessian = nan"),
    (("reference", "bad/objective.yaml"), "l3"),
    (("reference", "bad/key.yaml"), "alignmnet"),
    (("reference", "bad/method.yaml"), "lime"),
    (("reference", "bad/epsilon.yaml"), "[0.0]"),
    (("reference", "bad/of.yaml"), "no-such-grid"),
    (("reference", "bad/but.yaml", "cross-entropy-0"), "hessian-7"),
    (("reference", "bad/latin.yaml"), "latin.yaml", "not UTF-8"),
    (("reference", "bad/nested.yaml"), "nested.yaml"),
    (("reference", "bad/none.yaml"), "none.yaml"),
    (("reference", "bad"), "bad"),
    (("reference", "results/reference/certificates.yaml", "none"), "'none'"),
    (("audit", "--model", "resnet5O", "--data", "digits"), "resnet5O"),
    (("audit", "--model", "digits-mlp", "--data", "digit", "-o", "out"), "digit"),
    (
        ("audit", "--model", "digits-mlp", "--data", "digits", "--minutes", "nan", "-o", "out"),
        "--minutes is nan; accepted",
    ),
    (("audit", "--model", "digits-mlp", "--data", "digits", "--minutes", "0", "-o", "out"), "--minutes is 0; accepted"),
    (("audit", "--model", "digits-mlp", "--data", "digits", "--minutes", "-1", "-o", "out"), "--minutes is -1;"),
    (("audit", "--model", "digits-mlp", "--data", "digits", "--methods", "lime"), "--methods has 'lime'; accepted"),
    (("audit", "--model", "digits-mlp", "--data", "digits", "--methods", ""), "--methods is ''; accepted are", "lrp"),
    (("audit", "--model", "digits-mlp", "--data", "digits", "--methods", " ,"), "--methods is ' ,'; accepted are"),
    (("audit", "--model", "digits-mlp", "--data", "digits", "-o", "bad/words.txt/x"), "bad/words.txt is a file"),
    (("audit", "--model", "digits-mlp", "--data", "digits", "--split", "val", "-o", "out"), "'val'"),
    (("audit", "--model", "efficientnet-lite0", "--data", "folder:bad/none", "-o", "out"), "bad/none"),
    (("audit", "--model", "lenet", "--data", "folder:bad/broken", "-o", "out"), "bad/broken"),
    (("audit", "--model", "digits-mlp", "--data", "digits", "--weights", "bad/words.txt", "-o", "out"), "words.txt"),
    (("audit", "--model", "bad/code.py:make", "--data", "digits", "-o", "out"), "code.py:make"),
    (("ledger", "--claims", "bad/latin.yaml"), "latin.yaml", "not UTF-8"),
    (("ledger", "--claims", "bad/nested.yaml"), "nested.yaml"),
    (("ledger", "--claims", "bad/none.yaml"), "none.yaml"),
    (("ledger", "--claims", "bad/list.yaml"), "list.yaml"),
    (("ledger", "--records", "bad/empty"), "bad/empty"),
    (("ledger", "--into", "bad/words.txt"), "words.txt"),
    (("ledger", "--json", "--markdown"), "--json and --markdown are given; give one of them"),
    (("ledger", "--schema", "--json"), "--json and --schema are given"),
    (("ledger", "--json", "--into", "bad/words.txt"), "--json and --into are given"),
    (("lesson", "fragility", "-o", "bad/words.txt/x.zip"), "bad/words.txt", "is a file"),
    (("lesson", "fragility", "-o", "bad"), "--output is bad", "accepted is a file"),
    (("ledger", "--claims", "bad"), "bad is a folder", "a file is needed"),
    (("data", "fetch", "cifar11"), "cifar11"),
    (("data", "fetch", ""), "''"),
]


@pytest.mark.parametrize("case", [*CHAPTERS, *STUDIES], ids=lambda case: " ".join(case[0])[:60] or "run")
def test_a_bad_request_is_one_line_before_any_work(
    inside: Path, case: tuple[tuple[str, ...], *tuple[str, ...]]
) -> None:
    words, *said = case
    refused(inside, words, *said)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "2", "-o", "bad/x.ipynb"),
        ("reference", "bad/good.yaml", "cross-entropy-0"),
        ("reference", "bad/good.yaml", "cross-entropy-0", "-o", "x.json", "--root", "bad/runs/below"),
        ("audit", "--model", "digits-mlp", "--data", "digits", "-o", "bad/report"),
    ],
)
def test_a_folder_that_may_not_be_written_is_named_before_any_work(
    inside: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = inside / "bad"

    def access(path: Path, mode: int, **_: object) -> bool:  # root may write anywhere
        return not (mode & os.W_OK and bad in (path, *path.parents))

    monkeypatch.setattr("os.access", access)
    refused(inside, words, str(bad), "nothing can be written", "choose another place")


def test_what_is_wrong_with_a_model_is_not_said_of_the_pictures(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*given: object, **options: object) -> None:
        raise models.ModelError("the weights could not be downloaded")

    monkeypatch.setattr(subjects, "resolve", offline)
    words = run("1", "dataset", "folder:bad/named", "model", "resnet50")
    assert refused(inside, words) == "robattr: the weights could not be downloaded"


def test_there_are_enough_bad_requests() -> None:
    assert len({case[0] for case in [*CHAPTERS, *STUDIES]}) == len([*CHAPTERS, *STUDIES]) >= 120


@pytest.mark.parametrize("name", sorted(book.contents(REPOSITORY)))
def test_what_a_chapter_needs_is_there_by_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    chapter = book.chapter(REPOSITORY, name)
    assert check_needs(chapter, {each.name: each.default for each in chapter.parameters.values()}, REPOSITORY) == []


@pytest.mark.parametrize("name", sorted(book.contents(REPOSITORY)))
def test_a_chapter_says_what_its_parameters_need(name: str) -> None:
    """Numbers of images of a data set and seeds are bounded; folders and files are known as such."""
    chapter = book.chapter(REPOSITORY, name)
    bounded = {need.left for need in chapter.needs}
    for each in chapter.parameters.values():
        if each.name.endswith("seed"):
            assert each.schema["maximum"] < 2**63, each.name
        if each.name in ("images", "targeted"):
            assert each.name in bounded or "maximum" in each.schema, each.name
        if each.schema.get("type") == "string" and each.name != "dataset":
            assert each.schema.get("format") in ("records", "grid", "file"), each.name
        if each.schema.get("format") == "dataset" and "model" not in chapter.parameters:
            assert each.name in bounded


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        ("images", "'needs' under 'robattr:' must be a list"),
        ("[images]", "a need is 'a <= b', 'a in b.c' or 'a fits b', not 'images'"),
        ("[images > dataset.images]", "a need is"),
        ("[imagse <= dataset.images]", "names 'imagse', which is no parameter"),
        ("[images <= datset.images]", "names 'datset', which is no parameter"),
        ("[images <= dataset.pixels]", "cannot be asked; dataset has images"),
        ("[dataset fits images]", "cannot be asked; nothing follows from images"),
    ],
)
def test_a_need_with_a_mistake_is_refused_with_its_chapter(tmp_path: Path, needs: str, said: str) -> None:
    (tmp_path / "notebooks").mkdir()
    text = (REPOSITORY / "notebooks" / "05_not_invariant.md").read_text()
    head, rest = text.split("\n  needs:\n", 1)
    (tmp_path / "notebooks" / "05_not_invariant.md").write_text(
        f"{head}\n  needs: {needs}\n---\n{rest.split('---', 1)[1]}"
    )
    with pytest.raises(book.ChapterError, match="05_not_invariant") as error:
        book.chapter(tmp_path, "5")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_values_from_another_directory_are_read_and_run_from_there(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One path is checked and opened: the one that the reader means, below where the reader is."""
    below = inside / "bad"
    monkeypatch.chdir(below)
    refused(inside, run("2", "dataset", "folder:none"), f"folder:{below / 'none'}")
    refused(inside, run("2", "dataset", "folder:pics"), f"folder:{below / 'pics'} has 2 classes")
    refused(inside, run("6", "grid", "results/reference/cifar10-lenet"), str(below / "results"))
    refused(inside, run("2", "weights", "garbage.pt"), str(below / "garbage.pt"))
    # The defaults lie where the project is.
    refused(inside, run("5", "images", "21"), "20 images")


# --- by a generator -------------------------------------------------------------------------------------------------

JUNK = st.one_of(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=30),
    st.text(string.punctuation + " \n\t", max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.recursive(st.none() | st.booleans() | st.integers(), lambda v: st.lists(v, max_size=3), max_leaves=6).map(str),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["images", "epsilons", "beta", "attribution", "seed", "step", "reference"]), text=JUNK)
def test_any_text_is_a_value_or_one_line(inside: Path, name: str, text: str) -> None:
    """Whatever stands on the command line: a value that the chapter accepts, or a refusal that names the parameter."""
    reached: list[object] = []

    def stop(*given: object, **options: object) -> None:
        reached.append(given)
        raise execution.ExecutionError("stopped here", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "execute", stop)
        result = CliRunner().invoke(cli.main, ["run", "2", "-p", name, text])
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    if reached:
        assert result.exit_code == 1
        return
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert name in result.stderr


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | JUNK.map(str.encode))
def test_any_file_of_values_is_read_or_one_line(inside: Path, content: bytes) -> None:
    path = inside / "bad" / "any.yaml"
    path.write_bytes(content)
    try:
        result = CliRunner().invoke(cli.main, ["run", "2", "-p", "k", "0", "-f", str(path)])
    finally:
        path.unlink()
    # Also a file that holds nothing wrong ends here: k is 0.
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_the_names_of_the_bad_grids_are_used() -> None:
    asked = {Path(word).stem for words, *_ in STUDIES for word in words if word.startswith("bad/")}
    assert GRIDS.keys() <= asked
