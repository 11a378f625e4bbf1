"""Values of a chapter's parameters before it runs: where their files lie, whether code they name may run, what fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robattr import _yaml
from robattr.pages.chapters import Chapter
from robattr.pages.schemas import code_named, reason_against

if TYPE_CHECKING:
    from robattr.data import ImageSet
    from robattr.models import Classifier

__all__ = ["check_code", "check_network", "given", "located", "with_its_weights"]


def given(chapter: Chapter, name: str, text: str) -> Any:
    """The value of a parameter that stands on a command line, in YAML; a text where the parameter takes one.

    Nothing in it is a comment. Where the parameter takes texts, one without quotes is taken as it stands, though YAML
    would read a number or a mapping: a folder may be called ``2024`` or ``a: b``.

    Raises:
        YamlError: it is not YAML.
    """
    parameter = chapter.parameters.get(name)
    kinds = [] if parameter is None else parameter.schema.get("type", [])
    plain = "string" in kinds and text.strip()[:1] not in ("", "{", "[", '"', "'")
    try:
        value = _yaml.whole(text, f"parameter {name!r}")
    except _yaml.YamlError:
        if plain:
            return text
        raise
    misfit = parameter is not None and reason_against(parameter.schema, value) is not None
    return text if plain and (isinstance(value, str) or misfit) else value


def check_code(chapter: Chapter, values: Mapping[str, Any], source: str) -> None:
    """Refuse values from a file that name Python code which nobody named on the command line.

    Args:
        chapter: whose parameters they are.
        values: of parameters, as they stand in the file.
        source: the file.

    Raises:
        ValueError: a model is in a file of code that nobody named, see :func:`robattr.models.allowed`.
    """
    for name, value in values.items():
        parameter = chapter.parameters.get(name)
        model = None if parameter is None else code_named(parameter.schema, value)
        if model is not None:
            from robattr.models import check_allowed

            check_allowed(model, f"{source}: {name}")


def located(chapter: Chapter, values: Mapping[str, Any], base: Path, root: Path) -> dict[str, Any]:
    """Values whose relative paths are meant from ``base``, as a chapter has them, which runs in ``root``.

    Those are the paths of a ``folder:``, of records, of a file of code, of weights and of names of classes.
    """
    if base.resolve() == root.resolve() == Path.cwd():
        return dict(values)

    def below(path: Any) -> Any:
        return str(base.resolve() / Path(path).expanduser()) if isinstance(path, str) and path != "random" else path

    def model(value: Any) -> Any:
        if isinstance(value, Mapping):
            files = {key: below(value[key]) for key in ("weights", "class_names") if key in value}
            return {**value, **files, **({"name": model(value["name"])} if "name" in value else {})}
        return below(value) if isinstance(value, str) and ".py" in value else value

    found = {}
    for name, value in values.items():
        form = chapter.parameters[name].schema.get("format") if name in chapter.parameters else None
        if form == "model":
            value = model(value)
        elif form in ("weights", "records", "file") or (
            form == "grid" and "within" not in chapter.parameters[name].schema
        ):
            value = below(value)
        elif form == "dataset" and isinstance(value, str) and value.startswith("folder:"):
            value = f"folder:{below(value.removeprefix('folder:'))}"
        found[name] = value
    return found


def check_network(
    chapter: Chapter, values: Mapping[str, Any], given: Mapping[str, Any], *, always: bool = False
) -> tuple[Classifier, ImageSet] | None:
    """Whether the network and the pictures of a chapter fit each other, where a given value is about either.

    The network is made and sees one picture: a misfit is a line here, not a traceback in a notebook. **This runs a file
    of code that is the model**, as the chapter will.

    Args:
        chapter: with parameters ``model`` and ``dataset``; nothing is done for others.
        values: all of them, with paths as they are from here, see :func:`located`.
        given: those that are not its defaults.
        always: also where none is about network or pictures.

    Returns:
        The last network that was made, and a picture for it; None where nothing was done.

    Raises:
        ValueError, ModelError: see :func:`robattr.studies.subjects.resolve`.
    """
    parameters = chapter.parameters
    files = [name for name, each in parameters.items() if each.schema.get("format") == "weights"]
    about = ("model", "dataset", *files)
    if not {"model", "dataset"} <= parameters.keys() or not (always or any(name in given for name in about)):
        return None
    from robattr.models import ModelError
    from robattr.studies.subjects import resolve

    # The sharpness of chapter 2's is a schedule of the attack; elsewhere it belongs to the network.
    smooth = {name: values[name] for name in ("activation", "beta") if "activation" in parameters}
    labelled = parameters["dataset"].schema.get("labelled", True)
    found = None
    for weights in dict.fromkeys(values[name] for name in files) or [None]:
        try:
            found = resolve(values["model"], values["dataset"], weights=weights, images=1, labelled=labelled, **smooth)
        except (ValueError, ModelError) as error:
            # What does not fit is said of weights, though somebody changed the pictures for which the network is made.
            if (
                "dataset" not in given
                or "model" in given
                or str(values["dataset"]).removeprefix("folder:") in str(error)
            ):
                raise
            raise type(error)(f"dataset is {values['dataset']}: {error}") from None
    return found


def with_its_weights(chapter: Chapter, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values where another model does not get the weights that the chapter's own has by default."""
    other = "model" in values and "weights" in chapter.parameters and "weights" not in values
    return {**values, **({"weights": None} if other and chapter.parameters["weights"].default is not None else {})}
