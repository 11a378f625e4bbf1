"""The command line: list chapters, execute one with parameters of one's own, see and fetch data.

A refusal is one line on stderr and exit status 2; a chapter that fails while it runs is its traceback and status 1.
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.table import Table

from robattr import _yaml
from robattr._files import file_digest
from robattr.pages import chapters as book, execution, timing
from robattr.pages.needs import check_needs, without_excess
from robattr.pages.values import check_code, given, located, with_its_weights

if TYPE_CHECKING:
    from robattr.exercises import Edition

_CODE_HELP = (
    "A file of Python code that a file, profile or grid names as a network: it is RUN, so trust it. Repeatable."
)
P = ParamSpec("P")
R = TypeVar("R")


def _refuse(error: Exception | str) -> NoReturn:
    click.echo(f"robattr: {' '.join(str(error).split())}", err=True)
    raise SystemExit(2)


def _refusals(command: Callable[P, R]) -> Callable[P, R]:
    """A wrong request as one line: no caller needs a traceback of this program for a value it can correct."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (FileExistsError, NotADirectoryError) as error:
            asked = Path(error.filename)
            file = next((each for each in (asked, *asked.parents) if each.exists()), asked)
            _refuse(f"{file} is a file; a folder is needed there: choose another place")
        except IsADirectoryError as error:
            _refuse(f"{error.filename} is a folder; a file is needed there")
        except (ValueError, OSError) as error:
            _refuse(error)
        except RuntimeError as error:
            # Of ModelError, without the seconds that its module takes to import where nothing needs it.
            if type(error).__name__ != "ModelError":
                raise
            _refuse(error)

    return wrapped


def _check_output(option: str, path: Path, *suffixes: str) -> None:
    """Whether a file can be written there, asked before the work that it will hold."""
    if path.is_dir() or (suffixes and path.suffix not in suffixes):
        named = f" that ends in {' or '.join(suffixes)}" if suffixes else ""
        raise ValueError(f"{option} is {path}; accepted is a file{named}")
    _check_folder(option, path, path.absolute().parent)


def _check_folder(option: str, path: Path, folder: Path | None = None) -> None:
    """Whether files can be written in a folder, which is made where it is not there; by default in ``path`` itself."""
    folder = (folder or path).absolute()
    above = next(each for each in (folder, *folder.parents) if each.exists())
    if not above.is_dir():
        raise ValueError(f"{above} is a file; a folder is needed there: choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{option} is {path}; nothing can be written in {above}: choose another place")


def _check_devices(accelerator: str, devices: int, strategy: str) -> None:
    """Whether Lightning Fabric finds them; here, since the keys of trainings follow what the training's code does."""
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    try:
        Fabric(accelerator=accelerator, devices=devices, strategy=strategy)
    except (ImportError, MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"--accelerator is {accelerator}, --devices {devices} and --strategy {strategy}, which cannot be had here: "
            f"{error} Leave them out for what there is"
        ) from error


def _show(table: Table) -> None:
    # Off a terminal nobody folds lines for a reader: a pipe gets whole lines.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("robattr"), prog_name="robattr")
def main() -> None:
    """Explanations that hold still and those that don't: the chapters of the book, and their data."""


@main.command(short_help="List the chapters, or the parameters of one.")
@click.argument("name", required=False)
@_refusals
def chapters(name: str | None) -> None:
    """List the chapters, or the parameters of the one called NAME (its number, its name or a part of it)."""
    root = book.find_root()
    if name is None:
        table = Table("chapter", "title", "claim")
        for each in book.chapters(root):
            table.add_row(each.name, each.title, each.claim)
        _show(table)
        return
    chapter = book.chapter(root, name)
    click.echo(f"{chapter.name}: {chapter.title}\n{chapter.claim}")
    table = Table("parameter", "default", "accepts", "meaning")
    for parameter in chapter.parameters.values():
        table.add_row(parameter.name, repr(parameter.default), chapter.accepts(parameter.name), parameter.description)
    _show(table)


@main.command(short_help="Execute a chapter, with values of your own.")
@click.argument("chapter")
@click.option("-p", "--parameter", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="A value, in YAML.")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="YAML file that maps names to values.")
@click.option(
    "--profile",
    help="Start from what this profile sets for the chapter: by default quick; 'defaults' for its own values.",
)
@click.option("--code", type=click.Path(path_type=Path), multiple=True, help=_CODE_HELP)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The executed notebook.")
@click.option("--errors", type=click.Path(path_type=Path), help="Write a failure's traceback here, not to stderr.")
@click.option("--html", type=click.Path(path_type=Path), help="Write it as a page that stands alone, too.")
@_refusals
def run(
    chapter: str,
    pairs: tuple[tuple[str, str], ...],
    file: Path | None,
    profile: str | None,
    code: tuple[Path, ...],
    output: Path | None,
    errors: Path | None,
    html: Path | None,
) -> None:
    """Execute CHAPTER (its number, its name or a part of it) and print where the executed notebook is.

    It starts from the profile quick, which is small enough for a laptop, and says first about how long it will take.
    Values given with -p win over those of the file, and those over the profile's. A model of your own is
    path/to/module.py:function, or a mapping: -p model '{name: net.py:make, weights: net.pt, class_names: names.txt}'.
    Such a file of Python code is RUN: name none that you do not trust. Where only the file or the profile names it, it
    is refused unless --code names it too.
    """
    root, here = book.find_root(), Path.cwd()
    chosen = book.chapter(root, chapter)
    if output is not None:
        _check_output("--output", output, ".ipynb")
    if html is not None:
        _check_output("--html", html, ".html", ".htm")
    if errors is not None:
        _check_output("--errors", errors)
    if twice := [name for name, _ in pairs if sum(name == each for each, _ in pairs) > 1]:
        raise ValueError(f"-p {twice[0]} is given twice; give it once")
    _name_code(code)
    named = {name: given(chosen, name, value) for name, value in pairs}
    values: dict[str, Any] = {}
    start = profile or (timing.PROFILE if timing.PROFILE in book.profile_names(root) else "defaults")
    if start != "defaults":
        content = book.profile_parameters(root, start).get(chosen.name, {})
        values |= _from_file(chosen, content, named, f"profiles/{start}.yaml", root, root)
    if file is not None:
        content = _yaml.read(file)
        if not isinstance(content, dict):
            raise book.ChapterError(f"{file}: must map parameters to values")
        values |= _from_file(chosen, content, named, str(file), here, root)
    values = with_its_weights(chosen, values | located(chosen, named, here, root))
    values = book.check_parameters(chosen, values)
    if profile is None and file is None:
        values = without_excess(chosen, values, named)
    for line in check_needs(chosen, values, root):
        click.echo(line, err=True)
    if said := timing.estimate(chosen, values, root):
        click.echo(said, err=True)
    try:
        done = execution.execute(
            chosen,
            output or execution.custom_output(root, chosen, values),
            values,
            root=root,
            profile=profile or ("custom" if pairs or file else start),
        )
    except execution.ExecutionError as error:
        report = f"{error.traceback}\nrobattr: {error}\n"
        if errors is None:
            sys.stderr.write(report)
        else:
            errors.parent.mkdir(parents=True, exist_ok=True)
            errors.write_text(report, encoding="utf-8")
        raise SystemExit(1) from None
    click.echo(done)
    if html is not None:
        from robattr.pages import alone

        click.echo(alone.write_page(done, chosen.title, root, html))


def _from_file(
    chapter: book.Chapter,
    content: dict[str, Any],
    given: dict[str, Any],
    source: str,
    base: Path,
    root: Path,
) -> dict[str, Any]:
    """Values of a file that count beside those of the command line, once their code is known to be trusted."""
    counting = {name: value for name, value in content.items() if name not in given}
    found = located(chapter, counting, base, root)
    check_code(chapter, found, source)
    return found


def _numbers(option: str, value: str | None) -> list[float] | None:
    """Numbers with commas between."""
    try:
        return None if value is None else [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError(f"{option} is {value!r}; accepted are numbers with commas between, one a channel") from None


def _name_code(code: tuple[Path, ...]) -> None:
    """Let this process and those that it starts know which files of code were named on the command line."""
    for path in code:
        if not path.is_file():
            raise ValueError(f"--code is {path}; there is no such file")
    if code:
        from robattr.models import NAMED

        os.environ[NAMED] = os.pathsep.join(str(path.resolve()) for path in code)


@main.command(short_help="List the runs of a grid, or make one.")
@click.argument("grid", type=click.Path(path_type=Path))
@click.argument("run", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record; by default beside the grid.")
@click.option("--root", type=click.Path(path_type=Path), default="runs", help="Folder of the runs.")
@click.option("--accelerator", default="auto", help="auto, cpu, cuda, ...: what Lightning Fabric takes.")
@click.option("--devices", type=click.IntRange(1), default=1, help="How many of them.")
@click.option("--strategy", default="auto", help="ddp for several devices.")
@click.option("--code", type=click.Path(path_type=Path), multiple=True, help=_CODE_HELP)
@click.option("--workers", type=click.IntRange(1), help="Threads that decode images; by default one a core.")
@click.option("--skip-corrupt", "skip", is_flag=True, help="Go on without training images that cannot be read.")
@_refusals
def reference(
    grid: Path,
    run: str | None,
    output: Path | None,
    root: Path,
    accelerator: str,
    devices: int,
    strategy: str,
    code: tuple[Path, ...],
    workers: int | None,
    skip: bool,
) -> None:
    """List the runs of GRID (a YAML file), or make the one called RUN and write its record."""
    from robattr.studies import grids
    from robattr.training import Compute, TrainingError

    loaded = grids.load_grid(grid)
    if run is None and output is not None:
        raise ValueError("--output is for one run; say which")
    folder = grid.with_suffix("")
    if run is None:
        table = Table("run", "recorded", "options", title=loaded.description)
        for name, network in loaded.networks.items():
            here = _recorded(folder / f"{name}.json")
            options = {} if network.training is None else network.training.options
            table.add_row(name, here, ", ".join(f"{k} {v:g}" for k, v in options.items()))
        _show(table)
        return
    path = output or folder / f"{run}.json"
    _check_output("--output", path, ".json")
    _check_folder("--root", root)
    _name_code(code)
    if (accelerator, devices, strategy) != ("auto", 1, "auto"):
        _check_devices(accelerator, devices, strategy)
    compute = Compute(
        accelerator=accelerator, devices=devices, strategy=strategy, workers=workers, corrupt="skip" if skip else "stop"
    )
    try:
        if grids.run_record(loaded, run, path, root=root, compute=compute) is None:
            click.echo("robattr: not the first process of its launcher, which writes the record", err=True)
            return
    except TrainingError as error:
        _refuse(error)
    click.echo(path)


def _recorded(path: Path) -> str:
    """Whether a record stands there: yes, no, or damaged."""
    from robattr.studies.grids import load_record

    if not path.exists():
        return "no"
    try:
        load_record(path)
    except ValueError:
        return "damaged"
    return "yes"


@main.command(short_help="How far a network's attribution maps can be trusted.")
@click.option(
    "--model", required=True, help="A network: its name, or path/to/module.py:function, which runs that file."
)
@click.option("--data", "dataset", required=True, help="Pictures: folder:PATH with PATH/<class>/*.jpg, or a data set.")
@click.option("--split", default="test", show_default=True, help="Of the data set.")
@click.option("--weights", help="A state dict: .safetensors, .pt or .pth; or random.")
@click.option(
    "--class-names", type=click.Path(path_type=Path), help="The network's classes in order: a line each, or JSON."
)
@click.option("--input-size", type=int, help="Side of the images that a network of a file takes, in pixels.")
@click.option("--mean", help="Of each channel of [0, 1] images, subtracted first: 0.485,0.456,0.406. With --std.")
@click.option("--std", help="Of each channel, divided by then: 0.229,0.224,0.225. With --mean.")
@click.option("--methods", help="Attribution methods, with commas between.")
@click.option("--minutes", default=10.0, show_default=True, help="How long it may take.")
@click.option("-o", "--output", default="report", show_default=True, type=click.Path(path_type=Path), help="A folder.")
@_refusals
def audit(
    model: str,
    dataset: str,
    split: str,
    weights: str | None,
    class_names: Path | None,
    input_size: int | None,
    mean: str | None,
    std: str | None,
    methods: str | None,
    minutes: float,
    output: Path,
) -> None:
    """A report card of a network's attribution maps, in minutes and with nothing to tune.

    The worst over many attacks for each picture, random noise, sanity checks, certified floors: OUTPUT/index.html is a
    page that stands alone, OUTPUT/audit.jsonl has its numbers, OUTPUT/images the changed pictures. It stops on time
    with what it has, and so it does at Ctrl-C; the same command goes on.

    A network of a file gets images in [0, 1] as they are. Where it wants them normalized, as by
    torchvision.transforms.Normalize, say so with --mean and --std, a number a channel.
    """
    started = time.monotonic()
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes is {minutes:g}; accepted is a number of minutes above 0")
    _check_folder("--output", output)
    from pydantic import ValidationError

    from robattr.attributions import METHODS
    from robattr.pages import report
    from robattr.studies import audit as study, subjects
    from robattr.studies.grids.measured import said

    options: dict[str, Any] = {"minutes": minutes}
    if methods is not None:
        options["methods"] = tuple(name.strip() for name in methods.split(",") if name.strip())
        if not options["methods"]:
            raise ValueError(f"--methods is {methods!r}; accepted are some of {', '.join(METHODS)}, or leave it out")
    try:
        config = study.Audit(**options)
    except ValidationError as error:
        raise ValueError(f"--{said(error).partition(': ')[2]}") from None
    network, images = subjects.resolve(
        model,
        dataset,
        split=split,
        images=config.most_images,
        weights=weights,
        class_names=class_names,
        input_size=input_size,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        lenient=True,
    )
    found = study.audit(
        network, images, config, output, say=lambda line: click.echo(line, err=True), started=started,
        source={"network": Path(model).name} | ({"normalized by": f"mean {mean}, std {std}"} if mean else {}),
    )  # fmt: skip
    try:
        standing: Any = study.standing(found, study.peers(book.find_root() / "results" / "reference"))
    except ValueError as error:
        standing = str(error)
    click.echo(report.write(found, standing))
    if found.description["stopped"] == "interrupted":
        raise SystemExit(130)


@main.command(short_help="Every claim with its verdict.")
@click.option("--claims", "file", type=click.Path(path_type=Path), help="YAML file; by default results/claims.yaml.")
@click.option("--records", "folder", type=click.Path(path_type=Path), help="By default results/reference.")
@click.option("--json", "as_json", is_flag=True, help="Everything, for a program.")
@click.option("--markdown", is_flag=True, help="The table of the README.")
@click.option("--schema", is_flag=True, help="The JSON Schema of a record's line.")
@click.option("--into", type=click.Path(path_type=Path, exists=True), help="Put that table between a file's markers.")
@click.option("--register", is_flag=True, help="Keep when each comparison was fixed, by git, and sign what is there.")
@_refusals
def ledger(
    file: Path | None,
    folder: Path | None,
    as_json: bool,
    markdown: bool,
    schema: bool,
    into: Path | None,
    register: bool,
) -> None:
    """Every claim with the verdict that the records give. Status 3 where two records contradict each other."""
    from robattr._files import write_text
    from robattr._text import between_marks
    from robattr.studies import checking, claims, records

    forms = {"--json": as_json, "--markdown": markdown, "--schema": schema, "--into": into is not None}
    if len(asked := [option for option, given in forms.items() if given]) > 1:
        raise ValueError(f"{' and '.join(asked)} are given; give one of them")
    if schema:
        click.echo(json.dumps(records.schema(), indent=1))
        return
    root = None if file and folder else book.find_root()
    if register:
        home = book.find_root()
        claims.write_history(home / claims.HISTORY, claims.history_of(home))
        checking.sign(home)
    folder = folder or root / "results" / "reference"  # type: ignore[operator]
    file = file or root / "results" / "claims.yaml"  # type: ignore[operator]
    verdicts, measured = claims.read_ledger(file, folder)
    if register:
        from robattr.pages import figures

        write_text(home / "book" / "_static" / "forest.svg", figures.small_forest(verdicts))
    if into is not None:
        page = into.read_text(encoding="utf-8")
        write_text(into, between_marks(page, "robattr ledger --markdown", claims.summary(verdicts), str(into)))
    elif as_json:
        click.echo(json.dumps(claims.as_json(verdicts), indent=1))
    elif markdown:
        click.echo(claims.summary(verdicts), nl=False)
    else:
        table = Table("claim", "verdict", "comparison", "effect, 95% interval", show_lines=True)
        for verdict in verdicts:
            table.add_row(
                f"{verdict.claim.sentence}\n[dim]{verdict.claim.id}[/dim]",
                f"[bold]{verdict.name}[/bold]" + (f": {verdict.claim.untried}" if verdict.claim.untried else ""),
                "\n".join(o.comparison.label for o in verdict.outcomes),
                "\n".join(f"{o.state}: {claims.effect_text(o)}".replace("[", r"\[") for o in verdict.outcomes),
            )
        _show(table)
    found = records.conflicts(measured)
    for conflict in found:
        click.echo(f"robattr: {conflict}", err=True)
    if found:
        raise SystemExit(3)


@main.command(short_help="Check claims from what is committed.")
@click.argument("claim", required=False)
@click.option(
    "--rerun", "minutes", type=click.FloatRange(min=0, min_open=True), help="Run random parts again, so long."
)
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="In a part that is run again.")
@click.option("--seed", type=int, help="Of what is run again; another one each time by default.")
@_refusals
def check(claim: str | None, minutes: float | None, images: int, seed: int | None) -> None:
    """Check CLAIM, or all, from what is committed: thresholds, verdict, records, weights, kept images.

    CLAIM is what `robattr ledger` has below the sentence of a claim, such as ghorbani-maps-change.

    In seconds, without training; what needs data that are not here is skipped by name. With --rerun MINUTES random
    parts of its studies are measured again for that long, and compared with the records. Status 3 where something
    differs.
    """
    from robattr.studies import checking, claims

    if minutes is not None and not math.isfinite(minutes):
        raise ValueError(f"--rerun is {minutes}; accepted is a number of minutes above 0")
    root = book.find_root()
    names = [claim] if claim is not None else [each.id for each in claims.load_claims(root / checking.CLAIMS)]
    verified: dict[Path, list[checking.Finding]] = {}
    found = [(name, each) for name in names for each in checking.check(root, name, verified=verified)]
    if minutes is not None:
        found += [
            ("run again", each) for each in checking.rerun(root, claim, minutes=minutes, images=images, seed=seed)
        ]
    for name, each in found:
        click.echo(f"{each.state:8}{name}: {each.what}{f' ({each.said})' if each.said else ''}")
    number = {state: sum(each.state == state for _, each in found) for state in ("ok", "differs", "skipped")}
    click.echo(", ".join(f"{count} {state}" for state, count in number.items()))
    if number["differs"]:
        raise SystemExit(3)


@main.command(short_help="Keep attacked images beside a record.")
@click.argument("record", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--images", type=click.IntRange(1), default=16, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="That draws them.")
@_refusals
def keep(record: Path, images: int, seed: int) -> None:
    """Attack some images of RECORD again, and keep the changes beside it as PNG, for `robattr check`."""
    from robattr.studies import kept

    click.echo(kept.keep(record, images=images, seed=seed))


@main.command(short_help="List exercises, show one, write a notebook of them.")
@click.argument("name", required=False)
@click.option("--chapter", help="Of one chapter only: its name or number.")
@click.option("--solution", is_flag=True, help="Show an answer to exercise NAME, and why it is right.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a notebook: of NAME, the chapter, or all.")
@click.option("--edition", type=click.Choice(["student", "teacher", "nbgrader"]), help="Of the notebook.")
@_refusals
def exercises(
    name: str | None, chapter: str | None, solution: bool, output: Path | None, edition: Edition | None
) -> None:
    """List the exercises, show the one called NAME with its hints, or write a notebook of them.

    Answers are checked in Python: robattr.exercises.check("ex-linear", answer). The student edition, which is the
    default, has gaps for answers; the teacher edition has answers and solutions; the nbgrader edition is the source of
    an assignment.
    """
    import nbformat

    from robattr import exercises as found
    from robattr._files import write_text

    chosen = [found.exercise(name)] if name else found.exercises(chapter)
    if name and chapter:
        raise ValueError(f"--chapter is for the exercises of a chapter, and {name} is one; give one of the two")
    if output is not None:
        _check_output("--output", output, ".ipynb")
        output.parent.mkdir(parents=True, exist_ok=True)
        text: str = nbformat.writes(found.notebook(chosen, edition or "student"))  # type: ignore[no-untyped-call]
        write_text(output, text + "\n")
        click.echo(output)
    elif edition is not None:
        raise ValueError("--edition is for a notebook; say where to write it with -o")
    elif name:
        click.echo(found.plain(chosen[0], solution=solution), nl=False)
    elif solution:
        raise ValueError("--solution is for one exercise; say which")
    else:
        table = Table("exercise", "chapter", "minutes", "kind", "title")
        for each in chosen:
            table.add_row(each.id, each.chapter, str(each.minutes), each.kind, each.title)
        _show(table)


@main.command(short_help="List the lessons, or write one as a zip.")
@click.argument("name", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The zip; by default NAME.zip here.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@_refusals
def lesson(name: str | None, output: Path | None, force: bool) -> None:
    """List the lessons, or write the one called NAME as a zip: plan, slides, notebooks, data and the package.

    Their sources are in lessons/ of the project: here, above, or in the checkout that the package runs from.
    """
    from robattr import lessons as found

    root = book.find_root()
    if name is not None:
        chosen = found.lesson(root, name)
        path = output or Path(f"{chosen.name}.zip")
        _check_output("--output", path)
        click.echo(found.make(chosen, path, root=root, force=force))
    elif output is not None or force:
        raise ValueError("-o and --force are for one lesson; say which")
    else:
        table = Table("lesson", "title", "minutes", "MB, at most", "chapters", "what it is about")
        for each in found.lessons(root):
            sizes = (str(each.minutes), str(each.megabytes))
            table.add_row(each.name, each.title, *sizes, ", ".join(each.chapters), each.summary)
        _show(table)


@main.group(invoke_without_command=True, short_help="List the data sets.")
@click.pass_context
def data(context: click.Context) -> None:
    """List the data sets: which there are, and which of them are here."""
    if context.invoked_subcommand is None:
        _list_data()


@_refusals
def _list_data() -> None:
    from robattr import data as sets

    table = Table("data set", "here", "what it is", "size", "where")
    for each in sets.available():
        table.add_row(each.name, "yes" if each.present else "no", each.description, each.size, each.location)
    _show(table)


@data.command()
@click.argument("name")
@click.option("--root", type=click.Path(path_type=Path), help="Data folder; by default $ROBATTR_DATA or the cache.")
@_refusals
def fetch(name: str, root: Path | None) -> None:
    """Download the data set NAME."""
    from robattr import data as sets

    click.echo(sets.fetch(name, root=root))


@data.command()
@click.argument("folder", metavar="folder:PATH")
@click.option("--limit", type=click.IntRange(1), help="How many are drawn; all by default.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draw.")
@_refusals
def files(folder: str, limit: int | None, seed: int) -> None:
    """Which pictures of a folder a run with this limit and seed takes, as CSV: place, file, SHA-256."""
    from robattr import data as sets

    above = Path(folder.removeprefix("folder:")).expanduser()
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["place", "file", "sha256"])
    for place, path in enumerate(sets.drawn_files(folder, limit=limit, seed=seed)):
        rows.writerow([place, path.relative_to(above).as_posix(), file_digest(path)])


if __name__ == "__main__":
    main()
