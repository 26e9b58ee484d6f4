"""Files of the client's own that are whole and on the disk, or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from he_engine.errors import AlreadyExists, HesearchError, NotFound


@contextlib.contextmanager
def new_file(target: Path, what: str, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A temporary file, which takes the name `target` when the block ends well and its bytes are on the disk.

    replace False: raises AlreadyExists where there is such a name by then."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    with file_errors(target, what):
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.rename(target)
            else:
                os.link(temporary, target)  # fails where the target exists, unlike rename
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Names that were given or taken away in it are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """And those that it lies in, where they are missing. `mode` is for the last. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent, 0o777)
        folder.mkdir(mode, exist_ok=True)
        sync_folder(folder.parent)


@contextlib.contextmanager
def file_errors(path: Path, what: str) -> Iterator[None]:
    """What the system says becomes NotFound, AlreadyExists, or HesearchError with its words."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{what} {path}: {error.strerror}") from None
    except FileExistsError:
        raise AlreadyExists(f"{what} {path}: exists") from None
    except OSError as error:
        raise HesearchError(f"{what} {path}: {error.strerror}") from None


@contextlib.contextmanager
def state_errors(folder: Path, what: str) -> Iterator[None]:
    """What the system says becomes HesearchError: no NotFound, which means to a search that a segment has gone."""
    try:
        yield
    except OSError as error:
        raise HesearchError(f"{what} {folder}: {error.strerror}") from None
