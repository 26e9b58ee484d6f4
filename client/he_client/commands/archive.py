"""`hesearch export`, `import`, `reseal` and `repair`: collections as files, under new keys, and after damage."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import asdict
from pathlib import Path

from he_client.commands.common import Subparsers, add_command, add_key, add_server, connect, counted, load_key, report
from he_client.commands.key_paths import key_path
from he_client.durable import new_file
from he_client.results import RepairReport
from he_engine.errors import AlreadyExists, InvalidInput

SHOWN_IDS = 10  #: of lost rows, where nothing is changed


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
        f"wrote {arguments.file}: {done.name} at version {done.version}, {counted(done.segments, 'segment')}, "
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
        f"imported {done.name} at version {done.version}: {counted(done.segments, 'segment')}, "
        f"{done.existed} there already"
    )
    return report(arguments, asdict(done), text)


def add_reseal(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "reseal", _reseal,
        "encrypt a collection again under a new key, so that the old one opens it no more; repeat it where it was "
        "interrupted. Backups, archives and other copies made before still open with the old key. With --fingerprint: "
        "no new key, but new fingerprints, where so many answers were rejected that the old ones verify no more",
        "notes --key notes.key --new-key notes-2.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    add_key(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--new-key", type=key_path, help="its new key file; `hesearch keygen` makes one")
    what.add_argument("--fingerprint", action="store_true", help="new fingerprints for those that verify no more")
    parser.add_argument("--all", action="store_true", help="with --fingerprint: new ones for all segments")
    parser.add_argument("--new-passphrase-file", type=Path, help="the same as --passphrase-file, for the new key")
    parser.add_argument(
        "--journal", type=Path, help="what is done already; default: the new key file's name with .reseal after it"
    )
    add_server(parser)


def _reseal(arguments: argparse.Namespace) -> int:
    if arguments.fingerprint:
        return _reseal_fingerprints(arguments)
    if arguments.all:
        raise InvalidInput("--all: got it with --new-key, expected --fingerprint; a new key is for all segments anyway")
    key = load_key(arguments)
    new = argparse.Namespace(
        key=arguments.new_key, passphrase_file=arguments.new_passphrase_file, key_program=arguments.key_program
    )
    new_key = load_key(new, "--new-passphrase-file")
    journal = arguments.journal or arguments.new_key.with_name(arguments.new_key.name + ".reseal")
    with connect(arguments) as client:
        done = client.reseal_collection(arguments.name, key=key, new_key=new_key, journal=journal)
    text = (
        f"{arguments.name} opens with {arguments.new_key} only: {counted(done.rows, 'row')} in "
        f"{counted(done.segments, 'segment')}, {done.made} encrypted now, {done.reused} before. Copies made before "
        "still open with the old key."
    )
    return report(arguments, asdict(done), text)


def _reseal_fingerprints(arguments: argparse.Namespace) -> int:
    if arguments.journal or arguments.new_passphrase_file:
        raise InvalidInput("--journal, --new-passphrase-file: got one with --fingerprint, expected --new-key")
    key = load_key(arguments)
    with connect(arguments) as client:
        collection = client.open_collection(arguments.name, key=key, payloads="direct")
        done = collection.reseal_fingerprints(everything=arguments.all)
    text = f"{arguments.name}: {done.rebuilt} of {counted(done.segments, 'segment')} verified by a new fingerprint"
    if not done.rebuilt and not arguments.all:
        text += "; none verifies no more, as far as this client counted (--all makes new ones all the same)"
    return report(arguments, asdict(done), text)


def add_repair(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "repair", _repair, "read all of a collection and say what of it is damaged; with --yes, go on "
        "without what is lost",
        "notes --key notes.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    parser.add_argument("--yes", action="store_true", help="commit what can be read; what cannot be is lost for good")
    parser.add_argument(
        "--lost-ids", type=Path, metavar="FILE", help="write the ids of lost rows to this file, one a line"
    )
    add_key(parser)
    add_server(parser)


def _repair(arguments: argparse.Namespace) -> int:
    """Exit code 1 where damage was found and nothing was done about it."""
    if arguments.lost_ids and arguments.lost_ids.exists():
        raise AlreadyExists(f"lost ids {arguments.lost_ids}: exists; it is never overwritten")
    key = load_key(arguments)
    lost_ids = new_file(arguments.lost_ids, "lost ids") if arguments.lost_ids else contextlib.nullcontext()
    with lost_ids as file, connect(arguments) as client:
        done = client.repair_collection(arguments.name, key=key, confirm=arguments.yes)
        if file is not None:
            file.writelines(f"{row_id}\n".encode() for row_id in done.lost_ids)
    verb = "is" if done.damaged == 1 else "are"
    lines = [f"{arguments.name}: {done.damaged} of {counted(done.segments, 'segment')} {verb} damaged"]
    if done.damaged:
        lines += _damage(done, None if done.repaired else SHOWN_IDS, arguments.lost_ids)
    report(arguments, asdict(done), "\n".join(lines))
    return 1 if done.damaged and not done.repaired else 0


def _damage(done: RepairReport, shown: int | None, written: Path | None) -> list[str]:
    """`shown`: how many ids at most; None: all, since after a repair nobody can find them out any more. `written`:
    the file that has all of them."""
    lines = [f"rows lost: {done.lost_rows}; payloads lost, of rows that are not: {done.lost_payloads}"]
    if written is None:
        lines += [f"  {row_id}" for row_id in done.lost_ids[:shown]]
        if shown is not None and (more := len(done.lost_ids) - shown) > 0:
            lines.append(f"  and {more} more; --lost-ids FILE writes them all")
    else:
        lines.append(f"  {counted(len(done.lost_ids), 'id')} in {written}")
    if nameless := done.lost_rows - len(done.lost_ids):
        lines.append(f"  and {nameless} whose {'id is' if nameless == 1 else 'ids are'} lost, too")
    if done.repaired:
        return [*lines, f"repaired: version {done.version}"]
    return [
        "A backup may bring all of it back: ask the server's operator for `hesearch fsck DATA --repair --from BACKUP`",
        *lines,
        "nothing was changed; --yes goes on without what is lost, for good",
    ]
