"""How a chapter is executed: in a kernel of its own, into a notebook that is written whole or not at all."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robattr._files import beside
from robattr._yaml import one_line
from robattr.pages.chapters import Chapter, check_parameters, read_notebook

NO_WIDGETS = "ignore:IProgress not found"
"""Warning filter: tqdm asks for progress bars as widgets, which no page could show."""


# Until a kernel is given up, or what it printed: on a busy machine the libraries' own 60 and 4 seconds are too few, and
# after the latter outputs would be missing without an error.
_PATIENCE_S = 600


# A last cell, which nobody sees: which records the others have read.
_NOTED = """import json, sys
receipts = sys.modules.get("robattr.studies.receipts")
print(json.dumps([get_ipython().execution_count, receipts.noted() if receipts else {}]))"""


class ExecutionError(RuntimeError):
    """A chapter failed while it ran; the message is one line and ``traceback`` is what the kernel reported."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


def custom_output(root: Path, chapter: Chapter, values: Mapping[str, Any]) -> Path:
    """Where a run outside the book goes: one file for each set of values."""
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
    return root / "_build" / "executed" / "custom" / f"{chapter.name}-{key}.ipynb"


def execute(
    chapter: Chapter,
    output: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    root: Path | None = None,
    profile: str = "custom",
) -> Path:
    """Execute a chapter in a kernel of its own, with the interpreter that runs this and in the project's folder.

    Args:
        chapter: the chapter.
        output: the executed notebook; replaced as a whole once everything ran, and left as it is otherwise.
        parameters: values other than the defaults; checked before anything runs.
        root: the project's folder, and the kernel's working directory; by default the one that the chapter is in.
        profile: what the run is called in the notebook's metadata.

    Returns:
        ``output``.

    Raises:
        ChapterError: a parameter is refused.
        ExecutionError: a cell failed, or the kernel did.
        OSError: the notebook cannot be written.
    """
    import nbformat

    from robattr import data
    from robattr.studies.runs import environment

    values = check_parameters(chapter, parameters or {})
    root = root or chapter.path.parents[1]
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run = {
        "profile": profile,
        "started": started,
        **environment(root),
        "data": [each.name for each in data.available() if each.present],
    }
    source = read_notebook(chapter.path)
    source.metadata.pop("jupytext", None)
    source.cells.append(nbformat.v4.new_code_cell(_NOTED))  # type: ignore[no-untyped-call]
    source.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    notebook = _run(chapter, source, values, root)
    notebook.metadata["robattr"] = {"claim": chapter.claim, "run": run, "consulted": _consulted(notebook)}
    _tidy(notebook, chapter, root, output)
    with beside(output) as temporary:
        nbformat.write(notebook, temporary)  # type: ignore[no-untyped-call]
    return output


def _consulted(notebook: Any) -> dict[str, Any]:
    """Take the last cell off, and return what it says; its cells by the execution counts of the notebook."""
    last = notebook.cells.pop()
    count, found = json.loads("".join(output.text for output in last.outputs))
    # While a cell runs, some versions of IPython have counted it and others have not.
    ahead = count - last.execution_count
    return {**found, "cells": {str(int(n) - ahead): lines for n, lines in found.get("cells", {}).items()}}


def _run(chapter: Chapter, source: Any, values: Mapping[str, Any], root: Path) -> Any:
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        return papermill.execute_notebook(
            source,
            None,
            dict(values),
            kernel_name="python3",
            kernel_manager_class=_kernel_manager(),
            cwd=root,
            progress_bar=sys.stderr.isatty(),
            request_save_on_cell_execute=False,
            start_timeout=_PATIENCE_S,
            iopub_timeout=_PATIENCE_S,
        )
    except PapermillExecutionError as error:
        message = f"{chapter.name} failed in cell [{error.exec_count}]: {error.ename}: {one_line(error.evalue)}"
        raise ExecutionError(message, str(error).strip()) from None
    except (DeadKernelError, CellTimeoutError) as error:
        message = f"{chapter.name} failed: {one_line(error)}"
        raise ExecutionError(message, f"{type(error).__name__}: {error}") from error


def _kernel_manager() -> type:
    """Kernels of the interpreter that runs this, whatever a user's own kernel specs say ``python3`` is."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        transport_encryption = "auto"  # ipykernel warns of unencrypted connections

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(
                argv=command,
                display_name="Python 3",
                language="python",
                metadata={"supported_encryption": ["curve"]},
                env={"PYTHONWARNINGS": ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), NO_WIDGETS]))},
            )

    return ThisInterpreter


def _tidy(notebook: Any, chapter: Chapter, root: Path, output: Path) -> None:
    """Leave in the notebook what a reader can use: no temporary or absolute paths, no timings of single cells."""
    record = notebook.metadata["papermill"]
    record["input_path"] = chapter.path.relative_to(root).as_posix() if chapter.path.is_relative_to(root) else None
    record["output_path"] = output.relative_to(root).as_posix() if output.is_relative_to(root) else output.name
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace("# Parameters\n", "# Values of this run, not the defaults above\n", 1)
