"""The journal of a reseal: which segments are stored under the new key already, so that none is made twice.

A text file. Its first line names the collection, both keys (by a value that derives from them and tells nothing else)
and a random number, so that it can be applied nowhere else:

    hesearch reseal journal 1 <collection id> <number> <old key check> <new key check> <SHA-256 of the line so far>

Each line after it is base64 of a text sealed under the new key and bound to the first line and to its own number:
first the engine state of the collection under the new key, then a line for each new segment. A line is on the disk
before the next step is taken; the last one may be torn, and does not count then.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from he_client.durable import file_errors, new_file, sync_folder
from he_engine.errors import Conflict, FormatVersionError, InvalidInput, TamperedDataError, WrongKeyError
from he_engine.keys import RootKey, length_prefixed
from he_engine.sealing import seal, unseal
from he_proto.v1 import hesearch_pb2 as pb

MAGIC = "hesearch reseal journal 1 "
PURPOSE = WHAT = "reseal journal"
MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Resealed:
    """One segment, encrypted again."""

    source_id: bytes
    dropped: tuple[int, ...]  #: rows of the source that were deleted already, ascending; the new segment lacks them
    entry: pb.SegmentEntry  #: of the new segment, no row deleted


class ResealJournal:
    """An open journal, locked against other processes. `done`: what it says, by source id."""

    def __init__(self, file: BinaryIO, path: Path, head: bytes, new_key: RootKey, lines: list[bytes]) -> None:
        self._file = file
        self._path = path
        self._head = head
        self._key = new_key
        self._lines = 1
        opened = [self._opened(line) for line in lines]
        if not opened:
            raise TamperedDataError(f"{WHAT} {path}: its second line is missing")
        self.engine_state = opened[0]
        self.done = {resealed.source_id: resealed for resealed in map(_parse, opened[1:])}

    def add(self, resealed: Resealed) -> None:
        """On the disk when it returns."""
        fields = {
            "source": resealed.source_id.hex(),
            "dropped": resealed.dropped,
            "entry": resealed.entry.SerializeToString().hex(),
        }
        with file_errors(self._path, WHAT):
            self._file.write(_sealed(self._key, self._head, self._lines, json.dumps(fields).encode()))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._lines += 1
        self.done[resealed.source_id] = resealed

    def remove(self) -> None:
        """The reseal is complete."""
        with file_errors(self._path, WHAT):
            self._path.unlink(missing_ok=True)
            sync_folder(self._path.parent)

    def _opened(self, line: bytes) -> bytes:
        try:
            sealed = base64.b64decode(line)
            if base64.b64encode(sealed) != line:
                raise binascii.Error
            plain = unseal(self._key, PURPOSE, _aad(self._head, self._lines), sealed)
        except (TamperedDataError, binascii.Error):
            raise TamperedDataError(f"{WHAT} {self._path}: line {self._lines + 1} was altered") from None
        self._lines += 1
        return plain


@contextlib.contextmanager
def open_journal(
    path: Path, collection_id: bytes, old_key: RootKey, new_key: RootKey, engine_state: bytes
) -> Iterator[ResealJournal]:
    """The journal at `path`, made with this engine state where there is none.

    Raises FormatVersionError for a file that is no journal of this version, InvalidInput and WrongKeyError for the
    journal of another collection or of other keys, TamperedDataError for a line that was altered, Conflict while
    another process has it open, NotFound where the folder is not there.
    """
    checks = [_check(key, collection_id) for key in (old_key, new_key)]
    if checks[0] == checks[1]:
        raise InvalidInput("new_key: got the key that the collection has, expected a new one")
    with file_errors(path, WHAT):
        if not path.exists():
            head = _new_head(collection_id, checks)
            with new_file(path, WHAT) as made:  # with two lines, or not at all
                made.write(head + b"\n" + _sealed(new_key, head, 1, engine_state))
        file = path.open("r+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(f"{WHAT} {path}: another process is resealing with it") from None
        content = file.read(min(MAX_FILE_BYTES, os.fstat(file.fileno()).st_size))
        head, *lines = content.split(b"\n")[:-1] or [b""]
        _check_head(path, head, collection_id, checks)
        journal = ResealJournal(file, path, head, new_key, lines)
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)  # a torn line
        file.seek(whole)
        yield journal


def _check(key: RootKey, collection_id: bytes) -> str:
    return key.derive("reseal journal check", collection_id).hex()


def _new_head(collection_id: bytes, checks: list[str]) -> bytes:
    text = MAGIC + " ".join([collection_id.hex(), secrets.token_hex(16), *checks])
    return f"{text} {hashlib.sha256(text.encode()).hexdigest()}".encode()


def _check_head(path: Path, head: bytes, collection_id: bytes, checks: list[str]) -> None:
    text, _, digest = head.decode("latin-1").rpartition(" ")
    if not text.startswith(MAGIC):
        raise FormatVersionError(f"{WHAT} {path}: not a reseal journal of this version")
    fields = text.removeprefix(MAGIC).split(" ")
    if digest != hashlib.sha256(text.encode("latin-1")).hexdigest() or len(fields) != 4:
        raise TamperedDataError(f"{WHAT} {path}: its first line was altered")
    if fields[0] != collection_id.hex():
        raise InvalidInput(f"{WHAT} {path}: it belongs to another collection")
    if fields[2:] != checks:
        raise WrongKeyError(f"{WHAT} {path}: it was begun with another old or new key; give those, or another file")


def _aad(head: bytes, number: int) -> bytes:
    return length_prefixed(head, number)


def _sealed(key: RootKey, head: bytes, number: int, plain: bytes) -> bytes:
    return base64.b64encode(seal(key, PURPOSE, _aad(head, number), plain)) + b"\n"


def _parse(plain: bytes) -> Resealed:
    fields = json.loads(plain)
    entry = pb.SegmentEntry.FromString(bytes.fromhex(fields["entry"]))
    return Resealed(bytes.fromhex(fields["source"]), tuple(fields["dropped"]), entry)
