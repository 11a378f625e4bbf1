"""What the launch buttons of the book's chapters open: the branch ``launch``.

Colab opens notebooks of a branch on GitHub that end in ``.ipynb``; Binder and JupyterHub open them in a checkout of the
branch. So the branch has what a commit has, and each chapter as ``notebooks/NAME.ipynb``, with the values of a profile
and a first cell that brings the project where it is not. Where the project is, ``_config.yml`` says under
``repository: url``, and no other file.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat

from robattr import _yaml
from robattr._text import words
from robattr.pages import alone, chapters

ROOT = Path(__file__).resolve().parents[1]
# The theme of the book finds out from its name what kind of host it is.
ADDRESS = re.compile(r"https://(?P<host>[\w.-]*(?:github|gitlab|bitbucket)[\w.-]*)(?P<path>(?:/[\w.-]+){2,})(?<!\.git)")
FIRST_CELL = """\
# What this notebook needs: the project, as it was for the book's page, and the packages that it imports.
import importlib.util
import os
import site
import subprocess
import sys
from pathlib import Path

root = next((each for each in (Path.cwd(), *Path.cwd().parents) if (each / "results/claims.yaml").is_file()), None)
if root is None:
    root = Path("robattr-{short}").absolute()
    root.mkdir(exist_ok=True)
    for words in ("init", "fetch --depth 1 {address} {commit}", "checkout FETCH_HEAD"):
        subprocess.run(["git", *words.split(), "--quiet"], cwd=root, check=True)
if importlib.util.find_spec("robattr") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", str(root)], check=True)
    if site.ENABLE_USER_SITE:  # where pip installs when the environment belongs to somebody else
        site.addsitedir(site.getusersitepackages())
    importlib.invalidate_caches()
sys.path.insert(0, str(root))
os.chdir(root)"""


def main() -> None:
    """Make the branch, and say how it is published."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True, help="whose values the notebooks have")
    arguments = parser.parse_args()
    try:
        config = _yaml.read(ROOT / "_config.yml", "_config.yml")
        found = address(config)
        if not found:
            print("_config.yml has no address under 'repository: url', so no button opens a notebook: nothing to do")
            return
        name = config["repository"]["branch"]
        commit = branch(ROOT, name, found, arguments.profile)
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"book/launch.py: {error}")
    print(f"branch {name}: the chapters of {commit[:7]}; publish it with: git push origin {name}")


def address(config: Mapping[str, Any]) -> str:
    """Where the project is, as Jupyter Book's configuration says; empty where it says nothing.

    Raises:
        ValueError: this is no address that the book's theme makes links of.
    """
    found = str(config.get("repository", {}).get("url") or "")
    if found and not ADDRESS.fullmatch(found):
        raise ValueError(
            f"_config.yml: repository: url: {found!r} is no address of a project; wanted is https://HOST/OWNER/NAME, "
            "with github, gitlab or bitbucket in HOST and without .git, or nothing"
        )
    return found


def configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with those launch buttons only that lead somewhere.

    Without an address there are none. Colab opens what is on GitHub, and the theme's links to Binder need GitHub or
    GitLab itself, and no groups within groups.

    Raises:
        ValueError: see :func:`address`.
    """
    found = address(config)
    place = ADDRESS.fullmatch(found)
    host, depth = (place["host"], place["path"].count("/")) if place else ("", 0)
    works = {
        "binderhub_url": host in ("github.com", "gitlab.com") and depth == 2,
        "colab_url": host == "github.com",
        "jupyterhub_url": bool(found),
    }
    buttons = {key: value for key, value in config.get("launch_buttons", {}).items() if works.get(key, True)}
    return {**config, "launch_buttons": buttons}


def opened(chapter: chapters.Chapter, values: Mapping[str, Any], place: str, commit: str) -> Any:
    """A chapter as a notebook that runs wherever it is opened, with text that Jupyter shows.

    Args:
        chapter: the chapter.
        values: of its parameters, beside the defaults.
        place: address of the project, for git.
        commit: of the project, whole.
    """
    notebook = chapters.read_notebook(chapter.path)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    names = alone.proven(chapter.path.parents[1])
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = plain(cell.source, names)
        else:  # what its formatted strings refer to
            cell.source = re.sub(
                r"\{(\{(?:prf:)?\w+\})\}(`[^`]+`)", lambda role: plain(role[1] + role[2], names), cell.source
            )
    if values:
        lines = [f"{name} = {each!r}" for name, each in values.items()]
        source = "\n".join(["# Values of the book, not the defaults above", *lines])
        (defaults,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
        notebook.cells.insert(defaults + 1, nbformat.v4.new_code_cell(source))
    first = FIRST_CELL.format(address=place, commit=commit, short=commit[:7])
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same sources make the same file
    return notebook


def plain(source: str, names: Mapping[str, str]) -> str:
    """MyST as the Markdown that Jupyter and Colab show: theorems and proofs are paragraphs, references are names.

    Args:
        source: MyST.
        names: of theorems, by label.
    """
    parts = []
    for kind, name, content in alone.pieces(source):
        if kind == "math":
            parts.append(f"$$\n{content}\n$$\n")
        elif kind:
            parts.append(f"**{kind.capitalize()}{f' ({name})' if name else ''}.** {content}\n")
        else:
            parts.append(content)
    return re.sub(r"\]\((\d\d_\w+|\w+)\.md(?=[)#])", r"](\1.ipynb", words("".join(parts), names))


def branch(root: Path, name: str, place: str, profile: str) -> str:
    """Set a branch to the last commit with its chapters as notebooks; the work tree and the index stay as they are.

    Args:
        root: the checkout.
        name: of the branch; where there is one it goes on, so that a hub's checkout of it can be brought up to date.
        place: see :func:`opened`.
        profile: whose values the notebooks have.

    Returns:
        the commit that the chapters are of.

    Raises:
        ChapterError: a chapter or the profile has a mistake.
        ValueError: a chapter or a profile has been changed since the commit.
        CalledProcessError: git cannot.
    """

    def git(*arguments: str, given: str | None = None, **environment: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env={**os.environ, **environment},
            input=given,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    if changed := git("status", "--porcelain", "--", "notebooks", "profiles"):
        raise ValueError(f"{changed.split()[-1]} is not as it was committed; the branch is made of the last commit")
    commit = git("rev-parse", "HEAD")
    values = chapters.profile_parameters(root, profile)
    with TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git("read-tree", commit, **index)
        for each in chapters.chapters(root):
            text = nbformat.writes(opened(each, values.get(each.name, {}), place, commit)) + "\n"
            blob = git("hash-object", "-w", "--stdin", given=text)
            git("update-index", "--add", "--cacheinfo", f"100644,{blob},notebooks/{each.name}.ipynb", **index)
        tree = git("write-tree", **index)
    before = git("for-each-ref", "--format=%(objectname)", f"refs/heads/{name}")
    parents = [word for parent in (before, commit) if parent for word in ("-p", parent)]
    who = dict(zip(("NAME", "EMAIL"), git("show", "--no-patch", "--format=%cn%n%ce", commit).splitlines(), strict=True))
    signed = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    made = git("commit-tree", tree, *parents, "-m", f"The chapters of {commit[:7]} as notebooks", **signed)
    git("branch", "--force", name, made)
    return commit


if __name__ == "__main__":
    main()
