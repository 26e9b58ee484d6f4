"""`hesearch key`: the key ring, other locks, sharing and backups of keys. KEY is a file, or ring:NAME."""

from __future__ import annotations

import argparse
from pathlib import Path

from he_client.commands.common import Subparsers, report
from he_client.commands.key_locks import add_locking, add_verb, load, save
from he_client.commands.key_paths import add_unlocking, key_path, key_ring
from he_client.key_backup import backup_key, restore_key
from he_client.key_sharing import Identity, PublicIdentity, accept_key, share_key
from he_client.keys import CollectionKey
from he_engine.errors import InvalidInput

_IDENTITY_PASSPHRASE = "--identity-passphrase-file"
_NEW_PASSPHRASE = "--new-passphrase-file"


def add_key_commands(subparsers: Subparsers) -> None:
    text = "keys: new ones, the key ring, other locks, sharing, backups"
    parser = subparsers.add_parser(
        "key", help=text, description=text, epilog="example:\n  hesearch key new ring:notes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_new(verbs)
    add_verb(verbs, "list", _list, "the names of the key ring ($HESEARCH_KEYS, or ~/.local/share/hesearch/keys)", "")
    _add_lock(verbs)
    _add_identity(verbs)
    _add_share(verbs)
    _add_accept(verbs)
    _add_backup(verbs)
    _add_restore(verbs)


def _add_new(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "new", _new, "make a collection key; no file is ever overwritten", "ring:notes --lock keyring"
    )
    parser.add_argument("key", type=key_path, metavar="KEY")
    add_locking(parser)
    parser.add_argument("--passphrase-file", type=Path, help="read the passphrase from the first line of this file")


def _new(arguments: argparse.Namespace) -> int:
    key = CollectionKey.generate()
    save(key, arguments.key, arguments)
    text = f"wrote {arguments.key} (key {key.key_id}): without it and what unlocks it nobody reads the data, nor you"
    return report(arguments, {"key": str(arguments.key), "key_id": key.key_id}, text)


def _list(arguments: argparse.Namespace) -> int:
    names = key_ring().names()
    return report(arguments, {"keys": names}, "\n".join(f"ring:{name}" for name in names) or "no keys")


def _add_lock(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "lock", _lock, "write the same key once more under another lock; the old file stays",
        "notes.key ring:notes --lock keyring",
    )  # fmt: skip
    parser.add_argument("key", type=key_path, metavar="KEY")
    parser.add_argument("new", type=key_path, metavar="NEW")
    add_locking(parser)
    add_unlocking(parser)
    parser.add_argument(_NEW_PASSPHRASE, type=Path, help="the same as --passphrase-file, for NEW")


def _lock(arguments: argparse.Namespace) -> int:
    key = load(CollectionKey, arguments.key, arguments)
    save(key, arguments.new, arguments, _NEW_PASSPHRASE)
    text = f"wrote {arguments.new} (key {key.key_id}); {arguments.key} still opens as before, until you remove it"
    return report(arguments, {"key": str(arguments.new), "key_id": key.key_id}, text)


# ---- sharing ---------------------------------------------------------------------------------------------
def _add_identity(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "identity", _identity, "show the public part of your identity, for others to share keys with; "
        "--new makes one", "--new",
    )  # fmt: skip
    parser.add_argument("identity", type=Path, nargs="?", default=_identity_path(), help="default: %(default)s")
    parser.add_argument("--new", action="store_true", help="make it; no file is ever overwritten")
    add_locking(parser)
    add_unlocking(parser)


def _identity_path() -> Path:
    return key_ring().folder / "identity"


def _identity(arguments: argparse.Namespace) -> int:
    if arguments.new:
        identity = Identity.generate()
        save(identity, arguments.identity, arguments)
    else:
        identity = load(Identity, arguments.identity, arguments)
    return report(arguments, {"public": str(identity.public)}, str(identity.public))


def _public(text: str) -> PublicIdentity:
    try:
        return PublicIdentity.parse(text)
    except InvalidInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_own_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--identity", type=Path, default=_identity_path(), help="yours; default: %(default)s")
    parser.add_argument(_IDENTITY_PASSPHRASE, type=Path, help="the same as --passphrase-file, for it")


def _add_share(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "share", _share, "seal a key for somebody: whoever has it reads all of its collections, for good",
        "notes.key --to hesearch-identity-1.… for-ben",
    )  # fmt: skip
    parser.add_argument("key", type=key_path, metavar="KEY")
    parser.add_argument("--to", type=_public, required=True, metavar="PUBLIC", help="their public identity")
    parser.add_argument("out", type=Path, metavar="OUT", help="what to send them; only they can open it")
    _add_own_identity(parser)
    add_unlocking(parser)


def _share(arguments: argparse.Namespace) -> int:
    identity = load(Identity, arguments.identity, arguments, _IDENTITY_PASSPHRASE)
    key = load(CollectionKey, arguments.key, arguments)
    share_key(key, identity, arguments.to, arguments.out)
    text = f"wrote {arguments.out} (key {key.key_id}): send it; only a new key (hesearch reseal) takes it back"
    return report(arguments, {"shared": str(arguments.out), "key_id": key.key_id}, text)


def _add_accept(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "accept", _accept, "open a key that was shared with you",
        "for-ben ring:notes --from hesearch-identity-1.… --lock keyring",
    )  # fmt: skip
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("key", type=key_path, metavar="KEY", help="where to keep it")
    parser.add_argument("--from", type=_public, required=True, dest="sender", metavar="PUBLIC", help="who sent it")
    _add_own_identity(parser)
    add_locking(parser)
    add_unlocking(parser)


def _accept(arguments: argparse.Namespace) -> int:
    identity = load(Identity, arguments.identity, arguments, _IDENTITY_PASSPHRASE)
    key = accept_key(arguments.file, identity, arguments.sender)
    save(key, arguments.key, arguments)
    text = f"wrote {arguments.key} (key {key.key_id})"
    return report(arguments, {"key": str(arguments.key), "key_id": key.key_id}, text)


# ---- backups ---------------------------------------------------------------------------------------------
def _add_backup(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "backup", _backup, "split a key into shares, to print and to keep in different places",
        "notes.key --shares 5 --needed 3 ./shares",
    )  # fmt: skip
    parser.add_argument("key", type=key_path, metavar="KEY")
    parser.add_argument("--shares", type=int, required=True, help="how many to make, 16 at most")
    parser.add_argument("--needed", type=int, required=True, help="how many restore the key, 2 at least")
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty")
    add_unlocking(parser)


def _backup(arguments: argparse.Namespace) -> int:
    key = load(CollectionKey, arguments.key, arguments)
    paths = backup_key(key, arguments.shares, arguments.needed, arguments.folder)
    text = (
        f"wrote {len(paths)} shares of key {key.key_id} to {arguments.folder}: any {arguments.needed} of them are the "
        "key, without a passphrase. Give each to another keeper, then delete the folder."
    )
    return report(arguments, {"shares": [str(path) for path in paths], "key_id": key.key_id}, text)


def _add_restore(verbs: Subparsers) -> None:
    parser = add_verb(
        verbs, "restore", _restore, "make the key file again of as many shares as are needed",
        "notes.key share-1-of-5.txt share-4-of-5.txt share-5-of-5.txt",
    )  # fmt: skip
    parser.add_argument("key", type=key_path, metavar="KEY", help="where to keep it")
    parser.add_argument("shares", type=Path, nargs="+", metavar="SHARE")
    add_locking(parser)
    parser.add_argument("--passphrase-file", type=Path, help="read the passphrase from the first line of this file")


def _restore(arguments: argparse.Namespace) -> int:
    key = restore_key(arguments.shares)
    save(key, arguments.key, arguments)
    text = f"wrote {arguments.key} (key {key.key_id})"
    return report(arguments, {"key": str(arguments.key), "key_id": key.key_id}, text)
