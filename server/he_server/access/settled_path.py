"""Paths that nobody else can lead elsewhere: a command is decided for the folder that it then opens.

It opens the folder by its path, many times, and SQLite takes nothing else: of a name in /proc/self/fd it makes the path
again. So whoever can replace a folder of that path, or put a link into it, could have one folder decided and another
one used. Where folders are root's or the user's own from the root down, nobody can.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from he_engine.errors import InvalidInput, NotFound


def settled(folder: Path, login: int | None) -> Path:
    """The folder's real path, without links, if only root and the user whom this process runs as can make it another
    folder's. Root trusts the folder's owner as well, but for `login`, who logged in (None: nobody knows).

    Who runs the process as themself is not asked: they get nothing that they could not have without it.
    Raises NotFound; InvalidInput, which names a folder that others can change.
    """
    try:
        path = Path(os.path.realpath(folder, strict=True))
        user, owner = os.geteuid(), path.stat().st_uid
        if login == user:
            return path
        trusted = {0, user} | ({owner} if user == 0 and owner != login else set())
        for above in (path, *path.parents):
            if _changeable(above.lstat(), trusted, inside=above == path):
                raise InvalidInput(
                    f"data folder {path}: others than root and user {user} can change {above}, and so lead this "
                    "command to another folder; take that right from them, or run this as the folder's owner"
                )
    except OSError as error:
        raise NotFound(f"data folder {folder}: there is none, or it has no catalogue ({error.strerror})") from None
    return path


def _changeable(status: os.stat_result, trusted: set[int], *, inside: bool) -> bool:
    """By others than these users, and the groups of root and of this process. `inside`: also what they add counts;
    above, in a sticky folder (/tmp), they replace nothing that is not their own."""
    if status.st_uid not in trusted:
        return True
    if status.st_mode & stat.S_ISVTX and not inside:
        return False
    others = stat.S_IWOTH | (0 if status.st_gid in (0, os.getegid(), *os.getgroups()) else stat.S_IWGRP)
    return bool(status.st_mode & others)
