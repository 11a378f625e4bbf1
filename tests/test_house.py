"""The plan of the house: imports run one way, and the picture of them is what they are."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY

from robattr.pages.figures.style import COLUMN, LEAST


def load_plan() -> ModuleType:
    """``book/plan.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("plan", REPOSITORY / "book" / "plan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plan = load_plan()


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small package in order: an arrow each from the core to the studies, to the pages and to the command line."""
    package = tmp_path / "robattr"
    for name, text in {
        "__init__": "",
        "_files": "",
        "data": "from robattr._files import write\n",
        "models": "import robattr.data\n",
        "metrics": "from robattr import data, models\n",
        "attacks/__init__": "from robattr.attacks.loop import attack\n",
        "attacks/loop": "from .. import metrics\nfrom .goals import Goal\nimport torch\n",
        "attacks/goals": "",
        "studies/__init__": "",
        "studies/runs": "from robattr import attacks, _files\n",
        "pages/__init__": "",
        "pages/chapters": "from robattr.studies import runs\n",
        "cli": "from robattr.pages import chapters\n",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_imports_run_one_way() -> None:
    assert plan.backward(plan.imports(REPOSITORY / "robattr")) == []


def test_the_picture_is_that_of_the_imports() -> None:
    drawn = plan.picture(plan.imports(REPOSITORY / "robattr"))
    assert plan.PICTURE.read_text(encoding="utf-8") == drawn, "the plan has changed: make plan"


def test_the_words_of_the_picture_are_legible_in_a_page() -> None:
    head = plan.PICTURE.read_text(encoding="utf-8").partition("\n")[0]
    width, size = (int(text) for text in re.findall(r' (?:width|font-size)="(\d+)"', head))
    assert size * min(1, COLUMN / width) >= LEAST, f"{width} px: more rows, or narrower ones"


def test_the_book_has_a_page_for_each_module() -> None:
    text = plan.CONTENTS.read_text(encoding="utf-8")
    assert text == plan.contents(text, plan.imports(REPOSITORY / "robattr")), "modules have changed: make plan"


def test_the_readme_names_every_module() -> None:
    rows = re.findall(r"^\| `robattr\.([\w.]+)` \|", (REPOSITORY / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(plan.drawn(plan.imports(REPOSITORY / "robattr")))


def test_a_table_of_contents_without_marks_is_refused(house: Path) -> None:
    found = plan.imports(house)
    listed = plan.contents("# make plan\n- old\n# end\n- rest\n", found)
    assert re.findall(r"file: (\S+)", listed) == [
        "book/api/attacks", "book/api/data", "book/api/metrics", "book/api/models", "book/api/studies_runs"
    ]  # fmt: skip
    assert listed.endswith("# end\n- rest\n")
    with pytest.raises(ValueError, match="has no line '# make plan'"):
        plan.contents("- old\n# end\n", found)


CONTRIBUTING = [REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "book" / "contributing").glob("*.md"))]


def places(page: Path) -> Iterator[str]:
    """Paths, names of the package and tests that a page spells as code."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", prose):
        is_file = re.fullmatch(r"[\w./-]+(::\w+)?", code) and ("/" in code or code.endswith((".py", ".md", ".yml")))
        if (is_file or re.fullmatch(r"robattr(\.\w+)+|test_\w+", code)) and not re.search(r"\bNN_|my-grid", code):
            yield code


@pytest.mark.parametrize("page", CONTRIBUTING, ids=lambda page: page.stem)
def test_what_a_page_for_newcomers_names_is_there(page: Path) -> None:
    found = list(places(page))
    assert len(found) > 3
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for name in found:
        path, _, test = name.partition("::")
        if name.startswith("robattr."):
            assert pkgutil.resolve_name(name)
        elif name.startswith("test_"):
            assert f"def {name}(" in tests, f"{page.name}: {name}"
        else:
            assert (REPOSITORY / path).exists(), f"{page.name}: {name}"
            assert not test or f"def {test}(" in (REPOSITORY / path).read_text(encoding="utf-8"), f"{page.name}: {name}"


def test_a_newcomer_finds_a_page_for_each_thing_to_add() -> None:
    text = CONTRIBUTING[0].read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((book/contributing/\w+)\.md\)", text))
    assert linked == {page.relative_to(REPOSITORY).with_suffix("").as_posix() for page in CONTRIBUTING[1:]}
    contents = plan.CONTENTS.read_text(encoding="utf-8")
    for page in ("CONTRIBUTING", *linked):
        assert f"- file: {page}\n" in contents
    for page in CONTRIBUTING[1:]:
        text = page.read_text(encoding="utf-8")
        assert "Copy from:" in text
        assert "**Fails first:**" in text


PROMISES = REPOSITORY / "book" / "promises.md"


def test_every_promise_has_a_test_that_is_there() -> None:
    rows = [row for row in PROMISES.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    named = set()
    for row in rows:
        *_, shown = row.strip("| ").split(" | ")
        if shown in ("Shown by", "---"):
            continue
        found = re.findall(r"`(tests/test_\w+\.py)::(test_\w+)`", shown)
        assert found, row
        for file, test in found:
            assert f"\ndef {test}(" in (REPOSITORY / file).read_text(encoding="utf-8"), f"{file}::{test}"
            named.add((file, test))
    text = (REPOSITORY / "tests" / "test_faults.py").read_text(encoding="utf-8")
    faults = re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)
    assert {("tests/test_faults.py", test) for test in faults} <= named


def test_imports_are_read(house: Path) -> None:
    found = plan.imports(house)
    assert found == {
        "": set(),
        "_files": set(),
        "data": {"_files"},
        "models": {"data"},
        "metrics": {"data", "models"},
        "attacks": {"attacks.loop"},
        "attacks.loop": {"metrics", "attacks.goals"},
        "attacks.goals": set(),
        "studies": set(),
        "studies.runs": {"attacks", "_files"},
        "pages": set(),
        "pages.chapters": {"studies.runs"},
        "cli": {"pages.chapters"},
    }
    assert plan.backward(found) == []
    # Of the picture: packages are one box, private modules none, and metrics imports data by way of models.
    assert plan.drawn(found) == {
        "data": set(),
        "models": {"data"},
        "metrics": {"models"},
        "attacks": {"metrics"},
        "studies.runs": {"attacks"},
        "pages.chapters": {"studies.runs"},
        "cli": {"pages.chapters"},
    }


@pytest.mark.parametrize(
    ("where", "planted", "said"),
    [
        ("metrics", "import robattr.studies.runs", "metrics imports studies.runs: core may not know studies"),
        ("_files", "from robattr.pages import chapters", "_files imports pages.chapters: core may not know pages"),
        ("studies/runs", "from robattr.pages import chapters", "studies.runs imports pages.chapters: studies may not"),
        ("pages/chapters", "from robattr import cli", "pages.chapters imports cli: pages may not know cli"),
        ("attacks/goals", "from ..studies.runs import key", "attacks.goals imports studies.runs: core may not know"),
        ("data", "from robattr import metrics", "data imports metrics, which comes after it in the core"),
        ("_files", "from robattr.data import load", "_files imports data, which comes after it in the core"),
        ("attacks/goals", "from robattr.attacks import attack", "attacks -> attacks.loop -> attacks.goals -> attacks"),
        # An import in a function, for types only, or by name, is one as well.
        ("metrics", "def f():\n    from robattr import studies", "metrics imports studies: core may not know studies"),
        ("metrics", "if TYPE_CHECKING:\n    from robattr.studies.runs import Run", "metrics imports studies.runs"),
        ("metrics", "importlib.import_module('robattr.studies.runs')", "metrics imports studies.runs"),
    ],
)
def test_an_import_that_runs_back_is_found(house: Path, where: str, planted: str, said: str) -> None:
    path = house / f"{where}.py"
    path.write_text(f"{path.read_text()}{planted}\n")
    lines = plan.backward(plan.imports(house))
    assert any(said in line for line in lines), lines
    assert said.endswith("goals -> attacks") or any(line.startswith(where.replace("/", ".")) for line in lines)


def test_a_module_without_a_place_is_named(house: Path) -> None:
    (house / "shapes.py").write_text("from robattr import data\n")
    with pytest.raises(ValueError, match=r"robattr/shapes has no place in the plan"):
        plan.backward(plan.imports(house))


def test_a_picture_of_a_circle_is_refused(house: Path) -> None:
    (house / "data.py").write_text("from robattr import metrics\n")
    with pytest.raises(ValueError, match="circle, which no picture shows: data -> metrics -> data"):
        plan.picture(plan.imports(house))


def test_the_same_imports_make_the_same_picture(house: Path) -> None:
    picture = plan.picture(plan.imports(house))
    assert picture == plan.picture(dict(reversed(plan.imports(house).items())))
    assert picture.count("<path d=") == 7  # six arrows, and the tip that they share
    assert all(f">{name}</text>" in picture for name in ("core", "studies", "pages", "cli", "models", "chapters"))
