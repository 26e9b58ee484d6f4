"""What an operator does with a data folder: `hesearch fsck`, `backup`, `restore`, `kek` and `rekey`."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from he_engine.errors import InvalidInput
from he_server.access.operators import require
from he_server.audit.keys import KEYS, open_keys
from he_server.audit.log import FOLDER as AUDIT
from he_server.operate.backup import backup
from he_server.operate.backup_files import Summary
from he_server.operate.fsck import locked
from he_server.operate.fsck_catalogue import wrapped_key
from he_server.operate.fsck_command import add_fsck
from he_server.operate.parsers import DAMAGED, KEK, command, data_folder, progress, report
from he_server.operate.restore import restore
from he_server.storage.catalogue import Catalogue
from he_server.storage.folder import require_no_backup
from he_server.storage.kek import KeyProvider, new_kek_file, open_kek
from he_server.storage.rekey import rotate
from he_server.storage.store import Store

_ROTATE_EXAMPLE = "./data --previous-kek file:/etc/hesearch/kek --kek exec:/usr/local/bin/ask-kms"
_KEK_EXAMPLES = f"""examples:
  hesearch kek new /etc/hesearch/kek
  hesearch kek rotate {_ROTATE_EXAMPLE}"""


def add_operator_parsers(subparsers: Any) -> None:
    """Adds the commands to what argparse's add_subparsers() returned. `run` of the namespace gives the exit code: 0 for
    done, 9 for a damaged folder, and HesearchErrors as they come."""
    add_fsck(subparsers)
    _add_backup(subparsers)
    _add_restore(subparsers)
    _add_kek(subparsers)
    _add_rekey(subparsers)


# ---- backups ---------------------------------------------------------------------------------------------
def _add_backup(subparsers: Any) -> None:
    parser = command(
        subparsers, "backup", _backup, "copy a data folder as it is now, while a server uses it; needs no key",
        "./data /mnt/backup/hesearch\n\nThe same target again: what is new is copied, and what has decayed there.\n"
        "exit codes: 0 done, 9 done, and damage was seen; others as `hesearch --help` says",
    )  # fmt: skip
    parser.add_argument("data", type=Path, help="the data folder")
    parser.add_argument("target", type=Path, help="an empty folder, a new one, or an earlier backup")


def _backup(arguments: argparse.Namespace) -> int:
    data = require(data_folder(arguments), "Backup")
    return _copied(arguments, backup(data, arguments.target, progress(arguments)), "backed up", arguments.target)


def _add_restore(subparsers: Any) -> None:
    parser = command(
        subparsers, "restore", _restore, "make a data folder of a backup, if every byte is the one that was copied",
        "/mnt/backup/hesearch ./data\n\n"
        "exit codes: 0 done, 9 done, and damage was seen; others as `hesearch --help` says",
    )  # fmt: skip
    parser.add_argument("backup", type=Path)
    parser.add_argument("data", type=Path, help="an empty folder, or a new one")


def _restore(arguments: argparse.Namespace) -> int:
    return _copied(
        arguments, restore(arguments.backup, arguments.data, progress(arguments)), "restored", arguments.data
    )


def _copied(arguments: argparse.Namespace, done: Summary, verb: str, checked: Path) -> int:
    lines = [f"damaged: {text}" for text in done.damage]
    lines.append(
        f"{verb} {done.files} files, {done.total_bytes / 1e6:.1f} MB; "
        f"{done.copied_files} of them, {done.copied_bytes / 1e6:.1f} MB, were copied"
    )
    if done.sealed:
        lines.append(
            "without the key only the structure of the catalogue and the first page of each segment file were checked: "
            f"run `hesearch fsck {checked} --kek …`"
        )
    report(arguments, asdict(done), "\n".join(lines))
    return DAMAGED if done.damage else 0


# ---- keys ------------------------------------------------------------------------------------------------
def _add_kek(subparsers: Any) -> None:
    text = "make or replace the key-encryption key of a sealed data folder"
    parser = subparsers.add_parser(
        "kek", help=text, description=text, epilog=_KEK_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="kek_command", required=True, metavar="VERB")
    new = command(verbs, "kek new", _kek_new, "make a new key file", "/etc/hesearch/kek")
    new.add_argument("path", type=Path, help="where to write it; never overwritten")
    rotate_parser = command(
        verbs, "kek rotate", _kek_rotate, "seal the folder key anew, under another one; no server may run",
        _ROTATE_EXAMPLE,
    )  # fmt: skip
    rotate_parser.add_argument("data", type=Path, help="the data folder")
    rotate_parser.add_argument("--kek", required=True, metavar="SPEC", help=f"the new one: {KEK}")
    rotate_parser.add_argument(
        "--previous-kek", required=True, metavar="SPEC", help="the one that opens the folder now"
    )


def _kek_new(arguments: argparse.Namespace) -> int:
    new_kek_file(arguments.path)
    text = f"wrote {arguments.path}: keep a copy elsewhere; without it nobody opens what is sealed under it"
    report(arguments, {"kek": str(arguments.path)}, text)
    return 0


def _kek_rotate(arguments: argparse.Namespace) -> int:
    data = require(data_folder(arguments), "RotateKeys")
    kek, previous = open_kek(arguments.kek), open_kek(arguments.previous_kek)
    with _stopped(data):
        if not (before := wrapped_key(data / "catalogue.sqlite")):
            raise InvalidInput("kek: this data folder is not sealed; `hesearch rekey` with --kek seals it")
        if (data / AUDIT / KEYS).exists():
            open_keys(data / AUDIT, kek, previous)
        Catalogue(data / "catalogue.sqlite", kek, previous).close()
        rotated = wrapped_key(data / "catalogue.sqlite") != before
    text = "the folder opens with the new key-encryption key now, and with the previous one no more"
    if not rotated:
        text = "the folder opens with --kek already; nothing was changed, and --previous-kek was not tried"
    report(arguments, {"rotated": rotated}, text)
    return 0


def _stopped(data: Path) -> contextlib.AbstractContextManager[None]:
    """No server may start meanwhile. Raises Unavailable where one runs, InvalidInput for a backup."""
    require_no_backup(data)
    return locked(data, "data folder: a server has it open; stop it first", make=True)


def _add_rekey(subparsers: Any) -> None:
    parser = command(
        subparsers, "rekey", _rekey,
        "write every segment file anew under a new data key (of an unsealed folder: seal it); no server may run",
        "./data --kek file:/etc/hesearch/kek\n\nInterrupted, it goes on when it is run again.\n"
        "exit codes: 0 done, 9 damaged files were left; others as `hesearch --help` says",
    )  # fmt: skip
    parser.add_argument("data", type=Path, help="the data folder")
    parser.add_argument("--kek", required=True, metavar="SPEC", help=KEK)
    parser.add_argument(
        "--folder-key", action="store_true", help="a new folder key, too: give a KEK that nobody else knows"
    )


def _rekey(arguments: argparse.Namespace) -> int:
    data = require(data_folder(arguments), "RotateKeys")
    kek = open_kek(arguments.kek)
    with _stopped(data):
        if arguments.folder_key:
            _new_folder_key(data, kek)
        if (data / AUDIT / KEYS).exists():
            open_keys(data / AUDIT, kek)
    written, left = rekey(data, kek)
    text = f"wrote {written} segment files anew" + (
        f"; damaged, and left as they are: {left} (run `hesearch fsck`)" if left else ""
    )
    report(arguments, {"written": written, "left": left}, text)
    return DAMAGED if left else 0


def _new_folder_key(data: Path, kek: KeyProvider) -> None:
    """Every row of the catalogue under a new one, in one transaction. Raises as Catalogue."""
    with contextlib.closing(Catalogue(data / "catalogue.sqlite", kek)) as catalogue:
        catalogue.replace_folder_key(kek)


def rekey(data: Path, kek: KeyProvider) -> tuple[int, int]:
    """New data keys for all collections, unless an earlier run has files left: then it is finished. The numbers of
    files written, and of damaged ones that could not be. Raises as Store, and LimitExceeded, ReadOnlyError."""
    store = Store(data, kek=kek)
    try:
        collections = [state.record.collection_id for state in store.states()]
        if not any(store.data_keys.outdated(collection_id) for collection_id in collections):
            for collection_id in collections:
                store.data_keys.add(collection_id)
        written = rotate(store, float("inf"))
        return written, sum(len(store.data_keys.outdated(collection_id)) for collection_id in collections)
    finally:
        store.close()
