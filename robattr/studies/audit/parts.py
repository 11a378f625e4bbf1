"""What an audit has measured so far, part by part on disk, so that the same command goes on where it was stopped."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robattr._files import intact, store, write_tensors, write_text

__all__ = ["Part", "Parts"]

Part = tuple[dict[str, Any], dict[str, Tensor]]
"""Numbers and words by name, tensors by name."""


class Parts:
    """A folder with a folder a part, each with digests of its files; a part that was altered is none.

    Args:
        folder: of one audit.
        request: what is audited, and how; another request in the same folder is refused.
        code: a digest of what the code does. Parts of other code are measured again, with a line in the log.

    Raises:
        ValueError: the folder holds another audit.
    """

    def __init__(self, folder: Path, request: dict[str, Any], code: str) -> None:
        self._folder = folder
        head = folder / "request.json"
        wanted = {"request": json.loads(json.dumps(request)), "code": code}
        try:
            there = json.loads(head.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            there = None
        if isinstance(there, dict) and there.get("request") != wanted["request"]:
            said = [k for k, v in wanted["request"].items() if there.get("request", {}).get(k) != v]
            raise ValueError(
                f"{folder.parent} holds the audit of another {', '.join(said) or 'request'}; name another folder with "
                "-o, or delete that one"
            )
        if there != wanted:
            if there is not None:
                logging.getLogger("robattr").warning("%s was made by other code: it is measured again", folder)
            shutil.rmtree(folder, ignore_errors=True)
            write_text(head, json.dumps(wanted, indent=1))
        self._read: dict[str, Part | None] = {}

    def get(self, name: str) -> Part | None:
        """A part that was measured; None where there is none, or where it is not what was kept."""
        if name not in self._read:
            self._read[name] = self._load(self._path(name))
        return self._read[name]

    def put(self, name: str, values: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Part:
        """Keep a part. Numbers are read back as they are from then on: a float is written to its last digit."""
        tensors = {key: value.detach().cpu().contiguous() for key, value in (tensors or {}).items()}

        def write(folder: Path) -> None:
            (folder / "values.json").write_text(json.dumps(values), encoding="utf-8")
            if tensors:
                write_tensors(folder / "tensors.safetensors", tensors)

        store(self._path(name), write)
        part = (values, tensors)
        self._read[name] = part
        return part

    def _path(self, name: str) -> Path:
        return self._folder / name.replace("/", "~")

    def _load(self, path: Path) -> Part | None:
        if not path.is_dir() or not intact(path):
            return None
        try:
            values = json.loads((path / "values.json").read_text(encoding="utf-8"))
            file = path / "tensors.safetensors"
            return values, load_file(file) if file.is_file() else {}
        except (OSError, ValueError, SafetensorError):
            return None
