"""Where a page is written, and the template that it is made of."""

from __future__ import annotations

import html
import os
from importlib import resources
from pathlib import Path

from vsc_pyro._files import destination, replacing


def new_file(path: str | os.PathLike, overwrite: bool) -> Path:
    """The file that `path` names, which is not there unless it may be overwritten.

    Raises:
        FileExistsError: a file that is there.
        ValueError: what is no name of a file.
    """
    file = destination(path)
    if file.exists() and not overwrite:
        raise FileExistsError(f"path={str(path)!r} exists; pass overwrite=True to replace it, or another path")
    return file


def write_page(file: Path, template: str, pieces: dict[str, str]) -> Path:
    """Write a template of this package to `file`, whole or not at all, with ``{{name}}`` replaced by each piece."""
    page = resources.files("vsc_pyro.pages").joinpath(template).read_text(encoding="utf-8")
    *parts, rest = [page]
    for name, piece in pieces.items():  # each once and in its order, so that no piece is taken for part of the template
        before, rest = rest.split("{{" + name + "}}", 1)
        parts += [before, piece]
    with replacing(file) as temporary:
        temporary.write_text("".join([*parts, rest]), encoding="utf-8")
    return file


def escaped(text: str) -> str:
    """The text as HTML shows it."""
    return html.escape(text)
