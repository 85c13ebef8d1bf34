"""Atomic writes: a file or folder is replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_ABANDONED = 3600.0  # seconds since the last write, after which a temporary file belongs to a process that was killed


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without an error, flush it to disk and rename it.

    A reader finds the old file or the new one, even if the writer is killed. If two processes write the same file, the
    one that finishes last wins. The temporary file is hidden and keeps the suffix of `path`, by which some writers
    choose a format. An old temporary file, left by a process that was killed, is removed by the next write to `path`.
    Missing folders are created, ``~`` is expanded and symbolic links are followed.

    Raises:
        ValueError: `path` exists and is not a regular file.
        OSError: the file system refuses to write; the message names `path`.
    """
    path = destination(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
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


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends without an error, flush its files and rename it.

    An existing folder is deleted once the new one is in its place. A reader finds the old folder or the new one, except
    between two renames. If the writer is killed just then, the old folder is beside `path`, under a hidden name.

    Raises:
        OSError: the file system refuses to write; the message names `path`.
    """
    token = secrets.token_hex(6)
    temporary, old = (path.with_name(f".{path.name}-{kind}-{token}") for kind in ("partial", "replaced"))
    with _naming(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.iterdir():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
            if path.exists():
                shutil.copymode(path, temporary)
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                if old.exists():
                    os.replace(old, path)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def expanded(path: str | os.PathLike, name: str = "path") -> Path:
    """Return `path` with a leading ``~`` or ``~user`` replaced by the home folder.

    Raises:
        ValueError: `path` is not the name of a file, or the user is unknown; the message calls the argument `name`.
    """
    text = path if isinstance(path, str) else path.__fspath__() if isinstance(path, os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise ValueError(f"{name} must be the name of a file, a str or Path without zero bytes, got {path!r}")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"no home folder is known for {path} ({error}); write the folder out") from error


def destination(path: str | os.PathLike, name: str = "path") -> Path:
    """Return the file that writing to `path` creates or replaces: ``~`` is expanded and symbolic links are followed.

    Raises:
        ValueError: `path` is a folder, a device, a pipe or a socket, or not the name of a file; the message calls the
            argument `name`.
        OSError: the file is write-protected, a folder of its path is a file, or symbolic links form a circle.
    """
    given = expanded(path, name)
    path = Path(os.path.realpath(given))
    if path.is_symlink():
        raise OSError(f"{name} {given} is a link that leads round in a circle; remove it, or take another name")
    if path.is_dir():
        raise ValueError(f"{name} must be a file, got the folder {given}; add a name such as checkpoint.pt")
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} must be a regular file, got the device, pipe or socket {given}; take another name")
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{name} {given} would lie in {folder}, which is a file; take another name")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{name} {given} is write-protected; take another name, or allow writing to it")
    return path


def check_writable(path: str | os.PathLike) -> None:
    """Raise the error that `replacing` would raise, and leave nothing behind. Call it before long work."""
    path = destination(path)
    with _naming(path):
        folder = next(parent for parent in path.parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as trial:
            file = _temporary(trial / path.relative_to(folder))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}-partial-{secrets.token_hex(6)}{path.suffix}")


def _remove_abandoned(path: Path) -> None:
    example = _temporary(path).name
    start = example[: example.rindex("-")]
    for file in path.parent.iterdir():
        if len(file.name) == len(example) and file.name.startswith(start) and file.suffix == path.suffix:
            with contextlib.suppress(FileNotFoundError):  # another writer may have removed it first
                if time.time() - file.stat().st_mtime > _ABANDONED:
                    file.unlink()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make errors of the file system name `path`: some name no file (a full disk), others the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
