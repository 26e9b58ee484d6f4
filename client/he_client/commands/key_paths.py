"""How a command line names a key and what unlocks it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from he_client.keyring import KeyRing
from he_engine.errors import InvalidInput


def key_ring() -> KeyRing:
    """$HESEARCH_KEYS, or keys/ beside what other programs keep of this user."""
    if named := os.environ.get("HESEARCH_KEYS"):
        return KeyRing(Path(named))
    return KeyRing(Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "hesearch" / "keys")


def key_path(text: str) -> Path:
    """A file, or ring:NAME."""
    if not text.startswith("ring:"):
        return Path(text)
    try:
        return key_ring().path(text.removeprefix("ring:"))
    except InvalidInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_unlocking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--passphrase-file", type=Path, help="read the passphrase from the first line of this file")
    parser.add_argument("--key-program", metavar="PROGRAM", help="what unwraps a key that was locked with exec:PROGRAM")
