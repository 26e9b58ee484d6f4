"""The subcommands of `hesearch`: each adds its arguments and runs through the SDK."""

from __future__ import annotations

import argparse
import getpass
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_client import keyring
from he_client.client import Client
from he_client.commands.key_paths import add_unlocking, key_path
from he_client.files import parse_ids, read_lines, read_table
from he_client.keys import CollectionKey
from he_client.results import Hit, RowId
from he_engine.errors import AlreadyExists, InvalidInput, NotFound

Subparsers = Any  # argparse's own class is private


def version() -> str:
    return f"hesearch {importlib.metadata.version('hesearch')}"


def add_command(
    subparsers: Subparsers, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  hesearch {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)
    return parser


def counted(number: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", required=True, metavar="TARGET", help="host:port, or a folder to serve in process")
    parser.add_argument(
        "--state", type=Path, default=_state_folder(), metavar="FOLDER",
        help="where the newest version seen of each collection is kept, so that a server that goes back is caught; "
        "default: $HESEARCH_STATE, or %(default)s",
    )  # fmt: skip
    add_security(parser)


def _state_folder() -> Path:
    if named := os.environ.get("HESEARCH_STATE"):
        return Path(named)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "hesearch"


def add_security(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--insecure", action="store_true", help="no TLS (for a server on this machine)")
    parser.add_argument("--ca", default="", metavar="FILE", help="PEM: authorities of the server's certificate")
    parser.add_argument(
        "--cert", default="", metavar="FILE", help="PEM: this client's certificate, if one is asked for"
    )
    parser.add_argument("--cert-key", default="", metavar="FILE", help="PEM: its private key")
    parser.add_argument(
        "--token", default="", metavar="FILE", help="holds a bearer token, for a server that takes them"
    )


def add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", required=True, type=key_path, help="the collection's key: a file, or ring:NAME")
    add_unlocking(parser)


def connect(arguments: argparse.Namespace) -> Client:
    folder = arguments.server
    if ":" not in folder and arguments.command != "create" and not Path(folder).is_dir():
        raise NotFound(f"server {folder}: no such folder, and no address; give host:port (127.0.0.1:50051)")
    return Client(
        folder, insecure=arguments.insecure, ca=arguments.ca, cert=arguments.cert, key=arguments.cert_key,
        token=arguments.token, state=arguments.state,
    )  # fmt: skip


def ask_passphrase(
    arguments: argparse.Namespace, of: Path, *, confirm: bool = False, option: str = "--passphrase-file"
) -> str:
    """`of`: the key file. `option`: the one that `arguments.passphrase_file` came from."""
    if arguments.passphrase_file is not None:
        lines = read_lines(arguments.passphrase_file)
        return lines[0] if lines else ""
    if not sys.stdin.isatty():
        raise InvalidInput(f"passphrase of {of}: no terminal to ask on; give {option}")
    try:
        entered = getpass.getpass(f"passphrase of {of}: ")
        if confirm and getpass.getpass("again: ") != entered:
            raise InvalidInput("passphrase: the two differ")
    except EOFError:
        raise InvalidInput("passphrase: none was given") from None
    return entered


def load_key(arguments: argparse.Namespace, option: str = "--passphrase-file") -> CollectionKey:
    """The key of `arguments.key`; `option` is named where there is no terminal to ask on."""
    if not arguments.key.is_file():
        raise NotFound(f"key file {arguments.key}: no such file; `hesearch keygen` makes one")
    return keyring.load_key(
        CollectionKey,
        arguments.key,
        lambda path: ask_passphrase(arguments, path, option=option),
        arguments.key_program,
    )


def confirm(question: str) -> None:
    """Asks on the terminal. Raises InvalidInput for another answer than yes, and where nobody can answer."""
    if not sys.stdin.isatty():
        raise InvalidInput(f"{question}: no terminal to ask on; give --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InvalidInput(f"{question}: not confirmed; nothing was changed")


def report(arguments: argparse.Namespace, fields: dict[str, Any], text: str) -> int:
    print(json.dumps(fields) if arguments.json else text)
    return 0


# ---- serve and demo: their own packages ------------------------------------------------------------------
def add_serve(subparsers: Subparsers) -> None:
    try:
        from he_server.access.certs_command import add_certs_parser
        from he_server.access.policy_commands import add_policy_parsers
        from he_server.audit.commands import add_audit_parsers
        from he_server.cli import add_serve_parser
        from he_server.operate.commands import add_operator_parsers
    except ImportError:
        return
    add_serve_parser(subparsers)
    add_operator_parsers(subparsers)
    add_policy_parsers(subparsers)
    add_audit_parsers(subparsers)
    add_certs_parser(subparsers)


def add_demo(subparsers: Subparsers) -> None:
    from he_client.demo.arguments import add_demo_parser

    add_demo_parser(subparsers)


# ---- keys and collections --------------------------------------------------------------------------------
def add_keygen(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "keygen", _keygen, "make a new collection key file", "notes.key")
    parser.add_argument("path", type=Path, help="where to write it; never overwritten")
    parser.add_argument("--passphrase-file", type=Path, help="read the passphrase from the first line of this file")


def _keygen(arguments: argparse.Namespace) -> int:
    if arguments.path.exists():
        raise AlreadyExists(f"key file {arguments.path}: exists; keys are never overwritten")
    CollectionKey.generate().save(arguments.path, ask_passphrase(arguments, arguments.path, confirm=True))
    text = f"wrote {arguments.path}: whoever has it and its passphrase reads the data; without it nobody can"
    return report(arguments, {"key": str(arguments.path)}, text)


def add_create(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "create", _create, "make an empty collection",
        "notes --dim 384 --key notes.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    parser.add_argument("--dim", type=int, required=True, help="vector dimension")
    parser.add_argument("--metric", default="cosine", choices=("cosine", "ip", "l2"))
    parser.add_argument("--norm-bound", type=float, help="largest norm of any row (ip and l2)")
    parser.add_argument("--profile", choices=("exact", "compact", "precise"), help="default: exact")
    parser.add_argument("--engine", default="hint", choices=("hint", "tenseal"))
    parser.add_argument("--stride", type=int, help="a power of two; default by dimension")
    parser.add_argument(
        "--tag", action="append", default=[], metavar="NAME=VALUE", help="in the clear, for the server's policies"
    )
    add_key(parser)
    add_server(parser)


def _create(arguments: argparse.Namespace) -> int:
    key = load_key(arguments)
    with connect(arguments) as client:
        client.create_collection(
            arguments.name,
            dim=arguments.dim,
            key=key,
            metric=arguments.metric,
            profile=arguments.profile,
            engine=arguments.engine,
            stride=arguments.stride,
            norm_bound=arguments.norm_bound,
            tags=_tags(arguments.tag),
        )
        info = client.describe(arguments.name)
    return report(arguments, asdict(info), f"created {info.name} ({info.profile or info.engine}, dim {info.dim})")


def _tags(given: list[str]) -> dict[str, str]:
    tags = {}
    for tag in given:
        name, equals, tags[name] = tag.partition("=")
        if not equals:
            raise InvalidInput(f"--tag: got {tag!r}, expected NAME=VALUE")
    return tags


def add_info(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "info", _info, "what the server knows of its collections", "--server 127.0.0.1:50051 --insecure"
    )
    parser.add_argument("name", nargs="?", help="default: all collections")
    add_server(parser)


def _info(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        found = [client.describe(arguments.name)] if arguments.name else client.list_collections()
    lines = [
        f"{c.name}: {c.engine} {c.profile} dim={c.dim} stride={c.stride} version={c.version} "
        f"segments={c.segments} blocks={c.blocks} stored={c.stored_bytes / 1e6:.1f} MB"
        for c in found
    ]
    return report(arguments, {"collections": [asdict(c) for c in found]}, "\n".join(lines) or "no collections")


def add_drop(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "drop", _drop, "delete a collection with all its rows, for good",
        "notes --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal")
    add_server(parser)


def _drop(arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        confirm(f"drop {arguments.name} with all its rows")
    with connect(arguments) as client:
        client.drop_collection(arguments.name)
    return report(arguments, {"dropped": arguments.name}, f"dropped {arguments.name}")


def add_trust(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "trust", _trust,
        "believe what a server shows of a collection, also where it is older than what was seen (after a restore)",
        "notes --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    add_server(parser)


def _trust(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        client.trust(arguments.name)
    text = f"what was seen of {arguments.name} is forgotten: the next command believes the server"
    return report(arguments, {"trusted": arguments.name}, text)


# ---- rows ------------------------------------------------------------------------------------------------
def add_insert(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "insert", _insert,
        "encrypt rows and store them: all, or none where an id is there already (`hesearch upsert` replaces rows)",
        "notes vectors.npy --ids ids.txt --key notes.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    add_rows(parser)
    add_key(parser)
    add_server(parser)


def add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("file", type=Path, help=".npy, .npz, .csv or .parquet; see the README for their columns")
    parser.add_argument("--ids", type=Path, help="a text file with one id a line")
    parser.add_argument("--payloads", type=Path, help="a text file with one payload a line")


def read_rows(arguments: argparse.Namespace) -> tuple[list[RowId], NDArray[Any], list[str | None] | None]:
    """ids, vectors and payloads, from what `add_rows` added."""
    table = read_table(arguments.file)
    ids: list[RowId] | None = parse_ids(read_lines(arguments.ids)) if arguments.ids else table.ids
    payloads: list[str | None] | None = [*read_lines(arguments.payloads)] if arguments.payloads else table.payloads
    if ids is None:
        raise InvalidInput(f"ids: {arguments.file} has none; give --ids FILE with one id a line")
    return ids, table.vectors, payloads


def _insert(arguments: argparse.Namespace) -> int:
    rows = read_rows(arguments)
    key = load_key(arguments)
    with connect(arguments) as client:
        collection = client.open_collection(arguments.name, key=key)
        inserted = collection.insert(*rows)
        count = collection.count()
    return report(
        arguments, {"inserted": inserted, "count": count}, f"inserted {counted(inserted, 'row')}; {count} in all"
    )


def add_search(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "search", _search, "find the nearest rows of encrypted queries",
        "notes query.npy -k 5 --key notes.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    parser.add_argument("file", type=Path, help="one query (d,) or several (B, d): .npy, .npz, .csv or .parquet")
    parser.add_argument("-k", type=int, default=10, help="hits for each query (default 10)")
    add_key(parser)
    add_server(parser)


def _search(arguments: argparse.Namespace) -> int:
    queries = np.atleast_2d(read_table(arguments.file).vectors)
    key = load_key(arguments)
    with connect(arguments) as client:
        found: list[list[Hit]] = client.open_collection(arguments.name, key=key).search(queries, k=arguments.k)
    fields = {"hits": [[_plain(hit) for hit in hits] for hits in found]}
    lines = []
    for number, hits in enumerate(found):
        lines.append(f"query {number}")
        lines += [f"  {hit.score:9.6f}  {hit.id}  {_plain(hit)['payload'] or ''}".rstrip() for hit in hits]
    return report(arguments, fields, "\n".join(lines))


def _plain(hit: Hit) -> dict[str, Any]:
    payload = hit.payload.hex() if isinstance(hit.payload, bytes) else hit.payload
    return {"id": hit.id, "score": hit.score, "payload": payload}


def add_delete(subparsers: Subparsers) -> None:
    parser = add_command(
        subparsers, "delete", _delete, "take rows out, by id: all, or none where an id is not there",
        "notes 17 18 --key notes.key --server 127.0.0.1:50051 --insecure",
    )  # fmt: skip
    parser.add_argument("name")
    parser.add_argument("ids", nargs="+", help="integers (17) or texts (017, abc)")
    add_key(parser)
    add_server(parser)


def _delete(arguments: argparse.Namespace) -> int:
    key = load_key(arguments)
    with connect(arguments) as client:
        collection = client.open_collection(arguments.name, key=key)
        deleted = collection.delete(parse_ids(arguments.ids))
        count = collection.count()
    return report(arguments, {"deleted": deleted, "count": count}, f"deleted {counted(deleted, 'row')}; {count} left")
