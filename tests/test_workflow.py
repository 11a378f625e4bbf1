"""The workflow: what is executed again and what is not, and what a failure leaves as it was."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from conftest import PATIENCE_S, REPOSITORY, chapters_of, empty_project
from PIL import Image, ImageChops

PAGE = "_build/html/notebooks/{}.html"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Workflow:
    """A copy of the project's workflow with two chapters of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def snakemake(self, *words: str) -> subprocess.CompletedProcess[str]:
        # Snakemake's modules are imported by a process of its own: it changes signal handlers and warnings.
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "2", "--show-failed-logs", "--rerun-incomplete", *words],
            cwd=self.root,
            env=os.environ | {"XDG_CACHE_HOME": str(self.root / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )

    def build(self, *words: str) -> list[str]:
        """Build what must build, and say which chapters ran for it."""
        before = self.ran()
        done = self.snakemake(*words)
        assert done.returncode == 0, done.stderr
        return self.ran()[len(before) :]

    def ran(self) -> list[str]:
        path = self.root / "ran.txt"
        return path.read_text().splitlines() if path.exists() else []

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def change(self, path: str, old: str, new: str) -> None:
        text = self.read(path)
        assert old in text
        (self.root / path).write_text(text.replace(old, new))

    def extend(self, path: str, text: str) -> None:
        (self.root / path).write_text(self.read(path) + text)


def lay_out(project: Path) -> Workflow:
    write_chapter = chapters_of(empty_project(project))
    write_chapter("01_one", code="print('one says', count)")
    write_chapter("02_two", code="print('two says', count)")
    for name in ("Snakefile", "_config.yml"):
        shutil.copy(REPOSITORY / name, project / name)
    for name in ("robattr", "book"):
        shutil.copytree(REPOSITORY / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    # The list of data sets comes with torch, whose import would take longer than all of the rest.
    shutil.rmtree(project / "robattr" / "data")
    (project / "robattr" / "data.py").write_text("def available():\n    return []\n")
    (project / "book" / "references.bib").write_text("")
    (project / "book" / "introduction.md").write_text("# A book\n\nOf two chapters.\n")
    (project / "_toc.yml").write_text(
        "format: jb-book\nroot: book/introduction\nparts:\n  - caption: Part\n    chapters:\n"
        "      - file: notebooks/01_one\n      - file: notebooks/02_two\n      - file: book/status\n"
    )
    (project / "profiles" / "full.yaml").write_text("description: large\nparameters: {01_one: {count: 9}}\n")
    return Workflow(project)


@pytest.fixture
def workflow(tmp_path: Path) -> Workflow:
    """Nothing is built yet."""
    return lay_out(tmp_path)


@pytest.fixture(scope="module")
def first_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workflow = lay_out(tmp_path_factory.mktemp("built"))
    assert sorted(workflow.build()) == ["01_one 3", "02_two 3"]
    return workflow.root


@pytest.fixture
def built(first_build: Path, tmp_path: Path) -> Workflow:
    """The book is built: a copy, with all its times, of one build for all tests."""
    return Workflow(shutil.copytree(first_build, tmp_path / "copy", symlinks=True))


def test_only_what_changed_is_executed_again(built: Workflow) -> None:
    workflow = built
    assert "one says 3" in workflow.read(PAGE.format("01_one"))
    assert "two says 3" in workflow.read(PAGE.format("02_two"))
    status = workflow.read("_build/html/book/status.html")
    for part in ("The title of 01_one", "complete", "quick", "Python", "Processor", "Memory", "torch"):
        assert part in status

    again = workflow.snakemake()
    assert "Nothing to be done" in again.stderr
    assert len(workflow.ran()) == 2

    workflow.change("notebooks/01_one.md", "one says", "one tells")
    assert workflow.build() == ["01_one 3"]
    assert "one tells 3" in workflow.read(PAGE.format("01_one"))

    workflow.change("profiles/quick.yaml", "{}", "{02_two: {count: 5}}")
    assert workflow.build("chapters") == ["02_two 5"]

    workflow.extend("robattr/cli.py", "# changed\n")
    workflow.extend("robattr/pages/chapters.py", "# changed\n")
    assert workflow.build("chapters") == []
    workflow.change("book/introduction.md", "Of two", "Of these two")
    assert workflow.build() == []
    assert "Of these two chapters" in workflow.read("_build/html/book/introduction.html")
    assert "two says 5" in workflow.read(PAGE.format("02_two"))
    workflow.extend("robattr/models/__init__.py", "# changed\n")
    assert sorted(workflow.build("chapters")) == ["01_one 3", "02_two 5"]


def test_profiles_do_not_mix(built: Workflow) -> None:
    workflow = built
    assert sorted(workflow.build("--config", "profile=full")) == ["01_one 9", "02_two 3"]
    assert "one says 9" in workflow.read(PAGE.format("01_one"))
    assert workflow.build() == []
    assert "one says 3" in workflow.read(PAGE.format("01_one"))
    for profile, count in (("quick", 3), ("full", 9)):
        notebook = nbformat.read(workflow.root / "_build" / "executed" / profile / "01_one.ipynb", as_version=4)
        assert any(f"one says {count}" in str(cell.get("outputs")) for cell in notebook.cells)


def test_a_chapter_that_fails_stops_the_build_and_keeps_the_last_good_one(built: Workflow) -> None:
    workflow = built
    executed = workflow.read("_build/executed/quick/01_one.ipynb")
    page = workflow.read(PAGE.format("01_one"))
    workflow.change("notebooks/01_one.md", "print('one says', count)", "print(undefined_name)")
    for _ in range(2):  # and so it is the second time: what was kept does not pass for new
        failed = workflow.snakemake()
        assert failed.returncode != 0
        assert "print(undefined_name)" in failed.stderr
        ending = failed.stderr[failed.stderr.index("robattr: 01_one failed in cell") :]
        assert "NameError: name 'undefined_name' is not defined" in ending
        assert len(ending.splitlines()) < 12
        assert workflow.read("_build/executed/quick/01_one.ipynb") == executed
        assert workflow.read(PAGE.format("01_one")) == page
        assert workflow.read("_build/html/index.html")
    workflow.change("notebooks/01_one.md", "print(undefined_name)", "print('one again', count)")
    assert workflow.build() == ["01_one 3"]
    assert "one again 3" in workflow.read(PAGE.format("01_one"))


def test_a_page_with_a_mistake_stops_the_build_and_keeps_the_last_good_book(built: Workflow) -> None:
    workflow = built
    page = workflow.read("_build/html/book/introduction.html")
    mistakes = "Of two.\n\n[nowhere](no-such-page.md) {cite}`nobody`\n\n### Skips a level"
    workflow.change("book/introduction.md", "Of two chapters.", mistakes)
    for _ in range(2):
        failed = workflow.snakemake()
        assert failed.returncode != 0
        for reason in ("no-such-page.md", "nobody", "Non-consecutive header level increase"):
            assert any("introduction.md" in line and reason in line for line in failed.stderr.splitlines())
        assert workflow.read("_build/html/book/introduction.html") == page
        assert workflow.read("_build/html/index.html")
    workflow.change("book/introduction.md", mistakes, "Of two good chapters.")
    assert workflow.build() == []
    assert "Of two good chapters." in workflow.read("_build/html/book/introduction.html")


def test_a_picture_without_a_text_stops_the_build(workflow: Workflow) -> None:
    draw = "from IPython.display import Image\nimport base64; picture = base64.b64decode('" + PIXEL + "')"
    workflow.change("notebooks/01_one.md", "print('one says', count)", f"{draw}\nImage(picture)")
    failed = workflow.snakemake()
    assert failed.returncode != 0
    assert "01_one: cell 2 needs one alternative text for what it shows" in failed.stderr
    workflow.change("notebooks/01_one.md", "Image(picture)", "Image(picture, alt='It was computed: %d' % count)")
    workflow.build()
    assert 'alt="It was computed: 3"' in workflow.read(PAGE.format("01_one"))


def test_chapters_link_to_each_other_show_tables_and_lend_pictures_to_pages(workflow: Workflow) -> None:
    draw = "from IPython.display import Image\nimport base64; Image(base64.b64decode('" + PIXEL + "'), alt='A dot')"
    workflow.change("notebooks/01_one.md", "print('one says', count)", f":tags: [remove-cell, 'picture:dot']\n{draw}")
    workflow.change("notebooks/02_two.md", "# The title of 02_two", "# Two\n\nSee [the first](01_one.md).")
    table = "from IPython.display import Markdown\nMarkdown('| a |\\n| - |\\n| $x^2$ |')"
    workflow.change("notebooks/02_two.md", "print('two says', count)", table)
    workflow.change("book/introduction.md", "Of two chapters.", "![A dot](generated/dot.png)")
    workflow.build()
    assert 'href="01_one.html"' in workflow.read(PAGE.format("02_two"))
    assert re.search(r"<td><p><span class=.math[^>]*>\\\(x\^2", workflow.read(PAGE.format("02_two")))
    assert re.search(r'src="../_images/dot\.(png|webp)"', workflow.read("_build/html/book/introduction.html"))
    (drawn,) = (workflow.root / "_build" / "html" / "_images").glob("dot.*")
    with Image.open(drawn) as shown, Image.open(io.BytesIO(base64.b64decode(PIXEL))) as made:
        assert shown.size == made.size
        assert ImageChops.difference(shown.convert("RGB"), made.convert("RGB")).getbbox() is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("profiles/quick.yaml", "{}", "{02_two: {count: 50}}"), "02_two: parameter 'count' cannot be 50"),
        (("profiles/quick.yaml", "{}", "{02_two: {cuont: 5}}"), "did you mean 'count'?"),
        (("notebooks/02_two.md", "count = 3", "count = [][0]"), "default of parameter 'count' must be a plain literal"),
        (("_toc.yml", "02_two", "03_three"), "no chapter '03_three'"),
    ],
)
def test_a_mistake_in_the_parameters_is_refused_before_any_chapter_runs(
    workflow: Workflow, change: tuple[str, str, str], said: str
) -> None:
    workflow.change(*change)
    refused = workflow.snakemake()
    assert refused.returncode != 0
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert workflow.ran() == []


def test_a_chapter_outside_the_book_is_not_executed(workflow: Workflow) -> None:
    chapters_of(workflow.root)("03_draft", code="raise SystemExit")
    assert sorted(workflow.build("chapters")) == ["01_one 3", "02_two 3"]


def test_deleted_outputs_are_made_again(built: Workflow) -> None:
    workflow = built
    shutil.rmtree(workflow.root / "_build" / "html")
    assert workflow.build() == []
    (workflow.root / "_build" / "executed" / "quick" / "01_one.ipynb").unlink()
    assert workflow.build() == []
    assert "one says 3" in workflow.read(PAGE.format("01_one"))


HOLDS = """\
import os, pathlib, time
before = pathlib.Path('process.txt')
held = not before.exists()
before.write_text(str(os.getpid()))
while held and not pathlib.Path('go.txt').exists():
    time.sleep(0.02)
print('one says', count)"""


class Held:
    """A build whose first chapter waits, the first time that it is executed, until it may go on."""

    def __init__(self, workflow: Workflow, what: str) -> None:
        self.workflow = workflow
        self.process = self.start(what)
        deadline = time.monotonic() + PATIENCE_S
        path = workflow.root / "process.txt"
        while not (path.exists() and path.read_text()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.kernel = int(path.read_text())

    def start(self, what: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "robattr.pages.building", what, sys.executable, "-m", "snakemake"]
        return subprocess.Popen(
            [*command, "--cores", "2", "--rerun-incomplete", "chapters"],
            cwd=self.workflow.root,
            env=os.environ | {"XDG_CACHE_HOME": str(self.workflow.root / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self) -> int:
        """Its status. What it has started may hold the other ends of its pipes, so nobody reads them to their end."""
        status = self.process.wait(PATIENCE_S)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status

    def lives(self) -> bool:
        """Whether the kernel of the first time does; one that nobody has waited for is dead as well."""
        try:
            return bool(psutil.Process(self.kernel).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


@pytest.mark.parametrize("who", ["all above the chapter", "snakemake", "the one that started it"])
def test_after_a_kill_the_next_build_goes_on_by_itself(workflow: Workflow, who: str) -> None:
    workflow.change("notebooks/01_one.md", "print('one says', count)", HOLDS)
    held = Held(workflow, "make book")
    (snakemake,) = psutil.Process(held.process.pid).children()
    assert any((workflow.root / ".snakemake" / "locks").iterdir())
    killed = {"snakemake": [snakemake], "the one that started it": [psutil.Process(held.process.pid)]}
    for each in killed.get(who, [psutil.Process(held.process.pid), snakemake]):
        each.kill()
    if who == "snakemake":  # who started it sees it, and leaves nothing behind
        assert held.ended() == 128 + signal.SIGKILL
        assert not held.lives()
    else:
        held.ended()
        assert held.lives()
    again = held.start("make book")
    _, said = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    assert not held.lives()
    assert ("of a build that was killed" in said) == (who != "snakemake")
    # As undisturbed: each chapter once, and its numbers.
    assert sorted(workflow.ran()) in (["01_one 3", "02_two 3"], ["01_one 3", "02_two 3", "02_two 3"])
    notebook = nbformat.read(workflow.root / "_build" / "executed" / "quick" / "01_one.ipynb", as_version=4)
    assert any("one says 3" in str(cell.get("outputs")) for cell in notebook.cells)
    assert not list(workflow.root.glob("_build/building.json"))


def test_a_build_that_was_killed_at_any_moment_goes_on_to_the_same_numbers(workflow: Workflow) -> None:
    for name in ("one", "two"):
        keeps = f"import os; open('kernels.txt', 'a').write(f'{{os.getpid()}}\\n'); print('{name} says', count)"
        workflow.change(f"notebooks/0{1 + (name == 'two')}_{name}.md", f"print('{name} says', count)", keeps)
    command = [sys.executable, "-m", "robattr.pages.building", "make chapters", sys.executable, "-m", "snakemake"]
    command += ["--cores", "2", "--rerun-incomplete", "chapters"]
    environment = os.environ | {"XDG_CACHE_HOME": str(workflow.root / "cache")}
    executed = workflow.root / "_build" / "executed" / "quick"

    def build() -> list[Any]:
        subprocess.run(command, cwd=workflow.root, env=environment, check=True, capture_output=True)
        names = ("01_one.ipynb", "02_two.ipynb")
        assert sorted(path.name for path in executed.iterdir()) == list(names)
        return [[cell.get("outputs") for cell in nbformat.read(executed / name, 4).cells] for name in names]

    began = time.monotonic()
    undisturbed, moments = build(), random.Random(0)
    took = time.monotonic() - began
    for _ in range(int(os.environ.get("KILLS", "1"))):
        shutil.rmtree(workflow.root / "_build")
        process = subprocess.Popen(command, cwd=workflow.root, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0, took))
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in (*psutil.Process(process.pid).children(), psutil.Process(process.pid)):
                each.kill()
        process.wait()
        assert build() == undisturbed
        kernels = [int(pid) for pid in (workflow.root / "kernels.txt").read_text().split()]
        for pid in kernels:
            with contextlib.suppress(psutil.NoSuchProcess):
                assert psutil.Process(pid).wait(PATIENCE_S) is None


def test_of_two_builds_the_second_says_so_and_waits(workflow: Workflow) -> None:
    workflow.change("notebooks/01_one.md", "print('one says', count)", HOLDS)
    held = Held(workflow, "make book")
    second = held.start("make chapters")
    assert second.stderr is not None
    line = second.stderr.readline()
    assert f"robattr: `make book` (process {held.process.pid}, since " in line
    assert line.endswith(f" works in {workflow.root}; waiting for it (Ctrl-C leaves it alone)\n")
    assert second.poll() is None
    (workflow.root / "go.txt").touch()
    for each in (held.process, second):
        _, said = each.communicate(timeout=PATIENCE_S)
        assert each.returncode == 0, said
    assert sorted(workflow.ran()) == ["01_one 3", "02_two 3"]


def test_a_snakemake_that_was_started_by_hand_is_waited_for(tmp_path: Path) -> None:
    """Its locks are its own while it lives, and nobody's afterwards."""
    locks = tmp_path / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("a\n")
    (tmp_path / "snakemake").write_text("import sys; print('here', flush=True); sys.stdin.read()")
    other = subprocess.Popen(
        [sys.executable, str(tmp_path / "snakemake")], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "here\n"
    code = "from pathlib import Path; print(Path('.snakemake/locks').exists())"
    ours = subprocess.Popen(
        [sys.executable, "-m", "robattr.pages.building", "x", sys.executable, "-c", code],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert ours.stderr is not None
    assert f"snakemake (process {other.pid}) works in {tmp_path}" in ours.stderr.readline()
    assert (locks / "0.output.lock").exists()
    other.communicate("", timeout=PATIENCE_S)
    assert ours.communicate(timeout=PATIENCE_S) == ("False\n", "")
    assert ours.returncode == 0


def test_make_builds_alone() -> None:
    for target in ("book", "chapters", "reference"):
        command = ["make", "--dry-run", "--assume-old=.venv/.installed", target]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert f'-m robattr.pages.building "make {target}" ' in done.stdout


GRID = """
description: two small networks
training:
  dataset: digits
  images: 200
  validation: 50
  model: digits-mlp
  schedule: {epochs: 1, batch_size: 50, augment: false, milestones: []}
objectives:
  cross-entropy:
  l2+cosine: {epsilon: 8}
seeds: [0]
alignment:
  dataset: digits
  images: 10
  epsilons: [8]
  draws: 1
  methods: [input_x_gradient]
  method_images: 5
  manipulated: 5
  manipulation_iterations: 2
  frame: 2
  fractions: 4
"""


def test_reference_runs_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "reference"
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "results" / "reference" / "Snakefile", folder)
    (folder / "tiny.yaml").write_text(GRID)
    workflow = Workflow(tmp_path)

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        # ``--config`` takes every word up to the next option.
        return workflow.snakemake(
            *words, "--snakefile", "results/reference/Snakefile", "--config", "grid=tiny", "threads=1"
        )

    done = make()
    assert done.returncode == 0, done.stderr
    records = {path.name: path.stat().st_mtime_ns for path in (folder / "tiny").glob("*.json")}
    assert set(records) == {"cross-entropy-0.json", "l2+cosine-0.json"}
    assert len(list((folder / "tiny" / "weights").glob("*.safetensors"))) == 2
    os.utime(folder / "tiny.yaml")  # as after a clone
    done = make()
    assert done.returncode == 0, done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "tiny").glob("*.json")} == records
    # Where the configuration was changed, and there only, the run is made again.
    workflow.change("results/reference/tiny.yaml", "{epsilon: 8}", "{epsilon: 4}")
    planned = make("--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "l2+cosine-0" in planned.stdout + planned.stderr
    assert "cross-entropy-0: " not in planned.stdout + planned.stderr


@pytest.mark.parametrize(
    ("target", "words", "jobs", "threads"),
    [
        ("book", ["CORES=2", "MEMORY=8"], 2, 1),
        ("chapters", ["CORES=8", "MEMORY=64"], 8, 1),
        ("book", ["CORES=8", "MEMORY=7"], 2, 4),
        ("book", ["CORES=2", "MEMORY=2"], 1, 2),
        ("book", ["CORES=1", "MEMORY=8"], 1, 1),
        ("book", ["CORES=8", "MEMORY=64", "JOBS=2"], 2, 4),
        ("reference", ["CORES=8", "MEMORY=64"], 1, 8),
        ("reference", ["CORES=8", "MEMORY=64", "JOBS=4"], 4, 2),
    ],
)
def test_chapters_share_out_cores_and_memory(target: str, words: list[str], jobs: int, threads: int) -> None:
    # GNU make's --dry-run prints the command; --assume-old leaves the environment as it is.
    command = ["make", "--dry-run", "--assume-old=.venv/.installed", target, *words]
    environment = {name: value for name, value in os.environ.items() if name not in ("JOBS", "THREADS", "MAKEFLAGS")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert f"--cores $(({jobs} * {threads}))" in done.stdout
    assert re.search(rf"\bthreads={threads}\b", done.stdout)


def test_a_grid_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "reference"
    folder.mkdir(parents=True)
    shutil.copy(REPOSITORY / "results" / "reference" / "Snakefile", folder)
    done = Workflow(tmp_path).snakemake("--snakefile", "results/reference/Snakefile", "--config", "grid=other")
    assert done.returncode != 0
    assert "no grid 'other'" in done.stdout + done.stderr
