"""What the commands of operators have in common."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from he_engine.errors import NotFound
from he_server.storage.folder import require_own_catalogue

KEK = "file:PATH, passphrase:PATH or exec:PROGRAM"
DAMAGED = 9  #: exit code of a command that was done, and saw damage; that of DamagedDataError


def command(
    subparsers: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name.rpartition(" ")[2], help=text, description=text, epilog=f"example:\n  hesearch {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)
    return parser


def verbs_of(subparsers: Any, name: str, text: str, example: str) -> Any:
    """What takes the commands that follow this one."""
    parser = subparsers.add_parser(
        name, help=text, description=text, epilog=f"example:\n  hesearch {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    return parser.add_subparsers(dest=f"{name}_command", required=True, metavar="VERB")


def report(arguments: argparse.Namespace, fields: dict[str, Any], text: str) -> None:
    print(json.dumps(fields) if arguments.json else text)


def data_folder(arguments: argparse.Namespace) -> Path:
    """That there is, with its own catalogue. Raises InvalidInput, and NotFound: none of these commands makes a data
    folder by mistake."""
    data: Path = arguments.data
    require_own_catalogue(data)
    if not (data / "catalogue.sqlite").is_file():
        raise NotFound(f"data folder {data}: there is none, or it has no catalogue")
    return data


def progress(arguments: argparse.Namespace) -> Callable[[int, int], None]:
    """Tells of it on a terminal."""
    if arguments.json or not sys.stderr.isatty():
        return lambda *_: None
    return lambda done, total: print(f"\r{done / 1e6:.0f} of {total / 1e6:.0f} MB", end="", file=sys.stderr, flush=True)
