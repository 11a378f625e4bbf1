"""One click from a page: the launch buttons and what they open, Binder, the container and the Dev Container."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import REPOSITORY, chapters_of, draw_book, empty_project
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from robattr import _yaml
from robattr.pages import alone, chapters

sys.path.insert(0, str(REPOSITORY / "book"))
import launch

GITHUB = "https://github.com/some-owner/some-name"
CONFIG = REPOSITORY / "_config.yml"
HOST = re.compile(r"https?://[^\s\"')>]+")


def read(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


def configured(**places: str) -> dict[str, Any]:
    """The book's configuration, with an address of the project and of a hub."""
    config = _yaml.read(CONFIG)
    config["repository"]["url"] = places.get("project", "")
    config["launch_buttons"]["jupyterhub_url"] = places.get("hub", "")
    return config


# --- where the buttons lead ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("project", "left"),
    [
        ("", set()),
        (GITHUB, {"binderhub_url", "colab_url", "jupyterhub_url"}),
        ("https://gitlab.com/group/name", {"binderhub_url", "jupyterhub_url"}),
        ("https://gitlab.com/group/subgroup/name", {"jupyterhub_url"}),
        ("https://gitlab.some-university.edu/group/name", {"jupyterhub_url"}),
    ],
)
def test_buttons_are_those_that_lead_somewhere(project: str, left: set[str]) -> None:
    made = launch.configured(configured(project=project, hub="https://hub.some-university.edu"))
    assert {name for name, value in made["launch_buttons"].items() if name.endswith("_url") and value} == left


@pytest.mark.parametrize(
    "project",
    [f"{GITHUB}.git", f"{GITHUB}/", "git@github.com:some-owner/some-name", "https://github.com/some-owner", "x"],
)
def test_what_is_no_address_is_refused_in_one_line(project: str) -> None:
    with pytest.raises(ValueError, match="is no address of a project; wanted is https://HOST/OWNER/NAME") as error:
        launch.configured(configured(project=project))
    assert repr(project) in str(error.value)
    assert "\n" not in str(error.value)


# --- what they open --------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.invalid", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


CHAPTER = (
    "import robattr\nfrom pathlib import Path\nprint(count, robattr.__file__, Path('results/claims.yaml').read_text())"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a small package, one chapter and a record, and the branch that its address leads to."""
    root = empty_project(tmp_path_factory.mktemp("project"))
    chapters_of(root)("01_one", code=CHAPTER)
    (root / "profiles" / "quick.yaml").write_text("description: small\nparameters: {01_one: {count: 7}}\n")
    for name, text in {
        "results/claims.yaml": "a record",
        "robattr/__init__.py": "",
        "pyproject.toml": '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "robattr"\nversion = "0"\n[tool.setuptools]\npackages = ["robattr"]\n',
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "All")
    launch.branch(root, "launch", root.as_uri(), "quick")
    return root


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Draws a book of one chapter, whose configuration has these addresses."""

    def drawn(**places: str) -> Path:
        text = CONFIG.read_text(encoding="utf-8")
        for key, name in {"url": "project", "jupyterhub_url": "hub"}.items():
            text, count = re.subn(rf"^  {key}: .*", f'  {key}: "{places.get(name, "")}"', text, flags=re.MULTILINE)
            assert count == 1
        return draw_book(tmp_path_factory.mktemp("book"), "# One\n\nA chapter.", config=text)

    return drawn


@pytest.fixture(scope="module")
def launched(build: Any) -> Path:
    return build(project=GITHUB, hub="https://hub.some-university.edu")


def buttons(page: Path) -> dict[str, str]:
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    links = soup.select(".dropdown-launch-buttons a")
    return {link.get_text(strip=True): str(link["href"]) for link in links}


def test_buttons_open_the_chapter_on_the_branch(launched: Path, project: Path) -> None:
    found = buttons(launched / "notebooks" / "01_one.html")
    assert set(found) == {"Binder", "JupyterHub", "Colab"}
    branch = _yaml.read(CONFIG)["repository"]["branch"]
    there = set(git(project, "ls-tree", "-r", "--name-only", branch, "--").splitlines())
    colab, binder, hub = (urlsplit(found[name]) for name in ("Colab", "Binder", "JupyterHub"))
    start = f"/github/some-owner/some-name/blob/{branch}/"
    assert colab.path.startswith(start)
    assert binder.path == f"/v2/gh/some-owner/some-name/{branch}"
    asked = parse_qs(hub.query)
    assert (hub.hostname, asked["repo"], asked["branch"]) == ("hub.some-university.edu", [GITHUB], [branch])
    opened = {
        colab.path.removeprefix(start),
        parse_qs(binder.query)["urlpath"][0].removeprefix("lab/tree/"),
        unquote(asked["urlpath"][0]).removeprefix("lab/tree/some-name/"),
    }
    assert opened == {"notebooks/01_one.ipynb"} <= there
    assert buttons(launched / "book" / "status.html") == {}  # no notebook


def test_without_an_address_no_page_leads_to_a_service(build: Any) -> None:
    pages = list(build().rglob("*.html"))
    assert len(pages) > 3
    services = {urlsplit(value).hostname for value in configured()["launch_buttons"].values() if "://" in value}
    assert len(services) == 2
    for page in pages:
        assert buttons(page) == {}
        hosts = {urlsplit(url).hostname for url in HOST.findall(page.read_text(encoding="utf-8"))}
        assert hosts.isdisjoint({*services, "github.com", "gitlab.com"}), page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_buttons_can_be_reached_with_a_keyboard_and_are_read_aloud(chromium: Any, launched: Path, theme: str) -> None:
    test_book = pytest.importorskip("test_book")
    page = chromium.new_page(color_scheme=theme)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((launched / "notebooks" / "01_one.html").as_uri(), wait_until="load")
    button = page.locator(".dropdown-launch-buttons button")
    button.focus()
    page.keyboard.press("Enter")
    page.locator(".dropdown-launch-buttons a", has_text="Colab").wait_for()
    assert test_book.stumbles(page) == []
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent").strip() == "Binder"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def test_the_branch_has_what_the_commit_has_and_the_chapters(project: Path) -> None:
    changed = git(project, "diff", "--name-status", "main", "launch", "--").split()
    assert changed == ["A", "notebooks/01_one.ipynb"]
    assert git(project, "status", "--porcelain") == ""
    notebook = nbformat.reads(git(project, "show", "launch:notebooks/01_one.ipynb"), 4)
    nbformat.validate(notebook)
    assert [cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs] == []
    assert git(project, "rev-parse", "main").strip() in notebook.cells[0].source


def test_the_branch_goes_on_with_the_next_commit(project: Path, tmp_path: Path) -> None:
    """A hub's checkout of it can be brought up to date: nothing has to be forced."""
    git(tmp_path, "clone", "--quiet", str(project), "work")
    work = tmp_path / "work"
    git(work, "branch", "launch", "origin/launch")
    before = git(work, "rev-parse", "launch").strip()
    (work / "results" / "claims.yaml").write_text("another record")
    git(work, "commit", "--quiet", "--all", "-m", "More")
    commit = launch.branch(work, "launch", project.as_uri(), "quick")
    assert git(work, "rev-parse", "launch^1", "launch^2").split() == [before, commit]
    assert git(work, "show", "launch:results/claims.yaml") == "another record"
    (work / "notebooks" / "01_one.md").write_text("changed")
    with pytest.raises(ValueError, match=r"notebooks/01_one\.md is not as it was committed"):
        launch.branch(work, "launch", project.as_uri(), "quick")


@pytest.mark.elsewhere
def test_an_opened_notebook_brings_what_it_needs(project: Path, tmp_path: Path) -> None:
    """In a new environment without the package, and without a network: pip finds setuptools in that of the tests."""
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("setuptools") is None:
        pytest.skip("no pip or no setuptools for a new environment")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("setuptools", "_distutils_hack", "pkg_resources"):
        if (found := Path(sysconfig.get_path("purelib")) / name).exists():
            (packages / name).symlink_to(found)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment |= {"PYTHONPATH": str(packages), "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
    notebook = nbformat.reads(git(project, "show", "launch:notebooks/01_one.ipynb"), 4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    short = git(project, "rev-parse", "main")[:7]

    def opened(folder: Path) -> str:
        command = [str(python), "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    # On Colab: in a folder that has nothing. Once more, as after a restart of the kernel.
    alone = tmp_path / "alone"
    alone.mkdir()
    for _ in range(2):
        assert opened(alone) == f"7 {alone / f'robattr-{short}' / 'robattr' / '__init__.py'} a record"
    # On a hub: in the checkout, whose own package and records are used.
    git(tmp_path, "clone", "--quiet", "--branch", "launch", str(project), "some-name")
    there = tmp_path / "some-name"
    assert opened(there / "notebooks") == f"7 {there / 'robattr' / '__init__.py'} a record"
    assert sorted(each.name for each in there.iterdir()) == sorted(
        [*git(there, "ls-tree", "--name-only", "launch", "--").splitlines(), ".git", "ran.txt"]
    )


@pytest.mark.parametrize("name", chapters.chapter_names(REPOSITORY))
def test_every_chapter_can_be_opened(name: str) -> None:
    chapter = chapters.chapter(REPOSITORY, name)
    values = chapters.profile_parameters(REPOSITORY, "quick").get(name, {})
    notebook = launch.opened(chapter, values, GITHUB, "a" * 40)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    # What only MyST understands would be shown as it is.
    assert re.findall(r"\{[a-z:]+\}`|^(?:```|:::)\{.*|^\([\w-]+\)=$", text, re.MULTILINE) == []
    assert not set(alone.proven(REPOSITORY)) & set(re.findall(r"[\w-]+", text)), "labels are no names"
    assert not any("}}`" in cell.source for cell in notebook.cells), "nor are references in what a cell says"
    for cell in notebook.cells:
        if cell.cell_type == "code" and not cell.source.startswith("%"):
            ast.parse(cell.source)
    for link in re.findall(r"\]\(([\w/.]+\.\w+)\)", text):
        path = REPOSITORY / "notebooks" / link
        assert (path.with_suffix(".md") if path.suffix == ".ipynb" else path).exists(), link


# --- Binder, conda, containers ---------------------------------------------------------------------------------------


def locked() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", read("requirements.lock"), re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def test_the_lock_has_what_the_project_asks_for() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    have = locked()
    for each in map(Requirement, wanted):
        versions = have.get(canonicalize_name(each.name), set())
        assert versions, f"{each.name} is not in requirements.lock: make lock"
        assert all(each.specifier.contains(version) for version in versions), f"{each}, not {versions}: make lock"


def test_binder_and_conda_install_what_make_installs() -> None:
    """All from the one lock, for the Python that it was made for."""
    conda = _yaml.read(REPOSITORY / "environment.yml")
    *packages, pip = conda["dependencies"]
    assert [REPOSITORY / line.removeprefix("-r ") for line in pip["pip"]] == [REPOSITORY / "requirements.lock"]
    (line,) = read(".binder/requirements.txt").splitlines()
    assert (REPOSITORY / ".binder" / line.removeprefix("-r ")).resolve() == REPOSITORY / "requirements.lock"
    (version,) = (each.partition("=")[2] for each in packages if each.startswith("python="))
    assert read(".binder/runtime.txt").strip() == f"python-{version}"
    assert f"--python-version {version}" in read("Makefile")
    # The package itself, as the README says for conda and as make does.
    installs = "pip install --no-deps --no-build-isolation -e ."
    assert installs in read("README.md")
    assert installs in read("environment.yml")
    assert read(".binder/postBuild").splitlines()[-1] == f"python -m {installs}"
    assert re.search(r"^\t\$\(INSTALL\) --no-build-isolation -e \.$", read("Makefile"), re.MULTILINE)
    assert os.access(REPOSITORY / ".binder" / "postBuild", os.X_OK)
    assert "setuptools" in locked(), "without isolation, what builds the package must be there"


def targets() -> set[str]:
    return {
        name for names in re.findall(r"^([a-z- ]+):(?!=)", read("Makefile"), re.MULTILINE) for name in names.split()
    }


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage of the container file, by name; the last one by an empty name."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in read("Containerfile").replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            if word == "FROM":
                _, _, name = rest.partition(" AS ")
                found[name] = []
            found[name].append((word, rest))
    return found


def test_the_container_builds_the_book_and_serves_it_as_no_root() -> None:
    found = stages()
    assert list(found) == ["tools", "book", ""]
    ((_, image),) = (line for line in found["tools"] if line[0] == "FROM")
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+ AS tools", image), "an exact version"
    version = re.search(r"python=(\S+)", read("environment.yml"))
    assert version is not None
    assert image.startswith(f"python:{version[1]}.")
    assert [rest for word, rest in found["tools"] if word == "USER"] == ["reader"]
    assert not any(word == "USER" for name in ("book", "") for word, _ in found[name])  # so it stays
    commands = [rest for word, rest in found["book"] if word == "RUN"]
    assert commands == ["make env", "make book"]
    assert {command.split()[1] for command in commands} <= targets()
    copied = dict(found[""])["COPY"].split()
    home = dict(found["tools"])["WORKDIR"]
    assert copied[:2] == ["--from=book", f"{home}/_build/html"]
    assert dict(found[""])["WORKDIR"] == copied[2]
    assert json.loads(dict(found[""])["CMD"])[-1] == dict(found[""])["EXPOSE"]


def test_what_git_ignores_stays_out_of_the_container() -> None:
    ignored = set(read(".dockerignore").splitlines())
    assert {line.strip("/") for line in read(".gitignore").splitlines()} & {
        ".venv",
        "_build",
        "runs",
        "data",
    } <= ignored
    kept = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {path.split("/")[0] for path in kept} & ignored


def test_the_dev_container_is_the_first_stage_of_the_container() -> None:
    path = REPOSITORY / ".devcontainer" / "devcontainer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    # Of its published schema: a container is built, or has an image, and nothing else names one.
    assert "image" not in found
    assert set(found["build"]) == {"dockerfile", "context", "target"}
    assert (path.parent / found["build"]["dockerfile"]).resolve() == REPOSITORY / "Containerfile"
    assert (path.parent / found["build"]["context"]).resolve() == REPOSITORY
    stage = dict(stages()[found["build"]["target"]])
    assert found["remoteUser"] == stage["USER"]
    make, target = found["postCreateCommand"].split()
    assert make == "make"
    assert target in targets()
    assert all(str(port) in found["portsAttributes"] for port in found["forwardPorts"])
    for key, kind in {"name": str, "forwardPorts": list, "portsAttributes": dict, "customizations": dict}.items():
        assert isinstance(found[key], kind)
    python = found["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert python == f"{re.search(r'^VENV [?]= (.+)$', read('Makefile'), re.MULTILINE)[1]}/bin/python"
