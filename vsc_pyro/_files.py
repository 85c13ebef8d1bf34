"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_LEFT_BEHIND = 3600.0  # seconds without a byte, after which a temporary file is one of a process that was killed


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving without an error it is flushed to disk and renamed.

    A reader, or a process that is killed at any moment, finds the old file or the new one, never half of one; of two
    writers at the same time the later one's file stays. The temporary is hidden, has a name of its own, and keeps the
    suffix of `path`, by which some writers choose a format. Where a killed process left one behind, a write of the same
    file removes it when it is an hour old. Missing folders are made, ``~`` is the home folder, and links are written
    through.

    Raises:
        ValueError: something at `path` that is no regular file.
        OSError: what the file system refuses; the message names `path`.
    """
    path = destination(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path)
        temporary = _temporary(path)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def expanded(path: str | os.PathLike, name: str = "path") -> Path:
    """`path` with a leading ``~`` or ``~user`` replaced by the home folder.

    Raises:
        ValueError: an unknown user, or what is no name of a file; the message calls it `name`.
    """
    text = path if isinstance(path, str) else path.__fspath__() if isinstance(path, os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise ValueError(f"{name} must be the name of a file, a str or Path without zero bytes, got {path!r}")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"no home folder is known for {path} ({error}); write the folder out") from error


def destination(path: str | os.PathLike, name: str = "path") -> Path:
    """The file that writing to `path` makes or replaces: ``~`` expanded, and links followed to their end.

    Raises:
        ValueError: a folder, device, pipe or socket there, or no name of a file; the message calls it `name`.
        OSError: a file that is write-protected, or links that lead round in a circle.
    """
    given = expanded(path, name)
    path = Path(os.path.realpath(given))
    if path.is_symlink():
        raise OSError(f"{name} {given} is a link that leads round in a circle; remove it, or take another name")
    if path.is_dir():
        raise ValueError(f"{name} must be a file, got the folder {given}; add a name such as checkpoint.pt")
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} must be a regular file, got the device, pipe or socket {given}; take another name")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{name} {given} is write-protected; take another name, or allow writing to it")
    return path


def check_writable(path: str | os.PathLike) -> None:
    """Raise where `replacing` would, and leave nothing behind: for long work to ask before it starts."""
    path = destination(path)
    with _naming(path):
        folder = next(parent for parent in path.parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as trial:
            file = _temporary(trial / path.relative_to(folder))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}-partial-{secrets.token_hex(6)}{path.suffix}")


def _remove_left_behind(path: Path) -> None:
    like = _temporary(path).name
    start = like[: like.rindex("-")]
    for file in path.parent.iterdir():
        if len(file.name) == len(like) and file.name.startswith(start) and file.suffix == path.suffix:
            with contextlib.suppress(FileNotFoundError):  # another writer may have been quicker
                if time.time() - file.stat().st_mtime > _LEFT_BEHIND:
                    file.unlink()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error of the file system name `path`, and neither nothing (as of a full disk) nor a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
