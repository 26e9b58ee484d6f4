"""What the audit log says of one decision, and the lines that say it. docs/audit.md.

    {"hash":"H","previous":"P","sequence":N,"batch":B,"KIND":CONTENT}\\n

H is the SHA-256 of all that follows it, from `"previous"` up to the newline and without it; P is the H of the line
before, 64 zeros in the first. Lines from B on were synced together: when this one was written, those before B were on
the disk. So every line is JSON, and the chain is checked without any key.

    begin     the first line: log id, format, time       entry     an AuditEntry and its time
    cut       what a crash had left was cut off here     sealed    the same, sealed, base64
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from he_engine.errors import InvalidInput, TamperedDataError
from he_engine.keys import RootKey, length_prefixed
from he_engine.sealing import seal, unseal
from he_server.access.principals import Principal

FORMAT = 1
START = bytes(32)  #: the hash before the first line
MAX_ENTRY_BYTES = 1 << 14  #: as JSON
MAX_LINE_BYTES = 1 << 15
_PAD_BYTES = 256  #: sealed entries have a multiple of it, so that their lengths tell nothing
_ACTION = re.compile(r"[A-Za-z]{1,64}", re.ASCII)
_RESOURCE = re.compile(r"Server|Tenant/[\w@.-]{1,64}|Collection/[\w@.-]{1,64}/[\w@.-]{1,128}", re.ASCII)
_PART = re.compile(r"[a-z]{0,16}")
_REQUEST_ID = re.compile(r"[0-9a-f]{1,64}")
_SEALED = "audit entry"
_HASHED_FROM = len('{"hash":"') + 64 + len('",')
_LINE = re.compile(
    rb'\{"hash":"([0-9a-f]{64})","previous":"([0-9a-f]{64})","sequence":([0-9]{1,18}),"batch":([0-9]{1,18}),'
    rb'"(begin|cut|entry|sealed)":([\x20-\x7e]+)\}\n'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One decision. Raises InvalidInput, which quotes nothing, for what the fields may not hold: a call can put no text
    of its own into the log."""

    principal: Principal | None  #: None: nobody whom the server knows
    action: str  #: of the Cedar schema
    resource: str  #: "Collection/TENANT/NAME", "Tenant/NAME" or "Server"
    allowed: bool
    policies: tuple[str, ...]  #: ids of those that decided; none: denied by default
    request_bytes: int
    request_id: str  #: hexadecimal
    queries: int = 0  #: of a search
    part: str = ""  #: of a segment that is read: "index", "hint" and so on

    def __post_init__(self) -> None:
        patterns = {"action": _ACTION, "resource": _RESOURCE, "request_id": _REQUEST_ID, "part": _PART}
        for name, pattern in patterns.items():
            if not pattern.fullmatch(getattr(self, name)):
                raise InvalidInput(f"audit entry: {name}: expected {pattern.pattern}, got something else")

    def json(self) -> str:
        """With the time. Raises InvalidInput where it is too long, which only the ids of many policies make it."""
        who = self.principal
        content = to_json(
            time=now(),
            principal=who and {"name": who.name, "tenant": who.tenant, "via": who.via},
            action=self.action,
            resource=self.resource,
            **({"part": self.part} if self.part else {}),
            **({"queries": self.queries} if self.queries else {}),
            allowed=self.allowed,
            policies=self.policies,
            request_bytes=self.request_bytes,
            request_id=self.request_id,
        )
        if len(content) > MAX_ENTRY_BYTES:
            raise InvalidInput(f"audit entry: got {len(content)} bytes, expected at most {MAX_ENTRY_BYTES}")
        return content


def to_json(**fields: Any) -> str:
    """ASCII, no spaces, no newlines."""
    return json.dumps(fields, separators=(",", ":"))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True)
class Line:
    raw: bytes  #: all of it, with its newline
    hash: bytes
    previous: bytes
    sequence: int
    batch: int  #: all lines before this one were on the disk when it was written
    kind: str
    content: str  #: JSON

    @classmethod
    def make(cls, previous: bytes, sequence: int, batch: int, kind: str, content: str) -> Self:
        body = f'"previous":"{previous.hex()}","sequence":{sequence},"batch":{batch},"{kind}":{content}}}'.encode()
        digest = hashlib.sha256(body).digest()
        raw = b'{"hash":"%s",%s\n' % (digest.hex().encode(), body)
        return cls(raw, digest, previous, sequence, batch, kind, content)

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Raises TamperedDataError where it is no line, or its hash is not that of its bytes."""
        match = _LINE.fullmatch(raw)
        if match is None:
            raise TamperedDataError("it is no line of an audit log" if raw.endswith(b"\n") else "it has no end")
        digest = hashlib.sha256(raw[_HASHED_FROM:-1]).digest()
        if digest.hex().encode() != match[1]:
            raise TamperedDataError("its bytes are not those of its hash")
        previous = bytes.fromhex(match[2].decode())
        return cls(raw, digest, previous, int(match[3]), int(match[4]), match[5].decode(), match[6].decode())

    def fields(self, log_id: bytes, key: RootKey | None) -> dict[str, Any]:
        """What it says. Raises InvalidInput (it is sealed, and no key), TamperedDataError."""
        content = self.content
        if self.kind == "sealed":
            if key is None:
                raise InvalidInput("kek: this audit log is sealed; give the key-encryption key that opens it (--kek)")
            try:
                sealed = base64.b64decode(content.strip('"'), validate=True)
            except binascii.Error:
                raise TamperedDataError(f"audit log, line {self.sequence}: what is sealed is not base64") from None
            content = unseal(key, _SEALED, _place(log_id, self.sequence, self.previous), sealed).decode()
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise TamperedDataError(f"audit log, line {self.sequence}: its content is no JSON object")
        return fields


def sealed_entry(key: RootKey, log_id: bytes, sequence: int, previous: bytes, content: str) -> str:
    """Bound to its place: who lacks the key can put none anywhere else, nor other lines before it."""
    padded = content.ljust(-(-len(content) // _PAD_BYTES) * _PAD_BYTES).encode()
    return f'"{base64.b64encode(seal(key, _SEALED, _place(log_id, sequence, previous), padded)).decode()}"'


def _place(log_id: bytes, sequence: int, previous: bytes) -> bytes:
    return length_prefixed(log_id, sequence, previous)
