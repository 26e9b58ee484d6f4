"""What an operator and an auditor do with an audit log: `hesearch audit verify`, `head` and `show`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from he_engine.errors import NotFound
from he_server.audit.heads import HEAD, read_head
from he_server.audit.keys import read_sealing_key
from he_server.audit.log import FOLDER
from he_server.audit.reading import LOG, entries
from he_server.audit.verify import verify
from he_server.operate.parsers import KEK, command, report
from he_server.storage.kek import open_kek

TAMPERED = 6  #: exit code; that of TamperedDataError


def add_audit_parsers(subparsers: Any) -> None:
    """Adds `audit` to what argparse's add_subparsers() returned. `run` of the namespace gives the exit code."""
    text = "the log of a server's decisions: check it, export its head, read it"
    verbs = subparsers.add_parser("audit", help=text, description=text).add_subparsers(
        dest="audit_command", required=True, metavar="VERB"
    )
    checking = command(
        verbs, "audit verify", _verify, "check that no line was changed, removed, moved or added; needs no key",
        "./data --head /mnt/elsewhere/head.json\n\n"
        "exit codes: 0 unchanged, 6 changed; others as `hesearch --help` says",
    )  # fmt: skip
    checking.add_argument(
        "--head", action="append", default=[], type=Path, metavar="FILE", help="an exported one; repeat it"
    )
    exporting = command(
        verbs, "audit head", _head, "print the newest signed head, to be kept where the server cannot write",
        "./data > head.json",
    )  # fmt: skip
    showing = command(verbs, "audit show", _show, "print what the log says", "./data --kek file:/etc/hesearch/kek")
    showing.add_argument("--kek", default="", metavar="SPEC", help=f"of a sealed log: {KEK}")
    for parser in (checking, exporting, showing):
        parser.add_argument("data", type=Path, help="the data folder; a server may use it")


def _folder(arguments: argparse.Namespace) -> Path:
    folder: Path = arguments.data / FOLDER
    if not (folder / LOG).is_file():
        raise NotFound(f"data folder {arguments.data}: it has no audit log")
    return folder


def _verify(arguments: argparse.Namespace) -> int:
    found = verify(_folder(arguments), [read_head(path) for path in arguments.head])
    lines = [f"changed: {found.problem}"] if found.problem else []
    lines += [f"note: {found.note}"] if found.note else []
    lines.append(
        f"{found.lines} lines follow from each other; signed up to line {found.covered}, "
        + (f"proven by --head up to line {found.proven}" if arguments.head else "no --head was given to prove it")
    )
    report(arguments, {"unchanged": not found.problem, **asdict(found)}, "\n".join(lines))
    return TAMPERED if found.problem else 0


def _head(arguments: argparse.Namespace) -> int:
    print(read_head(_folder(arguments) / HEAD).json().decode(), end="")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    folder = _folder(arguments)
    key = read_sealing_key(folder, open_kek(arguments.kek)) if arguments.kek else None
    for fields in entries(folder, key):
        print(json.dumps(fields) if arguments.json else _text(fields))
    return 0


def _text(fields: dict[str, Any]) -> str:
    start = f"{fields['sequence']:>8}  {fields['time']}  "
    if fields["kind"] != "entry":
        return start + str(fields["kind"]) + (f": a crash left {fields['bytes']} bytes" if "bytes" in fields else "")
    who = fields["principal"] or {"tenant": "?", "name": "?", "via": "unknown"}
    return (
        f"{start}{'allow' if fields['allowed'] else 'deny '}  {who['tenant']}/{who['name']} ({who['via']})  "
        f"{fields['action']}  {fields['resource']}  {fields['request_bytes']} bytes  "
        f"by {', '.join(fields['policies']) or 'default'}  {fields['request_id']}"
    )
