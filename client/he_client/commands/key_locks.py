"""What the verbs of `hesearch key` and `protect` have in common: reading keys, and writing new ones under a lock."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from he_client import keyring
from he_client.commands.common import Subparsers, add_command, ask_passphrase
from he_client.commands.key_paths import key_ring
from he_client.keyring import KeyringLock, Lock, PassphraseLock, ProgramLock
from he_client.keys import StoredKey

PASSPHRASE_FILE = "--passphrase-file"


def add_verb(
    verbs: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
    of: str = "key",
) -> argparse.ArgumentParser:
    parser = add_command(verbs, name, run, text, example)
    parser.epilog = f"example:\n  hesearch {of} {name} {example}"
    return parser


def add_locking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lock", type=_lock_kind, default="passphrase",
        help="what seals the new file: passphrase (default), keyring (the operating system's), or exec:PROGRAM",
    )  # fmt: skip


def _lock_kind(text: str) -> str:
    kind, _, program = text.partition(":")
    if text not in ("passphrase", "keyring") and not (kind == "exec" and program):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected passphrase, keyring or exec:PROGRAM")
    return text


def save(key: StoredKey, path: Path, arguments: argparse.Namespace, option: str = PASSPHRASE_FILE) -> None:
    """Under the lock of `arguments.lock`; `option` names the passphrase's file. Raises as Lock.save."""
    if path.parent == key_ring().folder:
        key_ring().make()
    _lock(arguments, path, option).save(key, path)


def _lock(arguments: argparse.Namespace, path: Path, option: str) -> Lock:
    if arguments.lock == "keyring":
        return KeyringLock()
    if arguments.lock.startswith("exec:"):
        return ProgramLock(arguments.lock.removeprefix("exec:"))
    return PassphraseLock(ask_passphrase(_given(arguments, option), path, confirm=True, option=option))


def load(
    kind: type[keyring.Key], path: Path, arguments: argparse.Namespace, option: str = PASSPHRASE_FILE
) -> keyring.Key:
    """The key of a file. Raises as Lock.load."""

    def passphrase(of: Path) -> str:
        return ask_passphrase(_given(arguments, option), of, option=option)

    return keyring.load_key(kind, path, passphrase, arguments.key_program)


def _given(arguments: argparse.Namespace, option: str) -> argparse.Namespace:
    return argparse.Namespace(passphrase_file=getattr(arguments, option.removeprefix("--").replace("-", "_")))
