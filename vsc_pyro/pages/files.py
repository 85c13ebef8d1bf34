"""Output files of pages, and the templates they are made from."""

from __future__ import annotations

import html
import os
from importlib import resources
from pathlib import Path

from vsc_pyro._files import destination, replacing


def new_file(path: str | os.PathLike, overwrite: bool) -> Path:
    """Return the file at `path`, which may exist only with `overwrite`.

    Raises:
        FileExistsError: the file exists.
        ValueError: a path that cannot name a file.
    """
    file = destination(path)
    if file.exists() and not overwrite:
        raise FileExistsError(f"path={str(path)!r} exists; pass overwrite=True to replace it, or another path")
    return file


def write_page(file: Path, template: str, pieces: dict[str, str]) -> Path:
    """Write a template of this package to `file`, whole or not at all, with each ``{{name}}`` replaced by its piece."""
    page = resources.files("vsc_pyro.pages").joinpath(template).read_text(encoding="utf-8")
    *parts, rest = [page]
    for name, piece in pieces.items():  # in the template's order, so that placeholders inside a piece are not replaced
        before, rest = rest.split("{{" + name + "}}", 1)
        parts += [before, piece]
    with replacing(file) as temporary:
        temporary.write_text("".join([*parts, rest]), encoding="utf-8")
    return file


def escaped(text: str) -> str:
    """Escape text for HTML."""
    return html.escape(text)
