"""The file of a privacy budget: what may be spent in its first line, then a line for each time it was.

A line is the digest of the line before followed by this line's text, in SHA-256, a space, and the text, a JSON object.
The file is replaced as a whole, so that there is never a part of a line. Digests catch damage and careless edits; who
can write the file can also write another, or put an older one back.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from he_client.durable import file_errors, new_file
from he_client.protect.dp.calibration import require_privacy
from he_client.protect.dp.checks import number
from he_engine.errors import DamagedDataError, FormatVersionError, InvalidInput

FORMAT = "hesearch privacy budget"
VERSION = 1
WHAT = "privacy budget"
MOST_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Spending:
    """One line: what was paid for."""

    at: str  #: UTC, ISO 8601
    what: str
    epsilon: float
    delta: float
    mu: float  #: what counts; ε and δ are how it was asked for


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a file says."""

    epsilon: float
    delta: float
    spendings: tuple[Spending, ...]
    raw: bytes


def create(path: Path, epsilon: float, delta: float) -> None:
    """A new file. Raises AlreadyExists, NotFound (no such folder)."""
    fields = {"format": FORMAT, "version": VERSION, "id": os.urandom(16).hex(), "epsilon": epsilon, "delta": delta}
    with new_file(path, WHAT, replace=False) as file:
        file.write(_line(fields, b""))


def read(path: Path) -> Ledger:
    """Raises NotFound, FormatVersionError, DamagedDataError."""
    with file_errors(path, WHAT):
        raw = path.read_bytes()
    lines = raw.split(b"\n")
    head = _parsed(lines[0])
    if head.get("format") != FORMAT or head.get("version") != VERSION:
        raise FormatVersionError(f"{WHAT} {path}: not a file of version {VERSION}")
    previous, spendings = b"", []
    for position, line in enumerate(lines[:-1]):
        try:
            fields = _parsed(line)
            if line != _line(fields, previous)[:-1]:
                raise ValueError
            require_privacy(fields["epsilon"], fields["delta"])
            if position:
                spendings.append(Spending(**fields))
                if not number(fields["mu"]) or fields["mu"] <= 0:
                    raise ValueError
        except (ValueError, KeyError, TypeError):
            raise _damaged(path, position) from None
        previous = line
    if lines[-1]:
        raise _damaged(path, len(lines) - 1)
    return Ledger(head["epsilon"], head["delta"], tuple(spendings), raw)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else adds to the file meanwhile, in whatever process. Raises NotFound, HesearchError."""
    with file_errors(path, WHAT):
        while True:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(descriptor), path.stat()):  # else it was replaced while we waited
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def add(path: Path, ledger: Ledger, spending: Spending) -> None:
    """A line more, on the disk when this returns. The file is locked, and `ledger` is what it says."""
    last = ledger.raw[:-1].split(b"\n")[-1]
    with new_file(path, WHAT) as file:
        file.write(ledger.raw + _line(asdict(spending), last))


def require_what(what: str) -> None:
    """Raises InvalidInput."""
    if not isinstance(what, str) or not what.isprintable() or not 1 <= len(what) <= MOST_CHARACTERS:
        raise InvalidInput(f"what: expected a text of 1 to {MOST_CHARACTERS} printable characters")


def _line(fields: dict[str, Any], previous: bytes) -> bytes:
    text = json.dumps(fields).encode()
    return hashlib.sha256(previous[:64] + text).hexdigest().encode() + b" " + text + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    """The fields of a line; none where it is not one."""
    try:
        fields = json.loads(line[65:])
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _damaged(path: Path, position: int) -> DamagedDataError:
    return DamagedDataError(f"{WHAT} {path}: line {position + 1} was changed or is damaged; nothing is released on it")
