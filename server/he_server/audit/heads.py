"""Signed heads: "line N of this log has this hash", by the log's key. Kept elsewhere, one proves what the log was.

The newest is the file `head` in the log's folder, one line of JSON; what is exported is a copy of it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from he_engine.errors import NotFound, TamperedDataError
from he_engine.keys import length_prefixed
from he_server.audit.entry import now, to_json
from he_server.storage import files

HEAD = "head"
_MAX_BYTES = 4096
_LIMIT = 1 << 63  #: of a position in a file


@dataclass(frozen=True, slots=True)
class Head:
    log_id: bytes  #: the Ed25519 public key, 32 bytes, of the log and of this signature
    sequence: int
    end_bytes: int  #: where that line ends in the file
    hash: bytes  #: of that line
    time: str
    signature: bytes = b""

    def _message(self) -> bytes:
        return length_prefixed(
            "hesearch audit head 1", self.log_id, self.sequence, self.end_bytes, self.hash, self.time
        )

    @classmethod
    def sign(cls, signer: Ed25519PrivateKey, sequence: int, end_bytes: int, digest: bytes) -> Self:
        fields = (signer.public_key().public_bytes_raw(), sequence, end_bytes, digest, now())
        return cls(*fields, signer.sign(cls(*fields)._message()))

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Raises TamperedDataError where it is none, or its signature is wrong."""
        try:
            fields = json.loads(raw)
            log_id, digest, signature = (bytes.fromhex(fields[name]) for name in ("log", "hash", "signature"))
            head = cls(log_id, fields["sequence"], fields["end_bytes"], digest, fields["time"], signature)
            numbers = type(head.sequence) is type(head.end_bytes) is int
            if (
                not numbers
                or max(head.sequence, head.end_bytes) >= _LIMIT
                or type(head.time) is not str
                or head.json() != raw
            ):
                raise ValueError
            Ed25519PublicKey.from_public_bytes(log_id).verify(signature, head._message())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error, InvalidSignature):
            raise TamperedDataError("head: it is none of an audit log, or its signature is wrong") from None
        return head

    def json(self) -> bytes:
        named = {"log": self.log_id.hex(), "sequence": self.sequence, "end_bytes": self.end_bytes}
        text = to_json(**named, hash=self.hash.hex(), time=self.time, signature=self.signature.hex())
        return text.encode() + b"\n"


def read_head(path: Path) -> Head:
    """Raises NotFound, TamperedDataError."""
    if not path.is_file():
        raise NotFound(f"head: there is no file {path.name}")
    with files.storage_errors("reading a head"), path.open("rb") as file:
        return Head.parse(file.read(_MAX_BYTES))


def read_heads(path: Path) -> list[Head]:
    """Those of a file to which `hesearch audit head` printed, once or often, one a line. Raises as `read_head`."""
    if not path.is_file():
        raise NotFound(f"head: there is no file {path.name}")
    with files.storage_errors("reading heads"), path.open("rb") as file:
        return [Head.parse(raw) for raw in iter(lambda: file.readline(_MAX_BYTES), b"")]


def replace_file(path: Path, content: bytes) -> None:
    """Durably, at once. Raises LimitExceeded, Unavailable, ReadOnlyError."""
    with files.NewFile(path.parent) as file:
        file.append(content)
        file.sync()
        file.publish(path)
    with files.storage_errors("syncing"):
        files.sync_folder(path.parent)
