"""Chapters: what is refused before anything runs, in what words, and what an execution leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from click.testing import CliRunner
from conftest import PATIENCE_S, REPOSITORY, WriteChapter, room

from robattr import _yaml, cli
from robattr.pages import chapters as book, execution
from robattr.pages.values import given

SCHEMAS = """
    epsilons: {type: array, items: {type: number, exclusiveMinimum: 0, maximum: 255}, minItems: 1}
    images: {type: integer, minimum: 1}
    rate: {type: number, minimum: 1e-5}
    method: {enum: [gradient, lrp]}
    label: {type: [string, "null"]}
    smooth: {type: boolean}"""
DEFAULTS = "epsilons = [1, 2.5]\nimages = 4\nrate = 1e-3\nmethod = 'lrp'\nlabel = None\nsmooth = False"


@pytest.fixture
def stub(project: Path, write_chapter: WriteChapter) -> book.Chapter:
    write_chapter("02_stub", SCHEMAS, DEFAULTS)
    return book.chapter(project, "02_stub")


def test_a_chapter_is_read(project: Path, stub: book.Chapter) -> None:
    assert (stub.name, stub.title, stub.claim) == ("02_stub", "The title of 02_stub", "It runs.")
    assert {name: each.default for name, each in stub.parameters.items()} == {
        "epsilons": [1, 2.5],
        "images": 4,
        "rate": 1e-3,
        "method": "lrp",
        "label": None,
        "smooth": False,
    }
    assert book.chapters(project) == [stub]
    assert book.chapter(project, "02") == stub


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "an integer >= 1"),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "a number > 0 and < 1"),
        ({"enum": ["a", "b"]}, "one of 'a', 'b'"),
        ({"const": 3}, "3"),
        ({"type": "boolean"}, "true or false"),
        ({"type": "array"}, "a list"),
        (
            {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 255}},
            "a list of numbers > 0 and <= 255",
        ),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1}, "a non-empty list of strings"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, "a list of at least 2 integers"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}, "a list of exactly 2 integers"),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 5}, "a list of 0 to 5 integers"),
        (
            {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
            "a list of different values out of 'a', 'b'",
        ),
        ({"type": ["integer", "null"], "minimum": 1}, "an integer >= 1 or null"),
        ({"anyOf": [{"type": "string"}, {"type": "boolean"}]}, "a string or true or false"),
        ({"type": "integer", "multipleOf": 8}, "an integer, a multiple of 8"),
        ({"type": "string", "pattern": "^a"}, "a string that matches ^a"),
        (
            {"type": "string", "format": "model"},
            "the name of a model (robattr.models.available(), timm:NAME, or path/to/module.py:function, which is run)",
        ),
        ({}, "any value"),
    ],
)
def test_schemas_in_words(schema: dict[str, Any], words: str) -> None:
    assert book.accepted(schema) == words


def test_names_of_models_and_data_sets_are_checked_before_anything_runs(
    project: Path, write_chapter: WriteChapter
) -> None:
    schemas = """
    dataset: {type: string, format: dataset}
    model: {type: string, format: model}"""
    write_chapter("03_names", schemas, "dataset = 'digits'\nmodel = 'efficientnet-lite0'")
    chapter = book.chapter(project, "03_names")
    for good in (
        {"model": "resnet50"},
        {"model": "torchvision/resnet18"},
        {"model": "torchvision:resnet18"},
        {"dataset": f"folder:{project}"},
    ):
        assert book.check_parameters(chapter, good) == good
    for bad, accepts in (
        ({"model": "resnet5O"}, "robattr.models.available()"),
        ({"dataset": "digit"}, "the name of a data set"),
        ({"dataset": "folder:/no/such/folder"}, "an existing folder"),
    ):
        with pytest.raises(book.ChapterError) as error:
            book.check_parameters(chapter, bad)
        assert accepts in str(error.value)
        assert repr(next(iter(bad.values()))) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("where", "folder:/my/pics #2", "folder:/my/pics #2"),  # in a file of YAML that would be a comment
        ("where", "#2", "#2"),
        ("where", "2024", "2024"),
        ("where", "a: b", "a: b"),
        ("where", "a: b: c", "a: b: c"),
        ("where", " two  blanks ", " two  blanks "),
        ("where", "'quoted # text'", "quoted # text"),
        ("where", "@home", "@home"),
        ("where", "true", "true"),
        ("where", "null", None),
        ("count", "5", 5),
        ("count", "5 # five", "5 # five"),  # no number, and refused as such
        ("spec", "net #1.pt", "net #1.pt"),
        ("spec", "{name: 'a #b', list: ['#c', \"d#\"]}", {"name": "a #b", "list": ["#c", "d#"]}),
        ("unknown", "1", 1),
    ],
)
def test_a_value_of_the_command_line_is_that_value(
    project: Path, write_chapter: WriteChapter, name: str, text: str, value: object
) -> None:
    schemas = """
    where: {type: [string, "null"]}
    count: {type: integer}
    spec: {type: [string, object]}"""
    write_chapter("04_given", schemas, "where = 'x'\ncount = 3\nspec = 'y'")
    assert given(book.chapter(project, "04_given"), name, text) == value


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"epsilons": [1], "rate": 1},  # an integer is a number
        {"images": 10**9, "method": "gradient", "label": "x", "smooth": True},
        {"label": None},
    ],
)
def test_good_values_pass_unchanged(stub: book.Chapter, values: dict[str, Any]) -> None:
    assert book.check_parameters(stub, values) == values


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epsilon": [1]}, ["'epsilon'", "did you mean 'epsilons'?", "it takes epsilons, images, rate"]),
        ({"zzz": 1}, ["'zzz'", "it takes epsilons, images"]),
        ({"images": 0}, ["'images'", "0", "an integer >= 1"]),
        ({"images": True}, ["'images'", "True", "an integer >= 1"]),
        ({"images": 2.0}, ["'images'", "2.0", "an integer >= 1"]),
        ({"images": "4"}, ["'images'", "'4'", "an integer >= 1"]),
        ({"rate": False}, ["'rate'", "False", "a number >= 1e-05"]),
        ({"rate": float("nan")}, ["'rate'", "nan", "a number >= 1e-05"]),
        ({"rate": float("inf")}, ["'rate'", "inf", "a number >= 1e-05"]),
        ({"epsilons": []}, ["'epsilons'", "[]", "a non-empty list of numbers > 0 and <= 255"]),
        ({"epsilons": 4}, ["'epsilons'", "4", "a non-empty list of numbers > 0 and <= 255"]),
        ({"epsilons": [1, 300]}, ["'epsilons'", "[1, 300]", "[1] is 300", "<= 255"]),
        ({"method": "lime"}, ["'method'", "'lime'", "one of 'gradient', 'lrp'"]),
        ({"label": 3}, ["'label'", "3", "a string or null"]),
        ({"smooth": 1}, ["'smooth'", "1", "true or false"]),
        ({"label": 2, "images": "a\nb" * 100}, ["'label'"]),
    ],
)
def test_bad_values_are_refused_in_one_line_before_anything_runs(
    project: Path, stub: book.Chapter, values: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(book.ChapterError) as refusal:
        execution.execute(stub, project / "out.ipynb", values)
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 300
    for part in ("02_stub", *said):
        assert part in message
    assert sorted(path.name for path in project.iterdir()) == ["notebooks", "profiles"]


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"header": "author: me"}, "robattr:"),
        ({"header": "robattr: {parameters: {}}"}, "claim"),
        ({"header": "robattr: {claim: x, parameters: [1]}"}, "must map names to JSON Schemas"),
        ({"header": "robattr: [unclosed"}, "not a"),
        ({"schemas": "{}"}, "parameter 'count' has no schema"),
        ({"defaults": None}, "parameter 'count' has no default"),
        ({"defaults": "count = 1 + len([])"}, "'count' must be a plain literal"),
        ({"defaults": "count = 10"}, "default of parameter 'count' is 10; its schema accepts an integer >= 1 and <= 9"),
        ({"defaults": "count = True"}, "default of parameter 'count' is True"),
        ({"defaults": "import os"}, "may only hold lines 'name = literal', not 'import os'"),
        ({"defaults": "a = b = 1"}, "may only hold lines"),
        ({"defaults": "count ="}, "not Python"),
        ({"schemas": "{count: {type: integr}}"}, "schema of parameter 'count' is not JSON Schema"),
        ({"schemas": "{count: {type: integer, type: number}}"}, "line 5: the key 'type' is there twice"),
        ({"defaults": ":tags: [remove-cell]\ncount = 3"}, "line 11: the key 'tags' is there twice, first in line 10"),
        ({"schemas": "{count: 3}"}, "schema of parameter 'count' must be a mapping"),
    ],
)
def test_a_chapter_with_a_mistake_is_refused_in_one_line(
    project: Path, write_chapter: WriteChapter, mistake: dict[str, Any], said: str
) -> None:
    write_chapter("01_wrong", **mistake)
    with pytest.raises(book.ChapterError) as refusal:
        book.chapter(project, "01_wrong")
    assert "01_wrong" in str(refusal.value)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_two_parameter_cells_are_refused(project: Path, write_chapter: WriteChapter) -> None:
    path = write_chapter()
    cell = "```{code-cell} ipython3\n:tags: [parameters]\nmore = 1\n```\n"
    path.write_text(f"{path.read_text()}\n{cell}")
    with pytest.raises(book.ChapterError, match="2 cells are tagged 'parameters'"):
        book.chapter(project, "01_stub")


def test_a_chapter_without_a_title_is_refused(project: Path, write_chapter: WriteChapter) -> None:
    path = write_chapter()
    path.write_text(path.read_text().replace("# The title", "The title"))
    with pytest.raises(book.ChapterError, match="no title"):
        book.chapter(project, "01_stub")


def test_an_unknown_chapter_is_refused_with_the_nearest(project: Path, stub: book.Chapter) -> None:
    with pytest.raises(book.ChapterError, match=r"did you mean '02_stub'\? \(there are 02_stub\)"):
        book.chapter(project, "02_stup")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("5", "05_not_invariant"),
        ("05", "05_not_invariant"),
        ("10", "10_more"),
        ("05_not_invariant", "05_not_invariant"),
        ("not_invariant", "05_not_invariant"),
        ("aligned", "07_aligned_gradients"),
        ("cross", "cross_table"),
        ("more", "10_more"),  # the whole of one name, a part of the other
        ("more_still", "11_more_still"),
    ],
)
def test_a_chapter_goes_by_number_name_or_a_part_of_it(
    project: Path, write_chapter: WriteChapter, asked: str, found: str
) -> None:
    for name in ("05_not_invariant", "07_aligned_gradients", "10_more", "11_more_still", "cross_table"):
        write_chapter(name)
    assert book.chapter(project, asked).name == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("1", "no chapter '1' (there are 05_one, 05_two, 10_more, cross_table)"),  # not 10
        ("7", "no chapter '7' (there are"),
        ("5", "'5' may be 05_one or 05_two; give more of the name"),
        ("o", "'o' may be 05_one or 05_two or 10_more or cross_table; give more of the name"),
        ("tabel", "no chapter 'tabel'; did you mean 'cross_table'? (there are"),
        ("onne", "no chapter 'onne'; did you mean '05_one'? (there are"),
        ("", "no chapter '' (there are"),
    ],
)
def test_a_name_of_no_chapter_or_of_several_is_refused_in_one_line(
    project: Path, write_chapter: WriteChapter, asked: str, said: str
) -> None:
    for name in ("05_one", "05_two", "10_more", "cross_table"):
        write_chapter(name)
    with pytest.raises(book.ChapterError) as refusal:
        book.chapter(project, asked)
    assert str(refusal.value).startswith(said)
    assert "\n" not in str(refusal.value)


def test_chapters_come_in_the_order_of_the_book_then_of_their_numbers(
    project: Path, write_chapter: WriteChapter
) -> None:
    for name in ("02_two", "01_one", "10_ten", "ledger", "appendix"):
        write_chapter(name)
    assert book.chapter_names(project) == ["01_one", "02_two", "10_ten", "appendix", "ledger"]
    assert book.contents(project) == {}
    (project / "_toc.yml").write_text(TOC)
    assert book.chapter_names(project) == ["ledger", "01_one", "02_two", "10_ten", "appendix"]
    assert book.contents(project) == {"ledger": None, "01_one": 1, "02_two": 3}


TOC = """
root: book/introduction
parts:
  - chapters: [{file: notebooks/ledger}]
  - numbered: true
    chapters: [{file: notebooks/01_one}, {file: book/page}]
  - numbered: true
    chapters: [{file: notebooks/02_two}]
"""


@pytest.mark.parametrize(
    ("toc", "said"),
    [
        ("root: a\nchapters: [{file: notebooks/01_won}]", "_toc.yml: no chapter '01_won'; did you mean '01_one'?"),
        ("- file: a", "_toc.yml: must hold 'root' and 'parts'"),
        ("root: a\nroot: b", "_toc.yml: not valid YAML: line 2: the key 'root' is there twice, first in line 1"),
    ],
)
def test_a_wrong_table_of_contents_is_refused(project: Path, write_chapter: WriteChapter, toc: str, said: str) -> None:
    write_chapter("01_one")
    (project / "_toc.yml").write_text(toc)
    with pytest.raises(book.ChapterError) as refusal:
        book.contents(project)
    assert str(refusal.value).startswith(said)


def test_files_bear_the_numbers_that_the_book_shows() -> None:
    """Where they part, ``robattr run 5`` runs another chapter than the one a reader sees as 5."""
    shown = book.contents(REPOSITORY)
    assert list(shown) == book.chapter_names(REPOSITORY), "a chapter is not in _toc.yml"
    numbers = [number for number in shown.values() if number]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {name: book.number_of(name) for name in shown} == shown
    config = _yaml.read(REPOSITORY / "_config.yml")
    assert config["html"]["use_multitoc_numbering"] is True  # else each part would begin at 1 again


def test_a_mistake_in_yaml_is_a_refusal_like_others() -> None:
    with pytest.raises(book.ChapterError, match="test: not valid YAML"):
        book.parse_yaml("[1", "test")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("description: x", "must hold 'description' and 'parameters'"),
        ("description: x\nparameters: {01_stab: {count: 1}}", "did you mean '01_stub'?"),
        ("description: x\nparameters: {01_stub: 3}", "01_stub must map parameters to values, not 3"),
        ("description: x\nparameters: [1]", "'parameters' must map chapters"),
        ("[", "not valid YAML"),
    ],
)
def test_a_wrong_profile_is_refused(project: Path, write_chapter: WriteChapter, content: str, said: str) -> None:
    write_chapter()
    (project / "profiles" / "quick.yaml").write_text(content)
    with pytest.raises(book.ChapterError) as refusal:
        book.profile_parameters(project, "quick")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_profiles(project: Path, write_chapter: WriteChapter) -> None:
    write_chapter()
    (project / "profiles" / "full.yaml").write_text("description: x\nparameters: {01_stub: {count: 7}}\n")
    assert book.profile_names(project) == ["full", "quick"]
    assert book.profile_parameters(project, "full") == {"01_stub": {"count": 7}}
    assert book.profile_parameters(project, "quick") == {}
    with pytest.raises(book.ChapterError, match=r"no profile 'ful'; did you mean 'full'\? \(there are full, quick\)"):
        book.profile_parameters(project, "ful")


def test_the_root_is_found_from_below(project: Path) -> None:
    below = project / "notebooks" / "deeper"
    below.mkdir()
    assert book.find_root(below) == project


def test_execution_injects_values_and_records_the_run(project: Path, write_chapter: WriteChapter) -> None:
    write_chapter(code="import sys, os\nprint(sys.executable)\nprint(os.getcwd())\nprint(count)")
    output = project / "out" / "01.ipynb"
    assert execution.execute(book.chapter(project, "01_stub"), output, {"count": 7}, profile="quick") == output
    notebook = nbformat.read(output, as_version=4)
    injected = next(cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", []))
    assert "count = 7" in injected.source
    assert not {"hide-input", "remove-cell"} & set(injected.metadata["tags"])  # a reader sees what ran
    printed = next(cell.outputs[0].text for cell in notebook.cells if "getcwd" in cell.source).splitlines()
    assert printed == [sys.executable, str(project), "7"]
    assert (project / "ran.txt").read_text() == "01_stub 7\n"
    run = notebook.metadata["robattr"]["run"]
    assert run["profile"] == "quick"
    assert run["versions"]["torch"]
    assert {"python", "cpu", "cores", "memory_gib", "gpu", "data", "commit"} <= set(run)
    assert notebook.metadata["papermill"]["duration"] > 0
    assert notebook.metadata["papermill"]["input_path"] == "notebooks/01_stub.md"
    assert str(project) not in json.dumps(notebook.metadata)
    assert [path.name for path in output.parent.iterdir()] == ["01.ipynb"]


def test_the_kernel_is_ours_whatever_the_user_installed(
    project: Path, write_chapter: WriteChapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = project / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "broken", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(project / "jupyter"))
    write_chapter()
    execution.execute(book.chapter(project, "01_stub"), project / "out.ipynb")
    assert (project / "ran.txt").read_text() == "01_stub 3\n"


def test_tqdm_asks_for_no_widgets(project: Path, write_chapter: WriteChapter) -> None:
    write_chapter(code="import tqdm.auto")
    execution.execute(book.chapter(project, "01_stub"), project / "out.ipynb")
    notebook = nbformat.read(project / "out.ipynb", as_version=4)
    assert [cell.outputs for cell in notebook.cells if cell.get("outputs")] == []


def test_a_failure_keeps_the_last_good_notebook(project: Path, write_chapter: WriteChapter) -> None:
    write_chapter()
    output = project / "out" / "01.ipynb"
    execution.execute(book.chapter(project, "01_stub"), output)
    good = output.read_bytes()
    write_chapter(code="def deep():\n    raise KeyError('the\\nreason')\n\ndeep()")
    with pytest.raises(execution.ExecutionError) as failure:
        execution.execute(book.chapter(project, "01_stub"), output)
    assert "01_stub failed in cell [2]: KeyError: 'the\\nreason'" in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "raise KeyError('the\\nreason')" in failure.value.traceback
    assert "\x1b" not in failure.value.traceback
    assert output.read_bytes() == good
    assert [path.name for path in output.parent.iterdir()] == ["01.ipynb"]


@pytest.mark.elsewhere
def test_on_a_full_disk_the_last_good_notebook_stays(
    project: Path, write_chapter: WriteChapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_chapter()
    output, write = project / "out" / "01.ipynb", nbformat.write
    execution.execute(book.chapter(project, "01_stub"), output)
    good = output.read_bytes()

    def without_room(*args: Any) -> None:
        with room(len(good) // 2):
            write(*args)

    monkeypatch.setattr(nbformat, "write", without_room)
    monkeypatch.chdir(project)
    refused = CliRunner().invoke(cli.main, ["run", "01", "-o", str(output)])
    assert refused.exit_code == 2
    assert refused.stderr == f"robattr: {output} cannot be written: File too large\n"
    assert output.read_bytes() == good
    assert [path.name for path in output.parent.iterdir()] == ["01.ipynb"]


@pytest.mark.elsewhere
def test_a_chapter_that_was_killed_at_any_moment_is_executed_again_to_the_same_numbers(
    project: Path, write_chapter: WriteChapter
) -> None:
    draw = "print([random.Random(i).random() for i in range(200_000)][-1])"
    write_chapter(code=f"import os, random\nopen('kernels.txt', 'a').write(f'{{os.getpid()}}\\n')\n{draw}")
    output, kernels = project / "out" / "01.ipynb", project / "kernels.txt"
    command = [sys.executable, "-m", "robattr.cli", "run", "01", "-o", str(output)]

    def printed() -> list[Any]:
        notebook = nbformat.read(output, as_version=4)
        assert [path.name for path in output.parent.iterdir()] == ["01.ipynb"]
        return [cell.get("outputs") for cell in notebook.cells]

    began = time.monotonic()
    subprocess.run(command, cwd=project, check=True)
    took, undisturbed = time.monotonic() - began, printed()
    moments = random.Random(0)
    for number in range(1 + int(os.environ.get("KILLS", "1"))):
        output.unlink(missing_ok=True)
        kernels.unlink()
        process = subprocess.Popen(command, cwd=project)
        if number == 0:  # once while its kernel computes, however long that takes to come
            while not kernels.exists() and process.poll() is None:
                time.sleep(0.01)
        else:
            time.sleep(moments.uniform(0, took))
        process.kill()
        process.wait()
        for pid in kernels.read_text().split() if kernels.exists() else ():
            with contextlib.suppress(psutil.NoSuchProcess):  # it sees that nobody is there any more, and ends
                psutil.Process(int(pid)).wait(PATIENCE_S)
        subprocess.run(command, cwd=project, check=True)
        assert printed() == undisturbed


def test_a_kernel_that_dies_is_a_failure(project: Path, write_chapter: WriteChapter) -> None:
    write_chapter(code="import os\nos._exit(3)")
    with pytest.raises(execution.ExecutionError, match="01_stub failed: Kernel died"):
        execution.execute(book.chapter(project, "01_stub"), project / "out" / "01.ipynb")
    assert list((project / "out").iterdir()) == []


def test_runs_of_ones_own_have_a_name_for_each_set_of_values(project: Path, stub: book.Chapter) -> None:
    one = execution.custom_output(project, stub, {"images": 1, "rate": 0.5})
    assert one == execution.custom_output(project, stub, {"rate": 0.5, "images": 1})
    assert one != execution.custom_output(project, stub, {"images": 2, "rate": 0.5})
    assert one.parent == project / "_build" / "executed" / "custom"
    assert one.name.startswith("02_stub-")
