"""What an operator and an auditor do with audit logs, the server's and its operators': `hesearch audit verify`, `head`
and `show`."""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from he_engine.errors import NotFound
from he_server.access.operators import require
from he_server.audit.heads import HEAD, read_head, read_heads
from he_server.audit.keys import read_sealing_key
from he_server.audit.log import FOLDER, OPERATORS
from he_server.audit.reading import LOG, entries, log_id
from he_server.audit.verify import Report, verify
from he_server.operate.parsers import KEK, command, report, verbs_of
from he_server.storage.kek import KeyProvider, open_kek

TAMPERED = 6  #: exit code; that of TamperedDataError


def add_audit_parsers(subparsers: Any) -> None:
    """Adds `audit` to what argparse's add_subparsers() returned. `run` of the namespace gives the exit code."""
    text = "the logs of a server's and its operators' decisions: check them, export their heads, read them"
    verbs = verbs_of(subparsers, "audit", text, "verify ./data --head /mnt/elsewhere/head.json")
    checking = command(
        verbs, "audit verify", _verify, "check that no line was changed, removed, moved or added; needs no key",
        "./data --head /mnt/elsewhere/head.json\n\n"
        "exit codes: 0 unchanged, 6 changed; others as `hesearch --help` says",
    )  # fmt: skip
    checking.add_argument(
        "--head", action="append", default=[], type=Path, metavar="FILE", help="an exported one; repeat it"
    )
    exporting = command(
        verbs, "audit head", _head, "print the newest signed heads, to be kept where the server cannot write",
        "./data > head.json",
    )  # fmt: skip
    showing = command(
        verbs,
        "audit show",
        _show,
        "print what the logs say, in the order of time",
        "./data --kek file:/etc/hesearch/kek",
    )
    showing.add_argument("--kek", default="", metavar="SPEC", help=f"of a sealed log: {KEK}")
    for parser in (checking, exporting, showing):
        parser.add_argument("data", type=Path, help="the data folder; a server may use it")


def _folders(data: Path) -> dict[str, Path]:
    """The logs that a data folder has, by whose they are. Raises NotFound where it has none."""
    folders = {"server": data / FOLDER, "operators": data / OPERATORS}
    found = {whose: folder for whose, folder in folders.items() if (folder / LOG).is_file()}
    if not found:
        raise NotFound(f"data folder {data}: it has no audit log")
    return found


def _verify(arguments: argparse.Namespace) -> int:
    """A head that is of no log there is said to be of the first, which shows that a log was replaced."""
    folders = _folders(arguments.data)
    heads = [head for path in arguments.head for head in read_heads(path)]
    ids = {whose: log_id(folder) for whose, folder in folders.items()}
    first = next(iter(folders))
    found = {}
    for whose, folder in folders.items():
        mine = [head for head in heads if head.log_id == ids[whose]]
        others = [head for head in heads if head.log_id not in ids.values()] if whose == first else []
        found[whose] = verify(folder, [*mine, *others])
    changed = any(one.problem for one in found.values())
    text = "\n".join(_told(whose, one, bool(heads)) for whose, one in found.items())
    report(arguments, {"unchanged": not changed, **{whose: asdict(one) for whose, one in found.items()}}, text)
    return TAMPERED if changed else 0


def _told(whose: str, found: Report, proving: bool) -> str:
    lines = [f"changed: {found.problem}"] if found.problem else []
    lines += [f"note: {found.note}"] if found.note else []
    lines.append(
        f"{found.lines} lines follow from each other; signed {_until(found.covered)}, "
        + (f"proven by --head {_until(found.proven)}" if proving else "no --head was given to prove it")
    )
    return "\n".join(f"{whose}: {line}" for line in lines)


def _until(line: int) -> str:
    return f"up to line {line}" if line >= 0 else "up to none"


def _head(arguments: argparse.Namespace) -> int:
    for folder in _folders(arguments.data).values():
        print(read_head(folder / HEAD).json().decode(), end="")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    folders = _folders(require(arguments.data, "ReadAudit"))
    kek = open_kek(arguments.kek) if arguments.kek else None
    said = [_said(whose, folder, kek) for whose, folder in folders.items()]
    for fields in heapq.merge(*said, key=lambda fields: str(fields.get("time"))):
        print(json.dumps(fields) if arguments.json else _text(fields))
    return 0


def _said(whose: str, folder: Path, kek: KeyProvider | None) -> Iterator[dict[str, Any]]:
    key = read_sealing_key(folder, kek) if kek and whose == "server" else None  # the operators' log is never sealed
    for fields in entries(folder, key):
        yield {"log": whose, **fields}


def _text(fields: dict[str, Any]) -> str:
    start = f"{fields['sequence']:>8}  {fields['log']:<9}  {fields['time']}  "
    if fields["kind"] != "entry":
        return start + str(fields["kind"]) + (f": a crash left {fields['bytes']} bytes" if "bytes" in fields else "")
    who = fields["principal"] or {"tenant": "?", "name": "?", "via": "unknown"}
    return (
        f"{start}{'allow' if fields['allowed'] else 'deny '}  {who['tenant']}/{who['name']} ({who['via']})  "
        f"{fields['action']}  {fields['resource']}  {fields['request_bytes']} bytes  "
        f"by {', '.join(fields['policies']) or 'default'}  {fields['request_id']}"
    )
