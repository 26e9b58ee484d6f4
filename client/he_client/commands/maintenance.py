"""`hesearch upsert` and `hesearch compact`: rows replaced, segments tidied."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from he_client.commands.common import (
    Subparsers,
    add_command,
    add_key,
    add_rows,
    add_server,
    connect,
    counted,
    load_key,
    read_rows,
    report,
)


def add_upsert(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "upsert", _upsert, "encrypt rows and store them; those whose id is there are replaced",
        "notes vectors.npy --ids ids.txt --key notes.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    add_rows(parser)
    add_key(parser)
    add_server(parser)


def _upsert(arguments: argparse.Namespace) -> int:
    rows = read_rows(arguments)
    key = load_key(arguments)
    with connect(arguments) as client:
        collection = client.open_collection(arguments.name, key=key)
        upserted = collection.upsert(*rows)
        count = collection.count()
    return report(
        arguments, {"upserted": upserted, "count": count}, f"upserted {counted(upserted, 'row')}; {count} in all"
    )


def add_compact(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "compact", _compact,
        "make few full segments of small and of mostly deleted ones; repeat it where it was interrupted",
        "notes --key notes.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    add_key(parser)
    add_server(parser)


def _compact(arguments: argparse.Namespace) -> int:
    key = load_key(arguments)
    with connect(arguments) as client:
        done = client.open_collection(arguments.name, key=key).compact()
    text = (
        f"{counted(done.segments_before, 'segment')} became {done.segments_after}: "
        f"{counted(done.rows, 'row')} encrypted anew, {counted(done.dropped_rows, 'deleted row')} dropped, "
        f"{done.freed_bytes / 1e6:.1f} MB freed"
    )
    return report(arguments, asdict(done), text)
