"""Build the book's pages from its executed notebooks; the result replaces ``--output`` once it is whole.

The reference of the package has a page for each module of :func:`plan.documented`, made of its docstrings.
"""

from __future__ import annotations

import argparse
import ast
import base64
import datetime
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import launch
import mending
import nbformat
import plan
import reading

from robattr import _yaml, exercises, lessons
from robattr._text import markdown
from robattr.pages import chapters, receipts
from robattr.studies import claims, records
from robattr.studies.claims import Verdict
from robattr.studies.records import Measurement

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ("image/png", "image/svg+xml", "image/jpeg")


def main() -> None:
    """Stage, build, rename."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True, help="what the status page calls this book")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pages")
    parser.add_argument("notebooks", type=Path, nargs="*", help="executed chapters")
    arguments = parser.parse_args()
    output: Path = arguments.output.resolve()
    work = output.with_name(f".{output.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    stage(work / "source", arguments.profile, arguments.notebooks)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    options = ["--all", "-W", "--keep-going", "--path-output", str(work)]
    if subprocess.run([*command, "build", *options, str(work / "source")], check=False).returncode:
        sys.exit("book/build.py: the pages have mistakes, listed above")
    page = work / "_build" / "html"
    mending.mend(page)
    shutil.rmtree(output, ignore_errors=True)
    page.rename(output)
    shutil.rmtree(work)


def stage(folder: Path, profile: str, paths: Iterable[Path]) -> None:
    """Lay out in ``folder`` what Jupyter Book reads.

    Pages of ``book/`` find in ``generated/`` the status tables, and as ``NAME.png`` the picture of the cell that a
    chapter tagged ``picture:NAME``.

    Raises:
        SystemExit: a picture has no alternative text, or a tagged cell has no picture.
    """
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "_toc.yml"):
        try:
            read = _yaml.read(ROOT / name, name)  # Jupyter Book takes the last of two equal keys without a word
            if name == "_config.yml":
                read = launch.configured(read)
        except ValueError as error:
            sys.exit(str(error))
        (folder / name).write_text(json.dumps(read, indent=1), encoding="utf-8")  # which is YAML, too
    if (ROOT / "CONTRIBUTING.md").exists():
        shutil.copy(ROOT / "CONTRIBUTING.md", folder)
    modules = plan.documented(plan.imports(ROOT / "robattr"))
    for module in modules:
        (folder / plan.page(module)).with_suffix(".md").write_text(api_page(module), encoding="utf-8")
    titles = exercised()
    for chapter, title in titles.items():
        page = exercise_page(chapter, title)
        (folder / "book" / f"exercises_{chapter}.md").write_text(page, encoding="utf-8")
    taught = lessons.lessons(ROOT) if (ROOT / "lessons").is_dir() else []
    for each in taught:
        (folder / "book" / f"lesson_{each.name}.md").write_text(lessons.page(each), encoding="utf-8")
    generated = folder / "book" / "generated"
    generated.mkdir()
    (generated / "modules.md").write_text(module_table(modules), encoding="utf-8")
    (generated / "lessons.md").write_text(lesson_table(taught), encoding="utf-8")
    (generated / "beliefs.md").write_text(belief_table(titles), encoding="utf-8")
    (generated / "exercises.md").write_text(exercise_table(titles), encoding="utf-8")
    (folder / "notebooks").mkdir()
    # A book may go without its glossary, where nothing could lead to it.
    with_glossary = "file: book/glossary\n" in (ROOT / "_toc.yml").read_text(encoding="utf-8")
    terms = reading.terms(ROOT / "book" / "glossary.md") if with_glossary else []
    notebooks = {}
    for path in paths:
        notebooks[path.stem] = notebook = nbformat.read(path, as_version=4)
        describe_pictures(path.stem, notebook)
        receipts.add(notebook)
        for name, picture in named_pictures(path.stem, notebook):
            (generated / f"{name}.png").write_bytes(picture)
        reading.finding_first(notebook)
        link_terms(notebook, terms)
        if path.stem in titles:
            notebook.cells.append(exercise_link(path.stem))
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                # In the repository a chapter is a .md file, and links among chapters work there too.
                cell.source = re.sub(r"\]\((\d\d_\w+)\.md(?=[)#])", r"](\1.ipynb", cell.source)
        nbformat.write(notebook, folder / "notebooks" / path.name)
    verdicts, measured = stage_records(folder / "records")
    for paper in claims.PAPERS:
        (generated / f"found_{paper}.md").write_text(claims.found(paper, verdicts, HEADLINES), encoding="utf-8")
    (generated / "status.md").write_text(status(profile, notebooks) + reference(measured), encoding="utf-8")


def link_terms(notebook: Any, terms: list[str]) -> None:
    """Lead from a chapter's first use of each term to the glossary, in its text and in what its cells say."""
    places = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            places.append((cell, "source"))
        elif not {"remove-cell", "remove-output"} & set(cell.metadata.get("tags", [])):
            places += [(data, "text/markdown") for data in outputs(cell) if "text/markdown" in data]
    texts = reading.link_terms([place[key] for place, key in places], terms)
    for (place, key), text in zip(places, texts, strict=True):
        place[key] = text


def api_page(module: str) -> str:
    """The page of a module's public names: what its docstrings say, in the order of the source."""
    package, _, name = f"robattr.{module}".rpartition(".")
    head = f"# {module}\n\n```python\nfrom {package} import {name}\n```\n\n"
    return f"{head}```{{eval-rst}}\n.. automodule:: {package}.{name}\n   :members:\n```\n"


def module_table(modules: Iterable[str]) -> str:
    """The modules of the reference, each with the sentence that its docstring begins with."""
    files = plan.modules(ROOT / "robattr")
    rows = []
    for module in modules:
        said = ast.get_docstring(ast.parse(files[module].read_text(encoding="utf-8"))) or ""
        sentence = re.sub(r":mod:`robattr\.([\w.]+)`", r"`\1`", " ".join(said.partition("\n\n")[0].split()))
        rows.append((f"{{doc}}`{module} </{plan.page(module)}>`", sentence))
    return "\n".join(table(("Module", "What it is for"), rows)) + "\n"


def exercised() -> dict[str, str]:
    """The titles of the chapters here that have exercises, by name."""
    here = chapters.chapter_names(ROOT)
    return {name: chapters.chapter(ROOT, name).title for name in exercises.CHAPTERS if name in here}


def exercise_page(chapter: str, title: str) -> str:
    """The page of a chapter's exercises, without solutions."""
    text = exercises.page(exercises.exercises(chapter), f"Exercises: {title}")
    return f"{text}\nBack to the chapter: {{doc}}`/notebooks/{chapter}`.\n"


def exercise_table(titles: Mapping[str, str]) -> str:
    """All exercises in a table."""
    rows = []
    for chapter, title in titles.items():
        for each in exercises.exercises(chapter):
            link = f"{{doc}}`{title} </book/exercises_{chapter}>`"
            rows.append((f"[{each.title}](page-{each.id})", link, each.kind, str(each.minutes)))
    return "\n".join(table(("Exercise", "On", "Kind", "Minutes"), rows)) + "\n"


def lesson_table(taught: Iterable[lessons.Lesson]) -> str:
    """All lessons in a table."""
    rows = [
        (f"{{doc}}`{each.title} </book/lesson_{each.name}>`", str(each.minutes), f"`{each.name}`", each.summary)
        for each in taught
    ]
    return "\n".join(table(("Lesson", "Minutes", "Name", "What it is about"), rows)) + "\n"


def belief_table(titles: Iterable[str]) -> str:
    """What many believe, with the exercise that is about it."""
    rows = [
        (each.belief, f"[{each.title}](page-{each.id})", str(each.minutes))
        for chapter in titles
        for each in exercises.exercises(chapter)
        if each.belief
    ]
    return "\n".join(table(("Many believe", "Exercise", "Minutes"), rows)) + "\n"


def exercise_link(chapter: str) -> Any:
    """A cell that leads from the end of a chapter to its exercises."""
    count = len(exercises.exercises(chapter))
    link = f"{{doc}}`{count} exercises </book/exercises_{chapter}>`"
    return nbformat.v4.new_markdown_cell(f"## Exercises\n\nOn this chapter: {link} that check themselves.")


def stage_records(folder: Path) -> tuple[list[Verdict], list[Measurement]]:
    """Write the records that each claim's verdict is computed from to ``<id>.jsonl``; all records there are."""
    claims_file, results = ROOT / "results" / "claims.yaml", ROOT / "results" / "reference"
    if not claims_file.exists():
        return [], []
    verdicts, measured = claims.read_ledger(claims_file, results)
    for verdict in verdicts:
        records.write(folder / f"{verdict.claim.id}.jsonl", claims.used(verdict, measured))
    return verdicts, measured


# What the first page says of a paper; the ledger has all.
HEADLINES = (
    "ghorbani-maps-change",
    "ghorbani-beyond-chance",
    "joo-robust",
    "joo-robust-hessian",
    "wang-never-violated",
    "wang-never-violated-full",
    "wang-quoted-formula",
    "ours-alignment-spectral",
    "ours-photographs",
)


def named_pictures(name: str, notebook: Any) -> Iterator[tuple[str, bytes]]:
    """Names and PNG files of the cells tagged ``picture:NAME``.

    Raises:
        SystemExit: such a cell does not show exactly one PNG.
    """
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("picture:"):
                pictures = [data["image/png"] for data in outputs(cell) if "image/png" in data]
                if len(pictures) != 1:
                    sys.exit(f"{name}: the cell tagged {tag!r} shows {len(pictures)} pictures; one is wanted")
                yield tag.removeprefix("picture:"), base64.b64decode(pictures[0])


def outputs(cell: Any) -> list[Any]:
    """The contents of a code cell's outputs, by type."""
    return [output.data for output in cell.get("outputs", []) if "data" in output]


def describe_pictures(name: str, notebook: Any) -> None:
    """Take pictures' alternative texts from outputs, where a notebook can compute them, to cells, where MyST-NB looks.

    Raises:
        SystemExit: a cell shows a picture without a text, or two pictures with different ones.
    """
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or {"remove-cell", "remove-output"} & set(cell.metadata.get("tags", [])):
            continue
        shown = [(kind, output) for output in cell.outputs for kind in PICTURES if kind in output.get("data", {})]
        if not shown:
            continue
        options = cell.metadata.setdefault("mystnb", {}).setdefault("image", {})
        texts = {output.metadata.get(kind, {}).get("alt") or options.get("alt") for kind, output in shown}
        if len(texts) != 1 or None in texts:
            sys.exit(
                f"{name}: cell {index} needs one alternative text for what it shows, not {sorted(map(str, texts))}"
            )
        options["alt"] = texts.pop()
        options.setdefault("align", "center")


def status(profile: str, notebooks: dict[str, Any]) -> str:
    """The generated part of the status page: when, where and with what each chapter was executed."""
    rows = []
    runs = []
    for name, notebook in notebooks.items():
        record, run = notebook.metadata["papermill"], notebook.metadata["robattr"]["run"]
        ended = datetime.datetime.fromisoformat(record["end_time"]).astimezone(datetime.UTC)
        state = "failed" if record["exception"] else "complete"
        rows.append((f"{{doc}}`/notebooks/{name}`", markdown(run["profile"]), f"{ended:%Y-%m-%d %H:%M}",
                     f"{record['duration']:.0f} s", state, f"`{run['commit']}`"))  # fmt: skip
        runs.append(run)
    built = datetime.datetime.now(datetime.UTC)
    lines = [f"Profile **{markdown(profile)}**; pages drawn {built:%Y-%m-%d %H:%M} UTC.", ""]
    lines += table(("Chapter", "Profile", "Executed (UTC)", "Wall time", "State", "Commit"), rows)
    facts = {
        "Python": {run["python"] for run in runs},
        "System": {run["platform"] for run in runs},
        "Processor": {f"{run['cpu']}, {run['cores']} cores, {run['threads']} used" for run in runs},
        "Memory": {f"{run['memory_gib']} GiB" for run in runs},
        "GPU": {run["gpu"] for run in runs},
        "Data": {", ".join(run["data"]) or "none" for run in runs},
    }
    for package in runs[0]["versions"] if runs else ():
        facts[package] = {run["versions"].get(package, "none") for run in runs}
    lines += [
        "",
        *table(("What the chapters ran with", ""), [(key, markdown("; ".join(sorted(v)))) for key, v in facts.items()]),
    ]
    return "\n".join(lines) + "\n"


def reference(measured: list[Measurement]) -> str:
    """The part of the status page on reference runs: what was measured, when, how long, and on what."""
    grids: dict[str, list[Measurement]] = {}
    for each in measured:
        grids.setdefault(each.run.partition("/")[0], []).append(each)
    rows = []
    for grid, found in sorted(grids.items()):
        seconds = {each.run: each.seconds for each in found}
        rows.append((
            markdown(grid), str(len(seconds)), max(each.date for each in found)[:10],
            f"{sum(seconds.values()) / 3600:.1f} h",
            ", ".join(f"`{commit}`" for commit in sorted({each.commit for each in found})),
            markdown("; ".join(sorted({f"{each.hardware}, {each.device}" for each in found}))),
        ))  # fmt: skip
    if not rows:
        return ""
    head = ("Reference runs", "Runs", "Last", "Measuring", "Commit", "On")
    return "\n".join(["", *table(head, rows)]) + "\n"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table's lines."""
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


if __name__ == "__main__":
    main()
