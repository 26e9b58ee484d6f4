"""`hesearch fsck`: of a data folder, or of a catalogue in PostgreSQL and the segments that it names."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from he_engine.errors import InvalidInput
from he_server.access.operators import require
from he_server.config import require_postgresql
from he_server.operate.fsck import Report, check
from he_server.operate.parsers import DAMAGED, KEK, command, progress, report
from he_server.storage.kek import KeyProvider, open_kek

_UNSEALED = "NOT SEALED: the key was not needed, and whoever has this folder reads its names and sizes without one"


def add_fsck(subparsers: Any) -> None:
    parser = command(
        subparsers, "fsck", _fsck, "check every byte of a data folder that no server has open, or of a backup; with "
        "--catalogue, every row and segment of one in PostgreSQL, while servers run",
        "./data --kek file:/etc/hesearch/kek\n"
        "  hesearch fsck ./data --kek file:/etc/hesearch/kek --repair --from ./backup\n"
        "  hesearch fsck --data ./data --catalogue postgresql://hesearch@db.example.org/hesearch "
        "--segments s3://bucket/prefix\n\n"
        "What --from does not bring stays as it is: a client's `hesearch repair` saves what can be read of it.\n"
        "With --catalogue nothing is written or repaired, and what servers store or retire meanwhile is no damage.\n"
        "exit codes: 0 clean, 9 damage (what was repaired is no damage any more), others as `hesearch --help` says",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("data", nargs="?", type=Path, help="the data folder, or a backup")
    where.add_argument("--data", dest="folder", type=Path, help="the same, as `hesearch serve` takes it")
    parser.add_argument("--kek", default="", metavar="SPEC", help=f"of a sealed folder or catalogue: {KEK}")
    parser.add_argument("--catalogue", default="", metavar="URL", help="in PostgreSQL: that of `hesearch serve`")
    parser.add_argument("--segments", default="", metavar="URL", help="on object storage: that of `hesearch serve`")
    parser.add_argument("--repair", action="store_true", help="repair what can be; nothing that was stored is deleted")
    parser.add_argument("--from", dest="source", type=Path, metavar="BACKUP", help="with --repair: fetch segments here")


def _fsck(arguments: argparse.Namespace) -> int:
    if arguments.source is not None and not arguments.repair:
        raise InvalidInput("--from: it says where to repair from; give --repair, too")
    if arguments.segments and not arguments.catalogue:
        raise InvalidInput("--segments: got object storage without --catalogue, expected one in PostgreSQL")
    data, source = arguments.data or arguments.folder, None
    if arguments.catalogue:
        require_postgresql(arguments.catalogue)
        if arguments.repair:
            raise InvalidInput(
                "--repair: it is for a catalogue in the data folder alone; one in PostgreSQL and its segments are in "
                "use by servers, which remove what has no row in time: bring the damaged object or file back from the "
                "bucket's versions or a copy, restore PostgreSQL, or let a client `hesearch repair` (docs/runbook.md)"
            )
    data = require(data, "Fsck")
    if arguments.source is not None:
        source = require(arguments.source, "Backup")  # what it brings is a copy of that folder
    kek = open_kek(arguments.kek) if arguments.kek else None
    found = _remote(arguments, data, kek) if arguments.catalogue else _local(arguments, data, kek, source)
    lines = [_UNSEALED] if kek and not found.sealed and (found.clean or found.collections) else []
    lines += [f"repair: {text}" for text in found.repaired]
    when = "when it is old" if arguments.catalogue else "in time, --repair now"
    lines += [f"left over: {text} (a server removes it {when})" for text in found.leftovers]
    lines += [f"problem: {text}" for text in found.problems]
    lines.append(
        f"{'clean' if found.clean else 'damaged'}: {found.collections} collections, {found.segments} segments, "
        f"{found.checked_bytes / 1e6:.1f} MB checked"
    )
    report(arguments, {"clean": found.clean, **asdict(found)}, "\n".join(lines))
    return 0 if found.clean else DAMAGED


def _local(arguments: argparse.Namespace, data: Path, kek: KeyProvider | None, source: Path | None) -> Report:
    return check(data, kek, repair=arguments.repair, source=source)


def _remote(arguments: argparse.Namespace, data: Path, kek: KeyProvider | None) -> Report:
    from he_server.operate.fsck_remote import check_remote  # brings extras

    return check_remote(data, arguments.catalogue, arguments.segments, kek, progress=progress(arguments))
