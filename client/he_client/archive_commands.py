"""`hesearch export`, `import`, `reseal` and `repair`: collections as files, under new keys, and after damage."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from he_client.commands import Subparsers, add_command, add_key, add_server, connect, load_key, report


def add_export(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "export", _export, "write a collection to a file, still encrypted; needs no key",
        "notes notes.archive --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    parser.add_argument("file", type=Path, help="where to write it; never overwritten")
    add_server(parser)


def _export(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        done = client.export_collection(arguments.name, arguments.file)
    text = (
        f"wrote {arguments.file}: {done.name} at version {done.version}, {done.segments} segments, "
        f"{done.archive_bytes / 1e6:.1f} MB"
    )
    return report(arguments, asdict(done), text)


def add_import(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "import", _import,
        "make the collection of an exported file, for the key that it has; repeat it where it was interrupted",
        "notes.archive --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("file", type=Path)
    add_server(parser)


def _import(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        done = client.import_collection(arguments.file)
    text = (
        f"imported {done.name} at version {done.version}: {done.segments} segments, {done.existed} of which were "
        "there already"
    )
    return report(arguments, asdict(done), text)


def add_reseal(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "reseal", _reseal,
        "encrypt a collection again under a new key, so that the old one opens it no more; repeat it where it was "
        "interrupted. Backups, archives and other copies made before still open with the old key.",
        "notes --key notes.key --new-key notes-2.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    add_key(parser)
    parser.add_argument("--new-key", type=Path, required=True, help="its new key file; `hesearch keygen` makes one")
    parser.add_argument("--new-passphrase-file", type=Path, help="the same as --passphrase-file, for the new key")
    parser.add_argument(
        "--journal", type=Path, help="what is done already; default: the new key file's name with .reseal after it"
    )
    add_server(parser)


def _reseal(arguments: argparse.Namespace) -> int:
    key = load_key(arguments)
    new = argparse.Namespace(key=arguments.new_key, passphrase_file=arguments.new_passphrase_file)
    new_key = load_key(new)
    journal = arguments.journal or arguments.new_key.with_name(arguments.new_key.name + ".reseal")
    with connect(arguments) as client:
        done = client.reseal_collection(arguments.name, key=key, new_key=new_key, journal=journal)
    text = (
        f"{arguments.name} opens with {arguments.new_key} only: {done.rows} rows in {done.segments} segments, "
        f"{done.made} encrypted now, {done.reused} before. Copies made before still open with the old key."
    )
    return report(arguments, asdict(done), text)


def add_repair(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "repair", _repair, "read all of a collection and say what of it is damaged; with --yes, go on "
        "without what is lost",
        "notes --key notes.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    parser.add_argument("--yes", action="store_true", help="commit what can be read; what cannot be is lost for good")
    add_key(parser)
    add_server(parser)


def _repair(arguments: argparse.Namespace) -> int:
    """Exit code 1 where damage was found and nothing was done about it."""
    key = load_key(arguments)
    with connect(arguments) as client:
        done = client.repair_collection(arguments.name, key=key, confirm=arguments.yes)
    lines = [f"{arguments.name}: {done.damaged} of {done.segments} segments are damaged"]
    if done.damaged:
        lines.append(f"rows lost: {done.lost_rows}; payloads lost, of rows that are not: {done.lost_payloads}")
        lines += [f"  {row_id}" for row_id in done.lost_ids]
        if done.lost_rows > len(done.lost_ids):
            lines.append(f"  and {done.lost_rows - len(done.lost_ids)} whose ids are lost, too")
        lines.append(f"repaired: version {done.version}" if done.repaired else "nothing was changed; --yes repairs")
    report(arguments, asdict(done), "\n".join(lines))
    return 1 if done.damaged and not done.repaired else 0
