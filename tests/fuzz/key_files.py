"""Parsers of files that hold a key without a passphrase: key rings of version 2, shared keys, shares of a backup."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from shamir_mnemonic import rs1024, wordlist

from he_client.key_backup import backup_key, restore_key
from he_client.key_sharing import _SUITE, Identity, X25519PublicKey, _bound, accept_key, share_key
from he_client.keyring import KeyringLock, load_key
from he_client.keys import MAX_FILE_BYTES, CollectionKey, canonical
from he_engine.errors import InvalidInput
from he_engine.sealing import seal, unseal
from tests.fuzz.formats import KEY, MIB
from tests.fuzz.mutate import Mutate, mutate_bytes, mutate_json, mutate_text
from tests.fuzz.target import Target, scratch

ROOT = bytes(range(64, 96))  #: of the collection key that the samples hold
JSON_BYTES = 32 * MAX_FILE_BYTES  #: a Python object for every two bytes of it


def _json_target(
    name: str,
    load: Callable[[Path], object],
    sample: bytes,
    repaired: Callable[[dict[str, Any]], dict[str, Any]],
    cost: int = 1,
) -> Target:
    """Of a file that is one JSON object. `repaired`: its fields with seals and signatures that are right again."""
    folder = scratch()
    path = folder / "file"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load(path)

    def repair(data: bytes) -> bytes:
        try:
            return json.dumps(repaired(json.loads(data))).encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return data

    return Target(
        name=name,
        run=run,
        samples=[sample, json.dumps(json.loads(sample)).encode()],
        mutate=mutate_json,
        repair=repair,
        limit_bytes=JSON_BYTES,
        cost=cost,
        close=lambda: shutil.rmtree(folder),
    )


# ---- the key ring --------------------------------------------------------------------------------------------
class _Known(KeyringLock):
    """As if the system's keyring had an entry for every file."""

    def _unwrap(self, sealed: bytes, fields: dict[str, Any]) -> bytes:
        return unseal(KEY, "key file", canonical(fields), sealed)


def _no_passphrase(path: Path) -> str:
    raise InvalidInput(f"{path}: nobody knows the passphrase")


def key_ring_target() -> Target:
    """Files of version 2."""
    fields = {
        "format": CollectionKey.file_format, "version": 2, "lock": "keyring", "entry": "5a" * 16,
        "key_id": CollectionKey(ROOT).key_id,
    }  # fmt: skip

    def repaired(changed: dict[str, Any]) -> dict[str, Any]:
        sealed = bytes.fromhex(changed.pop("sealed"))
        root = ROOT[: max(0, len(sealed) - 28)]  # a nonce and a tag are around it
        return {**changed, "sealed": seal(KEY, "key file", canonical(changed), root).hex()}

    def load(path: Path) -> None:
        if b'"keyring"' not in path.read_bytes():
            load_key(CollectionKey, path, _no_passphrase, None)
        key = _Known().load(CollectionKey, path)
        assert key.reveal() == ROOT, "no other key than the one that was sealed"

    return _json_target("key-ring", load, json.dumps(repaired({**fields, "sealed": "00" * 60})).encode(), repaired)


# ---- shared keys ---------------------------------------------------------------------------------------------
def shared_key_target() -> Target:
    sender, recipient = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
    folder = scratch()
    share_key(CollectionKey(ROOT), sender, recipient.public, folder / "shared")
    sample = (folder / "shared").read_bytes()
    shutil.rmtree(folder)

    def repaired(changed: dict[str, Any]) -> dict[str, Any]:
        """As the sender could have made it, of as many bytes as `sealed` has room for."""
        named = changed["from"] + "", changed["to"] + "", changed["key_id"] + ""
        root = ROOT[: max(0, len(changed["sealed"]) // 2 - 48)]
        sealed = _SUITE.encrypt(root, X25519PublicKey.from_public_bytes(recipient.public.agreement), _bound(*named))
        signature = sender.signing_key().sign(_bound(*named, sealed))
        return {**changed, "sealed": sealed.hex(), "signature": signature.hex()}

    def load(path: Path) -> None:
        assert accept_key(path, recipient, sender.public).reveal() == ROOT

    return _json_target("shared-key", load, sample, repaired, 5)


# ---- shares of a backup --------------------------------------------------------------------------------------
_PARTS = b"\0"  #: between the files of one input
_WORD = re.compile(rb"[A-Za-z]+")


def key_share_target() -> Target:
    folder = scratch()
    paths = backup_key(CollectionKey(ROOT), 3, 2, folder / "shares")
    shares = [path.read_bytes() for path in paths]

    def run(data: bytes) -> None:
        files = []
        for number, content in enumerate(data.split(_PARTS)[:8]):
            files.append(folder / str(number))
            files[-1].write_bytes(content)
        assert restore_key(files).reveal() == ROOT

    return Target(
        name="key-share",
        run=run,
        samples=[_PARTS.join(shares[:2]), _PARTS.join(shares[1:]), _PARTS.join(shares)],
        mutate=_mutate_shares,
        repair=lambda data: _PARTS.join(_checked(part) for part in data.split(_PARTS)),
        limit_bytes=4 * MIB,
        cost=8,
        close=lambda: shutil.rmtree(folder),
    )


def _mutate_shares(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Half of the time, words become others of the list, most often those that say what kind of share it is."""
    change: Mutate = mutate_text if rng.random() < 0.7 else mutate_bytes
    if rng.random() < 0.5:
        return change(rng, data, others)
    words = [found for found in _WORD.finditer(data) if found[0].decode() in wordlist.WORD_INDEX_MAP]
    for _ in range(1 << rng.randrange(3)):
        if words:
            at = rng.choice(words[:4]) if rng.random() < 0.5 else rng.choice(words)
            data = data[: at.start()] + rng.choice(wordlist.WORDLIST).encode() + data[at.end() :]
            words = [found for found in _WORD.finditer(data) if found[0].decode() in wordlist.WORD_INDEX_MAP]
    return data


def _checked(share: bytes) -> bytes:
    """The same words with the checksum that is right for them."""
    header, end, text = share.partition(b"\n")
    words = text.decode("latin-1").lower().split()
    try:
        numbers = [wordlist.WORD_INDEX_MAP[word] for word in words][:-3]
    except KeyError:
        return share
    if len(numbers) < 4:
        return share
    kind = b"shamir_extendable" if numbers[1] >> 4 & 1 else b"shamir"
    numbers += rs1024.create_checksum(numbers, kind)
    return header + end + " ".join(wordlist.WORDLIST[number] for number in numbers).encode() + b"\n"
